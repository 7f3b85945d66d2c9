"""Compare paths of one model: the worst difference of each output, the first sample that differs.

What counts as equal says `tf_infer.equality`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tf_infer.equality import Tolerance, column_names, differences, worst_of_each
from tf_infer.errors import TfInferError, VerificationError
from tf_infer.manifest import OutputDifference, PathReport, Report, Sample, rows_with_nan
from tf_infer.verify.predictors import Predictor

ANY_OUTPUT = "*"


def compare(reference: Predictor, candidate: Predictor, samples: Sequence[Sample],
            tolerance: Tolerance, *, path: str = "candidate") -> PathReport:
    """Run both predictors on the inputs of all samples and compare their outputs.

    Args:
        reference: the path that is trusted; an exception in it is raised.
        candidate: the path under test; an exception in it is a difference.
        samples: requests; outputs recorded in them are not looked at.
        tolerance: what counts as equal.
        path: name of the candidate in the report.
    """
    return replay(candidate, fill(reference, samples), tolerance, path=path)


def fill(reference: Predictor, samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Return the samples with the reference's outputs."""
    return tuple(replace(sample, outputs=reference(sample.signature, sample.inputs))
                 for sample in samples)


def replay(candidate: Predictor, samples: Sequence[Sample], tolerance: Tolerance, *,
           path: str = "candidate") -> PathReport:
    """Compare the candidate with the outputs that the samples carry."""
    return _replayed(candidate, samples, tolerance, path)[0]


def replay_sets(opener: Callable[[], Predictor], sets: Mapping[str, Sequence[Sample]],
                tolerance: Tolerance, *, path: str
                ) -> tuple[tuple[PathReport, ...], Exception | None]:
    """Compare one path with several sets of samples; it is opened once, and closed again.

    Args:
        opener: of the candidate's predictor; one with `close()` is closed.
        sets: name -> samples with the reference's outputs.
        tolerance: what counts as equal.
        path: its name. A report's is that and the set's, where the set has one.

    Returns:
        One report for each set, and the first exception that became a difference; where the
        candidate cannot be opened one report, which says so.
    """
    found: list[PathReport] = []
    first_error: Exception | None = None
    started_s = time.perf_counter()
    with contextlib.ExitStack() as stack:
        try:
            candidate = opener()
        except Exception as error:
            return (_report(path, 0, tolerance, started_s, [raised("*", 0, error)]),), error
        stack.callback(getattr(candidate, "close", lambda: None))
        for name, samples in sets.items():
            report, error_in = _replayed(candidate, samples, tolerance, f"{path} {name}".strip(),
                                         started_s)
            found.append(report)
            first_error = first_error or error_in
            started_s = time.perf_counter()
    return tuple(found), first_error


def verify(candidates: Mapping[str, Callable[[], Predictor]], samples: Sequence[Sample],
           tolerance: Tolerance, *, reference: str = "eager",
           skipped: Mapping[str, str] | None = None, plan: PathReport | None = None) -> Report:
    """Compare several paths with the outputs that the samples carry.

    Args:
        candidates: path -> what opens its predictor; one with `close()` is closed afterwards.
        samples: requests with the reference's outputs (`fill`).
        tolerance: what counts as equal.
        reference: name of the path that made the samples' outputs.
        skipped: path -> why the caller does not have it compared; written into the report.
        plan: how the reference itself compares with the model before its plan; goes into the
            report, and fails it.

    Returns:
        The report, when no path differs.

    Raises:
        VerificationError: a path differs, cannot be opened, or raised; carries the report.
    """
    reports: list[PathReport] = []
    first_error: Exception | None = None
    for path, opener in candidates.items():
        compared, error = replay_sets(opener, {"": samples}, tolerance, path=path)
        reports += compared
        first_error = first_error or error
    reports += [not_compared(path, reason) for path, reason in (skipped or {}).items()]
    report = Report(reference=reference, paths=tuple(reports), plan=plan)
    require(report, cause=first_error)
    return report


def require(report: Report, *, cause: Exception | None = None) -> None:
    """Raise VerificationError with every difference in one message, unless the report passed."""
    if report.passed:
        return
    faults = [f"{path.path} {fault.signature}/{fault.output}: {_describe(fault, path)}"
              for path in (*report.paths, *filter(None, [report.plan]))
              for fault in path.differences if fault.first_sample is not None]
    if not faults:
        faults = ["no path was compared; give at least one"]
    raise VerificationError(
        f"expected what {report.reference} gives, got differences. {'; '.join(faults)}.",
        report=report) from cause


def _describe(fault: OutputDifference, path: PathReport) -> str:
    reason = f" ({fault.reason})" if fault.reason else ""
    return (f"{fault.mismatches} of {fault.elements} elements differ, worst {fault.max_abs:.3g} "
            f"(atol {path.atol:g}, rtol {path.rtol:g}), first in sample {fault.first_sample}"
            f"{reason}")


def _replayed(candidate: Predictor, samples: Sequence[Sample], tolerance: Tolerance, path: str,
              started_s: float | None = None) -> tuple[PathReport, Exception | None]:
    started_s = time.perf_counter() if started_s is None else started_s
    found: list[OutputDifference] = []
    first_error: Exception | None = None
    names = column_names(samples, tolerance)
    for index, sample in enumerate(samples):
        try:
            outputs = candidate(sample.signature, sample.inputs)
        except Exception as error:
            found.append(raised(sample.signature, index, error))
            first_error = first_error or error
        else:
            found += differences(sample, outputs, tolerance, index=index, names=names)
    return _report(path, len(samples), tolerance, started_s, found), first_error


def not_numbers(sets: Mapping[str, Sequence[Sample]]) -> tuple[PathReport, ...]:
    """Return a failed report, "numbers", for each set whose answers hold NaN; else nothing.

    NaN equals NaN on every path: whoever compares paths alone would let it through.
    """
    found = []
    for name, samples in sets.items():
        faults = [OutputDifference(
            signature=sample.signature, output=output, dtype=sample.outputs[output].dtype.name,
            max_abs=0.0, max_rel=0.0, mismatches=int(np.isnan(sample.outputs[output]).sum()),
            elements=int(sample.outputs[output].size), first_sample=index,
            reason=f"NaN in row {row}")
            for index, sample in enumerate(samples)
            for output, row in rows_with_nan(sample.outputs).items()]
        if faults:
            found.append(_report(f"numbers {name}".strip(), len(samples), Tolerance(),
                                 time.perf_counter(), faults))
    return tuple(found)


def not_compared(path: str, reason: str) -> PathReport:
    """Return the report of a path that is left out, and why."""
    return PathReport(path=path, atol=0.0, rtol=0.0, samples=0, seconds=0.0, differences=(),
                      skipped=reason)


def failed(path: str, error: Exception) -> PathReport:
    """Return the report of a path that could not be run at all."""
    return _report(path, 0, Tolerance(), time.perf_counter(), [raised("*", 0, error)])


def _report(path: str, samples: int, tolerance: Tolerance, started_s: float,
            found: Sequence[OutputDifference]) -> PathReport:
    return PathReport(path=path, atol=tolerance.atol, rtol=tolerance.rtol, samples=samples,
                      seconds=round(time.perf_counter() - started_s, 3),
                      differences=worst_of_each(found))


def raised(signature: str, index: int, error: Exception) -> OutputDifference:
    """Return an exception as a difference; only our own messages, which never hold text."""
    text = f": {error}" if isinstance(error, TfInferError) else ""
    return OutputDifference(signature=signature, output=ANY_OUTPUT, dtype="", max_abs=0.0,
                            max_rel=0.0, mismatches=1, elements=1, first_sample=index,
                            reason=f"raised {type(error).__name__}{text}")
