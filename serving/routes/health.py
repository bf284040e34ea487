"""Routes that say how the service is."""

from fastapi import FastAPI
from fastapi.responses import Response

from serving.errors import json_response
from serving.routes.responses import snapshot_of
from serving.state.service import ServiceState


def add_health(app: FastAPI, service: ServiceState) -> None:
    @app.get("/healthz", tags=["state"])
    async def healthz() -> Response:
        """The process is up."""
        return json_response({"status": "up"})

    @app.get("/readyz", tags=["state"])
    async def readyz() -> Response:
        """200 when requests can be answered, though perhaps degraded; 503 without a bundle or a log."""
        live, fault = service.live, service.log.fault
        ready = live is not None and not fault
        notes = {**service.notes, **({"log": fault} if fault else {})}
        status = "unready" if not ready else "degraded" if notes or service.behind else "ready"
        bundle = live.bundle.fingerprint if live else None
        return json_response({"status": status, "bundle": bundle, "notes": notes}, 200 if ready else 503)

    @app.get("/v1/about", tags=["state"])
    async def about() -> Response:
        """What is served: the bundle, the placements, the event of a click on the page, whether there is search."""
        live = snapshot_of(service)
        data = live.bundle.data
        event, least = next(iter(data.events.positive.items()), ("click", None))
        return json_response(
            {
                "bundle": live.bundle.fingerprint,
                "items": len(live.cards),
                "placements": {name: place.model_dump() for name, place in data.placements.items()},
                "click": {"event": event, "value": least},
                "search": live.bundle.content is not None,
            }
        )
