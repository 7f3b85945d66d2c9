"""`tf-infer export --engine onnx`: proven on the CPU, recorded, served; float16 waits for a GPU."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.tasks import small
from tf_infer import config
from tf_infer.cli import engine as cli_engine
from tf_infer.cli.main import main
from tf_infer.cli.proof import export_task, make_golden
from tf_infer.config import ShapeGrid
from tf_infer.engines import gpus
from tf_infer.engines.onnx import OnnxEngine
from tf_infer.errors import BackendMissing, ConfigError, InvalidRequest, VerificationError
from tf_infer.manifest import (
    EXTRA_FOLDER,
    EncoderEngineManifest,
    ModelManifest,
    Sample,
    hash_files,
    read_manifest,
    read_samples,
)
from tf_infer.optimize import litert_classifier
from tf_infer.optimize import onnx as onnx_file
from tf_infer.optimize.litert_classifier import EncoderSettings
from tf_infer.optimize.onnx import OnnxSettings
from tf_infer.server.config import ServerConfig
from tf_infer.server.engine_servable import EngineServable
from tf_infer.server.servable import SavedModelServable, load_version
from tf_infer.tasks import build
from tf_infer.tasks.base import Task

pytestmark = pytest.mark.whole

pytest.importorskip("onnx", reason="needs the extra `onnx`")
pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")

ENGINE = Path(EXTRA_FOLDER) / "engines" / "onnx"
GRID = ShapeGrid(rows=(1, 2), tokens=(8, 32))
MODEL = replace(small.CLASSIFIER, grid=GRID, network=replace(small.NETWORK, layers=1))
TEXTS = (b"a parcel", "支付 bitte".encode(), b"", b"x" * 100)


def arguments(*words: str) -> argparse.Namespace:
    """Return what `tf-infer export --engine onnx` makes of some words."""
    parser = argparse.ArgumentParser()
    cli_engine.add_engine(parser)
    return parser.parse_args(["--engine", "onnx", *words])


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export in float16, on a machine that counts as one without a GPU."""
    folder = tmp_path_factory.mktemp("models")
    model = build.build(MODEL, seed=3)
    choice = cli_engine.settings_of(arguments("--engine-precision", "float16"), model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpus, "found", lambda: ())
        return export_task(model, folder / "served", name="served", engine=choice, xla=False,
                           skipped=dict.fromkeys(("graph", "saved_model", "grpc"), "elsewhere"))[0]


@pytest.fixture(scope="module")
def task() -> Task:
    return build.build(MODEL, seed=3)


@pytest.fixture(scope="module")
def golden(task: Task) -> Sequence[Sample]:
    return make_golden(task)


def described_in(folder: Path) -> EncoderEngineManifest:
    found: EncoderEngineManifest = config.load(EncoderEngineManifest, folder / "engine.json")
    return found


def test_without_a_gpu_a_float16_engine_is_proven_on_the_cpu_and_the_saved_model_serves(
        version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "found", lambda: ())
    described = described_in(version / ENGINE)
    assert (described.kind, described.precision, described.positions) == ("onnx", "float16", 32)
    assert 0 < described.max_abs <= described.atol < 0.1
    assert described.library.startswith("onnxruntime ")
    assert read_manifest(version).files[f"{ENGINE.as_posix()}/model.onnx"] == described.sha256
    report = json.loads((version / EXTRA_FOLDER / "report.json").read_text())
    paths = {path["path"]: path for path in report["paths"]}
    assert paths["onnx"]["differences"][0]["max_abs"] == described.max_abs
    assert "onnxruntime-gpu" in paths["grpc_onnx"]["skipped"]
    served = load_version(version, ServerConfig(models=()))[0]
    assert isinstance(served, SavedModelServable)
    served.close()
    with pytest.raises(BackendMissing, match="onnxruntime-gpu"):
        load_version(version, ServerConfig(models=(), classifier_engine="onnx"))


def with_engine(version: Path, task: Task, golden: Sequence[Sample], target: Path,
                settings: OnnxSettings, **changes: Any) -> Path:
    """Copy a version and put another engine into it."""
    shutil.copytree(version, target)
    shutil.rmtree(target / ENGINE)
    choice = cli_engine.EncoderChoice(cli_engine.ENCODERS["onnx"], settings)
    assert cli_engine.write_encoder_engine(
        task, target / EXTRA_FOLDER, choice, golden, TEXTS).passed
    config.dump(replace(described_in(target / ENGINE), **changes), target / ENGINE / "engine.json")
    path = target / EXTRA_FOLDER / "tf_infer.json"
    manifest: ModelManifest = config.load(ModelManifest, path)
    config.dump(replace(manifest, files=hash_files(target)), path)
    return target


def test_the_engine_computes_every_signature_that_asks_the_network(
        version: Path, task: Task, golden: Sequence[Sample], tmp_path: Path) -> None:
    target = with_engine(version, task, golden, tmp_path / "1", OnnxSettings())
    served = load_version(target, ServerConfig(models=()))[0]
    assert isinstance(served, EngineServable)
    assert isinstance(served.engine, OnnxEngine)
    assert served.engine.provider == "cpu"
    differences = []
    for sample in read_samples(target / EXTRA_FOLDER / "golden.jsonl"):
        answer = served.run(sample.signature, sample.inputs, outputs=tuple(sample.outputs),
                            timeout_s=None)
        if "logits" in sample.outputs and len(sample.outputs["logits"]):
            differences.append(np.abs(answer["logits"] - sample.outputs["logits"]).max())
    assert 0 < max(differences) <= served.engine.manifest.atol
    served.close()


def test_an_engine_with_other_answers_after_it_is_loaded_is_not_served(
        version: Path, task: Task, golden: Sequence[Sample], tmp_path: Path) -> None:
    wrong = with_engine(version, task, golden, tmp_path / "1", OnnxSettings(), atol=1e-7)
    with pytest.raises(InvalidRequest, match=r"golden sample \d+, signature 'serving_default'"):
        load_version(wrong, ServerConfig(models=()))


@pytest.mark.parametrize(("settings", "bound"), [
    (OnnxSettings(precision="float32"), 1e-5), (OnnxSettings(), 0.2),
    (OnnxSettings(ranges="largest"), 0.2)])
def test_an_engine_tells_how_far_it_is_from_its_network(
        settings: OnnxSettings, bound: float, task: Task, golden: Sequence[Sample], tmp_path: Path
        ) -> None:
    choice = cli_engine.EncoderChoice(cli_engine.ENCODERS["onnx"], settings)
    report = cli_engine.write_encoder_engine(task, tmp_path, choice, golden, TEXTS)
    assert report.passed
    described = described_in(tmp_path / "engines" / "onnx")
    assert described.max_abs == report.differences[0].max_abs < bound
    assert described.fixed_ranges == (settings.ranges != "found")


def test_an_engine_too_far_from_its_network_is_not_exported(
        task: Task, golden: Sequence[Sample], tmp_path: Path) -> None:
    choice = cli_engine.EncoderChoice(cli_engine.ENCODERS["onnx"], OnnxSettings(tolerance=1e-6))
    with pytest.raises(VerificationError, match="onnx ids/logits"):
        cli_engine.write_encoder_engine(task, tmp_path, choice, golden)


def test_arguments_become_settings(task: Task) -> None:
    choice = cli_engine.settings_of(arguments("--engine-ranges", "entropy"), task)
    assert isinstance(choice, cli_engine.EncoderChoice)
    assert choice.settings == OnnxSettings(precision="int8", ranges="entropy")
    choice = cli_engine.settings_of(arguments(*LITERT, *SET), task)
    assert isinstance(choice, cli_engine.EncoderChoice)
    assert choice.settings == EncoderSettings(precision="int8", ranges="largest")


FLOAT16, SET = ("--engine-precision", "float16"), ("--engine-ranges", "largest")
LITERT = ("--engine", "litert")


@pytest.mark.parametrize(("words", "message"), [
    ((*FLOAT16, *SET), r"OnnxSettings\.ranges"),
    ((*LITERT, "--engine-precision", "float32", *SET), r"EncoderSettings\.ranges"),
    ((*LITERT, *FLOAT16), r"EncoderSettings\.precision"),
    ((*LITERT, "--engine-guesses", "3"), "--engine-guesses: expected it with a decoder")])
def test_what_a_kind_has_not_is_refused(words: tuple[str, ...], message: str, task: Task) -> None:
    with pytest.raises(ConfigError, match=message):
        cli_engine.settings_of(arguments(*words), task)


def test_a_decoder_has_no_onnx_engine() -> None:
    decoder: Any = SimpleNamespace(config=small.DECODER)
    with pytest.raises(ConfigError, match="expected litert with a decoder, got onnx"):
        cli_engine.settings_of(arguments(), decoder)
    with pytest.raises(ConfigError, match="expected int8 or float32 with a decoder, got float16"):
        cli_engine.settings_of(arguments(*LITERT, *FLOAT16), decoder)


def test_ranges_of_a_decoder_are_not_set() -> None:
    decoder: Any = SimpleNamespace(config=small.DECODER)
    with pytest.raises(ConfigError, match="--engine-ranges: expected found with a decoder, got"):
        cli_engine.settings_of(arguments(*LITERT, *SET), decoder)


@pytest.mark.parametrize("kind", ["litert", "onnx"])
def test_texts_longer_than_a_row_set_ranges_as_far_as_a_row_reaches(
        kind: str, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def write(*_of: Any, batches: Any, **_how: Any) -> None:
        given.extend(batches)

    for module in (litert_classifier, onnx_file):
        monkeypatch.setattr(module, "write", write)
    one = cli_engine.ENCODERS[kind]
    one.write(task, tmp_path, one.settings("int8", "largest"), [b"x" * 500] * 20, str)
    assert [batch["ids"].shape[0] for batch in given] == [16, 4]
    assert np.asarray(given[0]["mask"]).sum(axis=1).max() == small.PACKING.max_tokens


@pytest.mark.parametrize("kind", ["litert", "onnx"])
def test_ranges_without_texts_are_refused_before_anything_is_done(
        kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build.save(build.build(small.BAG), tmp_path / "model")
    code = main(["export", str(tmp_path / "model"), "--base-dir", str(tmp_path / "saved"),
                 "--engine", kind, *SET])
    told = "".join(capsys.readouterr())
    assert code != 0
    assert "--engine-ranges: expected --calibrate FILE or --texts FILE beside it, got" in told
    assert "golden" not in told
