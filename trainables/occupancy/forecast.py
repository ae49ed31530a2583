"""Computes the constant probability that minimizes an occupancy loss at the data's occupied rate.

A loss whose best constant lies above the threshold rewards a blind network for calling every voxel occupied; one whose
best constant is the occupied share itself (a cross-entropy) rewards it for being calibrated. Neither condemns a trial:
networks that learn something move away from the constant, though their predictions stay inflated by about as much. So
the forecast gives no verdict.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from buttress.trainables.occupancy import data as windows
from buttress.trainables.occupancy.config import Config, Loss
from buttress.trainables.occupancy.loss import occupancy_terms
from buttress.training.forecast import Cache, Forecast
from buttress.training.world import World

OCCUPIED = 200  # voxels of the field on which the loss is evaluated: far more than the 1 that dice adds to its sums
LOGITS = np.linspace(-12, 8, 21)  # where the constant is looked for, and then around the best
FINE = np.linspace(-1, 1, 17)


def forecast(config: Config, cache: Cache) -> Forecast:
    share = occupied_share(windows.load(config.data, cache), config)
    best = blind_constant(config.loss, share)
    numbers = {"blind_probability": best, "blind_fill": best / share, "occupied_share": share}
    side = "above" if best > config.buttress.occ_threshold else "below"
    why = (
        f"a blind network would predict {best:.2g} everywhere, {best / share:.3g} times the occupied share, "
        f"{side} the threshold {config.buttress.occ_threshold:g}"
    )
    return Forecast(None, why, numbers)


def occupied_share(dataset: windows.Dataset, config: Config) -> float:
    """Of the voxels of the training windows' futures, those without any left out as in training."""
    history = config.data.history_frames
    training = dataset.windows("train")
    kept = training[~dataset.empty_future(history)[training]]
    counts = dataset.occupied[dataset.slots[kept][:, history:]]
    return float(counts.mean()) / math.prod(config.data.grid)


def blind_constant(loss: Loss, share: float) -> float:
    """The probability that, predicted for every voxel, makes the loss least; to 0.125 in its logit."""
    future = torch.zeros(1, 1, math.ceil(OCCUPIED / share), 1, 1, dtype=torch.bool)
    future[0, 0, :OCCUPIED] = True
    alone = World()

    def least(logits: np.ndarray) -> float:
        fields = (torch.full(future.shape, float(logit), dtype=torch.float64) for logit in logits)
        return float(logits[int(np.argmin([float(occupancy_terms(one, future, loss, alone)[0]) for one in fields]))])

    return 1 / (1 + math.exp(-least(least(LOGITS) + FINE)))
