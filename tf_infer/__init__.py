"""tf_infer: Keras text models as one compiled graph, served through TensorFlow Serving's API.

Importing this package loads nothing heavy: names are resolved on first use, and the client needs
grpcio, protobuf and numpy only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tf_infer.version import __version__

if TYPE_CHECKING:
    from tf_infer.client.aio import AsyncClient as AsyncClient
    from tf_infer.client.client import Client as Client

_LAZY = {
    "AsyncClient": "tf_infer.client.aio",
    "Client": "tf_infer.client.client",
}

__all__ = ["AsyncClient", "Client", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'tf_infer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
