"""Files of wrong kinds under the names of table files: each is named as what it is, with the remedy."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.orc
import pytest

from features.errors import DataError
from features.tables.files.file_format import CHUNK, check_format
from features.tables.scan import scan

CSV = "item_id,title\n1,Käse\n2,Brot\n"
JSON = '{"item_id":"1","title":"Käse"}\n{"item_id":"2","title":"Brot"}\n'


def packed(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "<x/>")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("items.csv"))
    return buffer.getvalue()


def written(write: str) -> bytes:
    buffer = io.BytesIO()
    getattr(pl.DataFrame({"item_id": ["1"]}), write)(buffer)
    return buffer.getvalue()


def orc() -> bytes:
    buffer = io.BytesIO()
    pyarrow.orc.write_table(pa.table({"item_id": ["1"]}), buffer)
    return buffer.getvalue()


def database(folder: Path) -> bytes:
    with sqlite3.connect(folder / "db") as connection:
        connection.execute("create table items (item_id)")
    return (folder / "db").read_bytes()


ANY = {
    "UTF-16 with a mark": (CSV.encode("utf-16"), "is text in UTF-16"),
    "UTF-16, big-endian, with a mark": (b"\xfe\xff" + CSV.encode("utf-16-be"), "is text in UTF-16"),
    "UTF-16 without a mark": (CSV.encode("utf-16-le"), "is text in UTF-16"),
    "UTF-16, big-endian, without a mark": (CSV.encode("utf-16-be"), "is text in UTF-16"),
    "UTF-32 with a mark": (CSV.encode("utf-32"), "is text in UTF-32"),
    "UTF-32 without a mark": (CSV.encode("utf-32-be"), "is text in UTF-32"),
    "xlsx": (packed("[Content_Types].xml", "xl/workbook.xml"), r"is an Excel workbook \(xlsx"),
    "ods": (packed("mimetype", "content.xml"), "is an OpenDocument spreadsheet"),
    "zip": (packed("items.csv"), "is a zip archive of items.csv"),
    "an empty zip": (packed(), "is a zip archive"),
    "a damaged zip": (packed("items.csv")[:30], "is a zip archive"),
    "xls": (bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600), "is an old Excel workbook"),
    "gzip": (gzip.compress(CSV.encode()), "is a gzip archive: unpack it"),
    "bzip2": (bz2.compress(CSV.encode()), "is a bzip2 archive: unpack it"),
    "xz": (lzma.compress(CSV.encode()), "is an xz archive: unpack it"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "is a zstd archive: unpack it"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(20), "is an lz4 archive: unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(20), "is a 7z archive: unpack it"),
    "rar": (b"Rar!\x1a\x07\x00", "is a RAR archive: unpack it"),
    "tar": (tarred(), "is a tar archive"),
    "feather": (written("write_ipc"), "is an Arrow file"),
    "an Arrow stream": (written("write_ipc_stream"), "is an Arrow stream"),
    "Avro": (written("write_avro"), "is an Avro file"),
    "ORC": (orc(), "is an ORC file"),
    "PDF": (b"%PDF-1.7\n", "is a PDF document"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    "NumPy": (b"\x93NUMPY\x01\x00", "is a NumPy array"),
    "pickle": (pickle.dumps({"item_id": ["1"]}), "is a Python pickle"),
    "DuckDB": (bytes(8) + b"DUCK" + bytes(8), "is a DuckDB database"),
    "R": (b"RDX3\n", "is an R workspace"),
    "PNG": (b"\x89PNG\r\n\x1a\n", "is a picture"),
    "JPEG": (b"\xff\xd8\xff\xe0", "is a picture"),
    "GIF": (b"GIF89a", "is a picture"),
    "RTF": (b"{\\rtf1\\ansi}", "is an RTF document"),
    "a program": (b"\x7fELF\x02", "is a program"),
    "HTML": (b"\n<!DOCTYPE html><html>", "is a web page"),
    "HTML without a type": (b"<html><body>404</body></html>", "is a web page"),
    "XML": (b'<?xml version="1.0"?><items/>', "is an XML document"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS: fetch the file"),
    "nothing": (b"", r"is empty \(0 bytes\)"),
}
"""Kind -> bytes that are neither parquet, CSV nor JSON lines, and what is said of them."""

TEXT = {
    "blanks": (b" \n\r\n\t\n", "holds only blanks"),
    "a mark alone": (b"\xef\xbb\xbf", "holds only blanks"),
    "parquet": (written("write_parquet"), r"is a parquet file: rename it to items.parquet"),
    "carriage returns": (CSV.replace("\n", "\r").encode(), "carriage returns alone"),
    "Latin-1": (CSV.encode("latin-1"), r"is not UTF-8: line 2 has the byte 0xE4 .*'1,Käse'"),
    "Windows-1252": ("item_id,title\n1,a\n2,“x”\n".encode("cp1252"), "line 3 has the byte 0x93"),
    "Shift JIS": ("item_id,title\n1,日本\n".encode("shift-jis"), "line 2 has the byte 0x93"),
    "a character that was cut off": ("item_id,title\n1,ä".encode()[:-1], "line 2 has the byte 0xC3"),
    "an overlong form": (b"item_id\n\xc0\xaf\n", "line 2 has the byte 0xC0"),
    "Latin-1 after much UTF-8": (("ä" * 700_000 + "\n").encode() + b"\xe4\n", "line 2 has the byte 0xE4"),
}
"""Kind -> bytes that are no text in UTF-8 with line feeds."""

OWN = {
    ("NUL bytes", ".csv"): (b"item_id,title\n1,a\n2,\x00\x00\n", "holds NUL bytes, the first in line 3"),
    ("a block of NUL bytes", ".csv"): (b"item_id\n" + b"a\n" * 5000 + bytes(4096), "the first in line 5,002"),
    ("JSON lines", ".csv"): (JSON.encode(), "is JSON: rename it to items.jsonl"),
    ("a JSON array", ".csv"): (b'[{"item_id":"1"}]', "is JSON: rename it"),
    ("semicolons", ".csv"): (b"item_id;title\n1;a\n", "separated by ';'"),
    ("semicolons and a comma", ".csv"): (b"item_id;title, long\n1;a, b\n", "separated by ';'"),
    ("tabs", ".csv"): (b"item_id\ttitle\n1\ta\n", r"separated by '\\t'"),
    ("bars", ".csv"): (b"item_id|title\n1|a\n", r"separated by '\|'"),
    ("Hive's separator", ".csv"): (b"item_id\x01title\n1\x01a\n", r"separated by '\\x01'"),
    ("blanks between", ".csv"): (b"item_id title\n1 a\n", "separated by ' '"),
    ("colons", ".csv"): (b"item_id:title\n1:a\n", "separated by ':'"),
    ("a column twice", ".csv"): (b"item_id,title,title\n1,a,b\n", "has the column 'title' twice"),
    ("mixed line ends", ".csv"): (b"item_id,title\n1,a\r2,b\n3,c\n", "line 2 has a carriage return without"),
    ("two carriage returns", ".csv"): (b"item_id,title\r\r\n1,a\r\r\n", "line 1 has a carriage return without"),
    ("one JSON array", ".jsonl"): (json.dumps([{"item_id": "1"}], indent=1).encode(), "is one JSON array"),
    ("an empty array", ".jsonl"): (b"[]", "is one JSON array"),
    ("one object over lines", ".jsonl"): (json.dumps({"item_id": "1"}, indent=1).encode(), "is a JSON object"),
    ("CSV", ".jsonl"): (CSV.encode(), "none of the first 1000 lines is a JSON object"),
    ("Latin-1", ".jsonl"): (JSON.encode("latin-1"), "is not UTF-8: line 1 has the byte 0xE4"),
    ("CSV", ".parquet"): (CSV.encode(), "is no parquet file, it begins with b'item_id,title"),
    ("JSON lines", ".parquet"): (JSON.encode(), "is no parquet file"),
    ("a few bytes", ".parquet"): (b"PAR1", "was cut off"),
    ("no footer", ".parquet"): (written("write_parquet")[:-8], "was cut off"),
    ("half", ".parquet"): (written("write_parquet")[:60], "was cut off"),
    ("a wrong footer", ".parquet"): (b"PAR1" + b"\xff" * 50 + b"\x20\x00\x00\x00PAR1", "cannot be read as parquet"),
    ("an encrypted footer", ".parquet"): (b"PAR1" + bytes(50) + b"\x20\x00\x00\x00PARE", "is encrypted"),
    ("encrypted", ".parquet"): (b"PARE" + bytes(50) + b"\x20\x00\x00\x00PARE", "is encrypted"),
    ("no columns", ".parquet"): (b"", "is empty"),
}
"""(kind, suffix) -> bytes that are wrong under this suffix."""

CASES = [
    *(
        (f"{kind} as {suffix}", suffix, *case)
        for kind, case in ANY.items()
        for suffix in (".csv", ".jsonl", ".parquet")
    ),
    *((f"{kind} as {suffix}", suffix, *case) for kind, case in TEXT.items() for suffix in (".csv", ".ndjson")),
    *((f"{kind} as {suffix}", suffix, *case) for (kind, suffix), case in OWN.items()),
]


@pytest.mark.parametrize(("suffix", "data", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_a_file_is(tmp_path: Path, suffix: str, data: bytes, message: str) -> None:
    path = tmp_path / f"items{suffix}"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"(?s)items\{suffix}.*{message}" if "items" not in message else message):
        scan(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_database_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"items{suffix}"
    path.write_bytes(database(tmp_path))
    with pytest.raises(DataError, match=rf"items\{suffix} is an SQLite database"):
        scan(path)


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        (".csv", CSV.encode()),
        (".csv", b"\xef\xbb\xbf" + CSV.encode()),
        (".csv", CSV.replace("\n", "\r\n").encode()),
        (".csv", b"item_id,title\r\n1,a\n2,b\r\n"),
        (".csv", b"item_id"),
        (".csv", "item_id,title\n1,😀\n".encode() * 3),
        (".csv", b'item_id,title\n1,"[x]"\n'),
        (".jsonl", JSON.encode()),
        (".jsonl", b"\xef\xbb\xbf" + JSON.encode()),
        (".jsonl", b'\n[1, 2]\n{"item_id":"1"}'),
        (".ndjson", JSON.replace("\n", "\r\n").encode()),
        (".parquet", written("write_parquet")),
    ],
)
def test_what_is_read(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"items{suffix}"
    path.write_bytes(data)
    check_format(path)
    assert "item_id" in scan(path).collect().columns


def test_a_character_across_two_chunks_is_read(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_bytes(b"item_id\n" + b"x" * ((1 << 20) - 9) + "ä\n".encode())
    check_format(path)
    path.write_bytes(b"item_id\n" + b"x" * ((1 << 20) - 9) + b"\xc3\n")
    with pytest.raises(DataError, match="line 2 has the byte 0xC3"):
        check_format(path)


@pytest.mark.parametrize("chunks", [1, 2])
def test_half_a_character_at_the_end_of_a_chunk_and_of_the_file(tmp_path: Path, chunks: int) -> None:
    path = tmp_path / "items.csv"
    path.write_bytes(b"item_id\n" + b"x" * (chunks * CHUNK - 10) + b"\xe2\x82")
    with pytest.raises(DataError, match="line 2 has the byte 0xE2"):
        check_format(path)
    path.write_bytes(b"item_id\n" + b"x" * (chunks * CHUNK - 10) + "ä".encode())
    check_format(path)
