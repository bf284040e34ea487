"""The slate: one item of each group, filled from as many candidates as it takes; by hand and against a loop."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_service import toy_bundle

from recsys.interfaces import Candidates
from recsys.ranking.slate import distinct_groups, fill_slates, item_groups, slate_of

GROUPS = np.array([0, 1, 2, 3, 12, 12, 6, 7])
"""Items 4 and 5 are variants of one product."""


def candidates(rows: list[list[int]], scores: list[list[float]] | None = None) -> Candidates:
    array = np.array(rows, dtype=np.int64)
    values = np.where(array < 0, -np.inf, np.linspace(1, 0.1, array.shape[1])) if scores is None else scores
    return Candidates(array, np.array(values, dtype=np.float32))


def test_groups(tmp_path: Path) -> None:
    catalog = toy_bundle(tmp_path).catalog
    groups = item_groups(catalog)
    assert groups[4] == groups[5]
    assert len(set(groups.tolist())) == len(catalog) - 1
    without = catalog.__class__(**{**catalog.__dict__, "frame": catalog.frame.drop("group_id")})
    assert item_groups(without).tolist() == list(range(12))


def test_one_item_of_each_group_without_padding_and_scores_that_are_not_finite() -> None:
    found = candidates([[7, 5, 3, 4, 2, -1], [4, 5, 1, 0, -1, -1]])
    chosen = distinct_groups(found, GROUPS, 4)
    assert chosen.rows.tolist() == [[7, 5, 3, 2], [4, 1, 0, -1]]
    assert chosen.scores[0].tolist() == found.scores[0, [0, 1, 2, 4]].tolist()
    assert np.isneginf(chosen.scores[1, 3])
    assert distinct_groups(found, GROUPS, 2).rows.tolist() == [[7, 5], [4, 1]]
    strange = candidates([[7, 6, 2]], [[np.nan, 2.0, -np.inf]])
    assert distinct_groups(strange, GROUPS, 3).rows.tolist() == [[6, -1, -1]]
    assert distinct_groups(candidates([[]]), GROUPS, 2).rows.tolist() == [[-1, -1]]


def test_the_slate_of_one_user(tmp_path: Path) -> None:
    catalog = toy_bundle(tmp_path).catalog
    chosen = candidates([[7, 5, -1]]).of_source("own")
    slate = slate_of(chosen, catalog, reason="because", trace={"rank": 1.0}, fingerprint="f")
    assert slate.items == ("i7", "i5")
    assert slate.rows.tolist() == [7, 5]
    assert slate.positions.tolist() == [1, 2]
    assert slate.propensities.tolist() == [1.0, 1.0]
    assert slate.reasons == ("own", "own")
    assert (slate.trace, slate.fingerprint, len(slate)) == ({"rank": 1.0}, "f", 2)
    without = slate_of(candidates([[7, 5, -1]]), catalog, reason="because", trace={}, fingerprint="f")
    assert without.reasons == ("because", "because")


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@given(st.lists(st.permutations(range(8)), min_size=1, max_size=4), st.integers(0, 8))
def test_slates_are_full_while_there_are_candidates(k: int, orders: list[list[int]], length: int) -> None:
    """Each state has `length` candidates; the slate has the first of each group, as a loop finds them."""
    asked = []

    def find(states: np.ndarray, n: int) -> Candidates:
        asked.append(n)
        rows = np.full((len(states), n), -1)
        for line, state in zip(rows, states.tolist(), strict=True):
            own = orders[state][: min(n, length)]
            line[: len(own)] = own
        return Candidates(rows, np.where(rows < 0, -np.inf, -np.arange(n)).astype(np.float32))

    slates = fill_slates(find, len(orders), k, GROUPS)
    for order, rows in zip(orders, slates.rows.tolist(), strict=True):
        first: dict[int, int] = {}
        for row in order[:length]:
            first.setdefault(int(GROUPS[row]), row)
        expected = [*first.values()][:k]
        assert rows == expected + [-1] * (k - len(expected))
    assert asked[0] == k
    assert max(asked) <= max(k, len(GROUPS))
