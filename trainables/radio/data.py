"""Reads, checks and splits the radio maps of a RadioMapSeer folder.

The same loader reads real and synthetic maps: `gain/<simulation>/{map}_{transmitter}.png`, 8-bit grey, all of one size.
They are read once per node and kept as one memory-mapped array (`World.cache`). Buildings and antennas, which the first
stage does not use, are read by `check` alone. The original's splits share maps (the 601st map is in all three of
them, and its validation maps lie inside its test maps); these are disjoint.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from buttress.errors import BadInput
from buttress.trainables.radio import synthetic
from buttress.trainables.radio.config import Config, Data
from buttress.training.cache import synthetic_folder

Cache = Callable[[Any, Callable[[], Mapping[str, np.ndarray]]], dict[str, np.ndarray]]

SPLITS = ("train", "val", "test")
_VERSION = 1  # of the cached arrays and of the synthetic maps
_NAME = re.compile(r"(\d+)_(\d+)\.png")
_LAYOUT = "a RadioMapSeer folder, with gain/DPM/{map}_{transmitter}.png in it"


@dataclass(frozen=True)
class Dataset:
    """All images of a data set, by map and transmitter."""

    grey: np.ndarray  # uint8 [n, H, W]
    map: np.ndarray  # int64 [n]
    transmitter: np.ndarray  # int64 [n]
    part: np.ndarray  # int64 [n]: 0 train, 1 val, 2 test

    def rows(self, split: str) -> np.ndarray:
        """Positions of the images of `split`, int64, ascending."""
        return np.flatnonzero(self.part == SPLITS.index(split))

    @property
    def size(self) -> tuple[int, int]:
        return self.grey.shape[1], self.grey.shape[2]


def scaled(grey: np.ndarray) -> np.ndarray:
    """grey uint8 -> float32 in [-1, 1], of the same shape; 0 is -1 and 255 is 1."""
    return np.asarray(grey, dtype=np.float32) / 127.5 - 1.0


def load(data: Data, cache: Cache) -> Dataset:
    """The data set that `data` names; `cache` is `World.cache`. Raises `BadInput` for what cannot be used."""
    if data.kind == "synthetic":
        key: dict[str, Any] = {"synthetic": data.size, "seed": data.seed}
    else:
        folder = gain_folder(Path(str(data.root)).expanduser(), data.simulation)
        key = {"folder": str(folder.resolve()), "state": _state(folder)}
    key |= {"transmitters": data.transmitters, "shrink": data.shrink}
    found = cache({"radio": _VERSION, **key}, lambda: read(folder_of(data), data))
    part = split_of(found["map"], found["transmitter"], data)
    return Dataset(found["grey"], found["map"], found["transmitter"], part)


def read(root: Path, data: Data) -> dict[str, np.ndarray]:
    """`grey` uint8 [n, H, W], `map` and `transmitter` int64 [n], ordered by map and transmitter."""
    folder = gain_folder(root, data.simulation)
    names = sorted((int(match[1]), int(match[2])) for match in map(_NAME.fullmatch, _files(folder)) if match)
    if data.transmitters is not None:
        names = [name for name in names if name[1] < data.transmitters]
    if not names:
        raise BadInput("holds no map", where=folder, accepted=_LAYOUT)
    first = _image(folder / "{}_{}.png".format(*names[0]), None)
    for side in first.shape:
        if side % data.shrink:
            problem = f"does not divide the {side} pixels of a side"
            raise BadInput(problem, where=folder, key="data.shrink", value=data.shrink)
    grey = np.empty((len(names), *(side // data.shrink for side in first.shape)), np.uint8)
    for at, (number, transmitter) in enumerate(names):
        grey[at] = _shrunk(_image(folder / f"{number}_{transmitter}.png", first.shape), data.shrink)
    numbers = np.array(names, dtype=np.int64)
    return {"grey": grey, "map": numbers[:, 0], "transmitter": numbers[:, 1]}


def split_of(number: np.ndarray, transmitter: np.ndarray, data: Data) -> np.ndarray:
    """map[n], transmitter[n] -> 0, 1 or 2 by image [n]: whole maps (or transmitters), shuffled by `split_seed`."""
    by_map = data.split == "map" or (data.split == "auto" and len(np.unique(number)) >= len(SPLITS))
    groups = number if by_map else transmitter
    names, of_image = np.unique(groups, return_inverse=True)
    what = "maps" if by_map else "transmitters"
    if len(names) < len(SPLITS):
        problem = f"cannot be split into train, val and test without overlap: {len(names)} {what}"
        raise BadInput(problem, key="data.split", value=data.split, accepted=f"{len(SPLITS)} {what} or more")
    held = [max(1, round(share * len(names))) for share in data.fractions[1:]]
    part = np.zeros(len(names), np.int64)
    order = np.random.default_rng(data.split_seed).permutation(len(names))
    part[order[: held[0]]] = 1
    part[order[held[0] : held[0] + held[1]]] = 2
    if not (part == 0).any():
        raise BadInput(f"leaves none of {len(names)} {what} for training", key="data.fractions",
                       value=list(data.fractions))  # fmt: skip
    return np.asarray(part[of_image])


def check(path: Path, config: Config) -> list[tuple[str, str]]:
    """What `buttress data check radio PATH` prints, as (what, finding). Raises `BadInput` as training would."""
    data = config.data.model_copy(update={"kind": "files", "root": str(path)})
    found = read(path, data)
    part = split_of(found["map"], found["transmitter"], data)
    one = Dataset(found["grey"], found["map"], found["transmitter"], part)
    rows, columns = one.size
    if problem := config.model.refuses(rows, columns):
        raise BadInput(problem, where=path, key="model")
    counts = sum(np.bincount(image.ravel(), minlength=256) for image in one.grey)  # by grey level, image by image
    maps = np.unique(one.map)
    per_map = np.unique(one.map, return_counts=True)[1]
    found_rows = [
        ("images", f"{len(one.grey):,} of {rows} x {columns} px, gain/{data.simulation}"),
        ("maps", f"{len(maps)}, ids {maps.min()} to {maps.max()}; "
                 f"{per_map.min()} to {per_map.max()} transmitters each"),
        ("grey", _described(np.asarray(counts))),
        ("latent map", "{} x {} x {}".format(config.model.embed_dim, *(side // config.model.ddconfig.downsampling
                                                                    for side in one.size))),
    ]  # fmt: skip
    for index, split in enumerate(SPLITS):
        at = part == index
        text = f"{int(at.sum()):,} images of {len(np.unique(one.map[at]))} maps"
        found_rows.append((f"split {split}", text))
    if len(maps) < len(SPLITS):
        found_rows.append(("warning", "split by transmitter: validation sees the buildings of training"))
    constant = [i for i, image in enumerate(one.grey) if image.min() == image.max()]
    if constant:
        name = f"{one.map[constant[0]]}_{one.transmitter[constant[0]]}.png"
        found_rows.append(("warning", f"{len(constant)} images are constant, the first is {name}"))
    return found_rows + _beside(inside(path), one)


def _described(counts: np.ndarray) -> str:
    """Pixels by grey level [256] -> mean, deviation, zeros, 99th percentile and maximum on the scale 0 to 1."""
    share, level = counts / counts.sum(), np.arange(256) / 255
    mean = float(share @ level)
    deviation = float(share @ (level - mean) ** 2) ** 0.5
    upper = level[np.searchsorted(share.cumsum(), 0.99)]
    return (f"mean {mean:.3f}, deviation {deviation:.3f}, {share[0]:.1%} zeros, 99 % below {upper:.2f}, "
            f"maximum {level[share > 0].max():.2f}")  # fmt: skip


def _beside(root: Path, data: Dataset) -> list[tuple[str, str]]:
    """Warnings of buildings and antennas that stage 2 would miss."""
    missing = []
    buildings = {number for number in np.unique(data.map)
                 if not (root / f"png/buildings_complete/{number}.png").is_file()}  # fmt: skip
    antennas = [one for one in zip(data.map, data.transmitter, strict=True)
                if not (root / "png/antennas/{}_{}.png".format(*one)).is_file()]  # fmt: skip
    for what, found in (("buildings", buildings), ("antennas", antennas)):
        if found:
            missing.append(("warning", f"{len(found)} images of {what} are missing: the second stage needs them"))
    return missing


def inside(root: Path) -> Path:
    """The RadioMapSeer folder: `root`, or the folder of that name in it."""
    for folder in (root, root / "RadioMapSeer"):
        if (folder / "gain").is_dir():
            return folder
    raise BadInput("has no folder gain" if root.is_dir() else "there is no such folder", where=root, accepted=_LAYOUT)


def gain_folder(root: Path, simulation: str) -> Path:
    folder = inside(root) / "gain" / simulation
    if not folder.is_dir():
        there = sorted(entry.name for entry in folder.parent.iterdir() if entry.is_dir())
        raise BadInput("there is no such simulation", where=folder.parent, key="data.simulation", value=simulation,
                       accepted=", ".join(there) or _LAYOUT)  # fmt: skip
    return folder


def folder_of(data: Data) -> Path:
    """The folder to read; the synthetic one is written when it is not there."""
    if data.kind == "files":
        return Path(str(data.root)).expanduser()
    name = f"synthetic-{data.size}-{data.seed}-v{_VERSION}"
    return synthetic_folder("radio", name, lambda folder: synthetic.write(folder, data.size, data.seed))


def _state(folder: Path) -> str:
    """A hash of names, sizes and times of the folder's files."""
    digest = hashlib.sha256()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        stat = entry.stat()
        digest.update(f"{entry.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _files(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError as error:
        raise BadInput(f"cannot be read ({error.strerror})", where=folder, accepted=_LAYOUT) from None


def _image(path: Path, shape: tuple[int, ...] | None) -> np.ndarray:
    """An 8-bit grey PNG as uint8 [H, W]."""
    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.asarray(image)
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        what = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise BadInput(f"cannot be read ({what})", where=path, accepted="an 8-bit grey PNG") from None
    if mode != "L":
        raise BadInput("is not a grey image", where=path, value=f"mode {mode}", accepted="an 8-bit grey PNG")
    if shape is not None and pixels.shape != shape:
        sizes = " x ".join(map(str, pixels.shape)), " x ".join(map(str, shape))
        raise BadInput("has another size than the others", where=path, value=sizes[0], accepted=sizes[1])
    return pixels


def _shrunk(grey: np.ndarray, factor: int) -> np.ndarray:
    """grey uint8 [H, W] -> block means [H / factor, W / factor], rounded."""
    if factor == 1:
        return grey
    rows, columns = grey.shape
    blocks = grey.reshape(rows // factor, factor, columns // factor, factor)
    return np.rint(blocks.mean((1, 3))).astype(np.uint8)
