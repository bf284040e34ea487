"""What the valid rows of the tables leave to be said: unknown items, unnamed event types, doubtful ids and times."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from features.errors import DataError
from features.log.segments import DamagedBytes
from features.schema import EVENT, ITEM, PUBLISHED, TIME, USER, VALUE, EventRules
from features.tables.columns import UTC, Violation
from features.tables.report import KEPT, PLACES, REJECTED, Problem
from features.tables.times import AROUND_1970, RECENT
from features.tables.validate import UNKNOWN, Validated, problem_of

LISTED = 20
"""Number of event types that a note lists, the most frequent ones."""

NO_POSITIVE = "no positive event"

PLACEHOLDERS = (
    *("nan", "NaN", "NAN", "null", "Null", "NULL", "none", "None", "NONE", "nil", "NIL", "undefined"),
    *("NA", "N/A", "n/a", "#N/A", "<NA>", "NaT", "(null)", "\\N"),
)
"""Texts that programs write in place of a missing value."""

LOST_DIGITS = r"^\d\.\d+[eE]\+\d\d$"
"""An id as spreadsheets and data frames print a long number, e.g. 1.71457E+15."""

IDS = {"items": (ITEM,), "events": (USER, ITEM), "users": (USER,)}
"""Table -> its columns of ids that are doubted."""


def unknown_item(value: pl.Expr, known: pl.Series) -> Violation:
    """The violation of events whose item is not among the known ids."""
    advice = "add the item to items, or leave its events out; ids must be written alike in both (1 is not 1.0)"
    return Violation(UNKNOWN, advice, (~value.is_in(known.implode())).fill_null(False))


def explain_unknown(events: Validated, items: Validated, known: pl.Series) -> Validated:
    """The validated events, with the causes of unknown items in the advice.

    Causes that are reported: the row of the item was rejected, or its id is written in another way. known: all ids.
    """
    if not any(problem.reason == UNKNOWN for problem in events.problems):
        return events
    unknown = events.rejected.filter(pl.col("reason") == UNKNOWN).group_by(pl.col(ITEM).cast(pl.String)).agg(pl.len())
    causes = [*_rejected_items(unknown, items), *_other_spellings(unknown, known)]
    problems = [
        replace(problem, advice="; ".join((*causes, problem.advice))) if problem.reason == UNKNOWN else problem
        for problem in events.problems
    ]
    return replace(events, problems=problems)


def _rejected_items(unknown: pl.DataFrame, items: Validated) -> list[str]:
    """Why the rows of unknown items were rejected. unknown: item_id, len (number of events)."""
    if items.count.rejected == 0:
        return []
    rows = items.rejected.select(pl.col(ITEM).cast(pl.String), "reason")
    reasons = rows.unique(subset=ITEM, keep="first").join(unknown, on=ITEM).group_by("reason").agg(pl.sum("len"))
    named = [f"{n:,} are of items that {items.count.file} rejected ({reason})" for reason, n in _sorted(reasons)]
    if unreadable := rows.get_column(ITEM).null_count():
        named.append(f"{items.count.file} has {unreadable:,} rejected rows without a readable item_id")
    return named


def _other_spellings(unknown: pl.DataFrame, known: pl.Series) -> list[str]:
    """How many events would find their item if blanks, case, leading zeros and ".0" did not count, and an example."""
    plain = pl.col(ITEM).str.strip_chars().str.to_lowercase().str.replace(r"^0+(.)", "${1}").str.replace(r"\.0+$", "")
    items = (
        pl.DataFrame({"known": known, ITEM: known}).with_columns(plain.alias("plain")).unique("plain", keep="first")
    )
    alike = unknown.with_columns(plain.alias("plain")).join(items.select("known", "plain"), on="plain").sort(ITEM)
    if alike.is_empty():
        return []
    here, there = alike.select(ITEM, "known").row(0)
    return [
        f"{alike.get_column('len').sum():,} would match but for blanks, case, leading zeros or '.0': "
        f"{here!r} here is {there!r} in items"
    ]


def _sorted(counts: pl.DataFrame) -> Iterable[tuple[str, int]]:
    return counts.sort("len", "reason", descending=[True, False]).select("reason", "len").iter_rows()


def nothing_left(validated: Validated) -> DataError:
    """The error for a table without a valid row."""
    count = validated.count
    if count.read == 0:
        return DataError(f"{count.file}: no rows; at least one of {count.table} is needed")
    reasons = "; ".join(f"{p.reason}: {p.count:,} (first {p.places[0]}; {p.advice})" for p in validated.problems)
    return DataError(f"{count.file}: nothing usable is left of {count.read:,} rows. {reasons}")


def doubtful(validated: Validated, types: Mapping[str, pl.DataType]) -> list[Problem]:
    """Problems of rows that are kept: ids that are no ids, and instants that a mistaken unit would give.

    types: types of the columns in the file; numbers are ids as they are.
    """
    table, frame, rows = validated.count.table, validated.kept, np.flatnonzero(validated.codes == 0)
    doubts = []
    for name in (name for name in IDS[table] if not types[name].is_numeric()):
        missing = pl.col(name).is_in(PLACEHOLDERS)
        doubts.append(Violation(f"{name} is a word for a missing value", "leave out the rows without an id", missing))
        lost = pl.col(name).str.contains(LOST_DIGITS)
        doubts.append(Violation(f"{name} in exponent form", "digits are lost: export the column as text", lost))
    if table == "events":
        early = pl.col(TIME) < pl.lit(RECENT[0] * 10**6).cast(UTC)
        doubts.append(Violation(f"{TIME} before 1991", "check the unit that these times were made from", early))
    if table == "items":
        since = pl.col(PUBLISHED).to_physical()
        near = (since.abs() < AROUND_1970 * 10**6) & (since % 86_400_000_000 != 0)
        doubts.append(Violation(f"{PUBLISHED} close to 1970", "check the unit that these times were made from", near))
    masks = frame.select(doubt.condition.fill_null(False).alias(str(k)) for k, doubt in enumerate(doubts))
    return [
        problem
        for doubt, mask in zip(doubts, masks, strict=True)
        for problem in problem_of(table, validated.count.file, doubt, KEPT, rows[mask.to_numpy()])
    ]


def empty_columns(validated: Validated, present: Iterable[str]) -> list[str]:
    """A note on the columns of the file that have no valid value. present: names of the columns of the file."""
    kept = validated.kept
    empty = [
        name
        for name in present
        if name in kept.columns and name != "available" and len(kept) and kept[name].null_count() == len(kept)
    ]
    return [f"{validated.count.file}: no row has a valid value of {', '.join(empty)}"] if empty else []


IGNORED = (
    "are in no history, not seen and not trained on, for data.events does not name the type: they tell the outcomes "
    "of exposures; name it to learn from it"
)


def unnamed_types(events: pl.DataFrame, rules: EventRules, place: str) -> list[str]:
    """Notes on event types of the data that no rule names, and on types in the rules that no event has."""
    counts = dict(events.get_column(EVENT).value_counts().sort("count", EVENT, descending=[True, False]).iter_rows())
    ignored = [f"{name!r} ({n:,})" for name, n in counts.items() if rules.ignores(name)]
    unnamed = [
        _with_hint(name, n, rules)
        for name, n in counts.items()
        if name not in rules.named and not rules.ignores(name)
    ]
    if len(unnamed) > LISTED:
        unnamed = [*unnamed[:LISTED], f"and {len(unnamed) - LISTED:,} more"]
    never = [repr(name) for name in rules.named if name not in counts]
    notes = [f"{place}: {views} {IGNORED}" for views in ignored]
    if unnamed and rules.seen is None:
        notes.append(
            f"{place}: event types that data.events does not name, which count as seen: {'; '.join(unnamed)}"
        )
    elif unnamed:
        notes.append(f"{place}: event types neither positive nor seen, by data.events: {'; '.join(unnamed)}")
    return notes + ([f"{place}: event types in data.events that no event has: {', '.join(never)}"] if never else [])


def _with_hint(name: str, n: int, rules: EventRules) -> str:
    meant = rules.meant(name)
    return f"{name!r} ({n:,})" + (f", is {meant!r} meant?" if meant else "")


def no_positive(events: pl.DataFrame, rules: EventRules) -> Problem:
    """The problem of events of which none is positive: what the rules ask for, and what is there."""
    causes = []
    for name, minimum in rules.positive.items():
        values = events.filter(pl.col(EVENT) == name).get_column(VALUE)
        if len(values) == 0:
            causes.append(f"no event is a {name!r}")
        elif values.null_count() == len(values):
            causes.append(f"{name!r} needs a value of {minimum:g} or more, and no event has a value")
        else:
            causes.append(f"{name!r} needs a value of {minimum:g} or more, and the largest is {values.max()!r}")
    types = events.get_column(EVENT).value_counts().sort("count", EVENT, descending=[True, False]).head(LISTED)
    there = ", ".join(f"{name!r} ({n:,})" for name, n in types.iter_rows())
    wanted = "; ".join(causes) or "data.events.positive names no type"
    advice = f"{wanted}; there are: {there or 'no events'}. Name what is to be predicted in data.events.positive"
    return Problem("events", NO_POSITIVE, KEPT, len(events), (), advice)


def damaged_log(folder: str, damaged: Sequence[DamagedBytes]) -> list[Problem]:
    """The problems of the lines of an event log that are no records of this version, by their cause."""
    advice = {
        "damaged line": f"its record is lost: restore the segment from a backup of {folder}, and check its disk; at "
        "the end of a segment it may be half-written, by a process that was killed, and was never accepted",
        "record of a later version": "a newer version wrote it: install that version",
    }
    problems = []
    for newer, (reason, remedy) in enumerate(advice.items()):
        found = [part for part in damaged if part.newer == bool(newer)]
        places = tuple(f"{part.segment} byte {part.offset:,}" for part in found[:PLACES])
        if found:
            problems.append(Problem("event log", reason, REJECTED, len(found), places, remedy))
    return problems
