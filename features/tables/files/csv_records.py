r"""The first record of a CSV file that breaks the format, with its line.

A CSV reader that meets a stray quotation mark joins lines into one field, and fails, if at all, far away from it.
The rule here is the one of RFC 4180, and one more that readers agree on: a field that does not begin with a quotation
mark may contain marks, which stand for themselves, as long as their number is even in its line.
"""

import csv
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import polars as pl

from features.errors import DataError

INSIDE = r'[^"]*(?:""[^"]*)*'
"""Text inside of quotation marks."""

FIELD = rf'(?:"{INSIDE}"|(?:[^",\r][^,\r]*)?)'
RECORD = rf"^{FIELD}(?:,{FIELD})*\r?$"
"""A record that lies in one line, if the number of quotation marks is even."""

STRICT = rf'(?:"{INSIDE}"|(?:[^",\r][^",\r]*(?:"[^",\r]*"[^",\r]*)*)?)'
"""A field of a record in several lines: the number of marks is even in each field."""

OPENS = re.compile(rf'^(?:{STRICT},)*"{INSIDE}$')
STAYS = re.compile(f"^{INSIDE}$")
CLOSES = re.compile(rf'^{INSIDE}"(?:,{STRICT})*\r?$')
REOPENS = re.compile(rf'^{INSIDE}"(?:,{STRICT})*,"{INSIDE}$')
"""A line that ends inside of a quoted field; a line inside of one; lines that end one, or end one and begin one."""

ONE = re.compile(RECORD)
SEPARATED = re.compile(f"{FIELD},")

SWALLOWED = 100
"""A quoted field with more lines than this, most of which look like records, has swallowed them.

A header with more lines is refused.
"""

BOUND = 100
"""Number of fields up to which a regular expression counts them."""

SHOWN = 80
"""Number of characters of a line that a message shows."""


def check_records(path: Path) -> list[str]:
    """The names in the header of a CSV file whose records can all be read.

    Raises DataError, with the line and its text, at the first record that cannot be read as it was meant.

    That is: a quotation mark that is opened and not closed, text before or after a quoted field, a carriage return
    that ends a line alone, more fields than the header, or a field that swallows records.
    """
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        lines = enumerate(file, 1)
        records = (_record(path, first, lines)[1] for first in lines)
        header = next((record for record in records if record.strip()), "")
    names = next(csv.reader([header]), [""])
    width = len(names)
    line = pl.col("line")
    marks, commas = (line.str.count_matches(mark, literal=True) for mark in ('"', ","))
    # a line without quotation marks needs no regular expression
    plain = (commas < width) & ~line.str.contains("\r", literal=True)
    whole = (marks % 2 == 0) & line.str.contains(_bounded(width)) & (True if width <= BOUND else commas < width)
    suspect = ~pl.when(marks == 0).then(plain).otherwise(whole)
    rows = pl.scan_lines(path, name="line").with_row_index("row", offset=1).filter(suspect).select("row")
    suspects = rows.collect(engine="streaming").get_column("row")
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        lines = enumerate(file, 1)
        end = 0  # the line up to which all are read
        for number in suspects:
            if number > end:  # the lines between are records, for none of them is suspect
                first = next(islice(lines, number - end - 1, None))
                end, _ = _record(path, first, lines, width)
    return names


def _bounded(width: int) -> str:
    """A record of at most `width` fields in one line; the carriage return before a line feed is gone already."""
    return rf"^{FIELD}(?:,{FIELD}){{0,{width - 1}}}$" if width <= BOUND else rf"^{FIELD}(?:,{FIELD})*$"


def _record(
    path: Path, first: tuple[int, str], lines: Iterator[tuple[int, str]], width: int | None = None
) -> tuple[int, str]:
    """The number of the last line of a record, and its text. Raises DataError where it breaks the format.

    first: the number of its first line, and the line; lines: those after it, of which the record's are taken;
    width: number of fields in the header; None: the record is the header.
    """
    number, record = first[0], first[1].removesuffix("\n")
    end = number
    if record.count('"') % 2 or not ONE.match(record):
        if not OPENS.match(record):
            raise DataError(_broken(path, number, record))
        end, rest = _rest(path, number, record, lines, width)
        record += "\n" + rest
    _check_width(path, number, record, width)
    return end, record


def _rest(
    path: Path, start: int, opening: str, lines: Iterator[tuple[int, str]], width: int | None
) -> tuple[int, str]:
    """The number of the last line of a record in several lines, and the text of the lines after its first.

    Lines inside of a field are left out, except in the header: a field may be as long as the file.
    """
    rest: list[str] = []
    inside = alike = 0  # number of lines, and of those that look like records
    for number, text in lines:
        line = text.removesuffix("\n")
        inside += 1
        if width is None and inside > SWALLOWED:
            break
        alike += width is not None and line.count(",") >= width - 1
        stays = STAYS.match(line)
        if width is None or not stays:
            rest.append(line)
        if stays:
            continue
        if width is not None and width > 1 and inside > SWALLOWED and alike > inside / 2:
            raise DataError(
                f"{path}: the quotation mark opened in line {start:,} ({_shown(opening)}) is closed only in line "
                f"{number:,} and would swallow the rows between: close it in line {start:,}; a field that is really "
                "so long needs parquet or JSON lines"
            )
        if REOPENS.match(line):
            continue
        if CLOSES.match(line):
            return number, "\n".join(rest)
        raise DataError(
            f"{path}: the quotation mark opened in line {start:,} ({_shown(opening)}) is closed in line {number:,} "
            f"({_shown(line)}), where text follows: close it before, and write a mark inside a field twice"
        )
    raise DataError(
        f"{path}: a quotation mark is opened and not closed in line {start:,} ({_shown(opening)}): "
        "close it, and write a mark inside a field twice"
    )


def _width(record: str) -> int:
    """Number of fields."""
    width = 1
    at = SEPARATED.match(record)
    while at:
        width, at = width + 1, SEPARATED.match(record, at.end())
    return width


def _check_width(path: Path, number: int, record: str, width: int | None) -> None:
    if width is not None and (found := _width(record)) > width:
        raise DataError(
            f"{path}: line {number:,} has {found} fields, more fields than the header with {width} "
            f"({_shown(record)}): quote fields that contain a comma, with no blank before the quotation mark"
        )


def _broken(path: Path, number: int, line: str) -> str:
    if "\r" in line.removesuffix("\r"):
        return (
            f"{path}: line {number:,} has a carriage return without a line feed ({_shown(line)}): save the file with "
            "line feeds (Unix), or quote the field"
        )
    return (
        f"{path}: a quotation mark is opened and not closed, or stands inside a field, in line {number:,} "
        f"({_shown(line)}): quote the field, and write a mark inside it twice"
    )


def _shown(line: str) -> str:
    text = line.partition("\n")[0]
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")
