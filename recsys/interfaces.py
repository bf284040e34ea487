"""Candidates, the Protocols Retriever, Scorer and Recommender, and functions that rank scores."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from features.arrays import Bools, Floats, Ints
from features.interactions import Ragged, UserStates


@dataclass(frozen=True)
class Candidates:
    """Ranked items of b users.

    rows (b, k) int64: item rows, then padding of -1; scores (b, k) float32: descending, -inf at padding.
    """

    rows: Ints
    scores: Floats

    def __post_init__(self) -> None:
        if self.rows.shape != self.scores.shape or self.rows.ndim != 2:
            raise ValueError(f"rows {self.rows.shape} and scores {self.scores.shape} must have the same shape (b, k)")

    def __len__(self) -> int:
        return len(self.rows)


@runtime_checkable
class Retriever(Protocol):
    """Finds the items nearest to query vectors."""

    @property
    def dimension(self) -> int:
        """Dimension d of a query."""
        ...

    def search(
        self, queries: Floats, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        """The k items with the largest inner product with each query (b, d).

        allow (n,) bool: items that may be returned; exclude: b slices, item rows that the query must not return.
        Returns k items for each query, or all that are allowed and not excluded when these are fewer.
        """
        ...


@runtime_checkable
class Scorer(Protocol):
    """Scores candidates."""

    def score(self, states: UserStates, candidates: Candidates) -> Floats:
        """Scores (b, k) float32 of candidates (b, k): larger is better, -inf at padding."""
        ...


@runtime_checkable
class Recommender(Protocol):
    """Recommends items to users: the baselines and `TwoStageRecommender`."""

    def recommend(
        self, states: UserStates, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        """The k best items of each of b states; allow and exclude as in `Retriever.search`."""
        ...


def sort_candidates(rows: Ints, scores: Floats, k: int) -> Candidates:
    """The k of rows (b, w) with the largest scores (b, w); ties keep their order.

    Rows of -1 and scores of -inf become padding.
    """
    scores = np.where(rows < 0, -np.inf, scores)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
    rows = np.where(np.isneginf(scores), -1, rows)
    if (missing := k - rows.shape[1]) > 0:
        pad = ((0, 0), (0, missing))
        rows, scores = np.pad(rows, pad, constant_values=-1), np.pad(scores, pad, constant_values=-np.inf)
    return Candidates(rows, scores.astype(np.float32, copy=False))


def first_occurrences(rows: Ints) -> Bools:
    """(b, w) bool: True at the first occurrence of each value of rows (b, w) in its line; False at padding."""
    order = np.argsort(rows, axis=1, kind="stable")
    ascending = np.take_along_axis(rows, order, 1)  # (b, w)
    first = np.ones(rows.shape, dtype=np.bool_)
    np.put_along_axis(first, order[:, 1:], ascending[:, 1:] != ascending[:, :-1], 1)
    return first & (rows >= 0)


def top_k(scores: Floats, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None) -> Candidates:
    """The k items with the largest dense scores (b, n) float32. Items with NaN or -inf are never returned.

    allow and exclude as in `Retriever.search`. `scores` is overwritten.
    """
    scores[np.isnan(scores)] = -np.inf
    if allow is not None:
        scores[:, ~allow] = -np.inf
    if exclude is not None:
        query, items = exclude.pairs()
        scores[query, items] = -np.inf
    import torch  # for its partial sort, the fastest; imported late, because the import is slow

    values, indices = torch.topk(torch.from_numpy(scores), min(k, scores.shape[1]), dim=1)
    best, rows = values.numpy(), indices.numpy()  # (b, min(k, n))
    padding = np.isneginf(best)
    rows[padding] = -1
    if best.shape[1] < k:
        pad = ((0, 0), (0, k - best.shape[1]))
        best = np.pad(best, pad, constant_values=-np.inf)
        rows = np.pad(rows, pad, constant_values=-1)
    return Candidates(rows, best)
