"""An exponential average of a module's weights, as stage 2 of the original loads it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

M = TypeVar("M", bound=nn.Module)

POWER = 2 / 3  # of the rise of the decay


class Average(Generic[M]):
    """`module` is the average of `source`, parameters and buffers.

    It changes after step 1 and every `every` steps from there: to a copy while at most `warmup` steps were completed
    before, and once more after that; then by 1 - `decay_at(step)` of the way to the source. Needs no collective: the
    source is the same on all ranks.

    Args:
        source: What is averaged; all its parameters and buffers are floats.
        decay: Largest decay.
        every: Steps between two changes.
        warmup: Steps during which the average is a copy.
    """

    def __init__(self, source: M, decay: float, every: int, warmup: int) -> None:
        self.source, self.decay, self.every, self.warmup = source, decay, every, warmup
        self.module = copy.deepcopy(source).requires_grad_(False).eval()

    def decay_at(self, step: int) -> float:
        """min(decay, 1 - (1 + n)^(-2/3)) after n completed steps beyond `warmup` + 1; 0 up to there."""
        beyond = step - self.warmup - 1
        return min(self.decay, 1 - (1 + beyond) ** -POWER) if beyond > 0 else 0.0

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step number `step` (completed steps)."""
        if (step - 1) % self.every:
            return
        copied = step - 1 - self.every <= self.warmup
        averaged, current = ([*one.parameters(), *one.buffers()] for one in (self.module, self.source))
        get_ema_multi_avg_fn(0.0 if copied else self.decay_at(step))(averaged, current, step)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self.module.load_state_dict(state)
