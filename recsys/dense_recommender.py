"""Base class of recommenders that score every item: turns dense scores into lists, in bounded memory."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from features.arrays import Bools, Floats
from features.interactions import Ragged, UserStates
from recsys.interfaces import Candidates, top_k

SCORES_AT_ONCE = 1 << 24
"""Dense scores (states x items) in memory at a time: 64 MiB in float32, under 256 MiB while they are sorted."""


@dataclass(frozen=True)
class DenseRecommender(ABC):
    """A fitted Recommender whose scores depend on a user's positive events only.

    popularity (n,) float32: positive training events of each item, possibly of a recent period (`fit_popular`).
    fitted_until: time (µs) of the latest training event. A state whose scores are all 0 gets the order by popularity:
    its history is empty, or its items are unknown to the model.
    """

    popularity: Floats
    fitted_until: int

    @abstractmethod
    def scores(self, positives: Ragged) -> Floats:
        """Scores (b, n) float32 of all items for b histories of positive items, oldest first. The array is new."""

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
