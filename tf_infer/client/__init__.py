"""ASKING: the thin client, which knows no TensorFlow.

May import: wire, manifest, errors, version.
"""
