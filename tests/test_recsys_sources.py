"""Sources of candidates: each against brute force, their quotas, and what they may never bring."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from test_recsys_bundle_upsert import bundle, items, saved, text_channel
from toy_data import DAY, noise, rows_of, toy_catalog, toy_log, toy_stage

from features.catalog import UNDATED
from features.interactions import Ragged
from recsys.bundle.upsert import upsert_items
from recsys.config import SourceQuotas
from recsys.item_statistics import ItemStatistics
from recsys.ranking.pair_features import FEATURES as COLUMNS
from recsys.ranking.reranker import Reranker
from recsys.retrieval.popular import Popular
from recsys.sources import merge_sources, neighbour_items, popular_items

__all__ = ["bundle", "saved"]  # fixtures

N = 40
EVENTS = noise(n_items=N)
STAGE, CATALOG, _ = toy_stage(replace(EVENTS), toy_catalog(N))
ALL = SourceQuotas(recent=0.2, long_term=0.2, neighbours=0.3, fresh=0.2, trending=0.3, popular=0.2)
assert isinstance(STAGE.reranker, Reranker)
PUBLISHED = np.where(np.arange(N) % 5 == 0, EVENTS.latest - (np.arange(N) - 10) * 2 * DAY, UNDATED)
FEATURES = replace(STAGE.reranker.features, catalog=replace(CATALOG, published=PUBLISHED))
RERANKED = replace(STAGE, reranker=replace(STAGE.reranker, features=FEATURES))


def states(users):
    return EVENTS.states(np.array(users), np.full(len(users), EVENTS.latest + 1))


def only(name):
    """Half of the places for one source and half for the items near the user vector."""
    return SourceQuotas(**{"recent": 0.5, "long_term": 0, "neighbours": 0, name: 0.5})


def test_sources_take_turns_by_their_quotas():
    """Turns are place / quota: recent 0 2 4 6, long_term 0 4, neighbours 0 4 8, popular 0 8."""
    found = {
        "popular": np.array([[7, 8]]),
        "recent": np.array([[1, 3, 4, 5]]),
        "own": np.array([[9, 2, -1]]),
        "neighbours": np.array([[6, 3, 8]]),
        "long_term": np.array([[1, 2]]),
    }
    quotas = SourceQuotas(recent=0.5, long_term=0.25, neighbours=0.25, popular=0.125)
    merged = merge_sources(found, quotas, 10)
    assert merged.rows.tolist() == [[9, 2, 1, 6, 7, 3, 4, 5, 8, -1]]
    names = ["own", "own", "long_term", "neighbours", "popular", "recent", "recent", "recent", "neighbours", ""]
    assert merged.source_names(0) == names
    assert merged.places is not None
    assert merged.places[0].tolist() == [0, 1, 0, 0, 0, 1, 2, 3, 2, -1]
    assert merge_sources(found, quotas, 3).rows.tolist() == [[9, 2, 1]]


def test_quotas_are_relative_to_their_sum():
    limits = SourceQuotas(neighbours=0).limits(500)
    assert limits == {"recent": 350, "long_term": 150} | dict.fromkeys(
        ("neighbours", "fresh", "trending", "popular"), 0
    )
    limits = SourceQuotas(recent=0.5, long_term=0.25, neighbours=0.5, popular=0.75).limits(10)  # of 2
    assert [limits[name] for name in ("recent", "long_term", "neighbours", "popular")] == [2, 1, 2, 3]


def brute_neighbours(user, k, allowed):
    """The k items of the largest sum of weights, of those that are allowed."""
    taken = rows_of(states([user]).positives())[0]
    latest = {item: len(taken) - 1 - at for at, item in enumerate(taken)}  # later events replace earlier ones
    weights = FEATURES.neighbours.toarray()
    scores = sum(np.float32(0.99**age) * weights[item] for item, age in latest.items())
    order = sorted(range(N), key=lambda row: -scores[row])
    return [row for row in order if scores[row] > 0 and row in allowed][:k]


@pytest.mark.parametrize("k", [1, 4, N])
def test_neighbours_by_brute_force(k):
    users = [0, 3, 5, 7]
    allow = np.arange(N) % 7 != 0
    exclude = Ragged.of([[1, 2], [], list(range(N)), [30]])
    found = neighbour_items(FEATURES, states(users).positives(), k, allow=allow, exclude=exclude)
    for user, rows, left_out in zip(users, found.tolist(), rows_of(exclude), strict=True):
        expected = brute_neighbours(user, k, set(np.flatnonzero(allow).tolist()) - set(left_out))
        assert rows == expected + [-1] * (k - len(expected))
    plain = neighbour_items(FEATURES, states(users).positives(), k)
    assert [row for row in plain[0].tolist() if row >= 0] == brute_neighbours(0, k, set(range(N)))


def test_neighbours_of_equal_scores_come_by_row():
    weights = np.ones((N, N), dtype=np.float32)
    weights[:, 7] = 2
    same = replace(FEATURES, neighbours=sp.csr_array(weights))
    assert neighbour_items(same, states([0]).positives(), 5).tolist() == [[7, 0, 1, 2, 3]]


def test_neighbours_have_the_score_that_the_reranker_reads():
    queries = states([0, 3])
    found = replace(RERANKED, quotas=only("neighbours")).retrieve(queries, N)
    matrix = FEATURES.matrix(queries, found)
    for state in range(2):
        scores = matrix[state, :, COLUMNS.index("neighbours_long")]
        order = np.argsort(found.places[state])
        mine = [at for at in order if found.source_names(state)[at] == "neighbours"]
        assert len(mine) > 3
        assert (np.diff(scores[mine]) <= 0).all()
        assert scores[mine].min() > 0


def test_trending_is_what_was_taken_in_the_last_seven_days():
    day = EVENTS.latest
    log = toy_log(
        [(0, 1, day - 6 * DAY), (1, 1, day), (0, 2, day - 8 * DAY), (1, 2, day - DAY), (2, 3, day - DAY)]
        + [(user, 4, day - 20 * DAY) for user in range(4)],
        n_items=N,
    )
    features = replace(FEATURES, statistics=ItemStatistics.of(log))
    assert features.trending.days == 7
    # item 1 has two events, items 2 and 3 one: item 2 has more in thirty days; item 4 has none in seven
    assert popular_items(features.trending, states([0]), 5).tolist() == [[1, 2, 3, -1, -1]]
    found = replace(RERANKED, quotas=only("trending")).retrieve(states([0, 3]), 12, features=features)
    for state in range(2):
        names = np.array(found.source_names(state))
        places, rows = (values[state][names == "trending"].tolist() for values in (found.places, found.rows))
        assert rows == [[1, 2, 3][place] for place in places]
        assert {1, 2, 3} <= set(found.rows[state].tolist())


def test_popular_items_have_events_in_the_period():
    popular = Popular(np.array([0.5, 3.5, 1.0, 0.0, 2.0], dtype=np.float32), 0, 30)
    assert popular_items(popular, states([0, 3]), 4).tolist() == [[1, 4, 2, -1]] * 2
    allow, exclude = np.array([True, True, True, True, False]), Ragged.of([[1], []])
    assert popular_items(popular, states([0, 3]), 2, allow=allow, exclude=exclude).tolist() == [[2, -1], [1, 2]]


def test_fresh_items_were_published_lately_or_are_cold_without_a_date():
    """Items 0, 5, … have dates: item 10 the day of the latest event, item 25 thirty days before it."""
    cold = [row for row in range(N) if not FEATURES.statistics.total[row]]
    undated = [row for row in cold if row % 5]
    assert np.flatnonzero(FEATURES.is_fresh).tolist() == sorted({0, 5, 10, 15, 20, *undated})
    queries, exclude = states([0, 3]), Ragged.of([[10], []])
    allow = np.arange(N) != 15
    found = replace(RERANKED, quotas=only("fresh")).retrieve(queries, 12, allow=allow, exclude=exclude)
    users = RERANKED.towers.user_vectors(queries, RERANKED.vectors)
    for state in range(2):
        may = [r for r in np.flatnonzero(FEATURES.is_fresh & allow).tolist() if r not in rows_of(exclude)[state]]
        nearest = sorted(may, key=lambda row: -(RERANKED.vectors[row] @ users[state]))[:6]
        names = np.array(found.source_names(state))
        pairs = zip(found.places[state][names == "fresh"], found.rows[state][names == "fresh"], strict=True)
        assert [nearest[place] for place, _ in pairs] == found.rows[state][names == "fresh"].tolist()
        assert set(nearest) <= set(found.rows[state].tolist())


def test_a_new_item_is_fresh(bundle):
    new = upsert_items(bundle, items("new", title=["New"]), text_channel([1, 0, 0, 0])).recommender
    assert isinstance(new.reranker, Reranker)
    assert new.reranker.features.is_fresh[30]
    found = replace(new, quotas=only("fresh")).retrieve(states([0]), 10)
    assert 30 in found.rows


def test_a_source_without_a_quota_is_not_asked():
    features = replace(FEATURES, neighbours=None)
    quotas = SourceQuotas(neighbours=0)
    found = replace(RERANKED, quotas=quotas).retrieve(states([0]), 20, features=features)
    assert {"trending", "is_fresh"}.isdisjoint(vars(features))
    assert set(found.source_names(0)) <= {"own", "recent", "long_term"}
    with pytest.raises(TypeError):
        replace(RERANKED, quotas=only("neighbours")).retrieve(states([0]), 20, features=features)


def test_features_of_a_reranker_that_is_being_fitted_are_read():
    queries = states([0, 3, 5])
    fitted = replace(RERANKED, quotas=ALL)
    first_stage = replace(fitted, reranker=None)
    expected = fitted.retrieve(queries, 20)
    found = first_stage.retrieve(queries, 20, features=FEATURES)
    np.testing.assert_array_equal(found.rows, expected.rows)
    assert [found.source_names(s) for s in range(3)] == [expected.source_names(s) for s in range(3)]
    brought = {name for state in range(3) for name in found.source_names(state)}
    assert {"neighbours", "trending", "fresh"} <= brought
    without = {name for state in range(3) for name in first_stage.retrieve(queries, 20).source_names(state)}
    assert without <= {"own", "long_term", "recent", "popular"}


@given(
    users=st.lists(st.integers(-1, 59), min_size=1, max_size=4),
    k=st.integers(1, N + 5),
    allow=st.none() | st.lists(st.booleans(), min_size=N, max_size=N).map(np.array),
    excluded=st.none() | st.lists(st.lists(st.integers(0, N - 1), max_size=N), min_size=4, max_size=4),
    shares=st.lists(st.sampled_from([0.0, 0.01, 0.3, 1.0]), min_size=5, max_size=5),
)
def test_no_source_brings_what_is_not_allowed_or_excluded(users, k, allow, excluded, shares):
    names = ("long_term", "neighbours", "fresh", "trending", "popular")
    quotas = SourceQuotas(recent=0.1, **dict(zip(names, shares, strict=True)))
    exclude = None if excluded is None else Ragged.of(excluded[: len(users)])
    found = replace(RERANKED, quotas=quotas, candidates=k).recommend(states(users), k, allow=allow, exclude=exclude)
    for i, rows in enumerate(found.rows.tolist()):
        hidden = set(excluded[i]) if excluded is not None else set()
        possible = {row for row in range(N) if (allow is None or allow[row]) and row not in hidden}
        returned = [row for row in rows if row >= 0]
        assert len(set(returned)) == len(returned) == min(k, len(possible))
        assert set(returned) <= possible
        asked = {"own", "recent", *(name for name, share in zip(names, shares, strict=True) if share)}
        if users[i] >= 0 and len(rows_of(states([users[i]]).positives())[0]):
            assert {name for name in found.source_names(i) if name} <= asked
        else:
            assert {name for name in found.source_names(i) if name} <= {"popular"}
