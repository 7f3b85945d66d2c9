"""HealthWatch: a stream of a service's state over gRPC, by which clients choose among servers

Statement LI10 of TensorFlow Serving's observed behaviour: its health service is gRPC's own, which
has Watch beside Check. A client whose service config has a `healthCheckConfig` asks by it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc

from tf_infer.errors import Code, InvalidRequest
from tf_infer.server import reading
from tf_infer.server.grpc_service import HEALTH_NAMES
from tf_infer.server.replies import StreamReply
from tf_infer.wire import methods, serving_pb2

ENDING = "The server ends."


class _Watcher:
    """One caller: is told the state, and the end once the network has taken the state."""

    def __init__(self, reply: StreamReply) -> None:
        self.reply = reply
        self._lock = threading.Lock()
        self._told = self._ending = False

    def told(self) -> None:
        """Hear that the network has taken the state."""
        with self._lock:
            self._told = True
            ending = self._ending
        if ending:
            self.reply.send(_state("NOT_SERVING"))

    def tell_the_end(self) -> None:
        """End the stream: a second message must not begin before the first is on its way."""
        with self._lock:
            self._ending = True
            told = self._told
        if told:
            self.reply.send(_state("NOT_SERVING"))


class HealthWatch:
    """Answers `grpc.health.v1.Health.Watch`: the state at once, and the end when it comes.

    No thread is held while callers watch.

    Args:
        pool: `submit` of a pool; only where grpcio is not as we know it.
    """

    def __init__(self, pool: Callable[..., Any]) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._watching: set[_Watcher] = set()
        self._closed = False

    def handlers(self) -> list[Any]:
        """Return what a gRPC server adds to answer the method."""
        return [grpc.method_handlers_generic_handler(methods.HEALTH_SERVICE, {
            methods.HEALTH_WATCH.name: reading.handler(self._received)})]

    def watching(self) -> int:
        """Return how many callers watch."""
        with self._lock:
            return len(self._watching)

    def close(self) -> None:
        """Tell all callers that the server ends, and let them go: they would hold up a drain."""
        with self._lock:
            self._closed, left = True, list(self._watching)
            self._watching.clear()
        for one in left:
            one.tell_the_end()

    def _received(self, data: bytes, context: Any, send: Callable[[bytes | None], None]) -> None:
        one = _Watcher(StreamReply(context, send, self._pool))
        try:
            asked = methods.parse(serving_pb2.HealthCheckRequest, data, where="request of Watch")
        except InvalidRequest as error:  # as of the other methods: what gRPC's stubs cannot parse
            one.reply.fail(Code.INTERNAL, error.details)
            return
        with self._lock:
            if not self._closed:
                self._watching.add(one)
        if self._closed:
            one.reply.fail(Code.UNAVAILABLE, ENDING)
            return
        one.reply.when_gone(lambda: self._forget(one))
        one.reply.write(_state("SERVING" if asked.service in HEALTH_NAMES else "SERVICE_UNKNOWN"),
                        one.told)

    def _forget(self, one: _Watcher) -> None:
        with self._lock:
            self._watching.discard(one)


def _state(name: str) -> bytes:
    message: bytes = serving_pb2.HealthCheckResponse(status=name).SerializeToString()
    return message
