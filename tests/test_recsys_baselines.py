"""Baselines: their common contract, results by hand and by reference for each, and published figures on real data."""

import os

import numpy as np
import pytest

from experiments.bench.baselines import read_sequences
from experiments.bench.baselines import run as bench
from features.errors import ConfigError, DataError, SourceError
from features.instants import DAY
from features.interactions import Interactions, Ragged
from recsys import baselines, dense_recommender, histories
from recsys.baselines import ease
from recsys.interfaces import Recommender
from recsys.ranking import item_similarity

USERS, ITEMS = 30, 24
UNSEEN = ITEMS - 1
"""The one item without training events."""

WORDS = "red green blue round square soft hard old new"
TEXTS = [f"{WORDS.split()[i % 9]} {WORDS.split()[i % 4]} thing{i % 5}" for i in range(ITEMS)]

VECTORS = np.eye(ITEMS, 4, dtype=np.float32) + np.eye(ITEMS, 4, -7, dtype=np.float32)
"""Content vectors: unit vectors of eight items, zeros for the others."""

FITS = {
    "popular": baselines.fit_popular,
    "popular in the last days": lambda e: baselines.fit_popular(e, days=0.5),
    "item-knn": lambda e: baselines.fit_item_knn(e, k=5),
    "ease": lambda e: baselines.fit_ease(e, regularization=5.0),
    "als": lambda e: baselines.fit_als(e, factors=4, iterations=3),
    "tfidf": lambda e: baselines.fit_tfidf(e, TEXTS),
    "bridge": lambda e: baselines.fit_bridge(e, TEXTS, dim=6),
    "ease-bridge": lambda e: baselines.fit_ease_bridge(e, TEXTS, regularization=5.0, neighbours=3),
    "star": lambda e: baselines.fit_star(e, TEXTS, VECTORS, vectors=0.3),
    "frequency": baselines.fit_frequency,
}
FROM_HISTORY_ALONE = ("tfidf", "bridge", "star", "frequency")
"""Baselines that score from the history alone, also from an item without training events."""


def log(users, items, times=None, positive=None, n_users=None, n_items=None):
    n = len(users)
    users, items = np.array(users, dtype=np.int64), np.array(items, dtype=np.int64)
    times = np.arange(n, dtype=np.int64) if times is None else np.array(times, dtype=np.int64)
    positive = np.ones(n, np.bool_) if positive is None else np.array(positive, dtype=np.bool_)
    seen = np.ones(n, np.bool_)
    return Interactions.sort(
        users, items, times, positive, seen, n_users or int(users.max()) + 1, n_items or int(items.max()) + 1
    )


def states(*rows):
    """States of histories that are given as lists of item rows, oldest first."""
    users = np.repeat(np.arange(len(rows)), [len(h) for h in rows])
    events = log(users.tolist(), [i for h in rows for i in h], n_users=len(rows), n_items=ITEMS)
    return events.states(np.arange(len(rows)), np.full(len(rows), 10**6))


def dense(candidates, n_items):
    """Scores (b, n) by item, NaN where the item is not among the candidates."""
    out = np.full((len(candidates), n_items), np.nan, dtype=np.float32)
    user, place = np.nonzero(candidates.rows >= 0)
    out[user, candidates.rows[user, place]] = candidates.scores[user, place]
    return out


def scores_of(fitted, *rows):
    n = len(fitted.popularity)
    return dense(fitted.recommend(states(*rows), n), n)


@pytest.fixture(scope="module")
def events():
    rng = np.random.default_rng(0)
    users = rng.integers(USERS, size=300)
    items = np.minimum(rng.integers(ITEMS - 1, size=300), rng.integers(ITEMS - 1, size=300))
    times = np.sort(rng.integers(2 * DAY, size=300))
    positive = rng.random(300) < 0.8
    positive[-1] = False  # the latest event is not positive, and is fitted_until nevertheless
    return log(users, items, times, positive, USERS, ITEMS)


@pytest.fixture(params=FITS, scope="module")
def named(request, events):
    return request.param, FITS[request.param](events)


@pytest.fixture
def fitted(named):
    return named[1]


@pytest.fixture
def queries(events):
    """States of all users late in the log, of an unknown user, and of a user before its first event."""
    users = np.append(np.arange(USERS), [-1, 0])
    return events.states(users, np.append(np.full(USERS + 1, 2 * DAY), [-1]))


def test_it_is_a_recommender_with_the_time_of_its_latest_event(fitted, events):
    assert fitted.fitted_until == events.latest
    assert events.positives().latest < events.latest
    assert fitted.popularity.shape == (ITEMS,)
    assert isinstance(fitted, Recommender)


@pytest.mark.parametrize("k", [1, 7, ITEMS, ITEMS + 9])
def test_lists_have_k_places_in_descending_order_and_padding_at_the_end(fitted, queries, k):
    allow = np.arange(ITEMS) % 3 > 0
    candidates = fitted.recommend(queries, k, allow=allow, exclude=queries.seen_items())
    assert candidates.rows.shape == candidates.scores.shape == (len(queries), k)
    assert candidates.rows.dtype == np.int64
    assert candidates.scores.dtype == np.float32
    real = candidates.rows >= 0
    assert np.isfinite(candidates.scores[real]).all()
    assert np.isneginf(candidates.scores[~real]).all()
    assert (real[:, :-1] | ~real[:, 1:]).all()
    assert (candidates.scores[:, :-1] >= candidates.scores[:, 1:]).all()
    free = np.tile(allow, (len(queries), 1))
    free[queries.seen_items().pairs()] = False
    assert real.sum(axis=1).tolist() == np.minimum(k, free.sum(axis=1)).tolist()
    user, place = np.nonzero(real)
    assert free[user, candidates.rows[user, place]].all()
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in candidates.rows)


def test_without_a_history_items_are_ordered_by_popularity(fitted, queries):
    candidates = fitted.recommend(queries, ITEMS)
    for cold_user in (-1, -2):
        np.testing.assert_array_equal(fitted.popularity[candidates.rows[cold_user]], np.sort(fitted.popularity)[::-1])


def test_a_history_of_an_item_without_training_events_counts_only_in_content_and_frequency_baselines(named):
    name, fitted = named
    scores = scores_of(fitted, [UNSEEN])[0]
    assert np.array_equal(scores, fitted.popularity) == (name not in FROM_HISTORY_ALONE)


def test_only_positive_events_of_a_history_count(fitted):
    positives = states([1, 2], [1, 2])
    mixed = log([0, 0, 0, 1, 1], [1, 7, 2, 1, 2], positive=[1, 0, 1, 1, 1], n_items=ITEMS)
    mixed = mixed.states(np.arange(2), np.full(2, 99))
    np.testing.assert_array_equal(fitted.recommend(mixed, ITEMS).rows, fitted.recommend(positives, ITEMS).rows)


def test_only_positive_events_are_fitted(named, events):
    name, fitted = named
    if name == "popular in the last days":
        return  # its period ends at the latest event of any kind
    refitted = FITS[name](events.positives())
    np.testing.assert_allclose(scores_of(refitted, [3, 1], []), scores_of(fitted, [3, 1], []), rtol=1e-5, atol=1e-6)


def test_fitting_is_deterministic(named, events, queries):
    name, fitted = named
    first, second = fitted.recommend(queries, 9), FITS[name](events).recommend(queries, 9)
    np.testing.assert_array_equal(first.rows, second.rows)
    np.testing.assert_array_equal(first.scores, second.scores)


def test_a_batch_has_the_scores_of_single_states(fitted, queries, monkeypatch):
    together = fitted.recommend(queries, ITEMS, exclude=queries.seen_items())
    monkeypatch.setattr(dense_recommender, "SCORES_AT_ONCE", 3 * ITEMS)  # three states at a time
    by_three = fitted.recommend(queries, ITEMS, exclude=queries.seen_items())
    for i in range(len(queries)):
        part = queries[i : i + 1]
        alone = fitted.recommend(part, ITEMS, exclude=part.seen_items())
        for batch in (together, by_three):
            np.testing.assert_allclose(
                dense(alone, ITEMS)[0], dense(batch, ITEMS)[i], rtol=1e-4, atol=1e-5, equal_nan=True
            )


def test_no_states_give_no_lists(fitted, queries):
    candidates = fitted.recommend(queries[:0], 5)
    assert candidates.rows.shape == (0, 5)


@pytest.mark.parametrize("name", FITS)
def test_without_positive_events_fitting_fails(name):
    with pytest.raises(DataError, match="given 2 events and none is positive"):
        FITS[name](log([0, 1], [0, 1], positive=[0, 0], n_items=ITEMS))


@pytest.mark.parametrize(
    ("fit", "settings", "message"),
    [
        (baselines.fit_popular, {"days": 0}, "last 0 days"),
        (baselines.fit_item_knn, {"k": 0}, "k=0"),
        (baselines.fit_item_knn, {"decay": 1.5}, "decay=1.5"),
        (baselines.fit_ease, {"regularization": 0}, "regularization=0"),
        (baselines.fit_als, {"factors": 0}, "factors=0"),
        (baselines.fit_tfidf, {"texts": TEXTS, "decay": 0}, "decay=0"),
        (baselines.fit_bridge, {"texts": TEXTS, "dim": 0}, "dim=0"),
        (baselines.fit_ease_bridge, {"texts": TEXTS, "neighbours": 0}, "neighbours=0"),
        (baselines.fit_ease_bridge, {"texts": TEXTS, "decay": 0}, "decay=0"),
        (baselines.fit_star, {"texts": TEXTS, "content": VECTORS, "last": 0}, "last=0"),
        (baselines.fit_star, {"texts": TEXTS, "content": VECTORS, "decay": 0}, "decay=0"),
        (baselines.fit_star, {"texts": TEXTS, "content": VECTORS, "weight": 1.5}, r"weight=1\.5"),
        (baselines.fit_star, {"texts": TEXTS, "content": VECTORS, "vectors": -1}, "vectors=-1"),
        (baselines.fit_star, {"texts": TEXTS, "content": VECTORS, "k": 0}, "k=0"),
        (baselines.fit_frequency, {"decay": 1}, "decay=1"),
    ],
)
def test_settings_out_of_range_are_refused(events, fit, settings, message):
    with pytest.raises(ConfigError, match=message):
        fit(events, **settings)


def test_ease_of_more_items_than_fit_into_its_memory_is_refused():
    few = log([0, 0, 1], [1, 2, 9], n_items=ITEMS)  # only items with positive events count
    with pytest.raises(DataError, match=r"EASE of 3 items needs 0\.0 GiB for a 3 x 3 float32 matrix"):
        baselines.fit_ease(few, max_gib=1e-9)


def star_without_vectors(events, texts):
    return baselines.fit_star(events, texts, np.zeros((ITEMS, 1), np.float32))


@pytest.mark.parametrize(
    "fit", [baselines.fit_tfidf, baselines.fit_bridge, baselines.fit_ease_bridge, star_without_vectors]
)
def test_texts_must_match_the_items_and_contain_words(events, fit):
    with pytest.raises(DataError, match="3 texts for 24 items"):
        fit(events, TEXTS[:3])
    with pytest.raises(DataError, match="no word has two letters"):
        fit(events, [""] * ITEMS)


def test_a_profile_weights_an_item_by_its_latest_event():
    positives = Ragged.of([[4, 2, 4, 0], [], [1]])
    actual = histories.profile(positives, 5, 0.5).toarray()
    # ages: the second 4 is 1 event old (.5), 2 is 2 old (.25), 0 is the newest
    np.testing.assert_array_equal(actual, [[1, 0, 0.25, 0, 0.5], [0] * 5, [0, 1, 0, 0, 0]])
    np.testing.assert_array_equal(
        histories.profile(positives, 5, 1.0).toarray(), [[1, 0, 1, 0, 1], [0] * 5, [0, 1, 0, 0, 0]]
    )
    assert histories.ages(positives).tolist() == [3, 2, 1, 0, 0]


def test_sparse_times_dense_is_the_same_with_and_without_blas():
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((40, 6)).astype(np.float32)
    for lengths in (0, 30):  # below and above the share at which BLAS takes over
        positives = Ragged.of([rng.permutation(40)[:lengths].tolist() for _ in range(5)] + [[3]])
        weights = histories.profile(positives, 40, 0.9)
        np.testing.assert_allclose(histories.multiply_dense(weights, matrix), weights.toarray() @ matrix, atol=1e-5)


def test_popular_counts_the_positive_events_of_its_period():
    day = DAY
    events = log([0, 1, 2, 0, 1], [0, 0, 0, 1, 2], [0, day, 2 * day + 1, 3 * day, 3 * day + 1], [1, 1, 1, 1, 0])
    assert baselines.fit_popular(events).popularity.tolist() == [3, 1, 0]
    assert baselines.fit_popular(events, days=1.5).popularity.tolist() == [
        1.75,
        1.25,
        0,
    ]  # ties are ordered by all-time counts
    assert baselines.fit_popular(events, days=1).popularity.tolist() == [0.75, 1.25, 0]  # (latest - 1 day, latest]


TRIANGLE = log([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 2])
"""Users of items 0 to 2: three, two, one. Users of two items: 0 and 1 two, 0 and 2 one."""


def test_item_knn_by_hand():
    fitted = baselines.fit_item_knn(TRIANGLE, k=5, shrink=1, exponent=0.25, decay=0.5)
    s01 = 2 / (3**0.25 * 2**0.75 + 1)
    s02 = 1 / (3**0.25 * 1**0.75 + 1)
    s10 = 2 / (2**0.25 * 3**0.75 + 1)
    s20 = 1 / (1**0.25 * 3**0.75 + 1)
    np.testing.assert_allclose(fitted.similarity.toarray(), [[0, s01, s02], [s10, 0, 0], [s20, 0, 0]], rtol=1e-6)
    actual = scores_of(fitted, [1, 0], [0], [2, 1])
    np.testing.assert_allclose(actual, [[0.5 * s10, s01, s02], [0, s01, s02], [s10 + 0.5 * s20, 0, 0]], rtol=1e-6)


def test_item_knn_keeps_the_nearest_and_never_cuts_a_tie():
    nearest = baselines.fit_item_knn(TRIANGLE, k=1, shrink=0, exponent=0.5).similarity.toarray()
    assert (nearest > 0).tolist() == [[False, True, False], [True, False, False], [True, False, False]]
    tied = log([0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 0, 2, 0, 3, 0, 3])  # item 3 twice with 0, items 1 and 2 once
    kept = baselines.fit_item_knn(tied, k=2, shrink=0, exponent=0.5).similarity.toarray()
    assert (kept[0] > 0).tolist() == [False, True, True, True]
    nearest = baselines.fit_item_knn(tied, k=1, shrink=0, exponent=0.5).similarity.toarray()
    assert (nearest[0] > 0).tolist() == [False, False, False, True]


def test_a_tie_of_more_than_ten_times_k_is_dropped():
    crowd = log([0] * 60 + [1, 1, 1, 2, 2], [*range(60), 0, 1, 2, 0, 1])
    similarity = baselines.fit_item_knn(crowd, k=2, shrink=0, exponent=0.5).similarity
    # each of items 3 to 59 has one user in common with every other item: a tie of more than 10 * k
    expected = {(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)}
    assert {(int(i), int(j)) for i, j in zip(*similarity.nonzero(), strict=True)} == expected


def test_item_knn_does_not_depend_on_its_blocks(events, monkeypatch):
    unblocked = baselines.fit_item_knn(events, k=4).similarity.toarray()
    monkeypatch.setattr(item_similarity, "_SIMILARITIES_AT_ONCE", 5 * ITEMS)
    np.testing.assert_array_equal(baselines.fit_item_knn(events, k=4).similarity.toarray(), unblocked)


def test_ease_equals_its_closed_form(events, monkeypatch):
    monkeypatch.setattr(ease, "_BLOCK", 7)
    positives = events.positives()
    x = np.zeros((USERS, ITEMS))
    x[positives.users, positives.items] = 1
    p = np.linalg.inv(x.T @ x + 5.0 * np.eye(ITEMS))
    b = -p / np.diag(p)
    np.fill_diagonal(b, 0)
    fitted = baselines.fit_ease(events, regularization=5.0, decay=0.8)
    assert fitted.warm.tolist() == np.unique(positives.items).tolist()
    np.testing.assert_allclose(fitted.weights, b[np.ix_(fitted.warm, fitted.warm)], atol=1e-5)
    assert UNSEEN not in fitted.warm
    np.testing.assert_allclose(scores_of(fitted, [3, 9, 1])[0], 0.64 * b[3] + 0.8 * b[9] + b[1], atol=1e-5)


def test_ease_by_hand():
    # one user with both of two items: X'X + 1 = [[2, 1], [1, 2]], P = [[2, -1], [-1, 2]] / 3, so B_01 = 1/2
    fitted = baselines.fit_ease(log([0, 0], [0, 1]), regularization=1.0)
    np.testing.assert_allclose(fitted.weights, [[0, 0.5], [0.5, 0]], rtol=1e-6)


def test_als_solves_users_from_their_history(events):
    fitted = baselines.fit_als(events, factors=5, regularization=0.3, alpha=7.0, iterations=2)
    y = fitted.model.item_factors.astype(np.float64)
    assert not y[UNSEEN].any()
    history = [2, 8, 4]
    positives = y[history]
    # Hu, Koren & Volinsky, equation 4: (Y'Y + Y'(C - I)Y + reg I) x = Y'C p, with C = alpha at positive items
    a = y.T @ y + (7.0 - 1) * positives.T @ positives + 0.3 * np.eye(5)
    x = np.linalg.solve(a, 7.0 * positives.sum(axis=0))
    np.testing.assert_allclose(scores_of(fitted, history)[0], y @ x, rtol=1e-3, atol=1e-4)


def test_tfidf_by_hand():
    texts = ["red", "blue", "red", ""]
    fitted = baselines.fit_tfidf(log([0, 1], [0, 1], n_items=4), texts, decay=0.8)
    length = np.hypot(0.8, 1.0)
    np.testing.assert_allclose(scores_of(fitted, [0, 1])[0], [0.8 / length, 1 / length, 0.8 / length, 0], rtol=1e-6)


def test_the_bridge_scores_a_cold_item_by_its_words():
    # two groups of users, with items 0-3 and 4-7; items 8 and 9 are cold, with words of the first and second group
    users = np.repeat(np.arange(12), 3)
    items = np.concatenate([[(u + j) % 4 + 4 * (u % 2) for j in range(3)] for u in range(12)])
    texts = ["garden tools"] * 4 + ["fishing rods"] * 4 + ["garden shears", "fishing lines"]
    fitted = baselines.fit_bridge(log(users, items, n_items=10), texts, dim=2, ridge=0.01)
    scores = scores_of(fitted, [0, 1], [5])
    assert scores[0, 8] > 1.5 * scores[0, 9]
    assert scores[1, 9] > 1.5 * scores[1, 8]
    assert np.ptp(scores[0, :4]) == pytest.approx(
        0, abs=1e-6
    )  # warm items with the same words have the same prediction
    cold_history = scores_of(fitted, [9])[0]
    assert cold_history[4] > 1.5 * cold_history[0]


def test_the_bridge_scores_predicted_vectors_by_behaviour_vectors(events):
    fitted = baselines.fit_bridge(events, TEXTS, dim=6, decay=0.5)
    warm = fitted.popularity > 0
    assert np.abs(fitted.behaviour - fitted.predicted)[warm].max() > 0.1
    np.testing.assert_array_equal(fitted.behaviour[~warm], fitted.predicted[~warm])
    np.testing.assert_allclose(np.linalg.norm(fitted.behaviour[warm], axis=1), 1, rtol=1e-5)
    user = 0.5 * fitted.behaviour[4] + fitted.behaviour[7]
    np.testing.assert_allclose(scores_of(fitted, [4, 7])[0], fitted.predicted @ user, rtol=1e-4, atol=1e-5)


def test_frequency_orders_by_count_then_recency_then_popularity():
    events = log([0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 2], n_items=5)
    fitted = baselines.fit_frequency(events, decay=0.9)
    candidates = fitted.recommend(states([4, 3, 4, 2]), 5)
    # counts: 4 two, 2 and 3 one, 2 is later; then by popularity 0 (3 events) before 1 (2 events)
    assert candidates.rows.tolist() == [[4, 2, 3, 0, 1]]
    recency = 0.1 * np.array([0.9**3 + 0.9, 1, 0.9**2])
    np.testing.assert_allclose(candidates.scores[0], [*(np.array([2, 1, 1]) + recency), 3 / 4, 2 / 4], rtol=1e-6)


@pytest.mark.soak
def test_published_figures_are_reached_on_beauty():
    if "RECSYS_DATA" not in os.environ:
        pytest.skip("RECSYS_DATA is not set: no sequences/Beauty.txt to reproduce published figures on")
    result = bench(short=True)
    assert result.figures["test_users"] == 22_363
    assert len(result.bars) == 4
    assert all(bar.holds for bar in result.bars), result.bars


def test_sequences_keep_their_order(tmp_path):
    path = tmp_path / "s.txt"
    path.write_text("7 30 10 20\n\n9 10 30\n")
    events = read_sequences(path)
    assert (events.n_users, events.n_items) == (2, 3)
    assert events.users.tolist() == [0, 0, 0, 1, 1]
    assert events.times.tolist() == [0, 1, 2, 0, 1]
    assert events.items[0] == events.items[4]
    assert events.items[1] == events.items[3]
    with pytest.raises(SourceError, match="no such file"):
        read_sequences(tmp_path / "other.txt")
    with pytest.raises(SourceError, match=r"Beauty\.txt: no such file"):
        bench(data=str(tmp_path))


def test_the_kinds_that_a_configuration_may_name():
    kinds = {"popular", "item-knn", "ease", "als", "tfidf", "bridge", "ease-bridge", "star", "frequency"}
    assert set(baselines.KINDS) == kinds
    assert {name.split()[0] for name in FITS} == kinds
    for kind in kinds:
        baselines.check_baseline(kind, {})
        baselines.check_baseline(f"{kind} 7 days", {})
        with pytest.raises(ValueError, match=f"'{kind}' has no setting 'depth'; it has "):
            baselines.check_baseline(kind, {"depth": 1})
    for name in ("", " ", "popularity", "Popular"):
        with pytest.raises(ValueError, match="no baseline"):
            baselines.check_baseline(name, {})
