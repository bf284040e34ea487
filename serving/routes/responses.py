"""Helpers that routes share: the current snapshot, filters, stage timings, exposure logging and slate responses."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any
from uuid import uuid4

from fastapi import Query, Request
from fastapi.responses import Response
from pydantic import ValidationError

from features.errors import DataError, LogError
from features.ids import id_error
from features.log.records import Exposure
from recsys.ranking.explain import Why
from recsys.ranking.slate import Slate
from recsys.retrieval.filters import Filter
from serving.cursor import Page, room_in_url
from serving.errors import ApiError, json_response
from serving.http import MAX_URL_BYTES
from serving.schemas import checked_id, first_error
from serving.state.service import ServiceState
from serving.state.snapshot import ServingSnapshot

VARIANT = "default"

FilterParameter = Annotated[
    str | None,
    Query(
        description=f"filter as JSON: which items may be returned. The whole URL has at most {MAX_URL_BYTES} bytes: "
        f"room for some 1,300 UUIDs; else 414. {json.dumps(Filter.model_json_schema())}",
    ),
]

ExcludeParameter = Annotated[
    list[str] | None,
    Query(description="ids of items that are not returned, repeated or with commas; joins `exclude` of the filter"),
]
CursorParameter = Annotated[
    str | None, Query(description="`cursor` of the page before, with the other parameters as they were; k may differ")
]


def snapshot_of(service: ServiceState) -> ServingSnapshot:
    """The snapshot that is served now. Raises ApiError 503 when no bundle is served."""
    if service.snapshot is None:
        why = service.notes.get("bundle", "the service is starting")
        raise ApiError(503, "no_bundle", f"there is no bundle to serve: {why}", str(service.settings.bundles))
    return service.snapshot


def require_item(service: ServiceState, item_id: str) -> None:
    """Raises ApiError 422 when the id is invalid, and 404 when the item is unknown or deleted."""
    checked_id(item_id, "item_id")
    if not service.catalog_updater.has_item(item_id):
        raise ApiError(
            404,
            "unknown_item",
            "unknown item: not in the bundle and not put since",
            "item_id",
        )


def not_live_yet() -> ApiError:
    """The error for an item that was put and is not in the snapshot yet."""
    return ApiError(404, "not_live_yet", "the item is being embedded; try again in a moment", "item_id")


def list_of(
    snapshot: ServingSnapshot,
    item_filter: Filter | str | None,
    cursor: str | None,
    of: Mapping[str, str | bytes | None],
    now: int,
    *,
    exclude: Sequence[str] | None = None,
    request: Request | None = None,
) -> tuple[ServingSnapshot, Page]:
    """The snapshot restricted to the items that a request may be answered with, and the page that it asks for.

    item_filter: a `Filter`, its JSON text, or None; exclude: further ids that it leaves out; of: what else the list
    depends on, see `Page.of`; now: µs; request: the one whose URL holds the cursor, None for a body.
    Raises ApiError 410 or 422 when one of them is invalid.
    """
    further = _ids(exclude or ())
    try:
        parsed = Filter.model_validate_json(item_filter) if isinstance(item_filter, str) else item_filter or Filter()
        parsed = parsed.model_copy(update={"exclude": (*sorted({*parsed.exclude, *further}),)})
        page = Page.of(cursor, {**of, "filter or exclude": parsed.model_dump_json()}, now, _room(request))
        return (snapshot if parsed == Filter() else snapshot.with_filter(parsed)), page
    except ValidationError as error:
        place, reason = first_error(error)
        raise ApiError(422, "bad_filter", f"filter {place}: {reason}".replace(" :", ":"), "filter") from None
    except DataError as error:
        raise ApiError(422, "bad_filter", str(error), "filter") from None


def _ids(texts: Sequence[str]) -> set[str]:
    """The ids in the values of a parameter. An id may have commas: a value counts as an id, and as a list of ids.

    Raises ApiError 422.
    """
    ids = set[str]()
    for text in texts:
        parts = text.split(",")
        if id_error(text):
            ids |= {checked_id(part, "exclude") for part in parts}
        else:
            ids |= {text, *filter(None, parts)}
    return ids


def _room(request: Request | None) -> int:
    if request is None:
        return MAX_URL_BYTES
    path = request.scope.get("raw_path") or request.scope["path"].encode()
    return room_in_url(path, request.scope["query_string"])


@contextmanager
def timed(trace: dict[str, float], name: str) -> Iterator[None]:
    """Context manager that stores the duration of its body as trace[name], in milliseconds."""
    started = time.perf_counter()
    try:
        yield
    finally:
        trace[name] = round((time.perf_counter() - started) * 1e3, 3)


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
    """Append the exposure of a slate to the event log. The record is on disk when this returns.

    When the log cannot be written, the slate is answered all the same: the exposure is counted, and says "log" in
    `degraded`.
    """
    exposure = Exposure(
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
        first_position=int(slate.positions[0]) if len(slate) else 1,
    )
    with timed(slate.trace, "log"):
        try:
            await service.log.append([exposure])
        except LogError:
            service.unlogged += 1
            exposure = replace(exposure, degraded=(*exposure.degraded, "log"))
    return exposure


def slate_response(
    slate: Slate,
    snapshot: ServingSnapshot,
    exposure: Exposure,
    cursor: str | None,
    near: Sequence[dict[str, float | None]] | None = None,
    why: Sequence[Why] | None = None,
    **more: Any,
) -> Response:
    """The response of a slate that was logged as `exposure`.

    cursor: of the next page, None for none; near: for each item its cosines by channel (the wire field `near`);
    why: for each item why it is shown (`why`); more: further fields of the response.
    """
    items = [
        {**snapshot.cards[row], "score": score, "position": position, "propensity": propensity, "reason": reason}
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
        items = [{**item, "near": cosines} for item, cosines in zip(items, near, strict=True)]
    if why is not None:
        items = [{**item, "why": reasons} for item, reasons in zip(items, why, strict=True)]
    return json_response(
        {
            "request_id": exposure.request_id,
            "user_id": exposure.user_id or None,
            "placement": exposure.placement,
            "bundle": slate.fingerprint,
            "variant": exposure.variant,
            "source": exposure.source,
            "degraded": exposure.degraded,
            "items": items,
            "cursor": cursor,
            "trace": slate.trace,
            **more,
        }
    )
