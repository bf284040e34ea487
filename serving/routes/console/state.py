"""Route of the state of the service: how fresh log, store and bundle are, and what the last runs did."""

import asyncio
import json
import time
from contextlib import suppress
from typing import Literal

from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import BaseModel, Field

from features.errors import LogError, RecsysError
from features.instants import format_instant
from features.log.records import EVENTS
from features.log.status import bytes_after, log_status
from features.store.base import FeatureStore
from serving.errors import json_response
from serving.routes.console.bundles import BundlesOut, bundles_of
from serving.state.service import ServiceState


class StreamOut(BaseModel):
    """A stream of the log. records: estimated where `exact` is false; damaged: lines that are no records, null when
    not all was read."""

    stream: str
    records: int
    exact: bool
    bytes: int
    oldest: str | None
    newest: str | None
    damaged: int | None


class ReaderOut(BaseModel):
    """A registered reader of the log. behind: bytes that it has not read; seconds: since it last advanced."""

    name: str
    stream: str
    behind: int
    seconds: float


class LogOut(BaseModel):
    """The event log. fault: why it cannot be written."""

    streams: list[StreamOut]
    readers: list[ReaderOut]
    fault: str | None


class RefreshOut(BaseModel):
    """What the last refresh of the store did; see `recsys features status`."""

    at: str
    seconds: float
    rebuilt: bool
    why: str
    users: int
    table_events: int
    log_events: int
    rejected: int


class StoreOut(BaseModel):
    """The feature store. null: it does not say."""

    status: Literal["filled", "filling", "away"]
    latest: str | None = Field(description="time of its latest event")
    lag_seconds: float | None = Field(description="since it had every event of the log; null: not since the start")
    lag_bytes: int | None = Field(description="events in the log beyond its watermark")
    memory: int
    memory_limit: int | None
    warning: str | None
    refresh: RefreshOut | None


class StateResponse(BaseModel):
    """The state of the service. problems: component -> problem, as `/readyz` has them; log: null where it cannot be
    read; store: null without a bundle."""

    now: str
    problems: dict[str, str]
    log: LogOut | None
    store: StoreOut | None
    bundles: BundlesOut


def add_state(app: FastAPI, service: ServiceState) -> None:
    """Add the route."""

    @app.get("/v1/state", responses={200: {"model": StateResponse}}, tags=["state"])
    async def get_state() -> Response:
        """How fresh log, store and bundle are, what the last refresh, training and night did, and the figures of the
        served bundle with those of the one before it. What no file says is null."""
        state = await asyncio.to_thread(_state, service)  # reads files, and not among the threads of requests
        return json_response(state.model_dump())


def _state(service: ServiceState) -> StateResponse:
    snapshot = service.snapshot
    return StateResponse(
        now=format_instant(service.now()),
        problems=service.problems,
        log=_log(service),
        store=None if snapshot is None else _store(service, snapshot.store),
        bundles=bundles_of(service.settings.bundles, None if snapshot is None else snapshot.bundle),
    )


def _log(service: ServiceState) -> LogOut | None:
    try:
        status = log_status(service.settings.log)
    except LogError:
        return None
    streams = [
        StreamOut(
            stream=of.stream,
            records=of.records,
            exact=of.exact,
            bytes=of.bytes,
            oldest=_instant(of.oldest),
            newest=_instant(of.newest),
            damaged=of.damaged,
        )
        for of in status.streams
    ]
    readers = [
        ReaderOut(name=of.name, stream=of.stream, behind=of.behind, seconds=of.seconds) for of in status.readers
    ]
    return LogOut(streams=streams, readers=readers, fault=service.log.fault or None)


def _store(service: ServiceState, store: FeatureStore) -> StoreOut:
    keeper, lag_bytes = service.keeper, None
    lag = None if keeper.caught_up is None else round(time.monotonic() - keeper.caught_up, 1)
    with suppress(OSError):
        lag_bytes = bytes_after(service.settings.log, EVENTS, keeper.position)
    try:
        mark, server, runs = store.watermark(), store.facts(), store.runs()
    except RecsysError as error:
        return StoreOut(
            status="away",
            latest=None,
            lag_seconds=lag,
            lag_bytes=lag_bytes,
            memory=0,
            memory_limit=None,
            warning=str(error),
            refresh=None,
        )
    return StoreOut(
        status="filled" if mark is not None and mark.filled else "filling",
        latest=_instant(mark.latest or None if mark else None),
        lag_seconds=lag,
        lag_bytes=lag_bytes,
        memory=server.used,
        memory_limit=server.limit or None,
        warning=server.warning or None,
        refresh=_refresh(runs[0]) if runs else None,
    )


def _refresh(report: str) -> RefreshOut | None:
    with suppress(ValueError, TypeError, KeyError):  # of another version
        run = json.loads(report)
        return RefreshOut.model_validate({**run, "at": format_instant(run["at"])})
    return None


def _instant(time: int | None) -> str | None:
    """A time (µs) as ISO 8601 text; None for none."""
    return None if time is None else format_instant(time)
