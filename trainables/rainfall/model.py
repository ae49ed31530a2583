"""The rainfall conditional VAE: encoders of predictor and target, a Gaussian code, a decoder from code to rain field.

One class covers the original's architectures, chosen by the config (`model.*`). Single-device code without a loss.
 Fields are standardised log-rain (z); `rain.Rain` turns them into mm.
Posterior mode: the code comes from `posterior`, which has seen the target. Prior mode: it is N(0, I).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from buttress.trainables.rainfall.config import Model

Size = tuple[int, int]  # rows, columns


class Grids(NamedTuple):
    """What the data say about shapes; the original's full size by default."""

    channels: int = 6  # of the predictor
    low: Size = (13, 11)  # the predictor's grid
    high: Size = (156, 132)  # the target's grid
    statics: int = 2


FULL = Grids()


class Code(NamedTuple):
    """What the encoders say: a Gaussian per day."""

    mu: torch.Tensor  # [days, d_z]
    logvar: torch.Tensor  # [days, d_z], not clamped


class Condition(NamedTuple):
    """The encoded predictor."""

    code: torch.Tensor  # [days, d_x]
    map: torch.Tensor  # [days, 32, h, w], the first convolution's output


class RainVae(nn.Module):
    """Conditional VAE of rain fields on `grids`."""

    def __init__(self, config: Model, grids: Grids = FULL) -> None:
        super().__init__()
        self.latent_dim = config.d_z
        self.predictor = PredictorEncoder(config, grids)
        self.target = TargetEncoder(config, grids)
        self.join = nn.Sequential(nn.Linear(config.d_y + config.d_x, config.head), nn.ReLU())
        self.mu = nn.Linear(config.head, config.d_z)
        self.logvar = nn.Linear(config.head, config.d_z)
        self.decoder = Decoder(config, grids)

    def condition(self, x: torch.Tensor) -> Condition:
        """x[days, channels, h, w], standardised predictors -> what the other parts need of them."""
        return self.predictor(x)

    def posterior(self, condition: Condition, y: torch.Tensor, statics: torch.Tensor) -> Code:
        """y[days, 1, H, W], statics[1, S, H, W] -> the code of days whose rain y is known."""
        both = torch.cat([y, statics.expand(len(y), -1, -1, -1)], dim=1)
        joined = self.join(torch.cat([self.target(both), condition.code], dim=1))
        return Code(self.mu(joined), self.logvar(joined))

    def decode(self, z: torch.Tensor, condition: Condition) -> torch.Tensor:
        """z[days, d_z] -> standardised log-rain [days, 1, H, W]."""
        return self.decoder(z, condition)


class PredictorEncoder(nn.Module):
    """Width 32: three convolutions (two where the first map is injected into the decoder), then two linear layers."""

    WIDTH = 32

    def __init__(self, config: Model, grids: Grids) -> None:
        super().__init__()
        widths = [self.WIDTH, 2 * self.WIDTH, 4 * self.WIDTH][: 3 if config.inject == "none" else 2]
        self.first = block(grids.channels, widths[0], config)
        self.rest = nn.Sequential(
            *(block(a, b, config, stride=2) for a, b in pairwise(widths)), nn.Flatten()
        )
        rows, columns = grids.low
        for _ in widths[1:]:
            rows, columns = ceil(rows / 2), ceil(columns / 2)
        self.head = nn.Sequential(
            nn.Linear(widths[-1] * rows * columns, config.head),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.head, config.d_x),
        )

    def forward(self, x: torch.Tensor) -> Condition:
        map_ = self.first(x)
        return Condition(self.head(self.rest(map_)), map_)


class TargetEncoder(nn.Module):
    """Rain and static maps, four convolutions f to 8f, pooled to `pool` x `pool`, two linear layers."""

    def __init__(self, config: Model, grids: Grids) -> None:
        super().__init__()
        f = config.base_filters
        self.blocks = nn.Sequential(
            block(1 + grids.statics, f, config),
            *(block(f * n, 2 * f * n, config, stride=2) for n in (1, 2, 4)),
        )
        rows, columns = grids.high
        for _ in range(3):
            rows, columns = ceil(rows / 2), ceil(columns / 2)
        self.pool = Pool((rows, columns), config.pool)
        self.head = nn.Sequential(
            nn.Linear(8 * f * config.pool**2, config.fc),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.fc, config.d_y),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.blocks(x)).flatten(1))


class Pool(nn.Module):
    """Adaptive average pooling to side x side as two matrix products: the same numbers as torch's, whose backward has
    no deterministic form on CUDA."""

    rows: torch.Tensor
    columns: torch.Tensor

    def __init__(self, size: Size, side: int) -> None:
        super().__init__()
        self.register_buffer("rows", _averages(size[0], side), persistent=False)
        self.register_buffer("columns", _averages(size[1], side), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows @ x @ self.columns.T


def _averages(cells: int, side: int) -> torch.Tensor:
    """[side, cells]: row i averages cells floor(i cells / side) to ceil((i + 1) cells / side)."""
    matrix = torch.zeros(side, cells)
    for i in range(side):
        first, last = i * cells // side, -(-(i + 1) * cells // side)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


class Decoder(nn.Module):
    """Code and predictor, two linear layers to a coarse map, three upsampling stages, one convolution to rain."""

    def __init__(self, config: Model, grids: Grids) -> None:
        super().__init__()
        f, self.high = config.base_filters, grids.high
        self.transposed = config.decoder == "transposed"
        self.injects = {"none": (False,) * 3, "first": (True, False, False), "all": (True,) * 3}[config.inject]
        self.sizes = stages(grids.high, config.decoder)
        (self.rows, self.columns), self.width = self.sizes[0], 8 * f
        self.drop = nn.Dropout(config.decoder_dropout)
        self.fc = nn.Sequential(
            nn.Linear(config.d_z + config.d_x, config.fc),
            nn.ReLU(),
            nn.Linear(config.fc, self.width * self.rows * self.columns),
            nn.ReLU(),
        )
        more = PredictorEncoder.WIDTH
        self.map = nn.Conv2d(more, more, 1) if any(self.injects) else None  # one for all stages
        self.stages = nn.ModuleList(
            block(n * f + more * injected, n * f // 2, config, transposed=self.transposed)
            for n, injected in zip((8, 4, 2), self.injects, strict=True)
        )
        self.drop_channels = nn.Dropout2d(config.stage_dropout)
        self.out = nn.Conv2d(f, 1, 3, padding=1)
        self.relu = config.output_relu

    def forward(self, z: torch.Tensor, condition: Condition) -> torch.Tensor:
        flat = self.fc(torch.cat([z, self.drop(condition.code)], dim=1))
        x = flat.view(-1, self.width, self.rows, self.columns)
        map_ = None if self.map is None else torch.relu(self.map(condition.map))
        for stage, injected, size in zip(self.stages, self.injects, self.sizes[1:], strict=True):
            if injected and map_ is not None:
                x = torch.cat([x, resized(map_, x.shape[-2:])], dim=1)
            x = stage(x) if self.transposed else stage(resized(x, size))
            # a transposed convolution doubles: 20 rows become 40, and are brought to 39
            x = self.drop_channels(resized(x, size))
        y = self.out(x)
        return resized(torch.relu(y) if self.relu else y, self.high)


def stages(high: Size, decoder: str) -> list[Size]:
    """The map's size before and after each of the three stages: 19x16, 38x32, 76x64, 152x128 for `bilinear` (a last
    resize makes it 156x132), otherwise 20x17, 39x33, 78x66, 156x132."""
    if decoder == "bilinear":
        rows, columns = max(1, high[0] // 8), max(1, high[1] // 8)
        return [(rows * n, columns * n) for n in (1, 2, 4, 8)]
    return [(ceil(high[0] / n), ceil(high[1] / n)) for n in (8, 4, 2, 1)]


def block(
    inputs: int, outputs: int, config: Model, *, stride: int = 1, transposed: bool = False
) -> nn.Sequential:
    """Convolution 3x3 (or transposed 4x4, x2), BatchNorm, ReLU."""
    conv: nn.Module
    if transposed:
        conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
    else:
        conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
    norm: Sequence[nn.Module] = [nn.BatchNorm2d(outputs)] if config.norm == "batch" else []
    return nn.Sequential(conv, *norm, nn.ReLU())


def resized(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """x[days, C, h, w] -> [days, C, *size], bilinear; x itself where it has that size."""
    if x.shape[-2:] == tuple(size):
        return x
    return functional.interpolate(x, size=(size[0], size[1]), mode="bilinear", align_corners=False)
