"""Choose the next token of every row: greedy, or drawn with temperature, top-k and top-p.

`choose` is the whole decision and keeps nothing: it runs in a graph's loop, under XLA, eagerly, and
as one call of a host loop around an engine's step. Rows with different options share a batch.

How a row is drawn depends on that row alone, never on its neighbours:
  greedy      temperature 0: the best token.
  plain       top-k and top-p off: from all V probabilities, no sort.
  shortlist   the filters are decided within its SHORTLIST best tokens: from these.
  sorted      the rest, and typical sampling: from all V in descending order.
A branch that no row of the batch needs is not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tf_infer.decoding.argmax import best_number
from tf_infer.decoding.contracts import (
    Hypotheses,
    Limits,
    Processor,
    SamplingOptions,
    Start,
    StepFn,
    Watcher,
)
from tf_infer.decoding.loop import decode
from tf_infer.decoding.random import uniforms
from tf_infer.decoding.score import finite

SHORTLIST = 256  # best tokens in which nearly every nucleus ends; a full sort costs 2.4x a token
BLOCK = 128      # tokens whose probabilities are summed before the row's are


def sample(step: StepFn, start: Start, limits: Limits, options: SamplingOptions,
           processors: Sequence[Processor] = (), watchers: Sequence[Watcher] = ()) -> Hypotheses:
    """Draw one continuation for each row (Monte Carlo decoding); temperature 0 is greedy.

    Args:
        step: reads one token of each row; see `StepFn`.
        start: what prefill gave, B rows.
        limits: buffer size, tokens allowed for each row, end ids.
        options: of each row.
        processors: change the logits before the temperature.
        watchers: look at what was chosen.

    Returns:
        Hypotheses with K = 1; `scores` are the model's own, before processors and temperature.
    """
    return decode(step, start, limits,
                  lambda logits, produced: choose(logits, options, produced), processors,
                  watchers)


def choose(logits: tf.Tensor, options: SamplingOptions, produced: tf.Tensor) -> tf.Tensor:
    """Choose the next token of each row.

    Args:
        logits: [N, V] float32. NaN counts as minus infinity; several plus infinities share all the
            mass; a row of nothing but minus infinities is a row of equals.
        options: one value of each for each row.
        produced: [N] int32, tokens the row has produced so far: the number of its draw.

    Returns:
        [N] int32. Ties go to the lower id.

    Temperature first, then top-k, then top-p of what top-k left, then min-p, then typical-p of what
    these left (the order of Hugging Face's `generate`); of tokens with equal probability top-k and
    top-p keep the lower ids, min-p and typical-p all or none.
    Sources: top-k Fan et al. 2018, arXiv:1805.04833; top-p Holtzman et al. 2020, arXiv:1904.09751;
    min-p Nguyen et al. 2024, arXiv:2407.01082; typical Meister et al. 2023, arXiv:2202.00666.
    """
    logits = finite(logits)
    greedy = best_number(logits)
    drawn = options.temperature > 0.0
    return tf.cond(tf.reduce_any(drawn),
                   lambda: tf.where(drawn, _draw(logits, options, produced), greedy),
                   lambda: greedy)


class _Rows(NamedTuple):
    """What the three ways to draw need: [N, V] weights, options, and one uniform for each row."""

    weights: tf.Tensor  # the largest is 1
    top_k: tf.Tensor
    top_p: tf.Tensor
    uniform: tf.Tensor
    min_p: tf.Tensor | None
    typical_p: tf.Tensor | None


def _draw(logits: tf.Tensor, options: SamplingOptions, produced: tf.Tensor) -> tf.Tensor:
    """[N, V] finite logits -> [N] int32, drawn; greedy rows get some token."""
    temperature = tf.where(options.temperature > 0.0, options.temperature, 1.0)
    shifted = logits - tf.reduce_max(logits, axis=-1, keepdims=True)
    _, size = tf.unstack(tf.shape(logits))
    rows = _Rows(
        weights=tf.exp(shifted / tf.expand_dims(temperature, 1)),
        top_k=tf.where(options.top_k > 0, tf.minimum(options.top_k, size), size),
        top_p=tf.cast(options.top_p, tf.float64),
        uniform=uniforms(options.seed, produced, options.draw),
        min_p=options.min_p, typical_p=options.typical_p)
    drawn = options.temperature > 0.0
    plain = (rows.top_k >= size) & (options.top_p >= 1.0) & ~_typical(rows, drawn)
    filtered = drawn & ~plain
    token = tf.zeros_like(produced)
    token = tf.cond(tf.reduce_any(drawn & plain), lambda: _from_all(rows), lambda: token)
    short, decided = tf.cond(tf.reduce_any(filtered), lambda: _from_shortlist(rows),
                             lambda: (token, tf.zeros_like(drawn)))
    token = tf.where(filtered & decided, short, token)
    rest = filtered & ~decided
    return tf.cond(tf.reduce_any(rest), lambda: tf.where(rest, _from_sorted(rows), token),
                   lambda: token)


def _typical(rows: _Rows, drawn: tf.Tensor) -> tf.Tensor:
    """[N] bool, the drawn rows that ask for typical sampling; 0 stands in rows that ask nothing."""
    if rows.typical_p is None:
        return tf.zeros_like(drawn)
    return drawn & (rows.typical_p > 0.0) & (rows.typical_p < 1.0)


def _from_all(rows: _Rows) -> tf.Tensor:
    """Draw from all tokens in the order of their ids: [N] int32."""
    weights, least = rows.weights, rows.min_p
    if least is not None:
        weights = tf.cond(tf.reduce_any(least > 0.0),
                          lambda: tf.where(weights >= tf.expand_dims(least, 1), weights, 0.0),
                          lambda: weights)
    return pick(weights, rows.uniform)


def _from_shortlist(rows: _Rows) -> tuple[tf.Tensor, tf.Tensor]:
    """Draw from the best tokens: [N] int32 tokens, [N] bool where the filters end within them."""
    _, size = tf.unstack(tf.shape(rows.weights))
    width = tf.minimum(SHORTLIST, size)
    values, ids = tf.math.top_k(rows.weights, k=width)                       # [N, S]
    everything = tf.reduce_sum(tf.cast(rows.weights, tf.float64), axis=-1)   # [N]
    kept, reached = keep(values, rows.top_k, rows.top_p, everything)
    # With top-k off the mass of all tokens is known; with a larger k than the list holds it is not.
    decided = (rows.top_k <= width) | ((rows.top_k >= size) & reached)
    decided &= ~_typical(rows, tf.ones_like(decided))
    place = pick(tf.where(_likely(kept, values, rows), values, 0.0), rows.uniform)
    return tf.gather(ids, place, batch_dims=1), decided


def _from_sorted(rows: _Rows) -> tf.Tensor:
    """Draw from all tokens in descending order: [N] int32."""
    values, ids = tf.math.top_k(rows.weights, k=tf.shape(rows.weights)[1])
    everything = tf.reduce_sum(tf.cast(rows.weights, tf.float64), axis=-1)
    kept, _ = keep(values, rows.top_k, rows.top_p, everything)
    kept = _likely(kept, values, rows)
    typical = _typical(rows, tf.ones_like(kept[:, 0]))
    kept = tf.cond(tf.reduce_any(typical),
                   lambda: kept & (keep_typical(values, kept, rows.typical_p)
                                   | tf.expand_dims(~typical, 1)),
                   lambda: kept)
    place = pick(tf.where(kept, values, 0.0), rows.uniform)
    return tf.gather(ids, place, batch_dims=1)


def _likely(kept: tf.Tensor, values: tf.Tensor, rows: _Rows) -> tf.Tensor:
    """[N, S] bool: of the tokens kept those that min-p leaves; `values` begin with the best."""
    if rows.min_p is None:
        return kept
    return kept & (values >= tf.expand_dims(rows.min_p, 1) * values[:, :1])


def keep_typical(values: tf.Tensor, kept: tf.Tensor, mass: tf.Tensor | None) -> tf.Tensor:
    """Say which tokens of each row are typical: their information is nearest to the entropy.

    Args:
        values: [N, V] float32, unnormalised probabilities.
        kept: [N, V] bool, the tokens that are in question, at least one in each row.
        mass: [N] float32 in (0, 1], of what is kept; None for 1.

    Returns:
        [N, V] bool, the fewest tokens with at least this mass, and those as near as the last one.
    """
    if mass is None:
        return kept
    weights = tf.where(kept, tf.cast(values, tf.float64), 0.0)
    probabilities = weights / tf.reduce_sum(weights, axis=-1, keepdims=True)
    real = probabilities > 0.0
    information = -tf.math.log(tf.where(real, probabilities, 1.0))           # [N, V] nats
    entropy = tf.reduce_sum(probabilities * information, axis=-1, keepdims=True)
    distance = tf.where(real, tf.abs(information - entropy), tf.float64.max)
    nearest, order = tf.math.top_k(-distance, k=tf.shape(values)[1])
    sums = tf.cumsum(tf.gather(probabilities, order, batch_dims=1), axis=-1)
    needed = tf.reduce_sum(tf.cast(sums < tf.cast(mass, tf.float64)[:, None], tf.int32), axis=-1)
    # Rounding may leave the sum of all below the mass.
    last = tf.minimum(needed, tf.reduce_sum(tf.cast(real, tf.int32), axis=-1) - 1)
    return real & (distance <= -tf.gather(nearest, tf.expand_dims(last, 1), batch_dims=1))


def keep(values: tf.Tensor, top_k: tf.Tensor, top_p: tf.Tensor, everything: tf.Tensor
         ) -> tuple[tf.Tensor, tf.Tensor]:
    """Say which of a row's best tokens top-k and top-p leave.

    Args:
        values: [N, S] float32, unnormalised probabilities in descending order, the best S of V.
        top_k: [N] int32, 1 .. V; V is off.
        top_p: [N] float64 in (0, 1].
        everything: [N] float64, the sum over all V tokens.

    Returns:
        kept: [N, S] bool, the k best, and of these the smallest set whose share of their mass is at
            least top_p; the best one always.
        reached: [N] bool, whether that mass lies within the S values, should top-k be off.
    """
    _, size = tf.unstack(tf.shape(values))
    places = tf.range(size)
    within = places < tf.expand_dims(top_k, 1)                                         # [N, S]
    weights = tf.where(within, tf.cast(values, tf.float64), 0.0)
    sums = tf.cumsum(weights, axis=-1)
    total = tf.where(top_k > size, everything, sums[:, -1])                  # [N]
    wanted = top_p * total
    before = tf.concat([tf.zeros_like(sums[:, :1]), sums[:, :-1]], axis=-1)  # mass of the better
    off = (top_p >= 1.0)[:, None]
    kept = within & (off | (before < tf.expand_dims(wanted, 1)) | (places == 0))
    return kept, sums[:, -1] >= wanted


def pick(weights: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """Pick an index of each row with probability in proportion to its weight.

    Args:
        weights: [N, M] float32 >= 0, at least one > 0 in each row; need not sum to 1.
        uniform: [N] float32 in [0, 1).

    Returns:
        [N] int32, the first index at which the running sum exceeds uniform x total; never one of
        weight 0.

    Sums are float64, so that their order, which differs between graph and XLA, does not show.
    Cost: O(N·M) time; the running sums are taken over blocks, then inside one.
    """
    rows, size = tf.unstack(tf.shape(weights))
    blocks = (size + BLOCK - 1) // BLOCK
    padded = tf.pad(weights, [[0, 0], [0, blocks * BLOCK - size]])
    cells = tf.cast(tf.reshape(padded, [rows, blocks, BLOCK]), tf.float64)   # [N, M / 128, 128]
    masses = tf.reduce_sum(cells, axis=-1)                                   # [N, M / 128]
    sums = tf.cumsum(masses, axis=-1)
    wanted = tf.expand_dims(tf.cast(uniform, tf.float64) * sums[:, -1], 1)   # [N, 1]
    block = _first((sums > wanted) & (masses > 0.0))                         # [N]
    before = tf.expand_dims(tf.gather(sums - masses, block, batch_dims=1), 1)
    cell = tf.gather(cells, block, batch_dims=1)                             # [N, 128]
    reached = (before + tf.cumsum(cell, axis=-1) > wanted) & (cell > 0.0)
    # Rounding may leave the last sum of a block below what the sum of blocks promised.
    last = BLOCK - 1 - _first(tf.reverse(cell > 0.0, axis=[-1]))
    return block * BLOCK + tf.where(tf.reduce_any(reached, axis=-1), _first(reached), last)


def _first(marks: tf.Tensor) -> tf.Tensor:
    """[N, M] bool -> [N] int32, index of the first True; 0 where there is none."""
    _, size = tf.unstack(tf.shape(marks))
    found = tf.reduce_min(tf.where(marks, tf.range(size), size), axis=-1)
    return tf.where(found < size, found, 0)
