"""The users whom an item fits."""

from pathlib import Path

import pytest
from service_harness import ServiceHarness, service_harness
from toy_service import toy_events

from serving.routes.items import audience


def fitting(harness: ServiceHarness, item: str, limit: int = 20) -> list[tuple[str, int, float]]:
    answer = harness.client.get(f"/v1/items/{item}/users?limit={limit}").json()
    assert (answer["item_id"], answer["bundle"], answer["degraded"]) == (item, "toy-1", [])
    return [(user["user_id"], user["position"], round(user["score"], 4)) for user in answer["users"]]


def test_users_are_in_the_order_of_their_vectors(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:  # ann: i1, i8; bob has no positive event
        harness.click("cid", "i6")
        harness.click("dan", "i1")
        # 1 - distance / 12, less .001 for an item after the user's last one
        assert fitting(harness, "i7") == [("ann", 1, 0.9167), ("cid", 2, 0.9157), ("dan", 3, 0.499)]
        assert fitting(harness, "i7", 1) == [("ann", 1, 0.9167)]
        assert fitting(harness, "i6") == [("ann", 1, 0.8333), ("dan", 2, 0.5823)]  # cid has seen it
        assert fitting(harness, "i1") == [("cid", 1, 0.5833)]
        assert harness.client.get("/v1/items/i7/users").json()["among"] == 3


def test_more_users_than_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audience, "AT_ONCE", 2)
    with service_harness(tmp_path) as harness:
        for n in range(7):
            harness.click(f"u{n}", f"i{n}")
        assert [name for name, _, _ in fitting(harness, "i9")][:4] == ["ann", "u6", "u5", "u4"]
        monkeypatch.setattr(audience, "AMONG", 3)  # the latest three
        assert [name for name, _, _ in fitting(harness, "i9")] == ["u6", "u5", "u4"]


def test_what_is_asked_must_exist_and_the_store_may_be_away(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        for path, status, code in (
            ("/v1/items/none/users", 404, "unknown_item"),
            ("/v1/items/i1/users?limit=0", 422, "bad_parameter"),
            ("/v1/items/i1/users?limit=1001", 422, "bad_parameter"),
            ("/v1/items/i1/users?k=1", 422, "unknown_parameter"),
        ):
            response = harness.client.get(path)
            assert (response.status_code, response.json()["code"]) == (status, code)
        harness.store.away = True
        answer = harness.client.get("/v1/items/i1/users").json()
        assert (answer["users"], answer["among"], answer["degraded"]) == ([], 0, ["store"])
        harness.store.away = False


def test_nobody_is_known(tmp_path: Path) -> None:
    with service_harness(tmp_path, events=lambda _: toy_events([])) as harness:
        assert fitting(harness, "i1") == []
