"""Draws rain fields: observed, predictor, and the model's samples in posterior and prior mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from buttress.trainables.rainfall.heldout import HeldOut
from buttress.trainables.rainfall.model import RainVae
from buttress.training.losses import gaussian_kl

_LEVELS = (0, 0.1, 1, 2.5, 5, 10, 20, 40, 60, 100, 150, 250)  # mm


def draw(held_out: HeldOut, model: RainVae, split: str, path: Path, days: int = 4, samples: int = 3) -> Path:
    """Write a PNG with one row per day (the wettest ones of this rank's share, at most `days`): the predictor's first
    channel, the truth, the posterior mean's field, `samples` prior draws, the median of K."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import BoundaryNorm

    rows = held_out.rows[True]
    wettest = np.argsort([float(held_out.data.y[at].mean()) for at in rows])[::-1]
    at = rows[np.sort(wettest[: 3 * days : 3])]  # not all from the same end of the tail
    columns = fields(held_out, model, at, samples)
    land = held_out.rain.land.cpu().numpy() > 0.5
    width, height = 1.9 * len(columns), 1.9 * len(at) * max(0.5, min(1.5, land.shape[0] / land.shape[1])) + 0.5
    figure, axes = plt.subplots(len(at), len(columns), figsize=(width, height), squeeze=False, layout="constrained")
    norm, cmap = BoundaryNorm(_LEVELS, 256), plt.get_cmap("turbo").with_extremes(bad="white")
    for column, (title, content) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=8)
        for row, field in enumerate(content):
            axis = axes[row, column]
            axis.set_xticks([])
            axis.set_yticks([])
            if title.startswith("predictor"):
                axis.imshow(field, cmap="viridis", aspect="auto")
                axis.set_ylabel(f"{split} day {int(held_out.data.day[at[row]])}", fontsize=7)
            else:
                image = axis.imshow(np.where(land, field, np.nan), norm=norm, cmap=cmap, aspect="auto")
                axis.set_xlabel(f"max {field[land].max():.0f}, mean {field[land].mean():.1f}", fontsize=6)
    figure.colorbar(image, ax=axes, shrink=0.6, label=held_out.config.data.unit, ticks=_LEVELS)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


@torch.no_grad()
def fields(held_out: HeldOut, model: RainVae, at: np.ndarray, samples: int) -> dict[str, np.ndarray]:
    """Title -> [days, H, W] (the predictor: [days, h, w]) for the days at positions `at`."""
    device, dtype, rain = held_out.world.device, held_out.dtype, held_out.rain
    x = torch.from_numpy(np.ascontiguousarray(held_out.data.x[at])).to(device, dtype)
    y = torch.from_numpy(np.ascontiguousarray(held_out.data.y[at])).to(device, dtype)
    condition = model.condition(x)
    code = model.posterior(condition, y, held_out.statics)
    kl = float(gaussian_kl(code.mu, code.logvar).sum(1).mean())
    ids = torch.from_numpy(held_out.data.day[at])
    drawn = [rain.fallen(one)[:, 0] for one in held_out.prior(model, condition, ids)]
    shown = {
        "predictor (pr)": x[:, min(1, x.shape[1] - 1)],
        "truth": rain.fallen(y)[:, 0],
        f"posterior mean ({kl:.1f} nats)": rain.fallen(model.decode(code.mu, condition))[:, 0],
        **{f"prior draw {k + 1}": drawn[k] for k in range(min(samples, len(drawn)))},
        f"median of {len(drawn)}": torch.stack(drawn).sort(0).values[(len(drawn) - 1) // 2 :][:2].mean(0),
    }
    return {title: field.float().cpu().numpy() for title, field in shown.items()}
