"""Takes events from a Redis Stream into the event log, as `POST /v1/events` takes them from requests.

An entry is acknowledged when its event is on disk. It may be read again after a failure; it has the same event_id and
time then, so it counts once. An entry that is no event is moved to the dead-letter stream with the reason.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Event as Signal
from typing import Any

import orjson

from features.errors import LogError, StoreError
from features.instants import MAX_CLOCK_SKEW, now_micros
from features.log.event_log import EventLog
from features.log.records import Event
from features.schema import EventRules
from features.store.stream import Entry, StreamGroup
from serving.errors import ApiError
from serving.event_validation import validate_event
from serving.schemas.body import parse_json

logger = logging.getLogger("recsys.events")

BATCH = 500
"""Entries read, logged and acknowledged at once."""

WAIT_SECONDS = 1.0
"""Seconds that a read waits for an entry; a stop takes no longer."""

RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 30.0
"""Seconds before the next try while the server or the log is away; doubled after each failure."""

FIRST_STREAMS = 1_500_000_000_000_000
"""July 2017 (µs): Redis got streams in 2018. A smaller id of an entry is no time, but was chosen by the producer."""

LAST_ORDER = (1 << 24) - 1
JSON = "json"


@dataclass
class ConsumerReport:
    """What a consumer did.

    accepted: events logged, one that was read again is counted again; dead: entries moved to the dead-letter stream;
    claimed: entries taken over from other consumers; lost: entries that were deleted before they were read.
    """

    accepted: int = 0
    dead: int = 0
    claimed: int = 0
    lost: int = 0


class EventConsumer:
    """A consumer of a group that writes to a log.

    rules: `data.events`, which refuse types that misspell a named one; None: types are not compared. idle: seconds
    after which entries of another consumer are taken over.
    """

    def __init__(
        self,
        group: StreamGroup,
        log: EventLog,
        *,
        rules: EventRules | None = None,
        idle: float = 60.0,
        now: Callable[[], int] = now_micros,
    ) -> None:
        self.report = ConsumerReport()
        self._group, self._log, self._rules, self._idle, self._now = group, log, rules, idle, now
        self._after = "0"  # id of the last own pending entry that was taken up again; "" when there is none left

    def drain(self) -> None:
        """Take what is there, and return. Raises StoreError and LogError."""
        self._group.open()
        while self._step(0.0):
            pass

    def run(self, stop: Signal) -> None:
        """Take events until `stop` is set. Waits while the server or the log is away.

        Raises ConfigError when the name is that of another kind of value.
        """
        pause, is_open = RETRY_SECONDS, False
        while not stop.is_set():
            try:
                if not is_open:
                    self._group.open()
                    self._after, is_open = "0", True
                if not self._step(WAIT_SECONDS):
                    self._log.probe()  # ends a segment that is a day old
                pause = RETRY_SECONDS
            except (StoreError, LogError) as error:
                is_open = False  # what was read and not finished is read again
                logger.error("%s; the next try is in %g s", error, pause)
                stop.wait(pause)
                pause = min(2 * pause, MAX_RETRY_SECONDS)

    def _step(self, wait: float) -> bool:
        """Take one batch; whether there was one."""
        entries = self._next(wait)
        events, dead, ids = list[Event](), list[tuple[Entry, str]](), list[str]()
        for entry in entries:
            if not entry.fields:
                self.report.lost += 1
                ids.append(entry.id)
                continue
            event = event_of(entry, self._now(), self._rules)
            if isinstance(event, Event):
                events.append(event)
                ids.append(entry.id)
            else:
                dead.append((entry, event))
        if events:
            self._log.append_now(events)
            self.report.accepted += len(events)
        self._group.finish(ids)
        self._group.bury(dead)
        self.report.dead += len(dead)
        for entry, reason in dead[:1]:
            logger.warning("%d entries moved to %s, e.g. %s: %s", len(dead), self._group.dead, entry.id, reason)
        return bool(entries)

    def _next(self, wait: float) -> list[Entry]:
        """The oldest entries first: own ones that were not finished, then those of dead consumers, then new ones."""
        if self._after:
            entries = self._group.pending(BATCH, self._after)
            self._after = entries[-1].id if entries else ""
            if entries:
                return entries
        if entries := self._group.claim(BATCH, self._idle):
            self.report.claimed += len(entries)
            return entries
        return self._group.read(BATCH, wait)


def event_of(entry: Entry, now: int, rules: EventRules | None = None) -> Event | str:
    """The event of an entry, or the reason why it is none. now: µs.

    Without an event_id or a time, the event has the id of the entry and its time: reading it again changes nothing.
    """
    ms, _, number = entry.id.partition("-")
    added = int(ms) * 1000
    if not FIRST_STREAMS <= added <= now + MAX_CLOCK_SKEW:
        added = now
    try:
        sent = _sent(entry.fields)
    except UnicodeDecodeError:
        return "is not UTF-8: send text in UTF-8"
    except ApiError as error:
        return f"{JSON}: {error.detail}"
    if isinstance(sent, str):
        return sent
    if sent.get("event_id") is None:
        sent["event_id"] = entry.id
    event = validate_event(sent, 0, added, rules)
    if isinstance(event, Event):
        return replace(event, order=min(int(number), LAST_ORDER))
    field = (event.place or "").partition(".")[2]
    return f"{field}: {event.reason}"


def _sent(fields: dict[bytes, bytes]) -> dict[str, Any] | str:
    """The fields of an event, or the reason why there are none. Raises UnicodeDecodeError and ApiError."""
    texts = {name.decode(): value.decode() for name, value in fields.items()}
    if JSON not in texts:
        return {name: _number(text) if name in ("value", "position") else text for name, text in texts.items()}
    if len(texts) > 1:
        return f"{JSON}: has other fields beside it: send all of an event in it, or none"
    sent = parse_json(texts[JSON].encode())
    return sent if isinstance(sent, dict) else f"{JSON}: must be one object"


def _number(text: str) -> Any:
    """The number that a text is; the text itself when it is none."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return value if isinstance(value, int | float) and not isinstance(value, bool) else text
