"""STAGES IN A ROW: forms of a model are built, proven, timed in turns, and the best one is chosen.

Needs no TensorFlow but in the processes that `worker.py` runs. May import everything but cli.
"""
