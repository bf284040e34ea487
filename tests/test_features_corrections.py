"""Corrections: what a merge and an undo mean, and that tables, log and store agree on it."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_service import has_seen, toy_tables

from features.errors import LogError, StoreError
from features.instants import DAY
from features.log.corrections import CorrectionFeed, Corrections, corrections_of
from features.log.event_log import EventLog
from features.log.export import export
from features.log.reader import events_frame
from features.log.records import CORRECTIONS, EVENTS, Correction, Event, EventUndone, Record, UsersMerged, line
from features.log.upkeep.prune import prune
from features.log.upkeep.retention import Limit
from features.schema import EventRules
from features.store.base import FeatureStore
from features.store.corrections import apply_corrections, push_events, settle
from features.store.jobs.refresh import catch_up, refresh
from features.store.memory import MemoryStore
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer
from features.store.user_state import states_of_log, states_of_table

RULES = EventRules(positive={"buy": None}, seen=("buy", "view"))
SHORT = RULES.model_copy(update={"history": 4, "seen_items": 3})
USERS = ["a", "b", "c", "d"]


def click(user: str, name: str, time: int, item: str = "i1", kind: str = "view") -> Event:
    return Event(user_id=user, item_id=item, event=kind, timestamp=time, event_id=name)


def merged(from_id: str, user: str, until: int, time: int | None = None) -> UsersMerged:
    return UsersMerged(user_id=user, from_id=from_id, timestamp=until if time is None else time, until=until)


def undone(user: str, name: str, time: int = 0) -> EventUndone:
    return EventUndone(user_id=user, event_id=name, timestamp=time)


def append(folder: Path, *records: Record) -> None:
    log = EventLog(folder)
    log.append_now(records)
    log.close()


def counted(corrections: Corrections, *events: Event) -> list[tuple[str, str]]:
    return [(event.user_id, event.event_id) for event in corrections.corrected(events)[0]]


def frame(events: Sequence[Event]) -> pl.DataFrame:
    """The events as a canonical table."""
    columns = ("user_id", "item_id", "event", "timestamp", "value", "event_id")
    rows = [tuple(getattr(event, name) for name in columns) for event in events]
    types = {name: pl.String() for name in columns} | {"timestamp": pl.Int64(), "value": pl.Float64()}
    table = pl.DataFrame(rows, schema=types, orient="row")
    return table.with_columns(
        pl.col("timestamp").cast(pl.Datetime("us", "UTC")), pl.col("event_id").replace("", None)
    )


def test_a_merge_gives_the_events_up_to_its_time() -> None:
    corrections = Corrections([merged("a", "b", 10)])
    events = [click("a", "1", 10), click("a", "2", 11), click("b", "3", 5)]
    assert counted(corrections, *events) == [("b", "1"), ("a", "2"), ("b", "3")]


def test_each_merge_of_an_id_takes_the_events_since_the_one_before() -> None:
    corrections = Corrections([merged("kiosk", "ann", 10), merged("kiosk", "bob", 20)])
    events = [click("kiosk", "1", 9), click("kiosk", "2", 15), click("kiosk", "3", 25)]
    assert counted(corrections, *events) == [("ann", "1"), ("bob", "2"), ("kiosk", "3")]


def test_a_new_merge_takes_nothing_that_another_has_taken() -> None:
    corrections = Corrections([merged("kiosk", "ann", 10)])
    assert [corrections.next_until("kiosk", time) for time in (5, 10, 11)] == [11, 11, 11]
    assert [corrections.next_until("kiosk", 99), corrections.next_until("ann", 5)] == [99, 5]


def test_what_an_id_was_given_is_merged_on_in_either_order() -> None:
    chain = [merged("a", "b", 10), merged("b", "c", 20)]
    assert counted(Corrections(chain), click("a", "1", 5)) == [("c", "1")]
    assert counted(Corrections(chain[::-1]), click("a", "1", 5)) == [("c", "1")]


def test_a_merge_that_closes_a_circle_does_not_count_whatever_is_read_first() -> None:
    first, second = merged("a", "b", 10, time=1), merged("b", "a", 20, time=2)
    for order in ([first, second], [second, first]):
        corrections = Corrections()
        for record in order:
            corrections.add([record])
        assert counted(corrections, click("a", "1", 5), click("b", "2", 5)) == [("b", "1"), ("b", "2")]
    assert corrections.closes_circle("b", "a")
    assert corrections.closes_circle("a", "a")
    assert not corrections.closes_circle("a", "b")


@pytest.mark.parametrize("early", [True, False])
def test_an_undone_event_does_not_count_before_or_after_a_merge(early: bool) -> None:
    records: list[Correction] = [undone("a", "1"), merged("a", "b", 10)]
    corrections = Corrections()
    for record in records if early else records[::-1]:
        corrections.add([record])
    # the same event, sent again after the login under the other id, is undone too
    events = [click("a", "1", 5), click("a", "2", 5), click("b", "1", 5), click("c", "1", 5)]
    assert counted(corrections, *events) == [("b", "2"), ("c", "1")]
    assert corrections.corrected_frame(frame(events)).rows()[0][0] == "b"
    assert corrections.counting_frame(frame(events)).get_column("user_id").to_list() == ["a", "c"]


def test_the_owner_can_undo_what_it_was_given() -> None:
    corrections = Corrections([merged("a", "b", 10), undone("b", "1")])
    assert counted(corrections, click("a", "1", 5), click("a", "1", 15)) == [("a", "1")]


CONTENTS = {f"e{n}": (f"i{n % 3}", ["buy", "view", "share"][n % 3], n // 2 * DAY + n) for n in range(8)}
"""event_id -> item, type and time: a repeated event is the same one."""


def sent(user: str, name: str) -> Event:
    item, kind, time = CONTENTS[name]
    return click(user, name, time, item, kind)


USER, NAME = st.sampled_from(USERS), st.sampled_from(sorted(CONTENTS))
EVENT = st.builds(sent, USER, NAME)
TIME = st.integers(0, 4 * DAY)
CORRECTION = st.one_of(
    st.builds(merged, USER, USER, TIME, st.integers(0, 9)),
    st.builds(undone, USER, NAME),
)


def naive(corrections: Sequence[Correction], events: Iterable[Event]) -> list[tuple[str, str]]:
    """(owner, event_id) of the events that count, read off the definition."""
    merges: list[UsersMerged] = []

    def takers(user: str) -> set[str]:
        return {user}.union(*(takers(m.user_id) for m in merges if m.from_id == user))

    given = [c for c in corrections if isinstance(c, UsersMerged)]
    for merge in sorted(given, key=lambda m: (m.timestamp, m.from_id, m.user_id, m.until)):
        if merge.from_id not in takers(merge.user_id):
            merges.append(merge)  # noqa: PERF401 - `takers` reads the list
    out = []
    for event in events:
        owner = event.user_id
        while taking := [m for m in merges if m.from_id == owner and m.until >= event.timestamp]:
            owner = min(taking, key=lambda m: m.until).user_id
        undos = (c for c in corrections if isinstance(c, EventUndone) and c.event_id == event.event_id)
        if not any(owner in takers(undo.user_id) for undo in undos):
            out.append((owner, event.event_id))
    return out


@settings(max_examples=80)
@given(st.lists(CORRECTION, max_size=8), st.lists(EVENT, max_size=12), st.randoms())
def test_lists_tables_and_the_definition_agree_in_any_order(
    records: list[Correction], events: list[Event], dice: Any
) -> None:
    expected = naive(records, events)
    dice.shuffle(records)
    corrections, part = Corrections(), dice.randint(0, len(records))
    for some in (records[:part], records[part:]):
        corrections.add(some)
    assert counted(corrections, *events) == expected
    table = corrections.corrected_frame(frame(events))
    assert table.select("user_id", "event_id").rows() == expected
    left = corrections.counting_frame(frame(events))
    assert left.get_column("event_id").to_list() == [name for _, name in expected]


class Processes:
    """Two processes that log, push and catch up, and are now and then killed between logging and pushing."""

    def __init__(self, folder: Path, rules: EventRules, table: list[Event]) -> None:
        self.folder, self.table = folder / "log", frame(table)
        self.logs = [EventLog(self.folder), EventLog(self.folder)]
        self.feeds = [CorrectionFeed(self.folder), CorrectionFeed(self.folder)]
        self.store = MemoryStore(rules)
        self.events: list[Event] = []
        self.records: list[Correction] = []
        self.waiting: list[tuple[int, Record]] = []
        self.files = toy_tables(folder / "tables", self.table)
        refresh(self.store, self.files, self.folder)

    def log(self, who: int, record: Event | Correction) -> None:
        if isinstance(record, UsersMerged):  # as the API does
            feed = CorrectionFeed(self.folder)
            feed.read()
            if feed.corrections.closes_circle(record.from_id, record.user_id):
                return
            until = feed.corrections.next_until(record.from_id, record.until)
            record = replace(record, until=until, timestamp=len(self.records))
        self.logs[who].append_now([record])
        if isinstance(record, Event):
            self.events.append(record)
        else:
            self.records.append(record)
        self.waiting.append((who, record))

    def push(self, number: int) -> None:
        """Let a process push what it has logged."""
        if self.waiting:
            who, record = self.waiting.pop(number % len(self.waiting))
            if isinstance(record, Event):
                push_events(self.store, [record], self.feeds[who])
            else:
                apply_corrections(self.store, [record], self.feeds[who])  # type: ignore[list-item]

    def blind(self, number: int) -> None:
        """Let a process push an event and die before it sees the corrections of the other."""
        if self.waiting:
            who, record = self.waiting.pop(number % len(self.waiting))
            if isinstance(record, Event):
                self.store.push(self.feeds[who].corrections.corrected([record])[0])

    def catch_up(self, who: int) -> None:
        catch_up(self.store, self.folder, self.feeds[who])

    def scratch(self) -> dict[str, bytes]:
        """The states by the definition."""
        corrections, store = Corrections(self.records), MemoryStore(self.store.rules)
        store.start_fill()
        table = corrections.corrected_frame(self.table.with_row_index("row"))
        store.write_users(states_of_table(table, store.rules))
        store.write_users(states_of_log(corrections.corrected(self.events)[0], store.rules))
        return store._generation()

    def refill(self) -> None:
        """Read tables and log from the beginning into the store as it is."""
        mark = self.store.watermark()
        assert mark is not None
        self.store.advance(mark, replace(mark, log={}, tables=""))
        refresh(self.store, self.files, self.folder)

    def close(self) -> None:
        for log in self.logs:
            log.close()


WHO, NUMBER = st.integers(0, 1), st.integers(0, 5)
STEP = st.one_of(
    st.tuples(st.just("log"), WHO, EVENT),
    st.tuples(st.just("log"), WHO, CORRECTION),
    st.tuples(st.just("push"), NUMBER),
    st.tuples(st.just("catch_up"), WHO),
)


@settings(max_examples=35)
@given(st.lists(EVENT, max_size=6), st.lists(STEP, max_size=25))
def test_pushes_and_catching_up_in_any_order_come_to_the_states_of_the_definition(
    tmp_path_factory: pytest.TempPathFactory, table: list[Event], steps: list[tuple[Any, ...]]
) -> None:
    processes = Processes(tmp_path_factory.mktemp("run"), RULES, table)
    for name, *arguments in steps:
        getattr(processes, name)(*arguments)
    while processes.waiting:
        processes.push(0)
    processes.catch_up(0)
    assert processes.store._generation() == processes.scratch()
    before = dict(processes.store._generation())
    processes.refill()
    assert processes.store._generation() == before
    processes.close()


@settings(max_examples=35)
@given(st.lists(EVENT, max_size=6), st.lists(STEP | st.tuples(st.just("blind"), NUMBER), max_size=25))
def test_a_full_replay_mends_what_killed_processes_have_left(
    tmp_path_factory: pytest.TempPathFactory, table: list[Event], steps: list[tuple[Any, ...]]
) -> None:
    processes = Processes(tmp_path_factory.mktemp("run"), RULES, table)
    for name, *arguments in steps:
        getattr(processes, name)(*arguments)
    processes.refill()
    assert processes.store._generation() == processes.scratch()
    processes.close()


@settings(max_examples=25)
@given(st.lists(EVENT, max_size=12), st.lists(STEP | st.tuples(st.just("blind"), NUMBER), max_size=25))
def test_beyond_the_limits_no_event_is_wrong_and_an_empty_store_is_filled_right(
    tmp_path_factory: pytest.TempPathFactory, table: list[Event], steps: list[tuple[Any, ...]]
) -> None:
    processes = Processes(tmp_path_factory.mktemp("run"), SHORT, table)
    for name, *arguments in steps:
        getattr(processes, name)(*arguments)
    processes.refill()
    allowed = set(naive(processes.records, [*table, *processes.events]))
    items = {(owner, CONTENTS[name]) for owner, name in allowed}
    for user in USERS:
        state = processes.store.read_users([user])[0]
        known = zip(state.items, state.events, state.times.tolist(), strict=True)
        assert {(user, content) for content in known} <= items
    fresh = MemoryStore(SHORT)
    refresh(fresh, processes.files, processes.folder)
    assert fresh._generation() == processes.scratch()
    processes.close()


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Any:
    if request.param == "memory":
        yield MemoryStore(RULES)
        return
    server = RedisServer()
    running = RedisStore(server.url, RULES, timeout=2.0)
    yield running
    running.close()
    server.stop()


def test_states_follow_corrections_in_both_stores(tmp_path: Path, store: FeatureStore) -> None:
    refresh(store, toy_tables(tmp_path / "tables", frame([click("anon", "", 1, "old", "buy")])), tmp_path)
    append(tmp_path, click("anon", "1", DAY, "i1"), click("anon", "2", 2 * DAY, "i1"), click("ann", "3", 5, "i3"))
    catch_up(store, tmp_path)
    append(tmp_path, merged("anon", "ann", 3 * DAY), click("anon", "4", 4 * DAY, "i4"))
    catch_up(store, tmp_path)
    ann, anon = store.read_users(["ann", "anon"])
    assert (ann.items, anon.items) == (("old", "i3", "i1", "i1"), ("i4",))
    assert has_seen(ann, ["old", "i1", "i3", "i4"]).tolist() == [True, True, True, False]
    assert store.recent_users(5) == ["anon", "ann"]
    append(tmp_path, undone("anon", "2"), undone("anon", "4"))
    catch_up(store, tmp_path)
    ann, anon = store.read_users(["ann", "anon"])
    assert (ann.items, anon.items) == (("old", "i3", "i1"), ())
    assert has_seen(ann, ["i1"]).tolist() == [True]  # the other event of the item counts
    assert store.recent_users(5) == ["ann"]
    append(tmp_path, undone("ann", "1"), click("anon", "4", 4 * DAY, "i4"))
    catch_up(store, tmp_path)
    ann, anon = store.read_users(["ann", "anon"])
    assert (ann.items, anon.items) == (("old", "i3"), ())
    assert has_seen(ann, ["i1"]).tolist() == [False]


def test_seen_items_of_events_that_are_not_kept_go_by_whole_days_and_stay(store: FeatureStore) -> None:
    little = store.with_rules(RULES.model_copy(update={"history": 2}))
    little.start_fill()
    events = [click(user, f"e{n}", n * DAY, f"i{n}") for user in ("a", "c") for n in range(4)]
    little.write_users(states_of_log(events, little.rules))  # keeps e2 and e3, and all items as seen
    settle(little, ["a", "c"], Corrections([merged("a", "b", DAY + 5), undone("c", "e0"), undone("c", "e3")]))
    a, b, c = little.read_users(["a", "b", "c"])
    assert (a.items, b.items, c.items) == (("i2", "i3"), (), ("i2",))
    items = [f"i{n}" for n in range(4)]
    assert has_seen(a, items).tolist() == [False, True, True, True]
    assert has_seen(b, items).tolist() == [True, False, False, False]
    assert has_seen(c, items).tolist() == [True, True, True, False]
    little.push([click("b", "new", 5, "i9")])  # a state without events takes events
    assert little.read_users(["b"])[0].items == ("i9",)


def test_what_was_undone_before_a_merge_is_undone_after_it_in_both_states(tmp_path: Path) -> None:
    store = MemoryStore(RULES)
    refresh(store, toy_tables(tmp_path / "tables", frame([])), tmp_path)
    append(tmp_path, click("a", "1", 1), click("b", "1", 1), click("b", "2", 2), undone("a", "1"))
    catch_up(store, tmp_path)
    assert [len(state.items) for state in store.read_users(["a", "b"])] == [0, 2]
    append(tmp_path, merged("a", "b", 9))  # so b sent the same event again after the login
    catch_up(store, tmp_path)
    assert len(store.read_users(["b"])[0].items) == 1


def test_a_state_that_changes_while_it_is_settled_is_settled_again() -> None:
    class Busy(MemoryStore):
        pushes = 0

        def write_users(self, states: Iterable[tuple[str, bytes]], fill: str = "") -> None:
            super().write_users(states, fill)
            if self.pushes:
                self.pushes -= 1
                super().write_users(states_of_log([click("a", f"late-{self.pushes}", 2)], RULES))

    corrections = Corrections([merged("a", "b", 10)])
    store = Busy(RULES)
    store.start_fill()
    store.push([click("a", "1", 1)])
    store.pushes = 3
    settle(store, ["a"], corrections)
    assert (len(store.read_users(["a"])[0].items), len(store.read_users(["b"])[0].items)) == (0, 4)
    store.push([click("a", "1", 1)])
    store.pushes = 99
    with pytest.raises(StoreError, match="other processes changed the state of the same user 10 times in a row"):
        settle(store, ["a"], corrections)


def test_what_is_undone_is_not_exported_and_does_not_come_back_from_the_tables(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    append(log, click("a", "1", 1), click("a", "2", 2), click("a", "3", 3))
    append(log, undone("a", "1"), merged("a", "b", 2))
    assert export(log, EVENTS, out, reader="nightly").records == 2
    report = prune(log, {EVENTS: Limit(bytes=1)})
    assert report is not None
    assert [deleted.stream for deleted in report.deleted] == [EVENTS]  # corrections stay: the tables need them
    table = pl.read_parquet(out / "*.parquet")
    assert table.select("user_id", "event_id").rows() == [("a", "2"), ("a", "3")]
    append(log, undone("b", "2"))
    corrections = corrections_of(log)
    assert corrections.corrected_frame(table).select("user_id", "event_id").rows() == [("a", "3")]
    append(log, click("a", "1", 1), click("a", "4", 2))
    assert events_frame(log, corrections.corrected_frame).select("user_id", "event_id").rows() == [("b", "4")]
    filled = MemoryStore(RULES)
    refresh(filled, toy_tables(tmp_path / "tables", table.select(frame([]).columns)), log)
    assert [len(state.items) for state in filled.read_users(["a", "b"])] == [1, 1]
    assert export(log, CORRECTIONS, tmp_path / "corrections").records == 3
    (row, *_) = pl.read_parquet(tmp_path / "corrections" / "*.parquet").filter(pl.col("kind") == "merge").to_dicts()
    assert (row["user_id"], row["from_id"]) == ("b", "a")


def test_corrections_come_before_events_of_a_log_of_other_processes(tmp_path: Path) -> None:
    first, second = EventLog(tmp_path), EventLog(tmp_path)
    first.append_now([click("a", "1", 1)])
    second.append_now([merged("a", "b", 5)])
    first.append_now([click("a", "2", 2)])  # happened before the merge and arrives after it: a phone was offline
    store = MemoryStore(RULES)
    refresh(store, toy_tables(tmp_path / "tables", frame([])), tmp_path)
    assert [len(state.items) for state in store.read_users(["a", "b"])] == [0, 2]
    feed = CorrectionFeed(tmp_path)
    assert (feed.known, feed.read(), feed.read()) == (0, 1, 1)
    push_events(store, [click("a", "3", 3)], feed)
    assert [len(state.items) for state in store.read_users(["a", "b"])] == [0, 3]
    assert np.diff(store.read_users(["b"])[0].times).tolist() == [1, 1]
    first.close()
    second.close()


def test_catching_up_mends_what_a_process_pushed_that_did_not_know_a_correction(tmp_path: Path) -> None:
    store = MemoryStore(RULES)
    refresh(store, toy_tables(tmp_path / "tables", frame([])), tmp_path)
    append(tmp_path, merged("a", "b", 9), undone("c", "2"))
    catch_up(store, tmp_path)
    late = [click("a", "1", 5), click("c", "2", 5)]
    append(tmp_path, *late)
    store.push(late)  # by a process that is killed before it hears of the corrections
    catch_up(store, tmp_path)
    assert [len(state.items) for state in store.read_users(["a", "b", "c"])] == [0, 1, 0]


def test_a_push_that_comes_after_a_correction_of_another_process_mends_itself(tmp_path: Path) -> None:
    store, feed, event = MemoryStore(RULES), CorrectionFeed(tmp_path), click("a", "1", 5)
    refresh(store, toy_tables(tmp_path / "tables", frame([])), tmp_path)
    append(tmp_path, event, merged("a", "b", 9))
    catch_up(store, tmp_path)  # nothing reads the event or the merge again
    push_events(store, [event], feed)
    assert [len(state.items) for state in store.read_users(["a", "b"])] == [0, 1]


def test_a_feed_follows_segments_that_grow_end_and_vanish(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    feed = CorrectionFeed(folder)
    assert (feed.read(), CorrectionFeed(None).read()) == (0, 0)
    logs = [EventLog(folder, segment_bytes=size) for size in (1, 1 << 20)]  # one ends each segment at once
    for n in range(1, 21):
        logs[n % 2].append_now([merged(f"a{n}", f"b{n}", 9), undone("u", f"e{n}")])
        assert feed.read() == 2 * n
    assert counted(feed.corrections, click("a7", "x", 5), click("u", "e20", 5)) == [("b7", "x")]
    with (folder / CORRECTIONS / "00000000000000000001-1.log").open("wb") as file:
        file.write(b"no record\n" + line(merged("late", "b", 9)))
    assert feed.read() == 41
    folder.rename(tmp_path / "moved")
    assert feed.read() == 41
    for log in logs:
        log.close()
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / CORRECTIONS).mkdir()
    (tmp_path / "file" / CORRECTIONS / "00000000000000000001-1.log").mkdir()
    with pytest.raises(LogError, match="corrections cannot be read: "):
        CorrectionFeed(tmp_path / "file").read()
