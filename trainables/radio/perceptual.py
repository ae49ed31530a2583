"""The perceptual distance between two images: features of a fixed network, compared layer by layer.

Three choices: none; fixed random convolutions, which need no file and are the same in every trial; LPIPS with VGG16
(Zhang et al. 2018, arXiv:1801.03924) from two files that the user names. Nothing is downloaded and nothing here is
trained or saved: all weights are buffers outside the state dict. There is no dropout (LPIPS has some before its linear
layers, which the original switched on by accident after its first checkpoint).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from buttress.errors import BadInput
from buttress.trainables.radio.config import Extra, LossConfig
from buttress.training.checkpoints import load_checkpoint

EPSILON = 1e-10  # of a feature vector's squared length
_SEED = 20_180_111  # of the random convolutions: no trial's
_RANDOM = (16, 32, 64)  # channels
#: VGG16's convolutions, by the blocks after whose last ReLU LPIPS looks: (number in torchvision's `features`, in, out).
VGG = (
    ((0, 3, 64), (2, 64, 64)),
    ((5, 64, 128), (7, 128, 128)),
    ((10, 128, 256), (12, 256, 256), (14, 256, 256)),
    ((17, 256, 512), (19, 512, 512), (21, 512, 512)),
    ((24, 512, 512), (26, 512, 512), (28, 512, 512)),
)
#: Mean and deviation of ImageNet's colours, on the scale of images in [-1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def build(loss: LossConfig, settings: Extra) -> nn.Module | None:
    """The distance that a config names, a module (x[b, 1, H, W], y) -> [b]; None where there is none."""
    if settings.perceptual == "none" or not loss.perceptual_weight:
        return None
    if settings.perceptual == "random":
        return RandomFeatures()
    return Lpips(Path(str(settings.vgg_weights)), Path(str(settings.lpips_weights)))


def unit(features: torch.Tensor) -> torch.Tensor:
    """features[b, C, h, w] with each cell's vector at length 1."""
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + EPSILON)


class RandomFeatures(nn.Module):
    """Three strided 3x3 convolutions with ReLU, drawn once and for all: mean over cells of the squared distance of unit
    feature vectors, mean over layers. Between 0 and 2; 0 for equal images."""

    def __init__(self) -> None:
        super().__init__()
        generator, inputs = torch.Generator().manual_seed(_SEED), 1
        for layer, width in enumerate(_RANDOM):
            weight = torch.randn(width, inputs, 3, 3, generator=generator) * (2 / (9 * inputs)) ** 0.5
            # the biases keep features off zero: a flat grey image would have none
            bias = torch.randn(width, generator=generator) * 0.3
            self.register_buffer(f"weight{layer}", weight, persistent=False)
            self.register_buffer(f"bias{layer}", bias, persistent=False)
            inputs = width

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        distance = x.new_zeros(len(x))
        for layer in range(len(_RANDOM)):
            x, y = (self._layer(one, layer) for one in (x, y))
            distance = distance + (unit(x) - unit(y)).square().sum(1).mean((1, 2)) / len(_RANDOM)
        return distance

    def _layer(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        weight, bias = (getattr(self, f"{name}{layer}") for name in ("weight", "bias"))
        return functional.relu(functional.conv2d(x, weight, bias, stride=2, padding=1))


class Lpips(nn.Module):
    """LPIPS, VGG16: squared distances of unit feature vectors after five blocks, weighted by channel, mean over cells.

    `vgg`: torchvision's VGG16 state dict (`features.<n>.weight`; a classifier in it is not read); `linear`: LPIPS' own
    (`lin<k>.model.1.weight`, [1, C, 1, 1]).
    """

    def __init__(self, vgg: Path, linear: Path) -> None:
        super().__init__()
        features, channels = load_checkpoint(vgg.expanduser()), load_checkpoint(linear.expanduser())
        for block, convolutions in enumerate(VGG):
            for number, inputs, outputs in convolutions:
                for name, shape in (("weight", (outputs, inputs, 3, 3)), ("bias", (outputs,))):
                    tensor = _taken(features, f"features.{number}.{name}", shape, vgg)
                    self.register_buffer(f"{name}{number}", tensor, persistent=False)
            shape = (1, convolutions[-1][2], 1, 1)
            tensor = _taken(channels, f"lin{block}.model.1.weight", shape, linear)
            self.register_buffer(f"linear{block}", tensor, persistent=False)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x, y = ((one - self.shift) / self.scale for one in (x, y))  # type: ignore[operator]
        distance = x.new_zeros(len(x))
        for block, convolutions in enumerate(VGG):
            x, y = (self._block(one, convolutions, pool=block > 0) for one in (x, y))
            by_channel = (unit(x) - unit(y)).square()
            distance = distance + (by_channel * getattr(self, f"linear{block}")).sum(1).mean((1, 2))
        return distance

    def _block(self, x: torch.Tensor, convolutions: tuple[tuple[int, int, int], ...], *, pool: bool) -> torch.Tensor:
        x = functional.max_pool2d(x, 2) if pool else x
        for number, _, _ in convolutions:
            weight, bias = getattr(self, f"weight{number}"), getattr(self, f"bias{number}")
            x = functional.relu(functional.conv2d(x, weight, bias, padding=1))
        return x


def _taken(state: dict[str, torch.Tensor], name: str, shape: tuple[int, ...], path: Path) -> torch.Tensor:
    tensor = state.get(name)
    if tensor is None:
        raise BadInput("is missing", where=path, key=name, accepted="VGG16 of torchvision, and LPIPS' layers for it")
    if tuple(tensor.shape) != shape:
        found, wanted = list(tensor.shape), list(shape)
        raise BadInput("has another shape", where=path, key=name, value=found, accepted=str(wanted))
    return tensor.float()
