"""The rules of a user's history: which events are positive, which are seen, which are kept, and in which order.

Training, evaluation, batch slates, the refresh of the store and the service all use these functions and no others.
The store cannot know which items a bundle has. Events of other items take their places in a history everywhere, and
no model sees them.

Events of a type that `EventRules.ignores` are in no history.

Order: by time. Of one time, the events of a table come first, in its order; then those of one request, in its order.
A repeated event counts once: the same event_id of a user, or, of events without one, the same item, type, time and
value.

Kept are `EventRules.history` events: the newest half of that number whatever they are, as the user tower reads them;
then the newest positive ones; then the newest others. A buyer who then looks at thousands of items stays a buyer.

Seen are the `EventRules.seen_items` items of the events that count as seen, those of the latest day first.

With `EventRules.history_days`, what is older counts no more: kept events by their time, seen items by their day.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from features.arrays import Bools, Doubles, Ints, Keys
from features.ids import IdMap, id_keys, mix_keys
from features.instants import DAY
from features.schema import EVENT, EVENT_ID, ITEM, TIME, VALUE, EventRules

_ITEM_BITS = np.uint64(48)
_ITEM = np.uint64(2**48 - 1)
_LAST_DAY = 2**16 - 1


@dataclass(frozen=True)
class Labels:
    """What n events mean. positive, seen (n,) bool; types (n,) int64, see `features.interactions.Interactions`."""

    positive: Bools
    seen: Bools
    types: Ints

    @classmethod
    def of(cls, names: Sequence[str], kinds: Ints, values: Doubles, rules: EventRules) -> "Labels":
        """Of events of type names[kinds], kinds (n,), with values (n,), NaN where there is none.

        Positive: `rules.positive` names the type, and the value reaches its threshold; a null threshold accepts any
        value and none. Seen: `rules.seen` names the type, or is null.
        """
        thresholds = [rules.positive.get(name, np.inf) for name in names]
        any_value = np.array([threshold is None for threshold in thresholds], dtype=np.bool_)
        minima = np.array([np.inf if threshold is None else threshold for threshold in thresholds], dtype=np.float64)
        seen = np.array([rules.seen is None or name in rules.seen for name in names], dtype=np.bool_)
        types = IdMap(rules.types).rows(names) + 1
        return cls(any_value[kinds] | (values >= minima[kinds]), seen[kinds], types[kinds])  # NaN reaches nothing

    @classmethod
    def of_frame(cls, events: pl.DataFrame, rules: EventRules) -> "Labels":
        """Of canonical events."""
        names, kinds, values = columns_of(events)
        return cls.of(names, kinds, values, rules)


def without_ignored(events: pl.DataFrame, rules: EventRules) -> pl.DataFrame:
    """The canonical events that histories are made of: see `EventRules.ignores`."""
    ignored = [name for name in events.get_column(EVENT).unique().to_list() if rules.ignores(name)]
    return events.filter(~pl.col(EVENT).is_in(ignored)) if ignored else events


def columns_of(events: pl.DataFrame) -> tuple[tuple[str, ...], Ints, Doubles]:
    """Types, index of each event's type among them, and values (NaN where there is none) of canonical events."""
    column = events.get_column(EVENT).cast(pl.String)
    names = tuple(column.unique().sort().to_list())
    values = events.get_column(VALUE).cast(pl.Float64).fill_null(np.nan).to_numpy()
    return names, column.cast(pl.Enum(names)).to_physical().cast(pl.Int64).to_numpy(), values


def kept(positive: Bools, lengths: Ints, limit: int) -> Bools:
    """(e,) bool: which events of b histories are kept. The histories follow each other, each oldest first.

    positive (e,) bool; lengths (b,), their sum is e; limit: `EventRules.history`.
    """
    keep = np.ones(len(positive), dtype=np.bool_)
    if lengths.max(initial=0) <= limit:
        return keep
    end = np.cumsum(lengths)
    owner = np.repeat(np.arange(len(lengths)), lengths)  # (e,)
    at = np.flatnonzero(lengths[owner] > limit)  # events of the histories that are too long
    owner = owner[at]
    age = end[owner] - 1 - at  # 0: the newest of its history
    rank = np.where(age < limit // 2, 0, np.where(positive[at], 1, 2))
    order = np.lexsort((age, rank, owner))  # `owner` stays as it is, because it ascends
    place = np.arange(len(at)) - np.searchsorted(owner, owner)  # in its history, by rank and age
    keep[at[order]] = place < limit
    return keep


def seen_entries(item_keys: Keys, times: Ints) -> Keys:
    """(n,) uint64: the day (16 bits, since 1970) and the item (48 bits) of n seen events, for `newest_seen`.

    item_keys: of `features.ids.id_keys`. Of 8,000 seen items and a million others, one other item shares its 48 bits
    with a seen one with a probability of 3e-5.
    """
    days = np.clip(times // DAY, 0, _LAST_DAY).astype(np.uint64)
    return (days << _ITEM_BITS) | short_keys(item_keys)


def short_keys(item_keys: Keys) -> Keys:
    """(n,) uint64 below 2^48: what a seen entry holds of an item's key."""
    return item_keys >> np.uint64(16)


def seen_items(entries: Keys) -> Keys:
    """(n,) uint64: the short key of the item of each entry."""
    return entries & _ITEM


def seen_days(entries: Keys) -> Ints:
    """(n,) int64: the beginning (µs) of the day of each entry."""
    return (entries >> _ITEM_BITS).astype(np.int64) * DAY


def newest_seen(owner: Ints, entries: Keys, limit: int) -> Ints:
    """Rows of the latest entry of each item of each owner, `limit` of an owner, the newest; by owner, then entry.

    owner, entries (n,): seen entries of several users. What is kept of the kept entries of a part and of all other
    entries is what is kept of all: entries may come in any order, and again.
    """
    items, keep = seen_items(entries), np.ones(len(entries), dtype=np.bool_)
    rows = _occur_twice(items, owner)
    if len(rows):
        rows = rows[np.lexsort((entries[rows], items[rows], owner[rows]))]
        keep[rows[:-1][(np.diff(owner[rows]) == 0) & (np.diff(items[rows]) == 0)]] = False
    order = np.flatnonzero(keep)
    order = order[np.lexsort((entries[order], owner[order]))]
    ends = np.searchsorted(owner[order], owner[order], side="right")
    return np.asarray(order[ends - np.arange(len(order)) <= limit], dtype=np.int64)


def beginning(now: Ints, days: int) -> Ints:
    """(n,) int64: the time (µs) from which on events count at `now` (n,) with `EventRules.history_days`."""
    return now - days * DAY


def seen_since(entries: Keys, start: Ints) -> Bools:
    """(n,) bool: which seen entries are of the day of `start` (n,), µs, or of a later one."""
    return np.asarray(seen_days(entries) >= start // DAY * DAY, dtype=np.bool_)


def column_keys(texts: pl.Series) -> Keys:
    """(n,) uint64: `id_keys` of a text column; each distinct text is hashed once."""
    distinct = texts.unique()
    codes = texts.cast(pl.Enum(distinct)).to_physical().to_numpy()
    return id_keys(distinct.to_list())[codes] if len(texts) else np.zeros(0, dtype=np.uint64)


def event_keys(
    event_ids: pl.Series, item_keys: Keys, names: Sequence[str], kinds: Ints, times: Ints, values: Doubles
) -> Keys:
    """(n,) uint64: the identity of events: their event_id, or else item, type, time and value."""
    keys = mix_keys(item_keys) ^ id_keys(names)[kinds] if len(kinds) else np.zeros(0, dtype=np.uint64)
    keys = mix_keys(mix_keys(keys) ^ times.astype(np.uint64))
    plain = np.where(np.isnan(values), np.nan, values + 0.0)  # one NaN, one zero
    keys = mix_keys(keys ^ plain.view(np.uint64))
    named = np.flatnonzero((event_ids != "").to_numpy())
    if len(named):
        keys[named] = id_keys(event_ids.gather(named).to_list())
    return keys


def in_order(
    owner: Ints, times: Ints, orders: npt.NDArray[np.uint32], keys: Keys, kinds: Ints, values: Doubles
) -> Ints:
    """Rows of the distinct events of each owner, in the order of histories. Of repeated events the first stays.

    Each array has n values. owner: index of the user; orders: place of an event among those of its time; keys: as
    `event_keys` returns them; kinds: index of the event's type in the ascending list of types.
    """
    order = np.arange(len(keys), dtype=np.int64)
    if (place := _places(order, owner, times, orders)).min(initial=1) < 0:
        order = np.lexsort((times, owner))
        place = _places(order, owner, times, orders)
    if place.min(initial=1) < 1:  # several events have one owner and time
        order = np.lexsort((values, kinds, keys, orders, times, owner))
    again = _occur_twice(keys, owner)
    if len(again):
        again = order[np.isin(order, again)]
        by_key = again[np.lexsort((keys[again], owner[again]))]  # stable: of one key, the first comes first
        repeated = (np.diff(owner[by_key]) == 0) & (np.diff(keys[by_key]) == 0)
        first = np.ones(len(keys), dtype=np.bool_)
        first[by_key[1:][repeated]] = False
        order = order[first[order]]
    return np.asarray(order, dtype=np.int64)


def _occur_twice(keys: Keys, owner: Ints) -> Ints:
    """The rows whose key may occur twice among those of their owner; most others are left out. keys, owner (n,)."""
    marks = mix_keys(keys ^ mix_keys(owner.astype(np.uint64)))
    ordered = np.sort(marks)  # much faster than a sort of rows
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    return np.flatnonzero(np.isin(marks, repeated)) if len(repeated) else np.zeros(0, dtype=np.int64)


def _places(order: Ints, owner: Ints, times: Ints, orders: npt.NDArray[np.uint32]) -> Ints:
    """(n - 1,): whether each event after the first comes later than the one before it (1), earlier (-1), or neither.

    By owner, then time, then order; order (n,): the rows.
    """
    place: Ints = np.zeros(max(0, len(order) - 1), dtype=np.int64)
    for column in (orders.astype(np.int64), times, owner):
        step = np.sign(np.diff(column[order]))
        place = np.where(step, step, place)
    return place


def in_request_order(logged: pl.DataFrame, orders: pl.Series) -> pl.DataFrame:
    """Logged events, canonical, in an order in which those of one user and time follow each other as in histories.

    orders (n,): place of each event among those of its request.
    """
    names, kinds, values = columns_of(logged)
    times = logged.get_column(TIME).to_physical().cast(pl.Int64).to_numpy()
    event_ids = logged.get_column(EVENT_ID).cast(pl.String).fill_null("")
    keys = event_keys(event_ids, column_keys(logged.get_column(ITEM)), names, kinds, times, values)
    return logged[np.lexsort((values, kinds, keys, orders.to_numpy()))]
