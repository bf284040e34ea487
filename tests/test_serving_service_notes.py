"""What the service notes of its bundle, its items and its store, and when a note ends."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from service_harness import ServiceHarness, service_harness
from toy_service import (
    NOW,
    RULES,
    Nearest,
    ToyFiller,
    ToyShelf,
    broken,
    toy_bundle,
    toy_events,
    toy_settings,
    toy_upsert,
)

from features.errors import BundleError, DataError
from features.interactions import UserStates
from features.schema import DataConfig, EventRules
from features.store.memory import MemoryStore
from recsys.interfaces import Candidates
from serving.state import service as service_module
from serving.state.catalog_updater import CatalogUpdater
from serving.state.service import ServiceState
from serving.state.snapshot import ServingSnapshot

FAILED = "it cannot be added to the bundle; the log of the service says more (RuntimeError: no)"


def notes(harness: ServiceHarness) -> dict[str, str]:
    found: dict[str, str] = harness.client.get("/readyz").json()["notes"]
    return found


@dataclass(frozen=True)
class Clicking(Nearest):
    """Calls `during` once, in its first request."""

    during: Callable[[], object] = lambda: None
    calls: tuple[list[int], ...] = ()

    def recommend(self, states: UserStates, k: int, **options: Any) -> Candidates:
        if not self.calls[0]:
            self.calls[0].append(k)
            self.during()
        return super().recommend(states, k, **options)


def test_an_event_that_comes_while_a_bundle_is_loaded_reaches_the_store_of_its_rules(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        bundle = toy_bundle(tmp_path, fingerprint="toy-2")
        model = Clicking(12, during=lambda: harness.click("eve", "i10"), calls=([],))
        rules = EventRules(positive={"click": None}, seen=("click",))
        data = bundle.data.model_copy(update={"events": rules})
        harness.shelf.put("second", replace(bundle, data=data, recommender=model))
        harness.service.step()
        assert harness.get("eve")["bundle"] == "toy-2"
        assert [item["item_id"] for item in harness.get("eve", 1)["items"]] == ["i9"]
        assert harness.get("eve")["degraded"] == []


def test_the_note_of_a_retriever_is_that_of_the_served_bundle(tmp_path: Path) -> None:
    with service_harness(tmp_path, shelf=ToyShelf(replace(toy_bundle(tmp_path), note="on the CPU"))) as harness:
        assert notes(harness) == {"retriever": "on the CPU"}
        harness.shelf.put("second", toy_bundle(tmp_path, fingerprint="toy-2"))
        harness.service.step()
        assert notes(harness) == {}


def test_pauses_after_refusals_double_up_to_five_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(service_module.time, "monotonic", lambda: clock[0])
    with service_harness(tmp_path) as harness:
        harness.shelf.now = "missing"
        pauses = []
        for _ in range(11):
            harness.service.step()
            pauses.append(notes(harness)["bundle"].partition("; tried again after ")[2])
            clock[0] += 300
        expected = [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
        assert pauses == [f"{seconds} s, and when its files change" for seconds in expected]
        harness.shelf.now = "another"  # its pauses start anew
        harness.service.step()
        assert "tried again after 1 s," in notes(harness)["bundle"]


def test_a_bundle_that_fails_is_logged_with_its_traceback_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [0.0]
    monkeypatch.setattr(service_module.time, "monotonic", lambda: clock[0])
    with service_harness(tmp_path) as harness:
        harness.shelf.put("second", broken(toy_bundle(tmp_path, fingerprint="toy-2")))
        for _ in range(3):
            harness.service.step()
            clock[0] += 300
        said = "its models do not work; train again (RuntimeError: this model does not work)"
        assert f"second failed its first request: {said}" in notes(harness)["bundle"]
        assert [bool(r.exc_info) for r in caplog.records if "failed its first request" in r.getMessage()] == [
            True,
            False,
        ]
        harness.shelf.now = "first"
        harness.service.step()
        harness.shelf.now = "second"
        harness.service.step()
        assert sum(bool(r.exc_info) for r in caplog.records) == 2  # it was served meanwhile: a new refusal


def test_a_refused_bundle_is_not_noted_any_more_when_the_served_one_is_current_again(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.shelf.now = "missing"
        harness.service.step()
        assert "is truncated" in notes(harness)["bundle"]
        harness.shelf.now = "first"
        harness.service.step()
        assert notes(harness) == {}


def test_tables_that_can_be_read_again_are_not_noted_any_more(tmp_path: Path) -> None:
    broken = [True]

    def events(_: DataConfig) -> pl.DataFrame:
        if broken[0]:
            raise DataError("no table")
        return toy_events()

    with service_harness(tmp_path, events=events) as harness:
        assert list(notes(harness)) == ["tables"]
        broken[0] = False
        harness.shelf.put("second", toy_bundle(tmp_path, fingerprint="toy-2"))
        harness.service.step()
        assert notes(harness) == {}
        assert harness.items("ann", 1) == ["i7"]  # ann's events are those of the tables


def test_items_that_are_queued_for_a_bundle_are_noted_until_they_are_added(tmp_path: Path) -> None:
    from test_serving_catalog_updater_failures import Updates, start

    async def scenario() -> None:
        updates = Updates(tmp_path)
        await updates.put("sky")
        assert updates.notes == {}  # put after the start
        bundle = toy_bundle(tmp_path, fingerprint="toy-2")
        updates.updater.swap_bundle(ServingSnapshot.of(bundle, MemoryStore(RULES), lambda: NOW))
        assert updates.notes == {"items": "items that were put before this start or bundle are being embedded"}
        running = await start(updates)
        await updates.until(lambda: not updates.notes)
        assert updates.status("sky") == "live"
        running.cancel()

    asyncio.run(scenario())


def test_a_bundle_without_items_put_since_notes_nothing(tmp_path: Path) -> None:
    found: dict[str, str] = {}
    updater = CatalogUpdater(tmp_path, found, toy_upsert, lambda bundle: None)
    updater.swap_bundle(ServingSnapshot.of(toy_bundle(tmp_path), MemoryStore(RULES), lambda: NOW))
    assert found == {}


def test_the_store_has_the_timeout_and_the_pause_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(service_module, "RedisStore", lambda *given, **named: opened.append((*given, named)))
    service = ServiceState(
        toy_settings(tmp_path, redis_url="redis://somewhere:1/2", store_timeout=0.25, store_pause=7.0),
        load=ToyShelf(None).load,
        current=ToyShelf(None).current,
        filler=ToyFiller(tmp_path),
        upsert=toy_upsert,
        merge=lambda bundle: None,
    )
    service.open()
    assert service._connect is not None
    service._connect(RULES)
    assert opened == [("redis://somewhere:1/2", RULES, {"timeout": 0.25, "pause": 7.0})]
    service.log.close()


def test_a_service_that_is_not_open_has_no_log_and_no_store(tmp_path: Path) -> None:
    shelf = ToyShelf(toy_bundle(tmp_path))
    service = ServiceState(
        toy_settings(tmp_path),
        load=shelf.load,
        current=shelf.current,
        filler=ToyFiller(tmp_path),
        upsert=toy_upsert,
        merge=lambda bundle: None,
    )
    with pytest.raises(Exception, match="the event log is not open: the service is not running"):
        _ = service.log
    assert service.push([]) == ["bundle"]


def test_no_published_bundle_is_noted_without_a_pause(tmp_path: Path) -> None:
    class Empty(ToyShelf):
        def current(self, root: Path) -> Path:
            raise BundleError("nothing is published")

    with service_harness(tmp_path, shelf=Empty(None)) as harness:
        assert notes(harness) == {"bundle": "nothing is published"}


@pytest.mark.parametrize(("positive", "item"), [({"rating": 3.5}, 3.5), ({"click": None}, 1.0), ({}, None)])
def test_the_example_of_the_first_request_has_one_positive_event(
    tmp_path: Path, positive: dict[str, float | None], item: float | None
) -> None:
    with service_harness(tmp_path) as harness:
        bundle = toy_bundle(tmp_path)
        data = bundle.data.model_copy(update={"events": EventRules.model_construct(positive=positive, seen=None)})
        snapshot = replace(harness.service.snapshot, bundle=replace(bundle, data=data, popular=np.array([7, 2])))
        example = harness.service._loader._example(snapshot)
    if item is None:
        assert example.items == ()
        return
    assert (example.items, example.events, example.values.tolist()) == (("i7",), tuple(positive), [item])
    assert example.times.tolist() == [NOW - 1]


def test_without_a_bundle_no_item_is_said_to_be_embedded(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        assert harness.client.put("/v1/items/sky", content=b'{"title": "blue"}').status_code == 202

    async def scenario() -> None:
        found: dict[str, str] = {}
        updater = CatalogUpdater(tmp_path / "log", found, toy_upsert, lambda bundle: None)
        updater.replay(NOW)

        async def embed(bundle: Any, items: Any, puts: Any) -> Any:
            raise AssertionError

        running = asyncio.create_task(updater.run(embed))
        await asyncio.sleep(0.01)
        assert found == {}
        assert updater.state("sky")[1] == "embedding"
        running.cancel()

    asyncio.run(scenario())


def test_of_the_items_put_before_a_bundle_only_hidden_ones_are_hidden_at_once(tmp_path: Path) -> None:
    from test_serving_catalog_updater_failures import Updates

    async def scenario() -> None:
        updates = Updates(tmp_path)
        await updates.put("i1")
        await updates.put("i2", available=False)
        await updates.put("i6", published_at="2100-01-01T00:00:00Z")
        await updates.put("i7", published_at="2000-01-01T00:00:00Z")
        await updates.delete("i8")
        bundle = toy_bundle(tmp_path, fingerprint="toy-2")
        updates.updater.swap_bundle(ServingSnapshot.of(bundle, MemoryStore(RULES), lambda: NOW))
        snapshot = updates.updater.snapshot
        assert snapshot is not None
        assert np.flatnonzero(~snapshot.available).tolist() == [2, 3, 6, 8]  # i3 is not available in the bundle

    asyncio.run(scenario())


def test_the_note_of_a_failing_item_is_right_when_a_change_is_accepted(tmp_path: Path) -> None:
    from test_serving_catalog_updater_failures import Updates, start

    async def scenario() -> None:
        updates = Updates(tmp_path)
        running = await start(updates)
        await updates.put("sky", "poison")
        await updates.until(lambda: updates.status("sky") == "failed")
        assert updates.notes == {"items": f"sky: {FAILED}; retried every 30 s"}
        running.cancel()
        await asyncio.sleep(0)  # nothing is added from here on
        await updates.put("sea")
        assert updates.notes == {"items": f"sky: {FAILED}; retried every 30 s"}
        await updates.delete("sky")
        assert updates.notes == {}

    asyncio.run(scenario())
