"""Readers of the event log. A position says what has been read; successive reads return every record exactly once.

Positions hold no entries of segments that were deleted. A record that `features.log.upkeep.takeover` has copied from
a segment of an earlier version has the offset it had there, "at": a position in that segment holds for the copy.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import orjson
import polars as pl

from features.errors import LogError, describe_os_error
from features.log.records import EVENTS, ITEMS, Record, Stream, record_of, stream_of_payload
from features.log.segments import READ_BYTES, DamagedBytes, chunks, damaged_end, segment_key, stream_paths
from features.log.snapshot import newest_snapshot
from features.schema import EVENT, EVENT_ID, ITEM, POSITION, PROPENSITY, REQUEST_ID, TIME, USER, VALUE

TRIES = 100
"""How often a read begins anew because another process has deleted a segment meanwhile."""

Position = Mapping[str, int]
"""Segment, as a path in the log's folder -> number of bytes read. A segment without an entry has not been read."""


@dataclass(frozen=True)
class LogLine:
    """One record of a stream, as JSON. segment: key of its segment; offset: of its line there."""

    segment: str
    offset: int
    payload: bytes


@dataclass(frozen=True)
class LinesRead:
    """Records in log order, the position after them, and the damaged lines, which were skipped but not deleted."""

    lines: list[LogLine]
    position: dict[str, int]
    damaged: tuple[DamagedBytes, ...]


@dataclass(frozen=True)
class LogRead:
    """Records in log order, the position after them, and the damaged lines, which were skipped but not deleted."""

    records: list[Record]
    position: dict[str, int]
    damaged: tuple[DamagedBytes, ...]


def read(folder: Path, since: Position | None = None, *, stream: Stream = EVENTS, limit: int = READ_BYTES) -> LogRead:
    """About `limit` bytes of the records of a stream after `since`; an unchanged position: there is nothing new.

    A record of a kind or a version that this version does not know counts as damaged. Item changes that were
    compacted are read from their snapshot, but only by a reader without a position in the stream.
    Raises LogError when a segment cannot be read.
    """
    part = read_lines(folder, since, stream=stream, limit=limit)
    records = [record for line in part.lines if (record := record_of(orjson.loads(line.payload))) is not None]
    return LogRead(records, part.position, part.damaged)


def read_lines(
    folder: Path, since: Position | None = None, *, stream: Stream = EVENTS, limit: int = READ_BYTES
) -> LinesRead:
    """As `read`, without parsing the records."""
    error: OSError | None = None
    for _ in range(TRIES):
        try:
            return _read_lines(folder, since or {}, stream, limit)
        except FileNotFoundError as missing:
            error = missing
        except OSError as other:
            error = other
            break
    assert error is not None
    raise LogError(f"the event log in {folder} cannot be read: {describe_os_error(error)}") from error


def _read_lines(folder: Path, since: Position, stream: Stream, limit: int) -> LinesRead:
    """As `read_lines`. Raises OSError; FileNotFoundError when a segment was deleted after it was listed."""
    paths = stream_paths(folder, stream)
    snapshot = newest_snapshot(folder) if stream == ITEMS else None
    if snapshot is not None:
        paths = [snapshot.path, *(path for path in paths if path.name not in snapshot.folded)]
    names = {path.name for path in paths}
    position = {key: offset for key, offset in since.items() if key.rpartition("/")[2] in names}
    if snapshot is not None and any(key.startswith(f"{ITEMS}/") for key in since):
        position.setdefault(segment_key(folder, snapshot.path), snapshot.path.stat().st_size)
    lines: list[LogLine] = []
    damaged: list[DamagedBytes] = []
    budget = limit
    for path in paths:
        key = segment_key(folder, path)
        start = position.get(key, 0)
        if snapshot is not None and path == snapshot.path:
            start = max(start, snapshot.start)
        if path.stat().st_size <= start:
            continue
        for found, end, damaged_lines in chunks(path, start, limit):
            damaged += [DamagedBytes(key, at, length) for at, length in damaged_lines]
            for offset, payload in found:
                if (of := stream_of_payload(payload)) is None:
                    damaged.append(DamagedBytes(key, offset, len(payload), newer=True))
                elif of == stream and not _was_read(payload, path.name, key, since):
                    lines.append(LogLine(key, offset, payload))
            budget -= end - start
            position[key] = start = end
            if budget <= 0:
                return LinesRead(lines, position, tuple(damaged))
    present = {segment_key(folder, path) for path in paths}
    return LinesRead(lines, {key: at for key, at in position.items() if key in present}, tuple(damaged))


def damaged_ends(folder: Path, position: Position, stream: Stream) -> list[DamagedBytes]:
    """What `read` leaves at the end of segments that nobody writes: lines without a valid one after them.

    position: after all records of the stream. Raises LogError when a segment cannot be read.
    """
    found: list[DamagedBytes] = []
    try:
        snapshot = newest_snapshot(folder) if stream == ITEMS else None
        folded = snapshot.folded if snapshot else ()
        for path in (path for path in stream_paths(folder, stream) if path.name not in folded):
            with suppress(FileNotFoundError):  # pruned since it was listed
                found += damaged_end(folder, path, position.get(segment_key(folder, path), 0))
    except OSError as error:
        raise LogError(f"the event log in {folder} cannot be read: {describe_os_error(error)}") from error
    return found


def _was_read(payload: bytes, name: str, key: str, since: Position) -> bool:
    """Whether a record was copied from a segment of an earlier version, and read there."""
    if key == name or name not in since:
        return False
    return bool(orjson.loads(payload).get("at", since[name]) < since[name])


ORDER = "order"
"""Column of logged events: place among the events of one request."""

_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    USER: pl.String,
    ITEM: pl.String,
    EVENT: pl.String,
    TIME: pl.Int64,
    VALUE: pl.Float64,
    EVENT_ID: pl.String,
    REQUEST_ID: pl.String,
    POSITION: pl.Int32,
    PROPENSITY: pl.Float64,
    ORDER: pl.Int64,
}


def frame_of_events(lines: list[LogLine]) -> pl.DataFrame:
    """Lines of the events stream with the canonical columns of the events table, one row each."""
    text = b"\n".join(line.payload for line in lines)
    frame = pl.read_ndjson(io.BytesIO(text), schema=_COLUMNS) if lines else pl.DataFrame(schema=_COLUMNS)
    return frame.with_columns(pl.col(TIME).cast(pl.Datetime("us", "UTC")))


EXPOSURE_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    REQUEST_ID: pl.String,
    USER: pl.String,
    "placement": pl.String,
    TIME: pl.Int64,
    "fingerprint": pl.String,
    "variant": pl.String,
    "source": pl.String,
    "degraded": pl.List(pl.String),
    "items": pl.List(pl.String),
    "scores": pl.List(pl.Float64),
    "propensities": pl.List(pl.Float64),
    ITEM: pl.String,
    "first_position": pl.Int32,
    "reasons": pl.List(pl.String),
    "exploration": pl.Struct(
        {
            "policy": pl.String,
            "law": pl.String,
            "rate": pl.Float64,
            "seed": pl.Int64,
            "positions": pl.List(pl.Int32),
            "own": pl.List(pl.String),
            "pools": pl.List(pl.List(pl.String)),
            "drawn": pl.List(pl.Int32),
        }
    ),
    "sample": pl.Struct(
        {
            "candidates": pl.List(pl.String),
            "candidate_scores": pl.List(pl.Float64),
            "feature_names": pl.List(pl.String),
            "features": pl.List(pl.List(pl.Float64)),
        }
    ),
}
"""Columns of logged exposures; the last four are null where an earlier version wrote the record."""


def frame_of_exposures(lines: list[LogLine], columns: Sequence[str] = tuple(EXPOSURE_COLUMNS)) -> pl.DataFrame:
    """Lines of the exposures stream with these of EXPOSURE_COLUMNS, one row each."""
    schema = {name: EXPOSURE_COLUMNS[name] for name in columns}
    text = io.BytesIO(b"\n".join(line.payload for line in lines))
    frame = pl.read_ndjson(text, schema=schema) if lines else pl.DataFrame(schema=schema)
    return frame.with_columns(pl.col(TIME).cast(pl.Datetime("us", "UTC")))


def events_frame(folder: Path, correct: Callable[[pl.DataFrame], pl.DataFrame] | None = None) -> pl.DataFrame:
    """The first part of what `read_events` returns."""
    return read_events(folder, correct)[0]


def read_events(
    folder: Path, correct: Callable[[pl.DataFrame], pl.DataFrame] | None = None
) -> tuple[pl.DataFrame, list[DamagedBytes]]:
    """All accepted events with the canonical columns of the events table and ORDER, in log order; damaged lines.

    correct: `Corrections.corrected_frame`, for the events that count and their owners; None: as they were logged.
    Of events with the same user and event_id the one of the earliest time counts. Events without an event_id all
    count. Raises LogError when a segment cannot be read.
    """
    frames, position, damaged = [frame_of_events([])], dict[str, int](), list[DamagedBytes]()
    while (part := read_lines(folder, position)).position != position:
        frames.append(frame_of_events(part.lines))
        position = part.position
        damaged += part.damaged
    damaged += damaged_ends(folder, position, EVENTS)
    without_id = pl.col(EVENT_ID).fill_null("") == ""
    events = pl.concat(frames).with_columns(pl.col(ORDER).fill_null(0))
    events = (correct(events) if correct else events).with_row_index("row")
    first = events.sort(TIME, ORDER, "row").filter(without_id | pl.struct(USER, EVENT_ID).is_first_distinct())
    return first.sort("row").drop("row"), damaged


def damaged_lines(folder: Path, stream: Stream) -> list[DamagedBytes]:
    """The lines of a stream that are no records of this version. Raises LogError when a segment cannot be read."""
    position, damaged = dict[str, int](), list[DamagedBytes]()
    while (part := read_lines(folder, position, stream=stream)).position != position:
        position = part.position
        damaged += part.damaged
    return damaged + damaged_ends(folder, position, stream)
