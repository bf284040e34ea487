"""Route that accepts events."""

from typing import Annotated

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field

from features.log.records import Event
from serving.errors import ApiError, Problem, json_response
from serving.event_validation import unnamed_type, validate_events
from serving.openapi.bodies import request_body
from serving.schemas.body import bounded_body
from serving.schemas.events import MAX_EVENTS, EventIn, EventResult, EventsResponse
from serving.state.service import ServiceState
from serving.state.snapshot import ServingSnapshot
from serving.state.thread_pool import InThread, budget
from serving.telemetry.metrics import EVENTS, count_degraded


def add_events(app: FastAPI, service: ServiceState, in_thread: InThread) -> None:
    """Add the route."""

    @app.post(
        "/v1/events",
        status_code=202,
        responses={202: {"model": EventsResponse}, **{code: {"model": Problem} for code in (400, 413, 415)}},
        openapi_extra=request_body(EventIn | Annotated[list[EventIn], Field(min_length=1, max_length=MAX_EVENTS)]),
        tags=["events"],
    )
    async def post_events(request: Request) -> Response:
        """Record what users did: one event or a list. An accepted event is on disk and affects the next response."""
        raw = await bounded_body(request)
        rules = None if service.snapshot is None else service.snapshot.bundle.data.events
        validated, n_accepted = await in_thread(validate_events, raw, service.now(), rules)
        accepted = [e for e in validated if isinstance(e, Event)]
        degraded: list[str] = []
        if accepted:
            await service.log.append(accepted, budget().left())
            degraded = await in_thread(service.push, accepted)
        EVENTS.labels("accepted").inc(n_accepted)
        EVENTS.labels("rejected").inc(len(validated) - n_accepted)
        count_degraded("events", degraded)
        results = [_result(e, service.snapshot) if isinstance(e, Event) else e for e in validated]
        response = EventsResponse(
            accepted=n_accepted, rejected=len(validated) - n_accepted, degraded=degraded, results=results
        ).model_dump()
        if accepted:
            return json_response(response, 202)
        first = results[0]
        raise ApiError("no_event_accepted", f"{first.place} {first.reason}", first.place or "", more=response)


def _result(event: Event, snapshot: ServingSnapshot | None) -> EventResult:
    if snapshot is None:
        return EventResult(status="accepted", event_id=event.event_id)
    bundle = snapshot.bundle
    known, reason = event.item_id in bundle.catalog.ids, unnamed_type(event.event, bundle.data.events)
    return EventResult(status="accepted", event_id=event.event_id, known_item=known, reason=reason)
