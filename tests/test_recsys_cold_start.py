"""Placement of cold items: the lift, and that no other vector changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_data import START, chain, toy_catalog, toy_log

from recsys.config import TowerConfig
from recsys.item_statistics import ItemStatistics
from recsys.retrieval.index import Index
from recsys.towers import cold_start
from recsys.towers.cold_start import Lift, Placement, choose_step, informative_part, place_cold_items
from recsys.towers.content_prediction import Prediction, PseudoCold
from recsys.towers.model import TwoTowers

ITEMS = 40
COLD = (7, 21, 33, 39)
"""Items without events in `world`."""


def config(**more):
    return TowerConfig(dimension=8, layers=1, history=5, dropout=0.0, id_dropout=0.0, **more)


def world(**more):
    """(towers with random parameters, catalogue, events): users take the items in order, except for the cold ones."""
    events = chain(60, ITEMS, 12)
    events = events.where(~np.isin(events.items, COLD))
    text = np.random.default_rng(0).normal(size=(ITEMS, 6))
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    catalog = toy_catalog(ITEMS, categories=[[f"c{row % 3}"] for row in range(ITEMS)], text=text)
    torch.manual_seed(0)
    model = TwoTowers(catalog, ItemStatistics.of(events), config(**more))
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


def test_informative_part_leaves_out_the_filler():
    vectors = np.array([[3, 0, 0, 0, 0, 4, 12, 84], [0, 1, 0, 0, 0, 0, 0, 0]], dtype=np.float32)
    original = vectors.copy()
    np.testing.assert_allclose(informative_part(vectors), [[0.6, 0, 0, 0, 0, 0.8, 0, 0], original[1]], rtol=1e-6)
    np.testing.assert_array_equal(vectors, original)


def place(model, catalog, events, price=0.5):
    return place_cold_items(model, catalog, events, price=price, seed=0)


def placed_in(parts, price):
    model, catalog, events = parts
    return place(model, catalog, events, price)


def test_warm_items_keep_their_vectors_and_all_rows_are_unit():
    model, catalog, events = world()
    for price in (0, 0.2):
        placed = place(model, catalog, events, price).vectors
        warm = np.setdiff1d(np.arange(ITEMS), COLD)
        np.testing.assert_array_equal(placed[warm], model.item_vectors()[warm])
        assert not np.allclose(placed[list(COLD)], model.item_vectors()[list(COLD)], atol=0.1)
        np.testing.assert_allclose(np.linalg.norm(placed, axis=1), 1, rtol=1e-5)


def ndcg_before_last_events(vectors, model, events, allow=None):
    """NDCG@10 of the last event of each user, by brute force."""
    values = []
    for user in range(events.n_users):
        own = np.flatnonzero(events.users == user)
        states = events.states(np.array([user]), events.times[own[-1:]])
        if not states.positives().lengths[0]:
            continue
        scores = (vectors @ model.user_vectors(states, model.item_vectors())[0]).astype(np.float64)
        scores[states.seen_items().pairs()[1]] = -np.inf
        if allow is not None:
            scores[~allow] = -np.inf
        rank = 1 + (scores > scores[events.items[own[-1]]]).sum()
        values.append(1 / np.log2(1 + rank) if rank <= 10 else 0.0)
    return np.mean(values)


def test_the_lift_costs_at_most_the_price_by_brute_force(monkeypatch):
    monkeypatch.setattr(cold_start, "MAX_LIFT", np.inf)
    model, catalog, events = world()
    lifted, steps = {}, {}
    for price in (0, 0.05, 0.3, 1.0):
        placed = place(model, catalog, events, price)
        lifted[price], steps[price] = placed.vectors, placed.chosen
    before = ndcg_before_last_events(lifted[0], model, events)
    for price in (0.05, 0.3, 1.0):
        assert ndcg_before_last_events(lifted[price], model, events) >= (1 - price) * before - 1e-6
    assert steps[0] == 0 < steps[0.3] <= steps[1.0]
    assert shares(lifted[1.0], model, events) > shares(lifted[0], model, events)
    tried = place(model, catalog, events, 0.3).lifts
    at = [lift.step for lift in tried].index(steps[0.3])
    assert tried[at].ndcg == pytest.approx(ndcg_before_last_events(lifted[0.3], model, events), abs=1e-6)
    assert tried[0].ndcg == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize("most", [1.0, 2.0])
def test_cold_items_take_no_more_than_a_multiple_of_their_share_of_the_catalogue(most, monkeypatch):
    monkeypatch.setattr(cold_start, "MAX_LIFT", most)
    monkeypatch.setattr(cold_start, "STEPS", np.linspace(0, 1, 101))
    placed = placed_in(world(), 1.0)
    taken = next(lift.share for lift in placed.lifts if lift.step == placed.chosen)
    bound = most * len(COLD) / ITEMS
    assert bound - 0.03 < taken <= bound


def lifts(*rows):
    return [Lift(step, ndcg, share, 0.1) for step, ndcg, share in rows]


def test_the_longest_step_within_the_price_by_hand():
    curve = lifts((0, 0.5, 0.0), (0.1, 0.5, 0.1), (0.2, 0.46, 0.2), (0.4, 0.44, 0.3), (0.8, 0.49, 0.4))
    assert choose_step(curve, 0.1, 1) == 0.2  # .44 is below .45; what comes behind does not count
    assert choose_step(curve, 0.0, 1) == 0.1
    assert choose_step(curve, 0.5, 1) == 0.8
    assert choose_step(curve, 0.5, 0.3) == 0.4
    assert choose_step(curve, 0.5, 0.29) == 0.2
    falling = lifts((0, 0.5, 0.1), (0.1, 0.5, 0.3), (0.2, 0.5, 0.2), (0.4, 0.5, 0.6))
    assert choose_step(falling, 0.5, 1) == 0.1
    assert choose_step(falling, 0.5, 0.05) == 0  # they have more already
    assert choose_step(lifts((0, 0.0, 0.0), (0.1, 0.0, 0.5)), 0.5, 1) == 0  # nothing is known of what it costs


def test_what_a_placement_says():
    placed = Placement(
        np.eye(2, dtype=np.float32), (0.75, 0.25, 0, 0, 0), tuple(lifts((0, 0.5, 0.0), (0.1, 0.48, 0.1))), 0.1
    )
    assert list(placed.lines()) == [
        "vectors of cold items are predicted by: regression 75%, 100 nearest by words 25%",
        "cold items in lists of the towers, by their lift:",
        "  +0.000: NDCG@10 of known items +0.0%, 0.0% of the places, HR@10 of pseudo-cold items 0.1000",
        "  +0.100: NDCG@10 of known items -4.0%, 10.0% of the places, HR@10 of pseudo-cold items 0.1000 <- chosen",
    ]
    assert list(Placement(np.eye(2, dtype=np.float32)).lines()) == []
    without = replace(placed, lifts=(Lift(0, 0.0, 0.0, 0.1),), chosen=0.0)
    assert "NDCG@10 of known items +0.0%" in list(without.lines())[2]  # and no division by 0


def test_pseudo_cold_items_are_found_among_known_items_by_brute_force():
    rng = np.random.default_rng(1)
    model, _, events = world()
    vectors, known = model.item_vectors(), np.ones(ITEMS, dtype=np.bool_)
    rows = np.array([2, 5, 9, 30])
    states = now(events.where(~np.isin(events.items, rows)))[np.arange(20)]
    users = model.user_vectors(states, vectors)
    predicted = (0.3 * rng.normal(size=(4, 8))).astype(np.float32)
    pseudo = PseudoCold(rows, predicted, users, rng.integers(0, 4, 20), states.seen_items())
    prediction = Prediction(vectors[:4], (1, 0, 0, 0, 0), pseudo)
    trial = cold_start._Trial.of(model, vectors, events, known, prediction, seed=0)
    filler = cold_start._filler(ITEMS, 8, seed=0)
    for step in (0.0, 0.3, 1.0):
        moved = cold_start._unit_length(pseudo.vectors + step * trial.direction, filler[rows])
        table = vectors.copy()
        table[rows] = moved
        hits = []
        for user, target in enumerate(pseudo.targets):
            scores = (table @ users[user]).astype(np.float64)
            scores[states.seen_items()[np.array([user])].pairs()[1]] = -np.inf
            hits.append((scores > scores[rows[target]]).sum() < 10)
        assert trial.lift(step, moved, filler).hr_cold == pytest.approx(np.mean(hits))


def test_an_item_with_only_non_positive_events_is_predicted_but_not_lifted():
    model, catalog, events = world()
    rows = [(0, 7, START, False), *zip(events.users, events.items, events.times, strict=True)]
    touched = toy_log([tuple(row) for row in rows], events.n_users, ITEMS)
    lifted = place(model, catalog, events, 1.0).vectors[7]
    placed = place(model, catalog, touched, 1.0).vectors[7]
    states = now(events)
    users = model.user_vectors(states, model.item_vectors())
    assert (users @ placed).mean() < (users @ lifted).mean() - 0.01


def test_unpublished_items_are_lifted_but_not_counted():
    model, catalog, events = world()
    upcoming = np.isin(np.arange(ITEMS), COLD[1::2])
    published = replace(catalog, published=np.where(upcoming, events.latest + 1, catalog.published))
    placed = place(model, published, events, 0.3)
    assert placed.chosen > 0
    unlifted = place(model, published, events, 0).vectors
    common = model.user_vectors(now(events), unlifted).mean(0)
    assert ((placed.vectors - unlifted)[list(COLD)] @ common > 0).all()  # unpublished items as well
    before = ndcg_before_last_events(unlifted, model, events, ~upcoming)
    assert placed.lifts[0].ndcg == pytest.approx(before, abs=1e-6)
    later = np.where(np.isin(range(ITEMS), COLD), events.latest + 1, catalog.published)
    none_published = place(model, replace(catalog, published=later), events)
    assert (none_published.lifts, none_published.chosen) == ((), 0)


def test_unavailable_items_are_neither_lifted_nor_compete():
    model, catalog, events = world()
    unavailable = np.isin(np.arange(ITEMS), (7, 21, *range(0, 20, 2)))
    catalog = replace(catalog, available=~unavailable)
    placed, unlifted = place(model, catalog, events), place(model, catalog, events, 0).vectors
    np.testing.assert_array_equal(placed.vectors[[7, 21]], unlifted[[7, 21]])
    without_warm = replace(catalog, available=np.isin(np.arange(ITEMS), (33, 39)))  # no competitors
    assert np.isfinite(place(model, without_warm, events).vectors).all()


def test_without_content_or_cold_items_the_item_tower_decides():
    model, catalog, events = world(content=False)
    placed = place(model, catalog, events)
    np.testing.assert_array_equal(placed.vectors, model.item_vectors())
    assert (placed.weights, placed.lifts) == ((), ())
    model, catalog, _ = world()
    everything = chain(60, ITEMS, 12)
    np.testing.assert_array_equal(place(model, catalog, everything).vectors, model.item_vectors())


def test_the_figures_that_vectors_of_cold_items_depend_on():
    """Those that docs/results.md was measured with."""
    assert (cold_start.TOP, cold_start.DEPTH, cold_start.FILLER_FRACTION, cold_start.MAX_LIFT) == (10, 20, 4, 4.0)
    assert (cold_start.STEPS[0], cold_start.STEPS[1], cold_start.STEPS[-1]) == (0, 1 / 64, 2)
    kept = [int((informative_part(np.ones((1, d), np.float32)) > 0).sum()) for d in (2, 4, 8, 64, 66)]
    assert kept == [1, 3, 6, 48, 50]  # one coordinate in four holds the filler, and at least one


def test_a_configured_share_replaces_the_price():
    placed = placed_in(world(cold_share=0.15), 0)
    taken = next(lift.share for lift in placed.lifts if lift.step == placed.chosen)
    assert 0 < taken <= 0.15
    assert placed.chosen > placed_in(world(), 0).chosen == 0
    assert placed_in(world(cold_share=0.0), 1.0).lifts == ()


def test_without_a_last_event_that_has_a_history_nothing_is_lifted():
    model, catalog, _ = world()
    at_once = toy_log([(user, user % 5, START) for user in range(20)], 20, ITEMS)
    placed = place(model, catalog, at_once, 1.0)
    assert placed.chosen == 0
    assert np.isfinite(placed.vectors).all()
