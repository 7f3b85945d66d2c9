"""One row alone = the same row in a crowd, wherever it stands in it, whoever asks beside it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np

from tf_infer.equality import Tolerance, column_names, differences, worst_of_each
from tf_infer.manifest import OutputDifference, PathReport, Sample
from tf_infer.verify.parity import raised
from tf_infer.verify.predictors import Predictor


def batch_effects(predictor: Predictor, samples: Sequence[Sample], tolerance: Tolerance, *,
                  seed: int = 0, path: str = "") -> tuple[PathReport, PathReport]:
    """Compare every row of every sample with itself alone, and in a shuffled batch.

    Args:
        predictor: the path under test; it is its own reference.
        samples: requests of several rows; outputs recorded in them are not looked at.
        tolerance: what counts as equal.
        seed: of the shuffle.
        path: its name, for the reports.

    Returns:
        alone, shuffled: one report each, with the paths "alone" and "shuffled" behind that name.

    Two outputs of different width (a batch is as wide as its longest row needs) are compared on
    the columns that both have; the columns beyond must hold one value, the padding.
    """
    generator = np.random.default_rng(seed)
    alone: list[OutputDifference] = []
    shuffled: list[OutputDifference] = []
    started_s = time.perf_counter()
    crowds = [replace(sample, outputs=predictor(sample.signature, sample.inputs))
              for sample in samples]
    compare = partial(_differences, predictor, tolerance=tolerance,
                      names=column_names(crowds, tolerance))
    for index, crowd in enumerate(crowds):
        rows = len(next(iter(crowd.inputs.values())))
        for row in range(rows):
            alone += compare(crowd, np.array([row]), index=index)
        shuffled += compare(crowd, generator.permutation(rows), index=index)
    seconds = round(time.perf_counter() - started_s, 3)
    first, second = (
        PathReport(path=f"{path} {how}".strip(), atol=tolerance.atol, rtol=tolerance.rtol,
                   samples=len(samples), seconds=seconds, differences=worst_of_each(found))
        for how, found in (("alone", alone), ("shuffled", shuffled)))
    return first, second


def in_a_crowd(predictor: Predictor, samples: Sequence[Sample], tolerance: Tolerance, *,
               callers: int = 16, path: str = "") -> PathReport:
    """Ask for every row by itself, many at once, as callers of a server do; the path "crowd".

    Args:
        predictor: any thread may call it; a server that joins requests to batches.
        samples: requests with the answers that are expected.
        tolerance: what counts as equal.
        callers: requests in flight.
        path: its name, for the report.
    """
    started_s = time.perf_counter()
    names = column_names(samples, tolerance)
    rows = [(index, sample, row) for index, sample in enumerate(samples)
            for row in range(len(next(iter(sample.inputs.values()))))]

    def asked(one: tuple[int, Sample, int]) -> list[OutputDifference]:
        index, sample, row = one
        return _differences(predictor, sample, np.array([row]), tolerance=tolerance, names=names,
                            index=index)

    with ThreadPoolExecutor(callers) as pool:
        found = [difference for one in pool.map(asked, rows) for difference in one]
    return PathReport(path=f"{path} crowd".strip(), atol=tolerance.atol, rtol=tolerance.rtol,
                      samples=len(samples), seconds=round(time.perf_counter() - started_s, 3),
                      differences=worst_of_each(found))


def _differences(predictor: Predictor, crowd: Sample, rows: np.ndarray, *, tolerance: Tolerance,
                 names: Mapping[int, bytes], index: int) -> list[OutputDifference]:
    """Compare the given rows, asked for by themselves, with the same rows of the crowd.

    An error is a difference, as where paths are compared.
    """
    inputs = {name: array[rows] for name, array in crowd.inputs.items()}
    try:
        answer = predictor(crowd.signature, inputs)
    except Exception as error:
        return [raised(crowd.signature, index, error)]
    reference, candidate = _of_one_width({n: a[rows] for n, a in crowd.outputs.items()}, answer)
    return differences(replace(crowd, inputs=inputs, outputs=reference), candidate, tolerance,
                       index=index, names=names)


def _of_one_width(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]
                  ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    cut_left, cut_right = dict(left), dict(right)
    for name in left.keys() & right.keys():
        one, other = left[name], right[name]
        if one.ndim >= 2 and one.ndim == other.ndim and one.shape[2:] == other.shape[2:]:
            width = min(one.shape[1], other.shape[1])
            if _is_padding(one[:, width:]) and _is_padding(other[:, width:]):
                cut_left[name], cut_right[name] = one[:, :width], other[:, :width]
    return cut_left, cut_right


def _is_padding(columns: np.ndarray) -> bool:
    flat = columns.reshape(-1)
    return flat.size == 0 or all(item == flat[0] for item in flat)
