from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from tf_infer.config import (
    AddedToken,
    BytePairConfig,
    BytesConfig,
    ChatFormat,
    SentencePieceConfig,
    WordPieceConfig,
)
from tf_infer.errors import CheckpointError
from tf_infer.text import build, files

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "text" / "wordpiece"
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##y", "!"]


def added(text: str, number: int, **flags: bool) -> dict[str, Any]:
    return {"id": number, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True, **flags}


def special(text: str, type_id: int = 0) -> dict[str, Any]:
    return {"SpecialToken": {"id": text, "type_id": type_id}}


def part(name: str) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": 0}}


BERT: dict[str, Any] = {
    "version": "1.0", "truncation": None, "padding": None,
    "added_tokens": [added(text, i) for i, text in enumerate(VOCAB[:5])],
    "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                   "strip_accents": None, "lowercase": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [special("[CLS]"), part("A"), special("[SEP]")],
        "pair": [special("[CLS]"), part("A"), special("[SEP]"), part("B"), special("[SEP]", 1)],
        "special_tokens": {}},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
              "max_input_chars_per_word": 100,
              "vocab": {text: i for i, text in enumerate(VOCAB)}},
}
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
GPT2: dict[str, Any] = {
    "version": "1.0", "truncation": None, "padding": None,
    "added_tokens": [added("<|end|>", 3)], "normalizer": None, "pre_tokenizer": LEVEL,
    "post_processor": LEVEL, "decoder": LEVEL,
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
              "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
              "ignore_merges": False, "vocab": {"a": 0, "b": 1, "ab": 2, "<|end|>": 3},
              "merges": [["a", "b"]]},
}


def write(folder: Path, tokenizer: dict[str, Any] | None = None, **others: Any) -> Path:
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    for name, data in others.items():
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def changed(base: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy of `base` with the entry at a dotted path replaced or added."""
    result = copy.deepcopy(base)
    *way, last = path.split(".")
    inner = result
    for key in way:
        inner = inner[key]
    inner[last] = value
    return result


def test_a_bert_folder_with_only_tokenizer_json(tmp_path: Path) -> None:
    folder = write(tmp_path, BERT)
    config = files.read(folder)
    assert config == WordPieceConfig(added_tokens=tuple(
        AddedToken(text=text, id=i) for i, text in enumerate(VOCAB[:5])))
    packing = files.read_packing(folder, max_tokens=64)
    assert (packing.max_tokens, packing.start, packing.end) == (64, True, True)
    assert (packing.pair_separators, packing.truncation) == (1, "longest_first")
    target = tmp_path / "ours"
    target.mkdir()
    files.copy(folder, target, config)
    assert [path.name for path in target.iterdir()] == ["vocab.txt"]
    codec = build.build(config, target)
    assert codec.encode(tf.constant(["They [MASK]!"])).ids.to_list() == [[5, 6, 4, 7]]


@pytest.mark.parametrize(("path", "value", "field", "expected"), [
    ("normalizer.lowercase", False, "strip_accents", False),
    ("normalizer.strip_accents", False, "strip_accents", False),
    ("normalizer.handle_chinese_chars", False, "split_chinese", False),
    ("normalizer.clean_text", False, "clean_text", False),
    ("normalizer", None, "lowercase", False),
    ("model.max_input_chars_per_word", 7, "max_word_chars", 7),
])
def test_options_of_tokenizer_json_count(
        tmp_path: Path, path: str, value: Any, field: str, expected: Any) -> None:
    assert getattr(files.read(write(tmp_path, changed(BERT, path, value))), field) == expected


def test_flags_of_added_tokens_count(tmp_path: Path) -> None:
    token = added("<x>", 9, lstrip=True, rstrip=True, single_word=True, normalized=True,
                  special=False)
    config = files.read(write(tmp_path, changed(BERT, "added_tokens", [token])))
    assert isinstance(config, WordPieceConfig)
    assert config.added_tokens == (
        AddedToken(text="<x>", id=9, special=False, left_strip=True, right_strip=True,
                   single_word=True, normalized=True),)


@pytest.mark.parametrize(("base", "path", "value", "named"), [
    (BERT, "normalizer", {"type": "Lowercase"}, "normalizer.type"),
    (BERT, "normalizer.fold", True, "normalizer.fold"),
    (BERT, "pre_tokenizer", {"type": "Whitespace"}, "pre_tokenizer.type"),
    (BERT, "pre_tokenizer", None, "pre_tokenizer"),
    (BERT, "decoder.cleanup", False, "decoder.cleanup"),
    (BERT, "model.type", "WordLevel", "model.type"),
    (BERT, "model.novelty", 1, "model.novelty"),
    (BERT, "novelty", 1, "tokenizer.json.novelty"),
    (BERT, "added_tokens", [{**added("x", 1), "colour": 1}], "colour"),
    (GPT2, "normalizer", {"type": "NFC"}, "normalizer"),
    (GPT2, "model.dropout", 0.1, "model.dropout"),
    (GPT2, "model.end_of_word_suffix", "</w>", "end_of_word_suffix"),
    (GPT2, "pre_tokenizer", {"type": "Metaspace"}, "pre_tokenizer"),
    (GPT2, "pre_tokenizer", {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": False},
        {**LEVEL, "use_regex": False}]}, "pattern"),
])
def test_what_cannot_be_done_exactly_is_named(
        tmp_path: Path, base: dict[str, Any], path: str, value: Any, named: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        files.read(write(tmp_path, changed(base, path, value)))
    assert named in str(caught.value)


def test_unknown_post_processors_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'Novel'"):
        files.read_packing(write(tmp_path, changed(BERT, "post_processor", {"type": "Novel"})))


@pytest.mark.parametrize(("single", "pair"), [
    ([special("x"), special("y"), part("A")], []),
    ([part("A"), special("x")], [part("A"), part("B"), special("x")]),
])
def test_templates_that_packing_cannot_lay_are_refused(
        tmp_path: Path, single: list[Any], pair: list[Any]) -> None:
    template = {"type": "TemplateProcessing", "single": single, "pair": pair}
    with pytest.raises(CheckpointError, match="post_processor"):
        files.read_packing(write(tmp_path, changed(BERT, "post_processor", template)))


def test_a_gpt2_folder_with_only_tokenizer_json(tmp_path: Path) -> None:
    folder = write(tmp_path, GPT2, tokenizer_config={"eos_token": "<|end|>", "pad_token": None})
    config = files.read(folder)
    assert config == BytePairConfig(end_token="<|end|>",
                                    added_tokens=(AddedToken(text="<|end|>", id=3),))
    packing = files.read_packing(folder)
    assert (packing.start, packing.end, packing.truncation) == (False, False, "left")
    target = tmp_path / "ours"
    target.mkdir()
    files.copy(folder, target, config)
    assert json.loads((target / "vocab.json").read_text()) == GPT2["model"]["vocab"]
    assert (target / "merges.txt").read_text() == "a b\n"


def test_a_roberta_folder(tmp_path: Path) -> None:
    processor = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0],
                 "trim_offsets": True, "add_prefix_space": False}
    folder = write(tmp_path, changed(GPT2, "post_processor", processor))
    config = files.read(folder)
    assert isinstance(config, BytePairConfig)
    assert (config.start_token, config.end_token) == ("<s>", "</s>")
    assert files.read_packing(folder).pair_separators == 2


def test_a_llama3_folder(tmp_path: Path) -> None:
    from tf_infer.text.tokenizer_json import _LLAMA3
    cut = {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False}
    data = changed(GPT2, "pre_tokenizer", {"type": "Sequence", "pretokenizers": [
        cut, {**LEVEL, "use_regex": False}]})
    data["post_processor"] = {"type": "Sequence", "processors": [LEVEL, {
        "type": "TemplateProcessing", "single": [special("<|end|>"), part("A")],
        "pair": [], "special_tokens": {}}]}
    data["model"]["ignore_merges"] = True
    config = files.read(write(tmp_path, data))
    assert isinstance(config, BytePairConfig)
    assert (config.split, config.ignore_merges, config.start_token) == ("llama3", True, "<|end|>")
    packing = files.read_packing(tmp_path)
    assert (packing.start, packing.end, packing.truncation) == (True, False, "left")


def test_a_folder_with_only_vocab_txt_and_its_options(tmp_path: Path) -> None:
    shutil.copyfile(GOLDEN / "vocab.txt", tmp_path / "vocab.txt")
    write(tmp_path, tokenizer_config={"do_lower_case": False, "tokenize_chinese_chars": False})
    config = files.read(tmp_path)
    assert isinstance(config, WordPieceConfig)
    assert (config.lowercase, config.strip_accents, config.split_chinese) == (False, False, False)
    assert [token.text for token in config.added_tokens] == VOCAB[:5]


def test_two_files_that_disagree_are_refused(tmp_path: Path) -> None:
    write(tmp_path, BERT, tokenizer_config={"do_lower_case": False})
    with pytest.raises(CheckpointError, match="do_lower_case: expected True"):
        files.read(tmp_path)


def test_a_sentencepiece_folder(tmp_path: Path) -> None:
    # Two fields of ModelProto.pieces each: text and score, or text, score and type.
    def piece(text: str, kind: int) -> bytes:
        body = b"\x0a" + bytes([len(text.encode())]) + text.encode() + b"\x18" + bytes([kind])
        return b"\x0a" + bytes([len(body)]) + body

    model = piece("<unk>", 2) + piece("<s>", 3) + piece("</s>", 3) + piece("a", 1)
    (tmp_path / "spiece.model").write_bytes(model)
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True}
    write(tmp_path, tokenizer_config=settings)
    config = files.read(tmp_path)
    assert config == SentencePieceConfig(start_id=1, end_id=2)
    packing = files.read_packing(tmp_path)
    assert (packing.start, packing.end) == (True, False)
    target = tmp_path / "ours"
    target.mkdir()
    files.copy(tmp_path, target, config)
    assert (target / "tokenizer.model").read_bytes() == model
    unigram = {**copy.deepcopy(GPT2), "model": {
        "type": "Unigram", "unk_id": 0, "vocab": [["<s>", 0], ["<unk>", 0], ["a", 0]]}}
    with pytest.raises(CheckpointError, match="remapped"):
        files.read(write(tmp_path, unigram))


def test_the_tokenizer_folder_of_a_keras_hub_preset(tmp_path: Path) -> None:
    folder = tmp_path / "assets" / "tokenizer"
    folder.mkdir(parents=True)
    shutil.copyfile(GOLDEN / "vocab.txt", folder / "vocabulary.txt")
    options = {"lowercase": True, "strip_accents": False, "split": True, "suffix_indicator": "##",
               "oov_token": "[UNK]", "special_tokens_in_strings": False}
    write(tmp_path, {"class_name": "BertTokenizer", "config": options})
    config = files.read(folder)
    assert isinstance(config, WordPieceConfig)
    assert (config.lowercase, config.strip_accents, config.start_token) == (True, False, "[CLS]")
    (tmp_path / "ours").mkdir()
    files.copy(folder, tmp_path / "ours", config)
    assert (tmp_path / "ours" / "vocab.txt").read_bytes() == (GOLDEN / "vocab.txt").read_bytes()
    write(tmp_path, {"class_name": "BertTokenizer", "config": {**options, "split": False}})
    with pytest.raises(CheckpointError, match="split"):
        files.read(folder)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected tokenizer\.json"):
        files.read(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_tokenizer_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        files.read(tmp_path)


def test_the_chat_template_and_its_tokens_are_read(tmp_path: Path) -> None:
    write(tmp_path, tokenizer_config={
        "chat_template": "{{ bos_token }}x", "bos_token": {"content": "<s>"}, "eos_token": "</s>",
        "add_bos_token": True}, special_tokens_map={"unk_token": "<unk>", "eos_token": "old"})
    found = files.read_chat(tmp_path, start=True)
    assert found == ChatFormat(template="{{ bos_token }}x", start=True, tokens={
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def test_of_several_chat_templates_the_default_counts_and_a_file_before_all(tmp_path: Path
                                                                            ) -> None:
    listed = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    write(tmp_path, tokenizer_config={"chat_template": listed})
    found = files.read_chat(tmp_path, start=False)
    assert found is not None and found.template == "yes"
    (tmp_path / "chat_template.jinja").write_text("filé", encoding="utf-8")
    found = files.read_chat(tmp_path, start=False)
    assert found is not None and found.template == "filé"
    assert files.read_chat(tmp_path / "empty", start=False) is None


@pytest.mark.parametrize("template", [5, "", "x" * 70_000, {"a": 1}])
def test_a_chat_template_that_is_none_is_named(tmp_path: Path, template: Any) -> None:
    write(tmp_path, tokenizer_config={"chat_template": template})
    with pytest.raises(CheckpointError, match="chat template"):
        files.read_chat(tmp_path, start=False)


def test_a_copied_folder_keeps_the_chat_template_also_of_the_bytes_codec(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    files.copy(source, target, BytesConfig())
    assert list(target.iterdir()) == []
    write(source, tokenizer_config={"chat_template": "x", "eos_token": "</s>"})
    files.copy(source, target, BytesConfig())
    assert files.read_chat(target, start=True) == files.read_chat(source, start=True) == ChatFormat(
        template="x", tokens={"eos_token": "</s>"}, start=True)
