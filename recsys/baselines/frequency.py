"""The user's most frequent items: the baseline to beat where repeats are allowed."""

from dataclasses import dataclass

import numpy as np

from features.arrays import Floats
from features.errors import ConfigError
from features.interactions import Interactions, Ragged
from recsys.dense_recommender import DenseRecommender
from recsys.histories import ages, positive_counts


@dataclass(frozen=True)
class Frequency(DenseRecommender):
    """Ranks the items of the history by count, then recency; below them all other items by popularity."""

    decay: float

    def scores(self, positives: Ragged) -> Floats:
        """(b, n) float32: count + recency < 1 for items of the history, popularity scaled to [0, 1) for others."""
        scores = np.tile(self.popularity / (self.popularity.max() + 1), (len(positives), 1))
        row, items = positives.pairs()  # (m,), (m,)
        keys, group, count = np.unique(row * len(self.popularity) + items, return_inverse=True, return_counts=True)
        # (distinct pairs,) sum of decay ** age
        recency = np.bincount(group, weights=np.power(self.decay, ages(positives)), minlength=len(keys))
        own = count + recency * (1 - self.decay)  # recency < 1 / (1 - decay) for any history
        scores[np.divmod(keys, len(self.popularity))] = own
        return scores


def fit_frequency(events: Interactions, *, decay: float = 0.99) -> Frequency:
    """Personal frequency ("P-TopFreq" in Li et al. 2023, "A next basket recommendation reality check").

    Equal counts are ordered by the sum of decay ** age over the item's events. Only popularity is fitted.
    Raises DataError without positive events, ConfigError unless 0 < decay < 1.
    """
    if not 0 < decay < 1:
        raise ConfigError(f"frequency with decay={decay}: needs 0 < decay < 1")
    return Frequency(positive_counts(events), events.latest, decay)
