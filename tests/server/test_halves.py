"""When a batch of a classifier is cut in two, and that the halves together say what it says."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tf_infer.config import CausalLMConfig, ClassifierConfig, ShapeGrid
from tf_infer.errors import InvalidRequest, ServerFailure
from tf_infer.manifest import ModelManifest, SignatureSpec, TensorSpec
from tf_infer.server.halves import LEAST_ROWS, Halves, divisible, order_of, worth_it

OURS = ModelManifest(
    name="m", version=1, grid=ShapeGrid(rows=(1, 32)), compiled="none",
    task=ClassifierConfig(classes=("a", "b")), signatures=(SignatureSpec(
        name="serving_default", inputs=(TensorSpec(name="text", dtype="string", shape=(None,)),),
        outputs=(TensorSpec(name="scores", dtype="float32", shape=(None, 2)),
                 TensorSpec(name="label", dtype="string", shape=(None,)),
                 TensorSpec(name="ids", dtype="int32", shape=(None, None)),
                 TensorSpec(name="count", dtype="int32", shape=()))),))
WAIT_S = 30.0


def texts(*lengths: int) -> np.ndarray:
    return np.array([b"x" * length for length in lengths], object)


@pytest.fixture
def halves() -> Iterator[Halves]:
    one = Halves()
    yield one
    one.close()


def measured(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what is known of each row, as a run would."""
    return {"length": np.array([len(text) for text in inputs["text"]]),
            "both": np.stack([inputs["number"], -inputs["number"]], axis=1)}


@pytest.mark.parametrize(("usable", "threads", "devices", "worth"), [
    (2, 1, ["CPU"], True), (1, 1, ["CPU"], False), (8, 1, ["CPU"], False), (2, 2, ["CPU"], False),
    (2, 1, ["CPU", "GPU"], False)])
def test_halves_are_for_two_cpus_with_a_thread_each_and_nothing_else_that_computes(
        usable: int, threads: int, devices: list[str], worth: bool) -> None:
    assert worth_it(usable=usable, threads=threads, devices=devices) is worth


def test_what_depends_on_the_rows_beside_a_row_is_not_cut() -> None:
    assert divisible(OURS, "serving_default", ("scores", "label"))
    for outputs in (("scores", "ids"), ("count",), ("none",), ()):
        assert not divisible(OURS, "serving_default", outputs)
    assert not divisible(OURS, "other", ("scores",))
    assert not divisible(None, "serving_default", ("scores",))
    assert not divisible(replace(OURS, compiled="xla"), "serving_default", ("scores",))
    assert not divisible(replace(OURS, task=CausalLMConfig()), "serving_default", ("scores",))


def test_few_rows_and_inputs_of_different_rows_are_not_cut() -> None:
    assert order_of({"text": texts(*[3] * (LEAST_ROWS - 1))}) is None
    assert order_of({"text": texts(*[3] * LEAST_ROWS)}) is not None
    assert order_of({"text": texts(*[3] * LEAST_ROWS), "seed": np.int32(1)}) is None
    assert order_of({}) is None


def test_long_and_short_texts_are_shared_out_evenly() -> None:
    lengths = [length for count in range(LEAST_ROWS // 2) for length in (count, 100 - count)]
    order = order_of({"text": texts(*lengths, 50)})
    assert order is not None
    assert [lengths[row] if row < len(lengths) else 50 for row in order] == sorted(
        [*lengths, 50], reverse=True)
    assert order[:2].tolist() == [1, 3]


@pytest.mark.parametrize("count", [LEAST_ROWS, LEAST_ROWS + 5])
def test_two_halves_run_at_once_and_give_the_rows_in_their_order(halves: Halves, count: int
                                                                 ) -> None:
    inputs = {"text": texts(*np.random.default_rng(0).integers(0, 50, count).tolist()),
              "number": np.arange(count, dtype=np.float32)}
    both, seen = threading.Barrier(2), []

    def run(half: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        both.wait(WAIT_S)  # broken where one half waits for the other to end
        seen.append(len(half["text"]))
        return measured(half)

    order = order_of(inputs)
    assert order is not None
    found, wanted = halves.run(inputs, order, run), measured(inputs)
    assert found is not None and sorted(seen) == [count // 2, count - count // 2]
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[0][name], array)


def test_what_the_second_thread_computes_is_told(halves: Halves) -> None:
    inputs = {"text": texts(*range(LEAST_ROWS)), "number": np.arange(LEAST_ROWS, dtype=np.float32)}
    least_s, caller = 0.02, threading.get_ident()

    def run(half: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        end_s = time.thread_time() + least_s * (threading.get_ident() != caller)
        while time.thread_time() < end_s:
            pass
        return measured(half)

    order = order_of(inputs)
    assert order is not None
    found = halves.run(inputs, order, run)
    assert found is not None and found[1] >= least_s


@pytest.mark.parametrize("bad", [0, 1])
def test_a_half_that_is_refused_leaves_it_to_the_whole_to_say_why(halves: Halves, bad: int) -> None:
    inputs: dict[str, Any] = {"text": texts(*range(LEAST_ROWS)),
                              "number": np.arange(LEAST_ROWS, dtype=np.float32)}
    ended = []

    def run(half: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if bad in half["number"]:
            raise InvalidRequest("row 0")
        ended.append(True)
        return measured(half)

    order = order_of(inputs)
    assert order is not None
    assert halves.run(inputs, order, run) is None and ended == [True]


@pytest.mark.parametrize("bad", [0, 1])
def test_a_half_that_fails_otherwise_ends_the_run_once_the_other_one_has_ended(
        halves: Halves, bad: int) -> None:
    inputs: dict[str, Any] = {"text": texts(*range(LEAST_ROWS)),
                              "number": np.arange(LEAST_ROWS, dtype=np.float32)}
    failing, ended = threading.Event(), []

    def run(half: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if bad in half["number"]:
            failing.set()
            raise ServerFailure("no memory")
        assert failing.wait(WAIT_S)
        time.sleep(0.05)
        ended.append(True)
        return measured(half)

    order = order_of(inputs)
    assert order is not None
    with pytest.raises(ServerFailure, match="no memory"):
        halves.run(inputs, order, run)
    assert ended == [True]


def test_a_run_beside_another_one_is_not_alone(halves: Halves) -> None:
    with halves.entered() as first:
        with halves.entered() as second:
            pass
        with halves.entered() as third:
            pass
    with halves.entered() as fourth:
        pass
    assert [first, second, third, fourth] == [True, False, False, True]
