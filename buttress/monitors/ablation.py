"""What a decoder loses when its latent code is taken away."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from buttress.monitors.summaries import Merged


class AblationMonitor:
    """Compares reconstruction with z = mu to reconstruction with z = 0, sample by sample.

    It detects the collapse that a healthy KL hides: a decoder that ignores its code. Use the same fixed validation
    subset at every report. Reported under the key `ablation` (in the unit of the losses): `ablation/loss_mu` and
    `ablation/loss_zero`, means over the samples of all ranks; `ablation/delta` = loss_zero - loss_mu;
    `ablation/relative` = delta / loss_zero, for losses that are not negative (1: the code carries everything, 0:
    nothing, below 0: it does harm; NaN when loss_zero is 0). Without samples all four are NaN; with a loss that is not
    finite they are NaN and marked "not finite".

    Example:
        >>> monitor = AblationMonitor()
        >>> monitor.update(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0]))
        >>> monitor.merge(monitor.pack().unsqueeze(0))
        {'loss_mu': 1.5, 'loss_zero': 4.0, 'delta': 2.5, 'relative': 0.625}
    """

    NAMES = ("loss_mu", "loss_zero", "delta", "relative")

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # of loss_mu, loss_zero, their difference sample by sample, and 1

    @torch.no_grad()
    def update(self, loss_mu: Tensor, loss_zero: Tensor) -> None:
        """Adds one batch.

        Args:
            loss_mu: Reconstruction loss of each sample decoded from z = mu, [batch], any float type.
            loss_zero: Loss of the same samples decoded from z = 0, [batch]. Neither may be scaled by a weight that a
                sweep searches.

        Raises:
            ValueError: The shapes differ or are not [batch].
        """
        if loss_mu.shape != loss_zero.shape or loss_mu.dim() != 1:
            given = f"{[*loss_mu.shape]} and {[*loss_zero.shape]}"
            raise ValueError(f"AblationMonitor takes two losses [batch], got {given}")
        with_code, without = loss_mu.double(), loss_zero.double()
        sums = torch.stack([with_code, without, without - with_code, torch.ones_like(without)]).sum(1)
        self._sums = sums if self._sums is None else self._sums + sums

    def summary(self) -> AblationMonitor:
        """Returns the window since the last call, to be reported, and starts an empty one."""
        window = copy.copy(self)
        self._sums = None
        return window

    def pack(self) -> Tensor:
        """Sums of this rank's losses and their number, float64 [4] (see `Summary.pack`)."""
        return torch.zeros(4, dtype=torch.float64) if self._sums is None else self._sums

    def merge(self, rows: Tensor) -> Merged:
        """The four values from the rows of all ranks (see `Summary.merge`)."""
        loss_mu, loss_zero, delta, count = rows.sum(0).tolist()
        if not count:
            return dict.fromkeys(self.NAMES, math.nan)
        relative = delta / loss_zero if loss_zero else math.nan
        return dict(zip(self.NAMES, (loss_mu / count, loss_zero / count, delta / count, relative), strict=True))

    def nonfinite(self, rows: Tensor) -> tuple[str, ...]:
        """All four names if any loss was not finite."""
        return () if bool(rows.isfinite().all()) else self.NAMES
