"""Runs that end long before their deadline are done by the thread that asks for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from tests.server.serverkit import however_long  # noqa: E402
from tf_infer.config import ClassifierConfig, ShapeGrid  # noqa: E402
from tf_infer.errors import InvalidRequest  # noqa: E402
from tf_infer.manifest import ModelManifest, SignatureSpec, TensorSpec  # noqa: E402
from tf_infer.server import denormals, servable  # noqa: E402
from tf_infer.server.contracts import Run  # noqa: E402
from tf_infer.server.cpus import Behind  # noqa: E402
from tf_infer.server.metrics import Metrics  # noqa: E402
from tf_infer.server.own_thread import slowest, sure  # noqa: E402
from tf_infer.server.quick_graph import CALLERS_THREAD  # noqa: E402
from tf_infer.server.quick_runs import FAR_S  # noqa: E402
from tf_infer.server.servable import SavedModelServable  # noqa: E402

ROWS = 16
OURS = ModelManifest(name="m", version=1, signatures=(), grid=ShapeGrid(rows=(1, ROWS)),
                     compiled="none", task=ClassifierConfig(classes=("a", "b")))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = tf.Module()
    function = tf.function(lambda x: {"y": x * 2.0}, input_signature=[
        tf.TensorSpec([None], tf.float32, name="x")])
    folder = tmp_path_factory.mktemp("model") / "1"
    tf.saved_model.save(module, str(folder), signatures={
        "serving_default": function.get_concrete_function()})
    return folder


@pytest.fixture
def loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SavedModelServable]:
    monkeypatch.setattr(servable.cpus, "usable", lambda **_: 2)
    one = SavedModelServable(path)
    one.manifest = OURS
    yield one
    one.close()


def here(monkeypatch: pytest.MonkeyPatch, one: SavedModelServable, *, rows: int = 1,
         timeout_s: float | None = None) -> bool:
    """Run once; return whether the own thread did it."""
    seen: list[bool] = []
    make = servable._run_options

    def options(milliseconds: int, pool: int = 0, **more: Any) -> Any:
        seen.append(pool == CALLERS_THREAD)
        return make(milliseconds, pool, **more)

    with monkeypatch.context() as patched:
        patched.setattr(servable, "_run_options", options)
        found = one.run("serving_default", {"x": np.ones(rows, np.float32)}, outputs=("y",),
                        timeout_s=timeout_s)
    np.testing.assert_array_equal(found["y"], np.full(rows, 2, np.float32))
    return seen == [True]


def test_the_first_runs_are_the_pools_and_later_ones_are_the_own_threads(
        loaded: SavedModelServable, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [here(monkeypatch, loaded) for _ in range(4)] == [False, False, True, True]
    assert here(monkeypatch, loaded, rows=ROWS, timeout_s=60)


def test_a_run_that_its_deadline_may_have_to_stop_is_the_pools(
        loaded: SavedModelServable, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, loaded)
    loaded._slowest_s["serving_default"] = 1.0
    assert not here(monkeypatch, loaded, timeout_s=9.0)
    assert here(monkeypatch, loaded, timeout_s=11.0)


@pytest.mark.parametrize("behind", [False, True])
def test_what_the_own_thread_waits_for_is_no_time_of_its_run(
        loaded: SavedModelServable, monkeypatch: pytest.MonkeyPatch, *, behind: bool) -> None:
    for _ in range(3):
        here(monkeypatch, loaded)
    run, held_up_s = loaded._run, 0.3

    def late(*arguments: Any, **named: Any) -> Any:
        time.sleep(held_up_s)
        return run(*arguments, **named)

    monkeypatch.setattr(loaded, "_run", late)
    loaded._slowest_s["serving_default"] = 0.001
    loaded._behind = servable.cpus.Behind() if behind else None
    assert here(monkeypatch, loaded)
    # A thread that does runs for another says nothing of how long that one computes.
    assert (loaded._slowest_s["serving_default"] >= held_up_s) is behind


def test_more_rows_than_the_grid_has_are_the_pools_and_say_nothing_of_others(
        loaded: SavedModelServable, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not here(monkeypatch, loaded, rows=ROWS + 1)
    assert not loaded._slowest_s
    for _ in range(2):
        here(monkeypatch, loaded)
    assert not here(monkeypatch, loaded, rows=ROWS + 1)


def test_first_runs_of_models_of_others_and_runs_on_many_cpus_are_the_pools(
        path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus, manifest in ((2, None), (16, OURS)):
        monkeypatch.setattr(servable.cpus, "usable", lambda cpus=cpus, **_: cpus)
        one = SavedModelServable(path)
        one.manifest = manifest
        assert [here(monkeypatch, one) for _ in range(3)] == [False] * 3
        one.close()


def test_a_batch_of_one_who_is_alone_is_done_in_two_halves_once_it_is_sure(
        path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Runs(Metrics):
        count = 0

        def graph_run(self, seconds: float) -> None:
            self.count += 1

    monkeypatch.setattr(servable.cpus, "usable", lambda **_: 2)
    runs, x = Runs(page=False), np.arange(ROWS, dtype=np.float32)
    one = SavedModelServable(path, metrics=runs)
    one.manifest = replace(OURS, signatures=(SignatureSpec(
        name="serving_default", inputs=(TensorSpec(name="x", dtype="float32", shape=(None,)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(None,)),)),))

    def counted(**given: Any) -> int:
        before = runs.count
        found = one.run("serving_default", {"x": x}, outputs=("y",), timeout_s=None, **given)
        np.testing.assert_array_equal(found["y"], 2 * x)
        return runs.count - before

    one.halves.wanted = True
    assert [counted() for _ in range(4)] == [1, 1, 2, 2]  # the first two are the pool's
    halves, busy_s = one.halves.run, 100.0
    with monkeypatch.context() as patched:  # a deadline is met by what both threads compute
        patched.setattr(one.halves, "run", lambda *given: (halves(*given)[0], busy_s))
        assert counted() == 2
    assert one._slowest_s["serving_default"] >= busy_s
    with one.halves.entered():
        assert counted() == 1
    one.halves.wanted = False
    assert counted() == 1
    one.close()


class Kinds(tf.Module):
    """Signatures whose runs take as long each time, and some whose runs may not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable(tf.ones((3, 2)))

    def graphs(self) -> dict[str, Any]:
        def of(function: Any, dtype: Any = tf.float32) -> Any:
            return tf.function(function).get_concrete_function(
                x=tf.TensorSpec([None, 3], dtype, name="x"))

        def dense(x: Any) -> dict[str, Any]:
            return {"y": tf.nn.relu(x @ self.weight) + 1.0}

        def twice(x: Any) -> dict[str, Any]:
            y = tf.reduce_sum(x, axis=1)
            return {"y": y, "z": y, "word": tf.constant(b"word")}

        def counted(x: Any) -> dict[str, Any]:
            return {"y": tf.while_loop(lambda i, y: i < x[0, 0], lambda i, y: (i + 1, y + 1),
                                       (0.0, x))[1]}

        def made(x: Any) -> dict[str, Any]:
            return {"y": tf.range(x[0, 0])}

        def same(x: Any) -> dict[str, Any]:
            return {"y": tf.identity(x)}

        def shaped(x: Any) -> dict[str, Any]:
            return {"y": tf.reshape(x, [tf.cast(tf.reduce_max(x), tf.int32)])}

        return {"serving_default": of(dense), "twice": of(twice), "shaped": of(shaped),
                "loop": of(counted), "made": of(made), "text": of(same, tf.string)}


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SavedModelServable]:
    however_long(monkeypatch)
    module = Kinds()
    tf.saved_model.save(module, str(tmp_path / "1"), signatures=module.graphs())
    one = SavedModelServable(tmp_path / "1")
    yield one
    one.close()


def test_runs_that_take_next_to_nothing_are_found_by_graph_and_count(
        one: SavedModelServable) -> None:
    def quick(signature: str, x: Any, *, runs: int = 50) -> bool:
        for _ in range(runs):
            one.run(signature, {"x": x}, outputs=("y",), timeout_s=None)
        return one.quick(Run(signature, {"x": x}, ("y",)), None) is not None

    x = np.ones((1, 3), np.float32)
    assert not quick("serving_default", x, runs=1)
    assert quick("serving_default", x)
    np.testing.assert_array_equal(
        one.run("serving_default", {"x": x}, outputs=("y",), timeout_s=1.0)["y"], [[4.0, 4.0]])
    assert quick("twice", x)
    names = ("y", "word", "z")
    for _ in range(20):
        found = one.run("twice", {"x": x}, outputs=names, timeout_s=1.0)
    assert one._calls.of("twice", {"x": x}, names) is not None
    assert {name: value.tolist() for name, value in found.items()} == {
        "y": [3.0], "word": b"word", "z": [3.0]}
    assert not one.quick(Run("twice", {"x": x}, names), FAR_S)
    with pytest.raises(InvalidRequest, match="float"):  # another kind of run, so the run call's
        one.run("twice", {"x": x.astype(np.int32)}, outputs=names, timeout_s=None)
    assert quick("shaped", x * 3)
    texts = []
    for rows in (1, 2):  # of two rows none has been seen, so it is the run call's
        with pytest.raises(InvalidRequest) as caught:
            one.run("shaped", {"x": np.full((rows, 3), 2, np.float32)}, outputs=("y",),
                    timeout_s=None)
        texts.append(caught.value.details.replace(f"{3 * rows} values", "some values"))
    assert texts[0] == texts[1] and "requested shape has 2" in texts[0]
    assert not quick("loop", x) and not quick("made", x)
    assert not quick("text", np.array([["a"] * 3], object))


def test_a_model_of_ours_is_not_looked_at(loaded: SavedModelServable) -> None:
    run = Run("serving_default", {"x": np.ones(1, np.float32)}, ("y",))
    for _ in range(50):
        loaded.run(run.signature, run.inputs, outputs=run.outputs, timeout_s=None)
    assert not loaded.quick(run, None)


@pytest.mark.parametrize("slowest_s, timeout_s, expected", [
    (None, None, False), (None, 9.0, False), (0.0, None, False), (1.0, None, True),
    (1.0, 10.0, False), (1.0, 10.1, True)])
def test_a_deadline_is_far_where_it_is_ten_times_the_slowest_run_away(
        slowest_s: float | None, timeout_s: float | None, *, expected: bool) -> None:
    assert sure(slowest_s, timeout_s) is expected


def test_the_slowest_run_is_not_the_first_and_is_forgotten_in_thousands() -> None:
    seen = slowest(None, 2.0)
    assert seen == 0.0
    seen = slowest(slowest(seen, 0.1), 0.5)
    assert seen == 0.5
    for _ in range(3000):
        seen = slowest(seen, 0.1)
    assert seen == 0.1


@pytest.mark.skipif(not denormals.KNOWN, reason="another C library or processor")
def test_denormal_numbers_are_zero_whoever_does_the_run(one: SavedModelServable) -> None:
    """As in TensorFlow's own threads; an answer does not depend on how often it was asked for."""
    x = np.full((1, 3), 1e-40, np.float32)

    def asked() -> float:
        y = one.run("twice", {"x": x}, outputs=("y",), timeout_s=None)["y"]
        return float(y[0])

    assert asked() == 0.0
    one._behind = Behind()
    assert asked() == 0.0
    one.loaded()
    assert {asked() for _ in range(50)} == {0.0}
    quick = one.quick(Run("twice", {"x": x}, ("y",)), None)
    assert quick is not None and quick()["y"].tolist() == [0.0]
    assert float(x.sum()) > 0.0  # NumPy in this thread still has them
