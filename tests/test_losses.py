"""Shared losses against closed forms and torch.distributions in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import Ranks, pair  # noqa: F401
from torch.distributions import Normal, kl_divergence

from buttress.training.losses import free_bits, gaussian_kl, ratio_over_ranks, reduce, reparameterize, sum_over_ranks
from buttress.training.world import World


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gaussian_kl_is_that_of_torch_distributions() -> None:
    mu, logvar = normal(50, 7), 2 * normal(50, 7, seed=1)
    reference = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mu, logvar), reference, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gaussian_kl(mu.float(), logvar.float()).double(), reference, rtol=2e-5, atol=1e-6)


def test_gaussian_kl_keeps_its_digits_near_collapse_and_under_bf16() -> None:
    mu, logvar = 1e-3 * normal(1000, 20), 2e-3 * normal(1000, 20, seed=1)
    reference = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0)).sum()
    assert float(gaussian_kl(mu.float(), logvar.float()).sum()) == pytest.approx(float(reference), rel=1e-3)
    half = gaussian_kl(mu.bfloat16(), logvar.bfloat16())
    assert half.dtype == torch.float32 and float(half.sum()) == pytest.approx(float(reference), rel=1e-2)


def test_gaussian_kl_has_the_gradient_of_its_formula() -> None:
    mu, logvar = normal(3, 2).requires_grad_(), normal(3, 2, seed=1).requires_grad_()
    gaussian_kl(mu, logvar).sum().backward()
    torch.testing.assert_close(mu.grad, mu.detach())
    torch.testing.assert_close(logvar.grad, 0.5 * (logvar.detach().exp() - 1))


def test_free_bits_hold_per_element_dimension_and_in_total() -> None:
    kl = torch.tensor([[0.0, 4.0], [2.0, 6.0]])
    assert float(free_bits(kl, 0.0)) == 6.0  # no floor: the mean KL
    assert float(free_bits(kl, 3.0, "element")) == (3 + 4 + 3 + 6) / 2
    assert float(free_bits(kl, 3.0, "dimension")) == 3 + 5
    assert float(free_bits(kl, 7.0, "total")) == 7.0


def test_free_bits_take_the_gradient_off_what_is_below_the_floor() -> None:
    kl = torch.tensor([[0.1, 4.0], [0.3, 6.0]], requires_grad=True)
    free_bits(kl, 1.0).backward()
    assert kl.grad is not None and kl.grad.tolist() == [[0.0, 0.5], [0.0, 0.5]]


def test_sample_is_mean_plus_scaled_noise() -> None:
    mu, logvar, noise = normal(4, 2), normal(4, 2, seed=1), normal(4, 2, seed=2)
    torch.testing.assert_close(reparameterize(mu, logvar, noise), mu + (logvar / 2).exp() * noise)
    torch.manual_seed(0)
    drawn = reparameterize(torch.zeros(20_000, 1), torch.full((20_000, 1), 2.0))
    assert float(drawn.std()) == pytest.approx(2.718, rel=0.02)


def test_reductions() -> None:
    values = torch.arange(6.0).reshape(3, 2)
    assert [float(reduce(values, one)) for one in ("mean", "sum", "batch")] == [2.5, 15.0, 5.0]
    assert float(reduce(values, "sum", shares=4)) == 60.0


def uneven(world: World) -> Any:
    """Rank 0 holds three selected elements, rank 1 one; then rank 1 alone holds any; then nobody does."""
    held = [[1.0, 2.0, 3.0], [10.0]][world.rank]
    weight = torch.ones((), requires_grad=True)
    first = ratio_over_ranks(weight * sum(held), torch.tensor(float(len(held))), world)
    first.backward()
    gradient = world.sum(weight.grad.clone()) / world.size  # what DDP does
    second = ratio_over_ranks(torch.tensor(5.0 * world.rank), torch.tensor(1.0 * world.rank), world)
    nobody = ratio_over_ranks(torch.tensor(0.0), torch.tensor(0.0), world)
    return float(gradient), [world.mean(value.detach()) for value in (first, second, nobody)]


def test_ratio_is_the_mean_over_all_ranks_whatever_each_holds(pair: Ranks) -> None:  # noqa: F811
    for gradient, (first, second, nobody) in pair.run(uneven):
        assert (gradient, first, second, nobody) == (4.0, 4.0, 5.0, 0.0)
    assert float(ratio_over_ranks(torch.tensor(6.0), torch.tensor(4.0), World())) == 1.5


def dice_like(values: torch.Tensor, world: World) -> torch.Tensor:
    sums = sum_over_ranks(torch.stack([values.square().sum(), values.sum()]), world)
    return sums[0] / (1 + sums[1])


def halves(world: World) -> Any:
    """Rank 0 holds one of three values, rank 1 two."""
    values = torch.tensor([[2.0], [3.0, 5.0]][world.rank], dtype=torch.float64, requires_grad=True)
    loss = dice_like(values, world)
    loss.backward()
    return float(loss), (values.grad / world.size).tolist()  # DDP averages


def test_a_ratio_of_totals_has_the_gradient_of_the_whole_batch(pair: Ranks) -> None:  # noqa: F811
    whole = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64, requires_grad=True)
    dice_like(whole, World()).backward()
    (first, of_first), (second, of_second) = pair.run(halves)
    assert first == second == pytest.approx(38 / 11, rel=1e-15)
    assert [*of_first, *of_second] == pytest.approx(whole.grad.tolist(), rel=1e-15)
