"""Renames the weights of the rainfall networks to the original's state-dict keys, and back.

The original is Hnajafi95/ugmentation_downscsling, whose `model_cvae.py` held seven architectures, one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from buttress.errors import BadInput
from buttress.trainables.rainfall.config import Model
from buttress.training.state_dicts import rename_prefix


@dataclass(frozen=True)
class Architecture:
    """What tells an architecture of the original from its others, in our config's words."""

    decoder: str
    inject: str = "none"
    output_relu: bool = False
    decoder_dropout: float = 0.0


#: Letter (README) -> commit of the original, architecture.
ARCHITECTURES = {
    "A": ("24f5c01", Architecture("bilinear", output_relu=True)),
    "B": ("8e5f14e", Architecture("resized", output_relu=True)),
    "C": ("29ca287", Architecture("transposed", output_relu=True)),
    "D": ("076a298", Architecture("transposed", output_relu=True, decoder_dropout=0.5)),
    "E": ("03710e0", Architecture("resized")),
    "F": ("d704d7a", Architecture("resized", inject="all")),
    "G": ("6e51c4d", Architecture("resized", inject="first")),
}

#: Constants of all of them.
CONSTANTS: dict[str, Any] = {"norm": "batch", "fc": 512, "head": 256, "pool": 8, "dropout": 0.1, "stage_dropout": 0.0}

_BLOCK = ("conv", "bn")

#: Our prefix of a key: the original's. Layers that have other names in some architectures are added by `_names`.
NAMES = {
    "predictor.first.0": "encoder_X.conv1",
    "predictor.first.1": "encoder_X.bn1",
    "predictor.head.0": "encoder_X.fc1",
    "predictor.head.3": "encoder_X.fc2",
    "target.head.0": "encoder_Y.fc1",
    "target.head.3": "encoder_Y.fc2",
    "join.0": "latent_head.fc_shared",
    "mu": "latent_head.fc_mu",
    "logvar": "latent_head.fc_logvar",
    "decoder.map": "decoder.x_proj",
    "decoder.out": "decoder.conv_out",
    **{f"target.blocks.{i}.{j}": f"encoder_Y.{kind}{i + 1}" for i in range(4) for j, kind in enumerate(_BLOCK)},
    **{f"predictor.rest.{i}.{j}": f"encoder_X.{kind}{i + 2}" for i in range(2) for j, kind in enumerate(_BLOCK)},
}


def architecture(model: Model) -> str:
    """The letter of the original's architecture that is `model`, whatever its widths.

    Raises:
        BadInput: The original never had this network.
    """
    for name, value in CONSTANTS.items():
        if getattr(model, name) != value:
            raise BadInput("is a constant of the original's networks", key=f"model.{name}",
                           value=getattr(model, name), accepted=str(value))  # fmt: skip
    left = {letter: asdict(one) for letter, (_, one) in ARCHITECTURES.items()}
    before: list[str] = []
    for name in asdict(ARCHITECTURES["A"][1]):  # one by one, so that the error names the first choice that none has
        value, accepted = getattr(model, name), sorted({str(one[name]) for one in left.values()})
        left = {letter: one for letter, one in left.items() if one[name] == value}
        if not left:
            rest = ", ".join(before) or "any other choice"
            raise BadInput(f"the original never had this with {rest}", key=f"model.{name}", value=value,
                           accepted=" or ".join(accepted))  # fmt: skip
        before.append(f"{name} {value}")
    return next(iter(left))


def model_of(letter: str, **sizes: Any) -> Model:
    """Our config of an architecture of the original, with `d_x`, `d_y`, `d_z` and `base_filters` among `sizes`."""
    return Model.model_validate(asdict(ARCHITECTURES[letter][1]) | sizes)


def to_original(weights: Mapping[str, torch.Tensor], model: Model) -> dict[str, torch.Tensor]:
    """A state dict of ours under the original's keys.

    Args:
        weights: State dict of a `RainVae`.
        model: The config that it was built with.

    Raises:
        BadInput: The original never had this network.
    """
    architecture(model)
    return {rename_prefix(key, _names(model)): value for key, value in weights.items()}


def from_original(weights: Mapping[str, torch.Tensor], model: Model) -> dict[str, torch.Tensor]:
    """The original's state dict under our keys.

    Args:
        weights: The original's state dict.
        model: The config of the network that is to hold them.

    Raises:
        BadInput: A key is none of the original's.
    """
    names = {theirs: ours for ours, theirs in _names(model).items()}
    return {rename_prefix(key, names): value for key, value in weights.items()}


def _names(model: Model) -> dict[str, str]:
    if model.decoder == "transposed":
        layers, block = {"decoder.fc": "decoder.fc"}, ("up", "bn")
    else:
        layers, block = {"decoder.fc.0": "decoder.fc1", "decoder.fc.2": "decoder.fc2"}, _BLOCK
    layers |= {f"decoder.stages.{i}.{j}": f"decoder.{kind}{i + 1}" for i in range(3) for j, kind in enumerate(block)}
    return NAMES | layers
