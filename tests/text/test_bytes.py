from __future__ import annotations

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_infer.config import BytesConfig
from tf_infer.text.bytes import BytesCodec

CODEC = BytesCodec(BytesConfig())
ENCODE = tf.function(lambda texts: CODEC.encode(texts, offsets=True),
                     input_signature=[tf.TensorSpec([None], tf.string)])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=20), max_size=5))
def test_every_byte_string_comes_back(texts: list[bytes]) -> None:
    tokens = ENCODE(tf.constant(texts, tf.string, shape=[len(texts)]))
    assert tokens.ids.to_list() == [[byte + 3 for byte in text] for text in texts]
    assert tokens.starts.to_list() == [list(range(len(text))) for text in texts]
    assert tokens.ends.to_list() == [list(range(1, len(text) + 1)) for text in texts]
    dense = tokens.ids.to_tensor()
    assert list(CODEC.decode(dense, tokens.ids.row_lengths()).numpy()) == texts


def test_decode_drops_special_ids_and_ids_out_of_range() -> None:
    ids = tf.constant([[[1, 68, 2, 69, 0, 400, -5, 70]]])
    assert CODEC.decode(ids, tf.constant([[7]])).numpy().tolist() == [[b"AB"]]


@pytest.mark.parametrize("text", [b"", b"\x00", b"a\x00b"])
def test_one_row(text: bytes) -> None:
    tokens = CODEC.encode(tf.constant([text]))
    assert tokens.ids.to_list() == [[byte + 3 for byte in text]]
    assert tokens.starts is None
