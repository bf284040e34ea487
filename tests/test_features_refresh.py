"""Refresh: the store ends up the same from tables and log, however often and wherever it is cut off."""

from collections.abc import Callable, Iterable
from pathlib import Path

import polars as pl
import pytest
from toy_service import NOW, RULES, toy_events

from features.errors import StoreError
from features.log.event_log import EventLog
from features.log.records import Event
from features.schema import EventRules
from features.store.base import HISTORY, UserPatch, UserState
from features.store.memory import MemoryStore
from features.store.refresh import catch_up, refresh


def append(folder: Path, *events: Event) -> None:
    log = EventLog(folder)
    log.append_now(events)
    log.close()


def event(item: str, event_id: str, user: str = "ann", kind: str = "click") -> Event:
    return Event(user_id=user, item_id=item, event=kind, timestamp=NOW, event_id=event_id)


def known(store: MemoryStore, users: Iterable[str] = ("ann", "bob", "cid")) -> list[tuple[object, ...]]:
    def plain(s: UserState) -> tuple[object, ...]:
        return s.items, s.events, s.times.tolist(), str(s.values.tolist()), s.seen, s.status

    return [plain(s) for s in store.read_users(list(users))]


def test_tables_and_log_fill_the_store(tmp_path: Path) -> None:
    append(tmp_path, event("i9", "e1"), event("i4", "e2", user="cid", kind="look"))
    store = MemoryStore(RULES)
    report = refresh(store, toy_events(), tmp_path)
    assert (report.rebuilt, report.users, report.table_events, report.log_events) == (True, 2, 3, 2)
    ann, bob, cid = store.read_users(["ann", "bob", "cid"])
    assert ann.items == ("i1", "i8", "i9")
    assert ann.values.tolist()[:2] == [5.0, 4.0]
    assert ann.positive(RULES).tolist() == [True, True, True]
    assert bob.seen == {"i2"}
    assert bob.positive(RULES).tolist() == [False]
    assert (cid.items, cid.seen) == (("i4",), frozenset())


def test_batches_of_whole_users_fill_it_alike_and_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = toy_events([("ann", "i1", 5.0), ("bob", "i2", 1.0), ("ann", "i8", 4.0), ("cid", "i3", 2.0)])
    whole, parts, told = MemoryStore(RULES), MemoryStore(RULES), list[object]()

    def begin(what: str, total: int) -> Callable[[int], None]:
        told.append((what, total))
        return told.append

    refresh(whole, tables, None, progress=begin)
    assert told == [("users to the store", 3), 3]
    told.clear()
    monkeypatch.setattr("features.store.refresh.ROWS", 1)
    assert refresh(parts, tables, None, progress=begin).users == 3
    assert told == [("users to the store", 3), 1, 1, 1]
    assert known(parts) == known(whole)
    told.clear()
    refresh(parts, tables, None, progress=begin)
    assert told == []  # there is nothing to do


def test_again_reads_and_writes_nothing(tmp_path: Path) -> None:
    append(tmp_path, event("i9", "e1"))
    store = MemoryStore(RULES)
    refresh(store, toy_events(), tmp_path)
    before = known(store)
    report = refresh(store, toy_events(), tmp_path)
    assert (report.rebuilt, report.users, report.log_events) == (False, 0, 0)
    append(tmp_path, event("i7", "e3", user="bob"))
    report = refresh(store, toy_events(), tmp_path)
    assert (report.users, report.log_events) == (0, 1)
    assert known(store) != before


def test_other_tables_are_read(tmp_path: Path) -> None:
    store = MemoryStore(RULES)
    refresh(store, toy_events(), tmp_path)
    more = toy_events([("ann", "i1", 5.0), ("ann", "i8", 4.0), ("bob", "i2", 1.0), ("cid", "i6", 2.0)])
    report = refresh(store, more, tmp_path)
    assert (report.rebuilt, report.users) == (False, 3)
    assert [s.items for s in store.read_users(["ann", "cid"])] == [("i1", "i8"), ("i6",)]


def test_what_is_bought_again_is_kept_again(tmp_path: Path) -> None:
    store = MemoryStore(RULES)
    refresh(store, toy_events([("ann", item, 5.0) for item in "abaa"]), tmp_path)
    state = store.read_users(["ann"])[0]
    assert state.items == ("a", "b", "a", "a")
    assert len(set(state.times.tolist())) == 4


class Failing(MemoryStore):
    """Fails at the n-th call."""

    def __init__(self, rules: EventRules, after: int) -> None:
        super().__init__(rules)
        self.left = after

    def write_users(self, patches: Iterable[UserPatch]) -> None:
        self._count()
        super().write_users(patches)

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise StoreError("gone")


@pytest.mark.parametrize("after", [0, 1, 2])
def test_cut_off_anywhere_and_run_again(tmp_path: Path, after: int) -> None:
    append(tmp_path, event("i9", "e1"))
    whole = MemoryStore(RULES)
    refresh(whole, toy_events(), tmp_path)
    store = Failing(RULES, after)
    with pytest.raises(StoreError):
        refresh(store, toy_events(), tmp_path)
    assert store.watermark() is None
    store.left = 99
    refresh(store, toy_events(), tmp_path)
    assert known(store) == known(whole)


def test_catch_up_pushes_what_is_new_and_refuses_an_emptied_store(tmp_path: Path) -> None:
    store = MemoryStore(RULES)
    with pytest.raises(StoreError, match="must be refreshed"):
        catch_up(store, tmp_path)
    refresh(store, toy_events(), tmp_path)
    append(tmp_path, event("i9", "e1"), event("i7", "e2"))
    assert catch_up(store, tmp_path) == 2
    assert catch_up(store, tmp_path) == 0
    assert store.read_users(["ann"])[0].items == ("i1", "i8", "i7", "i9")  # one time: by item


def test_ties_keep_log_order_and_long_histories_their_newest(tmp_path: Path) -> None:
    rows = [("ann", f"i{n}", 5.0) for n in range(HISTORY + 10)]
    table = toy_events(rows).with_columns(pl.lit(0).cast(pl.Datetime("us", "UTC")).alias("timestamp"))
    store = MemoryStore(RULES)
    refresh(store, table, tmp_path)
    state = store.read_users(["ann"])[0]
    assert state.items == tuple(f"i{n}" for n in range(10, HISTORY + 10))
    assert len(state.seen) == HISTORY + 10
