"""Route of the map: where the items stand in the plane."""

from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import BaseModel, Field

from serving.errors import ApiError, Problem, json_response
from serving.routes.responses import snapshot_of
from serving.state.service import ServiceState
from serving.state.snapshot import ServingSnapshot
from serving.state.thread_pool import InThread

STEPS = 65_535
"""Coordinates are whole numbers from 0 to STEPS: they are short, and no screen shows more."""


class MapResponse(BaseModel):
    """The items that may be shown, in columns: x, y and category of item i stand at place i."""

    bundle: str
    method: str = Field(description="how the vectors of the items became points: t-SNE or PCA")
    categories: list[str] = Field(description="names of categories")
    items: list[str]
    x: list[int] = Field(description=f"0 to {STEPS}, from left to right")
    y: list[int] = Field(description=f"0 to {STEPS}, from top to bottom")
    category: list[int] = Field(description="place of the item's first category in `categories`; -1 for none")


def add_map(app: FastAPI, service: ServiceState, in_thread: InThread) -> None:
    """Add the route."""

    @app.get("/v1/map", responses={200: {"model": MapResponse}, 404: {"model": Problem}}, tags=["state"])
    async def get_map() -> Response:
        """Where the items stand in the plane, near to those that they are like. It is computed at training: items
        that were put since have no place yet."""
        return json_response(await in_thread(_columns, snapshot_of(service)))


def _columns(snapshot: ServingSnapshot) -> dict[str, Any]:
    """The fields of `MapResponse`. Raises ApiError 404 where the bundle has no map."""
    bundle = snapshot.bundle
    if (item_map := bundle.item_map) is None:
        raise ApiError("no_map", "the bundle was trained by a version that made no map: train again", "bundle")
    n, catalog = len(item_map.points), bundle.catalog
    rows = np.flatnonzero(snapshot.allowed()[:n])
    places = np.rint(item_map.points[rows] * STEPS).astype(np.int64)  # (m, 2)
    ids = catalog.ids.ids
    return {
        "bundle": bundle.fingerprint,
        "method": item_map.method,
        "categories": catalog.category_names,
        "items": [ids[row] for row in rows.tolist()],
        "x": places[:, 0].tolist(),
        "y": places[:, 1].tolist(),
        "category": catalog.categories[rows, 0].tolist(),
    }
