"""The mutable index: a built index, fresh vectors that were upserted since, and a mask of deleted rows.

Searches and changes run at the same time. Searches never wait.
"""

import threading
from dataclasses import dataclass, replace

import numpy as np

from features.arrays import Bools, Floats, Ints
from features.interactions import Ragged
from recsys.interfaces import Candidates, sort_candidates
from recsys.retrieval.index import Index, brute_force, drop_excluded, empty_candidates


@dataclass(frozen=True)
class _State:
    """An immutable state of the index: a search reads one state from start to end.

    index: built over rows 0..n-1; stale (n,): rows that it must not find, since they were deleted or upserted again,
    None while there are none. Fresh vectors are the first `size` entries of two buffers, in the order they came:
    rows (capacity,), vectors (capacity, d). newest (size,): whether an entry is the latest of its row. Later states
    append to the same buffers, beyond `size`.
    """

    index: Index
    stale: Bools | None
    rows: Ints
    vectors: Floats
    size: int
    newest: Bools

    @property
    def total(self) -> int:
        """One more than the largest row."""
        return max(len(self.index), int(self.rows[: self.size].max(initial=-1)) + 1)

    def flat(self) -> Floats:
        """Vectors (total, d) by row; zeros in rows that were never upserted."""
        vectors = np.zeros((self.total, self.index.dimension), dtype=np.float32)
        vectors[: len(self.index)] = self.index.vectors
        entries = np.flatnonzero(self.newest)
        vectors[self.rows[entries]] = self.vectors[entries]
        return vectors

    def present(self) -> Bools:
        """(total,): whether each row holds a vector."""
        present = np.zeros(self.total, dtype=np.bool_)
        present[: len(self.index)] = True if self.stale is None else ~self.stale
        present[self.rows[: self.size][self.newest]] = True
        return present


class MutableIndex:
    """A `Retriever` whose rows any thread may upsert and delete while other threads search.

    A search sees all changes that ended before it started, and no later ones. A replaced index is released when the
    last search in it ends.
    """

    def __init__(self, index: Index) -> None:
        """A mutable index over a built one."""
        d = index.dimension
        none = np.zeros(0, dtype=np.int64), np.zeros((0, d), dtype=np.float32)
        self._state = _State(index, None, *none, 0, np.zeros(0, dtype=np.bool_))
        self._change_lock, self._merge_lock = threading.Lock(), threading.Lock()

    def __len__(self) -> int:
        """One more than the largest row, deleted and missing rows included."""
        return self._state.total

    @property
    def dimension(self) -> int:
        """Length of vectors and queries."""
        return self._state.index.dimension

    @property
    def fresh(self) -> int:
        """Number of vectors upserted since the index was built; every search compares all of them."""
        return self._state.size

    @property
    def note(self) -> str:
        """See `Index`."""
        return self._state.index.note

    @property
    def vectors(self) -> Floats:
        """(len, d) by row; undefined in deleted rows."""
        state = self._state
        return state.index.vectors if state.size == 0 else state.flat()

    def upsert(self, rows: Ints, vectors: Floats) -> None:
        """Set the vectors (m, d) of rows (m,), new or existing; the next search finds them.

        Of a row that occurs several times the last vector counts. Raises ValueError on other shapes, on values that
        are not finite and on negative rows.
        """
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.shape != (len(rows), self.dimension) or not np.isfinite(vectors).all():
            raise ValueError(f"({len(rows)}, {self.dimension}) finite numbers are needed, given {vectors.shape}")
        last = len(rows) - 1 - np.unique(rows[::-1], return_index=True)[1]  # last occurrence of each row
        rows, vectors = rows[last], vectors[last]  # rows ascend
        if len(rows) and rows[0] < 0:
            raise ValueError(f"rows are counted from 0, given {rows[0]}")
        with self._change_lock:
            state = self._without(rows)
            start, end = state.size, state.size + len(rows)
            row_buffer, buffer = state.rows, state.vectors
            if end > len(row_buffer):  # double the capacity: amortised O(1) copies for each row
                capacity = max(64, end)
                row_buffer = np.concatenate([row_buffer[:start], np.zeros(capacity, dtype=np.int64)])
                buffer = np.concatenate([buffer[:start], np.zeros((capacity, self.dimension), dtype=np.float32)])
            row_buffer[start:end], buffer[start:end] = rows, vectors  # beyond the size of every state in use
            newest = np.append(state.newest, np.ones(len(rows), dtype=np.bool_))
            self._state = replace(state, rows=row_buffer, vectors=buffer, size=end, newest=newest)

    def delete(self, rows: Ints) -> None:
        """Delete rows (m,): later searches do not find them. Rows that do not exist are ignored."""
        with self._change_lock:
            self._state = self._without(rows)

    def search(
        self, queries: Floats, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        """See `Retriever`; rows beyond `allow` (n,) are not allowed."""
        state = self._state
        n = len(state.index)
        allow_built = allow  # (n,)
        if allow is not None or state.stale is not None:
            allow_built = np.ones(n, dtype=np.bool_) if state.stale is None else ~state.stale
            if allow is not None:
                allow_built[: len(allow)] &= allow[:n]
                allow_built[len(allow) :] = False
        found = state.index.search(queries, k, allow=allow_built, exclude=exclude)
        if state.size == 0:
            return found
        fresh = _search_fresh(state, np.ascontiguousarray(queries, dtype=np.float32), k, allow, exclude)
        rows = np.concatenate([found.rows, fresh.rows], axis=1)  # (b, 2k)
        scores = np.concatenate([found.scores, fresh.scores], axis=1)
        return sort_candidates(rows, scores, k)

    def merge(self) -> None:
        """Replace the built index by one over all present rows. Searches and changes continue while it is built."""
        with self._merge_lock:
            before = self._state
            present = before.present()  # (n of the new index,)
            index = Index(before.flat(), before.index.config)
            with self._change_lock:
                state = self._state
                since = slice(before.size, state.size)  # entries upserted while the index was built
                rows, newest = state.rows[since], state.newest[since]
                stale = ~(present & state.present()[: len(present)])
                stale[rows[newest & (rows < len(stale))]] = True  # a fresh vector replaces the built one
                self._state = _State(
                    index,
                    stale if stale.any() else None,
                    rows.copy(),
                    state.vectors[since].copy(),
                    len(rows),
                    newest,
                )

    def _without(self, rows: Ints) -> _State:
        """The state after deleting rows. Arrays that change are copied: searches may be reading the old ones."""
        state = self._state
        stale, newest = state.stale, state.newest
        built_rows = rows[(rows >= 0) & (rows < len(state.index))]
        if len(built_rows):
            stale = np.zeros(len(state.index), dtype=np.bool_) if stale is None else stale.copy()
            stale[built_rows] = True
        replaced = np.isin(state.rows[: state.size], rows) & newest  # (size,)
        if replaced.any():
            newest = newest & ~replaced
        return replace(state, stale=stale, newest=newest)


def _search_fresh(state: _State, queries: Floats, k: int, allow: Bools | None, exclude: Ragged | None) -> Candidates:
    """The k best of the fresh vectors for each query, by brute force: (b, k)."""
    rows, usable = state.rows[: state.size], state.newest  # (size,)
    if allow is not None:
        inside = rows < len(allow)
        usable = usable & inside
        usable[inside] &= allow[rows[inside]]
    entries = np.flatnonzero(usable)
    if len(entries) == 0:
        return empty_candidates(len(queries), k)
    fresh = state.vectors[: state.size] if len(entries) == state.size else state.vectors[entries]
    depth = min(k + (0 if exclude is None else int(exclude.lengths.max(initial=0))), len(entries))
    found = brute_force(queries, fresh, depth)
    return drop_excluded(Candidates(rows[entries][found.rows], found.scores), exclude, k)
