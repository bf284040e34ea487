"""Export of a stream to parquet files by day (UTC). Each run adds what is new.

    OUT/2026-01-31.parquet    the records of one day, in log order
    OUT/.position.json        what has been exported

A file states in its metadata what it holds, and is replaced atomically: a run that was interrupted is simply run
again, and no record is written twice. The new records are first collected by day in a temporary folder, so that
memory holds a bounded number of them.
"""

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from features.errors import LogError, describe_write_error
from features.files import not_a_file, put_file, working_folder
from features.log.corrections import corrections_of
from features.log.reader import ORDER, LogLine, damaged_ends, frame_of_events, frame_of_exposures, read_lines
from features.log.readers import FEATURE_STORE, READERS, advance, reader_of
from features.log.records import CORRECTIONS, EVENTS, EXPOSURES, ITEMS, Stream
from features.log.segments import exclusive
from features.schema import EVENT_ID, ITEM, TIME, USER

POSITION_FILE = ".position.json"
PARTS = ".collecting-"
LOCK = ".export.lock"
METADATA = "recsys.log"
"""Key of a file's metadata: stream and position, as JSON."""

_SEGMENT, _OFFSET = "__segment", "__offset"
_UTC = pl.Datetime("us", "UTC")

_CORRECTION_COLUMNS: dict[str, Any] = {
    USER: pl.String,
    "kind": pl.String,
    TIME: pl.Int64,
    "from_id": pl.String,
    "until": pl.Int64,
    EVENT_ID: pl.String,
}
_ITEM_COLUMNS: dict[str, Any] = {ITEM: pl.String, "kind": pl.String, TIME: pl.Int64, "fields": pl.String}


@dataclass(frozen=True)
class ExportReport:
    """What a run exported. days: of the files that it wrote; damaged: lines that are no records, skipped;
    those at the end of a segment count in each run."""

    stream: Stream
    records: int
    days: list[str]
    damaged: int


def export(folder: Path, stream: Stream, out: Path, *, reader: str = "") -> ExportReport:
    """Add the new records of a stream to the files in `out`.

    reader: register the export under this name: retention then keeps what it has not exported.
    Raises LogError when the log cannot be read, or `out` cannot be written or holds another stream.
    """
    if reader == FEATURE_STORE:
        raise LogError(f"reader {reader!r} is the feature store, which every refresh registers: choose another name")
    _check_reader(folder, reader, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with exclusive(out / LOCK) as mine, working_folder(out, PARTS) as parts:
            if not mine:
                raise LogError(f"another export writes to {out}: wait until it has ended")
            since = _position(out, stream)
            if reader:
                advance(folder, reader, stream, since, exports=str(out.resolve()))
            position, damaged = _collect(folder, stream, since, parts)
            records, days = 0, sorted(path.name for path in parts.iterdir())
            for day in days:
                records += _add(out / f"{day}.parquet", parts / day, stream, position)
            state = orjson.dumps({"stream": stream, "position": position})
            put_file(out / POSITION_FILE, lambda part: part.write_bytes(state))
        if reader:
            advance(folder, reader, stream, position, exports=str(out.resolve()))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise LogError(f"the export to {out} failed: {describe_write_error(out, error)}") from error
    return ExportReport(stream, records, days, damaged)


def _check_reader(folder: Path, name: str, out: Path) -> None:
    """Raise LogError where the name is that of another export: its folder would be forgotten, also by an erasure."""
    try:
        other = reader_of(folder, name) if name else None
    except LogError:  # a damaged file of a reader is written again
        return
    if other and other.exports and Path(other.exports) != out.resolve() and Path(other.exports).exists():
        raise LogError(
            f"reader {name!r} exports to {other.exports}: choose another name, or delete "
            f"{folder}/{READERS}/{name}.json where that is over"
        )


def _collect(folder: Path, stream: Stream, since: Mapping[str, int], parts: Path) -> tuple[dict[str, int], int]:
    """Write the new records to PARTS/DAY/NUMBER.parquet; the position after them, and the number of damaged lines."""
    position, damaged, number = dict(since), 0, 0
    corrections = corrections_of(folder)
    while (part := read_lines(folder, position, stream=stream)).position != position:
        position, damaged, number = part.position, damaged + len(part.damaged), number + 1
        frame = FRAMES[stream](part.lines).with_columns(
            pl.Series(_SEGMENT, [line.segment for line in part.lines], pl.String),
            pl.Series(_OFFSET, [line.offset for line in part.lines], pl.Int64),
        )
        if stream == EVENTS:  # those that are undone later are left out by every reader of the tables
            frame = corrections.counting_frame(frame)
        for (day,), records in frame.group_by(pl.col(TIME).dt.strftime("%Y-%m-%d"), maintain_order=True):
            (parts / str(day)).mkdir(exist_ok=True)
            records.write_parquet(parts / str(day) / f"{number:08d}.parquet")
    return position, damaged + len(damaged_ends(folder, position, stream))


def _add(path: Path, parts: Path, stream: Stream, position: Mapping[str, int]) -> int:
    """Add the records of a day to its file, but those that it has; returns their number."""
    before = _metadata(path, stream)
    has = pl.col(_SEGMENT).replace_strict(list(before), list(before.values()), default=0, return_dtype=pl.Int64)
    new = pl.scan_parquet(sorted(parts.iterdir())).filter(pl.col(_OFFSET) >= (has if before else 0))
    frames = [new.drop(_SEGMENT, _OFFSET)]  # a file of an earlier version lacks columns
    if path.exists():
        frames.insert(0, pl.scan_parquet(path))
    metadata = {METADATA: orjson.dumps({"stream": stream, "position": {**before, **position}}).decode()}
    try:
        put_file(path, lambda part: pl.concat(frames, how="diagonal").sink_parquet(part, metadata=metadata))
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        if not isinstance(error, OSError) and "(os error" not in str(error):
            raise LogError(f"{path} is damaged: move it away") from error
        if isinstance(error, OSError) and error.errno is not None:  # it may name the temporary file
            error.filename = str(path)
        raise LogError(f"the export to {path.parent} failed: {describe_write_error(path, error)}") from error
    return int(new.select(pl.len()).collect().item())


def _metadata(path: Path, stream: Stream) -> dict[str, int]:
    """The position that a file holds; empty without a file."""
    if not os.path.lexists(path):
        return {}
    if wrong := not_a_file(path):
        raise LogError(f"{path}: {wrong.partition(';')[0]}; move it away")
    try:
        text = pl.read_parquet_metadata(path).get(METADATA)
    except pl.exceptions.PolarsError as error:
        raise LogError(f"{path} is no parquet file: move it away") from error
    if text is None:
        raise LogError(f"{path}: is no export of the log: choose another folder with --out")
    return _checked(path, text.encode(), stream)


def _position(out: Path, stream: Stream) -> dict[str, int]:
    """What an earlier run has exported; empty for a new folder."""
    path = out / POSITION_FILE
    return _checked(path, path.read_bytes(), stream) if path.exists() else {}


def _checked(path: Path, text: bytes, stream: Stream) -> dict[str, int]:
    """The position in a JSON text of an export. path: of its file, for errors. Raises LogError."""
    try:
        values = orjson.loads(text)
        found, position = str(values["stream"]), {str(k): int(v) for k, v in values["position"].items()}
        if not all(type(v) is int and v >= 0 for v in values["position"].values()):
            raise ValueError
    except (ValueError, TypeError, LookupError, AttributeError):
        raise LogError(
            f"{path}: is not the position of an export: delete it and run the export again; what its files hold is "
            "not added twice"
        ) from None
    if found != stream:
        raise LogError(f"{path}: holds {found}, not {stream}: choose another folder with --out")
    return position


def _events(lines: list[LogLine]) -> pl.DataFrame:
    """The canonical columns of the events table, without an empty event_id."""
    return frame_of_events(lines).drop(ORDER).with_columns(pl.col(EVENT_ID).replace("", None))


def _corrections(lines: list[LogLine]) -> pl.DataFrame:
    text = io.BytesIO(b"\n".join(line.payload for line in lines))
    frame = pl.read_ndjson(text, schema=_CORRECTION_COLUMNS) if lines else pl.DataFrame(schema=_CORRECTION_COLUMNS)
    return frame.with_columns(pl.col(TIME, "until").cast(_UTC))


def _item_changes(lines: list[LogLine]) -> pl.DataFrame:
    """fields: the fields of a put as JSON; null for a deletion."""
    rows = []
    for values in (orjson.loads(line.payload) for line in lines):
        fields = orjson.dumps(values["fields"]).decode() if "fields" in values else None
        rows.append((values["item_id"], values["kind"], values["timestamp"], fields))
    return pl.DataFrame(rows, schema=_ITEM_COLUMNS, orient="row").with_columns(pl.col(TIME).cast(_UTC))


FRAMES: dict[Stream, Callable[[list[LogLine]], pl.DataFrame]] = {
    EVENTS: _events,
    EXPOSURES: frame_of_exposures,
    ITEMS: _item_changes,
    CORRECTIONS: _corrections,
}
