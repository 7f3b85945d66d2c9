"""The model config file, read anew while the server runs, and configs over gRPC beside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.serverkit import (
    call,
    make_versions,
    predict_request,
    refused,
    running,
    wait_until,
)
from tf_infer.errors import ModelNotFound
from tf_infer.server import flags
from tf_infer.server.app import Server
from tf_infer.server.config import read_config_file
from tf_infer.server.config_file import ConfigFileWatch
from tf_infer.server.decide import State
from tf_infer.server.fakes import load_echo
from tf_infer.server.versions import ModelRef, Versions
from tf_infer.wire import methods, serving_pb2

WAIT_S = 20.0
LATEST_TWO = "model_version_policy { latest { num_versions: 2 } }"


class Folder:
    """A config file and the models that it may name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "models.config"

    def write(self, *names: str, more: str = "") -> Path:
        """Write a file that lists models of these names, each with version 1."""
        for name in names:
            make_versions(self.folder / name, "1")
        return self.text("model_config_list {" + "".join(
            f" config {{ name: '{name}' base_path: '{self.folder / name}' "
            f"model_platform: 'tensorflow' {more} }}" for name in names) + " }")

    def text(self, text: str) -> Path:
        self.file.write_text(text, encoding="utf-8")
        return self.file


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def versions() -> Iterator[Versions]:
    made = Versions(load_echo, max_load_retries=0, poll_s=0)
    yield made
    made.stop()


def up(versions: Versions) -> dict[str, tuple[int, ...]]:
    """Return name -> versions that are available."""
    found = {}
    for name in ("a", "b", "c"):
        try:
            rows = versions.status(name)
        except ModelNotFound:
            continue
        found[name] = tuple(row.version for row in rows if row.state is State.AVAILABLE)
    return {name: numbers for name, numbers in found.items() if numbers}


def watch(folder: Folder, versions: Versions, every_s: float = 5.0) -> ConfigFileWatch:
    versions.configure(read_config_file(folder.file))
    return ConfigFileWatch(folder.file, every_s, versions)


def becomes(versions: Versions, expected: dict[str, tuple[int, ...]]) -> bool:
    return wait_until(versions, lambda: up(versions) == expected, WAIT_S)


def test_CF21_CF24_the_file_is_the_whole_truth_each_time(folder: Folder, versions: Versions,
                                                         ) -> None:
    folder.write("a")
    seen = watch(folder, versions)
    folder.write("a", "b")
    seen.look()
    assert up(versions) == {"a": (1,), "b": (1,)}
    folder.write("b")
    seen.look()
    assert becomes(versions, {"b": (1,)})
    folder.text("model_config_list { }")
    seen.look()
    assert becomes(versions, {})


@pytest.mark.parametrize("spoil", [
    "model_config_list { config { nam", "", "model_config_list { config { name: 'a' } }",
    "custom_model_config { }", None])
def test_CF24_a_file_that_breaks_or_disappears_is_logged_once_and_a_repaired_one_is_taken(
        folder: Folder, versions: Versions, caplog: pytest.LogCaptureFixture, spoil: str | None,
        ) -> None:
    folder.write("a")
    seen = watch(folder, versions)
    if spoil is None:
        folder.file.unlink()
    else:
        folder.text(spoil)
    for _ in range(2):
        seen.look()
        assert up(versions) == {"a": (1,)}
    assert caplog.text.count("model_config_file applied=False") == 1
    folder.write("a", "b")
    seen.look()
    assert up(versions) == {"a": (1,), "b": (1,)}


def test_CF24_a_base_path_that_does_not_exist_does_not_keep_a_repaired_file_from_being_seen(
        folder: Folder, versions: Versions) -> None:
    folder.write("a")
    seen = watch(folder, versions, every_s=0.1)
    folder.text(folder.write("a", "b").read_text(encoding="utf-8").replace(
        str(folder.folder / "b"), "/no/such/folder"))
    seen.look()
    assert up(versions) == {"a": (1,)}
    folder.write("a", "b")
    seen.look()
    assert becomes(versions, {"a": (1,), "b": (1,)})


def test_CF20_a_label_of_a_new_model_comes_with_the_look_after_the_next(
        folder: Folder, versions: Versions, caplog: pytest.LogCaptureFixture) -> None:
    folder.write()
    seen = watch(folder, versions)
    folder.write("a", more="version_labels { key: 'stable' value: 1 }")
    seen.look()
    assert "not currently available for inference" in caplog.text
    assert up(versions) == {}                                                   # CF18
    plain = folder.write("a")
    seen.look()
    folder.write("a", more="version_labels { key: 'stable' value: 1 }")
    seen.look()
    lease = versions.borrow(ModelRef("a", label="stable"))
    assert lease.version == 1
    versions.give_back(lease)
    assert plain == folder.file


def test_CF22_a_changed_policy_of_a_known_model_takes_effect_afterwards(
        folder: Folder, versions: Versions) -> None:
    make_versions(folder.folder / "a", "1", "2")
    folder.write("a")
    seen = watch(folder, versions)
    assert up(versions) == {"a": (2,)}
    folder.write("a", more=LATEST_TWO)
    seen.look()
    assert becomes(versions, {"a": (2, 1)})


# ---------------------------------------------------------------------------- a whole server


def reload_request(folder: Folder, *names: str, platform: str = "tensorflow",
                   ) -> serving_pb2.ReloadConfigRequest:
    request = serving_pb2.ReloadConfigRequest()
    request.config.model_config_list.SetInParent()
    for name in names:
        make_versions(folder.folder / name, "1")
        request.config.model_config_list.config.add(
            name=name, base_path=str(folder.folder / name), model_platform=platform)
    return request


def settings(folder: Folder, poll_s: float) -> dict[str, Any]:
    config = flags.server_config(flags.parse([
        f"--model_config_file={folder.file}",
        f"--model_config_file_poll_wait_seconds={poll_s:.0f}"]).values)
    assert config.config_file_poll_s == round(poll_s)
    return {"models": config.models, "config_file": config.config_file,
            "config_file_poll_s": poll_s}


def served(server: Server, condition: Callable[[], bool]) -> bool:
    return wait_until(server.versions, condition, WAIT_S)


def test_CF23_FL33_with_polling_a_config_over_gRPC_is_undone(folder: Folder) -> None:
    folder.write("a")
    with running(load=load_echo, **settings(folder, 0.2)) as (server, channel):
        call(channel, methods.RELOAD_CONFIG, reload_request(folder, "b"))
        assert served(server, lambda: up(server.versions) == {"a": (1,)})
        folder.write("a", "c")
        assert served(server, lambda: up(server.versions) == {"a": (1,), "c": (1,)})
        thread = server._config_file._thread
        assert thread.is_alive()
    assert not thread.is_alive()


def test_CF25_FL33_without_polling_a_changed_file_is_never_seen(folder: Folder) -> None:
    folder.write("a")
    with running(load=load_echo, **settings(folder, 0)) as (server, channel):
        folder.write("b")
        time.sleep(0.3)
        assert up(server.versions) == {"a": (1,)}
        assert not server._config_file._thread.is_alive()
        call(channel, methods.RELOAD_CONFIG, reload_request(folder, "c"))
        time.sleep(0.3)
        assert up(server.versions) == {"c": (1,)}


def test_a_stop_ends_a_look_that_waits(folder: Folder, versions: Versions,
                                       caplog: pytest.LogCaptureFixture) -> None:
    folder.write("a")
    seen = watch(folder, versions, every_s=10 * WAIT_S)
    folder.text("model_config_list { config { name: 'z' base_path: '/no/such' "
                "model_platform: 'tensorflow' } }")
    looking = threading.Thread(target=seen.look, daemon=True)
    looking.start()
    assert wait_until(versions, lambda: versions.names() == ("z",), WAIT_S)
    versions.cancel()
    seen.stop()
    looking.join(WAIT_S)
    assert not looking.is_alive()
    assert "applied=False" not in caplog.text


def test_CF26_CF31_a_changed_platform_is_refused_and_poisons_nothing(folder: Folder) -> None:
    folder.write("a")
    with running(load=load_echo, **settings(folder, 0)) as (_, channel):
        code, text = refused(channel, methods.RELOAD_CONFIG,
                             reload_request(folder, "a", platform="other"))
        assert (code, "change a model's platform" in text) == ("INVALID_ARGUMENT", True)
        code, text = refused(channel, methods.RELOAD_CONFIG,
                             reload_request(folder, "b", platform="other"))
        assert (code, "unsupported platform" in text) == ("INVALID_ARGUMENT", True)     # CF04
        call(channel, methods.RELOAD_CONFIG, reload_request(folder, "a", "b"))           # CF31
        call(channel, methods.PREDICT, predict_request("b", text=["x"]))


def test_CF27_CF29_what_a_config_over_gRPC_may_not_hold(folder: Folder) -> None:
    folder.write("a")
    with running(load=load_echo, **settings(folder, 0)) as (_, channel):
        request = serving_pb2.ReloadConfigRequest()
        request.config.custom_model_config.SetInParent()
        assert refused(channel, methods.RELOAD_CONFIG, request) == (
            "INVALID_ARGUMENT", "Only ModelConfigList is currently supported")
        request = reload_request(folder, "a", "b")
        request.config.model_config_list.config[1].logging_config.SetInParent()
        code, text = refused(channel, methods.RELOAD_CONFIG, request)
        assert (code, "No request-logger-creator provided" in text) == ("INVALID_ARGUMENT", True)
        call(channel, methods.PREDICT, predict_request("a", text=["x"]))


def test_CF28_an_empty_list_is_a_server_without_models_and_unloads_all(folder: Folder) -> None:
    folder.text("model_config_list { }")
    with running(load=load_echo, **settings(folder, 0)) as (server, channel):
        assert refused(channel, methods.PREDICT, predict_request("a", text=["x"]))[
            0] == "NOT_FOUND"
        call(channel, methods.RELOAD_CONFIG, reload_request(folder, "a"))
        call(channel, methods.PREDICT, predict_request("a", text=["x"]))
        call(channel, methods.RELOAD_CONFIG, reload_request(folder))
        assert served(server, lambda: up(server.versions) == {})
        assert refused(channel, methods.PREDICT, predict_request("a", text=["x"]))[
            0] == "NOT_FOUND"


def test_CF28_an_empty_file_is_a_server_without_models(folder: Folder) -> None:
    assert read_config_file(folder.text("# nothing yet")) == ()


def test_CF30_a_model_name_may_hold_any_characters(folder: Folder) -> None:
    name = "a /ü%2F:predict\n\u65e5"
    make_versions(folder.folder / "a", "1")
    request = serving_pb2.ReloadConfigRequest()
    request.config.model_config_list.config.add(
        name=name, base_path=str(folder.folder / "a"), model_platform="tensorflow")
    with running((), load_echo) as (_, channel):
        call(channel, methods.RELOAD_CONFIG, request)
        answer = call(channel, methods.PREDICT, predict_request(name, text=["x"]))
        assert answer.model_spec.name == name
