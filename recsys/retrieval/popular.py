"""Popularity: positive events of each item, of all time or of the last days."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from features.arrays import Bools, Floats, Ints
from features.errors import ConfigError
from features.instants import DAY
from features.interactions import Interactions, Ragged, UserStates
from recsys.dense_recommender import DenseRecommender
from recsys.histories import positive_counts
from recsys.interfaces import Candidates, in_slices


@dataclass(frozen=True)
class Popular(DenseRecommender):
    """Recommends the most popular items to every user.

    days: the popularity is of so many days before `fitted_until`; None: of all time, or it is not known.
    """

    days: float | None = None

    @cached_property
    def order(self) -> Ints:
        """Item rows (n,), most popular first; ties by row."""
        return np.argsort(-self.popularity, kind="stable").astype(np.int64)

    def recommend(
        self, states: UserStates, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        """The first k of `order` for each of b states; see `Recommender`."""
        order = self.order if allow is None else self.order[allow[self.order]]
        excluded = 0 if exclude is None else int(exclude.lengths.max(initial=0))
        rows = np.tile(order[: k + excluded], (len(states), 1))
        keep = np.ones(rows.shape, dtype=np.bool_)
        if exclude is not None:
            keep = ~in_slices(exclude, np.arange(len(rows))[:, None], rows)
        return Candidates(rows, self.popularity[rows]).where(keep, k)

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
