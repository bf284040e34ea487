"""Refresh: tables and log give the same store however often a refresh runs and wherever it is interrupted."""

from collections.abc import Callable, Iterable
from pathlib import Path

import polars as pl
import pytest
from toy_service import NOW, RULES, has_seen, toy_events, toy_tables

from features.errors import StoreError
from features.log.event_log import EventLog
from features.log.records import Event
from features.log.segments import segment_paths
from features.schema import EventRules
from features.store.jobs.refresh import catch_up, refresh
from features.store.memory import MemoryStore
from features.store.user_state import UserState
from features.tables.event_files import EventFiles


def tables(folder: Path, rows: list[tuple[str, str, float]] | None = None) -> EventFiles:
    return toy_tables(folder, toy_events(rows))


def append(folder: Path, *events: Event) -> None:
    log = EventLog(folder)
    log.append_now(events)
    log.close()


def event(item: str, event_id: str, user: str = "ann", kind: str = "click") -> Event:
    return Event(user_id=user, item_id=item, event=kind, timestamp=NOW, event_id=event_id)


def known(store: MemoryStore, users: Iterable[str] = ("ann", "bob", "cid")) -> list[tuple[object, ...]]:
    def plain(s: UserState) -> tuple[object, ...]:
        return s.items, s.events, s.times.tolist(), str(s.values.tolist()), s.seen.tolist(), s.status

    return [plain(s) for s in store.read_users(list(users))]


def test_tables_and_log_fill_the_store(tmp_path: Path) -> None:
    append(tmp_path / "log", event("i9", "e1"), event("i4", "e2", user="cid", kind="look"))
    store = MemoryStore(RULES)
    report = refresh(store, tables(tmp_path), tmp_path / "log")
    assert (report.rebuilt, report.users, report.table_events, report.log_events) == (True, 2, 3, 2)
    ann, bob, cid = store.read_users(["ann", "bob", "cid"])
    assert ann.items == ("i1", "i8", "i9")
    assert ann.values.tolist()[:2] == [5.0, 4.0]
    assert ann.labels(RULES).positive.tolist() == [True, True, True]
    assert has_seen(bob, ["i1", "i2"]).tolist() == [False, True]
    assert bob.labels(RULES).positive.tolist() == [False]
    assert (cid.items, len(cid.seen)) == (("i4",), 0)


def test_small_batches_fill_the_same_store_and_report_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tables(tmp_path, [("ann", "i1", 5.0), ("bob", "i2", 1.0), ("ann", "i8", 4.0), ("cid", "i3", 2.0)])
    at_once, in_batches, calls = MemoryStore(RULES), MemoryStore(RULES), list[object]()

    def start(description: str, total: int) -> Callable[[int], None]:
        calls.append((description, total))
        return calls.append

    refresh(at_once, files, None, progress=start)
    assert calls == [("events read", 4), 4]
    calls.clear()
    monkeypatch.setattr("features.store.jobs.table_states.USERS", 1)
    assert refresh(in_batches, files, None, progress=start).users == 3
    assert calls == [("events read", 4), 4]
    assert known(in_batches) == known(at_once)
    calls.clear()
    refresh(in_batches, files, None, progress=start)
    assert calls == []  # nothing is new


def test_a_second_refresh_reads_and_writes_nothing(tmp_path: Path) -> None:
    append(tmp_path / "log", event("i9", "e1"))
    store = MemoryStore(RULES)
    refresh(store, tables(tmp_path), tmp_path / "log")
    before = known(store)
    report = refresh(store, tables(tmp_path), tmp_path / "log")
    assert (report.rebuilt, report.users, report.log_events) == (False, 0, 0)
    append(tmp_path / "log", event("i7", "e3", user="bob"))
    report = refresh(store, tables(tmp_path), tmp_path / "log")
    assert (report.users, report.log_events) == (0, 1)
    assert known(store) != before


def test_damaged_lines_are_counted_at_the_end_of_a_segment_too(tmp_path: Path) -> None:
    append(tmp_path / "log", event("i1", "a"), event("i2", "b"), event("i3", "c"))
    segment = segment_paths(tmp_path / "log" / "events")[0]
    segment.chmod(0o600)
    segment.write_bytes(segment.read_bytes().replace(b'"i1"', b'"iX"').replace(b'"i3"', b'"iX"'))
    report = refresh(MemoryStore(RULES), tables(tmp_path, []), tmp_path / "log")
    assert (report.log_events, report.damaged) == (1, 2)


def test_changed_tables_are_read(tmp_path: Path) -> None:
    store = MemoryStore(RULES)
    refresh(store, tables(tmp_path), tmp_path / "log")
    more = tables(tmp_path, [("ann", "i1", 5.0), ("ann", "i8", 4.0), ("bob", "i2", 1.0), ("cid", "i6", 2.0)])
    report = refresh(store, more, tmp_path / "log")
    assert (report.rebuilt, report.users, report.grown) == (False, 1, ["events.parquet"])
    assert [s.items for s in store.read_users(["ann", "cid"])] == [("i1", "i8"), ("i6",)]


def test_repeated_purchases_are_kept(tmp_path: Path) -> None:
    store = MemoryStore(RULES)
    refresh(store, tables(tmp_path, [("ann", item, 5.0) for item in "abaa"]), tmp_path / "log")
    state = store.read_users(["ann"])[0]
    assert state.items == ("a", "b", "a", "a")
    assert len(set(state.times.tolist())) == 4


class Failing(MemoryStore):
    """Fails after `remaining` writes."""

    def __init__(self, rules: EventRules, remaining: int) -> None:
        super().__init__(rules)
        self.remaining = remaining

    def write_users(self, states: Iterable[tuple[str, bytes]], fill: str = "") -> None:
        self._count()
        super().write_users(states, fill)

    def _count(self) -> None:
        self.remaining -= 1
        if self.remaining < 0:
            raise StoreError("down")


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupted_refresh_is_run_again(tmp_path: Path, after: int) -> None:
    append(tmp_path / "log", event("i9", "e1"))
    uninterrupted = MemoryStore(RULES)
    refresh(uninterrupted, tables(tmp_path), tmp_path / "log")
    store = Failing(RULES, after)
    with pytest.raises(StoreError):
        refresh(store, tables(tmp_path), tmp_path / "log")
    mark = store.watermark()
    assert mark is not None
    assert not mark.filled
    store.remaining = 99
    refresh(store, tables(tmp_path), tmp_path / "log")
    assert known(store) == known(uninterrupted)


def test_catch_up_pushes_new_events_and_refuses_an_emptied_store(tmp_path: Path) -> None:
    store = MemoryStore(RULES)
    with pytest.raises(StoreError, match="must be refreshed"):
        catch_up(store, tmp_path / "log")
    refresh(store, tables(tmp_path), tmp_path / "log")
    append(tmp_path / "log", event("i9", "e1"), event("i7", "e2"))
    assert catch_up(store, tmp_path / "log") == 2
    assert catch_up(store, tmp_path / "log") == 0
    assert sorted(store.read_users(["ann"])[0].items) == ["i1", "i7", "i8", "i9"]


def test_ties_keep_log_order_and_long_histories_their_newest(tmp_path: Path) -> None:
    rows = [("ann", f"i{n}", 5.0) for n in range(522)]
    table = toy_events(rows).with_columns(pl.lit(0).cast(pl.Datetime("us", "UTC")).alias("timestamp"))
    store = MemoryStore(RULES)
    refresh(store, toy_tables(tmp_path, table), tmp_path / "log")
    state = store.read_users(["ann"])[0]
    assert state.items == tuple(f"i{n}" for n in range(10, 522))
    assert len(state.seen) == 522
