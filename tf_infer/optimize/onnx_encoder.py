"""The graph of a classifier, encoder and head, in ONNX: ids, mask, segments -> logits.

Axes: B rows, T tokens, D width, H heads of d numbers, C classes. Rows and tokens are free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np

from tf_infer.networks.arrays import Dense, LayerArrays, Norm
from tf_infer.networks.encoder_arrays import EncoderArrays
from tf_infer.networks.fast import scaled
from tf_infer.optimize.litert_file import quantize_rows
from tf_infer.optimize.onnx_file import Graph

Precision: TypeAlias = Literal["int8", "float16", "float32"]
MASKED = -1e30  # far below any score, and finite (networks/attention.py)
IDS, MASK, SEGMENTS, LOGITS = "ids", "mask", "segments", "logits"
_AXES = ("rows", "tokens")


def model_of(arrays: EncoderArrays, precision: Precision, *,
             limits: Mapping[str, float] | None = None, watched: bool = False) -> bytes:
    """Return the file of a classifier.

    Args:
        arrays: what it computes.
        precision: of weights and of the products with them. int8: one scale for each output of a
            matrix, and for each word, symmetric. float16: also of what goes from one product into
            the next (heads, activations); softmax, norms, their sums and the head are float32.
        limits: with int8, what 127 stands for in the inputs of each product, by name, as TensorRT
            needs it; None lets the range of a call be found as it runs, which no GPU does.
        watched: the inputs of each product are outputs, too, by its name.

    Inputs `ids` [B, T] int32, `mask` [B, T] bool, `segments` [B, T] int32 (where the encoder has
    any), output `logits` [B, C] float32. T is at most the number of positions.
    """
    return _Writer(arrays, precision, limits, watched).write()


class _Writer:
    """Puts the operations of one classifier in a row."""

    def __init__(self, arrays: EncoderArrays, precision: Precision,
                 limits: Mapping[str, float] | None = None, watched: bool = False) -> None:
        self.arrays, self.precision, self.limits = arrays, precision, limits
        self.graph = Graph()
        # The head looks at the first position alone: the last layer computes no other.
        self.first_only = arrays.head.pooling in ("first", "pooler")
        self.low: Any = np.float16 if precision == "float16" else np.float32  # between products
        self.watched: dict[str, tuple[str, str, tuple[Any, ...]]] | None = {} if watched else None

    def write(self) -> bytes:
        graph, arrays = self.graph, self.arrays
        hidden = self._embedded()                                            # [B, T, D]
        scores = self._masked_scores()                                       # [B, 1, 1, T]
        for number, layer in enumerate(arrays.layers):
            last = number == len(arrays.layers) - 1
            hidden = self._layer(f"layer_{number}", hidden, scores, layer,
                                 alone=last and self.first_only)
        if arrays.last_norm is not None:
            hidden = self._norm("last_norm", hidden, arrays.last_norm)
        if arrays.zero_padding:
            real = self._real()
            hidden = graph.op("Mul", [hidden, self._first(real) if self.first_only else real])
        logits = self._head(hidden)
        inputs = {IDS: ("int32", _AXES), MASK: ("bool", _AXES)}
        if arrays.segments is not None:
            inputs[SEGMENTS] = ("int32", _AXES)
        return graph.model(
            "classifier", inputs,
            {LOGITS: (logits, "float32", ("rows", len(arrays.head.logits.kernel))),
             **(self.watched or {})}, {"precision": self.precision})

    # ------------------------------------------------------------------ the encoder

    def _embedded(self) -> str:
        graph, arrays = self.graph, self.arrays
        count = graph.op("Shape", [IDS], start=1, end=2)                     # [1], T
        places = graph.op("Slice", [graph.weights("positions", arrays.positions),
                                    graph.constant([0], np.int64), count])   # [T, D]
        hidden = graph.op("Add", [self._looked_up(), places])
        if self.low is np.float16:
            # Nothing else says that there are T places, without which ONNX Runtime joins no sum
            # with its norm. Not for CPUs: joined there, both take longer than apart.
            graph.shapes[hidden] = ("float32", (*_AXES, arrays.positions.shape[1]))
        if arrays.segments is not None:
            hidden = graph.op("Add", [hidden, graph.op("Gather", [
                graph.weights("segment_vectors", arrays.segments), SEGMENTS])])
        if arrays.first_norm is not None:
            hidden = self._norm("first_norm", hidden, arrays.first_norm)
        return str(hidden)

    def _looked_up(self) -> str:
        """Return [B, T, D] float32, word vectors; they are most of a small model's file."""
        graph, words = self.graph, self.arrays.words
        if self.precision == "float32":
            return str(graph.op("Gather", [graph.weights("words", words), IDS]))
        if self.precision == "float16" or self.limits is not None:  # no GPU looks int8 up
            return graph.cast(graph.op("Gather", [
                graph.weights("words", words.astype(np.float16)), IDS]), "float32")
        values, scales = quantize_rows(words)
        found = graph.cast(graph.op("Gather", [graph.weights("words", values), IDS]), "float32")
        return str(graph.op("Mul", [found, graph.op("Gather", [
            graph.weights("word_scales", scales[:, None]), IDS])]))

    def _masked_scores(self) -> str:
        """Return what is added to scores: 0 on real positions, MASKED on padding."""
        graph = self.graph
        found = graph.op("Where", [MASK, graph.constant(0.0, np.float32),
                                   graph.constant(MASKED, np.float32)])
        return str(graph.op("Unsqueeze", [found, graph.constant([1, 2], np.int64)]))

    def _real(self) -> str:
        """Return [B, T, 1] float32, 1 on real positions."""
        graph = self.graph
        return str(graph.op("Unsqueeze", [graph.cast(MASK, "float32"),
                                          graph.constant([2], np.int64)]))

    def _first(self, hidden: str) -> str:
        """[B, T, D] -> [B, 1, D]."""
        zero, one = (self.graph.constant([number], np.int64) for number in (0, 1))
        return str(self.graph.op("Slice", [hidden, zero, one, one]))

    def _layer(self, name: str, hidden: str, scores: str, layer: LayerArrays, *, alone: bool
               ) -> str:
        """[B, T, D] -> the same, or [B, 1, D] of the first position alone."""
        graph, first = self.graph, self.arrays.norm_first
        read = self._lowered(self._norm(f"{name}/norm", hidden, layer.norm) if first else hidden)
        attended = self._attended(name, self._first(read) if alone else read, read, scores, layer)
        if alone:
            hidden = self._first(hidden)
        hidden = graph.op("Add", [hidden, self._dense(f"{name}/out", attended, layer.out,
                                                      raised=True)])
        if not first:
            hidden = self._norm(f"{name}/norm", hidden, layer.norm)
        read = self._norm(f"{name}/inner_norm", hidden, layer.inner_norm) if first else hidden
        inner = self._activation(self._dense(f"{name}/inner", self._lowered(read), layer.inner),
                                 self.arrays.activation, self.low)
        hidden = graph.op("Add", [hidden, self._dense(f"{name}/outer", inner, layer.outer,
                                                      raised=True)])
        return hidden if first else self._norm(f"{name}/inner_norm", hidden, layer.inner_norm)

    def _attended(self, name: str, looking: str, read: str, scores: str, layer: LayerArrays
                  ) -> str:
        """[B, S, D] looks at [B, T, D] -> [B, S, H d]; S is T or 1."""
        graph, size, heads = self.graph, self.arrays.head_size, self.arrays.heads(layer)
        qkv = scaled(layer.qkv, heads * size, size**-0.5)
        if looking == read:
            parts = graph.op("Split", [self._dense(f"{name}/qkv", read, qkv)], outputs=3, axis=-1)
        else:
            others = self._dense(f"{name}/keys_values", read, _part(qkv, heads * size, None))
            parts = (self._dense(f"{name}/query", looking, _part(qkv, 0, heads * size)),
                     *graph.op("Split", [others], outputs=2, axis=-1))       # each [B, ., H d]
        query, keys, values = (
            graph.op("Transpose", [graph.reshape(part, [0, 0, heads, size])], perm=order)
            for part, order in zip(parts, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])))
        found = self._raised(graph.op("MatMul", [query, keys]))              # [B, H, S, T]
        weights = graph.op("Softmax", [graph.op("Add", [found, scores])], axis=-1)
        mixed = graph.op("MatMul", [self._lowered(weights), values])
        mixed = graph.op("Transpose", [mixed], perm=[0, 2, 1, 3])
        return graph.reshape(mixed, [0, 0, heads * size])

    # ------------------------------------------------------------------ the head

    def _head(self, hidden: str) -> str:
        graph, head = self.graph, self.arrays.head
        pooled = self._pooled(hidden)                                        # [B, D]
        if head.normalize:
            length = graph.op("ReduceSumSquare", [pooled], axes=[-1], keepdims=1)
            length = graph.op("Max", [length, graph.constant(1e-12, np.float32)])
            pooled = graph.op("Div", [pooled, graph.op("Sqrt", [length])])
        for number, dense in enumerate(head.dense):
            pooled = self._activation(self._float_dense(f"head_{number}", pooled, dense),
                                      head.activation)
        return self._float_dense("logits", pooled, head.logits)

    def _pooled(self, hidden: str) -> str:
        graph, head = self.graph, self.arrays.head
        if head.pooling in ("first", "pooler"):
            first = str(graph.op("Gather", [hidden, graph.constant(0, np.int64)], axis=1))
            if head.pooler is None:
                return first
            return str(graph.op("Tanh", [self._float_dense("pooler", first, head.pooler)]))
        real = self._real()
        axis = graph.constant([1], np.int64)
        count = graph.op("ReduceSum", [real, axis], keepdims=0)              # [B, 1]
        if head.pooling == "mean":
            total = graph.op("ReduceSum", [graph.op("Mul", [hidden, real]), axis], keepdims=0)
            return str(graph.op("Div", [total, graph.op(
                "Max", [count, graph.constant(1.0, np.float32)])]))
        lowest = graph.constant(np.finfo(np.float32).min)
        masked = graph.op("Where", [graph.cast(real, "bool"), hidden, lowest])
        best = graph.op("ReduceMax", [masked], axes=[1], keepdims=0)
        return str(graph.op("Where", [graph.cast(count, "bool"), best,
                                      graph.constant(0.0, np.float32)]))

    # ------------------------------------------------------------------ parts of a layer

    def _lowered(self, tensor: str) -> str:
        """float32 -> the type of what a product takes."""
        return self.graph.cast(tensor, "float16") if self.low is np.float16 else tensor

    def _raised(self, tensor: str) -> str:
        """The type of what a product gives -> float32."""
        return self.graph.cast(tensor, "float32") if self.low is np.float16 else tensor

    def _dense(self, name: str, read: str, dense: Dense, *, raised: bool = False) -> str:
        """Multiply in the precision of the file; what goes in is `_lowered`, what comes out float32
        where it is to be `raised`."""
        if self.watched is not None:
            self.watched[name] = (read, "float32", ("rows", None, dense.kernel.shape[1]))
        if self.precision == "float16":
            return self._half_dense(name, read, dense, raised)
        return (self._int8_dense if self.precision == "int8" else self._float_dense)(
            name, read, dense)

    def _float_dense(self, name: str, read: str, dense: Dense) -> str:
        graph = self.graph
        kernel = graph.weights(f"{name}/kernel", np.ascontiguousarray(dense.kernel.T))
        return self._biased(name, graph.op("MatMul", [read, kernel]), dense)

    def _half_dense(self, name: str, read: str, dense: Dense, raised: bool) -> str:
        kernel = self.graph.weights(f"{name}/kernel",
                                    np.ascontiguousarray(dense.kernel.T.astype(np.float16)))
        made = self.graph.op("MatMul", [read, kernel])
        if raised:
            return self._biased(name, self._raised(made), dense)
        return self._biased(name, made, dense, np.float16)

    def _int8_dense(self, name: str, read: str, dense: Dense) -> str:
        graph = self.graph
        values, scales = quantize_rows(dense.kernel)
        kernel = graph.weights(f"{name}/kernel", np.ascontiguousarray(values.T))
        if self.limits is not None:
            return self._limited(name, read, dense, kernel, scales)
        whole, step, zero = graph.op("DynamicQuantizeLinear", [read], outputs=3)
        made = graph.op("MatMulInteger", [whole, kernel, zero])
        scale = graph.op("Mul", [step, graph.weights(f"{name}/scales", scales)])
        return self._biased(name, graph.op("Mul", [graph.cast(made, "float32"), scale]), dense)

    def _limited(self, name: str, read: str, dense: Dense, kernel: str, scales: np.ndarray) -> str:
        """Multiply whole numbers whose units are constants."""
        graph = self.graph
        assert self.limits is not None
        step = graph.constant(self.limits[name] / 127.0, np.float32)
        zero = graph.constant(0, np.int8)
        read = graph.op("DequantizeLinear", [
            graph.op("QuantizeLinear", [read, step, zero]), step, zero])
        weights = graph.op("DequantizeLinear", [
            kernel, graph.weights(f"{name}/scales", scales),
            graph.weights(f"{name}/zeros", np.zeros(len(scales), np.int8))], axis=1)
        return self._biased(name, graph.op("MatMul", [read, weights]), dense)

    def _biased(self, name: str, product: str, dense: Dense, dtype: Any = np.float32) -> str:
        if dense.bias is None:
            return product
        bias = self.graph.weights(f"{name}/bias", dense.bias.astype(dtype))
        return str(self.graph.op("Add", [product, bias]))

    def _norm(self, name: str, hidden: str, norm: Norm) -> str:
        graph = self.graph
        inputs = [hidden, graph.weights(f"{name}/scale", norm.scale)]
        if norm.shift is not None:
            inputs.append(graph.weights(f"{name}/shift", norm.shift))
        return str(graph.op("LayerNormalization", inputs, axis=-1, epsilon=norm.epsilon))

    def _activation(self, x: str, name: str, dtype: Any = np.float32) -> str:
        """One of networks.encoder_arrays.HeadActivation, of a tensor of this type."""
        graph = self.graph

        def number(value: float) -> str:
            return graph.constant(value, dtype)

        if name == "linear":
            return x
        if name == "silu":
            return str(graph.op("Mul", [x, graph.op("Sigmoid", [x])]))
        if name in ("relu", "tanh", "sigmoid"):
            return str(graph.op({"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}[name], [x]))
        # In these orders ONNX Runtime knows them as one operation (Gelu, FastGelu).
        if name == "gelu":
            inner = graph.op("Erf", [graph.op("Div", [x, number(math.sqrt(2.0))])])
            return str(graph.op("Mul", [
                graph.op("Mul", [x, graph.op("Add", [inner, number(1.0)])]), number(0.5)]))
        inner = graph.op("Mul", [graph.op("Mul", [x, number(0.044715)]), x])
        inner = graph.op("Mul", [graph.op("Mul", [x, number(math.sqrt(2.0 / math.pi))]),
                                 graph.op("Add", [inner, number(1.0)])])
        return str(graph.op("Mul", [graph.op("Mul", [x, number(0.5)]), graph.op(
            "Add", [graph.op("Tanh", [inner]), number(1.0)])]))


def _part(dense: Dense, begin: int, end: int | None) -> Dense:
    """Return some outputs of a product."""
    return Dense(dense.kernel[begin:end], None if dense.bias is None else dense.bias[begin:end])
