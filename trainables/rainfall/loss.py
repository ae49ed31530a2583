"""The rainfall losses: absolute error with extra weight on extremes in four variants, mass, gradient and KL.

`Objective` is the module that the loop trains: one forward is the whole pass. Means over selected pixels or days (the
extremes, the intensity weights) are taken over the global batch: numerators stay on their rank, denominators are summed
over ranks, so that the gradient averaged by DDP is that of one rank with the whole batch, also when a rank holds no
extreme pixel. (A mean per rank, averaged, would bring the original's K/B bug back at rank granularity.)

Symbols: e = |y_hat - y| in z, [b, 1, H, W]; B = days of the global batch; M = pixels of a field that count
(`loss.over`); extreme: y >= P95 of the daily maxima (z).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from buttress.trainables.rainfall.config import Loss
from buttress.trainables.rainfall.model import RainVae
from buttress.trainables.rainfall.rain import Rain, moved
from buttress.training.losses import gaussian_kl, ratio_over_ranks, reparameterize
from buttress.training.optimization import StepState
from buttress.training.world import World


class Batch(NamedTuple):
    """One rank's share of a global batch, already drawn: nothing in `forward` is random but dropout."""

    x: torch.Tensor  # [b, C, h, w], standardised predictors
    y: torch.Tensor  # [b, 1, H, W], standardised log-rain
    noise: torch.Tensor  # [b, d_z], standard normal
    rows: int  # days of the global batch
    flip: tuple[int, ...] = ()  # axes along which x and y have been mirrored
    turns: int = 0  # by 90 degrees, after that


class Parts(NamedTuple):
    """Reconstruction and its two terms, each [] and such that its mean over ranks is that of the global batch."""

    rec: torch.Tensor
    base: torch.Tensor  # mean error, without a weight
    ext: torch.Tensor  # the extremes' term, without a weight (R5: equal to rec)


class ReconstructionSums(NamedTuple):
    """What the two terms are quotients of, each [] and a sum over days: of batches and of ranks they add up."""

    error: torch.Tensor
    pixels: torch.Tensor
    extreme: torch.Tensor  # R1: error of extreme pixels; R2, R3: means over those of a day; R5: weighted error in mm
    extremes: torch.Tensor  # R1: extreme pixels; R2: days; R3: days that have any; R5: weights

    def value(self, loss: Loss) -> float:
        """L_rec of all that was added up; a term over no pixel at all is 0."""
        error, pixels, extreme, extremes = (float(one) for one in self)
        ext = extreme / extremes if extremes else 0.0
        if loss.reconstruction == "intensity":
            return ext
        return loss.lambda_base * (error / pixels if pixels else 0.0) + loss.lambda_ext * ext


def reconstruction_sums(
    loss: Loss, rain: Rain, y_hat: torch.Tensor, y: torch.Tensor, mask: torch.Tensor
) -> ReconstructionSums:
    """y_hat, y[b, 1, H, W] in z, mask[H, W] -> the sums of L_rec in the variant that the config names.

    R1 `batch`: lambda_base * mean e + lambda_ext * (sum of e over extreme pixels / their number).
    R2 `ratio_buggy`: the second term is (sum over days of m_i) / B, m_i = mean e over the extreme pixels of day i: the
       mean over the K days that have any, times K / B.
    R3 `per_sample`: (sum over days of m_i) / K.
    R5 `intensity`: sum(w b |mm_hat - mm|) / sum(w b), w = clip(mm / scale, w_min, w_max), b = tail_boost from P99 on.
    """
    error = (y_hat - y).abs() * mask
    whole = error.sum(), mask.sum() * len(y)
    if loss.reconstruction == "intensity":
        mm = rain.mm(y)
        weight = (mm / loss.scale).clamp(loss.w_min, loss.w_max)
        weight = torch.where(mm >= rain.extreme_mm, weight * loss.tail_boost, weight) * mask
        return ReconstructionSums(*whole, (weight * (rain.mm(y_hat) - mm).abs()).sum(), weight.sum())
    extreme = ((y >= rain.extreme_z) * mask).to(error.dtype)
    if loss.reconstruction == "batch":
        return ReconstructionSums(*whole, (error * extreme).sum(), extreme.sum())
    count = extreme.sum((1, 2, 3))
    means = (error * extreme).sum((1, 2, 3)) / count.clamp_min(1)
    days = torch.ones_like(count) if loss.reconstruction == "ratio_buggy" else (count > 0).to(error.dtype)
    return ReconstructionSums(*whole, means.sum(), days.sum())


def reconstruction(
    loss: Loss, rain: Rain, y_hat: torch.Tensor, y: torch.Tensor, rows: int, mask: torch.Tensor, world: World
) -> Parts:
    """y_hat, y[b, 1, H, W] in z of a rank's days, mask[H, W] -> L_rec over the `rows` days of all ranks.

    Collective but for R2. A term over no pixel at all is 0.
    """
    sums, share = reconstruction_sums(loss, rain, y_hat, y, mask), world.size / rows
    base = sums.error * share / mask.sum()
    if loss.reconstruction == "ratio_buggy":
        ext = sums.extreme * share
    else:
        ext = ratio_over_ranks(sums.extreme, sums.extremes, world)
    rec = ext if loss.reconstruction == "intensity" else loss.lambda_base * base + loss.lambda_ext * ext
    return Parts(rec, base, ext)


def mass(
    y_hat: torch.Tensor, y: torch.Tensor, land: torch.Tensor, rain: Rain | None, rows: int, ranks: int
) -> torch.Tensor:
    """y_hat, y[b, 1, H, W] in z -> mean over days of |mean over land of (y_hat - y)|, in mm with `rain`, else in z."""
    difference = y_hat - y if rain is None else rain.mm(y_hat) - rain.mm(y)
    return ((difference * land).sum((1, 2, 3)) / land.sum()).abs().sum() * ranks / rows


def gradient(y_hat: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, rows: int, ranks: int) -> torch.Tensor:
    """y_hat, y[b, 1, H, W] in z -> mean |d_x error| + mean |d_y error| over neighbours that both count."""
    error, total = y_hat - y, y_hat.new_zeros(())
    for axis in (-1, -2):
        size = error.shape[axis]
        if size < 2:
            continue
        step = (error.narrow(axis, 1, size - 1) - error.narrow(axis, 0, size - 1)).abs()
        both = mask.narrow(axis, 1, size - 1) * mask.narrow(axis, 0, size - 1)
        total = total + (step * both).sum() / both.sum().clamp_min(1)
    return total * ranks / rows


def floored_kl(kl: torch.Tensor, loss: Loss, rows: int, world: World) -> torch.Tensor:
    """kl[b, D] -> []: the batch mean of its sum over D, at least `free_bits` nats per element, dimension or in total.

    Per dimension and in total the floor is held against the mean over the global batch, so that ranks agree on what is
    below it. Collective in these two cases.
    """
    share, floor = world.size / rows, loss.free_bits
    if not floor:
        return kl.sum() * share
    if loss.free_bits_per == "element":
        return kl.clamp_min(floor).sum() * share
    own = kl.sum(0) * share if loss.free_bits_per == "dimension" else kl.sum() * share
    whole = world.sum(own.detach().clone()) / world.size
    return torch.where(whole > floor, own, torch.full_like(own, floor)).sum()


class Objective(nn.Module):
    """The model with its training loss; `forward(batch, state)` is one pass of the loop.

    Logs (detached; their means over ranks are those of the global batch): `l_rec`, `l_base`, `l_ext`, `l_mass`,
    `l_gradient`, each without its weight; `kl`, the raw KL in nats whatever floor it has in the loss; `mu`, `logvar`
    for the monitors.
    """

    statics: torch.Tensor

    def __init__(self, model: RainVae, loss: Loss, rain: Rain, statics: torch.Tensor, world: World) -> None:
        """statics[1, S, H, W]."""
        super().__init__()
        self.model, self.loss, self.rain, self.world = model, loss, rain, world
        self.register_buffer("statics", statics, persistent=False)

    def forward(self, batch: Batch, state: StepState) -> tuple[torch.Tensor, dict[str, Any]]:
        loss, size, rows = self.loss, self.world.size, batch.rows
        rain, statics = self.rain.moved(batch.flip, batch.turns), moved(self.statics, batch.flip, batch.turns)
        with state.autocast():
            condition = self.model.condition(batch.x)
            code = self.model.posterior(condition, batch.y, statics)
            z = reparameterize(code.mu.to(batch.y.dtype), code.logvar.to(batch.y.dtype), batch.noise)
            decoded = self.model.decode(z, condition)
        y_hat, y = decoded.to(batch.y.dtype), batch.y
        mask = rain.land if loss.over == "land" else torch.ones_like(rain.land)
        parts = reconstruction(loss, rain, y_hat, y, rows, mask, self.world)
        kl = gaussian_kl(code.mu, code.logvar)
        total = parts.rec + state.beta * floored_kl(kl, loss, rows, self.world)
        logs = {"l_rec": parts.rec, "l_base": parts.base, "l_ext": parts.ext, "kl": kl.sum() * size / rows}
        if loss.lambda_mass:
            logs["l_mass"] = mass(y_hat, y, rain.land, rain if loss.mass_in == "mm" else None, rows, size)
            total = total + loss.lambda_mass * logs["l_mass"]
        if loss.lambda_gradient:
            logs["l_gradient"] = gradient(y_hat, y, mask, rows, size)
            total = total + loss.lambda_gradient * logs["l_gradient"]
        logs = {name: value.detach() for name, value in logs.items()}
        return total, {**logs, "mu": code.mu.detach(), "logvar": code.logvar.detach()}
