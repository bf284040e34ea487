"""The losses and their gradients against torch and against formulas: all items, a sample, a batch, cut vectors."""

from unittest import mock

import numpy as np
import pytest
import torch
from torch.nn import functional

from recsys.towers.losses import (
    QUERIES_AT_ONCE,
    Pairs,
    gbce_loss,
    in_batch_loss,
    nested_loss,
    softmax_loss,
)

SCALE = torch.tensor(7.0)
PAIR_TO_QUERY, TARGET = torch.tensor([0, 0, 1, 2, 3, 4]), torch.tensor([3, 7, 0, 8, 3, 1])
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.25, 1.5, 0.75])


def case(q=5, n=9, d=4, seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit queries and items."""
    g = torch.Generator().manual_seed(seed)
    queries, items = (functional.normalize(torch.randn(rows, d, generator=g), dim=-1) for rows in (q, n))
    return queries, items


def leaves(queries, items, scale) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Copies of the tensors that record their gradients."""
    return queries.clone().requires_grad_(), items.clone().requires_grad_(), scale.clone().requires_grad_()


def pairs(pair_to_query=PAIR_TO_QUERY, target=TARGET, weight=None):
    return Pairs(pair_to_query, target, torch.ones(len(pair_to_query)) if weight is None else weight)


def expected(queries, items, scale, pair_to_query=PAIR_TO_QUERY, target=TARGET, weight=None):
    losses = functional.cross_entropy((queries @ items.T * scale)[pair_to_query], target, reduction="none")
    return (losses if weight is None else losses * weight).mean()


def assert_same(loss, reference_loss, inputs, reference_inputs):
    """Compares two losses, and their gradients by their inputs."""
    assert loss.item() == pytest.approx(reference_loss.item(), rel=1e-5)
    (3 * loss).backward()
    (3 * reference_loss).backward()
    for tensor, reference in zip(inputs, reference_inputs, strict=True):
        np.testing.assert_allclose(tensor.grad, reference.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scale", [0.5, 7.0, 40.0])
def test_full_softmax_and_its_gradients_are_torchs(scale):
    """Also with several blocks of queries, queries with several targets, and a query without one."""
    queries, items = case(q=2 * QUERIES_AT_ONCE + 3, n=50, d=8)
    pair_to_query = torch.arange(1, len(queries)).repeat_interleave(torch.arange(1, len(queries)) % 3 + 1)
    target = torch.randint(50, (len(pair_to_query),), generator=torch.Generator().manual_seed(1))
    weight = torch.rand(len(pair_to_query), generator=torch.Generator().manual_seed(2)) + 0.1
    for weights in (None, weight):
        inputs, reference_inputs = (leaves(queries, items, torch.tensor(scale)) for _ in range(2))
        loss = softmax_loss(*inputs, pairs(pair_to_query, target, weights))
        assert_same(loss, expected(*reference_inputs, pair_to_query, target, weights), inputs, reference_inputs)


def test_a_query_opposite_to_all_items_has_a_finite_loss():
    queries, items = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0], [-1.0, 0.0]])
    loss = softmax_loss(queries, items, torch.tensor(40.0), pairs(torch.tensor([0]), torch.tensor([1])))
    assert loss.item() == pytest.approx(np.log(2), rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, 14.0])
def test_sampled_softmax_approximates_the_full_softmax(scale):
    """Also when the score of the target is high and the target is often drawn, as in a small catalogue."""
    queries, items = case(n=40)
    pair_to_query, target = torch.arange(5), torch.tensor([3, 0, 8, 3, 1])
    queries = functional.normalize(items[target] + 0.3 * queries, dim=-1)
    torch.manual_seed(0)

    def loss(negatives):
        return softmax_loss(queries, items, torch.tensor(scale), pairs(pair_to_query, target), negatives).item()

    full = loss(0)
    assert np.mean([loss(39) for _ in range(400)]) == pytest.approx(full, rel=0.03)  # all items but one
    assert abs(np.mean([loss(20) for _ in range(200)]) - full) < 0.1 * full + 0.05
    assert loss(20) != loss(20)  # different draws


def test_sampled_softmax_and_its_gradients_equal_the_formula():
    """Z = exp(s+) + (n - 1) / m * sum exp(s-) over the m drawn items that are not targets; also when all are."""
    n, drawn = 9, [7, 0, 4, 3]
    pair_to_query, target = torch.tensor([0, 0, 1, 2, 3, 3, 3, 3]), torch.tensor([3, 8, 0, 2, 7, 0, 4, 3])
    weight = torch.linspace(0.3, 1.7, len(pair_to_query))

    def formula(queries, items, scale):
        losses = []
        for q, t in zip(pair_to_query.tolist(), target.tolist(), strict=True):
            negatives = [i for i in drawn if i not in target[pair_to_query == q].tolist()]
            factor = (n - 1) / max(1, len(negatives))
            rest = factor * sum(torch.exp(queries[q] @ items[i] * scale) for i in negatives)
            positive = queries[q] @ items[t] * scale
            losses.append(torch.log(torch.exp(positive) + rest) - positive)
        return (torch.stack(losses) * weight).mean()

    queries, items = case(q=4, n=n)
    inputs, reference_inputs = (leaves(queries, items, SCALE) for _ in range(2))
    with drawing(drawn):
        loss = softmax_loss(*inputs, pairs(pair_to_query, target, weight), len(drawn))
    assert_same(loss, formula(*reference_inputs), inputs, reference_inputs)


def drawing(drawn):
    """Patches torch.randperm: the permutation starts with `drawn`."""
    return mock.patch.object(
        torch, "randperm", lambda n, device: torch.tensor([*drawn, *(set(range(n)) - set(drawn))])
    )


def test_in_batch_softmax_and_its_gradients_equal_the_formula():
    """A target of other queries stands for count / (pairs * frequency) items; own targets are left out."""
    frequency = torch.tensor([0.1, 0.05, 0.2, 0.15, 0.1, 0.1, 0.1, 0.15, 0.05])
    counts = {3: 2, 7: 1, 0: 1, 8: 1, 1: 1}

    def formula(queries, items, scale):
        losses = []
        for q, t in zip(PAIR_TO_QUERY.tolist(), TARGET.tolist(), strict=True):
            negatives = set(counts) - set(TARGET[q == PAIR_TO_QUERY].tolist())
            rest = sum(counts[i] / (6 * frequency[i]) * torch.exp(queries[q] @ items[i] * scale) for i in negatives)
            positive = queries[q] @ items[t] * scale
            losses.append(torch.log(torch.exp(positive) + rest) - positive)
        return (torch.stack(losses) * WEIGHT).mean()

    inputs, reference_inputs = (leaves(*case(), SCALE) for _ in range(2))
    assert_same(
        in_batch_loss(*inputs, pairs(weight=WEIGHT), frequency), formula(*reference_inputs), inputs, reference_inputs
    )


def test_in_batch_softmax_approximates_the_full_softmax():
    """logQ corrects for popular items being in batches more often: without it the losses differ by .13."""
    queries, items = case(q=400, n=40, d=8)
    frequency = torch.arange(1.0, 41.0) ** -1
    frequency = frequency / frequency.sum()
    torch.manual_seed(0)
    losses, full = [], []
    for _ in range(50):
        target = torch.multinomial(frequency, 400, replacement=True)
        drawn = pairs(torch.arange(400), target)
        losses.append(in_batch_loss(queries, items, SCALE, drawn, frequency).item())
        full.append(softmax_loss(queries, items, SCALE, drawn).item())
    assert np.mean(losses) == pytest.approx(np.mean(full), rel=0.01)
    uncorrected = in_batch_loss(queries, items, SCALE, drawn, torch.full((40,), 1 / 40)).item()
    assert abs(uncorrected - full[-1]) > 0.1


@pytest.mark.parametrize("drawn", [[7, 0, 4, 3], list(range(9))])
def test_gbce_and_its_gradients_equal_the_formula(drawn):
    """b = a (t (1 - 1 / a) + 1 / a). Over all items a = 1 and b = 1."""
    a = min(1, len(drawn) / 8)
    b = a * (0.75 * (1 - 1 / a) + 1 / a)

    def formula(queries, items, scale):
        losses = []
        for q, t in zip(PAIR_TO_QUERY.tolist(), TARGET.tolist(), strict=True):
            negatives = [i for i in drawn if i not in TARGET[q == PAIR_TO_QUERY].tolist()]
            rest = sum(torch.log(1 - torch.sigmoid(queries[q] @ items[i] * scale)) for i in negatives)
            losses.append(-b * torch.log(torch.sigmoid(queries[q] @ items[t] * scale)) - rest)
        return (torch.stack(losses) * WEIGHT).mean()

    inputs, reference_inputs = (leaves(*case(), torch.tensor(2.0)) for _ in range(2))
    with drawing(drawn):
        loss = gbce_loss(*inputs, pairs(weight=WEIGHT), 0 if len(drawn) == 9 else len(drawn))
    assert_same(loss, formula(*reference_inputs), inputs, reference_inputs)


def test_nested_loss_is_the_mean_over_the_cuts():
    queries, items = case(d=8)
    cuts = [
        expected(functional.normalize(queries[:, :m], dim=-1), functional.normalize(items[:, :m], dim=-1), SCALE)
        for m in (8, 2, 4)
    ]
    loss = nested_loss(softmax_loss, queries, items, SCALE, pairs(), (2, 4))
    assert loss.item() == pytest.approx(float(sum(cuts)) / 3, rel=1e-5)
    loss = nested_loss(softmax_loss, queries, items, SCALE, pairs(), ())
    assert loss.item() == pytest.approx(cuts[0].item(), rel=1e-5)
