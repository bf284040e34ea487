"""Parquet files as LazyFrames. Types that polars cannot read are converted by Arrow on the way.

polars panics, rather than raises, on some types and on some damaged files. So Arrow reads the schema first.
"""

import base64
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.io.plugins import register_io_source

from features.errors import DataError, detail
from features.files import not_a_file

PRECISION = 38
"""Digits of the widest decimal number that polars has."""


def scan_parquet(path: Path) -> pl.LazyFrame:
    """A LazyFrame of a parquet file. A time zone that polars does not know, such as +05:30, is read as UTC.

    Parquet stores a zoned time as an instant, and its zone for display only: the instants stay what they are.
    Raises DataError when there is no such file, when it is damaged or encrypted, has no columns, or names a column
    twice.
    """
    if wrong := not_a_file(path):
        raise DataError(f"{path}: {wrong}")
    try:
        with path.open("rb") as opened, pq.ParquetFile(opened) as file:  # Arrow has its own words where opening fails
            schema, metadata = file.schema_arrow, file.metadata
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the operating system's: it names path and reason
        raise DataError(_unreadable(path, error)) from error
    if not schema.names:
        raise DataError(f"{path} has no columns; write the table again")
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise DataError(f"{path} has the column {twice[0]!r} twice; rename one of them")
    groups = [metadata.row_group(k) for k in range(metadata.num_row_groups)]
    if sum(group.num_rows for group in groups) != metadata.num_rows:
        raise DataError(f"{path} is damaged: footer and row groups differ in their numbers of rows; write it again")
    if _polars_reads(schema, metadata.metadata or {}):
        return pl.scan_parquet(path)
    return _scan_arrow(path, pa.schema([pa.field(field.name, _converted(field.type)) for field in schema]))


def _polars_reads(schema: pa.Schema, metadata: dict[bytes, bytes]) -> bool:
    """Whether polars reads a file. It goes by the schema that the writer embedded, where Arrow may not."""
    try:
        embedded = metadata.get(b"ARROW:schema")
        written = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(embedded))) if embedded else schema
    except (OSError, ValueError, pa.ArrowException):
        return False
    return all(_is_plain(field.type) for field in (*schema, *written))


def _unreadable(path: Path, error: Exception) -> str:
    """What is wrong with a parquet file that Arrow cannot open."""
    with path.open("rb") as file:
        begin = file.read(4)
        file.seek(max(0, path.stat().st_size - 4))
        end = file.read()
    if begin not in (b"PAR1", b"PARE"):
        return f"{path} is no parquet file, it begins with {begin!r}: name one, or write it again"
    if "encrypt" in str(error) or end == b"PARE":
        return f"{path} is encrypted: write it without encryption"
    if end != b"PAR1" or path.stat().st_size < 12:
        return f"{path} is a parquet file without its end: it was cut off; copy or write it again"
    return f"{path} cannot be read as parquet, for it is damaged: copy or write it again{detail(error)}"


def _is_plain(kind: pa.DataType) -> bool:
    """Whether polars reads the type."""
    if isinstance(kind, pa.TimestampType):
        return kind.tz is None or _is_zone(kind.tz)
    if pa.types.is_decimal(kind):
        return bool(kind.precision <= PRECISION)
    if isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        return _is_plain(kind.value_type)
    if isinstance(kind, pa.StructType):
        return all(_is_plain(kind.field(k).type) for k in range(kind.num_fields))
    if isinstance(kind, pa.MapType):
        return _is_plain(kind.key_type) and _is_plain(kind.item_type)
    if isinstance(kind, pa.DictionaryType):
        return _is_plain(kind.value_type)
    return pa.types.is_primitive(kind) or kind in PLAIN or pa.types.is_fixed_size_binary(kind)


PLAIN = {
    *(pa.null(), pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view()),
}
"""Types of variable size that polars reads."""


def _is_zone(zone: str) -> bool:
    """Whether polars knows a time zone."""
    try:
        pl.Series([0]).cast(pl.Datetime("us", zone))
    except pl.exceptions.PolarsError:
        return False
    return True


def _converted(kind: pa.DataType) -> pa.DataType:
    """The type that polars reads in place of another."""
    if isinstance(kind, pa.BaseExtensionType):
        return _converted(kind.storage_type)
    if isinstance(kind, pa.DictionaryType):
        return kind if _is_plain(kind) else _converted(kind.value_type)
    if isinstance(kind, pa.TimestampType) and not _is_plain(kind):
        return pa.timestamp(kind.unit, "UTC")
    if pa.types.is_decimal(kind) and not _is_plain(kind):
        return pa.float64()
    if isinstance(kind, pa.ListType | pa.LargeListType | pa.ListViewType | pa.LargeListViewType):
        return pa.large_list(_converted(kind.value_type))
    if isinstance(kind, pa.FixedSizeListType):
        return pa.list_(_converted(kind.value_type), kind.list_size)
    if isinstance(kind, pa.StructType):
        return pa.struct([(kind.field(k).name, _converted(kind.field(k).type)) for k in range(kind.num_fields)])
    if isinstance(kind, pa.MapType):
        return pa.map_(_converted(kind.key_type), _converted(kind.item_type))
    return kind


def _scan_arrow(path: Path, schema: pa.Schema) -> pl.LazyFrame:
    """The columns of a file, converted to other types batch by batch."""

    def batches(
        columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        with pq.ParquetFile(path) as file:
            names = schema.names if columns is None else columns
            for batch in file.iter_batches(columns=names, **({"batch_size": batch_size} if batch_size else {})):
                frame = _frame(path, pa.Table.from_batches([batch]).select(names), schema)
                if n_rows is not None:
                    frame, n_rows = frame.head(n_rows), n_rows - min(n_rows, len(frame))
                yield frame if predicate is None else frame.filter(predicate)
                if n_rows == 0:
                    return

    types = _frame(path, schema.empty_table(), schema).schema
    return register_io_source(batches, schema=types, is_pure=True)


def _frame(path: Path, table: pa.Table, schema: pa.Schema) -> pl.DataFrame:
    columns = {}
    for name in table.column_names:
        try:
            columns[name] = table.column(name).cast(schema.field(name).type)
        except pa.ArrowException as error:
            raise DataError(
                f"{path}: {name} has type {table.schema.field(name).type}, which cannot be read; cast the column, "
                f"or leave it out{detail(error)}"
            ) from error
    if not columns:
        return pl.DataFrame(height=table.num_rows)
    frame = pl.from_arrow(pa.table(columns))
    assert isinstance(frame, pl.DataFrame)
    return frame
