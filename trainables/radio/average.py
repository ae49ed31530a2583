"""An exponential average of a module's weights, as stage 2 of the original loads it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

M = TypeVar("M", bound=nn.Module)


class Average(Generic[M]):
    """`module` is the average of `source`: a copy until `warmup` steps, then every `every` steps moved by 1 - decay of
    the way to it. Needs no collective: the source is the same on all ranks."""

    def __init__(self, source: M, decay: float, every: int, warmup: int) -> None:
        self.source, self.decay, self.every, self.warmup = source, decay, every, warmup
        self.module = copy.deepcopy(source).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step number `step` (completed steps)."""
        if step > self.warmup and step % self.every:
            return
        decay = 0.0 if step <= self.warmup else self.decay
        get_ema_multi_avg_fn(decay)(list(self.module.parameters()), list(self.source.parameters()), step)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self.module.load_state_dict(state)
