"""Outcomes by hand, windows joined, and tables that refuse to compare what is not comparable."""

import io
import json
from dataclasses import replace

import numpy as np
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
from features.interactions import DAY
from recsys.interfaces import Candidates, top_k

ROWS = [
    (0, 0, 1),
    (0, 1, 2),
    (1, 2, 3),
    (3, 0, 5, False, True),  # user 3 likes nothing before the cut
    # from here on tested: the order that is recommended is 0, 1, 2, …
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
    """Recommends 0, 1, 2, … and counts how often it is asked."""

    asked = 0

    def recommend(self, states, k, *, allow=None, exclude=None):
        self.asked += 1
        scores = np.repeat(-np.arange(30, dtype=np.float32)[None, :], len(states), axis=0)
        return top_k(scores, k, allow=allow, exclude=exclude)


@pytest.fixture(scope="module")
def catalog():
    text = np.zeros((30, 3), np.float32)
    text[:10, 0] = 1  # the first ten are alike
    text[10:, 1] = 1
    return toy_catalog(30, text=text)


def split_of(rows, *, repeats=False, window=WINDOW):
    return time_split(toy_log(rows, 4, 30), window, history="prequential", repeats=repeats)


def outcome_of(catalog, *, rows=ROWS, repeats=False, name="in order", recommender=None, seconds=1.0, window=WINDOW):
    split = split_of(rows, repeats=repeats, window=window)
    recommender = recommender or InOrder()
    return evaluate(name, recommender, split, catalog, split.test, repeats=repeats, seconds=seconds)


def test_ranks_by_hand(catalog):
    o = outcome_of(catalog)
    found = {(u, i): r for u, i, r in zip(o.users.tolist(), o.items.tolist(), o.ranks.tolist(), strict=True)}
    assert found == RANKS


def test_users_are_averaged_first(catalog):
    o = outcome_of(catalog)
    assert o.per_user("hr").tolist() == [1, 1, 0.5, 0]  # users 0, 1, 2, 3
    expected = [(1 / np.log2(3) + 1 / np.log2(4)) / 2, 1, 0.5, 0]
    np.testing.assert_allclose(o.per_user("ndcg"), expected)
    (row,) = Comparison("t", "home", "n", ("h",), (o,), "in order", 0).rows
    assert row["hr_at_10"]["mean"] == pytest.approx(2.5 / 4)  # not 4 / 6, as over events
    assert row["ndcg_at_10"]["mean"] == pytest.approx(np.mean(expected))
    assert row["hr_at_10"]["low"] < 2.5 / 4 < row["hr_at_10"]["high"]


def test_warm_and_cold_by_hand(catalog):
    o = outcome_of(catalog)
    by = {(u, i): n for n, (u, i) in enumerate(zip(o.users.tolist(), o.items.tolist(), strict=True))}
    warm_users, warm_items = {0, 1}, {0, 1, 2}
    for (user, item), at in by.items():
        assert o.warm_user[at] == (user in warm_users)
        assert o.warm_item[at] == (item in warm_items)
    assert {k: o.history[at] for k, at in by.items()} == {
        (0, 3): 2,
        (0, 5): 3,
        (1, 0): 1,
        (2, 0): 0,
        (2, 29): 1,
        (3, 12): 0,
    }
    (row,) = Comparison("t", "home", "n", ("h",), (o,), "in order", 0).rows
    assert row["hr_at_10_warm"] == 1  # only (1, 0)
    assert row["hr_at_10_cold_user"] == pytest.approx((0.5 + 0) / 2)
    assert row["hr_at_10_cold_item"] == pytest.approx((1 + 0 + 0) / 3)  # users 0, 2, 3


def test_what_is_shown_by_hand(catalog):
    o = outcome_of(catalog)
    assert o.coverage == pytest.approx(13 / 30)  # 0..12: user 0 has seen three of them
    # lists of ten from 0..12; counts 1, 1, 1 of items 0, 1, 2, none of the others, which count as once: log2(3) each
    assert o.novelty == pytest.approx(np.log2(3))
    # lists: 2..11 but 3? of (0, t=10): 2..11 has two of the second kind; (0, t=11): 2, 4..12 three;
    # (1, t=10): 0, 1, 3..10 one; (2, t=12): 0..9 none; (2, t=13): 1..10 one; (3, t=14): 1..10 one
    pairs = [2 * 8, 3 * 7, 9, 0, 9, 9]
    assert o.diversity == pytest.approx(np.mean(pairs) / 45)
    assert 0 < o.popularity < 1


def test_repeats_are_ranked_where_they_are_allowed(catalog):
    rows = [*ROWS, (1, 2, 15)]  # bought again
    excluded = outcome_of(catalog, rows=rows)
    assert (1, 2) not in set(zip(excluded.users.tolist(), excluded.items.tolist(), strict=True))
    allowed = outcome_of(catalog, rows=rows, repeats=True)
    found = {(u, i): r for u, i, r in zip(allowed.users, allowed.items, allowed.ranks, strict=True)}
    assert found[1, 2] == 3
    assert found[0, 3] == 4  # nothing is left out before it


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_size_of_a_batch_makes_no_difference(catalog, monkeypatch, batch):
    whole = outcome_of(catalog)
    monkeypatch.setattr(module, "BATCH", batch)
    recommender = InOrder()
    parts = outcome_of(catalog, recommender=recommender)
    assert recommender.asked == -(-6 // batch)
    np.testing.assert_array_equal(parts.ranks, whole.ranks)
    for name in ("coverage", "novelty", "diversity", "popularity"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name))


def test_what_is_published_later_is_in_no_list_before_its_day(catalog):
    day_before, its_day = 3 * DAY - 1, 3 * DAY  # item 0 comes out at noon of day 3; item 1, it is not known when
    published = np.full(30, 0)
    published[:2] = 3 * DAY + DAY // 2, UNDATED
    log = toy_log([(0, 9, 1), (1, 9, 1), (2, 9, 1)], 4, 30)
    asked = np.array([its_day, day_before, 4 * DAY])
    targets = Targets(log.states(np.arange(3), asked), np.array([0, 0, 1, 2]), np.array([0, 2, 2, 2]))
    dated = replace(catalog, published=published)
    ranks, lists = rank_targets(InOrder(), targets, dated, repeats=False)
    assert ranks.tolist() == [1, 3, 2, 3]
    assert lists[:, :3].tolist() == [[0, 1, 2], [1, 2, 3], [0, 1, 2]]
    ranks, lists = rank_targets(InOrder(), targets, dated, repeats=False, allow=np.arange(30) != 1)
    assert ranks.tolist() == [1, 2, 1, 2]


moments = st.integers(0, 6 * DAY)


@given(st.lists(moments, max_size=30), st.lists(st.none() | moments, min_size=1, max_size=12), st.integers(1, 4))
def test_every_state_is_asked_once_about_what_there_was(as_of, published, batch):
    catalog = toy_catalog(len(published))
    catalog = replace(catalog, published=np.array([UNDATED if p is None else p for p in published]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH", batch)
        parts = list(published_batches(np.array(as_of, dtype=np.int64), catalog))
    assert sorted(row for rows, _ in parts for row in rows.tolist()) == list(range(len(as_of)))
    for rows, there in parts:
        assert 1 <= len(rows) <= batch
        for row in rows:
            assert there.tolist() == [p is None or p // DAY <= as_of[row] // DAY for p in published]


def test_the_headline_by_hand(catalog):
    """User 0: ranks 1 and 3; user 1: rank 2; users weigh alike."""
    log = toy_log([(0, 9, 1), (1, 9, 1)], 2, 30)
    targets = Targets(log.states(np.arange(2), np.array([9, 9])), np.array([0, 0, 1]), np.array([0, 2, 1]))
    found = headline_metrics(InOrder(), targets, catalog, repeats=False)
    assert found == pytest.approx({"ndcg_at_10": ((1 + 0.5) / 2 + 1 / np.log2(3)) / 2, "hr_at_10": 1.0})


def test_a_recommender_that_finds_nothing_is_zero(catalog):
    class Nothing:
        def recommend(self, states, k, *, allow=None, exclude=None):
            return Candidates(np.full((len(states), k), -1), np.full((len(states), k), -np.inf, np.float32))

    o = outcome_of(catalog, recommender=Nothing())
    assert not o.per_user("hr").any()
    assert o.coverage == 0
    assert np.isnan(o.novelty)


def test_windows_are_joined_and_users_averaged_once_over_all(catalog):
    first = outcome_of(catalog, rows=ROWS, window=(3, 6, 12), seconds=1.5)
    second = outcome_of(catalog, rows=ROWS, window=(6, 12, 20), seconds=2.0)
    both = join_windows([first, second])
    assert both.seconds == 3.5
    assert both.ranks.tolist() == [*first.ranks, *second.ranks]
    assert both.coverage == pytest.approx((first.coverage + second.coverage) / 2)
    assert len(both.ranks) == 6
    np.testing.assert_allclose(both.per_user("ndcg"), outcome_of(catalog).per_user("ndcg"))  # the same events in all
    assert both.name == "in order"


def test_a_user_of_two_windows_counts_once(catalog):
    o = outcome_of(catalog)
    both = join_windows([o, replace(o, ranks=np.full(6, np.inf))])
    np.testing.assert_allclose(both.per_user("hr"), o.per_user("hr") / 2)
    assert len(both.per_user("hr")) == 4


@pytest.mark.parametrize("change", ["users", "items", "fewer"])
def test_outcomes_of_different_targets_are_not_compared(catalog, change):
    o = outcome_of(catalog)
    if change == "fewer":
        rows = [r for r in ROWS if r != (3, 12, 14)]
        other = outcome_of(catalog, rows=rows, name="other")
    else:
        other = replace(o, name="other", **{change: getattr(o, change)[::-1].copy()})
    with pytest.raises(ValueError, match="in order and other were evaluated on different targets"):
        Comparison("t", "home", "n", ("h",), (o, other), "in order", 0)


def many(name, ranks, users):
    m = len(ranks)
    yes = np.ones(m, np.bool_)
    items, history = np.arange(m), np.zeros(m, np.int64)
    return module.Outcome(name, ranks, users, items, yes, yes, history, 1.0, 0.5, 1.0, 0.5, 0.5)


def test_the_paired_interval_is_ours_minus_theirs():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(200), 2)
    easy = rng.integers(1, 12, 400).astype(float)
    better, worse = many("better", easy, users), many("worse", easy + 1, users)
    rows = {r["name"]: r for r in Comparison("t", "home", "n", ("h",), (worse, better), "better", 0).rows}
    difference = rows["worse"]["ours_minus_ndcg_at_10"]
    assert 0 < difference["low"] < difference["mean"] < difference["high"]
    assert difference["mean"] == pytest.approx(
        rows["better"]["ndcg_at_10"]["mean"] - rows["worse"]["ndcg_at_10"]["mean"]
    )
    wide = rows["better"]["ndcg_at_10"]
    assert difference["high"] - difference["low"] < wide["high"] - wide["low"]  # what is easy for both cancels out
    assert "ours_minus_ndcg_at_10" not in rows["better"]
    turned = {r["name"]: r for r in Comparison("t", "home", "n", ("h",), (worse, better), "worse", 0).rows}
    assert turned["better"]["ours_minus_ndcg_at_10"]["high"] < 0


def test_the_table_says_of_what_it_is(catalog):
    o = outcome_of(catalog)
    table = Comparison("toy · home", "home", "a note", ("abc", "def"), (o, replace(o, name="other")), "in order", 0)
    facts = table.to_dict()
    assert facts["users"] == 4
    assert facts["events"] == 6
    assert facts["events_cold_user"] == 3
    assert facts["events_cold_item"] == 4
    assert facts["split_hashes"] == ["abc", "def"]
    out = io.StringIO()
    Console(file=out, width=160).print(table.render())
    for told in ("toy · home", "a note", "abc, def", "4 users", "6 test events", "in order", "other", "0.6250"):
        assert told in out.getvalue()


def test_what_does_not_exist_is_null_in_json(catalog):
    o = outcome_of(catalog)
    one = o.users == 1
    alone = replace(o, diversity=float("nan"), **{n: getattr(o, n)[one] for n in PER_TARGET})
    facts = Comparison("t", "home", "n", ("h",), (alone,), "in order", 0).to_dict()
    json.dumps(facts, allow_nan=False)
    (row,) = facts["rows"]
    assert row["diversity"] is None
    assert row["ndcg_at_10"] == {"mean": 1.0, "low": None, "high": None}
    Comparison("t", "home", "n", ("h",), (alone,), "in order", 0).render()
