"""Similarities of items by the users they have in common: the k nearest neighbours of each item."""

import numpy as np
import scipy.sparse as sp

from features.arrays import Floats
from features.interactions import Interactions
from recsys.histories import positive_counts, user_item_matrix

MAX_TIES = 10
"""Ties may extend the neighbours of an item to at most this many times k."""


_SIMILARITIES_AT_ONCE = 1 << 24
"""Dense similarities (items x items) held at a time: 64 MiB in float32."""


def item_similarity(events: Interactions, *, k: int, shrink: float, exponent: float) -> sp.csr_array:
    """Similarities (n, n) sparse float32 of items, the k largest of each row.

    s_ij = c_ij / (n_i^a n_j^(1-a) + shrink), where c_ij is the number of users with both items i and j, n_i the
    number of users with item i, and a = exponent. a = .5 is the cosine (Sarwar et al. 2001). Other values are the
    asymmetric cosine (Aiolli 2013), where a below .5 damps popular candidates j. Shrinkage: Bell & Koren 2007.
    All items tied with the k-th similarity are kept, or none of them where they make a row longer than MAX_TIES * k.
    So the result does not depend on the order of the items, and one user with thousands of items does not create
    millions of neighbours.
    Raises DataError when no event is positive.
    """
    positive_counts(events)
    x = user_item_matrix(events)  # (users, n)
    n_users = np.maximum(x.sum(axis=0), 1.0)  # (n,): users of each item
    left, right = (n_users**exponent).astype(np.float32), (n_users ** (1 - exponent)).astype(np.float32)
    by_item = x.T.tocsr()
    blocks = []
    step = max(1, _SIMILARITIES_AT_ONCE // events.n_items)
    for at in range(0, events.n_items, step):
        block = (by_item[at : at + step] @ x).tocsr()  # (c, n): users with both items
        i = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
        block.data /= left[at + i] * right[block.indices] + np.float32(shrink)
        block.data[block.indices == at + i] = 0
        threshold = _kth_largest(block, k)[i]
        has_many_ties = np.bincount(i[block.data >= threshold], minlength=block.shape[0])[i] > MAX_TIES * k
        block.data[(block.data < threshold) | (has_many_ties & (block.data == threshold))] = 0
        block.eliminate_zeros()
        blocks.append(block)
    return sp.vstack(blocks, format="csr")


def _kth_largest(matrix: sp.csr_array, k: int) -> Floats:
    """The k-th largest value of each row, 0 where a row has k values or fewer: (c,) float32."""
    kth = np.zeros(matrix.shape[0], dtype=np.float32)
    full = np.flatnonzero(np.diff(matrix.indptr) > k)
    if len(full):
        position = matrix.shape[1] - k
        kth[full] = np.partition(matrix[full].toarray(), position, axis=1)[:, position]
    return kth
