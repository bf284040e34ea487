"""Table files: every column of a file is read, even when it first occurs in a late line."""

import json
from pathlib import Path
from typing import Any

import pytest

from features.errors import DataError
from features.schema import CONTRACT
from features.tables.files.json_lines import KEYS_FROM, LINE
from features.tables.read import EVENTS, ITEMS
from features.tables.scan import reading, scan
from features.tables.validate import RawTable


def lines(path: Path, *late: dict[str, Any], head: dict[str, Any]) -> Path:
    rows = [head | {"item_id": f"i{n}"} for n in range(KEYS_FROM)] + list(late)
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_the_contract_names_all_columns() -> None:
    assert sorted(CONTRACT) == sorted({*ITEMS, *EVENTS})


def test_a_key_that_first_occurs_after_the_head_is_read(tmp_path: Path) -> None:
    late = {"item_id": "z", "price": 2.5, "color": "red", "other": 1}
    frame = scan(lines(tmp_path / "items.jsonl", late, head={"title": "t"}), ("color", "size", "it's")).collect()
    assert frame.columns == [LINE, "title", "item_id", "price", "color"]
    assert frame.row(-1)[1:] == (None, "z", "2.5", "red")
    assert frame["price"].null_count() == KEYS_FROM


def test_a_missing_required_column_is_named_with_the_existing_ones(tmp_path: Path) -> None:
    late = {"item_id": "z", "event": "buy", "title": 'no "timestamp": here', "extra": {"timestamp": 1}}
    path = lines(tmp_path / "events.jsonl", late, head={"user_id": "u"})
    with pytest.raises(DataError, match=r"no column timestamp, which events needs.*user_id, item_id, event, title"):
        RawTable.of("events", path.name, scan(path))


@pytest.mark.parametrize("row", ['a,"b', 'a,"b\nc,d', 'a,x"y\nc,d'])
def test_an_open_quotation_mark_is_reported(tmp_path: Path, row: str) -> None:
    path = tmp_path / "items.csv"
    path.write_text(f"item_id,title\n{row}\n")
    with pytest.raises(DataError, match="a quotation mark is opened and not closed"), reading(str(path)):
        scan(path).collect(engine="streaming")
