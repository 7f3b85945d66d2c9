"""The loop of `loop.run` in stages: between them rows that have ended leave, and the cache grows.

A step costs what its rows and the positions of its cache cost. So a stage has room for BLOCK more
positions, and ends as soon as so few rows are left that a smaller number of SIZES holds them. How
much room a row's cache has depends on the number of the step and on the width of the prompts, never
on which rows are left. That the width changes nothing either is up to `grown`, which may give more
room than it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import tensorflow as tf

from tf_infer.decoding.contracts import Cache, Limits, Start, StepFn, Watcher
from tf_infer.decoding.loop import Choose, Progress, advance, begin, with_shapes_of

BLOCK = 32  # positions; attention reads half of them in vain, and each copies the cache once
# Numbers of rows that go on together. Each is an own shape to oneDNN, so they are few.
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)

# cache, positions [] int32 -> the cache with room for so many
Grown = Callable[[Cache, tf.Tensor], Cache]
Told = TypeVar("Told")  # a nest of tensors, rows first


class _Stage(NamedTuple):
    """What stands between two stages; N rows of B.

    Attributes:
        steps: [] int32, how many there were; -1 while nothing has been chosen.
        rows: [N] int32, which rows they are.
        options: of these rows.
        progress: of these rows.
        cache: of these rows.
        told: what is to be told of all B rows, of each when it was last here.
    """

    steps: tf.Tensor
    rows: tf.Tensor
    options: Any
    progress: Progress
    cache: Cache
    told: Any


class _Parts(NamedTuple):
    """The arguments of `run` that every stage needs."""

    step: StepFn
    logits: tf.Tensor
    rules: Callable[[Any], tuple[Limits, Choose]]
    watchers: Sequence[Watcher]
    tell: Callable[[Progress], Any]
    width: Any
    grown: Grown


def run(step: StepFn, start: Start, options: Any, rules: Callable[[Any], tuple[Limits, Choose]],
        watchers: Sequence[Watcher], tell: Callable[[Progress], Told], *, width: Any, grown: Grown
        ) -> Told:
    """Do what `loop.run` does, in a graph whose rows and positions are free.

    Args:
        step: reads one token of each row.
        start: what prefill gave, B rows; its cache need have no room.
        options: a nest of tensors, B rows first.
        rules: options of some rows -> how far these rows go, and how their tokens are chosen.
        watchers: look at what was chosen; what they know of a row is in their state.
        tell: progress -> what is wanted of it.
        width: [] int32 or a number, positions of the cache that prefill has used, at most.
        grown: gives a cache so much room or more; it may be asked for less than there is.

    Returns:
        What `tell` gives for B rows.
    """
    none = begin(rules(options)[0], (), watchers)
    parts = _Parts(step, tf.convert_to_tensor(start.logits), rules, watchers, tell, width, grown)
    rows = tf.range(tf.size(none.tokens))
    last = _Stage(*tf.while_loop(
        lambda *stage: tf.reduce_any(_Stage(*stage).progress.live),
        lambda *stage: _next(_Stage(*stage), parts),
        _Stage(tf.constant(-1), rows, options, none, start.cache, tell(none)),
        parallel_iterations=1))
    found: Told = _written(last, tell)
    return found


def _next(stage: _Stage, parts: _Parts) -> _Stage:
    """Let rows leave, give room, and step until one of the two is due again."""
    few = _below(tf.size(stage.rows))
    leaving = (stage.steps >= 0) & (_live(stage.progress) <= few)
    here = with_shapes_of(
        tf.cond(leaving, lambda: _without_some(stage, parts.tell), lambda: stage), stage)
    few = _below(tf.size(here.rows))
    until = (tf.maximum(here.steps, 0) // BLOCK + 1) * BLOCK
    limits, choose = parts.rules(here.options)

    def going(steps: tf.Tensor, progress: Progress, cache: Cache) -> tf.Tensor:
        del cache
        return (steps < until) & (_live(progress) > tf.where(steps < 0, 0, few))

    def once(steps: tf.Tensor, progress: Progress, cache: Cache) -> Any:
        found, moved = tf.cond(steps < 0, lambda: (parts.logits, cache),
                               lambda: parts.step(progress.tokens, progress.live, cache))
        after = advance(progress, with_shapes_of(found, parts.logits), limits, choose, (),
                        parts.watchers)
        return steps + 1, with_shapes_of(after, progress), with_shapes_of(moved, cache)

    cache = with_shapes_of(parts.grown(here.cache, parts.width + until), here.cache)
    steps, progress, cache = tf.while_loop(going, once, (here.steps, here.progress, cache),
                                           parallel_iterations=1)
    return here._replace(steps=steps, progress=progress, cache=cache)


def _without_some(stage: _Stage, tell: Callable[[Progress], Any]) -> _Stage:
    """Write down what there is, and go on with fewer rows, all that are live among them."""
    sizes = tf.constant(SIZES)
    count = tf.reduce_min(tf.where(sizes >= _live(stage.progress), sizes, SIZES[-1]))
    order = tf.argsort(tf.cast(stage.progress.live, tf.int32), direction="DESCENDING",
                       stable=True)[:count]
    rows, options, progress, cache = tf.nest.map_structure(
        lambda tensor: tf.gather(tensor, order),
        (stage.rows, stage.options, stage.progress, stage.cache))
    return _Stage(stage.steps, rows, options, progress, cache, _written(stage, tell))


def _written(stage: _Stage, tell: Callable[[Progress], Any]) -> Any:
    """Return what is to be told of all rows."""
    places = tf.expand_dims(stage.rows, 1)
    return tf.nest.map_structure(
        lambda all_rows, some: tf.tensor_scatter_nd_update(all_rows, places, some),
        stage.told, tell(stage.progress))


def _live(progress: Progress) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(progress.live, tf.int32))


def _below(count: tf.Tensor) -> tf.Tensor:
    """Return the largest of the sizes below a number of rows; 0 if there is none."""
    sizes = tf.constant(SIZES)
    return tf.reduce_max(tf.where(sizes < count, sizes, 0))
