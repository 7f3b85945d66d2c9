"""Beam search and guessing in stages find what they find over all rows; all end with their time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from tests.decoding.test_staged import (
    CAPACITY,
    END,
    VOCAB,
    WIDTH,
    Chain,
    find,
    grown,
    same,
    staged_run,
    with_room,
)
from tf_infer.decoding import beam, greedy, speculative, staged
from tf_infer.decoding.contracts import Hypotheses, Limits, Processor, Start
from tf_infer.decoding.processors import BANNED

BEAMS, GROUPS, GUESSES, LATE_S = 4, 2, 2, 1.0
LIMITS = [0, *np.random.default_rng(1).integers(0, CAPACITY + 5, 20).tolist(), CAPACITY]
Options = dict[str, tf.Tensor]


# ---------------------------------------------------------------------------- beam search


class Both(NamedTuple):
    """Options of rows, and of their hypotheses."""

    rows: Options
    each: Options


def both(options: Options) -> Both:
    return Both(options, {name: tf.repeat(value, BEAMS, axis=0) for name, value in options.items()})


def rare(rows: tf.Tensor, most: tf.Tensor) -> Processor:
    """No token more often than `most` of the hypothesis; the state is how often each was taken."""

    def accept(said: tf.Tensor, tokens: tf.Tensor, live: tf.Tensor) -> tf.Tensor:
        return said + tf.one_hot(tokens, VOCAB) * tf.cast(live, tf.float32)[:, None]

    return Processor(tf.zeros_like(rows)[:, None] + tf.zeros([VOCAB]),
                     lambda logits, produced, said: tf.where(
                         said >= most[:, None], BANNED, logits), accept)


def beam_rules(given: Both) -> beam.Rules:
    cost = given.rows["cost"]  # 0, 1 or 2
    return beam.Rules(Limits(CAPACITY, given.rows["allowed"], (END,), 0),
                      beam.BeamOptions(cost / 2.0, cost),
                      (rare(cost, 4.0 + 6.0 * given.each["cost"]),))


def told(found: Hypotheses) -> dict[str, tf.Tensor]:
    return found._asdict()


def beams_in_stages(chain: Chain, start: Start, options: Options) -> dict[str, tf.Tensor]:
    return told(beam.search_in_stages(
        chain.step, start, options, beam_rules, beams=BEAMS, groups=GROUPS, width=WIDTH,
        grown=grown, prepared=both))


def beams_at_once(chain: Chain, start: Start, options: Options) -> dict[str, tf.Tensor]:
    limits, ranked, processors = beam_rules(both(options))
    return told(beam.search(chain.step, with_room(start), limits, ranked, beams=BEAMS,
                            groups=GROUPS, processors=processors))


def ran(run: Callable[..., Any], chain: Chain, limits: Sequence[int]) -> dict[str, np.ndarray]:
    return find(chain, limits, lambda start, options: run(chain, start, options))


def test_a_search_in_stages_is_the_search_over_all_rows_with_fewer_of_them() -> None:
    some, all_rows = Chain(len(LIMITS), ends=True), Chain(len(LIMITS), ends=True)
    found, wanted = ran(beams_in_stages, some, LIMITS), ran(beams_at_once, all_rows, LIMITS)
    same(found, wanted)
    assert wanted["finished"].any() and not wanted["finished"].all()
    assert np.isneginf(wanted["scores"]).any()  # places without a hypothesis
    assert len(some.asked) == len(all_rows.asked)
    rows, room = (np.array(some.asked)[:, axis] for axis in (0, 1))
    assert (np.diff(rows) <= 0).all() and set((rows / BEAMS).tolist()) <= {
        float(len(LIMITS)), *map(float, staged.SIZES)}
    assert rows[-1] < rows[0] == len(LIMITS) * BEAMS
    assert room[0] == WIDTH + staged.BLOCK and (np.diff(room) >= 0).all()


# ---------------------------------------------------------------------------- guesses


class Wide(Chain):
    """A chain that reads several tokens at once, and forgets the last ones."""

    def extend(self, ids: tf.Tensor, counts: tf.Tensor, cache: Any) -> tuple[tf.Tensor, Any]:
        found = []
        for place in range(ids.shape[1]):
            logits, cache = self.step(ids[:, place], place < counts, cache)
            found.append(logits)
        return tf.stack(found, axis=1), cache

    def drop(self, cache: Any, positions: tf.Tensor) -> Any:
        place = cache["place"] - positions
        seen = tf.range(tf.shape(cache["kept"])[1]) < place[:, None]
        return {**cache, "place": place, "kept": tf.where(seen, cache["kept"], 0.0)}


def like(model: Chain) -> Wide:
    """A model that mostly says what the other one says."""
    made = Wide(model.table.shape[0], ends=False)
    noise = np.random.default_rng(2).normal(scale=0.6, size=model.table.shape)
    made.table = model.table + noise.astype(np.float32)
    return made


def rules(options: Options) -> speculative.Rules:
    return speculative.Rules(Limits(CAPACITY, options["allowed"], (END,), 0), greedy.choose)


def from_draft(draft: Wide, cache: Any) -> speculative.Proposer:
    return speculative.from_draft(draft.step, draft.drop, cache, greedy.choose, width=GUESSES)


def counted(found: tuple[Hypotheses, speculative.Guessing]) -> dict[str, tf.Tensor]:
    return {**told(found[0]), **found[1]._asdict()}


def guesses_in_stages(model: Wide, start: Start, options: Options) -> dict[str, tf.Tensor]:
    draft = like(model)
    return counted(speculative.decode_in_stages(
        speculative.Target(model.extend, model.drop), start, draft.start().cache, options, rules,
        lambda options: from_draft(draft, ()), width=WIDTH,
        grown=lambda cache, state, room: (grown(cache, room), grown(state, room))))


def guesses_at_once(model: Wide, start: Start, options: Options) -> dict[str, tf.Tensor]:
    draft = like(model)
    room = Start((), grown(draft.start().cache, tf.constant(WIDTH + CAPACITY + GUESSES)))
    return counted(speculative.decode(
        speculative.Target(model.extend, model.drop), with_room(start), *rules(options)[:2],
        from_draft(draft, room.cache)))


def look_up_in_stages(model: Wide, start: Start, options: Options) -> dict[str, tf.Tensor]:
    # A prompt of its own for each row: one that took another's place would guess otherwise.
    options = {**options, "prompt": tf.cast(
        options["cost"], tf.int32)[:, None] + tf.constant([[1, 2, 3, 1]])}

    def proposer(options: Options) -> speculative.Proposer:
        prompt = options["prompt"]
        return speculative.from_prompt(prompt, tf.zeros_like(prompt)[:, 0] + 4, width=GUESSES)

    found = speculative.decode_in_stages(
        speculative.Target(model.extend, model.drop), start, (), options, rules, proposer,
        width=WIDTH, grown=lambda cache, state, room: (grown(cache, room), state))
    other = speculative.decode(
        speculative.Target(model.extend, model.drop), with_room(start), *rules(options)[:2],
        proposer(options))
    return {**counted(found), **{f"at once {name}": value
                                 for name, value in counted(other).items()}}


@pytest.mark.whole
def test_guesses_of_a_draft_in_stages_are_those_over_all_rows() -> None:
    some, all_rows = Wide(len(LIMITS), ends=False), Wide(len(LIMITS), ends=False)
    found, wanted = (ran(guesses_in_stages, some, LIMITS),
                     ran(guesses_at_once, all_rows, LIMITS))
    same(found, wanted)
    assert 0 < wanted["accepted"].sum() < wanted["proposed"].sum()
    rows = np.array(some.asked)[:, 0]
    assert rows[-1] < rows[0] == len(LIMITS)
    assert some.asked[0][1] == WIDTH + staged.BLOCK


@pytest.mark.slow  # tests/tasks/test_speculation.py looks up, too
def test_prompts_are_looked_up_by_the_rows_that_are_left() -> None:
    found = ran(look_up_in_stages, Wide(len(LIMITS), ends=False), LIMITS)
    same({name: value for name, value in found.items() if "at once" not in name},
         {name: found[f"at once {name}"] for name in found if "at once" not in name})
    assert found["accepted"].sum() > 0


# ---------------------------------------------------------------------------- deadlines


class Late(Wide):
    """Its third step takes longer than its caller waits."""

    def _hear(self, shape: Any, place: Any) -> Any:
        told = super()._hear(shape, place)
        if len(self.asked) == 3:
            time.sleep(LATE_S)
        return told


def loop_in_stages(chain: Chain, start: Start, options: Options) -> Any:
    return staged_run(chain, start, {**options}, width=WIDTH)[0]


@pytest.mark.whole
@pytest.mark.parametrize("run", [loop_in_stages, beams_in_stages, beams_at_once, guesses_in_stages])
def test_a_loop_ends_at_the_next_step_when_the_time_of_its_run_is_over(
        run: Callable[..., Any]) -> None:
    heard: list[Chain] = []

    @tf.function(autograph=False)
    def function() -> Any:
        heard.append(Late(2, ends=False))
        return run(heard[0], heard[0].start(), {"allowed": tf.constant([CAPACITY] * 2),
                                                "cost": tf.zeros([2])})

    made = function.get_concrete_function()  # lives as long as what hears
    with tf.Graph().as_default() as graph:   # as a server runs it
        found = tf.import_graph_def(made.graph.as_graph_def(),
                                    return_elements=[output.name for output in made.outputs])
        with tf.compat.v1.Session(graph=graph) as session, pytest.raises(
                tf.errors.DeadlineExceededError):
            session.run(found, options=tf.compat.v1.RunOptions(timeout_in_ms=round(LATE_S * 500)))
    assert len(heard[0].asked) <= 3 + (1 + GUESSES)  # of some 70
