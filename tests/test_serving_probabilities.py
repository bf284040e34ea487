"""Probabilities in answers: of the items that a model ranks, and of no others."""

from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from service_harness import ServiceHarness, service_harness


def calibrated(harness: ServiceHarness) -> None:
    """Serve the same bundle with a calibrated model: a score s has the probability exp(-|s|)."""
    snapshot = harness.service.snapshot
    recommender = replace(snapshot.bundle.recommender, calibrated=True)
    harness.service.catalog_updater.snapshot = replace(
        snapshot, bundle=replace(snapshot.bundle, recommender=recommender)
    )


def test_recommended_items_have_the_probability_of_their_score(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        assert all("probability" not in item for item in harness.get("ann")["items"])  # the model has none
        calibrated(harness)
        for item in harness.get("ann")["items"]:
            assert item["probability"] == pytest.approx(2.718281828 ** -abs(item["score"]))
        assert all("probability" not in item for item in harness.get("nobody")["items"])  # popular items


def test_a_pin_has_no_probability(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules: [{name: a, pin: {item: i0, position: 2}}]")
    with service_harness(tmp_path, rules=rules) as harness:
        calibrated(harness)
        items = harness.get("ann")["items"]
    assert [item["probability"] is None for item in items] == [False, True, *[False] * (len(items) - 2)]


def test_a_ranked_list_has_probabilities(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        calibrated(harness)
        for user, known in (("ann", [True, True, False]), ("nobody", [False, False, False])):
            body = orjson.dumps({"user_id": user, "items": ["i3", "i9", "unknown"]})
            items = harness.client.post("/v1/rank", content=body).json()["items"]
            assert [item["probability"] is not None for item in items] == known


def test_explored_positions_are_those_of_the_whole_list(tmp_path: Path) -> None:
    """With a rate of 1, the first and the fifth item of the list are drawn, on whichever page they stand."""
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules: [{name: a, explore: {positions: [1, 5], rate: 1, among: 3}}]")
    with service_harness(tmp_path, rules=rules) as harness:
        plain = harness.get("nobody", 8)
        assert [item["position"] for item in plain["items"] if item["explored"]] == [1, 5]
        url = "/v1/users/nobody/recommendations?limit=3"
        first = harness.client.get(url).json()
        second = harness.client.get(f"{url}&cursor={first['cursor']}").json()
        third = harness.client.get(f"{url}&cursor={second['cursor']}").json()
    explored = [[item["position"] for item in page["items"] if item["explored"]] for page in (first, second, third)]
    assert explored == [[1], [5], []]
    shown = [item["item_id"] for page in (first, second, third) for item in page["items"]]
    assert len({*shown}) == len(shown)
