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


class _Kept(NamedTuple):
    """Keys or values [N, G, C, d] as they are kept.

    Of int8 a float of d numbers is a whole number times the scale of its place, [N, G, 1, C].
    """

    numbers: Tensor
    scales: Tensor | None


class _Block(NamedTuple):
    """Keys and values of one page, and which rows of the step they are."""

    rows: tuple[int, int]
    keys: _Kept
    values: _Kept


class Attention:
    """Attention of one graph: N rows of T ids; one row, or one id of each, or no pages.

    Makes the inputs `mask`, `keys_i_j_k` and `values_i_j_k`, and the outputs `keys_i`, `values_i`;
    of int8 also `key_scales...` and `value_scales...`.
    """

    def __init__(self, writer: GraphWriter, rows: int, tokens: int, pages: Sequence[int],
                 kind: Precision) -> None:
        self.writer, self.kind = writer, kind
        self.rows, self.tokens, self.pages = rows, tokens, tuple(pages)
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
        own = [self._keep(number, name, tensor)
               for name, tensor in (("key", keys), ("value", values))]
        cached = [self._inputs(number, page, groups, size) for page in range(len(self.pages))]
        parts = []
        for begin in range(0, tokens, READ_BLOCK):
            end = min(begin + READ_BLOCK, tokens)
            part = writer.reshape(writer.part(query, {3: (begin, end)}),
                                  [rows, groups, shared * (end - begin), size])
            seen = [_Kept(writer.part(kept.numbers, {2: (0, end)}), None if kept.scales is None
                          else writer.part(kept.scales, {3: (0, end)})) for kept in own]
            found = self._look(part, cached, seen[0], seen[1], begin)
            parts.append(writer.reshape(found, [rows, groups, shared, end - begin, size]))
        found = writer.transpose(writer.concat(parts, 3), [0, 3, 1, 2, 4])
        return writer.reshape(found, [rows * tokens, groups * shared * size])

    def _keep(self, layer: int, name: str, tensor: Tensor) -> _Kept:
        """Hand out what is to be kept of [N, G, T, d], and return it as it will be seen again."""
        writer, (rows, groups, tokens, _) = self.writer, tensor.shape
        if self.kind == "float32":
            writer.output(f"{name}s_{layer}", tensor)
            return _Kept(tensor, None)
        constants = [writer.file.constant(np.array([number], np.float32))
                     for number in (1.0 / 127.0, LEAST)]
        scales = writer.multiply(writer.largest(writer.absolute(tensor), 3), constants[0])
        scales = writer.at_least(scales, constants[1])                       # [N, G, T, 1]
        numbers = writer.to_int8(writer.divide(tensor, scales))
        writer.output(f"{name}s_{layer}", numbers)
        writer.output(f"{name}_scales_{layer}", scales)
        return _Kept(writer.to_float(numbers),
                     writer.reshape(scales, [rows, groups, 1, tokens]))

    def _look(self, query: Tensor, cached: Sequence[Sequence[_Block]], keys: _Kept,
              values: _Kept, begin: int) -> Tensor:
        """Look from ids `begin` and so on at all pages and at what was read up to them.

        query [N, G, Q, d], keys, values [N, G, E, d] -> [N, G, Q, d].
        """
        writer, queries, end = self.writer, query.shape[2], keys.numbers.shape[2]
        scores = [self._of_page(query, blocks) for blocks in cached]
        own = self._scores(query, keys)
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
        found = self._mixed(writer.part(weights, {3: (first, first + end)}), values)
        for page, blocks in enumerate(cached):
            place = sum(self.pages[:page])
            parts = [self._mixed(
                writer.part(weights, {0: block.rows, 3: (place, place + self.pages[page])}),
                block.values) for block in blocks]
            found = writer.add(found, writer.concat(parts, 0))
        return found

    def _inputs(self, layer: int, page: int, groups: int, size: int) -> list[_Block]:
        """Make the inputs of one page of one layer, some rows each."""
        blocks = []
        for number, (begin, end) in enumerate(row_blocks(
                self.rows, self.pages[page], self.kind)):
            shape = [end - begin, groups, self.pages[page], size]
            place = f"{layer}_{page}_{number}"
            keys, values = (self._input(f"{name}s_{place}", f"{name}_scales_{place}", shape)
                            for name in ("key", "value"))
            blocks.append(_Block((begin, end), keys, values))
        return blocks

    def _input(self, name: str, scales: str, shape: Sequence[int]) -> _Kept:
        numbers = self.writer.input(name, shape, self.kind)
        if self.kind == "float32":
            return _Kept(numbers, None)
        rows, groups, places, _ = shape
        # A read looks at them once for each of its blocks. In a step they become floats where they
        # are needed: then these are still in the core's cache.
        return _Kept(self._floats(numbers) if self.tokens > 1 else numbers,
                     self.writer.input(scales, [rows, groups, 1, places]))

    def _of_page(self, query: Tensor, blocks: Sequence[_Block]) -> Tensor:
        """Scores [N, G, Q, C] of a page."""
        return self.writer.concat([
            self._scores(self.writer.part(query, {0: block.rows}), block.keys)
            for block in blocks], 0)

    def _floats(self, numbers: Tensor) -> Tensor:
        return numbers if numbers.dtype == "float32" else self.writer.to_float(numbers)

    def _scores(self, query: Tensor, kept: _Kept) -> Tensor:
        """[N, G, Q, d], [N, G, C, d] -> [N, G, Q, C]."""
        writer, (rows, groups, queries, _) = self.writer, query.shape
        keys = self._floats(kept.numbers)
        if queries > 1:
            found = writer.batch_matmul(query, keys, transposed=True)
        else:
            # A matrix product would first copy the keys into another order, for one query.
            found = writer.sum(writer.multiply(keys, query), 3)              # [N, G, C, 1]
            found = writer.reshape(found, [rows, groups, 1, keys.shape[2]])
        return found if kept.scales is None else writer.multiply(found, kept.scales)

    def _mixed(self, weights: Tensor, kept: _Kept) -> Tensor:
        """[N, G, Q, C], [N, G, C, d] -> [N, G, Q, d]."""
        writer, (rows, groups, queries, places) = self.writer, weights.shape
        if kept.scales is not None:
            weights = writer.multiply(weights, kept.scales)
        values = self._floats(kept.numbers)
        if places == 1:
            return writer.multiply(weights, values)
        if queries > 1:
            return writer.batch_matmul(weights, values)
        weights = writer.reshape(weights, [rows, groups, places, 1])
        return writer.sum(writer.multiply(values, weights), 2)               # [N, G, 1, d]
