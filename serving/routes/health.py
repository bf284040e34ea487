"""Routes for liveness, readiness and metrics."""

import asyncio
from typing import Literal

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel

from serving.access.guard import KEY
from serving.errors import json_response
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


def add_health(app: FastAPI, service: ServiceState, gauges: Gauges) -> None:
    """Add the routes."""

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
