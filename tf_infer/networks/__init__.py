"""NUMBERS -> NUMBERS: Keras layers; the bodies come from KerasHub.

Promise: a checkpoint gives the logits of its original implementation within 1e-4, and a decoder
passes its state in and hands it back. May import: config, errors.
"""
