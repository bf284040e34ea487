"""Fill the feature store from the tables and the log: read what is new, write its users, move the watermark.

Where rows were added, their users are joined to the states that are served. Where rows were changed or removed, and
where the store was emptied, another generation is built beside the one that is served, and takes its place.

The watermark moves last and writes are idempotent: an interrupted refresh is simply run again. When the store is
emptied meanwhile, the refresh begins anew.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from features.errors import StoreError
from features.log.corrections import CorrectionFeed, corrections_since
from features.log.reader import Position, damaged_ends, read
from features.log.readers import register_store
from features.log.records import EVENTS, Event
from features.progress import StartProgress, Step
from features.schema import TIME
from features.store.base import FeatureStore, StoreMovedError, Watermark
from features.store.corrections import settle
from features.store.jobs.table_states import table_states
from features.store.user_state import states_of_log
from features.tables.event_files import EventFiles, TableChange

TRIES = 3
"""Times that a refresh begins when the store is emptied meanwhile."""

MEMORY = 4 << 30
"""Bytes that the events of a refresh may take; beyond it they are distributed to files."""


@dataclass
class RefreshReport:
    """What one refresh did.

    rebuilt: all was read, and another generation is served; why: the reason for it; users: whose states were written
    from the tables; table_events: valid events that were read; rejected: rows that are no valid events; log_events:
    from the log; late: events older than the newest one that the store had; damaged: log lines that were skipped
    because their checksum is wrong; added, grown, changed, removed: files of the events table; dropped: stores of
    other rules that were deleted because nobody reads them; at: time (µs) of the end; seconds: that it took.
    """

    rebuilt: bool = False
    why: str = ""
    users: int = 0
    table_events: int = 0
    rejected: int = 0
    log_events: int = 0
    late: int = 0
    damaged: int = 0
    added: list[str] = field(default_factory=list)
    grown: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    dropped: int = 0
    at: int = 0
    seconds: float = 0.0


def refresh(
    store: FeatureStore,
    tables: EventFiles,
    log: Path | None,
    *,
    memory: int = MEMORY,
    progress: StartProgress | None = None,
) -> RefreshReport:
    """Bring the store up to date with the events table and the log folder.

    Where the server has deleted keys to make room, all of both is joined, also what the store should have. memory:
    bytes for the events of the table. Raises StoreError when the store does not answer or is emptied again
    and again, StoreLockedError when another refresh is running, DataError when the tables cannot be read, LogError
    when the log cannot be read.
    """
    started = time.monotonic()
    with store.lock():
        for _ in range(TRIES):
            job = _Refresh(store, tables, log, memory, progress)
            try:
                position = job.run()
            except StoreMovedError:
                continue
            register_store(log, position)
            dropped = store.drop_abandoned() if job.report.rebuilt else 0
            report = replace(
                job.report, dropped=dropped, at=time.time_ns() // 1000, seconds=round(time.monotonic() - started, 3)
            )
            store.add_run(json.dumps(asdict(report)))
            return report
    raise StoreError(f"the feature store was emptied during each of {TRIES} refreshes: see why its server restarts")


def fill_from_log(store: FeatureStore, log: Path) -> None:
    """Fill a store whose tables cannot be read from the log alone; the next refresh adds the tables.

    Raises like `refresh`.
    """
    with store.lock():
        if (mark := store.watermark()) is None or not mark.filled:
            mark = store.start_fill()
            position, replayed = _replay(store, log, {}, mark.fill, CorrectionFeed(log))
            _advance(store, mark.fill, filled=True, log=position, latest=replayed.latest)
            register_store(log, position)


def catch_up(store: FeatureStore, log: Path, feed: CorrectionFeed | None = None) -> int:
    """Push the events that the log has beyond the watermark; returns their number.

    feed: the corrections of the log, read before; None: they are read here.
    Raises StoreError when the store does not answer, or was emptied (then call `refresh`).
    """
    mark = store.watermark()
    if mark is None or not mark.filled:
        raise StoreMovedError("the feature store was emptied, or is being filled: it must be refreshed")
    position, replayed = _replay(store, log, mark.log, mark.fill, feed or CorrectionFeed(log))
    if position != mark.log:
        _advance(store, mark.fill, log=position, latest=max(mark.latest, replayed.latest))
        register_store(log, position)
    return replayed.events


@dataclass
class _Replayed:
    """Events of the log that were pushed, damaged lines, late events, time (µs) of the latest event."""

    events: int = 0
    damaged: int = 0
    late: int = 0
    latest: int = 0


class _Refresh:
    """One try of a refresh. Its `run` returns the log position that the store has reached."""

    def __init__(
        self,
        store: FeatureStore,
        tables: EventFiles,
        log: Path | None,
        memory: int,
        progress: StartProgress | None,
    ) -> None:
        self.report = RefreshReport()
        self._store, self._tables, self._log, self._memory = store, tables, log, memory
        self._progress, self._latest, self._before = progress, 0, 0
        self._feed = CorrectionFeed(log)

    def run(self) -> Mapping[str, int]:
        mark = self._store.watermark()
        known = self._store.tables() if mark and mark.filled and mark.tables else ""
        change = self._tables.compare(known)
        self.report = replace(
            self.report,
            added=[*change.added],
            grown=[*change.grown],
            changed=[*change.changed],
            removed=[*change.removed],
        )
        if mark is None or not mark.filled:
            self.report.why = "the store was empty" if mark is None else "a filling was interrupted"
        elif mark.tables and not known:
            self.report.why = "the server has deleted what the last refresh remembered of the tables"
        elif change.changed or change.removed:
            self.report.why = f"rows of {', '.join((*change.changed, *change.removed))} were changed or removed"
        elif mark.pending not in ("", change.digest):
            self.report.why = "the tables have changed since a refresh that was interrupted"
        else:
            return self._counted_ends(self._update(mark, change))
        return self._counted_ends(self._rebuild(change.of_all()))

    def _counted_ends(self, position: Mapping[str, int]) -> Mapping[str, int]:
        """Count the damaged lines at the end of segments, which no position ever passes."""
        if self._log is not None and self._log.is_dir():
            self.report.damaged += len(damaged_ends(self._log, position, EVENTS))
        return position

    def _update(self, mark: Watermark, change: TableChange) -> Mapping[str, int]:
        """Join what is new to the generation that is served."""
        self._before = self._latest = mark.latest
        server = self._store.facts()
        if lost := mark.lost_keys(server):
            self.report.why, change = "the server has deleted keys to make room", change.of_all()
        if mark.pending or lost:
            self._store.sweep()
        if change.since or change.digest != mark.tables:
            _advance(self._store, mark.fill, pending=change.digest)
            change = self._write(change, mark.fill)
        position = self._catch_up({} if lost else mark.log, mark.fill)
        done = {"tables": change.digest, "pending": "", "log": position, "latest": self._latest}
        done |= {"server": server.run, "evicted": server.evicted} if lost else {}
        _advance(self._store, mark.fill, text=change.text, **done)
        return position

    def _rebuild(self, change: TableChange) -> Mapping[str, int]:
        """Build another generation, and serve it."""
        self.report.rebuilt = True
        mark = self._store.start_fill()
        change = self._write(change, mark.fill)
        position = self._catch_up({}, mark.fill)
        done = replace(
            mark,
            filled=True,
            tables=change.digest,
            pending=change.digest,  # until the generation that was served is deleted
            log=position,
            latest=self._latest,
        )
        while not self._store.advance(self._store.watermark(), done, change.text):
            pass  # a service has advanced the watermark of the generation that is still served
        self._store.sweep()
        position = self._catch_up(position, mark.fill)  # what was pushed to the other generation meanwhile
        _advance(self._store, mark.fill, pending="", log=position, latest=self._latest)
        return position

    def _write(self, change: TableChange, fill: str) -> TableChange:
        """Join the states of the users of the new events. Returns what is to be remembered of the tables."""
        step = self._progress("events read", sum(change.new_rows.values())) if self._progress else None
        events = self._counted(self._tables.batches(change.since), step)
        for states in table_states(events, self._store.rules, self._memory):
            self._store.write_users(states, fill)
            self.report.users += len(states)
        self._tables.check_same(change)
        self.report.rejected = sum(change.new_rows.values()) - self.report.table_events
        return self._tables.noting_ahead(change) if self.report.rejected else change

    def _counted(self, batches: Iterable[pl.DataFrame], step: Step | None) -> Iterator[pl.DataFrame]:
        """The batches, counted, after the corrections of the log."""
        self._feed.read()
        for batch in batches:
            times = batch.get_column(TIME).to_physical()
            self.report.table_events += len(batch)
            if step:
                step(len(batch))
            self.report.late += int((times < self._before).sum())
            self._latest = max(self._latest, int(times.to_numpy().max(initial=0)))
            yield self._feed.corrections.corrected_frame(batch)

    def _catch_up(self, since: Position, fill: str) -> dict[str, int]:
        position, replayed = _replay(self._store, self._log, since, fill, self._feed, self._before)
        self.report.log_events += replayed.events
        self.report.damaged += replayed.damaged
        self.report.late += replayed.late
        self._latest = max(self._latest, replayed.latest)
        return position


def _replay(
    store: FeatureStore, log: Path | None, since: Position, fill: str, feed: CorrectionFeed, before: int = 0
) -> tuple[dict[str, int], _Replayed]:
    """Push the log's events after `since` to a generation and apply its corrections.

    Returns the new position in both streams, and what was pushed. before: time (µs); earlier events count as late.
    """
    corrections, corrected = corrections_since(log, since)
    feed.read()
    users = feed.corrections.affected(corrections)
    position, replayed = {key: at for key, at in since.items() if key not in corrected}, _Replayed()
    while log is not None and log.is_dir():
        part = read(log, position)
        events = [r for r in part.records if isinstance(r, Event)]
        counting, elsewhere = feed.corrections.corrected(events)
        store.write_users(states_of_log(counting, store.rules), fill)
        users |= elsewhere  # a process that did not know a correction may have pushed events to them
        replayed.events += len(events)
        replayed.damaged += len(part.damaged)
        replayed.late += sum(event.timestamp < before for event in events)
        replayed.latest = max([replayed.latest, *(event.timestamp for event in events)])
        if part.position == position:
            break
        position = part.position
    settle(store, users, feed.corrections, fill)
    return {**position, **corrected}, replayed


def _advance(store: FeatureStore, fill: str, text: str = "", **changes: Any) -> None:
    """Change the watermark of the generation that is served, whatever another process changes of it meanwhile.

    Raises StoreMovedError when another generation is served.
    """
    while (mark := store.watermark()) is not None and mark.fill == fill:
        if store.advance(mark, replace(mark, **changes), text):
            return
    raise StoreMovedError("the feature store was emptied, or filled by another refresh, meanwhile")
