"""Shared functions of models on histories: the user-item matrix, recency-weighted histories, and a product."""

import numpy as np
import scipy.sparse as sp

from features.arrays import Floats, Ints
from features.errors import DataError
from features.interactions import Interactions, Ragged

_MIN_WEIGHT = 2.0**-24
"""Recency weights up to this are taken as zero: below the resolution of float32 at the newest item's weight of 1."""


def positive_counts(events: Interactions) -> Floats:
    """Number of positive events of each item: (n,) float32. Raises DataError when no event is positive."""
    positives = events.positives()
    if len(positives) == 0:
        raise DataError(
            f"a baseline was given {len(events)} events and none is positive; "
            "check events.positive in the data config and the cut of the split"
        )
    return np.bincount(positives.items, minlength=events.n_items).astype(np.float32)


def user_item_matrix(events: Interactions) -> sp.csr_array:
    """Binary matrix X (n_users, n_items) float32: 1 where the user has a positive event of the item."""
    positives = events.positives()
    pairs = np.unique(positives.users * events.n_items + positives.items)
    users, items = np.divmod(pairs, events.n_items)
    ones = np.ones(len(pairs), dtype=np.float32)
    return sp.csr_array((ones, (users, items)), shape=(events.n_users, events.n_items))


def ages(positives: Ragged) -> Ints:
    """Age of each event of `positives.pairs()`: the number of later events in the same history, 0 for the newest."""
    ends = np.cumsum(positives.lengths)
    return np.repeat(ends, positives.lengths) - 1 - np.arange(int(ends[-1]) if len(ends) else 0)


def latest_items(positives: Ragged, n_items: int) -> tuple[Ints, Ints, Ints]:
    """(history, item, age of the item's latest event) of the m distinct items of b histories: (m,) each, ascending.

    Only the latest event of an item counts in a profile, so that decay = 1 gives the binary rows that the models are
    fitted on.
    """
    history, items = positives.pairs()
    keys = history * n_items + items
    last = len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1]  # histories are oldest first
    return history[last], items[last], ages(positives)[last]


def recency_weights(ages: Ints, decay: float) -> Floats:
    """decay ** age, 0 where it is below the resolution of float32."""
    weights = np.power(decay, ages, dtype=np.float32)
    weights[weights <= _MIN_WEIGHT] = 0
    return weights


def profile(positives: Ragged, n_items: int, decay: float, last: int | None = None) -> sp.csr_array:
    """Recency-weighted histories (b, n_items) float32: decay ** age of the latest event of each item.

    last: only the newest so many events count; None: all.
    """
    rows, columns, age = latest_items(positives, n_items)
    weights = recency_weights(age, decay)
    keep = weights > 0 if last is None else (weights > 0) & (age < last)
    starts = np.searchsorted(rows[keep], np.arange(len(positives) + 1))
    return sp.csr_array((weights[keep], columns[keep], starts), shape=(len(positives), n_items))


def entries(matrix: sp.csr_array, rows: Ints) -> tuple[Ints, Ints]:
    """(index into rows, place in `matrix.indices` and `matrix.data`) of every entry of some rows of a matrix."""
    return Ragged(matrix.indices, matrix.indptr[rows], matrix.indptr[rows + 1]).places()


def multiply_dense(sparse: sp.csr_array, dense: Floats) -> Floats:
    """sparse (b, n) @ dense (n, m) -> (b, m) float32. Uses BLAS when over 2 % of the sparse matrix are non-zero."""
    if sparse.nnz > 0.02 * np.prod(sparse.shape):
        import torch  # for its faster product; imported late, because the import is slow

        return (torch.from_numpy(sparse.toarray()) @ torch.from_numpy(dense)).numpy()
    product: Floats = sparse @ dense
    return product
