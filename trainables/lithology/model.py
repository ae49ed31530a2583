"""The lithology VAEs: an MLP encoder, a Gaussian code, a mirrored decoder (or one per feature), optionally a head.

One class covers the original's unsupervised and semi-supervised models in all their layouts, chosen by the config
(`model.*`). Single-device code without a loss. The embedding of a row is `mu`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from buttress.trainables.lithology.config import Model


class Code(NamedTuple):
    """What the encoder says: a Gaussian per row."""

    mu: torch.Tensor  # [rows, latent]
    logvar: torch.Tensor  # [rows, latent]


class Vae(nn.Module):
    """VAE over `features` inputs, with a classifier over `classes` labels when the config is semi-supervised."""

    def __init__(self, config: Model, features: int, classes: int = 0) -> None:
        super().__init__()
        self.latent_dim = config.latent_dim
        norm, dropout = config.batch_norm, config.dropout
        self.encoder = Mlp([features, *config.hidden_dims], 2 * config.latent_dim, norm, dropout)  # mean, log-variance
        dims = config.decoder_dims if config.separate_decoders else config.hidden_dims[::-1]
        outputs = [1] * features if config.separate_decoders else [features]
        self.decoders = nn.ModuleList(Mlp([config.latent_dim, *dims], width, norm, dropout) for width in outputs)
        self.head = (
            nn.Sequential(
                nn.Linear(config.latent_dim, config.head_dim),
                nn.ReLU(),
                nn.Dropout(config.head_dropout),
                nn.Linear(config.head_dim, classes),
            )
            if config.semi_supervised
            else None
        )

    def encode(self, x: torch.Tensor) -> Code:
        """x[rows, features] -> mean and log-variance, each [rows, latent]."""
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        return Code(mu, logvar)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """z[rows, latent] -> standardised features [rows, features]."""
        if len(self.decoders) == 1:
            return self.decoders[0](z)
        return torch.cat([decoder(z) for decoder in self.decoders], dim=1)


class Mlp(nn.Module):
    """Linear-ReLU[-BatchNorm][-Dropout] from each of `dims` to the next, in the originals' order; then linear to `out`.

    Calls torch's functions itself: in a net this small a sixth of a step would go into calling modules.
    """

    def __init__(self, dims: Sequence[int], out: int, batch_norm: bool, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(dims))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in dims[1:]) if batch_norm else None
        self.out = nn.Linear(dims[-1], out)
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[rows, dims[0]] -> [rows, out]."""
        for i, layer in enumerate(self.hidden):
            assert isinstance(layer, nn.Linear)
            x = torch.relu(functional.linear(x, layer.weight, layer.bias))
            if self.norms is not None:
                norm = self.norms[i]
                assert isinstance(norm, nn.BatchNorm1d) and norm.momentum is not None
                x = torch.batch_norm(
                    x, norm.weight, norm.bias, norm.running_mean, norm.running_var,
                    self.training, norm.momentum, norm.eps, False,
                )  # fmt: skip
            if self.dropout:
                x = functional.dropout(x, self.dropout, self.training)
        return functional.linear(x, self.out.weight, self.out.bias)
