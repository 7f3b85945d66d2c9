"""`tf-infer export --engine`: what is written, what is recorded, and what is refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tasks import small
from tf_infer import config
from tf_infer.cli import engine as cli_engine
from tf_infer.cli.main import main
from tf_infer.errors import VerificationError
from tf_infer.manifest import StepEngineManifest, read_manifest
from tf_infer.optimize.litert import EngineSettings
from tf_infer.tasks.base import Task
from tf_infer.tasks.build import build, save
from tf_infer.verify.engine import EnginePredictor, log_probs, samples, spread

pytest.importorskip("ai_edge_litert", reason="needs the extra `server`")


@pytest.fixture(scope="module")
def task() -> Task:
    return build(small.SHALLOW_DECODER)


def test_an_engine_says_what_it_holds_and_how_far_it_is_from_its_network(
        task: Task, tmp_path: Path) -> None:
    told: list[str] = []
    settings = EngineSettings(rows=(1, 4))
    report = cli_engine.write_engine(task, tmp_path, settings, (b"a text", b"another"), told.append)
    described: StepEngineManifest = config.load(
        StepEngineManifest, tmp_path / "engines" / "litert" / "engine.json")
    assert described.precision == "int8"
    assert (described.positions, described.slots) == (task.positions, 4)  # type: ignore[attr-defined]
    assert 0 < described.max_abs < described.atol < 2.0
    assert described.library.startswith("ai-edge-litert 2.3")
    assert (report.path, report.samples, report.passed) == ("litert", 4, True)
    assert report.differences[0].max_abs == described.max_abs
    assert [line.split()[0] for line in told] == ["building", "comparing"]


@pytest.mark.parametrize(("words", "guesses"), [((), 3), (("--engine-guesses", "0"), 0)])
def test_the_number_of_guesses_becomes_a_setting(
        task: Task, words: tuple[str, ...], guesses: int) -> None:
    parser = argparse.ArgumentParser()
    cli_engine.add_engine(parser)
    settings = cli_engine.settings_of(parser.parse_args(["--engine", "litert", *words]), task)
    assert isinstance(settings, EngineSettings) and settings.guesses == guesses


@pytest.mark.slow  # a decoder's other paths take minutes
@pytest.mark.timeout(900)
def test_export_writes_a_proven_engine_into_the_version(task: Task, tmp_path: Path) -> None:
    save(task, tmp_path / "writer")
    main(["export", str(tmp_path / "writer"), "--base-dir", str(tmp_path / "served"), "--engine",
          "litert", "--no-xla", "--no-server", "--json"])
    version = tmp_path / "served" / "1"
    folder = version / "assets.extra" / "engines" / "litert"
    described: StepEngineManifest = config.load(StepEngineManifest, folder / "engine.json")
    manifest = read_manifest(version)
    assert manifest.files["assets.extra/engines/litert/model.tflite"] == described.sha256
    assert "assets.extra/engines/litert/engine.json" in manifest.files
    report = json.loads((version / "assets.extra" / "report.json").read_text())
    told = {path["path"]: path for path in report["paths"]}["litert"]
    assert told["differences"][0]["max_abs"] == described.max_abs
    assert told["samples"] == 4


def test_an_engine_too_far_from_its_network_is_not_exported(task: Task, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="litert under_given_tokens/log_probs"):
        cli_engine.write_engine(task, tmp_path, EngineSettings(tolerance=1e-6, rows=(1,)), ())


class Counting:
    """An engine whose logits tell how many ids a slot has read: [length, 0]."""

    slots, positions, chunk = 2, 50, 16

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def read(self, slot: int, ids: np.ndarray, start: int) -> np.ndarray:
        self.calls.append((len(ids), start))
        return np.array([start + len(ids), 0], np.float32)

    def step(self, tokens: np.ndarray, lengths: np.ndarray, active: Any) -> np.ndarray:
        return np.stack([lengths + 1, np.zeros(2)], axis=1).astype(np.float32)


def test_rows_reach_from_short_ones_to_a_full_slot_and_are_read_in_chunks_and_steps() -> None:
    engine = Counting()

    def network(ids: np.ndarray) -> np.ndarray:
        places = np.arange(ids.shape[1]) + 1.0
        return np.stack([places, 0 * places], axis=1)[None].astype(np.float32)

    found = samples(np.arange(9), engine, network)
    assert [sample.inputs["ids"].shape for sample in found] == [(1, 25), (1, 50)]
    for sample in found:
        outputs = EnginePredictor(engine)(sample.signature, sample.inputs)
        np.testing.assert_allclose(outputs["log_probs"], sample.outputs["log_probs"], atol=1e-6)
    assert engine.calls == [(16, 0), (1, 16), (16, 0), (16, 16), (10, 32)]


def test_log_probabilities_of_large_logits_are_finite() -> None:
    np.testing.assert_allclose(log_probs(np.array([[1e4, 1e4 + 1.0]])),
                               [[-1.3132617, -0.3132617]], atol=1e-6)


def test_what_is_unlikely_counts_as_the_floor_and_tolerance_is_a_share_of_the_spread() -> None:
    engine = Counting()
    found = samples(np.arange(9), engine, lambda ids: np.tile(
        np.float32([3.0, 1.0, -40.0]), (1, ids.shape[1], 1)))
    best = found[0].outputs["log_probs"][0, 0]
    np.testing.assert_allclose(best - best[0], [0.0, -2.0, -5.0], atol=1e-5)
    assert spread(found) == pytest.approx(5.0, abs=1e-5)
