"""Renames the weights of the lithology VAEs to the originals' state-dict keys, and back.

The originals are mnky9800n/bhai-vae-paper at 0ab169e (`models/vae.py`, with BatchNorm) and SerpRateAI/lilyexplorer at
dc30d2e (`train_vae_v2_14_2.py`, without). Both number the layers of encoder and decoder in one sequence, ReLU and
dropout counted, and have two linear layers where ours has one that gives means and log-variances.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from buttress.errors import BadInput
from buttress.trainables.lithology.config import Model
from buttress.training.state_dicts import check_keys

HEAD_DIM = 64  # of the class with BatchNorm


def to_original(weights: Mapping[str, torch.Tensor], model: Model) -> dict[str, torch.Tensor]:
    """A state dict of ours under the original's keys.

    Args:
        weights: State dict of `Vae(model, ...)`.
        model: The config that it was built with.

    Raises:
        BadInput: The network has parts or a size that the original's class cannot make.
    """
    _check(model)
    renamed = {theirs: weights[ours] for ours, theirs in _names(model).items() if ours in weights}
    halves = {part: weights[f"encoder.out.{part}"].chunk(2) for part in ("weight", "bias")}
    for i, name in enumerate(("fc_mu", "fc_logvar")):
        renamed |= {f"{name}.{part}": both[i].clone() for part, both in halves.items()}
    return renamed


def from_original(weights: Mapping[str, torch.Tensor], model: Model) -> dict[str, torch.Tensor]:
    """The original's state dict under our keys.

    Args:
        weights: The original's state dict.
        model: The config of the network that is to hold them.

    Raises:
        BadInput: A key is none of the original's, or one is missing.
    """
    _check(model)
    names = _names(model)
    known = dict.fromkeys([*names.values(), "fc_logvar.weight", "fc_logvar.bias"])
    check_keys(weights, known, ", ".join(known))
    renamed = {ours: weights[theirs] for ours, theirs in names.items()}
    for part in ("weight", "bias"):
        renamed[f"encoder.out.{part}"] = torch.cat([weights[f"fc_mu.{part}"], weights[f"fc_logvar.{part}"]])
    return renamed


def _check(model: Model) -> None:
    if model.separate_decoders:
        raise BadInput("the original's class has one decoder", key="model.separate_decoders", value=True)
    if model.semi_supervised and model.batch_norm and model.head_dim != HEAD_DIM:
        raise BadInput("the original's network has another size", key="model.head_dim", value=model.head_dim,
                       accepted=str(HEAD_DIM))  # fmt: skip


def _names(model: Model) -> dict[str, str]:
    """Our keys -> the original's, in its order; means and log-variances under `fc_mu`."""
    stride = 2 + model.batch_norm + (model.dropout > 0)
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked") if model.batch_norm else ()

    def hidden(ours: str, theirs: str) -> dict[str, str]:
        names: dict[str, str] = {}
        for i in range(len(model.hidden_dims)):
            names |= {f"{ours}.hidden.{i}.{one}": f"{theirs}.{i * stride}.{one}" for one in ("weight", "bias")}
            names |= {f"{ours}.norms.{i}.{one}": f"{theirs}.{i * stride + 2}.{one}" for one in norm}
        return names

    def linear(ours: str, theirs: str) -> dict[str, str]:
        return {f"{ours}.{one}": f"{theirs}.{one}" for one in ("weight", "bias")}

    names = hidden("encoder", "encoder") | linear("encoder.out", "fc_mu")
    names |= hidden("decoders.0", "decoder") | linear("decoders.0.out", "fc_out")
    if model.semi_supervised:
        names |= linear("head.0", "classifier.0") | linear("head.3", "classifier.3")
    return names
