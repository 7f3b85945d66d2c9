"""Settings for the real tensorflow_model_server, made from the manifests of exported versions.

`models.config` names every model below a root as the server will see it (it refuses relative
paths); `batching.config` allows exactly the batch sizes that warm-up has visited;
`monitoring.config` puts the page for Prometheus on the REST port.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from google.protobuf import text_format

from tf_infer.config import ShapeGrid, check
from tf_infer.errors import ConfigError
from tf_infer.manifest import EXTRA_FOLDER, MANIFEST_FILE, read_manifest
from tf_infer.server.config import PLATFORM, ModelConfig, VersionPolicy
from tf_infer.server.decide import versions_in
from tf_infer.wire import serving_pb2

MODELS_FILE = "models.config"
BATCHING_FILE = "batching.config"
MONITORING_FILE = "monitoring.config"
BATCH_TIMEOUT_MICROS = 2000
MAX_ENQUEUED_BATCHES = 100

_HEAD = """# Written by this command from the manifests of the models; change those, not this file:
#   tf-infer serve --saved_models=saved_models --write_tf_serving_config=DIR --model_root=ROOT
"""


def models_text(models: Sequence[ModelConfig], *, model_root: str | None) -> str:
    """Return the text of models.config, models sorted by name, their folders as they are called.

    Args:
        models: what is served here.
        model_root: absolute folder of the models on the machine of the real server; None when
            that is this machine, where they stay where they are.

    Raises:
        ConfigError: `model_root` is relative, or two folders are called the same.
    """
    message = serving_pb2.ModelServerConfig()
    message.model_config_list.SetInParent()
    paths = ({model.base_path: model.base_path for model in models} if model_root is None
             else _below(model_root, models))
    for model in sorted(models, key=lambda item: item.name):
        message.model_config_list.config.add(
            name=model.name, base_path=paths[model.base_path],
            model_platform=PLATFORM, version_labels=model.labels,
            model_version_policy=_policy_message(model.policy))
    return _HEAD + text_format.MessageToString(message)


def _below(root: str, models: Sequence[ModelConfig]) -> dict[str, str]:
    """Return base path here -> base path below `root`."""
    check(root.startswith("/") or "://" in root, "model_root",
          "an absolute path or URI", root, "TensorFlow Serving refuses relative paths.")
    folders: dict[str, str] = {}
    for model in sorted(models, key=lambda item: item.name):
        folder = os.path.basename(model.base_path.rstrip("/"))
        if folders.setdefault(folder, model.base_path) != model.base_path:
            raise ConfigError(f"base_path: expected folders of different names, got {folder!r} "
                              f"twice: {folders[folder]!r} and {model.base_path!r}. Rename one.")
    return {path: f"{root.rstrip('/')}/{folder}" for folder, path in folders.items()}


def _policy_message(
        policy: VersionPolicy,
) -> serving_pb2.FileSystemStoragePathSourceConfig.ServableVersionPolicy | None:
    """Return what `config.models_from` reads as `policy`; None for the default."""
    if policy == VersionPolicy():
        return None
    message = serving_pb2.FileSystemStoragePathSourceConfig.ServableVersionPolicy()
    if policy.kind == "all":
        message.all.SetInParent()
    elif policy.kind == "specific":
        message.specific.versions.extend(policy.versions)
        message.specific.SetInParent()
    else:
        message.latest.num_versions = policy.count
    return message


def batching_text(grids: Sequence[ShapeGrid]) -> str:
    """Return the text of batching.config: every batch size of every grid, and no other."""
    sizes = sorted({rows for grid in grids for rows in grid.rows})
    check(bool(sizes), "batching", "at least one model with a grid", sizes)
    message = serving_pb2.BatchingParameters(allowed_batch_sizes=sizes)
    message.max_batch_size.value = sizes[-1]
    message.batch_timeout_micros.value = BATCH_TIMEOUT_MICROS
    message.max_enqueued_batches.value = MAX_ENQUEUED_BATCHES
    return _HEAD + text_format.MessageToString(message)


def monitoring_text() -> str:
    """Return the text of monitoring.config: a page for Prometheus, at TensorFlow Serving's path."""
    message = serving_pb2.MonitoringConfig()
    message.prometheus_config.enable = True
    return _HEAD + text_format.MessageToString(message)


def newest_grid(model: ModelConfig) -> ShapeGrid | None:
    """Return the grid of a model's highest version; None when it has no manifest.

    Raises:
        ConfigError: the folder cannot be listed, or the manifest cannot be read.
    """
    try:
        found = versions_in(os.listdir(model.base_path))
    except OSError as error:
        raise ConfigError(f"{model.base_path}: cannot be listed: {error.strerror}.") from error
    if not found:
        return None
    path = Path(model.base_path) / found[max(found)]
    if not (path / EXTRA_FOLDER / MANIFEST_FILE).is_file():
        return None
    return read_manifest(path).grid


def write(models: Sequence[ModelConfig], folder: Path, *, model_root: str) -> tuple[Path, ...]:
    """Write the files into `folder`; return their paths.

    batching.config is left out when no model has a manifest.
    """
    grids = [grid for model in models if (grid := newest_grid(model)) is not None]
    texts = {MODELS_FILE: models_text(models, model_root=model_root),
             MONITORING_FILE: monitoring_text()}
    if grids:
        texts[BATCHING_FILE] = batching_text(grids)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (Path(folder) / name).write_text(text, encoding="utf-8")
    return tuple(Path(folder) / name for name in texts)
