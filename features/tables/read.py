"""The data contract: items, events and users, read lazily and checked; nothing is dropped in silence.

A row that cannot be used is set aside with its reason; an item with one bad field is kept with a null there.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path

import polars as pl

from features import schema
from features.arrays import Bools, Floats
from features.errors import DataError
from features.log.item_changes import ItemChanges, item_put_table
from features.log.records import ItemPut
from features.progress import StartProgress
from features.schema import (
    AVAILABLE,
    CATEGORIES,
    EVENT,
    EVENT_ID,
    GROUP,
    ITEM,
    POSITION,
    PRICE,
    PROPENSITY,
    PUBLISHED,
    REQUEST_ID,
    TIME,
    USER,
    VALUE,
    DataConfig,
    EventRules,
)
from features.tables import columns as checks
from features.tables.columns import ColumnRule, Violation
from features.tables.report import Report
from features.tables.scan import LINE, SUFFIXES, find_table, scan
from features.tables.validate import MEDIA, REQUIRED, RawTable, Validated, find_media, validate, write_rejected

TEXTS = (schema.TITLE, schema.DESCRIPTION)

ITEMS: dict[str, pl.DataType] = {
    **{name: pl.String() for name in (ITEM, *TEXTS, *MEDIA)},
    CATEGORIES: pl.List(pl.String()),
    PRICE: pl.Float64(),
    PUBLISHED: checks.UTC,
    AVAILABLE: pl.Boolean(),
    GROUP: pl.String(),
}
"""Canonical items: column -> type. Only item_id is required; absent columns are null, absent `available` is true."""

EVENTS: dict[str, pl.DataType] = {
    **{name: pl.String() for name in (USER, ITEM, EVENT)},
    TIME: checks.UTC,
    VALUE: pl.Float64(),
    **{name: pl.String() for name in (EVENT_ID, REQUEST_ID)},
    POSITION: pl.Int32(),
    PROPENSITY: pl.Float64(),
}
"""Canonical events in the order of the log: column -> type. The first four are required."""

CANONICAL: dict[str, dict[str, pl.DataType]] = {"items": ITEMS, "events": EVENTS, "users": {USER: pl.String()}}


@dataclass(frozen=True)
class Tables:
    """Checked tables in canonical types, rows in the order of their files, and what was found on the way.

    items: the columns of `ITEMS` and the declared extra ones; events: the columns of `EVENTS`;
    users: user_id and whatever else the file has.
    """

    items: pl.DataFrame
    events: pl.DataFrame
    users: pl.DataFrame | None
    report: Report


def read_tables(config: DataConfig, *, now: datetime | None = None, progress: StartProgress | None = None) -> Tables:
    """Read and check the tables in the folder ``config.path``: items.*, events.* and, where there, users.*.

    Items that were put or deleted, as the log in ``config.log`` says, are joined to the items table.
    Rows set aside are written to ``<path>/rejected/<table>.parquet``. now: the latest possible time of an event
    (default: the clock). Raises DataError when a file or column is missing or nothing usable is left.
    """
    folder = Path(config.path)
    paths = {name: find_table(folder, name) for name in REQUIRED}
    if absent := [name for name in ("items", "events") if paths[name] is None]:
        there = ", ".join(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "no such folder"
        raise DataError(
            f"{folder}: no file of {' and '.join(absent)} ({' or '.join(SUFFIXES)}); there is: {there}. "
            f"Run `recsys data get` for source {config.source!r}, or set data.path to your own tables"
        )
    raws = [
        RawTable.of(name, path.name, scan(path, config.extra_columns))
        for name, path in paths.items()
        if path is not None
    ]
    return _read(raws, config, folder, folder / "rejected", now, progress)


def read_items(config: DataConfig, *, progress: StartProgress | None = None) -> tuple[pl.DataFrame, Report]:
    """The items alone, checked as `read_tables` does, and what was found. Raises DataError."""
    folder = Path(config.path)
    if (path := find_table(folder, "items")) is None:
        raise DataError(f"{folder}: no file of items ({' or '.join(SUFFIXES)}); run `recsys data get` first")
    raw = RawTable.of("items", path.name, scan(path, config.extra_columns))
    tables = _read([raw], config, folder, folder / "rejected", None, progress)
    return tables.items, tables.report


def check_tables(
    items: pl.LazyFrame,
    events: pl.LazyFrame,
    users: pl.LazyFrame | None,
    config: DataConfig,
    *,
    media_root: Path | None = None,
    rejected: Path | None = None,
    now: datetime | None = None,
) -> Tables:
    """Check tables that are LazyFrames already.

    media_root: folder that relative media paths start from, None: files are not looked for;
    rejected: folder for the rows set aside, None: they are only counted. Raises as `read_tables`.
    """
    given = zip(REQUIRED, (items, events, users), strict=True)
    raws = [RawTable.of(name, name, frame) for name, frame in given if frame is not None]
    return _read(raws, config, media_root, rejected, now, None)


def check_item_puts(puts: Sequence[ItemPut], log: Path, config: DataConfig) -> Validated:
    """Items that were put, checked as rows of the items table are. log: the folder that their records are in."""
    raw = RawTable.of("items", "event log", item_put_table(puts, log, config.extra_columns).lazy())
    return validate(raw, _column_rules(raw, config, None, datetime.now(UTC)))


def label_events(events: pl.DataFrame, rules: EventRules) -> tuple[Bools, Bools]:
    """What canonical events mean: (positive (n,) bool, seen (n,) bool).

    Positive: the type is named in ``rules.positive`` and the value reaches its threshold (null: any value, also
    none). Seen: the type is in ``rules.seen``, or that is null.
    """
    kind, value = pl.col(EVENT), pl.col(VALUE)
    named = [
        (kind == name) & (pl.lit(True) if least is None else (value >= least).fill_null(False))
        for name, least in rules.positive.items()
    ]
    positive = reduce(pl.Expr.or_, named, kind.is_null())
    seen = kind.is_not_null() if rules.seen is None else kind.is_in(list(rules.seen))
    marks = events.select(positive.alias("positive"), seen.alias("seen"))
    return marks.get_column("positive").to_numpy().copy(), marks.get_column("seen").to_numpy().copy()


def event_weights(events: pl.DataFrame, rules: EventRules) -> Floats | None:
    """How much each of canonical events counts in training, (n,) float32; None: all alike."""
    if not rules.weights:
        return None
    weights = pl.col(EVENT).replace_strict(rules.weights, default=1.0, return_dtype=pl.Float32)
    return events.select(weights).to_series().to_numpy().copy()


def _read(
    raws: list[RawTable],
    config: DataConfig,
    media_root: Path | None,
    rejected: Path | None,
    now: datetime | None,
    progress: StartProgress | None,
) -> Tables:
    done: dict[str, Validated] = {}
    notes: list[str] = []
    files: dict[str, str] = {}
    log = None if config.log is None else Path(config.log)
    changes = None if log is None else ItemChanges.of(log)
    logged = check_item_puts(list(changes.puts.values()), log, config) if log and changes and changes.puts else None
    for raw in raws:
        known = _ids(done["items"], logged) if raw.name == "events" else None
        reads = _column_rules(raw, config, known, now or datetime.now(UTC))
        notes += [note for read in reads.values() for note in read.notes]
        notes += _undeclared(raw, reads)
        done[raw.name] = sifted = validate(raw, reads, progress)
        if rejected is not None:
            files |= write_rejected(sifted, rejected, notes)
        if len(sifted.kept) == 0 and raw.name != "users":
            raise _nothing_left(sifted)
    counted = [*done.values(), *([logged] if logged else [])]
    problems = [p for c in counted for p in c.problems]
    tables = []
    for sifted in (done["items"], *([logged] if logged else [])):
        table, missing = (sifted.kept, []) if media_root is None else find_media(sifted, media_root)
        tables.append(table)
        problems += missing
    items = tables[0]
    if changes is not None and (changes.puts or changes.gone):
        items, told = _changed(items, tables[1] if logged else items.clear(), changes.gone)
        notes += told
    events = done["events"].kept if "events" in done else pl.DataFrame(schema=EVENTS)
    if "events" in done:
        notes += _unnamed_types(events, config.events)
    report = Report(tuple(c.count for c in counted), tuple(problems), tuple(notes), files)
    return Tables(items, events, done["users"].kept if "users" in done else None, report)


def _ids(items: Validated, logged: Validated | None) -> pl.Series:
    ids = items.kept.get_column(ITEM)
    return ids if logged is None else pl.concat([ids, logged.kept.get_column(ITEM)])


def _changed(items: pl.DataFrame, puts: pl.DataFrame, gone: Collection[str]) -> tuple[pl.DataFrame, list[str]]:
    """The items table with those that were put, in place of theirs or after them, and without what is gone; notes."""
    cast = puts.select(pl.col(name).cast(kind, strict=False) for name, kind in items.schema.items())
    lost = {name: cast[name].null_count() - puts[name].null_count() for name in items.columns}
    notes = [f"event log: {n:,} values of {name} are no {items.schema[name]}: null" for name, n in lost.items() if n]
    kept = items.join(cast.select(ITEM), on=ITEM, how="anti", maintain_order="left")
    both = pl.concat([kept, cast])
    deleted = pl.col(ITEM).is_in(list(gone))
    new, replaced = len(both) - len(items), len(items) - len(kept)
    hidden = both.select(deleted.sum()).item()
    notes.append(f"event log: {new:,} new items, {replaced:,} put in place of the table's, {hidden:,} deleted")
    return both.with_columns(pl.col(AVAILABLE) & ~deleted), notes


def _column_rules(raw: RawTable, config: DataConfig, known: pl.Series | None, now: datetime) -> dict[str, ColumnRule]:
    """How each column of a table is read: name -> Read, in canonical order."""
    canonical = CANONICAL[raw.name]
    reads = {name: _column(raw, name, kind, now) for name, kind in canonical.items()}
    if known is not None:
        reads[ITEM] = reads[ITEM].with_violation(_unknown(reads[ITEM].value, known))
    if raw.name == "items":
        raw.require(config.extra_columns, "data.extra_columns names")
    further = config.extra_columns if raw.name == "items" else raw.columns if raw.name == "users" else ()
    reads |= {name: ColumnRule(pl.col(name)) for name in further if name not in reads}
    if LINE in raw.types:
        line, first = pl.col(LINE), next(iter(reads))
        broken = ~line.str.starts_with("{") | line.str.json_path_match("$").is_null()
        reads[first] = reads[first].with_violation(
            Violation("not a JSON object", "write one JSON object a line", broken), first=True
        )
    return reads


def _column(raw: RawTable, name: str, kind: pl.DataType, now: datetime) -> ColumnRule:
    if name not in raw.types:
        return ColumnRule(pl.lit(True) if name == AVAILABLE else pl.lit(None, kind))
    at = (raw.file, name, raw.types[name])
    required = name in REQUIRED[raw.name]
    match name:
        case schema.USER | schema.ITEM | schema.EVENT_ID | schema.REQUEST_ID:
            return checks.identifier(*at, required=required)
        case schema.TIME:
            return checks.moment(*at, median=_median(raw, name), now=now, repaired=False)
        case schema.PUBLISHED:
            return checks.moment(*at, median=_median(raw, name), now=None, repaired=True, dates=True)
        case schema.VALUE:
            return checks.number(*at, repaired=False)
        case schema.PRICE:
            rule = "a finite number of 0 or more"
            return checks.number(*at, allowed=lambda v: v >= 0, rule=rule, repaired=True)
        case schema.POSITION:
            rule = "a whole number of 0 or more"
            read = checks.number(*at, allowed=lambda v: v.is_between(0, 2**31 - 1) & (v == v.floor()), rule=rule)
            return ColumnRule(read.value.cast(pl.Int32), read.faults)
        case schema.PROPENSITY:
            return checks.number(*at, allowed=lambda v: (v > 0) & (v <= 1), rule="in (0, 1]")
        case schema.AVAILABLE:
            return checks.flag(*at)
        case schema.CATEGORIES:
            return checks.labels(*at)
        case _:
            return checks.text(*at, required=required)


def _unknown(value: pl.Expr, known: pl.Series) -> Violation:
    advice = "add the item to items, or leave its events out; ids must be written alike in both (1 is not 1.0)"
    return Violation("unknown item", advice, (~value.is_in(known.implode())).fill_null(False))


def _median(raw: RawTable, name: str) -> float | None:
    """Median of the plain numbers in a time column; it tells seconds from milliseconds."""
    since = checks.epoch(raw.types[name], name)
    return None if since is None else raw.collect(since.median().alias("median")).item()


def _undeclared(raw: RawTable, reads: dict[str, ColumnRule]) -> list[str]:
    names = [name for name in raw.columns if name not in reads]
    if not names:
        return []
    way = "; name it in data.extra_columns to keep it" if raw.name == "items" else ""
    return [f"{raw.file}: not of the contract and not read: {', '.join(names)}{way}"]


def _unnamed_types(events: pl.DataFrame, rules: EventRules) -> list[str]:
    """Event types of the data that no rule names, and rules that no event meets."""
    counts = dict(events.get_column(EVENT).value_counts().sort(EVENT).iter_rows())
    named = {*rules.positive, *(counts if rules.seen is None else rules.seen)}
    neither = [f"{name!r} ({n:,})" for name, n in counts.items() if name not in named]
    never = [repr(name) for name in sorted({*rules.positive, *(rules.seen or ())}) if name not in counts]
    notes = [f"event types neither positive nor seen, by data.events: {', '.join(neither)}"] if neither else []
    return notes + ([f"event types in data.events that no event has: {', '.join(never)}"] if never else [])


def _nothing_left(sifted: Validated) -> DataError:
    count = sifted.count
    if count.read == 0:
        return DataError(f"{count.file}: no rows; at least one of {count.table} is needed")
    why = "; ".join(f"{p.reason}: {p.count:,} (first {p.places[0]}; {p.advice})" for p in sifted.problems)
    return DataError(f"{count.file}: nothing usable is left of {count.read:,} rows. {why}")
