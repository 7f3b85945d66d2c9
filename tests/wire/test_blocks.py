"""Large tensors cut out of a response mean what protobuf reads; the rest is left to protobuf."""

from __future__ import annotations

import itertools
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_infer.errors import InvalidRequest, ShapeError
from tf_infer.wire import blocks, dtypes, messages, tensors, varint
from tf_infer.wire import serving_pb2 as pb
from tf_infer.wire.messages import ModelRef

ROWS = [row for row in dtypes.TABLE if row.form != "strings"]


def numbers(row: dtypes.DType, count: int) -> np.ndarray:
    random = np.random.default_rng(3)
    if row.array.kind in "iu":
        info = np.iinfo(row.array)
        return random.integers(info.min, info.max, count, dtype=row.array, endpoint=True)
    return (random.normal(size=count) + (2j if row.array.kind == "c" else 0)).astype(row.array)


def response(**outputs: Any) -> bytes:
    message = pb.PredictResponse(model_spec=messages.model_spec(ModelRef("m", version=3), "s"))
    for name, proto in outputs.items():
        message.outputs[name].CopyFrom(proto)
    return bytes(message.SerializeToString())


def read(data: bytes) -> dict[str, np.ndarray]:
    return messages.read_predict_response(data, where="answer").outputs


@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_dtype_is_cut_and_comes_back_bit_for_bit(row: dtypes.DType, content: bool) -> None:
    proto = pb.TensorProto(dtype=row.enum)
    proto.tensor_shape.dim.add(size=17_000)
    values = numbers(row, 17_000)
    if content:
        proto.tensor_content = values.tobytes()
    else:
        packed = values.tobytes() if row.form == "raw" else varint.encode(
            values.view(np.uint16) if row.form == "bits" else values)
        proto.MergeFromString(varint.field(
            proto.DESCRIPTOR.fields_by_name[row.field].number, packed))
    small = tensors.to_proto(np.float32([1, 2]))
    data = response(y=proto, z=small, a=tensors.to_proto(np.array([b"x\0", b""], object)))
    left, found = blocks.cut(data)
    assert list(found) == ["y"]
    assert len(left) < 300
    answer = messages.read_predict_response(data, where="answer")
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("m", 3)
    assert list(answer.outputs) == ["a", "y", "z"]
    whole = tensors.to_array(proto)
    assert answer.outputs["y"].dtype == whole.dtype
    assert answer.outputs["y"].tobytes() == whole.tobytes()
    assert answer.outputs["y"].flags.aligned
    assert answer.outputs["z"].tolist() == [1, 2]
    assert answer.outputs["a"].tolist() == [b"x\0", b""]


def test_a_field_shorter_than_the_shape_is_filled_up() -> None:
    proto = tensors.to_proto(np.arange(5000, dtype=np.float32), content=False)
    proto.tensor_shape.dim[0].size = 5002
    assert blocks.cut(response(y=proto))[1]
    assert read(response(y=proto))["y"][-3:].tolist() == [4999, 4999, 4999]


def test_numbers_of_another_dtypes_field_do_not_count() -> None:
    proto = tensors.to_proto(np.arange(5000, dtype=np.float32), content=False)
    proto.dtype = pb.DT_DOUBLE
    assert blocks.cut(response(y=proto))[1]
    assert not read(response(y=proto))["y"].any()


def test_small_responses_and_strings_are_left_alone() -> None:
    text = tensors.to_proto(np.array([b"x" * 50_000], object))
    for data in (response(y=tensors.to_proto(np.float32([1.0]))), response(y=text)):
        assert blocks.cut(data)[1] == {}
    assert read(response(y=text))["y"].tolist() == [b"x" * 50_000]


LARGE = np.arange(5000, dtype=np.float32)
FLOATS = 5


def twice() -> bytes:
    """The same output in two entries: the later one wins, as in every protobuf map."""
    return response(y=tensors.to_proto(LARGE)) + response(y=tensors.to_proto(LARGE + 1))


def in_two_parts() -> bytes:
    proto = pb.TensorProto(dtype=pb.DT_FLOAT)
    proto.tensor_shape.dim.add(size=10_000)
    part = varint.field(FLOATS, LARGE.tobytes())
    entry = varint.field(1, b"y") + varint.field(2, proto.SerializeToString() + part + part)
    return varint.field(1, entry)


def not_packed() -> bytes:
    proto = pb.TensorProto(dtype=pb.DT_FLOAT)
    proto.tensor_shape.dim.add(size=5000)
    one_by_one = b"".join(bytes([FLOATS << 3 | 5]) + value.tobytes() for value in LARGE)
    entry = varint.field(1, b"y") + varint.field(2, proto.SerializeToString() + one_by_one)
    return varint.field(1, entry)


@pytest.mark.parametrize(("data", "expected"), [
    (twice(), LARGE + 1), (in_two_parts(), np.concatenate([LARGE, LARGE])), (not_packed(), LARGE)],
    ids=["twice", "two parts", "not packed"])
def test_unusual_forms_are_left_to_protobuf(data: bytes, expected: np.ndarray) -> None:
    assert blocks.cut(data)[1] == {}
    np.testing.assert_array_equal(read(data)["y"], expected)


def entry(tensor: bytes, *, name: bytes = b"y") -> bytes:
    """An output as it stands in a response."""
    return varint.field(1, varint.field(1, name) + varint.field(2, tensor))


CONTENT, STRINGS = 4, 8
SHAPE = varint.field(2, varint.field(2, b"\x08\x88\x27"))  # [5000]
DTYPE = bytes([1 << 3, pb.DT_FLOAT])
LOW = 64  # bytes from which on a block is cut, where every example is small


@st.composite
def tensor(draw: st.DrawFn) -> bytes:
    """A tensor of 12 floats or more, whose fields come in any order and any number."""
    parts = [DTYPE, varint.field(2, varint.field(2, b"\x08\x0c"))]
    for start, count in draw(st.lists(st.tuples(
            st.integers(0, 9), st.sampled_from([3, 24, 12, 16, 0])), min_size=1, max_size=4)):
        block = LARGE[start:start + count].tobytes()
        parts.append(draw(st.sampled_from([
            varint.field(FLOATS, block), varint.field(FLOATS, block), varint.field(FLOATS, block),
            varint.field(CONTENT, block), varint.field(STRINGS, block),
            bytes([FLOATS << 3 | 5]) + LARGE[7:8].tobytes(),
            varint.field(600, block), varint.field(2, varint.field(2, b"\x08\x02"))])))
    return b"".join(draw(st.permutations(parts)))


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    """Outputs of a few names; some entries are not a key and a value."""
    parts = [varint.field(2, varint.field(1, b"m"))]
    for name in draw(st.lists(st.sampled_from([b"a", b"b", b"y"]), min_size=1, max_size=2)):
        key, value = varint.field(1, name), varint.field(2, draw(tensor()))
        forms = [[key, value]] * 5 + [[value, key], [key, value, value], [value],
                                      [b"\x0d" + b"name", value]]
        parts.append(varint.field(1, b"".join(draw(st.sampled_from(forms)))))
    return b"".join(draw(st.permutations(parts)))


@settings(deadline=None, max_examples=300)
@given(data=responses())
def test_fields_in_any_order_and_number_are_read_as_protobuf_reads_them(data: bytes) -> None:
    with mock.patch.object(blocks, "SMALLEST_BYTES", LOW):
        try:
            expected = tensors.read_all(pb.PredictResponse.FromString(data).outputs)
        except ShapeError:
            with pytest.raises(ShapeError):
                read(data)
            return
        got = read(data)
    assert list(got) == list(expected)
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name])


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=4))
def test_a_packed_field_in_several_blocks_keeps_all_of_them(cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), 40]
    parts = [varint.field(FLOATS, LARGE[start:end].tobytes())
             for start, end in itertools.pairwise(ends)]
    data = entry(DTYPE + varint.field(2, varint.field(2, b"\x08\x28")) + b"".join(parts))
    with mock.patch.object(blocks, "SMALLEST_BYTES", LOW):
        assert bool(blocks.cut(data)[1]) == (not cuts)
        np.testing.assert_array_equal(read(data)["y"], LARGE[:40])


def test_a_second_content_replaces_the_first() -> None:
    data = entry(DTYPE + varint.field(2, varint.field(2, b"\x08\x01"))
                 + varint.field(CONTENT, LARGE.tobytes())
                 + varint.field(CONTENT, LARGE[3:4].tobytes()))
    assert read(data)["y"].tolist() == [3]


def test_strings_are_not_walked_over_and_do_not_keep_others_from_being_cut(
        monkeypatch: pytest.MonkeyPatch) -> None:
    text = tensors.to_proto(np.array([b"token"] * 10_000, object))
    data = response(a=text, y=tensors.to_proto(LARGE), z=text)
    walked, read_one = itertools.count(), varint.read_one

    def counted(view: memoryview, place: int) -> tuple[int, int]:
        next(walked)
        return read_one(view, place)

    monkeypatch.setattr(varint, "read_one", counted)
    assert list(blocks.cut(data)[1]) == ["y"]
    assert next(walked) < 100


@pytest.mark.parametrize("header", [
    b"\xa2\x80\x80\x80\x80\x00" + b"\xa0\x9c\x01",
    b"\x22" + b"\xa0\x9c\x81\x80\x80\x00"], ids=["tag", "length"])
def test_tags_and_lengths_that_protobuf_refuses_are_not_cut(header: bytes) -> None:
    data = entry(SHAPE + DTYPE + header + LARGE.tobytes())
    assert blocks.cut(data)[1] == {}


def test_damage_is_told_as_protobuf_tells_it_or_read_as_protobuf_reads_it() -> None:
    whole = response(y=tensors.to_proto(np.arange(5000, dtype=np.int32), content=False),
                     z=tensors.to_proto(LARGE))
    random = np.random.default_rng(1)
    for _ in range(300):
        data = bytearray(whole)
        for place in random.integers(0, len(data), 2):
            data[place] = random.integers(0, 256)
        damaged = bytes(data[:random.integers(len(data) // 2, len(data))]
                        if random.random() < 0.5 else data)
        try:
            message = pb.PredictResponse.FromString(damaged)
        except Exception:
            with pytest.raises((InvalidRequest, ShapeError)):
                read(damaged)
            continue
        try:
            expected = tensors.read_all(message.outputs)
        except ShapeError:
            with pytest.raises(ShapeError):
                read(damaged)
            continue
        got = read(damaged)
        assert list(got) == list(expected)
        for name in expected:
            assert got[name].tobytes() == expected[name].tobytes()


def test_varints_that_are_none_are_refused() -> None:
    for packed in (b"\x80", b"\x01\x80", b"\x80" * 10 + b"\x01"):
        with pytest.raises(ValueError, match="one to ten bytes"):
            varint.decode(packed)
