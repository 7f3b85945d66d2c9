"""Runs that take next to nothing each time, and who does them. Needs no TensorFlow."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tf_infer.errors import InvalidRequest, ServingError
from tf_infer.server.contracts import Arrays, Run, Signatures
from tf_infer.server.quick_runs import (
    FAR_S,
    MOST_KINDS,
    QUICK_S,
    SEEN,
    SLOW_S,
    QuickRuns,
    by_shape,
    kind_of,
)
from tf_infer.server.scheduler import DirectScheduler, Job, WaitingCounts

X = np.zeros((2, 3), np.float32)


def node(op: str, calls: str = "") -> Any:
    return SimpleNamespace(op=op, attr={"f": SimpleNamespace(func=SimpleNamespace(name=calls))})


FUNCTIONS = {"dense": [node("MatMul"), node("StatefulPartitionedCall", "relu")],
             "relu": [node("Relu"), node("PartitionedCall", "dense")],  # that one is seen already
             "loop": [node("Identity"), node("While")], "inner": [node("PartitionedCall", "loop")]}


@pytest.mark.parametrize(("nodes", "expected"), [
    ([], True), ([node("Placeholder"), node("AddV2")], True), ([node("PyFunc")], False),
    ([node("Mul"), node("PartitionedCall", "dense")], True), ([node("Range")], False),
    ([node("PartitionedCall", "loop")], False), ([node("PartitionedCall", "inner")], False)])
def test_what_takes_as_long_each_time_is_told_by_its_operations_and_those_of_its_functions(
        nodes: list[Any], *, expected: bool) -> None:
    assert by_shape(nodes, FUNCTIONS.__getitem__) is expected


def seen(*times_s: float) -> QuickRuns:
    runs = QuickRuns()
    for took_s in times_s:
        runs.ran("kind", took_s)
    return runs


def test_a_run_is_quick_after_some_that_were() -> None:
    runs = QuickRuns()
    for _ in range(SEEN):
        assert not runs.quick("kind", None)
        runs.ran("kind", QUICK_S / 2)
    assert runs.quick("kind", None)
    assert not runs.quick("another", None)
    assert runs.quick("kind", 2 * FAR_S)
    assert not runs.quick("kind", FAR_S)


def test_the_first_run_and_one_that_was_held_up_a_little_say_nothing() -> None:
    few = [QUICK_S / 2] * SEEN
    assert seen(9.0, *few, SLOW_S).quick("kind", None)
    assert not seen(1e-9, *[2 * QUICK_S] * SEEN).quick("kind", None)


def test_runs_that_take_longer_from_now_on_are_noticed() -> None:
    assert not seen(*[QUICK_S / 2] * SEEN, *[2 * QUICK_S] * 100).quick("kind", None)


def test_a_quick_run_that_had_to_wait_has_to_be_seen_anew() -> None:
    runs = QuickRuns()
    for _ in range(SEEN + 2):
        runs.ran("kind", QUICK_S / 2)
    assert runs.quick("kind", None)
    runs.ran("kind", 1.01 * SLOW_S)
    assert not runs.quick("kind", None)
    runs.ran("kind", QUICK_S / 2)
    assert not runs.quick("kind", None), "one run says nothing yet"
    for _ in range(SEEN):
        runs.ran("kind", QUICK_S / 2)
    assert runs.quick("kind", None)


def test_a_run_is_short_after_some_that_were_whatever_the_machine_did_beside_them() -> None:
    late = [SLOW_S / 2] * SEEN
    assert seen(9.0, *late).short("kind", None)
    assert not seen(9.0, *late).quick("kind", None)
    assert not seen(*late[1:]).short("kind", None)
    assert not seen(*[2 * SLOW_S] * 9).short("kind", None)
    assert not seen(9.0, *late).short("kind", FAR_S)
    assert seen(9.0, *late, QUICK_S / 2).quick("kind", 2 * FAR_S)


def test_kinds_are_the_shapes_and_outputs_of_a_signature_and_never_strings() -> None:
    kind = kind_of("s", {"x": X}, ["y"])
    assert kind == kind_of("s", {"x": X + 1}, ("y",)) and kind is not None
    assert kind not in {kind_of("s", {"x": X[:1]}, ["y"]), kind_of("t", {"x": X}, ["y"]),
                        kind_of("s", {"x": X.astype(np.int32)}, ["y"]),
                        kind_of("s", {"x": X}, ["y", "z"])}
    assert kind_of("s", {"x": X, "t": np.array([b"a"], object)}, ["y"]) is None


def test_a_bounded_number_of_kinds_is_remembered() -> None:
    runs = seen(*[QUICK_S / 2] * (SEEN + 1))
    for place in range(MOST_KINDS):
        runs.ran(place, 1.0)
    assert not runs.quick("kind", None)
    assert len(runs._seen) <= MOST_KINDS


class Model:
    """Tells which runs are quick, and which thread did each."""

    def __init__(self) -> None:
        self.signatures: Signatures = {}
        self.manifest = None
        self.asked: list[float | None] = []
        self.threads: list[threading.Thread] = []
        self.quickly = True

    def quick(self, run: Run, timeout_s: float | None) -> Callable[[], Arrays] | None:
        self.asked.append(timeout_s)
        return functools.partial(self.run, run.signature, run.inputs, outputs=run.outputs,
                                 timeout_s=timeout_s) if self.quickly else None

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None) -> Arrays:
        self.threads.append(threading.current_thread())
        if signature == "wrong":
            raise InvalidRequest("wrong")
        return {"y": inputs["x"]}

    def close(self) -> None:
        pass


def done_by(model: Model, *, signature: str = "s", traced: bool = False,
            ) -> tuple[bool, Arrays | ServingError]:
    """Run once; return whether this thread did it, and what came of it."""
    scheduler, ended = DirectScheduler(1, 1, WaitingCounts()), threading.Event()
    outcomes: list[Arrays | ServingError] = []

    def end(job: Job, outcome: Arrays | ServingError) -> None:
        outcomes.append(outcome)
        ended.set()

    try:
        scheduler.submit(Job("m", model, Run(signature, {"x": X}, ("y",)), None, end,
                             traced=traced))
        assert ended.wait(10)
    finally:
        scheduler.close()
    assert len(outcomes) == 1
    return model.threads[-1] is threading.current_thread(), outcomes[0]


def test_a_quick_run_is_done_by_the_thread_that_gives_it_and_no_other() -> None:
    model = Model()
    here, outcome = done_by(model)
    assert here and outcome == {"y": X}
    assert model.asked == [None]
    model.quickly = False
    assert not done_by(model)[0]


def test_a_quick_run_that_fails_ends_with_its_error() -> None:
    here, outcome = done_by(Model(), signature="wrong")
    assert here and isinstance(outcome, InvalidRequest)


def test_a_run_whose_stages_are_asked_for_is_not_quick() -> None:
    assert not done_by(Model(), traced=True)[0]
