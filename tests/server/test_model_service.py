"""A version's life as callers see it: states, answers while versions change, reload over gRPC."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.server.serverkit import (
    call,
    make_versions,
    predict_request,
    refused,
    running,
    wait_until,
)
from tf_infer.errors import Code, InvalidRequest, ServerFailure
from tf_infer.server import flags
from tf_infer.server.app import Server
from tf_infer.server.config import ModelConfig, VersionPolicy
from tf_infer.server.contracts import LoadTimes, Servable
from tf_infer.server.decide import State
from tf_infer.server.fakes import EchoServable, load_echo, signature
from tf_infer.server.versions import ModelRef
from tf_infer.wire import methods, serving_pb2

WAIT_S = 20.0
FLOAT, TEXT = serving_pb2.DT_FLOAT, serving_pb2.DT_STRING
SIGNATURES = {
    "serving_default": signature({}, {"version": (TEXT, ())}),
    "classify": signature({"inputs": (TEXT, (-1,))}, {"scores": (FLOAT, (-1, 1))}),
    "regress": signature({"inputs": (TEXT, (-1,))}, {"outputs": (FLOAT, (-1,))}),
    "fails": signature({"inputs": (TEXT, (-1,))}, {"outputs": (FLOAT, (-1,))}),
}


class Numbered(EchoServable):
    """Says which version it is; one signature fails."""

    def __init__(self, version: str) -> None:
        super().__init__(SIGNATURES)
        self.version = version

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None) -> dict[str, np.ndarray]:
        if signature == "fails":
            raise InvalidRequest("no such row", code=Code.OUT_OF_RANGE)
        rows = len(inputs.get("inputs", ()))
        made = {"version": np.array(self.version.encode(), object),
                "scores": np.full((rows, 1), float(self.version), np.float32),
                "outputs": np.full(rows, float(self.version), np.float32)}
        return {name: made[name] for name in outputs}


def load_numbered(path: Path) -> tuple[Servable, LoadTimes]:
    if (path / "bad").exists():
        raise ServerFailure(f"{path.name} is broken", code=Code.DATA_LOSS)
    return Numbered(path.name), LoadTimes()


def model(base: Path, **settings: Any) -> ModelConfig:
    return ModelConfig(name="m", base_path=str(base), **settings)


def status_request(**spec: Any) -> serving_pb2.GetModelStatusRequest:
    return serving_pb2.GetModelStatusRequest(
        model_spec=serving_pb2.ModelSpec(**{"name": "m", **spec}))


def states(channel: grpc.Channel, **spec: Any) -> list[tuple[int, int, int, str]]:
    answer = call(channel, methods.GET_MODEL_STATUS, status_request(**spec))
    return [(row.version, row.state, row.status.error_code, row.status.error_message)
            for row in answer.model_version_status]


def becomes(server: Server, expected: dict[int, State]) -> bool:
    return wait_until(server.versions, lambda: {
        row.version: row.state for row in server.versions.status("m")} == expected, WAIT_S)


class Gate:
    """A LoadFn that stops at every version but the first until it is let go."""

    def __init__(self) -> None:
        self.leave = threading.Event()

    def __call__(self, path: Path) -> tuple[Servable, LoadTimes]:
        if path.name != "1":
            self.leave.wait(WAIT_S)
        return load_numbered(path)


def test_MS02_MS03_MS20_VR13_every_state_of_a_version_is_told(tmp_path: Path) -> None:
    base, gate = make_versions(tmp_path, "1"), Gate()
    with running((model(base),), gate) as (server, channel):
        assert states(channel) == [(1, 30, 0, "")]
        make_versions(base, "2")
        server.versions.poll()
        assert becomes(server, {1: State.AVAILABLE, 2: State.LOADING})          # VR13
        assert states(channel) == [(2, 20, 0, ""), (1, 30, 0, "")]
        asked = predict_request()
        asked.model_spec.version.value = 2
        assert refused(channel, methods.PREDICT, asked) == (                    # MS20
            "NOT_FOUND", "Servable not found for request: Specific(m, 2)")
        lease = server.versions.borrow(ModelRef("m", 1))
        gate.leave.set()
        assert becomes(server, {1: State.UNLOADING, 2: State.AVAILABLE})
        assert states(channel) == [(2, 30, 0, ""), (1, 40, 0, "")]
        server.versions.give_back(lease)
        assert becomes(server, {1: State.END, 2: State.AVAILABLE})
        assert states(channel) == [(2, 30, 0, ""), (1, 50, 0, "")]              # VR19


def test_MS20_a_model_that_has_just_been_configured_is_not_found_yet(tmp_path: Path) -> None:
    gate = Gate()
    with (ThreadPoolExecutor(1) as pool,
          running((), gate, poll_s=0.05) as (server, channel)):
        request = serving_pb2.ReloadConfigRequest()
        request.config.model_config_list.config.add(
            name="m", base_path=str(make_versions(tmp_path, "2")), model_platform="tensorflow")
        reload = pool.submit(call, channel, methods.RELOAD_CONFIG, request)
        assert wait_until(server.versions, lambda: "m" in server.versions._table, WAIT_S)
        assert states(channel)[0][1] in (10, 20)
        assert refused(channel, methods.PREDICT, predict_request()) == (
            "NOT_FOUND", "Servable not found for request: Latest(m)")
        gate.leave.set()
        assert reload.result(WAIT_S).status.error_code == 0
        call(channel, methods.PREDICT, predict_request())


def test_MS07_MS09_label_and_signature_name_of_a_status_request_are_ignored(
        tmp_path: Path) -> None:
    base = make_versions(tmp_path, "1", "2")
    with running((model(base, policy=VersionPolicy(kind="all")),), load_numbered) as (
            server, channel):
        assert becomes(server, {1: State.AVAILABLE, 2: State.AVAILABLE})
        every = states(channel)
        assert [row[0] for row in every] == [2, 1]
        assert states(channel, signature_name="no such signature") == every
        assert states(channel, version_label="no such label") == every


def test_VR07_MD07_an_answer_names_the_version_that_computed_it(tmp_path: Path) -> None:
    base = make_versions(tmp_path, "1")
    failures: list[Any] = []
    seen: set[int] = set()
    stop = threading.Event()
    with running((model(base),), load_numbered) as (server, channel):
        def ask() -> None:
            while not stop.is_set():
                try:
                    answer = call(channel, methods.PREDICT, predict_request())
                except grpc.RpcError as error:
                    failures.append(error)
                    return
                number = answer.model_spec.version.value
                seen.add(number)
                if answer.outputs["version"].string_val[0] != str(number).encode():
                    failures.append(answer)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for version in range(2, 8):
            make_versions(base, str(version))
            server.versions.poll()
            assert wait_until(server.versions, lambda v=version: {
                row.version: row.state for row in server.versions.status("m")
            }.get(v) is State.AVAILABLE, WAIT_S)
        stop.set()
        for thread in threads:
            thread.join(WAIT_S)
        assert not failures
        assert len(seen) > 1
        request = serving_pb2.GetModelMetadataRequest(
            metadata_field=["signature_def"], model_spec=serving_pb2.ModelSpec(name="m"))
        assert call(channel, methods.GET_MODEL_METADATA, request).model_spec.version.value == 7


def test_VR13_no_flag_changes_the_policy() -> None:
    assert not [flag.name for flag in flags.FLAGS if "policy" in flag.name]


def test_MD03_MD06_MD07_metadata_of_a_version_or_a_label(tmp_path: Path) -> None:
    base = make_versions(tmp_path, "1", "2")
    models = (model(base, policy=VersionPolicy(kind="all"), labels={"old": 1}),)
    with running(models, load_numbered, labels_for_unavailable=True) as (server, channel):
        assert becomes(server, {1: State.AVAILABLE, 2: State.AVAILABLE})

        def request(**spec: Any) -> serving_pb2.GetModelMetadataRequest:
            made = serving_pb2.GetModelMetadataRequest(
                metadata_field=["signature_def"],
                model_spec=serving_pb2.ModelSpec(name="m", signature_name="regress"))
            if "version" in spec:
                made.model_spec.version.value = spec["version"]
            if "label" in spec:
                made.model_spec.version_label = spec["label"]
            return made

        for spec, version in (({}, 2), ({"version": 1}, 1), ({"label": "old"}, 1)):
            told = call(channel, methods.GET_MODEL_METADATA, request(**spec)).model_spec
            assert (told.name, told.version.value, told.signature_name) == ("m", version, "")
        for spec, code, words in (
                ({"version": 9}, "NOT_FOUND", "Servable not found for request: Specific(m, 9)"),
                ({"label": "x"}, "INVALID_ARGUMENT", "Unrecognized servable version label: x")):
            assert refused(channel, methods.GET_MODEL_METADATA, request(**spec)) == (code, words)


def test_MS12_an_error_of_a_reload_is_the_calls_own_status(tmp_path: Path) -> None:
    base = make_versions(tmp_path / "m", "1")
    with running((model(base),), load_numbered) as (_, channel):
        request = serving_pb2.ReloadConfigRequest()
        request.config.model_config_list.config.add(
            name="bad", base_path=str(make_versions(tmp_path / "bad", "1/bad")),
            model_platform="tensorflow")
        code, text = refused(channel, methods.RELOAD_CONFIG, request)
        assert code == "UNKNOWN"
        assert "{name: bad version: 1} due to error: DATA_LOSS: 1 is broken" in text


def multi(*named: tuple[str, str], version: int | None = None,
          ) -> serving_pb2.MultiInferenceRequest:
    request = serving_pb2.MultiInferenceRequest()
    for name, method in named:
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = "m", name
    if version is not None:
        request.tasks[0].model_spec.version.value = version
        for task in request.tasks[1:]:
            task.model_spec.version.value = 2
    request.input.example_list.examples.add()
    return request


def test_MI03_MI10_the_first_tasks_model_spec_picks_the_version_for_all(tmp_path: Path) -> None:
    base = make_versions(tmp_path, "1", "2")
    with running((model(base, policy=VersionPolicy(kind="all")),), load_numbered) as (
            server, channel):
        assert becomes(server, {1: State.AVAILABLE, 2: State.AVAILABLE})
        asked = multi(("regress", "regress"), ("classify", "classify"), version=1)
        first, second = call(channel, methods.MULTI_INFERENCE, asked).results
        assert [item.model_spec.version.value for item in (first, second)] == [1, 1]
        assert first.regression_result.regressions[0].value == 1.0
        assert second.classification_result.classifications[0].classes[0].score == 1.0
        missing = multi(("regress", "regress"), version=3)
        assert refused(channel, methods.MULTI_INFERENCE, missing) == (
            "NOT_FOUND", "Servable not found for request: Specific(m, 3)")


@pytest.mark.parametrize("order", [1, -1])
def test_MI13_one_failing_part_fails_the_request(tmp_path: Path, order: int) -> None:
    with running((model(make_versions(tmp_path, "1")),), load_numbered) as (_, channel):
        named = [("regress", "regress"), ("fails", "regress")][::order]
        assert refused(channel, methods.MULTI_INFERENCE, multi(*named)) == (
            "OUT_OF_RANGE", "no such row")
        call(channel, methods.MULTI_INFERENCE, multi(("regress", "regress")))


def test_LI12_two_servers_serve_the_same_folder(tmp_path: Path) -> None:
    base = make_versions(tmp_path, "1")
    with (running((model(base),), load_echo) as (_, first),
          running((model(base),), load_echo) as (_, second)):
        for channel in (first, second):
            answer = call(channel, methods.PREDICT, predict_request(text=["x"]))
            assert answer.model_spec.version.value == 1
