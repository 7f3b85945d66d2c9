"""A verification report as JUnit XML, the form in which a CI shows its tests."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree as xml

from tf_infer.manifest import OutputDifference, PathReport, Report

Row = tuple[str, str, str, str]  # class, name, fault, reason why it was left out


def to_junit(report: Report, *, name: str) -> str:
    """Return one test case for each path, signature and output.

    Args:
        report: of a verification.
        name: of the suite.
    """
    rows = [row for path in (*filter(None, [report.plan]), *report.paths) for row in _cases(path)]
    seconds = sum(path.seconds for path in report.paths)
    suites = xml.Element("testsuites")
    suite = xml.SubElement(suites, "testsuite", {
        "name": name, "tests": str(len(rows)), "errors": "0",
        "failures": str(sum(bool(fault) for *_, fault, _ in rows)),
        "skipped": str(sum(bool(reason) for *_, reason in rows)), "time": f"{seconds:.3f}"})
    for classname, case, fault, reason in rows:
        one = xml.SubElement(suite, "testcase", {"classname": classname, "name": case})
        if fault:
            xml.SubElement(one, "failure", {"message": fault})
        if reason:
            xml.SubElement(one, "skipped", {"message": reason})
    xml.indent(suites)
    return xml.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _cases(path: PathReport) -> Iterator[Row]:
    if path.skipped:
        yield path.path, "all", "", path.skipped
    for one in path.differences:
        yield f"{path.path}.{one.signature}", one.output, _fault(one), ""


def _fault(one: OutputDifference) -> str:
    if one.first_sample is None:
        return ""
    what = one.reason or f"differs by up to {one.max_abs:.3g}"
    return (f"{what}; {one.mismatches} of {one.elements} elements, first in sample "
            f"{one.first_sample}")
