"""Files of sequences with the titles of a table beside them, and without any."""

from pathlib import Path

import polars as pl
import pytest

from features.errors import SourceError
from features.schema import DataConfig, EventRules
from features.tables.sources import sequences


def extract(folder: Path, text: str = "u1  7 8 \n\n u2 7\n") -> sequences.Extract:
    (folder / "s.txt").write_text(text)
    rules = EventRules(positive={"interaction": None})
    config = DataConfig(source="sequences", path=str(folder / "out"), origin=str(folder / "s.txt"), events=rules)
    return sequences.extract(config)


def test_without_other_files_items_have_ids_alone(tmp_path: Path) -> None:
    found = extract(tmp_path)
    items = found.items.collect()
    assert items.schema == {"item_id": pl.String, "title": pl.String, "categories": pl.List(pl.String)}
    assert items.rows() == [("7", None, None), ("8", None, None)]
    assert found.events is not None
    events = found.events.collect()
    assert events.schema == {
        "user_id": pl.String,
        "item_id": pl.String,
        "event": pl.String,
        "timestamp": pl.Datetime("us", "UTC"),
    }
    assert [(user, item, kind, str(time)) for user, item, kind, time in events.iter_rows()] == [
        ("u1", "7", "interaction", "2000-01-01 00:00:00+00:00"),
        ("u1", "8", "interaction", "2000-01-01 00:00:01+00:00"),
        ("u2", "7", "interaction", "2000-01-01 00:00:00+00:00"),
    ]
    assert found.origin == str(tmp_path / "s.txt")
    assert "no redistribution" in found.terms
    assert found.notes == ("timestamps are synthetic: a user's n-th event is n-1 seconds after 2000-01-01T00:00:00Z",)


def test_titles_and_genres_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "s-items.csv").write_text("item_id,title,genres\n7,Seven,a|b\n9,Nine,c\n8,Eight,\n")
    (tmp_path / "s_item2attributes.json").write_text('{"7": [1]}')  # the table has precedence
    items = extract(tmp_path).items.collect()
    assert items.rows() == [("7", "Seven", ["a", "b"]), ("8", "Eight", None)]
    assert items.schema["categories"] == pl.List(pl.String)


def test_attributes_have_no_titles(tmp_path: Path) -> None:
    (tmp_path / "s_item2attributes.json").write_text('{"8": [10, 2]}')
    items = extract(tmp_path).items.collect()
    assert items.schema == {"item_id": pl.String, "title": pl.String, "categories": pl.List(pl.String)}
    assert items.rows() == [("7", None, None), ("8", None, ["a10", "a2"])]


def test_damaged_attributes_are_named(tmp_path: Path) -> None:
    (tmp_path / "s_item2attributes.json").write_text("{")
    with pytest.raises(SourceError, match=r"s_item2attributes\.json is damaged \(.*\); fetch it again, or remove it"):
        extract(tmp_path)


def test_a_line_with_a_user_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        extract(tmp_path, "u1 7\nalone\nmore\n")
    assert str(caught.value) == f"{tmp_path}/s.txt: line 'alone' has no item; each line is `user item item …`"
