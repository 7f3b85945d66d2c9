"""Requests like one that came before, read by their bytes: what is read is what a message says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.wirekit import damaged
from tf_infer.wire import messages, request_form, tensors, varint
from tf_infer.wire import serving_pb2 as pb

SHORT_BYTES = 2**14 - 1  # a length of two bytes
texts = st.one_of(st.binary(max_size=20), st.sampled_from([0, 100, 127, 128, 300, 9000]).map(bytes))


def text_request(text: bytes, shape: tuple[int, ...] = (1,), **named: Any) -> pb.PredictRequest:
    array = np.empty(shape, object)
    array[...] = text
    request: pb.PredictRequest = messages.predict_request(
        messages.ModelRef("m", **named), {"text": array}, outputs=("label", "score"))
    return request


def number_request(values: np.ndarray, *, content: bool) -> pb.PredictRequest:
    request = messages.predict_request(messages.ModelRef("m"), {})
    tensors.write(values, request.inputs["x"], content=content)
    return request


def form_of(request: pb.PredictRequest) -> request_form.RequestForm | None:
    return request_form.form_of(request.SerializeToString(), request)


@given(first=texts, other=texts, shape=st.sampled_from([(), (1,), (1, 1)]))
@settings(deadline=None)
def test_another_text_in_the_same_request_is_read_as_its_message_has_it(
        first: bytes, other: bytes, shape: tuple[int, ...]) -> None:
    form = form_of(text_request(first, shape))
    assert form is not None and form.name == "text"
    request = text_request(other, shape)
    found = form.array_in(request.SerializeToString())
    expected = tensors.to_array(request.inputs["text"])
    assert found is not None and found.dtype == expected.dtype and found.shape == expected.shape
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
def test_other_numbers_in_the_same_request_are_read_as_its_message_has_them(
        dtype: type, *, content: bool) -> None:
    values = np.arange(6).reshape(2, 3).astype(dtype)
    form = form_of(number_request(values, content=content))
    assert form is not None
    found = form.array_in(number_request(values + 1, content=content).SerializeToString())
    assert found is not None and found.dtype == dtype and np.array_equal(found, values + 1)
    longer = np.arange(8).reshape(2, 4).astype(dtype)
    assert form.array_in(number_request(longer, content=content).SerializeToString()) is None


def several() -> pb.PredictRequest:
    request = text_request(b"a")
    request.inputs["more"].CopyFrom(request.inputs["text"])
    return request


def shorter_than_its_shape() -> pb.PredictRequest:
    request = number_request(np.float32([1, 1]), content=False)
    del request.inputs["x"].float_val[1:]
    return request


@pytest.mark.parametrize("request_of", [
    several, shorter_than_its_shape, lambda: text_request(b"a", (2,)),
    lambda: text_request(b"", (0,)),
    lambda: number_request(np.int32([7]), content=False), lambda: pb.PredictRequest(),
    lambda: number_request(np.float32([]), content=True)],
    ids=["inputs", "shorter", "texts", "no text", "varints", "nothing", "no numbers"])
def test_of_other_requests_there_is_no_form(request_of: Any) -> None:
    assert form_of(request_of()) is None


def test_requests_that_ask_for_something_else_are_not_of_the_form() -> None:
    form, same = form_of(text_request(b"abc")), text_request(b"abc")
    assert form is not None
    others = [text_request(b"abc", version=3), text_request(b"abc", label="l"),
              text_request(b"abc", (1, 1)), several()]
    for change in ("outputs", "signature", "name", "input"):
        other = text_request(b"abc")
        if change == "outputs":
            other.output_filter.pop()
        elif change == "signature":
            other.model_spec.signature_name = "other"
        elif change == "name":
            other.model_spec.name = "n"
        else:
            other.inputs["t"].CopyFrom(other.inputs["text"])
            del other.inputs["text"]
        others.append(other)
    assert all(form.array_in(other.SerializeToString()) is None for other in others)
    assert form.array_in(same.SerializeToString()) is not None


@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_what_is_read_of_damaged_bytes_is_what_protobuf_reads_of_them(data: st.DataObject) -> None:
    request = text_request(b"x" * data.draw(st.sampled_from([5, 200])))
    form = form_of(request)
    wrong = damaged(data, request.SerializeToString(), [*range(20), 0x7F, 0x80, 0xFF])
    if not wrong:
        return
    assert form is not None
    found = form.array_in(wrong)
    if found is None:
        return
    try:
        read = pb.PredictRequest.FromString(wrong)
    except DecodeError:
        pytest.fail("protobuf refuses it")
    assert tensors.to_array(read.inputs["text"]).tolist() == found.tolist()
    request.inputs["text"].string_val[:] = found.tolist()
    assert read == request


def test_a_value_whose_length_has_three_bytes_is_left_to_the_message() -> None:
    form = form_of(text_request(b"abc"))
    assert form is not None
    small, large = (text_request(b"x" * size).SerializeToString() for size in (
        SHORT_BYTES - 100, SHORT_BYTES + 1))
    assert form.array_in(small) is not None and form.array_in(large) is None
    entry = varint.field(1, b"text") + varint.field(2, b"\x08\x07" + b"\x42\x83\x80\x00abc")
    assert form.array_in(varint.field(2, entry)) is None
