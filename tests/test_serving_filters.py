"""Filters and search for a user, through the API: responses hold all allowed items and no others."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_harness import ServiceHarness, service_harness
from toy_service import ToyShelf, toy_bundle, with_contents

from features.log.reader import read
from features.log.records import EXPOSURES, Exposure


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceHarness]:
    with service_harness(tmp_path_factory.mktemp("narrow")) as harness:
        yield harness


def slate(harness: ServiceHarness, path: str, item_filter: object) -> list[str]:
    response = harness.client.get(f"{path}?limit=20&filter={quote(json.dumps(item_filter))}").json()
    return [item["item_id"] for item in response["items"]]


ANN, ODD = "/v1/users/ann/recommendations", {"categories": ["odd"]}


def test_a_filter_applies_to_every_route(steady: ServiceHarness) -> None:
    # ann has seen i1 and i8, i3 is not available
    assert slate(steady, ANN, ODD) == ["i7", "i9", "i5", "i11"]  # the nearest to i8 first
    assert slate(steady, "/v1/users/nobody/recommendations", ODD) == ["i1", "i5", "i7", "i9", "i11"]  # popular
    assert slate(steady, "/v1/items/i8/similar", ODD) == ["i7", "i9", "i5", "i11", "i1"]
    found = steady.post(text="red", filter=ODD).json()["items"]
    assert [item["item_id"] for item in found] == ["i1", "i5", "i7", "i11"]  # i9 has no content
    files = {"filter": (None, json.dumps(ODD)), "text": (None, "red")}
    assert steady.client.post("/v1/search", files=files).json()["items"] == found


def test_a_variant_is_returned_when_the_filter_excludes_the_other(steady: ServiceHarness) -> None:
    assert slate(steady, ANN, {"items": ["i4", "i5", "i3"]}) == ["i5"]
    assert slate(steady, ANN, {"items": ["i4", "i5"], "exclude": ["i5"]}) == ["i4"]
    assert slate(steady, ANN, {"columns": {"group_id": ["g"]}, "price": [None, 2]}) == ["i5"]
    assert slate(steady, ANN, {"price": [2, None]}) == []


@given(names=st.sets(st.sampled_from([f"i{n}" for n in range(12)])), without=st.booleans())
def test_never_anything_that_is_filtered_hidden_or_seen(
    steady: ServiceHarness, names: set[str], without: bool
) -> None:
    item_filter = {"exclude" if without else "items": sorted(names)}
    allowed = {f"i{n}" for n in range(12)} - names if without else names
    allowed -= {"i3"}
    seen = {"i1", "i8"}
    products = len(allowed - seen) - ({"i4", "i5"} <= allowed)
    items = slate(steady, ANN, item_filter)
    assert set(items) <= allowed - seen
    assert len(items) == products
    assert set(slate(steady, "/v1/users/nobody/recommendations", item_filter)) <= allowed
    assert set(slate(steady, "/v1/items/i2/similar", item_filter)) <= allowed - {"i2"}


@pytest.mark.parametrize(
    ("item_filter", "reason"),
    [
        ("{", "filter"),
        ('{"category": ["odd"]}', "category"),
        ('{"price": [3, 1]}', "give the smaller bound first"),
        ('{"columns": {"colour": ["red"]}}', "column 'colour': the items have none; there are: item_id"),
        ("[]", "filter"),
    ],
)
def test_an_invalid_filter_is_rejected_with_a_reason(steady: ServiceHarness, item_filter: str, reason: str) -> None:
    for path in (ANN, "/v1/items/i1/similar"):
        response = steady.client.get(f"{path}?filter={quote(item_filter)}")
        assert response.status_code == 422
        assert response.json()["code"] == "bad_filter"
        assert reason in response.json()["detail"]
    files = {"filter": (None, item_filter), "text": (None, "red")}
    assert steady.client.post("/v1/search", files=files).status_code == 422


def found(harness: ServiceHarness, **fields: Any) -> list[str]:
    return [item["item_id"] for item in harness.post(text="red", limit=4, **fields).json()["items"]]


def test_the_user_of_a_search_counts_by_weight(steady: ServiceHarness) -> None:
    assert found(steady) == ["i0", "i1", "i2", "i4"]
    assert found(steady, user_id="ann", weight=0) == found(steady)
    assert found(steady, user_id="ann", weight=1) == ["i8", "i7", "i6", "i10"]  # i9 has no content
    assert found(steady, user_id="nobody", weight=1) == found(steady)  # nothing is known of them
    mixed = found(steady, user_id="ann", weight=0.6)
    assert mixed not in (found(steady), found(steady, user_id="ann", weight=1))
    response = steady.post(text="red", user_id="ann").json()
    assert response["user_id"] == "ann"


def test_a_search_ignores_the_user_when_the_store_or_the_recommender_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    query: dict[str, Any] = {"text": "red", "limit": 4, "user_id": "ann", "weight": 1}
    with service_harness(tmp_path) as harness:
        object.__setattr__(harness.service.snapshot.bundle.recommender, "broken", True)
        response = harness.post(**query)
        assert response.status_code == 200, response.text
        assert [item["item_id"] for item in response.json()["items"]] == found(harness)
        assert (response.json()["degraded"], response.json()["user_id"]) == (["recommender"], "ann")
        assert "the recommender failed for a history of 2 items" in caplog.text
        shown = read(tmp_path / "log", stream=EXPOSURES).records[-2]
        assert isinstance(shown, Exposure)
        assert (shown.placement, list(shown.degraded)) == ("search", ["recommender"])
        harness.store.away = True
        response = harness.post(**query | {"user_id": "eve"})  # of whom nothing was read before
        assert [item["item_id"] for item in response.json()["items"]] == found(harness)
        assert (response.status_code, response.json()["degraded"]) == (200, ["store"])


@pytest.mark.parametrize(
    ("field", "value"), [("weight", 1.5), ("weight", "much"), ("user_id", ""), ("user_id", "a\n")]
)
def test_user_and_weight_are_checked(steady: ServiceHarness, field: str, value: object) -> None:
    response = steady.post(text="red", **{field: value})
    assert response.status_code == 422
    assert response.json()["place"] == field


def test_readyz_reports_a_retriever_that_differs_from_the_configured_one(tmp_path: Path) -> None:
    from dataclasses import replace

    bundle = replace(with_contents(toy_bundle(tmp_path)), note="no GPU is here")
    with service_harness(tmp_path, shelf=ToyShelf(bundle)) as harness:
        response = harness.client.get("/readyz")
        assert (response.status_code, response.json()["status"]) == (200, "degraded")
        assert response.json()["notes"]["retriever"] == "no GPU is here"
