"""Routes that change items while the service runs: put, patch and delete."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel

from features.log.records import ItemDeleted
from serving.errors import Problem, json_response
from serving.openapi.bodies import request_body
from serving.routes.items.fields import ItemIn, new_state, parse_fields
from serving.routes.items.read import stored_fields
from serving.routes.items.turns import ItemTurns
from serving.routes.responses import require_item, snapshot_of
from serving.schemas.fields import checked_id
from serving.state.encoder_pool import EncoderPool
from serving.state.service import ServiceState
from serving.state.thread_pool import InThread

ERROR: dict[str, Any] = {"model": Problem}
BODY = request_body(ItemIn)


class ItemAcceptedResponse(BaseModel):
    """The item is on disk and searchable within seconds. new: the item was not in the catalogue before."""

    item_id: str
    status: str
    new: bool


class ItemDeletedResponse(BaseModel):
    """The item is hidden."""

    item_id: str
    status: str


def add_item_changes(
    app: FastAPI, service: ServiceState, encoder_pool: EncoderPool, in_thread: InThread, turns: ItemTurns
) -> None:
    """Add the routes."""

    @app.put(
        "/v1/items/{item_id:id}",
        status_code=202,
        responses={202: {"model": ItemAcceptedResponse}, **dict.fromkeys((400, 408, 413, 415), ERROR)},
        openapi_extra=BODY,
        tags=["items"],
    )
    async def put_item(item_id: str, request: Request) -> Response:
        """Add an item, or replace all of its fields; its events stay.

        An accepted item is on disk. Search finds it by its text, images and sounds within seconds, and the next
        training uses it. A URL that cannot be fetched is not tried again: put the item again.
        """
        snapshot = snapshot_of(service)
        checked_id(item_id, "item_id")
        async with encoder_pool.body(request) as body:
            sent = await in_thread(parse_fields, body, snapshot.bundle, service.settings.log)
        async with turns.of([item_id]):
            stored = stored_fields(service, snapshot.bundle, item_id)
            # stamped when it is appended: items that arrived later may have been parsed first
            is_new = await service.accept_item(new_state(item_id, sent, stored, service.now()))
        return json_response({"item_id": item_id, "status": "accepted", "new": is_new}, 202)

    @app.patch(
        "/v1/items/{item_id:id}",
        status_code=202,
        responses={202: {"model": ItemAcceptedResponse}, **dict.fromkeys((404, 408, 413, 415), ERROR)},
        openapi_extra=BODY,
        tags=["items"],
    )
    async def patch_item(item_id: str, request: Request) -> Response:
        """Change the fields that the body names; null deletes a field. All others stay.

        The item is embedded again only if its title, description, categories or media change. Calls for one item
        follow one another in a process. Of calls to several processes at once, the last one wins, with all fields.
        """
        snapshot = snapshot_of(service)
        require_item(service, item_id)
        async with encoder_pool.body(request) as body:
            sent = await in_thread(parse_fields, body, snapshot.bundle, service.settings.log)
        async with turns.of([item_id]):
            require_item(service, item_id)
            stored = stored_fields(service, snapshot.bundle, item_id)
            await service.accept_item(new_state(item_id, sent, stored, service.now(), keep=True))
        return json_response({"item_id": item_id, "status": "accepted", "new": False}, 202)

    @app.delete("/v1/items/{item_id:id}", responses={200: {"model": ItemDeletedResponse}, 404: ERROR}, tags=["items"])
    async def delete_item(item_id: str) -> Response:
        """Hide an item from the next response on, until it is put again."""
        snapshot_of(service)
        async with turns.of([item_id]):
            require_item(service, item_id)
            await service.accept_item(ItemDeleted(item_id=item_id, timestamp=service.now()))
        return json_response({"item_id": item_id, "status": "deleted"})
