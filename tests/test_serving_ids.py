"""Ids through every route: an id that the tables accept is accepted, fetched and echoed; others are refused alike."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import orjson
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from service_harness import HOME, ServiceHarness, service_harness, serving
from toy_service import (
    ToyBundle,
    ToyFiller,
    ToyShelf,
    toy_bundle,
    toy_encoders,
    toy_events,
    toy_settings,
    with_contents,
)

from features.ids import IdMap, id_error
from features.store.memory import MemoryStore
from serving.app import create_app

TRAPS = ["x/similar", "similar", "a/b/similar", "/", "//", "/a", "a/", "a/../b", "...", ".a"]
TRAPS += ["%", "%2F", "%ff", "%fe", "%2e"]
OTHER = ["+", " ", " a ", "é", "e\u0301", "İ", "\u202e", "\ufeff", "\ufffd", "\uffff", "😀", "{}"]
OTHER += ["a" * 512, "é" * 256]
SIGNS = [f"a{chr(code)}b" for code in range(0x20, 0x7F)]
WIDE = "ab/%?#&=+ ;,:@.\"'<>\\^`{|}~é\u0301漢😀\u00a0\u200b\u3000"


def accepted_ids() -> list[str]:
    """600 distinct ids that the rule accepts: traps of URLs, each printable ASCII character, and random text."""
    rng = random.Random(0)
    ids = dict.fromkeys([*TRAPS, *OTHER, *SIGNS])
    while len(ids) < 600:
        text = "".join(rng.choice(WIDE) for _ in range(rng.randint(1, 40)))
        ids |= {text: None} if not id_error(text) else {}
    return list(ids)


IDS = accepted_ids()
REFUSED = ["a\nb", "\n", "a\x00", "\x1f", "a\x7f", "\x85", "\u2028", "x\u2029", "a" * 513, "é" * 257, "..", "."]
SOME = [pytest.param(30, id="30 ids"), pytest.param(600, id="600 ids", marks=pytest.mark.soak)]


def with_ids(bundle: ToyBundle, ids: list[str]) -> ToyBundle:
    """The bundle with other ids of its items."""
    frame = bundle.catalog.frame.with_columns(pl.Series("item_id", ids))
    return replace(bundle, catalog=replace(bundle.catalog, ids=IdMap(tuple(ids)), frame=frame))


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceHarness]:
    folder = tmp_path_factory.mktemp("ids")
    bundle = with_contents(with_ids(toy_bundle(folder, len(IDS)), IDS))
    with service_harness(folder, shelf=ToyShelf(bundle)) as running:
        yield running


def answers(harness: ServiceHarness, text: str) -> dict[str, Any]:
    """The response of every route that takes an id, for one id of a user and an item."""
    path, client = quote(text, safe=""), harness.client
    item_filter = {"items": [text], "exclude": [text]}
    event = {"user_id": text, "item_id": text, "event": "click", "event_id": text, "request_id": text}
    query = {"text": "red", "limit": 1}
    return {
        "put": client.put(f"/v1/items/{path}", content=orjson.dumps({"title": "t", "group_id": text})),
        "item": client.get(f"/v1/items/{path}"),
        "similar": client.get(f"/v1/items/{path}/similar?limit=1"),
        "media": client.get(f"/media/{path}"),
        "event": client.post("/v1/events", content=orjson.dumps(event)),
        "recommendations": client.get(HOME.format(path, 1, "home")),
        "history": client.get(f"/v1/users/{path}/history"),
        "filter": client.get(f"{HOME.format('ann', 1, 'home')}&filter={quote(json.dumps(item_filter))}"),
        "search": client.post("/v1/search", content=orjson.dumps(query | {"user_id": text})),
        "search filter": client.post("/v1/search", content=orjson.dumps(query | {"filter": item_filter})),
        "delete": client.delete(f"/v1/items/{path}"),
    }


@pytest.mark.parametrize("n", SOME)
def test_an_accepted_id_passes_every_route(harness: ServiceHarness, n: int) -> None:
    for text in IDS[:n]:
        responses = answers(harness, text)
        codes = {route: response.status_code for route, response in responses.items()}
        assert codes.pop("media") == 404
        assert {codes.pop("put"), codes.pop("event")} == {202}, (text, codes)
        assert set(codes.values()) == {200}, (text, codes)
        bodies = {route: response.json() for route, response in responses.items()}
        assert {bodies[route]["item_id"] for route in ("put", "item", "delete")} == {text}
        assert {bodies[route]["user_id"] for route in ("recommendations", "history", "search")} == {text}
        assert [event["item_id"] for event in bodies["history"]["events"]] == [text]
        assert bodies["media"]["code"] == "no_picture"
    recent = harness.client.get("/v1/users?limit=1000").json()["users"]
    assert set(IDS[:n]) <= set(recent)


def check_refused(harness: ServiceHarness, text: str) -> None:
    shortened = {"put", "item", "similar", "media", "recommendations", "history", "delete"}
    for route, response in answers(harness, text).items():
        if text in (".", "..") and route in shortened:
            continue  # the client shortens the path
        assert response.status_code == 422, (route, text)
        error = response.json()
        assert set(error) >= {"type", "title", "status", "detail", "code", "place"}
        assert id_error(text) in error["detail"], (route, text, error)


@pytest.mark.parametrize("text", REFUSED)
def test_a_refused_id_is_refused_by_every_route_for_one_reason(harness: ServiceHarness, text: str) -> None:
    check_refused(harness, text)


@settings(max_examples=10, deadline=None)
@given(st.text(min_size=1, max_size=6), st.sampled_from(["\n", "\x00", "\x7f", "\u2028", "\x9f", "x" * 513]))
def test_any_refused_id_is_refused_by_every_route(harness: ServiceHarness, text: str, bad: str) -> None:
    check_refused(harness, text + bad)


BAD_BYTES = ("%ff", "%fe", "%c3", "%ED%A0%80", "a%80", "%F0%9F%98", "%C0%AF")


@pytest.mark.parametrize("path", BAD_BYTES)
def test_bytes_that_are_no_text_are_refused(harness: ServiceHarness, path: str) -> None:
    for url in (
        HOME.format(path, 1, "home"),
        f"/v1/users/{path}/history",
        f"/v1/items/{path}",
        f"/media/{path}",
        f"/v1/users/a/recommendations?filter={path}",
    ):
        response = harness.client.get(url)
        assert (response.status_code, response.json()["code"]) == (400, "bad_url")
        assert response.json()["place"] == ("query" if "?filter" in url else "path")


def test_an_id_is_one_segment_of_the_path(harness: ServiceHarness) -> None:
    for path in ("/v1/items/a/b", "/v1/users/a/b/history", "/v1/items/x/similar/similar"):
        error = harness.client.get(path).json()
        assert error["code"] == "not_found"
        assert "%2F" in error["detail"]
    response = harness.client.delete("/v1/items/x/similar")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


def test_equivalent_paths_are_one_path(harness: ServiceHarness) -> None:
    assert harness.client.get("/v1/%61bout").status_code == 200
    assert harness.client.get("/static/page%2Ecss").status_code == 200
    assert harness.client.get("/v1/about%0A").status_code == 404
    assert harness.client.get("/v1/users/%7euser/history").json()["user_id"] == "~user"


def test_the_documented_paths_have_plain_names(harness: ServiceHarness) -> None:
    paths = harness.client.get("/openapi.json").json()["paths"]
    assert "/v1/items/{item_id}/similar" in paths
    app: Any = harness.client.app
    assert app.url_path_for("get_similar_items", item_id="x/similar") == "/v1/items/x%2Fsimilar/similar"


def percent_encoded(text: str) -> str:
    """Every byte as %xx, in small letters."""
    return "".join(f"%{byte:02x}" for byte in text.encode())


@pytest.mark.parametrize("n", SOME)
def test_a_real_server_serves_every_spelling_of_an_id(tmp_path: Path, n: int) -> None:
    shelf = ToyShelf(with_ids(toy_bundle(tmp_path, n), IDS[:n]))
    app = create_app(
        toy_settings(tmp_path),
        load=shelf.load,
        current=shelf.current,
        filler=ToyFiller(tmp_path, lambda _: toy_events([])),
        connect=MemoryStore,
        encoders=toy_encoders,
    )
    with serving(app) as url:
        connection = HTTPConnection(urlsplit(url).netloc, timeout=20)
        for text in IDS[:n]:
            for path in (quote(text, safe=""), quote(text, safe="!'()*~-_."), percent_encoded(text)):
                connection.request("GET", f"/v1/items/{path}")
                assert json.loads(connection.getresponse().read())["item_id"] == text
        connection.close()
