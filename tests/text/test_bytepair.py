from __future__ import annotations

import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from tests.text.codecs import ask_export, decode, encoder
from tf_infer.config import AddedToken, BytePairConfig
from tf_infer.errors import CheckpointError
from tf_infer.text.bytepair import BytePairCodec
from tf_infer.text.merges import analyse, byte_alphabet

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "text" / "bytepair"
TEXTS: list[str] = json.loads((FOLDER / "texts.json").read_text())
VOCABULARY: dict[str, int] = json.loads((FOLDER / "vocab.json").read_text())
END = AddedToken(text="<|endoftext|>", id=VOCABULARY["<|endoftext|>"])
CONFIGS = {
    "gpt2": BytePairConfig(added_tokens=(END,)),
    "prefix": BytePairConfig(added_tokens=(END,), add_prefix_space=True),
    "llama3": BytePairConfig(added_tokens=(END,), split="llama3", ignore_merges=True),
    "none": BytePairConfig(added_tokens=(END,), split="none"),
}
FIRST = (FOLDER / "merges.txt").read_text().split("\n")[1]
Pair = tuple[str, str]


def golden(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


@pytest.fixture(scope="module")
def gpt2() -> BytePairCodec:
    return BytePairCodec(CONFIGS["gpt2"], FOLDER)


def pairs_of(starts: list[list[int]], ends: list[list[int]]) -> list[list[list[int]]]:
    return [[[s, e] for s, e in zip(*row)] for row in zip(starts, ends)]


@pytest.mark.parametrize(("name", "graph"), [  # gpt2's graph is exported below
    *((name, False) for name in sorted(CONFIGS)), ("llama3", True)])
def test_ids_offsets_and_texts_are_those_of_tokenizers(name: str, graph: bool) -> None:
    codec, expected = BytePairCodec(CONFIGS[name], FOLDER), golden(name)
    texts = tf.constant(TEXTS)
    tokens = encoder(codec)(texts) if graph else codec.encode(texts, offsets=True)
    ids, starts, ends = (part.to_list() for part in tokens)
    for text, *found in zip(TEXTS, ids, pairs_of(starts, ends), expected["ids"],
                            expected["offsets"]):
        assert found[:2] == found[2:], ascii(text)
    alone = codec.encode(texts)
    assert alone.ids.to_list() == expected["ids"]
    assert alone.starts is None and alone.ends is None
    assert decode(codec, expected["ids"]) == expected["decoded"]
    assert decode(codec, expected["some_ids"]) == expected["some_decoded"]


def test_many_words_at_once_give_what_each_gives_alone(gpt2: BytePairCodec) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choice("abcdefghij\u4e2d") for _ in range(draw.randint(2, 15)))
             for _ in range(400)]
    (together,) = gpt2.encode(tf.constant([" ".join(words)])).ids.to_list()
    apart = [number for i in range(0, 400, 20) for number in gpt2.encode(
        tf.constant([(" " if i else "") + " ".join(words[i:i + 20])])).ids.to_list()[0]]
    assert together == apart


def test_long_words_take_bounded_time(gpt2: BytePairCodec) -> None:
    draw = random.Random(1)
    long = ["".join(draw.choice("thequickbrown") for _ in range(100_000)), "!" * 100_000]
    tokens = gpt2.encode(tf.constant(long), offsets=True)
    assert decode(gpt2, tokens.ids.to_list()) == long
    assert [ends[-1] for ends in tokens.ends.to_list()] == [100_000, 100_000]


def test_invalid_utf8_is_read_as_replacement_characters(gpt2: BytePairCodec) -> None:
    broken = gpt2.encode(tf.constant([b"ab \xff dog", b"\xe4\xb8"]), offsets=True)
    whole = gpt2.encode(tf.constant(["ab \ufffd dog", "\ufffd"]))
    assert broken.ids.to_list() == whole.ids.to_list()
    assert [ends[-1] for ends in broken.ends.to_list()] == [8, 2]


def test_empty_batches_give_no_rows(gpt2: BytePairCodec) -> None:
    for offsets in (False, True):
        tokens = gpt2.encode(tf.constant([], tf.string), offsets=offsets)
        assert tokens.ids.to_list() == []


def test_ids_out_of_range_and_special_ones_are_dropped(gpt2: BytePairCodec) -> None:
    (ids,) = gpt2.encode(tf.constant(["the dog"])).ids.to_list()
    assert decode(gpt2, [[-5, *ids, END.id, 10**6]]) == ["the dog"]
    assert (gpt2.end_id, gpt2.pad_id, gpt2.vocab_size) == (END.id, None, END.id + 1)


# ---------------------------------------------------------------- merge tables


def merged(word: str, ranks: dict[Pair, int]) -> list[str]:
    """Merge one word as GPT-2's encoder.py says it, one pair at a time."""
    parts = list(word)
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(itertools.pairwise(parts))
                 if pair in ranks]
        if not pairs:
            return parts
        _, i = min(pairs)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


def random_table(draw: random.Random, *, ordered: bool) -> list[Pair]:
    """Return merges over three letters, of which some cannot fire or make one text twice."""
    symbols, pairs = list("abc"), []
    for _ in range(draw.randint(3, 14)):
        pair = (draw.choice(symbols), draw.choice(symbols))
        if pair not in pairs and len("".join(pair)) < 7:
            pairs.append(pair)
            symbols.append("".join(pair))
    if not ordered:
        draw.shuffle(pairs)
    return pairs


def write_table(folder: Path, pairs: list[Pair]) -> dict[str, int]:
    tokens = list(dict.fromkeys([*byte_alphabet(), *(a + b for a, b in pairs)]))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("".join(f"{a} {b}\n" for a, b in pairs))
    return vocabulary


@pytest.mark.parametrize("ordered", [True, False])
def test_any_merge_table_gives_what_single_merges_give(ordered: bool, tmp_path: Path) -> None:
    draw = random.Random(5)
    kinds = set()
    for _ in range(12):
        pairs = random_table(draw, ordered=ordered)
        vocabulary = write_table(tmp_path, pairs)
        kinds.add(analyse(pairs).ordered)
        codec = BytePairCodec(BytePairConfig(end_token=None), tmp_path)
        words = ["".join(draw.choice("abc") for _ in range(draw.randint(1, 12)))
                 for _ in range(300)]
        ranks = {pair: rank for rank, pair in enumerate(pairs)}
        expected = [[vocabulary[part] for part in merged(word, ranks)] for word in words]
        assert codec.encode(tf.constant(words)).ids.to_list() == expected         # all together
        assert codec.encode(tf.constant(words[:50])).ids.to_list() == expected[:50]    # a few
    assert kinds == {True} if ordered else False in kinds


def test_a_table_out_of_order_is_noticed_and_run_merge_by_merge(tmp_path: Path) -> None:
    # "abc" is listed as ab + c before "ab" is made; SentencePiece would join a + bc too.
    pairs = [("ab", "c"), ("b", "c"), ("a", "b")]
    assert not analyse(pairs).ordered
    vocabulary = write_table(tmp_path, pairs)
    codec = BytePairCodec(BytePairConfig(end_token=None), tmp_path)
    assert codec.encode(tf.constant(["abc"])).ids.to_list() == [[vocabulary["a"], vocabulary["bc"]]]
    long = codec.encode(tf.constant(["abc" * 20_000, "a" * 50_000])).ids
    assert long.row_lengths().numpy().tolist() == [40_000, 50_000]


def test_merges_that_never_fire_are_left_out() -> None:
    table = analyse([("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")])
    assert table.ordered
    assert table.pairs == (("b", "c"), ("a", "b"), ("a", "bc"))


def test_bytes_without_an_id_give_the_unknown_token_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_text("a b\n")
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "?": 3}))
    texts = tf.constant(["ab\u00e9b", "xx"])
    nothing = BytePairCodec(BytePairConfig(end_token=None), tmp_path)
    tokens = nothing.encode(texts, offsets=True)
    assert tokens.ids.to_list() == [[2, 1], []]
    assert tokens.starts.to_list() == [[0, 4], []] and tokens.ends.to_list() == [[2, 5], []]
    unknown = BytePairCodec(BytePairConfig(end_token=None, unknown_token="?"), tmp_path)
    assert unknown.encode(texts).ids.to_list() == [[2, 3, 3, 1], [3, 3]]


# ---------------------------------------------------------------- files


def test_the_export_needs_no_file(tmp_path: Path) -> None:
    source, expected = tmp_path / "source", golden("gpt2")
    shutil.copytree(FOLDER, source)
    codec = BytePairCodec(CONFIGS["gpt2"], source)
    for found in ask_export(codec, source, tmp_path / "target", TEXTS):
        assert found["ids"] == expected["ids"]
        assert pairs_of(found["starts"], found["ends"]) == expected["offsets"]


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    def build() -> BytePairCodec:
        return BytePairCodec(CONFIGS["gpt2"], tmp_path)

    with pytest.raises(CheckpointError, match=r"vocab.json: cannot be read"):
        build()
    (tmp_path / "vocab.json").write_text('["a"]')
    with pytest.raises(CheckpointError, match=r"vocab.json: expected an object"):
        build()
    shutil.copy(FOLDER / "vocab.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"merges.txt: cannot be read"):
        build()
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{FIRST}\nno merge here\n")
    with pytest.raises(CheckpointError, match=r"merges.txt: line 3: expected two tokens"):
        build()
    (tmp_path / "merges.txt").write_text(FIRST + "\n")
    with pytest.raises(CheckpointError, match="expected the special token '<pad>'"):
        BytePairCodec(BytePairConfig(pad_token="<pad>", added_tokens=(END,)), tmp_path)
