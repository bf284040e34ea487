"""Keeps the feature store in step with the log, and has it filled when it is not filled or has lost keys."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from features.errors import LogError, RecsysError, StoreError
from features.log.corrections import CorrectionFeed
from features.log.records import Correction, Event
from features.schema import DataConfig
from features.store.base import FeatureStore, StoreMovedError
from features.store.corrections import apply_corrections, push_events
from features.store.jobs.refresh import catch_up
from features.store.user_state import Shown, UserState, UserStateStatus
from serving.state.store.filler import Filler
from serving.state.store.last_known import LastKnown

logger = logging.getLogger("recsys.serving")

RETRY_SECONDS = 1.0
"""Seconds before a filling is tried again; doubled each time, up to MAX_RETRY_SECONDS."""

MAX_RETRY_SECONDS = 300.0

CATCH_UP_SECONDS = 30.0
"""Seconds between looks into the log for events that no process has pushed; the watermark follows."""

UNREADABLE_TABLES = (
    "the events table cannot be read (`recsys data check` says why): histories from before this service are missing"
)
"""What is noted and logged of it. The error itself may quote a row."""

LAST_KNOWN = "last_known"
"""The value of `degraded` that says that the state of the user is the last one that this process knew."""

UNFILLED = "the feature store is being filled: histories are missing until then"


def log_filling(report: dict[str, Any]) -> None:
    """Log what a filling did; report: a `RefreshReport`."""
    logger.info(
        "store filled: %d users and %d events from the tables, %d events from the log, %d damaged lines skipped",
        *(report[name] for name in ("users", "table_events", "log_events", "damaged")),
    )


class StoreKeeper:
    """The part of the service that writes the feature store.

    notes: current problems by component, of which this writes `store` and `tables`.
    """

    def __init__(self, log: Path, corrections: CorrectionFeed, notes: dict[str, str], filler: Filler) -> None:
        self.behind = False
        """Whether the log holds events that the store lacks, because it did not respond."""
        self.evicted = False
        """Whether the store's server has deleted keys to make room: some users lack their history."""
        self.away = False
        """Whether the last call of the store failed."""
        self.caught_up: float | None = None
        """When the store last had every event of the log (monotonic s); None before the first time."""
        self.position: Mapping[str, int] = {}
        """The log position of its watermark."""
        self.filler = filler
        self.last_known = LastKnown(log, corrections)
        """What is answered from while the store does not answer."""
        self._due = False
        self._served = ""  # the generation that was served at the last step
        self._log, self._corrections, self._notes = log, corrections, notes
        self._run = ""  # of the store's server
        self._catch_up_at = 0.0
        self._fill_at, self._pause = 0.0, RETRY_SECONDS
        self._missed = False  # whether the store missed an event since `catch_up` started

    def expect_new_tables(self, *, private: bool) -> None:
        """Another bundle is served. private: nobody else refreshes the store."""
        self.behind = True  # events may have been pushed to the store of the previous rules meanwhile
        self.last_known.forget_all()
        self._due, self._fill_at = private, 0.0

    def step(self, store: FeatureStore, data: DataConfig) -> None:
        """Look at the store; begin to fill it, or let it catch up with the log, where that is needed."""
        self.last_known.sweep()
        try:
            mark, server = store.watermark(), store.facts()
            self.away, self.position = False, mark.log if mark else {}
            if mark is not None and mark.fill != self._served:  # rows that a generation lacks do not count any more
                self.last_known.forget_all()
                self._served = mark.fill
            if server.run != self._run:  # a server that has restarted may hold what it held some time ago
                self.behind |= bool(self._run)
                self._run = server.run
            self.evicted = mark is not None and mark.lost_keys(server)
            filled = mark is not None and mark.filled
            if mark is None or not filled or not mark.tables or self.evicted or self._due:
                again = self.evicted or bool(self.filler.fault) or (filled and not self._due)
                self._fill(store, data, again=again)
                mark = store.watermark()
                filled = mark is not None and mark.filled
                self.evicted = mark is not None and mark.lost_keys(store.facts())
            self._note("tables", UNREADABLE_TABLES if mark and filled and not mark.tables else "")
            if filled and (self.behind or time.monotonic() >= self._catch_up_at):
                self._missed = False
                catch_up(store, self._log, self._corrections)
                self.behind = self._missed
                self.caught_up = time.monotonic()
                self._catch_up_at = self.caught_up + CATCH_UP_SECONDS
            self._note("store", server.warning or ("" if filled else self.filler.fault or UNFILLED))
        except StoreMovedError as error:  # the next step sees why
            self._notes["store"] = str(error)
        except StoreError as error:
            self.mark_behind(error)

    def _fill(self, store: FeatureStore, data: DataConfig, *, again: bool) -> None:
        """Begin to fill the store, unless that is going on. again: it may not help; pauses between the tries grow."""
        if self.filler.running or (again and time.monotonic() < self._fill_at):
            return
        if self.evicted:
            logger.warning("the feature store has deleted keys to make room; it is filled again")
        self._pause = min(2 * self._pause, MAX_RETRY_SECONDS) if again else RETRY_SECONDS
        self._fill_at, self._due = time.monotonic() + self._pause, False
        self.filler.start(store, data)

    def _note(self, component: str, problem: str) -> None:
        """Note what is wrong with a component, "" for nothing."""
        if not problem:
            self._notes.pop(component, None)
        elif self._notes.get(component) != problem:
            logger.warning("%s", problem)
            self._notes[component] = problem

    def push(self, store: FeatureStore, events: Sequence[Event]) -> list[str]:
        """Push logged events to the store. Returns the components that failed (values of `degraded`)."""
        failed = self._write(lambda: push_events(store, events, self._corrections))
        self.last_known.add(events, store.rules)
        return failed

    def correct(self, store: FeatureStore, correction: Correction) -> list[str]:
        """Apply a logged correction to the store. Returns the components that failed (values of `degraded`)."""
        return self._write(lambda: apply_corrections(store, [correction], self._corrections))

    def _write(self, write: Callable[[], None]) -> list[str]:
        try:
            write()
        except StoreMovedError:  # what was to be written is in the log: the filling brings it
            self.behind = True
            return ["stale"]
        except (StoreError, LogError) as error:
            self.mark_behind(error)
            return ["store"]
        return []

    def add_shown(self, store: FeatureStore, user_id: str, items: Sequence[str], time: int, days: float) -> list[str]:
        """Remember for some days that a user was shown items at a time (µs). Returns the components that failed."""
        try:
            store.add_shown(user_id, Shown.of(items, time), days)
        except StoreError as error:  # nothing to catch up with: the next answer does not know of this one
            self._note_away(error)
            return ["store"]
        return []

    def mark_behind(self, error: RecsysError) -> None:
        """Note that the store has missed events."""
        self._missed = self.behind = True
        self._note_away(error)

    def _note_away(self, error: RecsysError) -> None:
        self.away = True
        self._notes["store"] = str(error)

    def read_user(
        self, store: FeatureStore, user_id: str, *, shown: bool = False, ask: bool = True
    ) -> tuple[UserState, list[str]]:
        """The state of a user in the store, and why it may be incomplete (values of `degraded`).

        Where the store does not answer, it is the last known one, without what was shown.
        shown: with what the user was shown, too; ask: whether the store is asked.
        """
        era = self.last_known.era
        try:
            state = store.read_users([user_id], shown=shown)[0] if ask else None
        except StoreError as error:
            self._note_away(error)
            state = None
        if state is None:
            known, failed = self.last_known.state(user_id, store.rules), ["store"] if ask else []
            return (UserState(), failed) if known is None else (known, [*failed, LAST_KNOWN])
        self.away = False
        self.last_known.keep(user_id, state, era)
        stale = self.behind or self.evicted or state.status is UserStateStatus.STALE
        return state, ["stale"] if stale else []
