"""The folder of the tables, `data.path`: what may stand there, and what is done where it lacks tables."""

import os
from pathlib import Path
from typing import Any

import pytest

from features.errors import DataError
from features.schema import DataConfig, EventRules
from features.tables.read import read_items, read_tables
from features.tables.sources import get


def data_config(path: Path, source: str) -> DataConfig:
    return DataConfig(source=source, path=str(path), events=EventRules(positive={"take": None}))


@pytest.mark.parametrize("source", ["folder", "movielens"])
@pytest.mark.parametrize("read", [read_tables, read_items, get])
def test_a_file_in_place_of_the_folder_of_the_tables(tmp_path: Path, read: Any, source: str) -> None:
    path = tmp_path / "items.csv"
    path.touch()
    with pytest.raises(DataError) as caught:
        read(data_config(path, source))
    assert str(caught.value) == f"data.path {path} is a file: give the folder that holds the tables"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError) as caught:
        read(data_config(path, source))
    assert str(caught.value) == f"data.path {path} is a pipe (FIFO): give the folder that holds the tables"


@pytest.mark.parametrize(
    ("source", "remedy"),
    [
        ("folder", "Put your tables there, or set data.path to them"),
        ("movielens", "Run `recsys data get` for source 'movielens', or set data.path to your own tables"),
    ],
)
def test_the_remedy_for_missing_tables(tmp_path: Path, source: str, remedy: str) -> None:
    suffixes = ".parquet or .csv or .jsonl or .ndjson"
    with pytest.raises(DataError) as caught:
        read_tables(data_config(tmp_path, source))
    assert str(caught.value) == (
        f"{tmp_path}: no file of items and events ({suffixes}); the folder has: nothing. {remedy}"
    )
    with pytest.raises(DataError) as caught:
        read_items(data_config(tmp_path, source))
    assert str(caught.value) == f"{tmp_path}: no file of items ({suffixes}); the folder has: nothing. {remedy}"
    with pytest.raises(DataError) as caught:
        read_tables(data_config(tmp_path / "gone", source))
    assert str(caught.value) == f"data.path {tmp_path}/gone: no such folder. {remedy}"
