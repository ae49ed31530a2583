"""The two occupancy networks of the original: from past grids and poses to logits of future grids and poses.

`Simple` (13,851,923 parameters) squeezes everything through one vector; `WorldModel` (6DoF; 77,300,704, with a
transformer 79,407,072) adds FiLM by the predicted poses, a temporal encoder over poses and three heads. Both are
bottlenecks: the decoder computes 16 or 64 cells a side and interpolates them to the grid. `model.skip` (not in the
original) adds a full-resolution path around the bottleneck. Single-device PyTorch, for any grid.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from buttress.trainables.occupancy.config import Model
from buttress.trainables.occupancy.poses import WIDTH


class Predicted(NamedTuple):
    """What a network says; the heads are None in the simple one."""

    logits: torch.Tensor  # [B, Tf, X, Y, Z]
    poses: torch.Tensor  # [B, Tf, 13]
    uncertainty: torch.Tensor | None = None  # [B, 6], raw
    relocalization: torch.Tensor | None = None  # [B, 7], position and quaternion
    place: torch.Tensor | None = None  # [B, latent], unit length


def build(model: Model, history: int, future: int, cells: tuple[int, int, int], bias: float = 0.0) -> nn.Module:
    """The network of a config; `bias` is added to the last layer's (see `buttress.init_bias`)."""
    kind = Simple if model.type == "simple" else WorldModel
    network = kind(model, history, future, cells)
    if bias:
        with torch.no_grad():
            network.out.bias.add_(bias)  # type: ignore[union-attr]
    return network


class Simple(nn.Module):
    """Convolutions, one latent vector, an LSTM over a single step (as in the original), transposed convolutions."""

    def __init__(self, model: Model, history: int, future: int, cells: tuple[int, int, int]) -> None:
        super().__init__()
        c, latent = model.channels, model.latent_dim
        self.pool, self.cells, self.future = model.pooled, cells, future
        self.encoder = _encoder(history, c, groups=(16, 32, 32), strides=(1, 2, 2))
        flat = c[2] * math.prod(self.pool)
        self.to_latent = nn.Linear(flat, latent)
        self.pose_encoder = _mlp(WIDTH, model.pose_dim // 2, model.pose_dim, latent)
        self.fusion = _mlp(2 * latent, latent, latent)
        self.temporal = nn.LSTM(latent, latent, num_layers=2, batch_first=True, dropout=model.dropout)
        self.to_space = nn.Linear(latent, flat)
        self.decoder = nn.Sequential(*_up(c[2], c[1]), *_up(c[1], c[0], groups=16))
        self.skip = _skip(history, model.skip)
        self.out = nn.Conv3d(c[0] + model.skip, future, 3, padding=1)
        self.rollout = nn.GRUCell(latent + WIDTH, latent)
        self.pose_out = nn.Linear(latent, WIDTH)

    def forward(self, history: torch.Tensor, poses: torch.Tensor) -> Predicted:
        """history[B, Th, X, Y, Z] of 0 and 1, poses[B, Th, 13] -> logits and poses of the future."""
        seen = self.to_latent(_pooled(self.encoder(history), self.pool).flatten(1))
        fused = self.fusion(torch.cat([seen, self.pose_encoder(poses[:, -1])], dim=1))
        latent = self.temporal(fused[:, None])[0][:, -1]
        space = self.to_space(latent).view(len(latent), -1, *self.pool)
        logits = _drawn(self.out, self.decoder(space), self.cells, self.skip, history)
        return Predicted(logits, self._poses(latent, poses[:, -1]))

    def _poses(self, latent: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
        hidden, future = latent, []
        for _ in range(self.future):
            hidden = self.rollout(torch.cat([pose, latent], dim=1), hidden)
            pose = moved(pose, self.pose_out(hidden))
            future.append(pose)
        return torch.stack(future, dim=1)


class WorldModel(nn.Module):
    """The 6DoF world model: strided encoder, temporal encoder over poses, FiLM by predicted poses, heads."""

    def __init__(self, model: Model, history: int, future: int, cells: tuple[int, int, int]) -> None:
        super().__init__()
        c, latent = model.channels, model.latent_dim
        self.pool, self.cells, self.future = model.pooled, cells, future
        self.encoder = _encoder(history, c, groups=(32, 32, 32), strides=(2, 2, 2))
        flat = c[2] * math.prod(self.pool)
        self.to_latent = nn.Linear(flat, latent)
        self.pose_encoder = _mlp(WIDTH, model.pose_dim, model.pose_dim, latent)
        self.fusion = _mlp(2 * latent, latent, latent)
        self.temporal: nn.Module = _Transformer(model, history) if model.use_transformer else _Lstm(model)
        self.to_space = nn.Linear(latent, flat)
        self.film = _mlp(future * WIDTH, latent, 2 * c[2])
        self.decoder = nn.Sequential(*_up(c[2], c[2]), *_up(c[2], c[1]), *_up(c[1], c[0]))
        self.skip = _skip(history, model.skip)
        self.out = nn.Conv3d(c[0] + model.skip, future, 3, padding=1)
        self.pose_in = nn.Linear(latent + WIDTH, latent)
        self.rollout = nn.GRUCell(latent, latent)
        self.pose_out = nn.Linear(latent, WIDTH)
        self.uncertainty = _mlp(latent, latent // 4, 6)
        self.relocalization = _mlp(latent, latent // 2, latent // 2, 7)
        self.place = _mlp(latent, latent, latent)
        self.apply(_initialised)

    def forward(
        self, history: torch.Tensor, poses: torch.Tensor, planned: torch.Tensor | None = None
    ) -> Predicted:
        """history[B, Th, X, Y, Z], poses[B, Th, 13]; `planned` [B, n, 13] takes the predicted poses' place in FiLM."""
        seen = functional.relu(self.to_latent(_pooled(self.encoder(history), self.pool).flatten(1)))
        each = self.pose_encoder(poses)
        latent = self.fusion(torch.cat([seen, each[:, -1]], dim=1)) + self.temporal(each)
        future = self._poses(latent, poses[:, -1])
        guide = future if planned is None else _fitted(planned, self.future)
        gamma, beta = self.film(guide.flatten(1)).chunk(2, dim=1)
        space = functional.relu(self.to_space(latent)).view(len(latent), -1, *self.pool)
        space = space * (1 + gamma[..., None, None, None]) + beta[..., None, None, None]
        logits = _drawn(self.out, self.decoder(space), self.cells, self.skip, history)
        place = functional.normalize(self.place(latent), dim=1)
        return Predicted(logits, future, self.uncertainty(latent), self.relocalization(latent), place)

    def _poses(self, latent: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
        hidden, future = torch.zeros_like(latent), []
        for _ in range(self.future):
            hidden = self.rollout(functional.relu(self.pose_in(torch.cat([pose, latent], dim=1))), hidden)
            pose = moved(pose, self.pose_out(hidden))
            future.append(pose)
        return torch.stack(future, dim=1)


class _Lstm(nn.Module):
    """poses' features [B, T, D] -> the last hidden state of two layers [B, D]."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.lstm = nn.LSTM(model.latent_dim, model.latent_dim, 2, batch_first=True, dropout=model.dropout)

    def forward(self, each: torch.Tensor) -> torch.Tensor:
        return self.lstm(each)[0][:, -1]


class _Transformer(nn.Module):
    """poses' features [B, T, D] -> the encoding of the last one [B, D]; sinusoidal positions (Vaswani et al. 2017)."""

    def __init__(self, model: Model, length: int) -> None:
        super().__init__()
        width = model.latent_dim
        layer = nn.TransformerEncoderLayer(
            width, model.transformer_heads, 4 * width, dropout=model.dropout, batch_first=True
        )
        self.dropout = nn.Dropout(model.dropout)
        self.layers = nn.TransformerEncoder(layer, model.transformer_layers, enable_nested_tensor=False)
        self.waves: torch.Tensor
        self.register_buffer("waves", positions(length, width), persistent=False)

    def forward(self, each: torch.Tensor) -> torch.Tensor:
        return self.layers(self.dropout(each + self.waves))[:, -1]


def positions(length: int, width: int) -> torch.Tensor:
    """Sinusoidal positions [length, width] (Vaswani et al. 2017), float32."""
    rates = torch.exp(-math.log(10_000.0) * torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]


def moved(pose: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """pose[B, 13], change[B, 13] -> the next pose: positions and velocities add, the rotation is turned.

    The turn is the normalised quaternion change[:, 3:7]: (1, 0, 0, 0) turns nothing.
    """
    rotation = functional.normalize(hamilton(pose[:, 3:7], change[:, 3:7]), dim=1)
    return torch.cat([pose[:, :3] + change[:, :3], rotation, pose[:, 7:] + change[:, 7:]], dim=1)


def hamilton(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Quaternions w x y z [B, 4] -> their product."""
    aw, ax, ay, az = a.unbind(1)
    bw, bx, by, bz = b.unbind(1)
    parts = (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )
    return torch.stack(parts, dim=1)


def _fitted(planned: torch.Tensor, length: int) -> torch.Tensor:
    """[B, n, 13] cut, or filled with zeros, to [B, length, 13]."""
    return functional.pad(planned[:, :length], (0, 0, 0, max(0, length - planned.shape[1])))


def _encoder(history: int, c: tuple[int, int, int], groups: tuple[int, ...], strides: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after, group, stride in zip((history, *c[:2]), c, groups, strides, strict=True):
        conv = nn.Conv3d(before, after, 3, stride=stride, padding=1)
        layers += [conv, nn.GroupNorm(_groups(group, after), after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _up(before: int, after: int, groups: int = 32) -> tuple[nn.Module, ...]:
    """Twice the cells a side."""
    conv = nn.ConvTranspose3d(before, after, 4, stride=2, padding=1)
    return conv, nn.GroupNorm(_groups(groups, after), after), nn.ReLU(inplace=True)


def _groups(most: int, channels: int) -> int:
    """At most so many groups, that divide the channels; of few channels (small nets) at least two in each."""
    return math.gcd(most, channels if channels >= 64 else max(1, channels // 2))


def _skip(history: int, channels: int) -> nn.Module | None:
    if not channels:
        return None
    first, second = (nn.Conv3d(n, channels, 3, padding=1) for n in (history, channels))
    return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))


def _drawn(
    out: nn.Module, decoded: torch.Tensor, cells: tuple[int, int, int], skip: nn.Module | None, history: torch.Tensor
) -> torch.Tensor:
    """The decoder's features as logits on the grid: last layer, then stretched; with a skip the other way round."""
    if skip is None:
        return _stretched(out(decoded), cells)
    return out(torch.cat([_stretched(decoded, cells), skip(history)], dim=1))


def _stretched(x: torch.Tensor, cells: tuple[int, int, int]) -> torch.Tensor:
    if x.shape[2:] == cells:
        return x
    return functional.interpolate(x, size=cells, mode="trilinear", align_corners=False)


def _pooled(x: torch.Tensor, cells: tuple[int, int, int]) -> torch.Tensor:
    return x if x.shape[2:] == cells else functional.adaptive_avg_pool3d(x, cells)


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def _initialised(module: nn.Module) -> None:
    """The original's: He (fan out) for convolutions, Xavier for linear layers, biases 0."""
    if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d, nn.Linear)) and module.bias is not None:
        nn.init.zeros_(module.bias)
