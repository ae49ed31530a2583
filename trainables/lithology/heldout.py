"""Measures reconstruction, KL, head and clustering on held-out boreholes, deterministically.

No value here depends on a weight of the training loss, so that trials with different weights can be compared. Each rank
measures its share of the rows; sums travel in one all-reduce, so that every rank knows every value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from buttress.monitors import AblationMonitor, LatentMonitor
from buttress.trainables.lithology.clustering import adjusted_rand
from buttress.trainables.lithology.config import Config
from buttress.trainables.lithology.data import Dataset
from buttress.trainables.lithology.model import Vae
from buttress.training.losses import gaussian_kl, reparameterize
from buttress.training.randomness import keyed_normal
from buttress.training.world import World

_AT_A_TIME = 8192  # rows


class HeldOut:
    """The rows of a validation or test split: this rank's share on its device, and rank 0's sample for clustering."""

    def __init__(self, dataset: Dataset, split: str, config: Config, world: World, dtype: torch.dtype) -> None:
        self.world, self.config, self.features = world, config, dataset.features
        rows = dataset.rows(split)
        label = dataset.label[rows]
        target = torch.from_numpy(np.ascontiguousarray(dataset.x[rows]))
        self.count = len(rows)
        self.spread = ((target - target.mean(0)) ** 2).sum(0)  # of all rows, per feature
        own = world.share(len(rows))
        self.x = target[own].to(world.device, dtype)
        # the same noise at every evaluation and in every trial
        index = torch.from_numpy(rows[own])
        self.noise = keyed_normal(config.data.split_seed, index, config.model.latent_dim, dtype=dtype).to(world.device)
        self.label, self.known = None, 0
        if config.model.semi_supervised:
            known = np.where((label >= 0) & dataset.seen[label], label, -1)  # no score on labels never trained on
            self.known = int((known >= 0).sum())
            self.per_label = torch.from_numpy(np.bincount(known[known >= 0], minlength=len(dataset.labels)))
            self.label = torch.from_numpy(known[own]).to(world.device)
        labelled = np.flatnonzero(label >= 0)
        drawn = np.random.default_rng(config.data.split_seed).permutation(labelled)[: config.buttress.ari_rows]
        self.clustered = target[drawn].to(world.device, dtype) if world.rank == 0 else target[:0]
        self.clustered_label, self.clusters = label[drawn], len(drawn)

    def measure(
        self, model: Vae, latent: LatentMonitor | None = None, ablation: AblationMonitor | None = None
    ) -> dict[str, Any]:
        """Reconstruction, KL and head over the whole split; feeds the monitors on the way."""
        dx = len(self.features)
        error, error_mu = torch.zeros(2, dx, dtype=torch.float64, device=self.world.device)
        kl, ce = torch.zeros(2, 1, dtype=torch.float64, device=self.world.device)
        labels = 0 if self.label is None else len(self.per_label)
        hits = torch.zeros(labels, dtype=torch.float64, device=self.x.device)
        silent = model.decode(torch.zeros(1, model.latent_dim, dtype=self.x.dtype, device=self.x.device))
        for first in range(0, len(self.x), _AT_A_TIME):
            rows = slice(first, first + _AT_A_TIME)
            x = self.x[rows]
            mu, logvar = model.encode(x)
            squared = (model.decode(reparameterize(mu, logvar, self.noise[rows])) - x).square()
            squared_mu = (model.decode(mu) - x).square()
            error += squared.sum(0, dtype=torch.float64)
            error_mu += squared_mu.sum(0, dtype=torch.float64)
            kl += gaussian_kl(mu, logvar).sum(dtype=torch.float64)
            if latent is not None:
                latent.update(mu, logvar)
            if ablation is not None:
                ablation.update(squared_mu.sum(1), (silent - x).square().sum(1))
            if self.label is not None and model.head is not None:
                label, logits = self.label[rows], model.head(mu)
                ce += functional.cross_entropy(logits, label, ignore_index=-1, reduction="sum").double()
                right = label[(logits.argmax(1) == label)]
                hits += torch.bincount(right, minlength=labels)
        sums = self.world.sum(torch.cat([error, error_mu, kl, ce, hits])).cpu()
        error, error_mu, kl, ce, hits = sums.split([dx, dx, 1, 1, labels])

        recon, nats = float(error.sum()) / self.count, float(kl) / self.count
        r2 = torch.where(self.spread > 0, 1 - error_mu / self.spread, torch.zeros_like(error_mu))
        values: dict[str, Any] = {"val/recon": recon, "val/kl": nats, "val/elbo_1": recon + nats}
        values["val/r2_mean"] = float(r2.mean())
        values |= {f"val/r2/{name}": float(r2[i]) for i, name in enumerate(self.features)}
        values["val/recon_mu"] = (error_mu / self.count).tolist()  # per feature, decoded from mu
        if self.known:
            present = self.per_label > 0
            values["val/ce"] = float(ce) / self.known
            values["val/accuracy"] = float(hits.sum()) / self.known
            values["val/balanced_accuracy"] = float((hits[present] / self.per_label[present]).mean())
        return values

    def ari(self, model: Vae) -> dict[str, float]:
        """Agreement of a Gaussian mixture on mu with the labels, found by rank 0, known to all; {} without labels."""
        if self.clusters < self.config.buttress.ari_components:
            return {}
        found = torch.zeros(1, dtype=torch.float64, device=self.world.device)
        if self.world.rank == 0:
            mu = torch.cat([model.encode(x).mu for x in self.clustered.split(_AT_A_TIME)]).double().cpu().numpy()
            found[0] = adjusted_rand(mu, self.clustered_label, self.config.buttress.ari_components, self.world.threads)
        return {"val/ari": float(self.world.sum(found))}
