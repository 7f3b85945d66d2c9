"""ANSWERING: TensorFlow Serving's API for version directories.

TensorFlow only in servable.py and session_config.py, and at the first profile in profiler.py.
May import: wire, manifest, config, errors, version.
"""
