"""A consumer whose server or log is away: how long it waits, and what it takes up again."""

from pathlib import Path
from typing import Any

import pytest

from features.errors import LogError, StoreError
from features.log.event_log import EventLog
from features.store.stream import Entry
from serving.event_consumer import EventConsumer

CLICK = {b"user_id": b"u", b"item_id": b"i", b"event": b"click"}


class Stop:
    """A signal that is set after n waits. waits: their seconds."""

    def __init__(self, n: int) -> None:
        self.n, self.waits = n, list[float]()

    def is_set(self) -> bool:
        return len(self.waits) >= self.n

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)


class Group:
    """A stream. opens: result of each opening, an error or None; pending, claimed, new: batches of entries."""

    dead = "clicks:dead"

    def __init__(self, stop: Stop | None = None) -> None:
        self.stop, self.calls = stop, list[Any]()
        self.opens: list[Exception | None] = []
        self.entries: dict[str, list[list[Entry]]] = {"pending": [], "claim": [], "read": []}

    def open(self) -> None:
        self.calls.append("open")
        if self.opens and (error := self.opens.pop(0)) is not None:
            raise error

    def _take(self, kind: str, *arguments: Any) -> list[Entry]:
        self.calls.append((kind, *arguments))
        return self.entries[kind].pop(0) if self.entries[kind] else []

    def pending(self, limit: int, after: str) -> list[Entry]:
        return self._take("pending", limit, after)

    def claim(self, limit: int, idle: float) -> list[Entry]:
        return self._take("claim", limit, idle)

    def read(self, limit: int, wait: float) -> list[Entry]:
        found = self._take("read", limit, wait)
        if self.stop is not None and not found:
            raise StoreError("away")
        return found

    def finish(self, ids: list[str]) -> None:
        self.calls.append(("finish", ids))

    def bury(self, dead: Any) -> None:
        self.calls.append(("bury", [(entry.id, reason) for entry, reason in dead]))


def consumer(group: Group, log: Any, **options: Any) -> EventConsumer:
    return EventConsumer(group, log, now=lambda: 1_800_000_000_000_000, **options)  # type: ignore[arg-type]


def test_pauses_double_up_to_half_a_minute_and_begin_anew_after_a_success(tmp_path: Path) -> None:
    stop = Stop(10)
    group, log = Group(stop), EventLog(tmp_path)
    group.opens = [StoreError("away")] * 7
    group.entries["read"] = [[Entry("1-1", CLICK)]]
    taking = consumer(group, log)
    taking.run(stop)  # type: ignore[arg-type]
    log.close()
    assert stop.waits == [1, 2, 4, 8, 16, 30, 30, 1, 2, 4]
    assert taking.report.accepted == 1


def test_what_was_not_finished_is_read_again_after_a_failure(tmp_path: Path) -> None:
    class Full:
        """A log without room."""

        def append_now(self, records: Any) -> None:
            raise LogError("no room")

    group = Group()
    group.entries["read"] = [[Entry("1-1", CLICK)]]
    stop = Stop(2)
    group.stop = stop
    consumer(group, Full()).run(stop)  # type: ignore[arg-type]
    once = ["open", ("pending", 500, "0"), ("claim", 500, 60.0), ("read", 500, 1.0)]
    assert group.calls == once * 2  # neither finished nor buried
    assert stop.waits == [1, 2]


def test_the_order_of_entries_and_what_becomes_of_them(tmp_path: Path) -> None:
    group, log = Group(), EventLog(tmp_path)
    group.entries = {
        "pending": [[Entry("1-1", CLICK), Entry("1-2", {})], []],
        "claim": [[Entry("2-1", {b"user_id": b"u"}), Entry("2-2", CLICK), Entry("2-3", CLICK)]],
        "read": [[Entry("3-1", CLICK)]],
    }
    taking = consumer(group, log, idle=7.0)
    taking.drain()
    log.close()
    assert group.calls == [
        "open",
        ("pending", 500, "0"),
        ("finish", ["1-1", "1-2"]),
        ("bury", []),
        ("pending", 500, "1-2"),
        ("claim", 500, 7.0),
        ("finish", ["2-2", "2-3"]),
        ("bury", [("2-1", "item_id: missing; add it")]),
        ("claim", 500, 7.0),
        ("read", 500, 0.0),
        ("finish", ["3-1"]),
        ("bury", []),
        ("claim", 500, 7.0),
        ("read", 500, 0.0),
        ("finish", []),
        ("bury", []),
    ]
    report = taking.report
    assert (report.accepted, report.dead, report.claimed, report.lost) == (4, 1, 3, 1)


def test_what_is_moved_away_is_logged_with_an_example(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    group, log = Group(), EventLog(tmp_path)
    group.entries["read"] = [[Entry("1-1", {b"user_id": b"u"}), Entry("1-2", {b"user_id": b""})]]
    consumer(group, log).drain()
    log.close()
    [record] = [record for record in caplog.records if record.name == "recsys.events"]
    assert record.getMessage() == "2 entries moved to clicks:dead, e.g. 1-1: item_id: missing; add it"
