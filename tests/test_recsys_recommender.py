"""The two-stage recommender: against brute force, cold users, exclusions, and the effect of the reranker."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_data import noise, rows_of, toy_stage

from features.interactions import Ragged
from recsys.config import SourceQuotas
from recsys.interfaces import Recommender
from recsys.ranking.user_item_counts import UserItemCounts
from recsys.retrieval.popular import Popular

EVENTS = noise()
RERANKED = replace(toy_stage(EVENTS)[0], quotas=SourceQuotas(neighbours=0))
PLAIN = replace(RERANKED, reranker=None)


def states(users):
    return EVENTS.states(np.array(users), np.full(len(users), EVENTS.latest + 1))


def test_it_implements_the_recommender_protocol():
    assert isinstance(RERANKED, Recommender)


def test_without_a_reranker_it_equals_brute_force():
    queries = states([0, 3, 5])
    exclude = queries.seen_items()
    allow = np.arange(30) % 7 != 0
    candidates = PLAIN.recommend(queries, 5, allow=allow, exclude=exclude)
    scores = RERANKED.towers.user_vectors(queries, PLAIN.vectors) @ PLAIN.vectors.T
    scores[:, ~allow] = -np.inf
    scores[exclude.pairs()] = -np.inf
    np.testing.assert_array_equal(candidates.rows, np.argsort(-scores, axis=1)[:, :5])
    np.testing.assert_allclose(candidates.scores, -np.sort(-scores, axis=1)[:, :5], rtol=1e-5)


def test_the_reranker_orders_the_retrieved_candidates_only():
    queries = states([0, 3, 5])
    recommender = replace(RERANKED, candidates=8)
    retrieved = PLAIN.retrieve(queries, 8)
    candidates = recommender.recommend(queries, 8)
    assert [sorted(r) for r in candidates.rows.tolist()] == [sorted(r) for r in retrieved.rows.tolist()]
    scores = RERANKED.reranker.score(queries, retrieved)
    expected = np.take_along_axis(retrieved.rows, np.argsort(-scores, axis=1, kind="stable"), axis=1)
    np.testing.assert_array_equal(candidates.rows, expected)
    assert (np.diff(candidates.scores, axis=1) <= 0).all()
    assert (candidates.rows != retrieved.rows).any()
    top = recommender.recommend(queries, 3)
    np.testing.assert_array_equal(top.rows, candidates.rows[:, :3])  # eight are ranked, three are returned


def expected_candidates(queries, k, **filters):
    """At most k / 2 own items, then 3 in 10 near the mean of positive items and 7 in 10 near the user vector."""
    positives = rows_of(queries.positives())
    means = np.stack([PLAIN.vectors[sorted(set(rows))].mean(0) for rows in positives])
    by_profile = PLAIN.index.search(
        (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32), 30, **filters
    )
    nearest = PLAIN.recommend(queries, 30, **filters)
    own = UserItemCounts.of(queries, 30).favourites(len(queries), k // 2, **filters)
    for i in range(len(queries)):
        places = [(rank / 0.3, 0, row) for rank, row in enumerate(by_profile.rows[i][: int(0.3 * k)].tolist())]
        places += [(rank / 0.7, 1, row) for rank, row in enumerate(nearest.rows[i][:k].tolist())]
        rows = [*own[i].tolist(), *(row for _, _, row in sorted(places))]
        yield list(dict.fromkeys(row for row in rows if row >= 0))[:k]


@pytest.mark.parametrize("k", [1, 6, 10, 20])
def test_candidates_are_own_items_and_items_near_the_profile_and_near_the_user_vector(k):
    queries = states([0, 3, 5])
    candidates = PLAIN.retrieve(queries, k)
    users = PLAIN.towers.user_vectors(queries, PLAIN.vectors)
    for i, expected in enumerate(expected_candidates(queries, k)):
        rows = candidates.rows[i].tolist()
        assert sorted(rows) == sorted(expected)
        scores = PLAIN.vectors[rows] @ users[i]
        np.testing.assert_allclose(candidates.scores[i], scores, rtol=1e-5)
        assert (np.diff(scores) <= 1e-6).all()
    nearest = PLAIN.recommend(queries, k)
    assert k < 6 or any(set(candidates.rows[i]) != set(nearest.rows[i]) for i in range(3))


def test_excluded_own_items_are_not_candidates():
    queries = states([0, 3, 5])
    exclude = queries.seen_items()
    exclude = Ragged.of(
        [sorted({*e, *o}) for e, o in zip(rows_of(exclude), rows_of(queries.positives()), strict=True)]
    )
    candidates = PLAIN.retrieve(queries, 10, exclude=exclude)
    for i, expected in enumerate(expected_candidates(queries, 10, exclude=exclude)):
        assert sorted(candidates.rows[i].tolist()) == sorted(expected)
        assert not set(expected) & set(rows_of(exclude)[i])
    allow = np.arange(30) % 2 == 0
    assert (PLAIN.retrieve(queries, 6, allow=allow).rows % 2 == 0).all()


def test_k_may_exceed_the_number_of_candidates():
    candidates = replace(RERANKED, candidates=4).recommend(states([0, 3]), 12)
    assert (candidates.rows >= 0).all()


@pytest.mark.parametrize("recommender", [PLAIN, RERANKED], ids=["plain", "reranked"])
def test_cold_users_get_popular_items(recommender):
    popular = np.argsort(-recommender.fallback.popularity, kind="stable")
    before_all = EVENTS.states(np.array([4]), np.array([0]))
    for queries in (states([-1]), before_all):
        candidates = recommender.recommend(queries, 6)
        counts = recommender.fallback.popularity[candidates.rows[0]]
        np.testing.assert_array_equal(counts, recommender.fallback.popularity[popular[:6]])
        np.testing.assert_array_equal(candidates.scores[0], counts)
    excluded = recommender.recommend(states([-1]), 3, exclude=Ragged.of([[int(popular[0])]]))
    assert popular[0] not in excluded.rows


@pytest.mark.parametrize("recommender", [PLAIN, RERANKED], ids=["plain", "reranked"])
def test_cold_and_warm_users_in_one_batch_get_what_they_get_alone(recommender):
    mixed, warm = states([-1, 3, -1, 0]), states([3, 0])
    exclude = Ragged.of([[0, 1], [2], [], [5, 6]])
    candidates = recommender.recommend(mixed, 7, exclude=exclude)
    warm_only = recommender.recommend(warm, 7, exclude=exclude[np.array([1, 3])])
    np.testing.assert_array_equal(candidates.rows[[1, 3]], warm_only.rows)
    np.testing.assert_allclose(candidates.scores[[1, 3]], warm_only.scores, rtol=1e-5)
    cold_only = recommender.recommend(states([-1, -1]), 7, exclude=exclude[np.array([0, 2])])
    np.testing.assert_array_equal(candidates.rows[[0, 2]], cold_only.rows)


@given(
    users=st.lists(st.integers(-1, 59), min_size=1, max_size=5),
    k=st.integers(1, 35),
    allow=st.none() | st.lists(st.booleans(), min_size=30, max_size=30).map(np.array),
    excluded=st.none() | st.lists(st.lists(st.integers(0, 29), max_size=30), min_size=5, max_size=5),
    reranked=st.booleans(),
)
def test_min_of_k_and_the_number_of_allowed_items_are_returned(users, k, allow, excluded, reranked):
    recommender = RERANKED if reranked else PLAIN
    exclude = None if excluded is None else Ragged.of(excluded[: len(users)])
    candidates = recommender.recommend(states(users), k, allow=allow, exclude=exclude)
    assert candidates.rows.shape == (len(users), k)
    for i, rows in enumerate(candidates.rows.tolist()):
        hidden = set(excluded[i]) if excluded is not None else set()
        possible = {r for r in range(30) if (allow is None or allow[r]) and r not in hidden}
        returned = [r for r in rows if r >= 0]
        assert len(set(returned)) == len(returned) == min(k, len(possible))
        assert set(returned) <= possible
        assert rows == returned + [-1] * (k - len(returned))  # padding at the end
        assert all(a >= b for a, b in itertools.pairwise(candidates.scores[i]))
        assert np.isneginf(candidates.scores[i, len(returned) :]).all()
        assert np.isfinite(candidates.scores[i, : len(returned)]).all()


def test_no_states_give_no_rows():
    assert PLAIN.recommend(states([0])[:0], 4).rows.shape == (0, 4)
    assert RERANKED.recommend(states([0])[:0], 4).rows.shape == (0, 4)


def test_each_candidate_carries_its_source_and_its_place_there():
    queries = states([0, 3, 5])
    found = PLAIN.retrieve(queries, 12)
    own = UserItemCounts.of(queries, 30).favourites(3, 6)
    users = PLAIN.towers.user_vectors(queries, PLAIN.vectors)
    means = np.stack([PLAIN.vectors[sorted(set(rows))].mean(0) for rows in rows_of(queries.positives())])
    lists = {
        "own": own,
        "long_term": PLAIN.index.search(means / np.linalg.norm(means, axis=1, keepdims=True), 3).rows,
        "recent": PLAIN.index.search(users.astype(np.float32), 12).rows,
    }
    assert (found.rows >= 0).all()
    for state in range(3):
        names = found.source_names(state)
        assert {"own", "recent"} < set(names) <= {*lists}
        for row, name, place in zip(found.rows[state], names, found.places[state], strict=True):
            assert lists[name][state, place] == row
    ranked = RERANKED.recommend(queries, 4)  # the reranker moves candidates with their sources
    at = [dict(zip(found.rows[s].tolist(), found.source_names(s), strict=True)) for s in range(3)]
    ranked_12 = replace(RERANKED, candidates=12).recommend(queries, 12)
    for state in range(3):
        pairs = zip(ranked_12.rows[state].tolist(), ranked_12.source_names(state), strict=True)
        assert dict(pairs) == at[state]
    assert len(ranked.source_names(0)) == 4


def test_cold_users_are_shown_what_is_popular():
    cold = EVENTS.states(np.array([-1, 0]), np.array([1, EVENTS.latest + 1]))
    found = RERANKED.recommend(cold, 3)
    assert found.source_names(0) == ["popular"] * 3
    assert found.places[0].tolist() == [0, 1, 2]
    assert "popular" not in found.source_names(1)
    assert set(PLAIN.recommend(cold, 3).source_names(1)) == {"recent"}


@pytest.mark.parametrize("recommender", [RERANKED, PLAIN])
def test_a_list_is_ranked_as_its_items_are_among_the_candidates(recommender):
    for user in (0, 3, 5):
        one = states([user]).compact()
        found = recommender.recommend(one, 12)
        shuffled = np.random.default_rng(user).permutation(found.rows[0])
        ranked = recommender.rank(one, shuffled)
        np.testing.assert_allclose(ranked.scores, found.scores, rtol=1e-5)
        assert sorted(ranked.rows[0].tolist()) == sorted(found.rows[0].tolist())
        some = recommender.rank(one, shuffled[:4])
        assert some.rows[0].tolist() == [row for row in ranked.rows[0].tolist() if row in shuffled[:4]]


def test_a_list_of_a_cold_user_is_ranked_by_popularity():
    cold = EVENTS.states(np.array([-1]), np.array([1]))
    rows = np.array([20, 3, 11])
    ranked = RERANKED.rank(cold, rows)
    counts = RERANKED.fallback.popularity
    assert ranked.scores[0].tolist() == sorted(counts[rows].tolist(), reverse=True)
    assert RERANKED.rank(cold, rows[:0]).rows.shape == (1, 0)
    assert RERANKED.rank(states([0]), rows[:0]).rows.shape == (1, 0)


def test_popular_items_are_in_one_order_everywhere():
    """Ties go by row, so that service, batch and evaluation show cold users the same items with the same scores."""
    popular = Popular(np.array([1, 3, 3, 0, 3, 1], dtype=np.float32), 0)
    assert popular.order.tolist() == [1, 2, 4, 0, 5, 3]
    cold = EVENTS.states(np.array([-1, -1]), np.array([1, 1]))
    found = popular.recommend(
        cold, 4, allow=np.array([True, True, True, True, False, True]), exclude=Ragged.of([[2], []])
    )
    assert found.rows.tolist() == [[1, 0, 5, 3], [1, 2, 0, 5]]
    assert found.scores.tolist() == [[3, 1, 1, 0], [3, 3, 1, 1]]
    assert popular.recommend(cold, 7).rows[0].tolist() == [1, 2, 4, 0, 5, 3, -1]
