"""What the events of a time say of each item: counts by window, and when it was last taken."""

from dataclasses import dataclass

import numpy as np

from features.arrays import Floats, Ints
from features.interactions import DAY, Interactions


@dataclass(frozen=True)
class ItemStatistics:
    """Counts of positive events of each item until `fitted_until` (µs).

    total, recent (30 days), newest (7 days), last (µs of the latest, smallest int64 if none): (n,) arrays.
    """

    fitted_until: int
    total: Ints
    recent: Ints
    newest: Ints
    last: Ints

    @classmethod
    def of(cls, events: Interactions) -> "ItemStatistics":
        """From the events of a time."""
        log = events.positives()

        def count(days: int) -> Ints:
            return np.bincount(log.items[log.times > events.latest - days * DAY], minlength=log.n_items)

        last = np.full(log.n_items, np.iinfo(np.int64).min)
        np.maximum.at(last, log.items, log.times)
        return cls(events.latest, np.bincount(log.items, minlength=log.n_items), count(30), count(7), last)

    def logs(self) -> Floats:
        """(n, 3) float32: standardised log counts of all time, 30 days and 7 days; what the item tower reads."""
        x = np.log1p(np.stack([self.total, self.recent, self.newest], axis=1)).astype(np.float32)
        out: Floats = (x - x.mean(0)) / x.std(0).clip(min=1e-6)
        return out
