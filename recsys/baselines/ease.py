"""EASE^R: a linear autoencoder in closed form, applied to recency-weighted histories."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack

from features.arrays import Floats
from features.errors import ConfigError, DataError
from features.interactions import Interactions, Ragged
from recsys.dense_recommender import DenseRecommender
from recsys.histories import multiply_dense, positive_counts, profile, user_item_matrix

_BLOCK = 512
"""Rows that are computed at a time; the only other array is the (n, n) matrix."""


@dataclass(frozen=True)
class Ease(DenseRecommender):
    """weights (n, n) float32 with zero diagonal: row = item of the history, column = scored item."""

    weights: Floats
    decay: float

    def scores(self, positives: Ragged) -> Floats:
        """Sum over the history of decay ** age * weight: (b, n) float32."""
        return multiply_dense(profile(positives, len(self.popularity), self.decay), self.weights)


def fit_ease(
    events: Interactions, *, regularization: float = 200.0, decay: float = 0.5, max_gib: float = 4.0
) -> Ease:
    """EASE^R (Steck 2019, "Embarrassingly shallow autoencoders for sparse data", equation 8).

    P = (X'X + regularization I)^-1 and B_ij = -P_ij / P_jj for i != j, X the binary user-item matrix. One (n, n)
    float32 matrix is allocated and inverted in place. decay = 1 gives the model of the paper.
    Raises ConfigError when that matrix takes more than max_gib, or on settings out of range; DataError without
    positive events.
    """
    n = events.n_items
    needed = 4 * n * n / 2**30
    if needed > max_gib:
        raise ConfigError(
            f"EASE of {n} items needs {needed:.1f} GiB for a {n} x {n} float32 matrix, over max_gib {max_gib:.1f}: "
            "raise max_gib or data.min_train_events, or use item-kNN"
        )
    if regularization <= 0 or not 0 < decay <= 1:
        raise ConfigError(
            f"EASE with regularization={regularization}, decay={decay}: needs regularization > 0 and 0 < decay <= 1"
        )
    popularity = positive_counts(events)
    x = user_item_matrix(events)  # (n_users, n)
    by_item = x.T.tocsr()
    matrix = np.empty((n, n), dtype=np.float32)  # X'X + regularization I, then P, then B
    for at in range(0, n, _BLOCK):
        matrix[at : at + _BLOCK] = (by_item[at : at + _BLOCK] @ x).toarray()
    matrix[np.diag_indices(n)] += np.float32(regularization)
    _invert(matrix)
    diagonal = matrix.diagonal().copy()
    matrix /= -diagonal  # B_ij = -P_ij / P_jj
    np.fill_diagonal(matrix, 0)
    return Ease(popularity, events.latest, matrix, decay)


def _invert(matrix: Floats) -> None:
    """Replaces a symmetric positive definite matrix by its inverse, in place (LAPACK potrf, potri).

    Raises DataError when it is not positive definite.
    """
    n = len(matrix)
    # the transpose is column-major, so LAPACK makes no copy; its lower triangle is the upper one of `matrix`
    _, failed = lapack.spotrf(matrix.T, lower=True, overwrite_a=True)
    if failed:
        raise DataError(f"EASE: Cholesky of {n} items failed at row {failed}; raise regularization")
    lapack.spotri(matrix.T, lower=True, overwrite_c=True)
    for at in range(0, n, _BLOCK):
        end = min(at + _BLOCK, n)
        corner = np.triu(matrix[at:end, at:end])
        matrix[at:end, at:end] = corner + np.triu(corner, 1).T
        matrix[end:, at:end] = matrix[at:end, end:].T
