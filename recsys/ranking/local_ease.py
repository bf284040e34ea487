"""EASE^R among the nearest items alone: weights that stay sparse however many items there are."""

import numpy as np
import scipy.sparse as sp

from features.arrays import Floats, Ints
from features.errors import ConfigError
from features.interactions import Interactions
from recsys.histories import user_item_matrix
from recsys.ranking.item_similarity import item_similarity

_MAX_DENSE_BYTES = 1 << 30
"""Bytes that a dense matrix of pairs may take: its parts are read several times as fast as a sparse one's."""


def fit_local_ease(events: Interactions, *, k: int, regularization: float = 200.0) -> sp.csr_array:
    """Weights (n, n) float32: row = item of the history, column = item scored, at most k in a column.

    EASE^R (Steck 2019) where each column j uses the items N nearest to it alone, as fsSLIM does (Ning & Karypis
    2011): (X_N'X_N + regularization I)^-1 X_N'x_j, X binary. N are the k largest cosines of item-kNN, without a tie
    that does not fit in whole. With all items near to each it is EASE^R itself.
    Takes the memory of all pairs of items that some user has both of. Raises DataError without positive events,
    ConfigError on settings out of range.
    """
    if regularization <= 0:
        raise ConfigError(f"local EASE with regularization={regularization}: needs > 0")
    n = events.n_items
    near = item_similarity(events, k=k, shrink=10, exponent=0.5)
    x = user_item_matrix(events)
    sparse = (x.T @ x).tocsr()  # (n, n) users with both
    together = sparse.toarray() if 4 * n * n <= _MAX_DENSE_BYTES else sparse
    columns, rows = [], []
    for item in range(n):
        chosen = _nearest(near, item, k)
        pairs = _submatrix(together, np.append(chosen, item))
        pairs[np.diag_indices(len(pairs))] += np.float32(regularization)
        columns.append(np.linalg.solve(pairs[:-1, :-1], pairs[:-1, -1]))
        rows.append(chosen)
    starts = np.cumsum([0, *map(len, rows)])
    return sp.csc_array((np.concatenate(columns), np.concatenate(rows), starts), shape=(n, n)).tocsr()


def _nearest(near: sp.csr_array, item: int, k: int) -> Ints:
    """Rows of the k items nearest to one; fewer where a tie at the k-th is left out."""
    begin, end = near.indptr[item : item + 2]
    items, alike = near.indices[begin:end], near.data[begin:end]
    nearest: Ints = items if len(items) <= k else items[alike > np.partition(alike, -k - 1)[-k - 1]]
    return nearest


def _submatrix(pairs: sp.csr_array | Floats, rows: Ints) -> Floats:
    """The (r, r) part of a matrix, a new array."""
    if isinstance(pairs, np.ndarray):
        return pairs[np.ix_(rows, rows)]
    part: Floats = pairs[rows][:, rows].toarray()
    return part
