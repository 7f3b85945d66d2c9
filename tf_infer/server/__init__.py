"""ANSWERING: TensorFlow Serving's API for version directories.

TensorFlow only in servable.py, loading.py, quick_graph.py and session_config.py, and at the first
profile in profiler.py.
May import: engines, constraints, token_bytes, wire, equality, manifest, prepared, processor,
config, errors, version, stages.
"""
