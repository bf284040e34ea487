"""Candidates, the Protocols Retriever, Scorer and Recommender, and functions that rank scores."""

from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from features.arrays import Bools, Floats, Ints
from features.interactions import Ragged, UserStates

MAX_TABLE = 1 << 24
"""Maximum size of the table of `in_slices`."""

SOURCES = ("own", "long_term", "recent", "neighbours", "fresh", "trending", "popular", "pinned")
"""Where candidates come from. own: items of the user's history; long_term: items near the mean of all positive items
of the user; recent: items near the user vector, which predicts the next event; neighbours: items that users of the
history's items chose, too; fresh: new items near the user vector; trending, popular: items with most events of 7 and
of 30 days, popular also for users without a positive event; pinned: by a rule."""

Places = npt.NDArray[np.int32]
Array = TypeVar("Array", bound=npt.NDArray[Any])


@dataclass(frozen=True)
class Candidates:
    """Ranked items of b users.

    rows (b, k) int64: item rows, then padding of -1; scores (b, k) float32: descending, -inf at padding.
    sources (b, k) int32: index in SOURCES of the source that brought each item, -1 where it is not known, None where
    none is; places (b, k) int32: the item's place among those of the source, from 0, or -1.
    """

    rows: Ints
    scores: Floats
    sources: Places | None = None
    places: Places | None = None

    def __post_init__(self) -> None:
        if self.rows.shape != self.scores.shape or self.rows.ndim != 2:
            raise ValueError(f"rows {self.rows.shape} and scores {self.scores.shape} must have the same shape (b, k)")

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def empty(cls, b: int, k: int) -> "Candidates":
        """Padding only, with sources."""
        unknown = np.full((2, b, k), -1, dtype=np.int32)
        rows, scores = np.full((b, k), -1, dtype=np.int64), np.full((b, k), -np.inf, dtype=np.float32)
        return cls(rows, scores, unknown[0], unknown[1])

    def put(self, states: Ints, lines: "Candidates") -> None:
        """Replace the lines of states (c,) by lines (c, k)."""
        self.rows[states], self.scores[states] = lines.rows, lines.scores
        for own, other in ((self.sources, lines.sources), (self.places, lines.places)):
            if own is not None:
                own[states] = -1 if other is None else other

    def take(self, order: Ints) -> "Candidates":
        """The candidates at order (b, m) of each line; padding where order is -1."""
        padding = order < 0
        at = order + np.arange(len(self))[:, None] * self.rows.shape[1]  # in the lines, one after another
        at[padding] = 0

        def taken(values: Array, fill: float) -> Array:
            out = values.ravel()[at] if values.size else np.empty(at.shape, values.dtype)
            out[padding] = fill
            return cast(Array, out)

        return Candidates(
            taken(self.rows, -1),
            taken(self.scores, -np.inf),
            None if self.sources is None else taken(self.sources, -1),
            None if self.places is None else taken(self.places, -1),
        )

    def where(self, keep: Bools, k: int) -> "Candidates":
        """The first k candidates of each line where keep (b, w) is True, then padding: (b, k)."""
        order = np.full((len(self), k), -1, dtype=np.int64)
        line, at = np.nonzero(keep)
        to = np.arange(len(line)) - np.searchsorted(line, line)
        order[line[to < k], to[to < k]] = at[to < k]
        return self.take(order)

    def sorted(self, scores: Floats, k: int) -> "Candidates":
        """The k candidates of each line with the largest of new scores (b, w); ties keep their order.

        Rows of -1 and scores of -inf become padding.
        """
        scores = np.where(self.rows < 0, -np.inf, scores)
        order = np.full((len(self), k), -1, dtype=np.int64)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        order[:, : best.shape[1]] = np.where(np.isneginf(np.take_along_axis(scores, best, 1)), -1, best)
        return replace(self, scores=scores.astype(np.float32, copy=False)).take(order)

    def of_source(self, name: str) -> "Candidates":
        """The same candidates, all brought by one of SOURCES."""
        is_item = self.rows >= 0
        sources = np.where(is_item, np.int32(SOURCES.index(name)), np.int32(-1))
        places = np.where(is_item, np.arange(self.rows.shape[1], dtype=np.int32), np.int32(-1))
        return replace(self, sources=sources, places=places)

    def source_names(self, state: int) -> list[str]:
        """The source of each candidate of one state; "" where it is not known."""
        if self.sources is None:
            return [""] * self.rows.shape[1]
        return [SOURCES[source] if source >= 0 else "" for source in self.sources[state].tolist()]


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

    def score(self, states: UserStates, candidates: Candidates, ranks: Ints | None = None) -> Floats:
        """Scores (b, k) float32 of candidates (b, k): larger is better, -inf at padding.

        ranks (b, k): place of each in the retrieval, from 0; None: its place in its line.
        """
        ...


@runtime_checkable
class Recommender(Protocol):
    """Recommends items to users: the baselines and `TwoStageRecommender`."""

    def recommend(
        self, states: UserStates, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        """The k best items of each of b states; allow and exclude as in `Retriever.search`."""
        ...


def in_slices(slices: Ragged, line: Ints, rows: Ints) -> Bools:
    """Whether each of rows is in the slice of its line; False for padding. line, rows: of one shape, or broadcast."""
    owner, items = slices.pairs()
    width = int(max(rows.max(initial=0), items.max(initial=0))) + 1  # key of a pair: line * width + item
    keys, known = line * width + rows, owner * width + items
    if len(slices) * width > MAX_TABLE:
        return np.isin(keys, known) & (rows >= 0)
    table = np.zeros(len(slices) * width, dtype=np.bool_)
    table[known] = True
    return np.asarray(table[keys] & (rows >= 0), dtype=np.bool_)


def sort_candidates(rows: Ints, scores: Floats, k: int) -> Candidates:
    """The k of rows (b, w) with the largest scores (b, w); see `Candidates.sorted`."""
    return Candidates(rows, scores).sorted(scores, k)


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
