"""Histories as the user tower reads them: events, and how long it was from each to the next."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from features.arrays import Bools, Ints
from features.interactions import UserStates

WAIT_BUCKETS = 16
"""Buckets of the time from an event to the next, or to the moment that is asked about: see `wait_buckets`."""

HOUR, WEEK = 3_600_000_000, 7 * 24
"""In µs, and in hours."""

Array = TypeVar("Array", np.ndarray, Tensor)
Other = TypeVar("Other", np.ndarray, Tensor)


@dataclass(frozen=True)
class History(Generic[Array]):
    """Events of a log (n,), or of b users (b, t), left-aligned: arrays or tensors of one shape.

    items: int64 rows; positive: bool; types: int64, see `Interactions`, 0 where they are not told apart; waits,
    hours: int64, of what follows each event: the bucket of the time until then, and its hour of the week.
    """

    items: Array
    positive: Array
    types: Array
    waits: Array
    hours: Array

    @classmethod
    def of(
        cls, items: Ints, positive: Bools, types: Ints | None, times: Ints, following: Ints
    ) -> "History[np.ndarray]":
        """Of events at times, each followed by another, or by the moment that is asked about, at `following` (µs)."""
        told = np.zeros_like(items) if types is None else types
        return History(items, positive, told, wait_buckets(following - times), hours_of_week(following))

    @classmethod
    def newest(cls, states: UserStates, t: int) -> "History[np.ndarray]":
        """The newest t events of b states, (b, t), then padding. The last event is followed by as_of."""
        length = np.minimum(states.items.lengths, t)
        inside = np.arange(t) < length[:, None]
        at = np.where(inside, (states.items.end - length)[:, None] + np.arange(t), 0)
        times = np.where(inside, states.times[at], states.as_of[:, None])
        following = np.concatenate([times[:, 1:], states.as_of[:, None]], axis=1)
        types = None if states.types is None else states.types[at]
        return cls.of(states.items.flat[at], states.positive[at], types, times, following).padded(inside)

    def map_arrays(self, do: Callable[[Array], Other]) -> "History[Other]":
        """Of what is made of each array."""
        return History(do(self.items), do(self.positive), do(self.types), do(self.waits), do(self.hours))

    def padded(self: "History[np.ndarray]", inside: Bools) -> "History[np.ndarray]":
        """Zero and False where not inside (b, t): after the last event, where causal attention never sees it."""
        return self.map_arrays(lambda values: np.where(inside, values, np.zeros_like(values)))

    def on(self: "History[np.ndarray]", device: torch.device) -> "History[Tensor]":
        """As tensors there."""
        return self.map_arrays(lambda values: torch.from_numpy(values).to(device))


def hours_of_week(times: Ints) -> Ints:
    """0..167, int64 of any shape, of times in µs: whole hours since Thursday, 0 h UTC, when the epoch began."""
    return times // HOUR % WEEK


def wait_buckets(waits: Ints) -> Ints:
    """Buckets, int64 of any shape, of times in µs: 0 for none, i for up to 2^i - 1 minutes, WAITS for all longer."""
    minutes = waits.clip(min=0) / 60e6
    return np.ceil(np.log2(1 + minutes)).astype(np.int64).clip(0, WAIT_BUCKETS)
