"""Lists of the caller in order for a user: known items by the model, unknown ones last."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from service_harness import ServiceHarness, service_harness
from toy_service import ToyShelf, broken, toy_bundle


def rank(harness: ServiceHarness, user: str, items: list[Any]) -> Any:
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
            {
                "item_id": "x",
                "position": 1,
                "score": None,
                "probability": None,
                "known": False,
                "by_content": False,
            }
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


def facts(answer: Any) -> list[tuple[str, bool, bool]]:
    return [(item["item_id"], item["known"], item["by_content"]) for item in answer["items"]]


def test_items_that_the_bundle_lacks_are_placed_by_their_content(tmp_path: Path) -> None:
    items = ["y", {"item_id": "x", "title": "red", "categories": ["new"]}, "i0", {"item_id": "i11", "title": "x"}]
    with service_harness(tmp_path) as harness:
        # the toy bundle gives x the row 12; nearest to row 8, ann's last item, are 11 and then 12
        answer = rank(harness, "ann", items)
        assert facts(answer) == [("i11", True, False), ("x", False, True), ("i0", True, False), ("y", False, False)]
        assert (answer["source"], answer["degraded"], answer["bundle"]) == ("model", [], "toy-1")
        assert set(answer["trace"]) == {"store", "encode", "rank"}
        assert answer["items"][1]["score"] == pytest.approx(1 - 4 / 13 - 1e-3)
        assert (answer["items"][2]["score"], answer["items"][3]["score"]) == (pytest.approx(1 - 8 / 13), None)
        # nothing of it stays: no list, no item
        assert "x" not in harness.service.snapshot.bundle.catalog.ids
        assert harness.client.get("/v1/items/x").status_code == 404
        assert [name for name, _, _ in facts(rank(harness, "ann", ["x", "i0"]))] == ["i0", "x"]
        # the first entry of an id counts; a user whom the model does not know: popularity, nothing is encoded
        twice = rank(harness, "ann", ["x", {"item_id": "x", "title": "red"}, "i0"])
        assert facts(twice) == [("i0", True, False), ("x", False, False)]
        cold = rank(harness, "nobody", items)
        assert facts(cold) == [("i0", True, False), ("i11", True, False), ("y", False, False), ("x", False, False)]
        assert "encode" not in cold["trace"]


def test_content_that_says_nothing_and_deleted_items_stay_last(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        assert harness.client.delete("/v1/items/i9").status_code == 200
        items = [{"item_id": "x", "price": 5}, {"item_id": "i9", "title": "green"}, {"item_id": "z"}, "i0"]
        assert facts(rank(harness, "ann", items)) == [
            ("i0", True, False),
            ("x", False, False),
            ("i9", False, False),
            ("z", False, False),
        ]


def test_an_encoder_that_fails_costs_the_placement_and_the_answer_says_so(tmp_path: Path) -> None:
    def no_encoders(*arguments: Any) -> Any:
        raise OSError("no model")

    with service_harness(tmp_path, encoders=no_encoders, preload=False) as harness:
        answer = rank(harness, "ann", [{"item_id": "x", "title": "red"}, "i0"])
        assert (facts(answer), answer["degraded"]) == ([("i0", True, False), ("x", False, False)], ["encoder"])
    plain = ToyShelf(toy_bundle(tmp_path))
    with service_harness(tmp_path, shelf=plain) as harness:  # a bundle without contents
        answer = rank(harness, "ann", [{"item_id": "x", "title": "red"}, "i0"])
        assert (facts(answer), answer["degraded"]) == ([("i0", True, False), ("x", False, False)], [])


@pytest.mark.parametrize(
    ("body", "status", "place"),
    [
        ({"user_id": "ann"}, 422, "items"),
        ({"user_id": "ann", "items": []}, 422, "items"),
        ({"user_id": "ann", "items": ["i1"] * 1001}, 422, "items"),
        ({"user_id": "ann", "items": ["i1", "a\nb"]}, 422, "items.1"),
        ({"user_id": "ann", "items": ["i1", {"item_id": "a\nb"}]}, 422, "items.1.item_id"),
        ({"user_id": "ann", "items": ["i1", {"title": "red"}]}, 422, "items.1.item_id"),
        ({"user_id": "ann", "items": [{"item_id": "x", "title": 7}]}, 422, "items.0.title"),
        ({"user_id": "ann", "items": [{"item_id": "x", "image": "https://a"}]}, 422, "items.0.image"),
        ({"user_id": "ann", "items": [7]}, 422, "items.0"),
        ({"user_id": "ann", "items": [{"item_id": f"x{n}", "title": "red"} for n in range(51)]}, 422, "items"),
        ({"user_id": "", "items": ["i1"]}, 422, "user_id"),
        ({"user_id": "ann", "items": ["i1"], "k": 3}, 422, "k"),
        ([], 422, "body"),
    ],
)
def test_bad_lists(body: Any, status: int, place: str, tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        response = harness.client.post("/v1/rank", content=orjson.dumps(body))
    assert (response.status_code, response.json()["place"]) == (status, place)
    assert response.json()["code"] == "bad_list"
