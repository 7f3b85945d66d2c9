"""RestPredictor: a model behind TensorFlow Serving's REST, asked as any HTTP client asks it."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from tf_infer.errors import (
    Code,
    ConfigError,
    ServerFailure,
    ServerUnavailable,
    exception_for,
    http_status,
)
from tf_infer.verify.predictors import Outputs

DTYPES = {"DT_FLOAT": np.float32, "DT_DOUBLE": np.float64, "DT_HALF": np.float16,
          "DT_INT8": np.int8, "DT_INT16": np.int16, "DT_INT32": np.int32, "DT_INT64": np.int64,
          "DT_UINT8": np.uint8, "DT_UINT16": np.uint16, "DT_UINT32": np.uint32,
          "DT_UINT64": np.uint64, "DT_BOOL": np.bool_, "DT_STRING": np.object_}


class RestPredictor:
    """A model on a server of TensorFlow Serving's REST API.

    Args:
        address: host:port of HTTP.
        model: its name on the server.
        version: this one; None asks for the highest.
        timeout_s: of one call.

    Raises:
        ConfigError: the address is none.

    Bytes that are not UTF-8 go as base64; in an answer they can only come in outputs whose name
    ends in "_bytes", which is TensorFlow Serving's rule.
    """

    def __init__(self, address: str, model: str, *, version: int | None = None,
                 timeout_s: float = 120.0) -> None:
        try:
            self._connection = http.client.HTTPConnection(address, timeout=timeout_s)
        except http.client.InvalidURL as error:
            raise ConfigError(f"REST: expected host:port, got {address}.") from error
        place = f"/versions/{version}" if version is not None else ""
        self._path = f"/v1/models/{quote(model, safe='')}{place}"
        self._address = address
        self._outputs: dict[str, dict[str, Any]] | None = None

    def __call__(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Outputs:
        """Return the outputs of `signature` by name."""
        if self._outputs is None:
            told = self._ask("GET", f"{self._path}/metadata")
            self._outputs = {name: one["outputs"] for name, one in told["metadata"][
                "signature_def"]["signature_def"].items()}
        declared = self._outputs.get(signature, {})
        body = json.dumps({"signature_name": signature, "inputs": {
            name: _to_json(np.asarray(array)) for name, array in inputs.items()}})
        outputs = self._ask("POST", f"{self._path}:predict", body)["outputs"]
        if len(declared) == 1:  # a single output is told without its name
            outputs = {next(iter(declared)): outputs}
        return {name: _from_json(value, declared[name]["dtype"])
                for name, value in outputs.items()}

    def _ask(self, verb: str, path: str, body: str | None = None) -> Any:
        try:
            self._connection.request(verb, path, body)
            answer = self._connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ServerUnavailable(f"{self._address} does not answer over HTTP: "
                                    f"{error or type(error).__name__}.") from error
        try:
            told = json.loads(content)
        except ValueError as error:
            raise ServerFailure(f"{self._address} answered {answer.status} and no JSON. Name the "
                                "REST port of a server, without a proxy that answers itself."
                                ) from error
        if answer.status != 200:
            code = next((code for code in Code if http_status(code) == answer.status), Code.UNKNOWN)
            raise exception_for(code, str(told.get("error", "")))
        return told

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _to_json(array: np.ndarray) -> Any:
    if array.dtype.kind not in "OSU":
        return array.tolist()
    flat = [_text(item if isinstance(item, bytes) else str(item).encode())
            for item in array.reshape(-1).tolist()]
    found = np.empty(len(flat), object)
    found[:] = flat
    return found.reshape(array.shape).tolist()


def _text(item: bytes) -> Any:
    try:
        return item.decode("utf-8")
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(item).decode("ascii")}


def _from_json(value: Any, dtype: str) -> np.ndarray:
    if dtype != "DT_STRING":
        return np.array(value, DTYPES[dtype])
    shape, inner = [], value
    while isinstance(inner, list):
        shape.append(len(inner))
        inner = inner[0] if inner else None
    flat: list[Any] = [value]
    for _ in shape:
        flat = [one for part in flat for one in part]
    found = np.empty(len(flat), object)
    found[:] = [base64.b64decode(one["b64"]) if isinstance(one, dict) else one.encode()
                for one in flat]
    return found.reshape(shape)


def can_travel(outputs: Mapping[str, np.ndarray]) -> bool:
    """Whether every string of an answer can be told as JSON text."""
    for name, array in outputs.items():
        if array.dtype.kind == "O" and not name.endswith("_bytes"):
            for item in array.reshape(-1).tolist():
                try:
                    (item if isinstance(item, bytes) else item.encode()).decode("utf-8")
                except UnicodeDecodeError:
                    return False
    return True
