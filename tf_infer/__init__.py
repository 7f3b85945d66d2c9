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
    from tf_infer.client.credentials import Credentials as Credentials
    from tf_infer.client.credentials import bearer as bearer
    from tf_infer.client.credentials import tls as tls
    from tf_infer.client.explanations import Explanation as Explanation
    from tf_infer.client.results import Classification as Classification
    from tf_infer.client.results import Generation as Generation
    from tf_infer.client.results import Label as Label
    from tf_infer.client.results import ModelMetadata as ModelMetadata
    from tf_infer.client.results import ModelStatus as ModelStatus
    from tf_infer.client.results import Prediction as Prediction
    from tf_infer.client.retry import RetryPolicy as RetryPolicy
    from tf_infer.client.transport import ChannelOptions as ChannelOptions
    from tf_infer.errors import ServingError as ServingError
    from tf_infer.errors import TfInferError as TfInferError
    from tf_infer.wire.messages import ModelRef as ModelRef

# name -> module that has it
_LAZY = {
    "AsyncClient": "tf_infer.client.aio",
    "ChannelOptions": "tf_infer.client.transport",
    "Classification": "tf_infer.client.results",
    "Client": "tf_infer.client.client",
    "Credentials": "tf_infer.client.credentials",
    "Explanation": "tf_infer.client.explanations",
    "Generation": "tf_infer.client.results",
    "Label": "tf_infer.client.results",
    "ModelMetadata": "tf_infer.client.results",
    "ModelRef": "tf_infer.wire.messages",
    "ModelStatus": "tf_infer.client.results",
    "Prediction": "tf_infer.client.results",
    "RetryPolicy": "tf_infer.client.retry",
    "ServingError": "tf_infer.errors",
    "TfInferError": "tf_infer.errors",
    "bearer": "tf_infer.client.credentials",
    "tls": "tf_infer.client.credentials",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'tf_infer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
