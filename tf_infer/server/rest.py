"""REST: what each HTTP request is answered with, be it a model's, a page's, or nobody's.

Statements RS03, RS04, RS12 to RS25, FL15, FL16 and MO01 of TensorFlow Serving's observed behaviour.
Nothing is held while a request waits or runs. Small bodies are read on the loop, larger ones by
workers, so that no caller waits for another's megabytes. /healthz and /readyz are our own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Union

from tf_infer.errors import Cancelled, Code, DeadlineExceeded, ServingError, http_status
from tf_infer.server import gauges, logs
from tf_infer.server.config import Monitoring, ServerConfig
from tf_infer.server.generation import Generators
from tf_infer.server.grpc_service import Service
from tf_infer.server.http_server import HttpServer, Reply, Streamed, read_body
from tf_infer.server.mailbox import Mailbox
from tf_infer.server.metrics import REST, respond
from tf_infer.server.openai_service import MAX_BODY_BYTES, OpenAIService
from tf_infer.server.pipeline import Answer, Pipeline, Progress, Ticket
from tf_infer.server.registry import CONTENT_TYPE
from tf_infer.server.rest_routes import (
    Route,
    is_api,
    is_preflight,
    malformed,
    openai_route,
    path_and_query,
    route_of,
)
from tf_infer.server.rest_service import RestCall, RestService, weight
from tf_infer.server.scheduler import TIMED_OUT, as_serving_error
from tf_infer.server.threads import ElasticExecutor
from tf_infer.wire import rest_json

log = logging.getLogger("tf_infer.server")

JSON, TEXT = "application/json", "text/plain"
CORS = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Methods": "POST, GET",
        "Access-Control-Allow-Headers": "Content-Type"}
MAX_INFLATED_BYTES = 100 * 2**20  # RS18
INLINE_BYTES = 32 * 1024  # a larger body is read by a worker
INLINE_ELEMENTS = 10_000  # a larger answer is written by a worker
OUR_FAULT = frozenset({Code.UNKNOWN, Code.INTERNAL, Code.DATA_LOSS})

Outcome = Union[bytes, ServingError]


def inflate(content: bytes, encoding: str) -> bytes:
    """Return a body as it was before it was compressed; empty when that cannot be (RS18).

    Args:
        content: as it was sent.
        encoding: the header Content-Encoding.
    """
    if "gzip" not in encoding:
        return content
    stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        inflated = stream.decompress(content, MAX_INFLATED_BYTES + 1)
    except zlib.error:
        return b""
    whole = stream.eof and not stream.unused_data and len(inflated) <= MAX_INFLATED_BYTES
    return inflated if whole else b""


@dataclass(slots=True)
class _Record:
    """What metrics and log want to know of a request below /v1/."""

    started_s: float
    request_id: str | None
    route: Route | None = None
    size: int = 0
    progress: Progress = field(default_factory=Progress)


class _Exchange:
    """One request on its way from the loop through the pipeline's threads and back.

    Args:
        submit: hands a call to the pipeline.
        workers: read what is large, and write it.
        record: hears of the progress.
        mailbox: of the loop.
    """

    def __init__(self, submit: Callable[..., Ticket], workers: concurrent.futures.Executor,
                 record: _Record, mailbox: Mailbox) -> None:
        self._submit, self._workers, self._record = submit, workers, record
        self._loop, self._mailbox = asyncio.get_running_loop(), mailbox
        self._thread = threading.get_ident()
        self._outcome: asyncio.Future[Outcome] = self._loop.create_future()
        self._ticket: Ticket | None = None

    async def run(self, begin: Callable[[], RestCall | bytes], *, large: bool,
                  timeout_s: float | None) -> bytes:
        """Return the body of the answer.

        Args:
            begin: reads the request.
            large: whether that takes long.
            timeout_s: RS24.

        Raises:
            ServingError: the failure that goes back to the caller.
        """
        timer = None if timeout_s is None else self._loop.call_later(
            timeout_s, self._give_up, DeadlineExceeded(TIMED_OUT))
        try:
            if large:
                self._workers.submit(self._begin, begin)
            else:
                self._begin(begin)
            outcome = await self._outcome
        except asyncio.CancelledError:
            self._give_up(Cancelled("The caller has gone."))
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if isinstance(outcome, ServingError):
            raise outcome
        return outcome

    def _begin(self, begin: Callable[[], RestCall | bytes]) -> None:
        try:
            begun = begin()
            if isinstance(begun, bytes):
                self._tell(begun)
                return
            self._record.progress = begun.call.progress
            self._ticket = self._submit(begun.call, lambda outcome: self._done(begun, outcome))
            if self._outcome.done():  # given up meanwhile
                self._ticket.give_up()
        except Exception as error:
            self._tell(as_serving_error(error, "a REST request"))

    def _done(self, begun: RestCall, outcome: Answer[Any] | ServingError) -> None:
        if isinstance(outcome, ServingError):
            self._tell(outcome)
        elif weight(outcome.value) > INLINE_ELEMENTS:
            self._workers.submit(self._write, begun, outcome)
        else:
            self._write(begun, outcome)

    def _write(self, begun: RestCall, answer: Answer[Any]) -> None:
        try:
            self._tell(begun.body(answer))
        except Exception as error:
            self._tell(as_serving_error(error, "the answer of a REST request"))

    def _tell(self, outcome: Outcome) -> None:
        if threading.get_ident() == self._thread:
            self._settle(outcome)
        else:
            self._mailbox.put(self._settle, outcome)

    def _settle(self, outcome: Outcome) -> None:
        if not self._outcome.done():
            self._outcome.set_result(outcome)

    def _give_up(self, error: ServingError) -> None:
        if self._ticket is not None:
            self._ticket.give_up(error)  # a scheduler may have its own words for it (BA17)
        self._settle(error)


class RestServer:
    """REST of one server.

    Args:
        service: answers what is below /v1/ but for OpenAI's routes.
        pipeline: runs it.
        generators: answer OpenAI's routes.
        host, port: see `HttpServer`.
        timeout_s: limit of a request, > 0; None for none (FL15).
        threads: --rest_api_num_threads, of which the loop is one (FL14).
        cors: FL16.
        monitoring: the page of metrics.
    """

    def __init__(self, service: RestService, pipeline: Pipeline, generators: Generators, *,
                 host: str, port: int,
                 timeout_s: float | None = 30.0, threads: int = 8, cors: bool = False,
                 monitoring: Monitoring | None = None) -> None:
        self._service, self._pipeline = service, pipeline
        self._timeout_s = timeout_s
        self._headers = CORS if cors else {}
        self._monitoring = monitoring or Monitoring()
        self._workers = ElasticExecutor(1, max(1, threads - 1), name="tf-infer-rest")
        self._openai = OpenAIService(generators, pipeline.metrics, self._workers,
                                     timeout_s=timeout_s, headers=self._headers)
        self._http = HttpServer(self.answer, host=host, port=port)

    def start(self) -> None:
        """Open the port.

        Raises:
            OSError: it cannot be opened (FL12).
        """
        self._http.start()

    def stop(self, drain_s: float) -> concurrent.futures.Future[bool]:
        """See `HttpServer.stop`."""
        ended = self._http.stop(drain_s)
        ended.add_done_callback(lambda _: self._workers.shutdown(wait=False))
        return ended

    async def answer(self, request: Any) -> Reply | Streamed:
        """Answer one request, whatever it asks for."""
        target = path_and_query(request.raw_path)
        if self._monitoring.enabled:
            found = respond(self._pipeline.metrics, self._monitoring.path, target)
            if found is not None:
                return Reply(found[0], found[1], CONTENT_TYPE)
        route = openai_route(request.method, target)
        if route == "models":
            listed = self._openai.models()
            return listed or await self._api(request, target)
        if route is not None:
            content = await read_body(request, most=MAX_BODY_BYTES)
            encoding = request.headers.get("Content-Encoding", "")
            if encoding and len(content) <= MAX_BODY_BYTES:  # else it is refused for its size
                content = await asyncio.get_running_loop().run_in_executor(
                    self._workers, inflate, content, encoding)
            return await self._openai.answer(route, content, request.headers.get("X-Request-Id"),
                                             self._http.mailbox)
        if is_api(target):
            return await self._api(request, target)
        if target == "/healthz":
            return Reply(200, b"ok\n", TEXT)
        if target == "/readyz":
            return self._ready()
        return Reply(404, b"Not Found\n", TEXT)  # RS04

    def _ready(self) -> Reply:
        """Tell whether every configured model has a version that answers."""
        missing = [name for (name,), answers in gauges.available(self._pipeline.versions).items()
                   if not answers]
        body = json.dumps({"ready": not missing, "not_available": missing}).encode() + b"\n"
        return Reply(503 if missing else 200, body, JSON)

    # ------------------------------------------------------------------ below /v1/

    async def _api(self, request: Any, target: str) -> Reply:
        record = _Record(time.monotonic(), request.headers.get("X-Request-Id"))
        code = Code.OK
        try:
            body = await self._body_of(request, target, record)
        except ServingError as error:
            code, body = error.code, rest_json.error_json(error.details)
            error.with_traceback(None)  # its frames hold the body
        except BaseException:
            code = Code.CANCELLED  # the caller has gone, or his body does not come
            raise
        finally:
            self._finish(record, code)
        return Reply(http_status(code), body, JSON, self._headers)

    async def _body_of(self, request: Any, target: str, record: _Record) -> bytes:
        if request.method == "OPTIONS":
            if is_preflight(request.method, request.headers.get("Origin")):
                return b""
            raise malformed(request.method, target)
        record.route = route = route_of(request.method, target)
        content = await read_body(request) if request.method == "POST" else b""
        record.size = len(content)
        encoding = request.headers.get("Content-Encoding", "")
        deadline = None if self._timeout_s is None else record.started_s + self._timeout_s

        def begin() -> RestCall | bytes:
            return self._service.begin(route, inflate(content, encoding), deadline)

        exchange = _Exchange(self._pipeline.submit, self._workers, record, self._http.mailbox)
        return await exchange.run(begin, large=len(content) > INLINE_BYTES or bool(encoding),
                                  timeout_s=self._timeout_s)

    def _finish(self, record: _Record, code: Code) -> None:
        """Tell metrics and log of a request that is answered."""
        seconds = time.monotonic() - record.started_s
        model = record.route.model.name if record.route else ""
        kind = record.route.kind if record.route else ""
        self._pipeline.metrics.request(
            model, kind, REST, code, seconds, version=record.progress.version,
            signature=record.progress.signature)
        level = logging.WARNING if code in OUR_FAULT else logging.DEBUG
        if log.isEnabledFor(level):
            known = self._pipeline.metrics.knows(model)
            logs.event("request", level, method=f"REST {kind}".strip(), code=code.name,
                       ms=round(seconds * 1000, 3), model=model if known else None,
                       version=record.progress.version,
                       signature=record.progress.signature or None,
                       rows=record.progress.rows, bytes=record.size,
                       request_id=logs.request_id(record.request_id))


def opened(config: ServerConfig, service: Service, pipeline: Pipeline, generators: Generators
           ) -> RestServer | None:
    """Return REST with its port open; None, and a line in the log, where that cannot be.

    gRPC is served all the same (FL11, FL12).
    """
    if config.rest_port == config.port:
        logs.event("http_failed", logging.ERROR, port=config.rest_port,
                   reason="--rest_api_port must differ from --port")
        return None
    server = RestServer(
        RestService(service, check_method_names=config.check_method_names), pipeline,
        generators, host=config.host, port=config.rest_port, timeout_s=config.rest_timeout_s,
        threads=config.rest_threads, cors=config.rest_cors, monitoring=config.monitoring)
    try:
        server.start()
    except OSError as error:
        logs.event("http_failed", logging.ERROR, port=config.rest_port, reason=error.strerror)
        return None
    return server
