"""TrainConfig -> optimiser: AdamW, warm-up, decay, clipping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_infer.config import TrainConfig


def rate(config: TrainConfig, step: int, steps: int) -> float:
    """Return the learning rate of step 0 .. steps - 1, as the graph computes it (the reference).

    It grows evenly to its highest over the warm-up, then falls as `config.decay` says; the first
    step is never 0 and neither is the last.
    """
    warmup = warmup_steps(config, steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    left = (steps - step) / (steps - warmup)  # 1 .. just above 0
    if config.decay == "linear":
        return config.learning_rate * left
    if config.decay == "cosine":
        return config.learning_rate * 0.5 * (1.0 - math.cos(math.pi * left))
    return config.learning_rate


def warmup_steps(config: TrainConfig, steps: int) -> int:
    """Return how many of all steps belong to the warm-up; at least one is left for the rest."""
    return min(int(config.warmup_fraction * steps), steps - 1)


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """`rate` inside the graph."""

    def __init__(self, config: TrainConfig, steps: int) -> None:
        super().__init__()
        self.config = config
        self.steps = steps

    def __call__(self, step: Any) -> tf.Tensor:
        """Step [] -> rate [] float32."""
        config, warmup = self.config, warmup_steps(self.config, self.steps)
        now = tf.cast(tf.convert_to_tensor(step), tf.float32)
        left = tf.clip_by_value((self.steps - now) / (self.steps - warmup), 0.0, 1.0)
        if config.decay == "linear":
            after = left
        elif config.decay == "cosine":
            after = 0.5 * (1.0 - tf.cos(math.pi * left))
        else:
            after = tf.ones_like(left)
        return config.learning_rate * tf.where(now < warmup, (now + 1) / max(warmup, 1), after)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {"config": self.config, "steps": self.steps}


def decays(variable: keras.Variable) -> bool:
    """Return whether weight decay shrinks a variable: matrices and filters, nothing else.

    Biases, norms (all of rank 1) and embeddings stay: a row of a table is used seldom, and decay
    would wear it away in between.
    """
    return len(variable.shape) >= 2 and "embeddings" not in variable.path.rsplit("/", 1)[-1]


def optimizer(config: TrainConfig, variables: Sequence[keras.Variable], steps: int
              ) -> keras.optimizers.Optimizer:
    """Build AdamW with all its variables, for `steps` steps.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    adam = keras.optimizers.AdamW(
        Schedule(config, steps), weight_decay=config.weight_decay, epsilon=config.epsilon,
        global_clipnorm=config.clip_norm)
    adam.exclude_from_weight_decay(var_list=[v for v in variables if not decays(v)])
    adam.build(list(variables))
    return adam
