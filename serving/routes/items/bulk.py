"""Routes of many items at once: the list by pages, the export and the import, both as lines of JSON.

An entry of the list is a line of the export, and a line of the export is one of an import. The export is not the
list without pages: it is of one moment, while items may change between two pages. Its path is no segment under
`/v1/items/`, where every segment is the id of an item.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
import polars as pl
from fastapi import FastAPI, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from features.ids import id_error
from features.log.records import ItemPut
from serving.errors import ApiError, Problem, json_response
from serving.openapi.bodies import request_body
from serving.routes.items.fields import MEDIA, STORED, ItemIn, checked_fields, new_state
from serving.routes.items.table import ItemTable
from serving.routes.items.turns import ItemTurns
from serving.routes.responses import snapshot_of
from serving.routes.search_query import json_object
from serving.schemas.fields import checked_id
from serving.servable import ServableBundle
from serving.state.encoder_pool import EncoderPool
from serving.state.service import ServiceState
from serving.state.thread_pool import InThread, budget

NDJSON: Final = "application/x-ndjson"

MAX_LINES = 10_000
"""Lines of one import."""

EXPORT_ROWS = 1000
"""Items that an export reads at once."""


class ItemLine(ItemIn):
    """An item and its fields, as `PUT` takes them; extra columns of the bundle are further fields. Fields without a
    value are left out, and a file stands there as `stored`."""

    model_config = ConfigDict(extra="allow")

    item_id: str


class ItemsResponse(BaseModel):
    """A page of the items. cursor: asks for the next page, null at the end."""

    items: list[ItemLine]
    cursor: str | None


class RefusedLine(BaseModel):
    """A line of an import that was not accepted. line: from 1; item_id: null where it has none that is valid."""

    line: int
    item_id: str | None
    reason: str
    place: str = Field(description="the field; may be empty")


class ImportResponse(BaseModel):
    """Counts, and the lines that were not accepted. new: accepted items that were not in the catalogue before."""

    accepted: int
    new: int
    rejected: int
    refused: list[RefusedLine]


@dataclass(frozen=True)
class Lines:
    """The lines of an import. sent: item -> line and fields, as `checked_fields` returns them."""

    sent: dict[str, tuple[int, dict[str, Any]]]
    refused: list[RefusedLine]


def parse_lines(body: bytes, bundle: ServableBundle, log: Path) -> Lines:
    """The lines of a body; empty ones are passed over. Writes their media to the log folder.

    Raises ApiError 422 when there are none, or more than MAX_LINES.
    """
    lines = [(number, line) for number, line in enumerate(body.split(b"\n"), 1) if line.strip()]
    if not 1 <= len(lines) <= MAX_LINES:
        message = f"the body has {len(lines):,} lines; send 1 to {MAX_LINES:,}, one JSON object with item_id on each"
        raise ApiError("bad_items", message, "body")
    sent, refused = dict[str, tuple[int, dict[str, Any]]](), list[RefusedLine]()
    for number, line in lines:
        item = None
        try:
            fields = json_object(line, "bad_item")
            item = _item_of(fields)
            if item in sent:
                raise ApiError("bad_item", f"the item stands in line {sent[item][0]}, too: keep one", "item_id")
            sent[item] = number, checked_fields(fields, bundle, log)
        except ApiError as error:
            refused.append(RefusedLine(line=number, item_id=item, reason=error.detail, place=error.place))
    return Lines(sent, refused)


def _item_of(fields: dict[str, Any]) -> str:
    """The id of a line, which is taken from its fields. Raises ApiError 422."""
    item = fields.pop("item_id", None)
    reason = id_error(item) if isinstance(item, str) else "must be a text" if item is not None else "missing; add it"
    if reason:
        raise ApiError("bad_id", f"item_id {reason}", "item_id")
    assert isinstance(item, str)
    return item


def changes_of(lines: Lines, service: ServiceState) -> tuple[list[ItemPut], list[RefusedLine]]:
    """The records of the lines of an import, and all lines that are refused, in order."""
    kept = [item for item, (_, fields) in lines.sent.items() if STORED in map(fields.get, MEDIA)]
    stored = dict(zip(kept, ItemTable.of(service).fields(kept), strict=True)) if kept else {}
    now = service.now()
    puts, refused = list[ItemPut](), [*lines.refused]
    for item, (number, fields) in lines.sent.items():
        try:
            puts.append(new_state(item, fields, stored.get(item, {}), now))
        except ApiError as error:
            refused.append(RefusedLine(line=number, item_id=item, reason=error.detail, place=error.place))
    return puts, sorted(refused, key=lambda line: line.line)


def _text(table: ItemTable, ids: Sequence[str]) -> bytes:
    return b"".join(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE) for entry in table.entries(ids))


def add_bulk_items(
    app: FastAPI, service: ServiceState, encoder_pool: EncoderPool, in_thread: InThread, turns: ItemTurns
) -> None:
    """Add the routes."""
    _add_list(app, service, in_thread)

    @app.post(
        "/v1/items",
        status_code=202,
        responses={202: {"model": ImportResponse}, **{code: {"model": Problem} for code in (413, 415)}},
        openapi_extra=request_body(str, NDJSON),
        tags=["items"],
    )
    async def import_items(request: Request) -> Response:
        """Add items, or replace all of their fields: one JSON object on each line, with `item_id` and the fields of
        `PUT`. Lines of an export can be sent as they are.

        Each line is accepted or refused; accepted lines are on disk, all by one write. Search finds the items when
        they are embedded, as after a `PUT`.
        """
        bundle = snapshot_of(service).bundle
        async with encoder_pool.body(request) as body:
            lines: Lines = await in_thread(parse_lines, body, bundle, service.settings.log)
        async with turns.of(lines.sent):
            puts, refused = await in_thread(changes_of, lines, service)
            budget().begin(service.settings.deadline)  # many lines may take longer
            n_new = await service.accept_items(puts) if puts else 0
        response = ImportResponse(accepted=len(puts), new=n_new, rejected=len(refused), refused=refused).model_dump()
        if puts:
            return json_response(response, 202)
        first = refused[0]
        raise ApiError("no_item_accepted", f"line {first.line}: {first.reason}", first.place, more=response)


def _add_list(app: FastAPI, service: ServiceState, in_thread: InThread) -> None:
    @app.get("/v1/items", responses={200: {"model": ItemsResponse}}, tags=["items"])
    async def list_items(
        limit: Annotated[int, Query(ge=1, le=1000, description="number of items")] = 100,
        cursor: Annotated[str | None, Query(description="`cursor` of the page before")] = None,
    ) -> Response:
        """The items that exist, by their ids, page by page.

        The cursor is the id of the last item of a page. An item that exists all the time is in exactly one page,
        whatever is put or deleted meanwhile.
        """
        if cursor is not None:
            checked_id(cursor, "cursor")

        def page() -> dict[str, Any]:
            table = ItemTable.of(service)
            ids = table.ids(cursor or "", limit + 1).to_list()
            return {"items": table.entries(ids[:limit]), "cursor": ids[limit - 1] if len(ids) > limit else None}

        return json_response(await in_thread(page))

    @app.get(
        "/v1/items.ndjson",
        response_class=StreamingResponse,
        responses={200: {"content": {NDJSON: {"schema": {"type": "string"}}}}},
        tags=["items"],
    )
    async def export_items(request: Request) -> Response:
        """All items that exist at the moment of the call, by their ids, one JSON object on each line.

        Each line can be imported as it is. A file stands in it as `stored`, which an import takes where the item has
        the file.
        """
        table: ItemTable = await in_thread(ItemTable.of, service)
        ids: pl.Series = await in_thread(table.ids)

        async def parts() -> AsyncIterator[bytes]:
            for start in range(0, len(ids) if request.method == "GET" else 0, EXPORT_ROWS):
                yield await in_thread(_text, table, ids.slice(start, EXPORT_ROWS).to_list())

        return StreamingResponse(parts(), media_type=NDJSON, headers={"Cache-Control": "no-store"})
