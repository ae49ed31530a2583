"""The lithology losses: squared error, KL, classification and masking under the originals' three reductions.

`Objective` is the module that the loop trains: one forward is the whole pass. All counts are those of the global
batch, so that the loss averaged over ranks is the loss of the global batch whatever the ranks' shares of it are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from buttress.trainables.lithology.config import Loss
from buttress.trainables.lithology.model import Code, Vae
from buttress.training.loop import StepState
from buttress.training.losses import gaussian_kl, reparameterize


class Batch(NamedTuple):
    """One rank's share of a global batch, already drawn: nothing in `forward` is random but dropout."""

    x: torch.Tensor  # [b, features], standardised
    noise: torch.Tensor  # [b, latent], standard normal
    keep: torch.Tensor | None  # [b, features], 0 where the input is masked; None without masking
    label: torch.Tensor | None  # [b], -1 = no label; None without a head
    rows: int  # of the global batch
    masked: int  # masked entries of the global batch
    labelled: int  # labelled rows of the global batch


class Weights(NamedTuple):
    """What sums over this rank's rows are multiplied by, so that the mean over ranks is the configured loss."""

    error: float  # of the squared error of every entry
    masked: float  # of the squared error of the masked entries, in addition
    kl: float
    class_: float


def weights(loss: Loss, batch: Batch, *, beta: float, alpha: float, shares: int) -> Weights:
    """The factors for `batch`; `beta` and `alpha` in the units of `loss.reduction`, `shares` as `StepState.shares`.

    `sum`: everything is summed over the batch. `sample`: that, divided by its rows. `mean`: the squared error is a mean
    over rows x features, the KL over rows x latents, the cross-entropy over labelled rows. The masked terms are means
    over the masked entries, on the scale of the error term: mean(error) + mask_weight * mean(masked error).
    """
    n, dx, dz = batch.rows, batch.x.shape[1], batch.noise.shape[1]
    if loss.reduction == "mean":
        error, kl, class_ = shares / (n * dx), shares / (n * dz), shares / max(1, batch.labelled)
    else:
        error = kl = class_ = float(shares) if loss.reduction == "sum" else shares / n
    over_masked = error * n * dx / max(1, batch.masked)
    if batch.keep is not None and loss.masked_only and batch.masked:  # where nothing is masked, all entries count
        return Weights(0.0, over_masked, kl * beta, class_ * alpha)
    return Weights(error, loss.mask_weight * over_masked, kl * beta, class_ * alpha)


class Objective(nn.Module):
    """The model with its training loss; `forward(batch, state)` is one pass of the loop.

    Logs (detached): `recon`, `kl`, `ce` per row (their means over ranks are those of the global batch: `recon` is the
    squared error of all entries summed over the features, without any weight; nats), and `mu`, `logvar` for monitors.
    """

    feature_weights: torch.Tensor | None

    def __init__(self, model: Vae, loss: Loss, classifier_on: str = "mu") -> None:
        super().__init__()
        self.model, self.loss, self.classifier_on = model, loss, classifier_on
        given = None if loss.feature_weights is None else torch.tensor(loss.feature_weights, dtype=torch.float32)
        self.register_buffer("feature_weights", given, persistent=False)

    def forward(self, batch: Batch, state: StepState) -> tuple[torch.Tensor, dict[str, Any]]:
        shown = batch.x if batch.keep is None else batch.x * batch.keep
        code: Code = self.model.encode(shown)
        z = reparameterize(code.mu, code.logvar, batch.noise)
        error = (self.model.decode(z) - batch.x).square()
        kl = gaussian_kl(code.mu, code.logvar).sum()

        factor = weights(self.loss, batch, beta=state.beta, alpha=state.numbers["alpha"], shares=state.shares)
        per_row = state.shares / batch.rows
        logs = {"recon": error.detach().sum() * per_row, "kl": kl.detach() * per_row}
        logs |= {"mu": code.mu.detach(), "logvar": code.logvar.detach()}
        weighted = error if self.feature_weights is None else error * self.feature_weights
        if batch.keep is None:
            total = factor.error * weighted.sum() + factor.kl * kl
        else:
            entries = factor.error + factor.masked * (1 - batch.keep)
            total = (entries * weighted).sum() + factor.kl * kl
        if self.model.head is not None and batch.label is not None:
            logits = self.model.head(code.mu if self.classifier_on == "mu" else z)
            ce = functional.cross_entropy(logits, batch.label, ignore_index=-1, reduction="sum")
            total = total + factor.class_ * ce
            logs["ce"] = ce.detach() * (state.shares / max(1, batch.labelled))
        return total, logs
