"""The training loss: occupancy terms from sums over the whole batch, pose terms, and the module that the loop calls.

Every term is a function of sums over all ranks (`losses.sum_over_ranks`): a dice, mean-matching or Jaccard loss of half
a batch is another loss. Inputs are logits in float32 or better, whatever precision the network ran in: the original
used probabilities in reduced precision, where ln(1 - p) of a confident voxel is -inf.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from buttress.trainables.occupancy.config import Loss
from buttress.trainables.occupancy.lovasz import lovasz
from buttress.trainables.occupancy.model import Predicted
from buttress.trainables.occupancy.monitor import statistics
from buttress.training.losses import sum_over_ranks
from buttress.training.optimization import StepState
from buttress.training.world import World

_SMALLEST_P = 1e-7  # the original's clamp of probabilities in the focal factor
_RECALL_P = 1e-6  # and in the recall term
_SAME = 0.01  # standard deviation below which predicted poses count as all the same
_MARGIN = 0.2  # of the triplet
_SMALLEST_VARIANCE = 1e-8  # added to the variance that divides


@dataclass(frozen=True)
class Batch:
    """One rank's share of a batch; the rest of it is on other ranks."""

    history: torch.Tensor  # [b, Th, X, Y, Z] of 0 and 1
    future: torch.Tensor  # bool [b, Tf, X, Y, Z]
    history_poses: torch.Tensor  # [b, Th, 13]
    future_poses: torch.Tensor  # [b, Tf, 13]
    first: int  # place of this share in the whole batch
    total: int  # windows of the whole batch


def occupancy_terms(
    logits: torch.Tensor, future: torch.Tensor, loss: Loss, world: World
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """logits[b, T, X, Y, Z], future[b, T, X, Y, Z] bool -> [], parts: the weighted sum of the terms, unweighted parts.

    r is the occupied share of all voxels of the batch, p the probability, N the number of voxels:
    focal  sum of a_t (1 - p_t)^gamma (-ln p_t) / N           (Lin et al. 2017, arXiv:1708.02002)
    bce    sum of (pos_weight or 1) (-ln p_t) / N
    dice   1 - (2 sum p t + 1) / (sum p + sum t + 1)
    mean   (mean p - mean t)^2
    recall sum over occupied voxels of -ln max(p, 1e-6) / their number; 0 where there are none
    lovasz see `lovasz.py`
    """
    x = logits.flatten(2)
    occupied = future.flatten(2)
    p = torch.sigmoid(x)
    steps = x.shape[1]
    empty = (~occupied).to(x.dtype)
    at = occupied.nonzero()[:, 1]  # future step of each occupied voxel
    x_on, p_on = x[occupied], p[occupied]

    def by_step(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(steps, dtype=x.dtype, device=x.device).index_add(0, at, values)

    sums = {
        "n": torch.full((steps,), float(x.shape[0] * x.shape[2]), dtype=x.dtype, device=x.device),
        "t": by_step(torch.ones_like(x_on)),
        "p": p.sum((0, 2)),
        "pt": by_step(p_on),
    }
    if loss.focal_weight or loss.bce_weight:
        off = functional.softplus(x) * empty  # -ln(1 - p) of empty voxels
        on = functional.softplus(-x_on)
        if loss.bce_weight:
            sums |= {"bce_on": by_step(on), "bce_off": off.sum((0, 2))}
        if loss.focal_weight:
            hard_on = (1 - p_on).clamp_min(_SMALLEST_P).pow(loss.focal_gamma)
            hard_off = p.clamp_min(_SMALLEST_P).pow(loss.focal_gamma)
            sums |= {"focal_on": by_step(hard_on * on), "focal_off": (hard_off * off).sum((0, 2))}
    if loss.recall_weight:
        sums["recall"] = by_step(functional.softplus(-x_on).clamp_max(-math.log(_RECALL_P)))
    whole = dict(zip(sums, sum_over_ranks(torch.stack(list(sums.values())), world), strict=True))

    n, t, pt, mean_p = (whole[name].sum() for name in ("n", "t", "pt", "p"))
    parts: dict[str, torch.Tensor] = {}
    decay = torch.exp(-loss.temporal_decay * torch.arange(steps, dtype=x.dtype, device=x.device))
    decay = decay * steps / decay.sum()
    if loss.focal_weight:
        alpha: torch.Tensor | float = (1 - t / n).clamp(0.5, 0.999)
        alpha = alpha if loss.focal_alpha == "dynamic" else float(loss.focal_alpha)
        parts["focal"] = (decay * (alpha * whole["focal_on"] + (1 - alpha) * whole["focal_off"])).sum() / n
    if loss.bce_weight:
        parts["bce"] = (decay * (loss.pos_weight * whole["bce_on"] + whole["bce_off"])).sum() / n
    if loss.dice_weight:
        parts["dice"] = 1 - (2 * pt + 1) / (mean_p + t + 1)
    if loss.mean_weight:
        parts["mean"] = ((mean_p - t) / n).square()
    if loss.recall_weight:
        parts["recall"] = whole["recall"].sum() / t.clamp_min(1)
    if loss.lovasz_weight:
        errors = torch.where(occupied, 1 - p, p)
        parts["lovasz"] = lovasz(errors.flatten(), occupied.flatten(), loss.lovasz_buckets, world)
    weighted = [getattr(loss, f"{name}_weight") * value for name, value in parts.items()]
    return torch.stack(weighted).sum(), parts


def simple_pose(out: Predicted, batch: Batch, world: World) -> torch.Tensor:
    """Smooth L1 over all 13 numbers, mean over windows, steps and numbers: []."""
    error = functional.smooth_l1_loss(out.poses, batch.future_poses, reduction="sum")
    return sum_over_ranks(error, world) / (batch.total * batch.future_poses[0].numel())


def pose_terms(out: Predicted, batch: Batch, loss: Loss, world: World) -> torch.Tensor:
    """Position, rotation (mean 1 - |q.q'|), half of the velocities, and a penalty on poses that are all alike: [].

    Quaternions are normalised first; the penalty looks at the biased standard deviation over windows and steps.
    """
    ours, theirs = out.poses, batch.future_poses
    steps = theirs.shape[1]
    position = functional.smooth_l1_loss(ours[..., :3], theirs[..., :3], reduction="sum") / 3
    turns = [functional.normalize(one[..., 3:7], dim=-1) for one in (ours, theirs)]
    rotation = (1 - (turns[0] * turns[1]).sum(-1).abs()).sum()
    velocity = functional.smooth_l1_loss(ours[..., 7:], theirs[..., 7:], reduction="sum") / 6
    count = batch.total * steps
    pose = sum_over_ranks(position + rotation + 0.5 * velocity, world) / count
    if loss.pose_variance_weight:
        flat = torch.cat([ours[..., :3], ours[..., 7:]], dim=-1).flatten(0, 1)
        centre = sum_over_ranks(flat.sum(0), world) / count
        spread = (sum_over_ranks((flat - centre).square().sum(0), world) / count + 1e-12).sqrt()
        missing = (_SAME - spread[:3].mean()).relu().square() + (_SAME - spread[3:].mean()).relu().square()
        pose = pose + loss.pose_variance_weight * missing
    return pose


def uncertainty_term(out: Predicted, batch: Batch, loss: Loss, world: World) -> torch.Tensor:
    """Gaussian likelihood of the positions with variance s^2, and .1 (s - 1)^2 over all six: [].

    The squared error is divided by s^2 + 1e-8;
    s = s_min + (s_max - s_min) sigmoid(raw + bias), the bias such that raw 0 gives s = 1.
    """
    assert out.uncertainty is not None
    span = loss.uncertainty_max - loss.uncertainty_min
    at_one = (1 - loss.uncertainty_min) / span
    s = loss.uncertainty_min + span * torch.sigmoid(out.uncertainty + math.log(at_one / (1 - at_one)))
    error = (out.poses[..., :3] - batch.future_poses[..., :3]).square()
    variance = s[:, None, :3].square()
    likelihood = 0.5 * (error / (variance + _SMALLEST_VARIANCE) + variance.log()).sum() / error[0].numel()
    stays = 0.1 * (s - 1).square().sum() / s.shape[1]
    return sum_over_ranks(likelihood + stays, world) / batch.total


def relocalization_term(out: Predicted, batch: Batch, world: World) -> torch.Tensor:
    """Smooth L1 to the last history pose, its position relative to the first one's: []."""
    assert out.relocalization is not None
    poses = batch.history_poses
    target = torch.cat([poses[:, -1, :3] - poses[:, 0, :3], poses[:, -1, 3:7]], dim=1)
    error = functional.smooth_l1_loss(out.relocalization, target, reduction="sum")
    return sum_over_ranks(error, world) / (batch.total * 7)


def place_term(out: Predicted, batch: Batch, world: World) -> torch.Tensor:
    """Triplet over the whole batch: each window's nearest other embedding against its second-nearest, margin .2: [].

    0 for fewer than three windows, but for .1 (norm - 1)^2. Embeddings of other ranks count with their gradients.
    """
    assert out.place is not None
    own = out.place
    every = own.new_zeros(batch.total, own.shape[1])
    every = torch.cat([every[: batch.first], own, every[batch.first + len(own) :]])
    every = sum_over_ranks(every, world)
    stays = 0.1 * (every.norm(dim=1) - 1).square().mean()
    if batch.total < 3:
        return stays
    apart = (every[:, None] - every[None]).square().sum(-1)
    apart = (apart + 1e-12).sqrt() + 1e6 * torch.eye(batch.total, dtype=apart.dtype, device=apart.device)
    near = apart.topk(2, dim=1, largest=False).values
    return (near[:, 0] - near[:, 1] + _MARGIN).relu().mean() + stays


class Objective(nn.Module):
    """A network with its training loss; `forward(batch, state)` is one pass of the loop.

    Logs (detached): the unweighted parts, the same on every rank, and `occ`, this rank's statistics for the monitor.
    """

    def __init__(self, model: nn.Module, loss: Loss, simple: bool, threshold: float, world: World) -> None:
        super().__init__()
        self.model, self.loss, self.simple, self.threshold, self.world = model, loss, simple, threshold, world

    def forward(self, batch: Batch, state: StepState) -> tuple[torch.Tensor, dict[str, Any]]:
        with state.autocast():
            out = self.model(batch.history, batch.history_poses)
        out = Predicted._make(None if part is None else wide(part) for part in out)
        occupancy, parts = occupancy_terms(out.logits, batch.future, self.loss, self.world)
        loss, world = self.loss, self.world
        if self.simple:
            weight = 0.1 if loss.pose_weight is None else loss.pose_weight
            result = occupancy
            others = {"pose": (weight, lambda: simple_pose(out, batch, world))}
        else:
            weight = 0.5 if loss.pose_weight is None else loss.pose_weight
            result = loss.occ_weight * occupancy
            others = {
                "pose": (weight, lambda: pose_terms(out, batch, loss, world)),
                "uncertainty": (loss.uncertainty_weight, lambda: uncertainty_term(out, batch, loss, world)),
                "relocalization": (loss.relocalization_weight, lambda: relocalization_term(out, batch, world)),
                "place": (loss.place_weight, lambda: place_term(out, batch, world)),
            }
        for name, (weight, term) in others.items():
            if weight:
                parts[name] = term()
                result = result + weight * parts[name]
        result = result + 0.0 * sum(part.sum() for part in out[1:] if part is not None)  # DDP wants every output used
        logs: dict[str, Any] = {name: value.detach() for name, value in parts.items()}
        logs["occ"] = statistics(out.logits.detach(), batch.future, self.threshold)
        return result, logs


def wide(x: torch.Tensor) -> torch.Tensor:
    """float32 for what a network in reduced precision says; wider types stay."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
