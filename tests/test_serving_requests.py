"""Invalid, oversized and hostile requests: a 4xx response that names the error, never a 500."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from service_harness import ServiceHarness, endless, service_harness

from features.schema import EventRules
from serving.event_validation import unnamed_type, validate_events


def test_each_event_of_a_list_is_accepted_or_rejected(tmp_path: Path) -> None:
    valid = {
        "user_id": "eve",
        "item_id": "i1",
        "event": "rating",
        "value": 5,
        "timestamp": "2026-01-01T00:00:00+02:00",
    }
    late = {**valid, "timestamp": "2027-01-16T23:00:00Z"}
    sent = [valid, {**valid, "item_id": "new", "value": None}, {**valid, "timestamp": "2026-01-01T00:00:00"}, late, 7]
    with service_harness(tmp_path) as harness:
        response = harness.client.post("/v1/events", content=orjson.dumps(sent))
        past = harness.client.get("/v1/users/eve/history").json()["events"]
    assert response.status_code == 202
    assert [response.json()[c] for c in ("accepted", "rejected")] == [2, 3]
    assert [(r["known_item"], r["place"], r["reason"]) for r in response.json()["results"]] == [
        (True, None, None),
        (False, None, None),
        (None, "events[2].timestamp", "has no zone: add Z or an offset such as +01:00"),
        (None, "events[3].timestamp", "is more than a day ahead"),
        (None, "events[4]", "is not an object"),
    ]
    assert [(e["item_id"], e["title"]) for e in past] == [("new", None), ("i1", "Item <b>1</b>")]
    assert past[0]["timestamp"] == "2025-12-31T22:00:00+00:00"


def test_a_misspelled_event_type_is_rejected_and_an_unnamed_one_is_said(tmp_path: Path) -> None:
    sent = [{"user_id": "eve", "item_id": "i1", "event": kind} for kind in ("Click", "clikc", "hover", "click")]
    with service_harness(tmp_path) as harness:
        response = harness.client.post("/v1/events", content=orjson.dumps(sent)).json()
        past = harness.client.get("/v1/users/eve/history").json()["events"]
    why = "is a type that data.events does not name: send 'click', or name this type there and train"
    said = "data.events does not name the type 'hover': it counts neither as positive nor as seen"
    assert [(r["status"], r["place"], r["reason"]) for r in response["results"]] == [
        ("rejected", "events[0].event", why),
        ("rejected", "events[1].event", why),
        ("accepted", None, said),
        ("accepted", None, None),
    ]
    assert [event["event"] for event in past] == ["click", "hover"]


def test_an_unnamed_type_that_counts_as_seen_is_said() -> None:
    rules = EventRules(positive={"view": None})
    assert str(unnamed_type("hover", rules)).endswith("hides the item from its user where repeats are off")
    assert unnamed_type("view", rules) is None
    body = orjson.dumps(
        [{"user_id": "u", "item_id": "i", "event": kind} for kind in ("view", "veiw", " view", "hover")]
    )
    assert validate_events(body, 10**15, rules)[1] == 2
    assert validate_events(body, 10**15)[1] == 4  # no bundle is loaded: no type is known


EVENT = {"user_id": "u", "item_id": "i1", "event": "click"}
NO_TEXTS: tuple[Any, ...] = ("", "a\u0000b", "a\nb", "a\u0085b", "é" * 257, 5, 1.5, [], {})
INVALID_BODIES: list[tuple[bytes, int]] = [
    (b"", 400),
    (b"{", 400),
    (b"\xff\xfe", 400),
    (b"null", 422),
    (b"7", 422),
    (b'"x"', 422),
    (b"[]", 422),
    (b"{}", 422),
    (b"[[]]", 422),
    (b"[" * 100_000, 400),
    (b'{"a":' * 5000 + b"1" + b"}" * 5000, 400),
    (b'{"user_id":"u","item_id":"i1","event":"rating","value":NaN}', 400),
    (b'{"user_id":"u","item_id":"i1","event":"rating","value":1e999}', 400),
    (b'{"user_id":"u","item_id":"i1","event":"rating","value":-Infinity}', 400),
    (b'{"user_id":"\\ud800","item_id":"i1","event":"click"}', 400),
    (b'{"user_id":"u","item_id":"i1","event":"click","\\u0000":1}', 422),
    (b'{"user_id":123456789012345678901234567,"item_id":"i1","event":"click"}', 422),
    (b'{"user_id":"u","item_id":"i1","event":"click","position":123456789012345678901234567}', 422),
    (b'{"user_id":"u","item_id":"i1","event":"rating","value":123456789012345678901234567}', 202),
    (b'{"user_id":"u","item_id":"i1","event":"rating","value":true}', 422),
    (b'{"user_id":"u","item_id":"i1","event":"rating","value":"5"}', 422),
    (orjson.dumps([EVENT] * 1001), 422),
    (orjson.dumps([EVENT] * 1000), 202),
    (b" " * ((1 << 20) - 2) + b"{}", 422),
    (b" " * (1 << 20) + b"{}", 413),
    *[
        (orjson.dumps({**EVENT, name: value}), 422)
        for name in ("user_id", "item_id", "event_id", "request_id", "event")
        for value in NO_TEXTS
    ],
    (orjson.dumps({**EVENT, "user_id": "é" * 256, "item_id": "../../etc/passwd", "event_id": "'; DROP"}), 202),
    (orjson.dumps({**EVENT, "event": "e" * 513}), 422),
    *[
        (orjson.dumps({**EVENT, "timestamp": value}), 422)
        for value in (
            0,
            "",
            "now",
            "2026",
            "0001-01-01T00:00:00+14:00",
            "9999-12-31T23:59:59-14:00",
            "1969-12-31T23:59Z",
        )
    ],
    *[(orjson.dumps({**EVENT, "position": value}), 422) for value in (0, -1, 1.0, "1", True, 10_001)],
    (orjson.dumps({**EVENT, "surprise": 1}), 422),
]


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceHarness]:
    with service_harness(tmp_path_factory.mktemp("steady")) as harness:
        yield harness


@pytest.mark.parametrize(
    ("body", "status"), INVALID_BODIES, ids=lambda x: repr(x)[:60] if isinstance(x, bytes) else None
)
def test_invalid_bodies(steady: ServiceHarness, body: bytes, status: int) -> None:
    response = steady.client.post("/v1/events", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text[:300]
    if status != 202:
        error = response.json()
        assert set(error) - {"accepted", "rejected", "degraded", "results"} == {
            "type",
            "title",
            "status",
            "detail",
            "code",
            "place",
        }
        assert error["detail"]


def test_a_body_without_a_length_is_cut_off(steady: ServiceHarness) -> None:
    response = steady.client.post("/v1/events", content=endless())
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/users/ann/recommendations?limit=0", 422, "bad_parameter"),
        ("/v1/users/ann/recommendations?limit=101", 422, "bad_parameter"),
        ("/v1/users/ann/recommendations?limit=nan", 422, "bad_parameter"),
        ("/v1/users/ann/recommendations?limit=123456789012345678901234567", 422, "bad_parameter"),
        ("/v1/users/ann/recommendations?placement=attic", 422, "unknown_placement"),
        ("/v1/users/ann/recommendations?placement=%ED%A0%80", 400, "bad_url"),
        ("/v1/users/a%00b/recommendations", 422, "bad_id"),
        ("/v1/users/a%0Ab/history", 422, "bad_id"),
        ("/v1/users//recommendations", 422, "bad_id"),
        (f"/v1/users/{'x' * 513}/recommendations", 422, "bad_id"),
        ("/v1/users/ann/history?limit=0", 422, "bad_parameter"),
        ("/v1/items/%00/similar", 422, "bad_id"),
        ("/v1/nothing", 404, "not_found"),
        ("/v1/events", 405, "method_not_allowed"),
        ("/static/..%2fapp.py", 404, "not_found"),
        ("/static/app.py", 404, "not_found"),
    ],
)
def test_invalid_requests(steady: ServiceHarness, path: str, status: int, code: str) -> None:
    response = steady.client.get(path)
    assert (response.status_code, response.json()["code"]) == (status, code)


def test_the_message_names_what_there_is(steady: ServiceHarness) -> None:
    response = steady.client.get("/v1/users/ann/recommendations?placement=attic").json()
    assert response["detail"] == "unknown placement; available: home, again"
    assert response["place"] == "placement"
