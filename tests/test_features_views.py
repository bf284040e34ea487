"""Views that `data.events` does not name: logged, and in no history, not seen and not trained on."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from service_harness import service_harness
from test_experiments_train import toy_config, write_tables
from toy_service import ToyShelf, toy_bundle, toy_events, toy_tables, with_contents

from experiments.config import load_config
from experiments.dataset import load_dataset
from features.history_rules import without_ignored
from features.log.event_log import EventLog
from features.log.reader import events_frame
from features.log.records import Event
from features.schema import EventRules
from features.store.base import schema_hash
from features.store.jobs.refresh import refresh
from features.store.memory import MemoryStore
from features.store.user_state import UserState, states_of_log

UNNAMED = EventRules(positive={"take": None})
NAMED = EventRules(positive={"take": None, "view": None})
START = 1_700_000_000_000_000


def event(user: str, item: str, kind: str, at: int = 0) -> Event:
    return Event(user_id=user, item_id=item, event=kind, timestamp=START + at, event_id=f"{user}{item}{kind}{at}")


def test_states_hold_no_views() -> None:
    events = [event("u", "a", "view"), event("u", "b", "take", 1), event("v", "a", "view", 2)]
    assert [user for user, _ in states_of_log(events, UNNAMED)] == ["u"]
    state = UserState.of(events[:2], UNNAMED)
    assert (state.items, len(state.seen)) == (("b",), 1)
    assert UserState.of(events[2:], UNNAMED).items == ()
    assert UserState.of(events[:2], NAMED).items == ("a", "b")
    assert UserState.of([event("u", "a", "hover")], UNNAMED).items == ("a",)  # other types count as before


def test_a_store_of_the_rules_of_before_is_filled_anew() -> None:
    """Its states may hold views as seen items. The store of rules that name views stays as it is."""
    assert schema_hash(NAMED) == "49ef062babaa"
    assert schema_hash(UNNAMED) != "f1a4ba28903a"


def test_tables_and_log_agree(tmp_path: Path) -> None:
    """A refresh of tables with views and a log with views, against the same without them."""
    rows = toy_events([("ann", "i1", 5.0), ("ann", "i2", 5.0), ("bob", "i3", 5.0)])
    views = rows.with_columns(pl.lit("view").alias("event"), pl.lit("x").alias("item_id"))
    rules = EventRules(positive={"rating": 3.5})
    log = EventLog(tmp_path / "log")
    log.append_now([event("ann", "i7", "view"), event("new", "i7", "view"), event("bob", "i7", "rating", 5)])
    log.close()
    stores = []
    for name, table in (("with", pl.concat([rows, views])), ("without", rows)):
        store = MemoryStore(rules)
        refresh(store, toy_tables(tmp_path / name, table), tmp_path / "log")
        stores.append(store)
    users = ["ann", "bob", "new"]
    states = [[(s.items, s.events, s.seen.tolist()) for s in store.read_users(users)] for store in stores]
    assert states[0] == states[1]
    assert [items for items, _, _ in states[0]] == [("i1", "i2"), ("i3", "i7"), ()]
    assert sorted(stores[0].users()) == ["ann", "bob"]
    assert len(events_frame(tmp_path / "log")) == 3


def test_training_reads_no_views_of_tables_and_log(tmp_path: Path) -> None:
    write_tables(tmp_path / "data")
    config = load_config(toy_config(tmp_path), {})
    log = EventLog(tmp_path / "log")
    log.append_now([event("u0", "i3", "take")])
    log.close()
    before = load_dataset(config)
    log = EventLog(tmp_path / "log")
    log.append_now([event("u0", "i4", "view", 1), event("nobody else", "i4", "view", 2)])
    log.close()
    (table,) = (tmp_path / "data").glob("events.*")
    tables = pl.read_csv(table)
    views = tables.head(5).with_columns(pl.lit("view").alias("event"))
    pl.concat([tables, views]).write_csv(table)
    after = load_dataset(config)
    assert (len(after.events), after.hash, after.users.ids) == (len(before.events), before.hash, before.users.ids)
    np.testing.assert_array_equal(after.events.items, before.events.items)
    said = [note.split(" are in no history")[0] for note in after.report.notes if "'view'" in note]
    assert said == ["events.csv: 'view' (5)", "event log: 'view' (2)"]


def post(harness: Any, kind: str) -> Any:
    return harness.client.post("/v1/events", json={"user_id": "eve", "item_id": "i1", "event": kind})


@pytest.mark.parametrize("seen", [None, ("rating", "click")])
def test_the_service_accepts_views_and_shows_the_items_again(tmp_path: Path, seen: tuple[str, ...] | None) -> None:
    bundle = with_contents(toy_bundle(tmp_path))
    rules = bundle.data.events.model_copy(update={"seen": seen})
    bundle = bundle.__class__(**{**bundle.__dict__, "data": bundle.data.model_copy(update={"events": rules})})
    with service_harness(tmp_path, shelf=ToyShelf(bundle)) as harness:
        answer = post(harness, "view")
        assert answer.status_code == 202
        (result,) = answer.json()["results"]
        assert (result["status"], answer.json()["degraded"]) == ("accepted", [])
        assert result["reason"] == (
            "data.events does not name the type 'view': it tells outcomes, and is in no history and not seen"
        )
        assert harness.items("eve") == ["i0", "i1", "i2", "i4"]
        assert harness.client.get("/v1/users/eve/history").json()["total"] == 0
        assert "eve" not in harness.client.get("/v1/users").json()["users"]
        refused = post(harness, "veiw")
        assert (refused.status_code, "send 'view'" in refused.json()["results"][0]["reason"]) == (422, True)
        assert post(harness, "hover").status_code == 202
        assert harness.items("eve") == (["i0", "i2", "i4", "i6"] if seen is None else ["i0", "i1", "i2", "i4"])
    assert events_frame(tmp_path / "log").get_column("event").to_list() == ["view", "hover"]


def test_a_named_view_is_an_ordinary_event() -> None:
    frame = pl.DataFrame({"event": ["view", "take"]})
    assert without_ignored(frame, NAMED).height == 2
    assert without_ignored(frame, UNNAMED).get_column("event").to_list() == ["take"]
    assert without_ignored(frame.clear(), UNNAMED).height == 0
