"""Chooses the days of each batch: a permutation of the training days, or a fixed number of heavy days per batch.

Everything is a function of (seed, epoch) alone and drawn for the global batch; a rank takes its share of each batch, so
that the days of an epoch do not depend on how many ranks there are, and a resumed run sees the same ones. (The
original's heavy list was shuffled by Python's unseeded generator.)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np


@dataclass(frozen=True)
class Sampler:
    """`days`: positions of the training days; `heavy`: those of them that are heavy."""

    days: np.ndarray
    heavy: np.ndarray
    batch_size: int
    heavy_per_batch: int  # 0: no stratification

    @property
    def batches_per_epoch(self) -> int:
        """All other days once: ceil(others / (batch size - heavy per batch)); the last short batch is kept."""
        return ceil((len(self.days) - self.stratified * len(self.heavy)) / (self.batch_size - self.heavy_per_batch))

    @property
    def stratified(self) -> bool:
        return self.heavy_per_batch > 0

    def epoch(self, seed: int, epoch: int) -> list[np.ndarray]:
        """The global batches of an epoch (int64 positions each).

        Stratified: every batch has `heavy_per_batch` heavy days (the heavy list is reshuffled whenever it is used up)
        among the other days, in random order.
        """
        random = np.random.default_rng([seed, epoch, 1])
        if not self.stratified:
            order = random.permutation(self.days)
            return np.split(order, range(self.batch_size, len(order), self.batch_size))
        others = random.permutation(np.setdiff1d(self.days, self.heavy, assume_unique=True))
        room, count = self.batch_size - self.heavy_per_batch, self.batches_per_epoch
        rounds = ceil(count * self.heavy_per_batch / len(self.heavy))
        heavy = np.concatenate([random.permutation(self.heavy) for _ in range(rounds)])
        batches = []
        for i in range(count):
            drawn = heavy[i * self.heavy_per_batch : (i + 1) * self.heavy_per_batch]
            batches.append(random.permutation(np.concatenate([others[i * room : (i + 1) * room], drawn])))
        return [batches[i] for i in random.permutation(count)]
