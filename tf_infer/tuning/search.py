"""Search: build every candidate, hold its answers against the reference's, time all in turns.

Everything found is on disk at once (`state.py`), so that a search that was stopped, however, goes
on where it was and loses one round at most. Needs no TensorFlow: that is in the processes.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tf_infer import config
from tf_infer.errors import ExportError, VerificationError
from tf_infer.export.versions import clear
from tf_infer.manifest import Report
from tf_infer.prepared import prepared_folder
from tf_infer.tuning import rounds as planning
from tf_infer.tuning.build import BuildOrder
from tf_infer.tuning.candidates import REFERENCE_CANDIDATE, Candidate
from tf_infer.tuning.judge import judge, read
from tf_infer.tuning.process import Hired, WorkerFailed
from tf_infer.tuning.state import Answered, Built, Folder, Round, Settings, trials
from tf_infer.tuning.trial import Times, Trial

ANSWERS_FILE, REPORT_FILE, VERSIONS = "answers.npz", "report.json", "versions"
WARM_CALLS = 2

# what is under way, how much of it is done, and of how much
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What a search is given beside its settings.

    Attributes:
        order: what to build; candidate and base_dir are put in.
        truth: right labels of the texts that are answered, joined, None of one without; None where
            none has any.
        budget_s: for the rounds, of all runs of this search together.
        free_bytes: memory of the machine for processes that wait; 0 where it is not known.
    """

    order: BuildOrder
    truth: Sequence[str | None] | None
    budget_s: float
    free_bytes: int = 0


class Search:
    """One search in its folder.

    Args:
        settings: what it is of.
        folder: held by this process.
        given: the rest.
        hire: starts a process for a candidate, in its folder.
        progress: is told how far it is.
        clock: seconds.
    """

    def __init__(self, settings: Settings, folder: Folder, given: Given,
                 hire: Callable[[Path], Hired], *,
                 progress: Progress = lambda what, done, total: None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._folder, self._given = settings, folder, given
        self._hire, self._progress, self._clock = hire, progress, clock
        self._workers: dict[str, Hired] = {}
        self._opening: dict[str, float] = {}
        self._resident: dict[str, int] = {}
        self._by_key = {one.key: one for one in settings.candidates}

    def run(self) -> list[Trial]:
        """Do what is not done yet; return all that is known.

        Raises:
            VerificationError: the reference's paths differ; names the report.
            ExportError: the reference cannot be built or asked.
            ConfigError: the budget is too small for one round.
        """
        try:
            self._build()
            self._judge()
            self._rounds()
        finally:
            for key in list(self._workers):
                self._dismiss(key)
        return self.trials()

    def trials(self) -> list[Trial]:
        """Return all that is known so far."""
        return trials(self._settings, self._folder)

    def version(self, candidate: Candidate) -> Path:
        """Return the version directory of a candidate that was built."""
        built = self._folder.known(candidate, Built)
        assert built is not None and not built.failed
        return self._folder.of(candidate) / built.version

    def export(self, candidate: Candidate, base_dir: Path, told: Mapping[str, Any],
               report_path: Path) -> Path:
        """Prove a candidate on every path and export it, with what was told of the search.

        Args:
            candidate: which.
            base_dir: of the model.
            told: goes into report.json.
            report_path: where the report goes when a path differs.

        Raises:
            VerificationError: a path differs; names the report. Nothing is exported then.
            ExportError: it cannot be exported.
        """
        order = self._order(candidate, base_dir, whole=True, search=dict(told))
        worker = self._hire(self._folder.of(candidate))
        try:
            return worker.build(order)
        except WorkerFailed as failure:
            if failure.report is None:
                raise ExportError(f"{candidate.name}: expected to be exported, got: "
                                  f"{failure.reason}") from failure
            report: Report = config.from_json(Report, failure.report, where="report")
            config.dump_whole(report, report_path)
            raise VerificationError(f"{candidate.name}: {failure.reason} Nothing was exported. "
                                    f"Report: {report_path}", report=report) from failure
        finally:
            worker.close()
            _sweep(base_dir)

    def _order(self, candidate: Candidate, base_dir: Path, **changes: Any) -> BuildOrder:
        return replace(self._given.order, candidate=candidate, base_dir=str(base_dir), **changes)

    # ------------------------------------------------------------------ build, judge

    def _build(self) -> None:
        for candidate in self._counted("building", self._settings.candidates):
            if self._folder.known(candidate, Built) is None:
                self._folder.learn(candidate, self._built(candidate))

    def _built(self, candidate: Candidate) -> Built:
        folder = self._folder.of(candidate)
        base_dir = folder / VERSIONS / self._given.order.name
        shutil.rmtree(folder / VERSIONS, ignore_errors=True)  # of a build that was cut off
        worker = self._hire(folder)
        try:
            version = worker.build(self._order(candidate, base_dir))
        except WorkerFailed as failure:
            return Built(failed=self._reason(candidate, failure))
        finally:
            worker.close()
            _sweep(base_dir)
        return Built(version=version.relative_to(folder).as_posix(), size_bytes=_size(version))

    def _reason(self, candidate: Candidate, failure: WorkerFailed) -> str:
        """Return why a candidate is out, its report written; raise for the reference.

        Nothing is written of a reference that failed: the next run tries it again.
        """
        reason, path = failure.reason, self._folder.of(candidate) / REPORT_FILE
        if failure.report is not None:
            report: Report = config.from_json(Report, failure.report, where="report")
            config.dump_whole(report, path)
            reason = f"{reason} Report: {path}"
            if candidate == REFERENCE_CANDIDATE:
                raise VerificationError(f"reference: {reason}", report=report)
        if candidate == REFERENCE_CANDIDATE:
            raise ExportError(f"reference: expected a model that can be exported and asked, got: "
                              f"{reason}")
        return reason

    def _judge(self) -> None:
        """Collect the answers of each, the reference's first."""
        for candidate in self._counted("asking", self._alive()):
            if self._folder.known(candidate, Answered) is not None:
                continue
            path = self._folder.of(candidate) / ANSWERS_FILE
            try:
                self._open(candidate).answer(path)
            except WorkerFailed as failure:
                self._dismiss(candidate.key)
                self._folder.learn(candidate, Answered(failed=self._reason(candidate, failure)))
                continue
            reference = self._folder.of(REFERENCE_CANDIDATE) / ANSWERS_FILE
            found = judge(read(path), read(reference), self._given.truth)
            if found.failed and candidate == REFERENCE_CANDIDATE:
                self._reason(candidate, WorkerFailed(found.failed))
            self._folder.learn(candidate, Answered(**found._asdict()))
            self._rest()

    def _alive(self) -> list[Candidate]:
        return [one.candidate for one in self.trials() if not one.failed]

    # ------------------------------------------------------------------ rounds

    def _rounds(self) -> None:
        done = self._folder.rounds()
        spent_s = sum(one.seconds for one in done)
        budget_s = self._given.budget_s
        # Whoever asks again with the same budget wants the result, not another round.
        if done and not planning.goes_on(len(done), spent_s, budget_s,
                                         planning.usual([one.seconds for one in done])):
            return
        costs, failed = self._warmed()
        least = dict.fromkeys(self._settings.batches, planning.LEAST_CALLS)
        if not done:
            planning.check_budget(budget_s, planning.round_s(costs, least, self._reopening()),
                                  len(costs))
        calls = ({int(batch): count for batch, count in done[0].calls.items()} if done
                 else planning.calls_for(costs, budget_s))
        next_s = planning.round_s(costs, calls, self._reopening())
        total = len(done) + max(1, min(planning.MOST_ROUNDS - len(done),
                                       int((budget_s - spent_s) / max(next_s, 1e-9))))
        while planning.goes_on(len(done), spent_s, budget_s, next_s):
            self._progress("timing", len(done), total)
            found = self._round(len(done), calls, failed)
            failed = {}
            self._folder.add(found)
            done.append(found)
            spent_s += found.seconds
            next_s = planning.usual([one.seconds for one in done])
        self._progress("timing", len(done), len(done))

    def _warmed(self) -> tuple[dict[str, dict[int, float]], dict[str, str]]:
        """Call each candidate a few times; return what calls cost, and who failed."""
        costs: dict[str, dict[int, float]] = {}
        failed: dict[str, str] = {}
        for candidate in self._counted("warming up", self._alive()):
            try:
                worker = self._open(candidate)
                costs[candidate.key] = {}
                for batch in self._settings.batches:
                    worker.time(batch, 0, 1)
                    began_s = self._clock()
                    worker.time(batch, 1, WARM_CALLS)
                    costs[candidate.key][batch] = (self._clock() - began_s) / WARM_CALLS
            except WorkerFailed as failure:
                self._dismiss(candidate.key)
                failed[candidate.key] = self._reason(candidate, failure)
                costs.pop(candidate.key, None)
            self._rest()
        return costs, failed

    def _round(self, number: int, calls: Mapping[int, int], failed: Mapping[str, str]) -> Round:
        """Let every candidate answer the same texts once more."""
        began_s = self._clock()
        keys = [one.key for one in self._alive() if one.key not in failed]
        times: dict[str, dict[str, Times]] = {}
        out = dict(failed)
        for key in planning.order(keys, number, self._settings.seed):
            candidate = self._by_key[key]
            try:
                times[key] = self._timed(self._open(candidate), number, calls)
            except WorkerFailed as failure:
                self._dismiss(key)
                out[key] = self._reason(candidate, failure)
                times.pop(key, None)
            self._rest()
        return Round(number=number, seconds=self._clock() - began_s, times=times, failed=out,
                     calls={str(batch): count for batch, count in calls.items()})

    def _timed(self, worker: Hired, number: int, calls: Mapping[int, int]) -> dict[str, Times]:
        found = {}
        for batch, count in calls.items():
            worker.time(batch, number * count, 1)  # caches are another candidate's by now
            seconds = worker.time(batch, number * count, count)
            found[str(batch)] = Times(median_s=statistics.median(seconds),
                                      mean_s=statistics.fmean(seconds))
        return found

    # ------------------------------------------------------------------ processes

    def _open(self, candidate: Candidate) -> Hired:
        """Return the open process of a candidate, started where it is not there."""
        key = candidate.key
        if key not in self._workers:
            began_s = self._clock()
            self._workers[key] = self._hire(self._folder.of(candidate))
            self._resident[key] = self._workers[key].open(self.version(candidate))
            self._opening[key] = self._clock() - began_s
        return self._workers[key]

    def _rest(self) -> None:
        """Let those processes go that do not fit into memory together."""
        stay = planning.staying({key: self._resident[key] for key in self._resident
                                 if key in self._by_key}, self._given.free_bytes)
        for key in [key for key in self._workers if key not in stay]:
            self._dismiss(key, forget=False)

    def _reopening(self) -> dict[str, float]:
        """Return how long each takes to open that is not open."""
        return {key: seconds for key, seconds in self._opening.items() if key not in self._workers}

    def _dismiss(self, key: str, *, forget: bool = True) -> None:
        worker = self._workers.pop(key, None)
        if worker is not None:
            worker.close()
        if forget:
            self._resident.pop(key, None)

    def _counted(self, what: str, candidates: Sequence[Candidate]) -> Iterator[Candidate]:
        for number, candidate in enumerate(candidates):
            self._progress(f"{what} {candidate.name}", number, len(candidates))
            yield candidate
        self._progress(what, len(candidates), len(candidates))


def _sweep(base_dir: Path) -> None:
    """Remove what an export left that the end of its process cut off."""
    with contextlib.suppress(ExportError):  # somebody else's is under way
        clear(base_dir)


def _size(version: Path) -> int:
    """Return the bytes of a version, but for its prepared graph, which makes loads faster.

    XLA's forms have none: with it the smallest form could be one that is not.
    """
    prepared = prepared_folder(version)
    return sum(path.stat().st_size for path in version.rglob("*")
               if path.is_file() and prepared not in path.parents)


def free_bytes(path: Path = Path("/proc/meminfo")) -> int:
    """Return the memory that processes may take; 0 where Linux does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0
