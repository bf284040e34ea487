"""Simulated people: position bias, fatigue, drift and delays by hand; the truth is the mean of many draws."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.simulation.behaviour import (
    Behaviour,
    Moment,
    Showings,
    chosen_unaided,
    click_probabilities,
    respond,
)
from experiments.simulation.people import People, bundle_vectors, people_near
from experiments.simulation.truth import Truth
from features.errors import DataError


def two_people(drift=0.0):
    """Person 0 likes item 0 by one half (its cosine is the middle), item 1 by almost nothing; person 1 vice versa."""
    axes = np.eye(2)
    return People(axes, axes.copy(), axes[::-1].copy(), drift, 1.0, 0.1)


def vectors(n=200, d=16):
    return np.random.default_rng(3).normal(size=(n, d)).astype(np.float32)


def at(users, days=0.0, shown=0, k=2):
    users = np.asarray(users)
    return Moment(users, np.full(len(users), days), np.full((len(users), k), shown))


def test_a_click_is_a_view_times_the_attraction():
    behaviour = Behaviour(bias=1.0, most=0.8, fatigue=1.0)
    found = click_probabilities(two_people(), behaviour, np.array([[0, 1], [0, 1]]), at([0, 1]))
    small = 0.8 / (1 + np.exp(10.0))  # cosine 0, middle 1, width .1
    assert found == pytest.approx(np.array([[0.4, small / 2], [small, 0.2]]))


def test_position_bias_is_a_power_of_the_position():
    assert Behaviour(bias=1.0).viewed(np.array([1, 2, 4])) == pytest.approx([1, 0.5, 0.25])
    assert Behaviour(bias=0.5).viewed(np.array([1, 4])) == pytest.approx([1, 0.5])
    assert Behaviour(bias=0.0).viewed(np.array([1, 9])) == pytest.approx([1, 1])
    given = click_probabilities(two_people(), Behaviour(), np.array([[0]]), at([0], k=1), np.array([[4]]))
    assert given == pytest.approx(np.array([[0.8 * 0.5 / 4]]))


def test_an_item_shown_again_is_clicked_less():
    people, behaviour = two_people(), Behaviour(bias=0.0, most=0.8, fatigue=0.5)
    showings = Showings.none(people)
    showings.add(np.array([0, 0, 1]), np.array([[0, 1], [0, -1], [1, -1]]))
    assert showings.counts.tolist() == [[2, 1], [0, 1]]
    shown = showings.of(np.array([0]), np.array([[0, 1]]))
    assert shown.tolist() == [[2, 1]]
    found = click_probabilities(people, behaviour, np.array([[0]]), Moment(np.array([0]), np.zeros(1), shown[:, :1]))
    assert found == pytest.approx(np.array([[0.8 * 0.5 * 0.25]]))


def test_a_taste_turns_by_an_angle_a_day():
    people = two_people(drift=np.pi / 6)
    assert people.tastes_at(np.array([0, 0]), np.array([1.0, 3.0])) == pytest.approx(
        np.array([[np.sqrt(0.75), 0.5], [0.0, 1.0]])
    )
    assert people.liking(np.array([0]), np.array([[1, -1]]), np.array([3.0])) == pytest.approx(np.array([[0.5, 0]]))


def test_purchases_come_after_an_exponential_delay():
    behaviour = Behaviour(converts=0.5, delay=2.0)
    assert behaviour.bought_within(2.0) == pytest.approx(0.5 * (1 - np.exp(-1)))
    truth = Truth(two_people(), Behaviour(bias=0.0, most=0.8, converts=0.5, delay=2.0), within=2.0)
    assert truth.of_slates(np.array([[0, -1]]), at([0])) == pytest.approx([0.4 * 0.5 * (1 - np.exp(-1))])


def test_the_truth_is_the_mean_of_many_draws():
    people, behaviour = people_near(vectors(), 5, seed=1, drift=0.1), Behaviour(bias=0.7)
    users = np.arange(5)
    slates = Truth(people, behaviour).best_slates(users, np.full(5, 3.0), 4)
    slates[2, 3] = -1
    n, shown = 40_000, np.arange(4) % 3
    many = Moment(np.repeat(users, n), np.full(5 * n, 3.0), np.tile(shown, (5 * n, 1)))
    drawn = respond(people, behaviour, np.repeat(slates, n, axis=0), many, np.random.default_rng(2))
    moment = at(users, 3.0, 0, 4)
    moment.shown[:] = shown
    for within, happened in ((None, drawn.clicked), (1.5, drawn.bought_after <= 1.5)):
        expected = Truth(people, behaviour, within).of_slots(slates, moment)
        mean = happened.reshape(5, n, 4).mean(1)
        assert np.abs(mean - expected).max() < 5 * np.sqrt(0.25 / n)
        assert (mean[2, 3], expected[2, 3]) == (0, 0)
    seen = drawn.viewed.reshape(5, n, 4).mean(1)[0]
    assert seen == pytest.approx(np.arange(1, 5) ** -0.7, abs=5 * np.sqrt(0.25 / n))
    assert not (drawn.clicked & ~drawn.viewed).any()
    assert not (np.isfinite(drawn.bought_after) & ~drawn.clicked).any()


def test_people_like_the_share_that_was_asked_for_and_a_seed_repeats_them():
    people = people_near(vectors(), 300, seed=4, liked=0.05)
    likings = people.likings(np.arange(300), np.zeros(300))
    assert (likings > 0.5).mean() == pytest.approx(0.05, abs=1e-3)
    assert people.liking(np.arange(300), np.tile([7, 9], (300, 1)), np.zeros(300)) == pytest.approx(
        likings[:, [7, 9]]
    )
    assert (people.tastes * people.turns).sum(1) == pytest.approx(np.zeros(300), abs=1e-12)
    same, other = (people_near(vectors(), 300, seed=seed, liked=0.05).tastes for seed in (4, 5))
    assert (same == people.tastes).all()
    assert (other != people.tastes).any()
    with pytest.raises(DataError, match="do not differ"):
        people_near(np.ones((4, 3)), 2, seed=0)


def test_the_gain_of_the_best_slates_is_that_of_the_sums():
    people, behaviour = two_people(), Behaviour(bias=0.0, most=0.8, fatigue=0.5)
    truth, users, days = Truth(people, behaviour), np.array([0, 1]), np.zeros(2)
    best = truth.best_slates(users, days, 1)
    assert best.tolist() == [[0], [1]]
    showings = Showings.none(people)
    showings.add(np.array([1]), np.array([[1]]))
    small = 0.8 / (1 + np.exp(10.0))
    gain = truth.gain(best, best[::-1], users, days, showings)
    assert gain == pytest.approx([0.4 - small, 0.2 - small])


def test_unaided_people_take_what_they_like():
    people = people_near(vectors(60), 400, seed=6, liked=0.1)
    users, rows = chosen_unaided(people, np.arange(50.0), seed=7)
    assert users.tolist() == list(range(400)) * 50
    counts = np.bincount(rows, minlength=60) / len(rows)
    likings = people.likings(np.arange(400), np.zeros(400))
    expected = (likings / likings.sum(1, keepdims=True)).mean(0)
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max() / len(rows))
    assert (chosen_unaided(people, np.arange(50.0), seed=7)[1] == rows).all()


def test_tastes_are_in_contents_where_a_bundle_has_any():
    behaviour, content = np.eye(2, dtype=np.float32), np.ones((2, 3), np.float32)
    for has, expected in ((np.array([False, True]), content), (np.zeros(2, np.bool_), behaviour)):
        bundle: Any = SimpleNamespace(vectors=behaviour, catalog=SimpleNamespace(content=content, has_content=has))
        assert bundle_vectors(bundle) is expected
