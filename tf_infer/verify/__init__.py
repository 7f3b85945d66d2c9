"""STAGE: prove that two paths agree.

May import: client, equality, metrics, pages, pictures, manifest, config, errors.
"""
