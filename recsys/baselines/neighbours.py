"""Item-based nearest neighbours with recency weights."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from features.arrays import Floats
from features.errors import ConfigError
from features.interactions import Interactions, Ragged
from recsys.histories import Baseline, counts, profile, user_items

CROWD = 10
"""Times k neighbours of an item are kept at most for the sake of ties."""

_SIMILARITIES_AT_ONCE = 1 << 24
"""Dense similarities (items x items) held at a time: 64 MiB in float32."""


@dataclass(frozen=True)
class ItemKNN(Baseline):
    """similarity (n, n) sparse: row = item of the history, column = item scored, the best k of each row."""

    similarity: sp.csr_array
    decay: float

    def scores(self, liked: Ragged) -> Floats:
        """Sum over the history of decay ** age times similarity: (b, n) float32."""
        weights = profile(liked, len(self.popularity), self.decay)
        scores: Floats = (weights @ self.similarity).toarray()
        return scores


def fit_item_knn(
    events: Interactions, *, k: int = 1000, shrink: float = 50.0, exponent: float = 0.3, decay: float = 0.5
) -> ItemKNN:
    """Item-kNN: s_ij = c_ij / (n_i^a n_j^(1-a) + shrink) from i in the history to j, the k largest of each i kept
    (a tie at the k-th is kept whole, or, where that makes more than CROWD * k, left out whole: no neighbour is chosen
    by its row number, and one user with thousands of items does not make millions of neighbours).

    c_ij users with both items, n_i users with i, a = exponent: .5 is the cosine (Sarwar et al. 2001), others the
    asymmetric cosine (Aiolli 2013), where a below .5 damps popular candidates; shrinkage as in Bell & Koren 2007.
    decay = 1 is the plain item-kNN.
    Raises DataError without positive events, ConfigError on settings out of range.
    """
    if k < 1 or shrink < 0 or not 0 <= exponent <= 1 or not 0 < decay <= 1:
        raise ConfigError(
            f"item-kNN with k={k}, shrink={shrink}, exponent={exponent}, decay={decay}: "
            "needs k >= 1, shrink >= 0, 0 <= exponent <= 1, 0 < decay <= 1"
        )
    x = user_items(events)
    owners = np.maximum(x.sum(axis=0), 1.0)
    left, right = (owners**exponent).astype(np.float32), (owners ** (1 - exponent)).astype(np.float32)
    by_item = x.T.tocsr()
    blocks = []
    step = max(1, _SIMILARITIES_AT_ONCE // events.n_items)
    for at in range(0, events.n_items, step):
        block = (by_item[at : at + step] @ x).tocsr()  # (c, n) users with both
        i = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
        block.data /= left[at + i] * right[block.indices] + np.float32(shrink)
        block.data[block.indices == at + i] = 0
        least = _kth_largest(block, k)[i]
        crowded = np.bincount(i[block.data >= least], minlength=block.shape[0])[i] > CROWD * k
        block.data[(block.data < least) | (crowded & (block.data == least))] = 0
        block.eliminate_zeros()
        blocks.append(block)
    return ItemKNN(counts(events), events.latest, sp.vstack(blocks, format="csr"), decay)


def _kth_largest(matrix: sp.csr_array, k: int) -> Floats:
    """The k-th largest value of each row, 0 where a row has no more than k: (c,) float32."""
    least = np.zeros(matrix.shape[0], dtype=np.float32)
    full = np.flatnonzero(np.diff(matrix.indptr) > k)
    if len(full):
        last = matrix.shape[1] - k
        least[full] = np.partition(matrix[full].toarray(), last, axis=1)[:, last]
    return least
