"""RUNNING THE DENSE CORE: what else than TensorFlow can compute a network, one library a file.

Promise: an engine gives the logits of the network it was made from, within the tolerance stated in
its manifest entry, and its caches stay where they are. May import: manifest, config, errors.
"""
