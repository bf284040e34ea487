"""Routes for liveness, readiness, metrics and a description of what is served."""

import asyncio
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from serving.access.guard import KEY
from serving.errors import json_response
from serving.routes.responses import snapshot_of
from serving.state.encoder_pool import query_modalities
from serving.state.gauges import Gauges
from serving.state.service import ServiceState
from serving.telemetry.metrics import CONTENT_TYPE, exposition


class LivenessResponse(BaseModel):
    """The process is up."""

    status: Literal["up"]


class ReadinessResponse(BaseModel):
    """Whether the service answers requests. bundle: fingerprint of the served bundle; notes: component -> problem."""

    status: Literal["ready", "degraded", "unready"]
    bundle: str | None
    notes: dict[str, str]


class ClickOut(BaseModel):
    """The event that stands for a click, and its least value."""

    event: str
    value: float | None


class PlacementOut(BaseModel):
    """A placement. repeats: whether items that a user has seen are returned."""

    model_config = ConfigDict(extra="allow")

    repeats: bool


class AboutResponse(BaseModel):
    """What is served: see the route."""

    bundle: str
    items: int
    placements: dict[str, PlacementOut]
    click: ClickOut
    search: bool
    channels: list[str]
    search_by: list[str]
    experiments: list[dict[str, Any]]
    unlogged: int
    simulated: bool


def add_health(app: FastAPI, service: ServiceState, gauges: Gauges) -> None:
    """Add the routes."""
    _add_about(app, service)

    @app.get("/healthz", responses={200: {"model": LivenessResponse}}, tags=["state"])
    async def get_liveness() -> Response:
        """200 while the process is up."""
        return json_response({"status": "up"})

    @app.get(
        "/readyz",
        responses={
            200: {"model": ReadinessResponse},
            503: {"model": ReadinessResponse, "description": "the service is not ready, or cannot answer at all"},
        },
        tags=["state"],
    )
    async def get_readiness(request: Request) -> Response:
        """200 when the service answers requests (`status` ready or degraded); 503 without a bundle or event log.

        Where the service has keys, `notes` gives its reasons to calls with a key only.
        """
        snapshot, log = service.snapshot, service.log
        ready = snapshot is not None and not log.fault
        notes = service.problems
        degraded = notes or service.keeper.behind or service.keeper.evicted
        status = "unready" if not ready else "degraded" if degraded else "ready"
        bundle = snapshot.bundle.fingerprint if snapshot else None
        if service.keys.needed and request.scope[KEY] is None:
            notes = dict.fromkeys(notes, "call with a key to see it")
        return json_response({"status": status, "bundle": bundle, "notes": notes}, 200 if ready else 503)

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        tags=["state"],
    )
    async def get_metrics() -> Response:
        """Figures of the service for Prometheus, in its text format; of all processes that share them."""
        await asyncio.to_thread(gauges.update)  # not among the threads of requests, which may all be busy
        return Response(await asyncio.to_thread(exposition), media_type=CONTENT_TYPE)


def _add_about(app: FastAPI, service: ServiceState) -> None:
    @app.get("/v1/about", responses={200: {"model": AboutResponse}}, tags=["state"])
    async def get_about() -> Response:
        """The served bundle, its number of items, the placements, the event that the page sends for a click, whether
        search is available, the content channels of the items, what a search can read, the experiments with their
        variants, how many answers since the start the log could not take, and whether the events of the tables that
        the bundle was trained on are of simulated people."""
        snapshot = snapshot_of(service)
        data = snapshot.bundle.data
        event, minimum = next(iter(data.events.positive.items()), ("click", None))
        return json_response(
            {
                "bundle": snapshot.bundle.fingerprint,
                "items": len(snapshot.cards),
                "placements": {name: place.model_dump() for name, place in data.placements.items()},
                "click": {"event": event, "value": minimum},
                "search": (content := snapshot.bundle.content) is not None,
                "channels": [] if content is None else list(content.channels),
                "search_by": query_modalities(snapshot.bundle),
                "experiments": service.experiments.describe(service.variants.served),
                "unlogged": service.unlogged,
                "simulated": bool(snapshot.bundle.manifest.get("simulated")),
            }
        )
