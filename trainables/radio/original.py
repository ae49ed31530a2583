"""Renames the weights of the radio networks to the original's state-dict keys, and back.

The original is chg0901/RadioDiff at 894edda (`denoising_diffusion_pytorch/encoder_decoder.py`). What it saves as
`model` holds the autoencoder and three loss modules, each with a log-variance, LPIPS and a discriminator; the first
stage trains the first of them only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from buttress.trainables.radio.config import Model
from buttress.trainables.radio.perceptual import VGG
from buttress.training.state_dicts import check_keys

LOSSES = ("loss", "loss_pinn", "loss_pinn_dpm2irt4")
_BOTH = ("weight", "bias")


class Parts(NamedTuple):
    """The state dicts that an original model is made of, under our keys."""

    vae: dict[str, torch.Tensor]  # RadioVae
    critic: dict[str, torch.Tensor]  # Discriminator; empty where the file has none
    lpips: dict[str, torch.Tensor]  # Lpips' buffers; empty where the file has none
    logvar: torch.Tensor  # []


def to_original(parts: Parts, model: Model) -> dict[str, torch.Tensor]:
    """Weights of ours under the original's keys, its three loss modules alike.

    The running statistics of the discriminator's norms, which neither uses in training, are those of a new network.

    Args:
        parts: State dicts; without discriminator or without LPIPS the loss modules are left out, and the result is
            the autoencoder alone.
        model: The config that they were built with.
    """
    renamed = {theirs: parts.vae[ours] for ours, theirs in vae_names(model).items() if ours in parts.vae}
    if not parts.critic or not parts.lpips:
        return renamed
    norms = {name.rpartition(".")[0]: value for name, value in parts.critic.items() if value.dim() == 1}
    for loss in LOSSES:
        renamed[f"{loss}.logvar"] = parts.logvar
        renamed |= {f"{loss}.perceptual_loss.{theirs}": parts.lpips[ours] for ours, theirs in lpips_names().items()}
        for ours, theirs in critic_names(model).items():
            layer, _, part = ours.rpartition(".")
            like = norms[layer] if layer in norms else parts.critic[ours]
            value = _statistic(part, like) if ours not in parts.critic else parts.critic[ours]
            renamed[f"{loss}.discriminator.{theirs}"] = value
    return renamed


def _statistic(name: str, like: torch.Tensor) -> torch.Tensor:
    if name == "num_batches_tracked":
        return torch.zeros((), dtype=torch.int64, device=like.device)
    return torch.ones_like(like) if name == "running_var" else torch.zeros_like(like)


def from_original(weights: Mapping[str, torch.Tensor], model: Model) -> Parts:
    """The original's state dict under our keys, with the loss module that the first stage trains, if it holds one.

    Args:
        weights: The original's state dict: what it saves as `model`, or the autoencoder's part of it.
        model: The config of the networks that are to hold them.

    Raises:
        BadInput: A key is none of the original's, or one is missing.
    """
    vae, critic, lpips = vae_names(model), critic_names(model), lpips_names()
    whole = any(key.partition(".")[0] in LOSSES for key in weights)
    known = dict.fromkeys(vae.values())
    for loss in LOSSES if whole else ():
        known[f"{loss}.logvar"] = None
        known |= dict.fromkeys(f"{loss}.perceptual_loss.{theirs}" for theirs in lpips.values())
        known |= dict.fromkeys(f"{loss}.discriminator.{theirs}" for theirs in critic.values())
    check_keys(weights, known, "the keys of model.ddconfig and model.lossconfig.disc_num_layers")
    if not whole:
        return Parts({ours: weights[theirs] for ours, theirs in vae.items()}, {}, {}, torch.zeros(()))
    kept = {ours: theirs for ours, theirs in critic.items() if ours.rpartition(".")[2] in _BOTH}
    return Parts(
        {ours: weights[theirs] for ours, theirs in vae.items()},
        {ours: weights[f"loss.discriminator.{theirs}"] for ours, theirs in kept.items()},
        {ours: weights[f"loss.perceptual_loss.{theirs}"] for ours, theirs in lpips.items()},
        weights["loss.logvar"],
    )


def vae_names(model: Model) -> dict[str, str]:
    """Our keys of `RadioVae` -> the original's, in its order."""
    config = model.ddconfig
    levels = list(enumerate(config.ch_mult))
    names: dict[str, str] = {}

    def layer(ours: str, theirs: str) -> None:
        names.update({f"{ours}.{part}": f"{theirs}.{part}" for part in _BOTH})

    def residual(ours: str, theirs: str, *, widens: bool = False) -> None:
        for place, name in (("body.0", "norm1"), ("body.2", "conv1"), ("body.3", "norm2"), ("body.6", "conv2")):
            layer(f"{ours}.{place}", f"{theirs}.{name}")
        if widens:
            layer(f"{ours}.shortcut", f"{theirs}.nin_shortcut")

    def middle(half: str, at: int) -> None:
        residual(f"{half}.body.{at}", f"{half}.mid.block_1")
        for ours, theirs in zip(
            ("norm", "query", "key", "value", "out"), ("norm", "q", "k", "v", "proj_out"), strict=True
        ):
            layer(f"{half}.body.{at + 1}.{ours}", f"{half}.mid.attn_1.{theirs}")
        residual(f"{half}.body.{at + 2}", f"{half}.mid.block_2")

    def ends(half: str) -> None:
        layer(f"{half}.body.0", f"{half}.conv_in")
        layer(f"{half}.out.0", f"{half}.norm_out")
        layer(f"{half}.out.2", f"{half}.conv_out")

    at, width = 1, 1
    for level, mult in levels:
        for block in range(config.num_res_blocks):
            residual(f"encoder.body.{at}", f"encoder.down.{level}.block.{block}", widens=mult != width)
            at, width = at + 1, mult
        if level < len(levels) - 1:
            layer(f"encoder.body.{at}.conv", f"encoder.down.{level}.downsample.conv")
            at += 1
    middle("encoder", at)
    ends("encoder")
    middle("decoder", 1)
    at = 4
    for level, mult in reversed(levels):
        for block in range(config.num_res_blocks + 1):
            residual(f"decoder.body.{at}", f"decoder.up.{level}.block.{block}", widens=mult != width)
            at, width = at + 1, mult
        if level:
            layer(f"decoder.body.{at}.conv", f"decoder.up.{level}.upsample.conv")
            at += 1
    ends("decoder")
    layer("to_code", "quant_conv")
    layer("from_code", "post_quant_conv")
    return names


def critic_names(model: Model) -> dict[str, str]:
    """Our keys of `Discriminator` -> the original's, with the statistics of its norms, which ours does not keep."""
    layers = model.lossconfig.disc_num_layers
    names = {f"body.0.{part}": f"main.0.{part}" for part in _BOTH}
    for at in range(2, 3 * layers, 3):
        names[f"body.{at}.weight"] = f"main.{at}.weight"
        norm = (*_BOTH, "running_mean", "running_var", "num_batches_tracked")
        names |= {f"body.{at + 1}.{part}": f"main.{at + 1}.{part}" for part in norm}
    return names | {f"body.{3 * layers + 2}.{part}": f"main.{3 * layers + 2}.{part}" for part in _BOTH}


def lpips_names() -> dict[str, str]:
    """Our buffers of `Lpips` -> the original's keys."""
    names = {"shift": "scaling_layer.shift", "scale": "scaling_layer.scale"}
    for block, convolutions in enumerate(VGG):
        for number, _, _ in convolutions:
            names |= {f"{part}{number}": f"net.slice{block + 1}.{number}.{part}" for part in _BOTH}
    return names | {f"linear{block}": f"lin{block}.model.1.weight" for block in range(len(VGG))}
