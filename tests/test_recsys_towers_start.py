"""Towers before and in their first steps: initial parameters, the optimiser, and what ends a training."""

from typing import Any

import numpy as np
import pytest
import torch
from toy_data import SMALL, chain, toy_catalog

from features.errors import ConfigError
from recsys.config import TowerConfig, TrainingConfig
from recsys.item_statistics import ItemStatistics
from recsys.towers import model as towers_model
from recsys.towers import training as module
from recsys.towers.losses import CALIBRATION, MAX_SCALE, Pairs, gbce_loss
from recsys.towers.model import TwoTowers
from recsys.towers.training import fit_towers

EVENTS = chain()


@pytest.fixture(scope="module")
def fresh():
    """Towers of 1,000 items and 64 dimensions."""
    text = np.eye(1_000, 500, dtype=np.float32)
    catalog = toy_catalog(1_000, categories=[[f"c{row}"] for row in range(1_000)], text=text)
    torch.manual_seed(0)
    statistics = ItemStatistics.of(chain(n_items=1_000))
    return TwoTowers(catalog, statistics, TowerConfig(history=200), n_types=3)


@pytest.mark.parametrize(
    ("name", "shape", "spread"),
    [
        ("items.id.weight", (1_000, 64), 0.2 / 8),
        ("items.project.weight", (64, 500), 0.2 / 8),
        ("items.category.weight", (1_001, 64), 0.2 / 8),
        ("items.popularity.weight", (64, 3), 0.3 * 0.2 / 8),
        ("items.number.weight", (64, 4), 0.3 * 0.2 / 8),
        ("users.position.weight", (200, 64), 0.1 / 8),
        ("users.wait.weight", (17, 64), 0.1 / 8),
        ("users.kind.weight", (2, 64), 0.1 / 8),
        ("users.event.weight", (3, 64), 0),
        ("users.hour.weight", (24, 64), 0),
        ("users.day.weight", (7, 64), 0),
        ("users.blocks.1.qkv.weight", (192, 64), None),
        ("users.blocks.0.up.weight", (512, 64), None),
        ("users.blocks.0.down.weight", (64, 256), None),
    ],
)
def test_the_initial_parameters(fresh, name, shape, spread):
    values = dict(fresh.named_parameters())[name].detach().numpy()
    assert values.shape == shape
    if spread is not None:
        assert values.std() == pytest.approx(spread, rel=0.15)
        assert abs(values.mean()) <= 0.2 * spread


def test_at_first_the_mean_of_the_history_dominates_a_user_vector(fresh):
    np.testing.assert_array_equal(fresh.users.profile.weight.detach(), np.eye(64))
    np.testing.assert_allclose(fresh.users.norm.weight.detach(), np.full(64, 0.1), rtol=1e-6)
    assert (fresh.users.forget.item(), fresh.log_scale.item()) == pytest.approx((0, np.log(1 / 0.07)))
    np.testing.assert_array_equal(fresh.rotation, np.eye(64))
    assert len(fresh.users.blocks) == 2
    assert towers_model.MAX_SAMPLED_USERS == 2_000


def test_a_bundle_holds_parameters_and_the_rotation_alone(fresh):
    parameters = {name for name, _ in fresh.named_parameters()}
    assert set(fresh.state_dict()) == parameters | {"rotation"}


def model(**changes):
    torch.manual_seed(0)
    config = SMALL.model_copy(update=changes)
    return TwoTowers(toy_catalog(EVENTS.n_items), ItemStatistics.of(EVENTS), config)


def test_decay_and_rate_of_each_parameter():
    towers = model()
    training = TrainingConfig(weight_decay=0.5, id_rate=0.25, learning_rate=0.125)
    optimizer = module._optimizer(towers, training)
    assert isinstance(optimizer, torch.optim.AdamW)
    found = {
        id(parameter): (group["weight_decay"], group["boost"], group["lr"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(found) == len(list(towers.parameters()))
    for name, parameter in towers.named_parameters():
        if name == "items.id.weight":
            expected = 0.5, 0.25, 0.125
        elif parameter.ndim == 0:
            expected = 0.0, 10.0, 0.125
        else:
            expected = (0.5 if parameter.ndim == 2 else 0.0), 1.0, 0.125
        assert found[id(parameter)] == expected, name


def test_the_average_covers_about_as_many_steps_as_an_epoch_has():
    towers = model()
    average: Any = module._averaged_model(towers, steps=3)
    values = []
    for value in (1.0, 2.0, 4.0):
        with torch.no_grad():
            towers.users.forget.fill_(value)
        average.update_parameters(towers)
        values.append(average.module.users.forget.item())
    # the first is copied; then 3/4 of the average and 1/4 of the new value
    assert values == pytest.approx([1.0, 0.75 * 1 + 0.25 * 2, 0.75 * 1.25 + 0.25 * 4])


def fit(start, **settings):
    training = TrainingConfig(**{"epochs": 1, "batch_events": 200, "learning_rate": 1e-6} | settings)
    return fit_towers(toy_catalog(EVENTS.n_items), EVENTS, start.config, training, seed=0, start=start)


def test_the_scale_of_scores_is_at_most_40():
    start = model()
    with torch.no_grad():
        start.log_scale.fill_(5.0)
    fitted = fit(start).model
    assert fitted.log_scale.exp().item() == pytest.approx(40, rel=1e-4)
    assert MAX_SCALE == 40


def test_gradients_are_clipped_to_length_1(monkeypatch):
    lengths, clip = [], torch.nn.utils.clip_grad_norm_

    def recorded(parameters, length):
        lengths.append(length)
        return clip(parameters, length)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", recorded)
    fit(model())
    assert set(lengths) == {1.0}


@pytest.mark.parametrize(("weight", "diverged"), [(0.9e18, False), (1.1e18, True), (-1.1e18, True)])
def test_weights_from_1e18_on_are_a_diverged_training(weight, diverged):
    start = model()
    with torch.no_grad():
        start.users.day.weight.fill_(weight)  # not read without `calendar`
    if not diverged:
        assert fit(start).epochs == 1
        return
    message = r"training diverged in pass 1 \(loss [0-9.]+\): lower training.learning_rate, which is 1e-06, or data"
    with pytest.raises(ConfigError, match=message):
        fit(start)


@pytest.mark.parametrize("text", ["can't allocate memory: you tried", "CUDA out of memory. Tried"])
def test_a_step_that_does_not_fit_names_the_settings_to_lower(text):
    with pytest.raises(MemoryError) as caught, module._naming_settings_of_memory():
        raise RuntimeError(text)
    assert str(caught.value) == (
        "a training step does not fit; lower training.batch_events, training.negatives or towers.history"
    )
    with pytest.raises(RuntimeError, match="another"), module._naming_settings_of_memory():
        raise RuntimeError("another")


@pytest.mark.parametrize(
    ("loss", "negatives", "function"),
    [("softmax", 0, "softmax_loss"), ("softmax", 7, "softmax_loss"), ("gbce", 5, "gbce_loss")],
)
def test_the_configured_loss_has_the_configured_negatives(loss, negatives, function):
    sequences: Any = None  # only the in-batch loss reads them
    configured: Any = module._loss(TrainingConfig(loss=loss, negatives=negatives), sequences, 3)
    assert (configured.func.__name__, configured.keywords) == (function, {"negatives": negatives})


def test_gbce_by_hand():
    """One query, three items. All are drawn: a = min(1, 3 / 2), so b = 1. One is drawn: b = 1 - 0.75 / 2."""
    assert CALIBRATION == 0.75
    query, items = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    pairs = Pairs(torch.tensor([0]), torch.tensor([0]), torch.tensor([1.0]))

    def softplus(x):
        return np.log1p(np.exp(x))

    loss = float(gbce_loss(query, items, torch.tensor(2.0), pairs, 0))
    assert loss == pytest.approx(softplus(-2) + softplus(0) + softplus(-2), rel=1e-6)
    torch.manual_seed(0)
    (drawn,) = torch.randperm(3)[:1].tolist()
    torch.manual_seed(0)
    loss = float(gbce_loss(query, items, torch.tensor(2.0), pairs, 1))
    negative = 0.0 if drawn == 0 else softplus([0, 0, -2][drawn])
    assert loss == pytest.approx((1 - 0.75 / 2) * softplus(-2) + negative, rel=1e-6)
