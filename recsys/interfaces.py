"""Candidates, and the three Protocols of ranking: who finds them, who scores them, who recommends."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from features.arrays import Bools, Floats, Ints
from features.interactions import Ragged, UserStates


@dataclass(frozen=True)
class Candidates:
    """Items found for b users.

    rows (b, k) int64 item rows, -1 = padding, at the end only; scores (b, k) float32 descending, -inf at padding.
    """

    rows: Ints
    scores: Floats

    def __post_init__(self) -> None:
        if self.rows.shape != self.scores.shape or self.rows.ndim != 2:
            raise ValueError(f"rows {self.rows.shape} and scores {self.scores.shape} must have one shape (b, k)")

    def __len__(self) -> int:
        return len(self.rows)


@runtime_checkable
class Retriever(Protocol):
    """Nearest items of query vectors."""

    @property
    def dimension(self) -> int:
        """Length of a query."""
        ...

    def search(
        self, queries: Floats, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        """The k items of largest inner product with each of queries (b, d).

        allow (n,) bool: items that may be found at all; exclude: b slices of item rows kept out of that query.
        min(k, allowed and not excluded) items come back.
        """
        ...


@runtime_checkable
class Scorer(Protocol):
    """Scores given candidates."""

    def score(self, states: UserStates, candidates: Candidates) -> Floats:
        """(b, k) float32, larger is better, -inf at padding."""
        ...


@runtime_checkable
class Recommender(Protocol):
    """Every baseline and the real one."""

    def recommend(
        self, states: UserStates, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        """The best k items for each of b states; allow and exclude as in `Retriever.search`."""
        ...


def sort_candidates(rows: Ints, scores: Floats, k: int) -> Candidates:
    """The k of rows (b, w) with the largest scores (b, w), the first of equals first; -inf and -1 become padding."""
    scores = np.where(rows < 0, -np.inf, scores)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
    rows = np.where(np.isneginf(scores), -1, rows)
    if (missing := k - rows.shape[1]) > 0:
        pad = ((0, 0), (0, missing))
        rows, scores = np.pad(rows, pad, constant_values=-1), np.pad(scores, pad, constant_values=-np.inf)
    return Candidates(rows, scores.astype(np.float32, copy=False))


def first_occurrences(rows: Ints) -> Bools:
    """(b, w): where each of rows (b, w) occurs first in its line; never at padding."""
    order = np.argsort(rows, axis=1, kind="stable")
    there = np.take_along_axis(rows, order, 1)
    first = np.ones(rows.shape, dtype=np.bool_)
    np.put_along_axis(first, order[:, 1:], there[:, 1:] != there[:, :-1], 1)
    return first & (rows >= 0)


def top_k(scores: Floats, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None) -> Candidates:
    """The k best of dense scores (b, n) float32, which is overwritten; NaN and -inf are never returned."""
    scores[np.isnan(scores)] = -np.inf
    if allow is not None:
        scores[:, ~allow] = -np.inf
    if exclude is not None:
        which, items = exclude.pairs()
        scores[which, items] = -np.inf
    import torch  # the fastest partial sort; not at the top, since every command would wait for it

    values, rows = torch.topk(torch.from_numpy(scores), min(k, scores.shape[1]), dim=1)
    found, at = values.numpy(), rows.numpy()
    missing = np.isneginf(found)
    at[missing] = -1
    if found.shape[1] < k:
        pad = ((0, 0), (0, k - found.shape[1]))
        found = np.pad(found, pad, constant_values=-np.inf)
        at = np.pad(at, pad, constant_values=-1)
    return Candidates(at, found)
