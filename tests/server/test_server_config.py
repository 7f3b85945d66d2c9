"""Model config files and the flags: what is read, what is refused, with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tf_infer.errors import Code, ConfigError, InvalidRequest, NotOffered, TfInferError
from tf_infer.server import app, flags
from tf_infer.server.config import ServerConfig, VersionPolicy, models_below, read_config_file


def write(tmp_path: Path, *entries: str) -> Path:
    path = tmp_path / "models.config"
    body = " ".join(f"config {{ {entry} }}" for entry in entries)
    path.write_text(f"model_config_list {{ {body} }}", encoding="utf-8")
    return path


PLAIN = "name: 'a' base_path: '/a' model_platform: 'tensorflow'"


def test_CF01_CF06_CF11_a_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, PLAIN + " model_version_policy { specific { versions: 1 versions: 4 } }"
                 " version_labels { key: 'stable' value: 4 }",
                 "name: 'b/ü' base_path: '/b' model_type: TENSORFLOW")
    first, second = read_config_file(path)
    assert first.policy == VersionPolicy(kind="specific", versions=(1, 4))
    assert first.labels == {"stable": 4}
    assert (second.name, second.policy) == ("b/ü", VersionPolicy())


def test_CF28_an_empty_list_is_a_config(tmp_path: Path) -> None:
    assert read_config_file(write(tmp_path)) == ()


@pytest.mark.parametrize(("entries", "words"), [
    (("name: 'a' base_path: '/a'",), "Illegal setting neither"),                     # CF02
    ((PLAIN + " model_type: TENSORFLOW",), "Illegal setting both"),                  # CF03
    (("name: 'a' base_path: '/a' model_platform: 'x'",), "unsupported platform"),    # CF04
    ((PLAIN, PLAIN), "multiple times in config list"),                               # CF05
    ((PLAIN + " logging_config { }",), "No request-logger-creator provided"),        # CF29
    (("name: 'a' base_path: 'a' model_platform: 'tensorflow'",),
     "to have an absolute path or URI"),                                             # FL20
])
def test_CF_a_list_that_breaks_a_rule_is_refused(
        tmp_path: Path, entries: tuple[str, ...], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        read_config_file(write(tmp_path, *entries))
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_FL25_a_file_that_is_missing_or_no_text_proto(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_config_file(tmp_path / "none")
    (tmp_path / "bad").write_text("model_config_list { nonsense", encoding="utf-8")
    with pytest.raises(InvalidRequest, match=r"Invalid protobuf file: '.*bad'"):
        read_config_file(tmp_path / "bad")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidRequest, match="Invalid protobuf file"):
        read_config_file(tmp_path / "bytes")


def test_CF27_a_custom_config_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "custom"
    path.write_text("custom_model_config { }", encoding="utf-8")
    with pytest.raises(InvalidRequest, match="Only ModelConfigList is currently supported"):
        read_config_file(path)


def test_FL08_no_port_and_no_socket() -> None:
    with pytest.raises(ConfigError, match=r"ServerConfig\.port"):
        ServerConfig(models=(), port=0)
    assert ServerConfig(models=(), port=0, socket_path="/s").port == 0


def values(*arguments: str) -> dict[str, object]:
    return dict(flags.parse(arguments).values)


def test_FL01_flags_are_written_with_an_equals_sign() -> None:
    read = values("--port=9", "--enable_model_warmup=false", "--model_name=a=b",
                  "--enable_grpc_healthcheck_service")
    assert read["port"] == 9
    assert read["enable_model_warmup"] is False
    assert read["model_name"] == "a=b"
    assert read["enable_grpc_healthcheck_service"] is True


def test_FL02_FL03_other_words_are_unknown_and_gone_past() -> None:
    parsed = flags.parse(["--port", "9000", "--nonsense=1", "word", "-port=1"])
    assert parsed.unknown == ("--port", "9000", "--nonsense=1", "word", "-port=1")
    assert parsed.values["port"] == 8500


@pytest.mark.parametrize("argument", ["--port=abc", "--enable_model_warmup=maybe",
                                      "--drain_seconds=x", "--port=1.5"])
def test_FL04_a_value_that_cannot_be_read(argument: str) -> None:
    with pytest.raises(InvalidRequest, match=argument.split("=")[0]):
        flags.parse([argument])


def test_our_own_flags_take_hyphens_and_theirs_do_not() -> None:
    parsed = flags.parse(["--model-root=/x", "--model-name=y"])
    assert parsed.values["model_root"] == "/x"
    assert parsed.unknown == ("--model-name=y",)


def test_defaults_are_TensorFlow_Servings() -> None:
    config = flags.server_config(values("--model_base_path=/m"))
    assert (config.port, config.poll_s, config.max_load_retries, config.load_retry_interval_s,
            config.warmup, config.health, config.tags) == (
                8500, 1, 5, 60.0, True, False, ("serve",))
    assert config.models[0].name == "default"  # FL17


def test_FL18_nothing_to_serve_names_both_flags() -> None:
    with pytest.raises(InvalidRequest, match=r"model_base_path.*model_config_file"):
        flags.server_config(values())


def test_FL19_the_file_wins(tmp_path: Path) -> None:
    config = flags.server_config(values("--model_name=z", "--model_base_path=/z",
                                        f"--model_config_file={write(tmp_path, PLAIN)}"))
    assert [model.name for model in config.models] == ["a"]


def test_FL20_a_relative_base_path_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="to have an absolute path or URI"):
        flags.server_config(values("--model_base_path=m"))


def test_FL20_a_URI_names_a_folder_of_this_machine_or_is_refused(tmp_path: Path) -> None:
    made = flags.server_config(values("--model_base_path=file:///m"))
    assert made.models[0].base_path == "/m"
    (model,) = read_config_file(write(tmp_path, PLAIN.replace("'/a'", "'file:///a'")))
    assert model.base_path == "/a"
    with pytest.raises(NotOffered, match="Copy or mount it"):
        flags.server_config(values("--model_base_path=gs://bucket/m"))


@pytest.mark.parametrize(("arguments", "error", "words"), [
    (["--batching_parameters_file=/b"], InvalidRequest, "enable_batching"),           # FL22
    (["--tensorflow_session_parallelism=1", "--tensorflow_intra_op_parallelism=1",
      "--tensorflow_inter_op_parallelism=1"], InvalidRequest, "parallelism"),         # FL24
    (["--rest_api_port=-1"], ConfigError, "rest_port"),
])
def test_flags_that_cannot_be_obeyed_are_refused(
        arguments: list[str], error: type[TfInferError], words: str) -> None:
    with pytest.raises(error, match=words):
        flags.server_config(values("--model_base_path=/m", *arguments))


@pytest.mark.parametrize(("arguments", "port", "threads", "timeout_s", "cors"), [
    ((), 0, 4 * flags.CPUS, 30.0, False),                                             # FL10, FL14
    (("--rest_api_port=8501", "--rest_api_num_threads=7", "--rest_api_timeout_in_ms=250",
      "--rest_api_enable_cors_support"), 8501, 7, 0.25, True),
    (("--rest_api_num_threads=0", "--rest_api_timeout_in_ms=0"), 0, 1, None, False),  # FL15
    (("--rest_api_timeout_in_ms=-5",), 0, 4 * flags.CPUS, None, False),
])
def test_FL10_FL14_FL15_FL16_flags_of_rest(
        arguments: tuple[str, ...], port: int, threads: int, timeout_s: float | None, cors: bool,
) -> None:
    config = flags.server_config(values("--model_base_path=/m", *arguments))
    assert (config.rest_port, config.rest_threads) == (port, threads)
    assert (config.rest_timeout_s, config.rest_cors) == (timeout_s, cors)


def test_FL42_channel_arguments() -> None:
    assert flags.channel_arguments("a.b=1,c=x,,d") == (("a.b", 1), ("c", "x"))


def test_FL05_usage_names_every_flag_with_its_default() -> None:
    text = flags.usage()
    assert [flag.name for flag in flags.FLAGS if f"\n  --{flag.name}=" not in text] == []
    assert "\n  --flush_filesystem_caches=true\n" in text
    assert "examples:" in text


def test_models_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b" / "1").mkdir(parents=True)
    (tmp_path / "a" / "07").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    found = models_below(tmp_path)
    assert [model.name for model in found] == ["a", "b"]
    assert all(Path(model.base_path).is_absolute() for model in found)
    with pytest.raises(ConfigError, match="Export a model first"):
        models_below(tmp_path / "empty")


def test_FL21_the_line_of_a_failed_start() -> None:
    assert app.failure(InvalidRequest("x")) == "Failed to start server. Error: INVALID_ARGUMENT: x"
    assert app.failure(ConfigError("y")) == "Failed to start server. Error: INVALID_ARGUMENT: y"
