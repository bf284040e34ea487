"""The data contract: what is read, repaired, rejected and refused, and that no valid row is lost."""

import io
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from features.errors import DataError
from features.schema import MAX_ID_BYTES, DataConfig, EventRules
from features.tables.read import EVENTS, ITEMS, Tables, check_tables, read_tables
from features.tables.report import Problem

NOW = datetime(2025, 1, 1, tzinfo=UTC)
DAY = datetime(2024, 5, 1, 12, 0, tzinfo=UTC)
RULES = EventRules(positive={"buy": None, "rate": 3.5})


def config(path: object = "unused", **more: Any) -> DataConfig:
    return DataConfig(source="folder", path=str(path), events=more.pop("events", RULES), **more)


def write(folder: Path, items: str, events: str) -> Path:
    (folder / "items.csv").write_bytes(items.encode())
    (folder / "events.csv").write_bytes(events.encode())
    return folder


def event_lines(*rows: str) -> str:
    return "\n".join(("user_id,item_id,event,timestamp,value", *rows)) + "\n"


def test_reading_reports_its_progress(tmp_path: Path) -> None:
    rows = [f"u,i{n % 7},buy,2024-05-01T12:00:00Z,{n}" for n in range(1000)]
    write(tmp_path, "item_id\n" + "\n".join(f"i{n}" for n in range(7)) + "\n", event_lines(*rows))
    calls: dict[str, list[int]] = {}  # description -> total, then the steps

    def start(description: str, total: int) -> Any:
        calls[description] = [total]
        return calls[description].append

    read_tables(config(tmp_path), now=NOW, progress=start)
    assert {description: total for description, (total, *_) in calls.items()} == {"items.csv": 7, "events.csv": 1000}
    assert all(sum(steps) == total for total, *steps in calls.values())


def problems(tables: Tables) -> dict[str, Problem]:
    return {p.reason: p for p in tables.report.problems}


def check_counts(tables: Tables) -> None:
    """Assert that read == kept + rejected, and that the problems add up to the rejected rows."""
    for count in tables.report.counts:
        rejected = [p.count for p in tables.report.problems if p.table == count.table and p.action == "rejected"]
        assert count.read == count.kept + count.rejected
        assert count.rejected == sum(rejected)


def check(items: Any, events: Any, users: Any = None, *, rules: EventRules = RULES, **more: Any) -> Tables:
    user_frame = None if users is None else pl.LazyFrame(users)
    tables = check_tables(
        pl.LazyFrame(items), pl.LazyFrame(events), user_frame, config(events=rules, **more), now=NOW
    )
    check_counts(tables)
    return tables


def events_of(**columns: Any) -> dict[str, Any]:
    n = len(next(iter(columns.values())))
    base: dict[str, Any] = {
        "user_id": ["u"] * n,
        "item_id": ["a"] * n,
        "event": ["buy"] * n,
        "timestamp": [DAY + timedelta(seconds=i) for i in range(n)],
    }
    return base | columns


# --- types and columns


def test_canonical_types_and_absent_columns() -> None:
    tables = check({"item_id": [7, 8]}, events_of(user_id=[1, 2], item_id=["7", "8"]))
    assert dict(tables.items.schema) == ITEMS
    assert dict(tables.events.schema) == EVENTS
    assert tables.items["item_id"].to_list() == ["7", "8"]
    assert tables.items["available"].to_list() == [True, True]
    assert tables.events["user_id"].to_list() == ["1", "2"]
    assert tables.events["propensity"].null_count() == 2
    assert tables.users is None


def test_missing_columns_are_named_with_the_existing_ones() -> None:
    with pytest.raises(DataError, match=r"no column user_id, which events needs.*userId, item_id.*'userId' meant"):
        check({"item_id": ["a"]}, {"userId": ["u"], "item_id": ["a"], "event": ["buy"], "timestamp": [DAY]})
    with pytest.raises(DataError, match=r"no column colour, which data.extra_columns names.*item_id, color"):
        check({"item_id": ["a"], "color": ["red"]}, events_of(user_id=["u"]), extra_columns=("colour",))


def test_extra_columns_are_kept_when_declared_and_named_when_not() -> None:
    items = {"item_id": ["a"], "color": ["red"], "size": [3]}
    tables = check(items, events_of(user_id=["u"]), extra_columns=("size",))
    assert tables.items["size"].to_list() == [3]
    assert "color" not in tables.items.columns
    assert any("not read: color" in note for note in tables.report.notes)


def test_users_keep_their_columns() -> None:
    users = {"user_id": ["u", "u", None], "age": [3, 4, 5]}
    tables = check({"item_id": ["a"]}, events_of(user_id=["u"]), users)
    assert tables.users is not None
    assert tables.users.to_dicts() == [{"user_id": "u", "age": 3}]
    assert set(problems(tables)) == {"duplicate user_id", "null user_id"}


def test_float_ids_are_read_as_whole_numbers_with_a_note() -> None:
    tables = check({"item_id": [1, 2]}, events_of(item_id=[1.0, 2.5, 2.0, float("nan"), 2.0**60]))
    assert tables.events["item_id"].to_list() == ["1", "2"]
    assert any("float column" in note for note in tables.report.notes)
    assert problems(tables)["item_id not a whole number"].count == 3


@pytest.mark.parametrize("ids", [[True], [[1]], [DAY], [b"x"]])
def test_ids_of_other_types_are_refused(ids: list[Any]) -> None:
    with pytest.raises(DataError, match="ids are text or integers"):
        check({"item_id": ["a"]}, events_of(user_id=ids))


def test_items_with_an_invalid_optional_field_are_kept() -> None:
    items = {
        "item_id": ["a", "b", "c", "d"],
        "price": ["1.5", "-2", "NaN", "cheap"],
        "available": ["no", "perhaps", None, "1"],
        "published_at": ["1995-01-01", "2030-01-01T00:00:00+01:00", "2020-01-01 10:00", "soon"],
        "categories": ["x|y", '["p", "q, \\"r\\""]', "", "[1,2]"],
        "title": ["A", "", None, "D"],
    }
    tables = check(items, events_of(user_id=["u"]))
    assert tables.items["price"].to_list() == [1.5, None, None, None]
    assert tables.items["available"].to_list() == [False, True, True, True]
    assert tables.items["published_at"].to_list() == [
        datetime(1995, 1, 1, tzinfo=UTC),
        datetime(2029, 12, 31, 23, tzinfo=UTC),
        None,
        None,
    ]
    assert tables.items["categories"].to_list() == [["x", "y"], ["p", 'q, "r"'], [], ["1", "2"]]
    assert tables.items["title"].to_list() == ["A", None, None, "D"]
    reported = problems(tables)
    price = reported["price not a finite number of 0 or more"]
    assert (price.count, price.action, price.places) == (3, "repaired", ("items row 2", "items row 3", "items row 4"))
    assert reported["published_at without zone"].count == reported["published_at not parseable"].count == 1
    assert reported["available not true or false"].places == ("items row 2",)


def test_logged_fields_out_of_range_become_null() -> None:
    logged = events_of(position=[1, 0, 3, 10_001], propensity=[0.5, 1.0, 0.0, float("nan")])
    tables = check({"item_id": ["a"]}, logged)
    assert tables.events["position"].to_list() == [1, None, 3, None]
    assert tables.events["propensity"].to_list() == [0.5, 1.0, None, None]
    assert {p.count for p in tables.report.problems} == {2}


# --- time


def test_text_times() -> None:
    texts = [
        "2024-05-01T12:00:00Z",
        "2024-05-01 14:00:00+02:00",
        "2024-05-01T06:30:00.250-0530",
        "2024-05-01T12:00+00",
        "2024-05-01T12:00:00",
        "2024-05-01",
        "yesterday",
        "2024-13-01T00:00:00Z",
        None,
        "",
        "2025-01-02T00:00:01Z",  # more than a day after NOW
        "1714564800",
        "1969-12-31T23:59:59Z",
    ]
    tables = check({"item_id": ["a"]}, events_of(timestamp=texts, user_id=[str(i) for i in range(len(texts))]))
    assert tables.events["timestamp"].to_list() == [DAY, DAY, DAY + timedelta(seconds=0.25), DAY, DAY]
    assert tables.events["user_id"].to_list() == ["0", "1", "2", "3", "11"]
    assert {reason: p.count for reason, p in problems(tables).items()} == {
        "timestamp without zone": 2,
        "timestamp not parseable": 2,
        "null timestamp": 2,
        "timestamp in the future": 1,
        "timestamp before 1970": 1,
    }


@pytest.mark.parametrize(
    ("factor", "unit"), [(1, "seconds"), (10**3, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds")]
)
@pytest.mark.parametrize("cast", [pl.Int64, pl.Float64, pl.String])
def test_epochs_by_their_magnitude(factor: int, unit: str, cast: type[pl.DataType]) -> None:
    seconds = [int(DAY.timestamp()), int(DAY.timestamp()) + 60]
    times = pl.Series([s * factor for s in seconds]).cast(cast)
    tables = check({"item_id": ["a"]}, events_of(timestamp=times))
    assert tables.events["timestamp"].to_list() == [DAY, DAY + timedelta(seconds=60)]
    assert any(f"read as {unit}" in note for note in tables.report.notes)


def test_zoned_datetimes_are_converted_and_naive_ones_refused() -> None:
    berlin = pl.Series([DAY]).dt.convert_time_zone("Europe/Berlin").cast(pl.Datetime("ns", "Europe/Berlin"))
    assert check({"item_id": ["a"]}, events_of(timestamp=berlin)).events["timestamp"].to_list() == [DAY]
    with pytest.raises(DataError, match=r"no time zone.*replace_time_zone"):
        check({"item_id": ["a"]}, events_of(timestamp=[DAY.replace(tzinfo=None)]))
    with pytest.raises(DataError, match="dates only"):
        check({"item_id": ["a"]}, events_of(timestamp=[date(2024, 5, 1)]))
    with pytest.raises(DataError, match="has type Boolean"):
        check({"item_id": ["a"]}, events_of(timestamp=[True]))


# --- duplicates


def test_duplicates_by_event_id_or_by_all_five() -> None:
    rows = events_of(
        user_id=["u", "u", "u", None, "u", "u"],
        timestamp=[DAY] * 6,
        value=[1.0, 1.0, 1.0, 1.0, None, None],
        event_id=["x", "x", "y", "z", None, None],
    )
    tables = check({"item_id": ["a"]}, rows)
    assert tables.events["event_id"].to_list() == ["x", "y", None]
    assert problems(tables)["duplicate event"].places == ("events row 2", "events row 6")


def test_a_valid_event_is_kept_when_only_an_invalid_one_precedes_it() -> None:
    tables = check({"item_id": ["a"]}, events_of(item_id=["lost", "a"], event_id=["x", "x"]))
    assert tables.events["item_id"].to_list() == ["a"]
    assert set(problems(tables)) == {"unknown item"}


def test_the_first_of_duplicate_items_is_kept() -> None:
    tables = check({"item_id": ["a", "b", "a"], "title": ["1", "2", "3"]}, events_of(user_id=["u"]))
    assert tables.items["title"].to_list() == ["1", "2"]
    assert problems(tables)["duplicate item_id"].places == ("items row 3",)


def test_a_million_duplicate_rows() -> None:
    n = 1_000_000
    rows = pl.LazyFrame({"user_id": ["u", "v"], "item_id": ["a", "a"], "event": ["buy"] * 2, "timestamp": [DAY] * 2})
    many = pl.concat([rows.head(1).select(pl.all().repeat_by(n).explode()), rows.tail(1)])
    tables = check_tables(pl.LazyFrame({"item_id": ["a"]}), many, None, config(), now=NOW)
    check_counts(tables)
    assert tables.events["user_id"].to_list() == ["u", "v"]
    problem = problems(tables)["duplicate event"]
    assert (problem.count, problem.places) == (n - 1, ("events row 2", "events row 3", "events row 4"))


# --- files


def test_a_csv_with_a_byte_order_mark_and_ids_as_ints_and_strings(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_bytes(b"\xef\xbb\xbfitem_id,title\n007,Bond\nb,Q\n")
    events = pl.DataFrame(events_of(user_id=[1, 2], item_id=["007", "b"]))
    events.write_parquet(tmp_path / "events.parquet")
    tables = read_tables(config(tmp_path), now=NOW)
    assert tables.items["item_id"].to_list() == ["007", "b"]
    assert tables.events["item_id"].to_list() == ["007", "b"]
    assert tables.report.problems == ()


def test_ids_as_ints_in_one_file_and_strings_in_the_other(tmp_path: Path) -> None:
    pl.DataFrame({"item_id": [1, 2]}).write_parquet(tmp_path / "items.parquet")
    lines = event_lines(
        "u,1,buy,2024-05-01T12:00:00Z,", "u,2,buy,2024-05-01T12:00:00Z,", "u,2.0,buy,2024-05-01T12:00:00Z,"
    )
    (tmp_path / "events.csv").write_text(lines)
    tables = read_tables(config(tmp_path), now=NOW)
    assert tables.events["item_id"].to_list() == ["1", "2"]
    problem = problems(tables)["unknown item"]
    assert problem.places == ("events.csv row 3",)
    assert "1 is not 1.0" in problem.advice


def test_unicode_and_oversized_ids_and_a_nan_price(tmp_path: Path) -> None:
    long, longest = "x" * 10_240, "é" * (MAX_ID_BYTES // 2)
    items = f"item_id,price\nдом-家-🏠,NaN\n{long},1\n{longest},2\n"
    events = event_lines(
        "ü,дом-家-🏠,buy,2024-05-01T12:00:00Z,1",
        f"{long},дом-家-🏠,buy,2024-05-01T12:00:00Z,1",
        f"u,{longest},buy,2024-05-01T12:00:00Z,1",
        "tab\tbed,дом-家-🏠,buy,2024-05-01T12:00:00Z,1",
    )
    tables = read_tables(config(write(tmp_path, items, events)), now=NOW)
    check_counts(tables)
    assert tables.items["item_id"].to_list() == ["дом-家-🏠", longest]
    assert tables.items["price"].to_list() == [None, 2.0]
    assert tables.events["user_id"].to_list() == ["ü", "u"]
    reported = problems(tables)
    assert reported["item_id too long"].places == ("items.csv row 2",)
    assert "512 bytes" in reported["user_id too long"].advice
    assert reported["user_id with control characters"].places == ("events.csv row 4",)
    assert reported["price not a finite number of 0 or more"].action == "repaired"


def test_mixed_time_zones(tmp_path: Path) -> None:
    events = event_lines(
        "u,a,buy,2024-05-01T12:00:00Z,1",
        "v,a,buy,2024-05-01T21:00:00+09:00,1",
        "w,a,buy,2024-05-01T12:00:00,1",
        "x,a,buy,2024-05-01 08:00:00-04:00,1",
    )
    tables = read_tables(config(write(tmp_path, "item_id\na\n", events)), now=NOW)
    assert tables.events["user_id"].to_list() == ["u", "v", "x"]
    assert set(tables.events["timestamp"].to_list()) == {DAY}
    problem = problems(tables)["timestamp without zone"]
    assert problem.places == ("events.csv row 3",)
    assert "2024-05-01T12:00:00Z" in problem.advice


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("", r"items.csv is empty \(0 bytes\)"),
        ("item_id\n", "items.csv: no rows"),
        ("item_id;title\na;b\n", "fields seem to be separated by ';'"),
        ("item_id\ttitle\na\tb\n", r"fields seem to be separated by '\\t'"),
        ("item_id,title\na,b,c\n", "more fields than the header"),
        ('item_id,title\na,"b\nc,d\n', "a quotation mark is opened and not closed"),
        ("item_id\n\n", "nothing usable is left of 1 rows. null item_id: 1"),
    ],
)
def test_errors_of_unreadable_files(tmp_path: Path, items: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_tables(config(write(tmp_path, items, event_lines("u,a,buy,2024-05-01T12:00:00Z,1"))), now=NOW)


def test_missing_ambiguous_and_corrupt_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path .*: no such folder\. "):
        read_tables(config(tmp_path / "nowhere"))
    write(tmp_path, "item_id\na\n", event_lines("u,a,buy,2024-05-01T12:00:00Z,1"))
    (tmp_path / "items.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    with pytest.raises(DataError, match=r"items.parquet and items.csv both exist"):
        read_tables(config(tmp_path))
    (tmp_path / "items.csv").unlink()
    with pytest.raises(DataError, match=r"items.parquet cannot be read"):
        read_tables(config(tmp_path))
    (tmp_path / "items.parquet").unlink()
    (tmp_path / "items.csv").write_bytes("item_id\ncafé\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"items.csv is not UTF-8: line 2 has the byte 0xE9"):
        read_tables(config(tmp_path))


def test_json_lines(tmp_path: Path) -> None:
    items = [
        {"item_id": 1, "title": "a\u2028b", "categories": ["x", "y z"], "price": 2.5, "available": False},
        {"item_id": "b", "price": None},
    ]
    (tmp_path / "items.jsonl").write_text("\n\n".join(json.dumps(i) for i in items) + "\n")
    row = {"user_id": "ü", "item_id": 1, "event": "buy", "timestamp": "2024-05-01T12:00:00Z", "value": 2}
    lines = [json.dumps(row), "not json", json.dumps(row)[:-1], json.dumps(row | {"user_id": "\ud800"}), "[1]"]
    (tmp_path / "events.ndjson").write_text("\n".join(lines) + "\n")
    tables = read_tables(config(tmp_path), now=NOW)
    check_counts(tables)
    assert tables.items["item_id"].to_list() == ["1", "b"]
    assert tables.items["title"].to_list() == ["a\u2028b", None]
    assert tables.items["categories"].to_list() == [["x", "y z"], None]
    assert tables.items["available"].to_list() == [False, True]
    assert tables.items["price"].to_list() == [2.5, None]
    assert tables.events.select("user_id", "item_id", "value").row(0) == ("ü", "1", 2.0)
    assert tables.report.counts[1].rejected == 4
    rejected = pl.read_parquet(tmp_path / "rejected" / "events.parquet")
    assert rejected["__line__"].to_list() == lines[1:]


def test_rejected_rows_are_written_unchanged(tmp_path: Path) -> None:
    events = event_lines("u,a,buy,2024-05-01T12:00:00Z,1", "u,zzz,buy,2024-05-01T12:00:00Z,007", ",a,buy,never,")
    folder = write(tmp_path, "item_id\na\n", events)
    tables = read_tables(config(folder), now=NOW)
    path = folder / "rejected" / "events.parquet"
    assert tables.report.files == {"events": str(path)}
    assert pl.read_parquet(path).rows() == [
        ("unknown item", 2, "u", "zzz", "buy", "2024-05-01T12:00:00Z", "007"),
        ("null user_id", 3, None, "a", "buy", "never", None),
    ]
    write(tmp_path, "item_id\na\n", event_lines("u,a,buy,2024-05-01T12:00:00Z,1"))
    assert read_tables(config(folder), now=NOW).report.files == {}
    assert not path.exists(), "the next check removes the file"


def test_missing_media(tmp_path: Path) -> None:
    (tmp_path / "posters").mkdir()
    (tmp_path / "posters" / "a.jpg").write_bytes(b"x")
    absolute = tmp_path / "posters" / "a.jpg"
    items = (
        f"item_id,image\na,posters/a.jpg\nb,posters/b.jpg\nc,https://x.example/c.jpg\nd,{absolute}\ne,\nf,posters\n"
    )
    tables = read_tables(config(write(tmp_path, items, event_lines("u,a,buy,2024-05-01T12:00:00Z,1"))), now=NOW)
    assert tables.items["image"].to_list() == [
        "posters/a.jpg",
        None,
        "https://x.example/c.jpg",
        str(absolute),
        None,
        None,
    ]
    problem = problems(tables)["missing file in image"]
    assert (problem.count, problem.action, problem.places) == (2, "repaired", ("items.csv row 2", "items.csv row 6"))


# --- report


def test_the_report_renders_and_serialises() -> None:
    tables = check(
        {"item_id": ["a"]},
        events_of(event=["buy", "look"], item_id=["a", "a"]),
        rules=EventRules(positive={"buy": None, "rent": None}, seen=("buy",)),
    )
    assert any("neither positive nor seen" in n and "'look' (1)" in n for n in tables.report.notes)
    assert any("no event has: 'rent'" in n for n in tables.report.notes)
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(tables.report.render())
    assert "note:" in console.export_text()
    report = json.loads(json.dumps(tables.report.to_dict()))
    assert report["counts"][1] == {"table": "events", "file": "events", "read": 2, "kept": 2, "rejected": 0}


# --- any mixture

VALID = ("u", "a", "buy", "2024-05-01T12:00:00Z", "1")
INVALID = {
    "null user_id": {0: ""},
    "user_id too long": {0: "x" * (MAX_ID_BYTES + 1)},
    "user_id with control characters": {0: "a\x07b"},
    "null item_id": {1: ""},
    "unknown item": {1: "nowhere"},
    "null event": {2: ""},
    "null timestamp": {3: ""},
    "timestamp without zone": {3: "2024-05-01T12:00:00"},
    "timestamp not parseable": {3: "noon"},
    "timestamp in the future": {3: "2199-05-01T12:00:00+01:00"},
    "value not a finite number": {4: "inf"},
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([None, "duplicate event", *INVALID]), min_size=1, max_size=40))
def test_any_mixture_keeps_exactly_the_valid_rows_in_order(kinds: list[str | None]) -> None:
    rows: list[list[str]] = []
    expected: list[str] = []
    counts: dict[str, int] = {}
    users = [f"user-{i}" for i in range(len(kinds))]
    for i, kind in enumerate(kinds):
        row = [users[i], *VALID[1:]]
        if kind == "duplicate event" and not expected:
            kind = None
        if kind == "duplicate event":
            row[0] = expected[-1]
        elif kind is not None:
            for column, field in INVALID[kind].items():
                row[column] = field
        else:
            expected.append(row[0])
        if kind is not None:
            counts[kind] = counts.get(kind, 0) + 1
        rows.append(row)
    names = ["user_id", "item_id", "event", "timestamp", "value"]
    frame = pl.LazyFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")
    items = pl.LazyFrame({"item_id": ["a"]})
    if not expected:
        with pytest.raises(DataError, match="nothing usable is left"):
            check_tables(items, frame, None, config(), now=NOW)
        return
    tables = check_tables(items, frame, None, config(), now=NOW)
    check_counts(tables)
    assert tables.events["user_id"].to_list() == expected
    assert {p.reason: p.count for p in tables.report.problems} == counts
