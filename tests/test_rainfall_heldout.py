"""Scores of held-out days against slow references, and what is said when there is nothing to score."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from benchmarks.rainfall_references import climatology, scored
from buttress.journal import plain as journalled
from buttress.monitors.summaries import merge_rows, pack_row
from buttress.trainables.rainfall.heldout import NAMES, Sums, correlation, crps, diversity, scores
from buttress.trainables.rainfall.rain import Rain


def rain(tail: float = 20.0, extreme: float = 40.0, pixels: int = 9) -> Rain:
    ones = np.ones((1, pixels))
    return Rain.of(0 * ones, ones, ones, (1.0, tail, extreme), torch.device("cpu"), torch.float64)


def sample(days: int = 4, k: int = 8, pixels: int = 9, seed: int = 0) -> tuple[torch.Tensor, ...]:
    random = np.random.default_rng(seed)
    truth, seen = (torch.from_numpy(random.gamma(0.5, 28.0, (days, pixels))) for _ in range(2))
    return truth, seen, torch.from_numpy(random.gamma(0.5, 28.0, (days, k, pixels)))


def told(truth: torch.Tensor, seen: torch.Tensor, drawn: torch.Tensor, of: Rain | None = None) -> dict[str, float]:
    sums = Sums(of or rain(pixels=truth.shape[1]), drawn.shape[1])
    for day in range(len(truth)):  # day by day: what a batch holds does not matter
        at = slice(day, day + 1)
        sums.add(truth[at], seen[at], drawn[at], torch.tensor(2.5, dtype=torch.float64))
    return scores(sums.packed(torch.device("cpu")), drawn.shape[1])


def test_scores_are_their_definitions() -> None:
    truth, seen, drawn = sample()
    found = told(truth, seen, drawn)
    y, p, q = truth.numpy(), seen.numpy(), drawn.numpy()
    tail, middle = y >= 20.0, np.median(q, axis=1)
    assert 3 < tail.sum() < 20
    assert found["prior/mae_tail"] == pytest.approx(np.abs(middle - y)[tail].mean(), rel=1e-12)
    assert found["prior/mae_all"] == pytest.approx(np.abs(middle - y).mean(), rel=1e-12)
    assert found["posterior/mae_all"] == pytest.approx(np.abs(p - y).mean(), rel=1e-12)
    assert found["posterior/rmse_all"] == pytest.approx(np.sqrt(((p - y) ** 2).mean()), rel=1e-12)
    assert found["posterior/mae_tail"] == pytest.approx(np.abs(p - y)[tail].mean(), rel=1e-12)
    assert found["posterior/rmse_tail"] == pytest.approx(np.sqrt(((p - y)[tail] ** 2).mean()), rel=1e-12)
    assert found["posterior/combined"] == pytest.approx(
        0.4 * found["posterior/mae_all"] + 0.6 * found["posterior/mae_tail"], rel=1e-12
    )
    assert found["posterior/tail_bias"] == pytest.approx(p[tail].sum() / y[tail].sum() - 1, rel=1e-9)
    assert found["posterior/mass_bias"] == pytest.approx(p.sum() / y.sum() - 1, rel=1e-12)
    assert found["prior/mass_bias"] == pytest.approx(q.mean(1).sum() / y.sum() - 1, rel=1e-12)
    assert found["prior/wet_fraction"] == pytest.approx((q > 0.1).mean(), rel=1e-12)
    assert found["truth/wet_fraction"] == pytest.approx((y > 0.1).mean(), rel=1e-12)
    assert found["prior/dry_ratio"] == pytest.approx((q <= 0.1).mean() / (y <= 0.1).mean(), rel=1e-9)
    assert found["prior/extreme_ratio"] == pytest.approx((q >= 40).mean() / (y >= 40).mean(), rel=1e-12)
    rainy = tail.any(1)
    pairs = [np.corrcoef(q[d, k], y[d])[0, 1] for d in np.flatnonzero(rainy) for k in range(8)]
    assert found["prior/correlation"] == pytest.approx(np.mean(pairs), rel=1e-9)
    assert found["prior/max"] == pytest.approx(q[rainy].max(2).mean(), rel=1e-12)
    assert found["prior/max_ratio"] == pytest.approx(q[rainy].max(2).mean() / y[rainy].max(1).mean(), rel=1e-12)
    assert found["prior/sd_ratio"] == pytest.approx(q[rainy].std(2).mean() / y[rainy].std(1).mean(), rel=1e-9)
    assert found["val/kl"] == 2.5


def test_crps_is_the_integral_of_the_squared_difference_of_distributions() -> None:
    truth, _, drawn = sample(days=3, k=5)
    grid = np.linspace(0, 400, 400_001)
    for day, pixel in ((0, 1), (2, 8)):
        x, y = drawn[day, :, pixel].numpy(), float(truth[day, pixel])
        steps = (x[:, None] <= grid).mean(0)
        integral = ((steps - (y <= grid)) ** 2).sum() * (grid[1] - grid[0])
        spread = np.abs(x[:, None] - x).sum()
        fair = integral - spread * (1 / (2 * 5 * 4) - 1 / (2 * 25))  # the estimate without bias for 5 members
        assert crps(drawn, truth)[day, pixel].item() == pytest.approx(fair, abs=2e-3)


def test_crps_of_few_members_has_no_bias() -> None:
    """N(0, 1) against y = 0.7: the closed form, whether 2 or 8 members are drawn."""
    y = 0.7
    exact = y * (2 * norm.cdf(y) - 1) + 2 * norm.pdf(y) - 1 / math.sqrt(math.pi)
    for k in (2, 8):
        drawn = torch.from_numpy(np.random.default_rng(k).standard_normal((200_000, k, 1)))
        assert crps(drawn, torch.full((200_000, 1), y)).mean().item() == pytest.approx(exact, abs=4e-3)


def test_climatology_is_scored_as_an_ensemble_of_all_training_days() -> None:
    random = np.random.default_rng(3)
    past, truth = np.sort(random.gamma(0.5, 20.0, (40, 6)), axis=0), random.gamma(0.5, 20.0, (5, 6))
    as_draws = torch.from_numpy(past).expand(5, 40, 6)
    expected = crps(as_draws, torch.from_numpy(truth)).mean().item()
    assert climatology(past, truth) == pytest.approx(expected, rel=1e-10)
    field = past.mean(0)
    found = scored(field, truth, 20.0)
    assert found["prior/mae_tail"] == pytest.approx(np.abs(field - truth)[truth >= 20].mean(), rel=1e-12)
    assert found["prior/crps"] == found["prior/mae_all"] == pytest.approx(np.abs(field - truth).mean(), rel=1e-12)


def test_diversity_is_one_minus_the_mean_cosine_of_pairs() -> None:
    _, _, drawn = sample(days=2, k=4)
    for day in range(2):
        q = drawn[day].numpy()
        pairs = [q[i] @ q[j] / np.linalg.norm(q[i]) / np.linalg.norm(q[j]) for i in range(4) for j in range(i)]
        assert diversity(drawn)[day].item() == pytest.approx(1 - np.mean(pairs), rel=1e-9)
    same = drawn[:, :1].expand(-1, 4, -1)
    assert diversity(same).abs().max() < 1e-12
    assert diversity(torch.zeros(1, 4, 9)).isnan().all()  # nothing was drawn: no diversity to speak of


def test_constant_fields_have_no_correlation() -> None:
    truth, seen, _ = sample()
    assert correlation(torch.ones(4, 9), truth).isnan().all()
    one = np.corrcoef(seen[1].numpy(), truth[1].numpy())[0, 1]
    assert correlation(seen, truth)[1].item() == pytest.approx(one, rel=1e-9)


def test_without_a_tail_pixel_the_tail_is_missing_not_perfect() -> None:
    truth, seen, drawn = sample()
    dry, known = truth.clamp_max(5.0), told(truth, seen, drawn)
    sums = Sums(rain(), 8)
    sums.add(dry, seen, drawn, torch.tensor(0.0))
    values = scores(sums.packed(torch.device("cpu")), 8)
    row, layout = pack_row(values)
    metrics, _, nonfinite = merge_rows(layout, row[None])
    for name in ("prior/mae_tail", "posterior/mae_tail", "posterior/rmse_tail", "posterior/combined",
                 "prior/diversity", "prior/correlation", "prior/extreme_ratio", "prior/max"):  # fmt: skip
        assert name in known and name not in metrics, name
    assert not nonfinite  # missing, not broken: a NaN would be a number that went wrong
    assert metrics["prior/crps"] > 0 and metrics["posterior/mae_all"] > 0
    assert json.dumps(journalled(metrics), allow_nan=False)


def test_a_field_that_is_not_finite_is_told_as_such() -> None:
    truth, seen, drawn = sample()
    drawn[0, 0, 0] = math.nan
    sums = Sums(rain(), 8)
    sums.add(truth, seen, drawn, torch.tensor(0.0))
    row, layout = pack_row(scores(sums.packed(torch.device("cpu")), 8))
    _, _, nonfinite = merge_rows(layout, row[None])
    assert "prior/crps" in nonfinite and "posterior/mae_all" not in nonfinite


def test_no_days_at_all_say_nothing() -> None:
    assert scores(torch.zeros(len(NAMES), dtype=torch.float64), 8) == {}
