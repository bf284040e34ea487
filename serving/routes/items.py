"""Items: what one is, what is like it, its picture; and putting and deleting items while the service runs."""

from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import polars as pl
from fastapi import FastAPI, Query, Request
from fastapi.responses import Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from features.log.item_changes import keep_media
from features.log.records import ItemGone, ItemPut
from features.schema import AUDIO, AVAILABLE, CATEGORIES, IMAGE, TITLE, VIDEO
from serving.errors import ApiError, ErrorResponse, json_response
from serving.routes.responses import FilterParameter, log_exposure, slate_response, snapshot_of, timed, with_filter
from serving.routes.search_query import json_object, media_source
from serving.schemas import FailedPart, Finite, Id, SimilarResponse, checked_id, first_error, id_error, micros
from serving.state.encoder_pool import EncoderPool
from serving.state.service import ServiceState
from serving.state.snapshot import ServableBundle, ServingSnapshot, card

SIMILAR = "similar"
MAX_TEXT, MAX_LABEL, MAX_LABELS, MAX_URL = 200_000, 1000, 100, 4096
"""Characters of a description or a further column, of a title or category; categories of an item; bytes of a URL."""


def _utc(text: str) -> str:
    micros(text)
    try:
        return datetime.fromisoformat(text).astimezone(UTC).isoformat()
    except OverflowError:
        raise ValueError("is before the year 1 or after 9999 in UTC") from None


Label = Annotated[str, Field(max_length=MAX_LABEL)]
Media = Annotated[str | None, Field(description="base64, or an https URL of a host that the bundle names")]


class ItemIn(BaseModel):
    """All that an item is from now on; what is left out is unknown. Columns that the bundle declares come beside."""

    model_config = ConfigDict(extra="forbid", strict=True)

    title: Label | None = None
    description: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    categories: list[Label] | None = Field(default=None, max_length=MAX_LABELS)
    price: Annotated[Finite, Field(ge=0)] | None = None
    published_at: Annotated[str, AfterValidator(_utc)] | None = Field(default=None, description="ISO 8601 with zone")
    available: bool = True
    group_id: Id | None = Field(default=None, description="variants of one product have one")
    image: Media = None
    audio: Media = None
    video: Media = None


class ItemAcceptedResponse(BaseModel):
    """It is on disk, and found within seconds; new: whether the item was not known."""

    item_id: str
    status: str
    new: bool


class ItemResponse(BaseModel):
    """status: live, embedding (what was put is not found yet) or failed; failed: parts that could not be read."""

    item_id: str
    title: str | None
    categories: list[str]
    image: str | None
    available: bool
    status: str
    failed: list[FailedPart]


def parse_item(item_id: str, body: bytes, bundle: ServableBundle, log: Path, now: int) -> ItemPut:
    """The record of an item put, its media on disk. Raises ApiError 400 or 422 saying which field is wrong."""
    sent = json_object(body, "bad_item")
    further = [name for name in bundle.data.extra_columns if name not in ItemIn.model_fields]
    if unknown := next((name for name in sent if name not in ItemIn.model_fields and name not in further), None):
        fields = ", ".join((*ItemIn.model_fields, *further))
        raise ApiError(422, "bad_item", f"there is no such field; there are: {fields}", unknown[:64])
    try:
        item = ItemIn.model_validate({name: sent[name] for name in sent if name not in further})
    except ValidationError as error:
        place, reason = first_error(error)
        raise ApiError(422, "bad_item", f"{place}: {reason}", place) from None
    frame, values = bundle.catalog.frame, item.model_dump(exclude_none=True)
    values |= {name: _fitting(name, sent[name], frame) for name in further if sent.get(name) is not None}
    hosts = bundle.manifest["config"].get("limits", {}).get("hosts", ())
    media = {name: _media(values.pop(name), name, hosts) for name in (IMAGE, AUDIO, VIDEO) if values.get(name)}
    kept = {name: keep_media(log, given) if isinstance(given, bytes) else given for name, given in media.items()}
    return ItemPut(item_id=item_id, timestamp=now, fields=values | kept)


def _media(given: str, place: str, hosts: Collection[str]) -> str | bytes:
    """A file's bytes, or a URL of an allowed host: what is behind it is read later, and checked again."""
    source = media_source(given, place)
    if isinstance(source, bytes):
        return source
    try:
        parts = urlsplit(given)
        host, port = parts.hostname or "", parts.port or 443
    except ValueError:
        raise ApiError(422, "bad_media", f"{place} is no URL that can be read", place) from None
    if why := id_error(given, MAX_URL):
        raise ApiError(422, "bad_media", f"{place} {why}", place)
    named, listed = f"[{host}]" if ":" in host else host, {entry.lower() for entry in hosts}
    if parts.username is not None or not {f"{named}:{port}", *([named] if port == 443 else [])} & listed:
        there = ", ".join(hosts) or "none; send base64"
        raise ApiError(422, "bad_media", f"{place}: {named}:{port} is not in limits.hosts: {there}", place)
    return given


def _fitting(name: str, value: Any, frame: pl.DataFrame) -> Any:
    """The value of a further column, as its type in the bundle is."""
    kind = frame.schema.get(name, pl.String())
    try:
        if isinstance(value, bool) != (kind == pl.Boolean) or len(str(value)) > MAX_TEXT:
            raise ValueError
        pl.Series(name, [value], dtype=kind, strict=True)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        raise ApiError(422, "bad_item", f"{name}: is no {kind} as in the bundle's items", name) from None
    return value


def add_items(app: FastAPI, service: ServiceState, encoder_pool: EncoderPool, in_thread: Callable[..., Any]) -> None:
    """The routes."""
    _add_similar(app, service, in_thread)
    _add_changes(app, service, encoder_pool, in_thread)

    @app.get(
        "/v1/items/{item_id:path}",
        responses={200: {"model": ItemResponse}, 404: {"model": ErrorResponse}},
        tags=["items"],
    )
    async def item(item_id: str) -> Response:
        """An item's card, and whether what was put of it last is found yet."""
        live = snapshot_of(service)
        _known(service, item_id)
        put, status, failed = service.catalog_updater.state(item_id)
        told = {"status": status, "failed": [{"part": part, "reason": reason[:500]} for part, reason in failed]}
        return json_response(_shown(live, item_id, put) | told)

    @app.get("/media/{item_id:path}", tags=["items"])
    async def media(item_id: str) -> Response:
        """An item's own picture, as the catalogue names it."""
        live = snapshot_of(service)
        if not service.catalog_updater.has_item(item_id):
            raise ApiError(404, "no_picture", "there is no picture of this item", "item_id")
        content, kind = await in_thread(live.picture, item_id)
        headers = {
            "Cache-Control": "public, max-age=60",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'",
        }
        return Response(content, media_type=kind, headers=headers)


def _add_similar(app: FastAPI, service: ServiceState, in_thread: Callable[..., Any]) -> None:
    @app.get("/v1/items/{item_id:path}/similar", responses={200: {"model": SimilarResponse}}, tags=["items"])
    async def similar(
        item_id: str,
        k: Annotated[int, Query(ge=1, le=100, description="how many")] = 20,
        filter: FilterParameter = None,
    ) -> Response:
        """Items like this one, best first; `near` says in what."""
        live = await with_filter(snapshot_of(service), filter, in_thread)
        _known(service, item_id)
        if (row := live.bundle.catalog.ids.row(item_id)) < 0:
            raise ApiError(404, "not_live_yet", "the item was accepted and is being embedded; ask again", "item_id")
        trace: dict[str, float] = {}
        with timed(trace, "rank"):
            slate = await in_thread(live.similar, row, k, trace)
        shown = await log_exposure(service, slate, SIMILAR, item_id=item_id)
        return slate_response(slate, live, shown, live.near(row, slate))


def _add_changes(
    app: FastAPI, service: ServiceState, encoder_pool: EncoderPool, in_thread: Callable[..., Any]
) -> None:
    @app.put(
        "/v1/items/{item_id:path}",
        status_code=202,
        responses={
            202: {"model": ItemAcceptedResponse},
            **{code: {"model": ErrorResponse} for code in (400, 408, 413)},
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": ItemIn.model_json_schema()}},
            }
        },
        tags=["items"],
    )
    async def put(item_id: str, request: Request) -> Response:
        """Add an item, or replace all that is known of it but its events. Accepted means on disk; it is found by its
        words, pictures and sounds within seconds, and the next training knows it. A URL that cannot be fetched
        then is not tried again: put the item once more."""
        live = snapshot_of(service)
        checked_id(item_id, "item_id")
        if item_id.endswith("/similar"):
            raise ApiError(422, "bad_id", "item_id ends in /similar, which asks for what is like another", "item_id")
        async with encoder_pool.body(request) as body:
            folder = service.settings.log
            record = await in_thread(parse_item, item_id, body, live.bundle, folder, service.now())
        # the time of its place in the log: others may have been parsed faster
        new = await service.catalog_updater.accept(service.log, replace(record, timestamp=service.now()))
        return json_response({"item_id": item_id, "status": "accepted", "new": new}, 202)

    @app.delete("/v1/items/{item_id:path}", responses={404: {"model": ErrorResponse}}, tags=["items"])
    async def delete(item_id: str) -> Response:
        """Show an item no more, from the very next answer on, until it is put again."""
        snapshot_of(service)
        _known(service, item_id)
        await service.catalog_updater.accept(service.log, ItemGone(item_id=item_id, timestamp=service.now()))
        return json_response({"item_id": item_id, "status": "deleted"})


def _known(service: ServiceState, item_id: str) -> None:
    """Raises ApiError 422 for what is no id, and 404."""
    checked_id(item_id, "item_id")
    if not service.catalog_updater.has_item(item_id):
        raise ApiError(404, "unknown_item", "there is no such item: not in the bundle, nor put since", "item_id")


def _shown(live: ServingSnapshot, item_id: str, put: ItemPut | None) -> dict[str, Any]:
    """The card of an item as it was put, or else as the bundle has it."""
    if put is not None:
        fields = put.fields
        own = card(item_id, fields.get(TITLE), fields.get(CATEGORIES), fields.get(IMAGE))
        return own | {"available": fields.get(AVAILABLE) is not False}
    row = live.bundle.catalog.ids.row(item_id)
    return live.cards[row] | {"available": bool(live.available[row])}
