"""The loop in stages finds what the loop over all rows finds, with fewer rows and less room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_infer.decoding import greedy, loop, record, staged
from tf_infer.decoding.contracts import Limits, Processor, Start

VOCAB, CAPACITY, WIDTH, END = 7, 70, 3, 6
SCORE_ATOL = 1e-5  # exp and log of the last of a few numbers are another approximation


class Chain:
    """The logits of a row depend on its last token; it tells how it was asked.

    Attributes:
        asked: rows and positions of the cache of each step.
    """

    def __init__(self, rows: int, *, ends: bool) -> None:
        table = np.random.default_rng(0).normal(size=(rows, VOCAB, VOCAB)).astype(np.float32)
        table[:, :, END] += 1.0 if ends else -99.0
        self.table = tf.constant(table)
        self.asked: list[tuple[int, int]] = []

    def start(self) -> Start:
        table = free(self.table, [None, VOCAB, VOCAB])
        rows = tf.shape(table)[0]
        cache = {"row": tf.range(rows), "place": tf.fill([rows], WIDTH),
                 "kept": free(tf.zeros([rows, WIDTH]), [None, None])}
        return Start(table[:, 0], cache)

    def step(self, tokens: tf.Tensor, live: tf.Tensor, cache: Any) -> tuple[tf.Tensor, Any]:
        shape, place = tf.shape(cache["kept"]), cache["place"]
        told = tf.numpy_function(self._hear, [shape, tf.reduce_max(place)], tf.int32)
        with tf.control_dependencies([told]):
            here = (tf.range(shape[1]) == place[:, None]) & live[:, None]
        logits = tf.gather_nd(self.table, tf.stack([cache["row"], tokens], axis=1))
        kept = tf.where(here, tf.cast(tokens, tf.float32)[:, None], cache["kept"])
        # What has been read decides, so that it has to move along with its row, and have room.
        logits += tf.reduce_sum(kept, axis=1, keepdims=True) * tf.cast(
            tf.range(VOCAB) == 1, tf.float32) * 0.01
        return logits, {**cache, "place": place + tf.cast(live, tf.int32), "kept": kept}

    def _hear(self, shape: Any, place: Any) -> Any:
        assert place < shape[1], "no room"
        self.asked.append((int(shape[0]), int(shape[1])))
        return np.int32(0)


def free(tensor: tf.Tensor, shape: list[int | None]) -> tf.Tensor:
    """Forget what is known of a shape, as a signature does."""
    return tf.raw_ops.PlaceholderWithDefault(input=tensor, shape=shape)


def grown(cache: Any, room: tf.Tensor) -> Any:
    more = tf.maximum(room - tf.shape(cache["kept"])[1], 0)
    return {**cache, "kept": tf.pad(cache["kept"], [[0, 0], [0, more]])}


def find(chain: Chain, limits: Sequence[int], run: Callable[..., Any]) -> dict[str, np.ndarray]:
    """Decode by `run(start, options)` in a graph with free rows."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)], autograph=False)
    def found(allowed: tf.Tensor) -> dict[str, tf.Tensor]:
        # Every row has a cost of its own, so that one that takes another's place is seen.
        cost = tf.cast(tf.range(tf.size(allowed)) % 3, tf.float32)
        return run(chain.start(), {"allowed": allowed, "cost": cost})

    return {name: np.array(value) for name, value in found(tf.constant(limits, tf.int32)).items()}


def costly(cost: tf.Tensor) -> Processor:
    """Return what takes from a token that was chosen, each time that it was."""
    counts = tf.zeros_like(cost)[:, None] + tf.zeros([VOCAB])

    def accept(counts: tf.Tensor, tokens: tf.Tensor, live: tf.Tensor) -> tf.Tensor:
        return counts + tf.one_hot(tokens, VOCAB) * tf.cast(live, tf.float32)[:, None]

    return Processor(counts, lambda logits, produced, counts: logits - cost[:, None] * counts,
                     accept)


def rules(options: dict[str, tf.Tensor]) -> tuple[Any, ...]:
    return (Limits(CAPACITY, options["allowed"], (END,), 0), greedy.choose,
            (costly(options["cost"]),),
            (record.watcher(tf.zeros_like(options["allowed"]), CAPACITY, 0),))


def staged_run(chain: Chain, start: Start, options: dict[str, tf.Tensor], **settings: Any) -> Any:
    limits, _, processors, watchers = rules(options)
    return staged.run(
        chain.step, start, options, loop.begin(limits, processors, watchers),
        lambda options, progress, logits: loop.advance(progress, logits, *rules(options)), tell,
        grown=grown, **settings)


def tell(options: dict[str, tf.Tensor], progress: loop.Progress) -> dict[str, tf.Tensor]:
    return {"ids": progress.ids, "lengths": progress.lengths, "scores": progress.scores,
            "finished": progress.finished, "log_probs": progress.seen[0].log_probs,
            "counts": progress.states[0], "cost": options["cost"]}


def in_stages(chain: Chain, limits: Sequence[int]) -> dict[str, np.ndarray]:
    return find(chain, limits,
                lambda start, options: staged_run(chain, start, options, width=WIDTH)[0])


def with_room(start: Start) -> Start:
    return Start(start.logits, grown(start.cache, tf.constant(WIDTH + CAPACITY)))


def kept(told: dict[str, tf.Tensor], cache: Any) -> dict[str, tf.Tensor]:
    return {**told, "kept": cache["kept"], "place": cache["place"]}


def together(chain: Chain, limits: Sequence[int]) -> dict[str, np.ndarray]:
    return find(chain, limits, lambda start, options: kept(*staged_run(
        chain, with_room(start), options, width=WIDTH + CAPACITY,
        together=free(tf.constant(True), []))))


def at_once(chain: Chain, limits: Sequence[int]) -> dict[str, np.ndarray]:
    def run(start: Start, options: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        progress, cache = loop.run(chain.step, with_room(start), *rules(options))
        return kept(tell(options, progress), cache)

    return find(chain, limits, run)


@pytest.mark.parametrize("ends", [False, True])
def test_it_finds_what_the_loop_over_all_rows_finds(ends: bool) -> None:
    draw = np.random.default_rng(1)
    limits = [0, *draw.integers(0, CAPACITY + 5, 36).tolist(), CAPACITY]
    found, wanted = (run(Chain(len(limits), ends=ends), limits) for run in (in_stages, at_once))
    same(found, wanted)
    assert wanted["finished"].any() == ends and len(set(wanted["lengths"].tolist())) > 9


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    for name, value in found.items():
        np.testing.assert_allclose(value, wanted[name], rtol=0, atol=SCORE_ATOL, err_msg=name)


def test_rows_that_are_to_stay_together_do_and_leave_their_cache() -> None:
    limits, chain = [3, 0, 41, 70, 3, 9], Chain(6, ends=False)
    found = together(chain, limits)
    assert {"kept", "place"} < set(found)
    same(found, at_once(Chain(6, ends=False), limits))
    assert chain.asked == [(6, WIDTH + CAPACITY)] * 69


def test_rows_that_have_ended_leave_and_the_cache_grows_by_blocks() -> None:
    chain = Chain(9, ends=False)
    in_stages(chain, [3] * 4 + [70] + [3] * 3 + [5])
    first, second, third = (WIDTH + staged.BLOCK * blocks for blocks in (1, 2, 3))
    # The last token is not read: 3 tokens are 2 steps. 9 rows -> the 2 that are left -> 1.
    assert chain.asked == [
        *[(9, first)] * 2, *[(2, first)] * 2, *[(1, first)] * 28, *[(1, second)] * 32,
        *[(1, third)] * 5]


def test_rows_that_end_together_stay_together() -> None:
    chain = Chain(9, ends=False)
    in_stages(chain, [9] * 9)
    assert chain.asked == [(9, WIDTH + staged.BLOCK)] * 8


def test_no_rows_give_no_rows() -> None:
    assert in_stages(Chain(0, ends=True), [])["ids"].shape == (0, CAPACITY)
