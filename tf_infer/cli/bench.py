"""`tf-infer bench`: send a server loads, closed or open loop; percentiles, picture, comparison."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_infer.cli import connection, texts
from tf_infer.cli.json_text import json_text
from tf_infer.errors import BackendMissing, ConfigError

if TYPE_CHECKING:
    from tf_infer.client.calls import Call
    from tf_infer.client.transport import GrpcTransport
    from tf_infer.profiling.load import Load, Watch

EPILOG = """examples:
  tf-infer bench --model intents --texts texts.txt
  tf-infer bench --model intents --texts texts.txt --concurrency 1 16 64 --plot bench.png
  tf-infer bench --model intents --texts texts.txt --rate 100 200 400 --concurrency 64
  tf-infer bench --model intents --texts texts.txt --output new.json --compare old.json

Closed loop (no --rate): so many callers ask again as soon as they have their answer. Open loop:
calls are due at random times of a given rate whatever the server does, and a latency counts from
the moment its call was due, so that a stalled server is not asked less (coordinated omission).
Works with any server of TensorFlow Serving's API. Exit code 1 when no call was answered.
"""

FIRST_CALLS = 8


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("--model", required=True, metavar="NAME", help="model to ask")
    parser.add_argument("--texts", required=True, metavar="FILE",
                        help=".jsonl or .csv with \"text\", else UTF-8, a text a line; sent "
                             "again and again")
    parser.add_argument("--signature", default="serving_default",
                        help="takes one text input (default serving_default)")
    parser.add_argument("--rows", type=int, default=1, metavar="N", help="texts in one call")
    parser.add_argument("--concurrency", type=int, nargs="+", metavar="N",
                        help="callers; several: one load each (default 1 16). With --rate one "
                             "number, most calls under way (default 64)")
    parser.add_argument("--rate", type=float, nargs="+", metavar="PER_SECOND",
                        help="calls that are due; several: one load each")
    parser.add_argument("--duration", type=float, default=10.0, metavar="SECONDS",
                        help="of each load (default 10)")
    parser.add_argument("--warmup", type=float, default=1.0, metavar="SECONDS",
                        help="before each load, not measured (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the times of --rate")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--output", metavar="FILE", help="write the JSON object there")
    parser.add_argument("--compare", metavar="FILE", help="what an earlier --output wrote")
    parser.add_argument("--hgrm", metavar="FILE",
                        help="write the last load's percentile distribution, as HdrHistogram's")
    parser.add_argument("--plot", metavar="FILE",
                        help="draw latencies and throughput: .png, .svg, .pdf (needs matplotlib)")
    connection.configure(parser)


def run(arguments: argparse.Namespace) -> int:
    """Send the loads, print what came of them; return 0, or 1 when nothing was answered."""
    from tf_infer.client.transport import GrpcTransport
    from tf_infer.profiling import bench

    _check(arguments)
    draw = _drawing() if arguments.plot else None
    earlier = bench.read(Path(arguments.compare)) if arguments.compare else None
    calls = texts.made_calls(arguments, arguments.texts, option="--texts")
    transport = GrpcTransport(arguments.address, credentials=connection.credentials(arguments))
    try:
        found = bench.Bench(model=str(connection.reference(arguments)), rows=arguments.rows,
                            seed=arguments.seed, loads=_loads(arguments, calls, transport))
    finally:
        transport.close()
    if arguments.json:
        print(json_text(found.to_json()))
    else:
        print("\n".join(bench.lines(found)))
    if earlier is not None:
        print("\n".join(bench.compared(found, earlier)),
              file=sys.stderr if arguments.json else sys.stdout)
    if arguments.output:
        _write(arguments.output, json_text(found.to_json(), indent=1) + "\n")
    answered = [load for load in found.loads if len(load.latencies_s)]
    if answered and arguments.hgrm:
        _write(arguments.hgrm, "\n".join(bench.distribution(answered[-1])) + "\n")
    if answered and draw is not None:
        draw(found, Path(arguments.plot))
    return 0 if answered else 1


def _check(arguments: argparse.Namespace) -> None:
    for name, low in (("rows", 1), ("warmup", 0)):
        if not low <= getattr(arguments, name) < float("inf"):
            raise ConfigError(f"--{name}: expected at least {low}, got {getattr(arguments, name)}.")
    if arguments.rate and arguments.concurrency and len(arguments.concurrency) > 1:
        raise ConfigError("--concurrency: expected one number with --rate, got "
                          f"{len(arguments.concurrency)}. Several rates make several loads.")
    for name in ("output", "hgrm", "plot"):
        path = getattr(arguments, name)
        if path and not Path(path).absolute().parent.is_dir():
            raise ConfigError(f"--{name}: expected a file in a folder that exists, got {path}.")


def _drawing() -> Any:
    """Return what draws, before minutes are spent on what it is to draw."""
    try:
        from tf_infer.profiling.plot import draw
    except ImportError as error:
        raise BackendMissing("--plot needs matplotlib: pip install 'tf_infer[profile]'"
                             ) from error
    return draw


def _loads(arguments: argparse.Namespace, calls: list[Call[Any]], transport: GrpcTransport
           ) -> list[Load]:
    """Send every load, one after the other; an interrupted one is the last."""
    from tf_infer.profiling.load import closed_loop, open_loop

    def ask(number: int) -> None:
        call = calls[number % len(calls)]
        transport.unary(call.method.path, call.request, timeout_s=arguments.timeout)

    def send(size: float, duration_s: float, watch: Watch | None) -> Load:
        if arguments.rate is None:
            return closed_loop(ask, callers=int(size), duration_s=duration_s, watch=watch)
        return open_loop(ask, callers=(arguments.concurrency or [64])[0], rate=size,
                         duration_s=duration_s, seed=arguments.seed, watch=watch)

    for number in range(min(FIRST_CALLS, len(calls))):
        ask(number)  # a server may need long for its first answer, or refuse them all
    found: list[Load] = []
    for size in arguments.rate or arguments.concurrency or (1, 16):
        if arguments.warmup and send(size, arguments.warmup, None).interrupted:
            raise KeyboardInterrupt
        found.append(send(size, arguments.duration, _progress(arguments.duration, size)))
        if found[-1].interrupted:
            break
    return found


def _progress(duration_s: float, size: float) -> Watch | None:
    """Return what keeps one line of standard error up to date, where somebody sees it."""
    if not sys.stderr.isatty():
        return None

    def show(elapsed_s: float, answered: int) -> None:
        share = min(1.0, elapsed_s / duration_s)
        bar = "#" * round(30 * share)
        line = f"\r{size:>8g} [{bar:<30}] {answered:8d} answers, {answered / elapsed_s:8.1f}/s"
        print(line if share < 1 else f"\r{'':{len(line)}}\r", end="", file=sys.stderr, flush=True)

    return show


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from error
