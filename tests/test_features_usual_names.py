"""The suggestion for a missing column: a usual name of it, else a similar one; never a column of the contract."""

from pathlib import Path

import polars as pl
import pytest

from features.errors import DataError
from features.tables.usual_names import column_meant
from features.tables.validate import RawTable


@pytest.mark.parametrize(
    ("table", "columns", "hints"),
    [
        ("items", ["id", "title"], ["is 'id' meant? Rename it to item_id"]),
        ("items", ["title", "movieId"], ["is 'movieId' meant? Rename it to item_id"]),
        ("items", ["parent_asin", "price"], ["is 'parent_asin' meant? Rename it to item_id"]),
        ("items", ["Item ID"], ["is 'Item ID' meant? Rename it to item_id"]),
        ("items", ["movieId", "Item ID"], ["is 'Item ID' meant? Rename it to item_id"]),  # its own name comes first
        ("users", ["usrd", "age"], ["is 'usrd' meant? Rename it to user_id"]),  # 0.8 of userid, 0.73 of user_id
        ("users", ["usra", "age"], []),  # 0.6
        ("items", ["itme_id", "title"], ["is 'itme_id' meant? Rename it to item_id"]),
        ("items", ["title", "price"], []),
        ("items", ["name", "colour"], []),
        ("users", ["id", "age"], ["is 'id' meant? Rename it to user_id"]),
        ("events", ["id", "user_id", "event", "timestamp"], []),  # `id` numbers the events
        ("events", ["uid", "item_id", "event", "timestamp"], ["is 'uid' meant? Rename it to user_id"]),
        ("events", ["user_id", "item_id", "event", "ts"], ["is 'ts' meant? Rename it to timestamp"]),
        ("events", ["user_id", "item_id", "event", "created_at"], ["is 'created_at' meant? Rename it to timestamp"]),
        ("events", ["user_id", "item_id", "event", "time stamp"], ["is 'time stamp' meant? Rename it to timestamp"]),
        ("events", ["user_id", "item_id", "event_type", "timestamp"], ["is 'event_type' meant? Rename it to event"]),
        ("events", ["user_id", "item_id", "value", "timestamp"], []),
        (
            "events",
            ["user", "product_id", "action", "date"],
            [
                "is 'user' meant? Rename it to user_id",
                "is 'product_id' meant? Rename it to item_id",
                "is 'action' meant? Rename it to event",
                "is 'date' meant? Rename it to timestamp",
            ],
        ),
    ],
)
def test_the_column_that_is_probably_meant(table: str, columns: list[str], hints: list[str], tmp_path: Path) -> None:
    frame = pl.DataFrame({name: ["x"] for name in columns})
    with pytest.raises(DataError) as caught:
        RawTable.of(table, f"{table}.csv", frame.lazy())
    assert f"The columns there are: {', '.join(columns)}" in str(caught.value)
    assert [part for part in str(caught.value).split("; ") if "meant" in part] == hints


def test_a_column_without_usual_names_may_be_written_in_another_way() -> None:
    assert column_meant("published_at", "items", ["Published-At", "x"]) == "Published-At"
    assert column_meant("published_at", "items", ["title", "x"]) is None
