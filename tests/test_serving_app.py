"""The service through its API: recommendations, similar items, media, degraded responses, slate invariants."""

import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from service_harness import Flaky, ServiceHarness, service_harness
from toy_service import NOW, RULES, ToyShelf, toy_bundle, toy_upsert

from features.errors import StoreError
from features.log.reader import events_frame, read
from features.log.records import EXPOSURES, Event, Exposure
from features.store.memory import MemoryStore
from features.store.user_state import UserState
from recsys.retrieval.filters import Filter
from serving.schemas.fields import media_url
from serving.state.snapshot import ServingSnapshot


def test_a_known_user_gets_the_recommendations_of_the_model(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        response = harness.get("ann", 4)
    # ann's positive items are i1, then i8: nearest to row 8 are 7, 9, 6, 10 (the smaller row wins ties)
    assert [i["item_id"] for i in response["items"]] == ["i7", "i9", "i6", "i10"]
    assert [i["position"] for i in response["items"]] == [1, 2, 3, 4]
    assert response["items"][0] == {
        "item_id": "i7",
        "title": "Item <b>7</b>",
        "categories": ["odd"],
        "image": None,
        "price": 1.0,
        "score": pytest.approx(11 / 12),
        "position": 1,
        "propensity": 1.0,
        "reason": "history",
        "explored": False,
    }
    assert (response["source"], response["degraded"], response["variant"], response["bundle"]) == (
        "model",
        [],
        "default",
        "toy-1",
    )
    assert (response["user_id"], response["placement"]) == ("ann", "home")
    assert set(response["trace"]) == {"store", "rank", "log"}


def test_users_without_positive_items_get_popular_items_without_seen_ones(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        nobody, bob = harness.get("nobody"), harness.get("bob")
        again = harness.get("bob", 4, "again")
    assert (nobody["source"], nobody["degraded"]) == ("popular", [])
    assert [i["item_id"] for i in nobody["items"]] == ["i0", "i1", "i2", "i4"]  # i3 is not available
    assert (bob["source"], [i["item_id"] for i in bob["items"]]) == ("popular", ["i0", "i1", "i4", "i6"])
    assert [i["item_id"] for i in again["items"]] == ["i0", "i1", "i2", "i4"]


def test_a_slate_has_one_variant_of_each_product_and_is_filled_up(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.click("eve", "i6")
        # nearest to 6: 5 and 7, then 4 (a variant of 5) and 8, then 3 (not available) and 9
        assert harness.items("eve", 3) == ["i5", "i7", "i8"]
        assert harness.items("eve", 100) == ["i5", "i7", "i8", "i9", "i2", "i10", "i1", "i11", "i0"]


def test_an_event_affects_the_next_response_and_is_in_the_log(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        assert harness.get("eve")["source"] == "popular"
        response = harness.click("eve", "i10", request_id="r", position=2, event_id="mine")
        assert response == {
            "accepted": 1,
            "rejected": 0,
            "degraded": [],
            "results": [
                {"status": "accepted", "event_id": "mine", "known_item": True, "reason": None, "place": None}
            ],
        }
        assert harness.items("eve", 3) == ["i9", "i11", "i8"]
        assert harness.items("eve", 3, "again") == ["i10", "i9", "i11"]
        (clicked,) = read(tmp_path / "log").records
        exposures = read(tmp_path / "log", stream=EXPOSURES).records
        past = harness.client.get("/v1/users/eve/history").json()
    assert [type(r) for r in exposures] == [Exposure, Exposure, Exposure]
    shown = exposures[1]
    assert isinstance(shown, Exposure)
    assert (list(shown.items), shown.placement, shown.user_id) == (["i9", "i11", "i8"], "home", "eve")
    assert clicked == Event(
        user_id="eve", item_id="i10", event="click", timestamp=NOW, event_id="mine", request_id="r", position=2
    )
    assert events_frame(tmp_path / "log")["event_id"].to_list() == ["mine"]
    assert (past["total"], past["events"][0]["title"], past["events"][0]["value"]) == (1, "Item <b>10</b>", None)


def test_events_survive_a_restart(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.click("eve", "i10")
    with service_harness(tmp_path) as harness:
        assert harness.items("eve", 2) == ["i9", "i11"]
        assert harness.client.get("/v1/users?limit=2").json()["users"] == ["eve", "bob"]


def test_similar(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        response = harness.client.get("/v1/items/i4/similar?limit=3").json()
        assert [i["item_id"] for i in response["items"]] == ["i2", "i6", "i1"]  # neither i5, its variant, nor i3
        assert response["placement"] == "similar"
        shown = read(tmp_path / "log", stream=EXPOSURES).records[-1]
        assert isinstance(shown, Exposure)
        assert shown.item_id == "i4"
        assert harness.client.get("/v1/items/nothing/similar").status_code == 404


def test_similar_items_have_a_similarity_by_channel(steady: ServiceHarness) -> None:
    response = steady.client.get("/v1/items/i0/similar?limit=4").json()
    assert [item["item_id"] for item in response["items"]] == ["i1", "i2", "i4", "i6"]
    near = [item["near"] for item in response["items"]]
    assert [similarity["behaviour"] for similarity in near] == [item["score"] for item in response["items"]]
    cosines = [np.cos(np.radians(8 * row)) for row in (1, 2, 4, 6)]
    assert [similarity["text"] for similarity in near] == [pytest.approx(c, abs=1e-6) for c in cosines]
    assert [similarity["image"] for similarity in near] == [None, 0.0, 1.0, 0.0]  # i0 and i4 have green pictures
    of_i9 = steady.client.get("/v1/items/i9/similar?limit=1").json()["items"][0]["near"]
    assert (of_i9["text"], of_i9["image"]) == (None, None)


def test_a_model_that_fails_later_degrades(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        object.__setattr__(harness.service.snapshot.bundle.recommender, "broken", True)
        response = harness.get("ann", 3)
    assert (response["source"], response["degraded"]) == ("popular", ["recommender"])
    assert [i["item_id"] for i in response["items"]] == ["i0", "i2", "i4"]


def test_a_log_that_cannot_be_written_accepts_nothing(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.service.log.close()
        response = harness.client.post("/v1/events", json={"user_id": "eve", "item_id": "i10", "event": "click"})
        assert response.status_code == 503
        assert (response.json()["code"], response.json()["place"]) == ("unavailable", "log")
        assert harness.store.read_users(["eve"])[0].items == ()


def test_all_routes_share_one_thread_limit(tmp_path: Path) -> None:
    running, maximum, lock = [0], [0], threading.Lock()

    def slow(*args: Any, **named: Any) -> Any:
        with lock:
            running[0] += 1
            maximum[0] = max(maximum[0], running[0])
        time.sleep(0.05)
        with lock:
            running[0] -= 1
        raise StoreError("away")

    store = Flaky(RULES)
    with service_harness(tmp_path, store=store, threads=1) as harness, ThreadPoolExecutor(6) as pool:
        store.read_users = store.recent_users = store.push = slow  # type: ignore[method-assign]
        sent = {"user_id": "eve", "item_id": "i10", "event": "click"}
        pending = [pool.submit(harness.client.get, path) for path in ("/v1/users/ann/history", "/v1/users") * 2]
        pending += [pool.submit(harness.client.post, "/v1/events", json=sent) for _ in range(2)]
        assert [future.result().json()["degraded"] for future in pending] == [["store"]] * 6
    assert maximum[0] == 1


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceHarness]:
    with service_harness(tmp_path_factory.mktemp("steady")) as harness:
        yield harness


@pytest.mark.parametrize("image", ["https://example.org/x.png", "http://example.org/x.png", "x.png"])
def test_the_content_security_policy_allows_every_image_url(steady: ServiceHarness, image: str) -> None:
    policy = steady.client.get("/").headers["content-security-policy"]
    allowed = next(part for part in policy.split("; ") if part.startswith("img-src")).split()[1:]
    url = media_url("i1", image)
    assert url is not None
    assert (f"{urlsplit(url).scheme}:" if "://" in url else "'self'") in allowed


@pytest.mark.parametrize("user", ["a/b", "é", "a b", "?", "recommendations", "a/recommendations", "<script>"])
def test_any_id_travels_in_a_path(steady: ServiceHarness, user: str) -> None:
    steady.click(user, "i10")
    assert steady.items(quote(user, safe=""), 1) == ["i9"]


def test_openapi_docs_and_page(steady: ServiceHarness) -> None:
    api = steady.client.get("/openapi.json").json()
    assert {"/v1/users/{user_id}/recommendations", "/v1/events", "/healthz"} <= set(api["paths"])
    content = api["paths"]["/v1/users/{user_id}/recommendations"]["get"]["responses"]["200"]["content"]
    assert content["application/json"]["schema"]["$ref"].endswith("RecommendationsResponse")
    for path in ("/", "/map", "/docs", "/static/shop/main.js", "/static/page.css", "/static/icon.svg"):
        response = steady.client.get(path)
        assert response.status_code == 200
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert not re.search(r"""["'`(=]\s*(https?:)?//""", response.text.replace("http://www.w3.org/2000/svg", ""))


def test_the_api_is_described(steady: ServiceHarness) -> None:
    api = steady.client.get("/openapi.json").json()
    body = api["paths"]["/v1/search"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    fields = api["components"]["schemas"]["SearchIn"]["properties"]
    assert set(fields) == {"text", "image", "audio", "video", "limit", "filter", "user_id", "weight", "cursor"}
    assert fields["filter"]["anyOf"][0] == {"$ref": "#/components/schemas/Filter"}


def test_about(steady: ServiceHarness) -> None:
    response = steady.client.get("/v1/about").json()
    assert response["reactions"] == {
        "like": {"event": "rating", "value": 3.5},
        "dislike": {"event": "rating", "value": 1.0},
        "not_interested": None,  # it would neither be positive nor hide the item
    }
    assert response["filters"] == {"categories": ["even", "odd"], "price": [1.0, 1.0], "columns": {}}
    assert response["placements"] == {"home": {"repeats": False}, "again": {"repeats": True}}


PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


def test_media_serves_images_of_the_catalogue_and_nothing_else(tmp_path: Path) -> None:
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
    with service_harness(tmp_path, shelf=ToyShelf(toy_bundle(tables, images=images))) as harness:
        responses = {row: harness.client.get(f"/media/i{row}") for row in range(12)}
        shown = {i["item_id"]: i["image"] for i in harness.get("nobody", 20)["items"]}
        assert harness.client.get("/media/..%2F..%2Fetc%2Fpasswd").status_code == 404
    assert [row for row in responses if responses[row].status_code == 200] == [0, 4]
    assert {responses[row].status_code for row in responses} == {200, 404}
    assert (responses[0].content, responses[0].headers["content-type"]) == (PNG, "image/png")
    assert "max-age" in responses[0].headers["cache-control"]
    assert (shown["i0"], shown["i6"], shown["i11"]) == ("/media/i0", "https://example.org/x.png", None)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["click", "look", "rating", "home", "again", "away", "back"]),
        st.sampled_from(["ann", "eve"]),
        st.integers(0, 11),
        st.integers(1, 12),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None)
@given(actions=ACTIONS)
# edges that random actions seldom reach: the first row, a user who has seen everything, a value at the threshold of a
# positive event, variants of one product, an event while the store is away
@example(actions=[("click", "eve", 0, 1), ("home", "eve", 0, 12), ("again", "eve", 0, 12)])
@example(actions=[*(("click", "eve", row, 1) for row in range(12)), ("home", "eve", 0, 12), ("again", "eve", 0, 1)])
@example(actions=[("rating", "eve", 7, 1), ("home", "eve", 0, 12), ("rating", "ann", 6, 1), ("home", "ann", 0, 12)])
@example(actions=[("click", "eve", 4, 1), ("home", "eve", 0, 12), ("click", "eve", 5, 1), ("home", "eve", 0, 9)])
@example(actions=[("away", "eve", 0, 1), ("click", "eve", 0, 1), ("home", "eve", 0, 12)])
@example(actions=[("away", "eve", 0, 1), ("click", "eve", 0, 1), ("back", "eve", 0, 1), ("home", "eve", 0, 12)])
def test_no_slate_ever_holds_hidden_seen_or_duplicate_items(
    tmp_path_factory: pytest.TempPathFactory, actions: list[Any]
) -> None:
    seen = {"ann": {"i1", "i8"}, "eve": set()}
    with service_harness(tmp_path_factory.mktemp("any")) as harness:
        for action, user, row, k in actions:
            if action in ("click", "look", "rating"):
                harness.click(user, f"i{row}", event=action, value=row / 2)
                seen[user] |= {f"i{row}"} if action != "look" else set()
            elif action in ("away", "back"):
                harness.store.away = action == "away"
                harness.service.step()
            else:
                response = harness.get(user, k, action)
                items = [i["item_id"] for i in response["items"]]
                assert len(items) == len(set(items)) <= k
                assert "i3" not in items
                assert not {"i4", "i5"} <= set(items)
                if action == "home" and not response["degraded"]:
                    assert not seen[user] & set(items)
                    allowed = {f"i{n}" for n in range(12) if n != 3} - seen[user]
                    assert len(items) == min(k, len(allowed) - ({"i4", "i5"} <= allowed))
                assert bool(response["degraded"]) == harness.store.away


def test_requests_do_not_change_the_catalogue(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        before = harness.service.snapshot.bundle.catalog.available.copy()
        harness.get("nobody")
        np.testing.assert_array_equal(harness.service.snapshot.bundle.catalog.available, before)


def test_an_item_is_shown_from_its_publication_time_on(tmp_path: Path) -> None:
    now, bundle = [1_000], toy_bundle(tmp_path)
    published = bundle.catalog.published.copy()
    published[[1, 2, 3]] = 1_000, 1_001, 1_001  # 3 is not available at any time
    bundle = replace(bundle, catalog=replace(bundle.catalog, published=published))
    snapshot = ServingSnapshot.of(bundle, MemoryStore(RULES), lambda: now[0])

    def shown(snapshot: ServingSnapshot) -> list[int]:
        return np.flatnonzero(snapshot.allowed()[:5]).tolist()

    unfiltered = snapshot.with_filter(Filter())
    assert shown(snapshot) == shown(unfiltered) == [0, 1, 4]
    assert snapshot.popular(np.array([0]), 2, {}).slate.items == ("i1", "i4")
    now[0] = 1_001
    assert shown(snapshot) == shown(unfiltered) == [0, 1, 2, 4]
    republished = bundle.catalog.frame[:1].with_columns(published_at=pl.lit(2_000).cast(pl.Datetime("us", "UTC")))
    upserted = snapshot.with_upserts(
        toy_upsert(bundle, republished, {}), ["i0"]
    )  # put again, with a later publication time
    assert shown(upserted) == [1, 2, 4]
    now[0] = 2_000
    assert shown(upserted) == [0, 1, 2, 4]


def test_user_states_of_a_small_history(tmp_path: Path) -> None:
    snapshot = ServingSnapshot.of(toy_bundle(tmp_path), MemoryStore(RULES))
    names, items = ("rating", "share", "click", "rating"), ("i1", "i2", "gone", "i9")
    rows = zip(items, names, (3.0, None, None, 4.0), (1, 2, 3, 4), strict=True)
    events = [Event(user_id="ann", item_id=i, event=name, value=v, timestamp=at) for i, name, v, at in rows]
    states = snapshot.states([UserState.of(events, RULES)], now=9)
    assert states.items.flat.tolist() == [1, 2, 9]  # the third is not in the bundle
    assert states.types is not None
    assert states.types.tolist() == [2, 0, 2]  # other event types than click and rating are unknown (0)
    assert states.positive.tolist() == [False, False, True]
    assert states.seen.tolist() == [True, False, True]
    assert (states.times.tolist(), states.as_of.tolist()) == ([1, 2, 4], [9])
