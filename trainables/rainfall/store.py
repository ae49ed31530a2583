"""Writes a rainfall data set: from days of rain in mm to standardised files with statistics.

`write(root, ...)` is what the prepare command and the synthetic generator share, so that statistics, thresholds, units
and day categories are computed in one place, on the training days alone. `data.py` reads what this module writes:

    data/X_lr/day_000000.npy      float32 [C, h, w], standardised per cell and channel, clipped to [-10, 10]
    data/Y_hr/day_000000.npy      float32 [1, H, W], (log1p(mm) - mean) / std per pixel, not clipped
    data/statics/*.npy            float32 [1, H, W]: land_sea_mask (1 = land), dist_to_coast_km, elevation_m (optional)
    data/metadata/                split.json, categories.json, thresholds.json (z), H_W.json, units.json,
                                  ERA5_mean_train.npy, ERA5_std_train.npy (of log1p(mm)), p95_mmday.npy,
                                  p99_mmday.npy, X_mean_train.npy, X_std_train.npy (of the predictor's channels)

The names are the original's (ERA5_* hold the target's statistics there, too). `units.json` and `p95_mmday.npy` are
ours: the original left them out, and a default of 20 mm took their place. So are the predictor's statistics, which
training does not need: with them a channel of rain can be turned back into mm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt

from buttress.errors import BadInput

SPLITS = ("train", "val", "test")
SEA_STD = 1e-8  # sea: mean 0, so that z is exactly 0 there
CLIP = 10.0  # of standardised predictors
PERCENTILES = {"P85": 85.0, "P90": 90.0, "P95": 95.0, "P99": 99.0, "P99.5": 99.5}
CATEGORIES = ("dry", "moderate", "heavy_coast", "heavy_interior")


@dataclass(frozen=True)
class Choices:
    """What the writer decides; recorded in `units.json` as the definition of the data set."""

    unit: str = "mm/day"
    cell_km: float = 4.0
    heavy_pixels: int = 25  # a day is heavy when so many reach P90 of the daily maxima, or its maximum reaches P99
    pooled: bool = False  # one mean and deviation for all land pixels instead of one each
    logged: tuple[int, ...] = ()  # channels of the predictor that are rain: log1p before standardising


def write(
    root: Path,
    rain: np.ndarray,
    predictors: np.ndarray,
    land: np.ndarray,
    splits: Mapping[str, Sequence[int]],
    choices: Choices,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """rain[T, H, W] (mm), predictors[T, C, h, w] (raw), land[H, W] (bool), splits (day positions) -> the folder `root`.

    Rain over sea is set to 0. `rain` and `predictors` are changed in place (they end up standardised). Raises
    `BadInput` where the training days do not allow a statistic.
    """
    train = np.asarray(splits["train"])
    _complain_of_splits(splits, len(rain))
    np.multiply(rain, land, out=rain)
    p95, p99 = rain_percentiles(rain[train], land)
    np.log1p(rain, out=rain)
    mean, std = _statistics(rain, train, land, choices)
    rain -= mean
    rain /= std
    thresholds = {name: float(np.percentile(daily_max(rain, land)[train], q)) for name, q in PERCENTILES.items()}
    low_mean, low_std = _standardise(predictors, train, choices)

    folder = root / "data"
    for name in ("X_lr", "Y_hr", "statics", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for day in range(len(rain)):
        np.save(folder / "X_lr" / f"day_{day:06d}.npy", predictors[day].astype(np.float32))
        np.save(folder / "Y_hr" / f"day_{day:06d}.npy", rain[day][None].astype(np.float32))
    coast = coast_distance(land, choices.cell_km)
    np.save(folder / "statics" / "land_sea_mask.npy", land[None].astype(np.float32))
    np.save(folder / "statics" / "dist_to_coast_km.npy", coast[None].astype(np.float32))
    meta = folder / "metadata"
    np.save(meta / "ERA5_mean_train.npy", mean.astype(np.float32))
    np.save(meta / "ERA5_std_train.npy", std.astype(np.float32))
    np.save(meta / "X_mean_train.npy", low_mean)
    np.save(meta / "X_std_train.npy", low_std)
    np.save(meta / "p95_mmday.npy", np.float64(p95))
    np.save(meta / "p99_mmday.npy", np.float64(p99))
    categories = categorise(rain, land, coast, thresholds, choices.heavy_pixels)
    definition = {"heavy_pixels": choices.heavy_pixels, "cell_km": choices.cell_km, "pooled": choices.pooled}
    _json(meta / "split.json", {name: [int(day) for day in days] for name, days in splits.items()})
    _json(meta / "categories.json", {str(day): name for day, name in enumerate(categories)})
    _json(meta / "thresholds.json", thresholds)
    _json(meta / "H_W.json", {"H": rain.shape[1], "W": rain.shape[2]})
    units = {"rain": choices.unit, "thresholds.json": "z", "p95_mmday.npy": choices.unit, "p99_mmday.npy": choices.unit}
    found = {**units, "rain_channels": list(choices.logged), "definition": definition, **(about or {})}
    _json(meta / "units.json", found)
    return root


def rain_percentiles(rain: np.ndarray, land: np.ndarray) -> tuple[float, float]:
    """P95 and P99 (mm) over the land pixel-days of rain[T, H, W]."""
    low, high = np.percentile(rain[:, land], [95, 99])
    if not low > 0:
        raise BadInput("95 % of the training land pixel-days are dry, so there is no tail threshold", key="p95_mmday")
    return float(low), float(high)


def daily_max(field: np.ndarray, land: np.ndarray) -> np.ndarray:
    """field[T, H, W] -> its largest land pixel, day by day [T]."""
    return np.array([day[land].max() for day in field])


def coast_distance(land: np.ndarray, cell_km: float) -> np.ndarray:
    """land[H, W] -> km to the nearest cell of the other kind, 0 on the sea at the coast; zeros without one."""
    if land.all() or not land.any():
        return np.zeros(land.shape)
    return distance_transform_edt(land) * cell_km + distance_transform_edt(~land) * cell_km - cell_km * (~land)


def categorise(
    z: np.ndarray, land: np.ndarray, coast: np.ndarray, thresholds: Mapping[str, float], heavy_pixels: int
) -> list[str]:
    """z[T, H, W] -> each day's category: the original's newest rule, with the coast where it is instead of a frame.

    Heavy: `heavy_pixels` land pixels at P90 of the daily maxima or more, or the maximum at P99 or more; interior when
    most of those pixels are farther from the coast than the median land pixel. Moderate: the maximum at P95 or more, or
    a land mean above 0.1.
    """
    inland = coast > np.median(coast[land])
    found = []
    for day in z:
        values = day[land]
        high = (day >= thresholds["P90"]) & land
        if high.sum() >= heavy_pixels or values.max() >= thresholds["P99"]:
            found.append("heavy_interior" if (high & inland).sum() * 2 > high.sum() else "heavy_coast")
        elif values.max() >= thresholds["P95"] or values.mean() > 0.1:
            found.append("moderate")
        else:
            found.append("dry")
    return found


def _complain_of_splits(splits: Mapping[str, Sequence[int]], days: int) -> None:
    for name in SPLITS:
        least = 2 if name == "train" else 1
        if len(splits.get(name, ())) < least:
            raise BadInput(f"has {len(splits.get(name, ()))} days", key=f"split {name}", accepted=f"{least} or more")
        if max(splits[name]) >= days:
            raise BadInput(f"names day {max(splits[name])} of {days}", key=f"split {name}")


def _statistics(
    logged: np.ndarray, train: np.ndarray, land: np.ndarray, choices: Choices
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (ddof 1) of log1p(mm) over the training days, [H, W] each; 0 and 1e-8 on the sea."""
    shape = logged.shape[1:]
    mean, std = np.zeros(shape, logged.dtype), np.full(shape, SEA_STD, logged.dtype)
    values = logged[train][:, land].astype(np.float64)
    if choices.pooled:
        mean[land], std[land] = values.mean(), values.std(ddof=1)
        return mean, std
    mean[land], std[land] = values.mean(0), values.std(0, ddof=1)
    dry = land & (std < 1e-6)
    if dry.any():
        row, column = np.argwhere(dry)[0]
        raise BadInput(
            f"{int(dry.sum())} land pixels never change in the training split, the first at row {row}, column {column}",
            key="statistics", accepted="more training days, pooled statistics, or a mask without these pixels",
        )  # fmt: skip
    return mean, std


def _standardise(predictors: np.ndarray, train: np.ndarray, choices: Choices) -> tuple[np.ndarray, np.ndarray]:
    """In place, per cell and channel (pooled: per channel); returns mean and deviation, [C, h, w] each."""
    for channel in choices.logged:
        np.log1p(predictors[:, channel], out=predictors[:, channel])
    known = predictors[train].astype(np.float64)
    axes = (0, 2, 3) if choices.pooled else (0,)
    mean = known.mean(axes, keepdims=True)[0].astype(predictors.dtype)
    std = np.maximum(known.std(axes, ddof=1, keepdims=True)[0], SEA_STD).astype(predictors.dtype)
    predictors -= mean
    predictors /= std
    np.clip(predictors, -CLIP, CLIP, out=predictors)
    shape = predictors.shape[1:]
    return np.broadcast_to(mean, shape).copy(), np.broadcast_to(std, shape).copy()


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1))
