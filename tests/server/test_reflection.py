"""Server reflection: what a caller who knows nothing can find out, and then ask."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

pytest.importorskip("grpc_reflection",
                    reason="reflection needs grpcio-reflection: pip install 'tf_infer[server]'")

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2 as pb

from tests.server.generationkit import Serving, serving
from tf_infer.server.reflection import SERVICES, THREADS


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("models")) as running:
        yield running


def ask(one: Serving, service: str = SERVICES[0], **fields: Any) -> Any:
    answer, = one.channel.stream_stream(
        f"/{service}/ServerReflectionInfo", pb.ServerReflectionRequest.SerializeToString,
        pb.ServerReflectionResponse.FromString)(
            iter([pb.ServerReflectionRequest(**fields)]), timeout=20)
    return answer


def learned(one: Serving, service: str) -> descriptor_pool.DescriptorPool:
    """Return a pool of what the server tells of a service."""
    pool = descriptor_pool.DescriptorPool()
    told = ask(one, file_containing_symbol=service).file_descriptor_response
    files = [descriptor_pb2.FileDescriptorProto.FromString(raw)
             for raw in told.file_descriptor_proto]
    while files:  # those first that need no other
        ready = [file for file in files
                 if not set(file.dependency) & {other.name for other in files}]
        for file in ready:
            pool.Add(file)
            files.remove(file)
    return pool


@pytest.mark.parametrize("service", SERVICES)
def test_all_services_are_listed(one: Serving, service: str) -> None:
    told = ask(one, service, list_services="").list_services_response
    assert {entry.name for entry in told.service} >= {
        "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService",
        "tf_infer.GenerationService", *SERVICES}


def test_a_caller_without_our_files_streams_a_text(one: Serving) -> None:
    pool = learned(one, "tf_infer.GenerationService")
    method = pool.FindServiceByName("tf_infer.GenerationService").methods_by_name["Generate"]
    assert method.server_streaming
    request, response = (message_factory.GetMessageClass(kind) for kind in (
        method.input_type, method.output_type))
    asked = request()
    asked.model.name, asked.prompt = "writer", b"Once"
    pieces = one.channel.unary_stream("/tf_infer.GenerationService/Generate")(
        asked.SerializeToString(), timeout=20)
    assert b"".join(response.FromString(raw).text for raw in pieces).decode() == "Zoë, 你好 🎉."


def test_a_caller_without_tensorflows_files_asks_for_a_models_status(one: Serving) -> None:
    pool = learned(one, "tensorflow.serving.ModelService")
    service = pool.FindServiceByName("tensorflow.serving.ModelService")
    method = service.methods_by_name["GetModelStatus"]
    request, response = (message_factory.GetMessageClass(kind) for kind in (
        method.input_type, method.output_type))
    asked = request()
    asked.model_spec.name = "writer"
    raw = one.channel.unary_unary("/tensorflow.serving.ModelService/GetModelStatus")(
        asked.SerializeToString(), timeout=20)
    status, = response.FromString(raw).model_version_status
    assert (status.version, status.state) == (7, 30)


def test_what_there_is_not_is_not_found(one: Serving) -> None:
    assert ask(one, file_containing_symbol="a.secret").error_response.error_code == (
        grpc.StatusCode.NOT_FOUND.value[0])


def test_a_service_that_is_not_offered_is_not_told(tmp_path: Path) -> None:
    with serving(tmp_path, admin_port=0, profiler=False) as one:
        names = {entry.name for entry in ask(
            one, list_services="").list_services_response.service}
    assert "tensorflow.ProfilerService" not in names


def test_callers_who_stay_hold_nobody_else_up(one: Serving) -> None:
    ends = threading.Event()

    def slowly() -> Iterator[Any]:
        yield pb.ServerReflectionRequest(list_services="")
        ends.wait(20)

    calls = [one.channel.stream_stream(
        f"/{SERVICES[0]}/ServerReflectionInfo", pb.ServerReflectionRequest.SerializeToString,
        pb.ServerReflectionResponse.FromString)(slowly(), timeout=20) for _ in range(THREADS)]
    assert all(next(call).list_services_response.service for call in calls)
    assert len(list(one.generate(prompt="Once", timeout=10))) > 0
    ends.set()
    assert all(not list(call) for call in calls)
