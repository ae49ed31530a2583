"""Predicts from the covariance of the training rows whether a lithology config's code survives its beta.

The head is ignored: it reads mu, so it works on a code of any small size, which no reconstruction uses.
"""

from __future__ import annotations

import numpy as np

from buttress.trainables.lithology import data as tables
from buttress.trainables.lithology.config import Config, Loss
from buttress.training.forecast import Cache, Forecast, code_forecast, gains


def forecast(config: Config, cache: Cache) -> Forecast:
    dataset = tables.load(config.data, cache)
    covariance = np.cov(dataset.x[dataset.rows("train")].astype(np.float64), rowvar=False)
    target, cross, seen = moments(covariance, config.loss)
    features, latent = len(covariance), config.model.latent_dim
    beta = config.loss.beta
    if config.loss.units == "original":
        beta *= config.loss.beta_scale(features, latent)
    return code_forecast(gains(target, cross, seen), beta, latent)


def moments(covariance: np.ndarray, loss: Loss) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """covariance[f, f] -> mean weights [f], weighted cross-covariance [f, f], covariance of what is shown [f, f].

    An entry is shown (m = 1) with probability q = 1 - mask_prob; its error weighs 1, and mask_weight / mask_prob more
    where it is masked (a mean over masked entries on the scale of the mean over all); with `masked_only` the latter
    alone, with a mask_weight of 1.
    """
    own, hidden = 1.0, 0.0
    if loss.mask_prob > 0:
        own, hidden = (0.0, 1.0) if loss.masked_only else (1.0, loss.mask_weight)
    shown = 1 - loss.mask_prob
    variance = np.diag(np.diag(covariance))
    others = covariance - variance
    feature = np.ones(len(covariance)) if loss.feature_weights is None else np.asarray(loss.feature_weights, float)
    # E[w_j x_j m_k x_k]: for j != k the mask of j is independent of that of k; for j = k only shown entries count
    cross = shown * ((own + hidden) * others + own * variance)
    kept = feature > 0
    target = feature * (own + hidden)
    return target[kept], (feature[:, None] * cross)[kept], shown * (shown * others + variance)
