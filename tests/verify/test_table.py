"""The report as text."""

from __future__ import annotations

import numpy as np

from tf_infer.equality import Tolerance
from tf_infer.manifest import Report, Sample
from tf_infer.verify import parity
from tf_infer.verify.table import format_report

SAMPLES = [Sample("s", {}, {"scores": np.float32([1.0, 2.0]), "label": np.array([b"a"], object)})]


def replayed(path: str, score: float, label: bytes) -> object:
    answer = {"scores": np.float32([score, 2.0]), "label": np.array([label], object)}
    return parity.replay(lambda signature, inputs: answer, SAMPLES, Tolerance(), path=path)


def test_every_path_signature_and_output_has_a_line() -> None:
    report = Report(reference="eager", paths=(replayed("graph", 1.00001, b"a"),))
    lines = format_report(report).splitlines()
    assert lines[0].split() == ["path", "signature", "output", "worst", "difference", "outside",
                                "result"]
    assert lines[2].split() == ["graph", "s", "scores", "1.00e-05", "0/2", "ok"]
    assert lines[3].split() == ["graph", "s", "label", "equal", "0/1", "ok"]
    assert lines[-1].startswith("passed: graph = eager")


def test_a_failure_and_a_skip_are_said() -> None:
    skipped = parity.verify({"graph": lambda: (lambda s, i: SAMPLES[0].outputs)}, SAMPLES,
                            Tolerance(), skipped={"grpc": "no server asked for"}).paths[1]
    report = Report(reference="eager", paths=(replayed("xla", 1.5, b"b"), skipped))
    text = format_report(report)
    assert "FAILED, first in sample 0 (first in row 0)" in text
    assert "skipped: no server asked for" in text
    assert text.splitlines()[-1] == "FAILED: xla does not give what eager gives."
    assert "differs" in text


def test_nothing_compared_is_not_a_pass() -> None:
    assert format_report(Report(reference="eager", paths=())).endswith(
        "FAILED: no path was compared.")
