"""Attention of graphs that read several ids of one slot, each as a step would, bit for bit.

Axis letters as in litert_decoder.py; K ids are read. A step finds the ids before its own in pages
of the cache, and adds up in the order in which they lie there. So what K ids make is put into the
pages, in the graph alone, where the host would write it between K steps; each id looks at these
pages, behind which it stands itself, as far as its own row of the mask lets it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tf_infer.optimize.litert_attention import Attention, Cached, Kept, Precision, Span
from tf_infer.optimize.litert_file import GraphWriter, Tensor

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

    def _with_own(self, cached: Cached, keys: Kept, values: Kept, *, alone: bool) -> Cached:
        """Return the pages with what belongs into them of the ids that are read."""
        seen_keys, seen_values = (
            tuple(self._page(span, page, own, alone) for page, span in enumerate(spans))
            for spans, own in ((cached.keys, keys), (cached.values, values)))
        return Cached(seen_keys, seen_values)

    def _page(self, span: Span, page: int, own: Kept, alone: bool) -> Span:
        writer, ((_, numbers),) = self.writer, span.blocks
        numbers = self._floats(numbers) if alone else self._multiplied(numbers)
        scales = span.scales
        if page in self._put:
            put, stay = self._put[page], self._stay[page]
            numbers = writer.add(writer.multiply(numbers, stay),
                                 writer.batch_matmul(put, self._column(own.numbers)))
            if scales is not None and own.scales is not None:
                scales = writer.add(*self._scales_with(scales, own.scales, put, stay, alone))
        return span._replace(blocks=(((0, self.rows), numbers),), scales=scales)

    def _column(self, own: Tensor) -> Tensor:
        """[K, G, 1, d or 1] -> [1, G, K, d or 1]."""
        return self.writer.transpose(own, [2, 1, 0, 3])

    def _scales_with(self, scales: Tensor, own: Tensor, put: Tensor, stay: Tensor, alone: bool,
                     ) -> tuple[Tensor, Tensor]:
        """Return what stays of a page's scales, and what is put there."""
        writer = self.writer
        if alone:                                                            # [1, G, C, 1]
            return (writer.multiply(scales, stay), writer.batch_matmul(put, self._column(own)))
        own = writer.transpose(own, [2, 1, 3, 0])                            # [1, G, 1, K]
        return (writer.multiply(scales, writer.transpose(stay, [0, 1, 3, 2])),
                writer.batch_matmul(own, put, transposed=True))              # [1, G, 1, C]

    def _look(self, query: Tensor, cached: Cached, keys: Kept, values: Kept) -> Tensor:
        """Look from R queries of each id; [K, G, R, d], keys, values [K, G, 1, d] -> [K, G, R, d].
        """
        writer = self.writer
        keys, values = (kept._replace(numbers=self._multiplied(kept.numbers))
                        for kept in (keys, values))
        own = self._own_scores(query, keys)
        cached = self._with_own(cached, keys, values, alone=False)
        asked = self._together(query)
        scores = [self._scaled(writer.batch_matmul(asked, span.blocks[0][1], transposed=True),
                               span.scales) for span in cached.keys]         # [1, G, K R, C]
        assert self.mask is not None
        seen = self._apart(writer.concat(scores, 3), query.shape[2])
        weights = writer.softmax(writer.add(writer.concat([seen, own], 3), self.mask))
        last = sum(self.pages)
        parts = [self._scaled(writer.part(weights, {3: (span.begin, span.end)}), span.scales)
                 for span in cached.values]
        own = self._scaled(writer.part(weights, {3: (last, last + 1)}), values.scales)
        # Behind all pages stand the ids, of which each sees itself: so own comes last in the sum.
        each = writer.file.constant(np.eye(self.rows, dtype=np.float32)[:, None, None, :])
        parts.append(writer.multiply(own, each))                             # [K, G, R, K]
        numbers = [*(span.blocks[0][1] for span in cached.values), self._column(values.numbers)]
        mixed = writer.batch_matmul(self._together(writer.concat(parts, 3)),
                                    writer.concat(numbers, 2))
        return self._apart(mixed, query.shape[2])

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
