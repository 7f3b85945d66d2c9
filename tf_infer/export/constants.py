"""Equal constants of a function become one: TensorFlow writes one for each place that needs it.

A third of the nodes of a decoder's graph, each of which takes time when a version is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tensorflow.core.framework import function_pb2, node_def_pb2
from tensorflow.core.protobuf import saved_model_pb2

PLAIN = {"dtype", "value", "_output_shapes"}  # attributes; one with others is left alone


def share_constants(model: saved_model_pb2.SavedModel) -> None:
    """Leave every constant of a function once.

    What the gradient of an operation (`tf.nn.silu`) has captured is looked for by its name at load.
    """
    for meta_graph in model.meta_graphs:
        captured = {node.captured_tensor.name.partition(":")[0]
                    for node in meta_graph.object_graph_def.nodes
                    if node.HasField("captured_tensor")}
        for function in meta_graph.graph_def.library.function:
            share(function, captured)


def share(function: function_pb2.FunctionDef, needed: Collection[str] = ()) -> None:
    """Leave the first of equal constants, and let it stand for the others; leave those needed."""
    first: dict[bytes, str] = {}
    instead: dict[str, str] = {}
    for node in function.node_def:
        if node.op == "Const" and not node.input and set(node.attr) <= PLAIN:
            kept = first.setdefault(_value(node), node.name)
            if kept != node.name and node.name not in needed:
                instead[node.name] = kept
    nodes = [node for node in function.node_def if node.name not in instead]
    for node in nodes:
        node.input[:] = [_renamed(name, instead) for name in node.input]
    for name, value in function.ret.items():
        function.ret[name] = _renamed(value, instead)
    for name, value in function.control_ret.items():
        function.control_ret[name] = instead.get(value, value)
    kept_nodes = [node_def_pb2.NodeDef.FromString(node.SerializeToString()) for node in nodes]
    del function.node_def[:]
    function.node_def.extend(kept_nodes)


def _value(node: node_def_pb2.NodeDef) -> bytes:
    """Return what tells a constant from another: where it lies, its dtype and its value."""
    return b"%s %d %s" % (node.device.encode(), node.attr["dtype"].type,
                          node.attr["value"].SerializeToString(deterministic=True))


def _renamed(reference: str, instead: Mapping[str, str]) -> str:
    """Return a reference to an output, "name:output:0", or to a node's end, "^name"."""
    mark = "^" if reference.startswith("^") else ""
    name, colon, output = reference[len(mark):].partition(":")
    return f"{mark}{instead.get(name, name)}{colon}{output}"
