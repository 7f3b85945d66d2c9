"""Tasks of pretrained checkpoints: text in, the reference's answer out."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.tasks.suite import as_arrays
from tf_infer.errors import CheckpointError, ConfigError
from tf_infer.tasks.build import from_checkpoint, load, save
from tf_infer.tasks.causal_lm import CausalLM
from tf_infer.tasks.classifier import Classifier

TESTS = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("TF_INFER_SHARED", TESTS.parent.parent / "shared"))
GOLDEN = TESTS / "golden" / "networks" / "bert_classifier"  # 90 ids, rows of at most 20
ATOL = 1e-4  # of transformers' logits: the promise of networks.checkpoints
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "parcel", "is", "late", "."]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The stored BERT classifier with a tokenizer of as many words."""
    folder = tmp_path / "bert"
    shutil.copytree(GOLDEN, folder)
    lines = WORDS + [f"word{number}" for number in range(90 - len(WORDS))]
    (folder / "vocab.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_a_classifier_gives_the_logits_of_transformers(checkpoint: Path) -> None:
    task = from_checkpoint(checkpoint, {"pair": True})
    assert isinstance(task, Classifier)
    assert task.config.classes == ("bad", "good", "so so")
    assert task.config.packing.max_tokens == 20 == task.config.grid.tokens[-1]
    stored = np.load(GOLDEN / "outputs.npz")
    mask = (np.arange(stored["ids"].shape[1]) < stored["lengths"][:, None]).astype(np.int32)
    found = as_arrays(task.signatures()["ids"].function(
        ids=tf.constant(stored["ids"] * mask), mask=tf.constant(mask),
        segments=tf.constant(stored["segments"] * mask)))
    np.testing.assert_allclose(found["logits"], stored["classes"], atol=ATOL)


def test_its_tokenizer_is_that_of_the_directory(checkpoint: Path) -> None:
    task = from_checkpoint(checkpoint)
    encoded = as_arrays(task.signatures()["encode"].function(
        text=tf.constant(["The parcel is LATE. qqq"])))
    assert encoded["ids"][0, :8].tolist() == [2, 5, 6, 7, 8, 9, 1, 3]


def test_a_task_of_a_checkpoint_is_saved_without_it(checkpoint: Path, tmp_path: Path) -> None:
    task = from_checkpoint(checkpoint)
    text = tf.constant(["the parcel", "is late", ""])
    wanted = as_arrays(task.signatures()["serving_default"].function(text=text))
    save(task, tmp_path / "model")
    shutil.rmtree(checkpoint)
    for again in (load(tmp_path / "model"), from_checkpoint(tmp_path / "model")):
        found = as_arrays(again.signatures()["serving_default"].function(text=text))
        np.testing.assert_array_equal(found["label"], wanted["label"])
        np.testing.assert_allclose(found["logits"], wanted["logits"], atol=1e-6)


def test_new_classes_get_a_new_head(checkpoint: Path) -> None:
    task = from_checkpoint(checkpoint, {"classes": ("a", "b"), "pooling": "mean", "hidden": ()},
                           max_tokens=12)
    assert task.config.classes == ("a", "b") and task.config.grid.tokens == (12,)
    assert task.network.logits.units == 2
    own = from_checkpoint(checkpoint)
    same = [np.array_equal(a, b) for a, b in zip(task.network.encoder.get_weights(),
                                                own.network.encoder.get_weights())]
    assert all(same)


def head_of(task: Classifier) -> tuple[np.ndarray, np.ndarray]:
    return task.network.logits.kernel.numpy(), task.network.logits.bias.numpy()


def test_a_trained_head_is_kept_under_other_names_or_its_loss_is_told(checkpoint: Path) -> None:
    def head(**changes: object) -> tuple[np.ndarray, np.ndarray, list[str]]:
        told: list[str] = []
        task = from_checkpoint(checkpoint, changes, tell=told.append)
        return (*head_of(task), told)

    kernel, bias, told = head()
    assert told == []
    renamed = head(classes=("x", "good", "z"))
    np.testing.assert_array_equal(renamed[0], kernel)
    assert renamed[2] == [
        "trained head kept under other class names: 'bad' is now 'x', 'so so' is now 'z'"]
    turned = head(classes=("so so", "bad", "good"))  # the same names: each keeps its weights
    np.testing.assert_array_equal(turned[0], kernel[:, [2, 0, 1]])
    np.testing.assert_array_equal(turned[1], bias[[2, 0, 1]])
    assert turned[2] == []
    for changes, fields in (({"multi_label": True}, "multi_label differs"),
                            ({"normalize": True}, "normalize differs"),
                            ({"classes": ("a", "b")}, "classes differs"),
                            ({"hidden": (4,)}, "hidden differs")):
        dropped = head(**changes)
        assert not np.array_equal(dropped[0], kernel)
        assert dropped[2] == [f"trained head dropped: {fields}; the new head is not trained"]


@pytest.mark.parametrize(("changes", "message"), [
    ({"kind": "causal_lm"}, "kind: expected 'classifier', since that is what the checkpoint's"),
    ({"clases": ("a", "b")}, "changes: expected fields of ClassifierConfig"),
    ({"classes": ("a",)}, "classes: expected two or more names"),
])
def test_wrong_changes_are_refused(checkpoint: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_checkpoint(checkpoint, changes)


def test_a_checkpoint_without_tokenizer_says_so(checkpoint: Path) -> None:
    (checkpoint / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=r"vocab\.txt"):
        from_checkpoint(checkpoint)


def test_an_encoder_without_head_asks_for_classes(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["architectures"] = ["BertModel"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="classes: expected the names of the classes"):
        from_checkpoint(checkpoint)
    told: list[str] = []
    task = from_checkpoint(checkpoint, {"classes": ("x", "y")}, tell=told.append)
    assert task.config.classes == ("x", "y")
    assert told == ["not used: 2 tensors of other heads, classifier.bias first"]


def test_nothing_at_the_path_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a directory or a"):
        from_checkpoint(tmp_path / "nowhere")


def test_our_own_directory_takes_a_name_alone(checkpoint: Path, tmp_path: Path) -> None:
    save(from_checkpoint(checkpoint), tmp_path / "model")
    own = tmp_path / "model"
    with pytest.raises(ConfigError, match=r"changes: expected no more than a name.*\['pair'\]"):
        from_checkpoint(own, {"pair": True})
    with pytest.raises(ConfigError, match=r"expected no more than a name.*max_tokens=9"):
        from_checkpoint(own, max_tokens=9)
    with pytest.raises(ConfigError, match="kind: expected 'classifier', since that is what task"):
        from_checkpoint(own, {"kind": "causal_lm"})
    assert from_checkpoint(own, {"kind": "classifier", "name": "x"}).config.name == "x"


def test_a_prompt_keeps_its_end_whatever_the_tokenizer_says(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    shutil.copytree(TESTS / "golden" / "networks" / "llama_tied", folder)
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in [
        *WORDS, *(f"word{number}" for number in range(size - len(WORDS)))]))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "BertTokenizer", "truncation_side": "right"}))
    task = from_checkpoint(folder, {"capacity": 2}, max_tokens=4)
    encoded = as_arrays(task.signatures()["encode"].function(
        text=tf.constant(["the parcel is late ."])))
    assert encoded["ids"][0].tolist()[-3:] == [7, 8, 9]
    assert task.config.defaults.max_new_tokens == 2


@pytest.mark.slow
def test_stories260k_tells_its_golden_story_from_text_to_text(tmp_path: Path) -> None:
    folder = SHARED / "weights" / "stories260K"
    if not folder.is_dir():
        pytest.skip("needs weights/stories260K in the shared folder (TF_INFER_SHARED)")
    wanted = json.loads((folder / "golden_greedy.json").read_text())
    shutil.copyfile(folder / "tok512_rebuilt.model", tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}))
    task = from_checkpoint(folder, {"capacity": 200}, tokenizer_dir=tmp_path, max_tokens=64)
    assert isinstance(task, CausalLM) and task.config.end_ids == (2,)
    signature = task.signatures()["generate"]
    generate = tf.function(signature.function).get_concrete_function(**signature.input_specs())
    prompts = ["", "Once upon a time, there was a little girl"]
    options = {"temperature": tf.zeros([2]), "top_k": tf.zeros([2], tf.int32),
               "top_p": tf.ones([2]), "seed": tf.zeros([2], tf.int64)}
    found = as_arrays(generate(prompt=tf.constant(prompts),
                               max_new_tokens=tf.constant([200, 60]), **options))
    assert found["ids"][0].tolist() == wanted["greedy_ids"][1:]
    assert found["text"][0].decode() == wanted["greedy_text"]
    # The same story from its first words on: the space before the next word is not lost.
    told = prompts[1] + found["text"][1].decode()
    assert wanted["greedy_text"].startswith(told) and len(told) > 150
    scored = task.signatures()["score"].function(
        prompt=tf.constant(prompts[1:]), continuation=tf.constant([" named Lily."]))
    assert int(scored["length"][0]) == 3 and float(scored["score"][0]) > -3.0
