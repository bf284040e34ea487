"""Lists of the caller in order for a user: known items by the model, unknown ones last."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from service_harness import ServiceHarness, service_harness
from toy_service import broken


def rank(harness: ServiceHarness, user: str, items: list[str]) -> Any:
    response = harness.client.post("/v1/rank", content=orjson.dumps({"user_id": user, "items": items}))
    assert response.status_code == 200, response.text
    return response.json()


def test_known_items_are_in_order_and_unknown_ones_come_last(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        # ann's last positive item is i8; an item that she has seen, one that is not available, and variants stay
        answer = rank(harness, "ann", ["i1", "x", "i8", "i3", "i4", "i9", "i5", "y", "i9"])
        assert [item["item_id"] for item in answer["items"]] == ["i8", "i9", "i5", "i4", "i3", "i1", "x", "y"]
        assert [item["known"] for item in answer["items"]] == [True] * 6 + [False] * 2
        assert [item["position"] for item in answer["items"]] == [*range(1, 9)]
        assert answer["items"][0]["score"] == 1
        assert [item["score"] for item in answer["items"][6:]] == [None, None]
        assert {name: answer[name] for name in ("user_id", "bundle", "source", "degraded")} == {
            "user_id": "ann",
            "bundle": "toy-1",
            "source": "model",
            "degraded": [],
        }
        assert set(answer["trace"]) == {"store", "rank"}
        assert harness.client.delete("/v1/items/i9").status_code == 200
        again = rank(harness, "ann", ["i9", "i8"])
        assert [(item["item_id"], item["known"]) for item in again["items"]] == [("i8", True), ("i9", False)]


def test_users_without_positive_items_get_the_order_by_popularity(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        for user in ("nobody", "bob"):
            answer = rank(harness, user, ["i7", "i0", "i2"])
            assert [item["item_id"] for item in answer["items"]] == ["i0", "i2", "i7"]
            assert (answer["source"], answer["degraded"]) == ("popular", [])
        assert rank(harness, "bob", ["x"])["items"] == [
            {"item_id": "x", "position": 1, "score": None, "probability": None, "known": False}
        ]
        harness.store.away = True
        answer = rank(harness, "ann", ["i7", "i0", "i2"])
        assert [item["item_id"] for item in answer["items"]] == ["i0", "i2", "i7"]
        assert (answer["source"], answer["degraded"]) == ("popular", ["store"])


def test_a_model_that_fails_does_not_fail_the_request(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.service.catalog_updater.snapshot = replace(
            harness.service.snapshot, bundle=broken(harness.service.snapshot.bundle)
        )
        answer = rank(harness, "ann", ["i7", "i0", "i2"])
    assert [item["item_id"] for item in answer["items"]] == ["i0", "i2", "i7"]
    assert (answer["source"], answer["degraded"]) == ("popular", ["recommender"])


@pytest.mark.parametrize(
    ("body", "status", "place"),
    [
        ({"user_id": "ann"}, 422, "items"),
        ({"user_id": "ann", "items": []}, 422, "items"),
        ({"user_id": "ann", "items": ["i1"] * 1001}, 422, "items"),
        ({"user_id": "ann", "items": ["i1", "a\nb"]}, 422, "items.1"),
        ({"user_id": "", "items": ["i1"]}, 422, "user_id"),
        ({"user_id": "ann", "items": ["i1"], "k": 3}, 422, "k"),
        ([], 422, "body"),
    ],
)
def test_bad_lists(body: Any, status: int, place: str, tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        response = harness.client.post("/v1/rank", content=orjson.dumps(body))
    assert (response.status_code, response.json()["error"]["place"]) == (status, place)
    assert response.json()["error"]["code"] == "bad_list"
