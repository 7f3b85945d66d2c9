"""How a graph gets into a session: a SavedModel as it is, or the graph that an export prepared.

Either whole, or in pieces of some milliseconds while others are being answered.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.framework import op_def_registry
from tensorflow.python.saved_model.loader_impl import (
    SavedModelLoader,
    get_asset_tensors,
    get_init_op,
)

from tf_infer.errors import ConfigError
from tf_infer.manifest import ModelManifest
from tf_infer.prepared import prepared_folder, read_prepared, source_of, surroundings, unfit
from tf_infer.processor import cpu_flags
from tf_infer.server import cpus
from tf_infer.server.logs import event
from tf_infer.server.quick_graph import CALLERS_THREAD

T = TypeVar("T")
PREPARED = "prepared graph"  # in the log
TAGS = ("serve",)  # of what an export of ours writes
PIECE_NODES = 200  # of a graph or its functions, imported at once: some milliseconds
REST = 2.0  # of what a piece took, in which others have the interpreter lock for themselves


class GentleSession(tf.compat.v1.Session):
    """A session whose runs from Python, those that load a SavedModel, give way to others.

    Building the graph before them needs the interpreter lock, for which others would wait, the
    longer the less this thread gets to run.
    """

    def run(self, fetches: Any, feed_dict: Any = None, options: Any = None,
            run_metadata: Any = None) -> Any:
        cpus.give_way()
        options = options or tf.compat.v1.RunOptions(inter_op_thread_pool=CALLERS_THREAD)
        return super().run(fetches, feed_dict, options, run_metadata)


def prepared_graph(path: Path, manifest: ModelManifest | None, tags: Sequence[str], settings: Any,
                   ) -> bytes | None:
    """Return the prepared graph of a version; None where saved_model.pb is to be run.

    Args:
        path: version directory.
        manifest: of the version, whose files are as it says; None where it is not ours.
        tags: of the meta graph.
        settings: of the session. Whoever configures TensorFlow's optimiser has their way.
    """
    if manifest is None or tuple(tags) != TAGS or settings.HasField("graph_options"):
        return None
    try:
        prepared = read_prepared(path)
    except ConfigError as error:  # of a newer form, or torn
        event("load", logging.WARNING, path=path, passed_over=PREPARED, error=str(error))
        return None
    if prepared is None:
        return None
    here = surroundings(tf.__version__, cpu_flags() or (),
                        gpus=len(tf.config.list_physical_devices("GPU")))
    reason = unfit(prepared, manifest.files, here)
    if reason:
        event("load", path=path, passed_over=PREPARED, reason=reason)
        return None
    return (prepared_folder(path) / prepared.file).read_bytes()


def load(session: Any, path: Path, tags: Sequence[str], *, gently: bool) -> Any:
    """Load a SavedModel into a session; return its MetaGraphDef.

    Raises whatever TensorFlow's own loader raises.
    """
    with session.graph.as_default(), _quiet():
        loader = _InPieces if gently else SavedModelLoader
        return loader(str(path)).load(session, list(tags))


def load_prepared(session: Any, path: Path, graph: bytes, *, gently: bool) -> Any:
    """Load a prepared graph and the variables of its SavedModel; return its MetaGraphDef.

    Args:
        session: whose settings leave TensorFlow's optimiser out.
        path: version directory.
        graph: a serialized MetaGraphDef, as `export.prepared` writes it.
        gently: others are being answered meanwhile, and get time between the pieces.
    """
    meta_graph = meta_graph_pb2.MetaGraphDef.FromString(graph)
    with session.graph.as_default(), _quiet():
        _import_functions(session.graph, meta_graph.graph_def)
        _import_nodes(session.graph, meta_graph.graph_def, REST if gently else 0.0)
        if meta_graph.HasField("saver_def"):
            saver = tf.compat.v1.train.Saver(saver_def=meta_graph.saver_def)
            saver.restore(session, str(path / "variables" / "variables"))
        session.run(get_init_op(meta_graph), get_asset_tensors(str(path), meta_graph))
    return meta_graph


class _InPieces(SavedModelLoader):
    """Imports the functions of a graph a few at a time.

    TensorFlow holds the interpreter lock while it imports: 50 ms for those of a small BERT at once,
    in which nobody is answered.
    """

    def load_graph(self, graph: Any, tags: Any, import_scope: Any = None, **saver: Any) -> Any:
        _import_functions(graph, self.get_meta_graph_def_from_tags(tags).graph_def)
        return super().load_graph(graph, tags, import_scope, **saver)


def _import_functions(graph: Any, whole: Any) -> None:
    """Import the functions of a GraphDef in pieces, and take them out of it."""
    functions = list(whole.library.function)
    for piece in pieces(functions, [len(one.node_def) for one in functions], PIECE_NODES):
        part = tf.compat.v1.GraphDef(versions=whole.versions)
        part.library.function.extend(piece)
        with graph.as_default():
            tf.import_graph_def(part, name="")
    del whole.library.function[:]


def _import_nodes(graph: Any, whole: Any, rest: float) -> None:
    """Import the nodes of a GraphDef in pieces; what stands in an earlier one is in the graph.

    After each piece this thread sleeps for `rest` times what it took.
    """
    nodes = list(whole.node)
    at = {node.name: number for number, node in enumerate(nodes)}
    reads = [[at[source_of(name)] for name in node.input] for node in nodes]
    silent = {number for number, node in enumerate(nodes)
              if not getattr(op_def_registry.get(node.op), "output_arg", ())}
    begin = 0
    for end in cuts(reads, silent, PIECE_NODES):
        began_s = time.monotonic()
        part = tf.compat.v1.GraphDef(versions=whole.versions)
        part.node.extend(nodes[begin:end])
        earlier = {name for node in part.node for name in node.input if at[source_of(name)] < begin}
        with graph.as_default():
            tf.import_graph_def(part, name="", input_map={
                name: _tensor(graph, name) for name in earlier})
        begin = end
        time.sleep(rest * (time.monotonic() - began_s))


def _tensor(graph: Any, reference: str) -> Any:
    """Return the tensor that an input names; for one that only waits, any of its node's."""
    name, _, output = reference.lstrip("^").partition(":")
    return graph.get_tensor_by_name(f"{name}:{output or 0}")


def cuts(reads: Sequence[Iterable[int]], silent: Collection[int], least: int) -> Iterator[int]:
    """Yield where a list may be cut, the end of each piece; the last piece may be short.

    Args:
        reads: of each item, those it reads; later ones must be in the same piece.
        silent: items that only those of the same piece can read.
        least: items of a piece.
    """
    together = list(range(len(reads)))  # the last item that must be in the piece of each
    for number, sources in enumerate(reads):
        for source in sources:
            if source > number:
                together[number] = max(together[number], source)
            elif source in silent:
                together[source] = max(together[source], number)
    begin = last = 0
    for number, needed in enumerate(together):
        last = max(last, needed)
        if number >= last and number + 1 - begin >= least:
            yield number + 1
            begin = number + 1
    if begin < len(together):
        yield len(together)


def pieces(items: Sequence[T], sizes: Sequence[int], most: int) -> Iterator[list[T]]:
    """Yield the items in order, in lists whose sizes add up to no more than `most`, or of one."""
    piece: list[T] = []
    size = 0
    for item, own in zip(items, sizes):
        if piece and size + own > most:
            yield piece
            piece, size = [], 0
        piece.append(item)
        size += own
    if piece:
        yield piece


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what TensorFlow logs of every load in this thread to itself, but for errors."""
    logger, thread = tf.get_logger(), threading.get_ident()

    def told(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= logging.ERROR

    logger.addFilter(told)
    try:
        yield
    finally:
        logger.removeFilter(told)
