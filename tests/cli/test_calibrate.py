"""`tf-infer calibrate`: what is fitted is written, travels with the next export, and is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tasks import small
from tf_infer import config
from tf_infer.cli.calibrate import logits_of
from tf_infer.cli.main import main
from tf_infer.config import ClassifierConfig, EmbeddingBagConfig
from tf_infer.tasks import build
from tf_infer.train import data

pytestmark = pytest.mark.whole

CLASSES = ("a", "b", "c")
CONFIG = ClassifierConfig(
    classes=CLASSES, packing=small.PACKING, grid=small.GRID, temperature=0.25,
    network=EmbeddingBagConfig(width=8, hash_buckets=50))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose logits are drawn and large, and whose temperature makes it all too sure."""
    task = build.build(CONFIG, seed=1)
    task.network.logits.kernel.assign(np.random.default_rng(0).normal(size=(8, 3)) * 30)
    return build.save(task, tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def labelled(model: Path) -> Path:
    """Texts with labels drawn from what the logits would say at a temperature of 2."""
    generator = np.random.default_rng(1)
    texts = [" ".join(generator.choice(list("abcdefghij"), 4)) for _ in range(600)]
    logits = logits_of(build.load(model), [data.Example(text) for text in texts]) / 2.0
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    labels = (shares.cumsum(axis=1) > generator.random((600, 1))).argmax(axis=1)
    path = model.parent / "dev.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "label": CLASSES[label]})
                              for text, label in zip(texts, labels)))
    return path


def test_a_copy_gets_the_temperature_and_the_picture_is_drawn(
        model: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "sure.png"
    before = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    assert main(["calibrate", str(model), "--texts", str(labelled), "--output",
                 str(tmp_path / "new"), "--plot", str(picture), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["temperature"] == pytest.approx(2.0, rel=0.2)
    assert told["after"]["error"] < told["before"]["error"] / 3
    assert told["after"]["right"] == told["before"]["right"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()} == before
    changed = config.load(ClassifierConfig, tmp_path / "new" / "task.json")
    assert changed == replace(CONFIG, temperature=round(told["temperature"], 6))
    answer = build.load(tmp_path / "new").signatures()["serving_default"].function(
        text=np.array([b"a b"], object))
    logits = answer["logits"].numpy()[0] / changed.temperature
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    np.testing.assert_allclose(answer["scores"].numpy()[0], shares, atol=1e-5)


def test_a_model_is_changed_in_place_and_only_once(
        model: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = shutil.copytree(model, tmp_path / "own")
    assert main(["calibrate", str(own), "--texts", str(labelled)]) == 0
    shown = capsys.readouterr().out
    assert "600 texts; temperature 0.25 -> " in shown
    assert "calibration error 0." in shown and "accuracy " in shown
    first = (own / "task.json").read_bytes()
    assert main(["calibrate", str(own), "--texts", str(labelled)]) == 0
    assert (own / "task.json").read_bytes() == first  # what it has is replaced, not multiplied
    assert sorted(path.name for path in own.iterdir()) == sorted(
        path.name for path in model.iterdir())


def test_a_temperature_that_nothing_bounds_is_bounded_and_that_is_said(
        model: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = data.read(labelled)[:40]
    best = logits_of(build.load(model), examples).argmax(axis=1)
    (tmp_path / "right.jsonl").write_text("\n".join(
        json.dumps({"text": one.text, "label": CLASSES[place]})
        for one, place in zip(examples, best)))
    words = ["calibrate", str(model), "--texts", str(tmp_path / "right.jsonl"), "--output"]
    assert main([*words, str(tmp_path / "new")]) == 0
    shown = capsys.readouterr().out
    assert "the temperature is bounded: all 40 decisions are right" in shown
    assert "it is fitted as if one of 42 were not" in shown
    assert main([*words, str(tmp_path / "other"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bounded"].startswith("all 40 decisions are right")


@pytest.mark.parametrize("output", [True, False])
def test_what_is_interrupted_leaves_nothing(
        output: bool, model: Path, labelled: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    own = shutil.copytree(model, tmp_path / "models" / "own")
    before = (own / "task.json").read_bytes()

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.rename", interrupted)
    monkeypatch.setattr("os.replace", interrupted)
    words = ["--output", str(tmp_path / "models" / "new")] if output else []
    assert main(["calibrate", str(own), "--texts", str(labelled), *words]) == 130
    assert (own / "task.json").read_bytes() == before
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["own"]
    assert sorted(path.name for path in own.iterdir()) == sorted(
        path.name for path in model.iterdir())


def test_thresholds_of_several_labels_are_written(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several = replace(CONFIG, multi_label=True, temperature=1.0)
    own = build.save(build.build(several, seed=1), tmp_path / "m")
    generator = np.random.default_rng(2)
    rows = [{"text": " ".join(generator.choice(list("abcdefgh"), 5)),
             "labels": [name for name in CLASSES if generator.random() < 0.4]} for _ in range(80)]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["calibrate", str(own), "--texts", str(tmp_path / "dev.jsonl")]
    assert main([*words, "--thresholds"]) == 0
    shown = capsys.readouterr().out
    assert "F1 of all decisions" in shown
    found = config.load(ClassifierConfig, own / "task.json")
    assert len(found.thresholds) == 3 and found.thresholds != (0.5, 0.5, 0.5)
    for name, limit in zip(CLASSES, found.thresholds):
        assert f"  threshold {limit:.4f}  {name}" in shown


@pytest.mark.parametrize(("words", "message"), [
    (["--thresholds"], "--thresholds: expected a model that gives several labels"),
    (["--output", "MODEL"], "--output: expected a directory that does not exist"),
    (["--plot", "/nowhere/x.png"], "--plot: expected a file in a folder that exists"),
    (["--texts", "FEW"], "expected at least 20 labelled texts to fit a temperature, got 1"),
    (["--texts", "STRANGE"], "label: expected one of the model's 3 classes"),
], ids=lambda value: str(value)[:24])
def test_what_cannot_be_is_refused_and_changes_nothing(
        model: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        words: list[str], message: str) -> None:
    (tmp_path / "few.jsonl").write_text('{"text": "secret", "label": "a"}\n')
    (tmp_path / "strange.jsonl").write_text('{"text": "secret", "label": "zz"}\n')
    places = {"MODEL": str(model), "FEW": str(tmp_path / "few.jsonl"),
              "STRANGE": str(tmp_path / "strange.jsonl")}
    before = (model / "task.json").read_bytes()
    assert main(["calibrate", str(model), "--texts", str(labelled),
                 *(places.get(word, word) for word in words)]) == 1
    said = capsys.readouterr().err
    assert message in said and "secret" not in said
    assert (model / "task.json").read_bytes() == before


def test_a_row_whose_logits_are_no_numbers_is_named(
        labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = build.build(CONFIG, seed=1)
    task.network.logits.bias.assign([0.0, np.nan, 0.0])
    broken = build.save(task, tmp_path / "broken")
    before = (broken / "task.json").read_bytes()
    assert main(["calibrate", str(broken), "--texts", str(labelled)]) == 1
    assert "dev.jsonl:1: expected logits that are numbers, got NaN" in capsys.readouterr().err
    assert (broken / "task.json").read_bytes() == before


def test_a_decoder_has_no_scores_of_classes(
        labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = build.save(build.build(small.SHALLOW_DECODER), tmp_path / "writer")
    assert main(["calibrate", str(folder), "--texts", str(labelled)]) == 1
    assert "expected a classifier, got a model of kind 'causal_lm'" in capsys.readouterr().err
