"""A damaged value of one user: its user is answered as degraded, all others are not touched."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from features.errors import StoreError
from features.log.corrections import Corrections
from features.log.records import Event, UsersMerged
from features.schema import EventRules
from features.store.corrections import settle
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer
from features.store.user_state import UserState, joined, readable, states_of_log

RULES = EventRules(positive={"buy": None})
DAMAGED = (b"", b"no state", b"12345678" + bytes(range(200)))


def buy(user: str, item: str, at: int) -> Event:
    return Event(user_id=user, item_id=item, event="buy", timestamp=at)


@pytest.fixture
def store() -> Iterator[RedisStore]:
    server = RedisServer()
    opened = RedisStore(server.url, RULES, timeout=5)
    mark = opened.start_fill()
    assert opened.advance(mark, type(mark)({}, "t", mark.fill))
    opened.push([buy(user, "a", 1) for user in ("u", "v", "w")])
    yield opened
    opened.close()
    server.stop()


def damage(store: RedisStore, user: str, data: bytes) -> None:
    mark = store.watermark()
    assert mark is not None
    store._bulk.run(lambda client: client.set(store._keys.user(mark.fill, user), data))


@pytest.mark.parametrize("data", DAMAGED)
def test_it_stops_neither_reads_nor_events_of_others(store: RedisStore, data: bytes) -> None:
    damage(store, "v", data)
    with pytest.raises(StoreError, match="has not written"):
        store.read_users(["v"])
    assert [state.items for state in store.read_users(["u", "w"])] == [("a",), ("a",)]
    store.push([buy(user, "b", 2) for user in ("u", "v", "w")])
    assert [state.items for state in store.read_users(["u", "v", "w"])] == [("a", "b"), ("b",), ("a", "b")]


@pytest.mark.parametrize("data", DAMAGED)
def test_corrections_delete_it(store: RedisStore, data: bytes, tmp_path: Path) -> None:
    damage(store, "v", data)
    merges = [UsersMerged(user_id="u", from_id=user, timestamp=9, until=9) for user in ("v", "w")]
    settle(store, ["v", "w"], Corrections(merges))
    assert sorted(store.users()) == ["u"]
    assert store.read_users(["u"])[0].items == ("a",)


def test_of_several_states_the_readable_ones_are_joined() -> None:
    old, new = (dict(states_of_log([buy("u", item, at)], RULES))["u"] for item, at in (("a", 1), ("b", 2)))
    both, alone, first, same = joined([old, b"damaged!", None, new], [new] * 4, RULES)
    assert UserState.from_bytes(both).items == ("a", "b")
    assert alone == first == same == new
    assert readable(b"damaged!") is None
    assert joined([], [], RULES) == []
