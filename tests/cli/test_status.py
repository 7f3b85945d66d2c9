"""`tf-infer status` against a server in this process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes.serving import FakeServer
from tf_infer.cli.main import main
from tf_infer.wire import messages, methods
from tf_infer.wire.messages import VersionState


def server_with(*states: str) -> FakeServer:
    """Return a server whose model passes through states; the last one stays."""
    left = list(states)

    def answer(request: Any, context: Any) -> Any:
        state = left.pop(0) if len(left) > 1 else left[0]
        failed = state == "END"
        return messages.status_response([VersionState(
            version=2, state=state, error_code="DATA_LOSS" if failed else "OK",
            error_message="torn file" if failed else "")])

    return FakeServer({methods.GET_MODEL_STATUS: answer})


def test_an_available_model_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    with server_with("AVAILABLE") as server:
        assert main(["status", "m", "--address", server.address]) == 0
        assert capsys.readouterr().out == "m\tversion 2\tAVAILABLE\n"
        assert main(["status", "m", "--address", server.address, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
    assert found == {"model": "m", "available": [2], "versions": [
        {"version": 2, "state": "AVAILABLE", "error_code": "OK", "error_message": ""}]}


def test_a_model_that_failed_exits_1_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with server_with("END") as server:
        assert main(["status", "m", "--address", server.address]) == 1
        assert capsys.readouterr().out == "m\tversion 2\tEND\tDATA_LOSS: torn file\n"
        assert main(["status", "m", "--address", server.address, "--wait", "5"]) == 1
        assert "failed to load: torn file" in capsys.readouterr().err


def test_it_waits(capsys: pytest.CaptureFixture[str]) -> None:
    with server_with("LOADING", "LOADING", "AVAILABLE") as server:
        assert main(["status", "m", "--address", server.address, "--wait", "20"]) == 0
        assert len(server.requests) == 3


def test_it_does_not_wait_for_ever(capsys: pytest.CaptureFixture[str]) -> None:
    with server_with("LOADING") as server:
        assert main(["status", "m", "--address", server.address, "--wait", "0.2"]) == 1
    assert "expected to be AVAILABLE within 0.2 s, last seen: version 2 LOADING" in (
        capsys.readouterr().err)
