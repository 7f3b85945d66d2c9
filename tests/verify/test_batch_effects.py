"""A row alone = the row in a crowd, on predictors that keep or break the rule."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from tf_infer.equality import Tolerance
from tf_infer.manifest import Sample
from tf_infer.verify.batch_effects import batch_effects, in_a_crowd

SAMPLE = Sample("s", {"x": np.float32([3.0, 1.0, 2.0])})


def predictor(function: Callable[[np.ndarray], Mapping[str, np.ndarray]]):
    return lambda signature, inputs: function(inputs["x"])


def test_rows_that_do_not_see_each_other_pass() -> None:
    alone, shuffled = batch_effects(predictor(lambda x: {"y": x * 2}), [SAMPLE], Tolerance())
    assert alone.passed
    assert shuffled.passed
    assert (alone.path, shuffled.path) == ("alone", "shuffled")
    assert alone.differences[0].elements == 3


@pytest.mark.parametrize(("function", "failing"), [
    (lambda x: {"y": x - x.mean()}, "alone"),
    (lambda x: {"y": x + np.arange(len(x), dtype=np.float32)}, "shuffled")])
def test_rows_that_see_their_neighbours_or_their_place_fail(function, failing: str) -> None:
    reports = {r.path: r for r in batch_effects(predictor(function), [SAMPLE], Tolerance())}
    assert not reports[failing].passed


def padded(x: np.ndarray, *, pad: float = 0.0) -> Mapping[str, np.ndarray]:
    width = int(x.max())
    columns = np.arange(width, dtype=np.float32)[None]
    return {"ids": np.where(columns < x[:, None], columns + 1, pad * (columns + 1))}


def test_padding_to_the_longest_row_is_allowed_but_not_content_beyond() -> None:
    alone, _ = batch_effects(predictor(padded), [SAMPLE], Tolerance())
    assert alone.passed
    assert alone.differences[0].elements == 6
    alone, _ = batch_effects(predictor(lambda x: padded(x, pad=2.0)), [SAMPLE], Tolerance())
    assert not alone.passed


def test_many_callers_at_once_get_the_answers_that_are_expected() -> None:
    waiting = threading.Barrier(3)  # passed only when all three rows are asked for at once

    def joined(x: np.ndarray) -> Mapping[str, np.ndarray]:
        waiting.wait(timeout=10)
        return {"y": x * 2}

    sample = Sample("s", SAMPLE.inputs, {"y": np.float32([6.0, 2.0, 4.0])})
    found = in_a_crowd(predictor(joined), [sample], Tolerance(), path="grpc")
    assert (found.path, found.passed, found.differences[0].elements) == ("grpc crowd", True, 3)
    lock, seen = threading.Lock(), []

    def mixed_up(x: np.ndarray) -> Mapping[str, np.ndarray]:
        with lock:
            seen.append(x)
            return {"y": seen[0] * 2}

    assert not in_a_crowd(predictor(mixed_up), [sample], Tolerance()).passed


def test_an_error_of_a_row_alone_is_a_difference() -> None:
    def answer(x: np.ndarray) -> Mapping[str, np.ndarray]:
        if len(x) == 1:
            raise ValueError("secret")
        return {"y": x}

    alone, shuffled = batch_effects(predictor(answer), [SAMPLE], Tolerance())
    assert shuffled.passed
    assert not alone.passed
    assert alone.differences[0].reason == "raised ValueError"
    crowd = in_a_crowd(predictor(answer), [Sample("s", SAMPLE.inputs, {"y": SAMPLE.inputs["x"]})],
                       Tolerance())
    assert not crowd.passed
