"""Local EASE^R: each column is solved over the nearest items only, so the weights stay sparse for any catalogue."""

import numpy as np
import scipy.sparse as sp
from scipy.linalg import cho_factor, cho_solve
from threadpoolctl import threadpool_limits

from features.arrays import Floats, Ints
from features.errors import ConfigError
from features.interactions import Interactions
from recsys.histories import user_item_matrix
from recsys.ranking.item_similarity import item_similarity

_MAX_DENSE_BYTES = 1 << 30
"""Maximum size of a dense matrix of item pairs; submatrices of a sparse one take several times as long."""


def fit_local_ease(events: Interactions, *, k: int, regularization: float = 200.0) -> sp.csr_array:
    """Weights (n, n) sparse float32: row = item of the history, column = scored item, at most k in a column.

    EASE^R (Steck 2019) where column j uses only the set N of the items nearest to j, as fsSLIM does (Ning & Karypis
    2011): (X_N'X_N + regularization I)^-1 X_N'x_j, X binary. N are the k items of largest cosine, as in item-kNN; a
    tie that exceeds k is left out completely. If N holds all other items, this is EASE^R itself.
    Memory: one number for each pair of items that have a user in common. Raises DataError when no event is positive,
    ConfigError when regularization <= 0.
    """
    if regularization <= 0:
        raise ConfigError(f"local EASE with regularization={regularization}: it must be greater than 0")
    n = events.n_items
    similarity = item_similarity(events, k=k, shrink=10, exponent=0.5)
    x = user_item_matrix(events)
    sparse = (x.T @ x).tocsr()  # (n, n): users with both items
    gram = sparse.toarray() if 4 * n * n <= _MAX_DENSE_BYTES else sparse
    columns, rows = [], []
    with threadpool_limits(1, "blas"):  # two threads wait for each other longer than one of these systems takes
        for item in range(n):
            nearest = _nearest(similarity, item, k)  # N, (r,)
            system = _submatrix(gram, np.append(nearest, item))  # (r + 1, r + 1), symmetric, positive definite
            system[np.diag_indices(len(system))] += np.float32(regularization)
            factor = cho_factor(system[:-1, :-1], overwrite_a=True, check_finite=False)
            columns.append(cho_solve(factor, system[:-1, -1], check_finite=False))
            rows.append(nearest)
    starts = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return sp.csc_array((np.concatenate(columns), np.concatenate(rows), starts), shape=(n, n)).tocsr()


def _nearest(similarity: sp.csr_array, item: int, k: int) -> Ints:
    """Rows of the k items nearest to one; fewer where a tie at the k-th is left out."""
    start, end = similarity.indptr[item : item + 2]
    items, values = similarity.indices[start:end], similarity.data[start:end]
    nearest: Ints = items if len(items) <= k else items[values > np.partition(values, -k - 1)[-k - 1]]
    return nearest


def _submatrix(matrix: sp.csr_array | Floats, rows: Ints) -> Floats:
    """The submatrix (r, r) of rows and columns (r,), a new array."""
    if isinstance(matrix, np.ndarray):
        return matrix[np.ix_(rows, rows)]
    submatrix: Floats = matrix[rows][:, rows].toarray()
    return submatrix
