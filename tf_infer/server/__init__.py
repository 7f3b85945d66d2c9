"""ANSWERING: TensorFlow Serving's API for version directories; TensorFlow only in servable.py.

May import: wire, manifest, config, errors, version.
"""
