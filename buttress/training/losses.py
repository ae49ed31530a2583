"""Loss functions that families share, written once so that one rank and several give the same step."""

from __future__ import annotations

from typing import Any, Literal

import torch

from buttress.training.world import World


def gaussian_kl(mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """mu[B, D], logvar[B, D] -> KL(N(mu, e^logvar) || N(0, 1)) in nats [B, D] (Kingma & Welling 2014, appendix B).

    Computed in float32 or better: near collapse e^logvar - 1 - logvar in bf16 has no correct digit.

    Args:
        mu: Posterior means, [B, D] or any shape.
        logvar: Log-variances of the same shape.

    Returns:
        Nats per element.
    """
    mu, logvar = _at_least_float32(mu), _at_least_float32(logvar)
    return 0.5 * (mu * mu + torch.expm1(logvar) - logvar)


def free_bits(
    kl: torch.Tensor, floor: float, per: Literal["element", "dimension", "total"] = "dimension"
) -> torch.Tensor:
    """kl[B, D] -> []: batch mean of the KL summed over D, with a lower bound of `floor` nats.

    A training loss only: report the raw KL, because the floor hides collapse.

    Args:
        kl: Nats, [B, D].
        floor: Nats, not negative.
        per: What the floor applies to: each `element`, each `dimension`'s mean over the batch (Kingma et al. 2016,
            inverse autoregressive flow, appendix C.8), or the `total`.

    Returns:
        Nats per sample, 0-dim.
    """
    if per == "element":
        return kl.clamp_min(floor).sum(1).mean()
    if per == "dimension":
        return kl.mean(0).clamp_min(floor).sum()
    return kl.sum(1).mean().clamp_min(floor)


def reparameterize(mu: torch.Tensor, logvar: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """mu[B, D], logvar[B, D] -> a sample mu + e^(logvar / 2) * noise [B, D] (Kingma & Welling 2014).

    Args:
        mu: Posterior means.
        logvar: Log-variances of the same shape.
        noise: Standard normals of the same shape; None draws them.

    Returns:
        The sample, differentiable in mu and logvar.
    """
    return torch.addcmul(mu, torch.exp(0.5 * logvar), torch.randn_like(mu) if noise is None else noise)


def reduce(values: torch.Tensor, reduction: Literal["mean", "sum", "batch"], shares: int = 1) -> torch.Tensor:
    """values[B, ...] -> []: reduces a loss so that its gradient is that of the global batch.

    Args:
        values: Loss per element, [B, ...].
        reduction: `mean` over all elements, `sum` over all elements, or `batch`: sum over all but the batch, mean over
            the batch.
        shares: `state.shares`. DDP and accumulation average gradients; a sum is multiplied by it to stay the sum over
            the global batch. Means ignore it and assume equal shares of the batch on every rank.

    Returns:
        The loss, 0-dim.
    """
    if reduction == "mean":
        return values.mean()
    if reduction == "sum":
        return values.sum() * shares
    return values.sum() / values.shape[0]


def ratio_over_ranks(numerator: torch.Tensor, denominator: torch.Tensor, world: World) -> torch.Tensor:
    """numerator[], denominator[] -> []: a loss whose mean over ranks is sum(numerator) / sum(denominator).

    For means over selected elements (extremes, masked entries) of which ranks hold different numbers: a mean per rank,
    averaged by DDP, would weight the ranks equally. Collective.

    Args:
        numerator: This rank's sum, 0-dim, differentiable.
        denominator: This rank's count or weight, 0-dim; no gradient flows into it.
        world: The ranks.

    Returns:
        The loss, 0-dim; 0 when the denominators sum to 0.
    """
    total = world.sum(denominator.detach().clone())
    return numerator * world.size / torch.where(total > 0, total, torch.ones_like(total))


def sum_over_ranks(values: torch.Tensor, world: World) -> torch.Tensor:
    """values[...] -> their sum over ranks [...], differentiable: for losses that are not a mean over samples.

    A dice, mean-matching or Jaccard loss is a function f of sums over the batch. Every rank computes the same f from
    the same sums; the gradient that arrives here is multiplied by the number of ranks, because DDP averages. So the
    step is that of f on the global batch, with equal or unequal shares. Collective (once; the backward is local).

    Args:
        values: This rank's sums, any shape.
        world: The ranks.

    Returns:
        The sums over ranks, of the same shape.
    """
    return values if world.size == 1 else _SumOverRanks.apply(values, world)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: torch.Tensor, world: World) -> torch.Tensor:
        context.size = world.size
        return world.sum(values.detach().clone())

    @staticmethod
    def backward(context: Any, *gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient[0] * context.size, None


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
