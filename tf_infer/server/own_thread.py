"""Which runs of a classifier the thread that asks does by itself, on a machine of few CPUs.

Pure. That takes a fifth to a half less processor time than TensorFlow's pool (docs/runtime.md), but
such a run does not stop at its deadline: it is one that ends long before.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tf_infer.config import ClassifierConfig
from tf_infer.manifest import ModelManifest

FORGET = 0.999  # of what the slowest run took, at each run
SURE = 10.0  # so many times as far as the slowest run took, a deadline is not met during a run


def within_grid(manifest: ModelManifest | None, inputs: Mapping[str, np.ndarray]) -> bool:
    """Whether a run is one of a classifier of ours, and no larger than those of its warm-up."""
    return (manifest is not None and isinstance(manifest.task, ClassifierConfig)
            and all(array.ndim and len(array) <= manifest.grid.rows[-1]
                    for array in inputs.values()))


def slowest(before_s: float | None, took_s: float) -> float:
    """Return what the slowest run took, with one more run; slowly forgotten, since it may be luck.

    The first one counts for nothing: TensorFlow prepares the graph in it.
    """
    return 0.0 if before_s is None else max(took_s, FORGET * before_s)


def sure(slowest_s: float | None, timeout_s: float | None) -> bool:
    """Whether a run ends long before its deadline.

    Args:
        slowest_s: what the slowest run of the signature took, but for the first; None or 0 before
            there was one.
        timeout_s: until the deadline; None for no deadline.
    """
    return (slowest_s is not None and slowest_s > 0
            and (timeout_s is None or timeout_s > SURE * slowest_s))
