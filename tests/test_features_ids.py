"""The map between external ids and rows."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError
from features.ids import IdMap

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
