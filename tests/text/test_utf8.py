from __future__ import annotations

import itertools

import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_infer.text.contracts import Tokens
from tf_infer.text.utf8 import repair, to_source

# One byte of every class that the table of well-formed sequences (Unicode 15, table 3-7) knows.
CLASSES = bytes([0x41, 0x80, 0x90, 0xA0, 0xBF, 0xC0, 0xC2, 0xDF, 0xE0, 0xE1, 0xED, 0xEE, 0xF0, 0xF1,
                 0xF4, 0xF5, 0xFF])


def check_rows(rows: list[bytes]) -> None:
    texts = tf.constant(rows, tf.string, shape=[len(rows)])
    repaired = repair(texts, offsets=True)
    expected = [row.decode("utf-8", "replace").encode() for row in rows]
    assert list(repaired.texts.numpy()) == expected
    changed = expected != rows
    assert bool(repaired.changed) == changed
    assert repaired.origins is not None
    if not changed:
        return
    for row, new, origin in zip(rows, expected, repaired.origins.to_list()):
        assert len(origin) == len(new) + 1
        assert origin[-1] == len(row)
        assert origin == sorted(origin)
        at = 0
        for char in new.decode():
            width, begin = len(char.encode()), origin[at]
            end = origin[at + width]
            assert row[begin:end] == char.encode() or char == "\ufffd"
            at += width


def test_all_sequences_of_three_byte_classes_are_read_as_python_reads_them() -> None:
    check_rows([bytes(row) for n in (1, 2, 3) for row in itertools.product(CLASSES, repeat=n)])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from([b"\xe4\xb8", b"\xad", b"\xf0\x9f\x98", b"\x80", b"a",
                                          b"\x00", b"\xed\xa0\x80", "é".encode()])).map(b"".join),
                max_size=4))
def test_mixed_rows(rows: list[bytes]) -> None:
    check_rows(rows)


def test_offsets_point_into_the_bytes_that_were_given() -> None:
    repaired = repair(tf.constant([b"a\xffb", b"xyz"]), offsets=True)
    starts = tf.ragged.constant([[0, 1, 4], [0, 2]], dtype=tf.int32)
    ends = tf.ragged.constant([[1, 4, 5], [2, 3]], dtype=tf.int32)
    tokens = to_source(Tokens(starts, starts, ends), repaired)
    assert tokens.starts.to_list() == [[0, 1, 2], [0, 2]]
    assert tokens.ends.to_list() == [[1, 2, 3], [2, 3]]
