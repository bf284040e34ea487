"""The real recommender: brute force without a reranker, strangers, exclusions, and what the reranker may change."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_data import noise, rows_of, toy_stage

from features.interactions import Ragged
from recsys.interfaces import Recommender
from recsys.ranking.user_item_counts import UserItemCounts

EVENTS = noise()
RERANKED = toy_stage(EVENTS)[0]
PLAIN = replace(RERANKED, reranker=None)


def states(users):
    return EVENTS.states(np.array(users), np.full(len(users), EVENTS.latest + 1))


def test_it_is_a_recommender():
    assert isinstance(RERANKED, Recommender)


def test_without_a_reranker_it_equals_brute_force():
    asked = states([0, 3, 5])
    exclude = asked.seen_items()
    allow = np.arange(30) % 7 != 0
    found = PLAIN.recommend(asked, 5, allow=allow, exclude=exclude)
    scores = RERANKED.towers.user_vectors(asked, PLAIN.vectors) @ PLAIN.vectors.T
    scores[:, ~allow] = -np.inf
    scores[exclude.mask(30)] = -np.inf
    np.testing.assert_array_equal(found.rows, np.argsort(-scores, axis=1)[:, :5])
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :5], rtol=1e-5)


def test_the_reranker_orders_what_retrieval_found_and_no_more():
    asked = states([0, 3, 5])
    first = replace(RERANKED, candidates=8)
    retrieved = PLAIN.retrieve(asked, 8)
    found = first.recommend(asked, 8)
    assert [sorted(r) for r in found.rows.tolist()] == [sorted(r) for r in retrieved.rows.tolist()]
    scores = RERANKED.reranker.score(asked, retrieved)
    expected = np.take_along_axis(retrieved.rows, np.argsort(-scores, axis=1, kind="stable"), axis=1)
    np.testing.assert_array_equal(found.rows, expected)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert (found.rows != retrieved.rows).any()
    top = first.recommend(asked, 3)
    np.testing.assert_array_equal(top.rows, found.rows[:, :3])  # eight are ranked, three shown


def expected_candidates(asked, k, **how):
    """Own items, at most half; of those near to the mean of all that was liked 3 in 10, of the nearest 7 in 10."""
    positives = rows_of(asked.positives())
    means = np.stack([PLAIN.vectors[sorted(set(rows))].mean(0) for rows in positives])
    always = PLAIN.index.search((means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32), 30, **how)
    nearest = PLAIN.recommend(asked, 30, **how)
    own = UserItemCounts.of(asked, 30).favourites(len(asked), k // 2, **how)
    for i in range(len(asked)):
        places = [(rank / 0.3, 0, row) for rank, row in enumerate(always.rows[i][: int(0.3 * k)].tolist())]
        places += [(rank / 0.7, 1, row) for rank, row in enumerate(nearest.rows[i][:k].tolist())]
        rows = [*own[i].tolist(), *(row for _, _, row in sorted(places))]
        yield list(dict.fromkeys(row for row in rows if row >= 0))[:k]


@pytest.mark.parametrize("k", [1, 6, 10, 20])
def test_candidates_are_own_items_and_those_near_to_what_was_always_liked_and_to_what_comes_next(k):
    asked = states([0, 3, 5])
    found = PLAIN.retrieve(asked, k)
    users = PLAIN.towers.user_vectors(asked, PLAIN.vectors)
    for i, expected in enumerate(expected_candidates(asked, k)):
        rows = found.rows[i].tolist()
        assert sorted(rows) == sorted(expected)
        scores = PLAIN.vectors[rows] @ users[i]
        np.testing.assert_allclose(found.scores[i], scores, rtol=1e-5)
        assert (np.diff(scores) <= 1e-6).all()
    nearest = PLAIN.recommend(asked, k)
    assert k < 6 or any(set(found.rows[i]) != set(nearest.rows[i]) for i in range(3))


def test_own_items_that_may_not_be_shown_are_no_candidates():
    asked = states([0, 3, 5])
    exclude = asked.seen_items()
    exclude = Ragged.of([sorted({*e, *o}) for e, o in zip(rows_of(exclude), rows_of(asked.positives()), strict=True)])
    found = PLAIN.retrieve(asked, 10, exclude=exclude)
    for i, expected in enumerate(expected_candidates(asked, 10, exclude=exclude)):
        assert sorted(found.rows[i].tolist()) == sorted(expected)
        assert not set(expected) & set(rows_of(exclude)[i])
    allow = np.arange(30) % 2 == 0
    assert (PLAIN.retrieve(asked, 6, allow=allow).rows % 2 == 0).all()


def test_more_than_the_candidates_can_be_asked_for():
    found = replace(RERANKED, candidates=4).recommend(states([0, 3]), 12)
    assert (found.rows >= 0).all()


@pytest.mark.parametrize("stage", [PLAIN, RERANKED], ids=["plain", "reranked"])
def test_strangers_get_what_is_popular(stage):
    popular = np.argsort(-stage.fallback.popularity, kind="stable")
    before_all = EVENTS.states(np.array([4]), np.array([0]))
    for asked in (states([-1]), before_all):
        found = stage.recommend(asked, 6)
        counts = stage.fallback.popularity[found.rows[0]]
        np.testing.assert_array_equal(counts, stage.fallback.popularity[popular[:6]])
        np.testing.assert_array_equal(found.scores[0], counts)
    excluded = stage.recommend(states([-1]), 3, exclude=Ragged.of([[int(popular[0])]]))
    assert popular[0] not in excluded.rows


@pytest.mark.parametrize("stage", [PLAIN, RERANKED], ids=["plain", "reranked"])
def test_strangers_among_others_change_nothing_for_them(stage):
    mixed, alone = states([-1, 3, -1, 0]), states([3, 0])
    exclude = Ragged.of([[0, 1], [2], [], [5, 6]])
    found = stage.recommend(mixed, 7, exclude=exclude)
    others = stage.recommend(alone, 7, exclude=exclude[np.array([1, 3])])
    np.testing.assert_array_equal(found.rows[[1, 3]], others.rows)
    np.testing.assert_allclose(found.scores[[1, 3]], others.scores, rtol=1e-5)
    strangers = stage.recommend(states([-1, -1]), 7, exclude=exclude[np.array([0, 2])])
    np.testing.assert_array_equal(found.rows[[0, 2]], strangers.rows)


@given(
    users=st.lists(st.integers(-1, 59), min_size=1, max_size=5),
    k=st.integers(1, 35),
    allow=st.none() | st.lists(st.booleans(), min_size=30, max_size=30).map(np.array),
    excluded=st.none() | st.lists(st.lists(st.integers(0, 29), max_size=30), min_size=5, max_size=5),
    reranked=st.booleans(),
)
def test_min_of_k_and_what_is_allowed_comes_back_and_nothing_else(users, k, allow, excluded, reranked):
    stage = RERANKED if reranked else PLAIN
    exclude = None if excluded is None else Ragged.of(excluded[: len(users)])
    found = stage.recommend(states(users), k, allow=allow, exclude=exclude)
    assert found.rows.shape == (len(users), k)
    for i, rows in enumerate(found.rows.tolist()):
        out_of = set(excluded[i]) if excluded is not None else set()
        possible = {r for r in range(30) if (allow is None or allow[r]) and r not in out_of}
        there = [r for r in rows if r >= 0]
        assert len(set(there)) == len(there) == min(k, len(possible))
        assert set(there) <= possible
        assert rows == there + [-1] * (k - len(there))  # padding at the end
        assert all(a >= b for a, b in itertools.pairwise(found.scores[i]))
        assert np.isneginf(found.scores[i, len(there) :]).all()
        assert np.isfinite(found.scores[i, : len(there)]).all()


def test_nobody_asked_is_nothing_answered():
    assert PLAIN.recommend(states([0])[:0], 4).rows.shape == (0, 4)
    assert RERANKED.recommend(states([0])[:0], 4).rows.shape == (0, 4)
