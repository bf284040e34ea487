"""POST /v1/recommendations: a user, a session that is not stored, example items, and long lists of excluded ids."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from service_harness import ServiceHarness, service_harness

from features.log.reader import read
from features.log.records import EVENTS, EXPOSURES


@pytest.fixture
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceHarness]:
    with service_harness(tmp_path_factory.mktemp("asked")) as running:
        yield running


def post(harness: ServiceHarness, **body: Any) -> Any:
    response = harness.client.post("/v1/recommendations", content=orjson.dumps(body))
    assert response.status_code == 200, response.text
    return response.json()


def items(answer: Any) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def test_a_user_gets_the_answer_of_the_short_form(harness: ServiceHarness) -> None:
    by_url, by_body = harness.get("ann", 4), post(harness, user_id="ann", limit=4, placement="home")
    for answer in (by_url, by_body):
        del answer["request_id"], answer["trace"], answer["cursor"]
    assert by_body == by_url


def test_a_session_counts_as_events_would_and_is_not_stored(harness: ServiceHarness) -> None:
    session = [{"item_id": "i6", "event": "click"}, {"item_id": "i2", "event": "click"}]
    answers = [post(harness, session=session, limit=4), post(harness, user_id="bob", session=session, limit=4)]
    assert [(answer["user_id"], answer["source"]) for answer in answers] == [(None, "model"), ("bob", "model")]
    events = [{"user_id": user, **event} for user in ("eve", "bob") for event in session]
    assert harness.client.post("/v1/events", content=orjson.dumps(events)).json()["accepted"] == 4
    assert [items(answer) for answer in answers] == [harness.items("eve"), harness.items("bob")]
    assert items(post(harness, limit=4)) == harness.items("nobody")  # nothing is known: popular items
    logged = read(harness.folder / "log", stream=EVENTS).records
    assert len(logged) == 4
    assert [shown.user_id for shown in read(harness.folder / "log", stream=EXPOSURES).records][:2] == ["", "bob"]  # type: ignore[union-attr]


def test_example_items_count_as_positive(harness: ServiceHarness) -> None:
    answer = post(harness, items=["i8"], limit=3)
    harness.click("eve", "i8")
    assert (answer["source"], items(answer)) == ("model", harness.items("eve", 3))


def test_pages_and_what_is_left_out(harness: ServiceHarness) -> None:
    asked: dict[str, Any] = {"items": ["i8"], "exclude": ["i7", *(f"x{n}" for n in range(5000))]}
    everything = items(post(harness, limit=100, **asked))
    assert "i7" not in everything
    first = post(harness, limit=3, **asked)
    second = post(harness, limit=3, cursor=first["cursor"], **asked)
    assert items(first) + items(second) == everything[:6]
    other = {**asked, "items": ["i1"], "cursor": first["cursor"]}
    response = harness.client.post("/v1/recommendations", content=orjson.dumps(other))
    assert (response.status_code, response.json()["code"]) == (422, "bad_cursor")


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"exclude": ["x"] * 10_001}, "exclude"),
        ({"items": ["x"] * 201}, "items"),
        ({"limit": 0}, "limit"),
        ({"k": 3}, "k"),
        ({"session": [{"item_id": "i1"}]}, "session.0.event"),
        (
            {"items": ["i1"], "session": [{"item_id": "i1", "event": "click", "timestamp": "x"}]},
            "session[0].timestamp",
        ),
        ({"placement": "nowhere"}, "placement"),
    ],
)
def test_what_is_refused(harness: ServiceHarness, body: dict[str, Any], place: str) -> None:
    response = harness.client.post("/v1/recommendations", content=orjson.dumps(body))
    error = response.json()
    assert (response.status_code, error["place"]) == (422, place)
    if place == "exclude":
        assert "10000" in error["detail"].replace(",", "")
