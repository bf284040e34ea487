"""JSON lines as a LazyFrame: one text column per key. The lines are decoded batch by batch, by a JSON parser.

Text is what the JSON text says, escapes decoded. Numbers in ids and texts keep their digits as written. Objects and
arrays are JSON text. A field that is not what its column holds is null, and additional columns, whose names begin
with LINE, say why: `with_faults` makes violations of them. Of keys that occur twice in one object the last counts.
"""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import orjson
import polars as pl
from polars.io.plugins import register_io_source

from features import schema
from features.errors import DataError
from features.tables.columns import MAX_EXACT_INTEGER, ColumnRule, Violation

LINE = "__line__"
"""Additional column: the line itself, so that a malformed line can be rejected unchanged."""

KEYS_FROM = 1000
"""Number of first lines whose keys become columns. Other columns are searched in all lines by name."""

BATCH = 1 << 22
"""Number of bytes of lines that are decoded at a time."""

IDS = (schema.USER, schema.ITEM, schema.EVENT_ID, schema.REQUEST_ID)
NUMBERS = (schema.VALUE, schema.PRICE, schema.POSITION, schema.PROPENSITY)
PLAIN = (*NUMBERS, schema.TIME, schema.PUBLISHED, schema.AVAILABLE)
"""Columns whose rules read the text of any JSON value, and report what they cannot read."""

TEXTS = (schema.EVENT, schema.TITLE, schema.DESCRIPTION, schema.IMAGE, schema.AUDIO, schema.VIDEO, schema.GROUP)

NO_OBJECT, WHOLE = "object", "whole"
FIELD_FAULTS = {
    "kind": ("{} not text or an integer", "true, false, objects and arrays are no ids: write text or an integer"),
    "float": ("{} not a whole number", "store ids as integers or text"),
    "nested": ("{} is an object or an array", "write plain text"),
    "mapping": ("{} is an object", "write an array of text"),
    "nan": ("{}: NaN is no JSON", "write null in place of NaN and Infinity"),
    "surrogate": ("{} with half a character", "write both halves of a surrogate pair, or the character itself"),
}
"""Fault -> (reason, advice)."""


class Number(str):
    """A number as written."""


class Unreadable:
    """A value that JSON or UTF-8 cannot hold: its fault in place of it."""

    def __init__(self, fault: str) -> None:
        self.fault = fault


Fault = tuple[str, str]
"""(fault, column); the column is "" for a fault of the whole line."""


def scan_json_lines(path: Path, wanted: Sequence[str]) -> pl.LazyFrame:
    """A LazyFrame of the lines that are not blank: LINE, a column per key, and a boolean column per kind of fault.

    wanted: columns to search for in all lines. Raises DataError when the first lines hold no object.
    """
    names, faults = _survey(path, wanted)
    types: dict[str, pl.DataType] = {name: pl.String() for name in (LINE, *names)}
    types |= {_hidden(fault): pl.Boolean() for fault in faults}

    def frames(
        columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        for lines in _batches(path):
            frame = _frame(lines, names, faults, list(types) if columns is None else columns)
            if n_rows is not None:
                frame, n_rows = frame.head(n_rows), n_rows - min(n_rows, len(frame))
            yield frame if predicate is None else frame.filter(predicate)
            if n_rows == 0:
                return

    return register_io_source(frames, schema=types, is_pure=True)


def with_faults(place: str, rules: dict[str, ColumnRule], columns: Collection[str]) -> dict[str, ColumnRule]:
    """The rules with violations for the faults of lines, which are checked first. columns: of the LazyFrame.

    A faulty field is null. Its row is kept unless the rule rejects rows for other violations.
    """
    rules = dict(rules)
    for name, rule in rules.items():
        optional = all(violation.repaired for violation in rule.violations)
        for fault, (reason, advice) in FIELD_FAULTS.items():
            if (hidden := _hidden((fault, name))) in columns:
                violation = Violation(reason.format(name), advice, pl.col(hidden), optional)
                rule = rule.with_violation(violation, first=True)
        if _hidden((WHOLE, name)) in columns:
            note = f"{place}: {name} holds floats; 1.0 is read as '1'. Store ids as integers or text."
            rule = replace(rule, notes=(*rule.notes, note))
        rules[name] = rule
    first = next(iter(rules))
    if (hidden := _hidden((NO_OBJECT, ""))) in columns:
        violation = Violation("not a JSON object", "write one JSON object a line", pl.col(hidden))
        rules[first] = rules[first].with_violation(violation, first=True)
    return rules


def _hidden(fault: Fault) -> str:
    """Name of the boolean column of a fault."""
    return f"{LINE}{fault[0]}:{fault[1]}"


def _batches(path: Path) -> Iterator[list[bytes]]:
    """The lines that are not blank, without blanks around them."""
    with path.open("rb") as file:
        while lines := file.readlines(BATCH):
            stripped = (line.strip().removeprefix(b"\xef\xbb\xbf").strip() for line in lines)
            yield [line for line in stripped if line]


def _survey(path: Path, wanted: Sequence[str]) -> tuple[list[str], list[Fault]]:
    """The keys of the first lines and the wanted ones of all lines; and the faults that occur."""
    keys: dict[str, None] = {}
    faults: dict[Fault, None] = {}
    first = KEYS_FROM
    for lines in _batches(path):
        batch = _Batch.of(lines)
        for row in batch.rows[:first]:
            keys |= dict.fromkeys(row)
        first = max(0, first - len(lines))
        if not keys and not first:
            break
        present = set().union(*batch.rows)
        keys |= dict.fromkeys(name for name in wanted if name in present)
        for name in keys:
            if not _is_plain(name, batch.kinds(name)):
                batch.texts(name)
        faults |= dict.fromkeys(batch.faults)
    if not keys:
        raise DataError(f"{path}: none of the first {KEYS_FROM} lines is a JSON object; write one object a line")
    if reserved := [name for name in keys if name.startswith(LINE)]:
        raise DataError(f"{path}: the key {reserved[0]!r} begins with {LINE}, which is reserved; rename it")
    return list(keys), list(faults)


def _frame(lines: list[bytes], names: Sequence[str], faults: Sequence[Fault], columns: Sequence[str]) -> pl.DataFrame:
    """Some of the columns of a batch of lines."""
    if not columns:  # the rows alone
        return pl.DataFrame(height=len(lines))
    if list(columns) == [LINE]:  # what counts the rows
        return pl.DataFrame({LINE: pl.Series([line.decode() for line in lines], dtype=pl.String)})
    batch = _Batch.of(lines)
    texts = {name: batch.texts(name) for name in names if name in columns}
    for fault in faults:
        if _hidden(fault) in columns and fault[1] and fault[1] not in texts:
            batch.texts(fault[1])
    out = {LINE: pl.Series([line.decode() for line in lines], dtype=pl.String)} if LINE in columns else {}
    out |= {name: pl.Series(values, dtype=pl.String) for name, values in texts.items()}
    for fault in faults:
        if (hidden := _hidden(fault)) in columns:
            mask = np.zeros(len(lines), dtype=np.bool_)
            mask[batch.faults.get(fault, [])] = True
            out[hidden] = pl.Series(mask)
    return pl.DataFrame(out).select(columns)


@dataclass
class _Batch:
    """Lines and their objects, {} where a line is none. faults: the rows of each fault that was met so far."""

    lines: list[bytes]
    rows: list[dict[str, Any]]
    faults: dict[Fault, list[int]]

    @classmethod
    def of(cls, lines: list[bytes]) -> "_Batch":
        """Decoded by the fast parser where it understands a line, by the exact one otherwise."""
        batch = cls(lines, [], {})
        for n, line in enumerate(lines):
            try:
                row = orjson.loads(line)
            except ValueError:
                row = _exact(line)
            if not isinstance(row, dict):
                batch.fault(NO_OBJECT, "", n)
                row = {}
            batch.rows.append(row)
        return batch

    def fault(self, kind: str, name: str, row: int) -> None:
        """Note a fault."""
        self.faults.setdefault((kind, name), []).append(row)

    def kinds(self, name: str) -> set[type]:
        """The types of a column's fields."""
        return {type(row.get(name)) for row in self.rows}

    def texts(self, name: str) -> list[str | None]:
        """The fields of a column as text; their faults are noted."""
        values = [row.get(name) for row in self.rows]
        kinds = set(map(type, values))
        if kinds <= {str, NoneType}:
            return values
        if _is_plain(name, kinds):
            return [value if value is None else str(value) for value in values]
        out = []
        for n, value in enumerate(values):
            text, fault = _text(self.lines[n], name, value)
            if fault is not None:
                self.fault(fault, name, n)
            out.append(text)
        return out


def _is_plain(name: str, kinds: set[type]) -> bool:
    """Whether no field of a column has a fault, and the text of each is that of the value. kinds: their types."""
    return kinds <= {str, int, NoneType} or (kinds <= {str, int, float, NoneType} and name in PLAIN)


def _text(line: bytes, name: str, value: Any) -> tuple[str | None, str | None]:
    """A value as text, and its fault in this column. A faulty value is null; a whole float in an id is an integer."""
    if isinstance(value, float | list | dict) and not _is_exact(name, value):
        value = (_exact(line) or {}).get(name)
    match value:
        case Unreadable():
            return None, value.fault
        case Number() if name in IDS:
            return _number_id(value)
        case bool():
            return (None, "kind") if name in IDS else ("true" if value else "false", None)
        case list() | dict() if name in IDS:
            return None, "kind"
        case list() | dict() if name in TEXTS:
            return None, "nested"
        case dict() if name == schema.CATEGORIES:
            return None, "mapping"
        case list() | dict():
            return _json(value), None
        case _:
            return None if value is None else str(value), None


def _is_exact(name: str, value: Any) -> bool:
    """Whether the fast parser kept a value as written: it makes floats of large integers."""
    if isinstance(value, float):
        return name in PLAIN
    return not FLOAT.search(_json(value))


FLOAT = re.compile(r"\d[.eE]")


def _number_id(number: Number) -> tuple[str | None, str | None]:
    """An id that is written as a number."""
    if INTEGER.fullmatch(number):
        return str(number), None
    value = float(number)
    return (
        (str(int(value)), WHOLE)
        if value.is_integer() and abs(value) < MAX_EXACT_INTEGER[pl.Float64]
        else (None, "float")
    )


INTEGER = re.compile(r"-?\d+")


def _json(value: Any) -> str:
    """A value as JSON text, its numbers as written."""
    try:
        return orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_SUBCLASS).decode()
    except TypeError:  # a Number in it
        pass
    if isinstance(value, Number):
        return value
    if isinstance(value, dict):
        return f"{{{','.join(f'{_json(str(name))}:{_json(part)}' for name, part in value.items())}}}"
    return f"[{','.join(map(_json, value))}]" if isinstance(value, list) else json.dumps(value, ensure_ascii=False)


def _exact(line: bytes) -> dict[str, Any] | None:
    """The object in a line, its numbers as Number, unreadable values as Unreadable; None where there is no object."""
    try:
        row = _EXACT.decode(line.decode())
        if not isinstance(row, dict):
            return None
        return {name: _checked(value) for name, value in row.items() if _is_utf8(name)}
    except (ValueError, RecursionError):
        return None


_EXACT = json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=lambda name: Unreadable("nan"))


def _checked(value: Any) -> Any:
    """A value, or Unreadable where UTF-8 or JSON cannot hold it or a part of it."""
    if isinstance(value, str):
        return value if _is_utf8(value) else Unreadable("surrogate")
    if isinstance(value, dict):
        parts = [*map(_checked, value), *map(_checked, value.values())]
    elif isinstance(value, list):
        parts = list(map(_checked, value))
    else:
        return value
    return next((part for part in parts if isinstance(part, Unreadable)), value)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
