"""The outcomes of all exposures of a log, as one parquet file: one row for each item of each answer.

Exposed items are spread over temporary files by item, so that memory holds the events and one share of the exposures:
whether an event names the request or only its user, it belongs to an exposure of its item.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from features.errors import LogError, describe_write_error
from features.files import put_file, working_folder
from features.log.corrections import Corrections, corrections_of
from features.log.outcomes.attribution import SHOWN, attribute, summarized
from features.log.reader import events_frame, frame_of_exposures, read_lines
from features.log.records import EXPOSURES
from features.log.segments import stream_paths
from features.schema import EVENT, ITEM, POSITION, PROPENSITY, REQUEST_ID, TIME, USER, VALUE

FOLDER = "recsys-outcomes-"
"""Prefix of the temporary folder."""

SHARD_BYTES = 64 << 20
"""Bytes of exposures in the log for each share that is joined at once."""

MAX_TYPES = 100
"""Number of event types that get columns, the most frequent ones: any client can post an event of any type."""

COLUMNS = (
    *(REQUEST_ID, USER, "placement", TIME, "fingerprint", "variant", "source", ITEM, POSITION),
    *("score", PROPENSITY, "reason", "explored", "complete"),
)
"""Columns before those of the event types."""

_READ = (
    *(REQUEST_ID, USER, "placement", TIME, "fingerprint", "variant", "source", "items", "scores", "propensities"),
    *("first_position", "reasons", "exploration"),
)
_SHARD = "__shard"


@dataclass(frozen=True)
class OutcomesReport:
    """What was written. rows: exposed items; complete: those whose window is over; events: counted events of the log;
    by_request, by_user: those that belong to a row, by how; types: of the columns; left_out: types without columns;
    damaged: lines of the exposures that are no records, skipped."""

    answers: int
    rows: int
    complete: int
    events: int
    by_request: int
    by_user: int
    types: tuple[str, ...]
    left_out: tuple[str, ...]
    damaged: int


def write_outcomes(
    folder: Path, out: Path, within: int, *, now: int | None = None, before: int | None = None
) -> OutcomesReport:
    """Write the outcomes of the exposures in a log, whose window is `within` µs long, to a parquet file.

    now: µs. before: exposures and events of this time (µs) or later are left out; None: none is. Users are those that
    events and exposures belong to after merges; undone events do not count. Raises
    LogError when the log cannot be read or the file cannot be written.
    """
    until = time.time_ns() // 1000 if now is None else now
    corrections = corrections_of(folder)
    earlier = pl.lit(True) if before is None else pl.col(TIME) < pl.lit(before).cast(pl.Datetime("us", "UTC"))
    try:
        with working_folder(Path(tempfile.gettempdir()), FOLDER) as parts:
            shards = 1 + sum(path.stat().st_size for path in stream_paths(folder, EXPOSURES)) // SHARD_BYTES
            answers, damaged = _spread(folder, parts, corrections, shards, earlier)
            events = events_frame(folder, corrections.corrected_frame).filter(earlier)
            share = (pl.col(ITEM).hash() % shards).alias(_SHARD)
            events = events.select(USER, ITEM, EVENT, TIME, VALUE, REQUEST_ID, share)
            types, left_out = _types(events)
            figures = {"rows": 0, "complete": 0, "by_request": 0, "by_user": 0}
            for number in range(shards):
                own = events.filter(pl.col(_SHARD) == number).drop(_SHARD)
                for name, value in _join(parts / f"{number:05d}", own, within, until, types).items():
                    figures[name] += value
            rows = pl.scan_parquet(sorted(parts.glob("*/rows")))
            put_file(out, lambda part: rows.sink_parquet(part))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise LogError(f"the outcomes cannot be written: {describe_write_error(out, error)}") from error
    return OutcomesReport(
        answers, events=len(events), types=tuple(types), left_out=left_out, damaged=damaged, **figures
    )


def _spread(folder: Path, parts: Path, corrections: Corrections, shards: int, which: pl.Expr) -> tuple[int, int]:
    """Write the exposed items to PARTS/SHARD/NUMBER; the numbers of answers and of damaged lines.

    which: of the exposures.
    """
    for shard in range(shards):  # also for a log without exposures, so that the file has its columns
        (parts / f"{shard:05d}").mkdir()
        _items(frame_of_exposures([], _READ)).write_parquet(parts / f"{shard:05d}" / f"{0:08d}")
    answers, damaged, number, position = 0, 0, 0, dict[str, int]()
    while (part := read_lines(folder, position, stream=EXPOSURES)).position != position:
        position, damaged, number = part.position, damaged + len(part.damaged), number + 1
        frame = frame_of_exposures(part.lines, _READ).filter(which)
        answers += len(frame)
        frame = frame.with_columns(corrections.owners(frame).alias(USER))
        items = _items(frame).with_columns((pl.col(ITEM).hash() % shards).alias(_SHARD))
        for (shard,), own in items.group_by(_SHARD, maintain_order=True):
            own.drop(_SHARD).write_parquet(parts / f"{shard:05d}" / f"{number:08d}", compression="lz4")
    return answers, damaged


def _items(exposures: pl.DataFrame) -> pl.DataFrame:
    """One row for each item of each exposure."""
    n, first = pl.col("items").list.len(), pl.col("first_position").fill_null(1).cast(pl.Int64)
    known = pl.col("reasons").list.len() == n  # records of earlier versions have none
    return (
        exposures.filter(n > 0)
        .with_columns(
            pl.int_ranges(first, first + n, dtype=pl.Int32).alias(POSITION),
            pl.when(known).then("reasons").otherwise(pl.lit(None, pl.String).repeat_by(n)).alias("reasons"),
            pl.col("exploration").struct.field("drawn"),
            pl.col(USER).replace("", None),
        )
        .explode("items", "scores", "propensities", "reasons", POSITION)
        .with_columns(explored=pl.col(POSITION).is_in("drawn").fill_null(False))
        .drop("exploration", "drawn", "first_position")
        .rename({"items": ITEM, "scores": "score", "propensities": PROPENSITY, "reasons": "reason"})
    )


def _types(events: pl.DataFrame) -> tuple[dict[str, bool], tuple[str, ...]]:
    """Event type -> whether it has values, ascending; and the types that are too many."""
    counts = events.group_by(EVENT).agg(pl.len(), pl.col(VALUE).is_not_null().any())
    counts = counts.sort("len", EVENT, descending=[True, False])
    kept = counts.head(MAX_TYPES).sort(EVENT)
    return dict(kept.select(EVENT, VALUE).iter_rows()), tuple(counts.get_column(EVENT)[MAX_TYPES:].to_list())


def _join(shard: Path, events: pl.DataFrame, within: int, until: int, types: dict[str, bool]) -> dict[str, int]:
    """Write the rows of a shard to its file `rows`; figures of the report."""
    exposed = pl.read_parquet(sorted(shard.iterdir())).with_row_index(SHOWN)
    named, others = attribute(exposed.select(SHOWN, REQUEST_ID, USER, ITEM, TIME), events, within)
    attributed = pl.concat([named, others.select(named.columns)])
    end = pl.lit(until - within).cast(pl.Datetime("us", "UTC"))
    rows = (
        exposed.with_columns(complete=pl.col(TIME) < end)
        .join(summarized(attributed, types), on=SHOWN, how="left", maintain_order="left")
        .drop(SHOWN)
        .with_columns(pl.col(f"{name}_count").fill_null(0) for name in types)
    )
    rows = rows.select(*COLUMNS, *(name for name in rows.columns if name not in COLUMNS))
    rows.write_parquet(shard / "rows")
    complete = int(rows.get_column("complete").sum())
    return {"rows": len(rows), "complete": complete, "by_request": len(named), "by_user": len(others)}
