"""Route of the items that are similar to one item."""

from functools import partial
from typing import Annotated, Final

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.responses import Response

from recsys.ranking.slate import Slate
from serving.cursor import MAX_SHOWN, Page
from serving.errors import Problem
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
from serving.schemas.slates import SimilarResponse
from serving.state.service import ServiceState
from serving.state.snapshot import ServingSnapshot
from serving.state.thread_pool import InThread, in_time

SIMILAR: Final = "similar"


def add_similar(app: FastAPI, service: ServiceState, in_thread: InThread) -> None:
    """Add the route."""

    @app.get(
        "/v1/items/{item_id:id}/similar",
        responses={200: {"model": SimilarResponse}, **{code: {"model": Problem} for code in (404, 410)}},
        tags=["items"],
    )
    async def get_similar_items(
        request: Request,
        item_id: str,
        limit: Annotated[int, Query(ge=1, le=100, description="number of items")] = 20,
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
            slate, following, degraded = await in_time(
                in_thread, _similar_page, service, snapshot, row, limit, trace, page
            )
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
