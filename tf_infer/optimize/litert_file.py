"""Write a LiteRT model file operation by operation: graphs of fixed shapes that share weights.

TensorFlow's converter takes a minute and many gigabytes for 124 million weights, once more for each
shape, and leaves little say in layout and precision. Here a graph of one shape costs milliseconds,
and fifty of them hold one copy of the weights.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from tf_infer.errors import ConfigError

Op = schema.BuiltinOperator
_TYPES = {"float32": schema.TensorType.FLOAT32, "int32": schema.TensorType.INT32,
          "int8": schema.TensorType.INT8}
_MOVES = {"float32": 1, "int32": 1, "int8": 2}  # version of what moves numbers, by type
# Offsets in the file are 32 bits, of which the runtime uses 31.
MAX_BYTES = 2**31 - 2**24
WIDEST = 2**30  # of a bias in int32, so that a sum has room beside it
# Of a file with more the runtime's check says that it is none: 996,697 are read, 1,091,135 are not.
MOST_TABLES = 1_000_000


class Tensor(NamedTuple):
    """A tensor of one graph; of int8 a `unit` says what its whole numbers stand for."""

    place: int
    shape: tuple[int, ...]
    dtype: str = "float32"
    unit: Scales | None = None


class Constant(NamedTuple):
    """Numbers in the file, for any graph: int8 [N, ...] with one scale a row, or as they are."""

    buffer: int
    shape: tuple[int, ...]
    dtype: str
    scales: Scales | None


class End(NamedTuple):
    """How many of each there are in a file."""

    graphs: int
    buffers: int
    codes: int


class Scales(schema.QuantizationParametersT):
    """Scales of the rows of a constant; they stand in the file once, however many graphs use them.

    A file is written once: what is kept here is a place in that file.

    Args:
        scales: [N] float32.
        zero: whole number that stands for 0.
    """

    def __init__(self, scales: np.ndarray, zero: int = 0) -> None:
        super().__init__()
        self.scale = scales
        self.zeroPoint = np.full(len(scales), zero, np.int64)
        self.quantizedDimension = 0
        self._place: int | None = None

    def Pack(self, builder: Any) -> int:
        """Write it, or return where it was written."""
        if self._place is None:
            self._place = super().Pack(builder)
        return self._place


@dataclass(slots=True)
class ModelFile:
    """Constants and graphs; `write` makes the file's bytes of them."""

    buffers: list[np.ndarray | None] = field(default_factory=lambda: [None])
    graphs: list[GraphWriter] = field(default_factory=list)
    codes: dict[tuple[int, int], int] = field(default_factory=dict)
    known: dict[tuple[str, tuple[int, ...], bytes], Constant] = field(default_factory=dict)
    whole: Scales = field(default_factory=lambda: Scales(np.ones(1, np.float32)))

    def constant(self, array: np.ndarray) -> Constant:
        """Add float32 or int32 numbers; those that are there already are not added again."""
        array = np.ascontiguousarray(array)
        key = (array.dtype.name, array.shape, hashlib.sha256(array.data).digest())
        if key not in self.known:
            self.buffers.append(array.reshape(-1).view(np.uint8))
            self.known[key] = Constant(len(self.buffers) - 1, array.shape, array.dtype.name, None)
        return self.known[key]

    def quantized(self, array: np.ndarray, least: np.ndarray | float = 0.0) -> Constant:
        """Add [N, D] float32 as int8 with one scale a row, symmetric, not below `least` [N]."""
        values, scales = quantize_rows(array, least)
        self.buffers.append(values.reshape(-1).view(np.uint8))
        return Constant(len(self.buffers) - 1, array.shape, "int8", Scales(scales))

    def whole_bias(self, bias: np.ndarray, kernel: Constant, read: Scales) -> Constant:
        """Add [N] float32 as int32, in units of a product of int8 with the rows of a kernel."""
        assert kernel.scales is not None
        scales = kernel.scales.scale * read.scale
        values = np.rint(bias / scales.astype(np.float64)).clip(-WIDEST, WIDEST).astype(np.int32)
        self.buffers.append(values.view(np.uint8))
        return Constant(len(self.buffers) - 1, bias.shape, "int32", Scales(scales))

    def graph(self, name: str) -> GraphWriter:
        """Begin a graph, which becomes the signature `name`."""
        self.graphs.append(GraphWriter(self, name))
        return self.graphs[-1]

    def code(self, operator: int, version: int) -> int:
        """Return the place of an operator in the file's table."""
        return self.codes.setdefault((operator, version), len(self.codes))

    @property
    def tables(self) -> int:
        """Tables of the format that a reader meets, each as often as it is named."""
        return (1 + len(self.buffers) + len(self.codes)
                + sum(graph.tables for graph in self.graphs))

    @property
    def end(self) -> End:
        """How much is there; for `cut`."""
        return End(len(self.graphs), len(self.buffers), len(self.codes))

    def cut(self, end: End) -> None:
        """Take away all that came behind `end`; no constant among it may be used any more."""
        del self.graphs[end.graphs:], self.buffers[end.buffers:]
        self.codes = dict(itertools.islice(self.codes.items(), end.codes))
        self.known = {key: one for key, one in self.known.items() if one.buffer < end.buffers}

    def write(self) -> bytearray:
        """Return the file.

        Raises:
            ConfigError: it would be larger than the format allows, or than LiteRT reads.
        """
        size = sum(0 if buffer is None else buffer.nbytes for buffer in self.buffers)
        if size > MAX_BYTES:
            raise ConfigError(f"engine: expected weights of at most {MAX_BYTES:,} bytes, got "
                              f"{size:,}. Take precision int8, or a smaller network.")
        if self.tables > MOST_TABLES:
            raise ConfigError(f"engine: expected at most {MOST_TABLES:,} tables, got "
                              f"{self.tables:,}. Take fewer positions, rows or chunks.")
        model = schema.ModelT()
        model.version = 3
        model.description = "tf_infer"
        model.operatorCodes = [_code(*one) for one in self.codes]
        model.subgraphs = [graph.subgraph for graph in self.graphs]
        model.signatureDefs = [graph.signature(index) for index, graph in enumerate(self.graphs)]
        model.buffers = []
        for buffer in self.buffers:
            model.buffers.append(schema.BufferT())
            model.buffers[-1].data = buffer
        # Room for everything at once: growing would copy the file each time.
        builder = flatbuffers.Builder(size + 2**22 + 2**18 * len(self.graphs))
        builder.Finish(model.Pack(builder), b"TFL3")
        written: bytearray = builder.Output()
        return written


class GraphWriter:
    """One graph: inputs, operations, outputs. Every shape is known."""

    def __init__(self, file: ModelFile, name: str) -> None:
        self.file = file
        self.name = name
        self.subgraph = schema.SubGraphT()
        self.subgraph.name = name
        self.subgraph.tensors = []
        self.subgraph.operators = []
        self.subgraph.inputs = []
        self.subgraph.outputs = []
        self._names: dict[str, list[tuple[str, int]]] = {"inputs": [], "outputs": []}
        self._constants: dict[int, Tensor] = {}

    def input(self, name: str, shape: Sequence[int], dtype: str = "float32") -> Tensor:
        """Add an input."""
        tensor = self._tensor(name, shape, dtype)
        self.subgraph.inputs.append(tensor.place)
        self._names["inputs"].append((name, tensor.place))
        return tensor

    def output(self, name: str, tensor: Tensor) -> None:
        """Make a tensor an output."""
        self.subgraph.outputs.append(tensor.place)
        self._names["outputs"].append((name, tensor.place))

    @property
    def tables(self) -> int:
        """Tables of the format: the graph and its signature, and what they name."""
        named = sum(len(pairs) for pairs in self._names.values())
        tensors = sum(1 + (one.quantization is not None) for one in self.subgraph.tensors)
        operators = sum(1 + (one.builtinOptions is not None) for one in self.subgraph.operators)
        return 2 + named + tensors + operators

    def signature(self, index: int) -> Any:
        """Return the signature of this graph, the `index`-th of its file."""
        made = schema.SignatureDefT()
        made.signatureKey = self.name
        made.subgraphIndex = index
        for side, pairs in self._names.items():
            maps = []
            for name, tensor in pairs:
                maps.append(schema.TensorMapT())
                maps[-1].name, maps[-1].tensorIndex = name, tensor
            setattr(made, side, maps)
        return made

    def op(self, operator: int, inputs: Sequence[Tensor | Constant], shape: Sequence[int],
           options: Any = None, *, version: int = 1, dtype: str = "float32",
           unit: Scales | None = None) -> Tensor:
        """Add an operation with one output of `shape`; of int8 in a `unit`, 1 if there is none."""
        made = schema.OperatorT()
        made.opcodeIndex = self.file.code(operator, version)
        made.inputs = [self._index(one) for one in inputs]
        result = self._tensor(f"t{len(self.subgraph.tensors)}", shape, dtype, quantization=unit)
        made.outputs = [result.place]
        if options is not None:
            made.builtinOptions = options
            kind = type(options).__name__.removesuffix("T")
            made.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        self.subgraph.operators.append(made)
        return result

    # ------------------------------------------------------------------ operations

    def add(self, left: Tensor, right: Tensor | Constant) -> Tensor:
        """left + right, broadcast."""
        return self.op(Op.ADD, [left, right], _broadcast(left, right), schema.AddOptionsT())

    def subtract(self, left: Tensor, right: Tensor | Constant) -> Tensor:
        """left - right, broadcast."""
        return self.op(Op.SUB, [left, right], _broadcast(left, right), schema.SubOptionsT())

    def multiply(self, left: Tensor, right: Tensor | Constant) -> Tensor:
        """left * right, broadcast."""
        return self.op(Op.MUL, [left, right], _broadcast(left, right), schema.MulOptionsT())

    def divide(self, left: Tensor, right: Tensor | Constant) -> Tensor:
        """left / right, broadcast."""
        return self.op(Op.DIV, [left, right], _broadcast(left, right), schema.DivOptionsT())

    def absolute(self, tensor: Tensor) -> Tensor:
        """The size of each number."""
        return self.op(Op.ABS, [tensor], tensor.shape, schema.AbsOptionsT())

    def to_int8(self, tensor: Tensor, unit: Scales | None = None) -> Tensor:
        """The nearest whole number of units, -128 .. 127."""
        return self.op(Op.QUANTIZE, [tensor], tensor.shape, schema.QuantizeOptionsT(),
                       dtype="int8", unit=unit)

    def to_float(self, tensor: Tensor) -> Tensor:
        """What was int8."""
        return self.op(Op.DEQUANTIZE, [tensor], tensor.shape, schema.DequantizeOptionsT(),
                       version=2)

    def mean(self, tensor: Tensor, axis: int) -> Tensor:
        """Mean over one axis, which stays as 1."""
        return self._reduce(Op.MEAN, tensor, axis)

    def sum(self, tensor: Tensor, axis: int) -> Tensor:
        """Sum over one axis, which stays as 1."""
        return self._reduce(Op.SUM, tensor, axis)

    def largest(self, tensor: Tensor, axis: int) -> Tensor:
        """Maximum over one axis, which stays as 1."""
        return self._reduce(Op.REDUCE_MAX, tensor, axis)

    def rsqrt(self, tensor: Tensor) -> Tensor:
        """1 / sqrt(tensor)."""
        return self.op(Op.RSQRT, [tensor], tensor.shape)

    def at_least(self, tensor: Tensor, least: Constant) -> Tensor:
        """The larger of both, broadcast."""
        return self.op(Op.MAXIMUM, [tensor, least], _broadcast(tensor, least),
                       schema.MaximumMinimumOptionsT())

    def activation(self, tensor: Tensor, name: str) -> Tensor:
        """One of networks.encoder_arrays.HeadActivation, of which those of layers are a part."""
        if name == "linear":
            return tensor
        if name == "silu":
            return self.multiply(tensor, self.op(Op.LOGISTIC, [tensor], tensor.shape))
        plain = {"relu": Op.RELU, "tanh": Op.TANH, "sigmoid": Op.LOGISTIC}
        if name in plain:
            return self.op(plain[name], [tensor], tensor.shape)
        options = schema.GeluOptionsT()
        options.approximate = name == "gelu_tanh"
        return self.op(Op.GELU, [tensor], tensor.shape, options)

    def softmax(self, tensor: Tensor) -> Tensor:
        """Over the last axis."""
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        return self.op(Op.SOFTMAX, [tensor], tensor.shape, options)

    def reshape(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """Same numbers, another shape."""
        if tuple(shape) == tensor.shape:
            return tensor
        return self._reshape(tensor, shape)

    def as_it_is(self, tensor: Tensor) -> Tensor:
        """Same numbers, same shape, by an operation all the same."""
        return self._reshape(tensor, tensor.shape)

    def transpose(self, tensor: Tensor, order: Sequence[int]) -> Tensor:
        """Axes in another order."""
        shape = [tensor.shape[axis] for axis in order]
        moved = [axis for axis in order if tensor.shape[axis] > 1]
        if moved == sorted(moved):  # nothing but axes of size 1 changes place
            return self.reshape(tensor, shape)
        return self.op(Op.TRANSPOSE, [tensor, self._ints(order)], shape, schema.TransposeOptionsT(),
                       version=_MOVES[tensor.dtype], dtype=tensor.dtype, unit=tensor.unit)

    def part(self, tensor: Tensor, ranges: Mapping[int, tuple[int, int]]) -> Tensor:
        """From `begin` to `end` of each axis that is named, all of the others."""
        begins, sizes = [0] * len(tensor.shape), list(tensor.shape)
        for axis, (begin, end) in ranges.items():
            begins[axis], sizes[axis] = begin, end - begin
        if tuple(sizes) == tensor.shape:
            return tensor
        return self.op(Op.SLICE, [tensor, self._ints(begins), self._ints(sizes)], sizes,
                       schema.SliceOptionsT(), version=_MOVES[tensor.dtype], dtype=tensor.dtype)

    def concat(self, parts: Sequence[Tensor | Constant], axis: int) -> Tensor:
        """Tensors one after the other; at most 4 at once are computed fast.

        Of more the first are joined first, as few as do, so that the last are copied once.
        """
        first, *rest = parts
        while rest:
            count = (len(rest) - 1) % 3 + 1
            head = [first, *rest[:count]]
            shape = list(first.shape)
            shape[axis] = sum(one.shape[axis] for one in head)
            options = schema.ConcatenationOptionsT()
            options.axis = axis
            first, rest = self.op(Op.CONCATENATION, head, shape, options,
                                  version=_MOVES[first.dtype], dtype=first.dtype), rest[count:]
        assert isinstance(first, Tensor)
        return first

    def batch_matmul(self, left: Tensor, right: Tensor, *, transposed: bool = False) -> Tensor:
        """[..., M, K] x [..., K, N], or [..., N, K] with `transposed`."""
        options = schema.BatchMatMulOptionsT()
        options.adjX, options.adjY = False, transposed
        width = right.shape[-2] if transposed else right.shape[-1]
        return self.op(Op.BATCH_MATMUL, [left, right], (*left.shape[:-1], width), options)

    def dense(self, tensor: Tensor, kernel: Constant, bias: Constant | None) -> Tensor:
        """[M, K] x [N, K] transposed, + [N]."""
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        inputs: list[Tensor | Constant] = [tensor, kernel]
        if bias is not None:
            inputs.append(bias)
        # From 9 on the runtime quantises inputs with a zero point, from 12 on by row of weights.
        options.asymmetricQuantizeInputs = kernel.dtype == "int8"
        return self.op(Op.FULLY_CONNECTED, inputs, (*tensor.shape[:-1], kernel.shape[0]), options,
                       version=12 if kernel.dtype == "int8" else 5)

    def whole_dense(self, tensor: Tensor, kernel: Constant, bias: Constant, unit: Scales) -> Tensor:
        """[M, K] int8 x [N, K] int8 transposed, + [N] int32, in whole `unit`s."""
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        return self.op(Op.FULLY_CONNECTED, [tensor, kernel, bias],
                       (*tensor.shape[:-1], kernel.shape[0]), options, version=12, dtype="int8",
                       unit=unit)

    def lookup(self, ids: Tensor, table: Constant) -> Tensor:
        """Rows [N, D] of a table [V, D] by ids [N] int32."""
        return self.op(Op.EMBEDDING_LOOKUP, [ids, table], (ids.shape[0], table.shape[1]),
                       version=4 if table.dtype == "int8" else 1)

    def _reshape(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        options = schema.ReshapeOptionsT()
        options.newShape = list(shape)
        return self.op(Op.RESHAPE, [tensor, self._ints(shape)], shape, options,
                       dtype=tensor.dtype, unit=tensor.unit)

    def _reduce(self, operator: int, tensor: Tensor, axis: int) -> Tensor:
        options = schema.ReducerOptionsT()
        options.keepDims = True
        shape = list(tensor.shape)
        shape[axis] = 1
        return self.op(operator, [tensor, self._ints([axis])], shape, options)

    def _ints(self, values: Sequence[int]) -> Constant:
        return self.file.constant(np.array(values, np.int32))

    def _index(self, one: Tensor | Constant) -> int:
        if isinstance(one, Tensor):
            return one.place
        if one.buffer not in self._constants:
            self._constants[one.buffer] = self._tensor(
                f"c{one.buffer}", one.shape, one.dtype, buffer=one.buffer,
                quantization=one.scales)
        return self._constants[one.buffer].place

    def _tensor(self, name: str, shape: Sequence[int], dtype: str, *, buffer: int = 0,
                quantization: Scales | None = None) -> Tensor:
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, list(shape), _TYPES[dtype], buffer
        made.quantization = quantization or (self.file.whole if dtype == "int8" else None)
        self.subgraph.tensors.append(made)
        return Tensor(len(self.subgraph.tensors) - 1, tuple(shape), dtype, quantization)


def quantize_rows(array: np.ndarray, least: np.ndarray | float = 0.0
                  ) -> tuple[np.ndarray, np.ndarray]:
    """Return [N, D] int8 in -127 .. 127 and [N] float32: `array` is about values * scales.

    No scale is below `least` [N].
    """
    scales = np.maximum(np.abs(array).max(axis=1) / 127.0, least)
    scales = np.where(scales > 0, scales, 1.0).astype(np.float32)
    return np.rint(array / scales[:, None]).astype(np.int8), scales


def _broadcast(left: Tensor, right: Tensor | Constant) -> tuple[int, ...]:
    return tuple(np.broadcast_shapes(left.shape, right.shape))


def _code(operator: int, version: int) -> Any:
    made = schema.OperatorCodeT()
    made.builtinCode = operator
    made.deprecatedBuiltinCode = min(operator, 127)
    made.version = version
    return made


