"""What a server serves and how: ServerConfig, and the reader of TensorFlow Serving's config file.

Statements CF01 to CF29 and FL17 to FL20 of TensorFlow Serving's observed behaviour. No TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from tf_infer.config import check
from tf_infer.errors import Code, ConfigError, InvalidRequest, NotOffered
from tf_infer.server.protos import read_text_proto
from tf_infer.server.serving_batching import BatchingParameters
from tf_infer.wire import serving_pb2

PLATFORM = "tensorflow"
ClassifierEngine: TypeAlias = Literal["auto", "litert", "onnx", "saved_model"]
CLASSIFIER_ENGINES = ("auto", "litert", "onnx", "saved_model")


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionPolicy:
    """Which of the versions on disk are served.

    Attributes:
        kind: the `count` highest, all, or exactly `versions`.
        count: 0 counts as 1 (CF07).
    """

    kind: Literal["latest", "all", "specific"] = "latest"
    count: int = 1
    versions: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """One model: its name, the folder of its versions, which of them, and their labels."""

    name: str
    base_path: str
    policy: VersionPolicy = field(default_factory=VersionPolicy)
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Monitoring:
    """Whether there is a page of metrics on the HTTP port, and where (MO01 to MO03)."""

    enabled: bool = False
    path: str = "/monitoring/prometheus/metrics"


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig:
    """How text is generated piece by piece, of each version.

    Attributes:
        slots: prompts that are answered at once; 0 for as many as the version and `cache_mb` have
            room for.
        queue: requests that may wait for a slot; more are refused with RESOURCE_EXHAUSTED.
        cache_mb: MiB of the caches of a version that is run through its SavedModel, at most.
        prefix_cache_mb: MiB of beginnings of prompts that are kept for others; 0 keeps none.
        chunk: ids of prompts that are read while those that run wait.
        guesses: tokens that are guessed at once for a text that is alone, at most, and read by an
            engine with its last one; 0 for none.
        engine: "auto" takes the engine that a version carries if its library is installed, else
            the SavedModel; "litert" and "saved_model" take that alone.
    """

    slots: int = 0
    queue: int = 256
    cache_mb: int = 1024
    prefix_cache_mb: int = 256
    chunk: int = 128
    guesses: int = 3
    engine: Literal["auto", "litert", "saved_model"] = "auto"

    def __post_init__(self) -> None:
        for name, least in (("slots", 0), ("queue", 0), ("cache_mb", 0), ("prefix_cache_mb", 0),
                            ("chunk", 1), ("guesses", 0)):
            check(getattr(self, name) >= least, f"decode_{name}", f">= {least}",
                  getattr(self, name))
        check(self.engine in ("auto", "litert", "saved_model"), "decode_engine",
              "auto, litert or saved_model", self.engine)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """All settings of one server. Defaults are TensorFlow Serving's where it has the setting.

    Attributes:
        models: what is served.
        config_file: where they come from, empty for nowhere; read anew every `config_file_poll_s`
            seconds if that is > 0 (CF23).
        port: TCP port of gRPC on `host`; 0 for none, which needs a `socket_path`.
        socket_path: UNIX socket of gRPC, empty for none.
        admin_port: where, on this machine only and in plain text, the reload of the configuration
            and the profiler answer instead of on the ports above; 0 leaves them there.
        ssl_config_file: text SSLConfig for both, empty for plain text; see tls.py.
        alts: Google's ALTS instead.
        poll_s: how often the folders are looked at; 0 once, negative never.
        max_load_retries: further attempts after a failed load, `load_retry_interval_s` apart.
        load_threads: versions loaded at once; until the port opens, `start_load_threads`, 0 for
            the same.
        warmup: replay `assets.extra/tf_serving_warmup_requests` before a version is available.
        warmup_iterations: how often each record runs.
        golden_replay: replay `assets.extra/golden.jsonl` too, and refuse a version that differs.
        tensor_content: numeric outputs travel as `tensor_content` instead of typed fields.
        check_method_names: FL38.
        labels_for_unavailable: FL36.
        health: offer grpc.health.v1.
        profiler: offer TensorFlow's profiler service (FL40).
        tags: the meta graph to load.
        threads: runs of models at once, at most; see threads.py.
        max_queued: requests of one model that may wait for a run; more are refused with
            RESOURCE_EXHAUSTED. 0 for no limit.
        batching: TensorFlow Serving's batching, None for none (BA01).
        per_model_batching: only for versions with a file of their own; of `batching` only the
            threads count (BA20).
        scheduler: what models with our manifest get without `batching`: "text", our own batching,
            or "none".
        batch_workers: batches of our own that run at once.
        drain_s: how long running requests are waited for at the end.
        channel_arguments: of gRPC, as TensorFlow Serving's `--grpc_channel_arguments`.
        rest_port: of HTTP, 0 for none (FL10).
        rest_timeout_s: limit of a REST request, None for none (FL15).
        rest_threads: of HTTP; the loop is one of them (FL14).
        rest_cors: FL16.
        inter_op_threads, intra_op_threads: of TensorFlow, for the whole process; 0 for its own
            choice.
        session_config_file: text ConfigProto of TensorFlow's sessions; the settings above and below
            go before it.
        gpu_memory_fraction: share of a GPU's memory, 0 for TensorFlow's own choice.
        mixed_precision: "bfloat16" lets TensorFlow calculate with it where it thinks fit.
        platform_config_file: text PlatformConfigMap; of it, the settings of sessions are taken
            instead of those above.
        prefer_tflite: FL44; see lite_servable.py.
        tflite_runs: of a version's model.tflite at once.
        monitoring: the page of metrics.
        decode: how text is generated piece by piece.
        classifier_engine: what computes a classifier's network: "auto" takes the engine that a
            version carries if its library is installed, else the SavedModel; the others take that
            alone.
    """

    models: tuple[ModelConfig, ...]
    config_file: str = ""
    config_file_poll_s: float = 0.0
    host: str = "0.0.0.0"
    port: int = 8500
    socket_path: str = ""
    admin_port: int = 0
    ssl_config_file: str = ""
    alts: bool = False
    poll_s: float = 1.0
    max_load_retries: int = 5
    load_retry_interval_s: float = 60.0
    load_threads: int = 4
    start_load_threads: int = 0
    warmup: bool = True
    warmup_iterations: int = 1
    golden_replay: bool = True
    tensor_content: bool = False
    check_method_names: bool = False
    labels_for_unavailable: bool = False
    health: bool = False
    profiler: bool = True
    tags: tuple[str, ...] = ("serve",)
    threads: int = 64
    max_queued: int = 0
    batching: BatchingParameters | None = None
    per_model_batching: bool = False
    scheduler: Literal["text", "none"] = "text"
    batch_workers: int = 1
    drain_s: float = 10.0
    channel_arguments: tuple[tuple[str, str | int], ...] = ()
    inter_op_threads: int = 0
    intra_op_threads: int = 0
    rest_port: int = 0
    rest_timeout_s: float | None = 30.0
    rest_threads: int = 8
    rest_cors: bool = False
    session_config_file: str = ""
    gpu_memory_fraction: float = 0.0
    mixed_precision: Literal["", "bfloat16"] = ""
    platform_config_file: str = ""
    prefer_tflite: bool = False
    tflite_runs: int = 1
    monitoring: Monitoring = field(default_factory=Monitoring)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    classifier_engine: ClassifierEngine = "auto"

    def __post_init__(self) -> None:
        where = "ServerConfig"
        for name in ("port", "admin_port"):
            check(0 <= getattr(self, name) <= 65535, f"{where}.{name}", "0 to 65535",
                  getattr(self, name))
        check(not self.admin_port or self.admin_port != self.port, f"{where}.admin_port",
              "another port than that of gRPC", self.admin_port)
        check(0 <= self.rest_port <= 65535, f"{where}.rest_port", "0 to 65535", self.rest_port)
        check(self.rest_timeout_s is None or self.rest_timeout_s > 0, f"{where}.rest_timeout_s",
              "seconds > 0, or None", self.rest_timeout_s)
        check(self.port > 0 or self.socket_path != "", f"{where}.port",
              "a port, or a --grpc_socket_path", self.port)
        check(not (self.alts and self.ssl_config_file), f"{where}.alts",
              "ALTS or an SSL config file, not both", self.alts)
        for name in ("threads", "batch_workers", "rest_threads", "tflite_runs"):
            check(getattr(self, name) >= 1, f"{where}.{name}", ">= 1", getattr(self, name))
        check(self.classifier_engine in CLASSIFIER_ENGINES, "classifier_engine",
              "auto, litert, onnx or saved_model", self.classifier_engine)
        check(self.scheduler in ("text", "none"), f"{where}.scheduler", '"text" or "none"',
              self.scheduler)
        check(0 <= self.gpu_memory_fraction <= 1, f"{where}.gpu_memory_fraction", "0 to 1",
              self.gpu_memory_fraction)
        check(self.mixed_precision in ("", "bfloat16"), f"{where}.mixed_precision",
              '"" or "bfloat16"', self.mixed_precision)
        for name in ("max_load_retries", "max_queued", "drain_s"):
            check(getattr(self, name) >= 0, f"{where}.{name}", ">= 0", getattr(self, name))
        check_models(self.models)


def check_models(models: Sequence[ModelConfig]) -> None:
    """Raise InvalidRequest, as TensorFlow Serving does, for a list that cannot be served."""
    names = [model.name for model in models]
    for model in models:
        if names.count(model.name) > 1:
            raise InvalidRequest(
                f"Illegal to list model {model.name} multiple times in config list")
        if "://" in model.base_path:
            raise NotOffered(f"Expected model {model.name} in a folder of this machine; got "
                             f"base_path()={model.base_path}. Copy or mount it.")
        if not os.path.isabs(model.base_path):
            raise InvalidRequest(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()="
                f"{model.base_path}")


def read_config_file(path: str | Path, served: Collection[str] = ()) -> tuple[ModelConfig, ...]:
    """Read a text file of TensorFlow Serving's ModelServerConfig; an empty one lists no models.

    Args:
        path: of the file.
        served: names of the models that are configured now.

    Raises:
        InvalidRequest: the file is missing, does not parse (FL25), or lists what is not allowed.
    """
    message = read_text_proto(path, serving_pb2.ModelServerConfig())
    if message.WhichOneof("config") is None:
        if served:  # perhaps only half written
            raise InvalidRequest(
                "Cannot transition to requested config. It is only legal to transition from one "
                "ModelConfigList to another.", code=Code.FAILED_PRECONDITION)
        return ()
    return models_from(message, served)


def read_monitoring_file(path: str | Path) -> Monitoring:
    """Read a text file of TensorFlow Serving's MonitoringConfig.

    Raises:
        InvalidRequest: the file is missing or does not parse (FL25).
    """
    prometheus = read_text_proto(path, serving_pb2.MonitoringConfig()).prometheus_config
    return Monitoring(enabled=prometheus.enable, path=prometheus.path or Monitoring().path)


def read_ssl_config(path: str | Path) -> serving_pb2.SSLConfig:
    """Read a text file of SSLConfig: PEM texts, not paths (TL01).

    Raises:
        InvalidRequest: the file is missing, does not parse (TL08), or leaves out what TLS needs.
    """
    message: serving_pb2.SSLConfig = read_text_proto(
        path, serving_pb2.SSLConfig(), secret=True)
    missing = [name for name in ("server_key", "server_cert") if not getattr(message, name)]
    if message.client_verify and not message.custom_ca:
        missing.append("custom_ca, whom client_verify asks")
    if missing:
        raise InvalidRequest(f"{path}: expected the PEM texts server_key and server_cert, and "
                             f"custom_ca with client_verify; missing: {', '.join(missing)}.")
    return message


def models_from(message: serving_pb2.ModelServerConfig, served: Collection[str] = (),
                ) -> tuple[ModelConfig, ...]:
    """Return the models of a ModelServerConfig message.

    Args:
        message: the whole truth from now on (CF21).
        served: names of the models that are configured now, all of them TensorFlow's.

    Raises:
        InvalidRequest: anything else than a good model_config_list (CF02 to CF05, CF26, CF27,
            CF29).
    """
    if message.WhichOneof("config") != "model_config_list":
        raise InvalidRequest("Only ModelConfigList is currently supported")
    models = tuple(_model_from(entry, served) for entry in message.model_config_list.config)
    check_models(models)
    return models


def _model_from(entry: serving_pb2.ModelConfig, served: Collection[str]) -> ModelConfig:
    if entry.model_type and entry.model_platform:
        raise InvalidRequest("Illegal setting both ModelServerConfig::model_type(deprecated) and "
                             f"model_platform: model {entry.name}")
    if not entry.model_type and not entry.model_platform:
        raise InvalidRequest("Illegal setting neither ModelServerConfig::model_type(deprecated) "
                             f"nor model_platform: model {entry.name}")
    if entry.model_platform not in ("", PLATFORM) or entry.model_type == serving_pb2.OTHER:
        platform = entry.model_platform or "OTHER"
        if entry.name in served:
            raise InvalidRequest(f"Illegal to change a model's platform. For model {entry.name} "
                                 f"the platform was {PLATFORM} and new platform requested is "
                                 f"{platform}")
        raise InvalidRequest(f"Model {entry.name} has unsupported platform '{platform}', expected "
                             f"'{PLATFORM}'")
    if entry.HasField("logging_config"):
        raise InvalidRequest("No request-logger-creator provided: remove logging_config of model "
                             f"{entry.name}")
    return ModelConfig(name=entry.name, base_path=folder_of(entry.base_path),
                       labels=dict(entry.version_labels),
                       policy=_policy_from(entry.model_version_policy))


def folder_of(base_path: str) -> str:
    """Return the folder that a base path names, which may be a URI of this machine's files."""
    return base_path.removeprefix("file://")


def _policy_from(
        message: serving_pb2.FileSystemStoragePathSourceConfig.ServableVersionPolicy,
) -> VersionPolicy:
    choice = message.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(kind="all")
    if choice == "specific":
        return VersionPolicy(kind="specific", versions=tuple(message.specific.versions))
    return VersionPolicy(count=max(1, message.latest.num_versions))


def models_below(folder: Path) -> tuple[ModelConfig, ...]:
    """Return one ModelConfig per sub-folder of `folder` that holds a version, sorted by name.

    Raises:
        ConfigError: there is none.
    """
    from tf_infer.server.decide import versions_in

    found = [ModelConfig(name=path.name, base_path=str(path.resolve()))
             for path in sorted(Path(folder).glob("*")) if path.is_dir()
             and versions_in(os.listdir(path))]
    if not found:
        raise ConfigError(f"{folder}: expected folders <name>/<version>, got none. "
                          "Export a model first, or run `tf-infer quickstart`.")
    return tuple(found)
