"""The popular items: of all time, or of the last days."""

from dataclasses import dataclass

import numpy as np

from features.arrays import Floats
from features.errors import ConfigError
from features.interactions import DAY, Interactions, Ragged
from recsys.dense_recommender import DenseRecommender
from recsys.histories import positive_counts


@dataclass(frozen=True)
class Popular(DenseRecommender):
    """The same order for everyone."""

    def scores(self, positives: Ragged) -> Floats:
        """popularity, for each state: (b, n) float32."""
        return np.repeat(self.popularity[None, :], len(positives), axis=0)


def fit_popular(events: Interactions, *, days: float | None = None) -> Popular:
    """Order items by their positive events, of all time or of the last `days` before the latest event.

    Items equally popular in the window stand by all time. A window is the harder baseline under a global time cut,
    where fashion moves (Ji et al. 2020, "A re-visit of the popularity baseline in recommender systems"). Raises
    DataError without positive events, ConfigError unless days > 0.
    """
    if days is None:
        return Popular(positive_counts(events), events.latest)
    if not days > 0:
        raise ConfigError(f"popular in the last {days} days: days must be above 0")
    recent = positive_counts(events.where(events.times > events.latest - int(days * DAY)))
    ever = positive_counts(events)
    return Popular(recent + ever / (ever.max() + 1), events.latest)
