"""The contract of a feature store, run against memory and a real server."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.errors import StoreError
from features.log.records import Event
from features.schema import EventRules
from features.store.base import (
    FeatureStore,
    UserPatch,
    UserStateStatus,
    Watermark,
    pack,
    pack_rows,
    schema_hash,
    user_patches,
)
from features.store.memory import MemoryStore
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer

RULES = EventRules(positive={"rating": 3.5, "buy": None}, seen=("rating", "buy"))
MARK = Watermark({"a.log": 5}, "hash")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    running = RedisServer()
    yield running
    running.stop()


def flushed(server: RedisServer) -> RedisStore:
    store = RedisStore(server.url, RULES, timeout=5)
    store._client.flushall()
    return store


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, server: RedisServer) -> Iterator[FeatureStore]:
    if request.param == "memory":
        yield MemoryStore(RULES)
        return
    store = flushed(server)
    yield store
    store.close()


def event(item: str, at: int, kind: str = "buy", user: str = "u", event_id: str = "", order: int = 0) -> Event:
    return Event(
        user_id=user, item_id=item, event=kind, timestamp=at, event_id=event_id or f"{item}{at}", order=order
    )


def test_history_is_oldest_first_and_seen_follows_the_rules(store: FeatureStore) -> None:
    store.set_watermark(MARK)
    rated = replace(event("c", 3, "rating"), value=4.25)
    store.push([event("b", 2), rated, event("a", 1, "look"), event("x", 1, user="ümlaut user")])
    state, second, unknown = store.read_users(["u", "ümlaut user", "nobody"])
    assert state.items == ("a", "b", "c")
    assert state.events == ("look", "buy", "rating")
    assert state.times.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(state.values, [np.nan, np.nan, 4.25])
    assert state.seen == {"b", "c"}
    assert state.positive(RULES).tolist() == [False, True, True]
    assert (state.status, second.status, unknown.status) == (
        UserStateStatus.PRESENT,
        UserStateStatus.PRESENT,
        UserStateStatus.MISSING,
    )
    assert second.items == ("x",)
    assert (unknown.items, unknown.seen, len(unknown.times)) == ((), frozenset(), 0)


def test_positive_needs_a_value_where_the_rules_have_a_threshold(store: FeatureStore) -> None:
    store.push([event("a", 1, "rating"), replace(event("b", 2, "rating"), value=3.5), event("c", 3, "other")])
    assert store.read_users(["u"])[0].positive(RULES).tolist() == [False, True, False]


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


def test_only_the_newest_events_are_kept_but_all_seen_items(store: FeatureStore) -> None:
    events = [event(f"i{n}", n) for n in range(552)]
    store.push(events[20:])
    store.push(events[:20])
    state = store.read_users(["u"])[0]
    assert state.items == tuple(f"i{n}" for n in range(40, 552))
    assert len(state.seen) == 552


def test_stale_until_filled(store: FeatureStore) -> None:
    store.push([event("a", 1)])
    assert {s.status for s in store.read_users(["u", "v"])} == {UserStateStatus.STALE}
    assert store.watermark() is None
    store.set_watermark(MARK)
    assert store.watermark() == MARK
    assert [s.status for s in store.read_users(["u", "v"])] == [UserStateStatus.PRESENT, UserStateStatus.MISSING]


def test_a_watermark_of_version_0_1_0_is_read() -> None:
    assert Watermark.from_json('{"log": {"a.log": 5}, "tables": "hash", "as_of": 7}') == MARK
    assert Watermark.from_json(MARK.to_json()) == MARK


def test_recent_users(store: FeatureStore) -> None:
    store.push([event("a", 1, user="old"), event("a", 3, user="new"), event("a", 2, user="mid")])
    store.push([event("b", 0, user="new")])
    assert store.recent_users(2) == ["new", "mid"]


def test_other_seen_rules_are_kept_apart_and_other_positive_rules_are_not(store: FeatureStore) -> None:
    store.push([event("a", 1)])
    same = store.with_rules(EventRules(positive={"buy": 2.0}, seen=("buy", "rating")))
    assert same.read_users(["u"])[0].items == ("a",)
    assert same.rules.positive == {"buy": 2.0}
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
    again = [*pushes, *pushes]
    dice.shuffle(again)  # type: ignore[attr-defined]
    for events in again:
        store.push(events)
    for events in pushes:
        memory.push(events)
    for actual, expected in zip(store.read_users(["u", "v"]), memory.read_users(["u", "v"]), strict=True):
        assert (actual.items, actual.events) == (expected.items, expected.events)
        assert actual.times.tolist() == expected.times.tolist()
        assert (actual.seen, actual.status) == (expected.seen, expected.status)
    assert store.recent_users(5) == memory.recent_users(5)
    store.close()


def test_many_users_in_batches(server: RedisServer) -> None:
    store = flushed(server)
    members = {pack(f"i{n}", None, "", "buy", 0, n): n for n in range(100)}
    store.write_users(UserPatch(f"u{n}", members, [f"i{n}" for n in range(100)]) for n in range(120))
    states = store.read_users([f"u{n}" for n in range(120)])
    assert {len(s.items) for s in states} == {100}
    assert {len(s.seen) for s in states} == {100}
    store.close()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["u", "ü"]),
            st.sampled_from(["a", "b\u2028"]),
            st.integers(-2, 2),
            st.none() | st.integers(-(10**9), 10**9).map(lambda n: n / 8),
            st.sampled_from([None, "", "e", "@1"]),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_rows_are_packed_as_single_events_are(rows: list[tuple[str, str, int, float | None, str | None]]) -> None:
    names = ["user_id", "item_id", "timestamp", "value", "event_id"]
    kinds = [pl.String, pl.String, pl.Int64, pl.Float64, pl.String]
    frame = pl.DataFrame(rows, schema=dict(zip(names, kinds, strict=True)), orient="row").with_columns(
        pl.col("timestamp").cast(pl.Datetime("us", "UTC")), pl.lit("buy").alias("event")
    )
    before = [sum((u, t) == (v, s) for v, _, s, _, _ in rows[:i]) for i, (u, _, t, _, _) in enumerate(rows)]
    expected = [
        pack(item, value, event_id or "", "buy", order, at)
        for (_, item, at, value, event_id), order in zip(rows, before, strict=True)
    ]
    assert frame.select(pack_rows()).to_series().to_list() == expected


def test_a_packed_event_byte_for_byte() -> None:
    assert pack("a", 2.5, "", "buy", 3, 17) == "000003\x1fa\x1f2.5\x1f\x1e17\x1fbuy"
    bought = replace(event("a", 17), event_id="", order=3)
    assert user_patches([bought], RULES) == [UserPatch("u", {"000003\x1fa\x1f\x1f\x1e17\x1fbuy": 17}, ("a",))]


def test_an_unreachable_server_is_tried_once_per_pause() -> None:
    clock = [0.0]
    store = RedisStore("redis://user:secret@127.0.0.1:1/0", RULES, pause=1.0, clock=lambda: clock[0])
    with pytest.raises(StoreError, match=r"at redis://127\.0\.0\.1:1/0 does not answer"):
        store.ping()
    with pytest.raises(StoreError, match=r"nothing listens there.*next try is in 1\.00 s"):
        store.with_rules(EventRules(positive={})).read_users(["u"])
    clock[0] = 1.5
    with pytest.raises(StoreError, match="does not answer"):
        store.push([event("a", 1)])
    store.close()


def test_a_full_server_refuses_and_keeps_answering() -> None:
    server = RedisServer(maxmemory="1500kb")
    store = RedisStore(server.url, RULES, timeout=5)
    try:
        pushes = ([event("x" * 500 + str(i), i, user=f"u{n}") for i in range(100)] for n in range(200))
        with pytest.raises(StoreError, match="refuses"):
            list(map(store.push, pushes))
        assert len(store.read_users(["u0"])[0].items) == 100
    finally:
        store.close()
        server.stop()
