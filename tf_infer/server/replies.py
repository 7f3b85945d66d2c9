"""Reply: answer a gRPC call from any thread, without waiting for the network.

grpcio lets a handler of a response stream return before it has answered
(`experimental_non_blocking`), but its callback waits until each message has been taken by the
network: a caller that does not read would hold a thread of ours. Underneath, message and status
go out as one batch that nobody waits for (`grpc._server._status`, what a unary handler ends with).
That function is private; where it is not as we know it, the callback is used.
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
