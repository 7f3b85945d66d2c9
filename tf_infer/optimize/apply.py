"""A plan and a task give a new task; and what holds the two against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from tf_infer import config as configs
from tf_infer.config import ClassifierConfig
from tf_infer.manifest import SignatureSpec
from tf_infer.networks.encoder_arrays import EncoderArrays, encoder_arrays_of
from tf_infer.networks.fast import FastDecoder
from tf_infer.networks.fast_encoder import EncoderForm, FastClassifier, layer_names
from tf_infer.optimize.calibrate import batches_of, calibrated
from tf_infer.optimize.plan import OptimizationPlan, require_native
from tf_infer.optimize.sensitivity import sensitivity, worst
from tf_infer.processor import cpu_flags
from tf_infer.tasks.base import Signature, Task, rows
from tf_infer.tasks.causal_lm import CausalLM

TaskT = TypeVar("TaskT", bound=Task)
LOG_PROBS, LOSS = "log_probs", "loss"  # the signature of `under_given_tokens`, and its outputs
LOGITS, LABEL = "logits", "label"      # of `under_given_labels`
CLASSIFIERS_ONLY = ("floats", "keep", "activations", "smoothing", "sensitive",
                    "storage")
CHUNK = 3  # ids that are read at once between prefill and single steps
WHOLE = 8  # numbers that a CPU computes at once: widths of attention are multiples of it


def apply(task: TaskT, plan: OptimizationPlan, texts: Sequence[bytes] = ()) -> TaskT:
    """Return a task of the same codec and configuration in the plan's form.

    Args:
        task: a decoder or a classifier; it is left as it is, and later changes of its weights do
            not show.
        plan: how it is laid out; one with `sensitive` has to be settled first.
        texts: for calibration, where the plan `needs_texts`.

    Raises:
        DataError: the plan needs texts, and there are none, or none fits into the network.
        ConfigError: a network of a family that is not known, a layer that the plan names and the
            network does not have, weights that are no numbers, or a precision that this CPU would
            emulate.
    """
    network: Any
    if isinstance(task.config, ClassifierConfig):
        configs.check(plan.sensitive == 0, "plan.sensitive", "a settled plan (optimize.settle)",
                      plan.sensitive)
        arrays, form = _laid_out(task, task.config, plan)
        if plan.needs_texts:
            form = calibrated(task, arrays, form, plan, texts)
        network = FastClassifier(arrays, form)
    else:
        others = [name for name in CLASSIFIERS_ONLY
                  if getattr(plan, name) != getattr(OptimizationPlan(), name)]
        configs.check(not others, "plan", "a plan of a decoder", others,
                      "These fields are of classifiers; leave them out.")
        require_native(plan, cpu_flags())
        network, *drafts = [FastDecoder(one, plan.precision, xla=plan.compile == "xla")
                            for one in _networks(task)]
        if drafts:
            task = task.replaced(draft=drafts[0])
    return task.replaced(network=network, compiled=plan.compile)


def _networks(task: Task) -> tuple[Any, ...]:
    """Return the network of a decoder, and that which guesses for it, if there is one."""
    assert isinstance(task, CausalLM)
    return (task.network,) if task.draft is None else (task.network, task.draft)


def settle(task: Task, plan: OptimizationPlan, texts: Sequence[bytes]) -> OptimizationPlan:
    """Return a plan that names the layers which its number `sensitive` stands for.

    Raises:
        DataError, ConfigError: as `apply`.
    """
    if plan.sensitive == 0 or not isinstance(task.config, ClassifierConfig):
        return plan
    arrays, form = _laid_out(task, task.config, plan)
    form = calibrated(task, arrays, form, plan, texts)
    found = sensitivity(arrays, form, list(batches_of(task, texts)))
    rest = {name: moved for name, moved in found.items() if name not in plan.keep}
    configs.check(plan.sensitive <= len(rest), "plan.sensitive", f"at most {len(rest)} layers",
                  plan.sensitive)
    return replace(plan, sensitive=0, keep=(*plan.keep, *worst(rest, plan.sensitive)))


def _laid_out(task: Task, config: ClassifierConfig, plan: OptimizationPlan
              ) -> tuple[EncoderArrays, EncoderForm]:
    """Return a classifier's weights and its form, without what texts decide."""
    configs.check(not config.explain, "plan", "a classifier without the signature explain, whose "
                  "gradients need the network as it is", plan.precision,
                  "Export it without --explain, or without a plan.")
    require_native(plan, cpu_flags(), floats=True)
    arrays = encoder_arrays_of(task.network)
    require_numbers(arrays)
    known = layer_names(arrays)
    unknown = sorted(set(plan.keep) - set(known))
    configs.check(not unknown, "plan.keep", f"layers of this network, {known[0]!r} to "
                  f"{known[-1]!r}", unknown)
    widths = {-(-size // WHOLE) * WHOLE for size in (*config.grid.tokens, len(arrays.positions))}
    return arrays, EncoderForm(
        precision=plan.precision, floats=plan.kept_in, keep=frozenset(plan.keep),
        xla=plan.compile == "xla", widths=tuple(sorted(widths)), storage=plan.storage)


def require_numbers(arrays: EncoderArrays) -> None:
    """Raise ConfigError where a weight is NaN or infinite; names every array that has one."""
    faults = [name for name, array in _named(arrays, "") if not np.isfinite(array).all()]
    configs.check(not faults, "network", "weights that are finite numbers", faults,
                  "Train it again, or build from the original checkpoint.")


def _named(value: Any, where: str) -> list[tuple[str, np.ndarray]]:
    """Return every array in a tree of dataclasses and tuples, with its place."""
    if isinstance(value, np.ndarray):
        return [(where, value)]
    parts: list[tuple[str, Any]] = []
    if isinstance(value, tuple):
        parts = [(f"{where}[{number}]", part) for number, part in enumerate(value)]
    elif is_dataclass(value):
        parts = [(f"{where}.{field.name}".lstrip("."), getattr(value, field.name))
                 for field in fields(value)]
    return [found for name, part in parts for found in _named(part, name)]


def under_given_labels(task: Task) -> dict[str, Signature]:
    """Return one signature, what a classifier thinks of given labels.

    The signature: the texts of `serving_default`, and `label` [B] string, a class each ->
    `logits` [B, C]; `label` [B], its own; `loss` [B], minus the mean log-probability of the labels
    that were given, over all rows.
    """
    config = task.config
    assert isinstance(config, ClassifierConfig)
    answer = task.signatures()["serving_default"]

    def judged(*, label: tf.Tensor, **texts: tf.Tensor) -> dict[str, tf.Tensor]:
        found = answer.function(**texts)
        given = label[:, None] == tf.constant(config.classes)                # [B, C]
        every = (tf.math.log_sigmoid(found[LOGITS]) if config.multi_label
                 else tf.nn.log_softmax(found[LOGITS]))
        loss = -tf.reduce_mean(tf.boolean_mask(every, given))
        return {LOGITS: found[LOGITS], LABEL: found[LABEL],
                LOSS: tf.fill(tf.shape(label), loss)}

    spec = SignatureSpec(
        name=LOGITS, inputs=(*answer.spec.inputs, rows(LABEL, "string")),
        outputs=(rows(LOGITS, "float32", len(config.classes)), rows(LABEL, "string"),
                 rows(LOSS, "float32")))
    return {LOGITS: Signature(spec, judged)}


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
