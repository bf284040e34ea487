"""The service through its API: what it answers when all is well, and when something is not."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
import numpy as np
import orjson
import polars as pl
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_service import NOW, RULES, ToyShelf, broken, toy_bundle, toy_events, toy_settings
from typer.testing import CliRunner

from features.errors import DataError, StoreError
from features.event_log import Event, EventLog, Exposure, events_frame, read
from features.redis_server import RedisServer
from features.schema import DataConfig, EventRules
from features.store import MemoryStore, UserState
from recsys import cli
from serving.app import create_app
from serving.wire import media_url

HOME = "/v1/users/{}/recommendations?k={}&placement={}"


class Flaky(MemoryStore):
    """In memory, and away when it is told to be."""

    away = False

    def read_users(self, ids: Any) -> list[UserState]:
        self.ping()
        return super().read_users(ids)

    def push(self, events: Any) -> None:
        self.ping()
        super().push(events)

    def recent_users(self, limit: int) -> list[str]:
        self.ping()
        return super().recent_users(limit)

    def watermark(self) -> Any:
        self.ping()
        return super().watermark()

    def ping(self) -> None:
        if self.away:
            raise StoreError("away")


class House:
    """A running service with everything it was made of at hand."""

    def __init__(self, folder: Path, client: TestClient, shelf: ToyShelf, store: Flaky) -> None:
        self.folder, self.client, self.shelf, self.store = folder, client, shelf, store
        self.service = client.app.state.service  # type: ignore[attr-defined]

    def items(self, user: str, k: int = 4, place: str = "home") -> list[str]:
        return [item["item_id"] for item in self.get(user, k, place)["items"]]

    def get(self, user: str, k: int = 4, place: str = "home") -> Any:
        response = self.client.get(HOME.format(user, k, place))
        assert response.status_code == 200, response.text
        return response.json()

    def click(self, user: str, item: str, **more: Any) -> Any:
        sent = {"user_id": user, "item_id": item, "event": "click", **more}
        response = self.client.post("/v1/events", content=orjson.dumps(sent))
        assert response.status_code == 202, response.text
        return response.json()


@contextmanager
def house(
    folder: Path,
    *,
    shelf: ToyShelf | None = None,
    events: Callable[[DataConfig], pl.DataFrame] = lambda _: toy_events(),
    store: Flaky | None = None,
    **options: object,
) -> Iterator[House]:
    shelf, store = shelf or ToyShelf(toy_bundle(folder)), store or Flaky(RULES)

    def connect(rules: EventRules) -> Flaky:
        store.rules = rules
        return store

    app = create_app(
        toy_settings(folder, follow_seconds=3600, **options),  # steps are taken by the tests
        load=shelf.load,
        current=shelf.current,
        events=events,
        connect=connect,
        now=lambda: NOW,
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        yield House(folder, client, shelf, store)


def test_a_known_user_gets_what_the_model_says(tmp_path: Path) -> None:
    with house(tmp_path) as h:
        said = h.get("ann", 4)
    # ann liked i1, then i8: nearest to 8 are 7, 9, 6, 10 (the smaller first)
    assert [i["item_id"] for i in said["items"]] == ["i7", "i9", "i6", "i10"]
    assert [i["position"] for i in said["items"]] == [1, 2, 3, 4]
    assert said["items"][0] == {
        "item_id": "i7",
        "title": "Item <b>7</b>",
        "categories": ["odd"],
        "image": None,
        "score": pytest.approx(11 / 12),
        "position": 1,
        "propensity": 1.0,
        "reason": "history",
    }
    assert (said["source"], said["degraded"], said["variant"], said["bundle"]) == ("model", [], "default", "toy-1")
    assert (said["user_id"], said["placement"]) == ("ann", "home")
    assert set(said["trace"]) == {"store", "rank", "log"}


def test_unknown_and_unhappy_users_get_popular_items_without_what_they_saw(tmp_path: Path) -> None:
    with house(tmp_path) as h:
        nobody, bob = h.get("nobody"), h.get("bob")
        again = h.get("bob", 4, "again")
    assert (nobody["source"], nobody["degraded"]) == ("popular", [])
    assert [i["item_id"] for i in nobody["items"]] == ["i0", "i1", "i2", "i4"]  # i3 is not available
    assert (bob["source"], [i["item_id"] for i in bob["items"]]) == ("popular", ["i0", "i1", "i4", "i6"])
    assert [i["item_id"] for i in again["items"]] == ["i0", "i1", "i2", "i4"]


def test_variants_are_collapsed_and_the_slate_filled_from_further_down(tmp_path: Path) -> None:
    with house(tmp_path) as h:
        h.click("eve", "i6")
        # nearest to 6: 5 and 7, then 4 (a variant of 5) and 8, then 3 (not available) and 9
        assert h.items("eve", 3) == ["i5", "i7", "i8"]
        assert h.items("eve", 100) == ["i5", "i7", "i8", "i9", "i2", "i10", "i1", "i11", "i0"]


def test_an_event_changes_the_very_next_answer_and_is_in_the_log(tmp_path: Path) -> None:
    with house(tmp_path) as h:
        assert h.get("eve")["source"] == "popular"
        said = h.click("eve", "i10", request_id="r", position=2, event_id="mine")
        assert said == {
            "accepted": 1,
            "rejected": 0,
            "degraded": [],
            "results": [
                {"status": "accepted", "event_id": "mine", "known_item": True, "reason": None, "place": None}
            ],
        }
        assert h.items("eve", 3) == ["i9", "i11", "i8"]
        assert h.items("eve", 3, "again") == ["i10", "i9", "i11"]
        records = read(tmp_path / "log").records
        past = h.client.get("/v1/users/eve/history").json()
    assert [type(r) for r in records] == [Exposure, Event, Exposure, Exposure]
    shown, clicked = records[2], records[1]
    assert isinstance(shown, Exposure)
    assert (list(shown.items), shown.placement, shown.user_id) == (["i9", "i11", "i8"], "home", "eve")
    assert clicked == Event(
        user_id="eve", item_id="i10", event="click", timestamp=NOW, event_id="mine", request_id="r", position=2
    )
    assert events_frame(tmp_path / "log")["event_id"].to_list() == ["mine"]
    assert (past["total"], past["events"][0]["title"], past["events"][0]["value"]) == (1, "Item <b>10</b>", None)


def test_the_next_start_knows_what_happened(tmp_path: Path) -> None:
    with house(tmp_path) as h:
        h.click("eve", "i10")
    with house(tmp_path) as h:
        assert h.items("eve", 2) == ["i9", "i11"]
        assert h.client.get("/v1/users?limit=2").json()["users"] == ["eve", "bob"]


def test_similar(tmp_path: Path) -> None:
    with house(tmp_path) as h:
        said = h.client.get("/v1/items/i4/similar?k=3").json()
        assert [i["item_id"] for i in said["items"]] == ["i2", "i6", "i1"]  # not i5, its variant, nor i3
        assert said["placement"] == "similar"
        shown = read(tmp_path / "log").records[-1]
        assert isinstance(shown, Exposure)
        assert shown.item_id == "i4"
        assert h.client.get("/v1/items/nothing/similar").status_code == 404


def test_a_store_that_is_away_degrades_and_catches_up(tmp_path: Path) -> None:
    with house(tmp_path) as h:
        h.store.away = True
        said = h.get("ann")
        assert (said["source"], said["degraded"]) == ("popular", ["store"])
        assert h.click("ann", "i11")["degraded"] == ["store"]
        assert h.client.get("/v1/users").json() == {"users": [], "degraded": ["store"]}
        assert h.client.get("/readyz").json()["status"] == "degraded"
        h.service.step()
        h.store.away = False
        assert h.get("ann")["degraded"] == ["stale"]  # it answers, and lacks what happened meanwhile
        h.service.step()
        said = h.get("ann", 2)
        assert (said["degraded"], [i["item_id"] for i in said["items"]]) == ([], ["i10", "i9"])
        assert h.client.get("/readyz").json()["status"] == "ready"


def test_a_store_that_was_emptied_is_filled_from_tables_and_log(tmp_path: Path) -> None:
    with house(tmp_path) as h:
        h.click("eve", "i10")
        h.store.__dict__.update(MemoryStore(RULES).__dict__)
        assert h.get("eve")["degraded"] == ["stale"]
        h.service.step()
        assert (h.items("eve", 1), h.items("ann", 1)) == (["i9"], ["i7"])


def test_starting_while_the_store_is_away(tmp_path: Path) -> None:
    store = Flaky(RULES)
    store.away = True
    with house(tmp_path, store=store) as h:
        assert h.get("ann")["degraded"] == ["store"]
        store.away = False
        h.service.step()
        assert (h.get("ann")["source"], h.get("ann")["degraded"]) == ("model", [])


def test_tables_that_cannot_be_read_leave_the_log(tmp_path: Path) -> None:
    with house(tmp_path) as h:
        h.click("eve", "i10")

    def unreadable(_: DataConfig) -> pl.DataFrame:
        raise DataError("the folder is gone")

    with house(tmp_path, events=unreadable) as h:
        assert (h.items("eve", 1), h.get("ann")["source"]) == (["i9"], "popular")
        assert h.client.get("/readyz").json()["notes"] == {"tables": "the folder is gone"}


def test_bundles_are_followed_and_bad_ones_refused(tmp_path: Path) -> None:
    shelf = ToyShelf(None)
    with house(tmp_path, shelf=shelf) as h:
        assert h.client.get("/healthz").status_code == 200
        assert h.client.get("/readyz").status_code == 503
        for path in (HOME.format("ann", 2, "home"), "/v1/items/i1/similar", "/v1/about", "/v1/users", "/media/i1"):
            said = h.client.get(path)
            assert (said.status_code, said.json()["error"]["code"]) == (503, "no_bundle")
        h.click("eve", "i10")  # kept, though nothing can be recommended yet
        shelf.put("first", toy_bundle(tmp_path))
        h.service.step()
        assert h.items("eve", 1) == ["i9"]
        shelf.put("second", toy_bundle(tmp_path, 30, fingerprint="toy-2"))
        h.service.step()
        assert h.get("ann")["bundle"] == "toy-2"
        shelf.now = "third"  # not there
        h.service.step()
        assert h.get("ann")["bundle"] == "toy-2"
        assert "truncated" in h.client.get("/readyz").json()["notes"]["bundle"]
        shelf.put("fourth", broken(toy_bundle(tmp_path, fingerprint="toy-4")))
        h.service.step()
        assert h.get("ann")["bundle"] == "toy-2"
        assert "does not work" in h.client.get("/readyz").json()["notes"]["bundle"]
        shelf.put("fifth", toy_bundle(tmp_path, fingerprint="toy-5"))
        h.service.step()
        assert h.get("ann")["bundle"] == "toy-5"
        assert h.client.get("/readyz").json() == {"status": "ready", "bundle": "toy-5", "notes": {}}


def test_a_bundle_with_other_seen_rules_brings_its_own_histories(tmp_path: Path) -> None:
    with house(tmp_path) as h:
        h.click("eve", "i10", event="look")
        assert h.get("eve")["source"] == "popular"
        bundle = toy_bundle(tmp_path, fingerprint="toy-2")
        rules = EventRules(positive={"look": None}, seen=None)
        object.__setattr__(bundle, "data", bundle.data.model_copy(update={"events": rules}))
        h.shelf.put("second", bundle)
        h.service.step()
        assert h.items("eve", 1) == ["i9"]


def test_a_model_that_fails_later_degrades(tmp_path: Path) -> None:
    with house(tmp_path) as h:
        object.__setattr__(h.service.live.bundle.recommender, "broken", True)
        said = h.get("ann", 3)
    assert (said["source"], said["degraded"]) == ("popular", ["recommender"])
    assert [i["item_id"] for i in said["items"]] == ["i0", "i2", "i4"]


def test_a_log_that_cannot_be_written_accepts_nothing(tmp_path: Path) -> None:
    with house(tmp_path) as h:
        h.service.log.close()
        sent = {"user_id": "eve", "item_id": "i10", "event": "click"}
        for said in (h.client.post("/v1/events", json=sent), h.client.get(HOME.format("eve", 2, "home"))):
            assert (said.status_code, said.json()["error"]["code"]) == (503, "unavailable")
        assert h.store.read_users(["eve"])[0].items == ()


def test_a_list_of_events_is_judged_one_by_one(tmp_path: Path) -> None:
    good = {
        "user_id": "eve",
        "item_id": "i1",
        "event": "rating",
        "value": 5,
        "timestamp": "2026-01-01T00:00:00+02:00",
    }
    late = {**good, "timestamp": "2027-01-16T23:00:00Z"}
    sent = [good, {**good, "item_id": "new", "value": None}, {**good, "timestamp": "2026-01-01T00:00:00"}, late, 7]
    with house(tmp_path) as h:
        said = h.client.post("/v1/events", content=orjson.dumps(sent))
        past = h.client.get("/v1/users/eve/history").json()["events"]
    assert said.status_code == 202
    assert [said.json()[c] for c in ("accepted", "rejected")] == [2, 3]
    assert [(r["known_item"], r["place"], r["reason"]) for r in said.json()["results"]] == [
        (True, None, None),
        (False, None, None),
        (None, "events[2].timestamp", "has no zone: add Z or an offset such as +01:00"),
        (None, "events[3].timestamp", "is more than a day ahead"),
        (None, "events[4]", "is not an object"),
    ]
    assert [(e["item_id"], e["title"]) for e in past] == [("new", None), ("i1", "Item <b>1</b>")]
    assert past[0]["timestamp"] == 1_767_218_400_000_000


EVENT = {"user_id": "u", "item_id": "i1", "event": "click"}
ODD_BODIES: list[tuple[bytes, int]] = [
    (b"", 400),
    (b"{", 400),
    (b"\xff\xfe", 400),
    (b"null", 422),
    (b"7", 422),
    (b'"x"', 422),
    (b"[]", 422),
    (b"{}", 422),
    (b"[[]]", 422),
    (b"[" * 100_000, 400),
    (b'{"a":' * 5000 + b"1" + b"}" * 5000, 400),
    (b'{"user_id":"u","item_id":"i1","event":"rating","value":NaN}', 400),
    (b'{"user_id":"u","item_id":"i1","event":"rating","value":1e999}', 400),
    (b'{"user_id":"u","item_id":"i1","event":"rating","value":-Infinity}', 400),
    (b'{"user_id":"\\ud800","item_id":"i1","event":"click"}', 400),
    (b'{"user_id":"u","item_id":"i1","event":"click","\\u0000":1}', 422),
    (b'{"user_id":123456789012345678901234567,"item_id":"i1","event":"click"}', 422),
    (b'{"user_id":"u","item_id":"i1","event":"click","position":123456789012345678901234567}', 422),
    (b'{"user_id":"u","item_id":"i1","event":"rating","value":123456789012345678901234567}', 202),
    (b'{"user_id":"u","item_id":"i1","event":"rating","value":true}', 422),
    (b'{"user_id":"u","item_id":"i1","event":"rating","value":"5"}', 422),
    (orjson.dumps([EVENT] * 1001), 422),
    (orjson.dumps([EVENT] * 1000), 202),
    (b" " * ((1 << 20) - 2) + b"{}", 422),
    (b" " * (1 << 20) + b"{}", 413),
    *[
        (orjson.dumps({**EVENT, name: value}), 422)
        for name in ("user_id", "item_id", "event_id", "request_id", "event")
        for value in ("", "a\u0000b", "a\nb", "a\u0085b", "é" * 257, 5, 1.5, [], {})
    ],
    (orjson.dumps({**EVENT, "user_id": "é" * 256, "item_id": "../../etc/passwd", "event_id": "'; DROP"}), 202),
    (orjson.dumps({**EVENT, "event": "e" * 65}), 422),
    *[
        (orjson.dumps({**EVENT, "timestamp": value}), 422)
        for value in (
            0,
            "",
            "now",
            "2026",
            "0001-01-01T00:00:00+14:00",
            "9999-12-31T23:59:59-14:00",
            "1969-12-31T23:59Z",
        )
    ],
    *[(orjson.dumps({**EVENT, "position": value}), 422) for value in (0, -1, 1.0, "1", True, 10_001)],
    (orjson.dumps({**EVENT, "surprise": 1}), 422),
]


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("steady")) as h:
        yield h


@pytest.mark.parametrize(("body", "status"), ODD_BODIES, ids=lambda x: repr(x)[:60] if isinstance(x, bytes) else None)
def test_odd_bodies(steady: House, body: bytes, status: int) -> None:
    said = steady.client.post("/v1/events", content=body, headers={"Content-Type": "application/json"})
    assert said.status_code == status, said.text[:300]
    if status != 202:
        error = said.json()["error"]
        assert set(error) == {"code", "message", "place"}
        assert error["message"]


def test_a_body_without_a_length_is_cut_off(steady: House) -> None:
    taken = []

    def endless() -> Iterator[bytes]:
        for n in range(500):
            taken.append(n)
            yield b" " * 100_000

    said = steady.client.post("/v1/events", content=endless())
    assert said.status_code == 413


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/users/ann/recommendations?k=0", 422, "bad_parameter"),
        ("/v1/users/ann/recommendations?k=101", 422, "bad_parameter"),
        ("/v1/users/ann/recommendations?k=nan", 422, "bad_parameter"),
        ("/v1/users/ann/recommendations?k=123456789012345678901234567", 422, "bad_parameter"),
        ("/v1/users/ann/recommendations?placement=attic", 422, "unknown_placement"),
        ("/v1/users/ann/recommendations?placement=%ED%A0%80", 422, "unknown_placement"),
        ("/v1/users/a%00b/recommendations", 422, "bad_id"),
        ("/v1/users/a%0Ab/history", 404, "not_found"),
        ("/v1/users//recommendations", 422, "bad_id"),
        (f"/v1/users/{'x' * 513}/recommendations", 422, "bad_id"),
        ("/v1/users/ann/history?limit=0", 422, "bad_parameter"),
        ("/v1/items/%00/similar", 422, "bad_id"),
        ("/v1/nothing", 404, "not_found"),
        ("/v1/events", 405, "method_not_allowed"),
        ("/static/..%2fapp.py", 404, "not_found"),
        ("/static/app.py", 404, "not_found"),
    ],
)
def test_odd_requests(steady: House, path: str, status: int, code: str) -> None:
    said = steady.client.get(path)
    assert (said.status_code, said.json()["error"]["code"]) == (status, code)


def test_the_message_names_what_there_is(steady: House) -> None:
    said = steady.client.get("/v1/users/ann/recommendations?placement=attic").json()["error"]
    assert said["message"] == "there is no such placement; there are: home, again"
    assert said["place"] == "placement"


def test_all_routes_share_the_threads(tmp_path: Path) -> None:
    at_work, most, lock = [0], [0], threading.Lock()

    def slow(*args: Any) -> Any:
        with lock:
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
        time.sleep(0.05)
        with lock:
            at_work[0] -= 1
        raise StoreError("away")

    store = Flaky(RULES)
    with house(tmp_path, store=store, threads=1) as h, ThreadPoolExecutor(6) as pool:
        store.read_users = store.recent_users = store.push = slow  # type: ignore[method-assign]
        sent = {"user_id": "eve", "item_id": "i10", "event": "click"}
        asked = [pool.submit(h.client.get, path) for path in ("/v1/users/ann/history", "/v1/users") * 2]
        asked += [pool.submit(h.client.post, "/v1/events", json=sent) for _ in range(2)]
        assert [a.result().json()["degraded"] for a in asked] == [["store"]] * 6
    assert most[0] == 1


@pytest.mark.parametrize("image", ["https://example.org/x.png", "http://example.org/x.png", "x.png"])
def test_the_page_may_show_every_picture_that_is_named(steady: House, image: str) -> None:
    policy = steady.client.get("/").headers["content-security-policy"]
    allowed = next(part for part in policy.split("; ") if part.startswith("img-src")).split()[1:]
    url = media_url("i1", image)
    assert url is not None
    assert (f"{urlsplit(url).scheme}:" if "://" in url else "'self'") in allowed


@pytest.mark.parametrize(("trained_on", "warned"), [(None, True), ("elsewhere", True), ("log/../log", False)])
def test_a_log_that_no_training_reads_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trained_on: str | None, warned: bool
) -> None:
    bundle = toy_bundle(tmp_path)
    folder = None if trained_on is None else str(tmp_path / trained_on)
    bundle = replace(bundle, data=bundle.data.model_copy(update={"log": folder}))
    with caplog.at_level("WARNING", "recsys.serving"), house(tmp_path, shelf=ToyShelf(bundle)):
        said = [r.getMessage() for r in caplog.records if "will not be trained on" in r.getMessage()]
    assert len(said) == warned
    assert all(str(tmp_path / "log") in text and str(folder) in text for text in said)


@pytest.mark.parametrize("user", ["a/b", "é", "a b", "?", "recommendations", "a/recommendations", "<script>"])
def test_any_id_travels_in_a_path(steady: House, user: str) -> None:
    steady.click(user, "i10")
    assert steady.items(quote(user, safe=""), 1) == ["i9"]


def test_openapi_docs_and_page(steady: House) -> None:
    api = steady.client.get("/openapi.json").json()
    assert {"/v1/users/{user_id}/recommendations", "/v1/events", "/healthz"} <= set(api["paths"])
    answer = api["paths"]["/v1/users/{user_id}/recommendations"]["get"]["responses"]["200"]["content"]
    assert answer["application/json"]["schema"]["$ref"].endswith("SlateAnswer")
    for path in ("/", "/docs", "/static/page.js", "/static/page.css", "/static/docs.js", "/static/icon.svg"):
        said = steady.client.get(path)
        assert said.status_code == 200
        assert "default-src 'none'" in said.headers["content-security-policy"]
        assert not re.search(r"""["'`(=]\s*(https?:)?//""", said.text.replace("http://www.w3.org/2000/svg", ""))


def test_about(steady: House) -> None:
    said = steady.client.get("/v1/about").json()
    assert said["click"] == {"event": "rating", "value": 3.5}
    assert said["placements"] == {"home": {"repeats": False}, "again": {"repeats": True}}


PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


def test_media_serves_pictures_of_the_catalogue_and_nothing_else(tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "a b.png").write_bytes(PNG)
    (tables / "page.png").write_text("<script>alert(1)</script>")
    (tmp_path / "outside.png").write_bytes(PNG)
    (tables / "link.png").symlink_to(tmp_path / "outside.png")
    os.mkfifo(tables / "pipe.png")
    images = {
        0: "a b.png",
        1: "../outside.png",
        2: "page.png",
        3: "link.png",
        4: str(tmp_path / "outside.png"),
        5: "/etc/passwd",
        6: "https://example.org/x.png",
        7: "absent.png",
        8: "pipe.png",
        9: ".",
        10: "file:///etc/passwd",
    }
    with house(tmp_path, shelf=ToyShelf(toy_bundle(tables, images=images))) as h:
        got = {row: h.client.get(f"/media/i{row}") for row in range(12)}
        shown = {i["item_id"]: i["image"] for i in h.get("nobody", 20)["items"]}
        assert h.client.get("/media/..%2F..%2Fetc%2Fpasswd").status_code == 404
    assert [row for row in got if got[row].status_code == 200] == [0, 4]
    assert {got[row].status_code for row in got} == {200, 404}
    assert (got[0].content, got[0].headers["content-type"]) == (PNG, "image/png")
    assert "max-age" in got[0].headers["cache-control"]
    assert (shown["i0"], shown["i6"], shown["i11"]) == ("/media/i0", "https://example.org/x.png", None)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["click", "look", "rating", "ask", "again", "away", "back"]),
        st.sampled_from(["ann", "eve"]),
        st.integers(0, 11),
        st.integers(1, 12),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None)
@given(actions=ACTIONS)
def test_no_answer_ever_holds_what_it_must_not(tmp_path_factory: pytest.TempPathFactory, actions: list[Any]) -> None:
    seen = {"ann": {"i1", "i8"}, "eve": set()}
    with house(tmp_path_factory.mktemp("any")) as h:
        for what, user, row, k in actions:
            if what in ("click", "look", "rating"):
                h.click(user, f"i{row}", event=what, value=row / 2)
                seen[user] |= {f"i{row}"} if what != "look" else set()
            elif what in ("away", "back"):
                h.store.away = what == "away"
                h.service.step()
            else:
                said = h.get(user, k, "again" if what == "again" else "home")
                items = [i["item_id"] for i in said["items"]]
                assert len(items) == len(set(items)) <= k
                assert "i3" not in items
                assert not {"i4", "i5"} <= set(items)
                if what == "ask" and not said["degraded"]:
                    assert not seen[user] & set(items)
                    left = {f"i{n}" for n in range(12) if n != 3} - seen[user]
                    assert len(items) == min(k, len(left) - ({"i4", "i5"} <= left))
                assert bool(said["degraded"]) == h.store.away


def test_a_real_server_killed_midway(tmp_path: Path) -> None:
    """The private server is killed with what it held; events go on; it comes back and has everything."""
    shelf = ToyShelf(toy_bundle(tmp_path))
    app = create_app(
        toy_settings(tmp_path, follow_seconds=0.05, store_pause=0.02, store_timeout=2),
        load=shelf.load,
        current=shelf.current,
        events=lambda _: toy_events(),
    )
    with TestClient(app) as client:
        h = House(tmp_path, client, shelf, Flaky(RULES))
        server = app.state.service._server
        assert isinstance(server, RedisServer)
        h.click("eve", "i10")
        assert h.items("eve", 1) == ["i9"]
        first = server.pid
        os.kill(first, signal.SIGKILL)
        said = h.get("eve")
        if said["degraded"]:  # unless it is back already
            assert said["source"] == "popular"
        h.click("eve", "i0")
        until = time.monotonic() + 20
        while (said := h.get("eve", 2))["degraded"]:
            assert time.monotonic() < until, said
            time.sleep(0.02)
        assert [i["item_id"] for i in said["items"]] == ["i1", "i2"]  # nearest to i0
        assert h.items("ann", 1) == ["i7"]
        assert server.pid != first
        past = client.get("/v1/users/eve/history").json()["events"]
        assert [e["item_id"] for e in past] == ["i0", "i10"]


def test_slates_are_read_only_views_of_one_bundle(tmp_path: Path) -> None:
    with house(tmp_path) as h:
        before = h.service.live.bundle.catalog.available.copy()
        h.get("nobody")
        np.testing.assert_array_equal(h.service.live.bundle.catalog.available, before)


def test_the_command_serves_and_stops(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    surroundings = {k: v for k, v in os.environ.items() if k != "REDIS_URL"}
    surroundings |= {
        "RECSYS_SERVE__PORT": str(port),
        "RECSYS_SERVE__LOG": str(tmp_path / "log"),
        "TMPDIR": str(tmp_path),
    }
    command = [
        sys.executable,
        "-c",
        "from recsys.cli import main; main()",
        "serve",
        "--bundles",
        str(tmp_path / "none"),
    ]
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(command, env=surroundings, stdout=said, stderr=said)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
            until = time.monotonic() + 60
            while True:
                assert process.poll() is None, (tmp_path / "said").read_text()
                assert time.monotonic() < until
                try:
                    assert client.get("/healthz").status_code == 200
                    break
                except httpx2.ConnectError:
                    time.sleep(0.05)
            assert "recsys train" in client.get("/readyz").json()["notes"]["bundle"]
            sent = {"user_id": "eve", "item_id": "i1", "event": "click", "event_id": "e"}
            assert client.post("/v1/events", json=sent).status_code == 202
    finally:
        process.terminate()
        process.wait(20)
    assert events_frame(tmp_path / "log")["event_id"].to_list() == ["e"]
    assert not list(tmp_path.glob("recsys-redis-*"))


def test_the_command_fills_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    toy_bundle(tmp_path).catalog.frame.select("item_id", "title").write_parquet(tables / "items.parquet")
    toy_events().write_parquet(tables / "events.parquet")
    config = {
        "name": "toy",
        "data": {"source": "folder", "path": str(tables), "events": RULES.model_dump(), "log": str(tmp_path / "log")},
    }
    (tmp_path / "toy.yaml").write_bytes(orjson.dumps(config))  # JSON is YAML
    log = EventLog(tmp_path / "log")
    log.append_now([Event(user_id="eve", item_id="i1", event="click", timestamp=1, event_id="e")])
    log.close()
    command = ["features", "refresh", str(tmp_path / "toy.yaml"), "--json"]
    monkeypatch.delenv("REDIS_URL", raising=False)
    refused = CliRunner().invoke(cli.app, command)
    assert "REDIS_URL is not set" in str(refused.exception)
    server = RedisServer()
    try:
        monkeypatch.setenv("REDIS_URL", server.url)
        first, second = (orjson.loads(CliRunner().invoke(cli.app, command).stdout) for _ in range(2))
        assert first == {"rebuilt": True, "users": 2, "table_events": 3, "log_events": 1, "items": 3, "damaged": 0}
        assert second == {"rebuilt": False, "users": 0, "table_events": 0, "log_events": 0, "items": 0, "damaged": 0}
    finally:
        server.stop()
