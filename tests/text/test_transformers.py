"""Folders that transformers wrote, read by us: the same ids, and special ids around them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from tests.text import hostile
from tests.text.test_sentencepiece_reference import model_of
from tf_infer.config import ShapeGrid
from tf_infer.text import files
from tf_infer.text.build import build
from tf_infer.text.packing import pack

pytestmark = pytest.mark.oracles
TEXTS = [*hostile.texts(1_000, seed=21, long_chars=2_000), "the quick dog's 12345 sheep\n\n  we'LL"]
GRID = ShapeGrid(rows=(1_000,), tokens=(8, 64, 512))


def check(theirs: Any, folder: Path, *, kind: str) -> None:
    """Compare ids and packed rows of `theirs` with those of what we read from `folder`."""
    config, packing = files.read(folder), files.read_packing(folder, max_tokens=512)
    assert config.kind == kind
    target = folder / "ours"
    target.mkdir()
    files.copy(folder, target, config)
    codec = build(config, target)
    expected = theirs(TEXTS, add_special_tokens=False)["input_ids"]
    tokens = codec.encode(tf.constant(TEXTS))
    differing = [row for row, ids in enumerate(tokens.ids.to_list()) if ids != expected[row]]
    assert differing == []
    batch = pack(tokens, codec, packing, GRID)
    rows = [row[:size] for row, size in zip(
        batch.ids.numpy().tolist(), tf.math.count_nonzero(batch.mask, axis=1).numpy())]
    theirs.truncation_side = "left" if packing.truncation == "left" else "right"
    assert rows == theirs(TEXTS, truncation=True, max_length=512)["input_ids"]


def learned(split: str) -> Any:
    """Return a byte-level BPE tokenizer, trained here, with the vocabulary of the golden files."""
    tokenizers = pytest.importorskip("tokenizers")
    from scripts.make_bytepair_golden import tokenizer_of, train

    vocabulary, merges = train()
    built = tokenizer_of(vocabulary, merges, split=split, ignore_merges=split == "llama3")
    built.decoder = tokenizers.decoders.ByteLevel()
    return built


def test_a_llama3_style_vocabulary(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    built = learned("llama3")
    start, end = "<|begin_of_text|>", "<|end_of_text|>"
    built.add_special_tokens([start, end])
    built.post_processor = tokenizers.processors.Sequence([
        tokenizers.processors.ByteLevel(trim_offsets=False),
        tokenizers.processors.TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A {start} $B",
            special_tokens=[(start, built.token_to_id(start))])])
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=built, bos_token=start, eos_token=end)
    theirs.save_pretrained(tmp_path)
    check(theirs, tmp_path, kind="bytepair")


def test_a_roberta_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from scripts.make_bytepair_golden import train

    vocabulary, merges = train()
    for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>"):
        vocabulary[token] = len(vocabulary)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (tmp_path / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    theirs = transformers.RobertaTokenizer(vocab=vocabulary, merges=merges)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink()
    theirs.save_pretrained(tmp_path)
    check(theirs, tmp_path, kind="bytepair")


def test_a_llama_folder_with_a_sentencepiece_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    shutil.copy(model_of("stories"), tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False,
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": True}))
    newest = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    # Llama 2's own tokenizer.json puts a space mark before every text, as the library does; what
    # transformers 5 builds of the model file does so only where the text begins with no space.
    rules = json.loads(newest.backend_tokenizer.to_str())
    rules["pre_tokenizer"] = None
    rules["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=pytest.importorskip("tokenizers").Tokenizer.from_str(json.dumps(rules)))
    check(theirs, tmp_path, kind="sentencepiece")
