"""Our messages against TensorFlow's own: fields, bytes, and both import orders in one process.

Each import order is one process that runs this file as a script and prints what it counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorflow_serving", reason="needs the extra `models`")

ROOT = Path(__file__).resolve().parents[2]

# Ours that have no counterpart with generated Python code in tensorflow-serving-api: read from text
# files only, or gRPC's own.
WITHOUT_COUNTERPART = {"BatchingParameters", "PrometheusConfig", "MonitoringConfig", "SSLConfig",
                       "ModelWarmupOptions", "SessionBundleConfig",
                       "SavedModelBundleSourceAdapterConfig",
                       "HealthCheckRequest", "HealthCheckResponse"}


@pytest.mark.process
@pytest.mark.parametrize("order", ["ours first", "tensorflow first"])
def test_fields_and_bytes_are_those_of_tensorflow(order: str) -> None:
    done = subprocess.run([sys.executable, "-m", "tests.wire.test_equals_tensorflow", order],
                          cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    counted = json.loads(done.stdout.splitlines()[-1])
    assert counted["faults"] == []
    assert counted["messages"] > 60
    assert counted["tensors"] > 600
    assert set(counted["without"]) == WITHOUT_COUNTERPART


def main(order: str) -> None:
    if order == "ours first":
        from tf_infer.wire import serving_pb2
    import tensorflow
    import tensorflow_serving.apis.prediction_log_pb2
    import tensorflow_serving.apis.prediction_service_pb2  # noqa: F401

    if order != "ours first":
        from tf_infer.wire import serving_pb2
    faults: list[str] = []
    counted = {"messages": 0, "without": [], "faults": faults,
               "tensors": compare_tensors(tensorflow, faults)}
    compare_fields(serving_pb2, counted)
    print(json.dumps(counted))


def compare_fields(ours: Any, counted: dict[str, Any]) -> None:
    """Hold each field of each message of ours against TensorFlow's of the same name."""
    from google.protobuf import descriptor_pool
    from tensorflow.core.protobuf import saved_model_pb2  # noqa: F401
    from tensorflow_serving.apis import (  # noqa: F401
        classification_pb2,
        get_model_metadata_pb2,
        get_model_status_pb2,
        inference_pb2,
        model_management_pb2,
        predict_pb2,
        regression_pb2,
    )
    from tensorflow_serving.config import platform_config_pb2  # noqa: F401

    pool = descriptor_pool.Default()

    def theirs(name: str) -> Any:
        for package in ("tensorflow.serving.", "tensorflow.", "tensorflow.error."):
            for find in (pool.FindMessageTypeByName, pool.FindEnumTypeByName):
                try:
                    return find(package + name)
                except KeyError:
                    continue
        return None

    def walk(descriptor: Any) -> None:
        name = descriptor.full_name.removeprefix("tf_infer.wire.")
        other = theirs(name)
        if other is None:
            counted["without"].append(name)
            return
        counted["messages"] += 1
        for field in descriptor.fields:
            match = other.fields_by_number.get(field.number)
            if match is None or match.name != field.name or match.type != field.type or (
                    match.is_packed != field.is_packed):
                counted["faults"].append(f"{name}.{field.name} = {field.number}")
        for nested in descriptor.nested_types:
            if not nested.GetOptions().map_entry:
                walk(nested)
        for enum in descriptor.enum_types:
            compare_enum(enum, theirs(f"{name}.{enum.name}"))

    def compare_enum(enum: Any, other: Any) -> None:
        expected = {value.name: value.number for value in other.values}
        for value in enum.values:
            if expected.get(value.name) != value.number:
                counted["faults"].append(f"{enum.full_name}.{value.name}")

    for descriptor in ours.DESCRIPTOR.message_types_by_name.values():
        walk(descriptor)
    for enum in ours.DESCRIPTOR.enum_types_by_name.values():
        compare_enum(enum, theirs(enum.name))


def compare_tensors(tf: Any, faults: list[str]) -> int:
    """Hold bytes and values against TensorFlow's C++ and Python; return how many were held."""
    import numpy as np
    from tensorflow.core.framework import tensor_pb2

    from tf_infer.wire import dtypes, tensors

    random = np.random.default_rng(0)
    count = 0
    for row in dtypes.TABLE:
        if row.name.startswith(("q", "bfloat")):
            continue
        kind = tf.as_dtype(row.enum)
        for shape in ((), (1,), (2,), (7,), (0,), (0, 3), (3, 0), (2, 3), (1, 1), (2, 1, 3)):
            array = sample(random, row, shape)
            # content: what C++ writes; typed fields: what Python writes; and C++ reads both of ours
            for content in (True, False):
                mine = tensors.to_proto(array, content=content).SerializeToString()
                other = tensor_pb2.TensorProto.FromString(mine)
                typed = tensor_pb2.TensorProto(dtype=kind.as_datatype_enum,
                                               tensor_shape=other.tensor_shape)
                if content and array.size and row.form != "strings":
                    typed.tensor_content = array.tobytes()
                else:
                    getattr(typed, row.field).extend(numbers(array, row))
                if typed.SerializeToString() != mine:
                    faults.append(f"bytes of {row.name} {shape} content={content}")
                read = np.asarray(tf.io.parse_tensor(mine, kind).numpy(), array.dtype)
                if not np.array_equal(read, array) or read.shape != array.shape:
                    faults.append(f"C++ reads {row.name} {shape} content={content}")
                if not np.array_equal(tf.make_ndarray(other), array):
                    faults.append(f"make_ndarray {row.name} {shape} content={content}")
                count += 1
            made = tf.make_tensor_proto(array, dtype=kind).SerializeToString()
            cpp = tf.io.serialize_tensor(tf.constant(array, kind)).numpy()
            for data, who in ((made, "make_tensor_proto"), (cpp, "C++ writes")):
                back = None
                try:
                    back = tensors.to_array(tensor_pb2.TensorProto.FromString(data))
                except Exception as error:
                    faults.append(f"{who} {row.name} {shape}: {error}")
                if back is not None and not np.array_equal(back, array):
                    faults.append(f"{who} {row.name} {shape}")
                count += 1
    count += compare_short_fields(tf, faults)
    return count


def compare_short_fields(tf: Any, faults: list[str]) -> int:
    """PR16 and its edges: what C++ reads from typed fields of the wrong length."""
    import numpy as np
    from tensorflow.core.framework import tensor_pb2

    from tf_infer.wire import tensors

    count = 0
    for field, dtype in (("float_val", tf.float32), ("int_val", tf.int8), ("int64_val", tf.int64),
                         ("half_val", tf.half), ("bool_val", tf.bool), ("string_val", tf.string),
                         ("uint64_val", tf.uint64), ("double_val", tf.float64)):
        for given in range(7):
            proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
            proto.tensor_shape.dim.add(size=4)
            values = [b"ab"[:n] if dtype == tf.string else n % 2 if dtype == tf.bool else n
                      for n in range(1, given + 1)]
            getattr(proto, field).extend(values)
            expected = tf.io.parse_tensor(proto.SerializeToString(), dtype).numpy()
            if not np.array_equal(tensors.to_array(proto), expected):
                faults.append(f"{field} with {given} of 4")
            count += 1
    return count


def sample(random: Any, row: Any, shape: tuple[int, ...]) -> Any:
    """Return random values of a dtype; halves of whole numbers, which all floats hold."""
    import numpy as np

    if row.form == "strings":
        array = np.empty(int(np.prod(shape)), dtype=object)
        array[:] = [bytes(random.integers(0, 256, 5, dtype=np.uint8)) for _ in array]
        return array.reshape(shape)
    if row.array.kind in "iu":
        info = np.iinfo(row.array)
        return random.integers(info.min, info.max, shape, dtype=row.array, endpoint=True)
    whole = random.integers(-100, 100, shape)
    if row.array.kind == "b":
        return whole > 0
    return (whole / 2 + (1j * whole if row.array.kind == "c" else 0)).astype(row.array)


def numbers(array: Any, row: Any) -> list[Any]:
    """Return the values of a typed field, number by number."""
    import numpy as np

    flat = array.reshape(-1)
    if row.form == "bits":
        return flat.view(np.uint16).tolist()
    if row.array.kind == "c":
        return [part for one in flat.tolist() for part in (one.real, one.imag)]
    return flat.tolist()


if __name__ == "__main__":
    main(sys.argv[1])
