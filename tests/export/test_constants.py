"""Constants of a function, each once."""

from __future__ import annotations

import tensorflow as tf
from tensorflow.core.framework import function_pb2

from tf_infer.export.constants import share


def function(**values: tf.Tensor) -> function_pb2.FunctionDef:
    """Return a function of constants alone."""
    made = function_pb2.FunctionDef()
    for name, value in values.items():
        node = made.node_def.add(name=name, op="Const")
        proto = tf.make_tensor_proto(value)
        node.attr["value"].tensor.CopyFrom(proto)
        node.attr["dtype"].type = proto.dtype
    return made


def names(made: function_pb2.FunctionDef) -> list[str]:
    return [node.name for node in made.node_def]


def test_whoever_took_an_equal_constant_takes_the_first_one() -> None:
    made = function(a=tf.constant([1, 2]), b=tf.constant([1, 2]), c=tf.constant([1, 3]))
    made.node_def.add(name="sum", op="AddV2", input=["b:output:0", "c:output:0", "^b"])
    made.ret["out"], made.ret["same"] = "b:output:0", "sum:z:0"
    made.control_ret["end"] = "b"
    share(made)
    assert names(made) == ["a", "c", "sum"]
    assert list(made.node_def[-1].input) == ["a:output:0", "c:output:0", "^a"]
    assert dict(made.ret) == {"out": "a:output:0", "same": "sum:z:0"}
    assert dict(made.control_ret) == {"end": "a"}


def test_what_is_not_the_same_stays() -> None:
    made = function(a=tf.constant(1), b=tf.constant(1, tf.int64), c=tf.constant([1]),
                    waits=tf.constant(1), stands=tf.constant(1), lies=tf.constant(1))
    nodes = {node.name: node for node in made.node_def}
    nodes["waits"].input.append("^sum")
    nodes["stands"].attr["_class"].list.s.append(b"loc:@sum")
    nodes["lies"].device = "/device:CPU:1"
    share(made)
    assert names(made) == ["a", "b", "c", "waits", "stands", "lies"]
