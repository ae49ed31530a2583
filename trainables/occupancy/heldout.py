"""Measures held-out windows: counts over the whole split, and the metrics computed from them.

Logits go into histograms (4,096 bins of 0.01 between -20 and 20, by future step and by truth); histograms and counts
are summed over ranks, so that every rank has every value and none depends on which rank holds a window, nor on a weight
of the training loss.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from buttress.errors import BadInput
from buttress.trainables.occupancy.config import Config
from buttress.trainables.occupancy.data import Dataset
from buttress.trainables.occupancy.loss import wide
from buttress.trainables.occupancy.monitor import OccupancyMonitor, statistics
from buttress.training.world import World

BINS, REACH = 4096, 20.0  # of logits; a probability of 2e-9 is as good as 0


class HeldOut:
    """The windows of a validation or test split, and this rank's share of them."""

    def __init__(self, dataset: Dataset, split: str, config: Config, world: World, dtype: torch.dtype) -> None:
        self.dataset, self.config, self.world, self.dtype = dataset, config, world, dtype
        windows = dataset.windows(split)
        most = config.buttress.val_windows
        if most is not None and len(windows) > most:
            windows = windows[np.linspace(0, len(windows) - 1, most).round().astype(int)]
        self.windows = windows
        self.own = windows[len(windows) * world.rank // world.size : len(windows) * (world.rank + 1) // world.size]
        if not dataset.occupied[dataset.slots[windows, config.data.history_frames :]].any():
            raise BadInput(
                f"no future frame of the {split} split has an occupied voxel: nothing can be measured", key="data",
                accepted="another data.split_seed or data.fractions, or clouds in the range of the grid",
            )  # fmt: skip
        self.copy_last = self._copy_last()

    def batches(self) -> Any:
        """(history, future bool, poses [b, T, 13]) of this rank's windows, on its device."""
        data, device = self.config.data, self.world.device
        size = max(1, self.config.train.batch_size)
        for first in range(0, len(self.own), size):
            at = self.own[first : first + size]
            grids = torch.from_numpy(self.dataset.grids(at, data.grid)).to(device)
            poses = torch.from_numpy(np.asarray(self.dataset.poses[at])).to(device, self.dtype)
            history, future = grids.split([data.history_frames, data.future_frames], dim=1)
            yield history.to(self.dtype), future.bool(), poses

    def _copy_last(self) -> dict[str, Any]:
        """IoU of the last history frame taken for every future frame: what a model has to beat on the same data."""
        data, steps = self.config.data, self.config.data.future_frames
        counts = torch.zeros(2, steps, dtype=torch.float64)
        bits = np.asarray(self.dataset.bits)
        for window in self.own:
            slots = self.dataset.slots[window]
            last, future = bits[slots[data.history_frames - 1]], bits[slots[data.history_frames :]]
            counts[0] += torch.from_numpy(np.bitwise_count(last & future).sum(axis=1).astype(np.float64))
            counts[1] += torch.from_numpy(np.bitwise_count(last | future).sum(axis=1).astype(np.float64))
        both, either = self.world.sum(counts.to(self.world.device)).cpu()
        return {
            "val/copy_last_iou": float(both.sum() / either.sum().clamp_min(1)),
            "val/copy_last_iou_by_step": (both / either.clamp_min(1)).tolist(),
        }

    def measure(self, model: torch.nn.Module, monitor: OccupancyMonitor | None = None) -> dict[str, Any]:
        """Everything but the monitor's own values, over the whole split; feeds the monitor on the way."""
        steps, threshold = self.config.data.future_frames, self.config.buttress.occ_threshold
        device = self.world.device
        histogram = torch.zeros(steps, 2, BINS, dtype=torch.float64, device=device)
        counts = torch.zeros(3, steps, dtype=torch.float64, device=device)  # TP, predicted, occupied
        errors = torch.zeros(3, dtype=torch.float64, device=device)  # metres, degrees, poses
        cut = math.log(threshold / (1 - threshold))
        for history, future, poses in self.batches():
            known = self.config.data.history_frames
            out = model(history, poses[:, :known])
            logits = wide(out.logits)
            predicted = logits > cut
            sums = [(predicted & future), predicted, future]
            counts += torch.stack([one.sum((0, 2, 3, 4)).double() for one in sums])
            place = ((logits + REACH) * (BINS / (2 * REACH))).clamp(0, BINS - 1).to(torch.int64)
            place += future * BINS
            for step in range(steps):
                found = torch.bincount(place[:, step].flatten(), minlength=2 * BINS)
                histogram[step] += found.view(2, BINS)
            errors += _pose_errors(wide(out.poses), poses[:, known:])
            if monitor is not None:
                monitor.update(statistics(logits, future, threshold))
        sums_of_all = self.world.sum(torch.cat([histogram.flatten(), counts.flatten(), errors])).cpu()
        histogram, counts, errors = sums_of_all.split([histogram.numel(), counts.numel(), 3])
        values = scores(histogram.view(steps, 2, BINS)) | at_threshold(counts.view(3, steps)) | self.copy_last
        values["val/iou_gain"] = values["val/best_iou"] - values["val/copy_last_iou"]
        values["val/pos_error_m"] = float(errors[0] / errors[2])
        values["val/orient_error_deg"] = float(errors[1] / errors[2])
        return values


def at_threshold(counts: torch.Tensor) -> dict[str, Any]:
    """counts[3, T] of hits, predicted, occupied voxels -> IoU, precision, recall, F1 at the configured threshold."""
    hits, predicted, occupied = counts.sum(1).tolist()
    by_step = counts[0] / (counts[1] + counts[2] - counts[0]).clamp_min(1)
    return _four("val/", hits, predicted, occupied) | {"val/iou_by_step": by_step.tolist()}


def scores(histogram: torch.Tensor) -> dict[str, Any]:
    """histogram[T, 2, BINS] of logits (empty, occupied) -> average precision; IoU and company at the best threshold.

    Average precision is the sum over thresholds of precision times the gain of recall (scikit-learn's), with voxels of
    one bin as ties. The best threshold is the one, of all edges of bins, with the largest IoU over all steps.
    """
    empty, occupied = histogram.sum(0).flip(1)  # the surest first
    hits, predicted, truth = occupied.cumsum(0), (occupied + empty).cumsum(0), float(occupied.sum())
    precision = hits / predicted.clamp_min(1)
    iou = hits / (predicted + truth - hits).clamp_min(1)
    best = int(iou.argmax())
    edge = (BINS - 1 - best) * (2 * REACH / BINS) - REACH
    by_step = histogram.flip(2)[:, :, : best + 1].sum(2)
    every = histogram[:, 1].sum(1)
    step_iou = by_step[:, 1] / (by_step[:, 0] + every).clamp_min(1)
    steps = {f"val/best_iou_t{step}": float(value) for step, value in enumerate(step_iou, start=1)}
    return {
        "val/average_precision": float((precision * occupied).sum()) / truth if truth else math.nan,
        "best_threshold": 1 / (1 + math.exp(-edge)),
        **_four("val/best_", float(hits[best]), float(predicted[best]), truth),
        **steps,
    }


def _four(prefix: str, hits: float, predicted: float, occupied: float) -> dict[str, float]:
    """IoU, precision, recall and F1 from counts; 0 where nothing is predicted or there is nothing."""
    return {
        f"{prefix}iou": hits / max(predicted + occupied - hits, 1.0),
        f"{prefix}precision": hits / max(predicted, 1.0),
        f"{prefix}recall": hits / max(occupied, 1.0),
        f"{prefix}f1": 2 * hits / max(predicted + occupied, 1.0),
    }


def _pose_errors(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """[b, T, 13] twice -> float64 [3]: sum of distances (m), sum of angles 2 acos |q.q'| (degrees), number of poses."""
    distance = (ours[..., :3] - theirs[..., :3]).double().norm(dim=-1)
    turns = [functional.normalize(one[..., 3:7].double(), dim=-1) for one in (ours, theirs)]
    cosine = (turns[0] * turns[1]).sum(-1).abs().clamp_max(1.0)
    angle = torch.rad2deg(2 * torch.acos(cosine))
    return torch.stack([distance.sum(), angle.sum(), distance.new_tensor(float(distance.numel()))])
