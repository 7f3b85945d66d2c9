"""REST predict: bodies as clients write them -> arrays, and arrays -> bodies (statements RP)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_infer.errors import Code, InvalidRequest, ServingError
from tf_infer.wire import rest, rest_arrays, rest_json
from tf_infer.wire import serving_pb2 as pb

FLOAT = {"x": pb.DT_FLOAT}
STRING = {"t": pb.DT_STRING}
BOTH = {"t": pb.DT_STRING, "x": pb.DT_FLOAT}


def read(body: bytes | dict[str, Any], inputs: dict[str, int]) -> tuple[rest.Arrays, rest.Form]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return rest.read_inputs(rest.read_body(raw), {
        name: pb.TensorInfo(dtype=dtype) for name, dtype in inputs.items()})


def array(body: bytes | dict[str, Any], inputs: dict[str, int]) -> np.ndarray:
    """Return the array of the one input."""
    arrays, _ = read(body, inputs)
    assert set(arrays) == set(inputs)
    return next(iter(arrays.values()))


def refused(body: bytes | dict[str, Any], inputs: dict[str, int],
            code: Code = Code.INVALID_ARGUMENT) -> str:
    with pytest.raises(ServingError) as caught:
        read(body, inputs)
    assert caught.value.code is code
    return caught.value.details


def written(form: rest.Form, **outputs: Any) -> Any:
    return json.loads(rest.write_outputs(outputs, form))


# ---------------------------------------------------------------------------- forms


def test_rp01_each_instance_is_a_row() -> None:
    arrays, form = read({"instances": [[1, 2], [3, 4], [5, 6]]}, FLOAT)
    assert form == "row"
    assert arrays["x"].dtype == np.float32
    assert arrays["x"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert written("row", y=arrays["x"]) == {"predictions": [[1, 2], [3, 4], [5, 6]]}


def test_rp02_columns_have_the_dimensions_as_written() -> None:
    arrays, form = read({"inputs": [[[1, 2], [3, 4], [5, 6]]]}, FLOAT)
    assert form == "column"
    assert arrays["x"].shape == (1, 3, 2)
    assert written("column", y=arrays["x"]) == {"outputs": [[[1, 2], [3, 4], [5, 6]]]}


def test_rp03_several_outputs_are_objects_in_rows_and_lists_in_columns() -> None:
    outputs = {"b": np.array([b"u", b"v"], object), "a": np.array([[1.5], [2]], np.float32)}
    assert written("row", **outputs) == {
        "predictions": [{"a": [1.5], "b": "u"}, {"a": [2.0], "b": "v"}]}
    assert written("column", **outputs) == {"outputs": {"a": [[1.5], [2.0]], "b": ["u", "v"]}}


def test_rp04_one_input_is_bare_or_named() -> None:
    for instances in ([1.5, 2.5], [{"x": 1.5}, {"x": 2.5}]):
        assert array({"instances": instances}, FLOAT).tolist() == [1.5, 2.5]
    arrays, _ = read({"instances": [{"t": "a", "x": [1, 2]}, {"x": [3, 4], "t": "b"}]}, BOTH)
    assert arrays["t"].tolist() == [b"a", b"b"]
    assert arrays["x"].tolist() == [[1, 2], [3, 4]]


def test_rp04_a_column_is_bare_or_named() -> None:
    for inputs in ([1.5], {"x": [1.5]}):
        assert array({"inputs": inputs}, FLOAT).tolist() == [1.5]
    arrays, _ = read({"inputs": {"t": "a", "x": [1, 2]}}, BOTH)
    assert (arrays["t"].shape, arrays["x"].shape) == ((), (2,))


def test_rp05_rows_need_exactly_the_signatures_keys() -> None:
    missing = refused({"instances": [{"t": "a", "x": 1}, {"t": "secret"}]}, BOTH)
    assert "Failed to process element: 1 of 'instances' list." in missing
    assert missing.endswith("keys must be equal to: t,x")
    assert "secret" not in missing
    unknown = refused({"instances": [{"t": "a", "x": 1, "z": 2}]}, BOTH)
    assert "Failed to process element: 0 key: z of 'instances' list." in unknown
    assert "does not have named input: z" in unknown


def test_rp06_columns_need_all_inputs_and_ignore_others() -> None:
    assert "Missing named input: x" in refused({"inputs": {"t": ["a"]}}, BOTH)
    arrays, _ = read({"inputs": {"t": ["a"], "x": [1], "z": {"deep": 1}}}, BOTH)
    assert set(arrays) == {"t", "x"}


def test_rp07_a_bare_list_cannot_feed_several_inputs() -> None:
    assert "instances is a plain list" in refused({"instances": [1, 2]}, BOTH)
    for inputs in ([1, 2], 1, {"b64": "aGVsbG8="}):
        assert "inputs is a plain value/list" in refused({"inputs": inputs}, BOTH)


def test_rp08_one_of_both_keys_is_needed() -> None:
    assert "expecting only one of" in refused({"instances": [1], "inputs": [1]}, FLOAT)
    assert refused({}, FLOAT) == "Missing 'inputs' or 'instances' key"


def test_rp09_instances_must_be_a_list_of_something() -> None:
    assert "Excepting 'instances' to be an list/array" in refused({"instances": 1}, FLOAT)
    assert "Excepting 'instances' to be an list/array" in refused({"instances": {"x": 1}}, FLOAT)
    assert "No values in 'instances' array" in refused({"instances": []}, FLOAT)


@pytest.mark.parametrize(("instances", "text"), [
    ([[1, 2], [3]], "Expecting tensor size: 2 but got: 1"),
    ([[1, 2], [3, 4], [[5, 6]]], "Expecting shape [2] but got: [1,2]"),
    ([1, [1]], "Expecting shape [] but got: [1]"),
    ([[], [1]], "Expecting tensor size: 0 but got: 1"),
])
def test_rp10_rows_must_be_of_one_shape(instances: list[Any], text: str) -> None:
    for body in (instances, [{"x": row} for row in instances]):
        assert text in refused({"instances": body}, FLOAT)


def test_names_of_outputs_are_written_as_they_are() -> None:
    outputs = {name: np.float32([1, 2]) for name in ("%s", '100%"', "é")}
    assert [json.loads(rest.write_outputs(outputs, "row")),
            json.loads(rest.write_outputs(outputs, "column"))] == [
        {"predictions": [dict.fromkeys(outputs, 1.0), dict.fromkeys(outputs, 2.0)]},
        {"outputs": {name: [1.0, 2.0] for name in outputs}}]


def test_rp11_rows_cannot_mix_objects_and_values() -> None:
    assert refused({"instances": [{"x": 1}, 2]}, FLOAT) == (
        "Expecting object but got list at item 1 of input list")
    assert refused({"instances": [["a"], {"t": ["b"]}]}, STRING) == (
        "Expecting value/list but got object at item 1 of input list")
    assert "at item 1 " in refused({"instances": [{"b64": "aa"}, {"t": "b"}]}, STRING)


@pytest.mark.parametrize(("inputs", "text"), [
    ([[1, 2], [3]], "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    ([1, [2]], "Encountered list at unexpected level: 1 expected < 1"),
    ([[1], 2], "found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
    ([[], [1]], "Encountered list at unexpected size: 1 at level: 1 expected size: 0"),
    ([[[1]], [2]], "found at incorrect level: 3"),
])
def test_rp12_ragged_lists_are_refused(inputs: list[Any], text: str) -> None:
    assert text in refused({"inputs": inputs}, FLOAT)
    assert refused({"instances": [inputs]}, FLOAT).startswith("Failed to process element: 0 ")


def test_rp13_rows_need_outputs_of_one_first_dimension() -> None:
    two, three, scalar = np.zeros(2), np.zeros((3, 1)), np.float32(1).reshape(())
    with pytest.raises(InvalidRequest, match="b has inconsistent batch size: 3 expecting: 2"):
        rest.write_outputs({"a": two, "b": three}, "row")
    with pytest.raises(InvalidRequest, match="b has no shape information"):
        rest.write_outputs({"a": two, "b": scalar}, "row")
    assert written("column", a=two, b=three, c=scalar) == {
        "outputs": {"a": [0, 0], "b": [[0], [0], [0]], "c": 1.0}}
    assert written("row", a=np.zeros((0, 2))) == {"predictions": []}


def test_rp14_the_signature_is_named_by_a_string() -> None:
    assert rest.read_body(b'{"signature_name": "other"}').signature == "other"
    assert rest.read_body(b"{}").signature == ""
    for name in ("5", "null", '["secret"]'):
        text = refused(b'{"signature_name": %s, "instances": [1]}' % name.encode(), FLOAT)
        assert "'signature_name' key must be a string value" in text
        assert "secret" not in text


def test_rp15_other_keys_are_ignored() -> None:
    assert array({"instances": [1], "extra": {"a": [None]}}, FLOAT).tolist() == [1]


def test_rp16_broken_bodies_are_refused() -> None:
    assert refused(b"", FLOAT) == "JSON Parse error: The document is empty"
    assert refused(b'{"instances": [1', FLOAT).startswith("JSON Parse error: ")
    assert refused(b"[1]", FLOAT).endswith("Is not object")


# ---------------------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", [pb.DT_FLOAT, pb.DT_DOUBLE])
def test_rp19_floats_take_every_number(dtype: int) -> None:
    body = b'{"instances": [1, 2.5, -3e2, NaN, Infinity, -Infinity, 123456789012345678901234]}'
    values = array(body, {"x": dtype})
    assert values.dtype == (np.float32 if dtype == pb.DT_FLOAT else np.float64)
    np.testing.assert_array_equal(values, np.array(
        [1, 2.5, -300, np.nan, np.inf, -np.inf, 123456789012345678901234.0], values.dtype))


def test_rp19_spellings_of_rapidjson_are_read_too() -> None:
    body = b'{"Inf": -Inf, "inputs": [Inf, -Inf, -NaN, Infinity, 1.5]} Inf'
    np.testing.assert_array_equal(array(body, FLOAT), np.array(
        [np.inf, -np.inf, np.nan, np.inf, 1.5], np.float32))
    body = b'{"Inf": Inf, "inputs": ["Inf \\" -NaN", "-Inf"]}'
    assert array(body, {"x": pb.DT_STRING}).tolist() == [b'Inf " -NaN', b"-Inf"]


@pytest.mark.parametrize("value", ["Info", "Infi", "-Infin", "+Inf", "nan", "-NaNa", "Inf1", "-I"])
def test_rp16_rp19_other_spellings_are_refused(value: str) -> None:
    assert refused(f'{{"inputs": [{value}]}}'.encode(), FLOAT).startswith("JSON Parse error: ")
    assert refused(f'{{"inputs": [Inf, {value}]}}'.encode(), FLOAT).startswith("JSON Parse error")


@pytest.mark.parametrize("value", ["null", "true", '"1"', "[[1]]", '{"a": 1}'])
def test_rp19_floats_take_nothing_else(value: str) -> None:
    text = refused(f'{{"inputs": [1.5, {value}]}}'.encode(), FLOAT)
    assert "is not of expected type: float" in text or "unexpected level" in text


INTEGERS = {"int8": (pb.DT_INT8, -2**31, 2**31 - 1), "int16": (pb.DT_INT16, -2**31, 2**31 - 1),
            "int32": (pb.DT_INT32, -2**31, 2**31 - 1), "uint8": (pb.DT_UINT8, -2**31, 2**31 - 1),
            "int64": (pb.DT_INT64, -2**63, 2**63 - 1), "uint32": (pb.DT_UINT32, 0, 2**32 - 1),
            "uint64": (pb.DT_UINT64, 0, 2**64 - 1)}


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("value", ["1.0", '"1"', "true", "null", "1e2", '{"b64": "aa"}', "NaN"])
def test_rp20_integers_need_json_integers(name: str, value: str) -> None:
    dtype = INTEGERS[name][0]
    text = refused(f'{{"inputs": [1, {value}]}}'.encode(), {"x": dtype})
    assert text.endswith(f"is not of expected type: {name}")


@pytest.mark.parametrize("name", INTEGERS)
def test_rp20_rp30_integers_out_of_range_are_refused(name: str) -> None:
    dtype, low, high = INTEGERS[name]
    values = array({"inputs": [low, high, 1]}, {"x": dtype})
    assert values.dtype.name == name
    span, lowest = 2 ** (8 * values.dtype.itemsize), np.iinfo(name).min
    assert values.tolist() == [(value - lowest) % span + lowest for value in (low, high, 1)]
    for beyond in (low - 1, high + 1, 10**30):
        text = refused({"inputs": [1, beyond]}, {"x": dtype})
        assert f"JSON Value: {beyond} Type: Number is not of expected type: {name}" in text


def test_rp21_bools_need_true_and_false() -> None:
    assert array({"inputs": [True, False]}, {"x": pb.DT_BOOL}).tolist() == [True, False]
    for value in (0, 1, "true", None):
        assert "is not of expected type: bool" in refused(
            {"inputs": [True, value]}, {"x": pb.DT_BOOL})


def test_rp22_strings_are_texts_or_base64() -> None:
    body = {"instances": ["ü\0", {"b64": "//4A"}, ""]}
    assert array(body, STRING).tolist() == ["ü\0".encode(), b"\xff\xfe\0", b""]
    assert array({"inputs": {"b64": "aGVsbG8="}}, STRING).tolist() == b"hello"
    nested = array({"instances": [[{"b64": "aGVsbG8="}], ["world"]]}, STRING)
    assert nested.tolist() == [[b"hello"], [b"world"]]
    for value in (1, None, True, 1.5):
        assert "is not of expected type: string" in refused({"inputs": ["a", value]}, STRING)


def test_rp23_bad_base64_is_refused() -> None:
    assert "Unable to base64 decode" in refused({"inputs": [{"b64": "!!"}]}, STRING)
    for value in ({"b64": "aa", "more": 1}, {"b64": 1}, {"text": "aa"}):
        assert "not formatted correctly for base64 data" in refused({"inputs": [value]}, STRING)


def test_rp24_base64_is_no_number() -> None:
    assert "is not of expected type: float" in refused({"instances": [{"b64": "aa"}]}, FLOAT)
    assert "is not of expected type: int32" in refused({"inputs": {"b64": "aa"}},
                                                       {"x": pb.DT_INT32})


OTHERS = {"half": (pb.DT_HALF, np.float16), "uint16": (pb.DT_UINT16, np.uint16),
          "complex64": (pb.DT_COMPLEX64, np.complex64),
          "complex128": (pb.DT_COMPLEX128, np.complex128)}


@pytest.mark.parametrize("name", [*OTHERS, "bfloat16", "resource"])
def test_rp29_other_dtypes_are_not_read(name: str) -> None:
    dtype = pb.DataType.Value(f"DT_{name.upper()}")
    text = refused({"inputs": [1.5]}, {"x": dtype}, Code.UNIMPLEMENTED)
    assert text == f"Conversion of JSON Value: 1.5 to type: {name}"
    text = refused({"instances": [1.5]}, {"x": dtype}, Code.INVALID_ARGUMENT)
    assert f"Error: UNIMPLEMENTED: Conversion of JSON Value: 1.5 to type: {name}" in text


@pytest.mark.parametrize("name", OTHERS)
def test_rp29_other_dtypes_are_not_written(name: str) -> None:
    for form in ("row", "column"):
        with pytest.raises(InvalidRequest,
                           match=f"Failed to write JSON value for tensor type: {name}$"):
            rest.write_outputs({"y": np.zeros(2, OTHERS[name][1])}, form)  # type: ignore[arg-type]


def test_rp29_bfloat16_is_not_written() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with pytest.raises(InvalidRequest, match="tensor type: bfloat16"):
        rest.write_outputs({"y": np.zeros(2, ml_dtypes.bfloat16)}, "column")


def test_rp31_a_scalar_column_has_no_dimension() -> None:
    assert array({"inputs": 1.5}, FLOAT).shape == ()
    assert array({"inputs": {"x": 2}}, FLOAT).tolist() == 2
    assert written("column", y=np.float32(1.5).reshape(())) == {"outputs": 1.5}


def test_rp32_a_signature_without_inputs_cannot_be_called() -> None:
    assert refused({"inputs": {}}, {}) == "Failed to get input map for signature: DEFAULT"
    assert refused({"inputs": {}, "signature_name": "s"}, {}) == (
        "Failed to get input map for signature: s")


def test_rp34_numbers_beyond_double_are_refused() -> None:
    for number in (b"1e400", b"-1e400", b"1" + b"0" * 400, b"1" + b"0" * 5000):
        for form in (b"instances", b"inputs"):
            for dtype in (pb.DT_FLOAT, pb.DT_DOUBLE, pb.DT_INT64):
                refused(b'{"%s": [Infinity, %s]}' % (form, number), {"x": dtype})
    assert "too big" in refused(b'{"inputs": [Infinity, 1e400]}', FLOAT)


def test_rp34_numbers_beyond_float32_become_infinite_or_zero() -> None:
    assert array({"instances": [1e300, -1e39, 1e-300, 16777217]}, FLOAT).tolist() == [
        np.inf, -np.inf, 0.0, 16777216.0]


def test_rp35_lists_may_be_empty_in_columns() -> None:
    assert array({"inputs": []}, FLOAT).shape == (0,)
    assert array({"inputs": [[], []]}, STRING).shape == (2, 0)
    assert array({"inputs": []}, {"x": pb.DT_INT32}).dtype == np.int32


def test_rp36_of_equal_keys_the_first_counts() -> None:
    assert array(b'{"instances": [1], "instances": [2, 3]}', FLOAT).tolist() == [1]
    assert array(b'{"instances": [{"x": 1, "x": 2}]}', FLOAT).tolist() == [1]
    assert array(b'{"inputs": {"x": 1, "x": 2}}', FLOAT).tolist() == 1


def test_rp36_of_an_input_named_twice_in_a_row_all_values_are_taken_until_the_rows_are_full(
        ) -> None:
    # AddInstanceItem appends, and the tensor's shape is what there are instances
    body = b'{"instances": [{"x": [1, 2], "x": [3, 4]}, {"x": [5, 6]}]}'
    assert array(body, FLOAT).tolist() == [[1, 2], [3, 4]]
    two = {"x": pb.DT_FLOAT, "y": pb.DT_FLOAT}
    found, _ = read(b'{"instances": [{"x": 1, "y": 2}, {"y": 3, "x": 4, "y": 5}]}', two)
    assert {name: value.tolist() for name, value in found.items()} == {"x": [1, 4], "y": [2, 3]}


def test_rp36_rp38_of_an_input_named_twice_in_a_row_both_values_must_fit() -> None:
    assert refused(b'{"instances": [{"x": 1, "x": "a"}]}', FLOAT).startswith(
        "Failed to process element: 0 key: x of 'instances' list. Error: ")
    assert refused(b'{"instances": [{"x": 1, "x": [2]}]}', FLOAT).endswith(
        "Expecting shape [] but got: [1]")


def test_rp23_rp24_an_object_with_equal_keys_is_no_value() -> None:
    twice = b'{"inputs": [{"b64": "aGk=", "b64": "aGk="}]}'
    assert refused(twice, STRING).endswith("not formatted correctly for base64 data")
    assert refused(twice, FLOAT).endswith("Type: Object is not of expected type: float")


def test_rp38_the_faulty_row_is_named() -> None:
    text = refused({"instances": [1, 2, "secret"]}, FLOAT)
    assert text == ("Failed to process element: 2 of 'instances' list. Error: INVALID_ARGUMENT: "
                    "JSON Value: <text of 6 characters> Type: String is not of expected type: "
                    "float")


@pytest.mark.parametrize("place", [0, 1, rest_arrays.BLOCK - 1, rest_arrays.BLOCK, 2_500])
def test_rp38_the_first_fault_is_found_among_many_rows(place: int) -> None:
    rows: list[Any] = [[1.0]] * 2_600
    rows[place] = ["x"]
    rows[-1] = [None]
    text = refused({"instances": rows}, FLOAT)
    assert text.startswith(f"Failed to process element: {place} ")
    rows = [{"x": row} for row in rows]
    assert f"element: {place} key: x" in refused({"instances": rows}, FLOAT)
    text = refused({"inputs": [row["x"] for row in rows]}, FLOAT)
    assert "Type: String" in text


def test_rp38_all_rows_are_held_against_the_first_one() -> None:
    rows = [[1.0]] * rest_arrays.BLOCK + [[1.0, 2.0]] * rest_arrays.BLOCK
    assert refused({"instances": rows}, FLOAT).endswith("Expecting tensor size: 1 but got: 2")
    assert f"element: {rest_arrays.BLOCK} " in refused({"instances": rows}, FLOAT)


def test_lists_nested_deeper_than_arrays_are_refused() -> None:
    deep = b"[" * 40 + b"]" * 40
    assert "at most 32 dimensions" in refused(b'{"inputs": %s}' % deep, FLOAT)


# ---------------------------------------------------------------------------- writing


def test_rp25_rp27_numbers_and_bools_are_written_by_their_dtype() -> None:
    body = rest.write_outputs({"y": np.array([3, 1e7, 0.1], np.float32)}, "row")
    assert body == b'{"predictions": [3.0, 1e+07, 0.1]}'
    assert rest.write_outputs({"y": np.array([True, False])}, "row") == (
        b'{"predictions": [true, false]}')
    for name, (_, low, high) in INTEGERS.items():
        values = np.array([max(low, np.iinfo(name).min), min(high, np.iinfo(name).max)], name)
        assert written("row", y=values) == {"predictions": values.tolist()}
        assert b"." not in rest.write_outputs({"y": values}, "row")


def test_rp26_nan_and_infinities_are_bare() -> None:
    values = np.array([np.nan, np.inf, -np.inf], np.float32)
    assert rest.write_outputs({"y": values}, "column") == b'{"outputs": [NaN, Infinity, -Infinity]}'


def test_rp28_outputs_called_bytes_are_base64() -> None:
    values = np.array([[b"hello"], [b"\xff\xfe"]], object)
    assert written("row", y_bytes=values) == {
        "predictions": [[{"b64": "aGVsbG8="}], [{"b64": "//4="}]]}
    assert written("row", bytes=np.array([b"a"], object)) == {"predictions": ["a"]}
    assert written("column", y=np.array([1.0]), y_bytes=np.array([b"a"], object)) == {
        "outputs": {"y": [1.0], "y_bytes": [{"b64": "YQ=="}]}}
    assert written("row", n_bytes=np.array([7])) == {"predictions": [7]}


def test_rp28_strings_keep_quotes_controls_and_all_scripts() -> None:
    texts = ['"\\/', "\0\x1f\n", "ü中😀"]
    values = np.array([text.encode() for text in texts], object)
    assert written("row", y=values) == {"predictions": texts}


def test_no_output_at_all_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="Cannot convert empty tensor map to JSON"):
        rest.write_outputs({}, "row")


# ---------------------------------------------------------------------------- fast = slow

leaf = st.one_of(st.integers(-2**40, 2**40), st.floats(width=32), st.sampled_from(
    ["a", None, True, {"b64": "aGVsbG8="}, {"x": 1}]))
value = st.recursive(leaf, lambda inner: st.lists(inner, max_size=3), max_leaves=8)


@given(st.lists(value, max_size=4), st.sampled_from([pb.DT_FLOAT, pb.DT_INT32, pb.DT_STRING]))
def test_reading_by_levels_equals_reading_value_by_value(items: list[Any], dtype: int) -> None:
    document = rest_json.parse(json.dumps({"inputs": items}).encode())
    given_value = document.members["inputs"]
    shape = rest_arrays._first_shape(given_value)
    fault = rest_arrays._first_fault(given_value, 0, shape, dtype, document)
    try:
        read_whole = rest_arrays.dense(given_value, dtype, document)
    except ServingError as error:
        assert fault is not None
        assert fault.details == error.details
    else:
        assert fault is None
        assert read_whole.shape == shape
        assert len(read_whole.reshape(-1)) == len(_flat(given_value))


def _flat(item: Any) -> list[Any]:
    return [leaf for part in item for leaf in _flat(part)] if isinstance(item, list) else [item]


@given(st.lists(value, min_size=1, max_size=5), st.booleans())
def test_rows_are_refused_with_the_text_of_an_element(items: list[Any], named: bool) -> None:
    body = {"instances": [{"x": item} for item in items] if named else items}
    try:
        arrays, _ = read(body, FLOAT)
    except ServingError as error:
        assert error.details.startswith(("Failed to process element: ", "Expecting "))
    else:
        assert len(arrays["x"]) == len(items)
