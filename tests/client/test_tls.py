"""TLS, mutual TLS and tokens against a server in this process. Certificates: tests/golden/tls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.serving import FakeServer, echo
from tf_infer.client.client import Client
from tf_infer.client.credentials import INSECURE, Credentials, tls
from tf_infer.client.retry import NO_RETRY
from tf_infer.errors import ServerUnavailable
from tf_infer.wire import methods

FILES = Path(__file__).resolve().parents[1] / "golden" / "tls"


def pem(name: str) -> bytes:
    return (FILES / name).read_bytes()


def serve(*, client_verify: bool) -> FakeServer:
    return FakeServer({methods.PREDICT: echo}, credentials=grpc.ssl_server_credentials(
        [(pem("server.key"), pem("server.pem"))], root_certificates=pem("ca.pem"),
        require_client_auth=client_verify))


def ask(address: str, credentials: Credentials, **options: Any) -> Any:
    with Client(address, credentials=credentials, retry=NO_RETRY, timeout_s=20,
                **options) as client:
        return client.predict("m", {"x": 1.0})


OURS = {"key": FILES / "client.key", "certificate": FILES / "client.pem"}


def test_a_trusted_server_is_asked_and_gets_the_token() -> None:
    with serve(client_verify=False) as server:
        assert ask(server.address, tls(ca=FILES / "ca.pem", token="abc"))["x"] == 1.0
        assert server.requests[0][2]["authorization"] == "Bearer abc"


def test_a_name_of_the_certificate_may_be_expected_instead() -> None:
    with serve(client_verify=False) as server:
        good = tls(ca=FILES / "ca.pem", server_name="models.example")
        assert ask(server.address, good)["x"] == 1.0
        with pytest.raises(ServerUnavailable):
            ask(server.address, tls(ca=FILES / "ca.pem", server_name="other.example"))


@pytest.mark.parametrize("credentials", [tls(ca=FILES / "other-ca.pem"), tls(), INSECURE],
                         ids=["another authority", "gRPC's authorities", "plaintext"])
def test_an_untrusted_server_is_refused(credentials: Credentials) -> None:
    with serve(client_verify=False) as server:
        with pytest.raises(ServerUnavailable):
            ask(server.address, credentials)
        assert not server.requests


def test_mutual_tls_needs_our_certificate() -> None:
    with serve(client_verify=True) as server:
        assert ask(server.address, tls(ca=FILES / "ca.pem", **OURS))["x"] == 1.0
        with pytest.raises(ServerUnavailable):
            ask(server.address, tls(ca=FILES / "ca.pem"))
        assert len(server.requests) == 1
