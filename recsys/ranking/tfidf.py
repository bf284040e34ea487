"""TF-IDF rows of the items' texts. They match exact words; content vectors match meaning."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from features.arrays import Doubles, Floats, Ints
from recsys.histories import entries

WIDTH = 2**18
"""Columns that words are hashed to: no vocabulary is kept, so new items may have new words."""

DECAY = 0.8
"""Weight of a positive item relative to the next newer one, as in the TF-IDF profile of the baselines."""


@dataclass(frozen=True)
class TfidfIndex:
    """rows (n, WIDTH) sparse float32: unit rows, zero where an item has no word; idf (WIDTH,) float32."""

    rows: sp.csr_array
    idf: Floats

    @classmethod
    def of(cls, texts: Sequence[str]) -> "TfidfIndex":
        """The rows of n items, and the inverse document frequencies of their words."""
        counts = _counts(texts)
        items_with = np.bincount(counts.indices, minlength=WIDTH)
        idf = (1 + np.log((1 + len(texts)) / (1 + items_with))).astype(np.float32)  # smooth idf, as in scikit-learn
        return cls(_weighted(counts, idf), idf)

    def put(self, total: int, rows: Ints, texts: Sequence[str]) -> "TfidfIndex":
        """The index of `total` items, where rows (m,), new or existing, have these texts. idf does not change."""
        n = self.rows.shape[0]
        order = np.arange(total)  # (total,): row in the stacked matrix
        order[rows] = n + np.arange(len(rows))
        stacked = sp.csr_array(sp.vstack([self.rows, _weighted(_counts(texts), self.idf)], format="csr"))
        return TfidfIndex(stacked if (order == np.arange(total)).all() else stacked[order], self.idf)

    @cached_property
    def _words(self) -> tuple[Ints, int]:
        """The word of each entry of `rows`, counted from 0 among those that occur, and their number."""
        occurs = np.zeros(WIDTH, dtype=np.int64)
        occurs[self.rows.indices] = 1
        return (np.cumsum(occurs) - 1)[self.rows.indices], int(occurs.sum())

    def similarity(self, items: Ints, weights: Floats, rows: Ints) -> Doubles:
        """Cosines (k,) of the items of rows (k,) with the sum of items (m,), weighted by weights (m,)."""
        words, n_words = self._words
        item, place = entries(self.rows, items)
        values = weights[item] * self.rows.data[place]
        profile = np.bincount(words[place], weights=values, minlength=n_words)
        length = float(values @ profile[words[place]]) ** 0.5  # a word's entries are each multiplied by their sum
        row, place = entries(self.rows, rows)
        products = np.bincount(row, weights=profile[words[place]] * self.rows.data[place], minlength=len(rows))
        return np.asarray(products / max(length, 1e-9), dtype=np.float64)


def _counts(texts: Sequence[str]) -> sp.csr_array:
    """Word counts (n, WIDTH) of n texts."""
    from sklearn.feature_extraction.text import HashingVectorizer  # importing takes a second

    return sp.csr_array(HashingVectorizer(n_features=WIDTH, norm=None, alternate_sign=False).transform(texts))


def _weighted(counts: sp.csr_array, idf: Floats) -> sp.csr_array:
    """Unit rows (n, WIDTH) of counts * idf."""
    from sklearn.preprocessing import normalize

    weights = (counts.data * idf[counts.indices]).astype(np.float32)
    return sp.csr_array(normalize(sp.csr_array((weights, counts.indices, counts.indptr), shape=counts.shape)))
