"""Finite shapes for a compiled core: rows and tokens are padded to sizes of the grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tf_infer.config import ShapeGrid


def in_chunks(core: Any, dense: Mapping[str, tf.Tensor], grid: ShapeGrid
              ) -> dict[str, tf.Tensor]:
    """Run a compiled core on any number of rows, showing it only numbers of rows of the grid.

    Args:
        core: a tf.function with an input signature; takes the tensors in the order of `dense`, must
            bear rows of zeros, and returns a dict of tensors with the rows first.
        dense: [B, ...] each, B >= 0.
        grid: `grid.rows` are the allowed numbers of rows.

    Returns:
        core's outputs for the B rows.
    """
    rows = tf.shape(next(iter(dense.values())))[0]
    size = bucket(rows, grid.rows)
    chunks = tf.maximum(1, -(-rows // size))
    cells = [_cut(tensor, chunks, size) for tensor in dense.values()]
    if tf.executing_eagerly():
        parts = [core(*(cell[i] for cell in cells)) for i in range(int(chunks))]
        whole = {name: tf.concat([part[name] for part in parts], axis=0) for name in parts[0]}
    else:
        outputs = {name: tf.TensorSpec(value.shape, value.dtype) for name, value in
                   core.get_concrete_function().structured_outputs.items()}
        mapped = tf.map_fn(lambda cell: core(*cell), cells, parallel_iterations=1,
                           fn_output_signature=outputs)
        whole = {name: _joined(value) for name, value in mapped.items()}
    return {name: value[:rows] for name, value in whole.items()}


def in_slices(core: Callable[..., dict[str, tf.Tensor]], dense: Mapping[str, tf.Tensor],
              specs: Mapping[str, tf.TensorSpec], most: tf.Tensor | int) -> dict[str, tf.Tensor]:
    """Run a function on any number of rows, showing it no more than `most` of them at a time.

    So its memory is bounded. No row is padded, and up to `most` rows are one plain call.

    Args:
        core: takes the tensors as keywords; returns a dict of tensors with the rows first, whose
            other axes do not depend on the rows.
        dense: [B, ...] each, B >= 0.
        specs: their specifications, rows free.
        most: [] int32 >= 1.

    Returns:
        core's outputs for the B rows.
    """
    ordered = [dense[name] for name in specs]
    rows = tf.shape(ordered[0])[0]
    if tf.executing_eagerly():
        starts = range(0, max(1, int(rows)), int(most))
        parts = [core(**{name: dense[name][i:i + int(most)] for name in specs}) for i in starts]
        return {name: tf.concat([part[name] for part in parts], axis=0) if len(parts) > 1 else value
                for name, value in parts[0].items()}
    traced = tf.function(lambda *tensors: core(**dict(zip(specs, tensors))),
                         input_signature=tuple(specs.values()), autograph=False)
    outputs = traced.get_concrete_function().structured_outputs

    # One call of `traced` in the graph, in a loop of one turn mostly: a second one beside it, for
    # the usual case, would double the graph that is optimised and kept.
    count = tf.maximum(1, -(-rows // most))
    arrays = {name: tf.TensorArray(value.dtype, count, infer_shape=False,
                                   element_shape=value.shape) for name, value in outputs.items()}

    def some(i: tf.Tensor, written: dict[str, tf.TensorArray]) -> Any:
        begin = tf.reshape(i * most, [1])  # shared: tensor[a:b] takes ten operations each time
        end, one = begin + most, tf.constant([1])
        part = traced(*(tf.strided_slice(tensor, begin, end, one) for tensor in ordered))
        return i + 1, {name: array.write(i, part[name]) for name, array in written.items()}

    # The loop begins when all is there: a check on the way that fails cancels what runs beside it,
    # and TensorFlow may tell that first.
    nought = tf.constant(0)
    with tf.control_dependencies(ordered):
        first = tf.identity(nought)
    _, written = tf.while_loop(lambda i, _: i < count, some, (first, arrays), parallel_iterations=1)
    return {name: tf.ensure_shape(written[name].concat(), value.shape)
            for name, value in outputs.items()}


def _cut(tensor: tf.Tensor, chunks: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """[B, ...] -> [chunks, size, ...], zeros behind the last row."""
    missing = chunks * size - tf.shape(tensor)[0]
    padded = tf.pad(tensor, [[0, missing], *([0, 0] for _ in tensor.shape[1:])])
    cut = tf.reshape(padded, tf.concat([[chunks, size], tf.shape(tensor)[1:]], axis=0))
    return tf.ensure_shape(cut, [None, None, *tensor.shape[1:]])


def _joined(tensor: tf.Tensor) -> tf.Tensor:
    """[chunks, size, ...] -> [chunks * size, ...]."""
    joined = tf.reshape(tensor, tf.concat([[-1], tf.shape(tensor)[2:]], axis=0))
    return tf.ensure_shape(joined, [None, *tensor.shape[2:]])


def pad_tokens(tensor: tf.Tensor, grid: ShapeGrid, filler: int = 0) -> tf.Tensor:
    """Widen [B, T] to a length of the grid; T must not be more than its last one.

    Raises:
        tf.errors.InvalidArgumentError: T is more.
    """
    width = tf.shape(tensor)[1]
    require(width <= grid.tokens[-1], f"ids: expected at most {grid.tokens[-1]} tokens a row.")
    missing = tf.maximum(0, bucket(width, grid.tokens) - width)
    return tf.pad(tensor, [[0, 0], [0, missing]], constant_values=filler)


def bucket(count: tf.Tensor, sizes: tuple[int, ...]) -> tf.Tensor:
    """Return the smallest size >= `count` [] int32, else the last one."""
    allowed = tf.constant(sizes, tf.int32)
    return tf.reduce_min(tf.where(allowed >= count, allowed, sizes[-1]))


def require(rule: tf.Tensor, message: str, values: tf.Tensor | None = None) -> Any:
    """Fail with INVALID_ARGUMENT where a row breaks a rule; names its number, never its text.

    Args:
        rule: [B] bool, or [].
        message: "<input>: expected <rule>."
        values: [B] numbers to show the first wrong one of.

    Returns:
        In a graph the operation that checks it, else None.
    """
    broken = tf.reshape(~rule, [-1])                                         # [B]
    first = tf.argmax(tf.concat([broken, [True]], axis=0))
    data = [tf.constant(message)]
    if rule.shape.rank != 0:
        data += [tf.constant("First such row:"), first]
    if values is not None:
        data += [tf.constant("got:"), tf.gather(tf.pad(values, [[0, 1]]), first)]
    return _assert(tf.reduce_all(rule), data)


def require_all(rules: Sequence[tuple[str, tf.Tensor, tf.Tensor]]) -> Any:
    """Do what `require` does for many rules, in one check: each is a message, a rule, and values.

    The first rule that is broken is told. All have as many rows.
    """
    broken = ~tf.stack([rule for _, rule, _ in rules])                       # [rules, B]
    values = tf.stack([tf.cast(value, tf.float64) for _, _, value in rules])
    # A row of zeros, so that there is something to look at where nothing is broken, or no row.
    first = tf.argmax(tf.pad(tf.reduce_any(broken, axis=1), [[0, 1]], constant_values=True))
    first = tf.minimum(first, len(rules) - 1)
    row = tf.argmax(tf.gather(tf.pad(broken, [[0, 0], [0, 1]], constant_values=True), first))
    return _assert(~tf.reduce_any(broken), [
        tf.gather(tf.constant([message for message, _, _ in rules]), first),
        tf.constant("First such row:"), row, tf.constant("got:"),
        tf.gather_nd(tf.pad(values, [[0, 0], [0, 1]]), tf.stack([first, row]))])


def same_rows(inputs: Mapping[str, tf.Tensor]) -> None:
    """Fail with INVALID_ARGUMENT unless every input has as many rows as the first one."""
    leader = next(iter(inputs))
    counts = tf.stack([tf.size(tensor) if tensor.shape.rank == 1 else tf.shape(tensor)[0]
                       for tensor in map(tf.convert_to_tensor, inputs.values())])
    wrong = counts != counts[0]
    messages = [f"{name}: expected as many rows as {leader}." for name in inputs]
    _assert(~tf.reduce_any(wrong), [tf.gather(tf.constant(messages), tf.argmax(wrong))])


def _assert(rule: tf.Tensor, data: Sequence[tf.Tensor]) -> Any:
    """Do what `tf.debugging.Assert` does, in a graph without a branch of two functions around it.
    """
    if tf.executing_eagerly():
        return tf.debugging.Assert(rule, data)
    return tf.raw_ops.Assert(condition=rule, data=data)
