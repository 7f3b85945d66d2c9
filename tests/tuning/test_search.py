"""The search with processes that are none: what is built once, asked in turns, and done again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tf_infer.config import to_json
from tf_infer.errors import ConfigError, ExportError, VerificationError
from tf_infer.manifest import OutputDifference, PathReport, Report
from tf_infer.optimize.plan import OptimizationPlan
from tf_infer.prepared import prepared_folder
from tf_infer.tuning import judge
from tf_infer.tuning.build import BuildOrder
from tf_infer.tuning.candidates import REFERENCE_CANDIDATE, Candidate
from tf_infer.tuning.process import Hired, WorkerFailed
from tf_infer.tuning.search import REPORT_FILE, Given, Search, free_bytes
from tf_infer.tuning.state import Settings, open_folder
from tf_infer.tuning.trial import Trial

FLOAT, INT8 = (Candidate(plan=OptimizationPlan(precision=one))  # type: ignore[arg-type]
               for one in ("float32", "int8"))
CANDIDATES = (REFERENCE_CANDIDATE, FLOAT, INT8)
SPEED = {REFERENCE_CANDIDATE.key: 4.0, FLOAT.key: 2.0, INT8.key: 1.0}  # seconds of a text
REPORT = Report(reference="eager", paths=(PathReport(
    path="graph", atol=0.1, rtol=0.0, samples=1, seconds=0.0, differences=(OutputDifference(
        signature="serving_default", output="logits", dtype="float32", max_abs=1.0, max_rel=1.0,
        mismatches=1, elements=2, first_sample=0),)),))


@dataclass
class World:
    """A machine whose time passes by what is done on it, and that can fail at any of it.

    Attributes:
        events: all that was done, in order: (candidate's key, what).
        faults: (key, what) -> raised there, each once.
    """

    now_s: float = 0.0
    events: list[tuple[str, str]] = field(default_factory=list)
    faults: dict[tuple[str, str], BaseException] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)
    most_open: int = 0
    logits: dict[str, np.ndarray] = field(default_factory=dict)
    bytes: int = 100

    def hire(self, folder: Path) -> Hired:
        return FakeProcess(self, folder.name)

    def did(self, what: str, key: str = "") -> list[tuple[str, str]]:
        return [one for one in self.events if one[1] == what and key in ("", one[0])]


class FakeProcess:
    """A process of the world; see `process.Hired`."""

    def __init__(self, world: World, key: str) -> None:
        self.world, self.key = world, key

    def _do(self, what: str, seconds: float) -> None:
        self.world.events.append((self.key, what))
        self.world.now_s += seconds
        fault = self.world.faults.pop((self.key, what), None)
        if fault is not None:
            raise fault

    def build(self, order: BuildOrder) -> Path:
        assert order.candidate.key == self.key
        self._do("export" if order.whole else "build", 10.0)
        version = Path(order.base_dir) / "1"
        version.mkdir(parents=True)
        (version / "saved_model.pb").write_bytes(b"x" * int(100 * SPEED[self.key]))
        if self.key == FLOAT.key:  # not every form has one
            prepared_folder(version).mkdir(parents=True)
            (prepared_folder(version) / "graph.pb").write_bytes(b"x" * 50)
        return version

    def open(self, version: Path) -> int:
        assert (version / "saved_model.pb").is_file()
        self._do("open", 5.0)
        self.world.open.add(self.key)
        self.world.most_open = max(self.world.most_open, len(self.world.open))
        return self.world.bytes

    def answer(self, into: Path) -> None:
        assert self.key in self.world.open
        self._do("answer", 1.0)
        logits = self.world.logits.get(self.key, np.array([[1.0, 0.0], [0.0, 1.0]]))
        judge.save({"logits": logits, "labels": np.array(list("ab"))[logits.argmax(axis=1)]}, into)

    def time(self, batch: int, start: int, calls: int) -> list[float]:
        assert self.key in self.world.open
        self._do("time", calls * batch * SPEED[self.key])
        return [SPEED[self.key]] * calls

    def close(self) -> None:
        self.world.open.discard(self.key)


def settings(*candidates: Candidate, seed: int = 0) -> Settings:
    return Settings(model="m", texts="t", machine={}, seed=seed, metric="accuracy", batches=(1, 8),
                    new_tokens=0, answered=2, candidates=candidates or CANDIDATES)


def search(world: World, folder: Path, *, budget_s: float = 20_000.0, free: int = 0,
           told: Callable[[str, int, int], None] = lambda what, done, total: None,
           **changes: Any) -> list[Trial]:
    given = Given(order=BuildOrder(model="m", candidate=REFERENCE_CANDIDATE, base_dir="",
                                   name="intents", texts="t"),
                  truth=("a", "b"), budget_s=budget_s, free_bytes=free)
    with open_folder(folder, settings(**changes)) as (held, _):
        return Search(settings(**changes), held, given, world.hire, progress=told,
                      clock=lambda: world.now_s).run()


def test_each_is_built_once_and_all_are_timed_in_turns(tmp_path: Path) -> None:
    world = World()
    found = search(world, tmp_path)
    assert [one.name for one in found] == ["reference", "plan float32", "plan int8"]
    assert [one.size_bytes for one in found] == [400, 200, 100]
    assert [one.metric for one in found] == [1.0, 1.0, 1.0]
    assert len(world.did("build")) == len(world.did("answer")) == len(world.did("open")) == 3
    rounds = {len(one.rounds[batch]) for one in found for batch in (1, 8)}
    assert len(rounds) == 1 and rounds.pop() >= 5
    assert [one.rounds[8][0].median_s for one in found] == [4.0, 2.0, 1.0]
    assert not world.open


def test_time_that_the_budget_gives_is_not_overdrawn(tmp_path: Path) -> None:
    world = World()
    search(world, tmp_path, budget_s=5_000.0)
    before = world.events.index(world.did("time")[0])
    warm = 3 * 2 * 2  # a first and a timed call of each batch size
    spent_s = world.now_s - 10.0 * 3 - 5.0 * 3 - 1.0 * 3 - sum(SPEED.values()) * (9 * 3)
    assert len(world.did("time")) > warm and before > 0
    assert spent_s <= 5_000.0 * 1.1


def test_turns_alternate(tmp_path: Path) -> None:
    world = World()
    search(world, tmp_path)
    keys = [key for key, what in world.events if what == "time"][12:]
    rounds = [tuple(dict.fromkeys(keys[start:start + 12])) for start in range(0, len(keys), 12)]
    assert all(len(one) == 3 for one in rounds)
    assert len(set(rounds)) > 2


@pytest.mark.parametrize("place", range(0, 60, 3))
def test_a_search_killed_anywhere_goes_on_and_loses_one_round_at_most(
        place: int, tmp_path: Path) -> None:
    whole = World()
    wanted = search(whole, tmp_path / "whole")
    world, count = World(), 0

    class Killed(BaseException):
        pass

    def hire(folder: Path) -> Hired:
        process = FakeProcess(world, folder.name)
        step = process._do

        def counted(what: str, seconds: float) -> None:
            nonlocal count
            count += 1
            step(what, seconds)
            if count == place + 1:
                raise Killed

        process._do = counted  # type: ignore[method-assign]
        return process

    broken = World(events=world.events)
    broken.hire = hire  # type: ignore[method-assign]
    with pytest.raises(Killed):
        search(broken, tmp_path / "cut")
    before = list(world.events)
    found = search(world, tmp_path / "cut")
    assert [one.name for one in found] == [one.name for one in wanted]
    assert [one.metric for one in found] == [1.0, 1.0, 1.0]
    assert [one.rounds[1][0] for one in found] == [one.rounds[1][0] for one in wanted]
    twice = [key for key, _ in world.did("build")]
    assert len(twice) <= 3 + (before[-1][1] == "build")
    assert len({len(one.rounds[8]) for one in found}) == 1


def test_a_finished_search_is_told_again_without_any_process(tmp_path: Path) -> None:
    world = World()
    first = search(world, tmp_path)
    done = len(world.events)
    assert search(world, tmp_path) == first
    assert len(world.events) == done


def test_more_budget_adds_rounds(tmp_path: Path) -> None:
    world = World()
    first = search(world, tmp_path, budget_s=1_500.0)
    more = search(world, tmp_path, budget_s=6_000.0)
    assert len(more[0].rounds[1]) > len(first[0].rounds[1])
    assert more[0].rounds[1][:len(first[0].rounds[1])] == first[0].rounds[1]
    assert len(world.did("build")) == 3


def test_a_budget_too_small_for_one_round_is_refused_and_what_is_built_stays(
        tmp_path: Path) -> None:
    world = World()
    with pytest.raises(ConfigError, match="--budget: expected at least 189 s, which one round"):
        search(world, tmp_path, budget_s=100.0)
    assert not world.open
    search(world, tmp_path, budget_s=300.0)
    assert len(world.did("build")) == 3


@pytest.mark.parametrize("what", ["build", "open", "answer", "time"])
def test_a_candidate_that_fails_is_a_row_and_not_the_end(what: str, tmp_path: Path) -> None:
    world = World(faults={(INT8.key, what): WorkerFailed("its process ended with SIGSEGV")})
    found = search(world, tmp_path)
    assert [one.failed for one in found] == ["", "", "its process ended with SIGSEGV"]
    assert len(found[0].rounds[1]) == len(found[1].rounds[1]) > 0
    asked = [event for event in world.events[world.events.index((INT8.key, what)) + 1:]
             if event[0] == INT8.key]
    assert asked == []
    again = World()
    assert search(again, tmp_path)[2].failed == "its process ended with SIGSEGV"
    assert not again.did("build")


def test_a_candidate_that_dies_in_a_late_round_keeps_what_it_had(tmp_path: Path) -> None:
    world = World()
    turns = 0
    step = FakeProcess._do

    def failing(process: FakeProcess, what: str, seconds: float) -> None:
        nonlocal turns
        turns += what == "time" and process.key == INT8.key
        if turns == 4 + 8 + 1:  # warm-up, two rounds
            world.faults[INT8.key, "time"] = WorkerFailed("gone")
        step(process, what, seconds)

    class Failing(FakeProcess):
        _do = failing

    world.hire = lambda folder: Failing(world, folder.name)  # type: ignore[method-assign]
    found = search(world, tmp_path)
    assert [one.failed for one in found] == ["", "", "gone"]
    assert len(found[2].rounds[1]) == 2 < len(found[0].rounds[1])


def test_a_broken_tolerance_is_told_with_the_path_of_its_report(tmp_path: Path) -> None:
    failure = WorkerFailed("logits differ.", to_json(REPORT))
    world = World(faults={(INT8.key, "build"): failure})
    found = search(world, tmp_path)
    path = tmp_path / "candidates" / INT8.key / REPORT_FILE
    assert found[2].failed == f"logits differ. Report: {path}"
    assert '"max_abs": 1.0' in path.read_text()
    world = World(faults={(REFERENCE_CANDIDATE.key, "build"): failure})
    with pytest.raises(VerificationError, match=r"reference: logits differ\. Report: ") as caught:
        search(world, tmp_path / "other")
    assert caught.value.report == REPORT


def test_without_a_reference_there_is_no_search_and_the_next_run_tries_again(
        tmp_path: Path) -> None:
    for what in ("build", "open", "answer"):
        world = World(faults={(REFERENCE_CANDIDATE.key, what): WorkerFailed("no room.")})
        with pytest.raises(ExportError, match=r"reference: expected a model that can be exported "
                                              r"and asked, got: no room\."):
            search(world, tmp_path / what)
        assert search(World(), tmp_path / what)[0].failed == ""


def test_nan_is_named_and_puts_a_candidate_out(tmp_path: Path) -> None:
    broken = np.array([[1.0, 0.0], [0.0, np.nan]])
    found = search(World(logits={INT8.key: broken}), tmp_path)
    assert found[2].failed == "logits: expected numbers, got NaN for text 2"
    with pytest.raises(ExportError, match="logits: expected numbers, got NaN for text 2"):
        search(World(logits={REFERENCE_CANDIDATE.key: broken}), tmp_path / "other")


def test_answers_are_held_against_the_references(tmp_path: Path) -> None:
    moved = np.array([[1.0, 1.25], [0.0, 1.0]])
    found = search(World(logits={INT8.key: moved}), tmp_path)
    assert [(one.worst, one.metric) for one in found] == [(0.0, 1.0), (0.0, 1.0), (1.25, 0.5)]


def test_processes_that_do_not_fit_into_memory_are_opened_again(tmp_path: Path) -> None:
    world = World()
    found = search(world, tmp_path, free=2 * 200)
    rounds = len(found[0].rounds[1])
    assert world.most_open == 3  # two stay, and the one that is asked
    assert len(world.did("open")) > 3 + rounds // 2
    assert [one.rounds[8][0].median_s for one in found] == [4.0, 2.0, 1.0]


def test_the_chosen_form_is_exported_whole_with_what_was_told(tmp_path: Path) -> None:
    world, orders = World(), []
    build = FakeProcess.build

    class Watched(FakeProcess):
        def build(self, order: BuildOrder) -> Path:
            orders.append(order)
            return build(self, order)

    world.hire = lambda folder: Watched(world, folder.name)  # type: ignore[method-assign]
    given = Given(order=BuildOrder(model="m", candidate=REFERENCE_CANDIDATE, base_dir="",
                                   name="intents", texts="t"), truth=None, budget_s=1.0)
    with open_folder(tmp_path / "s", settings()) as (folder, _):
        found = Search(settings(), folder, given, world.hire)
        version = found.export(INT8, tmp_path / "saved", {"chosen": "plan int8"}, tmp_path / "r")
        assert version == tmp_path / "saved" / "1"
        assert orders[0].whole and orders[0].candidate == INT8
        assert orders[0].search == {"chosen": "plan int8"} and orders[0].name == "intents"
        world.faults[INT8.key, "export"] = WorkerFailed("logits differ.", to_json(REPORT))
        with pytest.raises(VerificationError, match=r"plan int8: logits differ\. Nothing was "
                                                    r"exported\. Report: .*/r"):
            found.export(INT8, tmp_path / "other", {}, tmp_path / "r")
        assert '"max_abs": 1.0' in (tmp_path / "r").read_text()
        world.faults[INT8.key, "export"] = WorkerFailed("a full disk.")
        with pytest.raises(ExportError, match="plan int8: expected to be exported, got: a full"):
            found.export(INT8, tmp_path / "other", {}, tmp_path / "r")


@pytest.mark.parametrize("what", ["build", "export"])
def test_ctrl_c_in_the_middle_leaves_no_half_of_a_version(what: str, tmp_path: Path) -> None:
    class Interrupted(FakeProcess):
        def build(self, order: BuildOrder) -> Path:
            if what == "build" or order.whole:
                (Path(order.base_dir) / ".tmp-1" / "1").mkdir(parents=True)
                raise KeyboardInterrupt
            return super().build(order)

    world = World()
    world.hire = lambda folder: Interrupted(world, folder.name)  # type: ignore[method-assign]
    given = Given(order=BuildOrder(model="m", candidate=REFERENCE_CANDIDATE, base_dir="",
                                   name="intents", texts="t"), truth=("a", "b"), budget_s=300.0)
    with open_folder(tmp_path / "s", settings()) as (folder, _):
        found = Search(settings(), folder, given, world.hire, clock=lambda: world.now_s)
        with pytest.raises(KeyboardInterrupt):
            found.run()
            found.export(INT8, tmp_path / "saved", {}, tmp_path / "r")
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".tmp-")]
    assert not world.open


def test_partly_labelled_texts_are_judged_by_those_that_are(tmp_path: Path) -> None:
    world = World(logits={INT8.key: np.array([[1.0, 0.0], [1.0, 0.0]])})
    given = Given(order=BuildOrder(model="m", candidate=REFERENCE_CANDIDATE, base_dir="",
                                   name="intents", texts="t"), truth=("a", None), budget_s=300.0)
    for _ in range(2):  # the second time from disk
        with open_folder(tmp_path, settings()) as (folder, _):
            found = Search(settings(), folder, given, world.hire, clock=lambda: world.now_s).run()
        assert [one.metric for one in found] == [1.0, 1.0, 1.0]
        assert [one.agreement for one in found] == [1.0, 1.0, 0.5]


def test_how_far_it_is_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    search(World(), tmp_path, told=lambda *one: told.append(one))
    assert told[0] == ("building reference", 0, 3)
    assert ("building", 3, 3) in told and ("asking plan int8", 2, 3) in told
    timing = [one for one in told if one[0] == "timing"]
    assert [one[1] for one in timing] == list(range(len(timing)))
    assert timing[-1][1] == timing[-1][2]


def test_the_free_memory_is_read(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       100 kB\nMemAvailable:    50 kB\n")
    assert free_bytes(path) == 50 * 1024
    assert free_bytes(tmp_path / "none") == 0
