"""Attention in the graphs of the LiteRT engine: over pages of the cache and over what is read.

Axis letters as in litert_decoder.py. What a step costs beside its weights is here: the cache is
read once for each token, and everything that copies or reorders it costs that once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from tf_infer.manifest import row_blocks
from tf_infer.optimize.litert_file import Constant, GraphWriter, Tensor

Precision: TypeAlias = Literal["int8", "float32"]

MASKED = -1e30  # as networks.attention
# Ids of a long read are looked at so many at a time, so that little is computed of what lies ahead
# (256 ids at once: twice the scores).
READ_BLOCK = 64
BLOCK = 256 * 12 * 64  # numbers of keys that a step makes floats of before it multiplies


# Least size of what is rounded: of nothing but zeros the scale is no zero.
LEAST = 1e-30


def block_places(kind: Precision, width: int) -> int:
    """Return of how many positions a step looks at keys or values [width] together.

    So many that what it makes of them stays in a core's cache (a quarter less time than all at
    once, at 32 rows of 12 heads of 64); int8 becomes floats first.
    """
    return (BLOCK if kind == "int8" else 2 * BLOCK) // width


class Kept(NamedTuple):
    """Keys or values [N, G, C, d] as they are kept.

    Of int8 a float of d numbers is a whole number times the scale of its place: [N, G, C, 1] in a
    read and where a step has one query, else [N, G, 1, C].
    """

    numbers: Tensor
    scales: Tensor | None


class Span(NamedTuple):
    """Keys or values of places `begin` to `end` of the cache.

    Attributes:
        begin, end: of the places.
        blocks: rows (begin, end) of the step, and their numbers.
        scales: of all rows.
    """

    begin: int
    end: int
    blocks: tuple[tuple[tuple[int, int], Tensor], ...]
    scales: Tensor | None


class Cached(NamedTuple):
    """What a layer sees of the cache."""

    keys: tuple[Span, ...]
    values: tuple[Span, ...]


class Attention:
    """Attention of one graph: N rows of T ids; one row, or one id of each, or no pages.

    Makes the inputs `mask`, `keys_i_j_k` and `values_i_j_k`, and the outputs `keys_i`, `values_i`;
    of int8 also the inputs `key_scales_i_j` and `value_scales_i_j` and the outputs `key_scales_i`
    and `value_scales_i`.
    """

    def __init__(self, writer: GraphWriter, rows: int, tokens: int, pages: Sequence[int],
                 kind: Precision, block_places: int, *, joined: bool = False) -> None:
        self.writer, self.kind, self.block_places = writer, kind, block_places
        self.joined = joined
        self.rows, self.tokens, self.pages = rows, tokens, tuple(pages)
        self.held = rows  # rows of the cache
        # 1 on the last id of each row that counts, 0 elsewhere.
        self.last = None if tokens == 1 else writer.input("last", [rows, 1, tokens])
        self.mask: Tensor | None = None
        self._masks: dict[tuple[int, int], Tensor | Constant] = {}
        if tokens == 1:
            self.mask = writer.input("mask", [rows, 1, 1, sum(pages) + 1])
        elif pages:
            self.mask = writer.input("mask", [1, 1, 1, sum(pages)])

    def layer(self, number: int, query: Tensor, pair: Tensor) -> Tensor:
        """Return what a layer finds.

        Args:
            number: of the layer.
            query: [N, G, R, T, d], divided by the square root of d; in a read T may be 1: the
                last id of each row that counts.
            pair: [N, 2 G, T, d], keys of what is read, then values.

        Returns:
            [N T, G R d].
        """
        writer, (rows, groups, shared, tokens, size) = self.writer, query.shape
        alone = shared * self.tokens == 1
        below = alone or self.tokens > 1
        keys, values = self._keep(number, pair, below)
        cached = self._cached(number, groups, size, below)
        if self.tokens > 1:
            look = self._read if tokens > 1 else self._read_last
            return look(query, self._behind(cached.keys, keys),
                        self._behind(cached.values, values))
        query = writer.reshape(query, [rows, groups, shared, size])
        if alone:
            keys, values = (kept._replace(numbers=self._floats(kept.numbers))
                            for kept in (keys, values))
            found = self._look_alone(query, self._with_own(cached, keys, values, alone=True), keys,
                                     values)
        else:
            found = self._look(query, cached, keys, values)
        return writer.reshape(found, [rows, groups * shared * size])

    def _keep(self, layer: int, pair: Tensor, below: bool) -> tuple[Kept, Kept]:
        """Hand out what is to be kept of keys and values, and return it.

        Of int8 the scales of places stand one below the other, or side by side.
        """
        writer, (rows, both, tokens, _) = self.writer, pair.shape
        sides = {"key": {1: (0, both // 2)}, "value": {1: (both // 2, both)}}
        kept = []
        if self.kind == "float32":
            for name, side in sides.items():
                kept.append(Kept(writer.part(pair, side), None))
                writer.output(f"{name}s_{layer}", kept[-1].numbers)
            return kept[0], kept[1]
        constants = [writer.file.constant(np.array([number], np.float32))
                     for number in (1.0 / 127.0, LEAST)]
        scales = writer.multiply(writer.largest(writer.absolute(pair), 3), constants[0])
        scales = writer.at_least(scales, constants[1])                       # [N, 2 G, T, 1]
        numbers = writer.to_int8(writer.divide(pair, scales))
        for name, side in sides.items():
            part, scale = writer.part(numbers, side), writer.part(scales, side)
            writer.output(f"{name}s_{layer}", part)
            writer.output(f"{name}_scales_{layer}", scale)
            kept.append(Kept(part, scale if below else writer.reshape(
                scale, [rows, both // 2, 1, tokens])))
        return kept[0], kept[1]

    # ------------------------------------------------------------------ the cache

    def _with_own(self, cached: Cached, keys: Kept, values: Kept, *, alone: bool) -> Cached:
        """Return what is seen of the cache beside what is read itself."""
        del keys, values, alone
        return cached

    def _cached(self, layer: int, groups: int, size: int, below: bool) -> Cached:
        """Make the inputs of one layer."""
        keys, values = (tuple(self._span(f"{name}s_{layer}", f"{name}_scales_{layer}", page,
                                         groups, size, below)
                              for page in range(len(self.pages))) for name in ("key", "value"))
        return Cached(keys, values)

    def _span(self, name: str, scales: str, page: int, groups: int, size: int, below: bool
              ) -> Span:
        """Make the inputs of one page, some rows each."""
        writer, places = self.writer, self.pages[page]
        begin = sum(self.pages[:page])
        together = sum(self.pages) if self.joined and name.startswith("values") else places
        blocks = []
        for number, (first, last) in enumerate(row_blocks(self.held, together, self.block_places)):
            numbers = writer.input(f"{name}_{page}_{number}", [last - first, groups, places, size],
                                   self.kind)
            blocks.append(((first, last), numbers))
        made = None if self.kind == "float32" else writer.input(f"{scales}_{page}", [
            self.held, groups, *((places, 1) if below else (1, places))])
        return Span(begin, begin + places, tuple(blocks), made)

    def _floats(self, numbers: Tensor) -> Tensor:
        return numbers if numbers.dtype == "float32" else self.writer.to_float(numbers)

    def _multiplied(self, numbers: Tensor) -> Tensor:
        """Numbers as floats for a matrix product.

        XNNPACK keeps a float for each number of what becomes floats for one product alone, in every
        layer of every graph. So something that costs nothing stands between.
        """
        return (numbers if numbers.dtype == "float32"
                else self.writer.as_it_is(self.writer.to_float(numbers)))

    # ------------------------------------------------------------------ one query of each row

    def _look_alone(self, query: Tensor, cached: Cached, keys: Kept, values: Kept) -> Tensor:
        """Look from one query of each row at all pages and at itself, by products and sums.

        A matrix product would first copy all keys into another order, for one query. Pages become
        floats where they are needed: then these are still in the core's cache.
        query, keys, values [N, G, 1, d] -> [N, G, 1, d].
        """
        writer, (rows, groups, _, _) = self.writer, query.shape
        queries = {(0, rows): query}
        scores = []
        for span in cached.keys:
            parts = []
            for block, numbers in span.blocks:
                if block not in queries:
                    queries[block] = writer.part(query, {0: block})
                parts.append(writer.sum(
                    writer.multiply(self._floats(numbers), queries[block]), 3))
            scores.append(self._scaled(writer.concat(parts, 0), span.scales))  # [N, G, C, 1]
        scores.append(self._scaled(
            writer.sum(writer.multiply(keys.numbers, query), 3), keys.scales))
        joined = writer.concat(scores, 2)
        places = joined.shape[2]
        assert self.mask is not None
        weights = writer.softmax(
            writer.add(writer.reshape(joined, [rows, groups, 1, places]), self.mask))
        weights = writer.reshape(weights, [rows, groups, places, 1])
        found = writer.multiply(values.numbers, self._scaled(
            writer.part(weights, {2: (places - 1, places)}), values.scales))
        for span in cached.values:
            here = self._scaled(writer.part(weights, {2: (span.begin, span.end)}), span.scales)
            parts = [writer.sum(writer.multiply(
                self._floats(numbers), writer.part(here, {0: block})), 2)
                for block, numbers in span.blocks]                            # [n, G, 1, d]
            found = writer.add(found, writer.concat(parts, 0))
        return found

    def _scaled(self, tensor: Tensor, scales: Tensor | None) -> Tensor:
        return tensor if scales is None else self.writer.multiply(tensor, scales)

    # ------------------------------------------------------------------ several queries of each

    def _look(self, query: Tensor, cached: Cached, keys: Kept, values: Kept) -> Tensor:
        """Look from one id of each row, of R queries, at all pages and behind them at itself.

        Values of all pages are one product: many small operations cost more than to join pages as
        they are kept. query [N, G, R, d], keys, values [N, G, 1, d] -> [N, G, R, d].
        """
        writer = self.writer
        assert self.mask is not None
        scores = [self._scaled(writer.concat([
            writer.batch_matmul(writer.part(query, {0: block}), self._multiplied(numbers),
                                transposed=True) for block, numbers in span.blocks], 0),
            span.scales) for span in cached.keys]                             # [N, G, R, C]
        scores.append(self._own_scores(query, keys))
        weights = self._scaled(
            writer.softmax(writer.add(writer.concat(scores, 3), self.mask)),
            self._scales(cached.values, values, 3))                           # [N, G, R, C + 1]
        parts = []
        for number, (block, _) in enumerate(cached.values[0].blocks):
            side = {0: block}
            kept = writer.concat([*(span.blocks[number][1] for span in cached.values),
                                  writer.part(values.numbers, side)], 2)
            parts.append(writer.batch_matmul(writer.part(weights, side), self._multiplied(kept)))
        return writer.concat(parts, 0)

    def _own_scores(self, query: Tensor, keys: Kept) -> Tensor:
        """Look at what is read itself: as one more column of a product it would cost more.

        query [N, G, R, d], keys [N, G, 1, d] -> [N, G, R, 1].
        """
        own = self.writer.multiply(query, self._floats(keys.numbers))
        return self._scaled(self.writer.sum(own, 3), keys.scales)

    def _scales(self, spans: Sequence[Span], own: Kept, axis: int) -> Tensor | None:
        """Return the scales of all pages, then those of what is read, by the axis of places."""
        return None if own.scales is None else self.writer.concat(
            [*(span.scales for span in spans if span.scales is not None), own.scales], axis)

    # ------------------------------------------------------------------ several ids

    def _read(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Look from T ids of each row at all pages and at what is read up to them.

        query [N, G, R, T, d], keys, values [N, G, C + T, d] -> [N T, G R d].
        """
        writer, (rows, groups, shared, tokens, size) = self.writer, query.shape
        first, parts = sum(self.pages), []
        for begin in range(0, tokens, READ_BLOCK):
            end = min(begin + READ_BLOCK, tokens)
            seen = {2: (0, first + end)}
            part = writer.reshape(writer.part(query, {3: (begin, end)}),
                                  [rows, groups, shared * (end - begin), size])
            scores = writer.batch_matmul(part, writer.part(keys, seen), transposed=True)
            weights = writer.softmax(                                         # [N, G, Q, C + end]
                writer.add(scores, self._ahead(shared, begin, end)))
            found = writer.batch_matmul(weights, writer.part(values, seen))
            parts.append(writer.reshape(found, [rows, groups, shared, end - begin, size]))
        found = writer.transpose(writer.concat(parts, 3), [0, 3, 1, 2, 4])
        return writer.reshape(found, [rows * tokens, groups * shared * size])

    def _read_last(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Look from the last id of each row at all pages and at what is read up to it.

        query [N, G, R, 1, d], keys, values [N, G, C + T, d] -> [N, G R d].
        """
        writer, (rows, groups, shared, _, size) = self.writer, query.shape
        scores = writer.batch_matmul(writer.reshape(query, [rows, groups, shared, size]), keys,
                                     transposed=True)                         # [N, G, R, C + T]
        weights = writer.softmax(writer.add(scores, self._ahead_of_last()))
        return writer.reshape(writer.batch_matmul(weights, values), [rows, groups * shared * size])

    def _behind(self, spans: Sequence[Span], own: Kept) -> Tensor:
        """Return what is read behind all pages, as floats [N, G, C + T, d].

        Joined as it is kept: that is less. A place is looked at from so many ids that its scale
        costs less in here than in what they make of it.
        """
        writer = self.writer
        numbers = writer.concat([*(span.blocks[0][1] for span in spans), own.numbers], 2)
        return self._scaled(self._floats(numbers), self._scales(spans, own, 2))

    def _ahead_of_last(self) -> Tensor:
        """Return [N, 1, 1, C + T], MASKED where the last id of a row may not look."""
        writer, tokens = self.writer, self.tokens
        assert self.last is not None
        places = np.arange(tokens)
        ahead = np.where(places[:, None] > places, MASKED, 0.0).astype(np.float32)
        made = writer.dense(writer.reshape(self.last, [self.rows, tokens]),
                            writer.file.constant(ahead), None)
        made = writer.reshape(made, [self.rows, 1, 1, tokens])
        return made if self.mask is None else writer.concat([self.mask, made], 3)

    def _ahead(self, shared: int, begin: int, end: int) -> Tensor | Constant:
        """Return [1, 1, Q, C + end], MASKED where ids `begin` to `end` may not look: once for all
        layers.
        """
        if (begin, end) not in self._masks:
            writer = self.writer
            places = np.tile(np.arange(begin, end), shared)
            ahead = np.where(np.arange(end) > places[:, None], MASKED, 0.0).astype(np.float32)
            made: Tensor | Constant = writer.file.constant(ahead[None, None])
            if self.mask is not None:
                each = writer.file.constant(np.zeros((1, 1, len(places), 1), np.float32))
                made = writer.concat([writer.add(self.mask, each), made], 3)
            self._masks[begin, end] = made
        return self._masks[begin, end]
