"""Bounds of what clients send: ids, times, events; and that the described limits are those that are applied."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from service_harness import service_harness
from toy_service import NOW

from features.ids import id_error
from features.instants import DAY
from features.log.records import Event
from features.schema import MAX_ID_BYTES
from serving.errors import ApiError
from serving.event_validation import validate_events
from serving.schemas.events import MAX_EVENTS
from serving.schemas.fields import checked_id, media_url

EVENT = {"user_id": "u", "item_id": "i", "event": "click"}


@pytest.mark.parametrize(
    "text",
    ["a", " ", "~", "\xa0", "é" * (MAX_ID_BYTES // 2), "a" * MAX_ID_BYTES, "\u2027", "\u202a", "\ue000"],
)
def test_valid_ids(text: str) -> None:
    assert id_error(text) == ""
    assert checked_id(text, "item_id") == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (".", "that no URL can hold"),
        ("..", "that no URL can hold"),
        ("a\x00", "U+0000"),
        ("\x1f", "U+001F"),
        ("\x7fa", "U+007F"),
        ("\x80", "U+0080"),
        ("\x9f", "U+009F"),
        ("\ud800", "U+D800"),
        ("\udfff", "U+DFFF"),
        ("\u2028", "U+2028"),
        ("\u2029", "U+2029"),
        ("a" * (MAX_ID_BYTES + 1), "513 bytes"),
        ("é" * (MAX_ID_BYTES // 2) + "a", "513 bytes"),
    ],
)
def test_invalid_ids(text: str, reason: str) -> None:
    assert reason in id_error(text)
    with pytest.raises(ApiError) as error:
        checked_id(text, "item_id")
    assert (error.value.status, error.value.code, error.value.place) == (422, "bad_id", "item_id")


def test_urls_of_images() -> None:
    assert media_url("i", None) is None
    assert media_url("i", "") is None
    assert media_url("i", "https://example.org/x.png") == "https://example.org/x.png"
    assert media_url("i", "http://example.org/x.png") == "http://example.org/x.png"
    assert media_url("a/b é", "x.png") == "/media/a%2Fb%20%C3%A9"


def iso(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds // 10**6, UTC).replace(microsecond=microseconds % 10**6).isoformat()


def validated(*events: dict[str, Any], now: int = NOW) -> tuple[list[Any], int]:
    return validate_events(orjson.dumps(list(events)), now)


def test_events_without_a_time_follow_each_other() -> None:
    found, count = validated(EVENT, EVENT, {**EVENT, "timestamp": iso(NOW - 5)})
    assert count == 3
    assert [event.timestamp for event in found] == [NOW, NOW + 1, NOW - 5]
    assert [event.order for event in found] == [0, 1, 2]
    assert len({event.event_id for event in found}) == 3


def test_an_event_is_at_most_a_day_ahead_and_not_before_1970() -> None:
    times = [iso(t) for t in (NOW + DAY, NOW + DAY + 1)] + ["1970-01-01T00:00:00Z", "1969-12-31T23:59:59.999999Z"]
    found, count = validated(*({**EVENT, "timestamp": time} for time in times))
    assert count == 2
    assert [isinstance(event, Event) for event in found] == [True, False, True, False]
    assert [(r.place, r.reason) for r in found if not isinstance(r, Event)] == [
        ("events[1].timestamp", "is more than a day ahead"),
        ("events[3].timestamp", "is before 1970"),
    ]


def test_all_fields_of_an_event_are_kept() -> None:
    fields: dict[str, Any] = {**EVENT, "value": -1.5, "event_id": "e", "request_id": "r", "position": 10_000}
    (event,), _ = validated({**fields, "timestamp": iso(7)})
    assert event == Event(timestamp=7, order=0, **fields)
    (event,), _ = validate_events(orjson.dumps(EVENT), NOW)  # one event without a list
    assert isinstance(event, Event)
    assert (event.value, event.request_id, event.position) == (None, None, None)


def test_the_described_limits_are_those_that_are_applied(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        api = harness.client.get("/openapi.json").json()
    one, many = api["paths"]["/v1/events"]["post"]["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    assert many["items"] == one == {"$ref": "#/components/schemas/EventIn"}
    assert api["components"]["schemas"]["EventIn"]["properties"]["user_id"]["maxLength"] == MAX_ID_BYTES
    for n, accepted in (
        (many["minItems"] - 1, False),
        (many["minItems"], True),
        (many["maxItems"], True),
        (many["maxItems"] + 1, False),
    ):
        if accepted:
            assert validated(*[EVENT] * n)[1] == n
        else:
            with pytest.raises(ApiError) as error:
                validated(*[EVENT] * n)
            assert (error.value.status, error.value.code, error.value.place) == (422, "bad_events", "body")
    assert many["maxItems"] == MAX_EVENTS
