"""Test texts that training has almost seen: the nearest training text by character n-grams."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from tf_infer.verify.error_analysis import NearDuplicate

NGRAMS = (3, 5)
ROWS = 256  # of test texts whose similarities to all of training are in memory at once
LABELLED = tuple[str, str, frozenset[str]]  # place, text, labels


def near_duplicates(test: Sequence[LABELLED], train: Sequence[LABELLED], *, least: float = 0.9
                    ) -> list[NearDuplicate]:
    """Return the test texts that are almost a training text, the most alike first.

    Args:
        test, train: (place, text, labels) of each row.
        least: cosine of their TF-IDF vectors over character n-grams within words, 0 to 1.
    """
    if not test or not train:
        return []
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=NGRAMS, preprocessor=_plain)
    try:
        known = vectors.fit_transform([text for _, text, _ in train])        # [M, n-grams]
    except ValueError:  # no text has any n-gram
        return []
    found = []
    for start in range(0, len(test), ROWS):
        rows = vectors.transform([text for _, text, _ in test[start:start + ROWS]])
        alike = (rows @ known.T).toarray()                                   # [rows, M]
        for row, nearest in enumerate(np.argmax(alike, axis=1).tolist()):
            similarity = min(1.0, float(alike[row, nearest]))
            if similarity >= least:
                place, text, labels = test[start + row]
                other, other_text, other_labels = train[nearest]
                found.append(NearDuplicate(
                    place=place, text=text, train_place=other, train_text=other_text,
                    similarity=similarity, same_labels=labels == other_labels))
    return sorted(found, key=lambda one: -one.similarity)


def _plain(text: str) -> str:
    """Return a text without case and punctuation: they make no other text of it."""
    return re.sub(r"[\W_]+", " ", text.lower())
