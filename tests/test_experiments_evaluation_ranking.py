"""Outcomes against values computed by hand, joined windows, and tables, which refuse different targets."""

import io
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from toy_data import toy_catalog, toy_log

from experiments.evaluation import ranking as module
from experiments.evaluation.ranking import (
    Comparison,
    evaluate,
    headline_metrics,
    join_windows,
    published_batches,
    rank_targets,
)
from experiments.splits import Targets, time_split
from features.catalog import UNDATED
from features.instants import DAY
from recsys.interfaces import Candidates, top_k

ROWS = [
    (0, 0, 1),
    (0, 1, 2),
    (1, 2, 3),
    (3, 0, 5, False, True),  # user 3 has no positive event before the cut
    # test events; the recommended order is 0, 1, 2, …
    (0, 3, 10),  # seen 0, 1: rank 2
    (0, 5, 11),  # seen 0, 1, 3: rank 3
    (1, 0, 10),  # seen 2: rank 1
    (2, 0, 12),  # never seen before: rank 1
    (2, 29, 13),  # rank 29: not in the top 10, and an item without training events
    (3, 12, 14),  # seen 0: rank 12
]
PER_TARGET = ("ranks", "users", "items", "warm_user", "warm_item", "history")
WINDOW = (3, 6, 20)
RANKS = {(0, 3): 2, (0, 5): 3, (1, 0): 1, (2, 0): 1, (2, 29): 29, (3, 12): 12}


class InOrder:
    """Recommends items 0, 1, 2, … and counts its calls."""

    calls = 0

    def recommend(self, states, k, *, allow=None, exclude=None):
        self.calls += 1
        scores = np.repeat(-np.arange(30, dtype=np.float32)[None, :], len(states), axis=0)
        return top_k(scores, k, allow=allow, exclude=exclude)


@pytest.fixture(scope="module")
def catalog():
    text = np.zeros((30, 3), np.float32)
    text[:10, 0] = 1  # the first ten have the same vector
    text[10:, 1] = 1
    return toy_catalog(30, text=text)


def split_of(rows, *, repeats=False, window=WINDOW):
    return time_split(toy_log(rows, 4, 30), window, history="prequential", repeats=repeats)


def outcome_of(catalog, *, rows=ROWS, repeats=False, name="in order", recommender=None, seconds=1.0, window=WINDOW):
    split = split_of(rows, repeats=repeats, window=window)
    recommender = recommender or InOrder()
    return evaluate(name, recommender, split, catalog, split.test, repeats=repeats, seconds=seconds)


def test_ranks_by_hand(catalog):
    outcome = outcome_of(catalog)
    ranks = {
        (u, i): r
        for u, i, r in zip(outcome.users.tolist(), outcome.items.tolist(), outcome.ranks.tolist(), strict=True)
    }
    assert ranks == RANKS


def test_users_are_averaged_first(catalog):
    outcome = outcome_of(catalog)
    assert outcome.per_user("hr").tolist() == [1, 1, 0.5, 0]  # users 0, 1, 2, 3
    expected = [(1 / np.log2(3) + 1 / np.log2(4)) / 2, 1, 0.5, 0]
    np.testing.assert_allclose(outcome.per_user("ndcg"), expected)
    (row,) = Comparison("t", "home", "n", ("h",), (outcome,), "in order", 0).rows
    assert row["hr_at_10"]["mean"] == pytest.approx(2.5 / 4)  # the mean over events would be 4 / 6
    assert row["ndcg_at_10"]["mean"] == pytest.approx(np.mean(expected))
    assert row["hr_at_10"]["low"] < 2.5 / 4 < row["hr_at_10"]["high"]


def test_warm_and_cold_by_hand(catalog):
    outcome = outcome_of(catalog)
    index = {(u, i): n for n, (u, i) in enumerate(zip(outcome.users.tolist(), outcome.items.tolist(), strict=True))}
    warm_users, warm_items = {0, 1}, {0, 1, 2}
    for (user, item), at in index.items():
        assert outcome.warm_user[at] == (user in warm_users)
        assert outcome.warm_item[at] == (item in warm_items)
    assert {k: outcome.history[at] for k, at in index.items()} == {
        (0, 3): 2,
        (0, 5): 3,
        (1, 0): 1,
        (2, 0): 0,
        (2, 29): 1,
        (3, 12): 0,
    }
    (row,) = Comparison("t", "home", "n", ("h",), (outcome,), "in order", 0).rows
    assert row["hr_at_10_warm"] == 1  # only (1, 0)
    assert row["hr_at_10_cold_user"] == pytest.approx((0.5 + 0) / 2)
    assert row["hr_at_10_cold_item"] == pytest.approx((1 + 0 + 0) / 3)  # users 0, 2, 3


def test_list_metrics_by_hand(catalog):
    outcome = outcome_of(catalog)
    assert outcome.coverage == pytest.approx(13 / 30)  # items 0..12 are listed: user 0 has seen three of them
    # lists of ten from 0..12; items 0, 1, 2 have count 1; the others have none and are taken as 1: log2(3) each
    assert outcome.novelty == pytest.approx(np.log2(3))
    # items from 10 on in each list: (user 0, t=10): 2..11, two; (0, t=11): 2, 4..12, three;
    # (1, t=10): 0, 1, 3..10, one; (2, t=12): 0..9, none; (2, t=13): 1..10, one; (3, t=14): 1..10, one
    pairs = [2 * 8, 3 * 7, 9, 0, 9, 9]
    assert outcome.diversity == pytest.approx(np.mean(pairs) / 45)
    assert 0 < outcome.popularity < 1


def test_repeats_are_targets_where_they_are_allowed(catalog):
    rows = [*ROWS, (1, 2, 15)]  # bought again
    excluded = outcome_of(catalog, rows=rows)
    assert (1, 2) not in set(zip(excluded.users.tolist(), excluded.items.tolist(), strict=True))
    allowed = outcome_of(catalog, rows=rows, repeats=True)
    ranks = {(u, i): r for u, i, r in zip(allowed.users, allowed.items, allowed.ranks, strict=True)}
    assert ranks[1, 2] == 3
    assert ranks[0, 3] == 4  # items 0 to 2 are listed before it


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_outcomes_do_not_depend_on_the_batch_size(catalog, monkeypatch, batch):
    expected = outcome_of(catalog)
    monkeypatch.setattr(module, "BATCH", batch)
    recommender = InOrder()
    batched = outcome_of(catalog, recommender=recommender)
    assert recommender.calls == -(-6 // batch)
    np.testing.assert_array_equal(batched.ranks, expected.ranks)
    for name in ("coverage", "novelty", "diversity", "popularity"):
        assert getattr(batched, name) == pytest.approx(getattr(expected, name))


def test_an_item_is_in_no_list_before_the_day_of_its_publication(catalog):
    day_before, same_day = 3 * DAY - 1, 3 * DAY  # item 0 is published at noon of day 3; item 1 has no date
    published = np.full(30, 0)
    published[:2] = 3 * DAY + DAY // 2, UNDATED
    log = toy_log([(0, 9, 1), (1, 9, 1), (2, 9, 1)], 4, 30)
    as_of = np.array([same_day, day_before, 4 * DAY])
    targets = Targets(log.states(np.arange(3), as_of), np.array([0, 0, 1, 2]), np.array([0, 2, 2, 2]))
    dated = replace(catalog, published=published)
    ranks, lists = rank_targets(InOrder(), targets, dated, repeats=False)
    assert ranks.tolist() == [1, 3, 2, 3]
    assert lists[:, :3].tolist() == [[0, 1, 2], [1, 2, 3], [0, 1, 2]]
    ranks, lists = rank_targets(InOrder(), targets, dated, repeats=False, allow=np.arange(30) != 1)
    assert ranks.tolist() == [1, 2, 1, 2]


moments = st.integers(0, 6 * DAY)


@given(st.lists(moments, max_size=30), st.lists(st.none() | moments, min_size=1, max_size=12), st.integers(1, 4))
def test_each_state_is_in_one_batch_with_the_items_published_by_then(as_of, published, batch):
    catalog = toy_catalog(len(published))
    catalog = replace(catalog, published=np.array([UNDATED if p is None else p for p in published]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH", batch)
        parts = list(published_batches(np.array(as_of, dtype=np.int64), catalog))
    assert sorted(row for rows, _ in parts for row in rows.tolist()) == list(range(len(as_of)))
    for rows, mask in parts:
        assert 1 <= len(rows) <= batch
        for row in rows:
            assert mask.tolist() == [p is None or p // DAY <= as_of[row] // DAY for p in published]


def test_headline_metrics_by_hand(catalog):
    """User 0 has ranks 1 and 3, user 1 has rank 2; both users have the same weight."""
    log = toy_log([(0, 9, 1), (1, 9, 1)], 2, 30)
    targets = Targets(log.states(np.arange(2), np.array([9, 9])), np.array([0, 0, 1]), np.array([0, 2, 1]))
    figures = headline_metrics(InOrder(), targets, catalog, repeats=False)
    assert figures == pytest.approx({"ndcg_at_10": ((1 + 0.5) / 2 + 1 / np.log2(3)) / 2, "hr_at_10": 1.0})


def test_the_metrics_of_empty_lists_are_zero(catalog):
    class Nothing:
        def recommend(self, states, k, *, allow=None, exclude=None):
            return Candidates(np.full((len(states), k), -1), np.full((len(states), k), -np.inf, np.float32))

    outcome = outcome_of(catalog, recommender=Nothing())
    assert not outcome.per_user("hr").any()
    assert outcome.coverage == 0
    assert np.isnan(outcome.novelty)


def test_joined_windows_equal_one_window_of_all_targets(catalog):
    first = outcome_of(catalog, rows=ROWS, window=(3, 6, 12), seconds=1.5)
    second = outcome_of(catalog, rows=ROWS, window=(6, 12, 20), seconds=2.0)
    joined = join_windows([first, second])
    assert joined.seconds == 3.5
    assert joined.ranks.tolist() == [*first.ranks, *second.ranks]
    assert joined.coverage == pytest.approx((first.coverage + second.coverage) / 2)
    assert len(joined.ranks) == 6
    np.testing.assert_allclose(
        joined.per_user("ndcg"), outcome_of(catalog).per_user("ndcg")
    )  # the same targets in one window
    assert joined.name == "in order"


def test_a_user_of_two_windows_counts_once(catalog):
    outcome = outcome_of(catalog)
    joined = join_windows([outcome, replace(outcome, ranks=np.full(6, np.inf))])
    np.testing.assert_allclose(joined.per_user("hr"), outcome.per_user("hr") / 2)
    assert len(joined.per_user("hr")) == 4


@pytest.mark.parametrize("change", ["users", "items", "fewer"])
def test_outcomes_of_different_targets_are_not_compared(catalog, change):
    outcome = outcome_of(catalog)
    if change == "fewer":
        rows = [r for r in ROWS if r != (3, 12, 14)]
        other = outcome_of(catalog, rows=rows, name="other")
    else:
        other = replace(outcome, name="other", **{change: getattr(outcome, change)[::-1].copy()})
    with pytest.raises(ValueError, match="in order and other were evaluated on different targets"):
        Comparison("t", "home", "n", ("h",), (outcome, other), "in order", 0)


def outcome_with(name, ranks, users):
    m = len(ranks)
    warm = np.ones(m, np.bool_)
    items, history = np.arange(m), np.zeros(m, np.int64)
    return module.Outcome(name, ranks, users, items, items, warm, warm, history, 1.0, 0.5, 1.0, 0.5, 0.5)


def test_the_paired_interval_is_ours_minus_the_row():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(200), 2)
    ranks = rng.integers(1, 12, 400).astype(float)
    better, worse = outcome_with("better", ranks, users), outcome_with("worse", ranks + 1, users)
    rows = {r["name"]: r for r in Comparison("t", "home", "n", ("h",), (worse, better), "better", 0).rows}
    difference = rows["worse"]["ours_minus_ndcg_at_10"]
    assert 0 < difference["low"] < difference["mean"] < difference["high"]
    assert difference["mean"] == pytest.approx(
        rows["better"]["ndcg_at_10"]["mean"] - rows["worse"]["ndcg_at_10"]["mean"]
    )
    unpaired = rows["better"]["ndcg_at_10"]
    assert difference["high"] - difference["low"] < unpaired["high"] - unpaired["low"]  # the common part cancels out
    assert "ours_minus_ndcg_at_10" not in rows["better"]
    reversed_rows = {r["name"]: r for r in Comparison("t", "home", "n", ("h",), (worse, better), "worse", 0).rows}
    assert reversed_rows["better"]["ours_minus_ndcg_at_10"]["high"] < 0


def test_the_table_names_its_split_users_and_events(catalog):
    outcome = outcome_of(catalog)
    table = Comparison(
        "toy · home", "home", "a note", ("abc", "def"), (outcome, replace(outcome, name="other")), "in order", 0
    )
    facts = table.to_dict()
    assert facts["users"] == 4
    assert facts["events"] == 6
    assert facts["events_cold_user"] == 3
    assert facts["events_cold_item"] == 4
    assert facts["split_hashes"] == ["abc", "def"]
    out = io.StringIO()
    Console(file=out, width=160).print(table.render())
    for text in ("toy · home", "a note", "abc, def", "4 users", "6 test events", "in order", "other", "0.6250"):
        assert text in out.getvalue()


def test_undefined_figures_are_null_in_json(catalog):
    outcome = outcome_of(catalog)
    keep = outcome.users == 1
    single = replace(outcome, diversity=float("nan"), **{n: getattr(outcome, n)[keep] for n in PER_TARGET})
    facts = Comparison("t", "home", "n", ("h",), (single,), "in order", 0).to_dict()
    json.dumps(facts, allow_nan=False)
    (row,) = facts["rows"]
    assert row["diversity"] is None
    assert row["ndcg_at_10"] == {"mean": 1.0, "low": None, "high": None}
    Comparison("t", "home", "n", ("h",), (single,), "in order", 0).render()


def test_the_cells_of_the_table(catalog):
    outcome = outcome_of(catalog, name="ours", seconds=12.34)
    other = replace(outcome, name="other", ranks=np.full(6, np.inf), warm_item=np.ones(6, bool), popularity=0.126)
    table = Comparison("toy", "home", "a note", ("abc", "def"), (outcome, other), "ours", 0).render()
    assert str(table.title) == (
        "toy\na note\nsplit abc, def · 4 users · 6 test events (3 of cold users, 4 of cold items: without a positive "
        "event before the cut)"
    )
    assert table.caption == "in brackets: 95 % interval over users; Δ: paired difference, ours minus the row"
    assert [(column.header, column.justify) for column in table.columns] == [
        ("", "left"),
        *(
            (name, "right")
            for name in (
                *("HR@10", "NDCG@10", "Δ NDCG@10", "warm\nHR", "cold-user\nHR", "cold-item\nHR"),
                *("cover-\nage", "popu-\nlarity", "fit s"),
            )
        ),
    ]
    cells = [list(column.cells) for column in table.columns]
    (row, _) = Comparison("toy", "home", "n", ("h",), (outcome, other), "ours", 0).rows
    low, high = row["ndcg_at_10"]["low"], row["ndcg_at_10"]["high"]
    mean = row["ndcg_at_10"]["mean"]
    assert [column[0] for column in cells] == [
        "ours",
        f"0.6250 [{row['hr_at_10']['low']:.4f}, {row['hr_at_10']['high']:.4f}]",
        f"{mean:.4f} [{low:.4f}, {high:.4f}]",
        "",
        "1.0000",
        "0.2500",
        "0.3333",
        "0.433",  # 13 of 30 items
        f"{outcome.popularity:.2f}",
        "12.3",
    ]
    assert [column[1] for column in cells] == [
        "other",
        "0.0000 [0.0000, 0.0000]",
        "0.0000 [0.0000, 0.0000]",
        f"+{mean:.4f} [{low:+.4f}, {high:+.4f}]",
        "0.0000",
        "0.0000",
        "",  # no item is cold
        "0.433",
        "0.13",
        "12.3",
    ]
    assert [row.style for row in table.rows] == ["bold", None]
    assert (module.K, module.DEPTH, module.BATCH) == (10, 100, 1024)


def test_one_variant_of_a_product_is_listed_as_in_a_slate(catalog):
    """Items 0 to 4 are variants of one product: item 5 is second, and a target that is a later variant is missed."""
    frame = catalog.frame.with_columns(
        pl.when(pl.int_range(pl.len()) < 5).then(pl.lit("g")).otherwise(None).alias("group_id")
    )
    outcome = outcome_of(replace(catalog, frame=frame))
    pairs = zip(outcome.users.tolist(), outcome.items.tolist(), strict=True)
    ranks = dict(zip(pairs, outcome.ranks.tolist(), strict=True))
    assert ranks == {(0, 3): np.inf, (0, 5): 2, (1, 0): 1, (2, 0): 1, (2, 29): 26, (3, 12): 9}
