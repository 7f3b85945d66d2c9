"""TensorFlow's import of a graph, through its C library: without the interpreter lock.

The Python binding holds the lock while TensorFlow imports, and nobody is answered meanwhile. The C
functions called here are TensorFlow's published C API. This file does not import TensorFlow.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tf_infer.prepared import source_of

T = TypeVar("T")
LIBRARY = "libtensorflow_cc.so.2"
_WORD = ctypes.sizeof(ctypes.c_void_p)
_HEAD_WORDS = object.__basicsize__ // _WORD  # of every Python object

_Pointer = ctypes.c_void_p


class _Output(ctypes.Structure):
    _fields_ = (("oper", _Pointer), ("index", ctypes.c_int))


_FUNCTIONS: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "TF_NewStatus": (_Pointer, ()),
    "TF_GetCode": (ctypes.c_int, (_Pointer,)),
    "TF_Message": (ctypes.c_char_p, (_Pointer,)),
    "TF_DeleteStatus": (None, (_Pointer,)),
    "TF_NewBufferFromString": (_Pointer, (ctypes.c_char_p, ctypes.c_size_t)),
    "TF_DeleteBuffer": (None, (_Pointer,)),
    "TF_NewImportGraphDefOptions": (_Pointer, ()),
    "TF_ImportGraphDefOptionsSetPrefix": (None, (_Pointer, ctypes.c_char_p)),
    "TF_ImportGraphDefOptionsAddInputMapping": (
        None, (_Pointer, ctypes.c_char_p, ctypes.c_int, _Output)),
    "TF_ImportGraphDefOptionsRemapControlDependency": (
        None, (_Pointer, ctypes.c_char_p, _Pointer)),
    "TF_DeleteImportGraphDefOptions": (None, (_Pointer,)),
    "TF_GraphOperationByName": (_Pointer, (_Pointer, ctypes.c_char_p)),
    "TF_GraphImportGraphDef": (None, (_Pointer, _Pointer, _Pointer, _Pointer)),
}


class _Library(NamedTuple):
    """TensorFlow's C library; `holding` keeps the interpreter lock, for what takes no time."""

    holding: ctypes.PyDLL
    releasing: ctypes.CDLL


class UnlockedImport:
    """Imports parts of a graph into that of a session.

    Args:
        library: TensorFlow's.
        graph: where the TF_Graph of the session lies.
    """

    def __init__(self, library: _Library, graph: int) -> None:
        self._library = library
        self._graph = graph

    def add(self, data: bytes, earlier: Iterable[str], do: Callable[[Callable[[], T]], T],
            ) -> tuple[int, str]:
        """Import a part; return TensorFlow's error code, 0 if there is none, and what it says.

        Args:
            data: a GraphDef.
            earlier: inputs of its nodes that the graph has already, as a node names them.
            do: calls what it is given, in any thread, which needs no interpreter lock.

        Raises:
            KeyError: the graph does not have one of those inputs.
        """
        quick = self._library.holding
        options, status = quick.TF_NewImportGraphDefOptions(), quick.TF_NewStatus()
        buffer = quick.TF_NewBufferFromString(data, len(data))
        try:
            quick.TF_ImportGraphDefOptionsSetPrefix(options, b"")
            for name in earlier:
                self._map(options, name)
            do(functools.partial(self._library.releasing.TF_GraphImportGraphDef,
                                 self._graph, buffer, options, status))
            return (quick.TF_GetCode(status),
                    quick.TF_Message(status).decode("utf-8", "replace"))
        finally:
            quick.TF_DeleteBuffer(buffer)
            quick.TF_DeleteStatus(status)
            quick.TF_DeleteImportGraphDefOptions(options)

    def _map(self, options: int, name: str) -> None:
        quick, source = self._library.holding, source_of(name)
        operation = quick.TF_GraphOperationByName(self._graph, source.encode())
        if not operation:
            raise KeyError(name)
        if name.startswith("^"):
            quick.TF_ImportGraphDefOptionsRemapControlDependency(
                options, source.encode(), operation)
        else:
            index = int(name.partition(":")[2] or 0)
            quick.TF_ImportGraphDefOptionsAddInputMapping(
                options, source.encode(), index, _Output(operation, index))


def unlocked_import(session: Any, folder: str) -> UnlockedImport | None:
    """Return what imports into the graph of a session; None where that cannot be had.

    Args:
        session: TensorFlow's.
        folder: of TensorFlow's libraries.
    """
    library = _library(folder)
    graph = None if library is None else graph_address(session)
    return None if library is None or graph is None else UnlockedImport(library, graph)


@functools.cache
def _library(folder: str) -> _Library | None:
    path = Path(folder) / LIBRARY
    if sys.platform != "linux" or not path.is_file():
        return None
    loaded = os.RTLD_NOLOAD | os.RTLD_NOW  # a second TensorFlow beside that of the process: never
    try:
        found = _Library(ctypes.PyDLL(str(path), loaded), ctypes.CDLL(str(path), loaded))
        for one in found:
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(one, name)
                function.restype, function.argtypes = result, arguments
    except (AttributeError, OSError):
        return None
    return found


def graph_address(session: Any) -> int | None:
    """Return where the TF_Graph of a session lies; None where that is not sure.

    The binding's object for the session holds the address of the TF_Session, whose second word is
    the graph's (tensorflow/c/c_api_internal.h). Python's graph must hold the same address.
    """
    found = _read(_words(session._session)[_HEAD_WORDS] + _WORD)
    return found if found and found in _words(session.graph) else None


def _words(given: Any) -> memoryview[int]:
    """Return the memory of a Python object itself, in words."""
    size = type(given).__basicsize__ // _WORD * _WORD
    return memoryview(ctypes.string_at(id(given), size)).cast("P")


def _read(address: int) -> int | None:
    """Return the word at an address; None where there is no memory, or it may not be read."""
    try:
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            return int.from_bytes(os.pread(memory.fileno(), _WORD, address), sys.byteorder)
    except (OSError, OverflowError):
        return None
