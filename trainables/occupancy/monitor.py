"""The occupancy monitor: how much a network predicts, and whether occupied voxels are separated from empty ones.

Its `Summary` is reported under the key `occ`. Neither a low mean prediction nor a falling loss is evidence: a useless
calibrated network has the first, a solved static scene the second. `fill` and `sep` together distinguish empty, full
and healthy networks.
"""

from __future__ import annotations

import math

import torch

from buttress.monitors import Merged

_SUMS = 6


def statistics(logits: torch.Tensor, future: torch.Tensor, threshold: float) -> torch.Tensor:
    """logits, future (bool) of any one shape -> float64 [8]: voxels, occupied ones, sum of p, sum of p over occupied
    voxels, predicted voxels (p > threshold), those of them that are occupied, largest p, smallest p."""
    predicted = logits > math.log(threshold / (1 - threshold))
    p = torch.sigmoid(logits)
    parts = (
        future.sum(),
        p.sum(dtype=torch.float64),
        (p[future]).sum(dtype=torch.float64),
        predicted.sum(),
        (predicted & future).sum(),
        torch.sigmoid(logits.max()),
        torch.sigmoid(logits.min()),
    )
    count = torch.full((), float(logits.numel()), dtype=torch.float64, device=logits.device)
    return torch.stack([count, *(part.double() for part in parts)])


class OccupancyMonitor:
    """Predictions against targets over all voxels of a window of steps (or of a validation set) and of all ranks.

    Merged, under the key `occ`:

    | name | what |
    | --- | --- |
    | `rate`, `predicted` | occupied share of the target voxels; share with p above the threshold |
    | `mean`, `mean_ratio` | mean probability; over `rate` |
    | `max`, `min` | largest and smallest probability |
    | `fill` | predicted voxels (p above the threshold) over occupied ones: 0 empty, 1 / rate full |
    | `sep` | mean probability on occupied voxels over that on empty ones: 1 says nothing is told apart |
    | `recall`, `precision` | of the predicted voxels; `precision` 0 where nothing is predicted |

    Without an occupied voxel, `mean_ratio`, `fill`, `sep` and `recall` are NaN: nothing can be said, so no rule speaks.
    """

    NAMES = ("rate", "predicted", "mean", "mean_ratio", "max", "min", "fill", "sep", "recall", "precision")

    def __init__(self) -> None:
        self._rows: list[torch.Tensor] = []

    def update(self, row: torch.Tensor) -> None:
        """What `statistics` made of a batch."""
        self._rows.append(row)
        if len(self._rows) >= 64:
            self._rows = [_combined(torch.stack(self._rows))]

    def summary(self) -> OccupancyMonitor:
        """The window since the last call, to be reported; this monitor starts an empty one."""
        window = OccupancyMonitor()
        window._rows, self._rows = self._rows, []
        return window

    def pack(self) -> torch.Tensor:
        if not self._rows:
            return torch.tensor([0.0] * _SUMS + [0.0, 1.0], dtype=torch.float64)
        return _combined(torch.stack(self._rows))

    def merge(self, rows: torch.Tensor) -> Merged:
        n, on, p, p_on, predicted, hits, largest, smallest = _combined(rows).tolist()
        if not n:
            return dict.fromkeys(self.NAMES, math.nan)
        off, p_off = n - on, p - p_on
        sep = (p_on / on) / max(p_off / off, 1e-12) if on and off else math.nan
        return {
            "rate": on / n,
            "predicted": predicted / n,
            "mean": p / n,
            "mean_ratio": p / on if on else math.nan,
            "max": largest,
            "min": smallest,
            "fill": predicted / on if on else math.nan,
            "sep": sep,
            "recall": hits / on if on else math.nan,
            "precision": hits / predicted if predicted else 0.0,
        }

    def nonfinite(self, rows: torch.Tensor) -> tuple[str, ...]:
        return () if bool(rows.isfinite().all()) else self.NAMES


def _combined(rows: torch.Tensor) -> torch.Tensor:
    """[k, 8] -> [8]: sums, largest, smallest; NaN stays NaN."""
    largest, smallest = rows[:, _SUMS].amax(0, keepdim=True), rows[:, _SUMS + 1].amin(0, keepdim=True)
    return torch.cat([rows[:, :_SUMS].sum(0), largest, smallest])
