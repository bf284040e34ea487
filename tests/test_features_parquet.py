"""Parquet files with types that polars cannot read, and damaged ones: values or a DataError, never a panic."""

import random
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import DataError
from features.schema import DataConfig
from features.tables.read import read_tables
from features.tables.scan import reading, scan

NOON = datetime(2024, 5, 1, 6, 30, tzinfo=UTC)
MICROS = int(NOON.timestamp() * 1e6)


def zoned(zone: str, unit: str = "us") -> pa.Array:
    return pa.array([NOON, None], pa.timestamp(unit, zone))


def written(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def config(folder: Path, **more: Any) -> DataConfig:
    events, placements = {"positive": {"take": None}}, {"home": {"repeats": False}}
    told = {"source": "folder", "path": str(folder), "events": events, "placements": placements}
    return DataConfig.model_validate(told | more)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize(
    "zone", ["+05:30", "-08:30", "+00:00", "-0830", "Z", "UTC+1", "Mars/Olympus", "Europe/Berlin", "UTC", "Etc/GMT+5"]
)
def test_the_instants_of_any_zone_are_read(tmp_path: Path, zone: str, unit: str) -> None:
    time = zoned(zone, unit)
    written(tmp_path / "items.parquet", item_id=["a", "b"], published_at=time, other=time)
    events = {"user_id": ["u", "v"], "item_id": ["a", "b"], "event": ["take"] * 2}
    written(tmp_path / "events.parquet", **events, timestamp=pa.array([NOON] * 2, pa.timestamp(unit, zone)))
    tables = read_tables(config(tmp_path, extra_columns=("other",)))
    assert tables.events.get_column("timestamp").to_list() == [NOON] * 2
    assert tables.items.get_column("published_at").to_list() == [NOON, None]
    assert tables.items.get_column("other").dt.convert_time_zone("UTC").to_list() == [NOON, None]
    assert tables.report.problems == ()


OFFSET = pa.timestamp("us", "+05:30")
TYPES: dict[str, tuple[pa.Array, list[Any]]] = {
    "a list of times": (pa.array([[MICROS], None], pa.list_(OFFSET)), [[NOON], None]),
    "a list of fixed length": (pa.array([[MICROS], [MICROS]], pa.list_(OFFSET, 1)), [[NOON], [NOON]]),
    "a struct of times": (pa.array([{"a": MICROS}, None], pa.struct([("a", OFFSET)])), [{"a": NOON}, None]),
    "a map of times": (pa.array([[("a", MICROS)], None], pa.map_(pa.string(), OFFSET)), [{"a": NOON}, None]),
    "a dictionary of times": (zoned("+05:30").dictionary_encode(), [NOON, None]),
    "a dictionary of integers": (pa.array([1, None]).dictionary_encode(), [1, None]),
    "a dictionary of texts": (pa.array(["a", None]).dictionary_encode(), ["a", None]),
    "76 digits": (pa.array([Decimal("1.5"), None], pa.decimal256(76, 2)), [1.5, None]),
    "38 digits": (pa.array([Decimal("1.50"), None], pa.decimal128(38, 2)), [Decimal("1.50"), None]),
    "a list view": (pa.array([["a"], None], pa.list_view(pa.string())), [["a"], None]),
    "a map": (pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())), [{"a": 1}, None]),
    "half floats": (pa.array([1.5, None], pa.float16()), [1.5, None]),
    "large text": (pa.array(["a", None], pa.large_string()), ["a", None]),
    "a text view": (pa.array(["a", None], pa.string_view()), ["a", None]),
    "bytes of fixed length": (pa.array([b"ab", None], pa.binary(2)), [b"ab", None]),
    "a UUID": (pa.array([b"a" * 16, None], pa.uuid()), [b"a" * 16, None]),
    "JSON": (pa.array(["{}", None], pa.json_()), ["{}", None]),
    "a boolean in 8 bits": (pa.array([1, None], pa.bool8()), [1, None]),
    "nulls": (pa.nulls(2), [None, None]),
}


@pytest.mark.parametrize("kind", TYPES)
def test_any_type_is_read(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    column, expected = TYPES[kind]
    frame = scan(written(tmp_path / "items.parquet", item_id=["a", "b"], other=column))
    assert frame.collect(engine="streaming").get_column("other").to_list() == expected
    assert frame.select(pl.len()).collect().item() == 2
    assert frame.select("item_id").filter(pl.col("item_id") == "b").head(1).collect().rows() == [("b",)]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ["item_id", "title", "categories", "price", "published_at", "available"])
def test_any_type_in_any_column_gives_values_or_an_error(
    tmp_path: Path, kind: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    ids = {} if name == "item_id" else {"item_id": ["a", "b"]}
    written(tmp_path / "items.parquet", **ids, **{name: TYPES[kind][0]})
    times = pa.array([NOON], pa.timestamp("us", "UTC"))
    written(tmp_path / "events.parquet", user_id=["u"], item_id=["a"], event=["take"], timestamp=times)
    with suppress(DataError):
        read_tables(config(tmp_path))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", [pa.list_(OFFSET, 1), pa.large_list_view(pa.string())])
def test_a_type_that_arrow_cannot_read_back_is_an_error_of_the_file(tmp_path: Path, kind: pa.DataType) -> None:
    frame = scan(written(tmp_path / "items.parquet", item_id=["a", "b"], other=pa.array([None, None], kind)))
    with (
        pytest.raises(DataError, match=r"items.parquet cannot be read: .*: write the file again"),
        reading("items.parquet"),
    ):
        frame.collect()
    assert frame.select("item_id").collect().height == 2


@pytest.mark.parametrize("time", [zoned("+05:30"), zoned("UTC")])
def test_rows_are_counted_without_their_columns(tmp_path: Path, time: pa.Array) -> None:
    frame = scan(written(tmp_path / "items.parquet", published_at=pa.concat_arrays([time, time, time])))
    assert frame.with_row_index().select("index").collect().to_series().to_list() == [0, 1, 2, 3, 4, 5]
    assert frame.with_row_index().select("index").head(4).collect().height == 4
    assert frame.select(pl.len()).collect().item() == 6


def test_a_number_of_76_digits_is_a_float(tmp_path: Path) -> None:
    wide = pa.array([Decimal(10) ** 75], pa.decimal256(76, 0))
    frame = scan(written(tmp_path / "items.parquet", item_id=["a"], price=wide))
    assert frame.collect().get_column("price").to_list() == [1e75]


def test_no_columns_and_repeated_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"items.parquet has no columns"):
        scan(written(tmp_path / "items.parquet"))
    pq.write_table(pa.table([pa.array(["a"])] * 2, names=["item_id"] * 2), tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"items.parquet has the column 'item_id' twice; rename one"):
        scan(tmp_path / "items.parquet")


def test_an_encrypted_file(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    pl.DataFrame({"item_id": ["a"]}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-4] + b"PARE")
    with pytest.raises(DataError, match=r"items.parquet is encrypted: write it without encryption"):
        scan(path)


def test_a_damaged_later_row_group_is_an_error_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(3000)]})
    items.write_parquet(path, row_group_size=1000)
    start = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 200] = b"\xff" * 200
    path.write_bytes(bytes(data))
    times = pa.array([NOON], pa.timestamp("us", "UTC"))
    written(tmp_path / "events.parquet", user_id=["u"], item_id=["i1"], event=["take"], timestamp=times)
    with pytest.raises(DataError, match=r"items.parquet cannot be read: .*write the file again"):
        read_tables(config(tmp_path))


@pytest.mark.parametrize("offset", [False, True])
def test_damaged_bits_give_values_or_an_error(tmp_path: Path, offset: bool) -> None:
    path = tmp_path / "items.parquet"
    zone = "+05:30" if offset else "UTC"
    columns = {"item_id": [f"i{n}" for n in range(600)], "categories": [["a", "b"]] * 600}
    times = pa.array([NOON] * 600, pa.timestamp("us", zone))
    pq.write_table(pa.table({**columns, "published_at": times}), path, row_group_size=200)
    data, draw = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(100):
        damaged = bytearray(data)
        for _ in range(draw.choice([1, 1, 3, 20])):
            damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged[: draw.randrange(len(data))] if draw.random() < 0.2 else damaged)
        try:
            with reading(path.name):
                scan(path).collect(engine="streaming")
        except DataError:
            refused += 1
    assert refused > 20
