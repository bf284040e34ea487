"""Routes of items: read, similar items, image, and putting and deleting items while the service runs."""

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import numpy as np
import polars as pl
from fastapi import FastAPI, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, ValidationError

from features.catalog import type_name
from features.log.item_changes import store_media
from features.log.records import ItemDeleted, ItemPut
from features.schema import AUDIO, AVAILABLE, CATEGORIES, IMAGE, TITLE, VIDEO
from recsys.ranking.slate import Slate
from serving.cursor import MAX_SHOWN, Page
from serving.errors import ApiError, ErrorResponse, json_response
from serving.routes.responses import (
    CursorParameter,
    ExcludeParameter,
    FilterParameter,
    list_of,
    log_exposure,
    not_live_yet,
    require_item,
    slate_response,
    snapshot_of,
    timed,
)
from serving.routes.search_query import json_object, media_source
from serving.schemas import MAX_TEXT, FailedPart, Id, ItemText, SimilarResponse, checked_id, first_error
from serving.servable import ServableBundle
from serving.state.encoder_pool import EncoderPool
from serving.state.service import ServiceState
from serving.state.snapshot import ServingSnapshot, card

SIMILAR: Final = "similar"
MAX_URL = 4096
"""Bytes of a URL."""


Media = Annotated[str | None, Field(description="base64, or an https URL of a host that the bundle allows")]


class ItemIn(ItemText):
    """All fields of an item. A field that is omitted becomes null. Extra columns of the bundle are further fields."""

    available: bool = True
    group_id: Id | None = Field(default=None, description="the same for all variants of one product")
    image: Media = None
    audio: Media = None
    video: Media = None


class ItemAcceptedResponse(BaseModel):
    """The item is on disk and searchable within seconds. new: the item was not in the catalogue before."""

    item_id: str
    status: str
    new: bool


class ItemResponse(BaseModel):
    """An item. status: live (searchable), embedding (accepted, not searchable yet) or failed; failed: parts that
    could not be read."""

    item_id: str
    title: str | None
    categories: list[str]
    image: str | None
    available: bool
    status: str
    failed: list[FailedPart]


def parse_item(item_id: str, body: bytes, bundle: ServableBundle, log: Path, now: int) -> ItemPut:
    """The log record of an item to put. Writes the item's media to the log folder.

    log: folder of the event log; now: µs. Raises ApiError 400 or 422 that names the invalid field.
    """
    sent = json_object(body, "bad_item")
    extra = [name for name in bundle.data.extra_columns if name not in ItemIn.model_fields]
    if unknown := next((name for name in sent if name not in ItemIn.model_fields and name not in extra), None):
        fields = ", ".join((*ItemIn.model_fields, *extra))
        raise ApiError(422, "bad_item", f"unknown field; available: {fields}", unknown[:64])
    try:
        item = ItemIn.model_validate({name: sent[name] for name in sent if name not in extra})
    except ValidationError as error:
        place, reason = first_error(error)
        raise ApiError(422, "bad_item", f"{place}: {reason}", place) from None
    frame, values = bundle.catalog.frame, item.model_dump(exclude_none=True)
    values |= {name: _checked_value(name, sent[name], frame) for name in extra if sent.get(name) is not None}
    hosts = bundle.manifest["config"].get("limits", {}).get("hosts", ())
    media = {
        name: _checked_media(values.pop(name), name, hosts) for name in (IMAGE, AUDIO, VIDEO) if values.get(name)
    }
    stored = {
        name: store_media(log, source) if isinstance(source, bytes) else source for name, source in media.items()
    }
    return ItemPut(item_id=item_id, timestamp=now, fields=values | stored)


def _checked_media(value: str, place: str, hosts: Collection[str]) -> str | bytes:
    """The bytes of a file, or a URL of an allowed host. The URL is fetched later, which checks the host again."""
    source = media_source(value, place)
    if isinstance(source, bytes):
        return source
    try:
        parts = urlsplit(value)
        host, port = parts.hostname or "", parts.port or 443
    except ValueError:
        raise ApiError(422, "bad_media", f"{place} is not a valid URL", place) from None
    if len(value.encode()) > MAX_URL or not value.isprintable():
        raise ApiError(422, "bad_media", f"{place} has more than {MAX_URL} bytes or unprintable characters", place)
    name, allowed = f"[{host}]" if ":" in host else host, {entry.lower() for entry in hosts}
    if parts.username is not None or not {f"{name}:{port}", *([name] if port == 443 else [])} & allowed:
        listed = ", ".join(hosts) or "none; send base64"
        raise ApiError(422, "bad_media", f"{place}: {name}:{port} is not in limits.hosts: {listed}", place)
    return value


def _checked_value(name: str, value: Any, frame: pl.DataFrame) -> Any:
    """The value of an extra column. Raises ApiError 422 unless it fits the column's type in the bundle."""
    kind = frame.schema.get(name, pl.String())
    needed = type_name(kind)
    if kind.is_integer() and isinstance(value, int) and not isinstance(value, bool):
        empty = pl.Series(dtype=kind)
        needed = f"from {empty.lower_bound().item():,} to {empty.upper_bound().item():,}"
    try:
        if isinstance(value, bool) != (kind == pl.Boolean) or isinstance(value, list) != (kind == pl.List):
            raise ValueError
        pl.Series(name, [value], dtype=kind, strict=True)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        raise ApiError(422, "bad_item", f"{name}: must be {needed}, as in the bundle", name) from None
    if len(str(value)) > MAX_TEXT:
        raise ApiError(422, "bad_item", f"{name}: must be a text of at most {MAX_TEXT:,} characters", name)
    return value


def add_items(app: FastAPI, service: ServiceState, encoder_pool: EncoderPool, in_thread: Callable[..., Any]) -> None:
    """Add the routes."""
    _add_similar(app, service, in_thread)
    _add_changes(app, service, encoder_pool, in_thread)

    @app.get(
        "/v1/items/{item_id:id}",
        responses={200: {"model": ItemResponse}, 404: {"model": ErrorResponse}},
        tags=["items"],
    )
    async def item(item_id: str) -> Response:
        """An item, and whether its last put is searchable yet."""
        snapshot = snapshot_of(service)
        require_item(service, item_id)
        put, status, failed = service.catalog_updater.state(item_id)
        progress = {"status": status, "failed": [{"part": part, "reason": reason[:500]} for part, reason in failed]}
        return json_response(_item_fields(snapshot, item_id, put) | progress)

    @app.get("/media/{item_id:id}", tags=["items"])
    async def media(item_id: str) -> Response:
        """The image file of an item. An item whose image is a URL has none here."""
        snapshot = snapshot_of(service)
        checked_id(item_id, "item_id")
        if not service.catalog_updater.has_item(item_id):
            raise ApiError(404, "no_picture", "this item has no image file", "item_id")
        content, kind = await in_thread(snapshot.picture, item_id)
        headers = {
            "Cache-Control": "public, max-age=60",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'",
        }
        return Response(content, media_type=kind, headers=headers)


def _add_similar(app: FastAPI, service: ServiceState, in_thread: Callable[..., Any]) -> None:
    @app.get(
        "/v1/items/{item_id:id}/similar",
        responses={200: {"model": SimilarResponse}, 410: {"model": ErrorResponse}},
        tags=["items"],
    )
    async def similar(
        request: Request,
        item_id: str,
        k: Annotated[int, Query(ge=1, le=100, description="number of items")] = 20,
        filter: FilterParameter = None,
        exclude: ExcludeParameter = None,
        cursor: CursorParameter = None,
    ) -> Response:
        """Items similar to this one, best first; `near` holds the similarity by channel. `cursor`: as in
        recommendations."""
        args, of = partial(list_of, exclude=exclude, request=request), {"path": SIMILAR, "item_id": item_id}
        arm, page = await in_thread(args, service, snapshot_of(service), SIMILAR, "", filter, cursor, of)
        snapshot = arm.snapshot
        require_item(service, item_id)
        if (row := snapshot.bundle.catalog.ids.row(item_id)) < 0:
            raise not_live_yet()
        trace: dict[str, float] = {}
        with timed(trace, "rank"):
            slate, following, degraded = await in_thread(_similar_page, service, snapshot, row, k, trace, page)
        exposure = await log_exposure(request, service, slate, SIMILAR, item_id=item_id, degraded=degraded)
        return slate_response(slate, snapshot, exposure, following, snapshot.near(row, slate))


def _similar_page(
    service: ServiceState, snapshot: ServingSnapshot, row: int, k: int, trace: dict[str, float], page: Page
) -> tuple[Slate, str | None, list[str]]:
    """A page of the items similar to one item, without its variants, the cursor of the next page, and what failed."""
    rules = service.rules.of_list(snapshot.bundle, SIMILAR, cold=True, now=service.now())
    own = np.flatnonzero(snapshot.products.variants(np.array([row])))
    left_out = np.union1d(own, page.rows(snapshot.products))
    k = min(k, MAX_SHOWN - page.shown)
    slate = snapshot.similar(row, k, trace, left_out, rules)
    more = snapshot.continues(slate, k, left_out, rules)
    following = page.next(slate, snapshot.products) if more else None
    return slate.after(page.shown), following, ["rules"] if rules is not None and rules.notes else []


def _add_changes(
    app: FastAPI, service: ServiceState, encoder_pool: EncoderPool, in_thread: Callable[..., Any]
) -> None:
    @app.put(
        "/v1/items/{item_id:id}",
        status_code=202,
        responses={
            202: {"model": ItemAcceptedResponse},
            **{code: {"model": ErrorResponse} for code in (400, 408, 413, 415)},
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
        """Add an item, or replace all of its fields; its events stay.

        An accepted item is on disk. Search finds it by its text, images and sounds within seconds, and the next
        training uses it. A URL that cannot be fetched is not tried again: put the item again.
        """
        snapshot = snapshot_of(service)
        checked_id(item_id, "item_id")
        async with encoder_pool.body(request) as body:
            folder = service.settings.log
            record = await in_thread(parse_item, item_id, body, snapshot.bundle, folder, service.now())
        # stamped when it is appended: items that arrived later may have been parsed first
        is_new = await service.accept_item(replace(record, timestamp=service.now()))
        return json_response({"item_id": item_id, "status": "accepted", "new": is_new}, 202)

    @app.delete("/v1/items/{item_id:id}", responses={404: {"model": ErrorResponse}}, tags=["items"])
    async def delete(item_id: str) -> Response:
        """Hide an item from the next response on, until it is put again."""
        snapshot_of(service)
        require_item(service, item_id)
        await service.accept_item(ItemDeleted(item_id=item_id, timestamp=service.now()))
        return json_response({"item_id": item_id, "status": "deleted"})


def _item_fields(snapshot: ServingSnapshot, item_id: str, put: ItemPut | None) -> dict[str, Any]:
    """The card and availability of an item: from its last put, or else from the bundle."""
    if put is not None:
        fields = put.fields
        shown = card(item_id, fields.get(TITLE), fields.get(CATEGORIES), fields.get(IMAGE))
        return shown | {"available": fields.get(AVAILABLE) is not False}
    row = snapshot.bundle.catalog.ids.row(item_id)
    return snapshot.cards[row] | {"available": bool(snapshot.available[row])}
