"""A plan and a task give a new task; and what holds the two against each other."""

from __future__ import annotations

from typing import TypeVar

import tensorflow as tf

from tf_infer.config import CausalLMConfig
from tf_infer.errors import ConfigError
from tf_infer.manifest import SignatureSpec
from tf_infer.networks.fast import FastDecoder
from tf_infer.optimize.plan import OptimizationPlan, cpu_flags, require_native
from tf_infer.tasks.base import Signature, Task, rows

TaskT = TypeVar("TaskT", bound=Task)
LOG_PROBS, LOSS = "log_probs", "loss"  # the signature of `under_given_tokens`, and its outputs
CHUNK = 3  # ids that are read at once between prefill and single steps


def apply(task: TaskT, plan: OptimizationPlan) -> TaskT:
    """Return a task of the same codec and configuration in the plan's form.

    Args:
        task: a decoder; it is left as it is, and later changes of its weights do not show.
        plan: how it is laid out.

    Raises:
        ConfigError: no decoder, one of a family that is not known, or a precision that this CPU
            would emulate.
    """
    if not isinstance(task.config, CausalLMConfig):
        raise ConfigError("plan: expected a causal_lm task, got "
                          f"{task.config.kind!r}. Export it without a plan.")
    require_native(plan, cpu_flags())
    network = FastDecoder(task.network, plan.precision, xla=plan.compile == "xla")
    return type(task)(task.config, task.codec, network, compiled=plan.compile,
                      tokenizer_dir=task.tokenizer_dir)


def under_given_tokens(task: Task, *, prompt_tokens: int) -> dict[str, Signature]:
    """Return one signature, what a decoder thinks of given tokens, on every path of its cache.

    Args:
        task: a decoder.
        prompt_tokens: ids of each row that prefill reads; then come CHUNK at once, then each for
            itself.

    The signature: `ids` [B, T] int32, T >= prompt_tokens + CHUNK + 1 and known, all of them real ->
    `log_probs` [B, T - prompt_tokens + 1, V] float32, nats, of what follows each id from the last
    one of the prompt on; `loss` [B], the mean of those of the ids that do follow, over all rows.
    Where no log-probability of two decoders differs by more than t, they choose the same token
    wherever one of them leads by more than 2 t.
    """
    decoder = task.network
    start = prompt_tokens + CHUNK

    def log_probs(*, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        count, width = tf.shape(ids)[0], tf.shape(ids)[1]
        logits, cache = decoder.prefill(
            ids[:, :prompt_tokens], tf.fill([count], prompt_tokens), capacity=width)
        chunk, cache = decoder.extend(ids[:, prompt_tokens:start], tf.fill([count], CHUNK), cache)
        found = [logits[:, None], chunk]
        for place in range(start, ids.shape[1]):
            step, cache = decoder.extend(ids[:, place:place + 1], tf.fill([count], 1), cache)
            found.append(step)
        every = tf.nn.log_softmax(tf.cast(tf.concat(found, axis=1), tf.float32))
        given = tf.gather(every[:, :-1], ids[:, prompt_tokens:], batch_dims=2)
        return {LOG_PROBS: every, LOSS: tf.repeat(-tf.reduce_mean(given), count)}

    spec = SignatureSpec(
        name=LOG_PROBS, inputs=(rows("ids", "int32", None),),
        outputs=(rows(LOG_PROBS, "float32", None, None), rows(LOSS, "float32")))
    return {LOG_PROBS: Signature(spec, log_probs)}
