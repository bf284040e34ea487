"""PUT, GET and DELETE /v1/items: fields, limits and invalid requests."""

from collections.abc import Iterator
from dataclasses import replace

import orjson
import polars as pl
import pytest
from service_harness import GREEN_PNG, ServiceHarness, b64, endless, facts_of, service_harness
from test_serving_catalog_updater import put, settled
from toy_service import ToyShelf, toy_bundle, with_contents

from features.log.item_changes import ItemChanges


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceHarness]:
    folder = tmp_path_factory.mktemp("steady")
    bundle = with_contents(toy_bundle(folder), hosts=("media.example.org", "other.example.org:8443"))
    data = bundle.data.model_copy(update={"extra_columns": ("colour", "size", "title", "weight", "sold", "tags")})
    frame = bundle.catalog.frame.with_columns(
        colour=pl.lit("none"), size=pl.lit(1, pl.Int32), weight=1.0, sold=True, tags=pl.lit(["a"])
    )
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"colour": {"a": 1}}', "colour: must be a text, as in the bundle"),
        (b'{"colour": true}', "colour: must be a text, as in the bundle"),
        (b'{"colour": "%s"}' % (b"x" * 200_001), "colour: must be a text of at most 200,000 characters"),
        (b'{"size": "x"}', "size: must be a whole number, as in the bundle"),
        (b'{"size": 1.5}', "size: must be a whole number, as in the bundle"),
        (b'{"size": 2147483648}', "size: must be from -2,147,483,648 to 2,147,483,647, as in the bundle"),
        (b'{"weight": "x"}', "weight: must be a number, as in the bundle"),
        (b'{"sold": 1}', "sold: must be true or false, as in the bundle"),
        (b'{"tags": "x"}', "tags: must be a list of texts, as in the bundle"),
    ],
)
def test_a_value_of_another_type_than_its_column(steady: ServiceHarness, content: bytes, message: str) -> None:
    response = steady.client.put("/v1/items/sky", content=content)
    assert (response.status_code, response.json()["detail"]) == (422, message), response.text


def test_a_compressed_body_is_refused(steady: ServiceHarness) -> None:
    for call, path in (
        (steady.client.put, "items/x"),
        (steady.client.post, "events"),
        (steady.client.post, "search"),
    ):
        response = call(f"/v1/{path}", content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
        assert response.status_code == 415
        assert facts_of(response.json()) == {
            "code": "bad_encoding",
            "detail": "the body has a Content-Encoding; send it uncompressed, without this header",
            "place": "body",
        }
    response = steady.client.post("/v1/search", content=b"", headers={"Content-Encoding": "identity"})
    assert response.json()["detail"] == "the body is empty: send JSON"


INVALID_ITEMS: list[tuple[bytes, int, str]] = [
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
    (b'{"title": "a\\u0000b"}', 422, "title"),
    (b'{"description": "a\\u0000"}', 422, "description"),
    (b'{"categories": ["a", "\\u0000"]}', 422, "categories.1"),
    (b'{"price": -1}', 422, "price"),
    (b'{"price": "1"}', 422, "price"),
    (b'{"price": 1e999}', 400, "body"),
    (b'{"published_at": "2026-01-01T00:00:00"}', 422, "published_at"),
    (b'{"published_at": "yesterday"}', 422, "published_at"),
    (b'{"published_at": "0001-01-01T00:00:00+14:00"}', 422, "published_at"),
    (b'{"available": 1}', 422, "available"),
    (b'{"available": "yes"}', 422, "available"),
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


@pytest.mark.parametrize(("body", "status", "place"), INVALID_ITEMS, ids=lambda x: repr(x)[:50])
def test_invalid_items(steady: ServiceHarness, body: bytes, status: int, place: str) -> None:
    response = steady.client.put("/v1/items/odd", content=body)
    assert (response.status_code, response.json()["place"]) == (status, place), response.text[:300]
    assert len(response.content) < 4000
    assert steady.client.get("/v1/items/odd").status_code == 404


@pytest.mark.parametrize("item", ["a%00b", "x" * 513, "%E2%80%A8"])
def test_invalid_ids(steady: ServiceHarness, item: str) -> None:
    for response in (
        steady.client.put(f"/v1/items/{item}", content=b"{}"),
        steady.client.delete(f"/v1/items/{item}"),
        steady.client.get(f"/v1/items/{item}"),
    ):
        assert (response.status_code, response.json()["code"]) == (422, "bad_id")


def test_urls_of_allowed_hosts_are_accepted_and_fetched_later(steady: ServiceHarness) -> None:
    for item, url in (("web", "https://Media.example.org/x.png"), ("port", "https://other.example.org:8443/x.png")):
        put(steady, item, title="blue", image=url)
        response = settled(steady, item)
        assert (response["status"], response["image"], [f["part"] for f in response["failed"]]) == (
            "live",
            url,
            ["image"],
        )


def test_a_body_without_a_length_is_cut_off(steady: ServiceHarness) -> None:
    assert steady.client.put("/v1/items/odd", content=endless()).status_code == 413


def test_publication_times_are_stored_in_utc(steady: ServiceHarness) -> None:
    put(steady, "timed", published_at="20260131T120000+0100")
    settled(steady, "timed")
    catalog = steady.service.snapshot.bundle.catalog
    assert catalog.published[catalog.ids.row("timed")] == 1_769_857_200_000_000


def test_equal_media_are_stored_once_named_by_their_digest(steady: ServiceHarness) -> None:
    for item in ("m1", "m2"):
        put(steady, item, image=b64(GREEN_PNG))
    log = steady.service.settings.log
    fields = [ItemChanges.of(log).puts[item].fields["image"] for item in ("m1", "m2")]
    assert fields[0] == fields[1]
    assert (log / fields[0]).read_bytes() == GREEN_PNG
    assert not list((log / "media").glob(".writing-*"))


def test_empty_labels_are_left_out_as_in_the_tables(steady: ServiceHarness) -> None:
    put(steady, "blank", title="blue", categories=["", " a ", " ", "b"])
    assert ItemChanges.of(steady.folder / "log").puts["blank"].fields["categories"] == ["a", "b"]
