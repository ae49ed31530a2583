"""The networks of the first stage: a convolutional VAE with a spatial latent map, and a PatchGAN.

Plain code without a loss in it. Images are [b, 1, H, W] in [-1, 1]; the latent map is [b, embed_dim, H / f, W / f] with
f = 2^(levels - 1). The VAE is that of latent diffusion models (Rombach et al. 2022, arXiv:2112.10752): residual blocks,
one self-attention in the middle; the discriminator is that of pix2pix (Isola et al. 2017, arXiv:1611.07004).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from buttress.trainables.radio.config import GROUPS, DDConfig, Model
from buttress.training.losses import reparameterize
from buttress.training.world import World

LOGVAR_RANGE = (-30.0, 20.0)


class Code(NamedTuple):
    """What the encoder says: a Gaussian per cell and channel of the latent map."""

    mu: torch.Tensor  # [b, embed_dim, h, w]
    raw_logvar: torch.Tensor  # the same shape, not clamped: what the monitors look at

    @property
    def logvar(self) -> torch.Tensor:
        return self.raw_logvar.clamp(*LOGVAR_RANGE)


class RadioVae(nn.Module):
    """`encode`, `decode`, and the convolutions between them and the latent map."""

    def __init__(self, config: Model, channels: int = 1) -> None:
        super().__init__()
        z = config.ddconfig.z_channels
        self.embed_dim = config.embed_dim
        self.encoder = Encoder(config.ddconfig, channels)
        self.decoder = Decoder(config.ddconfig, channels)
        self.to_code = nn.Conv2d(2 * z, 2 * config.embed_dim, 1)
        self.from_code = nn.Conv2d(config.embed_dim, z, 1)

    def encode(self, x: torch.Tensor) -> Code:
        """x[b, C, H, W] -> the posterior of its latent map."""
        mu, logvar = self.to_code(self.encoder(x)).chunk(2, dim=1)
        return Code(mu, logvar)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """z[b, embed_dim, h, w] -> image [b, C, H, W], linear: not clamped to [-1, 1]."""
        return self.decoder(self.from_code(z))

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, Code]:
        """x[b, C, H, W], noise[b, embed_dim, h, w] -> the image decoded from a sample, and its posterior."""
        code = self.encode(x)
        return self.decode(reparameterize(code.mu, code.logvar, noise.to(code.mu.dtype))), code

    @property
    def last(self) -> nn.Parameter:
        """The weight that the adaptive discriminator weight compares gradients at."""
        weight = self.decoder.out[-1].weight
        assert isinstance(weight, nn.Parameter)
        return weight


class Encoder(nn.Module):
    def __init__(self, config: DDConfig, channels: int) -> None:
        super().__init__()
        width = config.ch
        blocks: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1)]
        for level, mult in enumerate(config.ch_mult):
            for _ in range(config.num_res_blocks):
                blocks.append(Residual(width, config.ch * mult, config.dropout))
                width = config.ch * mult
            if level < len(config.ch_mult) - 1:
                blocks.append(Halve(width))
        self.body = nn.Sequential(*blocks, *middle(width, config.dropout))
        self.out = nn.Sequential(norm(width), nn.SiLU(), nn.Conv2d(width, 2 * config.z_channels, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.body(x))


class Decoder(nn.Module):
    def __init__(self, config: DDConfig, channels: int) -> None:
        super().__init__()
        width = config.ch * config.ch_mult[-1]
        blocks: list[nn.Module] = [nn.Conv2d(config.z_channels, width, 3, padding=1), *middle(width, config.dropout)]
        for level, mult in reversed(list(enumerate(config.ch_mult))):
            for _ in range(config.num_res_blocks + 1):
                blocks.append(Residual(width, config.ch * mult, config.dropout))
                width = config.ch * mult
            if level > 0:
                blocks.append(Double(width))
        self.body = nn.Sequential(*blocks)
        self.out = nn.Sequential(norm(width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.out(self.body(z))


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=1e-6)


def middle(width: int, dropout: float) -> list[nn.Module]:
    return [Residual(width, width, dropout), Attention(width), Residual(width, width, dropout)]


class Residual(nn.Module):
    """Twice GroupNorm, SiLU, 3x3 convolution, beside the identity (or a 1x1 convolution where the width changes)."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            norm(inputs),
            nn.SiLU(),
            nn.Conv2d(inputs, outputs, 3, padding=1),
            norm(outputs),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shortcut(x) + self.body(x)


class Attention(nn.Module):
    """Single-head self-attention over all cells of the map, added to it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = norm(width)
        self.query, self.key, self.value, self.out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        query, key, value = (one(h).flatten(2) for one in (self.query, self.key, self.value))  # [b, C, cells]
        weight = torch.softmax(query.transpose(1, 2) @ key * x.shape[1] ** -0.5, dim=-1)  # [b, cells, cells]
        return x + self.out((value @ weight.transpose(1, 2)).view_as(x))


class Halve(nn.Module):
    """3x3 convolution of stride 2, the zeros on the right and at the bottom only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    """Every cell becomes 2 x 2 of itself, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        return self.conv(x[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w))


class Discriminator(nn.Module):
    """x[b, C, H, W] -> logits [b, 1, H / 2^n - 2, W / 2^n - 2]: one per overlapping patch, n = `layers`.

    Its BatchNorm always uses the statistics of the batch at hand (the original never puts it into eval mode), here of
    the whole global batch: a mean per rank would make the step depend on how many ranks there are, and with one image
    on each it would be another layer.
    """

    WIDTH = 64

    def __init__(self, layers: int, world: World, channels: int = 1) -> None:
        super().__init__()
        width = self.WIDTH
        blocks: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level in range(1, layers + 1):
            wider = self.WIDTH * min(2**level, 8)
            stride = 2 if level < layers else 1
            blocks += [
                nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False),
                BatchNorm(wider, world),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        self.body = nn.Sequential(*blocks, nn.Conv2d(width, 1, 4, padding=1))
        for module in self.body:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class BatchNorm(nn.Module):
    """BatchNorm by the statistics of the batch of all ranks, without running ones. Collective, forward and backward."""

    def __init__(self, width: int, world: World, eps: float = 1e-5) -> None:
        super().__init__()
        self.world, self.eps = world, eps
        self.weight = nn.Parameter(torch.empty(width).normal_(1.0, 0.02))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.world.size == 1:
            return functional.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        wide = x if x.dtype == torch.float64 else x.float()
        count = self.world.sum(torch.full((), wide[:, 0].numel(), dtype=wide.dtype, device=x.device))
        mean = everywhere(wide.sum((0, 2, 3)), self.world) / count
        centred = wide - mean[:, None, None]
        variance = everywhere(centred.square().sum((0, 2, 3)), self.world) / count
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def everywhere(values: torch.Tensor, world: World) -> torch.Tensor:
    """values[...] -> their sum over ranks; the gradients of all ranks' losses flow back to each. Collective twice."""
    summed: torch.Tensor = _Everywhere.apply(values, world)
    return summed


class _Everywhere(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: torch.Tensor, world: World) -> torch.Tensor:
        context.world = world
        return world.sum(values.detach().clone())

    @staticmethod
    def backward(context: Any, *gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return context.world.sum(gradient[0].clone()), None
