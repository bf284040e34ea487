"""The rules of the slate, by hand."""

from pathlib import Path

import numpy as np
from toy_service import toy_bundle

from recsys.interfaces import Candidates
from recsys.ranking.slate import Slate, item_groups, make_slate


def slate(rows: list[int], k: int, folder: Path, scores: list[float] | None = None) -> Slate:
    catalog = toy_bundle(folder).catalog
    values = np.array([scores or np.linspace(1, 0.1, len(rows))], dtype=np.float32)
    found = Candidates(np.array([rows], dtype=np.int64), values)
    return make_slate(
        found,
        catalog,
        item_groups(catalog),
        k,
        available=catalog.available,
        reason="because",
        trace={"rank": 1.0},
        fingerprint="f",
    )


def test_groups(tmp_path: Path) -> None:
    catalog = toy_bundle(tmp_path).catalog
    groups = item_groups(catalog)
    assert groups[4] == groups[5]
    assert len(set(groups.tolist())) == len(catalog) - 1
    without = catalog.__class__(**{**catalog.__dict__, "frame": catalog.frame.drop("group_id")})
    assert item_groups(without).tolist() == list(range(12))


def test_available_items_without_padding_one_of_each_group(tmp_path: Path) -> None:
    found = slate([7, 5, 3, 4, 2, -1, -1], 9, tmp_path)
    assert found.items == ("i7", "i5", "i2")  # i3 is not available, i4 is a variant of i5
    assert found.rows.tolist() == [7, 5, 2]
    assert found.positions.tolist() == [1, 2, 3]
    assert found.propensities.tolist() == [1.0, 1.0, 1.0]
    assert found.reasons == ("because",) * 3
    assert (found.trace, found.fingerprint) == ({"rank": 1.0}, "f")
    assert len(found) == 3


def test_k_and_scores_that_are_not_finite(tmp_path: Path) -> None:
    assert slate([7, 6, 2], 2, tmp_path).items == ("i7", "i6")
    assert slate([7, 6, 2], 3, tmp_path, [np.nan, 2.0, -np.inf]).items == ("i6",)
    assert slate([], 3, tmp_path).items == ()
