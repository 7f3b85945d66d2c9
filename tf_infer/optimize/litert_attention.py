"""Attention in the graphs of the LiteRT engine: over pages of the cache and over what is read.

Axis letters as in litert_decoder.py. What a step costs beside its weights is here: the cache is
read once for each token, and everything that copies or reorders it costs that once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from tf_infer.manifest import row_blocks
from tf_infer.optimize.litert_file import GraphWriter, Tensor

Precision: TypeAlias = Literal["int8", "float32"]

MASKED = -1e30  # as networks.attention
# Ids of a long read are looked at so many at a time, so that little is computed of what lies ahead
# (256 ids at once: twice the scores).
READ_BLOCK = 64


# Least size of what is rounded: of nothing but zeros the scale is no zero.
LEAST = 1e-30


class Kept(NamedTuple):
    """Keys or values [N, G, C, d] as they are kept.

    Of int8 a float of d numbers is a whole number times the scale of its place: [N, G, C, 1] where
    a step has one query, else [N, G, 1, C].
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
    """What a layer sees of the cache: `scales` are of all values at once, for reads."""

    keys: tuple[Span, ...]
    values: tuple[Span, ...]
    scales: Tensor | None


class Attention:
    """Attention of one graph: N rows of T ids; one row, or one id of each, or no pages.

    Makes the inputs `mask`, `keys_i_j_k` and `values_i_j_k`, and the outputs `keys_i`, `values_i`;
    of int8 also the inputs `key_scales_i_j` and `value_scales_i_j` and the outputs `key_scales_i`
    and `value_scales_i`.
    """

    def __init__(self, writer: GraphWriter, rows: int, tokens: int, pages: Sequence[int],
                 kind: Precision) -> None:
        self.writer, self.kind = writer, kind
        self.rows, self.tokens, self.pages = rows, tokens, tuple(pages)
        self.held = rows  # rows of the cache
        self.mask: Tensor | None = None
        if tokens == 1:
            self.mask = writer.input("mask", [rows, 1, 1, sum(pages) + 1])
        elif pages:
            self.mask = writer.input("mask", [1, 1, 1, sum(pages)])

    def layer(self, number: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return what a layer finds.

        Args:
            number: of the layer.
            query: [N, G, R, T, d], divided by the square root of d.
            keys, values: [N, G, T, d] of what is read.

        Returns:
            [N T, G R d].
        """
        writer, (rows, groups, shared, tokens, size) = self.writer, query.shape
        alone = shared * tokens == 1
        own = [self._keep(number, name, tensor, alone)
               for name, tensor in (("key", keys), ("value", values))]
        cached = self._with_own(self._cached(number, groups, size, alone), *own, alone=alone)
        if alone:
            found = self._look_alone(writer.reshape(query, [rows, groups, 1, size]), cached, *own)
            return writer.reshape(found, [rows, groups * size])
        parts = []
        for begin in range(0, tokens, READ_BLOCK):
            end = min(begin + READ_BLOCK, tokens)
            part = writer.reshape(writer.part(query, {3: (begin, end)}),
                                  [rows, groups, shared * (end - begin), size])
            seen = [Kept(writer.part(kept.numbers, {2: (0, end)}), None if kept.scales is None
                          else writer.part(kept.scales, {3: (0, end)})) for kept in own]
            found = self._look(part, cached, seen[0], seen[1], begin)
            parts.append(writer.reshape(found, [rows, groups, shared, end - begin, size]))
        found = writer.transpose(writer.concat(parts, 3), [0, 3, 1, 2, 4])
        return writer.reshape(found, [rows * tokens, groups * shared * size])

    def _keep(self, layer: int, name: str, tensor: Tensor, alone: bool) -> Kept:
        """Hand out what is to be kept of [N, G, T, d], and return it as it will be seen again."""
        writer, (rows, groups, tokens, _) = self.writer, tensor.shape
        if self.kind == "float32":
            writer.output(f"{name}s_{layer}", tensor)
            return Kept(tensor, None)
        constants = [writer.file.constant(np.array([number], np.float32))
                     for number in (1.0 / 127.0, LEAST)]
        scales = writer.multiply(writer.largest(writer.absolute(tensor), 3), constants[0])
        scales = writer.at_least(scales, constants[1])                       # [N, G, T, 1]
        numbers = writer.to_int8(writer.divide(tensor, scales))
        writer.output(f"{name}s_{layer}", numbers)
        writer.output(f"{name}_scales_{layer}", scales)
        return Kept(writer.to_float(numbers) if alone else self._multiplied(numbers),
                     scales if alone else writer.reshape(scales, [rows, groups, 1, tokens]))

    # ------------------------------------------------------------------ the cache

    def _with_own(self, cached: Cached, keys: Kept, values: Kept, *, alone: bool) -> Cached:
        """Return what is seen of the cache beside what is read itself."""
        del keys, values, alone
        return cached

    def _cached(self, layer: int, groups: int, size: int, alone: bool) -> Cached:
        """Make the inputs of one layer."""
        keys, values = (tuple(self._span(f"{name}s_{layer}", f"{name}_scales_{layer}", page,
                                         groups, size, alone)
                              for page in range(len(self.pages))) for name in ("key", "value"))
        if self.tokens == 1 or not self.pages:
            # In a step they become floats where they are needed: then these are still in the
            # core's cache.
            return Cached(keys, values, None)
        # A read looks at them once for each of its blocks, and at all keys in one product.
        floats = self._floats if len(keys) > 1 else self._multiplied
        numbers = self.writer.concat([floats(span.blocks[0][1]) for span in keys], 2)
        return Cached(
            (Span(0, sum(self.pages), (((0, 1), numbers),), self._scales(keys)),),
            tuple(span._replace(blocks=(((0, 1), self._multiplied(span.blocks[0][1])),))
                  for span in values), self._scales(values))

    def _span(self, name: str, scales: str, page: int, groups: int, size: int, alone: bool
              ) -> Span:
        """Make the inputs of one page, some rows each."""
        writer, places = self.writer, self.pages[page]
        begin = sum(self.pages[:page])
        blocks = []
        for number, (first, last) in enumerate(row_blocks(self.held, places, self.kind)):
            numbers = writer.input(f"{name}_{page}_{number}", [last - first, groups, places, size],
                                   self.kind)
            blocks.append(((first, last), numbers))
        made = None if self.kind == "float32" else writer.input(f"{scales}_{page}", [
            self.held, groups, *((places, 1) if alone else (1, places))])
        return Span(begin, begin + places, tuple(blocks), made)

    def _scales(self, spans: Sequence[Span]) -> Tensor | None:
        """Scales of a read's spans, one behind the other."""
        scales = [span.scales for span in spans if span.scales is not None]
        return self.writer.concat(scales, 3) if scales else None

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

        A matrix product would first copy all keys into another order, for one query.
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

    def _look(self, query: Tensor, cached: Cached, keys: Kept, values: Kept, begin: int
              ) -> Tensor:
        """Look from ids `begin` and so on at all pages and at what was read up to them.

        query [N, G, Q, d], keys, values [N, G, E, d] -> [N, G, Q, d].
        """
        writer, queries, end = self.writer, query.shape[2], keys.numbers.shape[2]
        scores = [self._scaled(writer.concat([
            writer.batch_matmul(writer.part(query, {0: block}), self._multiplied(numbers),
                                transposed=True) for block, numbers in span.blocks], 0),
            span.scales) for span in cached.keys]                             # [N, G, Q, C]
        own = self._scaled(
            writer.batch_matmul(query, keys.numbers, transposed=True), keys.scales)
        if self.tokens == 1:
            assert self.mask is not None
            joined = writer.add(writer.concat([*scores, own], 3), self.mask)
        else:
            places = np.tile(np.arange(begin, end), queries // (end - begin))
            ahead = np.where(np.arange(end) > places[:, None], MASKED, 0.0).astype(np.float32)
            own = writer.add(own, writer.file.constant(ahead[None, None]))
            if self.mask is not None:
                scores = [writer.add(writer.concat(scores, 3), self.mask)]
            joined = writer.concat([*scores, own], 3)
        weights = writer.softmax(joined)
        first = sum(self.pages)
        found = self._mixed(
            self._scaled(writer.part(weights, {3: (first, first + end)}), values.scales),
            values.numbers)
        if cached.scales is not None:
            weights = writer.multiply(writer.part(weights, {3: (0, first)}), cached.scales)
        for span in cached.values:
            here = writer.part(weights, {3: (span.begin, span.end)})
            if cached.scales is None:
                here = self._scaled(here, span.scales)
            parts = [self._mixed(writer.part(here, {0: block}), self._multiplied(numbers))
                     for block, numbers in span.blocks]
            found = writer.add(found, writer.concat(parts, 0))
        return found

    def _mixed(self, weights: Tensor, values: Tensor) -> Tensor:
        """[N, G, Q, C], [N, G, C, d] -> [N, G, Q, d]."""
        if values.shape[2] == 1:
            return self.writer.multiply(weights, values)
        return self.writer.batch_matmul(weights, values)
