"""Vectors of cold items by several experts, and the weights that pseudo-cold items give them."""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from test_recsys_cold_start import COLD, ITEMS, world
from toy_data import toy_catalog, toy_log

from features.content.spaces import unit
from recsys.towers import content_prediction as prediction
from recsys.towers.content_prediction import EXPERTS, content_features, item_tfidf, predict_vectors


def test_features_by_hand():
    catalog = toy_catalog(3, categories=[["a", "b"], ["b"], []], text=[[1, 0], [0, 0], [0, 1]])
    x = content_features(catalog, item_tfidf(catalog)).toarray()
    # content | price, price known, published, published known | a, b, none | "title", which all three have
    half = 0.5**0.5
    np.testing.assert_allclose(
        x,
        [[1, 0, 0, 0, 0, 0, half, half, 0, 1], [0, 0, 0, 0, 0, 0, 0, 1, 0, 1], [0, 1, 0, 0, 0, 0, 0, 0, 0, 1]],
        rtol=1e-6,
    )


def test_a_catalogue_without_common_words_has_the_other_features():
    catalog = toy_catalog(2, text=[[1, 0], [0, 1]])  # no word is in three items
    words = item_tfidf(catalog)
    assert words.shape == (2, 0)
    expected = [[1, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(content_features(catalog, words).toarray(), expected)
    vectors = np.eye(2, 4, dtype=np.float32)
    for means in prediction._neighbour_means(
        words, vectors, np.array([0]), np.array([1]), np.array([3]), vectors[1:], 2
    ):
        np.testing.assert_array_equal(means, vectors[1:])


def test_neighbours_by_hand(monkeypatch):
    """The first cold item has cosines .8, .6 and 0; the second shares no word with a warm item."""
    monkeypatch.setattr(prediction, "NEIGHBOURS", (2, 1))
    monkeypatch.setattr(prediction, "MAX_PAIRS", 1)
    words = np.array([[1, 0, 0], [0.8, 0.6, 0], [0.6, 0.8, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    vectors = np.eye(5, dtype=np.float32)
    events, fallback = np.array([4, 9, 100]), np.full((2, 5), 7, np.float32)
    for power, rows in ((2, words), (4, words), (2, sp.csr_array(words))):
        two, one = prediction._neighbour_means(
            rows, vectors, np.array([1, 2, 3]), np.array([0, 4]), events, fallback, power
        )
        weights = np.array([0.8**power * 2, 0.6**power * 3])
        np.testing.assert_allclose(two, [[0, *weights / weights.sum(), 0, 0], [7] * 5], rtol=1e-5)
        np.testing.assert_allclose(one[0], vectors[1], rtol=1e-5)


def test_neighbours_count_nothing_that_points_away():
    rows = np.array([[1, 0], [-1, 0], [0.6, 0.8]], np.float32)
    vectors = np.eye(3, dtype=np.float32)
    for means in prediction._neighbour_means(
        rows, vectors, np.array([1, 2]), np.array([0]), np.array([1, 1]), vectors[:1], 4
    ):
        np.testing.assert_allclose(means, vectors[2:], rtol=1e-6)


def test_weights_find_the_expert_that_carries_the_signal():
    """One expert knows the vectors, one is noise of the same length, one repeats the noise."""
    rng = np.random.default_rng(0)
    truth = unit(rng.normal(size=(200, 16)).astype(np.float32))
    targets = rng.integers(0, 200, 3000)
    users = unit(truth[targets] + 0.3 * rng.normal(size=(3000, 16)).astype(np.float32))
    noise = unit(rng.normal(size=(200, 16)).astype(np.float32))
    weights = prediction._weights(users, np.stack([noise, truth, noise]), targets)
    np.testing.assert_allclose(weights, [0, 1, 0], atol=0.05)
    half = np.stack([truth * (np.arange(16) < 8), truth * (np.arange(16) >= 8)])  # each knows a half
    np.testing.assert_allclose(prediction._weights(users, half, targets), [0.5, 0.5], atol=0.05)


def test_weights_without_anything_to_learn_from_are_those_of_the_first_expert():
    rng = np.random.default_rng(0)
    vectors = unit(rng.normal(size=(2, 50, 8)).astype(np.float32))
    none = np.empty((0, 8), np.float32), np.empty(0, np.int64)
    np.testing.assert_array_equal(prediction._weights(none[0], vectors, none[1]), [1, 0])
    users, targets = unit(rng.normal(size=(100, 8)).astype(np.float32)), rng.integers(0, 50, 100)
    np.testing.assert_array_equal(prediction._weights(users, 0 * vectors, targets), [1, 0])
    away = -users[:50]  # each user points away from what it takes: no weight above 0 helps
    np.testing.assert_array_equal(prediction._weights(users[:50], np.stack([away, away / 2]), np.arange(50)), [1, 0])


def test_pseudo_cold_items_are_drawn_evenly_over_popularity(monkeypatch):
    positives = np.random.default_rng(3).permutation(np.arange(1000)) + 1
    warm = np.flatnonzero(positives > 10)
    for most, run in ((2000, 5), (99, 10)):
        monkeypatch.setattr(prediction, "MAX_HELD_OUT", most)
        rows = prediction._stratified(warm, positives, np.random.default_rng(0))
        assert (np.diff(rows) > 0).all()
        place = (1000 - positives[rows]) // run  # the run of each drawn item, most popular first
        assert sorted(place.tolist()) == list(range(len(warm) // run))


def test_histories_before_pseudo_cold_items_are_without_them():
    events = toy_log([(0, 1, 1), (0, 2, 2), (0, 3, 3), (0, 1, 4), (1, 2, 1), (1, 3, 2), (1, 4, 3)], 2, 5)
    rows = np.array([2, 3])
    states, targets = prediction._states_before(events, rows, np.random.default_rng(0))
    histories = states.positives()
    found = [
        (histories.flat[b:e].tolist(), int(rows[t]))
        for b, e, t in zip(histories.begin, histories.end, targets, strict=True)
    ]
    assert found == [([1], 2), ([1], 3)]  # user 1 has nothing else before


def series(n=300):
    """(catalogue, series of each of n films): five films of a series share two words that no other film has."""
    number = np.arange(n) // 5
    titles = [f"word{row % 7} star{s} moon{s}" for row, s in enumerate(number)]
    catalog = toy_catalog(n)
    return replace(catalog, frame=catalog.frame.with_columns(title=pl.Series(titles))), number


def test_neighbours_count_where_they_predict_better_than_the_regression(monkeypatch):
    """Users take films of one series; the vectors of a series are similar."""
    rng = np.random.default_rng(0)
    catalog, number = series()
    centres = unit(rng.normal(size=(60, 8)).astype(np.float32))
    vectors = unit(centres[number] + 0.1 * rng.normal(size=(300, 8)).astype(np.float32))
    rows = [
        (user, 5 * (user % 60) + film, 10 * film + 1) for user in range(240) for film in range(5) if (user + film) % 3
    ]
    events = toy_log([(u, i, t) for u, i, t in rows if i % 25], 240, 300)
    cold = np.arange(0, 300, 25)

    class Towers:
        def user_vectors(self, states, table):
            last = states.positives().tail(1)[:, 0]
            return centres[number[last]]

    towers: Any = Towers()
    found = predict_vectors(towers, catalog, vectors, events, cold, seed=0)
    assert found.weights[1] + found.weights[2] > 0.5
    assert sum(found.weights) == pytest.approx(1)
    assert found.weights[3:] == (0, 0)  # no item has a content vector
    regression = prediction._Experts.of(catalog, vectors, np.bincount(events.items, minlength=300)).predict(
        np.setdiff1d(np.arange(300), cold), cold
    )[0]

    def error(predicted):
        return ((predicted - vectors[cold]) ** 2).sum(1).mean()

    assert error(found.vectors) < 0.7 * error(regression)
    pseudo = found.pseudo_cold
    assert pseudo is not None
    assert not np.isin(pseudo.rows, cold).any()
    assert len(pseudo.users) == len(pseudo.targets) == len(pseudo.seen)
    same: Any = np.tile(vectors[:1], (300, 1))
    np.testing.assert_allclose(
        predict_vectors(towers, catalog, same, events, cold, seed=0).vectors, same[cold], atol=1e-5
    )


def test_with_few_warm_items_a_weighted_ridge_regression_predicts():
    model, catalog, events = world()
    vectors = model.item_vectors()
    found = predict_vectors(model, catalog, vectors, events, np.array(COLD), seed=0)
    assert found.weights == (1, 0, 0, 0, 0)
    assert len(EXPERTS) == len(found.weights)
    assert found.pseudo_cold is None
    x = content_features(catalog, item_tfidf(catalog)).toarray().astype(np.float64)
    positives = np.bincount(events.positives().items, minlength=ITEMS)
    warm = positives > 0
    weights = np.sqrt(positives[warm])
    weights /= weights.mean()
    y = vectors[warm]
    mean_x, mean_y = np.average(x[warm], axis=0, weights=weights), np.average(y, axis=0, weights=weights)
    centred = x[warm] - mean_x
    solved = np.linalg.solve(
        centred.T * weights @ centred + prediction.RIDGE * np.eye(x.shape[1]), centred.T * weights @ (y - mean_y)
    )
    np.testing.assert_allclose(found.vectors, (x[list(COLD)] - mean_x) @ solved + mean_y, atol=2e-3)


def test_the_figures_that_predictions_depend_on():
    """Those that docs/results.md was measured with."""
    assert (prediction.RIDGE, prediction.NEIGHBOURS, prediction.POWERS) == (4.0, (100, 10), (2, 4))
    assert (prediction.MIN_WARM_ITEMS, prediction.HELD_OUT_FRACTION, prediction.MAX_HELD_OUT) == (100, 5, 2000)
    assert (prediction.MAX_ITERATIONS, prediction.TOLERANCE, prediction.TINY) == (50, 1e-3, 1e-12)
