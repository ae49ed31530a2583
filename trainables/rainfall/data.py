"""Reads and checks a rainfall data set: a folder of one file per day.

Every day is read once per node and kept as one memory-mapped array (`World.cache`). Nothing has a default: a missing
statistic, a threshold that was never set, a unit that contradicts the config or the data, a missing day, a wrong shape
or type, a NaN are each a `BadInput` that names the file. `store.py` documents the layout.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from buttress.errors import BadInput
from buttress.trainables.rainfall import store, synthetic
from buttress.trainables.rainfall.config import Config, Data
from buttress.training.cache import synthetic_folder

Cache = Callable[[Any, Callable[[], Mapping[str, np.ndarray]]], dict[str, np.ndarray]]

SPLITS = store.SPLITS
_VERSION = 1  # of the cached arrays and of the synthetic data set
_PREPARE = "a folder written by `python -m buttress.trainables.rainfall.prepare`"
#: Shares that a threshold may be exceeded by, nominal in brackets; outside, its unit is wrong.
_DAYS_OVER_P95 = (0.0, 0.25)  # (0.05) of training days whose maximum reaches the z threshold
_PIXELS_OVER_P95 = (0.015, 0.15)  # (0.05) of training land pixel-days at the mm threshold
_PIXELS_OVER_P99 = (0.003, 0.03)  # (0.01)


@dataclass(frozen=True)
class Dataset:
    """All days of a data set, in the order of their ids."""

    x: np.ndarray  # float32 [days, C, h, w], standardised predictors
    y: np.ndarray  # float32 [days, 1, H, W], standardised log-rain
    day: np.ndarray  # int64 [days], id
    part: np.ndarray  # int64 [days], 0 train, 1 val, 2 test
    heavy: np.ndarray  # bool [days]
    statics: np.ndarray  # float32 [S, H, W], in [0, 1]: land, distance to the coast, perhaps elevation
    mean: np.ndarray  # float32 [H, W], of log1p(mm)
    std: np.ndarray  # float32 [H, W]
    thresholds: np.ndarray  # float64 [3]: P95 of the daily maxima (z), P95 and P99 of land pixel-days (mm)

    def rows(self, split: str) -> np.ndarray:
        """Positions of the days of `split`, int64, ascending."""
        return np.flatnonzero(self.part == SPLITS.index(split))

    @property
    def land(self) -> np.ndarray:
        return self.statics[0]


def load(data: Data, cache: Cache) -> Dataset:
    """The data set that `data` names; `cache` is `World.cache`."""
    if data.kind == "synthetic":
        key: dict[str, Any] = {"synthetic": data.size, "seed": data.seed}
    else:
        key = {"folder": str(Path(str(data.root)).expanduser().resolve()), "state": fingerprint(data)["state"]}

    def build() -> dict[str, np.ndarray]:
        return vars(read(folder_of(data), data))

    choices = {"unit": data.unit, "elevation": data.elevation}
    return Dataset(**cache({"rainfall": _VERSION, **key, **choices}, build))


def fingerprint(data: Data) -> dict[str, Any]:
    """What tells this data set from another: names, sizes and times of the files, or the generator's size and seed."""
    if data.kind == "synthetic":
        return {"synthetic": data.size, "seed": data.seed, "version": _VERSION}
    folder = inside(Path(str(data.root)).expanduser())
    digest = hashlib.sha256()
    for name in ("X_lr", "Y_hr", "statics", "metadata"):
        try:
            entries = sorted(os.scandir(folder / name), key=lambda entry: entry.name)
        except OSError as error:
            raise BadInput(f"cannot be read ({error.strerror})", where=folder / name, accepted=_PREPARE) from None
        for entry in entries:
            stat = entry.stat()
            digest.update(f"{name}/{entry.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return {"folder": str(folder), "state": digest.hexdigest()[:16]}


def read(root: Path, data: Data) -> Dataset:
    """Read and check the folder `root`; raises `BadInput` for whatever keeps it from being used."""
    folder = inside(root)
    meta = folder / "metadata"
    _check_units(meta, data)
    size = _json(meta / "H_W.json", dict)
    high = (_whole(size, "H", meta / "H_W.json"), _whole(size, "W", meta / "H_W.json"))
    splits = read_splits(meta / "split.json")
    statics = _statics(folder / "statics", high, data.elevation)
    land = statics[0] > 0.5
    mean, std = (_array(meta / f"ERA5_{name}_train.npy", high, "float") for name in ("mean", "std"))
    if not (std > 0).all():
        path, least = meta / "ERA5_std_train.npy", float(std.min())
        raise BadInput("has deviations that are not positive", where=path, value=least)

    day = np.array(sorted(one for ids in splits.values() for one in ids), dtype=np.int64)
    part_of = {one: index for index, name in enumerate(SPLITS) for one in splits[name]}
    part = np.array([part_of[int(one)] for one in day], dtype=np.int64)
    heavy = _heavy(meta / "categories.json", day)
    y = _days(folder / "Y_hr", day, (1, *high))
    first = _array(folder / "X_lr" / _name(int(day[0])), None, "float32")
    if first.ndim != 3:
        raise BadInput("is not a predictor", where=folder / "X_lr" / _name(int(day[0])), value=list(first.shape),
                       accepted="float32 [C, h, w]")  # fmt: skip
    x = _days(folder / "X_lr", day, first.shape)
    extreme = _threshold(meta / "thresholds.json")
    mm95, mm99 = (_scalar(meta / f"{name}_mmday.npy") for name in ("p95", "p99"))
    found = Dataset(
        x, y, day, part, heavy, statics, mean.astype(np.float32), std.astype(np.float32),
        np.array([extreme, mm95, mm99]),
    )  # fmt: skip
    _check_thresholds(found, land, meta)
    return found


def check(path: Path, config: Config) -> list[tuple[str, str]]:
    """What `buttress data check rainfall PATH` prints, as (what, finding). Raises `BadInput` as training would."""
    data = config.data.model_copy(update={"kind": "files", "root": str(path)})
    found = read(path, data)
    land = found.land > 0.5
    extreme, mm95, mm99 = found.thresholds
    rows = [
        ("days", f"{len(found.day):,}, ids {found.day[0]} to {found.day[-1]}"),
        ("predictor", f"{found.x.shape[1]} channels of {found.x.shape[2]} x {found.x.shape[3]}, "
                      f"{float(found.x.min()):.2f} to {float(found.x.max()):.2f}"),
        ("target", f"{found.y.shape[2]} x {found.y.shape[3]}, land {land.mean():.1%}"),
        ("statics", f"{len(found.statics)}: land, distance to coast" + (", elevation" if data.elevation else "")),
        ("thresholds", f"P95 of daily maxima {extreme:.3g} (z); P95 {mm95:.4g}, P99 {mm99:.4g} {data.unit} of land"),
    ]  # fmt: skip
    for split in SPLITS:
        at = found.rows(split)
        mm = rain_mm(found, at)[:, land]
        text = f"{at.size:,} days, {int(found.heavy[at].sum()):,} heavy ({found.heavy[at].mean():.1%})"
        text += f", wet {float((mm > 0.1).mean()):.1%}, mean {float(mm.mean()):.3g}, maximum {float(mm.max()):.4g}"
        text += f", {float((mm >= mm95).mean()):.2%} in the tail"
        rows.append((f"split {split}", text))
        if split == "val" and not (mm >= mm95).any():
            rows.append(("warning", "no validation pixel is in the tail: prior/mae_tail will be missing"))
    if not found.heavy[found.rows("train")].any():
        rows.append(("warning", "no training day is heavy: train.min_heavy_fraction has to be 0"))
    return rows


def rain_mm(data: Dataset, at: np.ndarray) -> np.ndarray:
    """Rain in mm [len(at), H, W] of the days at positions `at`."""
    return np.maximum(np.expm1(data.y[at, 0] * data.std + data.mean), 0)


def read_splits(path: Path) -> dict[str, list[int]]:
    """split.json, checked: three lists of day ids, none empty, none shared."""
    held = _json(path, dict)
    splits: dict[str, list[int]] = {}
    for name in SPLITS:
        ids = held.get(name)
        if not isinstance(ids, list) or not ids or not all(type(one) is int and one >= 0 for one in ids):
            raise BadInput("is not a list of days", where=path, key=name, value=_short(ids), accepted="day ids (int)")
        if len(set(ids)) < len(ids):
            twice = next(one for i, one in enumerate(ids) if one in ids[:i])
            raise BadInput(f"names day {twice} twice", where=path, key=name)
        splits[name] = ids
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = sorted(set(splits[one]) & set(splits[other]))
        if shared:
            raise BadInput(
                f"overlaps with {other}: {len(shared)} days are in both, the first is {shared[0]}", where=path, key=one,
                accepted="splits without a common day",
            )  # fmt: skip
    return splits


def inside(root: Path) -> Path:
    """The folder data/ of a data root, or the root itself where it is that folder."""
    for folder in (root / "data", root):
        if (folder / "metadata").is_dir():
            return folder
    problem = "has no data/metadata folder" if root.is_dir() else "there is no such folder"
    raise BadInput(problem, where=root, accepted=_PREPARE)


def folder_of(data: Data) -> Path:
    """The folder to read; the synthetic one is written when it is not there."""
    if data.kind == "files":
        return Path(str(data.root)).expanduser()
    name = f"synthetic-{data.size}-{data.seed}-v{_VERSION}"
    return synthetic_folder("rainfall", name, lambda folder: synthetic.write(folder, data.size, data.seed))


def _check_units(meta: Path, data: Data) -> None:
    path = meta / "units.json"
    units = _json(path, dict)
    expected = {"rain": data.unit, "thresholds.json": "z", "p95_mmday.npy": data.unit, "p99_mmday.npy": data.unit}
    for key, unit in expected.items():
        if key not in units:
            raise BadInput("is missing: without it numbers in z and in mm cannot be told apart", where=path, key=key,
                           accepted=unit)  # fmt: skip
        if units[key] != unit:
            raise BadInput("is in another unit than the config says", where=path, key=key, value=units[key],
                           accepted=f"{unit}" + (" (data.unit)" if unit == data.unit else ""))  # fmt: skip


def _check_thresholds(data: Dataset, land: np.ndarray, meta: Path) -> None:
    """A threshold in the wrong unit is exceeded by far too much or by nothing."""
    train = data.rows("train")
    extreme, mm95, mm99 = (float(one) for one in data.thresholds)
    over = np.zeros(3)
    for at in np.array_split(train, max(1, len(train) // 256)):
        z = data.y[at, 0][:, land]
        mm = np.expm1(z * data.std[land] + data.mean[land])
        over += [(z.max(1) >= extreme).sum(), (mm >= mm95 - 1e-3).sum(), (mm >= mm99 - 1e-3).sum()]
    days, wide, narrow = over / [len(train), len(train) * land.sum(), len(train) * land.sum()]
    told = [
        ("thresholds.json", "P95", extreme, "z", days, _DAYS_OVER_P95, "training days reach it, of some 5%"),
        ("p95_mmday.npy", None, mm95, "mm", wide, _PIXELS_OVER_P95, "training land pixel-days reach it, of some 5%"),
        ("p99_mmday.npy", None, mm99, "mm", narrow, _PIXELS_OVER_P99, "training land pixel-days reach it, of some 1%"),
    ]
    for file, key, value, unit, share, (low, high), text in told:
        if not low < share <= high:
            raise BadInput(f"does not fit the data: {share:.2%} of {text}", where=meta / file, key=key, value=value,
                           accepted=f"a threshold in {unit}")  # fmt: skip
    if mm99 < mm95:
        raise BadInput("is below p95_mmday", where=meta / "p99_mmday.npy", value=mm99, accepted=f"above {mm95:g}")


def _statics(folder: Path, high: tuple[int, int], elevation: bool) -> np.ndarray:
    """Static maps in [0, 1]: [2 or 3, H, W] float32."""
    land = _array(folder / "land_sea_mask.npy", (1, *high), "float")
    if not np.isin(land, (0, 1)).all() or not land.any():
        mask = folder / "land_sea_mask.npy"
        raise BadInput("is not a mask with land", where=mask, accepted="1 on land, 0 on the sea")
    coast = _array(folder / "dist_to_coast_km.npy", (1, *high), "float")
    if coast.min() < 0:
        raise BadInput("has negative distances", where=folder / "dist_to_coast_km.npy", value=float(coast.min()))
    maps = [land, coast / max(float(coast.max()), 1e-6)]
    if elevation:
        height = _array(folder / "elevation_m.npy", (1, *high), "float")
        maps.append((height - height.min()) / max(float(np.ptp(height)), 1e-6))
    return np.concatenate(maps).astype(np.float32)


def _heavy(path: Path, day: np.ndarray) -> np.ndarray:
    """Which days are heavy, from categories.json: bool [days]."""
    held = _json(path, dict)
    named = [held.get(str(one)) for one in day]
    for one, name in zip(day, named, strict=True):
        if name not in store.CATEGORIES:
            raise BadInput("has no category" if name is None else "is no category", where=path, key=str(one),
                           value=... if name is None else name, accepted=", ".join(store.CATEGORIES))  # fmt: skip
    return np.array([str(name).startswith("heavy") for name in named])


def _threshold(path: Path) -> float:
    held = _json(path, dict)
    value = held.get("P95")
    if not isinstance(value, int | float) or isinstance(value, bool) or not np.isfinite(value):
        problem = "is not set" if value is None else "is no threshold"
        raise BadInput(problem, where=path, key="P95", value=... if value is None else value, accepted="a number in z")
    return float(value)


def _scalar(path: Path) -> float:
    value = _array(path, None, "float")
    if value.size != 1 or not float(value.reshape(-1)[0]) > 0:
        accepted = "one positive number in mm"
        raise BadInput("is no threshold", where=path, value=_short(value.tolist()), accepted=accepted)
    return float(value.reshape(-1)[0])


def _days(folder: Path, day: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """One file per day, stacked: float32 [days, *shape]."""
    missing = [int(one) for one in day if not (folder / _name(int(one))).is_file()]
    if missing:
        raise BadInput(f"{len(missing)} days of split.json have no file", where=folder, value=_name(missing[0]))
    stacked = np.empty((len(day), *shape), np.float32)
    for i, one in enumerate(day):
        stacked[i] = _array(folder / _name(int(one)), shape, "float32")
    return stacked


def _name(day: int) -> str:
    return f"day_{day:06d}.npy"


def _array(path: Path, shape: tuple[int, ...] | None, kind: str) -> np.ndarray:
    """The array in a .npy file, checked for shape, type (`float32`, or any `float`) and numbers that are not finite."""
    if not path.is_file():
        raise BadInput("there is no such file", where=path, accepted=_PREPARE)
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        what = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise BadInput(f"is not a whole .npy file ({what})", where=path) from None
    dtype = getattr(array, "dtype", "an archive")
    if dtype != np.float32 and (kind == "float32" or getattr(dtype, "kind", "") != "f"):
        raise BadInput("is of another type", where=path, value=str(dtype), accepted=kind)
    if shape is not None and array.shape != tuple(shape):
        raise BadInput("is of another shape", where=path, value=list(array.shape), accepted=str(list(shape)))
    if not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))
        raise BadInput(f"has {len(where)} cells that are not finite, the first at {where[0].tolist()}", where=path)
    return array


def _json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise BadInput("there is no such file", where=path, accepted=_PREPARE) from None
    except (OSError, ValueError) as error:
        raise BadInput(f"is not whole JSON ({str(error).splitlines()[0][:80]})", where=path) from None
    if not isinstance(content, kind):
        raise BadInput("does not hold a mapping", where=path, value=_short(content))
    return content


def _whole(held: Mapping[str, Any], key: str, path: Path) -> int:
    value = held.get(key)
    if type(value) is not int or value < 1:
        raise BadInput("is no size", where=path, key=key, value=value, accepted="a whole number of pixels")
    return value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else text[:57] + "..."
