"""SCORES -> DECISIONS: pure tensor algorithms that know no network and keep no state.

Promise: the same function runs eagerly, in a graph, under XLA and in a SavedModel, a row does not
depend on its neighbours, and randomness is an argument. May import: constraints, config, errors,
stages.
"""
