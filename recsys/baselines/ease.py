"""EASE^R: a linear autoencoder in closed form, applied to recency-weighted histories; and carried to cold items."""

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from scipy.linalg import lapack

from features.arrays import Floats, Ints
from features.errors import ConfigError, DataError
from features.interactions import Interactions, Ragged
from recsys.baselines.content import tfidf_rows
from recsys.dense_recommender import DenseRecommender
from recsys.histories import multiply_dense, positive_counts, profile, user_item_matrix

_BLOCK = 512
"""Rows that are computed at a time; the only other array is the (w, w) matrix."""


@dataclass(frozen=True)
class Ease(DenseRecommender):
    """warm (w,) int64: rows of the items with positive events, ascending. Other items score 0.

    weights (w, w) float32 with zero diagonal: row = item of the history, column = scored item, both among `warm`.
    """

    warm: Ints
    weights: Floats
    decay: float

    def scores(self, positives: Ragged) -> Floats:
        """Sum over the history of decay ** age * weight: (b, n) float32."""
        histories = profile(positives, len(self.popularity), self.decay)[:, self.warm]  # (b, w)
        scores = np.zeros((len(positives), len(self.popularity)), dtype=np.float32)
        scores[:, self.warm] = multiply_dense(histories, self.weights)
        return scores


@dataclass(frozen=True)
class EaseBridge(DenseRecommender):
    """ease: fitted on the same events.

    neighbours (n, n) sparse float32: column = cold item, row = warm item. The entries of a column are cosines divided
    by their sum. Columns of warm items, and of cold items without a warm neighbour, are empty.
    """

    ease: Ease
    neighbours: sp.csr_array
    decay: float

    def scores(self, positives: Ragged) -> Floats:
        """Scores of EASE for warm items, and their mean over the neighbours for cold items: (b, n) float32.

        It equals EASE with the column of weights of a cold item set to the same mean of its neighbours' columns.
        """
        scores = replace(self.ease, decay=self.decay).scores(positives)
        carried: Floats = scores @ self.neighbours  # (b, n): 0 for warm items
        return scores + carried


def fit_ease(
    events: Interactions, *, regularization: float = 200.0, decay: float = 0.5, max_gib: float = 4.0
) -> Ease:
    """EASE^R (Steck 2019, "Embarrassingly shallow autoencoders for sparse data", equation 8).

    P = (X'X + regularization I)^-1 and B_ij = -P_ij / P_jj for i != j, X the binary user-item matrix of the w items
    with positive events: the weights of all others are 0. One (w, w) float32 matrix is allocated and inverted in
    place. decay = 1 gives the model of the paper.
    Raises ConfigError on settings out of range; DataError without positive events, or when that matrix takes more
    than max_gib.
    """
    if regularization <= 0 or not 0 < decay <= 1:
        raise ConfigError(
            f"EASE with regularization={regularization}, decay={decay}: needs regularization > 0 and 0 < decay <= 1"
        )
    popularity = positive_counts(events)
    warm: Ints = np.flatnonzero(popularity).astype(np.int64)
    n = len(warm)
    needed = 4 * n * n / 2**30
    if needed > max_gib:
        raise DataError(
            f"EASE of {n} items needs {needed:.1f} GiB for a {n} x {n} float32 matrix, over max_gib {max_gib:.1f}: "
            "raise max_gib or data.min_train_events, or use item-kNN"
        )
    x = user_item_matrix(events)[:, warm]  # (n_users, w)
    by_item = x.T.tocsr()
    matrix = np.empty((n, n), dtype=np.float32)  # X'X + regularization I, then P, then B
    for at in range(0, n, _BLOCK):
        matrix[at : at + _BLOCK] = (by_item[at : at + _BLOCK] @ x).toarray()
    matrix[np.diag_indices(n)] += np.float32(regularization)
    _invert(matrix)
    diagonal = matrix.diagonal().copy()
    matrix /= -diagonal  # B_ij = -P_ij / P_jj
    np.fill_diagonal(matrix, 0)
    return Ease(popularity, events.latest, warm, matrix, decay)


def fit_ease_bridge(
    events: Interactions,
    texts: list[str],
    *,
    regularization: float = 200.0,
    decay: float = 0.5,
    neighbours: int = 10,
    max_gib: float = 4.0,
) -> EaseBridge:
    """EASE^R carried to cold items by their words, so that warm and cold items have scores of one scale.

    The column of weights of a cold item is the mean of the columns of its nearest warm items by TF-IDF, weighted by
    cosine: k nearest neighbours map attributes to a model of behaviour, as in Gantner et al. 2010, "Learning
    attribute-to-feature mappings for cold-start recommendations". A cold item without words of warm items scores 0.
    texts (n,): as in `fit_tfidf`.
    Raises the errors of `fit_ease`, and DataError on a wrong number of texts or no words.
    """
    if neighbours < 1:
        raise ConfigError(f"EASE bridge with neighbours={neighbours}: needs neighbours >= 1")
    terms = tfidf_rows(texts, events.n_items)  # before the inverse, which takes longer
    ease = fit_ease(events, regularization=regularization, decay=decay, max_gib=max_gib)
    by_popularity = ease.warm[np.argsort(-ease.popularity[ease.warm], kind="stable")]
    nearest = _nearest(terms, by_popularity, neighbours)
    return EaseBridge(ease.popularity, events.latest, ease, nearest, decay)


def _nearest(terms: sp.csr_array, warm: Ints, k: int) -> sp.csr_array:
    """Cosines (n, n) of the k nearest warm items of each cold item, as a column of sum 1. terms (n, v): unit rows.

    Of items with equal cosines, those that come first in `warm` are taken.
    """
    n = terms.shape[0]
    cold = np.setdiff1d(np.arange(n), warm)
    by_term = terms[warm].T.tocsr()
    blocks = [(np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64))]  # value, row, column
    for at in range(0, len(cold), _BLOCK):
        part = cold[at : at + _BLOCK]
        cosines = (terms[part] @ by_term).toarray()  # (c, w)
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :k]  # (c, k)
        kept = np.take_along_axis(cosines, nearest, axis=1)
        kept /= np.maximum(kept.sum(axis=1, keepdims=True), 1e-12)
        blocks.append((kept.ravel(), warm[nearest.ravel()], np.repeat(part, nearest.shape[1])))
    values, rows, columns = (np.concatenate(arrays) for arrays in zip(*blocks, strict=True))
    carried = sp.csr_array((values, (rows, columns)), shape=(n, n))
    carried.eliminate_zeros()
    return carried


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
