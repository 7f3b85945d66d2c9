"""A prepared graph runs where it fits, and answers bit for bit like the SavedModel beside it."""

from __future__ import annotations

import functools
import gc
import itertools
import logging
import resource
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
pytest.importorskip("tensorflow_serving")

from tensorflow.core.protobuf import meta_graph_pb2  # noqa: E402

from tests.fakes.word_task import GRID, strings, word_task  # noqa: E402
from tf_infer import config as configs  # noqa: E402
from tf_infer.errors import ExportError, InvalidRequest  # noqa: E402
from tf_infer.export import saved_model  # noqa: E402
from tf_infer.manifest import (  # noqa: E402
    EXTRA_FOLDER,
    MANIFEST_FILE,
    PathReport,
    Report,
    Sample,
    hash_files,
    read_manifest,
    read_samples,
)
from tf_infer.prepared import PREPARED_FILE, prepared_folder, read_prepared  # noqa: E402
from tf_infer.server import cpus, graph_pieces, loading, memory  # noqa: E402
from tf_infer.server.config import ServerConfig  # noqa: E402
from tf_infer.server.contracts import Servable  # noqa: E402
from tf_infer.server.servable import load_version  # noqa: E402

PASSED = Report(reference="eager", paths=(PathReport(
    path="none", atol=0.0, rtol=0.0, samples=0, seconds=0.0, differences=()),))
ROOM_BYTES = 12_000_000  # less than one megabyte a swap
TEXTS = strings(b"the parcel came late", b"fine thanks", b"", b"\xff", "is 中文 early".encode())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a version as an export writes it, with samples of each signature."""
    task = word_task(tmp_path_factory.mktemp("words"))
    example = tf.train.Example()
    example.features.feature["text"].bytes_list.value.append(b"fine thanks")
    signatures = task.signatures()
    encoded = {k: v.numpy() for k, v in signatures["encode"].function(text=TEXTS).items()}
    inputs: dict[str, Mapping[str, Any]] = {
        "serving_default": {"text": TEXTS}, "encode": {"text": TEXTS}, "ids": encoded,
        "classify": {"inputs": strings(example.SerializeToString())}}
    golden = [Sample(name, feed, {key: value.numpy() for key, value in signatures[name].function(
        **{k: tf.constant(v) for k, v in feed.items()}).items()}) for name, feed in inputs.items()]
    return saved_model.save(task, tmp_path_factory.mktemp("saved"), name="words", golden=golden,
                            check=lambda folder: PASSED)


@pytest.fixture
def version(exported: Path, tmp_path: Path) -> Path:
    """Return a copy that may be changed."""
    return shutil.copytree(exported, tmp_path / "1")


def described_anew(version: Path) -> None:
    manifest = read_manifest(version)
    configs.dump(replace(manifest, files=hash_files(version)),
                 version / EXTRA_FOLDER / MANIFEST_FILE)


def rewritten(version: Path, change: Callable[[Any], None]) -> None:
    """Change the prepared graph of a version, and let the manifest know."""
    path = prepared_folder(version) / "graph.pb"
    graph = meta_graph_pb2.MetaGraphDef.FromString(path.read_bytes())
    change(graph)
    path.write_bytes(graph.SerializeToString())
    described_anew(version)


@contextmanager
def loaded(version: Path, *, settings: Any = None, gently: bool = False, replay: bool = False,
           asked: Callable[[], int] = lambda: 0) -> Iterator[Servable]:
    """Load a version; most tests need no signature but one, and no warm-up."""
    servable, _ = load_version(version, ServerConfig(
        models=(), warmup=False, golden_replay=replay), settings=settings, gently=gently,
        asked=asked)
    try:
        yield servable
    finally:
        servable.close()


def plain() -> Any:
    """Return settings of the optimiser as it is anyhow; whoever has some gets saved_model.pb."""
    settings = tf.compat.v1.ConfigProto()
    settings.graph_options.rewrite_options.meta_optimizer_iterations = 0
    settings.graph_options.rewrite_options.SetInParent()
    return settings


def ids_of(servable: Servable) -> list[list[int]]:
    found: list[list[int]] = servable.run("encode", {"text": TEXTS}, outputs=["ids"],
                                          timeout_s=None)["ids"].tolist()
    return found


def answers(servable: Servable, version: Path) -> list[bytes]:
    """Return all that a version answers to its samples, and to more rows of texts."""
    asked = [(sample.signature, sample.inputs)
             for sample in read_samples(version / EXTRA_FOLDER / "golden.jsonl")]
    asked += [("serving_default", {"text": np.repeat(TEXTS, rows)}) for rows in GRID.rows]
    found = []
    for signature, inputs in asked:
        outputs = servable.run(signature, inputs, timeout_s=None,
                               outputs=sorted(servable.signatures[signature].outputs))
        found += [repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
                  for array in outputs.values()]
    return found


@pytest.mark.parametrize(("gently", "asked", "unlocked"), [
    (False, False, True), (True, False, True), (True, True, False)])
def test_what_an_export_writes_runs_prepared_and_answers_bit_for_bit_the_same(
        exported: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
        gently: bool, asked: bool, unlocked: bool) -> None:
    """Whether TensorFlow's C library imports it or, where that cannot be had, Python's binding.

    It rests between the pieces while others ask.
    """
    if not unlocked:
        monkeypatch.setattr(loading, "unlocked_import", lambda session, folder: None)
    imported: list[int] = []
    usual_add = loading.BareGraph.add
    monkeypatch.setattr(loading.BareGraph, "add", lambda graph, piece, behind: (
        imported.append(len(piece.names)), usual_add(graph, piece, behind)))
    monkeypatch.setattr(loading, "pieces", functools.partial(graph_pieces.pieces, nodes=30))
    rests: list[float] = []
    monkeypatch.setattr(cpus, "time", SimpleNamespace(
        thread_time=time.thread_time, sleep=rests.append))
    calls = itertools.count() if asked else itertools.repeat(0)
    with caplog.at_level(logging.INFO), loaded(
            exported, gently=gently, asked=calls.__next__) as prepared:
        assert "graph=prepared" in caplog.text
        assert max(imported) < sum(imported) / 4
        assert prepared._session.graph.get_operations() == []
        assert len(rests) > len(imported) if asked else not rests
        caplog.clear()
        with loaded(exported, settings=plain()) as usual:
            assert "prepared" not in caplog.text
            assert prepared.signatures == usual.signatures
            found, expected = answers(prepared, exported), answers(usual, exported)
    assert found == expected
    assert len(found) > 15


def test_a_signature_that_names_an_operation_is_refused_as_that_of_the_saved_model_pb_is(
        exported: Path) -> None:
    def said(servable: Servable, name: str) -> str:
        with pytest.raises(InvalidRequest) as caught:
            servable.run(name, {}, outputs=[name], timeout_s=None)
        return caught.value.details

    with loaded(exported) as prepared, loaded(exported, settings=plain()) as usual:
        (name,) = [name for name, one in usual.signatures.items() if not one.inputs]
        (info,) = usual.signatures[name].outputs.values()
        assert info.name and ":" not in info.name
        assert said(prepared, name) == said(usual, name)


def test_one_whose_operation_has_no_such_output_is_passed_over(
        version: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewritten(version, lambda graph: setattr(
        graph.signature_def["encode"].outputs["ids"], "name",
        graph.signature_def["encode"].outputs["ids"].name.partition(":")[0] + ":7"))
    with caplog.at_level(logging.WARNING), loaded(version) as servable:
        assert "passed_over" in caplog.text
        assert len(ids_of(servable)) == len(TEXTS)


def test_it_is_the_prepared_graph_that_answers(version: Path) -> None:
    """One whose logits are called scores answers so, though saved_model.pb knows better."""
    def exchanged(graph: Any) -> None:
        outputs = graph.signature_def["serving_default"].outputs
        outputs["scores"].CopyFrom(outputs["logits"])

    rewritten(version, exchanged)
    with loaded(version) as servable:
        found = servable.run("serving_default", {"text": TEXTS}, timeout_s=None,
                             outputs=["logits", "scores"])
    np.testing.assert_array_equal(found["logits"], found["scores"])


def test_a_prepared_graph_of_other_answers_is_refused_by_the_golden_samples(version: Path) -> None:
    def shifted(graph: Any) -> None:
        graph.signature_def["serving_default"].outputs["scores"].CopyFrom(
            graph.signature_def["serving_default"].outputs["logits"])

    rewritten(version, shifted)
    with pytest.raises(Exception, match="output 'scores'"), loaded(version, replay=True):
        pass


@pytest.mark.parametrize(("change", "told"), [
    ({"made_of": "0"}, "saved_model.pb is another one"),
    ({"made_for": {"tensorflow": "1.0"}}, "made for another tensorflow")])
def test_one_that_does_not_fit_is_passed_over_and_the_version_answers_as_ever(
        version: Path, exported: Path, caplog: pytest.LogCaptureFixture,
        change: Mapping[str, Any], told: str) -> None:
    prepared = read_prepared(version)
    assert prepared is not None
    configs.dump(replace(prepared, **change), prepared_folder(version) / PREPARED_FILE)
    described_anew(version)
    with caplog.at_level(logging.INFO), loaded(version) as servable:
        assert "passed_over" in caplog.text
        assert told in caplog.text
        assert "graph=prepared" not in caplog.text
        with loaded(exported) as fast:
            assert ids_of(servable) == ids_of(fast)


@pytest.mark.parametrize("content", [b"\xff\xff", b""])
def test_one_that_TensorFlow_cannot_load_is_passed_over(
        version: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    (prepared_folder(version) / "graph.pb").write_bytes(content)
    described_anew(version)
    with caplog.at_level(logging.WARNING), loaded(version) as servable:
        assert "passed_over" in caplog.text
        assert len(ids_of(servable)) == len(TEXTS)


@pytest.mark.parametrize("content", [b"{", b'{"format": 2}', None])
def test_one_whose_description_cannot_be_read_is_passed_over(
        version: Path, caplog: pytest.LogCaptureFixture, content: bytes | None) -> None:
    path = prepared_folder(version) / PREPARED_FILE
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    described_anew(version)
    with caplog.at_level(logging.WARNING), loaded(version) as servable:
        assert "passed_over" in caplog.text
        assert PREPARED_FILE in caplog.text
        assert len(ids_of(servable)) == len(TEXTS)


def test_one_that_the_manifest_does_not_name_is_passed_over(
        version: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_manifest(version)
    files = {name: digest for name, digest in manifest.files.items() if "/prepared/" not in name}
    assert len(files) < len(manifest.files)
    configs.dump(replace(manifest, files=files), version / EXTRA_FOLDER / MANIFEST_FILE)
    (prepared_folder(version) / "graph.pb").write_bytes(b"")
    with caplog.at_level(logging.INFO), loaded(version) as servable:
        assert "the manifest does not name" in caplog.text
        assert "graph=prepared" not in caplog.text
        assert len(ids_of(servable)) == len(TEXTS)


def test_one_that_is_not_as_it_was_exported_is_an_error_as_of_every_file(version: Path) -> None:
    (prepared_folder(version) / "graph.pb").write_bytes(b"")
    with pytest.raises(ExportError, match=r"prepared/graph\.pb has changed"), loaded(version):
        pass


def test_a_version_without_one_loads_as_it_did(
        version: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(prepared_folder(version))
    described_anew(version)
    with caplog.at_level(logging.INFO), loaded(version) as servable:
        assert "prepared" not in caplog.text
        assert len(ids_of(servable)) == len(TEXTS)


def test_a_prepared_version_that_goes_leaves_nothing_for_a_collection(exported: Path) -> None:
    try:
        with loaded(exported, gently=True) as servable:
            assert len(ids_of(servable)) == len(TEXTS)
            gc.collect()
            gc.disable()
            held = [weakref.ref(servable._session.graph), weakref.ref(servable._session)]
        assert [one() is None for one in held] == [True, False]  # the session frees the graph
        del servable
        assert held[1]() is None
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the memory")
def test_versions_that_come_and_go_leave_the_memory_as_it_was(
        exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds some megabytes of graph beside its variables."""
    def swapped(times: int) -> int:
        for _ in range(times):
            with loaded(exported, gently=True) as servable:
                assert len(ids_of(servable)) == len(TEXTS)
            del servable
            memory.give_back()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    monkeypatch.setattr(memory, "_settled", threading.Event())
    memory.settle()
    try:
        before = swapped(5)  # arenas and caches have their size
        assert swapped(15) < before + ROOM_BYTES
    finally:
        gc.unfreeze()
