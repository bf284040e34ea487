"""Numbers in place of times, usual names of columns, spellings and remedies: each boundary and word by hand."""

from typing import Any

import polars as pl
import pytest
from rich.table import Table
from rich.text import Text

from features.errors import DataError
from features.tables import times
from features.tables.columns import UTC, as_text
from features.tables.files import csv_records
from features.tables.findings import LISTED, LOST_DIGITS, PLACEHOLDERS
from features.tables.report import Count, Problem, Report
from features.tables.scan import SEPARATORS, SUFFIXES, find_table, reading, scan_csv
from features.tables.usual_names import column_meant

# --- what a number looks like


@pytest.mark.parametrize(
    ("number", "unit", "like"),
    [
        (662_687_999, None, "no time in any unit"),
        (662_688_000, None, "seconds: write one unit"),
        (4_102_444_799, None, "seconds: write one unit"),
        (-662_688_000, "milliseconds", "seconds: write one unit"),
        (662_688_000_000, None, "milliseconds: write one unit"),
        (4_102_444_799_999, "seconds", "milliseconds: write one unit"),
        (662_688_000_000_000, None, "microseconds: write one unit"),
        (662_688_000_000_000_000, None, "nanoseconds: write one unit"),
        (20_240_501, None, "a date written as one number: write 2024-05-01T12:00:00Z"),
        (202_405_011_200, None, "a date written as one number: write 2024-05-01T12:00:00Z"),
        (19_991_231_235_959, None, "a date written as one number: write 2024-05-01T12:00:00Z"),
        (20_241_301, None, "a count of minutes since 1970"),
        (999, None, "a place in an order; where only the order is known, write times one second apart"),
        (1_000, None, "a year: write a date"),
        (2_199, None, "a year: write a date"),
        (2_200, None, "a place in an order; where only the order is known, write times one second apart"),
        (1_999.5, None, "a place in an order; where only the order is known, write times one second apart"),
        (7_000, None, "a count of days since 1970"),
        (6_999, None, "a place in an order; where only the order is known, write times one second apart"),
        (19_999, None, "a count of days since 1970"),
        (20_000, None, "a count of days, of a spreadsheet or since 1970"),
        (79_999, None, "a count of days, of a spreadsheet or since 1970"),
        (80_000, None, "a place in an order; where only the order is known, write times one second apart"),
        (169_999, None, "a place in an order; where only the order is known, write times one second apart"),
        (170_000, None, "a count of hours since 1970"),
        (1_149_999, None, "a count of hours since 1970"),
        (1_150_000, None, "no time in any unit"),
        (9_999_999, None, "no time in any unit"),
        (10_000_000, None, "a count of minutes since 1970"),
        (69_999_999, None, "a count of minutes since 1970"),
        (70_000_000, None, "no time in any unit"),
        (-1, None, "no time in any unit"),
        (0, None, "a place in an order; where only the order is known, write times one second apart"),
    ],
)
def test_what_a_number_looks_like(number, unit, like):
    assert times._looks_like(number, unit) == f"looks like {like}"


def test_a_number_far_from_1970_is_not_guessed_at():
    assert times._looks_like(2_592_000, "seconds") == "is not plausible: check its unit"  # 30 days
    assert times._looks_like(2_591_999, "seconds") == "looks like no time in any unit"


@pytest.mark.parametrize(
    ("seconds", "plausible"),
    [
        *((number, True) for number in (662_688_000, 4_102_444_799)),
        *((number, False) for number in (662_687_999, 4_102_444_800, 0, -1)),
    ],
)
@pytest.mark.parametrize(("unit", "per"), [("seconds", 1), ("milliseconds", 10**3), ("microseconds", 10**6)])
def test_plausible_times_of_events(seconds, plausible, unit, per):
    found = pl.select(times._plausible(pl.lit(float(seconds * per)), unit, True)).item()
    assert found == plausible


@pytest.mark.parametrize(
    ("seconds", "plausible"),
    [
        (-62_135_596_800, True),  # 0001-01-01
        (-62_135_596_801, False),
        (0, True),
        (1, False),  # close to 1970
        (2_591_999, False),
        (2_592_000, True),
        (-2_591_999, False),
        (-2_592_000, True),
        (4_102_444_799, True),
        (4_102_444_800, False),
        (253_370_764_799, False),
        (253_370_764_800, True),  # 9999-01-01: "never"
        (253_402_300_799, True),
        (253_402_300_800, False),  # the year 10000
        (20_240_501, False),  # a date written as one number
        (20_241_301, True),
        (20_240_532, True),
        (20_240_500, True),
        (18_991_231, True),
    ],
)
def test_plausible_times_of_publication(seconds, plausible):
    assert pl.select(times._plausible(pl.lit(float(seconds)), "seconds", False)).item() == plausible


def test_dates_with_a_time_of_day_written_as_one_number_are_no_milliseconds():
    numbers = {202_405_011_200: False, 202_405_321_200: True, 20_240_501: False}
    found = {n: pl.select(times._plausible(pl.lit(float(n)), "milliseconds", False)).item() for n in numbers}
    assert found == numbers
    assert pl.select(times._plausible(pl.lit(202_405_011_200_000.0), "microseconds", False)).item()


def test_how_numbers_are_shown():
    assert times._digits(1_700_000_000.0) == "1700000000"
    assert times._digits(1.5) == "1.5"
    assert times._reading(86_400_000, "milliseconds") == "1970-01-02"
    assert times._reading(1e30, "seconds") == "no date"
    numbers = times.EpochNumbers("seconds", 1_234.5, 20_240_501.0, True)
    assert numbers.notes("e.csv", "timestamp") == (
        "e.csv: numbers in timestamp are read as seconds since 1970-01-01 UTC (median 1,234)",
    )
    assert numbers.advice("timestamp") == (
        "20240501 (1970-08-23 as seconds) looks like a date written as one number: write 2024-05-01T12:00:00Z; "
        "or write timestamp as ISO 8601 text"
    )
    without = times.EpochNumbers(None, 0.0, None, True)
    assert (without.notes("e", "t"), without.advice("t")) == ((), "")
    assert pl.select(without.plausible(pl.lit(1.0))).item() is False


# --- words


def test_words_for_a_missing_value():
    assert set(PLACEHOLDERS) == {
        *("nan", "NaN", "NAN", "null", "Null", "NULL", "none", "None", "NONE", "nil", "NIL", "undefined"),
        *("NA", "N/A", "n/a", "#N/A", "<NA>", "NaT", "(null)", "\\N"),
    }
    texts = pl.Series(["1.7E+15", "1.7e+05", "1.7E15", "17E+15", "11.7E+15", "1.7E+150", "1.7E+15x"])
    assert texts.str.contains(LOST_DIGITS).to_list() == [True, True, False, False, False, False, False]
    assert LISTED == 20


@pytest.mark.parametrize(
    ("missing", "table", "names"),
    [
        (
            "item_id",
            "events",
            "item iid itemno movieid movie asin parentasin sku productid product article articleid contentid "
            "objectid bookid trackid songid artistid videoid newsid",
        ),
        (
            "user_id",
            "events",
            "user uid userno customerid customer visitorid visitor reviewerid memberid accountid clientid",
        ),
        ("event", "events", "eventtype eventname type action behavior behaviour behaviortype interaction"),
        (
            "timestamp",
            "events",
            "ts time date datetime createdat created eventtime occurredat unixtime unixreviewtime timestampms",
        ),
    ],
)
def test_each_usual_name_of_a_column(missing, table, names):
    for name in names.split():
        assert column_meant(missing, table, ["zzz", name]) == name
        shown = f"{name[:1].upper()}_{name[1:]}"
        assert column_meant(missing, table, [shown]) == shown


def test_a_similar_name_is_meant_and_a_name_of_the_contract_is_not():
    assert column_meant("timestamp", "events", ["timestmp"]) == "timestmp"
    assert column_meant("timestamp", "events", ["stamp"]) is None
    assert column_meant("item_id", "items", ["id"]) == "id"
    assert column_meant("item_id", "events", ["id"]) is None
    assert column_meant("item_id", "events", ["user_id", "event"]) is None
    assert column_meant("user_id", "users", ["ID", "name"]) == "ID"


# --- files


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("found more fields than", "a row has more fields than the header: quote fields that contain the separator"),
        ("invalid UTF-8 sequence", "save the file as UTF-8"),
        ("Could not parse `x`", "a quotation mark is opened and not closed"),
        (
            "malformed CSV",
            "a quotation mark is opened and not closed: quote the field, and write a mark inside it twice",
        ),
        ("other", "it is damaged, or a column holds values of several types: write the file again"),
        ("", "it is damaged, or a column holds values of several types: write the file again"),
    ],
)
def test_errors_of_readers_have_a_remedy(message, advice):
    with pytest.raises(DataError) as caught, reading("a.csv"):
        raise pl.exceptions.ComputeError(f"{message}\nsecond line")
    assert str(caught.value) == f"a.csv cannot be read: {advice} (ComputeError: {message or 'second line'})"
    with pytest.raises(FileNotFoundError), reading("a.csv"):
        raise FileNotFoundError(2, "No such file or directory", "a.csv")


@pytest.mark.parametrize("separator", [";", "\t", "|", "\x01", ":", " "])
def test_other_separators_than_commas_are_named(tmp_path, separator):
    (tmp_path / "e.csv").write_text(f"user_id{separator}x\n1{separator}2\n")
    with pytest.raises(DataError) as caught:
        scan_csv(tmp_path / "e.csv", ["user_id"])
    assert str(caught.value) == (
        f"{tmp_path}/e.csv: the header {f'user_id{separator}x'!r} is one column; fields seem to be separated by "
        f"{separator!r}. Write the file with commas"
    )
    assert SEPARATORS == ";\t|\x01: "


def test_a_single_column_with_a_colon_or_blank_in_its_name_is_read(tmp_path):
    for name in ("my column", "a:b"):
        (tmp_path / "e.csv").write_text(f"{name}\nx\n")
        assert scan_csv(tmp_path / "e.csv", ["user_id"]).collect().to_dict(as_series=False) == {name: ["x"]}
    (tmp_path / "e.csv").write_text("a;b\nx;y\n")  # none of the names is wanted
    with pytest.raises(DataError, match="separated by ';'"):
        scan_csv(tmp_path / "e.csv", ["user_id"])


def test_the_file_of_a_table(tmp_path):
    assert SUFFIXES == (".parquet", ".csv", ".jsonl", ".ndjson")
    assert find_table(tmp_path, "items") is None
    for suffix in SUFFIXES:
        file = tmp_path / f"items{suffix}"
        file.touch()
        assert find_table(tmp_path, "items") == file
        file.unlink()
    (tmp_path / "items.csv").touch()
    (tmp_path / "items.jsonl").touch()
    with pytest.raises(DataError) as caught:
        find_table(tmp_path, "items")
    assert str(caught.value) == f"{tmp_path}: items.csv and items.jsonl both exist; keep one of them for items"


def test_lines_in_messages_are_cut():
    assert csv_records._shown("x" * 80) == repr("x" * 80)
    assert csv_records._shown("x" * 81) == repr("x" * 79 + "…")
    assert csv_records._shown("first\nsecond") == "'first'"
    assert (csv_records.SWALLOWED, csv_records.BOUND) == (100, 100)
    assert [csv_records._width(record) for record in ("", "a", "a,b", '"a,b",c', ",,")] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("n", [100, 101])
def test_a_field_of_more_than_100_lines_that_look_like_records_has_swallowed_them(tmp_path, n):
    rows = "".join(f"{row},x\n" for row in range(n - 1))
    (tmp_path / "e.csv").write_text(f'a,b\n1,"open\n{rows}2,close"\n')
    if n == 100:
        assert csv_records.check_records(tmp_path / "e.csv") == ["a", "b"]
        return
    with pytest.raises(DataError) as caught:
        csv_records.check_records(tmp_path / "e.csv")
    assert str(caught.value) == (
        f"{tmp_path}/e.csv: the quotation mark opened in line 2 ('1,\"open') is closed only in line 103 and would "
        "swallow the rows between: close it in line 2; a field that is really so long needs parquet or JSON lines"
    )


# --- texts and the report


def test_dates_and_bytes_as_text():
    days = pl.Series([-719_163, -719_162, 0, 2_932_896, 2_932_897], dtype=pl.Int32).cast(pl.Date)
    shown = pl.select(as_text_of(days)).to_series().to_list()
    assert shown == ["-719163", "0001-01-01", "1970-01-01", "9999-12-31", "2932897"]
    units: list[tuple[Any, int]] = [("ms", 10**3), ("us", 10**6), ("ns", 10**9)]
    for unit, per in units:
        moments = pl.Series([0, 86_400 * per - 1], dtype=pl.Int64).cast(pl.Datetime(unit))
        assert [text[:10] for text in pl.select(as_text_of(moments)).to_series().to_list()] == ["1970-01-01"] * 2
    late = pl.Series([2_932_897 * 86_400 * 10**6, 2_932_897 * 86_400 * 10**6 - 1]).cast(UTC)
    assert pl.select(as_text_of(late)).to_series().to_list()[0] == str(2_932_897 * 86_400 * 10**6)
    assert pl.select(as_text_of(pl.Series([b"\x00\xff"]))).item() == "AP8="
    assert pl.select(as_text_of(pl.Series([5]).cast(pl.Duration("ms")))).item() == "5"


def as_text_of(series):
    frame = series.to_frame("x").lazy()
    return frame.select(as_text("x", series.dtype)).collect().to_series()


def test_the_report_as_lines_and_as_tables():
    report = Report(
        (Count("items", "i.csv", 1_234, 1_200, 34), Count("events", "e.csv", 2, 2, 0)),
        (
            Problem("items", "[b]price", "repaired", 1_000, ("i.csv row 1", "i.csv row 5"), "check"),
            Problem("events", "late", "kept", 1, (), "look"),
        ),
        ("a [note]",),
        {"items": "rejected/items.parquet"},
    )
    assert report.lines() == [
        "items: 1,234 rows read, 1,200 kept, 34 rejected",
        "events: 2 rows read, 2 kept, 0 rejected",
        "items: [b]price: 1,000 repaired (first i.csv row 1; check)",
        "events: late: 1 kept (look)",
        "note: a [note]",
    ]
    counts, problems, note, file = report.render().renderables
    assert isinstance(counts, Table)
    assert isinstance(problems, Table)
    assert [(column.header, column.justify) for column in counts.columns] == [
        *(("table", "left"), ("file", "left"), ("read", "right"), ("kept", "right"), ("rejected", "right")),
    ]
    rows = list(zip(*([str(cell) for cell in column.cells] for column in counts.columns), strict=True))
    assert rows == [("items", "i.csv", "1,234", "1,200", "34"), ("events", "e.csv", "2", "2", "0")]
    headers = ["table", "problem", "action", "count", "first places", "what to do"]
    assert [column.header for column in problems.columns] == headers
    rows = list(zip(*([str(cell) for cell in column.cells] for column in problems.columns), strict=True))
    assert rows == [
        ("items", "[b]price", "repaired", "1,000", "i.csv row 1\ni.csv row 5", "check"),
        ("events", "late", "kept", "1", "", "look"),
    ]
    assert (counts.title, problems.title) == ("rows", "problems")
    assert [text.plain for text in (note, file) if isinstance(text, Text)] == [
        "note: a [note]",
        "rejected rows of items: rejected/items.parquet",
    ]
    assert len(Report((Count("items", "i", 1, 1, 0),)).render().renderables) == 1
