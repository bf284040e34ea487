"""Events and users that are too old for `EventRules.history_days`: by hand, in memory and on a server."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from features.history_rules import seen_items, short_keys
from features.ids import id_keys
from features.instants import DAY, now_micros
from features.interactions import Interactions
from features.log.records import Event
from features.schema import EventRules
from features.store.base import FeatureStore, schema_hash
from features.store.memory import MemoryStore
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer
from features.store.user_state import UserState, UserStateStatus, states_of_log

RULES = EventRules(positive={"buy": None}, history_days=10)
HOUR = DAY // 24
TODAY = 20_000 * DAY + 12 * HOUR


def buy(item: str, at: int, user: str = "u") -> Event:
    return Event(user_id=user, item_id=item, event="buy", timestamp=at)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    running = RedisServer()
    yield running
    running.stop()


MakeStore = Callable[[EventRules, Callable[[], int]], FeatureStore]


@pytest.fixture(params=["memory", "redis"])
def make(request: pytest.FixtureRequest, server: RedisServer) -> MakeStore:
    """Makes an empty store with rules and a clock, whose filling has ended."""

    def made(rules: EventRules, now: Callable[[], int]) -> FeatureStore:
        store: FeatureStore = MemoryStore(rules, now)
        if request.param == "redis":
            store = RedisStore(server.url, rules, timeout=5, now=now)
            store._requests.run(lambda client: client.flushall())
        mark = store.start_fill()
        assert store.advance(mark, type(mark)({}, "t", mark.fill))
        return store

    return made


def seen_of(state: UserState, items: list[str]) -> set[str]:
    keys = seen_items(state.seen).tolist()
    return {item for item, key in zip(items, short_keys(id_keys(items)).tolist(), strict=True) if key in keys}


def test_what_is_older_no_longer_counts_when_it_is_read(make: MakeStore) -> None:
    start, clock = now_micros(), [0]
    clock[0] = start
    store = make(RULES, lambda: clock[0])
    store.push([buy("a", start - 4 * DAY), buy("b", start - DAY), buy("c", start)])
    expected = ((0, "abc"), (5, "abc"), (7, "bc"), (9.5, "c"))
    for days, items in expected:
        clock[0] = start + int(days * DAY)
        state = store.read_users(["u"])[0]
        assert ("".join(state.items), state.status) == (items, UserStateStatus.PRESENT)
        assert seen_of(state, ["a", "b", "c"]) >= {*items}  # to the end of the day
    clock[0] = start + 12 * DAY
    state = store.read_users(["u"])[0]
    assert (state.items, state.seen.tolist(), state.status) == ((), [], UserStateStatus.STALE)
    assert store.read_users(["nobody"])[0].status is UserStateStatus.MISSING
    store.push([buy("d", clock[0])])
    state = store.read_users(["u"])[0]
    assert (state.items, state.status) == (("d",), UserStateStatus.PRESENT)


def test_an_older_event_does_not_take_the_place_of_a_newer_one(make: MakeStore) -> None:
    now = now_micros()
    store = make(RULES, lambda: now)
    store.push([buy("new", now)])
    store.push([buy("late", now - DAY), buy("too late", now - 11 * DAY)])
    assert store.read_users(["u"])[0].items == ("late", "new")


def test_idle_users_leave_the_server(server: RedisServer) -> None:
    now = now_micros()
    store = RedisStore(server.url, RULES, timeout=5)
    store._requests.run(lambda client: client.flushall())
    mark = store.start_fill()
    old = [buy("a", now - 11 * DAY, "idle"), buy("a", -5, "before 1970"), buy("a", now - 10 * DAY + 10**6, "soon")]
    store.write_users(states_of_log([*old, buy("a", now - DAY, "active")], RULES), mark.fill)
    assert sorted(store.users()) == ["active", "soon"]
    store.push([buy("b", now, "active")])

    def remaining(user: str) -> float:
        milliseconds: int = store._requests.run(lambda client: client.pttl(store._keys.user(mark.fill, user)))
        return milliseconds / 86_400_000

    assert remaining("active") == pytest.approx(10, abs=0.01)
    while "soon" in store.users():
        time.sleep(0.05)
    store.change_users(["active"], lambda user, data: None)
    assert not list(store.users())
    store.close()


def test_without_a_limit_states_stay(server: RedisServer) -> None:
    rules = RULES.model_copy(update={"history_days": None})
    store = RedisStore(server.url, rules, timeout=5)
    mark = store.start_fill()
    store.write_users(states_of_log([buy("a", 5)], rules), mark.fill)
    assert store._requests.run(lambda client: client.pttl(store._keys.user(mark.fill, "u"))) == -1
    assert schema_hash(rules) != schema_hash(RULES)
    store.close()


def test_training_and_evaluation_forget_alike() -> None:
    times = np.array([TODAY - 11 * DAY, TODAY - 10 * DAY - HOUR, TODAY - 9 * DAY, TODAY])
    zeros, rows, every = np.zeros(4, np.int64), np.arange(4), np.ones(4, np.bool_)
    keys = id_keys(["a", "b", "c", "d"])
    log = Interactions.sort(zeros, rows, times, every, every, 1, 4, rules=RULES, item_keys=keys)
    states = log.states(np.array([0, 0]), np.array([TODAY + 1, TODAY + 30 * DAY]))
    assert sorted(states.seen_items()[:1].compact().flat) == [1, 2, 3]  # b: its day counts to its end
    compact = states.compact()
    assert compact.items.flat.tolist() == [2, 3]
    assert compact.items.lengths.tolist() == [2, 0]
    assert compact.seen_items().lengths.tolist() == [3, 0]
    store = MemoryStore(RULES, lambda: TODAY + 1)
    store.start_fill()
    store.push([buy(item, int(at)) for item, at in zip("abcd", times, strict=True)])
    state = store.read_users(["u"])[0]
    assert state.items == ("c", "d")
    assert seen_of(state, ["a", "b", "c", "d"]) == {"b", "c", "d"}
