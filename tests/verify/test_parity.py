"""What counts as equal, and what the report says when something is not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from tf_infer import config
from tf_infer.equality import Tolerance, differences
from tf_infer.errors import ConfigError, ShapeError, VerificationError
from tf_infer.manifest import Report, Sample
from tf_infer.verify import parity
from tf_infer.verify.predictors import Outputs

EXACT = Tolerance(atol=0.0, rtol=0.0)


class Scripted:
    """A predictor that gives one prepared answer a call."""

    def __init__(self, *answers: Outputs | Exception) -> None:
        self.answers = list(answers)
        self.closed = False

    def __call__(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Outputs:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self.closed = True


def sample(**outputs: object) -> Sample:
    text = np.array([b"secret text"], dtype=object)
    return Sample("s", {"text": text}, {name: np.asarray(v) for name, v in outputs.items()})


def only(reference: object, candidate: object, tolerance: Tolerance = EXACT) -> object:
    found = differences(sample(x=reference), {"x": np.asarray(candidate)}, tolerance)
    assert len(found) == 1
    return found[0]


def test_numbers_inside_the_tolerance_pass_and_their_worst_difference_is_kept() -> None:
    tolerance = Tolerance(atol=0.1, rtol=0.01)
    found = only(np.float32([1.0, 100.0]), np.float32([1.05, 101.0]), tolerance)
    assert found.first_sample is None
    assert found.max_abs == pytest.approx(1.0)
    assert found.max_rel == pytest.approx(0.05 / 2, rel=1e-5)
    outside = only(np.float32([1.0, 100.0]), np.float32([1.2, 100.0]), tolerance)
    assert (outside.first_sample, outside.mismatches, outside.elements) == (0, 1, 2)


def test_an_output_may_have_its_own_tolerance() -> None:
    tolerance = Tolerance(atol=0.0, rtol=0.0, outputs={"x": (0.5, 0.0)})
    assert only(np.float32([1.0]), np.float32([1.4]), tolerance).first_sample is None
    assert only(np.float32([1.0]), np.float32([1.6]), tolerance).first_sample == 0
    with pytest.raises(ConfigError, match=r"Tolerance\.outputs\['x'\]"):
        Tolerance(outputs={"x": (-1.0, 0.0)})


@pytest.mark.parametrize(("reference", "candidate", "same"), [
    ([np.nan, 1.0], [np.nan, 1.0], True), ([np.nan], [1.0], False), ([1.0], [np.nan], False),
    ([np.inf, -np.inf], [np.inf, -np.inf], True), ([np.inf], [-np.inf], False),
    ([np.inf], [1e30], False), ([0.0], [-0.0], True)])
def test_nan_and_infinity_equal_only_themselves(
        reference: list[float], candidate: list[float], same: bool) -> None:
    wide = Tolerance(atol=1e3, rtol=1e3)
    found = only(np.float32(reference), np.float32(candidate), wide)
    assert (found.first_sample is None) is same
    assert np.isfinite(found.max_abs)
    if np.isnan(reference + candidate).any() and not same:
        assert "NaN on one side only in 1 elements" in found.reason


def test_strings_and_integers_must_be_equal() -> None:
    assert only(np.array([b"a", b"b"], object), np.array([b"a", b"b"], object)).first_sample is None
    assert only(np.array(["é"], object), np.array(["é".encode()], object)).first_sample is None
    found = only(np.array([b"a", b"b", b"c"], object), np.array([b"a", b"x", b"y"], object))
    assert (found.mismatches, found.max_abs, found.reason) == (2, 1.0, "first in row 1")
    assert only(np.int32([1, 2]), np.int32([1, 3]), Tolerance(atol=9.0)).first_sample == 0
    assert only(np.array([True]), np.array([False])).first_sample == 0


def test_a_label_may_flip_only_where_its_two_best_scores_touch() -> None:
    reference = sample(label=np.array([b"a", b"a", b"b"], object),
                       scores=np.float32([[0.50001, 0.49999], [0.6, 0.4], [0.1, 0.9]]))
    tolerance = Tolerance(atol=1e-4, rtol=0.0)
    scores = reference.outputs["scores"]

    def label_difference(labels: list[bytes]) -> object:
        answer = {"label": np.array(labels, object), "scores": scores}
        return differences(reference, answer, tolerance)[0]

    assert label_difference([b"b", b"a", b"b"]).first_sample is None
    assert label_difference([b"a", b"b", b"b"]).reason == "first in row 1"
    strict = differences(
        reference, {"label": np.array([b"b", b"a", b"b"], object), "scores": scores}, EXACT)[0]
    assert strict.first_sample == 0


TIED = Sample("s", {}, {"label": np.array([b"a"], object),
                        "scores": np.float32([[0.45, 0.1, 0.45]])})
NAMED = Sample("classify", {}, {"classes": np.array([[b"a", b"b", b"c"]], object)})


@pytest.mark.parametrize(("label", "same"), [
    (b"a", True), (b"c", True), (b"b", False), (b"", False), (b"garbage", False)])
def test_a_near_tie_excuses_only_a_class_that_is_tied(label: bytes, same: bool) -> None:
    answer = {**TIED.outputs, "label": np.array([label], object)}
    report = parity.replay(Scripted(answer, NAMED.outputs), [TIED, NAMED], Tolerance())
    assert report.passed is same


def test_a_near_tie_excuses_no_class_that_the_reference_does_not_name() -> None:
    answer = {**TIED.outputs, "label": np.array([b"c"], object)}
    assert not parity.replay(Scripted(answer), [TIED], Tolerance()).passed


def test_scores_that_round_to_one_are_told_apart_by_their_logits() -> None:
    clear = Sample("s", {}, {"label": np.array([b"a", b"b"], object),
                             "scores": np.float32([[1.0, 1.0], [0.2, 1.0]]),
                             "logits": np.float32([[40.0, 30.0], [-1.0, 30.0]])})
    answer = {**clear.outputs, "label": np.array([b"b", b"b"], object)}
    assert differences(clear, answer, Tolerance())[0].reason == "first in row 0"


@pytest.mark.parametrize(("candidate", "reason"), [
    ({}, "missing"), ({"x": np.float64([1.0])}, "dtype float64 instead of float32"),
    ({"x": np.float32([[1.0]])}, r"shape (1, 1) instead of (1,)")])
def test_an_answer_of_another_form_is_a_difference(
        candidate: dict[str, np.ndarray], reason: str) -> None:
    found = [one for one in differences(sample(x=np.float32([1.0])), candidate, EXACT)
             if one.first_sample is not None]
    assert len(found) == 1
    assert reason in found[0].reason


def test_compare_names_the_first_sample_and_the_worst_of_all() -> None:
    samples = [sample() for _ in range(3)]
    reference = Scripted(*({"x": np.float32([i])} for i in range(3)))
    candidate = Scripted(*({"x": np.float32([v])} for v in (0.0, 1.5, 4.0)))
    report = parity.compare(reference, candidate, samples, Tolerance(), path="graph")
    assert (report.path, report.samples, report.passed) == ("graph", 3, False)
    (found,) = report.differences
    assert (found.first_sample, found.max_abs, found.mismatches, found.elements) == (1, 2.0, 2, 3)


def test_verify_raises_with_path_signature_output_sample_and_worst_difference() -> None:
    good, bad = Scripted({"x": np.float32([1.0])}), Scripted({"x": np.float32([1.5])})
    with pytest.raises(VerificationError) as caught:
        parity.verify({"graph": lambda: good, "xla": lambda: bad},
                      [sample(x=np.float32([1.0]))], Tolerance())
    message = str(caught.value)
    for part in ("xla s/x:", "1 of 1 elements differ", "worst 0.5", "sample 0", "row 0"):
        assert part in message
    assert "graph" not in message
    assert "secret" not in message
    assert [path.passed for path in caught.value.report.paths] == [True, False]
    assert good.closed
    assert bad.closed


def test_an_exception_in_a_candidate_is_a_failure_without_text_and_the_rest_is_compared() -> None:
    second = {"x": np.float32([1.0])}
    candidate = Scripted(RuntimeError("secret text"), second)
    samples = [sample(x=np.float32([1.0]))] * 2
    with pytest.raises(VerificationError, match=r"session s/\*: .*raised RuntimeError") as caught:
        parity.verify({"session": lambda: candidate}, samples, EXACT)
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert len(caught.value.report.paths[0].differences) == 2
    ours = parity.replay(Scripted(ShapeError("x: expected rank 1.")), samples[:1], EXACT)
    assert ours.differences[0].reason == "raised ShapeError: x: expected rank 1."


def test_a_path_that_does_not_open_is_a_failure_too() -> None:
    def opener() -> Scripted:
        raise OSError("no such file")

    with pytest.raises(VerificationError, match="raised OSError"):
        parity.verify({"saved_model": opener}, [], EXACT)


def test_an_exception_in_the_reference_is_raised() -> None:
    with pytest.raises(RuntimeError, match="broken"):
        parity.compare(Scripted(RuntimeError("broken")), Scripted(), [sample()], EXACT)


def test_a_path_is_skipped_only_for_a_reason_and_never_alone() -> None:
    good = Scripted({"x": np.float32([1.0])})
    report = parity.verify({"graph": lambda: good}, [sample(x=np.float32([1.0]))], EXACT,
                           skipped={"xla": "no compiler"})
    assert report.passed
    assert (report.paths[1].path, report.paths[1].skipped) == ("xla", "no compiler")
    with pytest.raises(VerificationError, match="no path was compared"):
        parity.verify({}, [], EXACT, skipped={"xla": "no compiler"})


def test_a_failing_report_survives_json(tmp_path) -> None:
    found = parity.replay(Scripted({"x": np.float32([np.nan])}), [sample(x=np.float32([1.0]))],
                          EXACT, path="xla")
    report = Report(reference="eager", paths=(found,))
    config.dump(report, tmp_path / "report.json")
    assert config.load(Report, tmp_path / "report.json") == report


def test_sets_of_samples_are_compared_through_one_predictor_that_is_closed() -> None:
    opened: list[Scripted] = []

    def opener() -> Scripted:
        opened.append(Scripted({"x": np.float32([1])}, {"x": np.float32([2])},
                               ConfigError("a rule")))
        return opened[-1]

    sets = {"": [sample(x=np.float32([1]))], "hostile": [sample(x=np.float32([3]))],
            "cells": [sample(x=np.float32([4]))]}
    found, error = parity.replay_sets(opener, sets, EXACT, path="grpc")
    assert [(one.path, one.passed) for one in found] == [
        ("grpc", True), ("grpc hostile", False), ("grpc cells", False)]
    assert found[2].differences[0].reason == "raised ConfigError: a rule"
    assert isinstance(error, ConfigError)
    assert len(opened) == 1 and opened[0].closed


def test_a_path_that_cannot_be_opened_fails_once_for_all_sets() -> None:
    def opener() -> Scripted:
        raise ShapeError("no such thing")

    found, error = parity.replay_sets(opener, {"": [], "more": []}, EXACT, path="session")
    assert [(one.path, one.passed) for one in found] == [("session", False)]
    assert isinstance(error, ShapeError)


def test_answers_that_are_no_numbers_fail_although_all_paths_agree() -> None:
    right = sample(x=np.float32([1.0]), names=np.array([b"a"], object))
    wrong = sample(x=np.float32([[1.0, 2.0], [3.0, np.nan]]))
    assert parity.not_numbers({"": [right]}) == ()
    (found,) = parity.not_numbers({"": [right], "hostile": [right, wrong]})
    assert (found.path, found.passed) == ("numbers hostile", False)
    told = found.differences[0]
    assert (told.output, told.first_sample, told.reason) == ("x", 1, "NaN in row 1")
    with pytest.raises(VerificationError, match=r"numbers hostile s/x: .*NaN in row 1"):
        parity.require(Report(reference="eager", paths=(found,)))
