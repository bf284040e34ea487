"""Routes that read items: an item with all its fields, and its files."""

from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response

from features.schema import AUDIO, AVAILABLE, CATEGORIES, IMAGE, PRICE, TITLE, VIDEO
from serving.errors import Problem, json_response
from serving.routes.items.fields import ItemIn, as_sent, extra_fields, fields_of_rows
from serving.routes.items.media import media_file, no_media
from serving.routes.responses import require_item, snapshot_of
from serving.schemas.fields import checked_id, media_url
from serving.schemas.slates import CardOut, FailedPart
from serving.servable import ServableBundle
from serving.state.service import ServiceState
from serving.state.snapshot import card
from serving.state.thread_pool import InThread


class ItemResponse(CardOut):
    """An item. audio, video: URLs, null where there is none; fields: all that is stored, as `PUT` takes it; status:
    live (searchable), embedding (accepted, not searchable yet) or failed; failed: parts that could not be read."""

    audio: str | None
    video: str | None
    available: bool
    fields: dict[str, Any]
    status: str
    failed: list[FailedPart]


def _content(*types: str) -> dict[str, Any]:
    """The answer of a route that returns a file of one of these types."""
    return {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in types}}


PICTURE = _content("image/jpeg", "image/png", "image/webp", "image/gif")
SOUND_OR_VIDEO = _content("audio/wav", "audio/flac", "audio/ogg", "audio/mpeg", "video/mp4", "video/webm")

FILE_HEADERS = {
    "Cache-Control": "public, max-age=60",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'",
}


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
                **card(item_id, *(stored.get(name) for name in (TITLE, CATEGORIES, IMAGE, PRICE))),
                **{name: media_url(item_id, stored.get(name), name) for name in (AUDIO, VIDEO)},
                "available": stored.get(AVAILABLE) is not False,
                "fields": fields | as_sent(stored),
                "status": status,
                "failed": [{"part": part, "reason": reason[:500]} for part, reason in failed],
            }
        )


def add_media(app: FastAPI, service: ServiceState, in_thread: InThread) -> None:
    """Add the routes of files."""

    async def file_of(item_id: str, name: str) -> tuple[Path, str]:
        snapshot = snapshot_of(service)
        checked_id(item_id, "item_id")
        if not service.catalog_updater.has_item(item_id):
            raise no_media(name)
        found: tuple[Path, str] = await in_thread(media_file, snapshot.bundle, item_id, name)
        return found

    @app.get(
        "/media/{item_id:id}",
        response_class=Response,
        responses={200: PICTURE, 404: {"model": Problem}},
        tags=["items"],
    )
    async def get_picture(item_id: str) -> Response:
        """The image file of an item. An item whose image is a URL has none here."""
        path, kind = await file_of(item_id, IMAGE)
        try:
            content = await in_thread(path.read_bytes)
        except OSError:
            raise no_media(IMAGE) from None
        return Response(content, media_type=kind, headers=FILE_HEADERS)

    @app.get(
        "/media/{item_id:id}/{name}",
        response_class=FileResponse,
        responses={
            200: SOUND_OR_VIDEO,
            206: {**SOUND_OR_VIDEO, "description": "the bytes that the header Range asks for"},
            404: {"model": Problem},
            416: {"description": "the header Range asks for bytes that there are not"},
        },
        tags=["items"],
    )
    async def get_sound_or_video(item_id: str, name: Literal["audio", "video"]) -> Response:
        """The sound or video file of an item, or the part of it that the header `Range` asks for."""
        path, kind = await file_of(item_id, name)
        return FileResponse(path, media_type=kind, headers=FILE_HEADERS)
