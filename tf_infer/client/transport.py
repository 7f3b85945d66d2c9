"""The seam to the network: a method path and bytes in, bytes out.

`Transport` and `AsyncTransport` are what the clients need; `GrpcTransport` and `AioTransport` are
their gRPC forms. Several addresses are asked in turn; one that does not answer is left out for
`DOWN_S` seconds. Each address is a gRPC channel of its own, so names are resolved (and, behind one
name, balanced) by gRPC and checked against certificates one by one.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import grpc

from tf_infer.client.credentials import INSECURE, Credentials
from tf_infer.errors import Code, ConfigError, ServingError, exception_for, plain

Metadata = Sequence[tuple[str, str]]
Hear = Callable[[Sequence[tuple[str, Any]]], object]  # is told an answer's trailing metadata

DOWN_S = 1.0

# What gRPC says of a call that a stopping server dropped. One that a program on either side gave up
# has a text of its own.
_HUNG_UP = "CANCELLED"

_CLOSED = "client: expected an open one, got a closed one. Make a new Client."

_LONGEST_OPTION_S = 1e6  # gRPC takes milliseconds as int32
_SERVICE_CONFIG = '{"loadBalancingConfig": [{"round_robin": {}}]}'
_HOST_PORT = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\],@]+):(\d{1,5})")
_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:")


class Responses(Protocol):
    """The responses of one call, as they come."""

    def __next__(self) -> bytes:
        """Wait for the next one; raises StopIteration behind the last, or ServingError."""

    def cancel(self) -> None:
        """Give the call up, from any thread; whoever waits gets Cancelled."""


class AsyncResponses(Protocol):
    """The responses of one call, as they come, awaited."""

    async def __anext__(self) -> bytes:
        """Wait for the next one; raises StopAsyncIteration behind the last, or ServingError."""

    def cancel(self) -> None:
        """Give the call up."""


class Transport(Protocol):
    """Carries one call and its answer, or its answers."""

    def unary(self, method: str, request: bytes, *, timeout_s: float | None,
              metadata: Metadata = (), hear: Hear | None = None) -> bytes:
        """Send a request and return the answer; `hear` gets the metadata that came behind it.

        Raises:
            ServingError: the exception of the status code.
        """

    def stream(self, method: str, request: bytes, *, timeout_s: float | None,
               metadata: Metadata = ()) -> Responses:
        """Send a request and return its responses, of which the first is yet to come.

        Raises:
            ConfigError: the client is closed.
        """

    def addresses_up(self) -> int:
        """Return how many addresses are not known to be down: whether to ask elsewhere."""

    def close(self) -> None:
        """Give the connections up."""


class AsyncTransport(Protocol):
    """Carries one call and its answer, awaited."""

    async def unary(self, method: str, request: bytes, *, timeout_s: float | None,
                    metadata: Metadata = (), hear: Hear | None = None) -> bytes:
        """Send a request and return the answer; raises ServingError."""

    def stream(self, method: str, request: bytes, *, timeout_s: float | None,
               metadata: Metadata = ()) -> AsyncResponses:
        """Send a request and return its responses; see `Transport.stream`."""

    def addresses_up(self) -> int:
        """Return how many addresses are not known to be down."""

    async def close(self) -> None:
        """Give the connections up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelOptions:
    """How the connection behaves.

    Attributes:
        compression: of requests; the server chooses its own.
        keepalive_s: ping an idle connection so often; None never does. Servers may hang up on
            clients that ping more often than they allow (gRPC's default: five minutes).
        keepalive_timeout_s: a ping without an answer for so long ends the connection.
        connect_timeout_s: give an address up that does not accept a connection within this time.
    """

    compression: Literal["none", "gzip", "deflate"] = "none"
    keepalive_s: float | None = None
    keepalive_timeout_s: float = 10.0
    connect_timeout_s: float = 5.0

    def __post_init__(self) -> None:
        if self.compression not in _COMPRESSION:
            raise ConfigError(f"ChannelOptions.compression: expected one of {list(_COMPRESSION)}, "
                              f"got {self.compression!r}.")
        for name in ("keepalive_s", "keepalive_timeout_s", "connect_timeout_s"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds <= _LONGEST_OPTION_S:
                raise ConfigError(f"ChannelOptions.{name}: expected seconds > 0 and <= "
                                  f"{_LONGEST_OPTION_S:g}, got {seconds!r}.")


_COMPRESSION = {"none": grpc.Compression.NoCompression, "gzip": grpc.Compression.Gzip,
                "deflate": grpc.Compression.Deflate}


def parse_addresses(target: str | Sequence[str]) -> tuple[str, ...]:
    """Return the addresses of a target, each one that gRPC understands.

    Args:
        target: "host:port", several of them with commas or as a list, "dns:///host:port",
            "unix:/path", or another of gRPC's schemes.

    Raises:
        ConfigError: anything else, with what to write instead.
    """
    if isinstance(target, str):
        multiple = target.startswith(("ipv4:", "ipv6:"))  # gRPC's own lists
        parts = [target] if multiple else target.split(",")
    else:
        parts = list(target)
    if not parts:
        raise ConfigError("address: expected at least one, got none.")
    return tuple(_parse_address(part) for part in parts)


def _parse_address(address: str) -> str:
    if not isinstance(address, str):
        raise ConfigError(f"address: expected text such as 'localhost:8500', got {address!r}.")
    address = address.strip()
    if address.startswith(("http://", "https://", "grpc://", "grpcs://")):
        raise ConfigError(f"address: expected host:port without a scheme, got {address!r}. Write "
                          f"{address.split('://')[1].rstrip('/') or 'host:port'!r}; TLS is asked "
                          f"for by credentials.")
    if address.startswith(_SCHEMES):
        return address
    match = _HOST_PORT.fullmatch(address)
    if match is None:
        raise ConfigError(f"address: expected host:port such as 'localhost:8500', got {address!r}.")
    if not 0 < int(match[1]) < 65536:
        raise ConfigError(f"address: expected a port from 1 to 65535, got {address!r}.")
    return address


class Addresses:
    """Which address is asked next: in turn, those that failed lately left out."""

    def __init__(self, count: int) -> None:
        self._turn = itertools.count()
        self._down_until_s = [0.0] * count

    def pick(self, now_s: float) -> int:
        """Return the index of the next address; when all are down, they take turns anyway."""
        count = len(self._down_until_s)
        first = next(self._turn)
        for step in range(count):
            index = (first + step) % count
            if self._down_until_s[index] <= now_s:
                return index
        return first % count

    def up(self, now_s: float) -> int:
        """Return how many are not down."""
        return sum(until <= now_s for until in self._down_until_s)

    def mark_down(self, index: int, now_s: float) -> None:
        """Leave an address out for a while."""
        self._down_until_s[index] = now_s + DOWN_S


class _Channels:
    """What both gRPC forms share: addresses, channel arguments, the call's metadata."""

    def __init__(self, target: str | Sequence[str], credentials: Credentials,
                 options: ChannelOptions) -> None:
        self.names = parse_addresses(target)
        self.addresses = Addresses(len(self.names))
        self._credentials = credentials
        self._options = options
        token = credentials.token
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def open(self, module: Any) -> list[Any]:
        """Return a channel for each address; `module` is `grpc` or `grpc.aio`."""
        arguments = {"options": self._arguments(),
                     "compression": _COMPRESSION[self._options.compression]}
        if not self._credentials.encrypted:
            return [module.insecure_channel(name, **arguments) for name in self.names]
        secured = grpc.ssl_channel_credentials(
            self._credentials.ca, self._credentials.key, self._credentials.certificate)
        return [module.secure_channel(name, secured, **arguments) for name in self.names]

    def _arguments(self) -> list[tuple[str, Any]]:
        arguments: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1),
            ("grpc.service_config", _SERVICE_CONFIG),
            # The clients of one process do not share connections, nor their back-off.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.min_reconnect_backoff_ms", round(self._options.connect_timeout_s * 1000))]
        if self._options.keepalive_s is not None:
            arguments += [
                ("grpc.keepalive_time_ms", round(self._options.keepalive_s * 1000)),
                ("grpc.keepalive_timeout_ms", round(self._options.keepalive_timeout_s * 1000)),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_pings_without_data", 0)]
        if self._credentials.server_name is not None:
            arguments.append(("grpc.ssl_target_name_override", self._credentials.server_name))
        return arguments

    def failure(self, index: int, error: Any) -> ServingError:
        """Return our exception of a gRPC error, and remember an address that does not answer."""
        code, details = error.code().value[0], error.details() or ""
        if code == Code.CANCELLED and details == _HUNG_UP:
            code, details = Code.UNAVAILABLE, "the server hung up"
        if code == Code.UNAVAILABLE:
            self.addresses.mark_down(index, time.monotonic())
            details = f"{details} (address {self.names[index]})"
        return exception_for(code, plain(details))


class GrpcTransport:
    """Transport over gRPC channels, one for each address. Threads may share it."""

    def __init__(self, target: str | Sequence[str], *, credentials: Credentials = INSECURE,
                 options: ChannelOptions | None = None) -> None:
        self._shared = _Channels(target, credentials, options or ChannelOptions())
        self._channels = self._shared.open(grpc)
        self._calls: dict[tuple[int, str], Any] = {}

    def unary(self, method: str, request: bytes, *, timeout_s: float | None,
              metadata: Metadata = (), hear: Hear | None = None) -> bytes:
        """Send a request to the next address and return the answer; raises ServingError."""
        shared = self._shared
        index = shared.addresses.pick(time.monotonic())
        call = self._calls.get((index, method))
        try:
            if call is None:
                call = self._channels[index].unary_unary(method)
                self._calls[index, method] = call
            metadata = (*shared.metadata, *metadata)
            if hear is None:
                answer: bytes = call(request, timeout=timeout_s, metadata=metadata)
            else:
                answer, ended = call.with_call(request, timeout=timeout_s, metadata=metadata)
                hear(ended.trailing_metadata() or ())
        except grpc.RpcError as error:
            raise shared.failure(index, error) from error
        except ValueError as error:
            raise _closed(error) from error
        return answer

    def stream(self, method: str, request: bytes, *, timeout_s: float | None,
               metadata: Metadata = ()) -> Responses:
        """Send a request to the next address and return its responses."""
        shared = self._shared
        index = shared.addresses.pick(time.monotonic())
        try:
            call = self._channels[index].unary_stream(method)(
                request, timeout=timeout_s, metadata=(*shared.metadata, *metadata))
        except ValueError as error:
            raise _closed(error) from error
        return _GrpcResponses(call, shared, index)

    def addresses_up(self) -> int:
        """Return how many addresses are not known to be down."""
        return self._shared.addresses.up(time.monotonic())

    def close(self) -> None:
        """Close the channels; calls in flight end with Cancelled."""
        for channel in self._channels:
            channel.close()


class _GrpcResponses:
    """Responses of a gRPC call."""

    def __init__(self, call: Any, shared: _Channels, index: int) -> None:
        self._call, self._shared, self._index = call, shared, index

    def __next__(self) -> bytes:
        try:
            answer: bytes = next(self._call)
        except grpc.RpcError as error:
            raise self._shared.failure(self._index, error) from error
        return answer

    def cancel(self) -> None:
        self._call.cancel()


class AioTransport:
    """AsyncTransport over grpc.aio channels, opened by the first call inside its event loop."""

    def __init__(self, target: str | Sequence[str], *, credentials: Credentials = INSECURE,
                 options: ChannelOptions | None = None) -> None:
        self._shared = _Channels(target, credentials, options or ChannelOptions())
        self._channels: list[Any] | None = None
        self._closing = False
        self._calls: dict[tuple[int, str], Any] = {}

    async def unary(self, method: str, request: bytes, *, timeout_s: float | None,
                    metadata: Metadata = (), hear: Hear | None = None) -> bytes:
        """Send a request to the next address and return the answer; raises ServingError."""
        shared = self._shared
        if self._closing:
            raise ConfigError(_CLOSED)
        if self._channels is None:
            self._channels = shared.open(grpc.aio)
        index = shared.addresses.pick(time.monotonic())
        call = self._calls.get((index, method))
        try:
            if call is None:
                call = self._channels[index].unary_unary(method)
                self._calls[index, method] = call
            going = call(request, timeout=timeout_s, metadata=(*shared.metadata, *metadata))
            answer: bytes = await going
            if hear is not None:
                hear(tuple(await going.trailing_metadata() or ()))
        except grpc.RpcError as error:
            raise shared.failure(index, error) from error
        except grpc.aio.UsageError as error:
            raise _closed(error) from error
        except asyncio.CancelledError:
            if not self._closing or _is_cancelled(asyncio.current_task()):
                raise
            raise exception_for(Code.CANCELLED, "the client was closed") from None
        return answer

    def stream(self, method: str, request: bytes, *, timeout_s: float | None,
               metadata: Metadata = ()) -> AsyncResponses:
        """Send a request to the next address and return its responses."""
        shared = self._shared
        if self._closing:
            raise ConfigError(_CLOSED)
        if self._channels is None:
            self._channels = shared.open(grpc.aio)
        index = shared.addresses.pick(time.monotonic())
        try:
            call = self._channels[index].unary_stream(method)(
                request, timeout=timeout_s, metadata=(*shared.metadata, *metadata))
        except grpc.aio.UsageError as error:
            raise _closed(error) from error
        return _AioResponses(call, shared, index)

    def addresses_up(self) -> int:
        """Return how many addresses are not known to be down."""
        return self._shared.addresses.up(time.monotonic())

    async def close(self) -> None:
        """Close the channels; calls in flight end with Cancelled."""
        self._closing = True
        for channel in self._channels or ():
            await channel.close()


class _AioResponses:
    """Responses of a gRPC call, awaited."""

    def __init__(self, call: Any, shared: _Channels, index: int) -> None:
        self._call, self._shared, self._index = call, shared, index

    async def __anext__(self) -> bytes:
        try:
            answer = await self._call.read()
        except grpc.RpcError as error:
            raise self._shared.failure(self._index, error) from error
        except asyncio.CancelledError:
            if not self._call.cancelled() or _is_cancelled(asyncio.current_task()):
                raise
            raise exception_for(Code.CANCELLED, "the call was given up") from None
        if answer is grpc.aio.EOF:  # type: ignore[attr-defined]
            raise StopAsyncIteration
        read: bytes = answer
        return read

    def cancel(self) -> None:
        self._call.cancel()


def _is_cancelled(task: asyncio.Task[Any] | None) -> bool:
    """Return whether somebody cancelled the task; Python 3.10 does not tell, so False there."""
    return bool(task is not None and getattr(task, "cancelling", int)())


def _closed(error: Exception) -> ConfigError:
    if "closed" not in str(error).lower():
        raise error
    return ConfigError(_CLOSED)
