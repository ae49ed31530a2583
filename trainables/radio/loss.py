"""The two losses of the first stage, each inside a module whose forward is one pass of the loop.

Symbols: B images of the global batch, H W pixels, x the image, y its reconstruction, P the perceptual distance of an
image. Sums over a rank's images are scaled by ranks / B, so that what DDP averages, and the mean of every logged
number, is that of one rank with the whole batch, whatever the shares.

    r = |x - y| + (x - y)^2 + perceptual_weight P           of a pixel; P is the same for all pixels of an image
    nll = 1/B sum_pixels (r / exp(logvar) + logvar)
    KL = 1/B sum_latents 1/2 (mu^2 + var - 1 - log var)
    g = -mean D(y)
    w = disc_weight clamp(|grad nll| / (|grad g| + 1e-4), 0, 1e4)      gradients at the decoder's last weight
    autoencoder: nll + kl_weight KL + w disc_factor g
    discriminator (hinge): disc_factor / 2 (mean relu(1 - D(x)) + mean relu(1 + D(y)))
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from buttress.trainables.radio.config import LossConfig
from buttress.trainables.radio.model import Discriminator, RadioVae
from buttress.training.losses import gaussian_kl
from buttress.training.optimization import ModuleReference, StepState
from buttress.training.world import World

MOST = 1e4  # of the ratio of gradients
EPSILON = 1e-4  # beside |grad g|


class Batch(NamedTuple):
    """One rank's share of a global batch, already drawn."""

    x: torch.Tensor  # [b, 1, H, W], in [-1, 1]
    noise: torch.Tensor  # [b, embed_dim, h, w], standard normal
    rows: int  # images of the global batch


def negative_log_likelihood(error: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """error[b, 1, H, W], logvar[] -> []: sum over images and pixels of error / exp(logvar) + logvar."""
    return (error / logvar.exp() + logvar).sum()


def gradient_ratio(nll: torch.Tensor, g: torch.Tensor, at: nn.Parameter, world: World) -> torch.Tensor:
    """nll[], g[] -> |d nll / d at| / (|d g / d at| + 1e-4) [], detached; of the gradients' means over ranks.
    Collective."""
    both = torch.stack([torch.autograd.grad(one, at, retain_graph=True)[0].flatten() for one in (nll, g)])
    of_nll, of_g = torch.linalg.vector_norm(world.sum(both) / world.size, dim=1)
    return (of_nll / (of_g + EPSILON)).detach()


def critic_loss(
    real: torch.Tensor, fake: torch.Tensor, kind: Literal["hinge", "vanilla"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """real, fake[b, 1, h, w] logits -> what each costs the discriminator, by image and patch, of the same shapes.

    Undecided (logits 0): 1 for hinge, log 2 for vanilla. The loss is half the sum of both means.
    """
    if kind == "hinge":
        return functional.relu(1 - real), functional.relu(1 + fake)
    return functional.softplus(-real), functional.softplus(fake)


class Autoencoding(nn.Module):
    """The VAE with its loss, the discriminator's opinion included once it counts; `forward(batch, state)`.

    Logs: `recon` (mean of r over pixels), `l1`, `l2` and `perceptual` (their parts, without weight), `nll`, `kl` (nats,
    summed over the latent map), `logvar`; with a discriminator also `g_loss`, `d_weight_raw` (the ratio before clamp
    and weight) and `d_weight`; `mu` and `raw_logvar` for the monitors.
    """

    logvar: torch.Tensor

    def __init__(
        self,
        model: RadioVae,
        loss: LossConfig,
        world: World,
        perceptual: nn.Module | None,
        discriminator: Discriminator | None,
        *,
        learn_logvar: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.loss, self.world, self.perceptual = model, loss, world, perceptual
        self.critic = None if discriminator is None else ModuleReference(discriminator)
        logvar = torch.tensor(loss.logvar_init)
        if learn_logvar:
            self.logvar = nn.Parameter(logvar)
        else:
            self.register_buffer("logvar", logvar)

    def forward(self, batch: Batch, state: StepState) -> tuple[torch.Tensor, dict[str, Any]]:
        loss, x, share = self.loss, batch.x, self.world.size / batch.rows
        with state.autocast():
            y, code = self.model(x, batch.noise)
            distance = None if self.perceptual is None else self.perceptual(x, y)
        y = y.to(x.dtype)
        l1, l2 = (x - y).abs(), (x - y).square()
        error = l1 + l2
        logs = {"l1": l1.mean((1, 2, 3)).sum() * share, "l2": l2.mean((1, 2, 3)).sum() * share}
        if distance is not None:
            distance = distance.to(x.dtype)
            error = error + loss.perceptual_weight * distance[:, None, None, None]
            logs["perceptual"] = distance.sum() * share
        nll = negative_log_likelihood(error, self._logvar(x[0].numel())) * share
        kl = gaussian_kl(code.mu, code.logvar).sum() * share
        total = nll + loss.kl_weight * kl
        logs |= {"recon": error.mean((1, 2, 3)).sum() * share, "nll": nll, "kl": kl, "logvar": self.logvar.clone()}
        factor = state.numbers["disc_factor"]
        if self.critic is not None and factor:
            with state.autocast():
                logits = self.critic(y)
            g = -logits.to(x.dtype).mean((1, 2, 3)).sum() * share
            raw = gradient_ratio(nll, g, self.model.last, self.world)
            weight = loss.disc_weight * raw.clamp(0, MOST)
            total = total + weight * factor * g
            logs |= {"g_loss": g, "d_weight_raw": raw, "d_weight": weight}
        logs = {name: value.detach() for name, value in logs.items()}
        return total, logs | {"mu": code.mu.detach(), "raw_logvar": code.raw_logvar.detach()}

    def _logvar(self, pixels: int) -> torch.Tensor:
        """The value, with its gradient divided by the number of pixels: as it is, some 6e4 at 256 px, it would be all
        that the clipping of the whole gradient sees. Adam takes no notice of the factor."""
        if not self.logvar.requires_grad:
            return self.logvar
        return self.logvar.detach() + (self.logvar - self.logvar.detach()) / pixels


class Judging(nn.Module):
    """The discriminator with its loss; `forward(batch, state)` reconstructs the batch with the VAE of this moment.

    Logs: `disc_loss` (without disc_factor, so that 1 is undecided in every trial), `logits_real`, `logits_fake` (means
    over patches).
    """

    def __init__(self, discriminator: Discriminator, model: RadioVae, loss: LossConfig, world: World) -> None:
        super().__init__()
        self.discriminator, self.loss, self.world = discriminator, loss, world
        self.vae = ModuleReference(model)

    def forward(self, batch: Batch, state: StepState) -> tuple[torch.Tensor, dict[str, Any]]:
        x, share = batch.x, self.world.size / batch.rows

        def mean(of_patches: torch.Tensor) -> torch.Tensor:
            return of_patches.to(x.dtype).mean((1, 2, 3)).sum() * share

        with state.autocast():
            with torch.no_grad():
                y, _ = self.vae(x, batch.noise)
            real, fake = self.discriminator(x), self.discriminator(y.to(x.dtype))
        of_real, of_fake = critic_loss(real.to(x.dtype), fake.to(x.dtype), self.loss.disc_loss)
        loss = 0.5 * (mean(of_real) + mean(of_fake))
        logs = {"disc_loss": loss, "logits_real": mean(real), "logits_fake": mean(fake)}
        return state.numbers["disc_factor"] * loss, {name: value.detach() for name, value in logs.items()}
