"""A decoder's run on few CPUs has a pool of one thread to itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from tf_infer.config import CausalLMConfig, ClassifierConfig, ShapeGrid  # noqa: E402
from tf_infer.errors import Code, ServingError  # noqa: E402
from tf_infer.manifest import ModelManifest  # noqa: E402
from tf_infer.server import servable, session_config  # noqa: E402
from tf_infer.server.config import ServerConfig  # noqa: E402
from tf_infer.server.lanes import EVERY, MOST_ROWS, Lanes  # noqa: E402
from tf_infer.server.servable import SavedModelServable  # noqa: E402
from tf_infer.server.session_config import LANES, for_version, has_lanes  # noqa: E402

FOREVER = 10**9  # turns
FEW = {"x": np.zeros(MOST_ROWS), "rows": np.array(99)}


def manifest(task: Any = None) -> ModelManifest:
    return ModelManifest(name="m", version=1, signatures=(), grid=ShapeGrid(), compiled="none",
                         task=task or CausalLMConfig())


def settings(monkeypatch: pytest.MonkeyPatch, *, cpus: int = 2, **asked: Any) -> Any:
    monkeypatch.setattr(session_config.cpus, "usable", lambda **_: cpus)
    return session_config.session_config(ServerConfig(models=(), **asked))


def test_a_lane_is_had_by_one_run_at_a_time() -> None:
    lanes = Lanes(2)
    with lanes.one(FEW) as first:
        with lanes.one(FEW) as second, lanes.one(FEW) as third, lanes.one(FEW) as fourth:
            assert (sorted([first, second]), third, fourth) == ([1, 2], EVERY, EVERY)
        with lanes.one(FEW) as again:
            assert again == second
    with pytest.raises(ValueError, match="wrong"), lanes.one(FEW):
        raise ValueError("wrong")
    with lanes.one(FEW) as one, lanes.one(FEW) as other:
        assert sorted([one, other]) == [1, 2]


def test_a_run_of_many_rows_has_none() -> None:
    with Lanes(1).one({**FEW, "y": np.zeros([MOST_ROWS + 1, 2])}) as pool:
        assert pool == EVERY


def test_only_a_decoder_of_ours_on_few_cpus_has_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    one = settings(monkeypatch, intra_op_threads=1)
    made = for_version(one, manifest())
    assert has_lanes(made)
    assert [pool.num_threads for pool in made.session_inter_op_thread_pool] == [
        one.inter_op_parallelism_threads, *[1] * LANES.count]
    assert not has_lanes(one)
    assert not has_lanes(for_version(one, manifest(ClassifierConfig(classes=("a", "b")))))
    assert not has_lanes(for_version(one, None))
    assert not has_lanes(for_version(settings(monkeypatch, intra_op_threads=2), manifest()))
    assert not has_lanes(for_version(settings(monkeypatch, cpus=3, intra_op_threads=1),
                                     manifest()))
    for name in ("session_inter_op_thread_pool", "use_per_session_threads",
                 "inter_op_parallelism_threads"):
        own = settings(monkeypatch, intra_op_threads=1)
        if name == "session_inter_op_thread_pool":
            own.session_inter_op_thread_pool.add(num_threads=4)
        else:
            setattr(own, name, True if name.startswith("use") else -1)
        assert not has_lanes(for_version(own, manifest())), name


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    function = tf.function(
        lambda turns: {"turns": tf.while_loop(lambda n: n < turns[0], lambda n: [n + 1], [0])[0]},
        autograph=False, input_signature=[tf.TensorSpec([None], tf.int32, name="turns")])
    folder = tmp_path_factory.mktemp("model") / "1"
    tf.saved_model.save(tf.Module(), str(folder), signatures={
        "serving_default": function.get_concrete_function()})
    return folder


@pytest.fixture
def loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SavedModelServable]:
    one = SavedModelServable(path, settings=for_version(
        settings(monkeypatch, intra_op_threads=1), manifest()))
    yield one
    one.close()


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pools of the runs that were begun."""
    found: list[int] = []
    make = servable._run_options

    def options(milliseconds: int, pool: int = EVERY, **more: Any) -> Any:
        found.append(pool)
        return make(milliseconds, pool, **more)

    monkeypatch.setattr(servable, "_run_options", options)
    return found


def run(one: SavedModelServable, turns: int, timeout_s: float | None = None) -> int:
    found = one.run("serving_default", {"turns": np.array([turns], np.int32)}, outputs=("turns",),
                    timeout_s=timeout_s)
    return int(found["turns"])


def test_runs_have_lanes_and_more_at_once_the_pool(
        loaded: SavedModelServable, pools: list[int]) -> None:
    assert run(loaded, 7) == 7
    assert pools[0] in (1, 2)
    ended: list[Any] = []

    def long() -> None:
        try:
            run(loaded, FOREVER, 5.0)
        except ServingError as error:
            ended.append(error.code)

    threads = [threading.Thread(target=long) for _ in range(LANES.count)]
    for thread in threads:
        thread.start()
    while len(pools) <= LANES.count:
        time.sleep(0.01)
    assert run(loaded, 8, 20.0) == 8, "they hold up nobody else"
    assert not ended
    for thread in threads:
        thread.join()
    assert sorted(pools[1:3]) == [1, 2]
    assert pools[3] == EVERY
    assert ended == [Code.DEADLINE_EXCEEDED] * LANES.count, "a deadline ends a run in a lane"
    assert run(loaded, 9) == 9
    assert pools[4] in (1, 2)


def test_a_traced_run_has_a_lane_too(loaded: SavedModelServable, pools: list[int]) -> None:
    found, _ = loaded.run_traced("serving_default", {"turns": np.array([5], np.int32)},
                                 outputs=("turns",), timeout_s=None)
    assert int(found["turns"]) == 5
    assert pools[0] in (1, 2)
