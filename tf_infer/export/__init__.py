"""STAGE: write a servable directory, never a half-written one.

May import: tasks, wire, manifest, config, errors, version.
"""
