"""Several lists of recommendations in one call."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service_harness import ServiceHarness, service_harness

from features.log.reader import read
from features.log.records import EXPOSURES, Exposure

PATH = "/v1/recommendations/lists"


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[ServiceHarness]:
    with service_harness(tmp_path) as running:
        yield running


def lists(harness: ServiceHarness, **body: Any) -> list[list[str]]:
    response = harness.client.post(PATH, json=body)
    assert response.status_code == 200, response.text
    return [[item["item_id"] for item in found["items"]] for found in response.json()["lists"]]


def test_no_list_shows_an_item_or_a_product_of_another_one(harness: ServiceHarness) -> None:
    alone = lists(harness, user_id="ann", lists=[{"limit": 8}])[0]
    assert alone == harness.items("ann", 8)
    # the first list is as it is alone; the second begins where it ends: both are of one placement
    assert lists(harness, user_id="ann", lists=[{"limit": 3}, {"limit": 3}]) == [alone[:3], alone[3:6]]
    # i4 and i5 are variants of one product: whichever the first list shows, the second shows neither
    of_four = {"limit": 1, "filter": {"items": ["i4"]}}
    of_five = {"limit": 5, "filter": {"items": ["i5", "i6"]}}
    assert lists(harness, user_id="nobody", lists=[of_four, of_five]) == [["i4"], ["i6"]]
    assert lists(harness, user_id="nobody", lists=[of_five, of_four]) == [["i5", "i6"], []]


def test_each_list_has_its_placement_its_session_and_an_exposure(harness: ServiceHarness) -> None:
    body = {
        "user_id": "ann",
        "session": [{"item_id": "i10", "event": "click"}],
        "exclude": ["i9"],
        "lists": [{"limit": 2}, {"limit": 2, "placement": "again", "explain": True}],
    }
    response = harness.client.post(PATH, json=body).json()
    first, second = response["lists"]
    assert [item["item_id"] for item in first["items"]] == ["i11", "i7"]  # nearest to i10; ann has seen i8
    assert [item["item_id"] for item in second["items"]] == ["i10", "i8"]  # `again` repeats what was seen
    assert (first["placement"], second["placement"]) == ("home", "again")
    assert ("why" in first["items"][0], "why" in second["items"][0]) == (False, True)
    call = first["request_id"].removesuffix(".1")
    assert (first["request_id"], second["request_id"]) == (f"{call}.1", f"{call}.2")
    assert (first["cursor"], second["cursor"]) == (None, None)
    logged = [
        record for record in read(harness.folder / "log", stream=EXPOSURES).records if isinstance(record, Exposure)
    ]
    assert {record.request_id: (record.placement, tuple(record.items)) for record in logged} == {
        f"{call}.1": ("home", ("i11", "i7")),
        f"{call}.2": ("again", ("i10", "i8")),
    }


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"lists": []}, "lists"),
        ({"lists": [{}] * 11}, "lists"),
        ({"user_id": "ann"}, "lists"),
        ({"lists": [{"limit": 0}]}, "lists.0.limit"),
        ({"lists": [{"cursor": "x"}]}, "lists.0.cursor"),
        ({"lists": [{}], "cursor": "x"}, "cursor"),
        ({"lists": [{}], "session": [{"item_id": "i1", "event": "clikc"}]}, "session[0].event"),
    ],
)
def test_what_is_refused(harness: ServiceHarness, body: Any, place: str) -> None:
    response = harness.client.post(PATH, json=body)
    assert (response.status_code, response.json()["code"]) == (422, "bad_recommendations"), response.text
    assert response.json()["place"] == place


def test_an_unknown_placement_in_any_list(harness: ServiceHarness) -> None:
    response = harness.client.post(PATH, json={"lists": [{}, {"placement": "attic"}]})
    assert (response.status_code, response.json()["code"]) == (422, "unknown_placement")
    assert not [*read(harness.folder / "log", stream=EXPOSURES).records]  # nothing of it was shown
