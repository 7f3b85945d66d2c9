"""How a graph gets into a session: a SavedModel as it is, or the graph that an export prepared.

Either whole, or in pieces of some milliseconds while others are being answered.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.client import pywrap_tf_session as c_api
from tensorflow.python.saved_model.constants import INIT_OP_SIGNATURE_KEY, MAIN_OP_KEY
from tensorflow.python.saved_model.loader_impl import SavedModelLoader, get_asset_tensors

from tf_infer.errors import ConfigError
from tf_infer.manifest import ModelManifest
from tf_infer.prepared import prepared_folder, read_prepared, source_of, surroundings, unfit
from tf_infer.processor import cpu_flags
from tf_infer.server.cpus import Behind
from tf_infer.server.graph_pieces import Piece, apart, in_lists, pieces
from tf_infer.server.logs import event
from tf_infer.server.quick_graph import CALLERS_THREAD
from tf_infer.server.unlocked_import import unlocked_import

T = TypeVar("T")
PREPARED = "prepared graph"  # in the log
TAGS = ("serve",)  # of what an export of ours writes
PIECE_NODES = 200  # of a graph or its functions, imported at once: some milliseconds


class GentleSession(tf.compat.v1.Session):
    """A session whose runs from Python, those that load a SavedModel, give way to others.

    The thread that builds the graph does not: it needs the interpreter lock, for which others would
    wait, the longer the less it gets to run.
    """

    def __init__(self, behind: Behind, **options: Any) -> None:
        super().__init__(**options)
        self._behind = behind

    def run(self, fetches: Any, feed_dict: Any = None, options: Any = None,
            run_metadata: Any = None) -> Any:
        return self._behind(functools.partial(
            super().run, fetches, feed_dict, options or _in_this_thread(), run_metadata))


class Loaded(NamedTuple):
    """What a load leaves behind.

    Attributes:
        meta_graph: the MetaGraphDef; of a prepared graph without its graph.
        tensor: gives the C handle of a tensor of the graph by its name.

    Raises:
        KeyError, ValueError: `tensor`, the graph has none of this name.
    """

    meta_graph: Any
    tensor: Callable[[str], Any]


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


def load(session: Any, path: Path, tags: Sequence[str], *, gently: bool) -> Loaded:
    """Load a SavedModel into a session.

    Raises whatever TensorFlow's own loader raises.
    """
    graph = session.graph
    with graph.as_default(), _quiet():
        loader = _InPieces if gently else SavedModelLoader
        meta_graph = loader(str(path)).load(session, list(tags))
    return Loaded(meta_graph, lambda name: graph.get_tensor_by_name(name)._as_tf_output())


def load_prepared(session: Any, path: Path, data: bytes, behind: Behind | None) -> Loaded:
    """Load a prepared graph and the variables of its SavedModel.

    Args:
        session: whose settings leave TensorFlow's optimiser out.
        path: version directory.
        data: a serialized MetaGraphDef, as `export.prepared` writes it.
        behind: does what needs no interpreter lock while others are being answered, who get time
            between the pieces; None where nobody is.

    Raises:
        tf.errors.OpError, KeyError, ValueError, IndexError: it is none.
    """
    rest, whole = apart(data)
    meta_graph = meta_graph_pb2.MetaGraphDef.FromString(rest)
    graph = BareGraph(session)
    began_s = time.thread_time()
    for piece in pieces(whole):
        graph.add(piece, behind)
        if behind is not None:
            behind.rest(time.thread_time() - began_s)
            began_s = time.thread_time()
    saver = meta_graph.saver_def
    if saver.restore_op_name:
        graph.run(saver.restore_op_name, behind, {
            saver.filename_tensor_name: str(path / "variables" / "variables").encode()})
    graph.run(_init_name(meta_graph), behind, get_asset_tensors(str(path), meta_graph))
    names = {info.name for signature in meta_graph.signature_def.values()
             for side in (signature.inputs, signature.outputs) for info in side.values()}
    # Nor does Python's call take a signature's operation for a tensor.
    return Loaded(meta_graph, {name: graph.tensor(name)
                               for name in names if ":" in name}.__getitem__)


def _init_name(meta_graph: Any) -> str:
    """Return the operation that fills tables."""
    if INIT_OP_SIGNATURE_KEY in meta_graph.signature_def:
        outputs = meta_graph.signature_def[INIT_OP_SIGNATURE_KEY].outputs
        return str(outputs[INIT_OP_SIGNATURE_KEY].name)
    (name,) = meta_graph.collection_def[MAIN_OP_KEY].node_list.value
    return str(name)


class BareGraph:
    """The graph of a session without Python's objects for its operations and tensors.

    They take longer to make than the import, and whoever collects garbage looks at all of them
    while nobody is answered.

    Args:
        session: whose graph it is.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self._unlocked = unlocked_import(session, tf.sysconfig.get_lib())
        self._operations: dict[str, Any] = {}
        self._seen = 0  # how far `operation` has looked

    def add(self, piece: Piece, behind: Behind | None) -> None:
        """Import a piece.

        Raises:
            tf.errors.OpError: it is no graph.
            KeyError: a node reads from one that is in no piece so far.
        """
        if self._unlocked is not None:
            code, text = self._unlocked.add(piece.data, piece.earlier, behind or _at_once)
            if code:
                raise tf.compat.v1.errors.exception_type_from_error_code(code)(None, None, text)
            return
        options = c_api.TF_NewImportGraphDefOptions()
        data = c_api.TF_NewBufferFromString(piece.data)
        try:
            c_api.TF_ImportGraphDefOptionsSetPrefix(options, "")
            for name in piece.earlier:
                if name.startswith("^"):
                    c_api.TF_ImportGraphDefOptionsRemapControlDependency(
                        options, name[1:], self.operation(name[1:]))
                else:
                    tensor = self.tensor(name)
                    c_api.TF_ImportGraphDefOptionsAddInputMapping(
                        options, source_of(name), tensor.index, tensor)
            with self._session.graph._c_graph.get() as held:
                c_api.TF_DeleteImportGraphDefResults(
                    c_api.TF_GraphImportGraphDefWithResults(held, data, options))
        finally:
            c_api.TF_DeleteBuffer(data)
            c_api.TF_DeleteImportGraphDefOptions(options)

    def operation(self, name: str) -> Any:
        """Return the C handle of an operation.

        Raises:
            KeyError: there is none.
        """
        while name not in self._operations:
            with self._session.graph._c_graph.get() as held:
                found, self._seen = c_api.TF_GraphNextOperation(held, self._seen)
            if found is None:
                raise KeyError(name)
            self._operations[c_api.TF_OperationName(found)] = found
        return self._operations[name]

    def tensor(self, name: str) -> Any:
        """Return the C handle of a tensor, "name" or "name:1".

        Raises:
            KeyError, ValueError: there is none.
        """
        source, _, output = name.partition(":")
        found = c_api.TF_Output()
        found.oper, found.index = self.operation(source), int(output or 0)
        if not 0 <= found.index < c_api.TF_OperationNumOutputs(found.oper):
            raise KeyError(name)
        return found

    def run(self, operation: str, behind: Behind | None, feeds: Mapping[str, bytes]) -> None:
        """Run an operation for what it does.

        Args:
            operation: its name, or that of a tensor of it.
            behind: as of `load_prepared`.
            feeds: strings by the names of tensors.

        Raises:
            tf.errors.OpError: it failed.
            KeyError, ValueError: one of these is not in the graph.
        """
        fed = {self.tensor(name): np.asarray(value, object) for name, value in feeds.items()}
        target = self.operation(source_of(operation))
        options = c_api.TF_NewBufferFromString(
            _in_this_thread().SerializeToString()) if behind else None

        def run() -> None:
            self._session._extend_graph()
            self._session._call_tf_sessionrun(options, fed, [], [target], None)

        try:
            (behind or _at_once)(run)
        finally:
            if options is not None:
                c_api.TF_DeleteBuffer(options)


def free(session: Any) -> None:
    """Close a session, and let its graph go.

    Whoever lets go last frees the graph. The session does so without the interpreter lock, when it
    goes.
    """
    session.close()
    session._graph = None


def _at_once(act: Callable[[], T]) -> T:
    return act()


def _in_this_thread() -> Any:
    """Return RunOptions of a run that leaves TensorFlow's pool to others."""
    return tf.compat.v1.RunOptions(inter_op_thread_pool=CALLERS_THREAD)


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
    for part_of_them in in_lists(functions, [len(one.node_def) for one in functions], PIECE_NODES):
        part = tf.compat.v1.GraphDef(versions=whole.versions)
        part.library.function.extend(part_of_them)
        with graph.as_default():
            tf.import_graph_def(part, name="")
    del whole.library.function[:]


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
