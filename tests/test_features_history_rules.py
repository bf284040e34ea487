"""The rules of a history: by hand, and that training, evaluation, refresh and push follow the same ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.config import RunConfig
from experiments.dataset import load_dataset
from features.history_rules import kept, newest_seen, seen_entries, seen_items, short_keys
from features.ids import IdMap, id_keys
from features.instants import DAY
from features.interactions import Interactions
from features.log.corrections import CorrectionFeed
from features.log.event_log import EventLog
from features.log.records import Correction, Event, EventUndone, UsersMerged
from features.schema import EventRules
from features.store.corrections import push_events
from features.store.jobs.refresh import refresh
from features.store.memory import MemoryStore
from features.store.user_state import UserState, states_of_log, states_of_table
from features.tables.event_files import EventFiles


def test_kept_are_the_newest_half_then_positives_then_others() -> None:
    positive = np.array([1, 0, 1, 0, 0, 0, 1, 0], dtype=np.bool_)
    assert np.flatnonzero(kept(positive[:6], np.array([6]), 4)).tolist() == [0, 2, 4, 5]
    assert np.flatnonzero(kept(positive[:6], np.array([6]), 5)).tolist() == [0, 2, 3, 4, 5]  # half of 5 is 2
    assert kept(positive, np.array([6, 2]), 6).all()
    assert np.flatnonzero(kept(positive, np.array([5, 3]), 2)).tolist() == [2, 4, 6, 7]
    assert kept(positive[:0], np.array([0, 0]), 2).tolist() == []


def test_seen_are_the_items_of_the_latest_days() -> None:
    keys = id_keys(["a", "b", "c"])
    owner = np.array([0, 0, 0, 0, 1])
    entries = seen_entries(keys[[0, 1, 0, 2, 1]], np.array([1, 2, 9, 4, 0]) * DAY + 7)
    for limit, expected in ((1, [2, 4]), (2, [3, 2, 4]), (3, [1, 3, 2, 4])):
        assert newest_seen(owner, entries, limit).tolist() == expected
    assert seen_items(entries).tolist() == short_keys(keys[[0, 1, 0, 2, 1]]).tolist()
    assert (entries >> np.uint64(48)).tolist() == [1, 2, 9, 4, 0]


RULES = EventRules(positive={"buy": None, "rate": 3.0}, seen=("buy", "look"), history=6, seen_items=3)


def look_and_buy(n_looks: int) -> list[Event]:
    bought = Event(user_id="u", item_id="bought", event="buy", timestamp=0, event_id="b")
    looks = [
        Event(user_id="u", item_id=f"i{n}", event="look", timestamp=1 + n, event_id=str(n)) for n in range(n_looks)
    ]
    return [bought, *looks]


def test_a_buyer_who_looks_at_many_items_stays_a_buyer() -> None:
    store = MemoryStore(RULES)
    store.start_fill()
    for event in look_and_buy(20):
        store.push([event])
    state = store.read_users(["u"])[0]
    assert state.items == ("bought", "i15", "i16", "i17", "i18", "i19")
    assert state.labels(RULES).positive.tolist() == [True, False, False, False, False, False]
    ids = IdMap(("bought", *(f"i{n}" for n in range(20))))
    positive = np.array([True] + 20 * [False])
    zeros, rows = np.zeros(21, np.int64), np.arange(21)
    log = Interactions.sort(
        zeros, rows, rows, positive, ~positive | True, 1, 21, rules=RULES, item_keys=id_keys(ids.ids)
    )
    states = log.states(np.array([0]), np.array([99])).compact()
    assert states.items.flat.tolist() == [0, 16, 17, 18, 19, 20]
    assert len(states.seen_items().flat) == 3


def test_events_of_unknown_items_take_places_in_a_history_and_are_not_seen_by_a_model() -> None:
    # items of one user in order of time, -1 for one that the catalogue lacks; only the first event is positive
    items = np.array([0, 1, 2, -1, 3, -1, 4])
    zeros, times, seen = np.zeros(7, np.int64), np.arange(7) * DAY, np.ones(7, np.bool_)
    keys = id_keys([f"i{n}" for n in (0, 1, 2, 100, 3, 101, 4)])
    rules = EventRules(positive={"buy": None}, history=4, seen_items=3)
    log = Interactions.sort(zeros, items, times, times == 0, seen, 1, 5, rules=rules, item_keys=keys)
    assert log.items.tolist() == [0, 1, 2, 3, 4]

    def state_at(log: Interactions, time: int) -> tuple[list[int], list[int]]:
        states = log.states(np.array([0]), np.array([time]))
        assert sorted(states.seen_items().compact().flat) == sorted(states.compact().seen_items().flat)
        return states.compact().items.flat.tolist(), sorted(states.seen_items().compact().flat)

    assert state_at(log, 9 * DAY) == (
        [0, 3, 4],
        [3, 4],
    )  # the two newest, the positive one, the newest other; -1 is one
    assert state_at(log, 5 * DAY) == ([0, 2, 3], [2, 3])  # before the unknown item of the fifth day
    assert state_at(log, 5 * DAY + 1) == ([0, 3], [3])
    assert state_at(log.before(5 * DAY), 9 * DAY) == ([0, 2, 3], [2, 3])
    smaller = log.renumbered(np.array([1, -1, -1, 0, -1]), 2)  # items 0 and 3 alone
    assert state_at(smaller, 9 * DAY) == ([1, 0], [0])
    assert state_at(log, 0) == ([], [])
    unknown = log.states(np.array([-1]), np.array([9 * DAY])).compact()
    assert (unknown.items.lengths.tolist(), unknown.seen_items().lengths.tolist()) == ([0], [0])


def test_a_state_is_bounded_whatever_its_user_does() -> None:
    rules = EventRules(positive={"buy": None})
    ((_, data),) = states_of_log(look_and_buy(30_000), rules)
    state = UserState.from_bytes(data)
    assert (len(state.items), len(state.seen)) == (512, 8_000)
    assert state.seen.nbytes < 64 << 10
    assert len(data) < 96 << 10


EVENT = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from(["u", "v"]),
        "item_id": st.sampled_from([f"i{n}" for n in range(8)]),  # i6 and i7 are not in the items table
        "event": st.sampled_from(["buy", "rate", "look", "share"]),
        "timestamp": st.integers(0, 4).map(lambda day: day * DAY + 5),
        "value": st.sampled_from([None, 2.0, 4.0]),
    }
)


CORRECTION: st.SearchStrategy[Correction] = st.one_of(
    st.builds(
        lambda pair, day: UsersMerged(user_id=pair[0], from_id=pair[1], timestamp=day, until=day * DAY),
        st.sampled_from([("u", "v"), ("v", "u")]),
        st.integers(0, 4),
    ),
    st.builds(
        lambda user, n: EventUndone(user_id=user, event_id=f"e{n}", timestamp=0),
        st.sampled_from(["u", "v"]),
        st.integers(0, 30),
    ),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(EVENT, min_size=1, max_size=30),
    st.lists(EVENT, max_size=30),
    st.lists(CORRECTION, max_size=3),
    st.sampled_from([None, 7, 9]),
    st.randoms(),
)
def test_training_refresh_and_push_know_the_same_of_a_user(
    tmp_path_factory: pytest.TempPathFactory,
    table: list[dict[str, Any]],
    logged: list[dict[str, Any]],
    corrections: list[Correction],
    days: int | None,
    dice: Any,
) -> None:
    rules = RULES.model_copy(update={"history_days": days})
    folder = tmp_path_factory.mktemp("data")
    table = [*table, {"user_id": "w", "item_id": "i0", "event": "buy", "timestamp": 0, "value": None}]  # never empty
    events = [Event(**fields, event_id=f"e{n}", order=n % 2) for n, fields in enumerate(logged)]
    config = write_data(folder, table, [*events, *corrections], rules)
    filled, pushed = (MemoryStore(rules, now=lambda: 10 * DAY) for _ in range(2))
    refresh(filled, EventFiles(config.data), folder / "log")
    feed = CorrectionFeed(folder / "log")
    feed.read()
    pushed.start_fill()
    files = EventFiles(config.data)
    for batch in files.batches(files.compare("").since):
        pushed.write_users(states_of_table(feed.corrections.corrected_frame(batch), rules))
    again = [*events, *events]
    dice.shuffle(again)
    for event in again:
        push_events(pushed, [event], feed)
    dataset = load_dataset(config)
    names = sorted(dataset.users.ids)  # a user whose events were all given away is not among them
    assert all(len(store.read_users([u])[0].items) == 0 for store in (filled, pushed) for u in {"u", "v"} - {*names})
    states = dataset.events.states(dataset.users.rows(names), np.full(len(names), 10 * DAY)).compact()
    for row, (a, b) in enumerate(zip(filled.read_users(names), pushed.read_users(names), strict=True)):
        assert (a.items, a.events, a.times.tolist(), a.seen.tolist()) == (
            b.items,
            b.events,
            b.times.tolist(),
            b.seen.tolist(),
        )
        known = np.array([item in dataset.catalog.ids for item in a.items], dtype=np.bool_)
        labels = a.labels(rules)
        part = slice(states.items.begin[row], states.items.end[row])
        items = [dataset.catalog.ids.ids[i] for i in states.items.flat[part]]
        assert items == [item for item in a.items if item in dataset.catalog.ids]
        assert states.times[part].tolist() == a.times[known].tolist()
        assert states.positive[part].tolist() == labels.positive[known].tolist()
        assert states.types is not None
        assert states.types[part].tolist() == labels.types[known].tolist()
        seen = states.seen_items()
        seen_ids = {dataset.catalog.ids.ids[i] for i in seen.flat[seen.begin[row] : seen.end[row]]}
        in_catalog = np.isin(seen_items(a.seen), short_keys(id_keys(dataset.catalog.ids.ids)))
        assert sorted(short_keys(id_keys(seen_ids))) == sorted(seen_items(a.seen)[in_catalog])


def write_data(
    folder: Path, table: list[dict[str, Any]], events: Sequence[Event | Correction], rules: EventRules
) -> RunConfig:
    """Tables, a log, and the configuration that reads both."""
    frame = pl.DataFrame(table, schema_overrides={"value": pl.Float64})
    times = pl.col("timestamp").cast(pl.Datetime("us", "UTC"))
    frame.with_columns(times).write_parquet(folder / "events.parquet")
    pl.DataFrame({"item_id": [f"i{n}" for n in range(6)], "title": "t"}).write_parquet(folder / "items.parquet")
    log = EventLog(folder / "log")
    for event in [*events, *events[::3]]:  # each in a request of its own; some are sent twice
        log.append_now([event])
    log.close()
    data = {"source": "folder", "path": str(folder), "log": str(folder / "log"), "events": rules.model_dump()}
    sections = {"data": data, "split": {"kind": "time"}, "towers": {"history": 3}}
    return RunConfig.model_validate({"name": "test", **sections})
