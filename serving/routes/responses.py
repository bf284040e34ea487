"""Helpers that routes share: the current snapshot, filters, stage timings, exposure logging and slate responses."""

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import Query, Request
from pydantic import ValidationError

from features.arrays import Floats
from features.errors import DataError, LogError
from features.ids import id_error
from features.log.records import Exploration, Exposure, Sample
from recsys.assignment import NO_VARIANT
from recsys.ranking.explain import Why
from recsys.ranking.exploration import LAW
from recsys.ranking.pair_features import FEATURES
from recsys.ranking.slate import Slate
from recsys.ranking.slate_rules import CANDIDATES
from recsys.retrieval.filters import Filter
from serving.cursor import Page, room_in_url
from serving.errors import ApiError
from serving.http import MAX_URL_BYTES
from serving.schemas.body import first_error
from serving.schemas.fields import checked_id
from serving.state.arms import Arm
from serving.state.service import ServiceState
from serving.state.snapshot import Recommended, ServingSnapshot
from serving.state.thread_pool import budget
from serving.telemetry.metrics import UNLOGGED, count_answer, count_candidates, count_shown
from serving.telemetry.request_id import id_of_answer
from serving.telemetry.traces import stage

logger = logging.getLogger("recsys.serving")

DRAW_BITS = 48
"""Bits of the number that a request id gives: any program reads it as JSON without rounding."""

LOG_SECONDS = 0.25
"""Seconds that an answer waits for the log although no time is left of its request: exposures must not be missing
wherever there is much to do."""

DEADLINE = "deadline"
"""The value of `degraded` of an answer for a part of which no time was left."""

FilterParameter = Annotated[
    str | None,
    Query(
        description=f"filter as JSON: which items may be returned. The whole URL has at most {MAX_URL_BYTES} bytes: "
        "room for some 1,300 UUIDs; else 414. Its fields are those of `filter` in the body of `POST /v1/search`",
    ),
]

ExcludeParameter = Annotated[
    list[str] | None,
    Query(description="ids of items that are not returned, repeated or with commas; joins `exclude` of the filter"),
]
CursorParameter = Annotated[
    str | None,
    Query(description="`cursor` of the page before, with the other parameters as they were; limit may differ"),
]


def snapshot_of(service: ServiceState) -> ServingSnapshot:
    """The snapshot that is served now. Raises ApiError 503 when no bundle is served."""
    if service.snapshot is None:
        why = service.notes.get("bundle", "the service is starting")
        raise ApiError("no_bundle", f"there is no bundle to serve: {why}", str(service.settings.bundles))
    return service.snapshot


def require_item(service: ServiceState, item_id: str) -> None:
    """Raises ApiError 422 when the id is invalid, and 404 when the item is unknown or deleted."""
    checked_id(item_id, "item_id")
    if not service.catalog_updater.has_item(item_id):
        raise ApiError(
            "unknown_item",
            "unknown item: not in the bundle and not put since",
            "item_id",
        )


def not_live_yet() -> ApiError:
    """The error for an item that was put and is not in the snapshot yet."""
    return ApiError("not_live_yet", "the item is being embedded; try again in a moment", "item_id")


def list_of(
    service: ServiceState,
    snapshot: ServingSnapshot,
    placement: str,
    user_id: str,
    item_filter: Filter | str | None,
    cursor: str | None,
    of: Mapping[str, str | bytes | None],
    *,
    exclude: Sequence[str] | None = None,
    request: Request | None = None,
) -> tuple[Arm, Page]:
    """What a request is answered from, restricted to the items that its answer may hold, and the page it asks for.

    snapshot: of the current bundle; placement: or `similar` or `search`; user_id: "" for none; item_filter: a
    `Filter`, its JSON text, or None; exclude: further ids that it leaves out; of: what else the list depends on, see
    `Page.of`; request: the one whose URL holds the cursor, None for a body.
    Raises ApiError 410 or 422 when one of them is invalid.
    """
    further = _ids(exclude or ())
    try:
        parsed = Filter.model_validate_json(item_filter) if isinstance(item_filter, str) else item_filter or Filter()
        parsed = parsed.model_copy(update={"exclude": (*sorted({*parsed.exclude, *further}),)})
        depends = {**of, "filter or exclude": parsed.model_dump_json()}
        page = Page.of(cursor, depends, service.now(), _room(request))
        arm = service.arm(snapshot, user_id, placement, page.variants)
        return (arm if parsed == Filter() else arm.with_filter(parsed)), replace(page, variants=arm.variants)
    except ValidationError as error:
        place, reason = first_error(error)
        raise ApiError("bad_filter", f"filter {place}: {reason}".replace(" :", ":"), "filter") from None
    except DataError as error:
        raise ApiError("bad_filter", str(error), "filter") from None


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
        with stage(name):
            yield
    finally:
        trace[name] = round((time.perf_counter() - started) * 1e3, 3)


def number_of(request_id: str, purpose: str) -> int:
    """A number of DRAW_BITS bits that the id of a request gives, equally likely, another one for each purpose."""
    digest = hashlib.blake2b(request_id.encode(), digest_size=DRAW_BITS // 8, person=purpose.encode())
    return int.from_bytes(digest.digest(), "little")


def is_sampled(request_id: str, share: float) -> bool:
    """Whether an answer is among the share of those whose candidates are logged."""
    return bool(number_of(request_id, "sample") < share * 2**DRAW_BITS)


def sample_of(snapshot: ServingSnapshot, recommended: Recommended) -> Sample | None:
    """What a slate was chosen from: at most CANDIDATES candidates, and the features of its items."""
    candidates = recommended.candidates
    if candidates is None:  # of most answers
        return None
    usable = (candidates.rows[0] >= 0) & np.isfinite(candidates.scores[0])
    rows, scores = (values[0][usable][:CANDIDATES] for values in (candidates.rows, candidates.scores))
    names = zip(candidates.source_names(0), usable.tolist(), strict=True)
    count_candidates(Counter(name or "unknown" for name, is_usable in names if is_usable))
    try:
        features = recommended.features()
    except Exception:  # as in `recommend`: what explains an answer must not fail it
        logger.exception("the features of an answer cannot be logged")
        return None
    ids = snapshot.bundle.catalog.ids.ids
    return Sample(
        candidates=tuple(ids[row] for row in rows.tolist()),
        candidate_scores=tuple(_short(scores)),
        feature_names=() if features is None else FEATURES,
        features=() if features is None else tuple(map(tuple, _short(features))),
    )


def exploration_of(snapshot: ServingSnapshot, slate: Slate) -> Exploration | None:
    """How the items at the explored positions of a slate were drawn."""
    if (drawn := slate.drawn) is None:
        return None
    ids = snapshot.bundle.catalog.ids.ids
    places = [position - 1 for position in drawn.positions]
    return Exploration(
        policy=drawn.rule,
        law=LAW,
        rate=drawn.rate,
        seed=drawn.seed,
        positions=tuple(slate.positions[places].tolist()),
        own=tuple(ids[row] for row in drawn.own),
        pools=tuple(tuple(ids[row] for row in pool) for pool in drawn.pools),
        drawn=tuple(slate.positions[slate.explored].tolist()),
    )


def _short(values: Floats) -> list[Any]:
    """Numbers as Python's, with the fewest digits that give the same single-precision number; None for NaN."""
    numbers: list[Any] = orjson.loads(orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY))
    return numbers


async def log_exposure(
    request: Request,
    service: ServiceState,
    slate: Slate,
    placement: str,
    *,
    request_id: str = "",
    source: str = "model",
    degraded: Sequence[str] = (),
    user_id: str = "",
    item_id: str | None = None,
    variant: str = NO_VARIANT,
    exploration: Exploration | None = None,
    sample: Sample | None = None,
    remember: Callable[[Exposure], Awaitable[list[str]]] | None = None,
) -> Exposure:
    """Append the exposure of a slate to the event log. The record is on disk when this returns.

    remember: called with the exposure of an answer that goes out; returns the components that failed.

    A client that has closed its connection by then, or asks with HEAD, is shown nothing: nothing is logged. The log
    comes before the answer, so that an answer can say that its exposure is missing, and that no event can name an
    exposure that the log lacks. When the log cannot be written, the slate is answered all the same: the exposure is
    counted, and says "log" in `degraded`.
    """
    exposure = Exposure(
        request_id=request_id or id_of_answer(request.scope),
        user_id=user_id,
        placement=placement,
        timestamp=service.now(),
        fingerprint=slate.fingerprint,
        variant=variant,
        source=source,
        degraded=tuple(degraded),
        items=slate.items,
        scores=tuple(_short(slate.scores)),
        propensities=tuple(slate.propensities.tolist()),
        item_id=item_id,
        first_position=int(slate.positions[0]) if len(slate) else 1,
        reasons=slate.reasons,
        exploration=exploration,
        sample=sample,
    )
    if request.method == "HEAD" or await request.is_disconnected():
        return exposure
    with timed(slate.trace, "log"):
        try:
            async with asyncio.timeout(budget().left(least=LOG_SECONDS)):
                await service.log.append([exposure])
        except (LogError, TimeoutError):
            service.unlogged += 1
            UNLOGGED.inc()
            exposure = replace(exposure, degraded=(*exposure.degraded, "log"))
    if remember is not None:
        with timed(slate.trace, "remember"):
            failed = await remember(exposure)
        exposure = replace(exposure, degraded=(*dict.fromkeys((*exposure.degraded, *failed)),))
    return exposure


def slate_content(
    slate: Slate,
    snapshot: ServingSnapshot,
    exposure: Exposure,
    cursor: str | None,
    near: Sequence[dict[str, float | None]] | None = None,
    why: Sequence[Why] | None = None,
    probabilities: Sequence[float | None] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The body of the response of a slate that was logged as `exposure`, which is counted; see `slate_fields`.

    near: for each item its cosines by channel (the wire field `near`); more: further fields of the response.
    """
    _count(slate, snapshot, exposure, probabilities)
    content = slate_fields(slate, snapshot, exposure, cursor, why, probabilities)
    if near is not None:
        content["items"] = [{**item, "near": cosines} for item, cosines in zip(content["items"], near, strict=True)]
    return {**content, **more}


def slate_fields(
    slate: Slate,
    snapshot: ServingSnapshot,
    exposure: Exposure,
    cursor: str | None,
    why: Sequence[Why] | None = None,
    probabilities: Sequence[float | None] | None = None,
) -> dict[str, Any]:
    """The fields that the response of every slate has. Nothing is counted.

    exposure: names the answer; cursor: of the next page, None for none; why: for each item why it is shown;
    probabilities: of each item.
    """
    items = [
        {
            **snapshot.cards[row],
            "score": score,
            "position": position,
            "propensity": propensity,
            "reason": reason,
            "explored": explored,
        }
        for row, score, position, propensity, reason, explored in zip(
            slate.rows.tolist(),
            slate.scores.tolist(),
            slate.positions.tolist(),
            slate.propensities.tolist(),
            slate.reasons,
            slate.explored.tolist(),
            strict=True,
        )
    ]
    if probabilities is not None:
        items = [{**item, "probability": value} for item, value in zip(items, probabilities, strict=True)]
    if why is not None:
        items = [{**item, "why": reasons} for item, reasons in zip(items, why, strict=True)]
    return {
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
    }


def _count(
    slate: Slate, snapshot: ServingSnapshot, exposure: Exposure, probabilities: Sequence[float | None] | None
) -> None:
    """Count an answer for the metrics."""
    count_answer(exposure.placement, exposure.source, exposure.degraded, slate.trace)
    cold = int((snapshot.bundle.popularity[slate.rows] == 0).sum())
    known = [value for value in probabilities or () if value is not None]
    mean = sum(known) / len(known) if known else None
    count_shown(exposure.placement, Counter(slate.reasons), cold, slate.fingerprint, mean)
