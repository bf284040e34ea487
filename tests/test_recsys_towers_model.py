"""The two towers: unit vectors, causality by perturbation, users alone and in batches, items without events."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_data import SMALL, chain, noise, toy_catalog, toy_log

from recsys.item_statistics import ItemStatistics
from recsys.towers.history import WAIT_BUCKETS, History, hours_of_week
from recsys.towers.model import TwoTowers, UserTower, numeric_features

DEEP = SMALL.model_copy(update={"layers": 2, "dropout": 0.5, "id_dropout": 0.5, "calendar": True})
MINUTE = 60 * 10**6
HOUR = 60 * MINUTE


def towers(events, config=DEEP, *, catalog=None, seed=0):
    torch.manual_seed(seed)
    return TwoTowers(catalog or toy_catalog(events.n_items), ItemStatistics.of(events), config, events.n_types)


def perturbed(model):
    """The same model with parameters far from where they begin, so that every path through it counts."""
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


def test_item_vectors_are_the_same_every_time_though_training_drops_ids():
    model = towers(toy_log([(u, i, u + i) for u in range(4) for i in range(6)]), catalog=rich_catalog())
    first = model.item_vectors()
    np.testing.assert_array_equal(model.item_vectors(), first)
    model.train()
    assert not np.allclose(model.items().detach().numpy(), first)  # id dropout is at work
    np.testing.assert_array_equal(model.item_vectors(), first)


def test_items_without_events_do_not_depend_on_their_id():
    log = toy_log([(0, 0, 1), (1, 1, 2), (1, 4, 3, False)])  # of item 4 only an event that is not positive
    model = towers(log, catalog=rich_catalog())
    before = model.item_vectors()
    with torch.no_grad():
        model.items.id.weight.add_(torch.randn_like(model.items.id.weight))
        model.items.popularity.weight.add_(1)
    after = model.item_vectors()
    cold = [2, 3, 4, 5]
    np.testing.assert_array_equal(after[cold], before[cold])
    assert (np.abs(after[:2] - before[:2]).max(axis=1) > 1e-3).all()


def test_items_alike_in_content_lie_together_while_they_are_cold():
    text = np.eye(4, dtype=np.float32)[[0, 1, 2, 2, 1, 1]]
    catalog = toy_catalog(6, categories=[["a"], ["b"], ["a"], ["a"], ["b"], ["a"]], text=text)
    vectors = towers(toy_log([(0, 0, 1)]), catalog=catalog).item_vectors()
    np.testing.assert_allclose(vectors[2], vectors[3], atol=1e-6)
    np.testing.assert_allclose(vectors[1], vectors[4], atol=1e-6)
    assert not np.allclose(vectors[4], vectors[5], atol=1e-3)  # another category


def test_without_content_only_id_and_popularity_speak():
    config = DEEP.model_copy(update={"content": False})
    model = towers(toy_log([(0, i, i) for i in range(6)]), config, catalog=rich_catalog())
    before = model.item_vectors()
    with torch.no_grad():
        model.items.project.weight.add_(1)
        model.items.category.weight.add_(1)
        model.items.number.weight.add_(1)
    np.testing.assert_array_equal(model.item_vectors(), before)


def test_the_first_coordinates_are_those_that_users_vary_most_in_and_no_product_changes():
    log = chain(40, 12, 10)
    model = perturbed(towers(log, SMALL))
    states = log.states(np.arange(40), np.full(40, log.latest + 1))

    def vectors():
        items = model.item_vectors()
        return items, model.user_vectors(states, items)

    items, users = vectors()
    for _ in range(2):  # the second time nothing is left to turn
        model.rotate(log, seed=0)
        turned_items, turned_users = vectors()
        np.testing.assert_allclose(turned_users @ turned_items.T, users @ items.T, atol=1e-5)
        moments = turned_users.T @ turned_users
        np.testing.assert_allclose(moments, np.diag(np.diag(moments)), atol=1e-3)
        np.testing.assert_allclose(np.diag(moments), np.linalg.eigvalsh(users.T @ users)[::-1], atol=1e-3)


def test_the_newest_users_are_those_with_a_positive_event_drawn_by_the_seed(monkeypatch):
    log = toy_log([(0, 0, 1), (0, 1, 5), (1, 2, 3), (2, 0, 4, False), (3, 5, 2)])
    model = towers(log, SMALL)
    items = model.item_vectors()
    states, vectors = model.newest_users(items, log, seed=0)
    assert states.users.tolist() == [0, 1, 3]
    assert states.as_of.tolist() == [log.latest + 1] * 3
    np.testing.assert_array_equal(vectors, model.user_vectors(states, items))
    weekly = towers(chain(400, 6, 3), DEEP)
    later = weekly.newest_users(weekly.item_vectors(), chain(400, 6, 3), seed=0)[0].as_of
    assert 100 < len(set(hours_of_week(later).tolist())) <= 168  # all hours of the week have a say
    assert (later - later.min()).max() < 168 * HOUR
    monkeypatch.setattr("recsys.towers.model.MAX_SAMPLED_USERS", 1)
    drawn = {int(model.newest_users(items, log, seed=seed)[0].users[0]) for seed in range(20)}
    assert drawn == {0, 1, 3}


def history(b=3, t=5, d=8):
    """Random vectors of b histories of items out of six, of three types."""
    vectors = torch.nn.functional.normalize(torch.randn(b, t, d), dim=-1)
    items, types, waits, hours = (torch.randint(0, n, (b, t)) for n in (6, 3, WAIT_BUCKETS + 1, 168))
    return vectors, History(items, torch.rand(b, t) < 0.7, types, waits, hours)


@pytest.mark.parametrize("change", ["vectors", "positive", "types", "waits", "hours"])
def test_what_comes_later_never_changes_an_earlier_output(change):
    torch.manual_seed(0)
    tower = perturbed(UserTower(DEEP, n_types=3)).eval()
    vectors, read = history()
    with torch.no_grad():
        before = tower(vectors, read)
        np.testing.assert_allclose(before.norm(dim=-1), 1, rtol=1e-5)
        for at in range(5):
            others = {"vectors": vectors, **vars(read)}
            values = others[change] = others[change].clone()
            if change == "vectors":
                values[:, at] = torch.randn(3, 8)
            elif change == "positive":
                values[:, at] = ~values[:, at]
            else:
                values[:, at] = (values[:, at] + 1) % {"types": 3, "waits": WAIT_BUCKETS + 1, "hours": 168}[change]
            after = tower(others.pop("vectors"), History(**others))
            np.testing.assert_allclose(after[:, :at], before[:, :at], atol=1e-6)
            changed = (after[:, at:] - before[:, at:]).abs().amax(-1) > 1e-5
            assert changed[:, 0].all()
            # every later one as well, but for the hour: it is of the moment
            assert (changed[:, 1:] == (change != "hours")).all()


def test_what_is_padded_never_changes_what_is_before():
    torch.manual_seed(0)
    tower = perturbed(UserTower(DEEP, n_types=3)).eval()
    vectors, read = history(2)
    with torch.no_grad():
        shorter = tower(vectors[:, :3], read.each(lambda values: values[:, :3]))
        np.testing.assert_allclose(shorter, tower(vectors, read)[:, :3], atol=1e-5)


def test_users_in_a_batch_get_the_vectors_that_they_get_alone():
    events = noise(n_users=300, n_items=30, length=6)  # more than a chunk of the tower, lengths of many kinds
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
    assert not vectors[:4].any()  # unknown, nothing positive, no events, nothing before
    assert np.linalg.norm(vectors[4]) == pytest.approx(1, rel=1e-5)
    assert model.user_vectors(states[:0], model.item_vectors()).shape == (0, 8)


def test_only_the_newest_events_before_the_moment_are_read():
    base = [(0, i % 6, 10 * i) for i in range(8)]
    as_of = np.array([80])
    vectors = []
    for rows in (
        base,
        [*base, (0, 5, 80)],  # not before
        [(0, 3, 0), *base[1:]],  # further back than the history that is read
        [*base[:7], (0, 0, 70)],  # another newest item
        [*base[:7], (0, 1, 70, False)],  # the same, not liked
    ):
        events = toy_log(rows)
        model = perturbed(towers(toy_log(base), DEEP))
        vectors.append(model.user_vectors(events.states(np.array([0]), as_of), model.item_vectors()))
    for same in vectors[1:3]:
        np.testing.assert_allclose(same, vectors[0], atol=1e-6)
    for other in vectors[3:]:
        assert not np.allclose(other, vectors[0], atol=1e-3)


def test_the_order_and_the_pace_of_a_history_count():
    def vector(rows, as_of=10**9):
        events = toy_log(rows)
        model = perturbed(towers(toy_log([(0, i, i) for i in range(6)])))
        return model.user_vectors(events.states(np.array([0]), np.array([as_of])), model.item_vectors())

    first = vector([(0, 1, 0), (0, 2, MINUTE)])
    assert not np.allclose(vector([(0, 2, 0), (0, 1, MINUTE)]), first, atol=1e-3)
    assert not np.allclose(vector([(0, 1, 0), (0, 2, 9 * MINUTE)]), first, atol=1e-3)
    assert not np.allclose(vector([(0, 1, 0), (0, 2, MINUTE)], 99 * 10**9), first, atol=1e-3)  # asked much later


def test_the_same_hour_of_another_week_is_the_same():
    model = perturbed(towers(toy_log([(0, i, i) for i in range(6)]), DEEP.model_copy(update={"times": False})))
    asked = np.array([30, 30 + 7 * 24, 31, 30 + 24]) * HOUR  # a week later, an hour later, a day later
    states = toy_log([(0, 1, 0), (0, 2, 1)]).states(np.zeros(4, np.int64), asked)
    first, week, hour, day = model.user_vectors(states, model.item_vectors())
    np.testing.assert_allclose(week, first, atol=1e-6)
    assert not np.allclose(hour, first, atol=1e-3)
    assert not np.allclose(day, first, atol=1e-3)


def test_numbers_by_hand():
    catalog = replace(
        toy_catalog(4),
        price=np.array([0, np.nan, np.e**2 - 1, np.nan], np.float32),  # logs 0 and 2
        published=np.array([10, 30, 10, np.iinfo(np.int64).min]),
    )
    root = 2**0.5  # published: mean 50/3, deviation (800/9)^.5
    expected = [[-1, 1, -root / 2, 1], [0, 0, root, 1], [1, 1, -root / 2, 1], [0, 0, 0, 0]]
    np.testing.assert_allclose(numeric_features(catalog), expected, atol=1e-5)
    assert not numeric_features(toy_catalog(3)).any()


def test_every_parameter_has_a_say():
    events = replace(chain(6, 6, 5), n_types=3)
    catalog = replace(rich_catalog(), price=np.arange(6, dtype=np.float32))
    model = perturbed(towers(events, SMALL.model_copy(update={"calendar": True}), catalog=catalog))
    items = model.items()
    read = replace(history(2)[1], items=torch.tensor([[0, 1, 2, 3, 4], [5, 4, 3, 2, 1]]))
    queries = model.users(items[read.items], read)
    (torch.randn(8) * (queries @ items.T * model.log_scale.exp()).pow(2).sum(0).sum()).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_what_is_switched_off_is_not_read():
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
