"""Run TensorFlow's optimiser over a SavedModel once, and keep what comes out beside it.

A server would do it at the first run of each signature, and before it restores the variables: three
quarters of the processor time of a load. What is kept is one graph for all signatures, under the
names of the SavedModel's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import node_def_pb2
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, saved_model_pb2
from tensorflow.python.grappler import tf_optimizer
from tensorflow.python.saved_model.loader_impl import get_asset_tensors

from tf_infer import config
from tf_infer.export.signatures import GRAPH_FILE
from tf_infer.manifest import hash_file
from tf_infer.prepared import PREPARED_FILE, Prepared, prepared_folder, source_of, surroundings
from tf_infer.processor import cpu_flags

# Where a session on CPUs places every node; some of what the optimiser does is for such alone.
PLACE = "/job:localhost/replica:0/task:0/device:CPU:0"
# Attributes that no run looks at.
NOTES = ("_output_shapes", "_input_shapes", "_class", "_grappler")
LOADING = "__loading"  # a signature of what a load feeds and fetches


def write_prepared(version_dir: Path) -> str:
    """Write the prepared graph of a staged version, which has its saved_model.pb already.

    Returns:
        Why there is none, which only makes loads slower; empty when it was written. Where
        TensorFlow sees a GPU it would place operations there, and optimise them in another way.
    """
    if tf.config.list_physical_devices("GPU"):
        return "TensorFlow sees a GPU"
    path = version_dir / GRAPH_FILE
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    try:
        graph = prepare(model.meta_graphs[0]).SerializeToString()
    except Exception as error:  # whatever it is, loads are only slower
        return f"TensorFlow's optimiser ended with {type(error).__name__}"
    folder = prepared_folder(version_dir)
    folder.mkdir(parents=True)
    found = Prepared(made_of=hash_file(path),
                     made_for=surroundings(tf.__version__, cpu_flags() or (), gpus=0))
    (folder / found.file).write_bytes(graph)
    config.dump(found, folder / PREPARED_FILE)
    return ""


def prepare(meta_graph: Any) -> Any:
    """Return a MetaGraphDef that gives the same answers, as TensorFlow's optimiser leaves it.

    It holds what a load needs: signatures, the saver that restores variables, the operation that
    fills tables. Its nodes stand behind those that they read from, so that they can be imported in
    pieces (`server.loading`), each loop without a gap.
    """
    placed = _placed(meta_graph)
    graph = tf_optimizer.OptimizeGraph(config_pb2.ConfigProto(), placed, verbose=False)
    _clean(graph, {node.name: node for node in meta_graph.graph_def.node
                   if node.op == "Placeholder"})
    _rename(graph)
    kept = [node_def_pb2.NodeDef.FromString(node.SerializeToString()) for node in in_order(graph)]
    del graph.node[:]
    graph.node.extend(kept)
    prepared = meta_graph_pb2.MetaGraphDef(graph_def=graph, saver_def=meta_graph.saver_def,
                                           asset_file_def=meta_graph.asset_file_def)
    for name, signature in meta_graph.signature_def.items():
        prepared.signature_def[name].CopyFrom(signature)
    for name, collection in meta_graph.collection_def.items():
        prepared.collection_def[name].CopyFrom(collection)
    return prepared


def _clean(graph: Any, placeholders: Mapping[str, Any]) -> None:
    """Take away places and notes of the optimiser; let inputs be of any size again."""
    for node in graph.node:
        if node.name in placeholders:
            node.CopyFrom(placeholders[node.name])
        for name in [name for name in node.attr if name.startswith(NOTES)]:
            del node.attr[name]
    for nodes in (graph.node, *(one.node_def for one in graph.library.function)):
        for node in nodes:
            node.device = ""


def _rename(graph: Any) -> None:
    """Let no name begin with that of another node and a slash.

    Else TensorFlow refuses that node when it comes in a later piece. `stages` knows of the points.
    """
    new = {node.name: "" for node in graph.node}
    for name in new:
        scopes = name.split("/")
        new[name] = "/".join([scope + "." if "/".join(scopes[:depth]) in new else scope
                              for depth, scope in enumerate(scopes[:-1], start=1)] + scopes[-1:])
    for node in graph.node:
        node.name = new[node.name]
        node.input[:] = [reference.replace(source_of(reference), new[source_of(reference)], 1)
                         for reference in node.input]


def in_order(graph: Any) -> list[Any]:
    """Return the nodes of a graph behind those that they read from, those of a loop together.

    Tarjan's strongly connected components, which are found in this order; without recursion. From
    those that nobody reads, so that what is needed stands near whoever needs it.
    """
    nodes = {node.name: node for node in graph.node}
    read = {source_of(name) for node in graph.node for name in node.input}
    found: list[Any] = []
    seen: dict[str, int] = {}  # the how manieth
    back: dict[str, int] = {}  # to which of those that wait each leads back
    waiting: dict[str, None] = {}  # for the end of the loop that they may be in
    path: list[tuple[str, Iterator[str]]] = []

    def enter(name: str) -> None:
        seen[name] = back[name] = len(seen)
        waiting[name] = None
        path.append((name, map(source_of, nodes[name].input)))

    for root in sorted(nodes, key=lambda name: name in read):
        if root not in seen:
            enter(root)
        while path:
            name, sources = path[-1]
            source = next(sources, None)
            if source is None:
                path.pop()
                if path:
                    back[path[-1][0]] = min(back[path[-1][0]], back[name])
                if back[name] == seen[name]:
                    last = ""
                    while last != name:
                        last, _ = waiting.popitem()
                        found.append(nodes[last])
            elif source not in seen:
                enter(source)
            elif source in waiting:
                back[name] = min(back[name], seen[source])
    return found


def _placed(meta_graph: Any) -> Any:
    """Return a copy that tells the optimiser what is fed and fetched, and that this is a CPU."""
    found = meta_graph_pb2.MetaGraphDef()
    found.CopyFrom(meta_graph)
    found.saver_def.save_tensor_name = ""  # else what saves the variables would be kept
    loading = found.signature_def[LOADING]
    feeds = [*get_asset_tensors("", meta_graph), meta_graph.saver_def.filename_tensor_name]
    for number, name in enumerate(feeds):
        loading.inputs[str(number)].name = name
        loading.inputs[str(number)].dtype = tf.string.as_datatype_enum
    loading.outputs["restored"].name = f"{meta_graph.saver_def.restore_op_name}:0"
    for node in found.graph_def.node:
        node.device = PLACE
    for function in found.graph_def.library.function:
        for node in function.node_def:
            node.device = PLACE
    return found
