"""Our own batching end to end: what is joined, who fails, who goes alone; no TensorFlow."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.serverkit import (
    call,
    make_versions,
    predict_request,
    refused,
    running,
    uncollected,
)
from tf_infer.config import BytesConfig, ClassifierConfig, ShapeGrid
from tf_infer.errors import Cancelled, Code, InvalidRequest, ServingError
from tf_infer.manifest import ModelManifest, SignatureSpec, TensorSpec
from tf_infer.server.app import Server
from tf_infer.server.config import ModelConfig
from tf_infer.server.contracts import LoadTimes, Plan, Run
from tf_infer.server.fakes import EchoServable, signature
from tf_infer.server.pipeline import Answer, Call
from tf_infer.server.scheduler import DirectScheduler, Job, WaitingCounts
from tf_infer.server.text_scheduler import FEW, TextScheduler
from tf_infer.server.versions import ModelRef
from tf_infer.wire import methods, serving_pb2, tensors

TEXT, FLOAT = serving_pb2.DT_STRING, serving_pb2.DT_FLOAT
WAIT_S = 20
BAD = b"bad"


def spec(name: str, width: int | None = None) -> SignatureSpec:
    text = TensorSpec(name="text", dtype="string", shape=(None,))
    shape = (None,) if width == 0 else (None, width)
    return SignatureSpec(name=name, inputs=(text,), outputs=(
        TensorSpec(name="size", dtype="float32", shape=shape),))


class TextModel(EchoServable):
    """Gives the bytes of each text; a text that begins with `BAD` fails its run.

    Attributes:
        runs: rows of every run, in order.
        held: while clear, runs wait.
    """

    def __init__(self, hold: bool = False, pause_s: float = 0.0) -> None:
        one = {"text": (TEXT, (-1,))}
        super().__init__({name: signature(one, {"size": (FLOAT, (-1,))})
                          for name in ("serving_default", "other", "wide", "foreign")})
        self.manifest = ModelManifest(
            name="m", version=1, signatures=(spec("serving_default", 0), spec("other", 0),
                                             spec("wide", None)),
            task=ClassifierConfig(classes=("a", "b"), codec=BytesConfig()),
            grid=ShapeGrid(rows=(1, 4, 8), tokens=(16, 64, 256)))
        self.runs: list[list[bytes]] = []
        self.limits: list[float | None] = []
        self.pause_s = pause_s
        self.entered, self.held = threading.Event(), threading.Event()
        if not hold:
            self.held.set()

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None) -> dict[str, np.ndarray]:
        texts = inputs["text"].reshape(-1).tolist()
        self.runs.append(texts)
        self.limits.append(timeout_s)
        self.entered.set()
        assert self.held.wait(WAIT_S)
        time.sleep(self.pause_s)
        if any(text.startswith(BAD) for text in texts):
            raise InvalidRequest("text: expected good ones.")
        return {"size": np.float32([len(text) for text in texts])}


@contextmanager
def serving(tmp_path: Path, model: TextModel, **settings: Any) -> Iterator[tuple[Server, Any]]:
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path, "1"))),)
    with running(models, lambda path: (model, LoadTimes()), **settings) as (server, channel):
        yield server, channel


class Asking:
    """Requests of a test, submitted in order behind one that holds the only worker."""

    def __init__(self, server: Server, model: TextModel) -> None:
        self._server, self._model = server, model
        self.outcomes: dict[int, Any] = {}
        self.tickets: list[Any] = []
        self._ended = threading.Semaphore(0)

    def ask(self, *texts: bytes, signature: str = "serving_default",
            deadline_s: float | None = None) -> None:
        number = len(self.tickets)
        run = Run(signature, {"text": np.array(texts, object)}, ("size",))

        def done(outcome: Answer[Any] | Exception) -> None:
            self.outcomes[number] = outcome
            self._ended.release()

        self.tickets.append(self._server.pipeline.submit(Call(
            "Predict", ModelRef("m"), lambda _: Plan((run,), lambda found: found[0]["size"]),
            deadline_s), done))

    def hold(self) -> None:
        """Let the worker begin a run that waits until `release`."""
        self.ask(b"first")
        assert self._model.entered.wait(WAIT_S)

    def release(self) -> list[Any]:
        """Let all end; return values and errors in the order of asking, but for `hold`'s."""
        self._model.held.set()
        for _ in self.tickets:
            assert self._ended.acquire(timeout=WAIT_S)
        return [self.outcomes[number].value.tolist()
                if isinstance(self.outcomes[number], Answer) else self.outcomes[number]
                for number in range(1, len(self.tickets))]


@pytest.fixture
def model() -> TextModel:
    return TextModel(hold=True)


@pytest.fixture
def asking(tmp_path: Path, model: TextModel) -> Iterator[Asking]:
    with serving(tmp_path, model) as (server, _):
        yield Asking(server, model)


class ExclusiveModel(TextModel):
    exclusive = True


def test_a_version_that_computes_one_run_at_a_time_takes_the_next_batch_when_that_has_ended(
        tmp_path: Path) -> None:
    model = ExclusiveModel(hold=True)
    with serving(tmp_path, model, batch_workers=2) as (server, _):
        asking = Asking(server, model)
        asking.hold()
        asking.ask(b"1", b"22")
        time.sleep(0.1)  # in which the second worker would take it
        asking.ask(b"333")
        assert asking.release() == [[1, 2], [3]]
    assert model.runs == [[b"first"], [b"1", b"22", b"333"]]


def test_a_version_that_computes_one_run_at_a_time_does_the_next_while_callers_are_told(
        tmp_path: Path) -> None:
    model, told, second, ended = ExclusiveModel(), [False], threading.Event(), threading.Event()
    run = Run("serving_default", {"text": np.array([b"1"], object)}, ("size",))
    one = Call("Predict", ModelRef("m"), lambda _: Plan((run,), lambda found: found[0]["size"]))
    with serving(tmp_path, model, batch_workers=2) as (server, _):
        def first(outcome: object) -> None:
            server.pipeline.submit(one, lambda outcome: second.set())
            told[0] = second.wait(WAIT_S)
            ended.set()

        server.pipeline.submit(one, first)
        assert ended.wait(2 * WAIT_S) and told == [True]


class Crowd:
    """More callers of one batch than are told by the worker that ran it, and others behind them.

    Args:
        behind: how many others.

    Attributes:
        telling: set when the first of them is being told.
        next: set when one of those behind them has been answered.
        may_end: those of the batch wait for this when they are told.
        told: for each of them whether it came.
    """

    def __init__(self, server: Server, model: TextModel, *, behind: int = FEW + 1) -> None:
        self.next, self.may_end, self.told = threading.Event(), threading.Event(), [True]
        self.telling = threading.Event()
        self._all = threading.Semaphore(0)
        asking = Asking(server, model)
        asking.hold()
        for _ in range(FEW + 1):
            self._ask(server, b"short", self._tell)
        for _ in range(behind):
            self._ask(server, b"x" * 40, lambda outcome: self.next.set())
        model.held.set()

    def _ask(self, server: Server, text: bytes, done: Callable[[Any], None]) -> None:
        run = Run("serving_default", {"text": np.array([text], object)}, ("size",))
        server.pipeline.submit(Call("Predict", ModelRef("m"), lambda _: Plan(
            (run,), lambda found: found[0]["size"])), done)

    def _tell(self, outcome: object) -> None:
        self.telling.set()
        self.told.append(self.told[-1] and self.may_end.wait(WAIT_S))
        self._all.release()

    def all_told(self) -> bool:
        return all(self._all.acquire(timeout=WAIT_S) for _ in range(FEW + 1)) and all(self.told)


def test_the_only_worker_runs_the_next_batch_while_many_callers_of_the_last_are_told(
        tmp_path: Path) -> None:
    model = ExclusiveModel(hold=True)
    with serving(tmp_path, model, batch_workers=1) as (server, _):
        crowd = Crowd(server, model)
        assert crowd.next.wait(WAIT_S)
        crowd.may_end.set()
        assert crowd.all_told()
    assert [len(run) for run in model.runs] == [1, FEW + 1, FEW + 1]


@pytest.mark.parametrize(("kind", "behind"), [(ExclusiveModel, FEW), (TextModel, FEW + 1)])
def test_the_worker_tells_callers_itself_where_fewer_wait_or_another_batch_is_computed_meanwhile(
        tmp_path: Path, kind: type[TextModel], behind: int) -> None:
    model = kind(hold=True)
    with serving(tmp_path, model, batch_workers=1) as (server, _):
        crowd = Crowd(server, model, behind=behind)
        assert crowd.telling.wait(WAIT_S)
        assert not crowd.next.wait(0.1)
        assert [len(run) for run in model.runs] == [1, FEW + 1]
        crowd.may_end.set()
        assert crowd.all_told() and crowd.next.wait(WAIT_S)


def test_many_callers_are_told_though_the_scheduler_closes_meanwhile(tmp_path: Path) -> None:
    model = ExclusiveModel(hold=True)
    with serving(tmp_path, model, batch_workers=1) as (server, _):
        crowd = Crowd(server, model)
        assert crowd.next.wait(WAIT_S)
        server.schedulers.close()
        crowd.may_end.set()
        assert crowd.all_told()


def test_a_run_takes_as_long_for_each_caller_however_late_he_is_told(
        asking: Asking, model: TextModel) -> None:
    asking.hold()
    for text in (b"1", b"22", b"333"):
        asking.ask(text)
    asking.release()
    assert len({asking.outcomes[number].run_s for number in (1, 2, 3)}) == 1


def test_a_failed_batch_of_such_a_version_keeps_it_until_its_halves_have_run(
        tmp_path: Path) -> None:
    model = ExclusiveModel(hold=True, pause_s=0.01)
    with serving(tmp_path, model, batch_workers=2) as (server, _):
        asking = Asking(server, model)
        asking.hold()
        for text in (b"a", BAD, b"ccc", b"dddd", b"x" * 200):
            asking.ask(text)
        outcomes = asking.release()
    assert [outcomes[place] for place in (0, 2, 3, 4)] == [[1], [3], [4], [200]]
    assert isinstance(outcomes[1], InvalidRequest)
    assert [len(run) for run in model.runs] == [1, 4, 2, 1, 1, 2, 1]


def test_other_versions_are_asked_while_one_that_computes_a_run_at_a_time_is_busy(
        tmp_path: Path) -> None:
    busy, other = ExclusiveModel(hold=True), TextModel()
    folders = {name: str(make_versions(tmp_path / name, "1")) for name in ("m", "n")}
    models = tuple(ModelConfig(name=name, base_path=path) for name, path in folders.items())
    with running(models, lambda path: (busy if path.parent.name == "m" else other, LoadTimes()),
                 batch_workers=2) as (server, _):
        asking, ended = Asking(server, busy), threading.Event()
        asking.hold()
        asking.ask(b"22")
        run = Run("serving_default", {"text": np.array([b"333"], object)}, ("size",))
        server.pipeline.submit(Call("Predict", ModelRef("n"), lambda _: Plan(
            (run,), lambda found: found[0]["size"]), None), lambda outcome: ended.set())
        assert ended.wait(WAIT_S)
        assert other.runs == [[b"333"]] and busy.runs == [[b"first"]]
        assert asking.release() == [[2]]


def test_what_waits_behind_a_busy_worker_runs_together_and_each_gets_its_rows(
        asking: Asking, model: TextModel) -> None:
    asking.hold()
    asking.ask(b"1", b"22")
    asking.ask(b"333")
    asking.ask(b"4444")
    assert asking.release() == [[1, 2], [3], [4]]
    assert model.runs == [[b"first"], [b"1", b"22", b"333", b"4444"]]


def test_texts_of_other_lengths_and_other_signatures_have_batches_of_their_own(
        asking: Asking, model: TextModel) -> None:
    asking.hold()
    for text in (b"short", b"x" * 200, b"brief", b"y" * 200):
        asking.ask(text)
    asking.ask(b"short", signature="other")
    assert asking.release() == [[5], [200], [5], [200], [5]]
    assert [[len(text) for text in run] for run in model.runs] == [[5], [5, 5], [200, 200], [5]]


def test_a_bad_row_fails_alone(asking: Asking, model: TextModel) -> None:
    asking.hold()
    for text in (b"a", b"bb", BAD, b"dddd", b"e"):
        asking.ask(text)
    outcomes = asking.release()
    assert [outcomes[i] for i in (0, 1, 3, 4)] == [[1], [2], [4], [1]]
    assert isinstance(outcomes[2], InvalidRequest)
    assert [BAD] in model.runs


def test_one_who_leaves_the_queue_is_never_run_and_frees_his_place(
        asking: Asking, model: TextModel) -> None:
    asking.hold()
    asking.ask(b"gone")
    asking.ask(b"stays")
    assert asking._server.schedulers.waiting.count("m") == 2
    assert asking.tickets[1].give_up()
    assert asking._server.schedulers.waiting.count("m") == 1
    assert not asking.tickets[1].give_up()
    outcomes = asking.release()
    assert isinstance(outcomes[0], Cancelled)
    assert outcomes[1] == [5]
    assert model.runs[1:] == [[b"stays"]]


def test_who_leaves_during_his_run_is_answered_at_once_and_his_neighbour_later(
        asking: Asking, model: TextModel) -> None:
    asking.hold()
    assert asking.tickets[0].give_up()
    assert isinstance(asking.outcomes[0], Cancelled)
    asking.ask(b"next")
    assert asking.release() == [[4]]


def test_a_deadline_that_has_passed_is_not_run_and_a_batch_gets_the_longest_time_left(
        asking: Asking, model: TextModel) -> None:
    asking.hold()
    now_s = time.monotonic()
    asking.ask(b"late", deadline_s=now_s - 1)
    asking.ask(b"soon", deadline_s=now_s + 30)
    asking.ask(b"then", deadline_s=now_s + 60)
    outcomes = asking.release()
    assert outcomes[0].code is Code.DEADLINE_EXCEEDED
    assert outcomes[1:] == [[4], [4]]
    assert model.runs[1:] == [[b"soon", b"then"]]
    assert model.limits[1] is not None
    assert 30 < model.limits[1] <= 60


@pytest.mark.parametrize("name", ["wide", "foreign"])
def test_what_cannot_be_joined_unseen_runs_alone(
        asking: Asking, model: TextModel, name: str) -> None:
    model.held.set()
    for text in (b"a", b"b", b"c"):
        asking.ask(text, signature=name)
    asking._model.held.set()
    for _ in range(3):
        assert asking._ended.acquire(timeout=WAIT_S)
    assert sorted(model.runs) == [[b"a"], [b"b"], [b"c"]]


def test_an_input_of_another_rank_runs_alone_so_that_the_runtime_tells(
        tmp_path: Path, model: TextModel) -> None:
    with serving(tmp_path, model) as (server, channel):
        asking = Asking(server, model)
        asking.hold()
        asking.ask(b"a")
        asked = channel.unary_unary(methods.PREDICT.path).future(predict_request(
            text=np.array([[b"odd"]], object)).SerializeToString())
        while len(model.runs) < 2:
            time.sleep(0.005)
        asking.release()
        asked.result(WAIT_S)
    assert sorted(model.runs) == [[b"a"], [b"first"], [b"odd"]]


def test_a_full_queue_refuses_early_with_RESOURCE_EXHAUSTED(
        tmp_path: Path, model: TextModel) -> None:
    with serving(tmp_path, model, max_queued=2) as (server, channel):
        asking = Asking(server, model)
        asking.hold()
        asking.ask(b"a")
        asking.ask(b"b")
        code, text = refused(channel, methods.PREDICT, predict_request(text=["c"]))
        assert (code, "queue of model m is full" in text) == ("RESOURCE_EXHAUSTED", True)
        assert asking.release() == [[1], [1]]
        call(channel, methods.PREDICT, predict_request(text=["c"]))


def test_without_a_scheduler_every_request_runs_alone(tmp_path: Path, model: TextModel) -> None:
    with serving(tmp_path, model, scheduler="none", threads=1) as (server, _):
        asking = Asking(server, model)
        asking.hold()
        asking.ask(b"a")
        asking.ask(b"b")
        asking.release()
    assert model.runs[1:] == [[b"a"], [b"b"]]


def test_many_callers_at_once_never_get_another_ones_answer(tmp_path: Path) -> None:
    model = TextModel(pause_s=0.005)
    with serving(tmp_path, model, batch_workers=2) as (_, channel):
        ask = channel.unary_unary(methods.PREDICT.path,
                                  response_deserializer=methods.PREDICT.response.FromString)

        def one(number: int) -> bool:
            sizes = [1 + (number * 7 + row) % 250 for row in range(1 + number % 3)]
            texts = ["x" * size for size in sizes]
            if number % 11 == 0:
                texts[0] = BAD.decode() + texts[0]
                code = ask.future(predict_request(text=texts).SerializeToString()).code()
                return code.name == "INVALID_ARGUMENT"
            response = ask(predict_request(text=texts).SerializeToString(), timeout=WAIT_S)
            return tensors.to_array(response.outputs["size"]).tolist() == sizes

        with ThreadPoolExecutor(32) as pool:
            assert all(pool.map(one, range(600)))
    assert max(map(len, model.runs)) > 3


class Failing(TextModel):
    """Fails as `fault` does."""

    def __init__(self, fault: Callable[[], None]) -> None:
        super().__init__(hold=True)
        self.fault = fault

    def run(self, *arguments: Any, **more: Any) -> dict[str, np.ndarray]:
        try:
            return super().run(*arguments, **more)
        except InvalidRequest:
            self.fault()
            raise


def translated() -> None:
    try:
        raise KeyError("text")
    except KeyError as error:
        raise InvalidRequest("text: expected good ones.") from error


def broken() -> None:
    raise ValueError


@pytest.mark.parametrize("fault", [lambda: None, translated, broken])
@pytest.mark.parametrize("texts", [(BAD,), (b"good", BAD), (BAD, b"good", b"good", BAD, BAD)])
def test_what_a_failed_batch_held_goes_though_its_callers_keep_the_error(
        texts: tuple[bytes, ...], fault: Callable[[], None]) -> None:
    model, counts, ended = Failing(fault), WaitingCounts(), threading.Semaphore(0)
    scheduler = TextScheduler(1, counts, DirectScheduler(1, 1, counts))
    told: list[Any] = []
    held: list[weakref.ref[Any]] = []

    def tell(job: Job, outcome: Any) -> None:
        told.append(outcome)
        ended.release()

    def ask(text: bytes) -> None:
        run = Run("serving_default", {"text": np.array([text], object)}, ("size",))
        held.append(weakref.ref(run.inputs["text"]))
        scheduler.submit(Job("m", model, run, None, tell))

    try:
        with uncollected():
            ask(b"first")
            assert model.entered.wait(WAIT_S)
            for text in texts:
                ask(text)
            model.held.set()
            assert all(ended.acquire(timeout=WAIT_S) for _ in held)
            end_s = time.monotonic() + WAIT_S
            while any(one() is not None for one in held) and time.monotonic() < end_s:
                time.sleep(0.01)
            assert [one() for one in held] == [None] * len(held)
    finally:
        scheduler.close()
    assert sum(isinstance(one, ServingError) for one in told) == texts.count(BAD)


def test_a_worker_that_waits_keeps_no_version_that_nobody_else_has() -> None:
    counts, gone = WaitingCounts(), threading.Event()
    scheduler = TextScheduler(1, counts, DirectScheduler(1, 1, counts))

    def ask() -> None:
        model, ended = TextModel(), threading.Event()
        weakref.finalize(model, gone.set)
        run = Run("serving_default", {"text": np.array([b"1"], object)}, ("size",))
        scheduler.submit(Job("m", model, run, None, lambda job, outcome: ended.set()))
        assert ended.wait(WAIT_S) and model.runs

    try:
        with uncollected():
            ask()
            assert gone.wait(WAIT_S)
    finally:
        scheduler.close()
