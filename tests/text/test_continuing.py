"""Texts that go on from others: encoded without a space that nobody wrote, by every codec."""

from __future__ import annotations

import tensorflow as tf

from tests.text.test_rows import codec  # noqa: F401
from tf_infer.text.continuing import Continuing
from tf_infer.text.contracts import TextCodec
from tf_infer.text.wordpiece import WordPieceCodec

TEXTS = ["ab", " ab", "a b", "", "中", "é.", "aab"]


def test_the_ids_of_a_text_spell_the_text_and_nothing_before_it(codec: TextCodec) -> None:  # noqa: F811
    continuing = Continuing(codec)
    spellings = codec.spellings().numpy()
    found = continuing.read(codec.encode(continuing.written(tf.constant(TEXTS))).ids).to_list()
    spelled = [b"".join(spellings[i] for i in ids).decode() for ids in found]
    if isinstance(codec, WordPieceCodec):  # its words always come behind a space
        assert spelled[:2] == [" ab", " ab"] and spelled[3] == ""
        return
    assert spelled == TEXTS
    (bare,) = codec.encode(tf.constant(["ab"])).ids.to_list()
    spaced = b"".join(spellings[i] for i in bare) != b"ab"
    assert bool(continuing.anchor) == spaced


def test_a_text_that_merged_with_its_anchor_stays_whole(codec: TextCodec) -> None:  # noqa: F811
    continuing = Continuing(codec)
    continuing.anchor, continuing.lead = "x", (5, 6)
    ids = tf.RaggedTensor.from_row_lengths([5, 6, 7, 5, 8, 5, 6], [3, 2, 0, 2])
    assert continuing.read(tf.cast(ids, tf.int32)).to_list() == [[7], [5, 8], [], []]
