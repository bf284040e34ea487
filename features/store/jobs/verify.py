"""Compare the feature store with the tables and the log, and write the events of a span of time again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from features.errors import StoreError
from features.log.corrections import corrections_of
from features.log.reader import read
from features.log.records import Event
from features.schema import TIME
from features.store.base import FeatureStore
from features.store.jobs.refresh import MEMORY, catch_up, refresh
from features.store.jobs.table_states import table_states
from features.store.memory import MemoryStore
from features.store.user_state import states_of_log
from features.tables.event_files import EventFiles

COMPARED_AT_ONCE = 500
NAMED = 5
"""Users that a difference names."""


@dataclass
class Difference:
    """How the store differs from a filling with the same tables and log.

    users: that were compared; missing: users that the store lacks; extra: that only the store has; other: whose state
    differs; examples: ids of some of each.
    """

    users: int = 0
    missing: int = 0
    extra: int = 0
    other: int = 0
    examples: dict[str, list[str]] = field(default_factory=lambda: {"missing": [], "extra": [], "other": []})

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.other)


def verify(store: FeatureStore, tables: EventFiles, log: Path | None) -> Difference:
    """Compare every state with that of a store in memory that is filled now. It needs the memory of all states.

    Users that differ are compared again after the log was read on: events may arrive meanwhile. Raises StoreError,
    DataError and LogError.
    """
    expected = MemoryStore(store.rules)
    refresh(expected, tables, log)
    if log is not None and (mark := store.watermark()) is not None and mark.filled:
        catch_up(store, log)
    users = {*expected.users(), *store.users()}
    different = _different(store, expected, sorted(users))
    if different and log is not None:
        catch_up(expected, log)
        different = _different(store, expected, different)
    found = Difference(users=len(users))
    for user in different:
        ours, theirs = store.read_users([user])[0], expected.read_users([user])[0]
        kind = "missing" if not len(ours.items) else "extra" if not len(theirs.items) else "other"
        setattr(found, kind, getattr(found, kind) + 1)
        found.examples[kind] = [*found.examples[kind], user][:NAMED]
    return found


def _different(store: FeatureStore, expected: FeatureStore, users: Sequence[str]) -> list[str]:
    """The users whose states differ."""
    found = list[str]()
    for start in range(0, len(users), COMPARED_AT_ONCE):
        ids = users[start : start + COMPARED_AT_ONCE]
        pairs = zip(ids, store.read_users(ids), expected.read_users(ids), strict=True)
        found += [user for user, ours, theirs in pairs if ours.to_bytes() != theirs.to_bytes()]
    return found


def backfill(
    store: FeatureStore, tables: EventFiles, log: Path | None, start: int, end: int, *, memory: int = MEMORY
) -> tuple[int, int]:
    """Join the events of tables and log with a time from `start` to before `end` (µs) to the states.

    Returns the numbers of users and of events. The watermark stays. Raises StoreError, also for a store that is not
    filled, StoreLockedError, DataError and LogError.
    """
    with store.lock():
        mark = store.watermark()
        if mark is None or not mark.filled:
            raise StoreError("the feature store is not filled: run `recsys features refresh` first")
        corrections = corrections_of(log)
        events = users = 0

        def within() -> Iterator[pl.DataFrame]:
            nonlocal events
            for batch in tables.batches(tables.compare("").since):
                part = batch.filter(pl.col(TIME).to_physical().is_between(start, end, closed="left"))
                events += len(part)
                yield corrections.corrected_frame(part)

        for states in table_states(within(), store.rules, memory):
            store.write_users(states, mark.fill)
            users += len(states)
        position: dict[str, int] = {}
        while log is not None and log.is_dir() and (part := read(log, position)).position != position:
            logged = [r for r in part.records if isinstance(r, Event) and start <= r.timestamp < end]
            store.write_users(states_of_log(corrections.corrected(logged)[0], store.rules), mark.fill)
            events, position = events + len(logged), part.position
        return users, events
