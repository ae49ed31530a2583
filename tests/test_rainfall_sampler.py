"""Batches of days: counts of the original's sampler, seeded, and the same whatever the number of ranks."""

from __future__ import annotations

import numpy as np
import pytest

from buttress.trainables.rainfall.config import Train
from buttress.trainables.rainfall.sampler import Sampler
from buttress.training.world import World

DAYS = np.arange(100, 700)
HEAVY = np.sort(np.random.default_rng(0).choice(DAYS, 30, replace=False))


def sampler(fraction: float = 0.2, batch: int = 64, heavy: np.ndarray = HEAVY) -> Sampler:
    return Sampler(DAYS, heavy, batch, Train(batch_size=batch, min_heavy_fraction=fraction).heavy_per_batch)


@pytest.mark.parametrize(("fraction", "heavy", "batches"), [(0.2, 12, 189), (0.4, 25, 252), (0.01, 1, 156)])
def test_full_size_epochs_have_the_originals_length(fraction: float, heavy: int, batches: int) -> None:
    days = np.arange(9_928)
    one = Sampler(days, days[:100], 64, Train(min_heavy_fraction=fraction).heavy_per_batch)
    assert (one.heavy_per_batch, one.batches_per_epoch) == (heavy, batches)


def test_every_batch_has_its_heavy_days_and_every_other_day_comes_once() -> None:
    one = sampler()
    batches = one.epoch(seed=1, epoch=0)
    assert len(batches) == one.batches_per_epoch == 11  # 570 others, 52 a batch
    assert all(np.isin(batch, HEAVY).sum() == 12 for batch in batches)
    assert sorted(len(batch) for batch in batches) == [62, *[64] * 10]  # the short one is kept
    every = np.concatenate(batches)
    others, counts = np.unique(every[~np.isin(every, HEAVY)], return_counts=True)
    assert (counts == 1).all() and np.array_equal(others, np.setdiff1d(DAYS, HEAVY))
    drawn = np.unique(every[np.isin(every, HEAVY)], return_counts=True)[1]
    assert len(drawn) == 30 and drawn.max() - drawn.min() <= 1  # used up before it is shuffled again


def test_without_stratification_an_epoch_is_a_permutation() -> None:
    batches = sampler(fraction=0.0).epoch(seed=1, epoch=3)
    assert np.array_equal(np.sort(np.concatenate(batches)), DAYS)
    assert [len(batch) for batch in batches] == [64] * 9 + [24]


@pytest.mark.parametrize("fraction", [0.0, 0.2])
def test_an_epochs_days_hang_on_seed_and_epoch_alone(fraction: float) -> None:
    one = sampler(fraction)
    first, again = one.epoch(5, 2), sampler(fraction).epoch(5, 2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], one.epoch(5, 3)[0]) and not np.array_equal(first[0], one.epoch(6, 2)[0])


@pytest.mark.parametrize("size", [2, 3, 5])
def test_ranks_share_every_batch_without_gap_or_overlap(size: int) -> None:
    for batch in sampler().epoch(1, 0):
        shares = [batch[World(rank, size).share(len(batch))] for rank in range(size)]
        assert np.array_equal(np.concatenate(shares), batch)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_heavy_days_are_spread_over_the_ranks() -> None:
    counts = [np.isin(batch[World(0, 2).share(len(batch))], HEAVY).sum() for batch in sampler().epoch(1, 0)]
    assert 4 < np.mean(counts) < 8 and len(set(counts)) > 2  # 12 a batch, shuffled before they are shared
