"""Functions that a graph holds once."""

from __future__ import annotations

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow.python.grappler import tf_optimizer

from tf_infer.decoding.shared import Shared
from tf_infer.stages import CORE, stage_of

FREE = tf.TensorSpec([None], tf.float32)


def halved() -> tuple[Shared, list[bool]]:
    """Return a function of a few operations, and where it ran: True op by op."""
    ran: list[bool] = []

    def halve(values: tf.Tensor) -> tf.Tensor:
        ran.append(tf.executing_eagerly())
        return tf.sqrt(values * values) / 2.0

    return Shared(CORE, halve, [FREE]), ran


def test_two_graphs_that_call_it_twice_hold_one_function_traced_once() -> None:
    half, ran = halved()
    for _ in range(2):
        outer = tf.function(lambda values: half(half(values)), input_signature=[FREE],
                            autograph=False).get_concrete_function()
        definition = outer.graph.as_graph_def()
        (held,) = definition.library.function
        assert held.attr["_noinline"].b
        assert {stage_of(node.name) for node in held.node_def if node.op == "Sqrt"} == {"model"}
        assert [node.op for node in definition.node].count("PartitionedCall") == 2
        assert outer(tf.constant([-8.0, 4.0])).numpy().tolist() == [2.0, 1.0]
    assert ran == [False]


def test_the_optimiser_of_a_session_leaves_it_alone() -> None:
    half, _ = halved()
    outer = tf.function(lambda values: half(values + 1.0) + 1.0, input_signature=[FREE],
                        autograph=False).get_concrete_function()
    found = meta_graph_pb2.MetaGraphDef(graph_def=outer.graph.as_graph_def())
    for side, (tensor,) in (("inputs", outer.inputs), ("outputs", outer.outputs)):
        info = getattr(found.signature_def["any"], side)["values"]
        info.name, info.dtype = tensor.name, tensor.dtype.as_datatype_enum
    settings = config_pb2.ConfigProto()
    settings.graph_options.rewrite_options.min_graph_nodes = -1

    def optimised() -> set[str]:
        graph = tf_optimizer.OptimizeGraph(settings, found, verbose=False)
        return {node.op for one in graph.library.function for node in one.node_def}

    assert "Square" not in optimised()
    del found.graph_def.library.function[0].attr["_tf_data_function"]
    assert "Square" in optimised()  # in the place of a product


def test_one_that_is_copied_is_held_once_and_left_to_the_optimiser() -> None:
    traced: list[bool] = []

    def halve(values: tf.Tensor) -> tf.Tensor:
        traced.append(True)
        return tf.sqrt(values * values) / 2.0

    half = Shared(CORE, halve, [FREE], copied=True)
    outer = tf.function(
        lambda values: tf.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, half(half(v))),
                                     (tf.constant(0), values))[1],
        input_signature=[FREE], autograph=False).get_concrete_function()
    held = [one for one in outer.graph.as_graph_def().library.function
            if any(node.op == "Sqrt" for node in one.node_def)]
    assert len(held) == len(traced) == 1
    assert "_noinline" not in held[0].attr
    assert outer(tf.constant([-64.0])).numpy().tolist() == [1.0]


def test_op_by_op_it_is_the_function_itself() -> None:
    half, ran = halved()
    assert half(tf.constant([-8.0])).numpy().tolist() == [4.0]
    assert ran == [True]
