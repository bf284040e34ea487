"""Search: a query of words, pictures, sounds and videos is encoded beside the other requests, in a bounded time."""

import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from features.arrays import Floats
from features.content.parts import Content
from features.content.spaces import Embedded
from features.interactions import UserStates
from recsys.ranking.slate import Slate
from serving.errors import ErrorResponse, json_response
from serving.routes.responses import log_exposure, slate_response, snapshot_of, timed, with_filter
from serving.routes.search_query import SearchIn, parse_query, query_schema
from serving.schemas import SearchResponse
from serving.state.encoder_pool import EncoderPool, encoding_of
from serving.state.service import ServiceState
from serving.state.snapshot import ServingSnapshot, rows_by_item

logger = logging.getLogger("recsys.serving")

SEARCH = "search"


def add_search(app: FastAPI, service: ServiceState, encoder_pool: EncoderPool, in_thread: Callable[..., Any]) -> None:
    """The route."""
    schema = {"schema": query_schema()}

    @app.post(
        "/v1/search",
        responses={
            200: {"model": SearchResponse},
            **{code: {"model": ErrorResponse} for code in (400, 408, 413, 504)},
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": schema, "multipart/form-data": schema},
            }
        },
        tags=["search"],
    )
    async def search(request: Request) -> Response:
        """Items that words, a picture, a sound, a video or any mixture of them are near to, best first.

        As JSON, media are base64 or https URLs of hosts that the bundle names; as a form, files. What could not be
        read is told in `query.failed`, and the rest is answered. With a user, items near to both come first; where
        the user's side fails, `degraded` says so and the query alone is answered.
        """
        live, trace = snapshot_of(service), dict[str, float]()
        _, space = encoding_of(live.bundle)  # before anything is read
        async with encoder_pool.body(request) as body:
            asked = await in_thread(parse_query, body, request.headers.get("content-type", ""))
            content, sent = asked.content, asked.sent
            live = await with_filter(live, sent.filter, in_thread)
            with timed(trace, "encode"):
                found = await encoder_pool.embed(live, content)
        failed = [{"part": content.parts[each.part].modality, "reason": each.reason[:500]} for each in found.failures]
        told = {"query": {"read": _read(content, found), "failed": failed}}
        if not found.present[0]:
            why = "; ".join(f"{each['part']}: {each['reason']}" for each in failed)
            error = {"code": "nothing_read", "message": f"nothing of the query could be read: {why}", "place": "body"}
            return json_response({"error": error, **told}, 422)
        who, degraded = None, []
        if sent.user_id is not None:
            with timed(trace, "store"):
                state, degraded = await in_thread(service.read_user, live, sent.user_id)
            who = live.states(state, service.now())
        with timed(trace, "rank"):
            slate, failing = await in_thread(_slate, live, found.vectors, sent, who, trace)
        shown = await log_exposure(service, slate, SEARCH, degraded=[*degraded, *failing], user_id=sent.user_id or "")
        columns = space.near_query(found.vectors[0], slate.rows)
        return slate_response(slate, live, shown, rows_by_item(columns, len(slate)), **told)


def _slate(
    live: ServingSnapshot, vectors: Floats, sent: SearchIn, who: UserStates | None, trace: dict[str, float]
) -> tuple[Slate, list[str]]:
    """Items near to the query and to who asks, and what could not be used: by the query alone where they are not
    known, or their model fails."""
    if who is None or not who.positive.any():
        return live.search(vectors, sent.k, trace), []
    try:
        return live.search(vectors, sent.k, trace, who, sent.weight), []
    except Exception:  # a model that fails on one user must not keep the query from being answered
        logger.exception("the recommender failed for a history of %d items", len(who.times))
        return live.search(vectors, sent.k, trace), ["recommender"]


def _read(content: Content, found: Embedded) -> list[str]:
    failed = {each.part for each in found.failures}
    return [part.modality for at, part in enumerate(content.parts) if at not in failed]
