"""A verification report as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from tf_infer.manifest import OutputDifference, PathReport, Report

HEADER = ("path", "signature", "output", "worst difference", "outside", "result")


def format_report(report: Report) -> str:
    """Return one line for each path, signature and output, its worst difference, and a verdict."""
    rows = [HEADER]
    for path in (*filter(None, [report.plan]), *report.paths):
        rows += _rows(path)
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
             for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, "", verdict(report)])


def verdict(report: Report) -> str:
    """Return the outcome in one sentence."""
    compared = [path.path for path in report.paths if not path.skipped]
    failed = [path.path for path in report.paths if not path.skipped and not path.passed]
    if failed:
        return f"FAILED: {', '.join(failed)} does not give what {report.reference} gives."
    if not compared:
        return "FAILED: no path was compared."
    if report.plan is not None and not report.plan.passed:
        return f"FAILED: the form of the {report.plan.path} is too far from the model before it."
    seconds = sum(path.seconds for path in report.paths)
    return f"passed: {', '.join(compared)} = {report.reference}, in {seconds:.1f} s."


def _rows(path: PathReport) -> Sequence[tuple[str, str, str, str, str, str]]:
    if path.skipped:
        return [(path.path, "", "", "", "", f"skipped: {path.skipped}")]
    return [(path.path, one.signature, one.output, _worst(one), f"{one.mismatches}/{one.elements}",
             _result(one)) for one in path.differences]


def _worst(one: OutputDifference) -> str:
    if one.dtype.startswith(("float", "bfloat", "complex")):
        return f"{one.max_abs:.2e}" if one.max_abs else "0"
    return "equal" if not one.mismatches and not one.max_abs else "differs"


def _result(one: OutputDifference) -> str:
    if one.first_sample is None:
        return "ok"
    reason = f" ({one.reason})" if one.reason else ""
    return f"FAILED, first in sample {one.first_sample}{reason}"
