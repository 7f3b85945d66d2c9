"""REST: what each HTTP request is answered with, be it a model's, a page's, or nobody's.

Statements RS03, RS04, RS12 to RS25, FL15, FL16 and MO01 of TensorFlow Serving's observed behaviour.
Nothing is held while a request waits or runs. Small bodies are read on the loop, larger ones by
workers, so that no caller waits for another's megabytes. Small requests for a model's answer take
the short way (http_short.py), to the same end. /healthz and /readyz are our own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import json
import logging
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Union

from tf_infer.errors import Cancelled, Code, DeadlineExceeded, ServingError, http_status
from tf_infer.server import gauges, logs
from tf_infer.server.config import Monitoring, ServerConfig
from tf_infer.server.generation import Generators
from tf_infer.server.grpc_service import Service
from tf_infer.server.http_server import HttpServer, Reply, Streamed, fields, read_body
from tf_infer.server.http_short import Whole
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
GONE = "The caller has gone."
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
    headers: Mapping[str, str]
    route: Route | None = None
    size: int = 0
    progress: Progress = field(default_factory=Progress)


class _Exchange:
    """One request on its way from the loop through the pipeline's threads and back.

    Args:
        submit: hands a call to the pipeline.
        workers: read what is large, and write it.
        record: hears of the progress.
        mailbox: of the loop, on whose thread this is made.
        told: gets the body of the answer, or the failure that goes back to the caller; on the loop,
            once.
    """

    __slots__ = ("_ended", "_mailbox", "_record", "_submit", "_thread", "_ticket", "_told",
                 "_workers")

    def __init__(self, submit: Callable[..., Ticket], workers: concurrent.futures.Executor,
                 record: _Record, mailbox: Mailbox, told: Callable[[Outcome], None]) -> None:
        self._submit, self._workers, self._record = submit, workers, record
        self._mailbox, self._told = mailbox, told
        self._thread = threading.get_ident()
        self._ended = False
        self._ticket: Ticket | None = None

    def begin(self, begin: Callable[[], RestCall | bytes], *, large: bool) -> None:
        """Begin to answer.

        Args:
            begin: reads the request.
            large: whether that takes long.
        """
        if large:
            self._workers.submit(self._begin, begin)
        else:
            self._begin(begin)

    def give_up(self, error: ServingError) -> None:
        """Answer with an error unless there is an answer; on the loop."""
        if self._ticket is not None:
            self._ticket.give_up(error)  # a scheduler may have its own words for it (BA17)
        self._settle(error)

    def leave(self, error: ServingError) -> None:
        """Hear that the caller has gone: what waits is given up, and nobody told; on the loop."""
        self._ended = True
        if self._ticket is not None:
            self._ticket.give_up(error)

    def _begin(self, begin: Callable[[], RestCall | bytes]) -> None:
        try:
            begun = begin()
            if isinstance(begun, bytes):
                self._tell(begun)
                return
            self._record.progress = begun.call.progress
            self._ticket = self._submit(begun.call, lambda outcome: self._done(begun, outcome))
            if self._ended:  # given up meanwhile
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
        if not self._ended:
            self._ended = True
            self._told(outcome)


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
        self._short_route = functools.lru_cache(maxsize=256)(self._find_short_route)
        self._fields = fields(JSON, self._headers)
        self._http = HttpServer(self.answer, host=host, port=port, short=self._short)

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
        record = _Record(time.monotonic(), request.headers)
        code = Code.CANCELLED  # the caller has gone, or his body does not come
        try:
            code, body = _written(await self._outcome_of(request, target, record))
        finally:
            self._finish(record, code)
        return Reply(http_status(code), body, JSON, self._headers)

    async def _outcome_of(self, request: Any, target: str, record: _Record) -> Outcome:
        try:
            if request.method == "OPTIONS":
                if is_preflight(request.method, request.headers.get("Origin")):
                    return b""
                raise malformed(request.method, target)
            record.route = route_of(request.method, target)
        except ServingError as error:
            return error
        content = await read_body(request) if request.method == "POST" else b""
        encoding = request.headers.get("Content-Encoding", "")
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        exchange = self._exchange(record, lambda told: _fulfil(outcome, told))
        timer = self._begin(exchange, record, content, encoding)
        try:
            return await outcome
        except asyncio.CancelledError:
            exchange.leave(Cancelled(GONE))
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _exchange(self, record: _Record, told: Callable[[Outcome], None]) -> _Exchange:
        return _Exchange(self._pipeline.submit, self._workers, record, self._http.mailbox, told)

    def _begin(self, exchange: _Exchange, record: _Record, content: bytes, encoding: str,
               ) -> asyncio.TimerHandle | None:
        """Begin to answer a request, and return what ends that after the limit (RS24)."""
        route, service = record.route, self._service
        assert route is not None
        record.size, limit_s = len(content), self._timeout_s
        deadline = None if limit_s is None else record.started_s + limit_s
        timer = None if limit_s is None else asyncio.get_running_loop().call_later(
            limit_s, _late, exchange)
        exchange.begin(lambda: service.begin(route, inflate(content, encoding), deadline),
                       large=len(content) > INLINE_BYTES or bool(encoding))
        return timer

    # ------------------------------------------------------------------ the short way

    def _short(self, target: str) -> Callable[[Whole], None] | None:
        """See `http_short.House`: those are short that ask a model for an answer."""
        route = self._short_route(target)
        return None if route is None else functools.partial(self._answer_short, route)

    def _find_short_route(self, sent: str) -> Route | None:
        target = path_and_query(sent)
        page = self._monitoring.enabled and target.partition("?")[0] == self._monitoring.path
        if page or openai_route("POST", target) is not None or not is_api(target):
            return None
        try:
            return route_of("POST", target)
        except ServingError:  # its caller is told by `answer`
            return None

    def _answer_short(self, route: Route, whole: Whole) -> None:
        """Answer a request as `_api` does."""
        record = _Record(time.monotonic(), whole.headers, route)
        timer: asyncio.TimerHandle | None = None
        ended = False

        def told(outcome: Outcome) -> None:
            nonlocal ended
            ended, whole.gone = True, None  # which would hold the request until a collection
            if timer is not None:
                timer.cancel()
            code, body = _written(outcome)
            self._finish(record, code)
            whole.answer(http_status(code), self._fields, body)

        def gone() -> None:
            if timer is not None:
                timer.cancel()
            self._finish(record, Code.CANCELLED)
            exchange.leave(Cancelled(GONE))

        exchange, whole.gone = self._exchange(record, told), gone
        timer = self._begin(exchange, record, whole.body, "")
        if ended and timer is not None:
            timer.cancel()

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
                       request_id=logs.request_id(record.headers.get("X-Request-Id")))


def _written(outcome: Outcome) -> tuple[Code, bytes]:
    """Return the code and the body that an outcome is told by."""
    if isinstance(outcome, ServingError):
        outcome.with_traceback(None)  # its frames hold the request's body
        return outcome.code, rest_json.error_json(outcome.details)
    return Code.OK, outcome


def _late(exchange: _Exchange) -> None:
    exchange.give_up(DeadlineExceeded(TIMED_OUT))


def _fulfil(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)


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
