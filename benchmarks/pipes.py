"""Contestants that are processes, asked over a pipe: started, frozen, measured in turns.

benchmarks/decode.py and benchmarks/classify.py stand on it; benchmarks/peers/pipe.py is the other
end. A process that is not being measured is stopped by SIGSTOP, so that it takes no processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.client import machine
from benchmarks.contestants import QUIET
from benchmarks.models import CACHE
from benchmarks.server import say

HERE = Path(__file__).resolve().parent
OURS = "tf_infer"  # how the names of our own contestants begin
PATIENCE_S = 600.0
Cell = TypeVar("Cell")
Results = list[dict[str, Any]]  # one a round
Cells = dict[Cell, dict[str, Results]]  # cell -> contestant -> its results


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to run a model.

    Attributes:
        name: in the results.
        script: of benchmarks/peers/, without its ending.
        form: what the script is asked for.
        model: a form of the model, which the script loads.
        venv: environment below `--peers`; "" for this Python.
    """

    name: str
    script: str
    form: str
    model: str
    venv: str = ""


class Running:
    """A contestant's process.

    Args:
        contestant: who.
        settings: what its script is given, in JSON.
        peers: folder of the environments.

    Raises:
        RuntimeError: it ended, or did not answer for PATIENCE_S.
    """

    def __init__(self, contestant: Contestant, settings: dict[str, Any], peers: Path | None
                 ) -> None:
        self.contestant = contestant
        python = (peers or Path()) / contestant.venv / "bin/python"
        command = [str(python.absolute()) if contestant.venv else sys.executable,
                   str(HERE / "peers" / f"{contestant.script}.py"), json.dumps(settings)]
        path = os.pathsep.join([str(HERE / "peers"), str(HERE.parent),
                                *filter(None, [os.environ.get("PYTHONPATH")])])
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"),
                                str(len(os.sched_getaffinity(0))))
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True, env=os.environ | QUIET | threads | {"PYTHONPATH": path})
        self.loaded = self._answer()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Let the process run for one request, and return its answer."""
        self.freeze(frozen=False)
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.stop()
            raise RuntimeError(f"{self.contestant.name} ended; what it said is above") from None
        answer = self._answer()
        self.freeze()
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
        if not ready or not (line := self.process.stdout.readline()):
            self.stop()
            raise RuntimeError(f"{self.contestant.name} "
                               + ("ended; what it said is above" if ready else "did not answer"))
        found: dict[str, Any] = json.loads(line)
        return found

    def freeze(self, *, frozen: bool = True) -> None:
        """Stop the process, or let it go on."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def stop(self) -> None:
        """End the process and what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def started(group: Sequence[Contestant], settings: Callable[[Contestant], dict[str, Any]],
            peers: Path | None, left_out: dict[str, str]) -> Iterator[list[Running]]:
    """Start contestants one after the other, frozen, and end them afterwards.

    Args:
        group: who is asked for; who cannot be started is noted in `left_out`.
        settings: what a contestant's script is given; raises RuntimeError where its model cannot
            be made.
        peers: folder of the environments.
        left_out: contestant -> why.
    """
    with ExitStack() as stack:
        found = []
        for one in group:
            try:
                if one.venv and not (peers and (peers / one.venv).is_dir()):
                    raise RuntimeError(f"no environment {one.venv!r} below --peers")
                running = Running(one, settings(one), peers)
            except RuntimeError as error:
                left_out[one.name] = str(error)
                say(f"left out: {one.name}: {error}")
                continue
            stack.callback(running.stop)
            running.freeze()
            say(f"{one.name} ready: {running.loaded}")
            found.append(running)
        yield found


def in_rounds(group: list[Running], cells: Sequence[Cell],
              measure: Callable[[Running, Cell, int], dict[str, Any]], rounds: int,
              until_s: float, left_out: dict[str, str]) -> Cells[Cell]:
    """Measure everybody in alternating rounds after one that warms up, none begun too late.

    Args:
        group: who fails is noted in `left_out`, and taken out.
        cells: the loads.
        measure: running, cell, number of the round (0 warms up) -> its figures; says them, too.
        rounds: how many count.
        until_s: on the monotonic clock; no round is begun that would end after it, but the first.
        left_out: contestant -> why.
    """
    found: Cells[Cell] = {}
    longest_s = 0.0
    for number in range(rounds + 1):
        began_s = time.monotonic()
        if number > 1 and began_s + longest_s > until_s:
            say(f"no time for round {number} of {rounds}")
            break
        for cell in cells:
            for one in list(group if number % 2 else group[::-1]):
                try:
                    result = measure(one, cell, number)
                except RuntimeError as error:
                    say(f"left out from here on: {error}")
                    group.remove(one)
                    left_out[one.contestant.name] = f"{error}, at {cell}"
                    continue
                if number:
                    row = found.setdefault(cell, {})
                    row.setdefault(one.contestant.name, []).append(result)
        longest_s = time.monotonic() - began_s
    return found


# ---------------------------------------------------------------------------- reporting


def summary(results: Results, names: Sequence[str]) -> dict[str, list[float]]:
    """Return median, least and greatest of every named figure over the rounds."""
    found = {}
    for name in names:
        values = [result[name] for result in results if name in result]
        if values:
            found[name] = [round(value, 1) for value in (
                statistics.median(values), min(values), max(values))]
    return found


def ratios(row: dict[str, Results], ours: str, name: str, *, less: str = OURS
           ) -> dict[str, float]:
    """Return the median over the rounds of one of ours by each peer, and by the best of a round.

    Args:
        row: contestant -> its results.
        ours: the contestant to compare.
        name: of the figure, of which more is better.
        less: names that begin so are no peers.
    """
    found = {}
    theirs = {peer: results for peer, results in row.items()
              if not peer.startswith(less) and name in results[0]}
    for peer, results in theirs.items():
        found[peer] = [a[name] / b[name] for a, b in zip(row[ours], results)]
    if theirs:
        found["the best of them"] = [a[name] / max(b[name] for b in others)
                                     for a, *others in zip(row[ours], *theirs.values())]
    return {peer: round(statistics.median(values), 3) for peer, values in found.items()}


def loaded(running: Sequence[Running], cells: Cells[Any]) -> dict[str, dict[str, Any]]:
    """Return what each said when it was loaded, and what memory it has held since.

    `peak_mb` is the most, `end_mb` and `end_file_mb` what it held behind its last call, if that
    was kept.
    """
    found: dict[str, dict[str, Any]] = {one.contestant.name: dict(one.loaded) for one in running}
    for row in cells.values():
        for name, results in row.items():
            if name in found:
                last = results[-1]
                found[name]["peak_mb"] = max(found[name]["peak_mb"], last["peak_mb"])
                found[name] |= {end: last[key] for end, key in (
                    ("end_mb", "resident_mb"), ("end_file_mb", "file_mb")) if key in last}
    return found


def round_count(cells: Cells[Any]) -> int:
    """Return how many rounds were measured."""
    return max((len(one) for row in cells.values() for one in row.values()), default=0)


# ---------------------------------------------------------------------------- command line


def parser(description: str, *, rounds: int, minutes: float) -> argparse.ArgumentParser:
    """Return a parser with the options that every such script has."""
    found = argparse.ArgumentParser(description=description.splitlines()[0])
    found.add_argument("--peers", type=Path, help="folder of the peers' environments")
    found.add_argument("--cache", type=Path, default=CACHE, help="converted models")
    found.add_argument("--rounds", type=int, default=rounds)
    found.add_argument("--minutes", type=float, default=minutes,
                       help="begin no round that would end later")
    found.add_argument("--only", nargs="+", default=[], metavar="WORD",
                       help="contestants with one of these words in their name")
    return found


def chosen(group: Sequence[Contestant], words: Sequence[str]) -> list[Contestant]:
    """Return those of `--only`."""
    return [one for one in group if not words or any(word in one.name for word in words)]


def run(found: dict[str, Any], parts: Callable[[float], dict[str, Any]], minutes: float) -> None:
    """Measure between two looks at the machine's load, and print the results.

    Args:
        found: what stands in front of the results.
        parts: when to end, on the monotonic clock -> results.
        minutes: from now to that end.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that those frozen are ended
    until_s = time.monotonic() + 60 * minutes
    found = {"python": platform.python_version(), "machine": machine(), **found}
    found |= parts(until_s)
    found["load_after"] = round(os.getloadavg()[0], 2)
    print(json.dumps(found, indent=1))
