"""Small files for LiteRT, written operation by operation: half of x plus two, sums, echoes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

NEEDED = "needs LiteRT: pip install 'tf_infer[server]'"
flatbuffers = pytest.importorskip("flatbuffers", reason=NEEDED)
schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason=NEEDED)

from flatbuffers import flexbuffers  # noqa: E402

from tf_infer.server.lite_servable import METADATA  # noqa: E402
from tf_infer.wire import serving_pb2  # noqa: E402

FLOAT, STRING = schema.TensorType.FLOAT32, schema.TensorType.STRING


def _tensor(name: str, shape: list[int], kind: int = FLOAT, buffer: int = 0) -> Any:
    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer = name, shape, kind, buffer
    return made


def _binary(code: int, options: str, inputs: list[int], output: int) -> Any:
    made = schema.OperatorT()
    made.opcodeIndex, made.inputs, made.outputs = code, inputs, [output]
    made.builtinOptionsType = getattr(schema.BuiltinOptions, options)
    made.builtinOptions = getattr(schema, f"{options}T")()
    return made


def _code(operator: int) -> Any:
    made = schema.OperatorCodeT()
    made.builtinCode = made.deprecatedBuiltinCode = operator
    made.version = 1
    return made


def _buffer(content: bytes) -> Any:
    made = schema.BufferT()
    made.data = list(content) or None
    return made


def _file(tensors: list[Any], inputs: list[int], outputs: list[int], operators: list[Any],
          constants: list[bytes], signatures: Mapping[str, serving_pb2.SignatureDef]) -> bytes:
    graph, model = schema.SubGraphT(), schema.ModelT()
    graph.tensors, graph.inputs, graph.outputs = tensors, inputs, outputs
    graph.operators = operators
    model.version, model.subgraphs = 3, [graph]
    model.operatorCodes = [_code(schema.BuiltinOperator.MUL), _code(schema.BuiltinOperator.ADD)]
    model.buffers = [_buffer(content) for content in (b"", *constants)]
    if signatures:
        told = schema.MetadataT()
        told.name, told.buffer = METADATA, len(model.buffers)
        table = flexbuffers.Builder()
        with table.Map():
            for name, definition in signatures.items():
                table.Key(name)
                table.String(definition.SerializeToString().decode("ascii"))
        model.metadata = [told]
        model.buffers.append(_buffer(bytes(table.Finish())))
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def half_plus_two(**signatures: serving_pb2.SignatureDef) -> bytes:
    """Return a file with y = x / 2 + 2, its tensors named as a converter of today names them."""
    return _file(
        [_tensor("x:0", [1]), _tensor("half", [1], buffer=1), _tensor("two", [1], buffer=2),
         _tensor("product", [1]), _tensor("y:0", [1])], [0], [4],
        [_binary(0, "MulOptions", [0, 1], 3), _binary(1, "AddOptions", [3, 2], 4)],
        [np.float32(0.5).tobytes(), np.float32(2).tobytes()], signatures)


def adder() -> bytes:
    """Return a file with sum = a + b."""
    return _file([_tensor(name, [2]) for name in ("a", "b", "sum")], [0, 1], [2],
                 [_binary(1, "AddOptions", [0, 1], 2)], [], {})


def echo() -> bytes:
    """Return a file that gives its strings back."""
    return _file([_tensor("text", [1], STRING)], [0], [0], [], [], {})
