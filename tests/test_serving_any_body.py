"""Bodies that hypothesis makes, on every route that takes one: the answer is never a 500."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service_harness import ServiceHarness, service_harness

ROUTES = {
    ("POST", "/v1/events"): (
        "user_id",
        "item_id",
        "event",
        "timestamp",
        "value",
        "event_id",
        "request_id",
        "position",
    ),
    ("POST", "/v1/rank"): ("user_id", "items", "title", "item_id"),
    ("POST", "/v1/recommendations"): (
        *("user_id", "session", "items", "exclude", "limit", "placement", "filter", "explain", "cursor"),
    ),
    ("POST", "/v1/search"): ("text", "image", "audio", "video", "limit", "filter", "user_id", "weight", "cursor"),
    ("PUT", "/v1/items/x"): (
        *("title", "description", "categories", "price", "published_at", "available", "group_id", "image", "audio"),
    ),
    ("PATCH", "/v1/items/i1"): ("title", "categories", "price", "available", "image", "video"),
    ("POST", "/v1/users/ann/merge"): ("from",),
    ("POST", "/v1/recommendations/lists"): ("user_id", "session", "items", "exclude", "lists"),
    ("POST", "/v1/items"): ("item_id", "title", "categories", "price", "available", "image"),
}
"""Method and path -> fields of the body."""

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.sampled_from(
        ["i1", "ann", "home", "click", "red", "2024-01-01T00:00:00Z", "9" * 500, "\ud800", "https://x.y/z"]
    ),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["item_id", "event", "categories", "price", "exclude", "columns", "z"]), inner
        ),
    ),
    max_leaves=8,
)


def bodies(fields: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """Objects of the fields of a route, lists of them, and anything else."""
    objects = st.dictionaries(st.sampled_from(fields), VALUES)
    return st.one_of(objects, st.lists(objects, max_size=3), VALUES)


CALLS = st.sampled_from(sorted(ROUTES)).flatmap(lambda route: st.tuples(st.just(route), bodies(ROUTES[route])))


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceHarness]:
    with service_harness(tmp_path_factory.mktemp("bodies")) as running:
        yield running


def check(harness: ServiceHarness, route: tuple[str, str], body: Any) -> None:
    method, path = route
    kind = "application/x-ndjson" if path == "/v1/items" else "application/json"
    response = harness.client.request(method, path, content=json.dumps(body).encode(), headers={"Content-Type": kind})
    assert response.status_code in (200, 202, 400, 404, 409, 410, 413, 422, 503), response.text
    if response.status_code == 503:  # items that were put may be embedded at this moment
        assert response.json()["code"] == "busy", response.text


@settings(max_examples=200, deadline=None, suppress_health_check=[*HealthCheck])
@given(call=CALLS)
def test_no_body_makes_the_service_fail(harness: ServiceHarness, call: Any) -> None:
    check(harness, *call)


@pytest.mark.soak
@settings(max_examples=2000, deadline=None, suppress_health_check=[*HealthCheck])
@given(call=CALLS)
def test_2000_bodies_do_not_make_the_service_fail(harness: ServiceHarness, call: Any) -> None:
    check(harness, *call)
