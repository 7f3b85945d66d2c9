"""FastClassifier: a classifier's weights laid out anew, for the speed of a CPU.

Query, keys and values come from one product; scale and shift of a normalisation go into the
products behind it; rows are read without their padding (`token_layout`), each with an attention of
the width that it needs itself. Only TensorFlow's own operations, so that the SavedModel runs in
TensorFlow Serving. Normalisations, residual stream, head and logits are float32 in every precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from tf_infer.networks.arrays import Dense, Norm
from tf_infer.networks.encoder_arrays import HEAD_KNOWN, EncoderArrays, HeadArrays
from tf_infer.networks.fast import Normalize, folded, scaled
from tf_infer.networks.products import Int8, Precision, Product, Weights
from tf_infer.networks.static_products import StaticProduct
from tf_infer.networks.stored import Storage
from tf_infer.networks.token_layout import Joined, Layout, Padded, cells_of

PRODUCTS = ("qkv", "out", "inner", "outer")  # of a layer, in the order in which they are computed
WORDS = "words"
CELL_TOKENS = 2048  # of a cell: what dense layers make of so many stays near the processor
SIXTEEN = 16        # numbers that a CPU computes at once; what is left over it computes otherwise


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderForm:
    """How the weights of a classifier are laid out.

    Attributes:
        precision: of the products' weights.
        floats: "float32" or "bfloat16", of attention and of the products in `keep`.
        keep: names of `layer_names` that stay in `floats`.
        xla: only operations that XLA compiles, and rows with their padding.
        widths: of attention, ascending; the last one is the longest row.
        limits: what 127 stands for in the inputs of an int8 product, by its name; of those without,
            each row has its own.
        divisors: what the inputs of an int8 product are divided by, and its kernel multiplied.
        storage: of words and products in float32, in the SavedModel; None for float32.
    """

    precision: Precision = "float32"
    floats: Precision = "float32"
    keep: frozenset[str] = frozenset()
    xla: bool = False
    widths: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    limits: Mapping[str, float] = field(default_factory=dict)
    divisors: Mapping[str, np.ndarray] = field(default_factory=dict)
    storage: Storage | None = None

    def of(self, name: str) -> Precision:
        """Return the precision of a product."""
        return self.floats if name in self.keep else self.precision


def layer_names(arrays: EncoderArrays) -> tuple[str, ...]:
    """Return the names of all that a form may keep in float, in the order of the network."""
    return (WORDS, *(named(number, part) for number in range(len(arrays.layers))
                     for part in PRODUCTS))


def named(number: int, part: str) -> str:
    """Return the name of a product."""
    return f"layers[{number}].{part}"


class FastClassifier(Weights):
    """What a ClassifierNetwork with these weights computes; it cannot be trained.

    Args:
        arrays: the weights.
        form: how they are laid out.
    """

    def __init__(self, arrays: EncoderArrays, form: EncoderForm, *, name: str = "classifier"
                 ) -> None:
        super().__init__(name=name, trainable=False)
        self.form, self.classes = form, len(arrays.head.logits.kernel)
        self.embed = Embedding(arrays, form)
        made = PreNorm if arrays.norm_first else PostNorm
        self.stack = [made(number, arrays, form) for number in range(len(arrays.layers))]
        last = arrays.last_norm if arrays.norm_first else norm_before(len(self.stack), arrays)
        self.norm = Normalize(last) if arrays.norm_first and last is not None else None
        self.end = Affine(last, name="end")
        self.head = FastHead(arrays.head)
        self.built = True

    def call(self, ids: tf.Tensor, mask: tf.Tensor, segments: tf.Tensor, training: bool = False
             ) -> tf.Tensor:
        """ids, mask, segments [B, T] -> logits [B, C]."""
        del training
        if self.form.xla:
            return self._read(Padded(mask), ids, segments)
        lengths = tf.maximum(1, tf.reduce_sum(tf.cast(mask, tf.int32), axis=1))
        order, starts, widths = cells_of(lengths, self.form.widths, CELL_TOKENS)
        found = over_cells(self._cell, (ids, mask, segments), order, starts, widths, self.classes)
        return tf.gather(found, tf.math.invert_permutation(order))

    def watch(self, see: Callable[[str, tf.Tensor], None] | None) -> None:
        """Have a function told the name and the inputs of every product that is run from now on."""
        for layer in self.stack:
            layer.see = see

    def _cell(self, width: tf.Tensor, ids: tf.Tensor, mask: tf.Tensor, segments: tf.Tensor
              ) -> tf.Tensor:
        most = max(CELL_TOKENS, self.form.widths[-1])
        return self._read(Joined(mask, width, most), ids, segments)

    def _read(self, layout: Layout, ids: tf.Tensor, segments: tf.Tensor) -> tf.Tensor:
        hidden = self.embed.look_up(layout, ids, segments)                   # [M, D]
        for block in self.stack:
            hidden = block.read(hidden, layout)
        hidden = hidden if self.norm is None else self.norm(hidden)
        return self.head.logits(self.end.apply(hidden), layout)


def over_cells(function: Callable[..., tf.Tensor], tensors: tuple[tf.Tensor, ...],
               order: tf.Tensor, starts: tf.Tensor, widths: tf.Tensor, outputs: int) -> tf.Tensor:
    """Join what a function makes of each cell's rows, in the order of the cells (`cells_of`).

    Args:
        function: width [] int32, rows of the tensors -> [rows, outputs] float32.
        tensors: [B, ...].
        order, starts, widths: what `cells_of` gives.
        outputs: of the function.
    """
    def cell(i: tf.Tensor) -> tf.Tensor:
        rows = order[starts[i]:starts[i + 1]]
        return function(widths[i], *(tf.gather(tensor, rows) for tensor in tensors))

    count = tf.shape(widths)[0]
    if tf.executing_eagerly():
        return tf.concat([cell(i) for i in tf.range(count)], axis=0)
    results = tf.TensorArray(tf.float32, count, infer_shape=False, element_shape=[None, outputs])
    _, results = tf.while_loop(lambda i, _: i < count, lambda i, found: (
        i + 1, found.write(i, cell(i))), (0, results), parallel_iterations=1)
    return tf.ensure_shape(results.concat(), [None, outputs])


class Embedding(Weights):
    """Vectors of words, positions and segments, summed; normalised where the layers come after."""

    def __init__(self, arrays: EncoderArrays, form: EncoderForm) -> None:
        super().__init__(name="embedding", trainable=False)
        precision = form.of(WORDS)
        self.table = Int8(arrays.words, packed=not form.xla, name="rows") if (
            precision == "int8") else None
        self.words = None
        if precision == "float32":
            self.words = self.keep_small("words", arrays.words, form.storage, axis=1)
        elif precision == "bfloat16":
            self.words = self.keep("words", arrays.words, precision)
        self.positions = self.keep("positions", arrays.positions)
        self.segments = None if arrays.segments is None else self.keep(
            "segments", arrays.segments)
        self.norm = None if arrays.first_norm is None else Normalize(arrays.first_norm)
        # Layers that normalise first take the sum as it is, the others without scale and shift.
        self.end = Affine(arrays.first_norm if arrays.norm_first else None, name="end")
        self.built = True

    def look_up(self, layout: Layout, ids: tf.Tensor, segments: tf.Tensor) -> tf.Tensor:
        """ids, segments [N, T] -> [M, D]."""
        found = layout.tokens(ids)
        hidden = (self.table.look_up(found) if self.table is not None else
                  tf.cast(tf.gather(tf.convert_to_tensor(self.words), found), tf.float32))
        hidden += tf.gather(tf.convert_to_tensor(self.positions), layout.positions)
        if self.segments is not None:
            hidden += tf.gather(tf.convert_to_tensor(self.segments), layout.tokens(segments))
        return self.end.apply(hidden if self.norm is None else self.norm(hidden))


class Affine(Weights):
    """Scale and shift of a normalisation, where there is one: [M, D] -> [M, D]."""

    def __init__(self, norm: Norm | None, *, name: str) -> None:
        super().__init__(name=name, trainable=False)
        self.scale = None if norm is None else self.keep("scale", norm.scale)
        self.shift = None if norm is None or norm.shift is None else self.keep("shift", norm.shift)
        self.built = True

    def apply(self, hidden: tf.Tensor) -> tf.Tensor:
        """[M, D] -> [M, D]."""
        hidden = hidden if self.scale is None else hidden * tf.convert_to_tensor(self.scale)
        return hidden if self.shift is None else hidden + tf.convert_to_tensor(self.shift)


class FastLayer(Weights):
    """The products of one layer, and its attention; what stands around them, subclasses say.

    Attributes:
        products: by their part of PRODUCTS.
        see: is told the inputs of every product, where it is set: name, [M, K].
    """

    def __init__(self, number: int, arrays: EncoderArrays, form: EncoderForm) -> None:
        super().__init__(name=f"layers_{number}", trainable=False)
        layer = arrays.layers[number]
        self.number, self.heads, self.floats = number, arrays.heads(layer), form.floats
        self.norm, self.inner_norm = Normalize(layer.norm), Normalize(layer.inner_norm)
        self.products = {part: product_of(number, part, dense, arrays, form)
                         for part, dense in self.dense(number, arrays).items()}
        self.see: Callable[[str, tf.Tensor], None] | None = None
        self.built = True

    @staticmethod
    def dense(number: int, arrays: EncoderArrays) -> dict[str, Dense]:
        """Return the products' weights, with all that is folded into them."""
        raise NotImplementedError

    def read(self, hidden: tf.Tensor, layout: Layout) -> tf.Tensor:
        """[M, D] -> [M, D]."""
        raise NotImplementedError

    def attend(self, normed: tf.Tensor, layout: Layout) -> tf.Tensor:
        """[M, D] -> what attention adds to it, [M, D]."""
        query, keys, values = layout.split(self.multiply("qkv", normed), self.heads)
        attended = mix(query, keys, values, layout.hidden, self.floats)
        return self.multiply("out", layout.join(attended))

    def feed(self, normed: tf.Tensor) -> tf.Tensor:
        """[M, D] -> what the feed-forward part adds to it, [M, D]."""
        return self.multiply("outer", self.multiply("inner", normed))

    def multiply(self, part: str, inputs: tf.Tensor) -> tf.Tensor:
        """[M, K] -> [M, N], by the product of that part."""
        if self.see is not None:
            self.see(named(self.number, part), inputs)
        made: tf.Tensor = self.products[part].multiply(inputs)
        return made


def product_of(number: int, part: str, dense: Dense, arrays: EncoderArrays, form: EncoderForm
               ) -> Product | StaticProduct:
    """Make one product of a layer in its form."""
    name = named(number, part)
    precision = form.of(name)
    activation = arrays.activation if part == "inner" else None
    divisor = form.divisors.get(name) if precision == "int8" else None
    kernel = dense.kernel if divisor is None else dense.kernel * divisor.astype(np.float32)
    factor = None if divisor is None else 1.0 / divisor
    if precision == "int8" and name in form.limits:
        after = named(number, "outer")
        steps_on = part == "inner" and form.of(after) == "int8" and after not in form.divisors
        return StaticProduct(
            kernel, dense.bias, limit=form.limits[name], factor=factor, activation=activation,
            next_limit=form.limits.get(after) if steps_on else None, name=part)
    return Product(kernel, dense.bias, precision, factor=factor, activation=activation,
                   packed=precision != "float32" and not form.xla, storage=form.storage,
                   rounded=part in ("qkv", "inner"), name=part)


class PreNorm(FastLayer):
    """x + attention(norm(x)), then x + feed-forward(inner_norm(x)); takes and gives x."""

    @staticmethod
    def dense(number: int, arrays: EncoderArrays) -> dict[str, Dense]:
        """Fold both normalisations into the products behind them."""
        layer = arrays.layers[number]
        return {"qkv": divided(folded(layer.norm, layer.qkv), arrays), "out": layer.out,
                "inner": folded(layer.inner_norm, layer.inner), "outer": layer.outer}

    def read(self, hidden: tf.Tensor, layout: Layout) -> tf.Tensor:
        """[M, D] -> [M, D]."""
        hidden += self.attend(self.norm(hidden), layout)
        return hidden + self.feed(self.inner_norm(hidden))


class PostNorm(FastLayer):
    """norm(x + attention(x)), then inner_norm(x + feed-forward(x)).

    Takes and gives x without the scale and shift of the normalisation that made it: the product
    behind it has taken both in, and the bias of what is added to it the shift; what is left is one
    multiplication where it is added.
    """

    def __init__(self, number: int, arrays: EncoderArrays, form: EncoderForm) -> None:
        super().__init__(number, arrays, form)
        self.scale = self.keep("scale", norm_before(number, arrays).scale)
        self.inner_scale = self.keep("inner_scale", arrays.layers[number].norm.scale)

    @staticmethod
    def dense(number: int, arrays: EncoderArrays) -> dict[str, Dense]:
        """Fold scales and shifts into what stands behind them."""
        layer, before = arrays.layers[number], norm_before(number, arrays)
        return {"qkv": divided(folded(before, layer.qkv), arrays),
                "out": shifted(layer.out, before), "inner": folded(layer.norm, layer.inner),
                "outer": shifted(layer.outer, layer.norm)}

    def read(self, hidden: tf.Tensor, layout: Layout) -> tf.Tensor:
        """[M, D] -> [M, D]."""
        hidden = self.norm(hidden * tf.convert_to_tensor(self.scale) + self.attend(hidden, layout))
        return self.inner_norm(
            hidden * tf.convert_to_tensor(self.inner_scale) + self.feed(hidden))


class FastHead(Weights):
    """Pooling, then dense layers in float32, a row of which does not depend on how many there are.

    Args:
        arrays: of the head.
    """

    def __init__(self, arrays: HeadArrays) -> None:
        super().__init__(name="head", trainable=False)
        self.pooling, self.normalize = arrays.pooling, arrays.normalize
        self.activation = HEAD_KNOWN[arrays.activation]
        parts = [*arrays.dense, arrays.logits]
        parts = parts if arrays.pooler is None else [arrays.pooler, *parts]
        self.kernels, self.biases = [], []
        for number, part in enumerate(widened(parts)):
            self.kernels.append(self.keep(f"kernel_{number}", np.ascontiguousarray(part.kernel.T)))
            self.biases.append(self.keep(f"bias_{number}", bias_of(part)))
        self.built = True

    def logits(self, hidden: tf.Tensor, layout: Layout) -> tf.Tensor:
        """[M, D] -> [N, C]."""
        places = list(range(len(self.kernels)))
        pooled = layout.pool(hidden, "first" if self.pooling == "pooler" else self.pooling)
        if self.pooling == "pooler":
            pooled = tf.tanh(self._product(pooled, places.pop(0)))
        if self.normalize:
            # In float64, as in Normalize.
            square = tf.reduce_sum(tf.square(pooled), axis=-1, keepdims=True)
            root = tf.math.rsqrt(tf.maximum(tf.cast(square, tf.float64), 1e-12))
            pooled *= tf.cast(root, tf.float32)
        for place in places[:-1]:
            pooled = self.activation(self._product(pooled, place))
        return self._product(pooled, places[-1])

    def _product(self, rows: tf.Tensor, place: int) -> tf.Tensor:
        """[N, K] -> [N, K'], each row by a product of its own: many at once add up otherwise."""
        made = tf.raw_ops.BatchMatMulV3(x=rows[:, None], Tout=tf.float32,
                                        y=tf.convert_to_tensor(self.kernels[place])[None])
        return made[:, 0] + tf.convert_to_tensor(self.biases[place])


def mix(query: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, hidden: tf.Tensor,
        floats: Precision) -> tf.Tensor:
    """Mix values by the softmax of products that are scaled already.

    oneDNN's softmax computes in float32 whatever it takes and gives; what it takes are products in
    `floats`, and what it gives are factors in `floats`.

    Args:
        query, keys, values: [N, H, W, d].
        hidden: [N, 1, 1, W] float32, added to the products.
        floats: precision of the two products.

    Returns:
        [N, H, W, d] of `floats`.
    """
    query, keys, values, hidden = (
        tf.cast(part, floats) for part in (query, keys, values, hidden))
    scores = tf.matmul(query, keys, transpose_b=True) + hidden
    return tf.matmul(tf.nn.softmax(scores), values)


def norm_before(number: int, arrays: EncoderArrays) -> Norm:
    """Return the normalisation that made what a layer takes, where layers normalise last."""
    if number > 0:
        return arrays.layers[number - 1].inner_norm
    if arrays.first_norm is not None:
        return arrays.first_norm
    return Norm(np.ones(arrays.width, np.float32), np.zeros(arrays.width, np.float32), 0.0)


def divided(qkv: Dense, arrays: EncoderArrays) -> Dense:
    """Take the 1 / sqrt(d) of attention into the queries' product."""
    return scaled(qkv, len(qkv.kernel) // 3, arrays.head_size ** -0.5)


def bias_of(dense: Dense) -> np.ndarray:
    """Return the bias, zeros where there is none."""
    return np.zeros(len(dense.kernel), np.float32) if dense.bias is None else dense.bias


def shifted(dense: Dense, norm: Norm) -> Dense:
    """Add the shift of a normalisation to the bias."""
    return dense if norm.shift is None else Dense(dense.kernel, bias_of(dense) + norm.shift)


def widened(parts: list[Dense]) -> list[Dense]:
    """Give products of a chain, all but the last, outputs to whole SIXTEENs; nobody reads them."""
    made, inputs = [], parts[0].kernel.shape[1]
    for part in parts:
        outputs = len(part.kernel)
        more = 0 if part is parts[-1] else -outputs % SIXTEEN
        made.append(Dense(
            np.pad(part.kernel, [(0, more), (0, inputs - part.kernel.shape[1])]),
            np.pad(bias_of(part), (0, more))))
        inputs = outputs + more
    return made
