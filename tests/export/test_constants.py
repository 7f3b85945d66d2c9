"""Constants of a function, each once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import function_pb2

from tf_infer.export.constants import share, share_constants
from tf_infer.export.signatures import rewritten


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


def test_a_saved_model_loads_that_holds_gradients_of_its_own(tmp_path: Path) -> None:
    """`tf.nn.silu` has one, which captures a constant: both that stand here are 1.0."""
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def gated(x: tf.Tensor) -> tf.Tensor:
        return tf.nn.silu(tf.nn.silu(x) + 1.0)

    module = tf.Module()
    module.gated = gated
    wanted = gated(tf.constant([0.5, -2.0])).numpy()
    tf.saved_model.save(module, str(tmp_path / "model"),
                        options=tf.saved_model.SaveOptions(experimental_custom_gradients=True))
    with rewritten(tmp_path / "model") as model:
        share_constants(model)
    found = tf.saved_model.load(str(tmp_path / "model")).gated(tf.constant([0.5, -2.0]))
    np.testing.assert_array_equal(found.numpy(), wanted)
