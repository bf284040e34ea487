"""What users were shown, in the feature store: one contract for memory and servers."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from test_features_store import SERVERS

from features.ids import id_keys
from features.log.corrections import Corrections
from features.log.records import Event, UsersMerged
from features.schema import EventRules
from features.store.base import FeatureStore
from features.store.corrections import settle
from features.store.memory import MemoryStore
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer
from features.store.redis_users import RedisUsers
from features.store.user_state import Shown

RULES = EventRules(positive={"buy": None})
NAMES = [f"i{n}" for n in range(1_000)]
NAME_OF = dict(zip(id_keys(NAMES).tolist(), NAMES, strict=True))


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, RedisServer]]:
    binaries = {name: find() for name, find in SERVERS.items()}
    running = {name: RedisServer(binary=binary) for name, binary in binaries.items() if binary}
    yield running
    for server in running.values():
        server.stop()


@pytest.fixture(params=["memory", *SERVERS])
def store(request: pytest.FixtureRequest, servers: dict[str, RedisServer]) -> Iterator[FeatureStore]:
    if request.param == "memory":
        memory = MemoryStore(RULES)
        fill(memory)
        yield memory
        return
    if request.param not in servers:
        pytest.skip(f"{request.param} is not installed: pip install -e .[dev]")
    store = RedisStore(servers[request.param].url, RULES, timeout=5)
    store._requests.run(lambda client: client.flushall())
    fill(store)
    yield store
    store.close()


def fill(store: FeatureStore) -> None:
    """Begin another generation, and serve it."""
    mark = store.start_fill()
    assert store.advance(store.watermark(), replace(mark, tables="t", filled=True))


def shown(store: FeatureStore, user: str = "u") -> list[tuple[str, int]]:
    """(item, time) of the showings of a user, as the store keeps them."""
    (state,) = store.read_users([user], shown=True)
    return [(NAME_OF[key], at) for key, at in zip(state.shown.keys.tolist(), state.shown.times.tolist(), strict=True)]


def test_a_showing_takes_16_bytes_the_key_of_the_item_and_the_time() -> None:
    data = Shown.of(["i1", "i2"], 1_700_000_000_000_000).to_bytes()
    time_bytes = (1_700_000_000_000_000).to_bytes(8, "little")
    assert data == b"".join(int(key).to_bytes(8, "little") + time_bytes for key in id_keys(["i1", "i2"]))
    assert Shown.from_bytes(data + b"half").to_bytes() == data
    assert Shown.from_bytes(None).to_bytes() == b""


def test_showings_are_kept_in_the_order_in_which_they_were_added(store: FeatureStore) -> None:
    store.add_shown("u", Shown.of(["i1", "i2"], 5), 1)
    store.add_shown("ümlaut user", Shown.of(["i9"], 6), 1)
    store.add_shown("u", Shown.of(["i2"], 7), 1)
    assert shown(store) == [("i1", 5), ("i2", 5), ("i2", 7)]
    assert shown(store, "ümlaut user") == [("i9", 6)]
    assert shown(store, "nobody") == []
    assert len(store.read_users(["u"])[0].shown.keys) == 0  # they are read only where they are asked for


def test_showings_come_with_the_states_of_their_users(store: FeatureStore) -> None:
    store.push([Event(user_id=user, item_id=f"i{n}", event="buy", timestamp=n) for n, user in enumerate("abc")])
    store.add_shown("c", Shown.of(["i7"], 9), 1)
    store.add_shown("x", Shown.of(["i8"], 9), 1)
    states = store.read_users(["a", "x", "c"], shown=True)
    assert [state.items for state in states] == [("i0",), (), ("i2",)]
    assert [state.shown.keys.tolist() for state in states] == [[], id_keys(["i8"]).tolist(), id_keys(["i7"]).tolist()]
    assert {*store.users()} == {"a", "b", "c"}  # what a user was shown is no state
    assert sorted(store.recent_users(9)) == ["a", "b", "c"]


def test_the_newest_500_showings_are_kept(store: FeatureStore) -> None:
    for at in range(6):
        store.add_shown("u", Shown.of(NAMES[100 * at : 100 * at + 99], at), 1)
    expected = [(name, at) for at in range(6) for name in NAMES[100 * at : 100 * at + 99]]
    assert shown(store) == expected[-500:]


def test_showings_are_forgotten_after_their_days(store: FeatureStore) -> None:
    store.add_shown("long", Shown.of(["i1"], 1), 0.5)
    store.add_shown("short", Shown.of(["i1"], 1), 0.05 / 86_400)
    deadline = time.monotonic() + 30
    while shown(store, "short"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert shown(store, "long") == [("i1", 1)]
    store.add_shown("short", Shown.of(["i2"], 2), 0.5)
    assert shown(store, "short") == [("i2", 2)]


def test_showings_stay_when_another_generation_is_served_and_swept(store: FeatureStore) -> None:
    store.add_shown("u", Shown.of(["i1"], 1), 1)
    fill(store)
    store.sweep()
    assert shown(store) == [("i1", 1)]


def test_showings_up_to_a_time_are_given_to_another_user(store: FeatureStore) -> None:
    store.add_shown("new", Shown.of(["i0"], 2), 1)
    for at, name in ((3, "i1"), (4, "i2"), (5, "i3")):
        store.add_shown("anon", Shown.of([name], at), 1)
    for _ in range(2):  # again changes nothing
        store.move_shown([("anon", "new", 4)])
        assert (shown(store, "anon"), shown(store, "new")) == ([("i3", 5)], [("i0", 2), ("i1", 3), ("i2", 4)])
    store.move_shown([("nobody", "new", 9), ("anon", "other", 9)])
    assert (shown(store, "anon"), shown(store, "other"), len(shown(store, "new"))) == ([], [("i3", 5)], 3)


def test_moved_showings_are_bounded_and_forgotten_too(store: FeatureStore) -> None:
    store.add_shown("new", Shown.of(NAMES[:300], 1), 0.5)
    store.add_shown("anon", Shown.of(NAMES[300:600], 2), 0.05 / 86_400 * 20)
    store.move_shown([("anon", "new", 2)])
    assert shown(store, "new") == [*((name, 1) for name in NAMES[100:300]), *((name, 2) for name in NAMES[300:600])]
    if isinstance(store, RedisStore):
        ttl: Any = store._requests.run(lambda client: client.pttl(store._keys.shown("new")))
        assert 86_400_000 / 4 < ttl <= 86_400_000 / 2, "the later end of both"


def test_a_merge_gives_showings_to_the_owner(store: FeatureStore) -> None:
    store.add_shown("a", Shown.of(["i1"], 10), 1)
    store.add_shown("a", Shown.of(["i2"], 20), 1)
    store.add_shown("a", Shown.of(["i3"], 30), 1)
    records = [
        UsersMerged(user_id="b", from_id="a", timestamp=15, until=15),
        UsersMerged(user_id="c", from_id="a", timestamp=25, until=25),
        UsersMerged(user_id="d", from_id="b", timestamp=26, until=26),  # what `a` had by 15 is now of `d`
    ]
    settle(store, ["a", "b"], Corrections(records))
    assert {user: shown(store, user) for user in "abcd"} == {
        "a": [("i3", 30)],
        "b": [],
        "c": [("i2", 20)],
        "d": [("i1", 10)],
    }


def test_states_and_showings_are_read_in_one_round_trip(servers: dict[str, RedisServer]) -> None:
    store = RedisStore(servers["redis"].url, RULES, timeout=5)
    fill(store)
    store.add_shown("u", Shown.of(["i1"], 1), 1)
    shown(store)  # from here on the generation is known
    run, calls = store._requests.run, list[str]()

    def counting(work: Callable[[Any], Any]) -> Any:
        calls.append("call")
        return run(work)

    store._requests.run = counting  # type: ignore[method-assign]
    assert shown(store) == [("i1", 1)]
    assert len(calls) == 1
    store.close()


@pytest.mark.parametrize("user", ["a*b", "a:b", "shown:b", "é"])
def test_erasure_finds_and_deletes_the_showings_of_one_user(servers: dict[str, RedisServer], user: str) -> None:
    store = RedisStore(servers["redis"].url, RULES, timeout=5)
    store._requests.run(lambda client: client.flushall())
    others = ["axb", "ab", "b", "x:shown:b", "e"]
    for name in (*others, user):  # no state, no watermark: nothing but showings
        store.add_shown(name, Shown.of(["i1", "i2"], 5), 1)
    users = RedisUsers(servers["redis"].url)
    (held,) = users.find(user)
    assert (held.state, held.recent, held.keys) == (None, False, (store._keys.shown(user),))
    assert held.shown.keys.tolist() == id_keys(["i1", "i2"]).tolist()
    users.erase(user)
    assert users.find(user) == []
    names: Any = store._requests.run(lambda client: client.keys("*"))
    assert sorted(key.decode() for key in names) == sorted(store._keys.shown(name) for name in others)
    users.close()
    store.close()
