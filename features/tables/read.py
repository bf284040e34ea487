"""Read and validate the tables of the data contract: items, events and users. Every dropped row is reported.

A row that cannot be used is rejected with its reason. A row with an invalid optional field is kept with a null in
that field.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from features import schema
from features.arrays import Floats
from features.catalog import type_name
from features.errors import DataError
from features.history_rules import Labels
from features.ids import ID_RULES, NO_NULL, TEXT_RULES
from features.instants import MAX_CLOCK_SKEW
from features.log.erasure.erased_users import ErasedUsers
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
    MAX_POSITION,
    MIN_POSITION,
    POSITION,
    PRICE,
    PROPENSITY,
    PUBLISHED,
    REQUEST_ID,
    ROW,
    TIME,
    USER,
    VALUE,
    DataConfig,
    EventRules,
)
from features.tables import columns as checks
from features.tables.columns import ColumnRule
from features.tables.erased import without_erased
from features.tables.files.json_lines import LINE, with_faults
from features.tables.findings import (
    doubtful,
    empty_columns,
    explain_unknown,
    no_positive,
    nothing_left,
    unknown_item,
    unnamed_types,
)
from features.tables.report import Report
from features.tables.scan import SUFFIXES, find_table, scan, scan_table, tables_folder
from features.tables.times import EpochNumbers, moment
from features.tables.validate import (
    MEDIA,
    REQUIRED,
    RawTable,
    Validated,
    find_media,
    first_violation,
    validate,
    write_rejected,
)

TEXTS = (schema.TITLE, schema.DESCRIPTION)

ITEMS: dict[str, pl.DataType] = {
    **{name: pl.String() for name in (ITEM, *TEXTS, *MEDIA)},
    CATEGORIES: pl.List(pl.String()),
    PRICE: pl.Float64(),
    PUBLISHED: checks.UTC,
    AVAILABLE: pl.Boolean(),
    GROUP: pl.String(),
}
"""Canonical items: column -> type. Only item_id is required. Absent columns are null, `available` true."""

EVENTS: dict[str, pl.DataType] = {
    **{name: pl.String() for name in (USER, ITEM, EVENT)},
    TIME: checks.UTC,
    VALUE: pl.Float64(),
    **{name: pl.String() for name in (EVENT_ID, REQUEST_ID)},
    POSITION: pl.Int32(),
    PROPENSITY: pl.Float64(),
}
"""Canonical events: column -> type. The first four are required."""

CANONICAL: dict[str, dict[str, pl.DataType]] = {"items": ITEMS, "events": EVENTS, "users": {USER: pl.String()}}


@dataclass(frozen=True)
class Tables:
    """Validated tables in canonical types, rows in file order, and the report.

    items: the columns of `ITEMS` and the declared extra ones; events: the columns of `EVENTS`; usable_events: these
    events, and those whose item is not in `items`, which take places in histories; users: user_id and all other
    columns of the file.
    """

    items: pl.DataFrame
    events: pl.DataFrame
    usable_events: pl.DataFrame
    users: pl.DataFrame | None
    report: Report


def read_tables(config: DataConfig, *, now: datetime | None = None, progress: StartProgress | None = None) -> Tables:
    """Read and validate the tables in the folder ``config.path``: items.*, events.* and, if it exists, users.*.

    The item changes of the log in ``config.log`` are applied to the items table, and rows of users that were erased
    from this log are left out. Rejected rows are written to
    ``<path>/rejected/<table>.parquet``. now: an event may lie up to a day after it (default: the clock).
    Raises DataError when a file or column is missing or no valid row is left.
    """
    folder = tables_folder(config.path)
    paths = {name: find_table(folder, name) for name in REQUIRED}
    if absent := [name for name in ("items", "events") if paths[name] is None]:
        raise _missing(folder, absent, config.source)
    raw_tables = [
        RawTable.of(name, path.name, scan_table(path, config.extra_columns))
        for name, path in paths.items()
        if path is not None
    ]
    return _read(raw_tables, config, folder, folder / "rejected", now, progress)


def read_items(config: DataConfig, *, progress: StartProgress | None = None) -> tuple[pl.DataFrame, Report]:
    """Read and validate the items alone, as `read_tables` does; the items and the report. Raises DataError."""
    folder = tables_folder(config.path)
    if (path := find_table(folder, "items")) is None:
        raise _missing(folder, ["items"], config.source)
    raw = RawTable.of("items", path.name, scan_table(path, config.extra_columns))
    tables = _read([raw], config, folder, folder / "rejected", None, progress)
    return tables.items, tables.report


def _missing(folder: Path, names: Sequence[str], source: str) -> DataError:
    """The error of tables that a folder lacks, with the remedy."""
    remedy = f"Run `recsys data get` for source {source!r}, or set data.path to your own tables"
    if source == "folder":  # `recsys data get` writes nothing
        remedy = "Put your tables there, or set data.path to them"
    if not folder.is_dir():
        return DataError(f"data.path {folder}: no such folder. {remedy}")
    present = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    tables = f"{' and '.join(names)} ({' or '.join(SUFFIXES)})"
    return DataError(f"{folder}: no file of {tables}; the folder has: {present}. {remedy}")


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
    """Validate tables that are given as LazyFrames.

    media_root: folder that relative media paths start from; None: do not check media files;
    rejected: folder to write the rejected rows to; None: only count them. Raises like `read_tables`.
    """
    frames = zip(REQUIRED, (items, events, users), strict=True)
    raw_tables = [RawTable.of(name, name, frame) for name, frame in frames if frame is not None]
    return _read(raw_tables, config, media_root, rejected, now, None)


def check_item_puts(puts: Sequence[ItemPut], log: Path, config: DataConfig) -> Validated:
    """Validate put items as rows of the items table. log: folder of the event log that holds their records."""
    raw = RawTable.of("items", "event log", item_put_table(puts, log, config.extra_columns).lazy())
    return validate(raw, _column_rules(raw, config, None, datetime.now(UTC)))


def valid_events(path: Path, since: int, config: DataConfig, now: datetime) -> pl.LazyFrame:
    """The valid events of one file from the row `since` on, of whichever items, with ROW.

    Repeated events are not left out. Raises DataError when the file cannot be read or lacks a required column.
    """
    raw = RawTable.of("events", path.name, scan(path, config.extra_columns).slice(since))
    rules = _column_rules(raw, config, None, now)
    values = [rule.value.alias(name) for name, rule in rules.items()]
    code = first_violation([v for rule in rules.values() for v in rule.violations if not v.repaired])
    rows = raw.rows.with_row_index("__row__", offset=since).select(
        *values, pl.col("__row__").alias(ROW), code.alias("__code__")
    )
    return rows.filter(pl.col("__code__") == 0).drop("__code__")


def first_ahead(path: Path, since: int, config: DataConfig, now: datetime) -> int:
    """The earliest time (µs) too far after now to be accepted, of one file's events from a row on; 0 for none."""
    raw = RawTable.of("events", path.name, scan(path, config.extra_columns).slice(since))
    value = _column_rules(raw, config, None, now)[TIME].value
    times = value.filter(value > now + timedelta(microseconds=MAX_CLOCK_SKEW)).min().to_physical()
    return int(raw.collect(times.fill_null(0).alias(TIME)).item())


def event_weights(events: pl.DataFrame, rules: EventRules) -> Floats | None:
    """(n,) float32: the training weight of each canonical event; None: all weights are equal."""
    if not rules.weights:
        return None
    weights = pl.col(EVENT).replace_strict(rules.weights, default=1.0, return_dtype=pl.Float32)
    return events.select(weights).to_series().to_numpy().copy()


def _read(
    raw_tables: list[RawTable],
    config: DataConfig,
    media_root: Path | None,
    rejected: Path | None,
    now: datetime | None,
    progress: StartProgress | None,
) -> Tables:
    """Validate the raw tables in order (items first), apply the item changes of the log, check media, and report."""
    validated_by_name: dict[str, Validated] = {}
    notes: list[str] = []
    files: dict[str, str] = {}
    log = None if config.log is None else Path(config.log)
    erased = ErasedUsers.of(log)
    changes = None if log is None else ItemChanges.of(log)
    logged = check_item_puts(list(changes.puts.values()), log, config) if log and changes and changes.puts else None
    for raw in raw_tables:
        known = _ids(validated_by_name["items"], logged) if raw.name == "events" else None
        rules = _column_rules(raw, config, known, now or datetime.now(UTC))
        notes += [note for rule in rules.values() for note in rule.notes]
        notes += _undeclared(raw, rules)
        validated = validate(raw, rules, progress)
        if known is not None:
            validated = explain_unknown(validated, validated_by_name["items"], known)
        nothing = len(validated.kept) == 0 and raw.name != "users"
        notes += empty_columns(validated, raw.columns)
        if raw.name != "items":
            validated, erased_notes = without_erased(validated, erased)
            notes += erased_notes
        validated_by_name[raw.name] = validated
        if rejected is not None:
            files |= write_rejected(validated, rejected, notes)
        if nothing:
            raise nothing_left(validated)
    validated_tables = [*validated_by_name.values(), *([logged] if logged else [])]
    problems = [p for c in validated_tables for p in c.problems]
    problems += [p for raw in raw_tables for p in doubtful(validated_by_name[raw.name], raw.types)]
    tables = []
    for validated in (validated_by_name["items"], *([logged] if logged else [])):
        table, missing = (validated.kept, []) if media_root is None else find_media(validated, media_root)
        tables.append(table)
        problems += missing
    items = tables[0]
    if changes is not None and (changes.puts or changes.deleted):
        items, change_notes = _changed(items, tables[1] if logged else items.clear(), changes.deleted)
        notes += change_notes
    events = usable = pl.DataFrame(schema=EVENTS)
    if "events" in validated_by_name:
        events, usable = validated_by_name["events"].kept, validated_by_name["events"].usable
        notes += unnamed_types(events, config.events, validated_by_name["events"].count.file)
        if not Labels.of_frame(events, config.events).positive.any():
            problems.append(no_positive(events, config.events))
        notes += _ahead(events, now or datetime.now(UTC))
    if "users" in validated_by_name:
        notes.append(f"{validated_by_name['users'].count.file}: validated, but not used yet")
    report = Report(tuple(c.count for c in validated_tables), tuple(problems), tuple(notes), files)
    users = validated_by_name["users"].kept if "users" in validated_by_name else None
    return Tables(items, events, usable, users, report)


def _ids(items: Validated, logged: Validated | None) -> pl.Series:
    """Ids of the items table and of the items in the log, which events may name."""
    ids = items.kept.get_column(ITEM)
    return ids if logged is None else pl.concat([ids, logged.kept.get_column(ITEM)])


def _changed(items: pl.DataFrame, puts: pl.DataFrame, deleted_ids: Collection[str]) -> tuple[pl.DataFrame, list[str]]:
    """The items table after the changes of the log, and notes.

    A put item replaces the table's row of that id. Items in `deleted_ids` become unavailable.
    """
    cast = puts.select(pl.col(name).cast(kind, strict=False) for name, kind in items.schema.items())
    lost = {name: cast[name].null_count() - puts[name].null_count() for name in items.columns}
    notes = [
        f"event log: {n:,} values of {name} are not {type_name(items.schema[name])}: null"
        for name, n in lost.items()
        if n
    ]
    kept = items.join(cast.select(ITEM), on=ITEM, how="anti", maintain_order="left")
    merged = pl.concat([kept, cast])
    deleted = pl.col(ITEM).is_in(list(deleted_ids))
    new, replaced = len(merged) - len(items), len(items) - len(kept)
    hidden = merged.select(deleted.sum()).item()
    notes.append(f"event log: {new:,} new items, {replaced:,} put in place of the table's, {hidden:,} deleted")
    return merged.with_columns(pl.col(AVAILABLE) & ~deleted), notes


def _column_rules(raw: RawTable, config: DataConfig, known: pl.Series | None, now: datetime) -> dict[str, ColumnRule]:
    """How each column of a table is read: name -> rule, in canonical order."""
    canonical = CANONICAL[raw.name]
    rules = {name: _column(raw, name, kind, now) for name, kind in canonical.items()}
    if raw.name == "items":
        raw.require(config.extra_columns, "data.extra_columns names")
    extra = config.extra_columns if raw.name == "items" else raw.columns if raw.name == "users" else ()
    rules |= {name: ColumnRule(pl.col(name)) for name in extra if name not in rules}
    if known is not None:  # checked last: what else is wrong with a row counts first
        last = next(reversed(rules))
        rules[last] = rules[last].with_violation(unknown_item(rules[ITEM].value, known))
    return with_faults(raw.file, rules, raw.types) if LINE in raw.types else rules


def _column(raw: RawTable, name: str, kind: pl.DataType, now: datetime) -> ColumnRule:
    if name not in raw.types:
        return ColumnRule(pl.lit(True) if name == AVAILABLE else pl.lit(None, kind))
    column = (raw.file, name, raw.types[name])
    required = name in REQUIRED[raw.name]
    match name:
        case schema.USER | schema.ITEM | schema.EVENT_ID | schema.REQUEST_ID:
            return checks.identifier(*column, required=required)
        case schema.TIME:
            numbers = EpochNumbers.of(raw, name, events=True)
            return moment(*column, numbers=numbers, now=now, repaired=False)
        case schema.PUBLISHED:
            numbers = EpochNumbers.of(raw, name, events=False)
            return moment(*column, numbers=numbers, now=None, repaired=True, dates=True)
        case schema.VALUE:
            return checks.number(*column, repaired=False)
        case schema.PRICE:
            rule = "a finite number of 0 or more"
            return checks.at_most(checks.number(*column, allowed=lambda v: v >= 0, rule=rule), name, schema.MAX_PRICE)
        case schema.POSITION:
            rule = f"a whole number from {MIN_POSITION} to {MAX_POSITION}"
            whole = checks.number(
                *column, allowed=lambda v: v.is_between(MIN_POSITION, MAX_POSITION) & (v == v.floor()), rule=rule
            )
            return ColumnRule(whole.value.cast(pl.Int32), whole.violations)
        case schema.PROPENSITY:
            return checks.number(*column, allowed=lambda v: (v > 0) & (v <= 1), rule="in (0, 1]")
        case schema.EVENT:
            return checks.text(*column, required=True, rules=TEXT_RULES)
        case schema.GROUP:
            return checks.text(*column, rules=ID_RULES)
        case schema.AVAILABLE:
            return checks.flag(*column)
        case schema.CATEGORIES:
            return checks.labels(*column)
        case _:
            return checks.text(*column, required=required, rules=(NO_NULL,))


def _undeclared(raw: RawTable, rules: dict[str, ColumnRule]) -> list[str]:
    """A note that names the columns of the file that are not read."""
    names = [name for name in raw.columns if name not in rules]
    if not names:
        return []
    remedy = "; name it in data.extra_columns to keep it" if raw.name == "items" else ""
    return [f"{raw.file}: not of the contract and not read: {', '.join(names)}{remedy}"]


def _ahead(events: pl.DataFrame, now: datetime) -> list[str]:
    """A note on events later than now, which is within what a table may hold."""
    late = int((events.get_column(TIME) > now).sum())
    what = "have a time after now, up to a day: clocks that are ahead, or local times written as UTC"
    return [f"{late:,} events {what}"] if late else []
