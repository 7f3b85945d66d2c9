"""Plain values <-> request and response messages. Knows no network.

A message that lacks what its reader needs raises InvalidRequest or ShapeError; the side that reads
it says whose fault that is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tf_infer.errors import ConfigError, InvalidRequest, ShapeError
from tf_infer.wire import blocks, dtypes, methods, tensors, varint
from tf_infer.wire import serving_pb2 as pb

SERVING_DEFAULT = "serving_default"
SIGNATURE_DEF = "signature_def"
MAX_VERSION = 2**63 - 1
_OUTPUTS = pb.PredictResponse.DESCRIPTOR.fields_by_name["outputs"].number
_KEY, _VALUE = 1, 2  # of an entry of a map


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Which model answers: the highest version that is available, one version, or a label.

    Attributes:
        name: as the server calls it.
        version: 0 to 2**63 - 1, or None.
        label: a version label such as "stable", or None; not together with `version`.
    """

    name: str
    version: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"ModelRef.name: expected a name, got {self.name!r}.")
        if self.version is not None and self.label is not None:
            raise ConfigError("ModelRef: expected a version or a label, got both. Leave one out.")
        if self.version is not None and (isinstance(self.version, bool) or not isinstance(
                self.version, int) or not 0 <= self.version <= MAX_VERSION):
            raise ConfigError(f"ModelRef.version: expected a whole number from 0 to 2**63 - 1, "
                              f"got {self.version!r}.")
        if self.label is not None and (not isinstance(self.label, str) or not self.label):
            raise ConfigError(f"ModelRef.label: expected a label such as 'stable', "
                              f"got {self.label!r}.")

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.name} version {self.version}"
        return f"{self.name} label {self.label!r}" if self.label else self.name


def model_spec(ref: ModelRef, signature: str = "") -> Any:
    """Return the ModelSpec of a reference and a signature name."""
    spec = pb.ModelSpec(name=ref.name, signature_name=signature)
    if ref.version is not None:
        spec.version.value = ref.version
    elif ref.label is not None:
        spec.version_label = ref.label
    return spec


def read_model_spec(spec: Any) -> ModelRef:
    """Return the reference in a ModelSpec (of a response: name and the version that ran)."""
    choice = spec.WhichOneof("version_choice")
    return ModelRef(spec.name, version=spec.version.value if choice == "version" else None,
                    label=(spec.version_label or None) if choice == "version_label" else None)


# ---------------------------------------------------------------------------- Predict


def predict_request(ref: ModelRef, inputs: Mapping[str, np.ndarray], *,
                    signature: str = SERVING_DEFAULT, outputs: Sequence[str] = (),
                    dtypes_by_name: Mapping[str, str] | None = None) -> Any:
    """Return a PredictRequest.

    Args:
        ref: the model.
        inputs: name -> array; see `tensors.write`.
        signature: its name.
        outputs: the wanted outputs; empty for all.
        dtypes_by_name: dtypes to send inputs as, where not their own ("bfloat16").

    Raises:
        ShapeError: an input that cannot be sent.
    """
    request = pb.PredictRequest(model_spec=model_spec(ref, signature), output_filter=outputs)
    tensors.write_all(inputs, request.inputs, dtypes_by_name=dtypes_by_name)
    return request


class PredictAnswer(NamedTuple):
    """What a PredictResponse holds.

    Attributes:
        model_spec: name, version that ran, signature.
        outputs: name -> array.
    """

    model_spec: Any
    outputs: dict[str, np.ndarray]


def read_predict_response(data: bytes, *, where: str) -> PredictAnswer:
    """Read the bytes of a PredictResponse; see `tensors.to_array`.

    Raises:
        InvalidRequest: they are none.
        ShapeError: a tensor that cannot be read.
    """
    left, found = blocks.cut(data)
    response = methods.parse(pb.PredictResponse, left, where=where)
    return PredictAnswer(response.model_spec, tensors.read_all(response.outputs, blocks=found))


def predict_response_bytes(name: str, version: int | None, signature: str,
                           outputs: Mapping[str, np.ndarray], *, content: bool = False) -> bytes:
    """Return a PredictResponse as a server writes it, put together without a message.

    Args:
        name, version: of the model that ran.
        signature: ... of it.
        outputs: name -> array; see `tensors.write`.
        content: numbers go into `tensor_content` and not into typed fields (PR13).
    """
    parts = [varint.field(_OUTPUTS, _key(output) + varint.field(
        _VALUE, tensors.encode(array, content=content, where=output)))
        for output, array in outputs.items()]
    return b"".join((*parts, _spec(name, version, signature)))


@functools.lru_cache(maxsize=1024)
def _key(name: str) -> bytes:
    """Return the key of an entry of a map."""
    return varint.field(_KEY, name.encode())


@functools.lru_cache(maxsize=1024)
def _spec(name: str, version: int | None, signature: str) -> bytes:
    """Return the ModelSpec of a PredictResponse."""
    made = pb.PredictResponse(model_spec=model_spec(ModelRef(name, version), signature))
    data: bytes = made.SerializeToString()
    return data


# ---------------------------------------------------------------------------- Classify and Regress


def read_classifications(response: Any) -> list[list[tuple[str, float]]]:
    """Return, for each example, its classes as (label, score) in the server's order."""
    return [[(item.label, item.score) for item in row.classes]
            for row in response.result.classifications]


def read_regressions(response: Any) -> np.ndarray:
    """Return the value of each example, [B] float32."""
    return np.array([item.value for item in response.result.regressions], np.float32)


# ---------------------------------------------------------------------------- metadata


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """An input or output, as a SavedModel describes it.

    Attributes:
        name: its key in the signature.
        dtype: our name of it, or TensorFlow's ("DT_RESOURCE") where it has no numpy form.
        shape: None for a free size; None as a whole when even the rank is unknown.
        default: what a caller may leave out, else None.
        has_default: True as well where the default is of a dtype without numpy form.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None
    default: np.ndarray | None = None
    has_default: bool = False

    def __str__(self) -> str:
        sizes = "unknown rank" if self.shape is None else (
            f"[{', '.join('?' if size is None else str(size) for size in self.shape)}]")
        return f"{self.name}: {self.dtype} {sizes}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SignatureInfo:
    """A named function of a SavedModel: what goes in, what comes out; names in ascending order."""

    name: str
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    method_name: str = ""


def read_signature(name: str, definition: Any) -> SignatureInfo:
    """Return a SignatureDef as plain values."""
    defaults = {key: _default(definition.defaults[key]) for key in definition.defaults}
    inputs, outputs = (tuple(_tensor_info(key, side[key], defaults) for key in sorted(side))
                       for side in (definition.inputs, definition.outputs))
    return SignatureInfo(name=name, inputs=inputs, outputs=outputs,
                         method_name=definition.method_name)


def _default(proto: Any) -> np.ndarray | None:
    """Return a default value; None where it cannot be read, which leaves the rest readable."""
    try:
        return tensors.to_array(proto)
    except ShapeError:
        return None


def _tensor_info(name: str, info: Any, defaults: Mapping[str, np.ndarray | None]) -> TensorInfo:
    shape = None if info.tensor_shape.unknown_rank else tuple(
        None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim)
    return TensorInfo(name=name, dtype=dtypes.label(info.dtype), shape=shape,
                      default=defaults.get(name), has_default=name in defaults)


def read_metadata(response: Any) -> tuple[ModelRef, dict[str, SignatureInfo]]:
    """Return the model and the signatures of a GetModelMetadataResponse, by name.

    Raises:
        InvalidRequest: the response holds no readable signature map.
    """
    if SIGNATURE_DEF not in response.metadata:
        raise InvalidRequest(f"metadata: expected the key {SIGNATURE_DEF!r}, got "
                             f"{sorted(response.metadata)}.")
    # The Any's type_url names TensorFlow's package, so Unpack() would refuse it.
    found = methods.parse(pb.SignatureDefMap, response.metadata[SIGNATURE_DEF].value,
                          where="metadata")
    return read_model_spec(response.model_spec), {
        name: read_signature(name, found.signature_def[name])
        for name in sorted(found.signature_def)}


def metadata_response(ref: ModelRef, signatures: Mapping[str, Any]) -> Any:
    """Return a GetModelMetadataResponse of SignatureDefs, by name."""
    found = pb.SignatureDefMap()
    for name, definition in signatures.items():
        found.signature_def[name].MergeFrom(definition)
    response = pb.GetModelMetadataResponse(model_spec=model_spec(ref))
    packed = response.metadata[SIGNATURE_DEF]
    packed.type_url = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    packed.value = found.SerializeToString()
    return response


# ---------------------------------------------------------------------------- SavedModel


class SavedModelInfo(NamedTuple):
    """What a `saved_model.pb` says of its first meta graph tagged "serve", or of its first one.

    Attributes:
        tags: of the meta graph.
        tensorflow_version: that wrote it.
        signatures: by name; those that start with "__" are TensorFlow's own.
        ops: op name -> number of nodes, over the graph and its function library.
        functions: number of functions in the library.
        assets: file names below `assets/`.
    """

    tags: tuple[str, ...]
    tensorflow_version: str
    signatures: dict[str, SignatureInfo]
    ops: dict[str, int]
    functions: int
    assets: tuple[str, ...]


def read_saved_model(data: bytes, *, where: str) -> SavedModelInfo:
    """Read the bytes of a `saved_model.pb`.

    Raises:
        InvalidRequest: not a SavedModel.
    """
    saved = methods.parse(pb.SavedModel, data, where=where)
    if not saved.meta_graphs:
        raise InvalidRequest(f"{where}: expected a SavedModel with a meta graph, got none.")
    graph = next((one for one in saved.meta_graphs if "serve" in one.meta_info_def.tags),
                 saved.meta_graphs[0])
    ops: dict[str, int] = {}
    library = graph.graph_def.library
    for nodes in (graph.graph_def.node, *(one.node_def for one in library.function)):
        for node in nodes:
            ops[node.op] = ops.get(node.op, 0) + 1
    functions = {one.signature.name for one in library.function}
    return SavedModelInfo(
        tags=tuple(graph.meta_info_def.tags),
        tensorflow_version=graph.meta_info_def.tensorflow_version,
        signatures={name: read_signature(name, graph.signature_def[name])
                    for name in sorted(graph.signature_def)},
        ops={op: count for op, count in sorted(ops.items()) if op not in functions},
        functions=len(functions),
        assets=tuple(one.filename for one in graph.asset_file_def))


# ---------------------------------------------------------------------------- status


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionState:
    """One version of a model, as GetModelStatus reports it.

    Attributes:
        version: its number.
        state: "START", "LOADING", "AVAILABLE", "UNLOADING", "END", or "UNKNOWN".
        error_code: name of the canonical code; "OK" when healthy.
        error_message: the server's text, empty when healthy.
    """

    version: int
    state: str
    error_code: str = "OK"
    error_message: str = ""


def read_status(response: Any) -> tuple[VersionState, ...]:
    """Return the versions of a GetModelStatusResponse, in the server's order (highest first)."""
    states = {number: name for name, number in pb.ModelVersionStatus.State.items()}
    codes = {number: name for name, number in pb.Code.items()}
    return tuple(VersionState(
        version=one.version, state=states.get(one.state, "UNKNOWN"),
        error_code=codes.get(one.status.error_code, "UNKNOWN"),
        error_message=one.status.error_message) for one in response.model_version_status)


def status_response(versions: Sequence[VersionState]) -> Any:
    """Return a GetModelStatusResponse."""
    response = pb.GetModelStatusResponse()
    for one in versions:
        response.model_version_status.add(
            version=one.version, state=one.state,
            status=pb.StatusProto(error_code=one.error_code, error_message=one.error_message))
    return response
