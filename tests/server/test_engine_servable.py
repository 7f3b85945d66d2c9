"""A classifier behind an engine: which part of a request goes where, and who says what is wrong."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tf_infer import config
from tf_infer.config import ClassifierConfig, PackingConfig, ShapeGrid, SmallTransformerConfig
from tf_infer.engines import encoders
from tf_infer.equality import Tolerance, differences
from tf_infer.errors import BackendMissing, DeadlineExceeded, InvalidRequest, NotOffered
from tf_infer.manifest import (
    EncoderEngineManifest,
    ModelManifest,
    Sample,
    SignatureSpec,
    TensorSpec,
)
from tf_infer.server.config import ServerConfig
from tf_infer.server.contracts import Arrays, Servable, StageTimes, Traceable
from tf_infer.server.encoder_engines import engine_of, replay_atol, within
from tf_infer.server.engine_servable import EngineServable, texts_in
from tf_infer.wire.examples import to_example

ENGINE = EncoderEngineManifest(kind="litert", precision="int8", vocab_size=50, positions=8,
                               classes=2, shapes=((1, 16),), atol=0.5, max_abs=0.01)
BUSY_S = 1.0  # so long others are before every call of the engine


def tensor(name: str, dtype: str, *axes: int | None) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=(None, *axes))


def manifest(*, pair: bool = False, task: Any = None) -> ModelManifest:
    packed = [tensor("ids", "int32", None), tensor("mask", "int32", None)]
    if pair:
        packed.append(tensor("segments", "int32", None))
    grid = ShapeGrid(rows=(4,), tokens=(4, 8))
    return ModelManifest(
        name="m", version=1, grid=grid, task=task or ClassifierConfig(
            classes=("no", "yes"), network=SmallTransformerConfig(), pair=pair, grid=grid,
            packing=PackingConfig(max_tokens=8)),
        signatures=(SignatureSpec(name="ids", inputs=tuple(packed),
                                  outputs=(tensor("logits", "float32", 2),)),))


class Graph:
    """A SavedModel that encodes a text as its bytes, and says what else it was asked for."""

    signatures: Mapping[str, Any] = {}
    manifest = None

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[str, ...], bool]] = []
        self.closed = False

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None, whole: bool = True) -> Arrays:
        self.asked.append((signature, tuple(outputs), whole))
        if signature != "encode":
            raise InvalidRequest("the graph's own words")
        texts = inputs["text"]
        width = max((len(text) for text in texts), default=0)
        ids = np.zeros((len(texts), width), np.int32)
        for row, text in enumerate(texts):
            ids[row, :len(text)] = np.frombuffer(text, np.uint8) % 50
        found = {"ids": ids, "mask": (ids > 0).astype(np.int32)}
        if "text_pair" in inputs:
            found["segments"] = np.ones_like(ids)
        return {name: found[name] for name in outputs}

    def run_traced(self, signature: str, inputs: Mapping[str, np.ndarray], *,
                   outputs: Sequence[str], timeout_s: float | None, whole: bool = True,
                   ) -> tuple[Arrays, StageTimes]:
        return (self.run(signature, inputs, outputs=outputs, timeout_s=timeout_s, whole=whole),
                StageTimes(tokenize_s=2.0, model_s=0.0, decode_s=0.0))

    def close(self) -> None:
        self.closed = True


class Engine:
    """Logits [sum of the ids that count, sum of their segments]."""

    manifest = ENGINE
    as_proven = True

    def __init__(self) -> None:
        self.closed = False
        self.timeouts: list[float | None] = []

    def run(self, ids: np.ndarray, mask: np.ndarray, segments: np.ndarray, *,
            timeout_s: float | None = None) -> np.ndarray:
        assert mask.dtype == bool
        self.timeouts.append(timeout_s)
        if timeout_s is not None and timeout_s < BUSY_S:
            raise DeadlineExceeded("engine: expected its turn")
        return np.stack([(ids * mask).sum(1), (segments * mask).sum(1)], 1).astype(np.float32)

    def close(self) -> None:
        self.closed = True


def served(*, pair: bool = False) -> tuple[EngineServable, Graph, Engine]:
    graph, engine = Graph(), Engine()
    servable = EngineServable(graph, manifest(pair=pair), engine)
    contract: Servable = servable
    assert isinstance(contract, Traceable)
    return servable, graph, engine


def strings(*texts: bytes) -> np.ndarray:
    made = np.empty(len(texts), object)
    made[:] = texts
    return made


def test_texts_become_ids_in_the_graph_and_logits_in_the_engine() -> None:
    servable, graph, _ = served()
    found = servable.run("serving_default", {"text": strings(b"\1\2\3", b"\4")},
                         outputs=("logits", "label"), timeout_s=None)
    assert found["logits"].tolist() == [[6, 0], [4, 0]]
    assert found["label"].tolist() == [b"no", b"no"]
    assert graph.asked == [("encode", ("ids", "mask"), False)]


def test_pairs_bring_their_segments() -> None:
    servable, graph, _ = served(pair=True)
    found = servable.run("serving_default", {"text": strings(b"\1\1"), "text_pair": strings(b"")},
                         outputs=("logits",), timeout_s=None)
    assert found["logits"].tolist() == [[2, 2]]
    assert graph.asked == [("encode", ("ids", "mask", "segments"), False)]


def test_examples_are_read_here_and_what_is_none_is_left_to_the_graph() -> None:
    servable, graph, _ = served()
    good = to_example({"text": b"\7", "other": 3}).SerializeToString()
    found = servable.run("classify", {"inputs": strings(good, good)},
                         outputs=("classes", "scores"), timeout_s=None)
    assert found["classes"].tolist() == [[b"no", b"yes"]] * 2
    for bad in (b"\xff", to_example({"other": b"a"}).SerializeToString(),
                to_example({"text": [b"a", b"b"]}).SerializeToString(),
                to_example({"text": 3}).SerializeToString()):
        with pytest.raises(InvalidRequest, match="the graph's own words"):
            servable.run("classify", {"inputs": strings(good, bad)}, outputs=("scores",),
                         timeout_s=None)
    assert [name for name, _, _ in graph.asked] == ["encode"] + 4 * ["classify"]


def test_ids_go_to_the_engine_unless_they_break_a_rule() -> None:
    servable, graph, _ = served()
    ids, mask = np.array([[3, 4, 5]], np.int32), np.array([[1, 1, 0]], np.int32)
    assert servable.run("ids", {"ids": ids, "mask": mask}, outputs=("logits",),
                        timeout_s=None)["logits"].tolist() == [[7, 0]]
    wide = np.ones((1, 9), np.int32)
    for broken in ({"ids": ids + 50, "mask": mask}, {"ids": -ids, "mask": mask},
                   {"ids": ids, "mask": mask[:, 1:]}, {"ids": wide, "mask": wide}):
        with pytest.raises(InvalidRequest, match="the graph's own words"):
            servable.run("ids", broken, outputs=("logits",), timeout_s=None)
    with pytest.raises(InvalidRequest):
        served(pair=True)[0].run("ids", {"ids": ids, "mask": mask, "segments": 2 * mask},
                                 outputs=("logits",), timeout_s=None)
    assert [name for name, _, _ in graph.asked] == 4 * ["ids"]


def test_every_other_signature_is_the_graphs() -> None:
    servable, graph, _ = served()
    with pytest.raises(InvalidRequest):
        servable.run("explain", {"text": strings(b"a")}, outputs=("score",), timeout_s=3.0)
    assert graph.asked == [("explain", ("score",), True)]


def test_after_its_time_the_engine_is_not_begun() -> None:
    servable, _, engine = served()
    engine.run = None  # type: ignore[assignment, method-assign]
    with pytest.raises(DeadlineExceeded):
        servable.run("serving_default", {"text": strings(b"a")}, outputs=("label",),
                     timeout_s=1e-9)


def test_the_time_that_is_left_goes_with_the_call_and_the_servers_words_come_back() -> None:
    servable, _, engine = served()
    ids = {"ids": np.ones((1, 2), np.int32), "mask": np.ones((1, 2), np.int32)}
    for signature, inputs in (("serving_default", {"text": strings(b"a")}), ("ids", ids)):
        servable.run(signature, inputs, outputs=("logits",), timeout_s=60.0)
        assert engine.timeouts[-1] is not None and 50.0 < engine.timeouts[-1] < 60.0
        for run in (servable.run, servable.run_traced):
            with pytest.raises(DeadlineExceeded, match=r": Timed out waiting for notification$"):
                run(signature, inputs, outputs=("logits",), timeout_s=BUSY_S / 2)
    servable.run("ids", ids, outputs=("logits",), timeout_s=None)
    assert engine.timeouts[-1] is None


def test_the_engines_time_is_the_models() -> None:
    servable, _, _ = served()
    found, times = servable.run_traced("serving_default", {"text": strings(b"\1")},
                                       outputs=("logits",), timeout_s=None)
    assert found["logits"].tolist() == [[1, 0]]
    assert times.tokenize_s == 2.0
    assert 0.0 < times.model_s < 1.0
    _, times = servable.run_traced("ids", {"ids": np.ones((1, 2), np.int32),
                                           "mask": np.ones((1, 2), np.int32)},
                                   outputs=("logits",), timeout_s=None)
    assert times.tokenize_s == 0.0


def test_closing_it_closes_both() -> None:
    servable, graph, engine = served()
    servable.close()
    assert graph.closed and engine.closed


def test_an_example_without_text_has_none() -> None:
    assert texts_in(strings(b""), ("text",)) is None
    good = to_example({"text": b"a"}).SerializeToString()
    assert texts_in(strings(good), ("text",)) is not None
    assert texts_in(strings(good + good), ("text",)) is not None  # a context before an example
    for unknown in (good + b"\x1a\x01x", good + b"\x18\x01"):  # fields that no tf.Example has
        assert texts_in(strings(unknown), ("text",)) is None
    found = texts_in(strings(), ("text",))
    assert found is not None and len(found["text"]) == 0


@pytest.fixture
def version(tmp_path: Path) -> Path:
    folder = tmp_path / "assets.extra" / "engines" / "litert"
    folder.mkdir(parents=True)
    config.dump(ENGINE, folder / "engine.json")
    return tmp_path


def test_the_engine_of_a_classifier_is_taken_unless_that_is_not_wanted(
        version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    monkeypatch.setattr(encoders, "KINDS", {"litert": lambda folder, threads: engine})
    assert engine_of(version, manifest(), "auto") is engine
    assert engine_of(version, manifest(), "litert") is engine
    assert engine_of(version, manifest(), "saved_model") is None
    assert engine_of(version, None, "auto") is None
    assert engine_of(version, manifest(task=config.CausalLMConfig()), "auto") is None
    assert engine_of(version.parent, manifest(), "auto") is None
    with pytest.raises(NotOffered, match="--classifier_engine=onnx: expected a version with"):
        engine_of(version, manifest(), "onnx")


def test_without_its_library_the_saved_model_serves_unless_the_engine_was_asked_for(
        version: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def missing(folder: Path, threads: int) -> Any:
        raise BackendMissing("install it")

    monkeypatch.setattr(encoders, "KINDS", {"litert": missing})
    with caplog.at_level(logging.WARNING):
        assert engine_of(version, manifest(), "auto") is None
    assert "passed_over=litert" in caplog.text
    with pytest.raises(BackendMissing):
        engine_of(version, manifest(), "litert")


def test_scores_may_move_by_half_of_what_logits_may_and_labels_follow_from_them() -> None:
    found = within(0.5, 1.0, Tolerance(atol=1e-3, rtol=0.0))
    assert [found.of(name)[0] for name in ("logits", "scores", "score", "other")] == [
        0.5, 0.25, 0.25, 1e-3]
    assert within(0.5, 0.5, Tolerance()).of("scores")[0] == 0.5  # logits are doubled before
    sample = Sample("serving_default", {}, {"labels": strings(b"a"), "ids": np.ones(1, np.int32)})
    other = {"labels": strings(b"b"), "ids": np.zeros(1, np.int32)}
    assert [one.output for one in differences(sample, other, found)] == ["ids"]


def test_golden_samples_are_held_to_what_the_export_found_and_not_to_all_it_allowed() -> None:
    engine = Engine()
    assert replay_atol(engine) == pytest.approx(2 * 0.01 + 1e-4)
    sample = Sample("serving_default", {}, {"logits": np.array([[3.0, 1.0]], np.float32)})
    for moved, wrong in ((0.015, False), (0.03, True), (0.4, True)):
        answer = {"logits": sample.outputs["logits"] + np.float32(moved)}
        found = differences(sample, answer, within(replay_atol(engine), 1.0, Tolerance()))
        assert (found[0].mismatches > 0) == wrong
    engine.manifest = replace(ENGINE, max_abs=0.4)
    assert replay_atol(engine) == 0.5  # never beyond what was allowed
    engine.manifest, engine.as_proven = ENGINE, False
    assert replay_atol(engine) == 0.5  # a GPU rounds otherwise than the CPU that proved it


def test_an_engine_of_no_kind_is_not_taken_for_a_setting() -> None:
    with pytest.raises(config.ConfigError, match="classifier_engine: expected auto, litert"):
        ServerConfig(models=(), classifier_engine="fast")  # type: ignore[arg-type]
