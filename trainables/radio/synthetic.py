"""Writes synthetic radio maps in RadioMapSeer's layout: cities of blocks, transmitters in the streets, path gain.

`write(root, size, seed)` writes `png/buildings_complete/{m}.png`, `png/antennas/{m}_{t}.png`, `antenna/{m}.json` and
`gain/DPM/{m}_{t}.png` for maps m = 0, 1, ... and transmitters t = 0, 1, ... A scene is 256 m a side at every size; a
smaller one is the same city seen through coarser pixels. Gain follows the real maps' free-space line, 1 - 0.26 log10(d)
in grey (26 dB a decade, -47 dB at 1 m), less what the walls take on the straight ray, and is 0 inside buildings.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from buttress.trainables.radio.config import PIXELS

SIDE_M = 256.0  # of a scene
#: Grey = 1 + (path loss + 47 dB) / 100: path losses of -147 to -47 dB become 0 to 1.
DECADE = 0.26  # grey lost per tenfold distance: the upper edge of the real maps, where nothing stands in the way
EXPONENT_SPREAD = 0.02  # of DECADE, between maps
WALL = (0.05, 0.15)  # grey lost per building on the ray, by building: 5 to 15 dB
MOST = 0.30  # grey: what buildings take at most; waves go around them (the dominant path is seldom the straight one)
SOFT_M = 3.0  # width of a shadow's edge
COVERAGE = (0.12, 0.34)  # of a city by buildings; the real sample has 0.25
BLOCK_M = (8.0, 40.0)  # sides of a building
SPARSE, DENSE = 0.01, 0.42  # of the first and second map: both kinds occur


@dataclass(frozen=True)
class Size:
    maps: int
    transmitters: int
    pixels: int


SIZES = {
    "full": Size(100, 16, PIXELS["full"]),
    "small": Size(60, 8, PIXELS["small"]),
    "tiny": Size(24, 4, PIXELS["tiny"]),
}


def write(root: Path, size: str, seed: int) -> Path:
    """Write the maps of `size` to the folder `root` (replaced if it is there) and return it."""
    one = SIZES[size]
    part = root.with_name(root.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for name in ("png/buildings_complete", "png/antennas", "gain/DPM", "antenna"):
        (part / name).mkdir(parents=True)
    for number in range(one.maps):
        random = np.random.default_rng([seed, one.pixels, number])
        city = City(one.pixels, random, {0: SPARSE, 1: DENSE}.get(number))
        _save(part / f"png/buildings_complete/{number}.png", np.where(city.taken, 255, 0))
        sites = city.streets(one.transmitters)
        corner = [[int(column), int(one.pixels - 1 - row)] for row, column in sites]  # x, and y from below
        (part / f"antenna/{number}.json").write_text(json.dumps(corner))
        for t, (row, column) in enumerate(sites):
            antenna = np.zeros((one.pixels, one.pixels))
            antenna[row, column] = 255
            _save(part / f"png/antennas/{number}_{t}.png", antenna)
            _save(part / f"gain/DPM/{number}_{t}.png", np.rint(255 * city.gain(row, column)))
    shutil.rmtree(root, ignore_errors=True)
    return part.rename(root)


class City:
    """Buildings on a grid: `taken` [n, n] (bool), and the loss of each building's walls, `walls` [n, n] in grey."""

    def __init__(self, pixels: int, random: np.random.Generator, coverage: float | None = None) -> None:
        self.pixels, self.random, self.metres = pixels, random, SIDE_M / pixels
        self.taken = np.zeros((pixels, pixels), bool)
        self.walls = np.zeros((pixels, pixels))
        wanted = random.uniform(*COVERAGE) if coverage is None else coverage
        tilt = random.uniform(0, np.pi / 2)  # the street grid's
        y, x = (np.mgrid[0:pixels, 0:pixels] + 0.5) * self.metres
        while self.taken.mean() < wanted:
            shape = self._building(x, y, tilt)
            self.walls[shape] = random.uniform(*WALL)
            self.taken |= shape
        self.decade = DECADE + EXPONENT_SPREAD * random.standard_normal() / 2

    def _building(self, x: np.ndarray, y: np.ndarray, tilt: float) -> np.ndarray:
        """A rectangle or an L, most of them along the street grid: bool [n, n]."""
        random = self.random
        angle = tilt if random.random() < 0.85 else random.uniform(0, np.pi / 2)
        centre = random.uniform(0, SIDE_M, 2)
        along = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
        across = (y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle)
        longer, shorter = np.sort(random.uniform(*BLOCK_M, 2) * random.uniform(0.5, 1.0))[::-1] / 2
        shape = (abs(along) <= longer) & (abs(across) <= shorter)
        if random.random() < 0.35:
            shape &= ~((along > 0) & (across > 0))
        return shape

    def streets(self, count: int) -> np.ndarray:
        """Pixels (row, column) that are free, no two the same, in the inner part of the scene: int [count, 2]."""
        edge = self.pixels // 6
        free = ~self.taken
        free[:edge], free[-edge:], free[:, :edge], free[:, -edge:] = False, False, False, False
        return self.random.permutation(np.argwhere(free))[:count]

    def gain(self, row: int, column: int) -> np.ndarray:
        """Grey [n, n] in [0, 1] of a transmitter in the middle of a free pixel."""
        rows, columns = np.mgrid[0 : self.pixels, 0 : self.pixels]
        distance = np.hypot(rows - row, columns - column) * self.metres
        lost = MOST * -np.expm1(-self._walls(row, column, rows - row, columns - column) / MOST)
        lost = gaussian_filter(lost, SOFT_M / self.metres, mode="nearest")
        grey = 1.0 - self.decade * np.log10(np.maximum(distance, 1.0)) - lost
        grey[row, column] = 1.0
        grey[self.taken] = 0.0
        return np.clip(grey, 0.0, 1.0)

    def _walls(self, row: int, column: int, down: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Grey lost to buildings that the straight ray enters on its way to the pixels at (down, right) of (row,
        column); each building counts where the ray enters it."""
        n = self.pixels
        rays, steps = 4 * n, np.arange(0.0, 1.45 * n, 0.7)  # pixels
        angle = np.arange(rays) * (2 * np.pi / rays)
        at_row = np.rint(row + np.sin(angle)[:, None] * steps).astype(np.int32)
        at_column = np.rint(column + np.cos(angle)[:, None] * steps).astype(np.int32)
        inside = (at_row >= 0) & (at_row < n) & (at_column >= 0) & (at_column < n)
        place = at_row.clip(0, n - 1) * n + at_column.clip(0, n - 1)
        taken = self.taken.ravel()[place] & inside
        entered = taken.copy()
        entered[:, 1:] &= ~taken[:, :-1]
        lost = np.cumsum(entered * self.walls.ravel().astype(np.float32)[place], axis=1)
        ray = np.rint(np.arctan2(down, right) / (2 * np.pi) * rays).astype(int) % rays
        step = np.minimum(np.rint(np.hypot(down, right) / 0.7).astype(int), len(steps) - 1)
        return np.asarray(lost[ray, step], dtype=float)


def _save(path: Path, grey: np.ndarray) -> None:
    Image.fromarray(grey.astype(np.uint8)).save(path)
