"""Predicts from the data's covariance whether a VAE's loss pays for a latent code, before training.

A trainable's optional `forecast(config, cache)` returns a `Forecast`; `buttress plan` shows it, and a sweep may refuse
draws because of it (`forecast: refuse`).

Near the state without a code (z says nothing, the decoder gives the mean prediction) every decoder is linear in z, and
a direction of the code lowers the loss by a gain per nat that follows from second moments. For a squared error summed
over features and `beta` per nat, a direction with eigenvalue l of the data's covariance pays where

    l > beta / 2,        and then holds  1/2 ln(2 l / beta)  nats

(Lucas, Tucker, Grosse and Norouzi 2019, "Don't Blame the ELBO!", arXiv:1911.02469, for a decoder variance of beta / 2;
Tipping and Bishop 1999 for the spectrum). `2 l_1` is the critical beta: above it the state without a code is a minimum
for nets of any depth, because no encoder can do better than the best linear one at second order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any

import numpy as np

Cache = Callable[[Any, Callable[[], Mapping[str, np.ndarray]]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Forecast:
    """What is expected of a config.

    Attributes:
        collapses: The config's trial is expected to end collapsed; None: not known.
        why: One sentence with the numbers behind it.
        numbers: Named numbers for tables.
    """

    collapses: bool | None
    why: str
    numbers: dict[str, float] = field(default_factory=dict)


def gains(target: np.ndarray, cross: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """How much each direction of a code lowers a weighted squared error.

    A code u of unit variance lowers feature j's error by E[w_j x_j u]^2 / E[w_j]; the gains are the eigenvalues of that
    form over all linear u.

    Args:
        target: Mean weight of each feature's error, [f].
        cross: Covariance of weighted features and the encoder's input, [f, s].
        seen: Covariance of the encoder's input, [s, s].

    Returns:
        Gains in the loss's unit, at most s, largest first.
    """
    values, vectors = np.linalg.eigh(seen)
    kept = values > 1e-9 * values.max()
    whiten = vectors[:, kept] / np.sqrt(values[kept])
    projected = (cross / np.sqrt(target)[:, None]) @ whiten
    return np.asarray(np.linalg.svd(projected, compute_uv=False) ** 2)


def code_forecast(found: Sequence[float] | np.ndarray, beta: float, latent_dim: int) -> Forecast:
    """The forecast of a code from the gains of its directions.

    Args:
        found: Gains, largest first, in the loss's unit.
        beta: Price of a nat, in the loss's unit.
        latent_dim: Number of latent dimensions.
    """
    best = [float(gain) for gain in found[:latent_dim]]
    critical = 2 * best[0]
    nats = [0.5 * log(2 * gain / beta) for gain in best if 2 * gain > beta] if beta > 0 else [float("inf")] * len(best)
    numbers = {"critical_beta": critical, "beta": beta, "active": float(len(nats)), "nats": float(sum(nats))}
    if beta >= critical:
        return Forecast(True, f"beta {beta:.3g} is above the critical {critical:.3g}: no direction pays", numbers)
    units = "1 direction pays" if len(nats) == 1 else f"{len(nats)} directions pay"
    return Forecast(False, f"beta {beta:.3g} of a critical {critical:.3g}: {units}, {sum(nats):.2g} nats", numbers)
