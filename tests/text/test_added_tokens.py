from __future__ import annotations

import itertools
import random

import pytest
import tensorflow as tf

from tf_infer.config import AddedToken, BytesConfig
from tf_infer.errors import ConfigError
from tf_infer.text.added_tokens import AddedTokens, encode_around
from tf_infer.text.bytes import BytesCodec
from tf_infer.text.contracts import Tokens

BYTES = BytesCodec(BytesConfig())
# text, left_strip, right_strip, single_word, normalized
FLAGS: list[tuple[str, bool, bool, bool, bool]] = [
    ("[CLS]", False, False, False, False), ("<mask>", True, False, False, False),
    ("foo", False, False, True, False), ("fo", False, False, False, False),
    ("<r>", False, True, False, False), ("<both>", True, True, False, False),
    ("bar", False, False, True, True), ("[CLS]x", False, False, False, True),
    ("ba", False, False, False, True), ("<sw>", True, True, True, True),
]
ADDED = AddedTokens([
    AddedToken(text=text, id=1000 + i, left_strip=left, right_strip=right, single_word=single,
               normalized=late) for i, (text, left, right, single, late) in enumerate(FLAGS)])


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
def encode(texts: tf.Tensor) -> Tokens:
    return encode_around(texts, ADDED, lambda part: BYTES.encode(part, offsets=True), offsets=True)


def found(text: str | bytes) -> list[tuple[int, int, int]]:
    """Return (number in FLAGS, start, end) of each added token."""
    tokens = encode(tf.constant([text]))
    assert tokens.starts is not None and tokens.ends is not None
    rows = zip(tokens.ids[0].numpy(), tokens.starts[0].numpy(), tokens.ends[0].numpy())
    return [(int(i) - 1000, int(s), int(e)) for i, s, e in rows if i >= 1000]


@pytest.mark.parametrize(("text", "expected"), [
    ("a[CLS]b", [(0, 1, 6)]),
    ("[CLS][CLS]", [(0, 0, 5), (0, 5, 10)]),
    ("[CLS]x", [(0, 0, 5)]),                                  # the first pass comes first
    ("a  <mask> b", [(1, 1, 9)]),
    ("a\u3000<mask>", [(1, 1, 10)]),
    ("foo", [(2, 0, 3)]), ("foox", []), ("xfoo", []), ("éfoo!", []), ("foo_", []), ("-foo-", [
        (2, 1, 4)]),
    ("fox", [(3, 0, 2)]),
    ("foxfoo", [(3, 0, 2)]),                                  # a longer match that is refused
    ("<r>  a", [(4, 0, 5)]),
    ("a <both> \t b", [(5, 1, 11)]),
    ("<r> <both>", [(4, 0, 4), (5, 4, 10)]),
    ("bar ba", [(6, 0, 3), (8, 4, 6)]),
    ("a\x00[CLS]\x01\x02b[CLS]", [(0, 2, 7), (0, 10, 15)]),
    (b"\xff[CLS]\xe4\xb8", [(0, 1, 6)]),
    ("", []),
])
def test_what_is_found(text: str | bytes, expected: list[tuple[int, int, int]]) -> None:
    assert found(text) == expected


def test_everything_between_is_left_to_the_codec_with_its_offsets() -> None:
    rows = [b"a[CLS]\x00b", b"", b"<r>  ", b"\xff\xfffox"]
    tokens = encode(tf.constant(rows))
    assert tokens.ids.to_list() == [
        [100, 1000, 3, 101], [], [1004], [242, 194, 192, 242, 194, 192, 1003, 123]]
    assert tokens.starts is not None and tokens.ends is not None
    assert tokens.starts.to_list() == [[0, 1, 6, 7], [], [0], [0, 1, 1, 1, 2, 2, 2, 4]]
    assert tokens.ends.to_list() == [[1, 6, 7, 8], [], [5], [1, 1, 1, 2, 2, 2, 4, 5]]


def test_a_token_with_a_character_we_need_ourselves_is_refused() -> None:
    with pytest.raises(ConfigError, match="id 7"):
        AddedTokens([AddedToken(text="a\x00", id=7)])


@pytest.mark.oracles
def test_texts_are_cut_as_tokenizers_cuts_them() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    oracle = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    for text, left, right, single, late in FLAGS:
        oracle.add_tokens([tokenizers.AddedToken(
            text, lstrip=left, rstrip=right, single_word=single, normalized=late)])
    draw = random.Random(0)
    atoms = [text for text, *_ in FLAGS] + list(" aé中\x00\x01\x02\t\u3000_1‿x[😀\u0301\u200dⅠⓐ")
    texts = ["".join(draw.choices(atoms, k=draw.randint(0, 9))) for _ in range(20_000)]
    # Which characters are of words.
    texts += [f"{chr(code)}foo" for code in range(0x20000) if not 0xD800 <= code < 0xE000]
    tokens = encode(tf.constant(texts))
    assert tokens.starts is not None and tokens.ends is not None
    for text, *got in zip(texts, tokens.ids.to_list(), tokens.starts.to_list(),
                          tokens.ends.to_list()):
        at = list(itertools.accumulate((len(char.encode()) for char in text), initial=0))
        answer = oracle.encode(text)
        expected = [(oracle_id, at[first], at[last]) for oracle_id, (first, last) in zip(
            answer.ids, answer.offsets) if oracle_id]
        assert [(i - 999, s, e) for i, s, e in zip(*got) if i >= 1000] == expected, ascii(text)
