"""Recommenders that score every item: dense scores to lists, in bounded memory."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from features.arrays import Bools, Floats
from features.interactions import Ragged, UserStates
from recsys.interfaces import Candidates, top_k

SCORES_AT_ONCE = 1 << 24
"""Dense scores (states x items) held at a time: 64 MiB in float32, under 256 MiB with what sorting them takes."""


@dataclass(frozen=True)
class DenseRecommender(ABC):
    """A fitted baseline: a Recommender whose scores depend on a user's positive events only.

    popularity (n,) float32: positive training events of each item, or of late, as `fit_popular` weighs them.
    fitted_until: time (µs) of the latest event seen in fitting. A state whose history gives no item a score (it is
    empty, or nothing is known of its items) gets the popular order.
    """

    popularity: Floats
    fitted_until: int

    @abstractmethod
    def scores(self, positives: Ragged) -> Floats:
        """Scores (b, n) float32, a new array, of all items from b histories of positive items, oldest first."""

    def recommend(
        self, states: UserStates, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        """The best k items for each of b states; see `Recommender`."""
        positives = states.positives()
        step = max(1, SCORES_AT_ONCE // len(self.popularity))
        parts = []
        for at in range(0, len(states), step):
            part = slice(at, at + step)
            scores = self.scores(positives[part])
            scores[~scores.any(axis=1)] = self.popularity
            parts.append(top_k(scores, k, allow=allow, exclude=None if exclude is None else exclude[part]))
        if not parts:
            return Candidates(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
        return Candidates(np.concatenate([c.rows for c in parts]), np.concatenate([c.scores for c in parts]))
