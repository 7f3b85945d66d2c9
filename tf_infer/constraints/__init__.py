"""WHAT A TEXT MUST LOOK LIKE -> which tokens may come next. NumPy; needs no TensorFlow.

Promise: an automaton lets exactly the texts through that its pattern, schema or choices describe,
however they are cut into tokens; what cannot be honoured is refused, never ignored. The graph uses
the same automata as arrays (`decoding/constraints.py`). May import: token_bytes, config, errors.
"""
