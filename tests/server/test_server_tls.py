"""TLS of the gRPC port (TL01 to TL09, FL23, FL45). Certificates: tests/golden/tls."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import text_format

from tests.server.serverkit import call, free_port, make_versions, predict_request, refused
from tf_infer.errors import ConfigError, InvalidRequest, ServerUnavailable
from tf_infer.server import flags
from tf_infer.server.app import Server
from tf_infer.server.config import ModelConfig, ServerConfig, read_ssl_config
from tf_infer.server.fakes import load_echo
from tf_infer.wire import methods, serving_pb2

FILES = Path(__file__).resolve().parents[1] / "golden" / "tls"


def pem(name: str) -> bytes:
    return (FILES / name).read_bytes()


def write(path: Path, *, key: str = "server.key", cert: str = "server.pem", ca: str = "ca.pem",
          client_verify: bool = False) -> str:
    message = serving_pb2.SSLConfig(
        server_key=pem(key), server_cert=pem(cert), custom_ca=pem(ca), client_verify=client_verify)
    path.write_text(text_format.MessageToString(message), encoding="utf-8")
    return str(path)


@contextmanager
def served(tmp_path: Path, **settings: Any) -> Iterator[Server]:
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path / "m", "1"))),)
    config = ServerConfig(models=models, **{
        "port": free_port(), "host": "localhost", "poll_s": 0, **settings})
    with Server(config, load=load_echo) as server:
        yield server


def trusting(ca: str = "ca.pem", key: str = "", certificate: str = "") -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(pem(ca), pem(key) if key else None,
                                        pem(certificate) if certificate else None)


def ask(server: Server, credentials: grpc.ChannelCredentials | None, name: str = "localhost",
        address: str = "") -> tuple[str, ...]:
    """Return ("OK",), or what the call is refused with."""
    options = (("grpc.ssl_target_name_override", name), ("grpc.enable_retries", 0))
    address = address or server.addresses[0]
    with (grpc.secure_channel(address, credentials, options) if credentials
          else grpc.insecure_channel(address)) as channel:
        request = predict_request(text=["x"])
        try:
            call(channel, methods.PREDICT, request)
        except grpc.RpcError:
            return refused(channel, methods.PREDICT, request)
        return ("OK",)


OURS = {"key": "client.key", "certificate": "client.pem"}


def test_TL02_TL03_TL04_TL06_a_client_that_trusts_the_authority_is_served(tmp_path: Path) -> None:
    with served(tmp_path, ssl_config_file=write(tmp_path / "ssl")) as server:
        assert ask(server, trusting()) == ("OK",)                                       # TL03, TL06
        assert ask(server, trusting(), name="models.example") == ("OK",)
        for refused_with in (ask(server, None),                                         # TL02
                             ask(server, trusting("other-ca.pem")),                     # TL04
                             ask(server, trusting(), name="other.example")):
            assert refused_with[0] == "UNAVAILABLE"


def test_TL05_TL09_client_verify_asks_for_a_certificate_of_custom_ca(tmp_path: Path) -> None:
    config = write(tmp_path / "ssl", client_verify=True)
    with served(tmp_path, ssl_config_file=config) as server:
        assert ask(server, trusting(**OURS)) == ("OK",)                                 # TL09
        assert ask(server, trusting())[0] == "UNAVAILABLE"
    config = write(tmp_path / "ssl", ca="other-ca.pem", client_verify=True)
    with served(tmp_path, ssl_config_file=config) as server:
        assert ask(server, trusting(**OURS))[0] == "UNAVAILABLE"


def test_TL02_the_unix_socket_speaks_TLS_too(tmp_path: Path) -> None:
    with served(tmp_path, ssl_config_file=write(tmp_path / "ssl"), port=0,
                socket_path=str(tmp_path / "s")) as server:
        assert ask(server, trusting()) == ("OK",)
        assert ask(server, None)[0] == "UNAVAILABLE"


def test_FL45_gRPC_is_plain_text_without_a_config(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        assert ask(server, None) == ("OK",)
        assert ask(server, trusting())[0] == "UNAVAILABLE"


def test_certificates_are_read_anew_when_the_file_changes(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="tf_infer")
    path = tmp_path / "ssl"
    with served(tmp_path, ssl_config_file=write(path, client_verify=True, ca="other-ca.pem")
                ) as server:
        assert ask(server, trusting(**OURS))[0] == "UNAVAILABLE"
        write(path, client_verify=True)
        assert ask(server, trusting(**OURS)) == ("OK",)
        assert "ssl_config_file changed=read" in caplog.text
        path.write_text("server_key: 'a secret", encoding="utf-8")
        assert ask(server, trusting(**OURS)) == ("OK",)
        assert "ssl_config_file changed=broken" in caplog.text
        write(path, key="client.key", client_verify=True)  # that key is of another certificate
        assert ask(server, trusting(**OURS)) == ("OK",)
        path.unlink()
        assert ask(server, trusting(**OURS)) == ("OK",)
        write(path, client_verify=False)
        assert ask(server, trusting())[0] == "UNAVAILABLE"
        assert "client_verify=changed" in caplog.text
        assert "secret" not in caplog.text


def values(*arguments: str) -> dict[str, object]:
    return dict(flags.parse(["--model_base_path=/m", *arguments]).values)


def test_TL01_TL08_FL25_the_file_is_a_text_proto_of_PEM_texts(
        tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ssl"
    assert read_ssl_config(write(path)).custom_ca == pem("ca.pem").decode()
    assert flags.server_config(values(f"--ssl_config_file={path}")).ssl_config_file == str(path)
    for text, words in (("server_key: 'a secret", "Invalid protobuf file: '.*ssl'"),
                        ("a secret", "Invalid protobuf file: '.*ssl'. line 1, column 1"),
                        ("", "missing: server_key, server_cert"),
                        ("server_key: 'x' server_cert: 'y' client_verify: true", "custom_ca")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InvalidRequest, match=words) as caught:
            flags.server_config(values(f"--ssl_config_file={path}"))
        assert "secret" not in str(caught.value)
    path.unlink()
    with pytest.raises(InvalidRequest, match="cannot be read"):
        flags.server_config(values(f"--ssl_config_file={path}"))
    told = capfd.readouterr().err
    assert told.startswith("Error parsing text-format tensorflow.serving.SSLConfig: line 1")
    assert "secret" not in told


@pytest.mark.parametrize("files", [{"key": "client.key"}, {"cert": "client.key"},
                                   {"ca": "client.key", "client_verify": True}])
def test_TL08_PEM_texts_that_do_not_fit_stop_the_start_and_are_named(
        tmp_path: Path, files: dict[str, Any]) -> None:
    config = write(tmp_path / "ssl", **files)
    with pytest.raises(InvalidRequest, match=re.escape(config)), served(
            tmp_path, ssl_config_file=config):
        pass


def test_FL13_a_taken_port_is_told_from_a_bad_certificate(tmp_path: Path) -> None:
    config = write(tmp_path / "ssl")
    with served(tmp_path, ssl_config_file=config) as server, pytest.raises(
            ServerUnavailable, match="cannot be opened"), served(
                tmp_path, ssl_config_file=config, port=server.config.port):
        pass


def test_FL23_ALTS_and_an_SSL_config_exclude_each_other(tmp_path: Path) -> None:
    config = write(tmp_path / "ssl")
    with pytest.raises(InvalidRequest, match="Either use_alts_credentials must be false OR"):
        flags.server_config(values("--use_alts_credentials", f"--ssl_config_file={config}"))
    with pytest.raises(ConfigError, match=r"ServerConfig\.alts"):
        ServerConfig(models=(), alts=True, ssl_config_file=config)


def test_FL23_ALTS_is_refused_where_the_machine_has_none(tmp_path: Path) -> None:
    if Path("/sys/class/dmi/id/product_name").is_file() and "Google" in Path(
            "/sys/class/dmi/id/product_name").read_text(encoding="utf-8"):
        pytest.skip("a machine of Google Cloud has ALTS")
    assert flags.server_config(values("--use_alts_credentials")).alts
    with pytest.raises(InvalidRequest, match="Google Cloud"), served(tmp_path, alts=True):
        pass
