"""The customer's tables, which are read and never changed: the rows of one person."""

from pathlib import Path

import polars as pl

from features.schema import USER, DataConfig
from features.tables.columns import identifier
from features.tables.files.json_lines import LINE
from features.tables.scan import find_table, scan, tables_folder
from features.tables.validate import RawTable


def table_rows(data: DataConfig, user: str) -> dict[str, pl.DataFrame]:
    """The rows of a user in events and users, as they stand in the files: table -> rows. Raises DataError."""
    folder, rows = tables_folder(data.path), {}
    for name in ("events", "users"):
        if (path := find_table(folder, name)) is not None:
            raw = RawTable.of(name, path.name, scan(path))
            value = identifier(path.name, USER, raw.types[USER], required=True).value
            columns = [column for column in raw.types if not column.startswith(LINE)]
            rows[name] = RawTable(name, path.name, raw.rows.filter(value == user), raw.types).collect(
                *(pl.col(column) for column in columns)
            )
    return rows


def rejected_folder(data: DataConfig) -> Path:
    """Where reading the tables writes the rejected rows."""
    return tables_folder(data.path) / "rejected"
