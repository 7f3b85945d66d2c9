"""Attention of graphs that read several ids of one slot, each as a step would, bit for bit.

Axis letters as in litert_decoder.py; K ids are read. A step finds the ids before its own in pages
of the cache, and adds up in the order in which they lie there. So what K ids make is put into the
pages, in the graph alone, where the host would write it between K steps; each id looks at these
pages, behind which it stands itself, as far as its own row of the mask lets it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tf_infer.optimize.litert_attention import Attention, Block, Cached, Kept, Precision, Span
from tf_infer.optimize.litert_file import Constant, GraphWriter, Tensor

PAGES = 2  # that K ids may belong to, the last ones that are seen


class Several(Attention):
    """Attention of K ids of one slot; the rows of the graph are its ids.

    Inputs beside those of a step of K rows, of which the cache has one row only: for each of the
    last two pages `put_j` [1, G, C, K], 1 where an id belongs, 0 elsewhere, and `stay_j`
    [1, 1, C, 1], 0 where any does, 1 elsewhere.
    """

    def __init__(self, writer: GraphWriter, ids: int, groups: int, pages: Sequence[int],
                 kind: Precision) -> None:
        super().__init__(writer, ids, 1, pages, kind, ids)
        self.held = 1
        last = range(max(len(pages) - PAGES, 0), len(pages))
        self._put = {page: writer.input(f"put_{page}", [1, groups, pages[page], ids])
                     for page in last}
        self._stay = {page: writer.input(f"stay_{page}", [1, 1, pages[page], 1]) for page in last}

    def _page(self, span: Span, page: int, own: Kept, alone: bool) -> Span:
        """Return a page with what belongs into it of the ids that are read."""
        writer, (block,) = self.writer, span.blocks
        numbers, scales = block.numbers, span.scales
        numbers = self._floats(numbers) if alone else self._multiplied(numbers)
        if page in self._put:
            put, stay = self._put[page], self._stay[page]
            groups, size = own.numbers.shape[1], own.numbers.shape[3]
            numbers = writer.reshape(numbers, [1, groups, span.places, size])
            numbers = writer.add(writer.multiply(numbers, stay),
                                 writer.batch_matmul(put, self._column(own.numbers)))
            if scales is not None and own.scales is not None:
                side = writer.transpose(own.scales, [2, 1, 3, 0])            # [1, G, 1, K]
                scales = writer.add(                                         # [1, G, 1, C]
                    writer.multiply(scales, writer.transpose(stay, [0, 1, 3, 2])),
                    writer.batch_matmul(side, put, transposed=True))
        return span._replace(blocks=(Block(numbers, 0, (0, self.rows)),), scales=scales)

    def _column(self, own: Tensor) -> Tensor:
        """[K, G, 1, d] -> [1, G, K, d]."""
        return self.writer.transpose(own, [2, 1, 0, 3])

    def _look(self, query: Tensor, cached: Cached, keys: Kept, values: Kept) -> Tensor:
        """See `Attention`; each id looks at pages into which all ids were put."""
        alone = query.shape[2] == 1
        keys, values = (kept._replace(numbers=self._floats(kept.numbers))
                        for kept in (keys, values))
        seen_keys, seen_values = (
            tuple(self._page(span, page, own, alone) for page, span in enumerate(spans))
            for spans, own in ((cached.keys, keys), (cached.values, values)))
        return super()._look(query, Cached(seen_keys, seen_values), keys, values)

    def _products(self, query: Tensor, spans: Sequence[Span]) -> list[Tensor | Constant]:
        """See `Attention`: all ids are asked together."""
        asked = self._together(query)
        scores = [self._scaled(self.writer.batch_matmul(
            asked, span.blocks[0].numbers, transposed=True), span.scales) for span in spans]
        return [self._apart(self.writer.concat(scores, 3), query.shape[2])]

    def _joined(self, weights: Tensor, spans: Sequence[Span], own: Kept) -> Tensor:
        """See `Attention`; behind all pages stand the ids, of which each sees itself."""
        writer, last = self.writer, sum(self.pages)
        each = writer.file.constant(np.eye(self.rows, dtype=np.float32)[:, None, None, :])
        parts = [self._scaled(writer.part(weights, {3: (span.begin, span.end)}), span.scales)
                 for span in spans]
        here = self._scaled(writer.part(weights, {3: (last, last + 1)}), own.scales)
        parts.append(writer.multiply(here, each))                            # [K, G, R, K]
        numbers = [*(span.blocks[0].numbers for span in spans), self._column(own.numbers)]
        mixed = writer.batch_matmul(self._together(writer.concat(parts, 3)),
                                    writer.concat(numbers, 2))
        return self._apart(mixed, weights.shape[2])

    def _together(self, tensor: Tensor) -> Tensor:
        """[K, G, R, x] -> [1, G, K R, x]: one product with the pages, which are there once."""
        ids, groups, shared, width = tensor.shape
        return self.writer.reshape(self.writer.transpose(tensor, [1, 0, 2, 3]),
                                   [1, groups, ids * shared, width])

    def _apart(self, tensor: Tensor, shared: int) -> Tensor:
        """[1, G, K R, x] -> [K, G, R, x]."""
        _, groups, rows, width = tensor.shape
        apart = self.writer.reshape(tensor, [groups, rows // shared, shared, width])
        return self.writer.transpose(apart, [1, 0, 2, 3])
