"""`tf-infer export` and `tf-infer verify`: from a model directory to a proven version, and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tf_infer.cli import proof
from tf_infer.cli.main import main
from tf_infer.config import (
    CausalLMConfig,
    ClassifierConfig,
    GenerationDefaults,
    PackingConfig,
    ShapeGrid,
    SmallTransformerConfig,
)
from tf_infer.errors import DataError
from tf_infer.manifest import EXTRA_FOLDER, Sample, array_to_json, read_samples, write_samples
from tf_infer.tasks import build

GRID = ShapeGrid(rows=(1, 2), tokens=(8, 16))
NETWORK = SmallTransformerConfig(width=16, layers=1, heads=2, hidden=32, max_positions=32)
CLASSES = ("yes", "no", "maybe")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ClassifierConfig(classes=CLASSES, grid=GRID, network=NETWORK,
                              packing=PackingConfig(max_tokens=16))
    return build.save(build.build(config), tmp_path_factory.mktemp("models") / "answers")


@pytest.fixture(scope="module")
def base_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1, with every path compared: XLA and a server, too."""
    folder = tmp_path_factory.mktemp("saved") / "answers"
    assert main(["export", str(model_dir), "--base-dir", str(folder), "--json"]) == 0
    return folder


def read_report(base_dir: Path) -> dict[str, dict]:
    report = json.loads((base_dir / "1" / EXTRA_FOLDER / "report.json").read_text())
    return {path["path"]: path for path in report["paths"]}


def test_a_version_was_compared_on_every_path(base_dir: Path) -> None:
    paths = read_report(base_dir)
    assert list(paths) == ["graph", "xla", "saved_model", "session", "grpc"]
    assert all(path["samples"] > 0 and not path["skipped"] for path in paths.values())
    signatures = {one["signature"] for one in paths["grpc"]["differences"]}
    assert signatures == {"serving_default", "ids", "classify", "encode"}


def test_verify_replays_the_golden_samples_of_the_highest_version(
        base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(base_dir)]) == 0
    shown = capsys.readouterr()
    assert "passed: saved_model, session = golden" in shown.out
    assert f"{base_dir}/1" in shown.err


def test_verify_asks_a_server_too(base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    served = proof.ServedPredictor(base_dir / "1", "other name")
    address = served._server.addresses[0]
    try:
        code = main(["verify", str(base_dir / "1"), "--address", address, "--model", "other name",
                     "--json"])
    finally:
        served.close()
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert report["passed"] is True
    assert [path["path"] for path in report["report"]["paths"]] == [
        "saved_model", "session", "grpc"]


def test_verify_compares_the_paths_of_a_model_directory(
        model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(model_dir), "--no-xla", "--json"]) == 0
    paths = json.loads(capsys.readouterr().out)["report"]["paths"]
    assert [path["path"] for path in paths] == ["graph", "alone", "shuffled"]


def copy_with_golden(base_dir: Path, folder: Path, samples: Sequence[Sample]) -> Path:
    """A SavedModel of somebody else, without our manifest, with these golden samples."""
    shutil.copytree(base_dir / "1", folder, ignore=shutil.ignore_patterns(EXTRA_FOLDER))
    (folder / EXTRA_FOLDER).mkdir()
    write_samples(samples, folder / EXTRA_FOLDER / "golden.jsonl")
    return folder


@pytest.mark.parametrize("spoiled", [0.5, np.nan])
def test_verify_says_which_answer_differs(
        base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoiled: float) -> None:
    samples = list(read_samples(base_dir / "1" / EXTRA_FOLDER / "golden.jsonl"))
    index = next(i for i, one in enumerate(samples) if one.signature == "ids")
    samples[index].outputs["logits"][1, 0] += spoiled
    folder = copy_with_golden(base_dir, tmp_path / "1", samples)
    assert main(["verify", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert f"FAILED, first in sample {index} (first in row 1" in shown
    assert ("NaN on one side only" in shown) == np.isnan(spoiled)
    assert "FAILED: saved_model, session does not give what golden gives." in shown
    assert main(["verify", str(folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_a_foreign_saved_model_is_verified_with_requests_of_its_owner(
        base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_with_golden(base_dir, tmp_path / "theirs", [])
    shutil.rmtree(folder / EXTRA_FOLDER)
    assert main(["verify", str(folder)]) == 1
    assert "Give requests of your own with --samples" in capsys.readouterr().err
    text = array_to_json(np.array([b"hello"], object))
    line = {"signature": "serving_default", "inputs": {"text": text}, "outputs": {}}
    (tmp_path / "requests.jsonl").write_text(json.dumps(line) + "\n")
    assert main(["verify", str(folder), "--samples", str(tmp_path / "requests.jsonl")]) == 0
    assert "session = saved_model" in capsys.readouterr().out


def test_damaged_directories_are_named(
        base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 1
    assert f"{tmp_path}: expected a model directory with task.json" in capsys.readouterr().err
    copied = shutil.copytree(base_dir / "1", tmp_path / "1")
    golden, manifest = (copied / EXTRA_FOLDER / name for name in ("golden.jsonl", "tf_infer.json"))
    whole = golden.read_text()
    golden.write_text(whole[:-30])
    assert main(["verify", str(copied)]) == 1
    assert f"{EXTRA_FOLDER}/golden.jsonl has changed" in capsys.readouterr().err
    golden.write_text(whole)
    (copied / "variables" / "variables.index").unlink()
    assert main(["verify", str(copied)]) == 1
    assert "variables/variables.index is missing" in capsys.readouterr().err
    manifest.write_text(manifest.read_text()[:100])
    assert main(["verify", str(copied)]) == 1
    assert "tf_infer.json: expected JSON" in capsys.readouterr().err


def test_nothing_is_exported_when_a_path_differs(
        model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    honest = proof.make_golden

    def spoiled(*arguments: object, **options: object) -> tuple[Sample, ...]:
        golden = honest(*arguments, **options)
        golden[0].outputs["scores"] += 0.01
        return golden

    monkeypatch.setattr(proof, "make_golden", spoiled)
    command = ["export", str(model_dir), "--base-dir", str(tmp_path), "--no-xla", "--no-server"]
    assert main(command) == 1
    shown = capsys.readouterr()
    assert "FAILED: graph, saved_model, session" in shown.out
    assert "graph serving_default/scores:" in shown.err
    assert "Nothing was written" in shown.err
    assert [path.name for path in tmp_path.iterdir()] == [".last_version"]


def test_a_decoder_is_exported_and_the_old_version_removed(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = CausalLMConfig(packing=PackingConfig(max_tokens=8, end=False, truncation="left"),
                            grid=ShapeGrid(rows=(1, 2), tokens=(8,)), network=NETWORK, capacity=8,
                            defaults=GenerationDefaults(max_new_tokens=4))
    with pytest.raises(DataError):
        proof.read_texts(tmp_path / "none.txt")
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "once upon"}\n{"prompt": "a time"}\n')
    build.save(build.build(config), tmp_path / "writer")
    (tmp_path / "saved" / "4").mkdir(parents=True)
    assert main(["export", str(tmp_path / "writer"), "--base-dir", str(tmp_path / "saved"),
                 "--name", "writer", "--texts", str(texts), "--no-xla", "--no-server",
                 "--keep", "1"]) == 0
    shown = capsys.readouterr().out
    assert "removed the versions 4" in shown
    assert f"next: tf-infer serve --model_name=writer --model_base_path={tmp_path}/saved" in shown
    samples = read_samples(tmp_path / "saved" / "5" / EXTRA_FOLDER / "golden.jsonl")
    assert {sample.signature for sample in samples} == {
        "serving_default", "generate", "score", "encode", "decode", "steps"}
    prompts = [text for sample in samples if sample.signature == "serving_default"
               for text in sample.inputs["prompt"]]
    assert b"once upon" in prompts


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.txt", b" \n\n", "at least one text"), ("a.jsonl", b'{"text": "x"}\n{"t": 1}\n', "line 2"),
    ("b.jsonl", b"{\n", "line 1"), ("c.jsonl", b"[]\n", "line 1")])
def test_a_file_without_texts_is_named(
        tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}.*{message}"):
        proof.read_texts(tmp_path / name)
