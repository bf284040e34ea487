"""How fresh the feature store is, how large, and what the last refreshes did."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.log.segments import segment_key, stream_paths
from features.store.base import FeatureStore
from features.tables.event_files import EventFiles


@dataclass(frozen=True)
class StoreStatus:
    """The status of a store.

    filled: whether a filling has ended; generation: that is served; age: seconds since the last refresh, None for
    none; latest: time (µs) of the latest event; users: that have a state; bytes, limit: memory of the server, limit 0
    for none; bytes_per_user: of the whole server; evicted: whether it has deleted keys since the filling; behind:
    bytes of the log's events that the store has not read; new, changed: files of the events table that have new rows,
    or changed and removed ones; warning: of the server; runs: reports of the last refreshes, the newest first.
    """

    filled: bool
    generation: str
    age: float | None
    latest: int | None
    users: int
    bytes: int
    limit: int
    bytes_per_user: float | None
    evicted: bool
    behind: int
    new: list[str]
    changed: list[str]
    warning: str
    runs: list[dict[str, Any]]


def store_status(store: FeatureStore, tables: EventFiles, log: Path | None) -> StoreStatus:
    """The status of a store. Raises StoreError, DataError and LogError."""
    mark, server = store.watermark(), store.facts()
    change = tables.compare(store.tables() if mark and mark.tables else "")
    runs = [json.loads(report) for report in store.runs()]
    users = sum(1 for _ in store.users())
    return StoreStatus(
        filled=mark is not None and mark.filled,
        generation=mark.fill if mark else "",
        age=round(time.time() - runs[0]["at"] / 1e6, 1) if runs else None,
        latest=mark.latest or None if mark else None,
        users=users,
        bytes=server.used,
        limit=server.limit,
        bytes_per_user=round(server.used / users) if users else None,
        evicted=mark is not None and mark.lost_keys(server),
        behind=_behind(log, mark.log if mark else {}),
        new=[*change.added, *change.grown],
        changed=[*change.changed, *change.removed],
        warning=server.warning,
        runs=runs,
    )


def _behind(log: Path | None, position: Mapping[str, int]) -> int:
    """Bytes of the events stream beyond a position."""
    paths = [] if log is None or not log.is_dir() else stream_paths(log, "events")
    return sum(max(0, path.stat().st_size - position.get(segment_key(log, path), 0)) for path in paths if log)
