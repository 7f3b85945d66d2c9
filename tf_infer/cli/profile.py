"""`tf-infer profile`: record what a server does, under a load of ours; say where the time goes."""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tf_infer.cli import connection, texts
from tf_infer.cli.json_text import json_text
from tf_infer.errors import ConfigError

if TYPE_CHECKING:
    from tf_infer.client.transport import GrpcTransport, Hear
    from tf_infer.profiling.load import Load
    from tf_infer.wire.timings import Detail, Timings

EPILOG = """examples:
  tf-infer profile --duration 5
  tf-infer profile --load texts.txt --model intents --callers 16
  tf-infer profile --load prompts.txt --model writer --rate 20 --callers 32 --json
  tensorboard --logdir runs/profile      # pip install 'tf_infer[profile]'

Works with any server that has TensorFlow's profiler service: tf-infer serve and
tensorflow_model_server have it on their gRPC port. Exit code 1 when nothing was recorded, or no
call of the load was answered.
"""

BEFORE_S = 0.5  # the load begins so long before the recording, and ends as much behind it
FIRST_CALLS = 8
# A call that is split into its stages takes several times as long: one at a time, and rare enough
# not to be felt by the others.
TRACE_EVERY_S = 0.25
TRACED_SHARE = 0.05


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("--duration", type=float, default=5.0, metavar="SECONDS",
                        help="how long to record (default 5)")
    parser.add_argument("--logdir", default="runs/profile", metavar="DIR",
                        help="where TensorBoard looks (default runs/profile)")
    parser.add_argument("--profiler", metavar="HOST:PORT",
                        help="address of the profiler service, where it is not --address")
    parser.add_argument("--top", type=int, default=10, metavar="N",
                        help="operations to show (default 10)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    load = parser.add_argument_group("load (without it, what others send is recorded)")
    load.add_argument("--load", metavar="FILE",
                      help=".jsonl or .csv with \"text\", else UTF-8, a text a line; sent again "
                           "and again")
    load.add_argument("--model", metavar="NAME", help="model to send them to")
    load.add_argument("--signature", default="serving_default",
                      help="takes one text input (default serving_default)")
    load.add_argument("--callers", type=int, default=4, metavar="N",
                      help="that wait for answers at the same time (default 4)")
    load.add_argument("--rate", type=float, metavar="PER_SECOND",
                      help="calls that are due, at random times; default: each caller asks again "
                           "as soon as it has its answer")
    load.add_argument("--rows", type=int, default=1, metavar="N", help="texts in one call")
    connection.configure(parser)


def run(arguments: argparse.Namespace) -> int:
    """Record, print the summary; return 0, or 1 when there is nothing to say."""
    from tf_infer.client.transport import GrpcTransport
    from tf_infer.profiling import summary, trace

    _check(arguments)
    credentials = connection.credentials(arguments)
    target = arguments.profiler or arguments.address
    transport = GrpcTransport(target, credentials=credentials)
    load = _Load(arguments, GrpcTransport(arguments.address, credentials=credentials)
                 ) if arguments.load else None
    try:
        if load is not None:
            load.start()
        name = time.strftime("%Y_%m_%d_%H_%M_%S")
        path = trace.capture(transport, duration_s=arguments.duration, run=name,
                             logdir=Path(arguments.logdir),
                             host="".join(one if one.isalnum() or one in ".-" else "_"
                                          for one in target))
        found = summary.Summary(
            path=path, duration_s=arguments.duration, trace=trace.read(path.read_bytes()),
            load=None if load is None else load.result(),
            timings=() if load is None else load.timings)
    finally:
        transport.close()
        if load is not None:
            load.close()
    if arguments.json:
        print(json_text(summary.to_json(found, top=arguments.top)))
    else:
        print("\n".join(summary.lines(found, top=arguments.top)))
    nothing = found.load is not None and not len(found.load.latencies_s)
    return 1 if nothing or not found.trace.operations else 0


def _check(arguments: argparse.Namespace) -> None:
    for name, low in (("duration", 0.0), ("top", 0), ("callers", 1), ("rows", 1)):
        if not low <= getattr(arguments, name) < float("inf"):
            raise ConfigError(f"--{name}: expected at least {low}, got {getattr(arguments, name)}.")
    if bool(arguments.load) != bool(arguments.model):
        raise ConfigError("--load: expected together with --model. Give both, or none.")
    if "," in (arguments.profiler or arguments.address):
        raise ConfigError("--address: expected one server, got several. Name the one to record by "
                          "--profiler; the load may go to several.")


class _Load:
    """The load: sent by threads of its own while something else is done."""

    def __init__(self, arguments: argparse.Namespace, transport: GrpcTransport) -> None:
        self._arguments, self._transport = arguments, transport
        self._calls = texts.made_calls(arguments, arguments.load, option="--load")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._outcome: Load | BaseException | None = None
        self._trace_at_s = 0.0
        self._lock = threading.Lock()
        self.timings: list[Timings] = []

    def start(self) -> None:
        """Begin, and return when it is under way.

        Raises:
            ServingError: the first calls fail; they are no part of the load, since a server may
                need long for its first answer.
        """
        for call in self._calls[:FIRST_CALLS]:
            self._transport.unary(call.method.path, call.request,
                                  timeout_s=self._arguments.timeout)
        self._thread.start()
        self._thread.join(BEFORE_S)

    def result(self) -> Load:
        """Wait for the end, and return what came of it."""
        self._thread.join()
        assert self._outcome is not None
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def close(self) -> None:
        """Give the connections up."""
        self._transport.close()

    def _run(self) -> None:
        from tf_infer.profiling.load import closed_loop, open_loop

        callers, rate = self._arguments.callers, self._arguments.rate
        duration_s = self._arguments.duration + 2 * BEFORE_S
        try:
            self._outcome = closed_loop(self._ask, callers=callers, duration_s=duration_s) \
                if rate is None else open_loop(self._ask, callers=callers, rate=rate,
                                               duration_s=duration_s)
        except BaseException as error:
            self._outcome = error

    def _ask(self, number: int) -> None:
        from tf_infer.wire import timings

        started_s, heard = time.monotonic(), []  # type: ignore[var-annotated]
        with self._lock:
            traced = started_s >= self._trace_at_s
            if traced:
                self._trace_at_s = float("inf")
        try:
            self._send(number, "stages" if traced else "queue", heard.append)
        finally:
            if traced:
                ended_s = time.monotonic()
                self._trace_at_s = ended_s + max(TRACE_EVERY_S,
                                                 (ended_s - started_s) / TRACED_SHARE)
        told = timings.from_metadata(heard[0])
        if told is not None:
            self.timings.append(told)

    def _send(self, number: int, detail: Detail, hear: Hear) -> None:
        from tf_infer.wire.timings import REQUEST_KEY

        call = self._calls[number % len(self._calls)]
        self._transport.unary(
            call.method.path, call.request, timeout_s=self._arguments.timeout, hear=hear,
            metadata=((REQUEST_KEY, detail),))
