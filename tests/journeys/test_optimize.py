"""`tf-infer optimize` on real small models: a table, an export that says why, a resumed search."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tasks import small
from tf_infer import config
from tf_infer.cli import main
from tf_infer.manifest import EXTRA_FOLDER, EncoderEngineManifest, read_manifest
from tf_infer.tasks import build
from tf_infer.tuning.judge import read
from tf_infer.verify.predictors import EagerPredictor

TEXTS = ("where is my parcel", "支付 失败", "something else", "late", "a b c d e f g h", "x")
BUDGET = "30s"  # one round of a decoder's forms takes 2 s, on a busy machine ten times that


def rows(path: Path, *, labels: bool) -> Path:
    path.write_text("".join(json.dumps(
        {"text": text} | ({"label": small.CLASSIFIER.classes[number % 3]} if labels else {})) + "\n"
        for number, text in enumerate(TEXTS)))
    return path


def command(model: Path, texts: Path, output: Path, *more: str) -> list[str]:
    return ["optimize", str(model), "--texts", str(texts), "--output", str(output), "--name", "m",
            "--budget", BUDGET, "--no-xla", "--max-rows", "1", *more]


def optimize(*arguments: Any) -> dict[str, Any]:
    """Run the command in a process of its own; return the JSON object that it prints."""
    done = subprocess.run([sys.executable, "-m", "tf_infer", *command(*arguments), "--json"],
                          capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(1800)
@pytest.mark.slow  # five processes with TensorFlow: 80 s of processor time
def test_a_classifier_is_tried_chosen_and_exported_and_a_second_run_tells_the_same(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build.save(build.build(small.CLASSIFIER, seed=1), tmp_path / "model")
    texts, output = rows(tmp_path / "t.jsonl", labels=True), tmp_path / "search"
    found = optimize(model, texts, output, "--plans", "plan float32", "--tensorboard",
                     str(tmp_path / "board"))
    assert [one["plan"] for one in found["plans"]] == ["reference", "plan float32"]
    reference, plan = found["plans"]
    assert set(reference["p50_ms"]) == {"1", "8", "32"} and reference["ratio"]["8"] == 1.0
    assert 0.0 < plan["worst_difference"] < 1e-3 and plan["why_not"] == ""
    assert found["metric"] == "accuracy" and plan["drop"] == 0.0
    # the metric by hand: what the model says op by op
    eager = EagerPredictor(build.load(model).signatures())
    said = eager("serving_default", {"text": np.array([one.encode() for one in TEXTS], object)})
    right = np.mean([label.decode() == small.CLASSIFIER.classes[number % 3]
                     for number, label in enumerate(said["label"])])
    assert reference["accuracy"] == pytest.approx(right)
    version = Path(found["exported"])
    assert version == output / "m" / "1"
    assert bool(read_manifest(version).plan) == (found["chosen"] == "plan float32")
    told = json.loads((version / EXTRA_FOLDER / "report.json").read_text())
    assert told["search"]["reason"] == found["reason"]
    assert [one["plan"] for one in told["search"]["plans"]] == ["reference", "plan float32"]
    assert {path["path"]: bool(path["skipped"]) for path in told["paths"]}["grpc"] is False
    for name in ("report.html", "report.png", "report.json"):
        assert (output / name).stat().st_size > 1000
    assert list((tmp_path / "board" / "plan_float32").glob("events.*"))
    for path in output.rglob("*"):  # no text is kept beside the versions
        if path.is_file() and "versions" not in path.parts and path.parent != version.parent and (
                version not in path.parents):
            assert b"my parcel" not in path.read_bytes(), path
    # again, in this process: nothing is built, measured or exported any more
    assert main.main([*command(model, texts, output, "--plans", "plan float32"), "--quiet"]) == 0
    told_again = " ".join(capsys.readouterr().out.split())  # the reason goes over several lines
    assert found["reason"] in told_again and str(version) in told_again
    assert not (output / "m" / "2").exists()


@pytest.mark.timeout(1800)
@pytest.mark.slow
def test_an_engine_whose_ranges_texts_set_is_tried_exported_and_refused_for_texts_unlike_others(
        tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the extra `server`")
    model = build.save(build.build(small.CLASSIFIER, seed=1), tmp_path / "model")
    texts = rows(tmp_path / "t.jsonl", labels=False)
    # Every byte that a text may hold: else ranges cut golden samples off.
    letters = "".join(map(chr, (*range(32, 127), *range(161, 1300), *range(0x4e00, 0x5000))))
    (tmp_path / "many.txt").write_text("\n".join(
        letters[place:place + size] for size in (1, 3, 7, 12, 30)
        for place in range(0, len(letters), 23)))
    (tmp_path / "one.txt").write_text("a\n")
    name, found = "litert int8 static", {}
    for calibrate in ("many", "one"):
        found[calibrate] = optimize(
            model, texts, tmp_path / calibrate, "--plans", name, "--max-drop", "100%",
            "--calibrate", str(tmp_path / f"{calibrate}.txt"), "--no-picture")
        assert [one["plan"] for one in found[calibrate]["plans"]] == ["reference", name]
    set_once = found["many"]["plans"][1]
    assert set_once["why_not"] == "" and set_once["worst_difference"] > 0.0
    assert set_once["candidate"]["engine"] == {"kind": "litert", "precision": "int8",
                                               "ranges": "percentile"}
    versions = [*(tmp_path / "many" / "candidates" / set_once["key"]).rglob("engine.json")]
    chosen = [*Path(found["many"]["exported"]).rglob("engine.json")]
    assert len(versions) == 1 and bool(chosen) == (found["many"]["chosen"] == name)
    for path in versions + chosen:
        assert config.load(EncoderEngineManifest, path).fixed_ranges
    assert found["one"]["chosen"] == "reference"
    assert "differ" in found["one"]["plans"][1]["why_not"]


@pytest.mark.timeout(1800)
@pytest.mark.slow
def test_a_decoder_and_its_engine_are_scored_alike_and_ctrl_c_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the extra `server`")
    model = build.save(build.build(small.SHALLOW_DECODER, seed=1), tmp_path / "model")
    texts, output = rows(tmp_path / "t.jsonl", labels=False), tmp_path / "search"
    arguments = command(model, texts, output, "--plans", "litert float32", "--new-tokens", "4")
    process = subprocess.Popen([sys.executable, "-m", "tf_infer", *arguments],
                               stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 600
        while time.monotonic() < until and not list(output.rglob("built.json")):
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"what is done is in {output}. Run the same command again to go on" in said
    built = [path.stat().st_mtime_ns for path in output.rglob("built.json")]
    assert len(built) >= 1
    found = optimize(model, texts, output, "--plans", "litert float32", "--new-tokens", "4")
    assert set(built) < {path.stat().st_mtime_ns for path in output.rglob("built.json")}
    assert [one["why_not"] for one in found["plans"]] == ["", ""]
    folder = output / "candidates"
    wanted, got = (read(next(folder.glob(f"{name}-*")) / "answers.npz")
                   for name in ("reference", "litert-float32"))
    # a byte an id; a text longer than the longest row lost its beginning
    assert sorted(wanted["counts"].tolist()) == sorted(len(text.encode()) for text in TEXTS)
    np.testing.assert_array_equal(got["counts"], wanted["counts"])
    np.testing.assert_allclose(got["log_probs"], wanted["log_probs"], atol=1e-3)
    assert found["plans"][1]["perplexity"] == pytest.approx(found["plans"][0]["perplexity"],
                                                            rel=1e-3)
    assert os.listdir(output / "m") and found["exported"] == str(output / "m" / "1")
