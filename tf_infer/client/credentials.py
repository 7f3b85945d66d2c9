"""Who we are and whom we trust: TLS, mutual TLS, bearer token; secrets never show in repr."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tf_infer.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """How a connection is secured. Build it with `tls(...)`, `bearer(...)` or take `INSECURE`.

    Attributes:
        encrypted: TLS; False is plaintext.
        ca: PEM of the authorities that may have signed the server's certificate; None takes those
            that gRPC ships with.
        key, certificate: PEM of our own, for mutual TLS; both or none.
        server_name: the name expected in the server's certificate, when it is not the address's.
        token: sent as "authorization: Bearer <token>" with every call.
        allow_plaintext_token: send the token although nothing encrypts it.
    """

    encrypted: bool = False
    ca: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    certificate: bytes | None = field(default=None, repr=False)
    server_name: str | None = None
    token: str | None = field(default=None, repr=False)
    allow_plaintext_token: bool = False

    def __post_init__(self) -> None:
        if (self.key is None) != (self.certificate is None):
            raise ConfigError("Credentials: expected key and certificate, or neither, got one.")
        if not self.encrypted and (self.ca or self.key or self.server_name):
            raise ConfigError("Credentials: expected no certificates without TLS. "
                              "Use tls(...).")
        if self.token is not None and not _is_header_value(self.token):
            raise ConfigError(f"Credentials.token: expected printable ASCII without spaces, got "
                              f"{len(self.token)} other characters.")
        if self.token is not None and not self.encrypted and not self.allow_plaintext_token:
            raise ConfigError("Credentials.token: expected TLS under a token, got plaintext: "
                              "anyone on the way could read it. Use tls(token=...), or "
                              "bearer(token, allow_plaintext=True) on a network you trust.")


def _is_header_value(token: str) -> bool:
    return bool(token) and all(33 <= ord(character) <= 126 for character in token)


INSECURE = Credentials()


def tls(*, ca: bytes | str | Path | None = None, key: bytes | str | Path | None = None,
        certificate: bytes | str | Path | None = None, server_name: str | None = None,
        token: str | None = None) -> Credentials:
    """Return credentials for TLS, or mutual TLS with `key` and `certificate`.

    Args:
        ca, key, certificate: PEM as bytes, or the path of a PEM file.
        server_name: the name expected in the server's certificate.
        token: bearer token to send with every call.

    Raises:
        ConfigError: a file that cannot be read, or that is not PEM.
    """
    return Credentials(encrypted=True, ca=_pem(ca, "ca"), key=_pem(key, "key"),
                       certificate=_pem(certificate, "certificate"), server_name=server_name,
                       token=token)


def bearer(token: str, *, allow_plaintext: bool = False) -> Credentials:
    """Return plaintext credentials with a token; refused unless `allow_plaintext`."""
    return Credentials(token=token, allow_plaintext_token=allow_plaintext)


def _pem(source: bytes | str | Path | None, name: str) -> bytes | None:
    if source is None:
        return None
    if isinstance(source, bytes):
        content, where = source, f"tls.{name}"
    else:
        where = str(source)
        try:
            content = Path(source).read_bytes()
        except OSError as error:
            raise ConfigError(f"tls.{name}: {where} cannot be read: {error.strerror}.") from error
    if b"-----BEGIN" not in content:
        raise ConfigError(f"tls.{name}: expected PEM (-----BEGIN ...) in {where}, "
                          f"got {len(content)} other bytes.")
    return content
