"""Dropout: share of zeros, mean, gradient, and the seed."""

import pytest
import torch

from recsys.towers.user_tower import dropout


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_the_share_of_zeros_is_the_rate_and_other_values_are_scaled(rate):
    torch.manual_seed(0)
    y = dropout(torch.ones(999, 501), rate, True)
    assert y.shape == (999, 501)
    assert sorted(y.unique().tolist()) == pytest.approx([0, 1 / (1 - rate)])
    error = 5 * (rate * (1 - rate) / y.numel()) ** 0.5
    assert (y == 0).float().mean().item() == pytest.approx(rate, abs=error)
    assert (y == 0).float().mean(0).std().item() == pytest.approx((rate * (1 - rate) / 999) ** 0.5, rel=0.2)


def test_gradients_are_zero_where_values_are_zero():
    x = torch.full((50, 7), 3.0, requires_grad=True)
    y = dropout(x, 0.4, True)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach() / 3)


def test_the_seed_of_torch_determines_the_zeros():
    def draw(seed):
        torch.manual_seed(seed)
        return [dropout(torch.ones(8, 8), 0.5, True) for _ in range(2)]

    (first, second), repeated, different = draw(1), draw(1), draw(2)
    assert torch.equal(first, repeated[0])
    assert torch.equal(second, repeated[1])
    assert not torch.equal(first, second)
    assert not torch.equal(first, different[0])


def test_outside_training_and_at_rate_zero_the_input_is_unchanged():
    x, state = torch.randn(4, 4), torch.random.get_rng_state()
    assert torch.equal(dropout(x, 0.5, False), x)
    assert torch.equal(dropout(x, 0.0, True), x)
    assert torch.equal(torch.random.get_rng_state(), state)
