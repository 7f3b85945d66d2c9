"""What the real server is told and how its process is watched; no server, no TensorFlow."""

from __future__ import annotations

import io
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tf_infer import config
from tf_infer.config import ClassifierConfig, ShapeGrid
from tf_infer.errors import BackendMissing, Code, InvalidRequest, NotOffered, ServerUnavailable
from tf_infer.manifest import EXTRA_FOLDER, MANIFEST_FILE, ModelManifest
from tf_infer.server import flags, launcher
from tf_infer.server.config import ModelConfig, VersionPolicy
from tf_infer.server.fakes import signature
from tf_infer.server.launcher import Binary, Child, Version
from tf_infer.wire import serving_pb2 as pb

BINARY = Binary("/usr/bin/tensorflow_model_server", "2.20.0")
MODELS = (ModelConfig(name="b", base_path="/models/b"), ModelConfig(name="a", base_path="/other/a"))
GRIDS = (ShapeGrid(rows=(1, 8)), ShapeGrid(rows=(1, 32)))


def plan(*words: str, compiled: bool = False, grids: Sequence[ShapeGrid] = GRIDS,
         ) -> launcher.Launch:
    return launcher.plan(words, flags.parse(words).values, MODELS, binary=BINARY, grids=grids,
                         folder=Path("/f"), socket=Path("/tmp/x/s"), compiled=compiled)


def test_models_of_a_folder_go_into_a_file() -> None:
    found = plan("--saved_models=saved_models", "--port=9000")
    assert found.command == (
        BINARY.path, "--port=9000", "--model_config_file=/f/models.config",
        "--grpc_socket_path=/tmp/x/s")
    assert found.address == "unix:/tmp/x/s"
    message = found.files["models.config"]
    assert message.index("/other/a") < message.index("/models/b")


@pytest.mark.parametrize("word", ["--model_config_file=/c", "--model_base_path=/m"])
def test_models_of_its_own_flags_are_left_to_it(word: str) -> None:
    found = plan(word, "--model_name=m", "--grpc_socket_path=/mine")
    assert found.command == (BINARY.path, word, "--model_name=m", "--grpc_socket_path=/mine")
    assert found.address == "unix:/mine"
    assert not found.files


def test_its_own_flags_pass_as_they_stand_and_ours_do_not() -> None:
    words = ("--enable_profiler=false", "--xla_gpu_compilation_enabled", "--a_newer_flag=1",
             "--grpc_channel_arguments=a=1,b=2", "--model_base_path=/m")
    ours = ("--backend=tensorflow_model_server", "--ready-seconds=5", "--verbose")
    assert plan(*ours, *words).command[1:-1] == words


def test_batching_is_made_from_the_grids_when_it_is_asked_for() -> None:
    base = "--model_base_path=/m"
    assert not plan(base).files
    found = plan(base, "--enable_batching")
    assert "--batching_parameters_file=/f/batching.config" in found.command
    assert "allowed_batch_sizes: 32" in found.files["batching.config"]
    assert not plan(base, "--enable_batching", "--batching_parameters_file=/mine").files
    assert not plan(base, "--enable_batching", "--enable_per_model_batching_parameters").files
    assert not plan(base, "--enable_batching", grids=()).files


def test_monitoring_comes_with_rest() -> None:
    found = plan("--model_base_path=/m", "--rest_api_port=8501")
    assert "--monitoring_config_file=/f/monitoring.config" in found.command
    assert "enable: true" in found.files["monitoring.config"]
    assert not plan("--model_base_path=/m", "--rest_api_port=1",
                    "--monitoring_config_file=/x").files


def test_the_flag_of_xla_is_set_where_it_is_needed() -> None:
    base, flag = "--model_base_path=/m", "--xla_cpu_compilation_enabled"
    assert f"{flag}=true" in plan(base, compiled=True).command
    assert plan(base, flag, compiled=True).command.count(flag) == 1
    assert not any("xla" in word for word in plan(base).command)
    with pytest.raises(InvalidRequest, match="expected true, because a version is compiled"):
        plan(base, f"{flag}=false", compiled=True)


@pytest.mark.parametrize("word", ["--host=127.0.0.1", "--drain_seconds=3", "--scheduler=none",
                                  "--admin_port=1"])
def test_what_only_the_embedded_server_can_do_is_refused(word: str) -> None:
    with pytest.raises(NotOffered, match=word.partition("=")[0]):
        launcher.check_flags(flags.parse([word]).values)


def test_every_flag_of_the_launcher_is_understood() -> None:
    words = ["--server_binary=x", "--server_config_dir=x", "--ready_seconds=1", "--verbose",
             "--enable_preflight=false", "--tls_server_name=x", "--enable_golden_replay=false"]
    launcher.check_flags(flags.parse(words).values)
    with pytest.raises(InvalidRequest, match="--server_binary, --server_config_dir, --ready_sec"):
        flags.server_config(flags.parse([*words, "--model_base_path=/m"]).values)


# ---------------------------------------------------------------------------- the program


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_program_tells_its_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = script(tmp_path / launcher.BINARY,
                  "echo 'TensorFlow ModelServer: 2.19.1-rc0+dev'; echo 'TensorFlow Library: 2.19'")
    assert launcher.find(path) == Binary(path, "2.19.1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launcher.find("") == Binary(path, "2.19.1")
    assert launcher.find(script(tmp_path / "mute", "exit 3")).release == ""


def test_a_missing_program_names_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendMissing, match=r"tensorflow-model-server.*--server_binary=PATH"):
        launcher.find("")
    with pytest.raises(BackendMissing, match="/none"):
        launcher.find("/none")
    (tmp_path / "broken").write_bytes(b"\x7fELF nothing")
    (tmp_path / "broken").chmod(0o755)
    with pytest.raises(BackendMissing, match="Is it a tensorflow_model_server for this machine"):
        launcher.find(str(tmp_path / "broken"))


# ---------------------------------------------------------------------------- the versions


def model(base: Path, number: int, *, op: str = "NoOp", compiled: bool = False,
          manifest: Any = None) -> Version:
    info = {"x": (pb.DT_FLOAT, (-1,))}
    graph = pb.MetaGraphDef(signature_def={"serving_default": signature(info, info)})
    graph.meta_info_def.tags.append("serve")
    graph.graph_def.node.add(name="x", op=op).attr["_XlaMustCompile"].b = compiled
    graph.graph_def.library.function.add().signature.name = "f"
    graph.graph_def.node[0].attr["_f"].func.name = "f"
    path = base / str(number)
    path.mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(pb.SavedModel(meta_graphs=[graph]).SerializeToString())
    if manifest:
        (path / EXTRA_FOLDER).mkdir()
        config.dump(ModelManifest(
            name="m", version=number, task=ClassifierConfig(classes=("a", "b")), signatures=(),
            grid=ShapeGrid(), compiled=manifest), path / EXTRA_FOLDER / MANIFEST_FILE)
    return Version("m", number, path)


def examine(*found: Version, release: str = "2.20.0", words: Sequence[str] = (),
            ) -> launcher.Examined:
    return launcher.examine(found, flags.parse(words).values, release)


def test_the_versions_are_those_of_the_policies(tmp_path: Path) -> None:
    found = [model(tmp_path / "m", number) for number in (2, 10, 9)]
    for policy, numbers in ((VersionPolicy(), [10]), (VersionPolicy(kind="all"), [2, 9, 10]),
                            (VersionPolicy(kind="specific", versions=(9, 11)), [9])):
        models = [ModelConfig(name="m", base_path=str(tmp_path / "m"), policy=policy),
                  ModelConfig(name="far", base_path="gs://far/away")]
        assert [one.number for one in launcher.versions(models)] == numbers
    assert found[1] in launcher.versions(models[:1]) or found[2] in launcher.versions(models[:1])


@pytest.mark.parametrize(("made", "needed"), [
    ({}, False), ({"compiled": True}, True), ({"manifest": "xla"}, True),
    ({"manifest": "none"}, False)])
@pytest.mark.parametrize("release", ["2.20.0", "99.1.0", ""])
def test_compiled_versions_are_found_by_graph_or_manifest(
        tmp_path: Path, made: dict[str, Any], needed: bool, release: str) -> None:
    found = examine(model(tmp_path, 1, **made), release=release)
    assert found == launcher.Examined(needed, (), known_release=release == "2.20.0")


def test_versions_that_would_not_run_are_refused_with_the_reasons(tmp_path: Path) -> None:
    bad, gone = model(tmp_path, 1, op="MyOwnOp"), model(tmp_path, 2)
    (gone.path / "saved_model.pb").write_bytes(b"\xff")
    found = examine(bad, gone)
    assert len(found.problems) == 2
    with pytest.raises(InvalidRequest) as caught:
        launcher.refuse(BINARY, found.problems)
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert "m version 1, load: operation MyOwnOp is not linked" in caught.value.details
    assert "m version 2: " in caught.value.details
    launcher.refuse(BINARY, ())


def test_a_flag_that_a_model_needs_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.tflite").touch()
    only = Version("m", 1, tmp_path / "1")
    assert examine(only).problems == ("m version 1: it needs --prefer_tflite_model=true",)
    assert not examine(only, words=["--prefer_tflite_model"]).problems


# ---------------------------------------------------------------------------- the process


def child(text: str) -> tuple[Child, io.BytesIO, io.BytesIO]:
    out, err = io.BytesIO(), io.BytesIO()
    return Child(["/bin/sh", "-c", text], out=out, err=err), out, err


def test_what_it_writes_is_passed_on() -> None:
    one, out, err = child("echo to out; echo to err >&2; exit 3")
    assert one.wait() == 3
    assert (out.getvalue(), err.getvalue()) == (b"to out\n", b"to err\n")


def test_its_end_is_told_with_its_last_lines() -> None:
    one, _, _ = child("for i in $(seq 30); do echo line $i; done; exit 255")
    one.wait()
    with pytest.raises(ServerUnavailable, match="ended with code 255 before it was") as caught:
        one.check()
    assert "line 10\n" not in caught.value.details
    assert caught.value.details.endswith("line 30")
    mute, _, _ = child("exit 1")
    mute.wait()
    with pytest.raises(ServerUnavailable, match="without a word"):
        mute.check()


def test_a_signal_is_passed_on_and_shows_in_the_code() -> None:
    one, _, _ = child("exec sleep 600")
    one.check()
    one.send(signal.SIGINT)
    assert one.wait() == 130


def test_one_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "STOP_S", 0.3)
    one, out, _ = child("trap '' TERM; echo ready; while :; do sleep 0.05; done")
    while not out.getvalue():
        one.check()
    one.stop()
    assert one.wait() == 128 + signal.SIGKILL


def test_it_can_write_when_nobody_reads_us() -> None:
    class Gone(io.BytesIO):
        def write(self, data: Any) -> int:
            raise BrokenPipeError

    one = Child(["/bin/sh", "-c", "seq 100000; exit 4"], out=Gone(), err=io.BytesIO())
    assert one.wait() == 4
