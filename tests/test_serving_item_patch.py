"""PATCH /v1/items, and a full GET: read, modify, write. What is embedded again, and what is not."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import orjson
import polars as pl
import pytest
from service_harness import GREEN_PNG, ServiceHarness, b64, facts_of, service_harness
from test_serving_catalog_updater import delete, put, settled
from toy_service import NOW, ToyBundle, ToyShelf, ToyWords, toy_bundle, with_contents

from features.log.event_log import EventLog
from features.log.item_changes import ItemChanges

FOUNDED = datetime(1999, 12, 31, tzinfo=UTC)


def patch(harness: ServiceHarness, item: str, **fields: Any) -> None:
    response = harness.client.patch(f"/v1/items/{item}", content=orjson.dumps(fields))
    assert (response.status_code, response.json()) == (202, {"item_id": item, "status": "accepted", "new": False})


def fields_of(harness: ServiceHarness, item: str) -> dict[str, Any]:
    return dict(settled(harness, item)["fields"])


def logged(harness: ServiceHarness, item: str) -> dict[str, Any]:
    return dict(ItemChanges.of(harness.folder / "log").puts[item].fields)


def row_of(harness: ServiceHarness, item: str) -> dict[str, Any]:
    catalog = harness.service.snapshot.bundle.catalog
    return dict(catalog.frame[catalog.ids.row(item)].to_dicts()[0])


def rich_bundle(folder: Path) -> ToyBundle:
    """i1 has a value in every field, further columns among them; its image is a file beside the tables."""
    (folder / "pictures").mkdir(exist_ok=True)
    (folder / "pictures" / "1.png").write_bytes(GREEN_PNG)
    bundle = with_contents(toy_bundle(folder, images={1: "pictures/1.png"}), hosts=("media.example.org",))
    frame = bundle.catalog.frame.with_columns(
        description=pl.lit("red"), published_at=FOUNDED, stock=pl.lit(3, pl.Int32), founded=FOUNDED
    )
    content = bundle.content
    assert content is not None
    channels = {**content.channels}
    channels["image"] = replace(channels["image"], present=channels["image"].present | (np.arange(12) == 1))
    data = bundle.data.model_copy(update={"extra_columns": ("stock", "founded")})
    published = np.full(12, int(FOUNDED.timestamp()) * 1_000_000)
    catalog = replace(bundle.catalog, frame=frame, published=published)
    return replace(bundle, data=data, catalog=catalog, content=replace(content, channels=channels))


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[ServiceHarness]:
    with service_harness(tmp_path, shelf=ToyShelf(rich_bundle(tmp_path))) as running:
        yield running


I1 = {
    "title": "Item <b>1</b>",
    "description": "red",
    "categories": ["odd"],
    "price": 1.0,
    "published_at": "1999-12-31T00:00:00+00:00",
    "available": True,
    "group_id": None,
    "image": "stored",
    "audio": None,
    "video": None,
    "stock": 3,
    "founded": "1999-12-31T00:00:00+00:00",
}


def test_a_get_has_all_fields(harness: ServiceHarness) -> None:
    shown = settled(harness, "i1")
    assert shown.pop("fields") == I1
    assert shown == {
        "item_id": "i1",
        "title": "Item <b>1</b>",
        "categories": ["odd"],
        "image": "/media/i1",
        "price": 1.0,
        "audio": None,
        "video": None,
        "available": True,
        "status": "live",
        "failed": [],
    }
    assert fields_of(harness, "i3")["available"] is False


def test_a_new_price_changes_nothing_else_and_embeds_nothing(harness: ServiceHarness) -> None:
    before, content = row_of(harness, "i1"), harness.service.snapshot.bundle.content
    patch(harness, "i1", price=7.5, stock=0)
    assert fields_of(harness, "i1") == I1 | {"price": 7.5, "stock": 0}
    assert row_of(harness, "i1") == before | {"price": 7.5, "stock": 0}
    after = harness.service.snapshot.bundle.content
    for name, channel in content.channels.items():
        np.testing.assert_array_equal(after.channels[name].vectors, channel.vectors)
        np.testing.assert_array_equal(after.channels[name].present, channel.present)
    assert harness.opened == []
    stored = {name: value for name, value in I1.items() if value is not None}
    assert logged(harness, "i1") == stored | {"price": 7.5, "stock": 0, "image": "pictures/1.png"}
    patch(harness, "i1", available=False)
    assert "i1" not in harness.items("nobody", 100)
    patch(harness, "i1", available=None, price=None)  # the default is true
    assert fields_of(harness, "i1") == I1 | {"price": None, "stock": 0}
    assert "i1" in harness.items("nobody", 100)
    assert harness.opened == []
    patch(harness, "i1", title="blue", description=None)  # its image, a file beside the tables, is read again
    assert fields_of(harness, "i1") == I1 | {"price": None, "stock": 0, "title": "blue", "description": None}
    assert settled(harness, "i1")["failed"] == []
    assert harness.found(text="blue", limit=1) == ["i1"]
    assert len(harness.opened) == 1


def test_what_get_gave_can_be_put(harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    put(harness, "sky", title="blue", image=b64(GREEN_PNG), published_at="2020-01-01", categories=["c"], stock=4)
    assert settled(harness, "sky")["status"] == "live"
    read: list[Any] = []
    monkeypatch.setattr(ToyWords, "words", lambda self, texts: read.append(texts))
    for item in ("i1", "sky"):
        fields, before = fields_of(harness, item), row_of(harness, item)
        put(harness, item, **fields)
        assert (fields_of(harness, item), row_of(harness, item)) == (fields, before)
        put(harness, item, **fields | {"price": 2.0})
        assert fields_of(harness, item) == fields | {"price": 2.0}
        assert read == []
    assert harness.client.get("/media/sky").content == GREEN_PNG


def test_content_that_was_put_before_is_not_embedded_again(tmp_path: Path) -> None:
    with service_harness(tmp_path) as first:
        put(first, "sky", title="blue", image=b64(GREEN_PNG))
        settled(first, "sky")
        patch(first, "sky", price=3.0)
        settled(first, "sky")
    with service_harness(tmp_path) as second:
        assert settled(second, "sky")["status"] == "live"
        assert second.opened == []
        assert second.service.snapshot.bundle.catalog.frame[12, "price"] == 3.0


def test_a_part_that_failed_is_tried_again(tmp_path: Path) -> None:
    with service_harness(
        tmp_path, shelf=ToyShelf(with_contents(toy_bundle(tmp_path), hosts=("x.invalid",)))
    ) as harness:
        put(harness, "sky", title="blue", image="https://x.invalid/i.png")
        for price in (1.0, 2.0):
            assert [part["part"] for part in settled(harness, "sky")["failed"]] == ["image"]
            patch(harness, "sky", price=price)
        assert [part["part"] for part in settled(harness, "sky")["failed"]] == ["image"]
        patch(harness, "sky", image=None)
        assert settled(harness, "sky")["failed"] == []


@pytest.mark.parametrize(
    ("item", "body", "status", "code", "place"),
    [
        ("new", b'{"price": 1}', 404, "unknown_item", "item_id"),
        ("gone", b'{"price": 1}', 404, "unknown_item", "item_id"),
        ("a%00b", b'{"price": 1}', 422, "bad_id", "item_id"),
        ("i1", b"[]", 422, "bad_item", "body"),
        ("i1", b"{", 400, "bad_json", "body"),
        ("i1", b'{"prise": 1}', 422, "bad_item", "prise"),
        ("i1", b'{"price": -1}', 422, "bad_item", "price"),
        ("i1", b'{"stock": "x"}', 422, "bad_item", "stock"),
        ("i1", b'{"founded": "x"}', 422, "bad_item", "founded"),
        ("i1", b'{"audio": "stored"}', 422, "bad_media", "audio"),
        ("i1", b'{"image": "media/0123"}', 422, "bad_media", "image"),
    ],
)
def test_what_is_refused(harness: ServiceHarness, item: str, body: bytes, status: int, code: str, place: str) -> None:
    put(harness, "gone", title="blue")
    delete(harness, "gone")
    response = harness.client.patch(f"/v1/items/{item}", content=body)
    error = response.json()
    assert (response.status_code, error["code"], error["place"]) == (status, code, place)
    assert set(ItemChanges.of(harness.folder / "log").puts) == {"gone"}


def test_nothing_can_stay_of_an_item_that_is_new_or_has_a_url(harness: ServiceHarness) -> None:
    put(harness, "web", image="https://media.example.org/x.png")
    for item in ("new", "web"):
        response = harness.client.put(f"/v1/items/{item}", content=b'{"image": "stored"}')
        assert response.status_code == 422
        assert facts_of(response.json()) == {
            "code": "bad_media",
            "detail": "image: the item has no file; send base64 or an https URL",
            "place": "image",
        }


def test_changes_of_one_item_at_once_are_all_kept(harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    append = EventLog.append

    async def slow(self: EventLog, records: Any, within: Any = None) -> Any:
        await anyio.sleep(0.02)
        return await append(self, records, within)

    monkeypatch.setattr(EventLog, "append", slow)
    changes: list[dict[str, Any]] = [{"price": 9.0}, {"stock": 8}, {"group_id": "g7"}, {"description": "six"}]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda change: patch(harness, "i1", **change), changes))
    assert fields_of(harness, "i1") == I1 | {"price": 9.0, "stock": 8, "group_id": "g7", "description": "six"}


def test_a_patch_has_the_time_when_it_is_logged(harness: ServiceHarness) -> None:
    patch(harness, "i1")  # a body without fields changes nothing
    assert ItemChanges.of(harness.folder / "log").puts["i1"].timestamp == NOW
    assert fields_of(harness, "i1") == I1
