"""A recommender in the rows of another catalogue: two bundles are then evaluated on the same targets."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from features.arrays import Bools, Ints
from features.ids import IdMap
from features.interactions import Ragged, UserStates
from recsys.interfaces import Candidates, Recommender


@dataclass(frozen=True)
class InCatalog:
    """A recommender whose states and lists are in rows of `items`; its own catalogue is `own`.

    Events of items that its own catalogue lacks are no part of a history, and it lists only items of both.
    """

    recommender: Recommender
    own: IdMap
    items: IdMap

    @cached_property
    def common(self) -> Bools:
        """(n,) bool: the items that both catalogues have."""
        return np.asarray(self._to_own >= 0, dtype=np.bool_)

    @cached_property
    def _to_own(self) -> Ints:
        """(n,) row of each item in its own catalogue, -1 where lacking."""
        return self.own.rows(self.items.ids)

    @cached_property
    def _back(self) -> Ints:
        """(n of own,) row of each of its own items in the other catalogue, -1 where lacking."""
        return self.items.rows(self.own.ids)

    def recommend(
        self, states: UserStates, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        """The k best of the common items; see `Recommender`."""
        listed: Bools = self._back >= 0
        if allow is not None:
            listed = listed & allow[self._back]
        found = self.recommender.recommend(
            _translate(states.compact(), self._to_own),
            k,
            allow=listed,
            exclude=None if exclude is None else _rows(exclude, self._to_own)[0],
        )
        return Candidates(np.where(found.rows >= 0, self._back[found.rows], -1), found.scores)


def _translate(states: UserStates, to_own: Ints) -> UserStates:
    """Compact states in other rows, without the events of items that have none."""
    items, kept = _rows(states.items, to_own)
    return replace(
        states,
        items=items,
        times=states.times[kept],
        positive=states.positive[kept],
        seen=states.seen[kept],
        types=None if states.types is None else states.types[kept],
        seen_rows=None if states.seen_rows is None else _rows(states.seen_rows, to_own)[0],
    )


def _rows(ragged: Ragged, to_own: Ints) -> tuple[Ragged, Bools]:
    """The slices in other rows, without elements that have none; and the elements of `flat` (m,) that are kept."""
    flat = to_own[ragged.flat]
    kept: Bools = flat >= 0
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept, dtype=np.int64)])  # (m + 1,)
    return Ragged(flat[kept], before[ragged.begin], before[ragged.end]), kept
