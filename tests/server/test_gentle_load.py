"""A version that is loaded while others are asked takes little from those who ask."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
pytest.importorskip("tensorflow_serving")

from tensorflow_serving.apis import prediction_log_pb2  # noqa: E402

from tests.server.serverkit import lent, running, wait_until  # noqa: E402
from tf_infer import config as configs  # noqa: E402
from tf_infer.config import ClassifierConfig, ShapeGrid  # noqa: E402
from tf_infer.manifest import (  # noqa: E402
    EXTRA_FOLDER,
    MANIFEST_FILE,
    ModelManifest,
    hash_files,
    read_manifest,
)
from tf_infer.server import loading, servable  # noqa: E402
from tf_infer.server.config import ModelConfig, ServerConfig  # noqa: E402
from tf_infer.server.quick_graph import CALLERS_THREAD  # noqa: E402
from tf_infer.server.servable import load_version  # noqa: E402
from tf_infer.server.versions import ModelRef  # noqa: E402


class Counter(tf.Module):
    """Gives how many rows it has been asked for so far."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = tf.Variable(0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def count(self, x: Any) -> dict[str, Any]:
        return {"rows": self.rows.assign_add(tf.size(x))[None]}


def save(path: Path, compiled: Literal["none", "xla", "foreign"]) -> None:
    """Write a version with a warm-up record of three rows."""
    module = Counter()
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.count})
    (path / EXTRA_FOLDER).mkdir(exist_ok=True)
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([1, 2, 3])))
    with tf.io.TFRecordWriter(str(path / EXTRA_FOLDER / "tf_serving_warmup_requests")) as writer:
        writer.write(log.SerializeToString())
    if compiled != "foreign":
        configs.dump(ModelManifest(name="m", version=int(path.name), signatures=(),
                                   grid=ShapeGrid(), compiled=compiled,
                                   task=ClassifierConfig(classes=("a", "b"))),
                     path / EXTRA_FOLDER / MANIFEST_FILE)


def warmed_rows(server: Any, version: int) -> int:
    with lent(server.versions, ModelRef("m", version)) as lease:
        found = lease.servable.run("serving_default", {"x": np.float32([])}, outputs=["rows"],
                                   timeout_s=None)
        return int(found["rows"][0])


@pytest.mark.parametrize(("compiled", "rows"), [("none", 1), ("xla", 3), ("foreign", 3)])
def test_only_where_rows_are_no_shapes_a_swap_warms_up_with_one_row_of_each_record(
        tmp_path: Path, compiled: Literal["none", "xla", "foreign"], rows: int) -> None:
    base = tmp_path / "m"
    save(base / "1", compiled)
    with running((ModelConfig(name="m", base_path=str(base)),)) as (server, _):
        assert warmed_rows(server, 1) == 3
        save(tmp_path / "2", compiled)
        (tmp_path / "2").rename(base / "2")
        server.versions.poll()
        assert wait_until(server.versions, lambda: any(
            row.state.name == "AVAILABLE" for row in server.versions.status("m", 2)), 60)
        assert warmed_rows(server, 2) == rows


def test_a_swap_is_told_how_many_calls_there_have_been(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, usual, told = tmp_path / "m", load_version, list[Callable[[], int]]()

    def load(*given: Any, asked: Callable[[], int], **options: Any) -> Any:
        told.append(asked)
        return usual(*given, asked=asked, **options)

    monkeypatch.setattr(servable, "load_version", lambda *given, gently=False, **options: (
        load if gently else usual)(*given, gently=gently, **options))
    save(base / "1", "foreign")
    with running((ModelConfig(name="m", base_path=str(base)),)) as (server, _):
        shutil.copytree(base / "1", tmp_path / "2")
        (tmp_path / "2").rename(base / "2")
        server.versions.poll()
        assert wait_until(server.versions, lambda: any(
            row.state.name == "AVAILABLE" for row in server.versions.status("m", 2)), 60)
        (asked,) = told
        before = asked()
        warmed_rows(server, 2)
        warmed_rows(server, 2)
        assert asked() == before + 2


def test_warm_up_takes_a_file_for_intact_only_where_the_manifest_has_its_digest(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(servable, "warm_up", lambda *_, intact, **options: (
        seen.append(intact), 0)[1])

    def load() -> None:
        load_version(tmp_path / "1", ServerConfig(models=()))[0].close()

    save(tmp_path / "1", "foreign")
    load()
    save(tmp_path / "1", "none")
    load()
    manifest = read_manifest(tmp_path / "1")
    configs.dump(replace(manifest, files=hash_files(tmp_path / "1")),
                 tmp_path / "1" / EXTRA_FOLDER / MANIFEST_FILE)
    load()
    assert seen == [False, False, True]


def in_a_thread(act: Callable[[], object]) -> int:
    """Return the niceness of a thread of its own at the end of what it does."""
    found: list[int] = []

    def work() -> None:
        act()
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
@pytest.mark.parametrize("gently", [False, True])
def test_the_runs_of_a_load_give_way_to_others_only_when_it_shall_and_the_thread_that_loads_never(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gently: bool) -> None:
    """That one needs the interpreter lock."""
    save(tmp_path / "1", "none")
    run, seen = tf.compat.v1.Session._call_tf_sessionrun, []
    monkeypatch.setattr(tf.compat.v1.Session, "_call_tf_sessionrun", lambda *arguments: (
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())),
        run(*arguments))[1])
    usual = in_a_thread(lambda: None)
    assert in_a_thread(lambda: load_version(
        tmp_path / "1", ServerConfig(models=()), gently=gently)[0].close()) == usual
    assert len(seen) > 1
    assert set(seen) == {min(19, usual + 10) if gently else usual}


@pytest.mark.parametrize("fails", ["GentleSession", "_is_fragile", "QuickCalls"])
def test_a_load_that_fails_anywhere_leaves_no_session_and_no_thread(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """Though the error is still at hand, whose traceback holds all that there was."""
    save(tmp_path / "1", "none")
    freed: list[Any] = []
    free = servable.free

    def fault(*arguments: Any, **options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(servable, "free", lambda session: (freed.append(session), free(session)))
    monkeypatch.setattr(servable, fails, fault)
    with pytest.raises(MemoryError) as caught:
        servable.SavedModelServable(tmp_path / "1", gently=True)
    assert caught.tb is not None
    assert [session._closed for session in freed] == [True] * (fails != "GentleSession")
    assert not [one for one in threading.enumerate() if one.name.startswith("tf-infer-behind")]


def test_functions_are_imported_in_pieces_and_the_version_answers_as_before(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "1", "none")
    imported: list[int] = []
    usual = tf.import_graph_def
    monkeypatch.setattr(tf, "import_graph_def", lambda graph, **options: (
        imported.append(len(graph.library.function)), usual(graph, **options)))
    monkeypatch.setattr(loading, "PIECE_NODES", 1)
    loaded, _ = load_version(tmp_path / "1", ServerConfig(models=()), gently=True)
    try:
        assert len(imported) > 1
        assert set(imported) == {1}
        found = loaded.run("serving_default", {"x": np.float32([5, 6])}, outputs=["rows"],
                           timeout_s=None)
        assert found["rows"].tolist() == [3]  # one of the warm-up, and these two
    finally:
        loaded.close()


def test_of_a_version_that_was_loaded_gently_the_first_runs_are_the_pools(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a batch takes is not known from the rows that warmed it up."""
    save(tmp_path / "1", "none")
    monkeypatch.setattr(servable.cpus, "usable", lambda **_: 2)
    make, own_thread = servable._run_options, []
    monkeypatch.setattr(servable, "_run_options", lambda milliseconds, pool=0: (
        own_thread.append(pool == CALLERS_THREAD), make(milliseconds, pool))[1])
    for gently, asked in ((True, [False, False, True]), (False, [True, True, True])):
        loaded, _ = load_version(tmp_path / "1", ServerConfig(models=(), warmup_iterations=3),
                                 gently=gently)
        own_thread.clear()
        for _ in range(3):
            loaded.run("serving_default", {"x": np.float32([5, 6])}, outputs=["rows"],
                       timeout_s=600.0)
        loaded.close()
        assert own_thread == asked
