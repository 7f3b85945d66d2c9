"""Dense products that keep their weights packed: two operations of TensorFlow's oneDNN build.

`tf.matmul` hands oneDNN its weights as they lie, and every call rearranges them for the CPU's
matrix units. These two rearrange them at their first call and keep them. They are what TensorFlow's
own graph optimiser puts in for a product with constant weights, so a server has them wherever it
has oneDNN (x86-64); written down here, they take variables, and a loop's body, too. XLA cannot
compile them. The weights must never change after the first call.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2

# What the first operation can do to its sums before it rounds them.
AFTERWARDS = {"gelu": "GeluExact", "gelu_tanh": "GeluApproximate", "relu": "Relu"}


def product_bfloat16(inputs: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, *,
                     activation: str | None = None) -> tf.Tensor:
    """Multiply, with sums, bias and activation in float32 and one rounding at the end.

    Args:
        inputs: [M, K] bfloat16.
        kernel: [K, N] bfloat16.
        bias: [N] bfloat16.
        activation: of AFTERWARDS, or none.

    Returns:
        [M, N] bfloat16.
    """
    kind = _type(tf.bfloat16)
    attributes = {
        "T": kind, "num_args": _value(i=1), "fused_ops": _strings(
            "BiasAdd", *([AFTERWARDS[activation]] if activation else [])),
        "is_filter_const": _value(b=True), "transpose_a": _value(b=False),
        "transpose_b": _value(b=False), "epsilon": _value(f=0.0), "leakyrelu_alpha": _value(f=0.2),
        "_kernel": _value(s=b"MklNameChangeOp")}
    return _made("_MklNativeFusedMatMul", [inputs, kernel, bias], [tf.bfloat16], attributes,
                 [inputs.shape[0], kernel.shape[1]])


def product_int8(inputs: tf.Tensor, kernel: tf.Tensor, ends: tuple[tf.Tensor, tf.Tensor], *,
                 bias: tf.Tensor | None = None, limit: float = 127.0,
                 activation: str | None = None, next_limit: float | None = None) -> tf.Tensor:
    """Multiply whole numbers exactly, then scale each output.

    Args:
        inputs: [M, K] int8.
        kernel: [N, K] int8, one row for each output.
        ends: [N] float32 twice, what -127 and 127 in a row of the kernel stand for.
        bias: [N] float32, or none.
        limit: what 127 in the inputs stands for.
        activation: of AFTERWARDS, or none; applied to float32.
        next_limit: what 127 in the outputs stands for; None leaves them float32.

    Returns:
        [M, N] float32, or int8 where `next_limit` is given.
    """
    # The operation divides ranges by 127 and takes their quotient as what 1 stands for.
    levels = tf.constant(limit)
    bias = tf.zeros([kernel.shape[0]]) if bias is None else bias
    operands = [tf.bitcast(inputs, tf.qint8), tf.bitcast(kernel, tf.qint8), bias]
    ranges = [-levels, levels, *ends]
    end, results = "Dequantize", [tf.float32]
    if next_limit is not None:
        ranges += [tf.constant(-next_limit), tf.constant(next_limit)]
        end, results = "Requantize", [tf.qint8, tf.float32, tf.float32]
    attributes = {
        "Tdevice_inputs": _types(*(operand.dtype for operand in operands)),
        "Thost_inputs": _types(*[tf.float32] * len(ranges)), "Tdevice_outputs": _types(results[0]),
        "Thost_outputs": _types(*results[1:]), "T1": _type(tf.qint8), "T2": _type(tf.qint8),
        "Tbias": _type(tf.float32), "U": _type(tf.float32), "Tout": _type(results[0]),
        "transpose_a": _value(b=False), "transpose_b": _value(b=True),
        "is_weight_const": _value(b=True), "is_bias_const": _value(b=True),
        "fused_ops": _strings("BiasAdd", *([AFTERWARDS[activation]] if activation else []), end),
        "input_quant_mode": _value(s=b"SCALED"), "output_quant_mode": _value(s=b"SCALED"),
        "leakyrelu_alpha": _value(f=0.2)}
    made = _made("_QuantizedMatMul", [*operands, *ranges], results, attributes,
                 [inputs.shape[0], kernel.shape[0]])
    return made if next_limit is None else tf.bitcast(made, tf.int8)


def _made(operation: str, inputs: list[Any], dtypes: list[tf.DType], attributes: dict[str, Any],
          shape: list[int | None]) -> tf.Tensor:
    """Put an operation that has no Python function into the graph that is being traced.

    Returns its first output.
    """
    graph = tf.compat.v1.get_default_graph()
    made: tf.Tensor = graph.create_op(operation, [tf.convert_to_tensor(one) for one in inputs],
                                      dtypes, attrs=attributes, name="product").outputs[0]
    made.set_shape(shape)
    return made


def _value(**given: Any) -> Any:
    return attr_value_pb2.AttrValue(**given)


def _type(dtype: tf.DType) -> Any:
    return _value(type=dtype.as_datatype_enum)


def _types(*dtypes: tf.DType) -> Any:
    return _value(list=attr_value_pb2.AttrValue.ListValue(
        type=[dtype.as_datatype_enum for dtype in dtypes]))


def _strings(*texts: str) -> Any:
    return _value(list=attr_value_pb2.AttrValue.ListValue(s=[text.encode() for text in texts]))
