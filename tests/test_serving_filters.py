"""Filters and searching for someone, through the API: what may come does, and never anything else."""

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

from features.log.event_log import read
from features.log.records import Exposure


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceHarness]:
    with service_harness(tmp_path_factory.mktemp("narrow")) as harness:
        yield harness


def slate(harness: ServiceHarness, path: str, asked: object) -> list[str]:
    said = harness.client.get(f"{path}?k=20&filter={quote(json.dumps(asked))}").json()
    return [item["item_id"] for item in said["items"]]


ANN, ODD = "/v1/users/ann/recommendations", {"categories": ["odd"]}


def test_a_filter_narrows_every_answer(steady: ServiceHarness) -> None:
    # ann has seen i1 and i8, i3 is not to be had
    assert slate(steady, ANN, ODD) == ["i7", "i9", "i5", "i11"]  # the nearest to i8 first
    assert slate(steady, "/v1/users/nobody/recommendations", ODD) == ["i1", "i5", "i7", "i9", "i11"]  # popular
    assert slate(steady, "/v1/items/i8/similar", ODD) == ["i7", "i9", "i5", "i11", "i1"]
    found = steady.post(text="red", filter=ODD).json()["items"]
    assert [item["item_id"] for item in found] == ["i1", "i5", "i7", "i11"]  # i9 has no content
    files = {"filter": (None, json.dumps(ODD)), "text": (None, "red")}
    assert steady.client.post("/v1/search", files=files).json()["items"] == found


def test_other_variants_come_where_one_is_not_let_through(steady: ServiceHarness) -> None:
    assert slate(steady, ANN, {"items": ["i4", "i5", "i3"]}) == ["i5"]
    assert slate(steady, ANN, {"items": ["i4", "i5"], "exclude": ["i5"]}) == ["i4"]
    assert slate(steady, ANN, {"columns": {"group_id": ["g"]}, "price": [None, 2]}) == ["i5"]
    assert slate(steady, ANN, {"price": [2, None]}) == []


@given(wanted=st.sets(st.sampled_from([f"i{n}" for n in range(12)])), without=st.booleans())
def test_never_anything_that_is_filtered_hidden_or_seen(
    steady: ServiceHarness, wanted: set[str], without: bool
) -> None:
    asked = {"exclude" if without else "items": sorted(wanted)}
    left = {f"i{n}" for n in range(12)} - wanted if without else wanted
    left -= {"i3"}
    seen = {"i1", "i8"}
    products = len(left - seen) - ({"i4", "i5"} <= left)
    got = slate(steady, ANN, asked)
    assert set(got) <= left - seen
    assert len(got) == products
    assert set(slate(steady, "/v1/users/nobody/recommendations", asked)) <= left
    assert set(slate(steady, "/v1/items/i2/similar", asked)) <= left - {"i2"}


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("{", "filter"),
        ('{"category": ["odd"]}', "category"),
        ('{"price": [3, 1]}', "give the smaller bound first"),
        ('{"columns": {"colour": ["red"]}}', "column 'colour': the items have none; there are: item_id"),
        ("[]", "filter"),
    ],
)
def test_what_is_no_filter_is_refused_and_says_why(steady: ServiceHarness, asked: str, why: str) -> None:
    for path in (ANN, "/v1/items/i1/similar"):
        said = steady.client.get(f"{path}?filter={quote(asked)}")
        assert said.status_code == 422
        assert said.json()["error"]["code"] == "bad_filter"
        assert why in said.json()["error"]["message"]
    files = {"filter": (None, asked), "text": (None, "red")}
    assert steady.client.post("/v1/search", files=files).status_code == 422


def found(harness: ServiceHarness, **asked: Any) -> list[str]:
    return [item["item_id"] for item in harness.post(text="red", k=4, **asked).json()["items"]]


def test_who_searches_has_a_say_by_weight(steady: ServiceHarness) -> None:
    assert found(steady) == ["i0", "i1", "i2", "i4"]
    assert found(steady, user_id="ann", weight=0) == found(steady)
    assert found(steady, user_id="ann", weight=1) == ["i8", "i7", "i6", "i10"]  # i9 has no content
    assert found(steady, user_id="nobody", weight=1) == found(steady)  # nothing is known of them
    mixed = found(steady, user_id="ann", weight=0.6)
    assert mixed not in (found(steady), found(steady, user_id="ann", weight=1))
    said = steady.post(text="red", user_id="ann").json()
    assert said["user_id"] == "ann"


def test_who_searches_has_no_say_where_the_store_or_their_model_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked: dict[str, Any] = {"text": "red", "k": 4, "user_id": "ann", "weight": 1}
    with service_harness(tmp_path) as harness:
        object.__setattr__(harness.service.snapshot.bundle.recommender, "broken", True)
        said = harness.post(**asked)
        assert said.status_code == 200, said.text
        assert [item["item_id"] for item in said.json()["items"]] == found(harness)
        assert (said.json()["degraded"], said.json()["user_id"]) == (["recommender"], "ann")
        assert "the recommender failed for a history of 2 items" in caplog.text
        shown = read(tmp_path / "log").records[-2]
        assert isinstance(shown, Exposure)
        assert (shown.placement, list(shown.degraded)) == ("search", ["recommender"])
        harness.store.away = True
        said = harness.post(**asked)
        assert [item["item_id"] for item in said.json()["items"]] == found(harness)
        assert (said.status_code, said.json()["degraded"]) == (200, ["store"])


@pytest.mark.parametrize(
    ("field", "value"), [("weight", 1.5), ("weight", "much"), ("user_id", ""), ("user_id", "a\n")]
)
def test_who_and_how_much_are_checked(steady: ServiceHarness, field: str, value: object) -> None:
    said = steady.post(text="red", **{field: value})
    assert said.status_code == 422
    assert said.json()["error"]["place"] == field


def test_a_retriever_that_is_not_the_one_asked_for_is_told(tmp_path: Path) -> None:
    from dataclasses import replace

    bundle = replace(with_contents(toy_bundle(tmp_path)), note="no GPU is here")
    with service_harness(tmp_path, shelf=ToyShelf(bundle)) as harness:
        said = harness.client.get("/readyz")
        assert (said.status_code, said.json()["status"]) == (200, "degraded")
        assert said.json()["notes"]["retriever"] == "no GPU is here"
