"""Measures how well the latent code separates the lithologies: a Gaussian mixture on mu against the labels.

The mixture is scikit-learn's `GaussianMixture` (full covariance, k-means start, its tolerance and regularisation),
written with two matrix products per iteration: several times faster, the same clusters (tested against it).
"""

from __future__ import annotations

import warnings

import numpy as np
import torch

_REGULARISATION, _TOLERANCE, _ITERATIONS = 1e-6, 1e-3, 100  # scikit-learn's defaults


def adjusted_rand(mu: np.ndarray, label: np.ndarray, components: int, threads: int = 1) -> float:
    """mu[n, latent], label[n] -> adjusted Rand index of a mixture of `components` Gaussians; NaN for mu not finite.

    No standardising: it would blow dead dimensions up to unit noise (v2.14 of the original did that). A fixed random
    state, float64 and a fixed number of threads: equal mu give equal bits.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_rand_score
    from threadpoolctl import threadpool_limits

    if not np.isfinite(mu).all():
        return float("nan")
    mu = np.ascontiguousarray(mu, dtype=np.float64)
    if len(np.unique(mu, axis=0)) <= components:
        return 0.0  # a code that is (nearly) the same for every row
    with threadpool_limits(limits=threads), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters
        start = KMeans(components, n_init=1, random_state=42).fit(mu).labels_
    try:
        found = mixture(torch.from_numpy(mu), torch.from_numpy(start), components)
    except torch.linalg.LinAlgError:  # mu so large that its products leave float64
        return float("nan")
    return float(adjusted_rand_score(label, found.numpy()))


def mixture(x: torch.Tensor, start: torch.Tensor, components: int) -> torch.Tensor:
    """x[n, d], start[n] in 0..components-1 -> component of each row after expectation maximisation, int64 [n].

    Both steps are one matrix product with the same basis (1, x, x x^T): its mean under each component's share gives
    weights, means and covariances, and a Gaussian's log-density is linear in it.
    """
    n, d = x.shape
    x = x - x.mean(0)
    basis = torch.cat([torch.ones(n, 1, dtype=x.dtype), x, (x[:, :, None] * x[:, None, :]).reshape(n, d * d)], dim=1)
    share = torch.nn.functional.one_hot(start.long(), components).to(x.dtype)  # of each component in each row
    ridge = _REGULARISATION * torch.eye(d, dtype=x.dtype)
    likelihood, settled = -float("inf"), False
    for _ in range(_ITERATIONS + 1):
        weight, first, second = (share.T @ basis).split([1, d, d * d], dim=1)
        weight = weight + 10 * torch.finfo(x.dtype).eps
        mean, square = first / weight, (second / weight).view(components, d, d)
        factor = torch.linalg.cholesky(square - mean[:, :, None] * mean[:, None, :] + ridge)
        precision = torch.cholesky_inverse(factor)
        linear = (precision @ mean[:, :, None]).squeeze(2)
        level = (weight / n).log() - factor.diagonal(dim1=1, dim2=2).log().sum(1, keepdim=True)
        level = level - 0.5 * (linear * mean).sum(1, keepdim=True)
        density = basis @ torch.cat([level, linear, -0.5 * precision.reshape(components, d * d)], dim=1).T
        total = density.logsumexp(1, keepdim=True)
        share = (density - total).exp_()
        before, likelihood = likelihood, float(total.mean())
        if settled:
            break
        settled = abs(likelihood - before) < _TOLERANCE  # one more round, as scikit-learn labels after its last update
    return share.argmax(1)
