"""Reading Hugging Face's tokenizer.json: every key is known and honoured, or it is an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tf_infer.config import AddedToken, BytePairConfig, WordPieceConfig
from tf_infer.errors import CheckpointError

_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
           r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_TOP = {"version": None, "truncation": None, "padding": None, "added_tokens": None,
        "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": None}
_OFF = (None, "", 0.0, False)


class Frame(NamedTuple):
    """Special tokens around a text: None where there is none.

    Attributes:
        start, end: tokens before and after a text.
        separators: end tokens between the two texts of a pair.
    """

    start: str | None
    end: str | None
    separators: int


def demand(data: Any, where: str, rules: Mapping[str, Sequence[Any] | None]) -> dict[str, Any]:
    """Return `data`, an object with no key but those of `rules`, each with a value listed there.

    Raises:
        CheckpointError: names the key, what it may be and what it is.
    """
    if not isinstance(data, dict):
        raise CheckpointError(f"{where}: expected an object, got {type(data).__name__}.")
    for key, value in data.items():
        if key not in rules:
            raise CheckpointError(f"{where}.{key}: expected one of {sorted(rules)}, got a setting "
                                  "that is not supported. Remove it if it has no effect.")
        allowed = rules[key]
        if allowed is not None and value not in allowed:
            raise CheckpointError(f"{where}.{key}: expected one of {list(allowed)}, got {value!r}. "
                                  "This tokenizer cannot be rebuilt exactly.")
    return data


def model_kind(data: Any, where: str) -> str:
    """Return "wordpiece", "bytepair" or "sentencepiece" for a parsed tokenizer.json."""
    demand(data, where, _TOP)
    model = data.get("model") or {}
    name = model.get("type") or ("BPE" if "merges" in model else None)
    if name == "WordPiece":
        return "wordpiece"
    if name == "Unigram" or (name == "BPE" and model.get("byte_fallback")):
        return "sentencepiece"
    if name == "BPE":
        return "bytepair"
    raise CheckpointError(f"{where}.model.type: expected WordPiece, BPE or Unigram, got {name!r}.")


def added_tokens(data: Mapping[str, Any], where: str) -> tuple[AddedToken, ...]:
    """Return `added_tokens` with all their flags."""
    flags = dict.fromkeys(("id", "content", "single_word", "lstrip", "rstrip", "normalized",
                           "special"))
    return tuple(added_token(demand(token, f"{where}.added_tokens[{i}]", flags), token["id"])
                 for i, token in enumerate(data.get("added_tokens") or []))


def added_token(token: Mapping[str, Any], number: int) -> AddedToken:
    """Return one added token of tokenizer.json or tokenizer_config.json."""
    special = bool(token.get("special", False))
    return AddedToken(
        text=token["content"], id=int(number), special=special,
        left_strip=bool(token.get("lstrip", False)), right_strip=bool(token.get("rstrip", False)),
        single_word=bool(token.get("single_word", False)),
        normalized=bool(token.get("normalized", not special)))


def wordpiece(data: Mapping[str, Any], where: str) -> WordPieceConfig:
    """Return the options of a WordPiece tokenizer; special tokens are the defaults."""
    model = demand(data["model"], f"{where}.model", {
        "type": ("WordPiece",), "vocab": None, "unk_token": None, "continuing_subword_prefix": None,
        "max_input_chars_per_word": None})
    cleaning = _one(data.get("normalizer"), f"{where}.normalizer", "BertNormalizer", {
        "clean_text": (True, False), "handle_chinese_chars": (True, False),
        "strip_accents": (None, True, False), "lowercase": (True, False)})
    if _one(data.get("pre_tokenizer"), f"{where}.pre_tokenizer", "BertPreTokenizer", {}) is None:
        raise CheckpointError(f"{where}.pre_tokenizer: expected BertPreTokenizer, got None. "
                              "This tokenizer cannot be rebuilt exactly.")
    prefix = model.get("continuing_subword_prefix", "##")
    _one(data.get("decoder"), f"{where}.decoder", "WordPiece",
         {"prefix": (prefix,), "cleanup": (True,)})
    cleaning = cleaning or dict.fromkeys(
        ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), False)
    lowercase = cleaning.get("lowercase", True)
    accents = cleaning.get("strip_accents")
    return WordPieceConfig(
        clean_text=cleaning.get("clean_text", True), lowercase=lowercase,
        strip_accents=lowercase if accents is None else accents,
        split_chinese=cleaning.get("handle_chinese_chars", True), prefix=prefix,
        max_word_chars=model.get("max_input_chars_per_word", 100),
        unknown_token=model.get("unk_token", "[UNK]"), added_tokens=added_tokens(data, where))


def bytepair(data: Mapping[str, Any], where: str) -> BytePairConfig:
    """Return the options of a byte-level BPE tokenizer, without pad, start and end token."""
    model = demand(data["model"], f"{where}.model", {
        "type": ("BPE",), "dropout": _OFF, "unk_token": None, "fuse_unk": _OFF,
        "continuing_subword_prefix": _OFF, "end_of_word_suffix": _OFF, "byte_fallback": _OFF,
        "ignore_merges": (True, False), "vocab": None, "merges": None})
    if data.get("normalizer") is not None:
        kind = data["normalizer"].get("type")
        raise CheckpointError(f"{where}.normalizer: expected None, got {kind!r}. "
                              "This tokenizer cannot be rebuilt exactly.")
    _one(data.get("decoder"), f"{where}.decoder", "ByteLevel", _BYTE_LEVEL)
    split, prefix_space = _word_split(data.get("pre_tokenizer"), f"{where}.pre_tokenizer")
    return BytePairConfig(split=split, add_prefix_space=prefix_space, end_token=None,
                          ignore_merges=bool(model.get("ignore_merges", False)),
                          unknown_token=model.get("unk_token"),
                          added_tokens=added_tokens(data, where))


_BYTE_LEVEL = {"add_prefix_space": (True, False), "trim_offsets": (True, False),
               "use_regex": (True, False)}


def _word_split(data: Any, where: str) -> tuple[Any, bool]:
    """Return BytePairConfig's `split` and `add_prefix_space`."""
    parts = _sequence(data, "pretokenizers", where)
    if not parts or parts[-1].get("type") != "ByteLevel" or len(parts) > 2:
        kinds = [part.get("type") for part in parts]
        raise CheckpointError(f"{where}: expected ByteLevel, or Split and ByteLevel, got {kinds}. "
                              "This tokenizer cannot be rebuilt exactly.")
    level = _one(parts[-1], where, "ByteLevel", _BYTE_LEVEL) or {}
    prefix_space, regex = level.get("add_prefix_space", True), level.get("use_regex", True)
    if len(parts) == 1:
        return ("gpt2" if regex else "none"), prefix_space
    cut = _one(parts[0], where, "Split", {"pattern": ({"Regex": _LLAMA3},),
                                          "behavior": ("Isolated",), "invert": (False,)})
    if cut is None or regex or prefix_space:
        raise CheckpointError(f"{where}: expected use_regex and add_prefix_space off after Split, "
                              f"got {regex} and {prefix_space}. It cannot be rebuilt exactly.")
    return "llama3", False


_SPACE_RULES: tuple[dict[str, Any], ...] = (
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"})


def check_sentencepiece(data: Mapping[str, Any], pieces: Sequence[str], where: str) -> None:
    """Raise CheckpointError unless tokenizer.json says what the `.model` file says.

    Args:
        data: the parsed file.
        pieces: of the model file; the place is the id.

    The normalisation itself (Precompiled, Strip) is taken from the model file.
    """
    vocab = data["model"].get("vocab") or {}
    ids = ({text: i for i, (text, _) in enumerate(vocab)} if isinstance(vocab, list) else vocab)
    added = {token.text for token in added_tokens(data, where)}
    wrong = [i for i, text in enumerate(pieces) if ids.get(text, i) != i]
    unknown = [i for text, i in ids.items()
               if text not in added and (i >= len(pieces) or pieces[i] != text)]
    if wrong or unknown:
        raise CheckpointError(f"{where}.model.vocab: expected the ids of the .model file beside it,"
                              f" got others from id {min(wrong + unknown)} on. Take both files from"
                              " the same model; remapped ids are not supported.")
    for part in _sequence(data.get("normalizer"), "normalizers", f"{where}.normalizer"):
        if part.get("type") not in ("Precompiled", "Strip") and part not in _SPACE_RULES:
            raise CheckpointError(f"{where}.normalizer: expected what the .model file does, got "
                                  f"{part.get('type')!r}. It cannot be rebuilt exactly.")
    for part in _sequence(data.get("pre_tokenizer"), "pretokenizers", f"{where}.pre_tokenizer"):
        if part.get("type") not in ("Metaspace", "WhitespaceSplit"):
            raise CheckpointError(f"{where}.pre_tokenizer: expected Metaspace, got "
                                  f"{part.get('type')!r}. It cannot be rebuilt exactly.")


def frame(data: Mapping[str, Any], where: str) -> Frame:
    """Return the special tokens that the post-processor puts around texts."""
    found = Frame(None, None, 1)
    for part in _sequence(data.get("post_processor"), "processors", where):
        kind = part.get("type")
        if kind in ("BertProcessing", "RobertaProcessing"):
            found = Frame(part["cls"][0], part["sep"][0], 1 if kind == "BertProcessing" else 2)
        elif kind == "TemplateProcessing":
            found = _template(part, where)
        elif kind != "ByteLevel":
            raise CheckpointError(f"{where}: expected TemplateProcessing, BertProcessing, "
                                  f"RobertaProcessing or ByteLevel, got {kind!r}.")
    return found


def _template(part: Mapping[str, Any], where: str) -> Frame:
    single = [_item(item) for item in part.get("single") or []]
    pair = [_item(item) for item in part.get("pair") or []]
    place = single.index("A") if "A" in single else -1
    start, end = single[:place], single[place + 1:]
    if place < 0 or len(start) > 1 or len(end) > 1:
        raise CheckpointError(f"{where}.single: expected at most one special token before and after"
                              f" the text, got {single}.")
    if not end:
        return Frame(start[0] if start else None, None, 1)
    for count in (1, 2):
        if pair == [*start, "A", *end * count, "B", *end]:
            return Frame(start[0] if start else None, end[0], count)
    raise CheckpointError(f"{where}.pair: expected the end token once or twice between the texts "
                          f"and once after them, got {pair}.")


def _item(item: Mapping[str, Any]) -> str:
    (part,) = item.values()
    return str(part["id"])


def _sequence(data: Any, key: str, where: str) -> list[dict[str, Any]]:
    """Return the parts of a Sequence, or the one part, or none."""
    if data is None:
        return []
    if data.get("type") == "Sequence":
        return list(demand(data, where, {"type": None, key: None})[key])
    return [data]


def _one(data: Any, where: str, kind: str, rules: Mapping[str, Sequence[Any] | None]
         ) -> dict[str, Any] | None:
    return None if data is None else demand(data, where, {"type": (kind,), **rules})
