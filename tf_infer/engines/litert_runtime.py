"""LiteRT's C library through ctypes: a model file, its signatures, arrays bound to their tensors.

The library's own Python classes hold the interpreter lock while they compute and take arrays of
one axis only; its C functions do neither. Those used here are part of LiteRT's published C API.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import mmap
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tf_infer.errors import BackendMissing, ExportError

PACKAGE = "ai-edge-litert"
RELEASES = ("2.3",)  # whose C functions take the arguments that are given here
ALIGNMENT = 64  # bytes; of every array that is bound
_CPU = 1
_TYPE_BYTES = 256  # room for LiteRtRankedTensorType, which is passed on unread
# One packed copy of the weights for all signatures, in memory (XNNPACK's own name for it).
_WEIGHT_CACHE = ":memory"
# Of int8 weights every graph has scales and zero points of its own; the latter are all 0.
_ONE_ZERO_POINT = "compress_quantization_zero_points = true\n"

_Pointer = ctypes.c_void_p
_Out = ctypes.POINTER(ctypes.c_void_p)
_Size = ctypes.c_size_t
_Text = ctypes.POINTER(ctypes.c_char_p)
_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_FUNCTIONS: Mapping[str, tuple[Any, ...]] = {
    "LiteRtCreateEnvironment": (ctypes.c_int, _Pointer, _Out),
    "LiteRtCreateModelFromBuffer": (_Pointer, _Pointer, _Size, _Out),
    "LiteRtCreateOptions": (_Out,),
    "LiteRtSetOptionsHardwareAccelerators": (_Pointer, ctypes.c_int),
    "LiteRtCreateOpaqueOptions": (ctypes.c_char_p, _Pointer, _Deleter, _Out),
    "LiteRtAddOpaqueOptions": (_Pointer, _Pointer),
    "LiteRtCreateCompiledModel": (_Pointer, _Pointer, _Pointer, _Out),
    "LiteRtRunCompiledModel": (_Pointer, _Size, _Size, _Out, _Size, _Out),
    "LiteRtCreateTensorBufferFromHostMemory": (_Pointer, _Pointer, _Size, _Pointer, _Out),
    "LiteRtGetNumModelSignatures": (_Pointer, ctypes.POINTER(_Size)),
    "LiteRtGetModelSignature": (_Pointer, _Size, _Out),
    "LiteRtGetSignatureKey": (_Pointer, _Text),
    "LiteRtGetNumSignatureInputs": (_Pointer, ctypes.POINTER(_Size)),
    "LiteRtGetNumSignatureOutputs": (_Pointer, ctypes.POINTER(_Size)),
    "LiteRtGetSignatureInputName": (_Pointer, _Size, _Text),
    "LiteRtGetSignatureOutputName": (_Pointer, _Size, _Text),
    "LiteRtGetSignatureInputTensorByIndex": (_Pointer, _Size, _Out),
    "LiteRtGetSignatureOutputTensorByIndex": (_Pointer, _Size, _Out),
    "LiteRtGetRankedTensorType": (_Pointer, _Pointer),
}
_DESTROY = ("LiteRtDestroyTensorBuffer", "LiteRtDestroyCompiledModel", "LiteRtDestroyOptions",
            "LiteRtDestroyModel", "LiteRtDestroyEnvironment")


class _Option(ctypes.Structure):
    """A LiteRtEnvOption that holds a whole number; LiteRT promises that its layout stays."""

    # `kind` has four bytes and stands at a multiple of eight.
    _fields_ = (("tag", ctypes.c_int), ("kind", ctypes.c_int64), ("value", ctypes.c_int64))


_INT = 2
_ONLY_CPU = (24, _INT, _CPU)  # else it looks for libraries of GPUs
_ERRORS_ONLY = (25, _INT, 3)  # else it tells a dozen lines at each load


class _Signature(NamedTuple):
    """Place in the model, and name and tensor type of each input and output, in order."""

    place: int
    inputs: tuple[tuple[str, Any], ...]
    outputs: tuple[tuple[str, Any], ...]


def release() -> str:
    """Return the installed release of LiteRT.

    Raises:
        BackendMissing: none is installed, or one whose C functions are not known here.
    """
    try:
        found = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise BackendMissing(
            f"engine litert: expected the package {PACKAGE}, got none. Run pip install "
            "'tf-infer[server]'.") from error
    if not found.startswith(tuple(f"{one}." for one in RELEASES)):
        raise BackendMissing(
            f"engine litert: expected {PACKAGE} {' or '.join(RELEASES)}, got {found}. Run pip "
            "install 'tf-infer[server]'.")
    return found


def _library() -> ctypes.CDLL:
    """Load the library and say what its functions take."""
    release()
    spec = importlib.util.find_spec("ai_edge_litert")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations)))
    try:
        library = ctypes.CDLL(str(folder / "libLiteRt.so"))
        for name, arguments in _FUNCTIONS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
        for name in _DESTROY:
            function = getattr(library, name)
            function.argtypes, function.restype = (_Pointer,), None
    except (OSError, AttributeError) as error:
        raise BackendMissing(
            f"engine litert: expected {PACKAGE} to bring its C library, got {error}. Install the "
            "package again; it is built for Linux on x86-64 and ARM64.") from error
    return library


class _Mapped:
    """A file in memory, of which pages come and go as they are looked at.

    Raises:
        ExportError: it cannot be mapped.
    """

    def __init__(self, path: Path) -> None:
        try:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: it is empty
            raise ExportError(f"{path}: expected the engine's model, got {error}. Export the model "
                              "again.") from error
        self._bytes: np.ndarray | None = np.frombuffer(self._map, np.uint8)
        self.address, self.size = int(self._bytes.ctypes.data), len(self._bytes)

    def leave(self) -> None:
        """Keep no page of it: whoever looks at one fetches it anew."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Take it out of memory; nobody may look at it any more."""
        self._bytes = None
        self._map.close()


class Model:
    """A compiled model file.

    Args:
        path: of the file.
        threads: that compute one call.
        library: LiteRT's functions; None loads them.

    Attributes:
        signatures: names of all signatures.

    Raises:
        BackendMissing: the library is missing.
        ExportError: the file cannot be read or compiled.
    """

    def __init__(self, path: Path, *, threads: int, library: Any = None) -> None:
        self._library = library or _library()
        self._path = Path(path)
        self._calls: set[Call] = set()
        self._known: dict[bytes | str, Any] = {}
        self._settings: list[Any] = []  # the options point to them
        self._deleter = _Deleter(lambda _: None)
        self._environment: Any = None
        self._model: Any = None
        self._compiled: Any = None
        self._file = _Mapped(self._path)
        try:
            self._open(threads)
        except BaseException:
            self.close()
            raise
        self.signatures = tuple(self._signatures)
        self.settle()

    def _open(self, threads: int) -> None:
        options = (_Option * 2)(_Option(*_ONLY_CPU), _Option(*_ERRORS_ONLY))
        self._environment = self._make("LiteRtCreateEnvironment", 2, ctypes.byref(options))
        self._model = self._make("LiteRtCreateModelFromBuffer", self._environment,
                                 self._file.address, self._file.size)
        self._compiled = self._compile(threads)
        self._signatures = dict(map(self._signature, range(self._count(
            "LiteRtGetNumModelSignatures", self._model))))
        # It describes every operation and tensor anew; what is compiled looks at the file alone.
        self._library.LiteRtDestroyModel(self._model)
        self._model = None

    def _compile(self, threads: int) -> Any:
        options = self._make("LiteRtCreateOptions")
        try:
            self._ask("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
            self._set(options, b"runtime_options_string", _ONE_ZERO_POINT)
            self._set(options, b"xnnpack", f"num_threads = {threads}\n"
                                           f'weight_cache_file_path = "{_WEIGHT_CACHE}"\n')
            return self._make(
                "LiteRtCreateCompiledModel", self._environment, self._model, options)
        finally:
            self._library.LiteRtDestroyOptions(options)

    def settle(self) -> None:
        """Give back to the system what is needed no more, as after the first run of each graph."""
        self._file.leave()
        with suppress(AttributeError):  # glibc alone has it
            ctypes.CDLL(None).malloc_trim(0)

    def inputs(self, name: str) -> tuple[str, ...]:
        """Return the names of a signature's inputs."""
        return tuple(tensor for tensor, _ in self._signatures[name].inputs)

    def bind(self, name: str, arrays: Mapping[str, np.ndarray]) -> Call:
        """Return a call of a signature that reads and writes `arrays`, by tensor name.

        Args:
            name: of the signature.
            arrays: one for each input and output, of its shape and dtype, from `aligned` or a
                part of such that begins at a multiple of ALIGNMENT bytes. They are not copied.
        """
        signature = self._signatures[name]
        made: list[Any] = []
        try:
            for tensor, kind in (*signature.inputs, *signature.outputs):
                made.append(self._buffer(kind, arrays[tensor]))
        except BaseException:
            self._free(made)
            raise
        sides: list[Any] = []
        for own in (made[:len(signature.inputs)], made[len(signature.inputs):]):
            sides += [len(own), (_Pointer * len(own))(*own)]
        call = Call(self, signature.place, tuple(sides), arrays)
        self._calls.add(call)
        return call

    def unbind(self, call: Call) -> None:
        """Free what binding arrays took; the call is made no more."""
        for buffers in call.sides[1::2]:
            self._free(buffers)
        self._calls.remove(call)

    def _free(self, buffers: Iterable[Any]) -> None:
        for buffer in buffers:
            self._library.LiteRtDestroyTensorBuffer(buffer)

    def close(self) -> None:
        """Free the model; no call follows."""
        library = self._library
        for call in tuple(self._calls):
            self.unbind(call)
        for name in ("compiled", "model", "environment"):
            handle = getattr(self, f"_{name}")
            if handle is not None:
                getattr(library, {"compiled": "LiteRtDestroyCompiledModel",
                                  "model": "LiteRtDestroyModel",
                                  "environment": "LiteRtDestroyEnvironment"}[name])(handle)
            setattr(self, f"_{name}", None)
        self._file.close()

    def run(self, place: int, sides: tuple[Any, ...]) -> None:
        """Run a signature; other Python threads run meanwhile."""
        self._ask("LiteRtRunCompiledModel", self._compiled, place, *sides)

    def _set(self, options: Any, part: bytes, text: str) -> None:
        """Add settings of a part of LiteRT, written as TOML."""
        self._settings.append(ctypes.create_string_buffer(text.encode()))
        self._ask("LiteRtAddOpaqueOptions", options, self._make(
            "LiteRtCreateOpaqueOptions", part, ctypes.cast(self._settings[-1], _Pointer),
            self._deleter))

    def _buffer(self, kind: Any, array: np.ndarray) -> Any:
        address = array.ctypes.data
        assert array.flags.c_contiguous and address % ALIGNMENT == 0
        return self._make("LiteRtCreateTensorBufferFromHostMemory", kind, address, array.nbytes,
                          None)

    def _signature(self, index: int) -> tuple[str, _Signature]:
        handle = self._make("LiteRtGetModelSignature", self._model, index)
        sides = []
        for side in ("Input", "Output"):
            tensors = []
            for place in range(self._count(f"LiteRtGetNumSignature{side}s", handle)):
                name = self._text(f"LiteRtGetSignature{side}Name", handle, place)
                tensor = self._make(f"LiteRtGetSignature{side}TensorByIndex", handle, place)
                kind = ctypes.create_string_buffer(_TYPE_BYTES)
                self._ask("LiteRtGetRankedTensorType", tensor, ctypes.cast(kind, _Pointer))
                # Graphs have names and types in common: each is kept once.
                tensors.append((self._known.setdefault(name, name),
                                self._known.setdefault(kind.raw, kind)))
            sides.append(tuple(tensors))
        return self._text("LiteRtGetSignatureKey", handle), _Signature(index, *sides)

    def _text(self, name: str, *arguments: Any) -> str:
        found = ctypes.c_char_p()
        self._ask(name, *arguments, ctypes.byref(found))
        assert found.value is not None
        return found.value.decode()

    def _count(self, name: str, *arguments: Any) -> int:
        found = _Size()
        self._ask(name, *arguments, ctypes.byref(found))
        return found.value

    def _make(self, name: str, *arguments: Any) -> Any:
        found = ctypes.c_void_p()
        self._ask(name, *arguments, ctypes.byref(found))
        return found

    def _ask(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise ExportError(f"{self._path}: expected a model that LiteRT runs, got status "
                              f"{status} of {name}. Export the model again.")


class Call:
    """A signature with arrays bound to its tensors; call it to compute."""

    def __init__(self, model: Model, place: int, sides: tuple[Any, ...],
                 arrays: Mapping[str, np.ndarray]) -> None:
        self._model, self._place, self.sides = model, place, sides
        self._arrays = dict(arrays)  # kept alive: the library holds their addresses

    def __call__(self) -> None:
        self._model.run(self._place, self.sides)


def aligned(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """Return zeros that can be bound; memory is taken from the system as it is written to."""
    count = int(np.prod(shape))
    # A kernel may read a little past the end of what it was given.
    size = count * np.dtype(dtype).itemsize + mmap.PAGESIZE
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, dtype, count).reshape(shape)
