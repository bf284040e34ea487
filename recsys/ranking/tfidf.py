"""TF-IDF rows of the items' texts. They match exact words; content vectors match meaning."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from features.arrays import Floats, Ints
from features.interactions import Ragged
from recsys.histories import profile

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

    def similarity(self, positives: Ragged, rows: Ints) -> Floats:
        """Cosines (b, k) of the items of rows (b, k) with sums of b histories, each item weighted by DECAY ** age."""
        profiles = profile(positives, self.rows.shape[0], DECAY) @ self.rows  # (b, WIDTH) sparse
        out = np.zeros(rows.shape, dtype=np.float32)
        dense = np.zeros(WIDTH, dtype=np.float32)
        for state in range(len(rows)):  # a dense profile takes 1 MB: one at a time
            at = slice(profiles.indptr[state], profiles.indptr[state + 1])
            words, weights = profiles.indices[at], profiles.data[at]
            dense[words] = weights / max(np.linalg.norm(weights), 1e-9)
            out[state] = self.rows[rows[state]] @ dense
            dense[words] = 0
        return out


def _counts(texts: Sequence[str]) -> sp.csr_array:
    """Word counts (n, WIDTH) of n texts."""
    from sklearn.feature_extraction.text import HashingVectorizer  # importing takes a second

    return sp.csr_array(HashingVectorizer(n_features=WIDTH, norm=None, alternate_sign=False).transform(texts))


def _weighted(counts: sp.csr_array, idf: Floats) -> sp.csr_array:
    """Unit rows (n, WIDTH) of counts * idf."""
    from sklearn.preprocessing import normalize

    weights = (counts.data * idf[counts.indices]).astype(np.float32)
    return sp.csr_array(normalize(sp.csr_array((weights, counts.indices, counts.indptr), shape=counts.shape)))
