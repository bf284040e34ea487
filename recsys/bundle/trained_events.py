"""Which events a bundle was trained on: one 64-bit key for each, so that a warm start can tell the new ones.

An event is new when the bundle was not trained on it, whatever its time is and wherever it is stored: a phone sends
its events a week late, a clock is wrong, a table is written again in another order, the log is exported to the table.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features.arrays import Bools, Ints
from features.interactions import Interactions

EventKeys = npt.NDArray[np.uint64]


def event_keys(events: Interactions, users: Sequence[str], items: Sequence[str]) -> EventKeys:
    """(n,) uint64: a key of user, item, time and type of each event. users, items: the ids of the rows.

    The keys do not depend on rows, on the order of events or on the version of a library: bundles store them. Of a
    million events, two different ones share a key with a probability of 3e-8.
    """
    keys = _mixed(_id_keys(users)[events.users])
    keys = _mixed(keys ^ _id_keys(items)[events.items])
    keys = _mixed(keys ^ events.times.astype(np.uint64))
    return keys if events.types is None else _mixed(keys ^ events.types.astype(np.uint64))


def new_events(keys: EventKeys, trained: EventKeys) -> Bools:
    """(n,) bool: the events that are not among the trained ones. keys (n,); trained (m,), sorted.

    Of events with equal keys, as many as were trained are not new.
    """
    order: Ints = np.argsort(keys, kind="stable").astype(np.int64)
    ordered = keys[order]
    number = np.arange(len(keys)) - np.searchsorted(ordered, ordered)  # how many equal keys come before
    n_trained = np.searchsorted(trained, ordered, side="right") - np.searchsorted(trained, ordered)
    out = np.zeros(len(keys), dtype=np.bool_)
    out[order] = number >= n_trained
    return out


def _id_keys(ids: Sequence[str]) -> EventKeys:
    """(n,) uint64: the first 8 bytes of BLAKE2b of each id."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _mixed(keys: EventKeys) -> EventKeys:
    """The finalizer of splitmix64 (Steele, Lea & Flood 2014): a bijection that spreads every bit over all bits."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))
