from __future__ import annotations

import itertools
from typing import Literal

import pytest
import tensorflow as tf

from tf_infer.config import BytesConfig, PackingConfig, ShapeGrid
from tf_infer.errors import ConfigError
from tf_infer.text import packing
from tf_infer.text.bytes import BytesCodec
from tf_infer.text.contracts import TokenBatch, Tokens
from tf_infer.text.packing import pack, windows, within_reach

CODEC = BytesCodec(BytesConfig())
START, END, PAD = 1, 2, 0
GRID = ShapeGrid(tokens=(4, 8, 12))


def encoded(*texts: str, offsets: bool = True) -> Tokens:
    return CODEC.encode(tf.constant(list(texts), tf.string, shape=[len(texts)]), offsets=offsets)


def ids(text: str) -> list[int]:
    return [byte + 3 for byte in text.encode()]


def row(batch: TokenBatch, number: int) -> list[int]:
    return tf.boolean_mask(batch.ids[number], batch.mask[number]).numpy().tolist()


def test_a_row_is_start_text_end_and_padding_to_a_bucket() -> None:
    batch = pack(encoded("abc", ""), CODEC, PackingConfig(max_tokens=12), GRID)
    assert batch.ids.numpy().tolist() == [
        [START, *ids("abc"), END, PAD, PAD, PAD], [START, END] + [PAD] * 6]
    assert batch.mask.numpy().tolist() == [[True] * 5 + [False] * 3, [True] * 2 + [False] * 6]
    assert batch.segments.numpy().sum() == 0
    assert batch.starts.numpy()[0].tolist() == [0, 0, 1, 2, 0, 0, 0, 0]
    assert batch.ends.numpy()[0].tolist() == [0, 1, 2, 3, 0, 0, 0, 0]
    assert {tensor.dtype for tensor in (batch.ids, batch.segments, batch.starts)} == {tf.int32}


@pytest.mark.parametrize(("length", "width"), [(0, 4), (2, 4), (3, 8), (6, 8), (7, 12), (99, 12)])
def test_rows_are_as_long_as_the_next_bucket(length: int, width: int) -> None:
    function = tf.function(
        lambda texts: pack(CODEC.encode(texts), CODEC, PackingConfig(max_tokens=12), GRID),
        input_signature=[tf.TensorSpec([None], tf.string)])
    batch = function(tf.constant(["x" * length, ""]))
    assert batch.ids.shape == (2, width)


def test_a_pair_has_segments_and_offsets_into_its_own_texts() -> None:
    batch = pack(encoded("ab"), CODEC, PackingConfig(max_tokens=12), GRID, pair=encoded("cde"))
    assert batch.ids[0].numpy().tolist() == [START, *ids("ab"), END, *ids("cde"), END]
    assert batch.segments[0].numpy().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert batch.starts[0].numpy().tolist() == [0, 0, 1, 0, 0, 1, 2, 0]
    assert batch.ends[0].numpy().tolist() == [0, 1, 2, 0, 1, 2, 3, 0]


def test_two_end_ids_stand_between_the_texts_of_roberta() -> None:
    config = PackingConfig(max_tokens=12, pair_separators=2)
    batch = pack(encoded("a"), CODEC, config, GRID, pair=encoded("b"))
    assert row(batch, 0) == [START, *ids("a"), END, END, *ids("b"), END]


def test_a_prompt_has_no_end_and_keeps_its_own_end() -> None:
    config = PackingConfig(max_tokens=4, end=False, truncation="left")
    batch = pack(encoded("abcdef", "x"), CODEC, config, ShapeGrid(tokens=(4,)))
    assert row(batch, 0) == [START, *ids("def")]
    assert row(batch, 1) == [START, *ids("x")]
    assert batch.starts[0].numpy().tolist() == [0, 3, 4, 5]


def shares(first: int, second: int, room: int) -> tuple[int, int]:
    """Take one id at a time from the longer text; of two as long, leave the second one its last."""
    longer_second = first <= second
    while first + second > room:
        if first > second or (first == second and longer_second):
            first -= 1
        else:
            second -= 1
    return first, second


@pytest.mark.parametrize("max_tokens", [8, 9])
def test_of_a_pair_the_longer_text_is_cut_first(max_tokens: int) -> None:
    room = max_tokens - 3
    sizes = list(itertools.product(range(9), repeat=2))
    batch = pack(encoded(*("a" * a for a, _ in sizes)), CODEC, PackingConfig(max_tokens=max_tokens),
                 ShapeGrid(tokens=(max_tokens,)), pair=encoded(*("b" * b for _, b in sizes)))
    for number, (first, second) in enumerate(sizes):
        found = row(batch, number)
        assert (found.count(ids("a")[0]), found.count(ids("b")[0])) == shares(
            first, second, room), (first, second)


@pytest.mark.oracles
@pytest.mark.parametrize(("max_tokens", "side"), list(itertools.product((7, 8, 9), (
    "right", "left"))))
def test_pairs_are_cut_as_tokenizers_cuts_them(max_tokens: int, side: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    letters = "abcdefghijklmnopqrst"
    vocab = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2} | {c: ids(c)[0] for c in letters}
    oracle = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[PAD]"))
    oracle.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    oracle.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    oracle.enable_truncation(max_tokens, strategy="longest_first", direction=side)
    pairs = [(letters[:a], letters[10:10 + b]) for a in range(10) for b in range(10)]
    config = PackingConfig(max_tokens=max_tokens,
                           truncation="left" if side == "left" else "longest_first")
    batch = pack(encoded(*(a for a, _ in pairs)), CODEC, config, ShapeGrid(tokens=(max_tokens,)),
                 pair=encoded(*(b for _, b in pairs)))
    for number, (first, second) in enumerate(pairs):
        expected = oracle.encode(" ".join(first), " ".join(second))
        assert row(batch, number) == expected.ids, (first, second)
        assert tf.boolean_mask(batch.segments[number], batch.mask[number]).numpy().tolist() == (
            expected.type_ids)


def test_an_empty_batch_has_the_smallest_bucket() -> None:
    batch = pack(encoded(), CODEC, PackingConfig(max_tokens=12), GRID)
    assert batch.ids.shape == batch.mask.shape == batch.ends.shape == (0, 4)


def test_without_offsets_the_offsets_are_zero() -> None:
    batch = pack(encoded("abc", offsets=False), CODEC, PackingConfig(max_tokens=12), GRID)
    assert batch.starts.numpy().sum() == batch.ends.numpy().sum() == 0


@pytest.mark.parametrize(("size", "overlap"), [(4, 0), (4, 1), (4, 3), (1, 0)])
def test_windows_cover_the_text_and_overlap(size: int, overlap: int) -> None:
    texts = [bytes(range(65, 65 + length)).decode() for length in range(12)]
    found, rows = windows(encoded(*texts), size=size, overlap=overlap)
    for number, text in enumerate(texts):
        mine = [part for part, of in zip(found.ids.to_list(), rows.numpy()) if of == number]
        expected, begin = [ids(text)[:size]], 0
        while begin + size < len(text):
            begin += size - overlap
            expected.append(ids(text)[begin:begin + size])
        assert mine == expected
    assert found.starts is not None and found.ends is not None
    assert [[a + 1 for a in row] for row in found.starts.to_list()] == found.ends.to_list()


def test_bad_settings_are_refused() -> None:
    class NoSpecialIds(BytesCodec):
        def __init__(self) -> None:
            super().__init__(BytesConfig())
            self.start_id = self.end_id = self.pad_id = None

    codec = NoSpecialIds()
    with pytest.raises(ConfigError, match=r"PackingConfig\.start"):
        pack(encoded("a"), codec, PackingConfig(max_tokens=12), GRID)
    with pytest.raises(ConfigError, match=r"PackingConfig\.end"):
        pack(encoded("a"), codec, PackingConfig(max_tokens=12, start=False), GRID)
    with pytest.raises(ConfigError, match="room for text"):
        pack(encoded("a"), CODEC, PackingConfig(max_tokens=4, pair_separators=2),
             ShapeGrid(tokens=(4,)), pair=encoded("b"))
    with pytest.raises(ConfigError, match="overlap"):
        windows(encoded("a"), size=4, overlap=4)
    batch = pack(encoded("a"), codec, PackingConfig(max_tokens=12, start=False, end=False), GRID)
    assert batch.ids.numpy().tolist() == [[*ids("a"), 0, 0, 0]]


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a row reach 24 bytes of a text, in place of a mebibyte."""
    monkeypatch.setattr(packing, "LEAST_REACH", 10)
    monkeypatch.setattr(packing, "REACH_OF_A_TOKEN", 2)


def test_a_row_reaches_a_mebibyte_or_as_much_for_each_token_as_none_has() -> None:
    texts = tf.constant(["x" * 2**21])
    for tokens, most in ((12, 2**20), (1024, 2**20), (1100, 1100 * 2**10)):
        grid = ShapeGrid(tokens=(4, 2000))
        for side in ("left", "longest_first"):
            config = PackingConfig(max_tokens=tokens, truncation=side)
            assert tf.strings.length(within_reach(texts, config, grid).texts).numpy() == [most]


@pytest.mark.usefixtures("near")
@pytest.mark.parametrize("side", ["left", "longest_first"])
def test_a_row_is_the_same_when_only_what_it_reaches_was_encoded(side: Literal["left"]) -> None:
    config = PackingConfig(max_tokens=12, truncation=side)
    source = "0123456789" * 9
    texts = tf.constant([source[:size] for size in range(91)] + ["ä" * 40, "x" + "中" * 30])
    reached = within_reach(texts, config, GRID)
    found = pack(reached.moved(CODEC.encode(reached.texts, offsets=True)), CODEC, config, GRID)
    wanted = pack(CODEC.encode(texts, offsets=True), CODEC, config, GRID)
    for one, other in zip(found, wanted):
        tf.debugging.assert_equal(one, other)
    assert max(map(len, reached.texts.numpy())) == 24


@pytest.mark.usefixtures("near")
def test_without_offsets_tokens_need_not_be_moved() -> None:
    texts = tf.constant(["x" * 40, ""])
    reached = within_reach(texts, PackingConfig(max_tokens=12, truncation="left"), GRID)
    tokens = CODEC.encode(reached.texts)
    assert reached.moved(tokens) is tokens
