"""What counts as an equal answer: one rule, for verification and for a server's replay at load.

* floating point: |candidate - reference| <= atol + rtol * |reference|; NaN equals NaN, and an
  infinity equals itself;
* strings, integers, booleans: exactly, with one excuse (`Tolerance.excused_by`): a row's label may
  be that of another class whose reference score lies closer to the best than the tolerance allows
  both of them to move, because then either label is a correct answer of the same model;
* shape and dtype: always exactly.

Generated ids have no excuse: no output says how close the second-best token was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tf_infer.config import check
from tf_infer.manifest import OutputDifference, Sample

Outputs = Mapping[str, np.ndarray]

# Graph, XLA and a server may add the same float32 numbers in another order: 24 bits of mantissa,
# sums of some hundred terms below 32, twelve layers deep. Measured on our tasks: below 1e-5; a
# wrong mask, activation or epsilon shows from 1e-3 on.
FLOAT32_ATOL = 1e-4
FLOAT32_RTOL = 1e-4

@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """How far a candidate may be from the reference.

    Attributes:
        atol, rtol: of every floating-point output, in the output's own unit.
        outputs: output name -> (atol, rtol), for those that need others.
        excused_by: output of labels [B] -> outputs of scores [B, C], the first of which that the
            reference has decides which other label a row may have. Logits come first: where
            scores round to 1 they say nothing.
        ignored: outputs that are not compared, since they follow from others that are.
        classes: names of the scores' columns, where they are known; else the samples tell.
    """

    atol: float = FLOAT32_ATOL
    rtol: float = FLOAT32_RTOL
    outputs: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    excused_by: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"label": ("logits", "scores")})
    ignored: frozenset[str] = frozenset()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for where, (atol, rtol) in {"": (self.atol, self.rtol), **self.outputs}.items():
            name = f"Tolerance.outputs[{where!r}]" if where else "Tolerance"
            check(atol >= 0 and rtol >= 0, name, "atol >= 0 and rtol >= 0", (atol, rtol))

    def of(self, output: str) -> tuple[float, float]:
        """Return (atol, rtol) of an output."""
        return self.outputs.get(output, (self.atol, self.rtol))


def column_names(samples: Iterable[Sample], tolerance: Tolerance) -> dict[int, bytes]:
    """Return column of the scores -> class, as far as the reference's answers tell.

    A row of the output `classes` [B, C] names all of them; a label with a clearly best score its
    own. What is not known excuses no label.
    """
    names = {column: _as_bytes(name) for column, name in enumerate(tolerance.classes)}
    for sample in samples:
        classes = sample.outputs.get("classes")
        if classes is not None and classes.ndim == 2 and len(classes):
            names |= {column: _as_bytes(name) for column, name in enumerate(classes[0])}
        for output in tolerance.excused_by.keys() & sample.outputs.keys():
            scores = _excuse(sample, output, tolerance)[1]
            for label, row in zip(sample.outputs[output], scores):
                if np.count_nonzero(row == row.max(initial=-np.inf)) == 1:
                    names[int(np.argmax(row))] = _as_bytes(label)
    return names


def differences(sample: Sample, outputs: Outputs, tolerance: Tolerance, *, index: int = 0,
                names: Mapping[int, bytes] | None = None) -> list[OutputDifference]:
    """Compare one answer with the outputs that the sample carries, output by output.

    Outputs that it does not carry are not looked at: a golden file leaves out what is too large.

    Args:
        sample: the request and the reference's answer.
        outputs: the candidate's answer.
        tolerance: what counts as equal.
        index: of the sample, for the report.
        names: what `column_names` says of all samples; None asks this sample alone.
    """
    found = []
    names = column_names([sample], tolerance) if names is None else names
    for name, reference in sample.outputs.items():
        if name in tolerance.ignored:
            continue
        reason = _unlike(reference, outputs.get(name))
        if reason:
            found.append(_fault(sample, name, index, reason))
        elif reference.dtype.kind in "fc" or reference.dtype.name == "bfloat16":
            found.append(_numbers(sample, name, outputs[name], tolerance.of(name), index))
        else:
            found.append(_symbols(sample, name, outputs[name], tolerance, index, names))
    return found


def _dtype(array: np.ndarray) -> str:
    return "string" if array.dtype.kind in "OSU" else array.dtype.name


def _unlike(reference: np.ndarray, candidate: np.ndarray | None) -> str:
    if candidate is None:
        return "missing"
    if _dtype(reference) != _dtype(candidate):
        return f"dtype {_dtype(candidate)} instead of {_dtype(reference)}"
    if reference.shape != candidate.shape:
        return f"shape {candidate.shape} instead of {reference.shape}"
    return ""


def _fault(sample: Sample, output: str, index: int, reason: str) -> OutputDifference:
    reference = sample.outputs.get(output)
    elements = 1 if reference is None else max(1, int(reference.size))
    return OutputDifference(
        signature=sample.signature, output=output,
        dtype="" if reference is None else _dtype(reference), max_abs=0.0, max_rel=0.0,
        mismatches=elements, elements=elements, first_sample=index, reason=reason)


def _numbers(sample: Sample, output: str, candidate: np.ndarray, bound: tuple[float, float],
             index: int) -> OutputDifference:
    wide = np.complex128 if candidate.dtype.kind == "c" else np.float64
    left, right = sample.outputs[output].astype(wide), candidate.astype(wide)
    finite = np.isfinite(left) & np.isfinite(right)
    with np.errstate(invalid="ignore"):
        same = (left == right) | (np.isnan(left) & np.isnan(right))
        distance = np.where(finite, np.abs(left - right), 0.0)
    inside = same | (finite & (distance <= bound[0] + bound[1] * np.abs(left)))
    only_nan = int(np.sum(np.isnan(left) != np.isnan(right)))
    reason = f"NaN on one side only in {only_nan} elements" if only_nan else ""
    if not reason and not np.all(inside | finite):
        reason = "an infinity on one side only"
    return _difference(sample, output, index, inside, distance, reason)


def _symbols(sample: Sample, output: str, candidate: np.ndarray, tolerance: Tolerance,
             index: int, names: Mapping[int, bytes]) -> OutputDifference:
    same = _equal(sample.outputs[output], candidate)
    by, scores = _excuse(sample, output, tolerance)
    for row, tied in enumerate(_near_best(scores, tolerance.of(by))):
        allowed = [names[column] for column in np.flatnonzero(tied).tolist()
                   if column in names]
        same[row] = same[row] or _as_bytes(candidate[row]) in allowed
    return _difference(sample, output, index, same, np.where(same, 0.0, 1.0), "")


def _equal(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    if reference.dtype.kind not in "OSU":
        return np.asarray(reference == candidate)
    pairs = zip(reference.reshape(-1), candidate.reshape(-1))
    equal = [_as_bytes(left) == _as_bytes(right) for left, right in pairs]
    return np.array(equal, dtype=bool).reshape(reference.shape)


def _as_bytes(item: bytes | str) -> bytes:
    return item.encode("utf-8") if isinstance(item, str) else bytes(item)


def _excuse(sample: Sample, output: str, tolerance: Tolerance) -> tuple[str, np.ndarray]:
    """Return name and scores [B, C] of what decides about labels [B]; [0, 1] where nothing does."""
    labels = sample.outputs[output]
    for name in tolerance.excused_by.get(output, ()) if labels.dtype.kind in "OSU" else ():
        scores = sample.outputs.get(name)
        if scores is not None and scores.ndim == 2 and scores.shape[:1] == labels.shape:
            return name, scores.astype(np.float64)
    return "", np.zeros([0, 1])


def _near_best(scores: np.ndarray, bound: tuple[float, float]) -> np.ndarray:
    """Return [B, C] bool: may be the best of its row when both of them move by the bound."""
    best = scores.max(axis=1, keepdims=True, initial=-np.inf)
    with np.errstate(invalid="ignore"):
        return np.asarray(best - scores <= 2 * (bound[0] + bound[1] * np.abs(best)))


def _difference(sample: Sample, output: str, index: int, inside: np.ndarray, distance: np.ndarray,
                reason: str) -> OutputDifference:
    reference = sample.outputs[output]
    mismatches = int(np.size(inside) - np.count_nonzero(inside))
    relative = distance
    if reference.dtype.kind not in "OSUbiu":
        size = np.abs(reference.astype(np.complex128))
        relative = distance / (1.0 + np.where(np.isfinite(size), size, 0.0))
    if mismatches:
        rows = np.unique(np.argwhere(~np.atleast_1d(inside))[:, 0])
        reason = "; ".join(filter(None, [f"first in row {rows[0]}", reason]))
    return OutputDifference(
        signature=sample.signature, output=output, dtype=_dtype(reference),
        max_abs=float(np.max(distance, initial=0.0)), max_rel=float(np.max(relative, initial=0.0)),
        mismatches=mismatches, elements=int(reference.size),
        first_sample=index if mismatches else None, reason=reason)


def worst_of_each(found: Sequence[OutputDifference]) -> tuple[OutputDifference, ...]:
    """Join the differences of several samples into one for each signature and output."""
    groups: dict[tuple[str, str], list[OutputDifference]] = {}
    for one in found:
        groups.setdefault((one.signature, one.output), []).append(one)
    joined = []
    for group in groups.values():
        outside = [one for one in group if one.first_sample is not None]
        first = outside[0] if outside else group[0]
        joined.append(replace(
            first, max_abs=max(one.max_abs for one in group),
            max_rel=max(one.max_rel for one in group),
            mismatches=sum(one.mismatches for one in group),
            elements=sum(one.elements for one in group)))
    return tuple(joined)
