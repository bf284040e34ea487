"""Popularity: positive events of each item, of all time or of the last days."""

from dataclasses import dataclass

import numpy as np

from features.arrays import Floats
from features.errors import ConfigError
from features.instants import DAY
from features.interactions import Interactions, Ragged
from recsys.dense_recommender import DenseRecommender
from recsys.histories import positive_counts


@dataclass(frozen=True)
class Popular(DenseRecommender):
    """Recommends the most popular items to every user.

    days: the popularity is of so many days before `fitted_until`; None: of all time, or it is not known.
    """

    days: float | None = None

    def scores(self, positives: Ragged) -> Floats:
        """The popularity of all items, repeated for each state: (b, n) float32."""
        return np.repeat(self.popularity[None, :], len(positives), axis=0)


def fit_popular(events: Interactions, *, days: float | None = None) -> Popular:
    """Rank items by their number of positive events, of all time or of the last `days` before the latest event.

    Items with equal counts in the last days are ranked by their counts of all time. Under a global time cut, recent
    popularity is the stronger baseline, since popularity drifts (Ji et al. 2020, "A re-visit of the popularity
    baseline in recommender systems"). Raises DataError without positive events, ConfigError unless days > 0.
    """
    if days is None:
        return Popular(positive_counts(events), events.latest)
    if not days > 0:
        raise ConfigError(f"popular in the last {days} days: days must be greater than 0")
    recent = positive_counts(events.where(events.times > events.latest - int(days * DAY)))
    total = positive_counts(events)
    tie_breaks = total / (total.max() + 1)  # below 1
    return Popular(recent + tie_breaks, events.latest, days)
