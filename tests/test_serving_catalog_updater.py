"""Items put and deleted while the service runs: what is found, when, and what never is again."""

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from service_harness import GREEN_PNG, ServiceHarness, b64, endless, service_harness
from toy_service import NOW, ToyBundle, ToyShelf, ToyWords, toy_bundle, toy_encoders, toy_upsert, with_contents

from features.log.event_log import read
from features.log.item_changes import ItemChanges
from features.log.records import ItemGone, ItemPut
from recsys.retrieval.filters import Filter
from serving.state import catalog_updater as catalog_updater
from serving.state.snapshot import ServingSnapshot


def put(harness: ServiceHarness, item: str, **fields: Any) -> Any:
    said = harness.client.put(f"/v1/items/{item}", content=orjson.dumps(fields))
    assert said.status_code == 202, said.text
    return said.json()


def delete(harness: ServiceHarness, item: str) -> None:
    said = harness.client.delete(f"/v1/items/{item}")
    assert (said.status_code, said.json()) == (200, {"item_id": item, "status": "deleted"})


def state(harness: ServiceHarness, item: str) -> Any:
    return harness.client.get(f"/v1/items/{item}").json()


def settled(harness: ServiceHarness, item: str) -> Any:
    """The state of an item that is embedding no more."""
    until = time.monotonic() + 20
    while (said := state(harness, item))["status"] == "embedding":
        assert time.monotonic() < until, said
        time.sleep(0.01)
    return said


def everywhere(harness: ServiceHarness) -> set[str]:
    """All items that any route answers with."""
    asked = [
        harness.found(text="red green blue", k=100),
        harness.items("nobody", 100),
        harness.items("ann", 100, "again"),
    ]
    near = harness.client.get("/v1/items/i6/similar?k=100").json()["items"]
    return {item for items in asked for item in items} | {item["item_id"] for item in near}


def test_an_item_put_is_found_by_its_words_and_picture_and_shown(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        assert put(harness, "sky", title="blue", categories=["new"]) == {
            "item_id": "sky",
            "status": "accepted",
            "new": True,
        }
        assert settled(harness, "sky") == {
            "item_id": "sky",
            "title": "blue",
            "categories": ["new"],
            "image": None,
            "available": True,
            "status": "live",
            "failed": [],
        }
        found = harness.post(text="blue", k=1).json()["items"][0]
        assert (found["item_id"], found["title"], found["near"]) == ("sky", "blue", {"text": 1.0, "image": None})
        assert put(harness, "leaf", image=b64(GREEN_PNG), title="of no colour")["new"]
        assert settled(harness, "leaf")["image"] == "/media/leaf"
        assert harness.found(image=b64(GREEN_PNG), k=2)[0] == "leaf"
        assert harness.client.get("/media/leaf").content == GREEN_PNG
        near = harness.client.get("/v1/items/leaf/similar?k=2").json()["items"]
        assert [item["item_id"] for item in near] == ["sky", "i11"]  # the toy's items are near by row: 12 to 13
        assert {"sky", "leaf"} <= set(harness.items("nobody", 100))
        harness.click("eve", "leaf")
        assert harness.items("eve", 2) == ["sky", "i11"]
        assert harness.client.get("/v1/about").json()["items"] == 14
        assert harness.client.get("/readyz").json()["status"] == "ready"


def test_an_item_put_again_is_replaced_whole(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        assert not put(harness, "i0", title="blue")["new"]
        assert settled(harness, "i0") | {"image": None} == {**state(harness, "i0"), "title": "blue", "categories": []}
        assert (harness.found(text="blue", k=1), harness.found(text="red", k=1)) == (["i0"], ["i1"])
        said = harness.post(text="blue", k=1).json()["items"][0]
        assert (said["title"], said["near"]) == ("blue", {"text": 1.0, "image": None})  # its green picture is gone
        assert harness.items("nobody", 1) == ["i0"]  # what people did with it stays
        put(harness, "i0", title="blue", available=False)
        assert "i0" not in everywhere(harness)  # before it is taken in
        assert not settled(harness, "i0")["available"]
        assert "i0" not in everywhere(harness)


def test_an_item_put_off_is_not_shown_until_then(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        later, before = "2999-01-01T00:00:00Z", "2001-01-01T00:00:00Z"
        put(harness, "i0", title="blue", published_at=later)
        assert "i0" not in everywhere(harness)  # before it is taken in
        settled(harness, "i0")
        put(harness, "sky", title="blue", published_at=later)
        settled(harness, "sky")
        assert not {"i0", "sky"} & everywhere(harness)
        put(harness, "i0", title="blue", published_at=before)
        put(harness, "sky", title="blue", published_at=before)
        settled(harness, "i0")
        settled(harness, "sky")
        assert {"i0", "sky"} <= everywhere(harness)


def test_a_deleted_item_is_gone_with_the_very_next_answer(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.click("eve", "i1")
        delete(harness, "i1")
        assert "i1" not in everywhere(harness)
        assert state(harness, "i1")["error"]["code"] == "unknown_item"
        for path in ("/v1/items/i1/similar", "/media/i1"):
            assert harness.client.get(path).status_code == 404
        assert harness.client.delete("/v1/items/i1").status_code == 404
        assert harness.client.delete("/v1/items/never").json()["error"]["code"] == "unknown_item"
        assert harness.client.get("/v1/users/eve/history").json()["events"][0]["title"] is None
        records = [r for r in read(tmp_path / "log").records if isinstance(r, ItemPut | ItemGone)]
        assert records == [ItemGone(item_id="i1", timestamp=NOW)]
        assert put(harness, "i1", title="blue")["new"]
        assert settled(harness, "i1")["status"] == "live"
        assert harness.found(text="blue", k=1) == ["i1"]
        assert "i1" in everywhere(harness)


class Slow(ToyWords):
    """Embeds items when it is let."""

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


def test_the_order_of_the_log_decides_what_is_embedded_meanwhile(tmp_path: Path) -> None:
    gate = threading.Event()
    with service_harness(tmp_path, encoders=slow(gate), search_wait=0.1) as harness:
        put(harness, "gone", title="blue")
        put(harness, "back", title="blue")
        put(harness, "turned", title="blue")
        assert (state(harness, "gone")["status"], state(harness, "gone")["title"]) == ("embedding", "blue")
        assert harness.client.get("/v1/items/gone/similar").json()["error"]["code"] == "not_live_yet"
        delete(harness, "gone")
        assert state(harness, "gone")["error"]["code"] == "unknown_item"
        delete(harness, "back")
        assert put(harness, "back", title="red")["new"]
        assert not put(harness, "turned", title="green")["new"]
        gate.set()
        assert settled(harness, "back")["title"] == "red"
        assert settled(harness, "turned")["title"] == "green"
        assert "back" in harness.found(text="red", k=2)
        assert harness.found(text="green", k=1) == ["turned"]
        assert "gone" not in everywhere(harness)


def test_answers_of_the_log_that_come_in_another_order_change_nothing(tmp_path: Path) -> None:
    growing = catalog_updater.CatalogUpdater(tmp_path, {}, toy_upsert, lambda bundle: None)

    class Late:
        """Answers the first record after the second."""

        def __init__(self) -> None:
            self.second = asyncio.Event()

        async def append(self, records: Any) -> None:
            if isinstance(records[0], ItemPut):
                await self.second.wait()
            else:
                self.second.set()

    async def run() -> None:
        log: Any = Late()
        first = asyncio.create_task(growing.accept(log, ItemPut(item_id="x", timestamp=1, fields={})))
        await asyncio.sleep(0)  # it is in the queue
        await growing.accept(log, ItemGone(item_id="x", timestamp=2))
        await first

    asyncio.run(run())
    assert not growing.there("x")


def test_a_bundle_that_comes_while_an_item_is_embedded_gets_it_too(tmp_path: Path) -> None:
    gate = threading.Event()
    with service_harness(tmp_path, encoders=slow(gate)) as harness:
        put(harness, "sky", title="blue")
        harness.shelf.put("second", with_contents(toy_bundle(tmp_path, 20, fingerprint="toy-2")))
        harness.service.step()
        gate.set()
        assert settled(harness, "sky")["status"] == "live"
        said = harness.post(text="blue", k=1).json()
        assert (said["bundle"], said["items"][0]["item_id"]) == ("toy-2", "sky")
        assert harness.client.get("/v1/about").json()["items"] == 21


def test_the_next_start_and_the_next_bundle_know(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        put(harness, "sky", title="blue")
        put(harness, "late", title="blue green")
        delete(harness, "late")
        delete(harness, "i0")
    with service_harness(tmp_path) as harness:
        assert "i0" not in everywhere(harness)
        assert settled(harness, "sky")["status"] == "live"
        assert harness.found(text="blue", k=1) == ["sky"]
        assert not {"late", "i0"} & everywhere(harness)
        harness.shelf.put("second", with_contents(toy_bundle(tmp_path, 20, fingerprint="toy-2")))
        harness.service.step()
        assert "i0" not in everywhere(harness)
        assert settled(harness, "sky")["status"] == "live"
        assert harness.post(text="blue", k=1).json()["bundle"] == "toy-2"
        assert harness.found(text="blue", k=1) == ["sky"]


def test_what_the_bundle_has_as_it_was_put_is_not_embedded_again(tmp_path: Path) -> None:
    read_: list[str] = []

    def encoders(*given: Any) -> Any:
        opened = toy_encoders(*given)
        opened["text"].read = read_  # type: ignore[attr-defined]
        return opened

    with service_harness(tmp_path, encoders=encoders) as harness:
        put(harness, "sky", title="blue", categories=["even"], price=2)
        settled(harness, "sky")
        trained: ToyBundle = harness.service.snapshot.bundle  # as a training on this log would leave it
    assert read_.count("blue. even") == 1
    trained = replace(trained, fingerprint="toy-2")
    with service_harness(tmp_path, shelf=ToyShelf(trained), encoders=encoders) as harness:
        assert settled(harness, "sky")["status"] == "live"
        assert harness.found(text="blue", k=1) == ["sky"]
        assert read_.count("blue. even") == 1
        delete(harness, "sky")
        put(harness, "sky", title="blue", categories=["even"], price=2)
        assert settled(harness, "sky")["status"] == "live"
        assert harness.found(text="blue", k=1) == ["sky"]
        assert read_.count("blue. even") == 1


def test_parts_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        put(harness, "half", title="blue", image=b64(GREEN_PNG[:40]), audio=b64(b"RIFF"))
        half = settled(harness, "half")
        assert (half["status"], [each["part"] for each in half["failed"]]) == ("live", ["image", "audio"])
        assert "cannot be decoded" in half["failed"][0]["reason"]
        assert "cannot be searched by audio" in half["failed"][1]["reason"]
        put(harness, "nothing", image=b64(b"no picture"))
        assert settled(harness, "nothing")["status"] == "failed"
        assert "nothing" in harness.items("nobody", 100)  # shown all the same


def test_an_encoder_that_fails_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_updater, "RETRY_SECONDS", 0.05)
    away = threading.Event()

    class Away(ToyWords):
        def encode(self, contents: Any, *, task: Any = "document", progress: Any = None) -> Any:
            if any("poison" in str(content) for content in contents) or (task == "document" and not away.is_set()):
                raise RuntimeError("the model is away")
            return super().encode(contents, task=task, progress=progress)

    with service_harness(tmp_path, encoders=lambda c, d, limits, m: {"text": Away(limits)}) as harness:
        put(harness, "sky", title="blue")
        put(harness, "poison", title="poison")
        until = time.monotonic() + 20
        while state(harness, "sky")["status"] != "failed":
            assert time.monotonic() < until
        assert state(harness, "sky")["failed"] == [{"part": "item", "reason": "the model is away"}]
        ready = harness.client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert "the model is away" in ready.json()["notes"]["items"]
        away.set()
        while state(harness, "sky")["status"] != "live":  # though the other one fails for ever
            assert time.monotonic() < until
            time.sleep(0.01)
        delete(harness, "poison")
        while harness.client.get("/readyz").json()["status"] != "ready":
            assert time.monotonic() < until
            time.sleep(0.01)


def test_one_bad_item_does_not_make_all_others_wait_for_a_turn_each(tmp_path: Path) -> None:
    asked: list[int] = []

    class Picky(ToyWords):
        def encode(self, contents: Any, *, task: Any = "document", progress: Any = None) -> Any:
            if task == "document":
                asked.append(len(contents))
            if any("poison" in str(content) for content in contents):
                raise RuntimeError("no")
            return super().encode(contents, task=task, progress=progress)

    gate = threading.Event()

    def opened(*given: Any) -> Any:
        gate.wait(20)
        return {"text": Picky(given[2])}

    with service_harness(tmp_path, encoders=opened) as harness:
        put(harness, "poison", title="poison")
        for number in range(300):
            put(harness, f"n{number}", title="blue")
        gate.set()
        for item in ("n0", "n299"):
            assert settled(harness, item)["status"] == "live"
        assert state(harness, "poison")["status"] in ("embedding", "failed")
    # pieces of four, and at most one batch of 64 and what was taken first one by one
    assert len(asked) < 300 / 4 + 64 + 64


def test_a_request_that_began_in_an_older_bundle_does_not_show_what_was_deleted_since(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        before = harness.service.snapshot
        assert before is not None
        narrowed = before.with_filter(Filter())
        harness.service.catalog_updater.serve(
            ServingSnapshot.of(with_contents(toy_bundle(tmp_path, fingerprint="toy-2")), before.store)
        )
        put(harness, "sky", title="blue")
        settled(harness, "sky")
        grown = harness.service.snapshot
        put(harness, "sea", title="green")
        settled(harness, "sea")
        delete(harness, "i6")
        for live in (before, narrowed, grown, harness.service.snapshot):
            assert live is not None
            assert not live.allowed()[6]


def test_a_bundle_without_contents(tmp_path: Path) -> None:
    with service_harness(tmp_path, shelf=ToyShelf(toy_bundle(tmp_path))) as harness:
        put(harness, "sky", title="blue", image=b64(GREEN_PNG))
        assert settled(harness, "sky")["status"] == "live"
        assert "sky" in harness.items("nobody", 100)


def test_a_log_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service_harness(tmp_path) as harness:
        delete(harness, "i11")
        monkeypatch.setattr("os.write", lambda fd, data: (_ for _ in ()).throw(OSError("no space left")))
        assert harness.client.delete("/v1/items/i0").json()["error"]["code"] == "unavailable"
        assert harness.client.put("/v1/items/sky", content=b"{}").status_code == 503
        monkeypatch.undo()
        assert state(harness, "i0")["status"] == "live"
        assert state(harness, "sky")["error"]["code"] == "unknown_item"
        assert "i0" in everywhere(harness)


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceHarness]:
    folder = tmp_path_factory.mktemp("steady")
    bundle = with_contents(toy_bundle(folder), hosts=("media.example.org", "other.example.org:8443"))
    data = bundle.data.model_copy(update={"extra_columns": ("colour", "size", "title")})
    frame = bundle.catalog.frame.with_columns(colour=pl.lit("none"), size=pl.lit(1, pl.Int32))
    bundle = replace(bundle, data=data, catalog=replace(bundle.catalog, frame=frame))
    with service_harness(folder, shelf=ToyShelf(bundle), search_bytes=2 << 20) as harness:
        yield harness


def test_columns_that_the_bundle_declares(steady: ServiceHarness) -> None:
    put(steady, "sky", title="blue", colour="azure", size=7)
    settled(steady, "sky")
    catalog = steady.service.snapshot.bundle.catalog
    shown = catalog.frame[catalog.ids.row("sky")].to_dicts()[0]
    assert (shown["title"], shown["colour"], shown["size"]) == ("blue", "azure", 7)
    assert catalog.frame.schema["size"] == pl.Int32


ODD: list[tuple[bytes, int, str]] = [
    (b"", 400, "body"),
    (b"{", 400, "body"),
    (b"[]", 422, "body"),
    (b"7", 422, "body"),
    (b'{"titel": "x"}', 422, "titel"),
    (b'{"item_id": "x"}', 422, "item_id"),
    (b'{"title": 7}', 422, "title"),
    (b'{"title": "\\ud800"}', 400, "body"),
    (orjson.dumps({"title": "x" * 1001}), 422, "title"),
    (orjson.dumps({"description": "x" * 200_001}), 422, "description"),
    (b'{"categories": "x"}', 422, "categories"),
    (b'{"categories": [1]}', 422, "categories.0"),
    (orjson.dumps({"categories": ["x"] * 101}), 422, "categories"),
    (b'{"price": -1}', 422, "price"),
    (b'{"price": "1"}', 422, "price"),
    (b'{"price": 1e999}', 400, "body"),
    (b'{"published_at": "2026-01-01T00:00:00"}', 422, "published_at"),
    (b'{"published_at": "yesterday"}', 422, "published_at"),
    (b'{"published_at": "0001-01-01T00:00:00+14:00"}', 422, "published_at"),
    (b'{"available": 1}', 422, "available"),
    (b'{"available": null}', 422, "available"),
    (b'{"group_id": "a\\u0000"}', 422, "group_id"),
    (b'{"colour": 7}', 422, "colour"),
    (b'{"size": "7"}', 422, "size"),
    (b'{"size": true}', 422, "size"),
    (b'{"size": 3000000000}', 422, "size"),
    (b'{"size": 1.5}', 422, "size"),
    (b'{"size": [7]}', 422, "size"),
    (b'{"image": "/etc/passwd"}', 422, "image"),
    (b'{"image": "file:///etc/passwd"}', 422, "image"),
    (b'{"image": "http://media.example.org/x.png"}', 422, "image"),
    (b'{"image": "https://evil.example.org/x.png"}', 422, "image"),
    (b'{"image": "https://media.example.org:8443/x.png"}', 422, "image"),
    (b'{"image": "https://other.example.org/x.png"}', 422, "image"),
    (b'{"image": "https://u:p@media.example.org/x.png"}', 422, "image"),
    (b'{"image": "https://["}', 422, "image"),
    (b'{"image": "https://media.example.org:x/"}', 422, "image"),
    (b'{"audio": "media/0123"}', 422, "audio"),
    (b'{"video": 7}', 422, "video"),
    (b'{"x": [' + b"[]," * 200_000 + b"[]]}", 422, "body"),
    (b" " * (2 << 20) + b"{}", 413, "body"),
]


@pytest.mark.parametrize(("body", "status", "place"), ODD, ids=lambda x: repr(x)[:50])
def test_odd_items(steady: ServiceHarness, body: bytes, status: int, place: str) -> None:
    said = steady.client.put("/v1/items/odd", content=body)
    assert (said.status_code, said.json()["error"]["place"]) == (status, place), said.text[:300]
    assert len(said.content) < 4000
    assert steady.client.get("/v1/items/odd").status_code == 404


@pytest.mark.parametrize("item", ["a%00b", "x" * 513, "%E2%80%A8"])
def test_odd_ids(steady: ServiceHarness, item: str) -> None:
    for said in (
        steady.client.put(f"/v1/items/{item}", content=b"{}"),
        steady.client.delete(f"/v1/items/{item}"),
        steady.client.get(f"/v1/items/{item}"),
    ):
        assert (said.status_code, said.json()["error"]["code"]) == (422, "bad_id")


def test_urls_of_allowed_hosts_are_accepted_and_read_later(steady: ServiceHarness) -> None:
    for item, url in (("web", "https://Media.example.org/x.png"), ("port", "https://other.example.org:8443/x.png")):
        put(steady, item, title="blue", image=url)
        said = settled(steady, item)
        assert (said["status"], said["image"], [f["part"] for f in said["failed"]]) == ("live", url, ["image"])


def test_a_body_without_a_length_is_cut_off(steady: ServiceHarness) -> None:
    assert steady.client.put("/v1/items/odd", content=endless()).status_code == 413


def test_published_times_are_kept_in_one_form(steady: ServiceHarness) -> None:
    put(steady, "timed", published_at="20260131T120000+0100")
    settled(steady, "timed")
    catalog = steady.service.snapshot.bundle.catalog
    assert catalog.published[catalog.ids.row("timed")] == 1_769_857_200_000_000


def test_media_are_on_disk_once_named_by_what_they_are(steady: ServiceHarness) -> None:
    for item in ("m1", "m2"):
        put(steady, item, image=b64(GREEN_PNG))
    log = steady.service.settings.log
    fields = [ItemChanges.of(log).puts[item].fields["image"] for item in ("m1", "m2")]
    assert fields[0] == fields[1]
    assert (log / fields[0]).read_bytes() == GREEN_PNG
    assert not list((log / "media").glob(".writing-*"))


NAMES = st.sampled_from(["i0", "i1", "p", "q"])
STEPS = st.lists(st.tuples(st.sampled_from(["put", "hidden", "delete", "look"]), NAMES), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS)
def test_no_answer_ever_has_an_item_that_is_deleted(changing: ServiceHarness, steps: list[tuple[str, str]]) -> None:
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
