"""Logits -> what a classifier's signatures answer, as its graph's postprocess makes it.

tasks/classifier.py is the definition; here it is NumPy's, for versions whose engine makes the
logits. Golden samples at load, and tests, hold one against the other. Needs no TensorFlow.
"""

from __future__ import annotations

import numpy as np

from tf_infer.config import ClassifierConfig
from tf_infer.server.contracts import Arrays


class ClassAnswers:
    """What logits [B, C] of a classifier mean.

    Args:
        config: names, temperature, thresholds.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        self._names = np.array([name.encode() for name in config.classes], object)
        self._temperature = np.float32(config.temperature)
        self._multi_label = config.multi_label
        self._thresholds = np.array(config.thresholds, np.float32)

    def serving_default(self, logits: np.ndarray) -> Arrays:
        """Return `label`, `score`, `scores`, `logits`, and with several labels `labels`."""
        scores = self.scores(logits)
        best = best_of(logits)
        found = {"label": self._names[best], "score": scores[np.arange(len(best)), best],
                 "scores": scores, "logits": logits}
        if self._multi_label:
            found["labels"] = np.where(scores >= self._thresholds, self._names, b"")
        return found

    def classify(self, logits: np.ndarray) -> Arrays:
        """Return `classes` and `scores`."""
        scores = self.scores(logits)
        return {"classes": np.broadcast_to(self._names, scores.shape), "scores": scores}

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Return [B, C] float32, 0 to 1."""
        calibrated = logits / self._temperature
        with np.errstate(invalid="ignore"):  # of infinities; the graph makes NaN of them, too
            if self._multi_label:
                power = np.exp(-np.abs(calibrated))
                return np.asarray(np.where(calibrated < 0, power, np.float32(1)) / (1 + power))
            highest = calibrated.max(axis=1, keepdims=True, initial=-np.inf)
            powers = np.exp(calibrated - highest)
            return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def best_of(logits: np.ndarray) -> np.ndarray:
    """Return the column of each row's largest logit, the first of several; NaN is the smallest."""
    return np.asarray(np.argmax(np.where(np.isnan(logits), -np.inf, logits), axis=1))
