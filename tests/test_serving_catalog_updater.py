"""Items put and deleted while the service runs: when they become searchable, and that deleted items never return."""

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from service_harness import GREEN_PNG, ServiceHarness, b64, service_harness
from toy_service import NOW, ToyBundle, ToyShelf, ToyWords, toy_bundle, toy_encoders, toy_upsert, with_contents

from features.log.reader import read
from features.log.records import ITEMS, ItemDeleted, ItemPut
from recsys.retrieval.filters import Filter
from serving.state import catalog_updater
from serving.state.snapshot import ServingSnapshot

NOT_ADDED = "it cannot be added to the bundle; the log of the service says more (RuntimeError: {})"


def put(harness: ServiceHarness, item: str, **fields: Any) -> Any:
    response = harness.client.put(f"/v1/items/{item}", content=orjson.dumps(fields))
    assert response.status_code == 202, response.text
    return response.json()


def delete(harness: ServiceHarness, item: str) -> None:
    response = harness.client.delete(f"/v1/items/{item}")
    assert (response.status_code, response.json()) == (200, {"item_id": item, "status": "deleted"})


def state(harness: ServiceHarness, item: str) -> Any:
    return harness.client.get(f"/v1/items/{item}").json()


def settled(harness: ServiceHarness, item: str) -> Any:
    """The state of an item once it is no longer embedding."""
    deadline = time.monotonic() + 20
    while (response := state(harness, item))["status"] == "embedding":
        assert time.monotonic() < deadline, response
        time.sleep(0.01)
    return response


def everywhere(harness: ServiceHarness) -> set[str]:
    """Item ids in the responses of all routes."""
    slates = [
        harness.found(text="red green blue", limit=100),
        harness.items("nobody", 100),
        harness.items("ann", 100, "again"),
    ]
    near = harness.client.get("/v1/items/i6/similar?limit=100").json()["items"]
    return {item for items in slates for item in items} | {item["item_id"] for item in near}


def test_an_item_put_is_found_by_its_text_and_image_and_recommended(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        assert put(harness, "sky", title="blue", categories=["new"]) == {
            "item_id": "sky",
            "status": "accepted",
            "new": True,
        }
        assert {k: v for k, v in settled(harness, "sky").items() if k != "fields"} == {
            "item_id": "sky",
            "title": "blue",
            "categories": ["new"],
            "image": None,
            "price": None,
            "audio": None,
            "video": None,
            "available": True,
            "status": "live",
            "failed": [],
        }
        found = harness.post(text="blue", limit=1).json()["items"][0]
        assert (found["item_id"], found["title"], found["near"]) == ("sky", "blue", {"text": 1.0, "image": None})
        assert put(harness, "leaf", image=b64(GREEN_PNG), title="of no colour")["new"]
        assert settled(harness, "leaf")["image"] == "/media/leaf"
        assert harness.found(image=b64(GREEN_PNG), limit=2)[0] == "leaf"
        assert harness.client.get("/media/leaf").content == GREEN_PNG
        near = harness.client.get("/v1/items/leaf/similar?limit=2").json()["items"]
        assert [item["item_id"] for item in near] == ["sky", "i11"]  # toy similarity is by row: sky is 12, leaf is 13
        assert {"sky", "leaf"} <= set(harness.items("nobody", 100))
        harness.click("eve", "leaf")
        assert harness.items("eve", 2) == ["sky", "i11"]
        assert harness.client.get("/v1/about").json()["items"] == 14
        assert harness.client.get("/readyz").json()["status"] == "ready"


def test_a_put_replaces_all_fields_of_an_item(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        assert not put(harness, "i0", title="blue")["new"]
        assert settled(harness, "i0") | {"image": None} == {**state(harness, "i0"), "title": "blue", "categories": []}
        assert (harness.found(text="blue", limit=1), harness.found(text="red", limit=1)) == (["i0"], ["i1"])
        response = harness.post(text="blue", limit=1).json()["items"][0]
        assert (response["title"], response["near"]) == (
            "blue",
            {"text": 1.0, "image": None},
        )  # its image is removed
        assert harness.items("nobody", 1) == ["i0"]  # its events stay
        put(harness, "i0", title="blue", available=False)
        assert "i0" not in everywhere(harness)  # before it is embedded
        assert not settled(harness, "i0")["available"]
        assert "i0" not in everywhere(harness)


def test_an_item_is_hidden_until_its_publication_time(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        later, before = "2999-01-01T00:00:00Z", "2001-01-01T00:00:00Z"
        put(harness, "i0", title="blue", published_at=later)
        assert "i0" not in everywhere(harness)  # before it is embedded
        settled(harness, "i0")
        put(harness, "sky", title="blue", published_at=later)
        settled(harness, "sky")
        assert not {"i0", "sky"} & everywhere(harness)
        put(harness, "i0", title="blue", published_at=before)
        put(harness, "sky", title="blue", published_at=before)
        settled(harness, "i0")
        settled(harness, "sky")
        assert {"i0", "sky"} <= everywhere(harness)


def test_a_deleted_item_is_hidden_from_the_next_response_on(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.click("eve", "i1")
        delete(harness, "i1")
        assert "i1" not in everywhere(harness)
        assert state(harness, "i1")["code"] == "unknown_item"
        for path in ("/v1/items/i1/similar", "/media/i1"):
            assert harness.client.get(path).status_code == 404
        assert harness.client.delete("/v1/items/i1").status_code == 404
        assert harness.client.delete("/v1/items/never").json()["code"] == "unknown_item"
        assert harness.client.get("/v1/users/eve/history").json()["events"][0]["title"] is None
        records = read(tmp_path / "log", stream=ITEMS).records
        assert records == [ItemDeleted(item_id="i1", timestamp=NOW)]
        assert put(harness, "i1", title="blue")["new"]
        assert settled(harness, "i1")["status"] == "live"
        assert harness.found(text="blue", limit=1) == ["i1"]
        assert "i1" in everywhere(harness)


class Slow(ToyWords):
    """Text encoder that waits for a gate before it encodes items."""

    def __init__(self, limits: Any, gate: threading.Event) -> None:
        super().__init__(limits)
        self.gate = gate

    def encode(self, contents: Any, *, task: Any = "document", progress: Any = None) -> Any:
        if task == "document":
            assert self.gate.wait(20)
        return super().encode(contents, task=task, progress=progress)


def slow(gate: threading.Event) -> Any:
    return lambda config, decoders, limits, models: {
        **toy_encoders(config, decoders, limits, models),
        "text": Slow(limits, gate),
    }


def test_changes_during_embedding_apply_in_the_order_of_the_log(tmp_path: Path) -> None:
    gate = threading.Event()
    with service_harness(tmp_path, encoders=slow(gate), search_wait=0.1) as harness:
        put(harness, "gone", title="blue")
        put(harness, "back", title="blue")
        put(harness, "turned", title="blue")
        assert (state(harness, "gone")["status"], state(harness, "gone")["title"]) == ("embedding", "blue")
        assert harness.client.get("/v1/items/gone/similar").json()["code"] == "not_live_yet"
        delete(harness, "gone")
        assert state(harness, "gone")["code"] == "unknown_item"
        delete(harness, "back")
        assert put(harness, "back", title="red")["new"]
        assert not put(harness, "turned", title="green")["new"]
        gate.set()
        assert settled(harness, "back")["title"] == "red"
        assert settled(harness, "turned")["title"] == "green"
        assert "back" in harness.found(text="red", limit=2)
        assert harness.found(text="green", limit=1) == ["turned"]
        assert "gone" not in everywhere(harness)


def test_appends_that_complete_out_of_order_apply_in_the_order_of_the_log(tmp_path: Path) -> None:
    updater = catalog_updater.CatalogUpdater(tmp_path, {}, toy_upsert, lambda bundle: None)

    class Late:
        """Log whose first append completes after the second."""

        def __init__(self) -> None:
            self.second = asyncio.Event()

        def ends(self, stream: str) -> dict[str, int]:
            return {"a": 1}

        async def append(self, records: Any, within: Any = None) -> None:
            if isinstance(records[0], ItemPut):
                await self.second.wait()
            else:
                self.second.set()

    async def run() -> None:
        log: Any = Late()
        first = asyncio.create_task(updater.accept(log, ItemPut(item_id="x", timestamp=1, fields={})))
        await asyncio.sleep(0)  # it is in the queue
        await updater.accept(log, ItemDeleted(item_id="x", timestamp=2))
        await first

    asyncio.run(run())
    assert not updater.has_item("x")


def test_a_new_bundle_gets_an_item_that_is_being_embedded(tmp_path: Path) -> None:
    gate = threading.Event()
    with service_harness(tmp_path, encoders=slow(gate)) as harness:
        put(harness, "sky", title="blue")
        harness.shelf.put("second", with_contents(toy_bundle(tmp_path, 20, fingerprint="toy-2")))
        harness.service.step()
        gate.set()
        assert settled(harness, "sky")["status"] == "live"
        response = harness.post(text="blue", limit=1).json()
        assert (response["bundle"], response["items"][0]["item_id"]) == ("toy-2", "sky")
        assert harness.client.get("/v1/about").json()["items"] == 21


def test_puts_and_deletes_survive_a_restart_and_a_new_bundle(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        put(harness, "sky", title="blue")
        put(harness, "late", title="blue green")
        delete(harness, "late")
        delete(harness, "i0")
    with service_harness(tmp_path) as harness:
        assert "i0" not in everywhere(harness)
        assert settled(harness, "sky")["status"] == "live"
        assert harness.found(text="blue", limit=1) == ["sky"]
        assert not {"late", "i0"} & everywhere(harness)
        harness.shelf.put("second", with_contents(toy_bundle(tmp_path, 20, fingerprint="toy-2")))
        harness.service.step()
        assert "i0" not in everywhere(harness)
        assert settled(harness, "sky")["status"] == "live"
        assert harness.post(text="blue", limit=1).json()["bundle"] == "toy-2"
        assert harness.found(text="blue", limit=1) == ["sky"]


def test_an_item_that_the_bundle_holds_unchanged_is_not_embedded_again(tmp_path: Path) -> None:
    texts: list[str] = []

    def encoders(*arguments: Any) -> Any:
        opened = toy_encoders(*arguments)
        opened["text"].read = texts  # type: ignore[attr-defined]
        return opened

    with service_harness(tmp_path, encoders=encoders) as harness:
        put(harness, "sky", title="blue", categories=["even"], price=2)
        settled(harness, "sky")
        trained: ToyBundle = harness.service.snapshot.bundle  # as if trained on this log
    assert texts.count("blue. even") == 1
    trained = replace(trained, fingerprint="toy-2")
    with service_harness(tmp_path, shelf=ToyShelf(trained), encoders=encoders) as harness:
        assert settled(harness, "sky")["status"] == "live"
        assert harness.found(text="blue", limit=1) == ["sky"]
        assert texts.count("blue. even") == 1
        delete(harness, "sky")
        put(harness, "sky", title="blue", categories=["even"], price=2)
        assert settled(harness, "sky")["status"] == "live"
        assert harness.found(text="blue", limit=1) == ["sky"]
        assert texts.count("blue. even") == 1


def test_parts_that_cannot_be_read_are_reported(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        put(harness, "half", title="blue", image=b64(GREEN_PNG[:40]), audio=b64(b"RIFF"))
        half = settled(harness, "half")
        assert (half["status"], [each["part"] for each in half["failed"]]) == ("live", ["image", "audio"])
        assert "cannot be decoded" in half["failed"][0]["reason"]
        assert "cannot be searched by audio" in half["failed"][1]["reason"]
        put(harness, "nothing", image=b64(b"no picture"))
        assert settled(harness, "nothing")["status"] == "failed"
        assert "nothing" in harness.items("nobody", 100)  # recommended all the same


def test_a_failing_encoder_is_reported_and_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_updater, "RETRY_SECONDS", 0.05)
    up = threading.Event()

    class Failing(ToyWords):
        def encode(self, contents: Any, *, task: Any = "document", progress: Any = None) -> Any:
            if any("poison" in str(content) for content in contents) or (task == "document" and not up.is_set()):
                raise RuntimeError("the model is away")
            return super().encode(contents, task=task, progress=progress)

    with service_harness(tmp_path, encoders=lambda c, d, limits, m: {"text": Failing(limits)}) as harness:
        put(harness, "sky", title="blue")
        put(harness, "poison", title="poison")
        deadline = time.monotonic() + 20
        while state(harness, "sky")["status"] != "failed":
            assert time.monotonic() < deadline
        assert state(harness, "sky")["failed"] == [{"part": "item", "reason": NOT_ADDED.format("the model is away")}]
        ready = harness.client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert "the model is away" in ready.json()["notes"]["items"]
        up.set()
        while state(harness, "sky")["status"] != "live":  # although the other item keeps failing
            assert time.monotonic() < deadline
            time.sleep(0.01)
        delete(harness, "poison")
        while harness.client.get("/readyz").json()["status"] != "ready":
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_one_failing_item_does_not_make_all_others_be_embedded_singly(tmp_path: Path) -> None:
    batches: list[int] = []

    class Picky(ToyWords):
        def encode(self, contents: Any, *, task: Any = "document", progress: Any = None) -> Any:
            if task == "document":
                batches.append(len(contents))
            if any("poison" in str(content) for content in contents):
                raise RuntimeError("no")
            return super().encode(contents, task=task, progress=progress)

    gate = threading.Event()

    def opened(*arguments: Any) -> Any:
        gate.wait(20)
        return {"text": Picky(arguments[2])}

    with service_harness(tmp_path, encoders=opened) as harness:
        put(harness, "poison", title="poison")
        for number in range(300):
            put(harness, f"n{number}", title="blue")
        gate.set()
        for item in ("n0", "n299"):
            assert settled(harness, item)["status"] == "live"
        assert state(harness, "poison")["status"] in ("embedding", "failed")
    # turns of four items; at most one batch of 64 and the first batch are embedded item by item
    assert len(batches) < 300 / 4 + 64 + 64


def test_a_delete_also_hides_the_item_in_older_snapshots(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        before = harness.service.snapshot
        assert before is not None
        filtered = before.with_filter(Filter())
        harness.service.catalog_updater.swap_bundle(
            ServingSnapshot.of(with_contents(toy_bundle(tmp_path, fingerprint="toy-2")), before.store)
        )
        put(harness, "sky", title="blue")
        settled(harness, "sky")
        upserted = harness.service.snapshot
        put(harness, "sea", title="green")
        settled(harness, "sea")
        delete(harness, "i6")
        for snapshot in (before, filtered, upserted, harness.service.snapshot):
            assert snapshot is not None
            assert not snapshot.allowed()[6]


def test_a_bundle_without_contents(tmp_path: Path) -> None:
    with service_harness(tmp_path, shelf=ToyShelf(toy_bundle(tmp_path))) as harness:
        put(harness, "sky", title="blue", image=b64(GREEN_PNG))
        assert settled(harness, "sky")["status"] == "live"
        assert "sky" in harness.items("nobody", 100)


def test_a_log_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service_harness(tmp_path) as harness:
        delete(harness, "i11")
        monkeypatch.setattr("os.write", lambda fd, data: (_ for _ in ()).throw(OSError("no space left")))
        assert harness.client.delete("/v1/items/i0").json()["code"] == "unavailable"
        assert harness.client.put("/v1/items/sky", content=b"{}").status_code == 503
        monkeypatch.undo()
        assert state(harness, "i0")["status"] == "live"
        assert state(harness, "sky")["code"] == "unknown_item"
        assert "i0" in everywhere(harness)


NAMES = st.sampled_from(["i0", "i1", "p", "q"])
STEPS = st.lists(st.tuples(st.sampled_from(["put", "hidden", "delete", "look"]), NAMES), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS)
# edges that random steps seldom reach: an item deleted or hidden while its put is embedded, and put again; row 0
@example(
    steps=[("put", "p"), ("delete", "p"), ("put", "p"), ("delete", "p"), ("look", "p"), ("put", "q"), ("look", "p")]
)
@example(steps=[("put", "p"), ("hidden", "p"), ("put", "p"), ("delete", "p"), ("look", "p")])
@example(steps=[("put", "p"), ("look", "p"), ("delete", "p"), ("put", "q"), ("look", "p"), ("delete", "q")])
@example(steps=[("delete", "i0"), ("look", "i0"), ("put", "p"), ("look", "i0"), ("put", "i0"), ("delete", "i0")])
def test_no_response_ever_holds_a_deleted_item(changing: ServiceHarness, steps: list[tuple[str, str]]) -> None:
    gone = getattr(changing, "gone", {"p", "q"})
    for step, name in steps:
        if step == "delete":
            assert changing.client.delete(f"/v1/items/{name}").status_code == (404 if name in gone else 200)
            gone.add(name)
        elif step != "look":
            assert put(changing, name, title="blue", available=step == "put")["new"] == (name in gone)
            gone.discard(name)
        assert not gone & everywhere(changing)
    changing.gone = gone  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceHarness]:
    with service_harness(tmp_path_factory.mktemp("changing")) as harness:
        yield harness
