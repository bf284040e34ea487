"""Labels that are written as one text: JSON arrays, lists of Python, pandas and NumPy, and text with bars."""

import json
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import DataError
from features.tables.columns import labels
from features.tables.files.text_lists import MAX_LENGTH, text_list, text_lists


def read(column: pl.Series) -> tuple[list[Any], list[bool]]:
    """The labels of a column, and whether each is reported."""
    rule = labels("items.csv", "categories", column.dtype)
    brackets = [violation for violation in rule.violations if "in brackets" in violation.reason]
    conditions = [violation.condition.alias("unread") for violation in brackets]
    frame = column.to_frame("categories").select(rule.value.alias("labels"), *conditions)
    unread = frame.get_column("unread").to_list() if conditions else [False] * len(frame)
    assert all(violation.repaired for violation in rule.violations)
    return frame.get_column("labels").to_list(), unread


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["Drama", "Sci-Fi"]', ["Drama", "Sci-Fi"]),
        (r'["caf\u00e9", "C:\\dir", "a\tb", "\ud83d\ude00", "\""]', ["café", "C:\\dir", "a\tb", "😀", '"']),
        ('["a|b", "c,d"]', ["a|b", "c,d"]),
        ("['Drama', 'Sci-Fi']", ["Drama", "Sci-Fi"]),
        ("""['Drama', "Children's"]""", ["Drama", "Children's"]),
        (r"""["it's", 'say "x"', 'C:\\dir', 'a\x41']""", ["it's", 'say "x"', "C:\\dir", "aA"]),
        ("['Drama' 'Sci-Fi']", ["Drama", "Sci-Fi"]),
        ("""['Drama'\n "Children's"]""", ["Drama", "Children's"]),
        ("['a', None, 1, 2.5, True]", ["a", "1", "2.5", "True"]),
        ("['a',]", ["a"]),
        ("[1, 2.50, 18446744073709551617, true, null]", ["1", "2.50", "18446744073709551617", "true"]),
        ("[]", []),
        (" [ ] ", []),
        ("A|B | |C", ["A", "B", "C"]),
        ("(no genres listed)", ["(no genres listed)"]),
        ("[A] and [B", ["[A] and [B"]),
        ("", []),
    ],
)
def test_what_is_read(text: str, expected: list[str]) -> None:
    assert read(pl.Series([text, None, "x"])) == ([expected, None, ["x"]], [False] * 3)


@pytest.mark.parametrize(
    "text",
    [
        "[REC]",
        "[Drama, Comedy]",
        "[A|B]",
        "['a', nan]",
        '["a", NaN]',
        "['a' , b]",
        "['a'",
        '["a"] ["b"]',
        '[["a"]]',
        '[{"a":1}]',
        r'["\ud800"]',
        "[b'a']",
        "['a' 'b', 'c']",
        "['a\nb']",
        "[,]",
        "{'a', 'b'}",
        '{"a": 1}',
        "{Drama,Comedy}",
        "('a', 'b')",
        "array(['a', 'b'], dtype=object)",
        "set()",
        "[" * 5000 + "]" * 5000,
        "['" + "a" * MAX_LENGTH + "']",
        "['" + "\\" * 4001 + "']",
    ],
)
def test_what_is_reported(text: str) -> None:
    enclosed = text[-1] in ")]}"
    labels_read, unread = read(pl.Series(['["x"]', text]))
    assert labels_read == [["x"], None if enclosed else [text]]
    assert unread == [False, enclosed]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pl.Series([["a", " ", None, "b "], None]), [["a", "b"], None]),
        (pl.Series([[1, 2], None]), [["1", "2"], None]),
        (pl.Series([["a", "b"]], dtype=pl.Array(pl.String, 2)), [["a", "b"]]),
        (pl.Series(["['a']", "b|c"], dtype=pl.Categorical), [["a"], ["b", "c"]]),
        (pl.Series([None, None]), [None, None]),
    ],
)
def test_columns_of_other_types(column: pl.Series, expected: list[Any]) -> None:
    assert read(column)[0] == expected


@pytest.mark.parametrize("dtype", [pl.Int64(), pl.List(pl.List(pl.String)), pl.List(pl.Binary), pl.Struct([])])
def test_types_that_hold_no_labels_are_refused(dtype: pl.DataType) -> None:
    with pytest.raises(DataError, match=r"items.csv: categories has type"):
        labels("items.csv", "categories", dtype)


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.lists(st.text(), max_size=4), min_size=1, max_size=8))
def test_json_arrays_and_lists_of_python_are_read_alike(rows: list[list[str]]) -> None:
    for write in (json.dumps, lambda row: json.dumps(row, ensure_ascii=False, separators=(",", ":")), str):
        texts = [write(row) for row in rows]
        assert text_lists(pl.Series(texts)).to_list() == rows
        assert [text_list(text) for text in texts] == rows


@settings(max_examples=300, deadline=None)
@given(inside=st.text(alphabet="[]'\",\\ ab1.eNone\n\u00e9"))
def test_any_text_in_brackets_is_read_or_reported(inside: str) -> None:
    (found,), (unread,) = read(pl.Series([f"[{inside}]"]))
    assert (found is None) == unread


def test_a_list_that_is_nested_too_deeply_for_the_second_parser_is_reported() -> None:
    """A float makes the list be read once more, by Python's parser, which stops at some 1,000 levels."""
    assert text_list("[1.5, " + "[" * 1_010 + "]" * 1_010 + "]") is None
    assert text_list("[1.5, 2]") == ["1.5", "2"]
