"""The rule of ids, and the map between ids and rows."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError
from features.ids import IdMap, id_error
from features.schema import DataConfig, EventRules
from features.tables.columns import identifier
from features.tables.read import check_tables

names = st.lists(st.text(min_size=1, max_size=5).filter(lambda s: s.isprintable()), unique=True, max_size=30)


def test_rows_and_unknowns() -> None:
    ids = IdMap(("b", "a", "é"))
    assert len(ids) == 3
    assert [ids.row("b"), ids.row("é"), ids.row("x")] == [0, 2, -1]
    assert "a" in ids
    assert "x" not in ids
    assert ids.rows(["a", "x", "b"]).tolist() == [1, -1, 0]
    assert ids.rows_of(pl.Series(["é", None, "x", "b"])).tolist() == [2, -1, -1, 0]
    assert ids.rows([]).dtype == ids.rows_of(pl.Series([], dtype=pl.String)).dtype == "int64"


def test_an_id_that_occurs_twice_is_named() -> None:
    with pytest.raises(DataError, match="id 'b' occurs twice among 4 ids"):
        IdMap(("a", "b", "c", "b"))


def test_shuffling_is_by_seed_alone_and_hides_the_order() -> None:
    ids = [str(i) for i in range(1000)]
    shuffled = IdMap.shuffled(ids, seed=3)
    assert shuffled == IdMap.shuffled(reversed([*ids, *ids]), seed=3)
    assert shuffled != IdMap.shuffled(ids, seed=4)
    assert sorted(shuffled.ids) == sorted(ids)
    following = sum(shuffled.row(str(i + 1)) == shuffled.row(str(i)) + 1 for i in range(999))
    assert following < 10, "about one pair of consecutive ids in a thousand stays consecutive by chance"


@given(names)
def test_ids_map_to_rows_and_back(ids: list[str]) -> None:
    mapped = IdMap(tuple(ids))
    assert mapped.rows(ids).tolist() == list(range(len(ids)))
    assert mapped.rows_of(pl.Series(ids, dtype=pl.String)).tolist() == list(range(len(ids)))


def refusal(text: str) -> str | None:
    """Why the tables refuse an id: the name of the first violation, None when they accept it."""
    rule = identifier("file", "id", pl.String(), required=True)
    conditions = {violation.reason: violation.condition for violation in rule.violations}
    row = pl.DataFrame({"id": [text]}, schema={"id": pl.String}).select(**conditions).row(0, named=True)
    return next((reason for reason, holds in row.items() if holds), None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("a\nb", "with control characters (U+000A)"),
        ("\x1f", "with control characters (U+001F)"),
        ("a\x7f", "with control characters (U+007F)"),
        ("\x9f", "with control characters (U+009F)"),
        ("a\u2028", "with control characters (U+2028)"),
        ("\u2029", "with control characters (U+2029)"),
        ("\ud800", "with control characters (U+D800)"),
        ("é" * 257, "too long (514 bytes)"),
        (".", "that no URL can hold ('.')"),
        ("..", "that no URL can hold ('..')"),
    ],
)
def test_an_id_that_cannot_travel_is_refused_with_the_reason(text: str, reason: str) -> None:
    assert id_error(text).startswith(f"{reason}: ")
    assert len(id_error(text).removeprefix(f"{reason}: ")) > 10


IDS = (
    "x/similar",
    "...",
    ".a",
    "a b",
    " a ",
    "%ff",
    "%2F",
    "a?b#c",
    "+",
    "é",
    "e\u0301",
    "\u00a0",
    "😀",
    "é" * 256,
    "\ufffe",
)


@pytest.mark.parametrize("text", IDS)
def test_other_text_is_an_id(text: str) -> None:
    assert id_error(text) == ""
    assert refusal(text) is None


@given(st.one_of(st.text(max_size=12), st.text(min_size=120, max_size=600), st.sampled_from([".", "..", "\u2028"])))
def test_requests_and_tables_refuse_the_same_ids_for_the_same_reason(text: str) -> None:
    reason = refusal(text)
    assert (reason is None) == (id_error(text) == "")
    if reason is not None:
        assert id_error(text).startswith(reason.removeprefix("id ").replace("null id", "empty"))


def test_every_character_is_judged_alike() -> None:
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    rule = identifier("file", "id", pl.String(), required=True)
    bad = pl.any_horizontal(violation.condition for violation in rule.violations)
    refused = pl.DataFrame({"id": characters}).filter(bad).get_column("id").to_list()
    assert refused == [text for text in characters if id_error(text)]
    assert len(refused) == 32 + 33 + 2 + 1  # C0, DEL and C1, the separators, "."


def test_event_types_and_products_keep_the_rule() -> None:
    items = pl.LazyFrame({"item_id": ["a", "b", "c", "d"], "group_id": ["g", "g\n", "x" * 513, ""]})
    events = pl.LazyFrame({"event": ["view", "vi\new", "é" * 257, "."]}).with_columns(
        user_id=pl.lit("u"), item_id=pl.lit("a"), timestamp=pl.lit("2024-05-01T12:00:00Z")
    )
    config = DataConfig(source="folder", path="nowhere", events=EventRules(positive={"view": None}))
    tables = check_tables(items, events, None, config)
    assert tables.items["group_id"].to_list() == ["g", None, None, None]
    assert tables.events["event"].to_list() == ["view", "."]
    assert {(problem.reason, problem.action, problem.count) for problem in tables.report.problems} == {
        ("group_id with control characters", "repaired", 1),
        ("group_id too long", "repaired", 1),
        ("event with control characters", "rejected", 1),
        ("event too long", "rejected", 1),
    }
