"""STRINGS <-> IDS, inside the graph (TensorFlow and TF-Text ops only).

Promise: `encode` gives exactly the ids of the reference library (Hugging Face tokenizers,
sentencepiece), with byte offsets, keeps no growing state, and lives in a SavedModel with its files
as assets. May import: token_bytes, config, errors.
"""
