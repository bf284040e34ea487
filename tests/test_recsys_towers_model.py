"""The two towers: unit vectors, causality by perturbation, single users and batches, cold items."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_data import SMALL, chain, noise, toy_catalog, toy_log

from recsys.item_statistics import ItemStatistics
from recsys.towers.history import WAIT_BUCKETS, History, hours_of_week
from recsys.towers.model import TwoTowers, numeric_features
from recsys.towers.newest import NewestUserVectors
from recsys.towers.user_tower import UserTower

DEEP = SMALL.model_copy(update={"layers": 2, "dropout": 0.5, "id_dropout": 0.5, "calendar": True})
MINUTE = 60 * 10**6
HOUR = 60 * MINUTE


def towers(events, config=DEEP, *, catalog=None, seed=0):
    torch.manual_seed(seed)
    return TwoTowers(catalog or toy_catalog(events.n_items), ItemStatistics.of(events), config, events.n_types)


def perturbed(model):
    """The same model with parameters far from their initial values, so that every path has an effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return model


def rich_catalog(n=6):
    text = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    return toy_catalog(n, categories=[["a"], ["b", "a"], [], ["c"], ["a"], ["b"]][:n], text=text)


def test_item_vectors_are_unit_rows():
    vectors = towers(toy_log([(0, 0, 1), (0, 1, 2)]), catalog=rich_catalog()).item_vectors()
    assert vectors.shape == (6, 8)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_item_vectors_are_deterministic_although_training_drops_ids():
    model = towers(toy_log([(u, i, u + i) for u in range(4) for i in range(6)]), catalog=rich_catalog())
    first = model.item_vectors()
    np.testing.assert_array_equal(model.item_vectors(), first)
    model.train()
    assert not np.allclose(model.items().detach().numpy(), first)  # with id dropout
    np.testing.assert_array_equal(model.item_vectors(), first)


def test_vectors_of_cold_items_do_not_depend_on_ids():
    log = toy_log([(0, 0, 1), (1, 1, 2), (1, 4, 3, False)])  # the only event of item 4 is not positive
    model = towers(log, catalog=rich_catalog())
    before = model.item_vectors()
    with torch.no_grad():
        model.items.id.weight.add_(torch.randn_like(model.items.id.weight))
        model.items.popularity.weight.add_(1)
    after = model.item_vectors()
    cold = [2, 3, 4, 5]
    np.testing.assert_array_equal(after[cold], before[cold])
    assert (np.abs(after[:2] - before[:2]).max(axis=1) > 1e-3).all()


def test_cold_items_with_the_same_content_have_the_same_vector():
    text = np.eye(4, dtype=np.float32)[[0, 1, 2, 2, 1, 1]]
    catalog = toy_catalog(6, categories=[["a"], ["b"], ["a"], ["a"], ["b"], ["a"]], text=text)
    vectors = towers(toy_log([(0, 0, 1)]), catalog=catalog).item_vectors()
    np.testing.assert_allclose(vectors[2], vectors[3], atol=1e-6)
    np.testing.assert_allclose(vectors[1], vectors[4], atol=1e-6)
    assert not np.allclose(vectors[4], vectors[5], atol=1e-3)  # another category


def test_without_content_only_id_and_popularity_count():
    config = DEEP.model_copy(update={"content": False})
    model = towers(toy_log([(0, i, i) for i in range(6)]), config, catalog=rich_catalog())
    before = model.item_vectors()
    with torch.no_grad():
        model.items.project.weight.add_(1)
        model.items.category.weight.add_(1)
        model.items.number.weight.add_(1)
    np.testing.assert_array_equal(model.item_vectors(), before)


def test_rotation_orders_coordinates_by_second_moment_and_changes_no_product():
    log = chain(40, 12, 10)
    model = perturbed(towers(log, SMALL))
    states = log.states(np.arange(40), np.full(40, log.latest + 1))

    def vectors():
        items = model.item_vectors()
        return items, model.user_vectors(states, items)

    items, users = vectors()
    for _ in range(2):  # the second rotation changes nothing
        model.rotate(log, seed=0)
        rotated_items, rotated_users = vectors()
        np.testing.assert_allclose(rotated_users @ rotated_items.T, users @ items.T, atol=1e-5)
        moments = rotated_users.T @ rotated_users
        np.testing.assert_allclose(moments, np.diag(np.diag(moments)), atol=1e-3)
        np.testing.assert_allclose(np.diag(moments), np.linalg.eigvalsh(users.T @ users)[::-1], atol=1e-3)


def test_newest_users_are_drawn_by_the_seed_from_users_with_a_positive_event(monkeypatch):
    log = toy_log([(0, 0, 1), (0, 1, 5), (1, 2, 3), (2, 0, 4, False), (3, 5, 2)])
    model = towers(log, SMALL)
    items = model.item_vectors()
    states, vectors = model.newest_users(items, log, seed=0)
    assert states.users.tolist() == [0, 1, 3]
    assert states.as_of.tolist() == [log.latest + 1] * 3
    np.testing.assert_array_equal(vectors, model.user_vectors(states, items))
    calendar = towers(chain(400, 6, 3), DEEP)
    as_of = calendar.newest_users(calendar.item_vectors(), chain(400, 6, 3), seed=0)[0].as_of
    assert 100 < len(set(hours_of_week(as_of).tolist())) <= 168  # most hours of the week are drawn
    assert (as_of - as_of.min()).max() < 168 * HOUR
    monkeypatch.setattr("recsys.towers.model.MAX_SAMPLED_USERS", 1)
    drawn = {int(model.newest_users(items, log, seed=seed)[0].users[0]) for seed in range(20)}
    assert drawn == {0, 1, 3}


def history(b=3, t=5, d=8):
    """(vectors (b, t, d), history (b, t)): random histories of six items and three event types."""
    vectors = torch.nn.functional.normalize(torch.randn(b, t, d), dim=-1)
    items, types, gaps, hours = (torch.randint(0, n, (b, t)) for n in (6, 3, WAIT_BUCKETS + 1, 168))
    return vectors, History(items, torch.rand(b, t) < 0.7, types, gaps, hours)


@pytest.mark.parametrize("change", ["vectors", "positive", "types", "gaps", "hours"])
def test_a_later_input_never_changes_an_earlier_output(change):
    torch.manual_seed(0)
    tower = perturbed(UserTower(DEEP, n_types=3)).eval()
    vectors, events_read = history()
    with torch.no_grad():
        before = tower(vectors, events_read)
        np.testing.assert_allclose(before.norm(dim=-1), 1, rtol=1e-5)
        for at in range(5):
            inputs = {"vectors": vectors, **vars(events_read)}
            values = inputs[change] = inputs[change].clone()
            if change == "vectors":
                values[:, at] = torch.randn(3, 8)
            elif change == "positive":
                values[:, at] = ~values[:, at]
            else:
                values[:, at] = (values[:, at] + 1) % {"types": 3, "gaps": WAIT_BUCKETS + 1, "hours": 168}[change]
            after = tower(inputs.pop("vectors"), History(**inputs))
            np.testing.assert_allclose(after[:, :at], before[:, :at], atol=1e-6)
            changed = (after[:, at:] - before[:, at:]).abs().amax(-1) > 1e-5
            assert changed[:, 0].all()
            # every later output changes as well, except for the hour, which affects its own output alone
            assert (changed[:, 1:] == (change != "hours")).all()


def test_padding_never_changes_an_earlier_output():
    torch.manual_seed(0)
    tower = perturbed(UserTower(DEEP, n_types=3)).eval()
    vectors, events_read = history(2)
    with torch.no_grad():
        shorter = tower(vectors[:, :3], events_read.map_arrays(lambda values: values[:, :3]))
        np.testing.assert_allclose(shorter, tower(vectors, events_read)[:, :3], atol=1e-5)


def test_users_have_the_same_vector_in_a_batch_and_alone():
    events = noise(n_users=300, n_items=30, length=6)  # more than one batch of the tower, many lengths
    model = perturbed(towers(events))
    items = model.item_vectors()
    states = events.states(np.arange(300), np.full(300, int(np.quantile(events.times, 0.6))))
    together = model.user_vectors(states, items)
    lengths = states.positives().lengths
    assert len(set(lengths.tolist())) > 4
    alone = np.concatenate([model.user_vectors(states[i : i + 1], items) for i in range(300)])
    np.testing.assert_allclose(together, alone, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(together[lengths > 0], axis=1), 1, rtol=1e-5)


def test_a_user_without_positive_events_is_a_zero_row():
    events = toy_log([(0, 1, 1), (1, 2, 1, False), (0, 3, 9)])
    model = towers(events)
    states = events.states(np.array([-1, 1, 2, 0, 0]), np.array([99, 99, 99, 1, 99]))
    vectors = model.user_vectors(states, model.item_vectors())
    assert not vectors[:4].any()  # unknown user, no positive event, no event, no earlier event
    assert np.linalg.norm(vectors[4]) == pytest.approx(1, rel=1e-5)
    assert model.user_vectors(states[:0], model.item_vectors()).shape == (0, 8)


def test_only_the_newest_events_before_as_of_are_read():
    base = [(0, i % 6, 10 * i) for i in range(8)]
    as_of = np.array([80])
    vectors = []
    for rows in (
        base,
        [*base, (0, 5, 80)],  # not before as_of
        [(0, 3, 0), *base[1:]],  # older than the history that is read
        [*base[:7], (0, 0, 70)],  # another latest item
        [*base[:7], (0, 1, 70, False)],  # the same item, not positive
    ):
        events = toy_log(rows)
        model = perturbed(towers(toy_log(base), DEEP))
        vectors.append(model.user_vectors(events.states(np.array([0]), as_of), model.item_vectors()))
    for same in vectors[1:3]:
        np.testing.assert_allclose(same, vectors[0], atol=1e-6)
    for different in vectors[3:]:
        assert not np.allclose(different, vectors[0], atol=1e-3)


def test_order_and_waits_of_a_history_count():
    def vector(rows, as_of=10**9):
        events = toy_log(rows)
        model = perturbed(towers(toy_log([(0, i, i) for i in range(6)])))
        return model.user_vectors(events.states(np.array([0]), np.array([as_of])), model.item_vectors())

    first = vector([(0, 1, 0), (0, 2, MINUTE)])
    assert not np.allclose(vector([(0, 2, 0), (0, 1, MINUTE)]), first, atol=1e-3)
    assert not np.allclose(vector([(0, 1, 0), (0, 2, 9 * MINUTE)]), first, atol=1e-3)
    assert not np.allclose(vector([(0, 1, 0), (0, 2, MINUTE)], 99 * 10**9), first, atol=1e-3)  # a much later request


def test_the_same_hour_of_another_week_is_the_same():
    model = perturbed(towers(toy_log([(0, i, i) for i in range(6)]), DEEP.model_copy(update={"times": False})))
    as_of = np.array([30, 30 + 7 * 24, 31, 30 + 24]) * HOUR  # a week later, an hour later, a day later
    states = toy_log([(0, 1, 0), (0, 2, 1)]).states(np.zeros(4, np.int64), as_of)
    first, week, hour, day = model.user_vectors(states, model.item_vectors())
    np.testing.assert_allclose(week, first, atol=1e-6)
    assert not np.allclose(hour, first, atol=1e-3)
    assert not np.allclose(day, first, atol=1e-3)


def test_numeric_features_by_hand():
    catalog = replace(
        toy_catalog(4),
        price=np.array([0, np.nan, np.e**2 - 1, np.nan], np.float32),  # logs 0 and 2
        published=np.array([10, 30, 10, np.iinfo(np.int64).min]),
    )
    root = 2**0.5  # published: mean 50/3, deviation (800/9)^.5
    expected = np.array([[-1, 1, -root / 2, 1], [0, 0, root, 1], [1, 1, -root / 2, 1], [0, 0, 0, 0]])
    np.testing.assert_allclose(numeric_features(catalog), expected, atol=1e-5)
    assert not numeric_features(toy_catalog(3)).any()


def test_every_parameter_has_a_gradient():
    events = replace(chain(6, 6, 5), n_types=3)
    catalog = replace(rich_catalog(), price=np.arange(6, dtype=np.float32))
    model = perturbed(towers(events, SMALL.model_copy(update={"calendar": True}), catalog=catalog))
    items = model.items()
    events_read = replace(history(2)[1], items=torch.tensor([[0, 1, 2, 3, 4], [5, 4, 3, 2, 1]]))
    queries = model.users(items[events_read.items], events_read)
    (torch.randn(8) * (queries @ items.T * model.log_scale.exp()).pow(2).sum(0).sum()).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_disabled_inputs_are_not_read():
    events = chain(8, 6, 5)
    model = perturbed(towers(events, DEEP.model_copy(update={"id": False, "times": False}), catalog=rich_catalog()))
    states = events.states(np.arange(8), np.full(8, events.latest + 1))
    items = model.item_vectors()
    users = model.user_vectors(states, items)
    with torch.no_grad():
        model.items.id.weight.add_(1)
        model.users.wait.weight.add_(1)
    np.testing.assert_array_equal(model.item_vectors(), items)
    np.testing.assert_array_equal(model.user_vectors(states, items), users)


@pytest.mark.parametrize("config", [SMALL, DEEP, DEEP.model_copy(update={"calendar": True, "times": False})])
def test_the_vector_after_one_event_is_that_of_all(config):
    torch.manual_seed(0)
    tower = perturbed(UserTower(config, n_types=3)).eval()
    vectors, events_read = history(2)
    arrays = events_read.map_arrays(lambda values: values.numpy())
    t = vectors.shape[1]
    with torch.no_grad():
        every = tower(vectors, events_read)
        for last in (np.array([t - 1, t - 1]), np.array([0, t - 2])):
            newest = NewestUserVectors(tower, torch.eye(vectors.shape[2])).newest(vectors.numpy(), arrays, last)
            np.testing.assert_allclose(newest, every[torch.arange(2), torch.from_numpy(last)], atol=1e-5)
