"""Routes for liveness, readiness, metrics and a description of what is served."""

import asyncio

from fastapi import FastAPI, Request
from fastapi.responses import Response

from serving.access.guard import KEY
from serving.errors import json_response
from serving.routes.responses import snapshot_of
from serving.state.encoder_pool import query_modalities
from serving.state.gauges import Gauges
from serving.state.service import ServiceState
from serving.telemetry.metrics import CONTENT_TYPE, exposition


def add_health(app: FastAPI, service: ServiceState, gauges: Gauges) -> None:
    """Add the routes."""

    @app.get("/healthz", tags=["state"])
    async def get_liveness() -> Response:
        """200 while the process is up."""
        return json_response({"status": "up"})

    @app.get("/readyz", tags=["state"])
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

    @app.get("/v1/about", tags=["state"])
    async def get_about() -> Response:
        """The served bundle, its number of items, the placements, the event that the page sends for a click, whether
        search is available, the content channels of the items, what a search can read, the experiments with their
        variants, and how many answers since the start the log could not take."""
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
            }
        )
