"""Corrections in the feature store: states follow what `features.log.corrections` says of their events.

`settle` gives the events in the states of some users to their owners, and removes those that are undone. What the
users were shown goes to the same owners. A state gives its events away before it loses them: a process that is killed
in between leaves them in both states, and the next refresh, which reads the correction again, removes them.

Three things the store cannot know. When it is filled from the beginning, all of them are right.

* It keeps `EventRules.history` events of a user, and of the others the seen items with the day. An undone event among
  the others stays seen, and such an event is merged only when its whole day is.
* An event that an undone one has displaced does not come back.
* Of events in one state, which came from which merge. Services therefore refuse a merge that closes a circle, and let
  a new merge of an id begin after the last one. Two processes that merge one id at the same moment do not see that.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from features.arrays import Bools
from features.errors import StoreError
from features.history_rules import newest_seen, seen_days, seen_entries
from features.ids import id_keys
from features.instants import DAY
from features.log.corrections import CorrectionFeed, Corrections
from features.log.records import Correction, Event
from features.schema import EventRules
from features.store.base import FeatureStore
from features.store.user_state import UserState, join, readable

TRIES = 10
"""Times that a state is settled when other processes change it meanwhile."""

AT_ONCE = 1_000
"""Users whose states are in memory at the same time."""


def push_events(store: FeatureStore, events: Sequence[Event], feed: CorrectionFeed) -> None:
    """Push logged events to their owners, with the time-out of a request. Raises StoreError and LogError.

    A correction that another process has logged meanwhile may have met the store before the events: they are settled.
    """
    known = feed.known
    store.push(feed.corrections.corrected(events)[0])
    if feed.read() != known:
        settle(store.for_request(), feed.corrections.corrected(events)[1], feed.corrections)


def apply_corrections(store: FeatureStore, records: Iterable[Correction], feed: CorrectionFeed) -> None:
    """Apply logged corrections to the store, with the time-out of a request. Raises StoreError and LogError."""
    feed.read()
    settle(store.for_request(), feed.corrections.affected(records), feed.corrections)


def settle(store: FeatureStore, users: Iterable[str], corrections: Corrections, fill: str = "") -> None:
    """Give the events in the states of these users to their owners, and remove those that are undone.

    fill: the generation, see `FeatureStore`. Raises StoreError when the store does not answer, or other processes
    change a state again and again.
    """
    pending = sorted(users)
    for start in range(0, len(pending), AT_ONCE):
        some = pending[start : start + AT_ONCE]
        if moves := [(user, owner, until) for user in some for until, owner in corrections.takings(user)]:
            store.move_shown(moves)
        _settle(store, some, corrections, fill)


def _settle(store: FeatureStore, users: Sequence[str], corrections: Corrections, fill: str) -> None:
    for _ in range(TRIES):
        found: dict[str, bytes] = {}

        def look(user: str, stored: bytes | None, found: dict[str, bytes] = found) -> bytes | None:
            if stored is not None:
                found[user] = stored
            return stored

        store.change_users(users, look, fill)
        kept: dict[str, bytes | None] = {}
        given: defaultdict[str, list[bytes]] = defaultdict(list)
        for user, data in found.items():
            state = readable(data)  # a damaged value is deleted
            parts = {} if state is None else split(user, state, store.rules, corrections)
            own = parts.pop(user, None)
            kept[user] = next(join([[own.to_bytes()]], store.rules)) if own is not None else None
            for owner, part in parts.items():
                given[owner].append(part.to_bytes())
        kept = {user: data for user, data in kept.items() if data != found[user]}
        if given:
            store.write_users(zip(given, join([*given.values()], store.rules), strict=True), fill)
        again: set[str] = set()

        def drop(
            user: str,
            stored: bytes | None,
            found: dict[str, bytes] = found,
            kept: dict[str, bytes | None] = kept,
            again: set[str] = again,
        ) -> bytes | None:
            if stored == found[user]:
                return kept[user]
            again.add(user)  # it has events that were not given away
            return stored

        store.change_users(sorted(kept), drop, fill)
        users = sorted(again)
        if not users:
            return
    raise StoreError(f"other processes changed the state of the same user {TRIES} times in a row: try again")


def split(user: str, state: UserState, rules: EventRules, corrections: Corrections) -> dict[str, UserState]:
    """The parts of a state by the owner of its events, without those that are undone; no part is empty.

    The seen items of events that the state does not hold go to the owner of the end of their day. So a state that was
    filled from the beginning stays as it is.
    """
    owners = np.array([corrections.path(user, time)[-1] for time in state.times.tolist()], dtype=object)
    counted = state.labels(rules).seen
    entries = seen_entries(id_keys(state.items), state.times)
    others = state.seen[~np.isin(state.seen, entries[counted])]
    ends = (seen_days(others) + DAY - 1).tolist()
    other_owners = np.array([corrections.path(user, end)[-1] for end in ends], dtype=object)
    parts = {}
    for owner in {*owners.tolist(), *other_owners.tolist()}:
        undone = id_keys(sorted(corrections.undone_of(owner)))
        own: Bools = (owners == owner) & ~np.isin(state.keys, undone)
        seen = np.concatenate((entries[own & counted], others[other_owners == owner]))
        seen = seen[newest_seen(np.zeros(len(seen), np.int64), seen, rules.seen_items)]
        if len(seen) or own.any():
            parts[owner] = UserState(
                items=tuple(item for item, mine in zip(state.items, own.tolist(), strict=True) if mine),
                names=state.names,
                kinds=state.kinds[own],
                times=state.times[own],
                values=state.values[own],
                keys=state.keys[own],
                orders=state.orders[own],
                seen=seen,
            )
    return parts
