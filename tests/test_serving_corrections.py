"""The routes that merge users and undo events."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from service_harness import ServiceHarness, service_harness
from toy_service import NOW, RULES, ToyShelf

from features.instants import format_instant
from features.log.corrections import corrections_of
from features.log.event_log import EventLog
from features.log.records import EventUndone, UsersMerged
from features.store.connection import Channel
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer


def merge(harness: ServiceHarness, user: str, body: Any) -> Any:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    return harness.client.post(f"/v1/users/{user}/merge", content=content)


def history(harness: ServiceHarness, user: str) -> list[str]:
    response = harness.client.get(f"/v1/users/{user}/history").json()
    return [event["item_id"] for event in response["events"]]


def test_the_next_response_is_that_of_one_user(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.click("anon", "i10", timestamp=format_instant(NOW - 1_000_000))
        harness.click("anon", "i7")
        response = merge(harness, "new", {"from": "anon"})
        assert (response.status_code, response.json()) == (
            202,
            {"user_id": "new", "from": "anon", "status": "accepted", "degraded": []},
        )
        assert history(harness, "new") == ["i7", "i10"]
        assert history(harness, "anon") == []
        assert harness.get("new")["source"] == "model"
        assert harness.get("anon")["source"] == "popular"
        assert "i10" not in harness.items("new", 12)  # seen
        assert merge(harness, "new", {"from": "anon"}).status_code == 202  # again changes nothing
        assert history(harness, "new") == ["i7", "i10"]
        later = format_instant(NOW + 1_000_000)
        harness.click("anon", "i2", timestamp=later)  # another person at the device
        assert (history(harness, "anon"), history(harness, "new")) == (["i2"], ["i7", "i10"])
        harness.click("anon", "i4", timestamp=format_instant(NOW - 2_000_000))  # from before, sent late
        assert (history(harness, "anon"), history(harness, "new")) == (["i2"], ["i7", "i10", "i4"])


def test_events_of_a_clock_that_is_ahead_are_merged(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.click("anon", "i10", timestamp=format_instant(NOW + 60_000_000))
        merge(harness, "new", {"from": "anon"})
        assert (history(harness, "anon"), history(harness, "new")) == ([], ["i10"])


def test_an_undone_event_does_not_count(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.click("u", "i10", event_id="like 1/2")
        harness.click("u", "i2", event_id="e2")
        url = "/v1/users/u/events/like%201%2F2"
        response = harness.client.delete(url)
        assert (response.status_code, response.json()) == (
            202,
            {"user_id": "u", "event_id": "like 1/2", "status": "accepted", "known": True, "degraded": []},
        )
        assert history(harness, "u") == ["i2"]
        assert "i10" in harness.items("u", 12)
        assert harness.client.delete(url).json()["known"] is False  # again changes nothing
        harness.click("u", "i10", event_id="like 1/2")  # a client that tries again
        assert history(harness, "u") == ["i2"]
        assert harness.client.delete("/v1/users/u/events/never-sent").json()["known"] is False
        harness.click("anon", "i7", event_id="e3")
        merge(harness, "u", {"from": "anon"})
        assert harness.client.delete("/v1/users/anon/events/e3").json()["known"] is True  # by the id it was sent with
        assert history(harness, "u") == ["i2"]


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ({"from": "ann"}, 422, "bad_merge", "from: is the user of the path; give the id that it had before"),
        ({"from": ""}, 422, "bad_merge", "from: empty: give it a text"),
        ({"from": ".."}, 422, "bad_merge", "from: that no URL can hold"),
        ({"from": 7}, 422, "bad_merge", "from: must be a text"),
        ({}, 422, "bad_merge", "from: missing; add it"),
        ({"from": "x", "to": "y"}, 422, "bad_merge", "to: "),
        (["x"], 422, "bad_merge", "body: "),
        (b"{", 400, "bad_json", "the body is not JSON at line 1"),
        ({"from": "known"}, 409, "merged_before", "from: user 'ann' was merged into 'known' before"),
    ],
)
def test_a_merge_that_makes_no_sense_is_refused(
    harness: ServiceHarness, body: Any, status: int, code: str, message: str
) -> None:
    response = merge(harness, "ann", body)
    error = response.json()
    assert (response.status_code, error["code"]) == (status, code)
    assert error["detail"].startswith(message)
    assert error["place"] in ("body", message.split(":")[0])


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with service_harness(tmp_path_factory.mktemp("refused")) as running:
        assert merge(running, "known", {"from": "ann"}).status_code == 202
        yield running


def test_ids_in_the_path_keep_the_rule(harness: ServiceHarness) -> None:
    for response in (
        merge(harness, "%0A", {"from": "x"}),
        harness.client.delete("/v1/users/%0A/events/e"),
        harness.client.delete("/v1/users/u/events/%0A"),
        harness.client.delete("/v1/users/u/events/"),
    ):
        assert (response.status_code, response.json()["code"]) == (422, "bad_id")
    assert harness.client.get("/v1/users/u/merge").status_code == 405


def test_without_a_store_or_a_bundle_a_correction_is_accepted_and_applied_later(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.click("anon", "i10", event_id="e1")
        harness.click("anon", "i7", event_id="e2")
        harness.store.away = True
        assert merge(harness, "u", {"from": "anon"}).json()["degraded"] == ["store"]
        undo = harness.client.delete("/v1/users/u/events/e1").json()
        assert (undo["known"], undo["degraded"]) == (None, ["store"])
        harness.store.away = False
        assert harness.get("u")["degraded"] == ["stale"]
        harness.service.step()
        assert (history(harness, "anon"), history(harness, "u")) == ([], ["i7"])
    with service_harness(tmp_path, shelf=ToyShelf(None)) as harness:
        assert merge(harness, "u", {"from": "other"}).json()["degraded"] == ["bundle"]
        undo = harness.client.delete("/v1/users/u/events/e9").json()
        assert (undo["known"], undo["degraded"]) == (None, ["bundle"])
    with service_harness(tmp_path) as harness:  # a start applies all of it
        assert (history(harness, "anon"), history(harness, "u")) == ([], ["i7"])
        assert corrections_of(tmp_path / "log").closes_circle("u", "other")


def test_what_another_process_has_logged_is_applied_within_one_look(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.click("anon", "i10", event_id="e1")
        log = EventLog(tmp_path / "log")
        log.append_now([UsersMerged(user_id="u", from_id="anon", timestamp=NOW, until=NOW)])
        harness.click("anon", "i7", event_id="e2")  # this process hears of the merge with this event
        assert history(harness, "u") == ["i7", "i10"]
        log.append_now([EventUndone(user_id="u", event_id="e1", timestamp=NOW)])
        harness.service.keeper.behind = True
        harness.service.step()
        assert history(harness, "u") == ["i7"]
        log.close()


def test_nothing_is_accepted_while_the_log_cannot_be_written(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.click("anon", "i10", event_id="e1")
        harness.service.log.close()
        for response in (merge(harness, "u", {"from": "anon"}), harness.client.delete("/v1/users/anon/events/e1")):
            assert (response.status_code, response.json()["code"]) == (503, "unavailable")
        assert history(harness, "anon") == ["i10"]


REQUESTS: list[tuple[str, str, Any]] = [
    ("POST", "/v1/users/new/merge", {"from": "u"}),
    ("POST", "/v1/events", {"user_id": "u", "item_id": "i7", "event": "click", "event_id": "e2"}),
    ("DELETE", "/v1/users/new/events/e1", None),
    ("PUT", "/v1/items/added", {"title": "Added"}),
    ("DELETE", "/v1/items/added", None),
    ("GET", "/v1/users/new/history", None),
    ("GET", "/v1/users", None),
    ("GET", "/v1/users/new/recommendations?explain=true", None),
    ("GET", "/v1/users/new/why-not?item_id=i2", None),
    ("POST", "/v1/rank", {"user_id": "new", "items": ["i2", "i3"]}),
    ("GET", "/v1/items/i2/similar", None),
    ("POST", "/v1/search", {"text": "green", "user_id": "new"}),
    ("GET", "/v1/items/i2", None),
    ("GET", "/v1/about", None),
    ("GET", "/readyz", None),
]


def test_no_request_waits_longer_for_the_store_than_the_time_out_of_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = RedisServer()
    store = RedisStore(server.url, RULES, timeout=30.0)
    with service_harness(tmp_path, store=store) as harness:
        harness.click("u", "i10", event_id="e1")
        bulk, timeouts, run = store._bulk, list[bool](), Channel.run

        def noted(channel: Channel, work: Any) -> Any:
            timeouts.append(channel is bulk)
            return run(channel, work)

        monkeypatch.setattr(Channel, "run", noted)
        for method, path, body in REQUESTS:
            response = harness.client.request(method, path, content=orjson.dumps(body))
            assert (response.status_code < 300, response.json().get("degraded", [])) == (True, []), (path, response)
        assert len(timeouts) > 10
        assert not any(timeouts)
        assert (history(harness, "new"), history(harness, "u")) == (["i7"], [])
        monkeypatch.undo()
    server.stop()
