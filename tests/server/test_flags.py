"""The flags: TensorFlow Serving's defaults (FL07 to FL44), and what ours make of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tf_infer.errors import ConfigError, InvalidRequest
from tf_infer.server import cpus, flags
from tf_infer.server.config import ServerConfig
from tf_infer.server.serving_batching import BatchingParameters

CPUS = cpus.usable()

DEFAULTS: dict[str, tuple[str, Any]] = {
    "port": ("FL07", 8500), "grpc_socket_path": ("FL09", ""), "rest_api_port": ("FL10", 0),
    "rest_api_num_threads": ("FL14", 4 * CPUS), "rest_api_timeout_in_ms": ("FL15", 30_000),
    "rest_api_enable_cors_support": ("FL16", False), "model_name": ("FL17", "default"),
    "model_base_path": ("FL18", ""), "model_config_file": ("FL19", ""),
    "batching_parameters_file": ("FL22", ""), "use_alts_credentials": ("FL23", False),
    "ssl_config_file": ("FL23", ""), "tensorflow_session_parallelism": ("FL24", 0),
    "tensorflow_intra_op_parallelism": ("FL24", 0), "tensorflow_inter_op_parallelism": ("FL24", 0),
    "max_num_load_retries": ("FL31", 5), "load_retry_interval_micros": ("FL31", 60_000_000),
    "file_system_poll_wait_seconds": ("FL32", 1),
    "model_config_file_poll_wait_seconds": ("FL33", 0), "enable_model_warmup": ("FL34", True),
    "num_request_iterations_for_warmup": ("FL34", 0), "enable_batching": ("FL35", False),
    "enable_per_model_batching_parameters": ("FL35", False),
    "allow_version_labels_for_unavailable_models": ("FL36", False),
    "saved_model_tags": ("FL37", "serve"), "enable_signature_method_name_check": ("FL38", False),
    "enable_serialization_as_tensor_content": ("FL39", False), "enable_profiler": ("FL40", True),
    "enable_grpc_healthcheck_service": ("FL41", False), "grpc_channel_arguments": ("FL42", ""),
    "num_load_threads": ("FL43", 0), "num_unload_threads": ("FL43", 0),
    "flush_filesystem_caches": ("FL43", True),
    "remove_unused_fields_from_bundle_metagraph": ("FL43", True),
    "prefer_tflite_model": ("FL44", False), "per_process_gpu_memory_fraction": ("FL44", 0.0),
    "tensorflow_session_config_file": ("FL44", ""), "platform_config_file": ("FL44", ""),
    "thread_pool_factory_config_file": ("FL44", ""), "monitoring_config_file": ("FL44", ""),
    "mixed_precision": ("FL44", ""), "xla_cpu_compilation_enabled": ("FL44", False),
    "xla_gpu_compilation_enabled": ("FL44", False), "skip_initialize_tpu": ("FL44", False),
    "num_tflite_pools": ("FL44", CPUS), "num_tflite_interpreters_per_pool": ("FL44", 1),
}


def values(*arguments: str) -> dict[str, Any]:
    return dict(flags.parse(["--model_base_path=/m", *arguments]).values)


def config(*arguments: str) -> ServerConfig:
    return flags.server_config(values(*arguments))


@pytest.mark.parametrize("name", DEFAULTS, ids=lambda name: f"{DEFAULTS[name][0]}-{name}")
def test_the_default_is_TensorFlow_Servings(name: str) -> None:
    default = flags.parse([]).values[name]
    assert (default, type(default)) == (DEFAULTS[name][1], type(DEFAULTS[name][1]))


def test_every_flag_of_TensorFlow_Serving_but_one_has_its_default() -> None:
    theirs = {flag.name for flag in flags.FLAGS if flag.status != "ours"}
    # more than 4 x CPUs here, as no thread is held while a request waits (docs/runtime.md)
    assert theirs - set(DEFAULTS) == {"grpc_max_threads", "version", "help"}


def test_FL43_runs_at_once_at_most() -> None:
    assert config().threads == max(64, 4 * CPUS)
    assert config("--grpc_max_threads=3").threads == 3


@pytest.mark.parametrize(("arguments", "between", "inside"), [
    ([], 0, 0), (["--tensorflow_session_parallelism=3"], 3, 3),
    (["--tensorflow_intra_op_parallelism=2"], 0, 2),
    (["--tensorflow_inter_op_parallelism=2"], 2, 0),
    (["--tensorflow_session_parallelism=3", "--tensorflow_intra_op_parallelism=2"], 0, 2),
])
def test_FL24_threads_of_sessions(arguments: list[str], between: int, inside: int) -> None:
    made = config(*arguments)
    assert (made.inter_op_threads, made.intra_op_threads) == (between, inside)


def test_FL31_FL34_numbers_that_stand_for_something_else() -> None:
    made = config("--load_retry_interval_micros=-1", "--max_num_load_retries=0",
                  "--num_request_iterations_for_warmup=-3")
    assert (made.load_retry_interval_s < 0, made.max_load_retries, made.warmup_iterations) == (
        True, 0, 1)
    assert config("--num_request_iterations_for_warmup=4").warmup_iterations == 4


@pytest.mark.parametrize(("argument", "field", "value"), [
    pytest.param("--file_system_poll_wait_seconds=-1", "poll_s", -1, id="FL32"),
    pytest.param("--enable_model_warmup=false", "warmup", False, id="FL34"),
    pytest.param("--allow_version_labels_for_unavailable_models", "labels_for_unavailable", True,
                 id="FL36"),
    pytest.param("--saved_model_tags=serve,gpu", "tags", ("serve", "gpu"), id="FL37"),
    pytest.param("--enable_signature_method_name_check", "check_method_names", True, id="FL38"),
    pytest.param("--enable_serialization_as_tensor_content", "tensor_content", True, id="FL39"),
    pytest.param("--enable_profiler=false", "profiler", False, id="FL40"),
    pytest.param("--enable_grpc_healthcheck_service", "health", True, id="FL41"),
    pytest.param("--num_load_threads=3", "load_threads", 3, id="FL43"),
])
def test_a_flag_sets_its_setting(argument: str, field: str, value: Any) -> None:
    assert getattr(config(), field) != value
    assert getattr(config(argument), field) == value


def test_FL44_flags_of_the_runtime() -> None:
    made = config("--per_process_gpu_memory_fraction=0.5", "--mixed_precision=bfloat16",
                  "--prefer_tflite_model", "--xla_cpu_compilation_enabled",
                  "--xla_gpu_compilation_enabled", "--skip_initialize_tpu",
                  "--num_tflite_pools=3", "--num_tflite_interpreters_per_pool=2",
                  "--num_unload_threads=2", "--flush_filesystem_caches=false",
                  "--remove_unused_fields_from_bundle_metagraph=false")
    assert (made.gpu_memory_fraction, made.mixed_precision) == (0.5, "bfloat16")
    assert (made.prefer_tflite, made.tflite_runs, config().tflite_runs) == (True, 3, CPUS)
    for wrong in ("--per_process_gpu_memory_fraction=1.5", "--mixed_precision=float16"):
        with pytest.raises(ConfigError, match="ServerConfig"):
            config(wrong)


def test_FL44_a_factory_of_thread_pools_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no factory of thread pools is linked"):
        config("--thread_pool_factory_config_file=/f")


@pytest.mark.parametrize("name", ["ssl_config_file", "platform_config_file",
                                  "tensorflow_session_config_file", "model_config_file"])
def test_FL25_a_named_file_that_does_not_exist(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=f"{tmp_path}/none: cannot be read"):
        config(f"--{name}={tmp_path}/none")


PLATFORM = """
platform_configs {{ key: "{platform}" value {{ source_adapter_config {{
  [type.googleapis.com/tensorflow.serving.{adapter}] {{ {body} }} }} }} }}"""
ADAPTER = "SavedModelBundleSourceAdapterConfig"
BODY = """legacy_config {
  session_config { intra_op_parallelism_threads: 3 device_count { key: "GPU" value: 0 } }
  batching_parameters { max_batch_size { value: 8 } allowed_batch_sizes: [4, 8] }
  saved_model_tags: "serve" saved_model_tags: "gpu"
  enable_model_warmup: true model_warmup_options { num_request_iterations { value: 5 } } }"""


def platform_file(folder: Path, body: str = BODY, *, platform: str = "tensorflow",
                  adapter: str = ADAPTER) -> str:
    path = folder / "platform.config"
    path.write_text(PLATFORM.format(platform=platform, adapter=adapter, body=body),
                    encoding="utf-8")
    return f"--platform_config_file={path}"


OVERRIDDEN = ("--enable_batching", "--enable_per_model_batching_parameters",
              "--batching_parameters_file=/none", "--saved_model_tags=no",
              "--enable_model_warmup=false", "--num_request_iterations_for_warmup=9",
              "--tensorflow_session_parallelism=1", "--tensorflow_intra_op_parallelism=1",
              "--tensorflow_inter_op_parallelism=1")


def test_FL46_a_platform_config_takes_the_place_of_the_flags(tmp_path: Path) -> None:
    made = config(platform_file(tmp_path), *OVERRIDDEN)
    assert made.batching == BatchingParameters(max_batch_size=8, allowed_batch_sizes=(4, 8))
    assert (made.per_model_batching, made.tags) == (False, ("serve", "gpu"))
    assert (made.warmup, made.warmup_iterations) == (True, 5)
    assert (made.inter_op_threads, made.intra_op_threads) == (0, 0)
    bare = config(platform_file(tmp_path, ""), *OVERRIDDEN)
    assert (bare.batching, bare.tags, bare.warmup, bare.warmup_iterations) == (
        None, ("serve",), False, 1)


def test_FL25_FL46_a_platform_config_that_says_nothing_of_TensorFlow(tmp_path: Path) -> None:
    for arguments, words in (
            ({"platform": "other"}, "expected a config of platform 'tensorflow', got those of"),
            ({"adapter": "SessionBundleConfig", "body": ""}, f"of type tensorflow.*{ADAPTER}"),
            ({"adapter": "NoSuchType", "body": ""}, "Invalid protobuf file: '.*platform.config'"),
            ({"body": "legacy_config {"}, "Invalid protobuf file: '.*platform.config'")):
        with pytest.raises(InvalidRequest, match=words):
            config(platform_file(tmp_path, **arguments))
