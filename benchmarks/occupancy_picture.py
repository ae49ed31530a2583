"""Predicted occupancy beside the truth and beside copying the last frame, as pictures to look at.

    buttress export occupancy -o runs/occupancy.yaml --weights
    python -m benchmarks.occupancy_picture runs/occupancy.yaml -o runs/occupancy.png [--split val] [--windows 3]

One row per window: the last history frame, then for the first and the last future step the truth, the prediction at
the config's threshold and the copied frame. Seen from above and, below it, from the side; a column of voxels is shown
as strongly as it is filled. In prediction and copy: white right, red too much, blue missed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch

from buttress.execution.local_training import read_config
from buttress.trainables.occupancy import data as windows
from buttress.trainables.occupancy.model import build
from buttress.training.world import World

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RIGHT, TOO_MUCH, MISSED = np.array([1.0, 1.0, 1.0]), np.array([0.9, 0.2, 0.15]), np.array([0.25, 0.45, 1.0])


def seen(voxels: np.ndarray, truth: np.ndarray | None = None) -> np.ndarray:
    """bool [X, Y, Z] (against the truth) -> an image [Y + Z, X, 3]: from above, and from the side below it."""
    truth = voxels if truth is None else truth
    parts = [(voxels & truth, RIGHT), (voxels & ~truth, TOO_MUCH), (~voxels & truth, MISSED)]
    views = []
    for axis in (2, 1):
        image = sum(np.minimum(part.sum(axis) / 2, 1)[..., None] * colour for part, colour in parts)
        views.append(np.clip(np.swapaxes(np.asarray(image), 0, 1)[::-1], 0, 1))
    return np.concatenate([views[0], np.full((1, *views[0].shape[1:]), 0.35), views[1]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="as `buttress export --weights` writes it, with the .pt beside it")
    parser.add_argument("-o", "--output", type=Path, default=Path("occupancy.png"))
    parser.add_argument("--split", default="val")
    parser.add_argument("--windows", type=int, default=3)
    given = parser.parse_args()

    _, config = read_config(given.config)
    data, threshold = config.data, config.buttress.occ_threshold
    dataset = windows.load(data, World().cache)
    model = build(config.model, data.history_frames, data.future_frames, data.grid, config.buttress.init_bias).eval()
    model.load_state_dict(torch.load(given.config.with_suffix(".pt"), weights_only=True))
    chosen = dataset.windows(given.split)
    chosen = chosen[np.linspace(0, len(chosen) - 1, given.windows).round().astype(int)]
    grids = dataset.grids(chosen, data.grid).astype(bool)
    history, future = np.split(grids, [data.history_frames], axis=1)
    with torch.no_grad():
        known = torch.from_numpy(np.asarray(dataset.poses[chosen]))[:, : data.history_frames].float()
        p = torch.sigmoid(model(torch.from_numpy(history).float(), known).logits).numpy()

    steps = (0, data.future_frames - 1)
    names = ["last frame"] + [f"t + {step + 1}: {what}" for step in steps for what in ("truth", "predicted", "copied")]
    size = (2.2 * len(names), 3.0 * given.windows)
    figure, axes = plt.subplots(given.windows, len(names), figsize=size, squeeze=False)
    for row, cells in enumerate(axes):
        last = history[row, -1]
        images = [seen(last)]
        for step in steps:
            truth = future[row, step]
            images += [seen(truth), seen(p[row, step] > threshold, truth), seen(last, truth)]
        for cell, image, name in zip(cells, images, names, strict=True):
            cell.imshow(image, interpolation="nearest")
            cell.set_xticks([])
            cell.set_yticks([])
            if row == 0:
                cell.set_title(name, fontsize=9)
        window = chosen[row]
        cells[0].set_ylabel(f"{dataset.names[dataset.scene[window]]}, frame {dataset.start[window]}", fontsize=8)
    figure.suptitle(f"p > {threshold:.3f}; white right, red too much, blue missed", fontsize=9)
    figure.tight_layout()
    figure.savefig(given.output, dpi=90)
    print(f"wrote {given.output}")


if __name__ == "__main__":
    main()
