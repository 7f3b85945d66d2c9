"""Tokenizer folders of Hugging Face -> configuration, packing, and the files our codecs read.

`tokenizer.json` counts where there is one; else `vocab.txt`, `vocab.json` with `merges.txt`, or a
`.model` file, with the options of `tokenizer_config.json` and `special_tokens_map.json`. The
`assets/tokenizer` folder of a KerasHub preset is read too, with the preset's own options.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tf_infer.config import (
    MAX_TEMPLATE_CHARS,
    AddedToken,
    BytePairConfig,
    BytesConfig,
    ChatFormat,
    CodecConfig,
    PackingConfig,
    SentencePieceConfig,
    WordPieceConfig,
)
from tf_infer.errors import CheckpointError
from tf_infer.text import tokenizer_json, vocabulary
from tf_infer.text.pieces import read_model
from tf_infer.text.tokenizer_json import Frame

TEMPLATE_FILE = "chat_template.jinja"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token",
                  "mask_token")

_MODEL_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")
_KERAS_HUB = {"vocab.txt": "vocabulary.txt", "vocab.json": "vocabulary.json",
              "tokenizer.model": "vocabulary.spm"}
_BERT_SPECIAL = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]",
                 "sep_token": "[SEP]", "mask_token": "[MASK]"}


def read(folder: Path) -> CodecConfig:
    """Read what a tokenizer folder says.

    Args:
        folder: a Hugging Face model or tokenizer directory.

    Raises:
        CheckpointError: no tokenizer in it, a broken file, or a setting that we cannot do exactly;
            the message names it.
    """
    found = _open(Path(folder))
    if found.kind == "wordpiece":
        return _wordpiece(found)
    return _sentencepiece(found) if found.kind == "sentencepiece" else _bytepair(found)


def read_packing(folder: Path, *, max_tokens: int = 128) -> PackingConfig:
    """Read which special tokens the tokenizer of a folder puts around texts.

    Args:
        folder: as for `read`.
        max_tokens: longest row.

    Where the folder names no `truncation_side`, tokenizers without an end token (decoders) keep the
    end of a text, all others its beginning. A pair needs an end token.
    """
    found = _open(Path(folder))
    frame = _frame(found)
    side = found.settings.get("truncation_side", "right" if frame.end else "left")
    return PackingConfig(max_tokens=max_tokens, start=frame.start is not None,
                         end=frame.end is not None, pair_separators=frame.separators,
                         truncation="left" if side == "left" else "longest_first")


def read_chat(folder: Path, *, start: bool) -> ChatFormat | None:
    """Read how the messages of a chat become a prompt; None where the folder does not say.

    Args:
        folder: as for `read`, or one that `copy` wrote. `chat_template.jinja` counts before
            `chat_template` of tokenizer_config.json; of several templates the one called "default"
            is taken.
        start: whether the model's packing puts a start id before every text.

    Raises:
        CheckpointError: a template that is no text, or too long.
    """
    folder = Path(folder)
    settings = {**_json(folder / "special_tokens_map.json"),
                **_json(folder / "tokenizer_config.json")}
    path = folder / TEMPLATE_FILE
    template = (path.read_text(encoding="utf-8") if path.exists()
                else settings.get("chat_template"))
    if isinstance(template, list):
        template = next((one["template"] for one in template if one.get("name") == "default"), None)
    if template is None:
        return None
    tokens = {name: token for name in SPECIAL_TOKENS
              if isinstance(token := _content(settings.get(name)), str)}
    if not isinstance(template, str) or not 0 < len(template) <= MAX_TEMPLATE_CHARS:
        raise CheckpointError(f"{folder}: expected a chat template that is a text of 1 to "
                              f"{MAX_TEMPLATE_CHARS} characters, got another. "
                              "Remove it, or shorten it.")
    return ChatFormat(template=template, tokens=tokens, start=start)


def copy_chat(folder: Path, target: Path) -> None:
    """Write what `read_chat` reads into `target`, if there is a template."""
    chat = read_chat(folder, start=False)
    if chat is None:
        return
    (target / TEMPLATE_FILE).write_text(chat.template, encoding="utf-8")
    (target / "special_tokens_map.json").write_text(
        json.dumps(dict(chat.tokens), ensure_ascii=False, indent=2), encoding="utf-8")


def copy(folder: Path, target: Path, config: CodecConfig) -> None:
    """Write the files that the codec of `config` reads into `target`, which must exist.

    Raises:
        CheckpointError: a file is missing, or a vocabulary cannot be written in our form.
    """
    copy_chat(folder, target)
    if isinstance(config, BytesConfig):
        return
    found = _open(Path(folder))
    if isinstance(config, SentencePieceConfig):
        shutil.copyfile(_model_path(found), target / "tokenizer.model")
    elif found.tokenizer is None:
        names = ("vocab.txt",) if isinstance(config, WordPieceConfig) else (
            "vocab.json", "merges.txt")
        for name in names:
            shutil.copyfile(found.file(name), target / name)
    elif isinstance(config, WordPieceConfig):
        lines = _lines(found.tokenizer["model"]["vocab"], found.path / "tokenizer.json")
        (target / "vocab.txt").write_bytes("".join(f"{line}\n" for line in lines).encode())
    else:
        model = found.tokenizer["model"]
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        (target / "vocab.json").write_text(
            json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
        (target / "merges.txt").write_bytes("".join(f"{pair}\n" for pair in pairs).encode())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Folder:
    """What lies in a tokenizer folder; `tokenizer` is the parsed tokenizer.json."""

    path: Path
    kind: str
    tokenizer: dict[str, Any] | None
    settings: Mapping[str, Any]

    def file(self, name: str) -> Path:
        """Return the path of a file by Hugging Face's name, or by KerasHub's."""
        usual = self.path / name
        return usual if usual.exists() else self.path / _KERAS_HUB.get(name, name)

    def token(self, name: str) -> str | None:
        """Return the special token that tokenizer_config.json or special_tokens_map.json name."""
        token: str | None = _content(self.settings.get(name))
        return token


def _content(value: Any) -> Any:
    return value.get("content") if isinstance(value, dict) else value


def _open(path: Path) -> _Folder:
    settings = {**_json(path / "special_tokens_map.json"), **_json(path / "tokenizer_config.json")}
    if (path / "tokenizer.json").exists():
        data = _json(path / "tokenizer.json")
        return _Folder(path=path, kind=tokenizer_json.model_kind(data, "tokenizer.json"),
                       tokenizer=data, settings=settings)
    settings = {**_keras_hub(path), **settings}
    if any((path / name).exists() for name in ("vocab.txt", "vocabulary.txt")):
        kind = "wordpiece"
    elif (path / "merges.txt").exists() and any(
            (path / name).exists() for name in ("vocab.json", "vocabulary.json")):
        kind = "bytepair"
    elif _model_files(path):
        kind = "sentencepiece"
    else:
        raise CheckpointError(f"{path}: expected tokenizer.json, vocab.txt, vocab.json with "
                              "merges.txt, or one *.model file, got none of them. "
                              "Copy the tokenizer's files there.")
    return _Folder(path=path, kind=kind, tokenizer=None, settings=settings)


def _keras_hub(path: Path) -> dict[str, Any]:
    """Return the options of a KerasHub preset whose `assets/tokenizer` is `path`."""
    if not any((path / name).exists() for name in _KERAS_HUB.values()):
        return {}
    data = _json(path.parent.parent / "tokenizer.json")
    options = data.get("config", {})
    for name, wanted in (("split", True), ("special_tokens_in_strings", False)):
        _check_setting(options, name, wanted)
    renamed = {"lowercase": "do_lower_case", "strip_accents": "strip_accents",
               "suffix_indicator": "wordpieces_prefix", "oov_token": "unk_token",
               "add_prefix_space": "add_prefix_space"}
    return {"tokenizer_class": data.get("class_name", "")} | {
        ours: options[theirs] for theirs, ours in renamed.items() if options.get(theirs) is not None
    }


def _json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, an empty one where there is no file."""
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        raise CheckpointError(f"{path}: expected a JSON object, got: {reason}. "
                              "Copy it again.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(data).__name__}.")
    return data


def _wordpiece(found: _Folder) -> WordPieceConfig:
    settings = found.settings
    if found.tokenizer is not None:
        config = tokenizer_json.wordpiece(found.tokenizer, "tokenizer.json")
        vocab = set(found.tokenizer["model"]["vocab"])
        vocab |= {token.text for token in config.added_tokens}
        _check_agreement(config, settings)
    else:
        lines = vocabulary.read(found.file("vocab.txt"))
        vocab = set(lines)
        lowercase = settings.get("do_lower_case", True)
        accents = settings.get("strip_accents")
        config = WordPieceConfig(
            lowercase=lowercase, strip_accents=lowercase if accents is None else accents,
            split_chinese=settings.get("tokenize_chinese_chars", True),
            prefix=settings.get("wordpieces_prefix", "##"),
            added_tokens=_added(found, lines, {
                found.token(name) or text for name, text in _BERT_SPECIAL.items()}))
        for name, wanted in (("do_basic_tokenize", True), ("never_split", None)):
            _check_setting(settings, name, wanted)
    frame = _frame(found)

    def special(name: str) -> str | None:
        text = found.token(name) or _BERT_SPECIAL[name]
        return text if text in vocab else None

    return replace(config, unknown_token=found.token("unk_token") or config.unknown_token,
                   pad_token=found.token("pad_token") or config.pad_token,
                   start_token=frame.start or special("cls_token"),
                   end_token=frame.end or special("sep_token"))


def _check_agreement(config: WordPieceConfig, settings: Mapping[str, Any]) -> None:
    """Refuse folders of which Hugging Face's two libraries would read different options."""
    accents = settings.get("strip_accents")
    for name, said, has in (("do_lower_case", settings.get("do_lower_case"), config.lowercase),
                            ("tokenize_chinese_chars", settings.get("tokenize_chinese_chars"),
                             config.split_chinese),
                            ("strip_accents", accents, config.strip_accents)):
        if said is not None and said != has:
            raise CheckpointError(f"tokenizer_config.json: {name}: expected {has} as in "
                                  f"tokenizer.json, got {said}. Make the two files agree.")


def _bytepair(found: _Folder) -> BytePairConfig:
    settings = found.settings
    if found.tokenizer is not None:
        config = tokenizer_json.bytepair(found.tokenizer, "tokenizer.json")
    else:
        vocab = _json(found.file("vocab.json"))
        tokens = {text for name in ("bos_token", "eos_token", "unk_token", "pad_token",
                                    "cls_token", "sep_token", "mask_token")
                  if (text := found.token(name))} or {"<|endoftext|>"}
        config = BytePairConfig(
            add_prefix_space=settings.get("add_prefix_space", False),
            unknown_token=found.token("unk_token"),
            added_tokens=_added(found, vocab, tokens))
    frame = _frame(found)
    known = {token.text for token in config.added_tokens}
    only_end = "<|endoftext|>" if "<|endoftext|>" in known else None
    return replace(config, pad_token=found.token("pad_token"),
                   start_token=frame.start or found.token("bos_token"),
                   end_token=frame.end or found.token("eos_token") or only_end)


def _sentencepiece(found: _Folder) -> SentencePieceConfig:
    path = _model_path(found)
    model = read_model(path.read_bytes(), where=str(path))
    pieces = [piece.text for piece in model.pieces]
    added: tuple[AddedToken, ...]
    if found.tokenizer is not None:
        tokenizer_json.check_sentencepiece(found.tokenizer, pieces, "tokenizer.json")
        added = tokenizer_json.added_tokens(found.tokenizer, "tokenizer.json")
    else:
        added = _added(found, {}, set())
    ids = {text: i for i, text in enumerate(pieces)} | {token.text: token.id for token in added}

    def number(*texts: str | None) -> int | None:
        return next((ids[text] for text in texts if text is not None and text in ids), None)

    frame = _frame(found)
    return SentencePieceConfig(
        pad_id=number(found.token("pad_token")),
        start_id=number(frame.start, found.token("bos_token")),
        end_id=number(frame.end, found.token("eos_token")), added_tokens=added)


def _frame(found: _Folder) -> Frame:
    """Return the special tokens around a text, as the folder or its kind of tokenizer says."""
    settings = found.settings
    if found.tokenizer is not None and found.tokenizer.get("post_processor") is not None:
        return tokenizer_json.frame(found.tokenizer, "tokenizer.json.post_processor")
    if found.kind == "wordpiece":
        if found.tokenizer is not None:
            return Frame(None, None, 1)
        return Frame(found.token("cls_token") or "[CLS]", found.token("sep_token") or "[SEP]", 1)
    if "Roberta" in str(settings.get("tokenizer_class")):
        return Frame(found.token("cls_token") or "<s>", found.token("sep_token") or "</s>", 2)
    default_start = found.kind == "sentencepiece" and "Llama" in str(
        settings.get("tokenizer_class"))
    start = found.token("bos_token") if settings.get("add_bos_token", default_start) else None
    end = found.token("eos_token") if settings.get("add_eos_token", False) else None
    return Frame(start, end, 1)


def _added(found: _Folder, vocab: Mapping[str, int] | Sequence[str], special: set[str]
           ) -> tuple[AddedToken, ...]:
    """Return the added tokens of a folder without tokenizer.json."""
    decoder = found.settings.get("added_tokens_decoder")
    if decoder is not None:
        return tuple(tokenizer_json.added_token(token, int(number))
                     for number, token in sorted(decoder.items(), key=lambda item: int(item[0])))
    if _json(found.path / "added_tokens.json"):
        raise CheckpointError(f"{found.path / 'added_tokens.json'}: expected the flags of added "
                              "tokens in tokenizer_config.json or tokenizer.json, got only their "
                              "ids. Save the tokenizer again with a newer transformers.")
    ids = vocab if isinstance(vocab, Mapping) else {text: i for i, text in enumerate(vocab)}
    return tuple(AddedToken(text=text, id=ids[text])
                 for text in sorted(special & set(ids), key=lambda text: ids[text]))


def _check_setting(settings: Mapping[str, Any], name: str, wanted: Any) -> None:
    if settings.get(name, wanted) not in (wanted, None):
        raise CheckpointError(f"tokenizer_config.json: {name}: expected {wanted}, got "
                              f"{settings[name]!r}. This tokenizer cannot be rebuilt exactly.")


def _model_files(path: Path) -> list[Path]:
    """Return the SentencePiece models of a folder: the usual name, else all."""
    usual = [path / name for name in _MODEL_FILES if (path / name).exists()]
    return usual[:1] or sorted([*path.glob("*.model"), *path.glob("*.spm")])


def _model_path(found: _Folder) -> Path:
    files = _model_files(found.path)
    if len(files) != 1:
        raise CheckpointError(f"{found.path}: expected one SentencePiece model (*.model), got "
                              f"{len(files)}. Copy it there as tokenizer.model.")
    return files[0]


def _lines(vocab: Mapping[str, int], path: Path) -> list[str]:
    """Return a vocabulary as the lines of vocab.txt; unused ids become empty lines."""
    lines = [""] * (max(vocab.values()) + 1)
    for text, number in vocab.items():
        lines[number] = text
    broken = [number for number, line in enumerate(lines) if "\n" in line or line.endswith("\r")]
    if broken:
        raise CheckpointError(f"{path}: expected tokens without line ends, got one at id "
                              f"{broken[0]}. It cannot be written as vocab.txt.")
    return lines
