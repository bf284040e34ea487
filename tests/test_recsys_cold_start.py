"""Items without events: where contents put them, how far they are lifted, and that nothing else moves."""

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
from recsys.towers import cold_start as newcomers
from recsys.towers.cold_start import content_features, informative_part, item_tfidf, place_cold_items
from recsys.towers.model import TwoTowers

ITEMS = 40
NEW = (7, 21, 33, 39)


def config(share, **more):
    return TowerConfig(dimension=8, layers=1, history=5, dropout=0.0, id_dropout=0.0, newcomers=share, **more)


def world(share, **more):
    """Towers with random parameters; everyone walks round the items, but for the new ones."""
    events = chain(60, ITEMS, 12)
    events = events.where(~np.isin(events.items, NEW))
    text = np.random.default_rng(0).normal(size=(ITEMS, 6))
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    catalog = toy_catalog(ITEMS, categories=[[f"c{row % 3}"] for row in range(ITEMS)], text=text)
    torch.manual_seed(0)
    model = TwoTowers(catalog, ItemStatistics.of(events), config(share, **more))
    model.rotate(events, seed=0)
    return model, catalog, events


def now(events):
    """Every user, after all events."""
    return events.states(np.arange(events.n_users), np.full(events.n_users, events.latest + 1))


def shares(vectors, model, events):
    """The new items' share of the first ten places of every user now."""
    states = now(events)
    users = model.user_vectors(states, vectors)
    found = Index(vectors).search(users, 10, exclude=states.seen_items()).rows
    return np.isin(found, NEW).mean()


def test_features_by_hand():
    catalog = toy_catalog(3, categories=[["a", "b"], ["b"], []], text=[[1, 0], [0, 0], [0, 1]])
    x = content_features(catalog, item_tfidf(catalog)).toarray()
    # content | price and its mark, publication and its mark | a, b, none | "title", which all three have
    half = 0.5**0.5
    np.testing.assert_allclose(
        x,
        [[1, 0, 0, 0, 0, 0, half, half, 0, 1], [0, 0, 0, 0, 0, 0, 0, 1, 0, 1], [0, 1, 0, 0, 0, 0, 0, 0, 0, 1]],
        rtol=1e-6,
    )


def test_a_catalogue_without_words_has_the_other_features():
    catalog = toy_catalog(2, text=[[1, 0], [0, 1]])  # no word is in three items
    words = item_tfidf(catalog)
    assert words.shape == (2, 0)
    expected = [[1, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(content_features(catalog, words).toarray(), expected)
    vectors = np.eye(2, 4, dtype=np.float32)
    beside = newcomers._neighbour_means(words, vectors, np.array([0]), np.array([1]), np.array([3]), vectors[1:])
    np.testing.assert_array_equal(beside, vectors[1:])


def test_neighbours_by_hand(monkeypatch):
    """Cosines .8, .6 and 0 to the first newcomer; the second shares no word with anybody."""
    monkeypatch.setattr(newcomers, "NEIGHBOURS", 2)
    monkeypatch.setattr(newcomers, "MAX_PAIRS", 1)
    words = sp.csr_array(np.array([[1, 0, 0], [0.8, 0.6, 0], [0.6, 0.8, 0], [0, 1, 0], [0, 0, 1]], np.float32))
    vectors = np.eye(5, dtype=np.float32)
    events, otherwise = np.array([4, 9, 100]), np.full((2, 5), 7, np.float32)
    found = newcomers._neighbour_means(words, vectors, np.array([1, 2, 3]), np.array([0, 4]), events, otherwise)
    weights = np.array([0.64 * 2, 0.36 * 3])
    np.testing.assert_allclose(found, [[0, *weights / weights.sum(), 0, 0], [7] * 5], rtol=1e-5)
    monkeypatch.setattr(newcomers, "NEIGHBOURS", 1)
    found = newcomers._neighbour_means(words, vectors, np.array([1, 2, 3]), np.array([0, 4]), events, otherwise)
    np.testing.assert_allclose(found[0], vectors[1], rtol=1e-5)


def test_neighbours_have_a_say_where_they_foretell_what_a_regression_does_not():
    """Five films of one series each: their vectors are alike, and two words that nobody else has say which it is."""
    rng = np.random.default_rng(0)
    series = np.arange(300) // 5
    catalog = toy_catalog(300)
    titles = [f"word{row % 7} star{s} moon{s}" for row, s in enumerate(series)]
    catalog = replace(catalog, frame=catalog.frame.with_columns(title=pl.Series(titles)))
    vectors = newcomers.unit(rng.normal(size=(60, 8))[series] + 0.3 * rng.normal(size=(300, 8))).astype(np.float32)
    unknown, asked = np.arange(0, 300, 25), newcomers.unit(rng.normal(size=(500, 8)).astype(np.float32))
    known, positives = np.setdiff1d(np.arange(300), unknown), np.full(300, 9)
    words = item_tfidf(catalog)
    alone = newcomers._ridge_predictions(content_features(catalog, words), vectors, known, unknown, positives[known])

    def error(predicted):
        return ((predicted - vectors[unknown]) ** 2).sum(1).mean()

    predicted = newcomers._predicted(catalog, vectors, known, unknown, positives, asked, seed=0)
    assert error(predicted) < 0.7 * error(alone)
    strange = vectors[rng.permutation(300)]  # of what words say nothing
    alone = newcomers._ridge_predictions(content_features(catalog, words), strange, known, unknown, positives[known])
    predicted = newcomers._predicted(catalog, strange, known, unknown, positives, asked, seed=0)
    assert np.linalg.norm(predicted, axis=1).mean() < 0.4  # hardly anything is said
    same = np.tile(vectors[:1], (300, 1))
    predicted = newcomers._predicted(catalog, same, known, unknown, positives, asked, seed=0)
    np.testing.assert_allclose(predicted, same[unknown], atol=1e-5)


def test_new_items_stand_where_a_weighted_ridge_puts_them_where_there_are_few_others(monkeypatch):
    monkeypatch.setattr(newcomers, "MAX_LIFT", 0.0)  # as near to no lift as 12 halvings come
    model, catalog, events = world(0.2)
    placed = place_cold_items(model, catalog, events, seed=0)
    x = content_features(catalog, item_tfidf(catalog)).toarray().astype(np.float64)
    positives = np.bincount(events.positives().items, minlength=ITEMS)
    known = positives > 0
    weights = np.sqrt(positives[known])
    weights /= weights.mean()
    y = model.item_vectors()[known]
    middle_x, middle_y = np.average(x[known], axis=0, weights=weights), np.average(y, axis=0, weights=weights)
    centred = x[known] - middle_x
    solved = np.linalg.solve(
        centred.T * weights @ centred + newcomers.RIDGE * np.eye(x.shape[1]), centred.T * weights @ (y - middle_y)
    )
    expected = (x[list(NEW)] - middle_x) @ solved + middle_y
    expected /= np.linalg.norm(expected, axis=1, keepdims=True).clip(min=1)
    np.testing.assert_allclose(placed[list(NEW), :6], expected[:, :6], atol=0.01)  # the last quarter makes them unit


def test_what_is_left_of_their_length_changes_no_order_and_makes_them_no_more_alike():
    rng = np.random.default_rng(0)
    users = rng.normal(size=(500, 16)) * np.where(np.arange(16) < 12, 1.0, 0.01)
    users = (users / np.linalg.norm(users, axis=1, keepdims=True)).astype(np.float32)
    rows = (0.1 * rng.normal(size=(200, 16))).astype(np.float32)
    aside = newcomers._filler(200, 16, seed=0)
    placed = newcomers._unit_length(rows, aside)
    np.testing.assert_allclose(np.linalg.norm(placed, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(users @ placed.T, users @ rows.T, atol=0.02)
    assert abs((placed @ placed.T)[~np.eye(200, dtype=bool)].mean()) < 0.02
    lengths = np.linalg.norm(3 * rows, axis=1, keepdims=True)
    assert 0.1 < (lengths > 1).mean() < 0.9
    placed = newcomers._unit_length(3 * rows, aside)
    np.testing.assert_allclose(users @ placed.T, users @ (3 * rows / lengths.clip(min=1)).T, atol=0.02)
    longer = lengths[:, 0] > 1
    np.testing.assert_allclose(placed[longer], (3 * rows / lengths)[longer], atol=1e-5)


def test_the_share_is_reached_though_too_long_a_step_loses_it_again():
    """Two tastes: moved far, all new items become one item in the middle, which is nobody's first."""
    rng = np.random.default_rng(0)
    tastes = np.array([[1, 0.2, 0, 0], [0.2, 1, 0, 0]], np.float32)
    users = newcomers.unit(tastes.repeat(200, 0) + rng.normal(0, 0.05, (400, 4)).astype(np.float32))
    predicted = (0.5 * tastes.repeat(10, 0) + rng.normal(0, 0.05, (20, 4))).astype(np.float32)
    rivals = np.full((400, newcomers.TOP), 0.9, np.float32) - np.arange(newcomers.TOP, dtype=np.float32) / 1000
    aside, everyone = newcomers._filler(20, 4, seed=0), np.ones(20, dtype=np.bool_)

    def taken(rows):
        return float((np.sort(users @ rows.T)[:, -newcomers.TOP :] > 0.895).mean())

    far = newcomers._unit_length(predicted + newcomers.MAX_STEP * newcomers.unit(users.mean(0, keepdims=True)), aside)
    assert taken(far) < 0.2
    assert taken(newcomers._lift(predicted, aside, everyone, users, rivals, 0.3)) > 0.2
    most = newcomers._lift(predicted, aside, everyone, users, rivals, 1.0)  # never reached: the most there is
    assert taken(most) > 0.4


def test_what_makes_newcomers_of_full_length_does_not_ask_for_similar_items():
    vectors = np.array([[3, 0, 0, 0, 0, 4, 12, 84], [0, 1, 0, 0, 0, 0, 0, 0]], dtype=np.float32)
    kept = vectors.copy()
    np.testing.assert_allclose(informative_part(vectors), [[0.6, 0, 0, 0, 0, 0.8, 0, 0], kept[1]], rtol=1e-6)
    np.testing.assert_array_equal(vectors, kept)


def test_items_with_events_stay_and_all_rows_are_unit():
    model, catalog, events = world(0.2)
    placed = place_cold_items(model, catalog, events, seed=0)
    others = np.setdiff1d(np.arange(ITEMS), NEW)
    np.testing.assert_array_equal(placed[others], model.item_vectors()[others])
    assert not np.allclose(placed[list(NEW)], model.item_vectors()[list(NEW)], atol=0.1)
    np.testing.assert_allclose(np.linalg.norm(placed, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(("share", "parity", "bound"), [(0.15, 4.0, 0.15), (1.0, 2.0, 2 * len(NEW) / ITEMS)])
def test_new_items_take_the_share_they_are_given_and_no_more(share, parity, bound, monkeypatch):
    monkeypatch.setattr(newcomers, "MAX_LIFT", parity)
    model, catalog, events = world(share)
    taken = shares(place_cold_items(model, catalog, events, seed=0), model, events)
    assert bound - 0.03 < taken <= bound


def test_an_item_that_is_touched_but_never_liked_is_placed_and_not_lifted():
    model, catalog, events = world(1.0)
    rows = [(0, 7, START, False), *zip(events.users, events.items, events.times, strict=True)]
    touched = toy_log([tuple(row) for row in rows], events.n_users, ITEMS)
    lifted = place_cold_items(model, catalog, events, seed=0)[7]
    placed = place_cold_items(model, catalog, touched, seed=0)[7]
    states = now(events)
    users = model.user_vectors(states, model.item_vectors())
    assert (users @ placed).mean() < (users @ lifted).mean() - 0.01


def test_what_is_not_published_yet_moves_with_the_others_and_takes_no_place_of_theirs():
    model, catalog, events = world(0.15)
    upcoming = np.isin(np.arange(ITEMS), NEW[1::2])
    catalog = replace(catalog, published=np.where(upcoming, events.latest + 1, catalog.published))
    placed = place_cold_items(model, catalog, events, seed=0)
    states = now(events)
    users = model.user_vectors(states, placed)
    found = Index(placed).search(users, 10, allow=~upcoming, exclude=states.seen_items()).rows
    assert 0.12 < np.isin(found, NEW).mean() <= 0.15
    common = users.mean(0)
    unmoved = place_cold_items(model, replace(catalog, available=~np.isin(range(ITEMS), NEW)), events, seed=0)
    assert ((placed - unmoved)[list(NEW)] @ common > 0.01).all()  # those to come as well
    later = np.where(np.isin(range(ITEMS), NEW), events.latest + 1, catalog.published)
    none_yet = place_cold_items(model, replace(catalog, published=later), events, seed=0)
    np.testing.assert_array_equal(none_yet, unmoved)


def test_without_a_share_or_without_contents_the_tower_alone_places_them():
    for model, catalog, events in (world(0.0), world(0.2, content=False)):
        np.testing.assert_array_equal(place_cold_items(model, catalog, events, seed=0), model.item_vectors())


def test_what_is_not_available_neither_is_lifted_nor_stands_in_the_way():
    model, catalog, events = world(0.15)
    gone = np.isin(np.arange(ITEMS), (7, 21, *range(0, 20, 2)))
    catalog = replace(catalog, available=~gone)
    placed = place_cold_items(model, catalog, events, seed=0)
    states = now(events)
    users = model.user_vectors(states, placed)
    found = Index(placed).search(users, 10, allow=~gone, exclude=states.seen_items()).rows
    assert 0.12 < np.isin(found, NEW).mean() <= 0.15
    alone = replace(catalog, available=np.isin(np.arange(ITEMS), (33, 39)))  # lifted without any rival: not at all
    assert np.isfinite(place_cold_items(model, alone, events, seed=0)).all()
