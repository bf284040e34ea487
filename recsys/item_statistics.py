"""Statistics of items up to a moment: counts of positive events by period, and the time of the latest."""

from dataclasses import dataclass

import numpy as np

from features.arrays import Floats, Ints
from features.instants import DAY
from features.interactions import Interactions


@dataclass(frozen=True)
class ItemStatistics:
    """Positive events of each item as of `fitted_until` (µs), the time of the latest event of any kind.

    total, recent, newest (n,) int64: counts over all time, the last 30 days and the last 7 days.
    last (n,) int64: time (µs) of the latest positive event, the smallest int64 if there is none.
    """

    fitted_until: int
    total: Ints
    recent: Ints
    newest: Ints
    last: Ints

    @classmethod
    def of(cls, events: Interactions) -> "ItemStatistics":
        """Statistics as of the latest of the events."""
        log = events.positives()

        def count(days: int) -> Ints:
            return np.bincount(log.items[log.times > events.latest - days * DAY], minlength=log.n_items)

        last = np.full(log.n_items, np.iinfo(np.int64).min)
        np.maximum.at(last, log.items, log.times)
        return cls(events.latest, np.bincount(log.items, minlength=log.n_items), count(30), count(7), last)

    def logs(self) -> Floats:
        """(n, 3) float32: standardised log(1 + total), log(1 + recent), log(1 + newest); inputs of the item tower."""
        x = np.log1p(np.stack([self.total, self.recent, self.newest], axis=1)).astype(np.float32)
        out: Floats = (x - x.mean(0)) / x.std(0).clip(min=1e-6)
        return out
