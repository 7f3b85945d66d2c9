"""Attention in the graphs of the LiteRT engine: over pages of the cache and over what is read.

Axis letters as in litert_decoder.py. What a step costs beside its weights is here: the cache is
read once for each token, and everything that copies or reorders it costs that once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from tf_infer.manifest import head_blocks, row_blocks
from tf_infer.optimize.litert_file import Constant, GraphWriter, Tensor

Precision: TypeAlias = Literal["int8", "float32"]

MASKED = -1e30  # as networks.attention
# Ids of a long read are looked at so many at a time, so that little is computed of what lies ahead
# (256 ids at once: twice the scores).
READ_BLOCK = 64
BLOCK = 512 * 12 * 64  # numbers of keys or values that a step multiplies before it adds them up
PIECE = 32  # positions whose values a step of one query adds up first; a lone page may be half
SUMMED = 64  # numbers that XNNPACK's softmax adds up at once; what is left over, otherwise


def block_places(width: int) -> int:
    """Return of how many positions a step looks at keys or values [width] together.

    So many that what it makes of them stays in a core's cache (a quarter less time than all at
    once, at 32 rows of 12 heads of 64).
    """
    return BLOCK // width


class Kept(NamedTuple):
    """Keys or values [N, G, C, d] as they are kept.

    Of int8 a float of d numbers is a whole number times the scale of its place: [N, G, C, 1] in a
    read, in a step [N, G, 1, C].
    """

    numbers: Tensor
    scales: Tensor | None


class Block(NamedTuple):
    """Keys or values of some rows (axis 0), or of some heads of one row (axis 1).

    Attributes:
        numbers: theirs.
        axis: what is cut.
        place: (begin, end) of it.
    """

    numbers: Tensor
    axis: int
    place: tuple[int, int]

    @property
    def side(self) -> dict[int, tuple[int, int]]:
        """What else of these rows or heads there is; for `GraphWriter.part`."""
        return {self.axis: self.place}


class Span(NamedTuple):
    """Keys or values of places `begin` to `end` of the cache.

    Attributes:
        begin, end: of the places.
        blocks: all rows of a step, or all heads of its only row.
        scales: of all of them.
    """

    begin: int
    end: int
    blocks: tuple[Block, ...]
    scales: Tensor | None

    @property
    def places(self) -> int:
        """How many there are."""
        return self.end - self.begin


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
                 kind: Precision, block_places: int) -> None:
        self.writer, self.kind, self.block_places = writer, kind, block_places
        self.rows, self.tokens, self.pages = rows, tokens, tuple(pages)
        self.held = rows  # rows of the cache
        self.piece = math.gcd(PIECE, *self.pages)
        # Places of a softmax of one query of each row, in front of what is read itself.
        self.wide = -(-sum(self.pages) // SUMMED) * SUMMED
        # 1 on the last id of each row that counts, 0 elsewhere.
        self.last = None if tokens == 1 else writer.input("last", [rows, 1, tokens])
        self.mask: Tensor | None = None
        self._widened: Tensor | None = None
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
                last id of each row that counts. Of a step [N, G, R, d].
            pair: [N, 2 G, T, d], keys of what is read, then values.

        Returns:
            [N T, G R d].
        """
        writer, (rows, groups, shared, *_, size) = self.writer, query.shape
        keys, values = self._keep(number, pair)
        cached = self._cached(number, groups, size, alone=shared * self.tokens == 1)
        if self.tokens > 1:
            look = self._read if query.shape[3] > 1 else self._read_last
            return look(query, self._behind(cached.keys, keys),
                        self._behind(cached.values, values))
        found = self._look(query, cached, keys, values)
        return writer.reshape(found, [rows, groups * shared * size])

    def _keep(self, layer: int, pair: Tensor) -> tuple[Kept, Kept]:
        """Hand out what is to be kept of keys and values, and return it.

        A head of nothing but zeros has a scale of 0, and any whole numbers.
        """
        writer, (_, both, _, _) = self.writer, pair.shape
        sides = {"key": {1: (0, both // 2)}, "value": {1: (both // 2, both)}}
        kept = []
        if self.kind == "float32":
            for name, side in sides.items():
                kept.append(Kept(writer.part(pair, side), None))
                writer.output(f"{name}s_{layer}", kept[-1].numbers)
            return kept[0], kept[1]
        share = writer.file.constant(np.array([1.0 / 127.0], np.float32))
        scales = writer.multiply(writer.largest(writer.absolute(pair), 3), share)  # [N, 2 G, T, 1]
        numbers = writer.to_int8(writer.divide(pair, scales))
        for name, side in sides.items():
            part, scale = writer.part(numbers, side), writer.part(scales, side)
            writer.output(f"{name}s_{layer}", part)
            writer.output(f"{name}_scales_{layer}", scale)
            kept.append(Kept(part, scale))
        return kept[0], kept[1]

    # ------------------------------------------------------------------ the cache

    def _cached(self, layer: int, groups: int, size: int, *, alone: bool) -> Cached:
        """Make the inputs of one layer, for one query of each row `alone` or for several."""
        keys, values = (tuple(self._span(name, layer, page, groups, size, alone)
                              for page in range(len(self.pages))) for name in ("key", "value"))
        return Cached(keys, values)

    def _span(self, kind: str, layer: int, page: int, groups: int, size: int, alone: bool
              ) -> Span:
        """Make the inputs of one page, some rows or heads each: <kind>_<layer>_<page>_<block>."""
        writer, places = self.writer, self.pages[page]
        begin = sum(self.pages[:page])
        if alone and self.rows == 1:
            axis, cuts = 1, head_blocks(groups, places, self.block_places)
        else:
            together = places if alone or kind == "key" or self.tokens > 1 else sum(self.pages)
            axis, cuts = 0, row_blocks(self.held, together, self.block_places)
        blocks = []
        pieces = alone and kind == "value"  # as `_page_pieces` wants them
        for number, place in enumerate(cuts):
            shape = [self.held, groups, *((places // self.piece, self.piece) if pieces else
                                          (places,)), size]
            shape[axis] = place[1] - place[0]
            blocks.append(Block(writer.input(f"{kind}s_{layer}_{page}_{number}", shape, self.kind),
                                axis, place))
        scales = None if self.kind == "float32" else writer.input(
            f"{kind}_scales_{layer}_{page}",
            [self.held, groups, *((places, 1) if self.tokens > 1 else (1, places))])
        return Span(begin, begin + places, tuple(blocks), scales)

    def _floats(self, numbers: Tensor) -> Tensor:
        return numbers if numbers.dtype == "float32" else self.writer.to_float(numbers)

    def _multiplied(self, numbers: Tensor) -> Tensor:
        """Numbers as floats for a matrix product.

        XNNPACK keeps a float for each number of what becomes floats for one product alone, in every
        layer of every graph. So something that costs nothing stands between.
        """
        return (numbers if numbers.dtype == "float32"
                else self.writer.as_it_is(self.writer.to_float(numbers)))

    def _scaled(self, tensor: Tensor, scales: Tensor | None) -> Tensor:
        return tensor if scales is None else self.writer.multiply(tensor, scales)

    def _look(self, query: Tensor, cached: Cached, keys: Kept, values: Kept) -> Tensor:
        """Look from one id of each row, of R queries, at all pages and behind them at itself.

        query [N, G, R, d], keys, values [N, G, 1, d] -> [N, G, R, d].
        """
        assert self.mask is not None
        writer, alone = self.writer, query.shape[2] == 1
        scores = (self._sums if alone else self._products)(query, cached.keys)
        own = self._scaled(self._own_scores(query, keys.numbers), keys.scales)
        if alone:
            scores += self._nothing(own.shape[:3])
        weights = writer.softmax(writer.add(                                  # [N, G, R, ... + 1]
            writer.concat([*scores, own], 3), self._wide_mask() if alone else self.mask))
        return (self._pieces if alone else self._joined)(weights, cached.values, values)

    # ------------------------------------------------------------------ one query of each row

    def _sums(self, query: Tensor, spans: Sequence[Span]) -> list[Tensor | Constant]:
        """Return the scores of one query of each row over each page, by products and sums.

        A matrix product would first copy all keys into another order, for one query.
        query [N, G, 1, d] -> [N, G, 1, C] each.
        """
        writer, queries = self.writer, dict[tuple[int, int], Tensor]()

        def scores(block: Block) -> Tensor:
            if block.place not in queries:
                queries[block.place] = writer.part(query, block.side)
            return writer.sum(
                writer.multiply(self._floats(block.numbers), queries[block.place]), 3)

        return [self._scaled(writer.reshape(                                  # of [N, G, C, 1]
            self._of_blocks(span, scores), [*query.shape[:3], span.places]), span.scales)
            for span in spans]

    def _nothing(self, shape: Sequence[int]) -> list[Tensor | Constant]:
        """Return what stands between the pages and what is read itself, [*shape, wide - C].

        So a softmax adds up the same numbers in the same order, whatever pages a graph sees.
        """
        places = self.wide - sum(self.pages)
        if not places:
            return []
        return [self.writer.file.constant(np.zeros((*shape, places), np.float32))]

    def _wide_mask(self) -> Tensor:
        """Return the mask, with MASKED where `_nothing` stands: once for all layers."""
        assert self.mask is not None
        writer, last = self.writer, sum(self.pages)
        if self._widened is None:
            shape = (*self.mask.shape[:3], self.wide - last)
            self._widened = self.mask if self.wide == last else writer.concat([
                writer.part(self.mask, {3: (0, last)}),
                writer.file.constant(np.full(shape, MASKED, np.float32)),
                writer.part(self.mask, {3: (last, last + 1)})], 3)
        return self._widened

    def _pieces(self, weights: Tensor, spans: Sequence[Span], own: Kept) -> Tensor:
        """Multiply values with the weights of their places, and add up: each piece, then all.

        So the order of sums is the same in whatever pages a graph sees its places.
        weights [N, G, 1, wide + 1], own [N, G, 1, d] -> [N, G, 1, d].
        """
        writer, last = self.writer, self.wide
        pieces = writer.concat([self._page_pieces(writer.part(
            weights, {3: (span.begin, span.end)}), span) for span in spans], 2)
        rows, groups, count, _, size = pieces.shape
        found = writer.reshape(pieces, [rows, groups, count, size])
        if count > 1:
            found = writer.sum(found, 2)
        here = self._scaled(writer.part(weights, {3: (last, last + 1)}), own.scales)
        return writer.add(found, writer.multiply(self._floats(own.numbers), here))

    def _page_pieces(self, weights: Tensor, span: Span) -> Tensor:
        """Return the sums of pieces of a page: weights [N, G, 1, C] -> [N, G, C / piece, 1, d]."""
        writer, cut = self.writer, (span.places // self.piece, self.piece)
        weights = writer.reshape(self._scaled(weights, span.scales), [*weights.shape[:2], *cut, 1])

        def sums(block: Block) -> Tensor:
            rows, groups, *_, size = block.numbers.shape
            numbers = writer.reshape(self._floats(block.numbers), [rows, groups, *cut, size])
            return writer.sum(writer.multiply(numbers, writer.part(weights, block.side)), 3)

        return self._of_blocks(span, sums)

    def _of_blocks(self, span: Span, find: Callable[[Block], Tensor]) -> Tensor:
        """Join what is found of each block. It becomes floats where it is needed: then these are
        still in the core's cache.
        """
        return self.writer.concat([find(block) for block in span.blocks], span.blocks[0].axis)

    # ------------------------------------------------------------------ several queries of each

    def _products(self, query: Tensor, spans: Sequence[Span]) -> list[Tensor | Constant]:
        """Return the scores of R queries of each row: [N, G, R, d] -> [N, G, R, C] of each page."""
        writer = self.writer

        def scores(block: Block) -> Tensor:
            return writer.batch_matmul(writer.part(query, block.side),
                                       self._multiplied(block.numbers), transposed=True)

        return [self._scaled(self._of_blocks(span, scores), span.scales) for span in spans]

    def _joined(self, weights: Tensor, spans: Sequence[Span], own: Kept) -> Tensor:
        """Multiply values of all pages with the weights of their places, as one product.

        Many small operations cost more than to join pages as they are kept.
        weights [N, G, R, C + 1], own [N, G, 1, d] -> [N, G, R, d].
        """
        writer, parts = self.writer, []
        weights = self._scaled(weights, self._scales(spans, own, 3))
        for number, block in enumerate(spans[0].blocks):
            kept = writer.concat([*(span.blocks[number].numbers for span in spans),
                                  writer.part(own.numbers, block.side)], 2)
            parts.append(writer.batch_matmul(writer.part(weights, block.side),
                                             self._multiplied(kept)))
        return writer.concat(parts, 0)

    def _own_scores(self, query: Tensor, own: Tensor) -> Tensor:
        """Look at what is read itself: as one more column of a product it would cost more.

        query [N, G, R, d], own [N, G, 1, d] -> [N, G, R, 1].
        """
        return self.writer.sum(self.writer.multiply(query, self._floats(own)), 3)

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
        numbers = writer.concat([*(span.blocks[0].numbers for span in spans), own.numbers], 2)
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
