"""Ids -> rows of a network: special ids, pairs, truncation, padding to a length bucket."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tf_infer.config import PackingConfig, ShapeGrid
from tf_infer.errors import ConfigError
from tf_infer.text.contracts import TextCodec, TokenBatch, Tokens
from tf_infer.text.rows import row_ids, spread

# Bytes of a text that are read; what a vocabulary knows has some hundred bytes at most.
LEAST_REACH, REACH_OF_A_TOKEN = 2**20, 2**10


class Reached(NamedTuple):
    """Texts as far as a row can reach, [B] string, and the bytes before them, [B] int32 or none."""

    texts: tf.Tensor
    before: tf.Tensor | None

    def moved(self, tokens: Tokens) -> Tokens:
        """Return tokens of `texts` with offsets into the texts as they came."""
        if self.before is None or tokens.starts is None or tokens.ends is None:
            return tokens
        more = tf.gather(self.before, row_ids(tokens.ids.row_splits))
        return Tokens(tokens.ids, *(places.with_values(places.values + more)
                                    for places in (tokens.starts, tokens.ends)))


def reach(ids: int) -> int:
    """Return how many bytes of a text are read where so many ids are wanted at most."""
    return max(LEAST_REACH, REACH_OF_A_TOKEN * ids)


def within_reach(texts: tf.Tensor, config: PackingConfig, grid: ShapeGrid) -> Reached:
    """Cut off what lies so far from the end of [B] texts that `pack` keeps that no row reaches it.

    Sixty megabytes for a row of some hundred ids: an operation over them ends when it has done its
    work, whatever the deadline, and takes many times their memory. Only a text is read otherwise
    than whole whose first (`left`: last) mebibyte gives fewer ids than a row has, white space
    without end, or is one word without a border, a character repeated (`left` alone).
    """
    most = reach(min(config.max_tokens, grid.tokens[-1]))
    if config.truncation != "left":
        return Reached(tf.strings.substr(texts, 0, most), None)
    size = tf.strings.length(texts)
    before = tf.nn.relu(size - most)
    return Reached(tf.strings.substr(texts, before, size), before)  # or as many as there are


def pack(tokens: Tokens, codec: TextCodec, config: PackingConfig, grid: ShapeGrid, *,
         pair: Tokens | None = None) -> TokenBatch:
    """Lay encoded texts, or pairs of texts, into rows.

    Args:
        tokens: the texts, [B, (T)].
        codec: whose special ids are used.
        config: which special ids, how long, what is cut.
        grid: `grid.tokens` are the allowed row lengths; the longest row is rounded up to one.
        pair: the second texts, [B, (T)]; a row is then start, text, end ids, second text, end.

    Returns:
        Rows of at most `min(config.max_tokens, grid.tokens[-1])` ids. `starts` and `ends` are 0
        unless both texts carry offsets.

    Raises:
        ConfigError: `config` asks for a special id that the codec does not have, or leaves no room
            for text.

    A pair is cut as Hugging Face's fast tokenizers do: ids go from the longer text until both are
    as long, then from both; of an odd room the longer text (the second, if equal) takes one more.
    """
    limit = min(config.max_tokens, grid.tokens[-1])
    start_id, end_id = _special_ids(codec, config, pair is not None)
    heads = 1 if config.start else 0
    between = config.pair_separators if pair is not None else 0
    tails = 1 if config.end else 0
    room = limit - heads - between - tails
    if room < 1:
        raise ConfigError(f"PackingConfig.max_tokens: expected room for text beside "
                          f"{heads + between + tails} special ids, got {limit}. Raise it.")
    left = config.truncation == "left"
    rows = tokens.ids.nrows()
    first_all = _lengths(tokens)                                                   # [B]
    second_all = tf.zeros([rows], tf.int32) if pair is None else _lengths(pair)    # [B]
    first, second = _shares(first_all, second_all, room)
    second_at = heads + first + between                                            # [B]
    lengths = second_at + second + tails                                           # [B]
    width = bucket(tf.reduce_max(tf.concat([lengths, [0]], axis=0)), grid)
    places = tf.expand_dims(tf.range(width), 0)                                    # [1, T]
    mask = places < tf.expand_dims(lengths, 1)                                     # [B, T]
    segments = tf.zeros_like(mask, tf.int32)
    spans = [_Span(tokens, heads + tf.zeros_like(first), first, first_all - first)]
    if pair is not None:
        segments = tf.cast(mask & (places >= tf.expand_dims(second_at, 1)), tf.int32)
        spans.append(_Span(pair, second_at, second, second_all - second))
    offsets = all(span.tokens.starts is not None for span in spans)
    background = tf.where(mask, tf.where(places < heads, start_id, end_id), pad_id(codec))
    zeros = tf.zeros_like(background)
    return TokenBatch(
        ids=_lay(background, places, spans, "ids", left),
        mask=mask,
        segments=segments,
        starts=_lay(zeros, places, spans, "starts", left) if offsets else zeros,
        ends=_lay(zeros, places, spans, "ends", left) if offsets else zeros)


def bucket(longest: tf.Tensor, grid: ShapeGrid) -> tf.Tensor:
    """Return the smallest length of the grid that is >= `longest` [] int32, else its last one."""
    sizes = tf.constant(grid.tokens, tf.int32)
    return tf.reduce_min(tf.where(sizes >= longest, sizes, sizes[-1]))


def pad_id(codec: TextCodec) -> int:
    """Return what stands where the mask is False: the codec's pad id, else its end id, else 0."""
    if codec.pad_id is not None:
        return codec.pad_id
    return codec.end_id if codec.end_id is not None else 0


def windows(tokens: Tokens, *, size: int, overlap: int) -> tuple[Tokens, tf.Tensor]:
    """Cut long texts into overlapping windows instead of truncating them.

    Args:
        tokens: [B, (T)].
        size: most ids of a window, > overlap.
        overlap: ids that a window shares with the one before ("stride" of Hugging Face).

    Returns:
        The windows, [W, (t)], those of one text in a row; and [W] int32, the row each comes from.
        Every text has at least one window, an empty text an empty one.

    Raises:
        ConfigError: `overlap` is not in 0 .. size - 1.
    """
    if not 0 <= overlap < size:
        raise ConfigError(f"overlap: expected 0 <= overlap < size = {size}, got {overlap!r}.")
    step = size - overlap
    lengths = _lengths(tokens)                                                     # [B]
    counts = 1 + tf.maximum(0, -((size - lengths) // step))                        # [B]
    row, number = spread(counts)                                                   # [W], [W]
    begin = number * step                                                          # [W]
    count = tf.minimum(size, tf.gather(lengths, row) - begin)                      # [W]
    first = tf.cast(tf.gather(tokens.ids.row_splits, row), tf.int32) + begin       # [W]
    index = tf.ragged.range(first, first + count, row_splits_dtype=tf.int64)

    def cut(values: tf.RaggedTensor | None) -> tf.RaggedTensor | None:
        return None if values is None else index.with_values(
            tf.gather(values.values, index.values))

    return Tokens(*(cut(values) for values in tokens)), row


class _Span(NamedTuple):
    """A text in its rows: where it begins, how many ids stay, how many were cut; each [B] int32."""

    tokens: Tokens
    at: tf.Tensor
    count: tf.Tensor
    cut: tf.Tensor


def _special_ids(codec: TextCodec, config: PackingConfig, pair: bool) -> tuple[int, int]:
    if config.start and codec.start_id is None:
        raise ConfigError("PackingConfig.start: expected False, since the codec has no start id, "
                          "got True. Name a start token in the codec's configuration.")
    if (config.end or pair) and codec.end_id is None:
        raise ConfigError("PackingConfig.end: expected False and single texts, since the codec has "
                          "no end id, got True or a pair. Name an end token.")
    return codec.start_id or 0, codec.end_id or 0


def _lengths(tokens: Tokens) -> tf.Tensor:
    return tf.cast(tokens.ids.row_lengths(), tf.int32)


def _shares(first: tf.Tensor, second: tf.Tensor, room: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return how many ids of each text stay, [B] each; a missing text counts 0."""
    fits = first + second <= room
    shorter = tf.minimum(tf.minimum(first, second), room // 2)
    longer = tf.minimum(tf.maximum(first, second), room - shorter)
    swapped = first > second
    return (tf.where(fits, first, tf.where(swapped, longer, shorter)),
            tf.where(fits, second, tf.where(swapped, shorter, longer)))


def _lay(background: tf.Tensor, places: tf.Tensor, spans: list[_Span], name: str, left: bool
         ) -> tf.Tensor:
    """Write one field of each span over the background [B, T]."""
    for span in spans:
        ragged = getattr(span.tokens, name)
        inside = places - tf.expand_dims(span.at, 1)                               # [B, T]
        here = (inside >= 0) & (inside < tf.expand_dims(span.count, 1))
        first = tf.cast(ragged.row_splits[:-1], tf.int32) + (span.cut if left else 0)
        values = tf.concat([ragged.values, [0]], axis=0)
        found = tf.gather(values, tf.where(here, tf.expand_dims(first, 1) + inside, 0))
        background = tf.where(here, found, background)
    return background
