"""TfidfIndex of items: TF-IDF rows, which know exact words where a content vector only knows what they mean."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from features.arrays import Floats, Ints
from features.interactions import Ragged
from recsys.histories import profile

WIDTH = 2**18
"""Columns that words are hashed to, so that no list of them is kept for the items that come later."""

DECAY = 0.8
"""Weight of a liked item against the next newer one, as in the TF-IDF profile that the baselines have."""


@dataclass(frozen=True)
class TfidfIndex:
    """rows (n, WIDTH) sparse float32, of length 1, or 0 where an item has no word; idf (WIDTH,) float32: weights."""

    rows: sp.csr_array
    idf: Floats

    @classmethod
    def of(cls, texts: Sequence[str]) -> "TfidfIndex":
        """Of n items, which also say how rare a word is."""
        counts = _counts(texts)
        items_with = np.bincount(counts.indices, minlength=WIDTH)
        idf = (1 + np.log((1 + len(texts)) / (1 + items_with))).astype(np.float32)  # as scikit-learn's
        return cls(_weighted(counts, idf), idf)

    def put(self, total: int, rows: Ints, texts: Sequence[str]) -> "TfidfIndex":
        """Of `total` items, of which rows (m,) have these texts: new ones, or in place of their own."""
        n = self.rows.shape[0]
        order = np.arange(total)
        order[rows] = n + np.arange(len(rows))
        both = sp.csr_array(sp.vstack([self.rows, _weighted(_counts(texts), self.idf)], format="csr"))
        return TfidfIndex(both if (order == np.arange(total)).all() else both[order], self.idf)

    def similarity(self, positives: Ragged, rows: Ints) -> Floats:
        """(b, k): cosines of items rows (b, k) with the sums of b histories, each item weighted NEWER ** age."""
        tastes = profile(positives, self.rows.shape[0], DECAY) @ self.rows  # (b, WIDTH)
        out = np.zeros(rows.shape, dtype=np.float32)
        taste = np.zeros(WIDTH, dtype=np.float32)
        for state in range(len(rows)):  # one after the other: dense, all of them would be a megabyte each
            at = slice(tastes.indptr[state], tastes.indptr[state + 1])
            words, weights = tastes.indices[at], tastes.data[at]
            taste[words] = weights / max(np.linalg.norm(weights), 1e-9)
            out[state] = self.rows[rows[state]] @ taste
            taste[words] = 0
        return out


def _counts(texts: Sequence[str]) -> sp.csr_array:
    from sklearn.feature_extraction.text import HashingVectorizer  # a second to import

    return sp.csr_array(HashingVectorizer(n_features=WIDTH, norm=None, alternate_sign=False).transform(texts))


def _weighted(counts: sp.csr_array, idf: Floats) -> sp.csr_array:
    from sklearn.preprocessing import normalize

    weights = (counts.data * idf[counts.indices]).astype(np.float32)
    return sp.csr_array(normalize(sp.csr_array((weights, counts.indices, counts.indptr), shape=counts.shape)))
