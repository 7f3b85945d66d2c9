"""Unary calls as gRPC's completion queue tells of them, without what grpcio's server puts around.

grpcio's server makes a state with a condition, a context, a future and seven closures for each
call, and asks its handlers one by one who answers the method. Here a method is registered with
gRPC's core, and what happens to its calls is told to an object of ours: grpcio's own thread polls
the queue and calls the tag of each event, and its server counts our calls with its own, so that it
stops as ever. What this uses is private to grpcio; where it is not as we know it, `KNOWN` is False
and the same behaviours are handlers of `reading.py`. Measured: docs/runtime.md.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import grpc

from tf_infer.errors import Code
from tf_infer.server.logs import event, place
from tf_infer.server.reading import LARGE_BYTES

try:
    from grpc._cython import cygrpc  # type: ignore[attr-defined]

    _receive, _receive_close = cygrpc.ReceiveMessageOperation, cygrpc.ReceiveCloseOnServerOperation
    _first, _message = cygrpc.SendInitialMetadataOperation, cygrpc.SendMessageOperation
    _status = cygrpc.SendStatusFromServerOperation
    KNOWN = all(hasattr(cygrpc.Server, name) for name in (
        "register_method", "request_registered_call"))
except (ImportError, AttributeError):
    KNOWN = False

_OK = int(Code.OK)
_NOTHING: tuple[None, tuple[()]] = (None, ())  # what grpcio's thread is to do after an event


class DirectCall:
    """One call: what `grpc.ServicerContext` and `replies.Reply` are to a handler of grpcio's.

    Every method may be called from any thread; what happens is told on grpcio's.
    """

    __slots__ = ("_act", "_call", "_deadline_s", "_due", "_lock", "_metadata", "_over",
                 "_trailing", "_watched")

    def __init__(self, happened: Any) -> None:
        self._call, self._metadata = happened.call, happened.invocation_metadata
        self._deadline_s: float = happened.call_details.deadline
        self._lock = threading.Lock()
        self._due = 1  # events that will come, at first the request
        self._watched = False  # whether the end of the call is one of them
        self._over = False  # answered, or cancelled
        self._trailing: Any = None
        self._act: Callable[[], Any] | None = None

    def begin(self, received: Callable[[Any], Any]) -> None:
        """Let `received` be told of the request; it returns `left()`."""
        self._call.start_server_batch((_receive(0),), received)

    def time_remaining(self) -> float:
        """Return the seconds until the deadline, 0 when it has passed; very many for none."""
        return max(self._deadline_s - time.time(), 0)

    def invocation_metadata(self) -> Any:
        """Return the caller's metadata."""
        return self._metadata

    def send(self, message: bytes) -> None:
        """Send the response and status OK."""
        self._end((_status(self._trailing, _OK, b"", 0), _first(None, 0), _message(message, 0)))

    def fail(self, code: Code, details: str) -> None:
        """Send a status other than OK."""
        self._end((_status(self._trailing, int(code), details.encode(), 0), _first(None, 0)))

    def trailing(self, name: str, value: str) -> None:
        """Let trailing metadata travel with the answer; before `send`."""
        self._trailing = ((name, value),)

    def when_gone(self, act: Callable[[], Any]) -> None:
        """Call `act` when the call ends without an answer: cancelled, or its deadline passed.

        Until then gRPC is not asked to tell: a call that is answered at once needs it not.
        """
        with self._lock:
            if not self._over:
                self._act = act
                if not self._watched:
                    self._watched = True
                    self._due += 1
                    self._call.start_server_batch((_receive_close(0),), self._closed)
                return
        act()

    def _end(self, operations: tuple[Any, ...]) -> None:
        with self._lock:
            if self._over:
                return
            self._over, self._act = True, None
            self._due += 1
            if not self._watched:
                operations += (_receive_close(0),)
            self._call.start_server_batch(operations, self._sent)

    def _closed(self, happened: Any) -> Any:
        cancelled = happened.batch_operations[0].cancelled()
        with self._lock:
            act, self._act = (self._act, None) if cancelled else (None, self._act)
            self._over = self._over or cancelled
        finished, _ = self.left()
        return finished, () if act is None else (act,)

    def _sent(self, happened: Any) -> Any:
        return self.left()

    def left(self) -> Any:
        """Count an event that came, and return what grpcio is to do: forget the call or nothing."""
        with self._lock:
            self._due -= 1
            return (self, ()) if self._over and not self._due else _NOTHING


# the request's bytes, and the call
Behaviour = Callable[[bytes, DirectCall], None]


class _Method:
    """A method of one server, whose calls come here."""

    def __init__(self, server: Any, path: str, behaviour: Behaviour,
                 large: Callable[..., Any]) -> None:
        self._state, self._path, self._behaviour, self._large = (
            server._state, path, behaviour, large)

    def ask(self) -> None:
        """Ask gRPC for the next call; for none when the server is about to stop."""
        state = self._state
        with suppress(ValueError):
            state.server.request_registered_call(
                state.completion_queue, state.completion_queue, self._path, self._came)

    def _came(self, happened: Any) -> Any:
        if happened.success:
            call = DirectCall(happened)
            with self._state.lock:
                self._state.rpc_states.add(call)
            call.begin(lambda received: self._received(received, call))
        self.ask()
        return _NOTHING

    def _received(self, happened: Any, call: DirectCall) -> Any:
        try:
            data = happened.batch_operations[0].message()
            if data is None:  # a cancelled call needs no answer, and gets none
                call.fail(Code.UNIMPLEMENTED, f'"{self._path}" requires exactly one request '
                                              "message.")
            elif len(data) > LARGE_BYTES:
                self._large(self._behaviour, data, call)
            else:
                self._behaviour(data, call)
        except Exception as error:  # would end the thread of all calls
            event("fault", logging.ERROR, where="reading", error=type(error).__name__,
                  at=place(error))
            call.fail(Code.UNKNOWN, "")
        return call.left()


def register(server: grpc.Server, behaviours: Mapping[str, Behaviour],
             large: Callable[..., Any]) -> Callable[[], None]:
    """Let calls of methods come here, before the server has been started.

    Args:
        server: of grpcio.
        behaviours: path of a method -> what is called with each of its calls; must not block.
        large: `submit` of a pool, which gets requests of more than `LARGE_BYTES`.

    Returns:
        What to call once the server has been started.
    """
    if not (KNOWN and hasattr(server, "_cy_server") and all(
            hasattr(getattr(server, "_state", None), name)
            for name in ("completion_queue", "lock", "rpc_states", "server"))):
        return lambda: None
    taken = []
    for path, behaviour in behaviours.items():
        server._cy_server.register_method(path)
        taken.append(_Method(server, path, behaviour, large))

    def begin() -> None:
        for method in taken:
            method.ask()

    return begin
