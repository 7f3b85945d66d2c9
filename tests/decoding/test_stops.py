"""Stop strings across the borders of tokens, against a search in plain bytes, on every path."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.decoding.paths import Runner, on_all_paths
from tf_infer.decoding import stops
from tf_infer.decoding.contracts import Choice

TOKENS = [b"", b"a", b"b", b"ab", b"\n", b"\n\n", b"ba\n", "中".encode(), "中".encode()[:1],
          "中".encode()[1:], b"aaaa", b"\x00", b"stop", b"st", b"op!", b" "]
TABLE = stops.spellings(TOKENS)
WIDTH, COUNT = 6, 3
STOPS = [[b"ab"], [b"\n\n"], ["中".encode()], [b"aaa", b"b"], [b"stop"], [b"\x00"], [],
         [b"a\n", b"ba\n", b"\n"], [b"bb", b"abb"], [b"b \n", b"top!", b" "]]


def dense(strings: list[bytes]) -> np.ndarray:
    rows = np.full((COUNT, WIDTH), -1, np.int16)
    for row, text in zip(rows, strings):
        row[WIDTH - len(text):] = list(text)
    return rows


def plain(tokens: list[int], wanted: list[bytes]) -> tuple[int, int]:
    """Return after how many tokens the row stops, and how many bytes are cut off; (n, 0) if not."""
    text = b""
    for count, token in enumerate(tokens, 1):
        for place in range(1, len(TOKENS[token]) + 1):
            grown = text + TOKENS[token][:place]
            if ended := [stop for stop in wanted if grown.endswith(stop)]:
                longest = max(map(len, ended))
                return count, longest + len(TOKENS[token]) - place
        text += TOKENS[token]
    return len(tokens), 0


def watched(tokens: tf.Tensor, kept: tf.Tensor, wanted: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """[N, L] tokens -> at which of them the row was told to stop first (L if never), cut [N]."""
    watcher = stops.watcher(TABLE, wanted)
    state, first = watcher.state, tf.zeros_like(tokens[:, 0]) + tokens.shape[1]
    for place in range(tokens.shape[1]):
        now = kept[:, place] & (first == tokens.shape[1])
        choice = Choice(tf.zeros_like(tokens, tf.float32), tokens[:, place],
                        tf.zeros_like(tokens[:, 0], tf.float32), now, tokens[:, 0] * 0 + place)
        ended, state = watcher.watch(choice, state)
        first = tf.where(now & ended, place, first)
    return first, state.cut


@on_all_paths
def test_a_row_stops_with_the_token_that_makes_a_stop_string_whole(run: Runner) -> None:
    generator = np.random.default_rng(4)
    tokens = generator.integers(0, len(TOKENS), (120, 5)).astype(np.int32)
    tokens[0], tokens[1] = [1, 2, 4, 4, 1], [13, 14, 0, 0, 0]
    wanted = [STOPS[row % len(STOPS)] for row in range(120)]
    kept = np.ones_like(tokens, bool)
    kept[7:, 4] = False
    first, cut = run(watched, tf.constant(tokens), tf.constant(kept),
                     tf.constant(np.stack([dense(one) for one in wanted])))
    stopped = 0
    for row in range(120):
        said = tokens[row, :5 if kept[row, 4] else 4].tolist()
        count, back = plain(said, wanted[row])
        assert int(cut[row]) == back, f"row {row}"
        assert int(first[row]) == (count - 1 if back else 5), f"row {row}"
        stopped += back > 0
    assert 40 < stopped < 110


def test_the_text_before_a_stop_string_is_the_same_however_it_is_cut_into_tokens() -> None:
    text = b"ab\n\nab"
    ways = [way for size in range(1, 7) for way in itertools.product(range(1, 7), repeat=size)
            if b"".join(TOKENS[token] for token in way) == text]
    assert len(ways) > 5
    for way in ways:
        _, cut = watched(tf.constant([way]), tf.ones([1, len(way)], tf.bool),
                         tf.constant(dense([b"\n\n", b"\na"])[None]))
        count, _ = plain(list(way), [b"\n\n", b"\na"])
        said = b"".join(TOKENS[token] for token in way[:count])
        assert said[:len(said) - int(cut[0])] == b"ab", way


@pytest.mark.parametrize("tokens", [[b""], [b"", b""]])
def test_a_vocabulary_without_bytes_never_stops(tokens: list[bytes]) -> None:
    watcher = stops.watcher(stops.spellings(tokens), tf.constant(dense([b"a"])[None]))
    choice = Choice(tf.zeros([1, 2]), tf.constant([0]), tf.zeros([1]), tf.constant([True]),
                    tf.constant([0]))
    ended, _ = watcher.watch(choice, watcher.state)
    assert not ended.numpy().any()
