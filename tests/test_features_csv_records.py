"""CSV files whose quoting breaks: the error names the line and its text, and no row is swallowed in silence."""

import csv
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import DataError
from features.tables.files import csv_records
from features.tables.files.csv_records import SWALLOWED, check_records
from features.tables.scan import scan


def written(folder: Path, text: str) -> Path:
    path = folder / "items.csv"
    path.write_bytes(text.encode())
    return path


def test_a_mark_deep_in_a_long_file_is_named_with_its_line(tmp_path: Path) -> None:
    rows = [f"{n},item {n}\n" for n in range(1, 20_001)]
    rows[15_000] = '15001,5" disk\n'
    rows[15_001] = '15002,7" disk\n'
    path = written(tmp_path, "item_id,title\n" + "".join(rows))
    with pytest.raises(DataError, match=r"""items\.csv: .* in line 15,002 \('15001,5" disk'\)"""):
        scan(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('1,"a\n2,b\n', r"""opened and not closed in line 2 \('1,"a'\)"""),
        ('1,a\n2,"b', r"""opened and not closed in line 3 \('2,"b'\)"""),
        ('1,a\n2,b"\n3,c\n', r"""or stands inside a field, in line 3 \('2,b"'\)"""),
        ('1,"a" b\n', "or stands inside a field, in line 2"),
        ('1,"a"b"c"\n', "or stands inside a field, in line 2"),
        ('1,"a\n2,"b"\n', r"""opened in line 2 \('1,"a'\) is closed in line 3 \('2,"b"'\), where text follows"""),
        ('1,"a\nb"\n2,x"\ny"z\n', "or stands inside a field, in line 4"),
        ('1,"a\nb" c\n', "opened in line 2 .* is closed in line 3 .*, where text follows"),
        ("1,a,b\n", r"line 2 has 3 fields, more fields than the header with 2 \('1,a,b'\)"),
        ('1,"a, b"\n2, "a, b"\n', r"line 3 has 3 fields.*with no blank before the quotation mark"),
        ('1,"a\nb",c\n', "line 2 has 3 fields"),
        ("1,a\n2,b\rc\n", "line 3 has a carriage return without a line feed"),
        ("1," + "x" * 200 + '"\n', "line 2 .*x…'"),
    ],
)
def test_the_line_is_named(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        scan(written(tmp_path, "item_id,title\n" + rows))


def test_a_field_that_swallows_rows_is_refused(tmp_path: Path) -> None:
    swallowed = "".join(f"{n},item\n" for n in range(2, 200))
    path = written(tmp_path, f'item_id,title\n1,"a\n{swallowed}200,"\n')
    with pytest.raises(DataError, match=r"""opened in line 2 \('1,"a'\) is closed only in line 201 .* swallow"""):
        scan(path)
    path = written(tmp_path, 'item_id,title\n1,"' + "a long text\n" * 500 + '"\n2,b\n')
    assert scan(path).collect().height == 2


def test_an_unclosed_mark_does_not_load_the_rest_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, 'item_id,title\n1,"a\n' + "2,a title of an item\n" * 200_000)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"""opened and not closed in line 2 \('1,"a'\)"""):
        check_records(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 4


def test_a_header_has_a_bounded_number_of_lines(tmp_path: Path) -> None:
    long = "a\n" * SWALLOWED
    assert check_records(written(tmp_path, f'item_id,"{long}"\n1,b\n')) == ["item_id", long]
    with pytest.raises(DataError, match=r"""opened and not closed in line 1 \('item_id,"a'\)"""):
        check_records(written(tmp_path, f'item_id,"{long}a\n"\n1,b\n'))


def test_only_records_that_are_not_plain_lines_are_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"{n},item\n" for n in range(1000)]
    rows[10] = '10,"a\nb ""c""\n"\n'  # lines 12 to 14
    rows[700] = '700,"a, b\n\n"\n'  # lines 704 to 706
    rows[701] = '701,"\n"\n'  # lines 707 and 708
    path = written(tmp_path, "item_id,title\n" + "".join(rows))
    read: list[int] = []
    record = csv_records._record

    def noted(path: Path, first: tuple[int, str], *rest: Any) -> tuple[int, str]:
        read.append(first[0])
        return record(path, first, *rest)

    monkeypatch.setattr(csv_records, "_record", noted)
    check_records(path)
    assert read == [1, 12, 704, 707]
    assert scan(path).collect().height == 1000


@pytest.mark.parametrize(("row", "line"), [('900,5" disk\n', 903), ("900,a,b\n", 903), ('900,"a\nb" c\n', 903)])
def test_a_fault_far_after_a_record_in_several_lines_is_named(tmp_path: Path, row: str, line: int) -> None:
    rows = [f"{n},item\n" for n in range(1000)]
    rows[10] = '10,"a\nb"\n'
    rows[900] = row
    with pytest.raises(DataError, match=rf"line {line}\b"):
        scan(written(tmp_path, "item_id,title\n" + "".join(rows)))


@pytest.mark.parametrize(
    "rows",
    [
        '1,"a, b"\n',
        '1,"a ""b"" c"\n',
        '1,"a\n\n""b"",\nc"\n2,d\n',
        '1,5"x6" disk\n',
        '1,""\n2,\n\n3\n',
        '"1","a"\r\n"2","b\r\nc"\r\n',
        '1,"a"',
        '1,a "b" c\n2,"d\ne"\n',
    ],
)
def test_what_readers_agree_on_is_read(tmp_path: Path, rows: str) -> None:
    text = "item_id,title\n" + rows
    path = written(tmp_path, text)
    expected = [[*row, "", ""][:2] for row in csv.reader(io.StringIO(text, newline=""))][1:]
    read = scan(path).collect().rows()
    assert [[field or "" for field in row] for row in read] == expected


def test_a_wide_header(tmp_path: Path) -> None:
    names = ",".join(f"c{n}" for n in range(150))
    path = written(tmp_path, f'{names},"last, one"\n' + '"1",' * 150 + "2\n")
    assert check_records(path)[-1] == "last, one"
    with pytest.raises(DataError, match="line 2 has 152 fields"):
        check_records(written(tmp_path, f'{names},"last"\n' + '"1",' * 151 + "2\n"))


PIECES = st.sampled_from(["a", '"a\nb"\n', "1,a\n", "é", " ", ",", '"', '""', "\n", "\r\n", ',"', '",', '"\n', "\r"])


@settings(max_examples=400, deadline=None)
@given(head=st.sampled_from(["x,y\n", "x\n", 'x,"y,z",w\n', '"x",y\r\n']), body=st.lists(PIECES, max_size=25))
def test_what_is_not_refused_is_read_as_by_the_standard_library(
    tmp_path_factory: pytest.TempPathFactory, head: str, body: list[str]
) -> None:
    text = head + "".join(body)
    path = written(tmp_path_factory.mktemp("csv"), text)
    try:
        names = check_records(path)
    except DataError:
        return
    expected = list(csv.reader(io.StringIO(text, newline="")))
    read = pl.scan_csv(path, infer_schema=False).collect(engine="streaming").rows()
    assert names == expected[0]
    assert [[field or "" for field in row] for row in read] == [
        row + [""] * (len(names) - len(row)) for row in expected[1:]
    ]


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.lists(st.text(), max_size=4), min_size=1, max_size=8), ascii_only=st.booleans())
def test_any_texts_come_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], ascii_only: bool
) -> None:
    path = tmp_path_factory.mktemp("csv") / "items.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "categories"])
        writer.writerows([n, json.dumps(row, ensure_ascii=ascii_only)] for n, row in enumerate(rows))
    read = scan(path).collect()
    assert [json.loads(text) for text in read.get_column("categories")] == rows
