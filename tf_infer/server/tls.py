"""TLS of the gRPC ports: TensorFlow Serving's SSLConfig, read anew when its file changes; ALTS.

Statements TL01 to TL09 and FL23 of its observed behaviour. That a changed file counts without a
restart is ours: connections that are open stay as they are, each new one gets what the file holds
then. A file that is broken or gone is logged, and what was read before stays in force.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from tf_infer.errors import InvalidRequest
from tf_infer.server.config import ServerConfig, read_ssl_config
from tf_infer.server.logs import event
from tf_infer.wire import serving_pb2

MakeCredentials = Callable[[], grpc.ServerCredentials]


def credentials_for(config: ServerConfig) -> MakeCredentials | None:
    """Return what makes the credentials of a gRPC port, new for each; None for plain text (FL45).

    Raises:
        InvalidRequest: the file is missing or broken, key and certificate do not belong together,
            or ALTS is not to be had on this machine.
    """
    make: MakeCredentials
    if config.alts:
        make = grpc.alts_server_credentials
        otherwise = ("--use_alts_credentials: expected a machine of Google Cloud: ALTS works "
                     "nowhere else. Use --ssl_config_file.")
    elif config.ssl_config_file:
        make = functools.partial(_credentials, Path(config.ssl_config_file))
        otherwise = (f"{config.ssl_config_file}: expected server_key and server_cert that belong "
                     "together, and a custom_ca of certificates, all as PEM texts. Check them with "
                     "openssl.")
    else:
        return None
    if not _opens_a_port(make()):
        raise InvalidRequest(otherwise)
    return make


def _credentials(path: Path) -> grpc.ServerCredentials:
    certificates = _Certificates(path)
    made: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
        certificates.first, certificates.changed,  # type: ignore[arg-type]  # None: no change
        certificates.client_verify)
    return made


class _Certificates:
    """The contents of an SSLConfig file, and what gRPC asks before every handshake."""

    def __init__(self, path: Path) -> None:
        self._path, self._stamp = path, _stamp(path)
        message = read_ssl_config(path)
        self.first, self.client_verify = _configuration(message), message.client_verify

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what the file holds now if it is another, None to go on as before."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        try:
            message = read_ssl_config(self._path)
        except InvalidRequest:  # its text may quote the file
            event("ssl_config_file", logging.WARNING, changed="broken",
                  consequence="the certificates from before stay")
            return None
        event("ssl_config_file", changed="read")
        if message.client_verify != self.client_verify:
            event("ssl_config_file", logging.WARNING, client_verify="changed",
                  consequence="that needs a restart")
        return _configuration(message)


def _configuration(message: serving_pb2.SSLConfig) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(message.server_key.encode(), message.server_cert.encode())],
        message.custom_ca.encode() or None)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        told = os.stat(path)
    except OSError:
        return None
    return told.st_mtime_ns, told.st_size, told.st_ino


def _opens_a_port(credentials: grpc.ServerCredentials) -> bool:
    """Whether gRPC can use them: it tells a bad certificate and a taken port by one error."""
    server = grpc.server(ThreadPoolExecutor(1))
    try:
        bound = server.add_secure_port("localhost:0", credentials)
    except RuntimeError:
        bound = 0
    server.stop(None)
    return bool(bound)
