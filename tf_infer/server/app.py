"""Run a server: load, open the port, say so, answer, drain, stop.

    from tf_infer.server.app import Server
    with Server(config) as server:      # in this process, for tests and notebooks
        ...
    run(config)                         # a process of its own, until SIGTERM or Ctrl-C
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc

from tf_infer.errors import (
    BackendMissing,
    Code,
    ConfigError,
    ServerFailure,
    ServerUnavailable,
    ServingError,
    TfInferError,
)
from tf_infer.server import direct, gauges, memory, slot_engines, tls
from tf_infer.server.config import ServerConfig
from tf_infer.server.config_file import ConfigFileWatch
from tf_infer.server.contracts import LoadFn, LoadTimes, Servable
from tf_infer.server.cpus import SHORT_TURNS
from tf_infer.server.decide import State
from tf_infer.server.generation_service import GenerationService
from tf_infer.server.generators import Make, VersionGenerators
from tf_infer.server.grpc_service import Service
from tf_infer.server.health_watch import HealthWatch
from tf_infer.server.logs import event, say
from tf_infer.server.metrics import Metrics
from tf_infer.server.pipeline import Pipeline
from tf_infer.server.profiler import Profiler
from tf_infer.server.schedulers import Schedulers
from tf_infer.server.threads import ElasticExecutor
from tf_infer.server.versions import Versions
from tf_infer.version import __version__
from tf_infer.wire import methods

if TYPE_CHECKING:
    from tf_infer.server.rest import RestServer

log = logging.getLogger("tf_infer.server")

START_FAILED = 255
MAX_READERS = 1024  # for large requests and those that wait; others need no thread: reading.py
MAX_MESSAGE_BYTES = 2**31 - 1  # LI01
TELL_S = 1.0  # for the last words of what was being generated when a server stops


class Server:
    """One server in this process.

    Args:
        config: what to serve and how.
        load: version directory -> servable; None loads SavedModels, which needs TensorFlow.
        generate: what generates for a version; None takes the slot engine.

    `start` returns when every model is available and the port is open (FL27).
    """

    def __init__(self, config: ServerConfig, *, load: LoadFn | None = None,
                 generate: Make | None = None) -> None:
        self.config = config
        self.metrics = Metrics(page=config.monitoring.enabled)
        self.schedulers = Schedulers(config, gauges.batches(self.metrics))
        self.versions = Versions(
            self.schedulers.reading(load or _saved_model_loader(
                config, self.metrics, lambda: bool(self._grpc) and self.versions.serving(),
                lambda: self.versions.lent())),
            max_load_retries=config.max_load_retries,
            load_retry_interval_s=config.load_retry_interval_s,
            labels_for_unavailable=config.labels_for_unavailable,
            load_threads=config.load_threads, start_load_threads=config.start_load_threads,
            poll_s=config.poll_s, metrics=self.metrics,
            loaded=lambda lease: self.generators.prepare(lease),
            unloading=lambda servable: self.generators.unload(servable))
        self.generators = VersionGenerators(
            self.versions, generate or slot_engines.slot_engines(config.decode, self.metrics),
            prepares=None if generate else slot_engines.prepares(config.decode))
        slot_engines.register(self.metrics, self.generators)
        self.pipeline = Pipeline(self.versions, self.schedulers.of, self.metrics)
        gauges.register(self.metrics, self.versions, in_flight=self.pipeline.in_flight,
                        waiting=self.schedulers.waiting.count)
        self._service = Service(self.pipeline, tensor_content=config.tensor_content,
                                check_method_names=config.check_method_names, health=config.health,
                                stages=config.profiler)
        self._readers = ElasticExecutor(1, MAX_READERS, name="tf-infer-grpc")
        self._generation = GenerationService(self.generators, self.metrics, self._readers.submit)
        self._watch = HealthWatch(self._readers.submit) if config.health else None
        self._profiler = Profiler() if config.profiler else None
        self._config_file = ConfigFileWatch(config.config_file, config.config_file_poll_s,
                                            self.versions)
        self._grpc: list[grpc.Server] = []
        self._open_rest = _rest_opener() if config.rest_port else None
        self._rest: RestServer | None = None

    @property
    def rest_address(self) -> str:
        """Where REST answers, empty where it does not."""
        return f"{_shown(self.config.host)}:{self.config.rest_port}" if self._rest else ""

    @property
    def admin_address(self) -> str:
        """Where the reload of the configuration and the profiler answer, if not at `addresses`."""
        return f"localhost:{self.config.admin_port}" if self.config.admin_port else ""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where gRPC answers, as a client writes it."""
        tcp = (f"{_shown(self.config.host)}:{self.config.port}",) if self.config.port else ()
        return tcp + ((f"unix:{self.config.socket_path}",) if self.config.socket_path else ())

    def start(self) -> None:
        """Load all models, then open the port.

        Raises:
            ServingError: a model failed for good (FL30), the port is taken (FL13), or there are no
                credentials as configured.
        """
        credentials = tls.credentials_for(self.config)
        self.versions.configure(self.config.models)
        if self.config.config_file and self.config.config_file_poll_s > 0:
            self._config_file.start()
        admin, public = self._handlers()
        if self.config.admin_port:
            self._open(admin, {}, ((self.admin_address, None),))
        self._open(public, self._service.behaviours(self._readers.submit), tuple(
            (address, credentials) for address, wanted in (
                (f"{self.config.host}:{self.config.port}", self.config.port),
                (f"unix:{self.config.socket_path}", self.config.socket_path)) if wanted))
        if self._open_rest is not None:
            self._rest = self._open_rest(self.config, self._service, self.pipeline,
                                         self.generators)
        event("serving", addresses=",".join(self.addresses), rest=self.rest_address or None)
        for line in self._started():
            log.info("%s", line)

    def _started(self) -> list[str]:
        """Return where it answers in the words of TensorFlow Serving: scripts wait for them."""
        config = self.config
        places = [f"{config.host}:{config.port}"] if config.port else []
        places += [f"UDS: {config.socket_path}"] if config.socket_path else []
        lines = [f"Running gRPC ModelServer at {place} ..." for place in places]
        if self._rest is not None:
            lines += [f"Exporting HTTP/REST API at:{self.rest_address} ...",
                      "Entering the event loop ..."]
        return lines

    def _handlers(self) -> tuple[list[Any], list[Any]]:
        """Return what answers on the admin port, and what on all others.

        Without an admin port the others have everything, as TensorFlow Serving's have.
        """
        moved = (methods.RELOAD_CONFIG,) if self.config.admin_port else ()
        public = self._service.handlers(lambda method: method not in moved,
                                        large=self._readers.submit)
        admin = self._service.handlers(lambda method: method.service == methods.MODEL_SERVICE)
        public.extend(self._generation.handlers())
        if self._profiler is not None:
            (admin if self.config.admin_port else public).extend(self._profiler.handlers())
        offered = [method for method in (*self._service.offered(), methods.GENERATE)
                   if method not in moved]
        if self._watch is not None:
            public.extend(self._watch.handlers())
            offered.append(methods.HEALTH_WATCH)
        if self._profiler is not None and not self.config.admin_port:
            offered += [methods.PROFILE, methods.TERMINATE]
        public.extend(_reflection(offered))
        return admin, public

    def _open(self, handlers: Sequence[Any], behaviours: Mapping[str, direct.Behaviour],
              addresses: Sequence[tuple[str, tls.MakeCredentials | None]]) -> None:
        server = grpc.server(self._readers, options=(  # type: ignore[arg-type]
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0), *self.config.channel_arguments))
        server.add_generic_rpc_handlers(tuple(handlers))
        begin = direct.register(server, behaviours, self._readers.submit)
        for address, credentials in addresses:
            _bind(server, address, credentials)
        server.start()
        begin()
        self._grpc.append(server)

    def stop(self, drain_s: float | None = None) -> bool:
        """Refuse new requests, wait for those that run, free all; return whether all had ended.

        A version that is still in use then is freed when it no longer is.

        Args:
            drain_s: how long to wait; None takes the configuration's.
        """
        drain_s = self.config.drain_s if drain_s is None else drain_s
        ended = True
        self.versions.cancel()  # a reload that waits would keep its thread
        if self._watch is not None:
            self._watch.close()
        if self._profiler is not None:
            self._profiler.close()
        self._config_file.stop()
        # What is generated then ends with UNAVAILABLE; callers hear of it before gRPC cancels.
        generating = threading.Thread(target=self.generators.stop, args=(drain_s,), daemon=True)
        generating.start()
        grace_s = drain_s + (TELL_S if self.generators.lent() else 0.0)
        rest = self._rest.stop(grace_s) if self._rest is not None else None
        if self._grpc:
            end = time.monotonic() + drain_s
            for stopped in [server.stop(grace_s) for server in self._grpc]:
                stopped.wait(max(0.0, end - time.monotonic()) + 5.0)
            # gRPC gives cancelled calls up at once; their runs may go on.
            ended = self.pipeline.wait_idle(max(0.0, end - time.monotonic()))
            self._grpc.clear()
        if rest is not None:
            ended = bool(wait([rest], drain_s + 5.0).done) and rest.result() and ended
            self._rest = None
        generating.join(max(0.0, drain_s) + 5.0)
        self._generation.close()
        self._readers.shutdown(wait=ended)
        self.schedulers.close()
        self.versions.stop()
        event("stopped", drained=ended)
        return ended

    def summary(self) -> str:
        """Return what is served where, and what it cost, for the start-up message."""
        lines = [f"tf-infer {__version__} answers gRPC at {', '.join(self.addresses)}"]
        if self.admin_address:
            lines.append(f"  reload and profiler at {self.admin_address}")
        if self.rest_address:
            lines.append(f"  REST at http://{self.rest_address}/v1/models/")
        for name in self.versions.names():
            rows = [row for row in self.versions.status(name) if row.state is State.AVAILABLE]
            lines += [f"  {name} version {row.version}: {_times(row.times)}" for row in rows]
        return "\n".join(lines)

    def __enter__(self) -> Server:
        try:
            self.start()
        except BaseException:
            self.stop(0.0)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop(0.0)


def _shown(host: str) -> str:
    return "localhost" if host in ("0.0.0.0", "[::]") else host


def _rest_opener() -> Callable[[ServerConfig, Service, Pipeline, VersionGenerators],
                               RestServer | None]:
    """Return what opens the HTTP port; its library is asked for here, before models are loaded."""
    try:
        from tf_infer.server.rest import opened
    except ImportError as error:
        raise BackendMissing("--rest_api_port needs aiohttp: pip install 'tf_infer[server]'"
                             ) from error
    return opened


def _reflection(offered: Sequence[methods.Method]) -> list[Any]:
    """Return what tells of the methods; nothing where its library is not installed."""
    try:
        from tf_infer.server import reflection
    except ImportError:
        return []
    return reflection.handlers(offered)


def _times(times: LoadTimes) -> str:
    parts = [f"loaded in {times.load_s:.2f} s"]
    if times.warmup_records:
        parts.append(f"{times.warmup_records} warm-up records in {times.warmup_s:.2f} s")
    if times.golden_samples:
        parts.append(f"{times.golden_samples} golden samples equal in {times.golden_s:.2f} s")
    return ", ".join(parts)


def _bind(server: grpc.Server, address: str, credentials: tls.MakeCredentials | None) -> None:
    try:
        bound = (server.add_secure_port(address, credentials()) if credentials
                 else server.add_insecure_port(address))
    except RuntimeError:
        bound = 0
    if not bound:
        raise ServerUnavailable(f"{address} cannot be opened: another process has it, or it is "
                                "not allowed. Choose another --port.")


def _saved_model_loader(config: ServerConfig, metrics: Metrics, serving: Callable[[], bool],
                        asked: Callable[[], int]) -> LoadFn:
    """Return a LoadFn for SavedModels; TensorFlow is imported here, once and not per version.

    Args:
        config, metrics: the server's.
        serving: whether others may be answered meanwhile.
        asked: how many calls there have been so far.
    """
    try:
        from tf_infer.server.servable import load_version
        from tf_infer.server.session_config import session_config
    except ImportError as error:
        raise BackendMissing("serving SavedModels needs TensorFlow: "
                             "pip install 'tf_infer[server]'") from error
    settings = session_config(config)

    def load(path: Path) -> tuple[Servable, LoadTimes]:
        if not serving():
            return load_version(path, config, metrics, settings)
        with SHORT_TURNS:
            return load_version(path, config, metrics, settings, gently=True, asked=asked)

    return load


def failure(error: TfInferError) -> str:
    """Return the line that a start ends with when it fails (FL21)."""
    code, text = Code.INVALID_ARGUMENT, str(error)
    if isinstance(error, ServingError):
        code, text = error.code, error.details
    elif not isinstance(error, ConfigError):
        code = Code.UNKNOWN
    return f"Failed to start server. Error: {code.name}: {text}"


def run(config: ServerConfig, *, load: LoadFn | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C, then drain; return the process's exit code.

    A second signal ends the process at once. Runs that do not end within `drain_s` are left behind
    and the process ends all the same. Call it from the main thread of a process of its own.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # A signal may reach any thread; its number in the pipe wakes this one.
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    failures: list[TfInferError] = []
    server: list[Server] = []

    def start() -> None:
        try:
            memory.allow_connections()
            server.append(Server(config, load=load))
            memory.settle()
            server[0].start()
            os.write(writer, b"r")
        except TfInferError as error:
            failures.append(error)
            os.write(writer, b"f")
        except Exception as error:  # a fault of ours must not leave the process waiting
            log.exception("start failed")
            failures.append(ServerFailure(f"{type(error).__name__}: {error}"))
            os.write(writer, b"f")

    threading.Thread(target=start, name="tf-infer-start", daemon=True).start()
    news = os.read(reader, 1)
    if news == b"f":
        say(failure(failures[0]))
        return _end(START_FAILED)
    if news == b"r":
        say(server[0].summary())
        os.read(reader, 1)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1))
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))
    if news == b"r":
        server[0].stop()
    return _end(0)


def _end(code: int) -> int:
    """End the process: threads inside TensorFlow that do not come back must not hold it up."""
    logging.shutdown()
    with suppress(OSError):  # a full disk
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
