"""Statistics, land mask and thresholds of a data set's pixels, and the conversion between z and mm.

z is the standardised field that the network sees, (log1p(mm) - mean) / std; mm is rain in the data's unit (mm/day, or
mm/h where the files say so). Thresholds in z select pixels for R1 to R3, thresholds in mm for R5 and the metrics; each
is named for its space, because mixing them was the original's most frequent bug.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log1p

import numpy as np
import torch

#: Beyond this rain (mm) a prediction grows linearly instead of exponentially: expm1 of an unbounded output overflows.
#: Far above any rain; the continuation has the same slope, so that the gradient brings such an output back.
MOST_MM = 2000.0


@dataclass(frozen=True)
class Rain:
    """Per-pixel statistics and thresholds on a device. Shapes: maps [H, W]."""

    mean: torch.Tensor  # of log1p(mm)
    std: torch.Tensor
    land: torch.Tensor  # 1.0 on land, 0.0 on the sea
    extreme_z: float  # P95 of the training days' maxima, in z
    tail_mm: float  # P95 of training land pixel-days, in mm
    extreme_mm: float  # P99 of training land pixel-days, in mm

    @classmethod
    def of(
        cls,
        mean: np.ndarray,
        std: np.ndarray,
        land: np.ndarray,
        thresholds: tuple[float, float, float],
        device: torch.device,
        dtype: torch.dtype,
    ) -> Rain:
        def on(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device, dtype)

        return cls(on(mean), on(std), on(land), *thresholds)

    def mm(self, z: torch.Tensor) -> torch.Tensor:
        """z[..., H, W] -> rain in mm, not floored at 0: the loss needs the gradient below it."""
        logged = z * self.std + self.mean
        top = log1p(MOST_MM)
        over = (logged - top).clamp_min(0)
        return torch.expm1(logged - over) + exp(top) * over

    def fallen(self, z: torch.Tensor, threshold: float = 0.0) -> torch.Tensor:
        """z[..., H, W] -> rain as it falls: at least 0, on land only, less than `threshold` mm counting as none."""
        mm = self.mm(z).clamp_min(0) * self.land
        return torch.where(mm < threshold, torch.zeros_like(mm), mm) if threshold > 0 else mm

    def moved(self, flip: tuple[int, ...] = (), turns: int = 0) -> Rain:
        """The same for fields that were `moved` like this."""
        if not flip and not turns:
            return self
        mean, std, land = (moved(one, flip, turns) for one in (self.mean, self.std, self.land))
        return Rain(mean, std, land, self.extreme_z, self.tail_mm, self.extreme_mm)


def moved(maps: torch.Tensor, flip: tuple[int, ...], turns: int) -> torch.Tensor:
    """maps[..., H, W] mirrored along the axes `flip` (-1 columns, -2 rows), then turned `turns` times by 90 degrees."""
    maps = torch.flip(maps, flip) if flip else maps
    return torch.rot90(maps, turns, (-2, -1)) if turns else maps
