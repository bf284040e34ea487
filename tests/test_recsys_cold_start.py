"""Cold items: predicted vectors, the lift, and that no other vector changes."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
import torch
from toy_data import START, chain, toy_catalog, toy_log

from recsys.config import TowerConfig
from recsys.item_statistics import ItemStatistics
from recsys.retrieval.index import Index
from recsys.towers import cold_start
from recsys.towers.cold_start import content_features, informative_part, item_tfidf, place_cold_items
from recsys.towers.model import TwoTowers

ITEMS = 40
COLD = (7, 21, 33, 39)
"""Items without events in `world`."""


def config(share, **more):
    return TowerConfig(dimension=8, layers=1, history=5, dropout=0.0, id_dropout=0.0, newcomers=share, **more)


def world(share, **more):
    """(towers with random parameters, catalogue, events): users take the items in order, except for the cold ones."""
    events = chain(60, ITEMS, 12)
    events = events.where(~np.isin(events.items, COLD))
    text = np.random.default_rng(0).normal(size=(ITEMS, 6))
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    catalog = toy_catalog(ITEMS, categories=[[f"c{row % 3}"] for row in range(ITEMS)], text=text)
    torch.manual_seed(0)
    model = TwoTowers(catalog, ItemStatistics.of(events), config(share, **more))
    model.rotate(events, seed=0)
    return model, catalog, events


def now(events):
    """States of all users after all events."""
    return events.states(np.arange(events.n_users), np.full(events.n_users, events.latest + 1))


def shares(vectors, model, events):
    """Share of the cold items in the top ten places of all users."""
    states = now(events)
    users = model.user_vectors(states, vectors)
    top = Index(vectors).search(users, 10, exclude=states.seen_items()).rows
    return np.isin(top, COLD).mean()


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
    means = cold_start._neighbour_means(words, vectors, np.array([0]), np.array([1]), np.array([3]), vectors[1:])
    np.testing.assert_array_equal(means, vectors[1:])


def test_neighbours_by_hand(monkeypatch):
    """The first cold item has cosines .8, .6 and 0; the second shares no word with a warm item."""
    monkeypatch.setattr(cold_start, "NEIGHBOURS", 2)
    monkeypatch.setattr(cold_start, "MAX_PAIRS", 1)
    words = sp.csr_array(np.array([[1, 0, 0], [0.8, 0.6, 0], [0.6, 0.8, 0], [0, 1, 0], [0, 0, 1]], np.float32))
    vectors = np.eye(5, dtype=np.float32)
    events, fallback = np.array([4, 9, 100]), np.full((2, 5), 7, np.float32)
    means = cold_start._neighbour_means(words, vectors, np.array([1, 2, 3]), np.array([0, 4]), events, fallback)
    weights = np.array([0.64 * 2, 0.36 * 3])
    np.testing.assert_allclose(means, [[0, *weights / weights.sum(), 0, 0], [7] * 5], rtol=1e-5)
    monkeypatch.setattr(cold_start, "NEIGHBOURS", 1)
    means = cold_start._neighbour_means(words, vectors, np.array([1, 2, 3]), np.array([0, 4]), events, fallback)
    np.testing.assert_allclose(means[0], vectors[1], rtol=1e-5)


def test_neighbours_count_where_they_predict_better_than_the_regression():
    """Series of five films: films of a series have similar vectors, and two words that no other film has."""
    rng = np.random.default_rng(0)
    series = np.arange(300) // 5
    catalog = toy_catalog(300)
    titles = [f"word{row % 7} star{s} moon{s}" for row, s in enumerate(series)]
    catalog = replace(catalog, frame=catalog.frame.with_columns(title=pl.Series(titles)))
    vectors = cold_start.unit((rng.normal(size=(60, 8))[series] + 0.3 * rng.normal(size=(300, 8))).astype(np.float32))
    cold, users = np.arange(0, 300, 25), cold_start.unit(rng.normal(size=(500, 8)).astype(np.float32))
    warm, positives = np.setdiff1d(np.arange(300), cold), np.full(300, 9)
    features = content_features(catalog, item_tfidf(catalog))
    regression = cold_start._ridge_predictions(features, vectors, warm, cold, positives[warm])

    def error(predicted):
        return ((predicted - vectors[cold]) ** 2).sum(1).mean()

    predicted = cold_start._predicted(catalog, vectors, warm, cold, positives, users, seed=0)
    assert error(predicted) < 0.7 * error(regression)
    shuffled = vectors[rng.permutation(300)]  # words predict nothing
    predicted = cold_start._predicted(catalog, shuffled, warm, cold, positives, users, seed=0)
    assert np.linalg.norm(predicted, axis=1).mean() < 0.4  # the prediction is close to the mean
    same = np.tile(vectors[:1], (300, 1))
    predicted = cold_start._predicted(catalog, same, warm, cold, positives, users, seed=0)
    np.testing.assert_allclose(predicted, same[cold], atol=1e-5)


def test_with_few_warm_items_cold_items_have_the_vectors_of_a_weighted_ridge_regression(monkeypatch):
    monkeypatch.setattr(cold_start, "MAX_LIFT", 0.0)  # the bisection ends close to no lift
    model, catalog, events = world(0.2)
    placed = place_cold_items(model, catalog, events, seed=0)
    x = content_features(catalog, item_tfidf(catalog)).toarray().astype(np.float64)
    positives = np.bincount(events.positives().items, minlength=ITEMS)
    warm = positives > 0
    weights = np.sqrt(positives[warm])
    weights /= weights.mean()
    y = model.item_vectors()[warm]
    mean_x, mean_y = np.average(x[warm], axis=0, weights=weights), np.average(y, axis=0, weights=weights)
    centred = x[warm] - mean_x
    solved = np.linalg.solve(
        centred.T * weights @ centred + cold_start.RIDGE * np.eye(x.shape[1]), centred.T * weights @ (y - mean_y)
    )
    expected = (x[list(COLD)] - mean_x) @ solved + mean_y
    expected /= np.linalg.norm(expected, axis=1, keepdims=True).clip(min=1)
    np.testing.assert_allclose(placed[list(COLD), :6], expected[:, :6], atol=0.01)  # the last quarter is filler


def test_the_filler_hardly_changes_scores_and_does_not_make_items_similar():
    rng = np.random.default_rng(0)
    users = rng.normal(size=(500, 16)) * np.where(np.arange(16) < 12, 1.0, 0.01)
    users = (users / np.linalg.norm(users, axis=1, keepdims=True)).astype(np.float32)
    rows = (0.1 * rng.normal(size=(200, 16))).astype(np.float32)
    filler = cold_start._filler(200, 16, seed=0)
    placed = cold_start._unit_length(rows, filler)
    np.testing.assert_allclose(np.linalg.norm(placed, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(users @ placed.T, users @ rows.T, atol=0.02)
    assert abs((placed @ placed.T)[~np.eye(200, dtype=bool)].mean()) < 0.02
    lengths = np.linalg.norm(3 * rows, axis=1, keepdims=True)
    assert 0.1 < (lengths > 1).mean() < 0.9
    placed = cold_start._unit_length(3 * rows, filler)
    np.testing.assert_allclose(users @ placed.T, users @ (3 * rows / lengths.clip(min=1)).T, atol=0.02)
    longer = lengths[:, 0] > 1
    np.testing.assert_allclose(placed[longer], (3 * rows / lengths)[longer], atol=1e-5)


def test_the_share_is_reached_although_it_falls_again_with_longer_steps():
    """Two groups of users: after a long step all items lie between the groups, where no user prefers them."""
    rng = np.random.default_rng(0)
    groups = np.array([[1, 0.2, 0, 0], [0.2, 1, 0, 0]], np.float32)
    users = cold_start.unit(groups.repeat(200, 0) + rng.normal(0, 0.05, (400, 4)).astype(np.float32))
    predicted = (0.5 * groups.repeat(10, 0) + rng.normal(0, 0.05, (20, 4))).astype(np.float32)
    competitors = np.tile((0.9 - np.arange(cold_start.TOP) / 1000).astype(np.float32), (400, 1))
    filler, counted = cold_start._filler(20, 4, seed=0), np.ones(20, dtype=np.bool_)

    def share_taken(rows):
        return float((np.sort(users @ rows.T)[:, -cold_start.TOP :] > 0.895).mean())

    longest = cold_start.MAX_STEP * cold_start.unit(users.mean(0, keepdims=True))
    assert share_taken(cold_start._unit_length(predicted + longest, filler)) < 0.2
    assert share_taken(cold_start._lift(predicted, filler, counted, users, competitors, 0.3)) > 0.2
    # a share of 1 is never reached: the step of the largest share is taken
    assert share_taken(cold_start._lift(predicted, filler, counted, users, competitors, 1.0)) > 0.4


def test_informative_part_leaves_out_the_filler():
    vectors = np.array([[3, 0, 0, 0, 0, 4, 12, 84], [0, 1, 0, 0, 0, 0, 0, 0]], dtype=np.float32)
    original = vectors.copy()
    np.testing.assert_allclose(informative_part(vectors), [[0.6, 0, 0, 0, 0, 0.8, 0, 0], original[1]], rtol=1e-6)
    np.testing.assert_array_equal(vectors, original)


def test_warm_items_keep_their_vectors_and_all_rows_are_unit():
    model, catalog, events = world(0.2)
    placed = place_cold_items(model, catalog, events, seed=0)
    warm = np.setdiff1d(np.arange(ITEMS), COLD)
    np.testing.assert_array_equal(placed[warm], model.item_vectors()[warm])
    assert not np.allclose(placed[list(COLD)], model.item_vectors()[list(COLD)], atol=0.1)
    np.testing.assert_allclose(np.linalg.norm(placed, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(("share", "max_lift", "bound"), [(0.15, 4.0, 0.15), (1.0, 2.0, 2 * len(COLD) / ITEMS)])
def test_cold_items_take_the_configured_share_at_most(share, max_lift, bound, monkeypatch):
    monkeypatch.setattr(cold_start, "MAX_LIFT", max_lift)
    model, catalog, events = world(share)
    taken = shares(place_cold_items(model, catalog, events, seed=0), model, events)
    assert bound - 0.03 < taken <= bound


def test_an_item_with_only_non_positive_events_is_predicted_but_not_lifted():
    model, catalog, events = world(1.0)
    rows = [(0, 7, START, False), *zip(events.users, events.items, events.times, strict=True)]
    touched = toy_log([tuple(row) for row in rows], events.n_users, ITEMS)
    lifted = place_cold_items(model, catalog, events, seed=0)[7]
    placed = place_cold_items(model, catalog, touched, seed=0)[7]
    states = now(events)
    users = model.user_vectors(states, model.item_vectors())
    assert (users @ placed).mean() < (users @ lifted).mean() - 0.01


def test_unpublished_items_are_lifted_but_not_counted():
    model, catalog, events = world(0.15)
    upcoming = np.isin(np.arange(ITEMS), COLD[1::2])
    catalog = replace(catalog, published=np.where(upcoming, events.latest + 1, catalog.published))
    placed = place_cold_items(model, catalog, events, seed=0)
    states = now(events)
    users = model.user_vectors(states, placed)
    top = Index(placed).search(users, 10, allow=~upcoming, exclude=states.seen_items()).rows
    assert 0.12 < np.isin(top, COLD).mean() <= 0.15
    common = users.mean(0)
    unmoved = place_cold_items(model, replace(catalog, available=~np.isin(range(ITEMS), COLD)), events, seed=0)
    assert ((placed - unmoved)[list(COLD)] @ common > 0.01).all()  # unpublished items as well
    later = np.where(np.isin(range(ITEMS), COLD), events.latest + 1, catalog.published)
    none_published = place_cold_items(model, replace(catalog, published=later), events, seed=0)
    np.testing.assert_array_equal(none_published, unmoved)


def test_without_a_share_or_without_content_the_item_tower_decides():
    for model, catalog, events in (world(0.0), world(0.2, content=False)):
        np.testing.assert_array_equal(place_cold_items(model, catalog, events, seed=0), model.item_vectors())


def test_unavailable_items_are_neither_lifted_nor_compete():
    model, catalog, events = world(0.15)
    unavailable = np.isin(np.arange(ITEMS), (7, 21, *range(0, 20, 2)))
    catalog = replace(catalog, available=~unavailable)
    placed = place_cold_items(model, catalog, events, seed=0)
    states = now(events)
    users = model.user_vectors(states, placed)
    top = Index(placed).search(users, 10, allow=~unavailable, exclude=states.seen_items()).rows
    assert 0.12 < np.isin(top, COLD).mean() <= 0.15
    without_warm = replace(catalog, available=np.isin(np.arange(ITEMS), (33, 39)))  # no competitors
    assert np.isfinite(place_cold_items(model, without_warm, events, seed=0)).all()


def test_the_figures_that_vectors_of_cold_items_depend_on():
    """Those that docs/results.md was measured with."""
    assert (cold_start.TOP, cold_start.MAX_LIFT, cold_start.MIN_STEP, cold_start.MAX_STEP) == (10, 4.0, 1 / 64, 8.0)
    assert (cold_start.RIDGE, cold_start.NEIGHBOURS, cold_start.MIN_WARM_ITEMS) == (4.0, 100, 100)
    assert cold_start.HELD_OUT_FRACTION == 5
    assert (cold_start.MAX_ITERATIONS, cold_start.TOLERANCE, cold_start.TINY) == (50, 1e-3, 1e-12)
    kept = [int((informative_part(np.ones((1, d), np.float32)) > 0).sum()) for d in (2, 4, 8, 64, 66)]
    assert kept == [1, 3, 6, 48, 50]  # one coordinate in four holds the filler, and at least one
