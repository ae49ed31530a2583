"""The Lovász extension of the Jaccard loss, computed from bucket counts instead of a sort.

Sorted by error, the loss is the sum of each voxel's error times the rise of the Jaccard loss when that voxel joins the
mispredicted ones (Berman, Triki & Blaschko 2018, arXiv:1705.08790). A full batch of the original has 87 million voxels
to sort. Here voxels whose errors agree to 1 / buckets are taken to join together, along a straight line from the counts
before to the counts after; their weights add up to the same rise, so the loss is at most 1 / buckets away from the
exact one, and equal to it when no bucket holds two voxels with different errors. Counts are summed over ranks: the loss
is that of the global batch.
"""

from __future__ import annotations

import torch

from buttress.training.losses import sum_over_ranks
from buttress.training.world import World

_EPS = 1e-8  # the original's, against a batch without an occupied voxel


def lovasz(errors: torch.Tensor, occupied: torch.Tensor, buckets: int, world: World) -> torch.Tensor:
    """errors[N] in 0..1, occupied[N] bool -> []: the Lovász-Jaccard loss of the occupied class over all ranks.

    Errors are |target - probability|. Differentiable in `errors`, with the weights held fixed, as the exact loss is.
    """
    place = (errors.detach() * buckets).to(torch.int32).clamp_(0, buckets - 1)
    place = torch.where(occupied, place + buckets, place)
    counts = world.sum(torch.bincount(place, minlength=2 * buckets).double())
    weights = _weights(counts.view(2, buckets)).to(errors.dtype).flatten()
    return sum_over_ranks((weights[place.long()] * errors).sum(), world)


def _weights(counts: torch.Tensor) -> torch.Tensor:
    """counts[2, K] of empty and occupied voxels by error, small errors first -> weight of a voxel of each, [2, K]."""
    empty, occupied = counts.flip(1)
    positives = occupied.sum()
    missed, false = occupied.cumsum(0), empty.cumsum(0)  # after each bucket, the largest errors first
    missed_before, false_before = missed - occupied, false - empty
    before, after = positives + false_before + _EPS, positives + false + _EPS  # unions
    # along the line, the mean of 1 / union; log1p keeps its digits where a bucket holds few empty voxels
    grown = empty / before
    of_occupied = torch.where(grown > 0, torch.log1p(grown) / torch.where(grown > 0, grown, 1.0), 1.0) / before
    rise = (positives - missed_before + _EPS) / before - (positives - missed + _EPS) / after
    by_empty = (rise - occupied * of_occupied) / empty.clamp_min(1)
    single = (positives - missed + _EPS) / (before * after)  # what one more empty voxel costs; no cancellation
    of_empty = torch.where(occupied == 0, single, by_empty)
    return torch.stack([of_empty, of_occupied]).flip(1)


def exact(errors: torch.Tensor, occupied: torch.Tensor) -> torch.Tensor:
    """errors[N], occupied[N] -> []: by sorting, on one rank; the reference that `lovasz` is measured against."""
    order = errors.detach().argsort(descending=True)
    truth = occupied[order].to(errors.dtype)
    intersection = truth.sum() - truth.cumsum(0)
    union = truth.sum() + (1 - truth).cumsum(0)
    jaccard = 1 - (intersection + _EPS) / (union + _EPS)
    rise = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
    return (errors[order] * rise).sum()
