"""What a request is answered with, and the exposure that is logged of it before."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any
from uuid import uuid4

from fastapi import Query
from fastapi.responses import Response
from pydantic import ValidationError

from features.errors import DataError
from features.log.records import Exposure
from recsys.ranking.slate import Slate
from recsys.retrieval.filters import Filter
from serving.errors import ApiError, json_response
from serving.schemas import first_error
from serving.state.service import ServiceState
from serving.state.snapshot import ServingSnapshot

VARIANT = "default"

FilterParameter = Annotated[
    str | None,
    Query(max_length=100_000, description=f"JSON: which items may come. {json.dumps(Filter.model_json_schema())}"),
]


def snapshot_of(service: ServiceState) -> ServingSnapshot:
    """What is served now. Raises ApiError 503 when there is nothing."""
    if service.live is None:
        why = service.notes.get("bundle", "the service is starting")
        raise ApiError(503, "no_bundle", f"there is no bundle to serve: {why}", str(service.settings.bundles))
    return service.live


async def with_filter(
    live: ServingSnapshot, asked: Filter | str | None, in_thread: Callable[..., Any]
) -> ServingSnapshot:
    """What is served, as far as a filter lets it through: one that was read already, or JSON. Raises ApiError 422."""
    only: ServingSnapshot = live if asked is None else await in_thread(_with_filter, live, asked)
    return only


def _with_filter(live: ServingSnapshot, asked: Filter | str) -> ServingSnapshot:
    try:
        return live.with_filter(Filter.model_validate_json(asked) if isinstance(asked, str) else asked)
    except ValidationError as error:
        place, reason = first_error(error)
        raise ApiError(422, "bad_filter", f"filter {place}: {reason}".replace(" :", ":"), "filter") from None
    except DataError as error:
        raise ApiError(422, "bad_filter", str(error), "filter") from None


@contextmanager
def timed(trace: dict[str, float], name: str) -> Iterator[None]:
    """Notes the milliseconds that its body takes."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        trace[name] = round((time.perf_counter() - begin) * 1e3, 3)


async def log_exposure(
    service: ServiceState,
    slate: Slate,
    placement: str,
    *,
    source: str = "model",
    degraded: Sequence[str] = (),
    user_id: str = "",
    item_id: str | None = None,
) -> Exposure:
    """Log what is about to be shown, on disk before this returns."""
    shown = Exposure(
        request_id=str(uuid4()),
        user_id=user_id,
        placement=placement,
        timestamp=service.now(),
        fingerprint=slate.fingerprint,
        variant=VARIANT,
        source=source,
        degraded=tuple(degraded),
        items=slate.items,
        scores=tuple(slate.scores.tolist()),
        propensities=tuple(slate.propensities.tolist()),
        item_id=item_id,
    )
    with timed(slate.trace, "log"):
        await service.log.append([shown])
    return shown


def slate_response(
    slate: Slate,
    live: ServingSnapshot,
    shown: Exposure,
    near: Sequence[dict[str, float | None]] | None = None,
    **more: Any,
) -> Response:
    """The items as they were logged; near: of each item, to what; more: further fields."""
    items = [
        {**live.cards[row], "score": score, "position": position, "propensity": propensity, "reason": reason}
        for row, score, position, propensity, reason in zip(
            slate.rows.tolist(),
            slate.scores.tolist(),
            slate.positions.tolist(),
            slate.propensities.tolist(),
            slate.reasons,
            strict=True,
        )
    ]
    if near is not None:
        items = [{**item, "near": each} for item, each in zip(items, near, strict=True)]
    return json_response(
        {
            "request_id": shown.request_id,
            "user_id": shown.user_id or None,
            "placement": shown.placement,
            "bundle": slate.fingerprint,
            "variant": shown.variant,
            "source": shown.source,
            "degraded": shown.degraded,
            "items": items,
            "trace": slate.trace,
            **more,
        }
    )
