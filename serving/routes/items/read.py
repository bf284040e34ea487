"""Routes that read items: an item with all its fields, and its image."""

from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import BaseModel

from features.schema import AVAILABLE, CATEGORIES, IMAGE, TITLE
from serving.errors import ApiError, Problem, json_response
from serving.routes.items.fields import ItemIn, as_sent, extra_fields, fields_of_rows
from serving.routes.items.pictures import picture
from serving.routes.responses import require_item, snapshot_of
from serving.schemas.fields import checked_id
from serving.schemas.slates import FailedPart
from serving.servable import ServableBundle
from serving.state.service import ServiceState
from serving.state.snapshot import card
from serving.state.thread_pool import InThread


class ItemResponse(BaseModel):
    """An item. fields: all that is stored, as `PUT` takes it; status: live (searchable), embedding (accepted, not
    searchable yet) or failed; failed: parts that could not be read."""

    item_id: str
    title: str | None
    categories: list[str]
    image: str | None
    available: bool
    fields: dict[str, Any]
    status: str
    failed: list[FailedPart]


PICTURE: dict[str, Any] = {
    "content": {
        f"image/{kind}": {"schema": {"type": "string", "format": "binary"}} for kind in ("jpeg", "png", "webp", "gif")
    }
}
"""The answer of a route that returns a picture."""


def stored_fields(service: ServiceState, bundle: ServableBundle, item_id: str) -> dict[str, Any]:
    """The fields of an item as the log has them: of its last put, or else of the bundle; {} where there is none."""
    updater = service.catalog_updater
    if not updater.has_item(item_id):
        return {}
    put = updater.state(item_id)[0]
    if put is not None:
        return {name: value for name, value in put.fields.items() if value is not None}
    row = bundle.catalog.ids.row(item_id)
    return {} if row < 0 else fields_of_rows(bundle, [row], service.settings.log)[0]


def add_items(app: FastAPI, service: ServiceState, in_thread: InThread) -> None:
    """Add the routes."""

    @app.get(
        "/v1/items/{item_id:id}",
        responses={200: {"model": ItemResponse}, 404: {"model": Problem}},
        tags=["items"],
    )
    async def get_item(item_id: str) -> Response:
        """An item with all its fields, and whether its last change is searchable yet.

        `fields` is a body for `PUT`: put as it came, it changes nothing. A file stands in it as `stored`.
        """
        snapshot = snapshot_of(service)
        require_item(service, item_id)
        stored = stored_fields(service, snapshot.bundle, item_id)
        _, status, failed = service.catalog_updater.state(item_id)
        fields = dict.fromkeys((*ItemIn.model_fields, *extra_fields(snapshot.bundle)))
        return json_response(
            {
                **card(item_id, stored.get(TITLE), stored.get(CATEGORIES), stored.get(IMAGE)),
                "available": stored.get(AVAILABLE) is not False,
                "fields": fields | as_sent(stored),
                "status": status,
                "failed": [{"part": part, "reason": reason[:500]} for part, reason in failed],
            }
        )

    @app.get(
        "/media/{item_id:id}",
        response_class=Response,
        responses={200: PICTURE, 404: {"model": Problem}},
        tags=["items"],
    )
    async def get_picture(item_id: str) -> Response:
        """The image file of an item. An item whose image is a URL has none here."""
        snapshot = snapshot_of(service)
        checked_id(item_id, "item_id")
        if not service.catalog_updater.has_item(item_id):
            raise ApiError("no_picture", "this item has no image file", "item_id")
        content, kind = await in_thread(picture, snapshot.bundle, item_id)
        headers = {
            "Cache-Control": "public, max-age=60",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'",
        }
        return Response(content, media_type=kind, headers=headers)
