"""Draws radio maps: the simulation, its reconstruction, and the error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from buttress.trainables.radio.heldout import HeldOut
from buttress.trainables.radio.model import RadioVae
from buttress.training.losses import gaussian_kl

LOWEST_DB, RANGE_DB = -147.0, 100.0  # path loss of grey 0, and grey 1 above it


@torch.no_grad()
def draw(held_out: HeldOut, model: RadioVae, split: str, path: Path, maps: int = 4) -> Path:
    """Write a PNG with one row per image (at most `maps`, evenly spaced): path loss, its reconstruction from the
    posterior's mean, the error in dB, the latent map's first channel."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = held_out.rows[True]
    at = rows[np.unique(np.linspace(0, len(rows) - 1, maps).round().astype(int))]
    x = held_out.images(at)
    code = model.encode(x)
    nats = gaussian_kl(code.mu, code.logvar).mean((1, 2, 3)).cpu()
    truth, made = (_decibel(one) for one in (x, model.decode(code.mu).clamp(-1, 1)))
    titles = ("path loss (dB)", "reconstruction", "error (dB)", "latent map, first channel")
    figure, axes = plt.subplots(len(at), 4, figsize=(9.2, 2.2 * len(at) + 0.3), squeeze=False, layout="constrained")
    for row, index in enumerate(at):
        fields = (truth[row], made[row], made[row] - truth[row], code.mu[row, 0].float().cpu().numpy())
        for column, (axis, field) in enumerate(zip(axes[row], fields, strict=True)):
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(titles[column], fontsize=8)
            if column < 2:
                loss = axis.imshow(field, vmin=LOWEST_DB, vmax=LOWEST_DB + RANGE_DB, cmap="viridis")
            elif column == 2:
                wrong = axis.imshow(field, vmin=-30, vmax=30, cmap="RdBu_r")
                axis.set_xlabel(f"mean |error| {np.abs(field).mean():.1f} dB", fontsize=6)
            else:
                axis.imshow(field, cmap="gray")
                axis.set_xlabel(f"{float(nats[row]):.2f} nats per dimension", fontsize=6)
        name = f"{held_out.data.map[index]}_{held_out.data.transmitter[index]}"
        axes[row, 0].set_ylabel(f"{split} {name}", fontsize=7)
    figure.colorbar(loss, ax=axes[:, :2], shrink=0.5, location="left", label="dB")
    figure.colorbar(wrong, ax=axes[:, 2:], shrink=0.5, label="dB")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _decibel(x: torch.Tensor) -> np.ndarray:
    """x[b, 1, H, W] in [-1, 1] -> dB [b, H, W]."""
    grey = (x[:, 0].double().cpu().numpy() + 1) / 2
    return np.asarray(LOWEST_DB + RANGE_DB * grey)
