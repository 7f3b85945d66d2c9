"""Rows of many requests as one run: joined, padded, split again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_infer.errors import Code, InvalidRequest
from tf_infer.server import rows
from tf_infer.wire import dtypes

NAMED = [row.name for row in dtypes.TABLE if not row.name.startswith(("q", "bfloat"))]
BFLOAT16 = dtypes.bfloat16_type()
DTYPES = [np.dtype(object) if name == "string" else np.dtype(name) for name in NAMED]
DTYPES += [BFLOAT16] if BFLOAT16 is not None else []


def values(dtype: np.dtype, *shape: int, start: int = 0) -> np.ndarray:
    """Return an array whose values differ from each other as far as the dtype can."""
    numbers = np.arange(start, start + int(np.prod(shape)))
    if dtype.kind == "O":
        flat = np.empty(len(numbers), object)
        flat[:] = [b"\xff\x00text %d\x00" % number for number in numbers]
        return flat.reshape(shape)
    if dtype.kind == "b":
        return (numbers % 3 == 0).reshape(shape)
    return (numbers % 100).astype(dtype).reshape(shape)


def strings(*texts: bytes) -> np.ndarray:
    return np.array(texts, dtype=object)


def same(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> bool:
    return list(left) == list(right) and all(
        left[name].dtype == right[name].dtype and left[name].shape == right[name].shape
        and left[name].tolist() == right[name].tolist() for name in left)


def refusal(action: Any, *arguments: Any, **options: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        action(*arguments, **options)
    return caught.value


# ------------------------------------------------------------------ counting


def test_a_request_has_as_many_rows_as_each_of_its_inputs() -> None:
    assert rows.count_rows({"a": np.zeros((3, 2)), "b": strings(b"x", b"y", b"z")}) == 3
    assert rows.count_rows({"a": np.zeros((0, 2))}) == 0


def test_BA12_inputs_of_different_numbers_of_rows_are_refused() -> None:
    error = refusal(rows.count_rows, {"a": np.zeros(2), "b": np.zeros((3, 2))})
    assert error.code == Code.INVALID_ARGUMENT
    assert error.details == "Batching Run() input tensors must have equal 0th-dimension size"


def test_BA13_a_scalar_input_is_refused() -> None:
    error = refusal(rows.count_rows, {"a": np.zeros(2), "b": np.array(1.0)})
    assert error.code == Code.INVALID_ARGUMENT
    assert error.details == "Batching Run() input tensors must have at least one dimension"


def test_a_request_without_inputs_is_refused() -> None:
    error = refusal(rows.count_rows, {})
    assert "must have at least one input tensor" in error.details


# ------------------------------------------------------------------ estimating


@pytest.mark.parametrize(("inputs", "tokens"), [
    ({"text": strings(b"12345678", b"123456789")}, 5),
    ({"text": strings(b"")}, 2),
    ({"text": strings()}, 2),
    ({"a": strings(b"1234", b"1"), "b": strings(b"1", b"12345678")}, 5),
    ({"text": np.array([[b"1234", b"1234"], [b"1", b"1"]], object)}, 4),
    ({"ids": np.zeros((2, 7), np.int32), "mask": np.zeros((2, 7), np.int64)}, 7),
    ({"ids": np.zeros((2, 9), np.int32), "text": strings(b"1234", b"1")}, 9),
    ({"seed": np.zeros(4, np.int32), "scale": np.zeros((4, 99), np.float32)}, 0),
])
def test_the_longest_row_is_estimated_from_bytes_or_ids(
        inputs: dict[str, np.ndarray], tokens: int) -> None:
    assert rows.longest_row(inputs) == tokens


def test_a_tokenizer_of_bytes_has_a_token_a_byte() -> None:
    assert rows.longest_row({"text": strings(b"12345")}, bytes_per_token=1, added_tokens=0) == 5


def test_requests_of_one_form_have_the_same_dtypes_and_later_dimensions() -> None:
    one = {"a": np.zeros((3, 2), np.float32), "b": strings(b"x", b"y", b"z")}
    two = {"b": strings(b"x"), "a": np.zeros((1, 2), np.float32)}
    assert rows.form_of(one) == rows.form_of(two)
    assert hash(rows.form_of(one)) == hash(rows.form_of(two))
    assert rows.form_of(one) != rows.form_of({**two, "a": np.zeros((1, 3), np.float32)})
    assert rows.form_of(one) != rows.form_of({**two, "a": np.zeros((1, 2), np.float64)})
    assert rows.dtypes_of(one) == rows.dtypes_of({**two, "a": np.zeros((1, 3), np.float32)})
    assert rows.dtypes_of(one) != rows.dtypes_of({**two, "a": np.zeros((1, 2), np.float64)})


# ------------------------------------------------------------------ joining


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_joined_as_it_is(dtype: np.dtype) -> None:
    parts = [values(dtype, 2, 3), values(dtype, 1, 3, start=6), values(dtype, 0, 3)]
    joined = rows.join([{"x": part} for part in parts])
    assert same(joined, {"x": values(dtype, 3, 3)})


def test_a_single_request_is_passed_on_without_a_copy() -> None:
    array = np.zeros((4, 2))
    assert rows.join([{"x": array}])["x"] is array
    assert rows.join([{"x": array}], size=4)["x"] is array


def test_BA07_the_padding_is_the_first_row_of_the_last_request() -> None:
    joined = rows.join([{"x": np.array([1, 2])}, {"x": np.array([3, 4])}], size=7)
    assert joined["x"].tolist() == [1, 2, 3, 4, 3, 3, 3]


def test_BA07_a_single_request_is_padded_too() -> None:
    joined = rows.join([{"x": strings(b"a\x00", b"b"), "n": np.array([[1, 2], [3, 4]])}], size=3)
    assert joined["x"].tolist() == [b"a\x00", b"b", b"a\x00"]
    assert joined["n"].tolist() == [[1, 2], [3, 4], [1, 2]]


def test_BA25_a_request_without_rows_lends_no_padding() -> None:
    empty = {"x": np.zeros((0, 2))}
    joined = rows.join([{"x": np.ones((1, 2))}, empty], size=3)
    assert joined["x"].tolist() == [[1, 1]] * 3
    assert rows.join([empty, empty], size=3)["x"].shape == (0, 2)


@pytest.mark.parametrize("other", [np.zeros((1, 3)), np.zeros((1, 2, 1)), np.zeros(1)],
                         ids=["size", "more dimensions", "fewer dimensions"])
def test_BA10_different_later_dimensions_are_refused(other: np.ndarray) -> None:
    error = refusal(rows.join, [{"x": np.zeros((1, 2))}, {"x": other}])
    assert error.code == Code.FAILED_PRECONDITION
    assert "'x' from different tasks have different shapes and padding is turned off" \
        in error.details


def test_BA11_shorter_tensors_are_padded_with_their_own_first_value() -> None:
    joined = rows.join([{"x": np.array([[1, 2]])}, {"x": np.array([[7, 8, 9], [4, 5, 6]])},
                        {"x": np.array([[3], [5]])}], pad_variable_length=True)
    assert joined["x"].tolist() == [[1, 2, 1], [7, 8, 9], [4, 5, 6], [3, 3, 3], [5, 3, 3]]


def test_BA11_every_later_dimension_is_padded() -> None:
    joined = rows.join([{"x": np.array([[[1, 2, 3]]])}, {"x": np.array([[[4], [5]]])}],
                       pad_variable_length=True)
    assert joined["x"].tolist() == [[[1, 2, 3], [1, 1, 1]], [[4, 4, 4], [5, 4, 4]]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_BA11_every_dtype_is_padded(dtype: np.dtype) -> None:
    short, long = values(dtype, 2, 1), values(dtype, 1, 2, start=2)
    joined = rows.join([{"x": short}, {"x": long}], pad_variable_length=True)["x"]
    first, second = short.tolist()
    assert joined.dtype == dtype
    assert joined.tolist() == [[*first, *first], [*second, *first], *long.tolist()]


def test_BA07_BA11_padding_rows_come_from_the_padded_request() -> None:
    joined = rows.join([{"x": np.array([[1, 2]])}, {"x": np.array([[3], [4]])}], size=4,
                       pad_variable_length=True)
    assert joined["x"].tolist() == [[1, 2], [3, 3], [4, 3], [3, 3]]


def test_BA11_a_tensor_without_values_has_none_to_pad_with() -> None:
    error = refusal(rows.join, [{"x": np.zeros((1, 2))}, {"x": np.zeros((1, 0))}],
                    pad_variable_length=True)
    assert error.code == Code.INVALID_ARGUMENT
    assert "Got empty tensor in batch of non-empty tensors" in error.details
    joined = rows.join([{"x": np.zeros((1, 2))}, {"x": np.zeros((0, 5))}],
                       pad_variable_length=True)
    assert joined["x"].shape == (1, 5)


def test_BA11_ranks_are_not_made_equal() -> None:
    error = refusal(rows.join, [{"x": np.zeros((1, 2))}, {"x": np.zeros((1, 2, 2))}],
                    pad_variable_length=True)
    assert error.code == Code.FAILED_PRECONDITION
    assert "different ranks" in error.details


def test_different_dtypes_are_refused_instead_of_converted() -> None:
    error = refusal(rows.join, [{"x": np.zeros(1, np.float32)}, {"x": np.zeros(1, np.int64)}])
    assert error.code == Code.INVALID_ARGUMENT
    assert "different dtypes" in error.details


# ------------------------------------------------------------------ splitting


def test_BA01_each_caller_gets_its_own_rows() -> None:
    parts = rows.split({"y": np.array([1, 2, 3]), "z": strings(b"a", b"b", b"c")}, [2, 0, 1])
    assert [part["y"].tolist() for part in parts] == [[1, 2], [], [3]]
    assert [part["z"].tolist() for part in parts] == [[b"a", b"b"], [], [b"c"]]


def test_BA07_the_padding_is_cut_off() -> None:
    parts = rows.split({"y": np.array([1, 2, 3, 3])}, [2, 1], size=4)
    assert [part["y"].tolist() for part in parts] == [[1, 2], [3]]


@pytest.mark.parametrize("counts", [[1], [1, 1]], ids=["BA15 a single request", "a batch"])
def test_BA14_an_output_without_dimensions_is_refused(counts: list[int]) -> None:
    error = refusal(rows.split, {"y": np.array(3.0)}, counts)
    assert error.code == Code.FAILED_PRECONDITION
    assert error.details == "Batched output tensor has 0 dimensions"


@pytest.mark.parametrize(("counts", "size"), [([2], None), ([1, 1], None), ([3], 4), ([4], None)])
def test_BA14_BA15_an_output_of_other_rows_is_refused(counts: list[int], size: int | None) -> None:
    error = refusal(rows.split, {"ok": np.zeros(size or sum(counts)), "y": np.zeros((3, 2))},
                    counts, size=size)
    assert error.code == Code.FAILED_PRECONDITION
    assert "0th dimension does not equal the sum of the 0th dimension sizes" in error.details


def test_BA21_pieces_of_a_request_are_its_rows_in_order() -> None:
    whole = {"x": np.arange(10).reshape(5, 2), "s": strings(*b"a b c d e".split())}
    pieces = [rows.cut(whole, 0, 2), rows.cut(whole, 2, 2), rows.cut(whole, 4, 1)]
    assert [rows.count_rows(piece) for piece in pieces] == [2, 2, 1]
    assert same(rows.join(pieces), whole)


# ------------------------------------------------------------------ joined = alone


def model(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Something that treats each row by itself, and a padded position like its neighbours."""
    texts = [hash(bytes(text)) % 1000 for text in inputs["text"]]
    widest = inputs["x"].max(axis=1, initial=0)
    return {"sum": np.array(texts, np.int64) + widest, "echo": inputs["text"][:, None]}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3)), min_size=1, max_size=6),
       st.integers(0, 5), st.booleans(), st.randoms(use_true_random=False))
def test_a_joined_run_gives_everybody_what_a_run_alone_gives(
        shapes: list[tuple[int, int]], extra: int, pad: bool, random: Any) -> None:
    requests = []
    for count, width in shapes:
        texts = np.empty(count, object)
        texts[:] = [random.randbytes(random.randrange(5)) for _ in range(count)]
        numbers = [[random.randrange(9) for _ in range(width if pad else 2)] for _ in range(count)]
        x = np.array(numbers, np.int64).reshape(count, width if pad else 2)
        if count:
            x[0, 0] = 0  # what the shorter rows are padded with must not be a new maximum
        requests.append({"text": texts, "x": x})
    counts = [rows.count_rows(request) for request in requests]
    size = sum(counts) + extra if any(counts) else None
    joined = rows.join(requests, size=size, pad_variable_length=pad)
    assert rows.count_rows(joined) == (size or 0)
    parts = rows.split(model(joined), counts, size=size)
    assert len(parts) == len(requests)
    for request, part in zip(requests, parts):
        assert same(part, model(request))
