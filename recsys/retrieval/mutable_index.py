"""An index that changes while it is searched: a big one, what has been put since beside it, and what is gone."""

import threading
from dataclasses import dataclass, replace

import numpy as np

from features.arrays import Bools, Floats, Ints
from features.interactions import Ragged
from recsys.interfaces import Candidates, sort_candidates
from recsys.retrieval.index import Index, brute_force, drop_excluded, empty_candidates


@dataclass(frozen=True)
class _State:
    """What one search sees, and keeps seeing.

    index: the big one, of rows 0..n-1; stale (n,): rows of it that are not found there, since they are gone or were
    put again, None while there are none. rows (c,), vectors (c, d): what was put since, in order, in the first `size`
    places of arrays that only grow; there (size,): which of these are still the newest of their row.
    """

    index: Index
    stale: Bools | None
    rows: Ints
    vectors: Floats
    size: int
    there: Bools

    @property
    def total(self) -> int:
        """One more than the largest row."""
        return max(len(self.index), int(self.rows[: self.size].max(initial=-1)) + 1)

    def flat(self) -> Floats:
        """Vectors (total, d) by row, zeros where nothing was ever put."""
        vectors = np.zeros((self.total, self.index.dimension), dtype=np.float32)
        vectors[: len(self.index)] = self.index.vectors
        newest = np.flatnonzero(self.there)
        vectors[self.rows[newest]] = self.vectors[newest]
        return vectors

    def alive(self) -> Bools:
        """(total,): whether something is in each row."""
        alive = np.zeros(self.total, dtype=np.bool_)
        alive[: len(self.index)] = True if self.stale is None else ~self.stale
        alive[self.rows[: self.size][self.there]] = True
        return alive


class MutableIndex:
    """A `Retriever` whose rows are put and deleted by one thread or many, while any number search.

    A search sees what had been put and deleted when it began, all of it and nothing else. What is replaced is let go
    when the last search in it ends.
    """

    def __init__(self, index: Index) -> None:
        """Around an index that was built."""
        d = index.dimension
        none = np.zeros(0, dtype=np.int64), np.zeros((0, d), dtype=np.float32)
        self._now = _State(index, None, *none, 0, np.zeros(0, dtype=np.bool_))
        self._changing, self._merging = threading.Lock(), threading.Lock()

    def __len__(self) -> int:
        """One more than the largest row, whether or not something is in each."""
        return self._now.total

    @property
    def dimension(self) -> int:
        """Length of vectors and queries."""
        return self._now.index.dimension

    @property
    def fresh(self) -> int:
        """Vectors beside the big index; each of them is compared in every search."""
        return self._now.size

    @property
    def note(self) -> str:
        """See `Index`."""
        return self._now.index.note

    @property
    def vectors(self) -> Floats:
        """(len, d) by row; those of what is gone mean nothing."""
        now = self._now
        return now.index.vectors if now.size == 0 else now.flat()

    def upsert(self, rows: Ints, vectors: Floats) -> None:
        """Put vectors (m, d) in rows (m,), new or known; the next search finds them. The last counts of one row.

        Raises ValueError on other shapes and on values that are not finite.
        """
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.shape != (len(rows), self.dimension) or not np.isfinite(vectors).all():
            raise ValueError(f"({len(rows)}, {self.dimension}) finite numbers are needed, given {vectors.shape}")
        last = len(rows) - 1 - np.unique(rows[::-1], return_index=True)[1]
        rows, vectors = rows[last], vectors[last]
        if len(rows) and rows[0] < 0:
            raise ValueError(f"rows are counted from 0, given {rows[0]}")
        with self._changing:
            now = self._without(rows)
            begin, end = now.size, now.size + len(rows)
            kept_rows, kept = now.rows, now.vectors
            if end > len(kept_rows):  # twice as large, so that little is copied for each row in the end
                kept_rows = np.concatenate([kept_rows[:begin], np.zeros(max(64, end), dtype=np.int64)])
                kept = np.concatenate([kept[:begin], np.zeros((max(64, end), self.dimension), dtype=np.float32)])
            kept_rows[begin:end], kept[begin:end] = rows, vectors  # behind what any search looks at
            there = np.append(now.there, np.ones(len(rows), dtype=np.bool_))
            self._now = replace(now, rows=kept_rows, vectors=kept, size=end, there=there)

    def delete(self, rows: Ints) -> None:
        """Rows (m,) that no search finds from now on; those that are not there already are no error."""
        with self._changing:
            self._now = self._without(rows)

    def search(
        self, queries: Floats, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        """See `Retriever`; rows beyond `allow` (n,) are not allowed."""
        now = self._now
        n = len(now.index)
        inside = allow
        if allow is not None or now.stale is not None:
            inside = np.ones(n, dtype=np.bool_) if now.stale is None else ~now.stale
            if allow is not None:
                inside[: len(allow)] &= allow[:n]
                inside[len(allow) :] = False
        found = now.index.search(queries, k, allow=inside, exclude=exclude)
        if now.size == 0:
            return found
        beside = _search_fresh(now, np.ascontiguousarray(queries, dtype=np.float32), k, allow, exclude)
        rows = np.concatenate([found.rows, beside.rows], axis=1)
        scores = np.concatenate([found.scores, beside.scores], axis=1)
        return sort_candidates(rows, scores, k)

    def merge(self) -> None:
        """Build a big index of all that is there, and put it in the place of the old one; searches and changes go on
        meanwhile."""
        with self._merging:
            before = self._now
            alive = before.alive()
            index = Index(before.flat(), before.index.config)
            with self._changing:
                now = self._now
                since = slice(before.size, now.size)
                rows, there = now.rows[since], now.there[since]
                stale = ~(alive & now.alive()[: len(alive)])
                stale[rows[there & (rows < len(stale))]] = True  # newer beside it
                self._now = _State(
                    index, stale if stale.any() else None, rows.copy(), now.vectors[since].copy(), len(rows), there
                )

    def _without(self, rows: Ints) -> _State:
        """What there would be without rows, in arrays of its own where something is to change."""
        now = self._now
        stale, there = now.stale, now.there
        old = rows[(rows >= 0) & (rows < len(now.index))]
        if len(old):
            stale = np.zeros(len(now.index), dtype=np.bool_) if stale is None else stale.copy()
            stale[old] = True
        again = np.isin(now.rows[: now.size], rows) & there
        if again.any():
            there = there & ~again
        return replace(now, stale=stale, there=there)


def _search_fresh(now: _State, queries: Floats, k: int, allow: Bools | None, exclude: Ragged | None) -> Candidates:
    """The best of what was put since, compared one by one."""
    rows, there = now.rows[: now.size], now.there
    if allow is not None:
        inside = rows < len(allow)
        there = there & inside
        there[inside] &= allow[rows[inside]]
    at = np.flatnonzero(there)
    if len(at) == 0:
        return empty_candidates(len(queries), k)
    fresh = now.vectors[: now.size] if len(at) == now.size else now.vectors[at]
    deep = min(k + (0 if exclude is None else int(exclude.lengths.max(initial=0))), len(at))
    found = brute_force(queries, fresh, deep)
    return drop_excluded(Candidates(rows[at][found.rows], found.scores), exclude, k)
