"""Read requests on gRPC's own thread, so that no other thread waits for each of them to arrive.

grpcio hands a call to a thread of a pool, which waits until the request's message is there. Only
where a call may have many requests it does not wait, and a stream of one request is, on the wire,
a single request. So handlers are registered as streams in both directions, the pool of their own
calls them at once on the thread that polls the network, and on that thread they get the message.
Measured: docs/runtime.md. What this uses of `grpc._server` is private; where it is not as we know
it, requests are read in the server's pool.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc import _server

from tf_infer.server.logs import event, place
from tf_infer.server.replies import AT_ONCE, holds

LARGE_BYTES = 256 * 1024  # parsing more would hold up the others on that thread

# the request's bytes, grpcio's context, and what sends a response or (None) the status
Behaviour = Callable[[bytes, Any, Callable[[Any], None]], None]

try:
    from grpc._cython import cygrpc  # type: ignore[attr-defined]

    _receive, _TOKEN = cygrpc.ReceiveMessageOperation, _server._RECEIVE_MESSAGE_TOKEN
    _possibly_finish, _active = _server._possibly_finish_call, _server._is_rpc_state_active
    _CANCELLED = _server._CANCELLED
    # a reply that is not sent at once would wait for the thread that it is sent on
    KNOWN = (AT_ONCE and holds("_RequestIterator", "_state", "_call")
             and hasattr(_server, "_select_thread_pool_for_behavior"))
except (ImportError, AttributeError):
    KNOWN = False


class _Now(ThreadPoolExecutor):
    """Calls at once, on the thread that submits; grpcio takes no other class from a behaviour."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        fn(*args, **kwargs)
        return self

    def add_done_callback(self, function: Callable[[Any], Any]) -> None:
        """As a future that is done."""
        function(self)


_NOW = _Now(1)


def in_pool(behaviour: Behaviour) -> Any:
    """Return a handler whose behaviour is called in the server's pool, and may block there.

    A call with one response is, on the wire, one with a stream of one response; only for streams
    gRPC lets go of the thread before the answer is sent.
    """
    def called(request: bytes, context: Any, send: Callable[[Any], None]) -> None:
        behaviour(request, context, send)

    called.experimental_non_blocking = True  # type: ignore[attr-defined]  # a method takes none
    return grpc.unary_stream_rpc_method_handler(called)


def handler(behaviour: Behaviour, large: Callable[..., Any] | None = None) -> Any:
    """Return a handler whose behaviour is called on gRPC's own thread when the request is there.

    Args:
        behaviour: must not block, and calls `send` from any thread, now or later.
        large: `submit` of a pool, which gets requests of more than `LARGE_BYTES`.
    """
    if not KNOWN:
        return in_pool(behaviour)

    def begin(requests: Any, context: Any, send: Callable[[Any], None]) -> None:
        state = requests._state

        def received(happened: Any) -> Any:
            try:
                data = happened.batch_operations[0].message()
                if data is None:
                    _refuse(state, context, send)
                elif large is not None and len(data) > LARGE_BYTES:
                    large(behaviour, data, context, send)
                else:
                    behaviour(data, context, send)
            except Exception as error:  # would end the thread of all calls
                event("fault", logging.ERROR, where="reading", error=type(error).__name__,
                      at=place(error))
                if _active(state):
                    context.set_code(grpc.StatusCode.UNKNOWN)
                    send(None)
            with state.condition:
                return _possibly_finish(state, _TOKEN)

        with state.condition:
            if _active(state):
                requests._call.start_server_batch((_receive(0),), received)
                state.due.add(_TOKEN)

    begin.experimental_non_blocking = True  # type: ignore[attr-defined]
    begin.experimental_thread_pool = _NOW  # type: ignore[attr-defined]
    return grpc.stream_stream_rpc_method_handler(begin)


def _refuse(state: Any, context: Any, send: Callable[[Any], None]) -> None:
    """Answer a call that ends without a request as grpcio does; a cancelled one needs no answer."""
    if state.client is _CANCELLED:
        return
    method = context._rpc_event.call_details.method.decode()
    context.set_code(grpc.StatusCode.UNIMPLEMENTED)
    context.set_details(f'"{method}" requires exactly one request message.')
    send(None)
