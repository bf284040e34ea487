"""JSON lines: escapes, types and digits of every field; what is no text, no id or no JSON is reported."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import DataError
from features.schema import DataConfig
from features.tables.files import json_lines
from features.tables.files.json_lines import LINE
from features.tables.read import Tables, read_tables
from features.tables.scan import scan

EVENT = {"user_id": "u", "item_id": "1", "event": "take", "timestamp": "2024-05-01T12:00:00Z"}
TEXTS = ("title", "description", "image", "audio", "video", "group_id")


def config(folder: Path, **more: Any) -> DataConfig:
    events, placements = {"positive": {"take": None}}, {"home": {"repeats": False}}
    told = {"source": "folder", "path": str(folder), "events": events, "placements": placements}
    return DataConfig.model_validate(told | more)


def read(folder: Path, items: list[str], events: list[str] | None = None, **more: Any) -> Tables:
    """The tables of lines as written."""
    folder.mkdir(exist_ok=True)
    (folder / "items.jsonl").write_text("".join(line + "\n" for line in items), encoding="utf-8")
    (folder / "events.jsonl").write_text("".join(line + "\n" for line in events or [json.dumps(EVENT)]))
    return read_tables(config(folder, **more))


def problems(tables: Tables) -> list[tuple[str, str, int]]:
    return [(problem.reason, problem.action, problem.count) for problem in tables.report.problems]


ESCAPES = {
    r"caf\u00e9": "café",
    r"\ud83d\ude00": "😀",
    r"a\nb\tc": "a\nb\tc",
    r"\"quoted\" \\ \/": '"quoted" \\ /',
    "日本": "日本",
    r"\u2028": "\u2028",
    "it's $['a'].b": "it's $['a'].b",
}


@pytest.mark.parametrize("written", ESCAPES)
@pytest.mark.parametrize("name", [*TEXTS, "categories", "colour.of \"it's\\"])
def test_escapes_are_decoded_in_every_column(tmp_path: Path, written: str, name: str) -> None:
    value = f'["{written}"]' if name == "categories" else f'"{written}"'
    expected = ESCAPES[written]
    tables = read(tmp_path, [f'{{"item_id":"1",{json.dumps(name)}:{value}}}'], extra_columns=(name,))
    if name == "categories":
        assert tables.items.get_column(name).to_list() == [[expected] if expected.strip() else []]
    elif name in ("image", "audio", "video", "group_id"):  # there is no such file; control characters are no id
        assert scan(tmp_path / "items.jsonl").collect().get_column(name).to_list() == [expected]
    else:
        assert tables.items.get_column(name).to_list() == [expected]


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ("7", "7"),
        ('"7"', "7"),
        ('"007"', "007"),
        ("-7", "-7"),
        ("9007199254740993", "9007199254740993"),
        ("18446744073709551615", "18446744073709551615"),
        ("18446744073709551616", "18446744073709551616"),
        ("-9223372036854775809", "-9223372036854775809"),
        ("1" * 400, "1" * 400),
        (r'"\u0061\u00e9"', "aé"),
        ("7.0", "7"),
        ("1e3", "1000"),
        ('"1.5"', "1.5"),
        ('"true"', "true"),
    ],
)
def test_ids_keep_their_digits(tmp_path: Path, written: str, read_as: str) -> None:
    event = json.dumps(EVENT).replace('"1"', written).replace('"u"', written)
    tables = read(tmp_path, [f'{{"item_id":{written}}}'], [event])
    assert tables.items.get_column("item_id").to_list() == [read_as]
    assert tables.events.select("user_id", "item_id").row(0) == (read_as, read_as)
    whole = written in ("7.0", "1e3")
    assert len([n for n in tables.report.notes if "holds floats; 1.0 is read as '1'" in n]) == (3 if whole else 0)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        *((value, "{} not text or an integer") for value in ("true", "false", "{}", '{"$oid":"5f"}', "[]", '["x"]')),
        *((value, "{} not a whole number") for value in ("1.5", "9007199254740992.0", "1e400", "-1E-3")),
        (r'"\ud800"', "{} with half a character"),
        ("NaN", "{}: NaN is no JSON"),
        ("-Infinity", "{}: NaN is no JSON"),
        ("null", "null {}"),
        ('""', "null {}"),
    ],
)
@pytest.mark.parametrize("name", ["user_id", "item_id"])
def test_what_is_no_id_is_rejected(tmp_path: Path, written: str, reason: str, name: str) -> None:
    bad = json.dumps(EVENT | {name: "@"}).replace('"@"', written)
    tables = read(tmp_path, ['{"item_id":"1"}'], [json.dumps(EVENT), bad])
    assert problems(tables) == [(reason.format(name), "rejected", 1)]
    assert tables.report.problems[0].places == ("events.jsonl row 2",)
    rejected = pl.read_parquet(tmp_path / "rejected" / "events.parquet")
    assert rejected.get_column(LINE).to_list() == [bad]
    assert [name for name in rejected.columns if name.startswith(LINE)] == [LINE]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ('{"a":1}', "{} is an object or an array"),
        ("[]", "{} is an object or an array"),
        (r'"a\udc00"', "{} with half a character"),
        ("Infinity", "{}: NaN is no JSON"),
    ],
)
def test_what_is_no_text_is_null_and_reported(tmp_path: Path, name: str, written: str, reason: str) -> None:
    tables = read(tmp_path, [f'{{"item_id":"1","{name}":{written}}}'])
    assert tables.items.get_column(name).to_list() == [None]
    assert problems(tables) == [(reason.format(name), "repaired", 1)]


@pytest.mark.parametrize(
    ("written", "read_as"),
    [("true", "true"), ("7", "7"), ("1.50", "1.50"), ("1e999", "1e999"), ("18446744073709551616",) * 2],
)
def test_scalars_in_texts_stay_as_written(tmp_path: Path, written: str, read_as: str) -> None:
    tables = read(tmp_path, [f'{{"item_id":"1","title":{written}}}'])
    assert tables.items.get_column("title").to_list() == [read_as]


@pytest.mark.parametrize("written", ["NaN", "Infinity", "1e999", "true", "[1]", '{"a":1}', '"x"', r'"\ud800"'])
def test_what_is_no_number_is_null_and_reported(tmp_path: Path, written: str) -> None:
    tables = read(tmp_path, [f'{{"item_id":"1","price":{written}}}', '{"item_id":"2","price":2.5}'])
    assert tables.items.get_column("price").to_list() == [None, 2.5]
    assert [(action, count) for _, action, count in problems(tables)] == [("repaired", 1)]


@pytest.mark.parametrize(
    ("written", "labels", "reason"),
    [
        (r'["caf\u00e9", "C:\\dir", "tab\there"]', ["café", "C:\\dir", "tab\there"], None),
        ('["a", 1, 2.50, null, true]', ["a", "1", "2.50", "true"], None),
        ("[18446744073709551616]", ["18446744073709551616"], None),
        ('"A|B"', ["A", "B"], None),
        ('"[\'A\', \\"B\'s\\"]"', ["A", "B's"], None),
        ("[]", [], None),
        ("null", None, None),
        ("5", ["5"], None),
        ('{"a":1}', None, "categories is an object"),
        ('[["a"]]', None, "categories in brackets but no list of text"),
        ('["a", NaN]', None, "categories: NaN is no JSON"),
        (r'["a", "\ud800"]', None, "categories with half a character"),
    ],
)
def test_categories(tmp_path: Path, written: str, labels: list[str] | None, reason: str | None) -> None:
    tables = read(tmp_path, [f'{{"item_id":"1","categories":{written}}}'])
    assert tables.items.get_column("categories").to_list() == [labels]
    assert problems(tables) == ([(reason, "repaired", 1)] if reason else [])


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "7",
        '"text"',
        "null",
        '{"item_id":"2"',
        '{"item_id":"2"} {"item_id":"3"}',
        '{"item_id":01}',
        "{'item_id':'2'}",
        '{"item_id":"2",}',
        '{"item_id":"a\tb"}',
        '{"item_id":"\x00"}',
        '{"item_id":' + "[" * 5000 + "]" * 5000 + "}",
    ],
)
def test_a_line_that_is_no_object_is_rejected(tmp_path: Path, line: str) -> None:
    tables = read(tmp_path, ['{"item_id":"1"}', line])
    assert problems(tables) == [("not a JSON object", "rejected", 1)]
    assert tables.report.problems[0].places == ("items.jsonl row 2",)


def test_an_empty_object_has_no_id(tmp_path: Path) -> None:
    assert problems(read(tmp_path, ['{"item_id":"1"}', "{}"])) == [("null item_id", "rejected", 1)]


def test_of_a_key_that_occurs_twice_the_last_counts(tmp_path: Path) -> None:
    tables = read(tmp_path, ['{"item_id":"1","title":"a","title":"b"}', '{"item_id":"2","title":1e5,"title":"c"}'])
    assert tables.items.get_column("title").to_list() == ["b", "c"]


def test_nested_values_of_other_columns_are_json_text(tmp_path: Path) -> None:
    value = '{"a":[18446744073709551616,1.50,"é"],"b":null}'
    tables = read(tmp_path, [f'{{"item_id":"1","more":{value}}}'], extra_columns=("more",))
    assert tables.items.get_column("more").to_list() == [value]


def test_a_reserved_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the key '__line__x' begins with __line__, which is reserved; rename it"):
        read(tmp_path, ['{"item_id":"1","__line__x":1}'])


def test_an_escaped_key_names_the_same_column(tmp_path: Path) -> None:
    tables = read(tmp_path, [r'{"\u0069tem_id":"1"}'])
    assert tables.items.get_column("item_id").to_list() == ["1"]


def test_rows_are_counted_without_their_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.tables.files.json_lines.BATCH", 30)
    path = tmp_path / "items.jsonl"
    path.write_text('{"item_id": "a"}\n' * 5)
    frame = scan(path)
    assert frame.with_row_index().select("index").collect().to_series().to_list() == [0, 1, 2, 3, 4]
    assert frame.with_row_index().select("index").head(3).collect().height == 3
    assert frame.select(pl.len()).collect().item() == 5


def test_fields_without_faults_are_not_converted_to_find_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[str] = []
    texts = json_lines._Batch.texts

    def noted(batch: json_lines._Batch, name: str) -> list[str | None]:
        converted.append(name)
        return texts(batch, name)

    monkeypatch.setattr(json_lines._Batch, "texts", noted)
    path = tmp_path / "items.jsonl"
    path.write_text('{"item_id":1,"title":"a","price":1.5,"group_id":1.5}\n{"item_id":2,"categories":["a"]}\n')
    scan(path)
    assert converted == ["group_id", "categories"]


def test_rows_in_several_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.tables.files.json_lines.BATCH", 50)
    rows = [f'{{"item_id":"{n}"}}' for n in range(100)] + ['{"item_id":"x","title":{}}', '{"item_id":true}']
    tables = read(tmp_path, rows)
    assert tables.items.get_column("item_id").to_list() == [*map(str, range(100)), "x"]
    assert [p.places for p in tables.report.problems] == [("items.jsonl row 102",), ("items.jsonl row 101",)]
    assert scan(tmp_path / "items.jsonl").head(70).collect().height == 70


WITHOUT_NULL = st.characters(codec="utf-8", exclude_characters="\0")
"""Texts with a null character are left out and reported."""


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.lists(st.text(WITHOUT_NULL), max_size=4), min_size=1, max_size=8), ascii_only=st.booleans())
def test_any_texts_come_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], ascii_only: bool
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    objects = [
        {"item_id": str(n), "title": " ".join(row), "categories": row, "more": row} for n, row in enumerate(rows)
    ]
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in objects]
    tables = read(folder, lines, [json.dumps(EVENT | {"item_id": "0"})], extra_columns=("more",))
    strip = pl.Series(rows, dtype=pl.List(pl.String))
    expected = strip.list.eval(pl.element().str.strip_chars()).list.eval(pl.element().filter(pl.element() != ""))
    assert tables.items.get_column("categories").to_list() == expected.to_list()
    assert tables.items.get_column("title").to_list() == [" ".join(row) or None for row in rows]
    assert [json.loads(text) for text in tables.items.get_column("more")] == rows


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(-(10**40), 10**40), min_size=1, max_size=10, unique=True))
def test_any_integer_is_an_id_as_written(tmp_path_factory: pytest.TempPathFactory, ids: list[int]) -> None:
    folder = tmp_path_factory.mktemp("ids")
    events = [json.dumps(EVENT | {"item_id": n}) for n in ids]
    tables = read(folder, [json.dumps({"item_id": n}) for n in ids], events)
    assert tables.items.get_column("item_id").to_list() == list(map(str, ids))
    assert tables.events.get_column("item_id").to_list() == list(map(str, ids))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_characters="\0")),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.dictionaries(st.sampled_from(["item_id", "title", "categories", "price", "é"]), VALUES)))
def test_no_value_is_lost_in_silence(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    """Each row is kept or rejected, and each price and title that is kept as null was null or is reported."""
    folder = tmp_path_factory.mktemp("any")
    rows = [{"item_id": "1", "title": "t", "price": 1.0}, *rows]
    tables = read(folder, list(map(json.dumps, rows)))
    count = tables.report.counts[0]
    assert count.read == len(rows) == count.kept + count.rejected
    path = folder / "rejected" / "items.parquet"
    rejected = set(pl.read_parquet(path).get_column("row")) if count.rejected else set()
    kept = [row for number, row in enumerate(rows, 1) if number not in rejected]
    for name in ("title", "price", "categories"):
        values = zip(kept, tables.items.get_column(name), strict=True)
        lost = sum(row.get(name) not in (None, "") and value is None for row, value in values)
        reported = sum(
            p.count for p in tables.report.problems if p.action == "repaired" and p.reason.startswith(name)
        )
        assert lost == reported
