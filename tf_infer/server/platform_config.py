"""--platform_config_file: what takes the place of the flags of batching, sessions, warm-up (FL46).

Text PlatformConfigMap; for the platform "tensorflow" a SavedModelBundleSourceAdapterConfig. Its
`session_config` is TensorFlow's own message and is read by session_config.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_infer.errors import InvalidRequest
from tf_infer.server.config import PLATFORM
from tf_infer.server.protos import parse_text_proto, read_text
from tf_infer.server.serving_batching import BatchingParameters, parameters_from
from tf_infer.wire import serving_pb2

ADAPTER = "SavedModelBundleSourceAdapterConfig"
# names of types inside brackets stand for themselves, so ours must stand there
_TYPE_URL = re.compile(r"(\[\s*type\.googleapis\.com\s*/\s*)tensorflow\.serving\.")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlatformSettings:
    """What the file says; the fields are those of ServerConfig."""

    batching: BatchingParameters | None
    tags: tuple[str, ...]
    warmup: bool
    warmup_iterations: int
    prefer_tflite: bool
    tflite_runs: int


def read_platform_settings(path: str | Path) -> PlatformSettings:
    """Read what a file says of all but TensorFlow's sessions.

    Raises:
        InvalidRequest: it is missing or does not parse (FL25), or says nothing of TensorFlow.
    """
    bundle = adapter_in(path, serving_pb2.PlatformConfigMap(),
                        serving_pb2.SavedModelBundleSourceAdapterConfig(),
                        allow_unknown_field=True).legacy_config
    return PlatformSettings(
        batching=parameters_from(bundle.batching_parameters) if bundle.HasField(
            "batching_parameters") else None,
        tags=tuple(bundle.saved_model_tags) or ("serve",), warmup=bundle.enable_model_warmup,
        warmup_iterations=max(1, bundle.model_warmup_options.num_request_iterations.value),
        prefer_tflite=bundle.prefer_tflite_model, tflite_runs=max(1, bundle.num_tflite_pools))


def adapter_in(path: str | Path, platforms: Any, adapter: Any, **options: Any) -> Any:
    """Fill `adapter` from the file's config of TensorFlow, and return it.

    Args:
        path: of the file.
        platforms: an empty PlatformConfigMap.
        adapter: an empty SavedModelBundleSourceAdapterConfig.
        options: of `text_format.Parse`.

    Raises:
        InvalidRequest: as `read_platform_settings`.
    """
    text = _TYPE_URL.sub(r"\1tf_infer.wire.", read_text(path))
    parse_text_proto(text, platforms, path, **options)
    if PLATFORM not in platforms.platform_configs:
        raise InvalidRequest(f"{path}: expected a config of platform '{PLATFORM}', got those of "
                             f"{sorted(platforms.platform_configs)}.")
    config = platforms.platform_configs[PLATFORM].source_adapter_config
    if config.type_url.rpartition("/")[2] != adapter.DESCRIPTOR.full_name:
        raise InvalidRequest(f"{path}: expected a source_adapter_config of type "
                             f"tensorflow.serving.{ADAPTER} for platform '{PLATFORM}'.")
    adapter.ParseFromString(config.value)
    return adapter
