"""The options of every command that asks a server: address, model version, TLS, token, time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tf_infer.errors import ConfigError

if TYPE_CHECKING:
    from tf_infer.client.client import Client
    from tf_infer.client.credentials import Credentials
    from tf_infer.wire.messages import ModelRef

DEFAULT_ADDRESS = "localhost:8500"


def configure(parser: argparse.ArgumentParser, *, address: str | None = DEFAULT_ADDRESS,
              timeout_s: float = 10.0, twice: bool = False) -> None:
    """Add the options to a command's parser.

    Args:
        parser: of the command.
        address: default of --address.
        timeout_s: default of --timeout.
        twice: two servers or versions are asked: address, version and label may be given twice,
            and `sides` takes them apart.
    """
    group = parser.add_argument_group("server")
    shown = f" (default {address})" if address else ""
    if twice:
        group.add_argument("--address", action="append", metavar="HOST:PORT",
                           help=f"gRPC address of the first, and of the second{shown}")
        which = group.add_mutually_exclusive_group()
        which.add_argument("--model-version", type=int, action="append", metavar="N",
                           help="version of the first, and of the second")
        which.add_argument("--label", action="append", help="their labels instead")
        group.add_argument("--timeout", type=float, default=timeout_s, metavar="SECONDS",
                           help=f"time for one call (default {timeout_s:g})")
        _configure_security(group)
        return
    group.add_argument("--address", default=address, metavar="HOST:PORT",
                       help=f"gRPC address, or several with commas{shown}")
    group.add_argument("--timeout", type=float, default=timeout_s, metavar="SECONDS",
                       help=f"time for one call (default {timeout_s:g})")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--model-version", type=int, metavar="N", help="ask this version")
    which.add_argument("--label", help="ask the version with this label")
    _configure_security(group)


def _configure_security(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--tls", action="store_true", help="encrypt (on with any of the next four)")
    group.add_argument("--ca", metavar="FILE", help="PEM of the authorities to trust")
    group.add_argument("--key", metavar="FILE", help="PEM of our key, for mutual TLS")
    group.add_argument("--certificate", metavar="FILE", help="PEM of our certificate")
    group.add_argument("--server-name", metavar="NAME", help="name in the server's certificate")
    group.add_argument("--token-file", metavar="FILE", help="file with a bearer token")
    group.add_argument("--allow-plaintext-token", action="store_true",
                       help="send the token although nothing encrypts it")


def sides(arguments: argparse.Namespace) -> tuple[argparse.Namespace, argparse.Namespace]:
    """Return the arguments of each of two servers, of a parser configured with `twice`.

    What is given once is both servers'.

    Raises:
        ConfigError: something is given more than twice, or nothing tells the two apart.
    """
    found = []
    for side in (0, 1):
        own = argparse.Namespace(**vars(arguments))
        for name, default in (("address", DEFAULT_ADDRESS), ("model", None),
                              ("model_version", None), ("label", None)):
            given = getattr(arguments, name) or [default]
            if len(given) > 2:
                raise ConfigError(f"--{name.replace('_', '-')}: expected one or two, got "
                                  f"{len(given)}.")
            setattr(own, name, given[-1 if side else 0])
        found.append(own)
    if vars(found[0]) == vars(found[1]):
        raise ConfigError("--address: expected two servers, models, versions or labels to "
                          "compare. Give one of these options twice.")
    return found[0], found[1]


def reference(arguments: argparse.Namespace) -> ModelRef:
    """Return the model that the arguments name."""
    from tf_infer.wire.messages import ModelRef

    return ModelRef(arguments.model, version=arguments.model_version, label=arguments.label)


def credentials(arguments: argparse.Namespace) -> Credentials:
    """Return the credentials for the arguments.

    Raises:
        ConfigError: a certificate or token that cannot be used.
    """
    from tf_infer.client.credentials import Credentials, tls

    token = _token(arguments.token_file)
    if (arguments.tls or arguments.ca or arguments.key or arguments.certificate
            or arguments.server_name):
        return tls(ca=arguments.ca, key=arguments.key, certificate=arguments.certificate,
                   server_name=arguments.server_name, token=token)
    return Credentials(token=token, allow_plaintext_token=arguments.allow_plaintext_token)


def connect(arguments: argparse.Namespace) -> Client:
    """Return a client for the arguments.

    Raises:
        ConfigError: an address, certificate or token that cannot be used.
    """
    from tf_infer.client.client import Client

    return Client(arguments.address, credentials=credentials(arguments),
                  timeout_s=arguments.timeout)


def _token(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not ASCII"
        raise ConfigError(f"--token-file: {path} cannot be read: {reason}.") from error
