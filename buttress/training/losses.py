"""Short loss functions that every family shares; the tensor shapes stand in the first line of each."""

from __future__ import annotations

from typing import Any, Literal

import torch

from buttress.training.world import World


def gaussian_kl(mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """mu[B, D], logvar[B, D] -> KL(N(mu, e^logvar) || N(0, 1)) in nats [B, D] (Kingma & Welling 2014, appendix B).

    In float32 or better: e^logvar - 1 - logvar of a bf16 near collapse has no correct digit.
    """
    mu, logvar = _wide(mu), _wide(logvar)
    return 0.5 * (mu * mu + torch.expm1(logvar) - logvar)


def free_bits(
    kl: torch.Tensor, floor: float, per: Literal["element", "dimension", "total"] = "dimension"
) -> torch.Tensor:
    """kl[B, D] -> []: batch mean of the KL summed over D, at least `floor` nats per element, dimension or in total.

    `dimension` is the usual one (Kingma et al. 2016, inverse autoregressive flow, appendix C.8): the floor holds for
    each dimension's mean over the batch. It is a training loss only: report the raw KL, a floor hides collapse.
    """
    if per == "element":
        return kl.clamp_min(floor).sum(1).mean()
    if per == "dimension":
        return kl.mean(0).clamp_min(floor).sum()
    return kl.sum(1).mean().clamp_min(floor)


def sample(mu: torch.Tensor, logvar: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """mu[B, D], logvar[B, D], noise[B, D] -> mu + e^(logvar / 2) * noise [B, D]; fresh noise if none is given."""
    return torch.addcmul(mu, torch.exp(0.5 * logvar), torch.randn_like(mu) if noise is None else noise)


def reduce(values: torch.Tensor, reduction: Literal["mean", "sum", "batch"], shares: int = 1) -> torch.Tensor:
    """values[B, ...] -> []: mean over everything; sum over everything; or sum over all but the batch, mean over it.

    DDP and accumulation average gradients: give `state.shares` as `shares`, so that a sum stays the sum over the
    global batch. The two means take no notice of it (equal shares of the batch on every rank are assumed).
    """
    if reduction == "mean":
        return values.mean()
    if reduction == "sum":
        return values.sum() * shares
    return values.sum() / values.shape[0]


def ratio(numerator: torch.Tensor, denominator: torch.Tensor, world: World) -> torch.Tensor:
    """numerator[], denominator[] -> []: a loss whose mean over ranks is sum(numerator) / sum(denominator) over ranks.

    For means over selected elements (extremes, masked entries), of which ranks hold different counts: a plain mean per
    rank, averaged by DDP, would weight the ranks alike. 0 when no rank holds any. Collective.
    """
    total = world.sum(denominator.detach().clone())
    return numerator * world.size / torch.where(total > 0, total, torch.ones_like(total))


def total(values: torch.Tensor, world: World) -> torch.Tensor:
    """values[...] -> their sum over ranks [...], differentiable: for losses that are not a mean over samples.

    A dice, a match of means, a Jaccard loss is a function f of sums over the batch. Every rank computes the same f from
    the same totals; the gradient that arrives here is multiplied by the number of ranks, because DDP averages: so the
    step is that of f on the global batch, with equal or unequal shares. Collective (once; the backward is local).
    """
    return values if world.size == 1 else _Total.apply(values, world)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: torch.Tensor, world: World) -> torch.Tensor:
        context.size = world.size
        return world.sum(values.detach().clone())

    @staticmethod
    def backward(context: Any, *gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient[0] * context.size, None


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
