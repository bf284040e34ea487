"""Which events a bundle was trained on: one 64-bit key for each, so that a warm start can tell the new ones.

An event is new when the bundle was not trained on it, whatever its time is and wherever it is stored: a phone sends
its events a week late, a clock is wrong, a table is written again in another order, the log is exported to the table.
"""

from collections.abc import Sequence

import numpy as np

from features.arrays import Bools, Ints, Keys
from features.ids import id_keys, mix_keys
from features.interactions import Interactions


def event_keys(events: Interactions, users: Sequence[str], items: Sequence[str]) -> Keys:
    """(n,) uint64: a key of user, item, time and type of each event. users, items: the ids of the rows.

    The keys do not depend on rows, on the order of events or on the version of a library: bundles store them. Of a
    million events, two different ones share a key with a probability of 3e-8.
    """
    keys = mix_keys(id_keys(users)[events.users])
    keys = mix_keys(keys ^ id_keys(items)[events.items])
    keys = mix_keys(keys ^ events.times.astype(np.uint64))
    return keys if events.types is None else mix_keys(keys ^ events.types.astype(np.uint64))


def new_events(keys: Keys, trained: Keys) -> Bools:
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
