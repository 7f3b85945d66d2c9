"""Rows of many requests as one run: join inputs along dimension 0, split the outputs again.

The texts and codes are those of TensorFlow Serving's batching: statements BA07 and BA10 to BA15.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from tf_infer.errors import Code, InvalidRequest
from tf_infer.server.contracts import Arrays

Inputs = Mapping[str, np.ndarray]


def count_rows(inputs: Inputs) -> int:
    """Return how many rows a request has.

    Raises:
        InvalidRequest: no input, one without dimensions (BA13), or unequal numbers of rows (BA12).
    """
    if not inputs:
        raise InvalidRequest("Batching Run() must have at least one input tensor")
    counts = set()
    for array in inputs.values():
        if not array.ndim:
            raise InvalidRequest(
                "Batching Run() input tensors must have at least one dimension")
        counts.add(array.shape[0])
    if len(counts) > 1:
        raise InvalidRequest("Batching Run() input tensors must have equal 0th-dimension size")
    return int(counts.pop())


def form_of(inputs: Inputs) -> Hashable:
    """Return what requests have in common that can be joined without padding."""
    return tuple((name, inputs[name].dtype, inputs[name].shape[1:]) for name in sorted(inputs))


def dtypes_of(inputs: Inputs) -> Hashable:
    """Return what requests have in common that can be joined, perhaps with padding."""
    return tuple((name, inputs[name].dtype) for name in sorted(inputs))


def cut(inputs: Inputs, start: int, rows: int) -> Arrays:
    """Return some rows of a request, views of them (BA21)."""
    return {name: array[start:start + rows] for name, array in inputs.items()}


def longest_row(inputs: Inputs, *, bytes_per_token: float = 4.0, added_tokens: int = 2) -> int:
    """Estimate the tokens of the longest row: from the bytes of its texts, or the width of its ids.

    Args:
        inputs: of a request, checked by `count_rows`. The texts of one row, in one input or
            several, count together; so does an integer matrix [B, T], as T. Else nothing does.
        bytes_per_token: of the model's tokenizer: 1 where it takes bytes. English in WordPiece has
            4.5 in the median; 4 finds the right width more often, because one row that is longer
            than estimated widens its whole batch.
        added_tokens: special tokens of a row of text.
    """
    ids, texts = 0, None
    for array in inputs.values():
        kind = array.dtype.kind
        if kind == "O":
            lengths = _bytes_of(array)
            texts = lengths if texts is None else list(map(operator.add, texts, lengths))
        elif array.ndim == 2 and kind in "iu":
            ids = max(ids, array.shape[1])
    if texts is None:
        return ids
    return max(ids, math.ceil(max(texts, default=0) / bytes_per_token) + added_tokens)


def _bytes_of(array: np.ndarray) -> list[int]:
    """[B, ...] strings -> the bytes of each row."""
    if array.ndim == 1:
        return list(map(len, array.tolist()))
    return [sum(map(len, row.flat)) for row in array]


def join(requests: Sequence[Inputs], *, size: int | None = None,
         pad_variable_length: bool = False) -> Arrays:
    """Join the inputs of requests along dimension 0, in their order.

    Args:
        requests: one or more with the same names, checked by `count_rows`.
        size: rows to fill the batch up to, with copies of the first row of the last request that
            has one (BA07); None for no more than there are.
        pad_variable_length: make later dimensions equal (BA11) instead of refusing (BA10).

    Returns:
        New arrays; those of a single request that needs no padding as they are.

    Raises:
        InvalidRequest: BA10, or dtypes or ranks differ; it concerns all of `requests` (BA16).
    """
    return {name: _joined(name, [request[name] for request in requests], size, pad_variable_length)
            for name in requests[0]}


def _joined(name: str, arrays: list[np.ndarray], size: int | None, pad: bool) -> np.ndarray:
    first = arrays[0]
    if any(array.dtype != first.dtype for array in arrays):
        raise InvalidRequest(f"Tensors with name '{name}' from different tasks have different "
                             "dtypes. Send the dtype of the signature.")
    if any(array.shape[1:] != first.shape[1:] for array in arrays):
        arrays = _widened(name, arrays, pad)
    missing = 0 if size is None else size - sum(map(len, arrays))
    last = next((array for array in reversed(arrays) if len(array)), None)
    if missing > 0 and last is not None:
        arrays = [*arrays, np.repeat(last[:1], missing, axis=0)]
    return np.concatenate(arrays) if len(arrays) > 1 else first


def _widened(name: str, arrays: list[np.ndarray], pad: bool) -> list[np.ndarray]:
    """Pad every array at the end of each later dimension with its own first value."""
    if not pad or len({array.ndim for array in arrays}) > 1:
        advice = "have different ranks, which padding cannot make equal." if pad else (
            "have different shapes and padding is turned off. Set pad_variable_length_inputs to "
            "true, or ensure that all tensors with the same name have equal dimensions starting "
            "with the first dim.")
        raise InvalidRequest(f"Tensors with name '{name}' from different tasks {advice}",
                             code=Code.FAILED_PRECONDITION)
    shape = tuple(map(max, zip(*(array.shape[1:] for array in arrays))))
    return [array if array.shape[1:] == shape else _padded(array, shape) for array in arrays]


def _padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    wide = np.empty((len(array), *shape), dtype=array.dtype)
    if not wide.size:
        return wide
    if not array.size:
        raise InvalidRequest("Got empty tensor in batch of non-empty tensors.")
    wide[...] = array.flat[0]  # not np.full: it drops zero bytes at the end of a string
    wide[tuple(map(slice, array.shape))] = array
    return wide


def split(outputs: Mapping[str, np.ndarray], counts: Sequence[int], *, size: int | None = None,
          ) -> list[Arrays]:
    """Cut outputs into those of each request; views, no copies.

    Args:
        outputs: of one run.
        counts: rows of each request, in the order of `join`.
        size: rows that the run had when it was filled up; those at the end belong to nobody.

    Raises:
        InvalidRequest: an output without dimensions, or one with another number of rows (BA14).
    """
    total = sum(counts) if size is None else size
    for array in outputs.values():
        if not array.ndim:
            raise InvalidRequest("Batched output tensor has 0 dimensions",
                                 code=Code.FAILED_PRECONDITION)
        if len(array) != total:
            raise InvalidRequest(
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
                "sizes of the input tensors", code=Code.FAILED_PRECONDITION)
    starts = itertools.accumulate(counts, initial=0)
    return [cut(outputs, start, count) for start, count in zip(starts, counts)]
