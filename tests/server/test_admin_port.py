"""--admin_port: what changes the server, or looks into it, moves to a port of this machine only."""

from __future__ import annotations

import socket
from pathlib import Path

import grpc
import pytest

from tests.server.serverkit import (
    call,
    free_port,
    make_versions,
    predict_request,
    refused,
    running,
)
from tf_infer.errors import ConfigError, ServerUnavailable
from tf_infer.server import flags
from tf_infer.server.config import ModelConfig, ServerConfig
from tf_infer.server.fakes import load_echo
from tf_infer.wire import methods, profiler_pb2, serving_pb2

NO_SUCH = ("UNIMPLEMENTED", "Method not found!")


def models(tmp_path: Path) -> tuple[ModelConfig, ...]:
    return (ModelConfig(name="m", base_path=str(make_versions(tmp_path / "m", "1"))),)


def requests(tmp_path: Path) -> dict[str, tuple[methods.Method, object]]:
    reload = serving_pb2.ReloadConfigRequest()
    reload.config.model_config_list.config.add(
        name="m", base_path=str(tmp_path / "m"), model_platform="tensorflow")
    status = serving_pb2.GetModelStatusRequest()
    status.model_spec.name = "m"
    return {"reload": (methods.RELOAD_CONFIG, reload), "status": (methods.GET_MODEL_STATUS, status),
            "profiler": (methods.TERMINATE, profiler_pb2.TerminateRequest()),
            "predict": (methods.PREDICT, predict_request(text=["x"]))}


def test_reload_and_profiler_move_and_the_status_is_on_both(tmp_path: Path) -> None:
    asked = requests(tmp_path)
    with (running(models(tmp_path), load_echo, admin_port=free_port()) as (server, public),
          grpc.insecure_channel(server.admin_address) as admin):
        assert f"reload and profiler at {server.admin_address}" in server.summary()
        for channel, here, elsewhere in ((public, ("status", "predict"), ("reload", "profiler")),
                                         (admin, ("status", "reload", "profiler"), ("predict",))):
            for name in here:
                call(channel, *asked[name])
            for name in elsewhere:
                assert refused(channel, *asked[name]) == NO_SUCH


def test_without_it_everything_is_on_the_one_port_as_in_TensorFlow_Serving(tmp_path: Path) -> None:
    with running(models(tmp_path), load_echo) as (server, channel):
        assert server.admin_address == ""
        for method, request in requests(tmp_path).values():
            call(channel, method, request)


def test_without_the_profiler_it_is_on_neither_port(tmp_path: Path) -> None:
    with (running(models(tmp_path), load_echo, admin_port=free_port(), profiler=False
                  ) as (server, public),
          grpc.insecure_channel(server.admin_address) as admin):
        for channel in (public, admin):
            assert refused(channel, *requests(tmp_path)["profiler"]) == NO_SUCH


def test_it_listens_on_this_machine_only() -> None:
    config = {"port": free_port(), "admin_port": free_port(), "host": "0.0.0.0"}
    with running((), load_echo, **config):
        for name, expected in (("port", True), ("admin_port", False)):
            with socket.socket() as probe:  # an address of this machine that is not "localhost"
                assert (probe.connect_ex(("127.0.0.2", config[name])) == 0) is expected


def test_a_taken_port_ends_the_start_and_leaves_no_other_open() -> None:
    port, public = free_port(), free_port()
    with running((), load_echo, admin_port=port):
        with pytest.raises(ServerUnavailable, match=str(port)), running(
                (), load_echo, port=public, admin_port=port):
            pass
        with socket.socket() as probe:
            probe.bind(("localhost", public))


def test_the_flag() -> None:
    values = flags.parse(["--model_base_path=/m", "--admin-port=8510"]).values
    assert flags.server_config(values).admin_port == 8510
    with pytest.raises(ConfigError, match=r"ServerConfig\.admin_port"):
        ServerConfig(models=(), port=8510, admin_port=8510)
    with pytest.raises(ConfigError, match=r"ServerConfig\.admin_port"):
        ServerConfig(models=(), admin_port=70_000)
