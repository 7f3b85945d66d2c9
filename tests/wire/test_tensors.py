"""ndarray <-> TensorProto: round trips, both encodings, what TensorFlow reads, hostile bytes."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_infer.errors import ShapeError
from tf_infer.wire import dtypes, tensors, varint
from tf_infer.wire import serving_pb2 as pb

NUMBERS = [row for row in dtypes.TABLE if row.form != "strings" and row.name != "bfloat16"]
SHAPES = [(), (1,), (3,), (0,), (2, 0), (2, 3), (1, 1, 1), (2, 1, 4)]


def values(row: dtypes.DType, shape: tuple[int, ...]) -> np.ndarray:
    """Return extreme and ordinary values of a dtype in a shape."""
    count = int(np.prod(shape))
    if row.array.kind in "iu":
        info = np.iinfo(row.array)
        pool = np.array([info.min, info.max, 0, 1, 127 % info.max], row.array)
    elif row.array.kind == "b":
        pool = np.array([True, False, True])
    elif row.array.kind == "c":
        pool = np.array([1 + 2j, complex(np.inf, -0.0), -3.5j], row.array)
    else:
        pool = np.array([0.5, -np.inf, np.inf, -0.0, 6e-8], row.array)
    return np.resize(pool, count).reshape(shape)


@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize("row", NUMBERS, ids=lambda row: row.name)
def test_every_dtype_and_shape_comes_back_bit_for_bit(row: dtypes.DType, content: bool) -> None:
    for shape in SHAPES:
        array = values(row, shape)
        back = tensors.to_array(tensors.to_proto(array, dtype=row.name, content=content))
        assert back.dtype == array.dtype
        assert back.shape == shape
        assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize("content", [True, False])
def test_nan_keeps_its_payload(content: bool) -> None:
    array = np.array([0x7FC00001, 0xFFC12345], np.uint32).view(np.float32)
    back = tensors.to_array(tensors.to_proto(array, content=content))
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize("content", [True, False])
def test_the_bytes_put_together_are_those_of_the_message(content: bool) -> None:
    large = np.arange(1000, dtype=np.int64).reshape(8, 125)
    texts = np.array([[b"", "naïve", b"\0"], [b"x" * 200, b"\xff", b"y" * 20_000]], object)
    arrays = [values(row, shape) for row in NUMBERS for shape in SHAPES if row.name[0] != "q"]
    for array in (*arrays, large, large.T, large[::2], texts, texts.T, texts[:0], texts[0, 0],
                  np.array("text"), np.array([b"a", b"bc"]), np.zeros([1] * 20, np.uint8)):
        proto = tensors.to_proto(array, content=content)
        assert tensors.encode(array, content=content) == proto.SerializeToString()
    with pytest.raises(ShapeError, match="there: expected str or bytes"):
        tensors.encode(np.array([5], object), where="there")


def test_bfloat16_is_put_together_too() -> None:
    array = np.arange(3).astype(pytest.importorskip("ml_dtypes").bfloat16)
    assert tensors.encode(array) == tensors.to_proto(array).SerializeToString()


def test_strings_are_bytes_and_keep_nul_and_invalid_utf8() -> None:
    array = np.array([[b"a\0", b""], ["naïve", b"\xff\0"]], dtype=object)
    back = tensors.to_array(tensors.to_proto(array))
    assert back.tolist() == [[b"a\0", b""], ["naïve".encode(), b"\xff\0"]]
    assert back.dtype == object


def test_a_read_array_shares_no_memory_that_may_change() -> None:
    for content in (True, False):
        proto = tensors.to_proto(np.arange(4.0), content=content)
        back = tensors.to_array(proto)
        proto.Clear()
        assert back.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("array", [np.float32(2.0), np.float32([2.0]), np.float32([2.0, 3.0])])
def test_PR13_PR14_numbers_stand_in_content_or_in_the_typed_field(array: np.ndarray) -> None:
    proto = tensors.to_proto(array)
    assert (list(proto.float_val), proto.tensor_content) == ([], array.tobytes())
    proto = tensors.to_proto(array, content=False)
    assert (list(proto.float_val), proto.tensor_content) == (array.reshape(-1).tolist(), b"")


@pytest.mark.parametrize(("dtype", "pattern"), [("float16", 0x3E00), ("bfloat16", 0x3FC0)])
def test_half_and_bfloat16_travel_as_bit_patterns(dtype: str, pattern: int) -> None:
    proto = tensors.to_proto(np.array([1.5], np.float32), dtype=dtype, content=False)
    assert list(proto.half_val) == [pattern]
    assert tensors.to_array(proto).astype(np.float32).tolist() == [1.5]


def test_bfloat16_rounds_to_nearest_even_and_keeps_nan() -> None:
    array = np.array([1.0 + 2**-8, 1.0 + 3 * 2**-8, 3.4e38, np.nan, -0.0], np.float32)
    bits = tensors.cast(array, "bfloat16")
    assert [hex(b) for b in bits.tolist()] == ["0x3f80", "0x3f82", "0x7f80", "0x7fc0", "0x8000"]


def test_bfloat16_equals_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    expected = array.astype(ml_dtypes.bfloat16)
    back = tensors.to_array(tensors.to_proto(array, dtype="bfloat16"))
    assert back.dtype == expected.dtype
    assert back.tobytes() == expected.tobytes()
    again = tensors.to_array(tensors.to_proto(expected, content=False))
    assert again.tobytes() == expected.tobytes()


@pytest.mark.parametrize(("field", "dtype", "given_values", "expected"), [
    ("float_val", pb.DT_FLOAT, [1.0, 2.0], [1.0, 2.0, 2.0, 2.0]),
    ("float_val", pb.DT_FLOAT, [], [0.0, 0.0, 0.0, 0.0]),
    ("int_val", pb.DT_INT32, [7], [7, 7, 7, 7]),
    ("string_val", pb.DT_STRING, [b"x", b"y"], [b"x", b"y", b"y", b"y"]),
    ("string_val", pb.DT_STRING, [b"x", b"\0y\0"], [b"x", b"\0y\0", b"\0y\0", b"\0y\0"]),
    ("string_val", pb.DT_STRING, [], [b"", b"", b"", b""]),
    ("bool_val", pb.DT_BOOL, [True], [True] * 4),
    ("half_val", pb.DT_HALF, [0x3C00], [1.0] * 4),
    ("int64_val", pb.DT_INT64, [1, 2, 3, 4, 5, 6], [1, 2, 3, 4]),
])
def test_a_typed_field_is_filled_with_its_last_value(
        field: str, dtype: int, given_values: list, expected: list) -> None:
    """PR16; a field that is too long is cut, as TensorFlow's reader does."""
    proto = pb.TensorProto(dtype=dtype)
    proto.tensor_shape.dim.add(size=4)
    getattr(proto, field).extend(given_values)
    assert tensors.to_array(proto).tolist() == expected


@pytest.mark.parametrize("size", [1, 3, 4, 5, 10])
def test_strings_are_filled_in_parts(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "_FILLED_AT_ONCE", 3)
    proto = pb.TensorProto(dtype=pb.DT_STRING, string_val=[b"x", b"y\0"])
    proto.tensor_shape.dim.add(size=size)
    assert tensors.to_array(proto).tolist() == [b"x", *[b"y\0"] * (size - 1)]


@pytest.mark.parametrize("texts", [[b"a\0", b""], [b"", b""], [b"x" * 300, b"\xff"]])
def test_PR15_strings_may_stand_in_content_as_tensorflows_cpp_packs_them(
        texts: list[bytes]) -> None:
    lengths = b"".join(bytes([len(text)]) if len(text) < 128 else
                       bytes([len(text) & 0x7F | 0x80, len(text) >> 7]) for text in texts)
    proto = _proto(dtype=pb.DT_STRING, tensor_content=lengths + b"".join(texts))
    assert tensors.to_array(proto).tolist() == texts


def test_unpacked_fields_are_read_too() -> None:
    """A sender may write repeated numbers one by one: tag 0x2d is field 5 as 32 bits."""
    proto = pb.TensorProto(dtype=pb.DT_FLOAT)
    proto.tensor_shape.dim.add(size=2)
    proto.MergeFromString(b"".join(b"\x2d" + np.float32(v).tobytes() for v in (1.5, -2.0)))
    assert tensors.to_array(proto).tolist() == [1.5, -2.0]


def _proto(**fields: object) -> pb.TensorProto:
    sizes = fields.pop("sizes", [2])
    proto = pb.TensorProto(**fields)
    for size in sizes:
        proto.tensor_shape.dim.add(size=size)
    return proto


@pytest.mark.parametrize(("proto", "message"), [
    (_proto(dtype=pb.DT_FLOAT, tensor_content=b"123"), "expected 8 bytes of content"),
    (_proto(dtype=pb.DT_FLOAT, sizes=[-1]), "known sizes >= 0, got [-1]"),
    (pb.TensorProto(dtype=pb.DT_FLOAT, tensor_shape=pb.TensorShapeProto(unknown_rank=True)),
     "got an unknown rank"),
    (_proto(dtype=pb.DT_RESOURCE), "got DT_RESOURCE"),
    (_proto(), "got DT_INVALID"),
    (pb.TensorProto(dtype=101), "got DT_FLOAT_REF"),
    (_proto(dtype=pb.DT_FLOAT, sizes=[2**40, 2**40]), "expected at most"),
    (_proto(dtype=pb.DT_FLOAT, sizes=[0, 2**62]), "expected at most"),
    (_proto(dtype=pb.DT_FLOAT, sizes=[0, 2**40, 0, 2**40]), "expected at most"),
    (_proto(dtype=pb.DT_STRING, sizes=[2**62, 0]), "expected at most"),
    (_proto(dtype=pb.DT_FLOAT, sizes=[1] * 40), "at most 32 dimensions"),
    (_proto(dtype=pb.DT_STRING, tensor_content=b"ab"), "content that lists 2 strings"),
    (_proto(dtype=pb.DT_STRING, tensor_content=b"\x01\x01a"), "content that lists 2 strings"),
    (_proto(dtype=pb.DT_STRING, tensor_content=b"\x01\x01abc"), "content that lists 2 strings"),
    (_proto(dtype=pb.DT_STRING, tensor_content=b"\x02\xfe" + b"\xff" * 20 + b"\x01ab"),
     "content that lists 2 strings"),
    (_proto(dtype=pb.DT_STRING, tensor_content=b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x03ab"),
     "content that lists 2 strings"),
    (_proto(dtype=pb.DT_STRING, sizes=[0], tensor_content=b"a"), "content that lists 0 strings"),
])
def test_a_broken_tensor_is_a_clear_error(proto: pb.TensorProto, message: str) -> None:
    with pytest.raises(ShapeError) as caught:
        tensors.to_array(proto, where="text")
    assert message in str(caught.value)


@pytest.mark.parametrize("row", dtypes.TABLE, ids=lambda row: row.name)
def test_an_empty_shape_may_have_large_sizes(row: dtypes.DType) -> None:
    largest = 2**60 // row.array.itemsize
    array = tensors.to_array(_proto(dtype=row.enum, sizes=[0, largest]))
    assert array.shape == (0, largest)
    with pytest.raises(ShapeError, match="expected at most"):
        tensors.to_array(_proto(dtype=row.enum, sizes=[0, largest + 1]))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_are_an_array_or_one_of_our_errors(data: bytes) -> None:
    proto = pb.TensorProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        return
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    if max(sizes, default=0) > 1000 and 0 not in sizes:
        return  # lawful, but megabytes each
    with contextlib.suppress(ShapeError):
        assert isinstance(tensors.to_array(proto), np.ndarray)


@settings(deadline=None, max_examples=300)
@given(dtype=st.integers(0, 140), sizes=st.lists(st.integers(-2, 4), max_size=4),
       content=st.binary(max_size=20), numbers=st.lists(st.integers(-2**31, 2**31 - 1), max_size=5),
       strings=st.lists(st.binary(max_size=3), max_size=5), unknown=st.booleans())
def test_any_fields_are_an_array_of_that_shape_or_one_of_our_errors(
        dtype: int, sizes: list[int], content: bytes, numbers: list[int], strings: list[bytes],
        unknown: bool) -> None:
    proto = pb.TensorProto(dtype=dtype, tensor_content=content, string_val=strings)
    proto.tensor_shape.unknown_rank = unknown
    for size in sizes:
        proto.tensor_shape.dim.add(size=size)
    for field in ("int_val", "half_val", "int64_val", "float_val", "scomplex_val", "dcomplex_val"):
        getattr(proto, field).extend(numbers)
    try:
        array = tensors.to_array(proto)
    except ShapeError:
        return
    assert array.shape == tuple(sizes)


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(-2**63, 2**63 - 1), st.integers(-200, 200)), max_size=40))
def test_varints_are_those_of_protobuf(numbers: list[int]) -> None:
    array = np.array(numbers, np.int64)
    message = pb.TensorProto(dtype=pb.DT_INT64, version_number=300, int64_val=numbers,
                             uint64_val=[1]).SerializeToString()
    packed = bytes(varint.find_field(message, 10))
    assert varint.encode(array) == packed
    assert varint.decode(packed).view(np.int64).tolist() == numbers
    again = pb.TensorProto.FromString(varint.field(10, packed))
    assert list(again.int64_val) == numbers
    assert bytes(varint.find_field(message, 17)) == b"\x01"
    assert bytes(varint.find_field(message, 9)) == b""


@pytest.mark.parametrize(("value", "dtype", "shape"), [
    (1.5, "float32", ()), ([1, 2], "int32", (2,)), ([2**40], "int64", (1,)), (True, "bool", ()),
    ([[1, 2.5]], "float32", (1, 2)), ("text", "object", ()), (["a", b"b\0"], "object", (2,)),
    (np.float64([1]), "float64", (1,)), (np.int8(3), "int8", ()), ([], "float32", (0,)),
    (1 + 2j, "complex128", ()), ([1, 2.0], "float32", (2,)), ([np.float64(1)], "float64", (1,)),
])
def test_plain_values_become_arrays(value: object, dtype: str, shape: tuple[int, ...]) -> None:
    array = tensors.as_array(value)
    assert (array.dtype.name, array.shape) == (dtype, shape)


@pytest.mark.parametrize("value", [[[1], [1, 2]], [object()], [2**70], [["a"], ["a", "b"]],
                                   [1, "a"], ["a", 1], np.array(["2020-01-01"], "datetime64[D]")])
def test_what_cannot_be_sent_is_refused_without_showing_it(value: object) -> None:
    with pytest.raises(ShapeError):
        tensors.to_proto(tensors.as_array(value))


def test_a_lone_surrogate_is_refused_without_the_text() -> None:
    with pytest.raises(ShapeError) as caught:
        tensors.to_proto(np.array(["fine", "secret\ud800"], dtype=object))
    assert "element 1 (7 characters)" in str(caught.value)
    assert "secret" not in str(caught.value) + str(caught.value.__cause__)
    assert caught.value.__cause__ is not None
    assert not hasattr(caught.value.__cause__, "object")


def test_a_cast_between_text_and_numbers_is_refused() -> None:
    with pytest.raises(ShapeError, match="expected values for float32, got object"):
        tensors.cast(np.array(["a"], dtype=object), "float32")
    with pytest.raises(ShapeError, match="dtype: expected one of"):
        tensors.to_proto(np.float32([1]), dtype="float33")
