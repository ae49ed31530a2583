"""What is said of a config before training: against closed forms, against sampled moments, against recorded trials."""

from __future__ import annotations

from math import log
from pathlib import Path

import numpy as np
import pytest

from benchmarks.collapsebench.family import load
from benchmarks.collapsebench.judge import curves_of
from benchmarks.forecast import judged
from buttress.analysis.curves import CurveSet
from buttress.trainables.lithology.config import Loss
from buttress.trainables.lithology.forecast import moments
from buttress.trainables.occupancy.config import Loss as OccupancyLoss
from buttress.trainables.occupancy.forecast import blind_constant
from buttress.training.forecast import code_forecast, gains

CURVES = Path(__file__).parents[1] / "benchmarks" / "collapsebench" / "curves"


def covariance(features: int = 5, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(features, 3 * features))
    return drawn @ drawn.T / (3 * features)


def test_without_masks_the_gains_are_the_eigenvalues_and_the_code_is_that_of_probabilistic_pca() -> None:
    sigma = covariance()
    found = gains(*moments(sigma, Loss()))
    spectrum = np.linalg.eigvalsh(sigma)[::-1]
    np.testing.assert_allclose(found, spectrum, rtol=1e-9)
    beta = 2 * float(spectrum[1:3].mean())  # two directions pay
    forecast = code_forecast(found, beta, latent_dim=4)
    assert not forecast.collapses
    assert forecast.numbers["active"] == 2
    # Tipping and Bishop: the code holds 1/2 ln(l / sigma^2) nats per direction, with sigma^2 = beta / 2
    nats = sum(0.5 * log(eigenvalue / (beta / 2)) for eigenvalue in spectrum[:2])
    assert forecast.numbers["nats"] == pytest.approx(nats, rel=1e-9)


def test_the_critical_beta_is_twice_the_largest_gain() -> None:
    assert code_forecast([3.0, 1.0], 6.001, 2).collapses
    assert not code_forecast([3.0, 1.0], 5.999, 2).collapses
    assert code_forecast([3.0, 1.0], 0.01, 1).numbers["active"] == 1  # no more directions than latents


@pytest.mark.parametrize(
    "loss",
    [
        {"mask_prob": 0.3},
        {"mask_prob": 0.2, "mask_weight": 0.7},
        {"mask_prob": 0.4, "masked_only": True},
        {"mask_prob": 0.3, "mask_weight": 0.5, "feature_weights": (1.0, 2.0, 0.0, 1.0, 0.5)},
    ],
)
def test_moments_under_masks_are_those_of_sampled_masks(loss: dict[str, object]) -> None:
    sigma, settings, rows = covariance(), Loss.model_validate(loss), 400_000
    rng = np.random.default_rng(1)
    x = rng.multivariate_normal(np.zeros(5), sigma, size=rows)
    shown = rng.random((rows, 5)) >= settings.mask_prob
    # as the loss weighs entries: `weights` in trainables/lithology/loss.py
    extra = (1.0 if settings.masked_only else settings.mask_weight) / (1 - shown).mean()
    weight = (0.0 if settings.masked_only else 1.0) + extra * (1 - shown)
    weight = weight * np.asarray(settings.feature_weights or np.ones(5))
    kept = weight.sum(0) > 0
    target, cross, seen = moments(sigma, settings)
    np.testing.assert_allclose(target, weight.mean(0)[kept], rtol=0.02)
    np.testing.assert_allclose(cross, ((weight * x).T @ (shown * x) / rows)[kept], atol=0.02)
    np.testing.assert_allclose(seen, (shown * x).T @ (shown * x) / rows, atol=0.02)


def alone(**terms: float) -> OccupancyLoss:
    """A loss of these terms only."""
    names = ("focal_weight", "dice_weight", "mean_weight", "lovasz_weight", "recall_weight", "bce_weight")
    return OccupancyLoss.model_validate(dict.fromkeys(names, 0.0) | terms)


@pytest.mark.parametrize("share", [0.0083, 0.05])
def test_the_best_blind_constant_of_a_cross_entropy_is_known_in_closed_form(share: float) -> None:
    def logit(p: float) -> float:
        return log(p / (1 - p))

    plain = blind_constant(alone(bce_weight=1.0, pos_weight=1.0), share)
    assert logit(plain) == pytest.approx(logit(share), abs=0.13)  # the grid's spacing, and the rounding of the share
    # minimum of -w r ln p - (1 - r) ln(1 - p)
    weighted = blind_constant(alone(bce_weight=1.0, pos_weight=10.0), share)
    assert logit(weighted) == pytest.approx(logit(10 * share / (10 * share + 1 - share)), abs=0.13)
    matched = blind_constant(alone(mean_weight=1.0), share)
    assert logit(matched) == pytest.approx(logit(share), abs=0.13)


def test_a_loss_that_pays_for_calling_everything_occupied_is_seen() -> None:
    assert blind_constant(alone(recall_weight=2.0, bce_weight=0.1, pos_weight=1.0), 0.0083) > 0.1
    assert blind_constant(alone(dice_weight=1.0), 0.0083) > 0.99


def test_recorded_trials_end_as_foreseen() -> None:
    family = load("lithology")
    curves: CurveSet = curves_of("lithology", CURVES)
    found = judged(family, curves)
    assert found["trials"] >= 290
    assert found["right"] / found["trials"] >= 0.97
    assert found["nats_rank_correlation"] >= 0.95
