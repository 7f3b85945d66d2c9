"""The loop of `loop.run` in stages: between them rows that have ended leave, and the cache grows.

A step costs what its rows and the positions of its cache cost. So a stage has room for BLOCK more
positions, and ends as soon as so few rows are left that a smaller number of SIZES holds them. How
much room a row's cache has depends on the number of the step and on the width of the prompts, never
on which rows are left. That the width changes nothing either is up to `grown`, which may give more
room than it is asked for. Where rows differ in how far a turn takes them (`stages` with `used`), it
is up to `grown` as well that those who are further change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import tensorflow as tf

from tf_infer.decoding.contracts import Cache, Start, StepFn
from tf_infer.decoding.loop import Progress, with_shapes_of
from tf_infer.decoding.shared import Shared
from tf_infer.stages import DECODING

BLOCK = 32  # positions; attention reads half of them in vain, and each copies the cache once
# Numbers of rows that go on together. Each is an own shape to oneDNN, so they are few.
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)

# options, progress and logits [N, V] of some rows -> their progress with one more token
Advance = Callable[[Any, Progress, tf.Tensor], Progress]
# cache, positions [] int32 -> the cache with room for so many, in tensors that nobody else holds; 0
# positions leave the room that there is
Grown = Callable[[Cache, tf.Tensor], Cache]
Told = TypeVar("Told")  # a nest of tensors, rows first
# options, progress and cache of some rows -> progress and cache behind one turn of the loop
Turn = Callable[[Any, Any, Cache], tuple[Any, Cache]]


class _Stage(NamedTuple):
    """What stands between two stages; N rows of B.

    Attributes:
        steps: [] int32, positions behind the prompts that a row has used, at most.
        rows: [N] int32, which rows they are.
        progress: of these rows, with its `live` [N] bool.
        cache: of these rows.
        told: what is to be told of all B rows, of each when it was last here.
    """

    steps: tf.Tensor
    rows: tf.Tensor
    progress: Any
    cache: Cache
    told: Any


class _Parts(NamedTuple):
    """What every stage needs of `stages`' arguments."""

    turn: Turn
    rows: tf.Tensor
    options: Any
    tell: Callable[[tf.Tensor, Any, Any], Any]
    width: Any
    grown: Grown
    together: tf.Tensor
    reach: int
    used: Callable[[tf.Tensor, Any], tf.Tensor]
    prepared: Callable[[Any], Any]
    of: Callable[[tf.Tensor, Cache], Cache]


def run(step: StepFn, start: Start, options: Any, none: Progress, advance: Advance,
        tell: Callable[[Any, Progress], Told], *, width: Any, grown: Grown,
        together: tf.Tensor | bool = False) -> tuple[Told, Cache]:
    """Do what `loop.run` does, in a graph whose rows and positions are free.

    Args:
        step: reads one token of each row; it may write into the cache that it is given.
        start: what prefill gave, B rows; its cache need have no room.
        options: a nest of tensors, B rows first.
        none: what `loop.begin` gives for B rows.
        advance: `loop.advance`; what it needs to know of a row is in the options.
        tell: options and progress of some rows -> what is wanted of them.
        width: [] int32 or a number, positions of the cache that prefill has used, at most.
        grown: gives a cache so much room or more; it may be asked for less than there is.
        together: [] bool, no row leaves, and there is room for all of them in the cache.

    Returns:
        What `tell` gives for B rows; and the cache that the last step left, of those rows that were
        there: all, where they stay together.
    """
    logits = tf.convert_to_tensor(start.logits)
    specs = specs_of((options, none, logits))
    held = Shared(DECODING, lambda options, progress, logits: with_shapes_of(
        advance(options, progress, logits), progress), specs, copied=True)

    def turn(options: Any, progress: Progress, cache: Cache) -> tuple[Progress, Cache]:
        found, moved = step(progress.tokens, progress.live, cache)
        return held(options, progress, with_shapes_of(found, logits)), moved

    # Not copied here, too: it would be optimised a second time, for one call.
    first = Shared(DECODING, held, specs)(options, none, logits)
    return stages(turn, first, options, start.cache, tell, width=width, grown=grown,
                  together=together)


def stages(turn: Turn, first: Any, options: Any, cache: Cache, tell: Callable[[Any, Any], Told], *,
           width: Any, grown: Grown, together: tf.Tensor | bool = False, reach: int = 1,
           used: Callable[[tf.Tensor, Any], tf.Tensor] = lambda before, progress: before + 1,
           prepared: Callable[[Any], Any] = lambda options: options,
           of: Callable[[tf.Tensor, Cache], Cache] | None = None) -> tuple[Told, Cache]:
    """Let rows take turns until none of them is live.

    Args:
        turn: lets every live row of some go on; it may write into the cache that it is given.
        first: progress of B rows, a nest of tensors with the rows first; `live` [B] bool of it says
            which rows go on.
        options: a nest of tensors, B rows first.
        cache: of B rows, with room for their prompts.
        tell, width, grown, together: as of `run`.
        reach: positions that a turn fills, at most.
        used: those that were used before it, progress behind a turn -> positions behind `width`
            that a row has used, at most.
        prepared: what turns need of the options of some rows; made once a stage.
        of: rows [M] int32, cache -> the cache of these rows; None where its leaves have rows first.

    Returns:
        As of `run`.
    """
    rows = tf.range(tf.size(first.live))
    told = Shared(DECODING, lambda rows, options, progress: tell(rows_of(rows, options), progress),
                  (tf.TensorSpec([None], tf.int32), *specs_of((options, first))))
    parts = _Parts(turn, rows, options, told, width, grown, tf.convert_to_tensor(together), reach,
                   used, prepared, of or rows_of)
    last = _Stage(*tf.while_loop(
        lambda *stage: tf.reduce_any(_Stage(*stage).progress.live),
        lambda *stage: _next(_Stage(*stage), parts),
        _Stage(tf.constant(0), rows, first, cache, told(rows, options, first)),
        parallel_iterations=1))
    found: Told = _written(last, parts)
    return found, last.cache


def _next(stage: _Stage, parts: _Parts) -> _Stage:
    """Let rows leave, give room, and step until one of the two is due again."""
    live, sizes = _live(stage.progress), tf.constant(SIZES)
    here = with_shapes_of(
        tf.cond(live <= _fewer(stage, parts, sizes),
                lambda: _without_some(stage, parts, live, sizes), lambda: stage), stage)
    few = _fewer(here, parts, sizes)
    options = parts.prepared(rows_of(here.rows, parts.options))
    ahead = parts.reach - 1
    until = ((here.steps + ahead) // BLOCK + 1) * BLOCK
    last = until - ahead

    def going(steps: tf.Tensor, progress: Any, cache: Cache) -> tf.Tensor:
        del cache
        return (steps < last) & (_live(progress) > few)

    def once(steps: tf.Tensor, progress: Any, cache: Cache) -> Any:
        after, moved = parts.turn(options, progress, cache)
        return (parts.used(steps, after), with_shapes_of(after, progress),
                with_shapes_of(moved, cache))

    room = tf.where(parts.together, 0, parts.width + until)
    cache = with_shapes_of(parts.grown(here.cache, room), here.cache)
    steps, progress, cache = tf.while_loop(going, once, (here.steps, here.progress, cache),
                                           parallel_iterations=1)
    return here._replace(steps=steps, progress=progress, cache=cache)


def _without_some(stage: _Stage, parts: _Parts, live: tf.Tensor, sizes: tf.Tensor) -> _Stage:
    """Write down what there is, and go on with fewer rows, all that are live among them."""
    count = tf.reduce_min(tf.where(sizes >= live, sizes, SIZES[-1]))
    order = tf.argsort(tf.cast(stage.progress.live, tf.int32), direction="DESCENDING",
                       stable=True)[:count]
    rows, progress = rows_of(order, (stage.rows, stage.progress))
    return _Stage(stage.steps, rows, progress, parts.of(order, stage.cache),
                  _written(stage, parts))


def specs_of(nest: Any) -> Any:
    """Return the specifications of the tensors of a nest."""
    return tf.nest.map_structure(lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), nest)


def rows_of(rows: tf.Tensor, nest: Any) -> Any:
    """Take some rows of every tensor of a nest."""
    first = tf.constant(0)
    return tf.nest.map_structure(
        lambda tensor: tf.raw_ops.GatherV2(params=tensor, indices=rows, axis=first), nest)


def _written(stage: _Stage, parts: _Parts) -> Any:
    """Return what is to be told of all rows."""
    # Scattering refuses tensors that hold nothing; of two that hold a row, the later one counts.
    return tf.nest.map_structure(
        lambda all_rows, some: tf.dynamic_stitch([parts.rows, stage.rows], [all_rows, some]),
        stage.told, parts.tell(stage.rows, parts.options, stage.progress))


def _live(progress: Any) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(progress.live, tf.int32))


def _fewer(stage: _Stage, parts: _Parts, sizes: tf.Tensor) -> tf.Tensor:
    """Return the largest of the sizes below the number of rows; 0 if there is none to go to."""
    smaller = (sizes < tf.size(stage.rows)) & ~parts.together
    return tf.reduce_max(tf.where(smaller, sizes, 0))
