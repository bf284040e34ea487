"""Route of search: parses the query, has it encoded, ranks items by content similarity and logs the exposure."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import Response

from features.arrays import Floats
from features.content.parts import Content
from features.content.spaces import Embedded
from features.interactions import UserStates
from recsys.ranking.slate import Slate
from serving.cursor import MAX_SHOWN, Page
from serving.errors import ApiError, Problem, json_response
from serving.openapi.bodies import JSON, request_body
from serving.routes.responses import list_of, log_exposure, slate_content, snapshot_of, timed
from serving.routes.search_query import SearchIn, parse_query
from serving.schemas.slates import SearchResponse
from serving.state.arms import Arm
from serving.state.encoder_pool import EncoderPool, encoding_of
from serving.state.service import ServiceState
from serving.state.snapshot import rows_by_item
from serving.state.thread_pool import budget, in_time

logger = logging.getLogger("recsys.serving")

SEARCH: Final = "search"
LISTED = ("text", "image", "audio", "video", "user_id", "weight")
"""Fields that a list of results depends on, besides the filter."""


def add_search(app: FastAPI, service: ServiceState, encoder_pool: EncoderPool, in_thread: Callable[..., Any]) -> None:
    """Add the route."""

    @app.post(
        "/v1/search",
        responses={
            200: {"model": SearchResponse},
            **{code: {"model": Problem} for code in (400, 408, 410, 413, 415, 504)},
        },
        openapi_extra=request_body(SearchIn, JSON, "multipart/form-data"),
        tags=["search"],
    )
    async def search_items(request: Request) -> Response:
        """Items whose content is nearest to a text, an image, a sound, a video or a combination of them, best first.

        In JSON, media are base64 or https URLs of hosts that the bundle allows; in a form, they are files.
        `query.failed` lists the parts that could not be read; the search uses the remaining parts. With `user_id`,
        items near both the query and the user come first. When the user's history or model fails, `degraded` says
        so and the search uses the query alone. `cursor` asks for the next page.
        """
        snapshot, trace = snapshot_of(service), dict[str, float]()
        _, space = encoding_of(snapshot.bundle)  # raises before the body is read
        async with encoder_pool.body(request) as body:
            request_fields = await in_thread(parse_query, body, request.headers.get("content-type", ""))
            content, options = request_fields.content, request_fields.options
            of = {"path": SEARCH, **{name: _text(getattr(options, name)) for name in LISTED}}
            user_id = options.user_id or ""
            args = service, snapshot, SEARCH, user_id, options.filter, options.cursor, of
            arm, page = await in_thread(list_of, *args)
            snapshot = arm.snapshot
            with timed(trace, "encode"):
                embedded = await encoder_pool.embed(snapshot, content)
        budget().begin(service.settings.deadline)  # encoding has limits of its own
        failed = [
            {"part": content.parts[failure.part].modality, "reason": failure.reason[:500]}
            for failure in embedded.failures
        ]
        query = {"read": _read_modalities(content, embedded), "failed": failed}
        if not embedded.present[0]:
            raise _nothing_read(query)
        user, degraded = None, []
        if options.user_id is not None:
            with timed(trace, "store"):
                state, degraded = await in_thread(service.keeper.read_user, snapshot.store, options.user_id)
            user = snapshot.states([state], service.now())
        with timed(trace, "rank"):
            found = await in_time(in_thread, _search_page, service, arm, embedded.vectors, options, user, trace, page)
        slate, cursor, failing = found
        degraded = [*degraded, *failing]
        exposure = await log_exposure(
            request, service, slate, SEARCH, degraded=degraded, user_id=user_id, variant=arm.variant
        )
        columns = space.near_query(embedded.vectors[0], slate.rows)
        near = rows_by_item(columns, len(slate))
        return json_response(slate_content(slate, snapshot, exposure, cursor, near, query=query))


def _nothing_read(query: dict[str, Any]) -> ApiError:
    """The error for a query of which no part could be read."""
    reasons = "; ".join(f"{part['part']}: {part['reason']}" for part in query["failed"])
    return ApiError("nothing_read", f"no part of the query could be read: {reasons}", "body", more={"query": query})


def _text(value: Any) -> str | bytes | None:
    """The value of a field as `Page.of` takes it."""
    return value if isinstance(value, bytes | None) else str(value)


def _search_page(
    service: ServiceState,
    arm: Arm,
    vectors: Floats,
    options: SearchIn,
    user: UserStates | None,
    trace: dict[str, float],
    page: Page,
) -> tuple[Slate, str | None, list[str]]:
    """A page of a search, the cursor of the next page, and the components that failed (values of `degraded`).

    vectors (1, D): the encoded query; user: the state of the user user searches, or None. The slate depends on the
    query alone when the user has no positive item, or when the recommender fails.
    """
    snapshot, cold = arm.snapshot, user is None or not user.positive.any()
    rules = arm.rules.of_list(snapshot.bundle, SEARCH, cold=cold, now=service.now())
    failing = ["rules"] if rules is not None and rules.notes else []
    k, left_out = min(options.limit, MAX_SHOWN - page.shown), page.rows(snapshot.products)
    find = partial(snapshot.search, vectors, k, trace, left_out, rules=rules)
    try:
        slate = find() if cold else find(user, options.weight)
    except Exception:  # a model that fails on one user must not fail the search
        if user is None:
            raise
        logger.exception("the recommender failed for a history of %d items", len(user.times))
        slate, failing = find(), [*failing, "recommender"]
    more = snapshot.continues(slate, k, left_out, rules, snapshot.bundle.catalog.has_content)
    return slate.after(page.shown), page.next(slate, snapshot.products) if more else None, failing


def _read_modalities(content: Content, embedded: Embedded) -> list[str]:
    """Modalities of the parts that were read."""
    failed = {failure.part for failure in embedded.failures}
    return [part.modality for i, part in enumerate(content.parts) if i not in failed]
