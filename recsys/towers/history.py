"""Histories as the user tower reads them: events, each with the wait until the next event or the request."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from features.arrays import Bools, Ints
from features.interactions import UserStates

WAIT_BUCKETS = 16
"""Number of buckets, besides bucket 0, of the time from an event to the next one or the request: `wait_buckets`."""

HOUR, WEEK = 3_600_000_000, 7 * 24
"""An hour in µs, a week in hours."""

Array = TypeVar("Array", np.ndarray, Tensor)
Other = TypeVar("Other", np.ndarray, Tensor)


@dataclass(frozen=True)
class History(Generic[Array]):
    """Events of a log (n,), or left-aligned histories of b users (b, t): arrays or tensors of one shape.

    items: int64 rows; positive: bool; types: int64, see `Interactions`, 0 where types are unknown.
    gaps, hours: int64. Each event is followed by the user's next event or by the request: gaps is the bucket of
    the time until then (`wait_buckets`), hours is its hour of the week (`hours_of_week`).
    """

    items: Array
    positive: Array
    types: Array
    gaps: Array
    hours: Array

    @classmethod
    def of(
        cls, items: Ints, positive: Bools, types: Ints | None, times: Ints, following: Ints
    ) -> "History[np.ndarray]":
        """Events at `times` (µs); the next event of the user, or the request, is at `following` (µs)."""
        known_types = np.zeros_like(items) if types is None else types
        return History(items, positive, known_types, wait_buckets(following - times), hours_of_week(following))

    @classmethod
    def newest(cls, states: UserStates, t: int) -> "History[np.ndarray]":
        """The newest t events of b states, then padding: (b, t). The request at as_of follows the last event."""
        length = np.minimum(states.items.lengths, t)  # (b,)
        inside = np.arange(t) < length[:, None]  # (b, t)
        at = np.where(inside, (states.items.end - length)[:, None] + np.arange(t), 0)  # (b, t) log positions
        times = np.where(inside, states.times[at], states.as_of[:, None])  # (b, t)
        following = np.concatenate([times[:, 1:], states.as_of[:, None]], axis=1)
        types = None if states.types is None else states.types[at]
        return cls.of(states.items.flat[at], states.positive[at], types, times, following).padded(inside)

    def map_arrays(self, do: Callable[[Array], Other]) -> "History[Other]":
        """The history of do(array) for each array."""
        return History(do(self.items), do(self.positive), do(self.types), do(self.gaps), do(self.hours))

    def padded(self: "History[np.ndarray]", inside: Bools) -> "History[np.ndarray]":
        """Zero and False where `inside` (b, t) is False: after the last event, which causal attention never reads."""
        return self.map_arrays(lambda values: np.where(inside, values, np.zeros_like(values)))

    def on(self: "History[np.ndarray]", device: torch.device) -> "History[Tensor]":
        """The history as tensors on a device."""
        return self.map_arrays(lambda values: torch.from_numpy(values).to(device))


def hours_of_week(times: Ints) -> Ints:
    """Hour of the week of times in µs: 0..167 since Thursday 0 h UTC, the start of the epoch; int64, same shape."""
    return times // HOUR % WEEK


def wait_buckets(gaps: Ints) -> Ints:
    """Bucket ceil(log2(1 + minutes)) of times in µs, at most WAIT_BUCKETS; int64, same shape.

    Bucket 0: no time; bucket i: above 2^(i-1) - 1, up to 2^i - 1 minutes.
    """
    minutes = gaps.clip(min=0) / 60e6
    return np.ceil(np.log2(1 + minutes)).astype(np.int64).clip(0, WAIT_BUCKETS)
