"""What rain fields score that no model has drawn: climatology and the interpolated predictor, beside a trained model.

    python -m benchmarks.rainfall_references --root DATA                  # a folder that the prepare command wrote
    python -m benchmarks.rainfall_references --synthetic small --split test
    python -m benchmarks.rainfall_references --root DATA --config best.yaml --checkpoint runs/.../000012.pt

Same days, pixels and definitions as the family's prior-mode scores (`trainables/rainfall/heldout.py`). Climatology is
the distribution of the training days at each pixel: its CRPS is exact, its median and its mean are given as fields (the
median is what a model's MAE_tail is computed from). Interpolation is the predictor's rain channel in mm, bilinear to
the fine grid: one field, so that its CRPS is its mean absolute error. Prints a Markdown table; `--json`: a last line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.nn import functional

from buttress.trainables.rainfall import data as files
from buttress.trainables.rainfall.config import Config
from buttress.trainables.rainfall.data import Dataset
from buttress.trainables.rainfall.train import Rainfall
from buttress.training.world import World


def references(dataset: Dataset, folder: Path, split: str, days: int | None) -> dict[str, dict[str, float]]:
    """Name of the reference -> its scores on `split` (at most `days` evenly spaced days; None = all)."""
    land, rows = dataset.land > 0.5, dataset.rows(split)
    if days is not None and days < len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, days).round().astype(int)]
    truth = files.rain_mm(dataset, rows)[:, land].astype(np.float64)
    past = np.sort(files.rain_mm(dataset, dataset.rows("train"))[:, land].astype(np.float64), axis=0)
    tail = float(dataset.thresholds[1])
    found = {
        "climatology, median": scored(np.median(past, axis=0), truth, tail) | {"prior/crps": climatology(past, truth)},
        "climatology, mean": scored(past.mean(0), truth, tail) | {"prior/crps": climatology(past, truth)},
    }
    shown = interpolated(dataset, folder, rows)
    if shown is not None:
        found["interpolation"] = scored(shown[:, land], truth, tail)
    return found


def scored(field: np.ndarray, truth: np.ndarray, tail: float) -> dict[str, float]:
    """field[L] or [days, L] against truth[days, L], mm. The CRPS of a single field is its absolute error."""
    error = np.abs(field - truth)
    in_tail = truth >= tail
    mean = float(error.mean())
    return {
        "prior/mae_tail": float(error[in_tail].mean()) if in_tail.any() else float("nan"),
        "prior/crps": mean,
        "prior/mae_all": mean,
    }


def climatology(past: np.ndarray, truth: np.ndarray) -> float:
    """Mean CRPS of the training days' distribution at each pixel: past[N, L] sorted over days, truth[days, L]."""
    n, pixels = past.shape
    place = 2 * np.arange(n) - (n - 1)
    spread = (past * place[:, None]).sum(0) / (n * (n - 1))  # half of E|X - X'|, without bias
    below = np.concatenate([np.zeros((1, pixels)), np.cumsum(past, axis=0)])
    total = 0.0
    for pixel in range(pixels):
        at = np.searchsorted(past[:, pixel], truth[:, pixel])
        left = at * truth[:, pixel] - below[at, pixel]
        right = below[-1, pixel] - below[at, pixel] - (n - at) * truth[:, pixel]
        total += ((left + right) / n - spread[pixel]).sum()
    return float(total / truth.size)


def interpolated(dataset: Dataset, folder: Path, rows: np.ndarray) -> np.ndarray | None:
    """The predictor's rain in mm on the fine grid [days, H, W]; None where the folder does not say which channel."""
    meta = files.inside(folder) / "metadata"
    channels = json.loads((meta / "units.json").read_text()).get("rain_channels", [])
    if not channels:
        return None
    channel = channels[0]
    mean, std = (np.load(meta / f"X_{name}_train.npy")[channel] for name in ("mean", "std"))
    mm = np.maximum(np.expm1(dataset.x[rows, channel] * std + mean), 0)
    grown = functional.interpolate(torch.from_numpy(mm)[:, None], size=dataset.y.shape[2:], mode="bilinear")
    return grown[:, 0].numpy().astype(np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="a data set's folder")
    parser.add_argument("--synthetic", help="or the size of the synthetic data set")
    parser.add_argument("--unit", default="mm/day", help="of the folder's rain")
    parser.add_argument("--split", default="val", choices=("val", "test"))
    parser.add_argument("--days", type=int, help="evenly spaced days (default: the config's eval_days, else all)")
    parser.add_argument("--config", type=Path, help="the config of a trained model")
    parser.add_argument("--checkpoint", type=Path, help="its checkpoint")
    parser.add_argument("--picture", type=Path, help="where to copy the picture of the model's fields")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    groups: dict[str, Any] = yaml.safe_load(given.config.read_text()) if given.config else {}
    if given.synthetic:
        groups["data"] = {"kind": "synthetic", "size": given.synthetic}
    elif given.root:
        groups["data"] = {"kind": "files", "root": given.root, "unit": given.unit}
    config = Config.model_validate(groups)
    with tempfile.TemporaryDirectory() as scratch:
        world = World.single(Path(scratch), seed=config.buttress.seed)
        dataset = files.load(config.data, world.cache)
        days = given.days or (config.buttress.eval_days if given.config else None)
        found = references(dataset, files.folder_of(config.data), given.split, days)
        if given.checkpoint:
            scores, media = Rainfall().evaluate(config, given.checkpoint, world, given.split)
            found["model"] = scores
            if given.picture:
                given.picture.write_bytes(media["fields"].read_bytes())
    names = ("prior/mae_tail", "prior/crps", "prior/mae_all")
    print(f"| {given.split}, {config.data.unit} | " + " | ".join(names) + " |")
    print("| -- |" + " --: |" * len(names))
    for name, scores in found.items():
        print(f"| {name} | " + " | ".join(f"{scores.get(one, float('nan')):.3f}" for one in names) + " |")
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
