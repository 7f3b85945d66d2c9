"""Reply, StreamReply: answer a gRPC call from any thread, without waiting for the network.

grpcio lets a handler of a response stream return before it has answered
(`experimental_non_blocking`), but its callback waits until each message has been taken by the
network: a caller that does not read would hold a thread of ours. Underneath, message and status
go out as one batch that nobody waits for (`grpc._server._status`, what a unary handler ends with).
That function is private; where it is not as we know it, the callback is used. A message of a
stream goes out alone in the same way, and what comes back when it has is the next one's beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from grpc import _server

from tf_infer.errors import Code

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_send_all = getattr(_server, "_status", None)


def holds(kind: str, *names: str) -> bool:
    """Return whether objects of a private class of grpcio hold what we know them to hold."""
    try:
        made = getattr(_server, kind)(None, None, None)
    except (AttributeError, TypeError):
        return False
    return all(hasattr(made, name) for name in names)


AT_ONCE = _send_all is not None and holds("_Context", "_rpc_event", "_state")

try:
    from grpc._cython import cygrpc  # type: ignore[attr-defined]

    _send_message = cygrpc.SendMessageOperation
    _flags, _first = (_server._get_send_message_op_flags_from_state,
                      _server._get_initial_metadata_operation)
    _reset, _active = _server._reset_per_message_state, _server._is_rpc_state_active
    _possibly_finish = _server._possibly_finish_call
    _TOKEN = _server._SEND_MESSAGE_TOKEN
    STREAMS_AT_ONCE = AT_ONCE
except (ImportError, AttributeError):
    STREAMS_AT_ONCE = False


class Reply:
    """The one answer of a call.

    Args:
        context: grpcio's context of the call.
        send: what grpcio gives a non-blocking handler.
    """

    def __init__(self, context: Any, send: Callable[[bytes | None], None]) -> None:
        self._context, self._send = context, send

    def send(self, message: bytes) -> None:
        """Send the response and status OK."""
        context = self._context
        if AT_ONCE and _send_all is not None:
            _send_all(context._rpc_event, context._state, message)
        else:  # waits for the thread that polls the network, so must not be called there
            self._send(message)
            self._send(None)

    def fail(self, code: Code, details: str) -> None:
        """Send a status other than OK."""
        self._context.set_code(_CODES[int(code)])
        self._context.set_details(details)
        self._send(None)

    def trailing(self, name: str, value: str) -> None:
        """Let trailing metadata travel with the answer; before `send`."""
        self._context.set_trailing_metadata(((name, value),))

    def when_gone(self, act: Callable[[], Any]) -> None:
        """Call `act` when the call is over: answered, cancelled, or its deadline passed."""
        if not self._context.add_callback(act):
            act()


class StreamReply(Reply):
    """The answers of a call that has many: `write` one after the other, then `send` or `fail`.

    Args:
        context, send: see `Reply`.
        pool: `submit` of a pool whose threads may wait for the network; only where grpcio is not as
            we know it.
    """

    def __init__(self, context: Any, send: Callable[[bytes | None], None],
                 pool: Callable[..., Any]) -> None:
        super().__init__(context, send)
        self._pool = pool

    def write(self, message: bytes, written: Callable[[], None]) -> None:
        """Send one response of the stream.

        Args:
            message: its bytes.
            written: called on a thread of gRPC when the next may be sent: the caller's window took
                this one. Never called when the call has ended.
        """
        if not STREAMS_AT_ONCE:
            self._pool(self._wait, message, written)
            return
        state = self._context._state

        def sent(happened: Any) -> Any:
            with state.condition:
                finished = _possibly_finish(state, _TOKEN)
                active = _active(state)
            if active:
                written()
            return finished

        with state.condition:
            if not _active(state):
                return
            operations = [_send_message(message, _flags(state))]
            if state.initial_metadata_allowed:
                operations.append(_first(state, None))
                state.initial_metadata_allowed = False
            self._context._rpc_event.call.start_server_batch(tuple(operations), sent)
            state.due.add(_TOKEN)
            _reset(state)

    def _wait(self, message: bytes, written: Callable[[], None]) -> None:
        self._send(message)
        written()
