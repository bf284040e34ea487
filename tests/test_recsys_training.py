"""Training: a planted pattern, weights and types of events, seeds, early stopping, initial id embeddings."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from toy_data import SMALL, chain, noise, toy_catalog, toy_log

from features.errors import DataError
from features.interactions import Interactions
from recsys.config import TrainingConfig
from recsys.towers.training import fit_towers, learning_rate_factor, svd_item_vectors

QUICK = TrainingConfig(epochs=3, batch_events=200, learning_rate=0.01)


def joined(*logs, n_users, n_items):
    """The events of the logs, one log after the other."""
    names = ("users", "items", "times", "positive", "seen")
    users, items, times, positive, seen = (np.concatenate([getattr(log, name) for log in logs]) for name in names)
    return Interactions(users, items, times, positive, seen, n_users, n_items)


def test_svd_item_vectors_equal_those_of_numpys_svd():
    events = noise(n_users=50, n_items=20)
    vectors = svd_item_vectors(events, 6, seed=0)
    seen = np.zeros((50, 20))
    positives = events.positives()
    seen[positives.users, positives.items] = 1  # 1, also for repeated events
    scaled = seen / np.sqrt(np.maximum(seen.sum(1, keepdims=True) * seen.sum(0), 1e-9))
    _, s, right = np.linalg.svd(scaled)
    expected = right[:6].T * s[:6]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True).clip(min=1e-12)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=2e-3)  # up to the signs of factors


def test_svd_item_vectors_are_zero_for_cold_items_and_beyond_the_rank():
    events = toy_log([(0, 0, 1), (0, 1, 2), (1, 1, 3), (1, 2, 4), (2, 3, 5, False)], n_users=3, n_items=6)
    vectors = svd_item_vectors(events, 8, seed=0)
    assert vectors.shape == (6, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0, 0, 0], atol=1e-6)
    assert not vectors[:, 2:].any()  # three users: rank two


@pytest.mark.parametrize(
    "settings", [{}, {"schedule": "cosine"}, {"loss": "in-batch"}, {"loss": "gbce", "negatives": 8}], ids=str
)
def test_a_planted_pattern_is_learned(settings):
    """Each user takes items i, i + 1, ... from a random start: the next item is certain."""
    events = chain(n_users=80, n_items=20, length=8)
    config = SMALL.model_copy(update={"dimension": 16, "history": 8})
    fitted = fit_towers(
        toy_catalog(20),
        events,
        config,
        TrainingConfig(epochs=60, batch_events=200, learning_rate=0.01, **settings),
        seed=0,
    )
    vectors = fitted.model.item_vectors()
    last = events.times[events.offsets[1:] - 1]
    states = events.states(np.arange(80), last + 1)
    truth = (events.items[events.offsets[1:] - 1] + 1) % 20
    predicted = (fitted.model.user_vectors(states, vectors) @ vectors.T).argmax(1)
    assert (predicted == truth).mean() > 0.9
    assert fitted.epochs == 60
    assert fitted.fitted_until == events.latest
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"] / 2


def test_events_of_almost_no_weight_are_not_learned():
    """Of two users with the same first item one continues by 1, the other, whose events have weight 1e-4, by 7."""
    regular = chain(n_users=60, n_items=20, length=8)
    start = regular.items[regular.offsets[regular.users]]
    light = replace(regular, users=regular.users + 60, items=(start + 7 * (regular.items - start)) % 20)
    weights = np.repeat(np.array([1.0, 1e-4], np.float32), len(regular))
    events = replace(joined(regular, light, n_users=120, n_items=20), weights=weights)
    config = SMALL.model_copy(update={"dimension": 16, "history": 8})
    training = TrainingConfig(epochs=40, batch_events=200, learning_rate=0.01)
    model = fit_towers(toy_catalog(20), events, config, training, seed=0).model
    last = events.items[events.offsets[1:] - 1]
    states = events.states(np.arange(120), np.full(120, events.latest + 1))
    vectors = model.item_vectors()
    predicted = (model.user_vectors(states, vectors) @ vectors.T).argmax(1)
    assert (predicted == (last + 1) % 20)[:60].mean() > 0.9
    assert (predicted == (last + 7) % 20)[60:].mean() < 0.2


def test_event_types_are_learned():
    """Users with events of type 2 continue by 1, those of type 1 by 7: after one event its type predicts the next."""
    take = chain(n_users=60, n_items=20, length=8)
    start = take.items[take.offsets[take.users]]
    look = replace(take, users=take.users + 60, items=(start + 7 * (take.items - start)) % 20)
    events = joined(take, look, n_users=120, n_items=20)
    types = np.repeat(np.array([2, 1]), len(take))
    config = SMALL.model_copy(update={"dimension": 16, "history": 8})
    training = TrainingConfig(epochs=40, batch_events=200, learning_rate=0.01)

    def accuracy(log):
        model = fit_towers(toy_catalog(20), log, config, training, seed=0).model
        assert not model.users.event.weight[0].any()  # unknown types have no effect
        first = log.offsets[:-1]
        states = log.states(np.arange(120), log.times[first] + 1)
        vectors = model.item_vectors()
        predicted = (model.user_vectors(states, vectors) @ vectors.T).argmax(1)
        return (predicted == (log.items[first] + np.repeat([1, 7], 60)) % 20).mean()

    assert accuracy(replace(events, types=types, n_types=3)) > 0.9
    assert accuracy(events) < 0.7


def test_the_cosine_schedule_decays_from_the_warm_up_to_zero():
    constant, cosine = (TrainingConfig(epochs=5, schedule=name) for name in ("constant", "cosine"))
    assert [learning_rate_factor(constant, at) for at in (0.25, 1, 3, 5)] == [0.25, 1, 1, 1]
    shares = [learning_rate_factor(cosine, at) for at in (0.25, 1, 2, 3, 4, 5)]
    np.testing.assert_allclose(shares, [0.25, 1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5, 0], atol=1e-12)
    assert learning_rate_factor(cosine, 7) == 0  # after more epochs than configured


def test_the_same_seed_gives_the_same_weights_bit_for_bit():
    config = SMALL.model_copy(update={"dropout": 0.3, "id_dropout": 0.2})

    def weights(seed, negatives):
        training = QUICK.model_copy(update={"negatives": negatives})
        torch.rand(seed + 3)  # earlier draws must not matter
        return fit_towers(toy_catalog(30), noise(), config, training, seed=seed).model.state_dict()

    for negatives in (0, 16):
        first, repeated, different = weights(1, negatives), weights(1, negatives), weights(2, negatives)
        assert all(torch.equal(first[name], repeated[name]) for name in first)
        assert not all(torch.equal(first[name], different[name]) for name in first)


def test_early_stopping_keeps_the_best_epoch():
    figures = iter([0.1, 0.3, 0.2, 0.3, 0.1, 9.0])
    kept = []

    def validate(model):
        kept.append({name: t.clone() for name, t in model.state_dict().items()})
        return {"ndcg_at_10": next(figures)}

    reported: list[Mapping[str, Any]] = []
    fitted = fit_towers(
        toy_catalog(30),
        noise(),
        SMALL,
        TrainingConfig(epochs=9, patience=3, batch_events=200),
        seed=0,
        validate=validate,
        report=reported.append,
    )
    assert fitted.epochs == 2  # the first of two equal figures
    assert [line["epoch"] for line in fitted.history] == [1, 2, 3, 4, 5]  # three epochs without a better figure
    assert [line["ndcg_at_10"] for line in reported] == [0.1, 0.3, 0.2, 0.3, 0.1]
    weights = dict(fitted.model.named_parameters())
    assert all(torch.equal(t, kept[1][name]) for name, t in weights.items())
    assert not all(torch.equal(t, kept[4][name]) for name, t in weights.items())
    assert not fitted.model.training


def test_the_requested_epochs_are_run():
    fitted = fit_towers(toy_catalog(30), noise(), SMALL, QUICK, seed=0, epochs=2)
    assert fitted.epochs == len(fitted.history) == 2
    assert set(fitted.history[0]) == {"epoch", "loss", "seconds"}


def test_every_parameter_is_trained():
    config = SMALL.model_copy(update={"nested": (4,), "id_dropout": 0.1, "calendar": True})
    events = replace(log := noise(), types=log.items % 3, n_types=3)
    catalog = toy_catalog(30, categories=[["a"], ["b"]] * 15, text=np.eye(30, 4, dtype=np.float32))
    catalog = replace(catalog, price=np.arange(30, dtype=np.float32))
    first, second = (
        dict(fit_towers(catalog, events, config, QUICK, seed=0, epochs=n).model.named_parameters()) for n in (1, 2)
    )
    assert [name for name in first if torch.equal(first[name], second[name])] == []


def test_a_log_without_targets_is_an_error():
    with pytest.raises(DataError, match="no user has a positive event after an earlier one"):
        fit_towers(toy_catalog(6), toy_log([(0, 1, 1), (1, 2, 2)]), SMALL, QUICK, seed=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_towers_are_trained_validated_and_returned_on_the_cpu():
    seen = []

    def validate(model):
        vectors = model.item_vectors()
        states = noise().states(np.arange(60), np.full(60, noise().latest))
        seen.append((model.log_scale.device.type, model.user_vectors(states, vectors).shape, vectors.dtype))
        return {"ndcg_at_10": float(len(seen))}

    fitted = fit_towers(toy_catalog(30), noise(), SMALL, QUICK, seed=0, validate=validate)
    assert seen == [("cuda", (60, 8), np.float32)] * 3
    assert fitted.model.log_scale.device.type == "cpu"
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]
