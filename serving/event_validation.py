"""Validation of the events that clients post: each becomes an `Event` of the log, or a result that rejects it."""

from typing import Any
from uuid import uuid4

from pydantic import ValidationError

from features.instants import EARLIEST_EVENT, MAX_CLOCK_SKEW, parse_instant
from features.log.records import Event
from features.schema import EventRules
from serving.errors import ApiError
from serving.schemas.body import first_error, parse_json
from serving.schemas.events import MAX_EVENTS, EventIn, EventResult


def validate_events(body: bytes, now: int, rules: EventRules | None = None) -> tuple[list[Event | EventResult], int]:
    """Each event of a body or the result that rejects it, in order; and the number of valid events.

    now: µs; rules: event rules of the served bundle, None when none is loaded. Raises ApiError 400 when the body is
    not JSON, 422 when it is neither an object nor a list of 1 to MAX_EVENTS objects.
    """
    sent = parse_json(body)
    if isinstance(sent, dict):
        sent = [sent]
    if not isinstance(sent, list) or not 1 <= len(sent) <= MAX_EVENTS:
        raise ApiError("bad_events", f"the body must be one event or a list of 1 to {MAX_EVENTS} events", "body")
    validated = [validate_event(raw, i, now, rules) for i, raw in enumerate(sent)]
    return validated, sum(isinstance(x, Event) for x in validated)


def unnamed_type(event: str, rules: EventRules) -> str | None:
    """A sentence on an event type that `data.events` does not name; None when it does."""
    if event in rules.named:
        return None
    if rules.ignores(event):
        return f"data.events does not name the type {event!r}: it tells outcomes, and is in no history and not seen"
    seen = "counts as seen, which hides the item from its user where repeats are off"
    effect = seen if rules.seen is None else "counts neither as positive nor as seen"
    meant = rules.meant(event)
    question = "" if meant is None else f"; is {meant!r} meant?"
    return f"data.events does not name the type {event!r}: it {effect}{question}"


def validate_event(raw: Any, index: int, now: int, rules: EventRules | None) -> Event | EventResult:
    """The event, or the result that says what is wrong with it. raw: from JSON; index: its place in the body."""
    place = f"events[{index}]"
    if not isinstance(raw, dict):
        return EventResult(status="rejected", reason="is not an object", place=place)
    try:
        sent = EventIn.model_validate(raw)
        # events without a time get increasing times, in the order sent
        timestamp = now + index if sent.timestamp is None else parse_instant(sent.timestamp)
    except ValidationError as error:
        field, reason = first_error(error)
        return EventResult(status="rejected", reason=reason, place=f"{place}.{field}")
    if not EARLIEST_EVENT <= timestamp <= now + MAX_CLOCK_SKEW:
        reason = "is before 1970" if timestamp < EARLIEST_EVENT else "is more than a day ahead"
        return EventResult(status="rejected", reason=reason, place=f"{place}.timestamp")
    if rules is not None and (meant := rules.misspelled(sent.event)) is not None:
        reason = f"is a type that data.events does not name: send {meant!r}, or name this type there and train"
        return EventResult(status="rejected", reason=reason, place=f"{place}.event")
    return Event(
        user_id=sent.user_id,
        item_id=sent.item_id,
        event=sent.event,
        timestamp=timestamp,
        value=sent.value,
        event_id=sent.event_id or str(uuid4()),
        request_id=sent.request_id,
        position=sent.position,
        order=index,
    )
