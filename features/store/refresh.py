"""Fill the feature store from the tables and the log: read new events, write their users, move the watermark.

The watermark moves last and writes are idempotent: an interrupted refresh is simply run again. A store that was
emptied has no watermark and is filled from the beginning. When it is emptied while a refresh writes, its watermark is
not the one that the refresh began with, and the refresh begins anew.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from features.errors import StoreError
from features.log.corrections import CorrectionFeed, corrections_since
from features.log.reader import Position, read
from features.log.readers import register_store
from features.log.records import Event
from features.progress import StartProgress
from features.schema import EVENT, EVENT_ID, ITEM, TIME, USER, VALUE, EventRules
from features.store.base import FeatureStore
from features.store.corrections import settle
from features.store.user_state import states_of_log, states_of_table

ROWS = 100_000
"""Minimum number of table events in one batch; a batch ends at the end of a user."""


TRIES = 3
"""Times that a refresh begins when the store is emptied meanwhile."""


@dataclass(frozen=True)
class RefreshReport:
    """What one refresh wrote.

    rebuilt: the store was filled from the beginning; users, table_events: written from the tables; log_events: from
    the log; damaged: log lines that were skipped because their checksum is wrong.
    """

    rebuilt: bool
    users: int
    table_events: int
    log_events: int
    damaged: int


def refresh(
    store: FeatureStore, tables: pl.DataFrame, log: Path | None, *, progress: StartProgress | None = None
) -> RefreshReport:
    """Bring the store up to date with the events table (canonical columns) and the log folder.

    It begins anew when the store is emptied meanwhile. Raises StoreError when the store does not answer or is emptied
    again and again, LogError when the log cannot be read.
    """
    digest, feed = _digest(tables), CorrectionFeed(log)
    for _ in range(TRIES):
        mark = store.watermark() or store.start_fill()
        users = written = 0
        if not mark.filled or mark.tables != digest:
            feed.read()
            users, written = _write_tables(store, feed.corrections.corrected_frame(tables), progress), len(tables)
        position, pushed, damaged = _replay(store, log, mark.log, feed)
        if store.advance(mark, replace(mark, log=position, tables=digest, filled=True)):
            register_store(log, position)
            return RefreshReport(not mark.filled, users, written, pushed, damaged)
    raise StoreError(
        f"the feature store was emptied, or filled by another process, during each of {TRIES} refreshes: see why its "
        "server restarts, and run one refresh at a time"
    )


def catch_up(store: FeatureStore, log: Path, feed: CorrectionFeed | None = None) -> int:
    """Push the events that the log has beyond the watermark; returns their number.

    feed: the corrections of the log, read before; None: they are read here.
    Raises StoreError when the store does not answer, or was emptied (then call `refresh`).
    """
    mark = store.watermark()
    if mark is None or not mark.filled:
        raise StoreError("the feature store was emptied, or is being filled: it must be refreshed from the tables")
    position, pushed, _ = _replay(store, log, mark.log, feed or CorrectionFeed(log))
    if store.advance(mark, replace(mark, log=position)):
        register_store(log, position)
    else:
        now = store.watermark()  # another process has advanced it, which is as good, or the store was emptied
        if now is None or now.fill != mark.fill:
            raise StoreError("the feature store was emptied while it caught up: it must be refreshed from the tables")
    return pushed


def _write_tables(store: FeatureStore, tables: pl.DataFrame, progress: StartProgress | None) -> int:
    """Join the states of all users of the events table to the store; returns their number."""
    step = progress("users to the store", tables.get_column(USER).n_unique()) if progress else None
    users = 0
    for states in _table_states(tables, store.rules):
        store.write_users(states)
        users += len(states)
        if step:
            step(len(states))
    return users


def _digest(tables: pl.DataFrame) -> str:
    """Hash of the columns that the store keeps. Equal tables have equal hashes within one version of polars."""
    rows = tables.select(USER, ITEM, EVENT, TIME, VALUE, EVENT_ID).hash_rows(seed=0)
    return hashlib.sha256(rows.to_numpy().tobytes()).hexdigest()


def _replay(
    store: FeatureStore, log: Path | None, since: Position, feed: CorrectionFeed
) -> tuple[dict[str, int], int, int]:
    """Push the log's events after `since` and apply its corrections.

    Returns the new position in both streams, the number of events, and the number of damaged lines.
    """
    corrections, corrected = corrections_since(log, since)
    feed.read()
    users = feed.corrections.affected(corrections)
    position, pushed, damaged = {key: at for key, at in since.items() if key not in corrected}, 0, 0
    while log is not None and log.is_dir():
        part = read(log, position)
        events = [r for r in part.records if isinstance(r, Event)]
        counting, elsewhere = feed.corrections.corrected(events)
        store.write_users(states_of_log(counting, store.rules))
        users |= elsewhere  # a process that did not know a correction may have pushed events to them
        pushed += len(events)
        damaged += len(part.damaged)
        if part.position == position:
            break
        position = part.position
    settle(store, users, feed.corrections)
    return {**position, **corrected}, pushed, damaged


def _table_states(events: pl.DataFrame, rules: EventRules) -> Iterator[list[tuple[str, bytes]]]:
    """States of all users in batches of about ROWS events; all events of a user are in one batch."""
    by_user = events.select(USER, ITEM, EVENT, TIME, VALUE, EVENT_ID).sort(USER, maintain_order=True)
    # ends (u,): row behind the last event of each user
    ends = by_user.group_by(USER, maintain_order=True).len().get_column("len").cum_sum().to_numpy().astype(np.int64)
    start = 0
    while start < len(by_user):
        end = int(ends[min(int(np.searchsorted(ends, start + ROWS)), len(ends) - 1)])
        yield list(states_of_table(by_user.slice(start, end - start), rules))
        start = end
