"""TensorFlow Serving's command line: its flags, how they are written, and ours beside them.

Statements FL01 to FL46 of TensorFlow Serving's observed behaviour. A flag whose meaning is not
built yet is refused when it is set to anything but its default; it never silently does less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union

from tf_infer.errors import InvalidRequest, NotOffered
from tf_infer.server import cpus
from tf_infer.server.config import (
    DecodeConfig,
    ModelConfig,
    Monitoring,
    ServerConfig,
    folder_of,
    models_below,
    read_config_file,
    read_monitoring_file,
    read_ssl_config,
)
from tf_infer.server.platform_config import read_platform_settings
from tf_infer.server.protos import read_text
from tf_infer.server.serving_batching import BatchingParameters, read_parameters

Value = Union[str, int, float, bool]


class Flag(NamedTuple):
    """One flag.

    Attributes:
        name: after the two dashes.
        default: also says the type: bool, int, float or str.
        help: one line.
        status: "works", "inert" (no effect here, accepted silently), "later" (refused when it is
            set to another value than `default`), or "ours" (TensorFlow Serving has no such flag).
    """

    name: str
    default: Value
    help: str
    status: Literal["works", "inert", "later", "ours"] = "works"


CPUS = cpus.usable()
BATCH_WORKERS = min(2, CPUS)  # one answers while the other runs: docs/runtime.md
EMBEDDED = "embedded"
OF_LAUNCHER = frozenset({"server_binary", "server_config_dir", "ready_seconds", "enable_preflight",
                         "tls_server_name"})  # mean nothing to the embedded server

FLAGS: tuple[Flag, ...] = (
    Flag("port", 8500, "TCP port of gRPC; 0 only with --grpc_socket_path"),
    Flag("grpc_socket_path", "", "UNIX socket of gRPC"),
    Flag("model_name", "default", "name of the one model of --model_base_path"),
    Flag("model_base_path", "", "absolute path of the folder that holds the version directories"),
    Flag("model_config_file", "", "text ModelServerConfig; wins over the two above"),
    Flag("file_system_poll_wait_seconds", 1, "how often the folders are looked at; 0 once"),
    Flag("max_num_load_retries", 5, "further attempts after a load that failed"),
    Flag("load_retry_interval_micros", 60_000_000, "time between them"),
    Flag("num_load_threads", 0, "versions loaded at once after the start; 0: as many as CPUs"),
    Flag("enable_model_warmup", True, "replay assets.extra/tf_serving_warmup_requests at load"),
    Flag("num_request_iterations_for_warmup", 0, "how often each record runs, if > 0"),
    Flag("allow_version_labels_for_unavailable_models", False,
         "a new label may point to a version that is not loaded"),
    Flag("saved_model_tags", "serve", "comma-separated tags of the meta graph"),
    Flag("enable_signature_method_name_check", False, "look at the method name of signatures"),
    Flag("enable_serialization_as_tensor_content", False, "numeric outputs as tensor_content"),
    Flag("enable_grpc_healthcheck_service", False, "offer grpc.health.v1.Health"),
    Flag("grpc_channel_arguments", "", "k=v,k=v for the gRPC server"),
    Flag("grpc_max_threads", 0, "runs of models at once, at most; 0: 4 x CPUs, at least 64"),
    Flag("tensorflow_session_parallelism", 0, "inter-op and intra-op threads; 0: TensorFlow's"),
    Flag("tensorflow_intra_op_parallelism", 0, "threads inside one operation"),
    Flag("tensorflow_inter_op_parallelism", 0, "operations at once"),
    Flag("rest_api_port", 0, "HTTP port of REST; 0: no HTTP"),
    Flag("rest_api_num_threads", 4 * CPUS, "threads of HTTP, at most"),
    Flag("rest_api_timeout_in_ms", 30_000, "limit of a REST request; 0: none"),
    Flag("rest_api_enable_cors_support", False, "let browsers ask from other sites"),
    Flag("enable_batching", False, "join concurrent requests as TensorFlow Serving does"),
    Flag("enable_per_model_batching_parameters", False,
         "... only those of versions with a batching_params.pbtxt, by its parameters"),
    Flag("batching_parameters_file", "", "text BatchingParameters"),
    Flag("monitoring_config_file", "", "text MonitoringConfig; read only with --rest_api_port"),
    Flag("model_config_file_poll_wait_seconds", 0, "how often that file is read anew; 0 never"),
    Flag("ssl_config_file", "", "text SSLConfig: gRPC speaks TLS only; read anew when it changes"),
    Flag("use_alts_credentials", False, "Google's ALTS for gRPC; on Google Cloud only"),
    Flag("platform_config_file", "", "text PlatformConfigMap; the flags of batching, sessions, "
         "tags and warm-up then have no effect"),
    Flag("tensorflow_session_config_file", "", "text ConfigProto of TensorFlow's sessions; flags "
         "go before it"),
    Flag("thread_pool_factory_config_file", "", "refused: no such factory is linked in, nor into "
         "the released tensorflow_model_server"),
    Flag("prefer_tflite_model", False, "a version's model.tflite is run instead of its SavedModel"),
    Flag("mixed_precision", "", "bfloat16: where TensorFlow thinks fit"),
    Flag("xla_cpu_compilation_enabled", False, "compiled graphs run here anyway", "inert"),
    Flag("xla_gpu_compilation_enabled", False, "compiled graphs run here anyway", "inert"),
    Flag("per_process_gpu_memory_fraction", 0.0, "share of a GPU's memory, 0 to 1; 0: "
         "TensorFlow's own choice"),
    Flag("enable_profiler", True, "offer tensorflow.ProfilerService, for TensorBoard and "
         "`tf-infer profile`"),
    Flag("num_unload_threads", 0, "unloads have a thread each", "inert"),
    Flag("flush_filesystem_caches", True, "after loading", "inert"),
    Flag("remove_unused_fields_from_bundle_metagraph", True, "save memory", "inert"),
    Flag("skip_initialize_tpu", False, "TPU", "inert"),
    Flag("num_tflite_pools", CPUS, "runs of a model.tflite at once"),
    Flag("num_tflite_interpreters_per_pool", 1, "no request is cut into pieces", "inert"),
    Flag("version", False, "print the versions and end"),
    Flag("help", False, "print this and end"),
    Flag("saved_models", "", "serve every model below this folder", "ours"),
    Flag("host", "0.0.0.0", "address that gRPC and HTTP listen on", "ours"),
    Flag("admin_port", 0, "port on localhost that the reload of the configuration and the profiler "
         "move to; 0: they answer at --port", "ours"),
    Flag("enable_golden_replay", True, "replay assets.extra/golden.jsonl at load", "ours"),
    Flag("max_queued_requests", 0,
         "requests of one model that may wait; more get RESOURCE_EXHAUSTED; 0: no limit", "ours"),
    Flag("scheduler", "text", "how requests to models with a manifest are joined: text (by length) "
         "or none; --enable_batching goes before it", "ours"),
    Flag("batch_workers", 0, "batches of that scheduler that run at once; 0: two, on one CPU one",
         "ours"),
    Flag("decode_slots", 0, "prompts of a decoder that are answered at once; 0: as many as there "
         "is room for", "ours"),
    Flag("decode_queue", 256, "requests that may wait for a slot; more get RESOURCE_EXHAUSTED",
         "ours"),
    Flag("decode_cache_mb", 1024, "MiB of a decoder's caches where its SavedModel is run", "ours"),
    Flag("decode_prefix_cache_mb", 256, "MiB of beginnings of prompts that are kept for others; "
         "0: none", "ours"),
    Flag("decode_chunk", 128, "ids of prompts that are read while those that run wait", "ours"),
    Flag("decode_guesses", 3, "tokens guessed at once for a text that is alone, at most, where its "
         "engine can check them; 0: none", "ours"),
    Flag("decode_engine", "auto", "auto: the engine that a version carries, else its SavedModel; "
         "or litert, or saved_model", "ours"),
    Flag("classifier_engine", "auto", "auto: the engine that a classifier's version carries, else "
         "its SavedModel; or litert, onnx, or saved_model", "ours"),
    Flag("drain_seconds", 10.0, "how long running requests are waited for at the end", "ours"),
    Flag("verbose", False, "log every call (never its data)", "ours"),
    Flag("log_format", "text", "of the lines on standard error: text or json", "ours"),
    Flag("write_tf_serving_config", "",
         "write models.config and batching.config for tensorflow_model_server here, and end",
         "ours"),
    Flag("model_root", "/models", "base path of the models in those files", "ours"),
    Flag("backend", EMBEDDED, "or tensorflow_model_server: start the real server on the same "
         "models, wait for it, replay the golden samples, pass signals on", "ours"),
    Flag("server_binary", "", "that program; empty: the one on PATH", "ours"),
    Flag("server_config_dir", "", "where its files are written; empty: a temporary folder", "ours"),
    Flag("ready_seconds", 600.0, "how long it may take to be ready; 0: neither asked nor proven",
         "ours"),
    Flag("enable_preflight", True, "do not start it on models that its release cannot run",
         "ours"),
    Flag("tls_server_name", "", "a name in the certificate of its --ssl_config_file", "ours"),
)
_BY_NAME = {flag.name: flag for flag in FLAGS}
_TRUE, _FALSE = ("true", "1", "t", "y", "yes"), ("false", "0", "f", "n", "no")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parsed:
    """What a command line says.

    Attributes:
        values: every flag's value.
        unknown: arguments that are no flag (FL03): reported, and gone past.
    """

    values: Mapping[str, Any]
    unknown: tuple[str, ...] = ()


def parse(arguments: Sequence[str]) -> Parsed:
    """Read `--name=value`, and `--name` of booleans (FL01, FL02).

    Raises:
        InvalidRequest: a value that cannot be read (FL04).
    """
    values: dict[str, Any] = {flag.name: flag.default for flag in FLAGS}
    unknown = []
    for argument in arguments:
        word, equals, text = argument.partition("=")
        flag = _BY_NAME.get(_name_of(word))
        if flag is None or not (equals or isinstance(flag.default, bool)):
            unknown.append(argument)
        else:
            values[flag.name] = _read(flag, text) if equals else True
    return Parsed(values=values, unknown=tuple(unknown))


def _name_of(word: str) -> str:
    if word == "-h":
        return "help"
    if not word.startswith("--"):
        return ""
    name = word[2:]
    ours = name.replace("-", "_")  # our own flags may be written with hyphens
    return ours if ours in _BY_NAME and _BY_NAME[ours].status == "ours" else name


def _read(flag: Flag, text: str) -> Value:
    try:
        if isinstance(flag.default, bool):
            if text.lower() not in _TRUE + _FALSE:
                raise ValueError(text)
            return text.lower() in _TRUE
        return type(flag.default)(text)
    except ValueError as error:
        raise InvalidRequest(f"--{flag.name}: expected a value of type "
                             f"{type(flag.default).__name__}, got {text!r}.") from error


def for_tensorflow_serving(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the arguments without those that are ours alone; an unknown one may be a newer one."""
    found = ((word, _BY_NAME.get(_name_of(word.partition("=")[0]))) for word in arguments)
    return tuple(word for word, flag in found if flag is None or flag.status != "ours")


def usage() -> str:
    """Return all flags with their defaults, and examples."""
    lines = ["usage: tf-infer serve --name=value ...",
             "", "Answer over TensorFlow Serving's gRPC API. Flags are its own.", ""]
    notes = {"later": " (not built yet)", "ours": " (tf_infer's own)",
             "inert": " (accepted without effect)"}
    lines += [f"  --{flag.name}={_shown(flag.default)}\n"
              f"        {flag.help}{notes.get(flag.status, '')}" for flag in FLAGS]
    return "\n".join([*lines, "", EXAMPLES])


EXAMPLES = """examples:
  tf-infer serve --model_name=intents --model_base_path=$PWD/saved_models/intents
  tf-infer serve --saved_models=saved_models --port=9000
  tf-infer serve --model_config_file=/etc/models.config --file_system_poll_wait_seconds=10
  tf-infer serve --saved_models=saved_models --write_tf_serving_config=serving/tf_serving \\
      --model_root=/models
  tf-infer serve --backend=tensorflow_model_server --saved_models=saved_models \\
      --rest_api_port=8501"""


def _shown(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def models_of(values: Mapping[str, Any]) -> tuple[ModelConfig, ...]:
    """Return the models that the flags name (FL17 to FL19).

    Raises:
        InvalidRequest: none, or a file that does not parse.
        ConfigError: --saved_models holds none.
    """
    if values["model_config_file"]:
        return read_config_file(values["model_config_file"])
    if values["model_base_path"]:
        return (ModelConfig(name=values["model_name"],
                            base_path=folder_of(values["model_base_path"])),)
    if values["saved_models"]:
        return models_below(Path(values["saved_models"]))
    raise InvalidRequest("Both server_options.model_base_path and server_options.model_config_file "
                         "are empty: give --model_base_path, --model_config_file or "
                         "--saved_models.")


def server_config(values: Mapping[str, Any]) -> ServerConfig:
    """Return the ServerConfig that the flags say.

    Raises:
        InvalidRequest, ConfigError: values that contradict each other, or a file that is broken.
        NotOffered: a flag whose meaning is not built yet.
    """
    _refuse_what_is_missing(values)
    if values["use_alts_credentials"] and values["ssl_config_file"]:
        raise InvalidRequest("Either use_alts_credentials must be false OR ssl_config_file must be "
                             "empty.")
    if values["ssl_config_file"]:
        read_ssl_config(values["ssl_config_file"])  # what is wrong with it is said at once
    if values["thread_pool_factory_config_file"]:
        raise InvalidRequest(
            "thread_pool_factory_config_file: expected none: no factory of thread pools is linked "
            "into this server, nor into the released tensorflow_model_server. Leave it out.")
    if values["tensorflow_session_config_file"]:
        read_text(values["tensorflow_session_config_file"])  # TensorFlow parses it
    platform = None
    if values["platform_config_file"]:
        platform = read_platform_settings(values["platform_config_file"])
    inter, intra = (0, 0) if platform else session_threads(values)
    config = ServerConfig(
        models=models_of(values), config_file=values["model_config_file"],
        config_file_poll_s=values["model_config_file_poll_wait_seconds"],
        host=values["host"], port=values["port"], socket_path=values["grpc_socket_path"],
        admin_port=values["admin_port"],
        ssl_config_file=values["ssl_config_file"], alts=values["use_alts_credentials"],
        poll_s=values["file_system_poll_wait_seconds"],
        max_load_retries=values["max_num_load_retries"],
        load_retry_interval_s=values["load_retry_interval_micros"] / 1e6,
        load_threads=values["num_load_threads"] or CPUS, start_load_threads=4 * CPUS,
        warmup=values["enable_model_warmup"],
        warmup_iterations=max(1, values["num_request_iterations_for_warmup"]),
        golden_replay=values["enable_golden_replay"],
        tensor_content=values["enable_serialization_as_tensor_content"],
        check_method_names=values["enable_signature_method_name_check"],
        labels_for_unavailable=values["allow_version_labels_for_unavailable_models"],
        health=values["enable_grpc_healthcheck_service"], profiler=values["enable_profiler"],
        tags=tuple(tag.strip() for tag in values["saved_model_tags"].split(",") if tag.strip()),
        threads=values["grpc_max_threads"] if values["grpc_max_threads"] > 0 else max(64, 4 * CPUS),
        max_queued=values["max_queued_requests"],
        batching=None if platform else batching_parameters(values),
        per_model_batching=values["enable_per_model_batching_parameters"],
        scheduler=values["scheduler"], batch_workers=values["batch_workers"] or BATCH_WORKERS,
        drain_s=values["drain_seconds"], monitoring=monitoring(values),
        rest_port=values["rest_api_port"], rest_cors=values["rest_api_enable_cors_support"],
        rest_threads=max(1, values["rest_api_num_threads"]),
        rest_timeout_s=max(0, values["rest_api_timeout_in_ms"]) / 1000 or None,
        channel_arguments=channel_arguments(values["grpc_channel_arguments"]),
        inter_op_threads=inter, intra_op_threads=intra,
        session_config_file=values["tensorflow_session_config_file"],
        gpu_memory_fraction=values["per_process_gpu_memory_fraction"],
        mixed_precision=values["mixed_precision"],
        platform_config_file=values["platform_config_file"],
        prefer_tflite=values["prefer_tflite_model"],
        tflite_runs=max(1, values["num_tflite_pools"]),
        classifier_engine=values["classifier_engine"],
        decode=DecodeConfig(**{field.name: values[f"decode_{field.name}"]
                               for field in fields(DecodeConfig)}))
    if platform is None:
        return config
    return replace(config, per_model_batching=False,
                   **{field.name: getattr(platform, field.name) for field in fields(platform)})


def session_threads(values: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many threads (between, inside) operations the flags ask for; 0 for TensorFlow's.

    Raises:
        InvalidRequest: all three flags are given (FL24).
    """
    both, intra, inter = (max(0, values[f"tensorflow_{kind}_parallelism"])
                          for kind in ("session", "intra_op", "inter_op"))
    if both and intra and inter:
        raise InvalidRequest(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, "
            "server_options.tensorflow_inter_op_parallelism) separately. You cannot configure all.")
    return (inter, intra) if inter or intra else (both, both)


def monitoring(values: Mapping[str, Any]) -> Monitoring:
    """Return where the page of metrics is; the file counts only when there is HTTP (FL26).

    Raises:
        InvalidRequest: the file is missing or does not parse (FL25).
    """
    if values["rest_api_port"] <= 0 or not values["monitoring_config_file"]:
        return Monitoring()
    return read_monitoring_file(values["monitoring_config_file"])


def batching_parameters(values: Mapping[str, Any]) -> BatchingParameters | None:
    """Return TensorFlow Serving's batching as the flags ask for it, None for none.

    Raises:
        InvalidRequest: a file without --enable_batching (FL22), or one that breaks a rule.
    """
    if values["batching_parameters_file"] and not values["enable_batching"]:
        raise InvalidRequest("server_options.batching_parameters_file is set without setting "
                             "server_options.enable_batching to true.")
    if not values["enable_batching"]:
        return None
    if not values["batching_parameters_file"]:
        return BatchingParameters()
    return read_parameters(values["batching_parameters_file"])


def _refuse_what_is_missing(values: Mapping[str, Any]) -> None:
    launcher = [f"--{flag.name}" for flag in FLAGS
                if flag.name in OF_LAUNCHER and values[flag.name] != flag.default]
    if launcher:
        raise InvalidRequest(f"{', '.join(launcher)}: expected only beside "
                             "--backend=tensorflow_model_server. Add it, or leave them out.")
    asked = [f"--{flag.name}" for flag in FLAGS
             if flag.status == "later" and values[flag.name] != flag.default]
    if asked:
        raise NotOffered(f"{', '.join(asked)}: this server does not have it yet. Leave it out, or "
                         "use tensorflow_model_server, which serves the same directories.")


def channel_arguments(text: str) -> tuple[tuple[str, str | int], ...]:
    """Read `k=v,k=v`; whole numbers become ints (FL42)."""
    pairs: list[tuple[str, str | int]] = []
    for item in text.split(","):
        key, equals, value = item.partition("=")
        if key and equals:
            pairs.append((key, int(value) if value.lstrip("-").isdigit() else value))
    return tuple(pairs)
