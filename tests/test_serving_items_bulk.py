"""Many items at once: the list by pages, the export and the import."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from service_harness import GREEN_PNG, ServiceHarness, b64, endless, facts_of, service_harness
from test_serving_catalog_updater import delete, put, settled
from test_serving_follow_items import two
from test_serving_item_patch import I1, rich_bundle
from toy_service import ToyShelf, toy_bundle, with_contents

from features.log.reader import read
from features.log.records import ITEMS
from serving.routes.items.bulk import MAX_LINES

NDJSON = {"Content-Type": "application/x-ndjson"}


def page(harness: ServiceHarness, **query: Any) -> Any:
    response = harness.client.get("/v1/items", params=query)
    assert response.status_code == 200, response.text
    return response.json()


def listed(harness: ServiceHarness, limit: int = 1000) -> list[dict[str, Any]]:
    """The items of all pages."""
    answer = page(harness, limit=limit)
    items = answer["items"]
    while answer["cursor"] is not None:
        assert len(answer["items"]) == limit
        answer = page(harness, limit=limit, cursor=answer["cursor"])
        items += answer["items"]
    return list(items)


def exported(harness: ServiceHarness) -> bytes:
    response = harness.client.get("/v1/items.ndjson")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/x-ndjson")
    return bytes(response.content)


def send(harness: ServiceHarness, *lines: Any) -> Any:
    body = b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in lines)
    return harness.client.post("/v1/items", content=body, headers=NDJSON)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[ServiceHarness]:
    with service_harness(tmp_path, shelf=ToyShelf(rich_bundle(tmp_path))) as running:
        yield running


def test_pages_in_the_order_of_ids(harness: ServiceHarness) -> None:
    put(harness, "i10", title="new title")
    put(harness, quote("é/x", safe=""), title="last")
    put(harness, "a", title="first")
    delete(harness, "i3")
    names = sorted({*(f"i{row}" for row in range(12)), "é/x", "a"} - {"i3"})
    assert (names[0], names[-1], len(names)) == ("a", "é/x", 13)
    for limit in (1, 5, 13, 1000):
        assert [item["item_id"] for item in listed(harness, limit)] == names
    first = page(harness, limit=2)
    assert first == {
        "items": [
            {"item_id": "a", "available": True, "title": "first"},
            {"item_id": "i0", **{name: value for name, value in fields("i0").items() if value is not None}},
        ],
        "cursor": "i0",
    }
    assert page(harness, cursor="é/x") == {"items": [], "cursor": None}
    assert page(harness, limit=13)["cursor"] is None
    i1 = next(item for item in listed(harness) if item["item_id"] == "i1")
    assert i1 == {"item_id": "i1", **{name: value for name, value in I1.items() if value is not None}}


def fields(item: str) -> dict[str, Any]:
    row = int(item[1:])
    return I1 | {
        "title": f"Item <b>{row}</b>",
        "categories": ["even" if row % 2 == 0 else "odd"],
        "image": "stored" if row == 1 else None,
    }


def test_changes_between_pages_neither_repeat_nor_hide_other_items(harness: ServiceHarness) -> None:
    answer, seen = page(harness, limit=3), list[str]()
    for turn in range(20):
        seen += [item["item_id"] for item in answer["items"]]
        if answer["cursor"] is None:
            break
        put(harness, f"a{turn}")  # before all pages that follow
        put(harness, f"i5{turn}")
        delete(harness, seen[0]) if turn == 0 else None
        delete(harness, answer["cursor"])  # the next page begins after an item that is gone
        answer = page(harness, limit=3, cursor=answer["cursor"])
    assert seen == sorted(set(seen))
    assert {f"i{row}" for row in range(12)} <= {*seen}


def test_parameters(harness: ServiceHarness) -> None:
    for query, code in (
        ({"limit": 0}, "bad_parameter"),
        ({"limit": 1001}, "bad_parameter"),
        ({"cursor": ""}, "bad_id"),
        ({"after": "i1"}, "unknown_parameter"),
    ):
        response = harness.client.get("/v1/items", params=query)
        assert (response.status_code, response.json()["code"]) == (422, code)


def test_an_export_is_imported_by_an_empty_service(tmp_path: Path, harness: ServiceHarness) -> None:
    put(harness, "new", title="blue", price=2.5, available=False, published_at="2026-01-31", group_id="g/1", stock=4)
    put(harness, "ü", categories=["a", "b"], founded="2001-02-03T04:05:06Z")
    delete(harness, "i2")
    delete(harness, "i1")  # its picture is in no other service
    lines = exported(harness)
    assert [orjson.loads(line) for line in lines.splitlines()] == listed(harness)
    assert len(lines.splitlines()) == 12
    empty = with_contents(toy_bundle(tmp_path, n=2))
    empty = replace(empty, data=empty.data.model_copy(update={"extra_columns": ("stock", "founded")}))
    (tmp_path / "other").mkdir()
    with service_harness(tmp_path / "other", shelf=ToyShelf(empty)) as other:
        delete(other, "i0")
        delete(other, "i1")
        assert exported(other) == b""
        typed = [orjson.loads(line) for line in lines.splitlines()]
        for entry in typed:  # the other bundle has these columns as text
            entry |= {name: str(entry[name]) for name in ("stock", "founded") if name in entry}
        response = send(other, *typed)
        assert (response.status_code, response.json()) == (
            202,
            {"accepted": 12, "new": 12, "rejected": 0, "refused": []},
        )
        assert listed(other) == typed
        again = send(other, exported(other))
        assert again.json() == {"accepted": 12, "new": 0, "rejected": 0, "refused": []}
        assert listed(other) == typed
        assert settled(other, "new")["title"] == "blue"
        assert other.found(text="blue", limit=20)  # it is searchable as after a put
    own = send(harness, lines)
    assert own.json() == {"accepted": 12, "new": 0, "rejected": 0, "refused": []}
    assert exported(harness) == lines


def test_a_stored_file_stays_where_the_item_has_it(harness: ServiceHarness) -> None:
    put(harness, "sky", image=b64(GREEN_PNG))
    response = send(
        harness, {"item_id": "i1", "image": "stored"}, {"item_id": "sky", "title": "x", "image": "stored"}
    )
    assert response.json()["accepted"] == 2
    assert {item["item_id"]: item.get("image") for item in listed(harness)}["i1"] == "stored"
    assert settled(harness, "sky")["title"] == "x"
    assert harness.client.get("/media/sky").content == GREEN_PNG
    refused = send(harness, {"item_id": "i0", "image": "stored"}, {"item_id": "x"})
    assert refused.json()["refused"] == [
        {
            "line": 1,
            "item_id": "i0",
            "reason": "image: the item has no file; send base64 or an https URL",
            "place": "image",
        }
    ]


def test_each_line_is_accepted_or_refused(harness: ServiceHarness) -> None:
    before = len(read(harness.folder / "log", stream=ITEMS).records)
    response = send(
        harness,
        {"item_id": "one", "title": "red", "price": 1},
        b"",
        {"item_id": "two", "price": -1},
        b"{",
        {"title": "nobody"},
        {"item_id": 7},
        {"item_id": "a\nb"},
        b"[]",
        {"item_id": "one", "title": "again"},
        {"item_id": "three", "colour": "red"},
        {"item_id": "four"},
    )
    assert response.status_code == 202
    answer = response.json()
    assert (answer["accepted"], answer["new"], answer["rejected"]) == (2, 2, 8)
    assert [(line["line"], line["item_id"], line["place"]) for line in answer["refused"]] == [
        (3, "two", "price"),
        (4, None, "body"),
        (5, None, "item_id"),
        (6, None, "item_id"),
        (7, None, "item_id"),
        (8, None, "body"),
        (9, "one", "item_id"),
        (10, "three", "colour"),
    ]
    reasons = {line["line"]: line["reason"] for line in answer["refused"]}
    assert reasons[3].startswith("price: must be 0 or more")
    assert (reasons[5], reasons[6]) == ("item_id missing; add it", "item_id must be a text")
    assert reasons[9] == "the item stands in line 1, too: keep one"
    assert {item["item_id"] for item in listed(harness)} - {f"i{row}" for row in range(12)} == {"one", "four"}
    assert len(read(harness.folder / "log", stream=ITEMS).records) == before + 2
    assert settled(harness, "one")["fields"]["title"] == "red"


def test_an_import_without_an_item_that_is_accepted(harness: ServiceHarness) -> None:
    response = send(harness, b"", {"item_id": "x", "price": "a"})
    problem = response.json()
    assert (response.status_code, problem["code"], problem["place"]) == (422, "no_item_accepted", "price")
    assert problem["detail"].startswith("line 2: price: ")
    assert (problem["accepted"], problem["rejected"], problem["refused"][0]["line"]) == (0, 1, 2)
    for body in (b"", b" \n \n", b"{}\n" * (MAX_LINES + 1)):
        response = send(harness, body)
        assert (response.status_code, response.json()["code"]) == (422, "bad_items")
    assert len(listed(harness)) == 12


def test_types_and_sizes_of_bodies(tmp_path: Path) -> None:
    with service_harness(tmp_path, search_bytes=2000) as harness:
        line = b'{"item_id": "x"}'
        for kind in ("application/json", "multipart/form-data; boundary=x", "text/plain"):
            response = harness.client.post("/v1/items", content=line, headers={"Content-Type": kind})
            assert response.status_code == 415
            assert facts_of(response.json()) == {
                "code": "bad_type",
                "detail": "the body must be lines of JSON: send the header Content-Type: application/x-ndjson",
                "place": "header",
            }
        other = harness.client.post("/v1/events", content=line, headers=NDJSON)
        assert (other.status_code, other.json()["code"]) == (415, "bad_type")
        assert send(harness, b"x" * 2001).status_code == 413
        assert harness.client.post("/v1/items", content=endless(), headers=NDJSON).status_code == 413
        assert send(harness, line).status_code == 202


def test_an_item_may_be_named_as_the_export(harness: ServiceHarness) -> None:
    put(harness, "export", title="one")
    put(harness, "items.ndjson", title="two")
    assert harness.client.get("/v1/items/export").json()["title"] == "one"
    assert harness.client.get("/v1/items/items.ndjson").json()["title"] == "two"


def test_an_import_reaches_another_process(tmp_path: Path) -> None:
    with two(tmp_path) as (first, second):
        put(second, "b", title="old")
        first.service.step()
        assert send(first, *({"item_id": name, "title": "blue"} for name in ("a", "b", "c"))).json()["new"] == 2
        second.service.step()
        assert exported(second) == exported(first)
        assert second.client.get("/v1/items/b").json()["title"] == "blue"
        delete(second, "c")
        first.service.step()
        assert exported(second) == exported(first)


def test_an_export_is_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.routes.items.bulk.EXPORT_ROWS", 2)
    with service_harness(tmp_path) as harness:
        before = exported(harness)
        with harness.client.stream("GET", "/v1/items.ndjson") as response:
            parts = response.iter_raw()
            put(harness, "i7", title="later")
            delete(harness, "i9")
            assert b"".join(parts) == before
        assert exported(harness) != before
        head = harness.client.head("/v1/items.ndjson")
        assert (head.status_code, head.content) == (200, b"")
