"""A verification report as JUnit XML."""

from __future__ import annotations

from xml.etree import ElementTree as xml

from tf_infer.manifest import OutputDifference, PathReport, Report
from tf_infer.verify.junit import to_junit


def difference(output: str, **more: object) -> OutputDifference:
    return OutputDifference(signature="serving_default", output=output, dtype="float32",
                            max_abs=0.5, max_rel=0.5, elements=8,
                            **{"mismatches": 0, **more})  # type: ignore[arg-type]


def path(name: str, *differences: OutputDifference, skipped: str = "") -> PathReport:
    return PathReport(path=name, atol=0.0, rtol=0.0, samples=1, seconds=1.5,
                      differences=differences, skipped=skipped)


def test_every_output_of_every_path_is_a_case() -> None:
    report = Report(reference="eager", paths=(
        path("graph", difference("score"), difference("label", mismatches=2, first_sample=3)),
        path("xla", difference("score", mismatches=8, first_sample=0, reason="shape <1> & \"2\"")),
        path("grpc", skipped="no address")))
    suite = xml.fromstring(to_junit(report, name="model & more"))[0]
    assert suite.attrib == {"name": "model & more", "tests": "4", "errors": "0", "failures": "2",
                            "skipped": "1", "time": "4.500"}
    cases = {(one.get("classname"), one.get("name")): one for one in suite}
    assert len(cases["graph.serving_default", "score"]) == 0
    assert cases["graph.serving_default", "label"][0].get("message") == (
        "differs by up to 0.5; 2 of 8 elements, first in sample 3")
    failure = cases["xla.serving_default", "score"][0]
    assert failure.tag == "failure"
    assert str(failure.get("message")).startswith('shape <1> & "2"; 8 of 8')
    assert cases["grpc", "all"][0].tag == "skipped"
