"""What the report says of valid rows: unnamed event types, unknown items, columns without values."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError
from features.schema import DataConfig, EventRules
from features.tables.read import Tables, check_tables, read_tables

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
VIEW = EventRules(positive={"view": None})


def check(rules: EventRules = VIEW, *, items: Any = None, **columns: Any) -> Tables:
    """Events of these columns."""
    n = len(next(iter(columns.values())))
    base: dict[str, Any] = {"user_id": ["u"] * n, "item_id": ["a"] * n, "event": ["view"] * n}
    base["timestamp"] = [NOON + timedelta(seconds=i) for i in range(n)]
    config = DataConfig(source="folder", path="unused", events=rules)
    return check_tables(pl.LazyFrame(items or {"item_id": ["a"]}), pl.LazyFrame(base | columns), None, config)


def advice(tables: Tables, reason: str) -> str:
    (found,) = [p.advice for p in tables.report.problems if p.reason == reason]
    return found


# --- event types


def test_unnamed_types_are_listed_with_counts_and_what_is_meant() -> None:
    tables = check(event=["view", "View", "View", " view", "veiw", "hover"])
    (note,) = tables.report.notes
    assert note == (
        "events: event types that data.events does not name, which count as seen: 'View' (2), is 'view' meant?; "
        "' view' (1), is 'view' meant?; 'hover' (1); 'veiw' (1), is 'view' meant?"
    )
    (note,) = check(EventRules(positive={"view": None}, seen=("view",)), event=["view", "VIEW"]).report.notes
    assert note == ("events: event types neither positive nor seen, by data.events: 'VIEW' (1), is 'view' meant?")
    assert check(event=["view"]).report.notes == ()


def test_many_unnamed_types_are_cut() -> None:
    (note,) = check(event=["view", *(f"type {i}" for i in range(25))]).report.notes
    assert note.endswith("; and 5 more")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *((text, "view") for text in ("View", "VIEW", " view", "view ", "vi ew", "veiw", "vieww", "viaw")),
        *((text, "add_to_cart") for text in ("add-to-cart", "addToCart", "Add To Cart", "add_to_card")),
        *((text, None) for text in ("view", "review", "hover", "", " ", "view2", "vew", "bay", "buys", "vi")),
        ("Buy", "buy"),
    ],
)
def test_misspelled_types(name: str, meant: str | None) -> None:
    rules = EventRules(positive={"view": None, "add_to_cart": None}, seen=("buy", "view"))
    assert rules.meant(name) == meant


@given(st.text(max_size=8), st.text(max_size=8))
def test_a_named_type_is_never_a_misspelling(name: str, other: str) -> None:
    rules = EventRules(positive={name: None, other: None})
    assert rules.meant(name) is None
    assert rules.meant(other) is None


def test_no_positive_event_is_a_problem() -> None:
    rules = EventRules(positive={"rate": 3.5, "like": 1.0, "buy": None})
    tables = check(rules, event=["rate", "rate", "like", "look"], value=[1.0, 3.0, None, 9.0])
    (problem,) = [p for p in tables.report.problems if p.reason == "no positive event"]
    assert (problem.action, problem.count) == ("kept", 4)
    assert problem.advice == (
        "'rate' needs a value of 3.5 or more, and the largest is 3.0; "
        "'like' needs a value of 1 or more, and no event has a value; no event is a 'buy'; "
        "there are: 'rate' (2), 'like' (1), 'look' (1). Name what is to be predicted in data.events.positive"
    )
    assert not [p for p in check(rules, event=["buy", "look"]).report.problems if p.reason == "no positive event"]


# --- unknown items


def test_ids_that_differ_in_spelling_are_told() -> None:
    items = {"item_id": ["1", "abc", "x y"]}
    tables = check(items=items, item_id=["1", "01", "1.0", " ABC", "Abc", "nowhere", "01"])
    text = advice(tables, "unknown item")
    assert "5 would match but for blanks, case, leading zeros or '.0': ' ABC' here is 'abc' in items" in text
    assert "1 is not 1.0" in text
    assert "would match" not in advice(check(item_id=["a", "nowhere"]), "unknown item")


def test_a_rejected_item_is_the_reason_why_its_events_are_unknown(tmp_path: Path) -> None:
    pl.DataFrame({"item_id": [1.0, 2.5, None]}).write_parquet(tmp_path / "items.parquet")
    lines = "".join(f"u,{item},view,2024-05-01T12:00:0{k}Z\n" for k, item in enumerate(["1", "2.5", "2.5", "9"]))
    (tmp_path / "events.csv").write_text("user_id,item_id,event,timestamp\n" + lines)
    text = advice(read_tables(DataConfig(source="folder", path=str(tmp_path), events=VIEW)), "unknown item")
    assert text.startswith(
        "2 are of items that items.parquet rejected (item_id not a whole number); "
        "items.parquet has 1 rejected rows without a readable item_id; "
    )


def test_the_error_of_an_empty_table_has_the_cause_too() -> None:
    with pytest.raises(
        DataError, match=r"unknown item: 2 \(first events row 1; 2 would match but for .*'A' here is 'a'"
    ):
        check(item_id=["A", "A"])


# --- columns


def test_columns_without_a_valid_value_are_named() -> None:
    items = {"item_id": ["a", "b"], "price": ["$1", "$2"], "title": ["A", ""], "available": [None, None]}
    tables = check(items=items, value=[None], event_id=["x"])
    assert tables.report.notes == (
        "items: no row has a valid value of price",
        "events: no row has a valid value of value",
    )


# --- doubtful times and ids


def test_times_that_a_mistaken_unit_would_give_are_doubted() -> None:
    moments = [datetime(1990, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(1991, 1, 1, tzinfo=UTC), NOON]
    tables = check(timestamp=moments)
    (found,) = [p for p in tables.report.problems if p.reason == "timestamp before 1991"]
    assert (found.count, found.places, found.advice) == (
        1,
        ("events row 1",),
        "check the unit that these times were made from",
    )
    assert len(tables.events) == 3


def test_publications_close_to_1970_are_doubted_unless_they_are_dates() -> None:
    day, second = timedelta(days=1), timedelta(seconds=1)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    moments = [epoch, epoch + day, epoch + second, epoch + 30 * day - second, epoch + 30 * day + second]
    moments += [epoch - second, epoch - 30 * day - second, NOON]
    items = {"item_id": [*"abcdefgh"], "published_at": moments}
    problems = check(items=items, event=["view"]).report.problems
    (found,) = [p for p in problems if p.reason == "published_at close to 1970"]
    assert (found.count, found.places) == (3, ("items row 3", "items row 4", "items row 6"))
    assert found.advice == "check the unit that these times were made from"


def test_ids_that_are_no_ids_are_doubted_and_numbers_are_not() -> None:
    tables = check(user_id=["nan", "NULL", "1.71457E+15", "1.7E+5", "Nan", "none"])
    words, digits = tables.report.problems
    assert (words.reason, words.count, words.advice) == (
        "user_id is a word for a missing value",
        3,
        "leave out the rows without an id",
    )
    assert words.places == ("events row 1", "events row 2", "events row 6")
    assert (digits.reason, digits.count, digits.advice) == (
        "user_id in exponent form",
        1,
        "digits are lost: export the column as text",
    )
    assert digits.places == ("events row 3",)
    assert check(items={"item_id": [1]}, item_id=[1, 1]).report.problems == ()
