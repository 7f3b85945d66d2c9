"""STAGE: write a servable directory, never a half-written one.

May import: tasks, token_bytes, wire, manifest, prepared, processor, config, errors, version.
"""
