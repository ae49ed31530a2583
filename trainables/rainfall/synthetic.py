"""Writes synthetic rain in the real layout: organised storms over a peninsula, with the real data's marginal and tail.

`write(root, size, seed)` writes train, val and test days as `store.write` does for real ones. Rain is a Gaussian field
(an intensity of the day, a smooth large-scale part, a small-scale part), pushed through the marginal of land
pixel-days that follows from the original's thresholds: dry mass, gamma body, generalised Pareto tail above 11.7 mm. The
predictor lacks a hidden intensity and pattern and everything smaller than its cells, which the code z has to carry.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.special import gammaincinv, ndtr

from buttress.trainables.rainfall import store

CHANNELS = ("tas", "pr", "huss", "sfcWind", "tasmax", "tasmin")
#: Above P90 = 11.7 mm (exceeded by 0.10 of the land pixel-days): shape and scale of a generalised Pareto distribution.
#: They give P95 20.1 and P99 43.6 mm, the original's figures; 500 mm is more than any station of Florida has seen.
TAIL_FROM, TAIL_SHARE, TAIL_SHAPE, TAIL_SCALE, CAP = 11.7, 0.10, 0.16, 11.5, 500.0
WET_SHARE = 0.42  # of land pixel-days
BODY_SHAPE = 0.6  # of the gamma between the dry mass and the tail
#: Variance shares of the Gaussian field: intensity of the day and a smooth pattern, of each a part that predictors know
#: and a hidden one; the rest is small-scale. The day's share makes storms organised (heavy days: three quarters of the
#: land wet, 20 mm on average); the hidden parts are what a few latent dimensions can carry.
DAY, HIDDEN_DAY, LARGE, HIDDEN_LARGE = 0.07, 0.08, 0.15, 0.20
DRIFT = 0.15  # deviations by which val and test days are wetter: twice as many of them are heavy
PERSISTENCE = 0.6  # of the weather from day to day


@dataclass(frozen=True)
class Size:
    """How large a data set: days per split, rows and columns of predictor and target, km per target cell."""

    days: tuple[int, int, int]
    low: tuple[int, int] = (13, 11)
    factor: int = 12
    cell_km: float = 4.0
    heavy_pixels: int = 25
    pooled: bool = False  # one mean and deviation for all pixels: for few days

    @property
    def high(self) -> tuple[int, int]:
        return self.low[0] * self.factor, self.low[1] * self.factor


#: `full` is the original's. The others see the same weather through coarser pixels; heavy days by area.
SIZES = {
    "full": Size((9928, 2482, 1825)),
    "sample": Size((16, 4, 4), pooled=True),  # a few days of full size
    "small": Size((640, 120, 80), low=(7, 6), factor=4, cell_km=16.0, heavy_pixels=2),
    "tiny": Size((48, 16, 12), low=(5, 4), factor=4, cell_km=24.0, heavy_pixels=2),
}


def write(root: Path, size: str, seed: int) -> Path:
    """Write the data set `size` to the folder `root` (replaced if it is there) and return it."""
    one, random = SIZES[size], np.random.default_rng([seed, sum(SIZES[size].days)])
    land = peninsula(one.high, random)
    total = sum(one.days)
    rain = np.empty((total, *one.high), np.float32)
    predictors = np.empty((total, len(CHANNELS), *one.low), np.float32)
    weather = _Weather(one, random)
    for day in range(total):
        rain[day], predictors[day] = weather.day(drifted=day >= one.days[0])
    ends = np.cumsum((0, *one.days))
    splits = {name: range(ends[i], ends[i + 1]) for i, name in enumerate(store.SPLITS)}
    choices = store.Choices(
        cell_km=one.cell_km, heavy_pixels=one.heavy_pixels, pooled=one.pooled, logged=(CHANNELS.index("pr"),)
    )
    part = root.with_name(root.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    store.write(part, rain, predictors, land, splits, choices, {"source": f"synthetic {size}, seed {seed}"})
    shutil.rmtree(root, ignore_errors=True)
    return part.rename(root)


def rain_of(g: np.ndarray) -> np.ndarray:
    """g (standard normal) -> mm with the marginal of land pixel-days: dry, gamma up to 11.7 mm, Pareto above."""
    u = ndtr(g)
    mm = np.zeros_like(u)
    body = (u > 1 - WET_SHARE) & (u <= 1 - TAIL_SHARE)
    top = (WET_SHARE - TAIL_SHARE) / WET_SHARE  # share of the wet that is body
    within = (u[body] - (1 - WET_SHARE)) / WET_SHARE
    mm[body] = TAIL_FROM * gammaincinv(BODY_SHAPE, within) / gammaincinv(BODY_SHAPE, top)
    tail = u > 1 - TAIL_SHARE
    beyond = np.maximum((1 - u[tail]) / TAIL_SHARE, 1e-300)
    mm[tail] = TAIL_FROM + TAIL_SCALE / TAIL_SHAPE * (beyond**-TAIL_SHAPE - 1)
    return np.minimum(mm, CAP)


def peninsula(shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """A blob of land [H, W] (bool) that hangs from the upper edge, some 45 % of the grid."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]]
    y, x = rows / shape[0], columns / shape[1]
    rough = gaussian_filter(random.standard_normal(shape), (0.06 * shape[0], 0.06 * shape[1]), mode="nearest")
    width = 0.38 - 0.22 * y + 0.06 * rough / rough.std()
    return (np.abs(x - 0.45 - 0.12 * y) < width) & (y < 0.93)


class _Weather:
    """Day after day of rain and predictors; the large-scale state has a memory."""

    def __init__(self, size: Size, random: np.random.Generator) -> None:
        self.size, self.random = size, random
        self.pixel = size.cell_km / 4.0  # of the original's 4 km pixels in a side of ours
        self.large, self.level = self._smooth(60.0), self._one()
        self.own = [self._coarse() for _ in CHANNELS]

    def day(self, *, drifted: bool) -> tuple[np.ndarray, np.ndarray]:
        """Rain [H, W] in mm and raw predictors [C, h, w]."""
        keep, new = PERSISTENCE, np.sqrt(1 - PERSISTENCE**2)
        self.level = keep * self.level + new * self._one()
        self.large = keep * self.large + new * self._smooth(60.0)
        small = self._smooth(self.random.uniform(5.0, 15.0))
        hidden = np.sqrt(HIDDEN_DAY) * self._one() + np.sqrt(HIDDEN_LARGE) * self._smooth(60.0)
        rest = 1 - DAY - HIDDEN_DAY - LARGE - HIDDEN_LARGE
        known = np.sqrt(DAY) * self.level + np.sqrt(LARGE) * self.large + np.sqrt(rest) * small
        if drifted:
            known = known + DRIFT
        seen = known / np.sqrt(1 - HIDDEN_DAY - HIDDEN_LARGE)
        rain = rain_of(known + hidden)
        return rain.astype(np.float32), self._predictors(rain_of(seen), seen)

    def _predictors(self, shown: np.ndarray, seen: np.ndarray) -> np.ndarray:
        keep, new = PERSISTENCE, np.sqrt(1 - PERSISTENCE**2)
        self.own = [keep * own + new * self._coarse() for own in self.own]
        wet = _block_mean(seen, self.size.factor)
        tas, _, huss, wind, high, low = self.own
        noise = self.random.lognormal(0.0, 0.15, size=wet.shape)
        temperature = 295 + 4 * tas - 0.8 * wet
        return np.stack(
            [
                temperature,
                _block_mean(shown, self.size.factor) * noise,
                0.014 + 0.002 * (0.6 * huss + 0.8 * wet),
                np.maximum(0.1, 4 + 1.2 * wind + 0.5 * wet),
                temperature + 4 + 0.8 * high - 0.5 * wet,
                temperature - 4 + 0.8 * low,
            ]
        ).astype(np.float32)

    def _one(self) -> float:
        return float(self.random.standard_normal())

    def _smooth(self, length: float) -> np.ndarray:
        """A Gaussian field [H, W] of unit variance; `length`: correlation length in 4 km pixels."""
        return _unit(self.random.standard_normal(self.size.high), length / self.pixel / np.sqrt(2))

    def _coarse(self) -> np.ndarray:
        return _unit(self.random.standard_normal(self.size.low), 2.5)


def _unit(noise: np.ndarray, sigma: float) -> np.ndarray:
    """White noise smoothed by a periodic Gaussian of `sigma` cells, scaled by what its variance is expected to be."""
    spectrum = np.ones(1)
    for axis, n in enumerate(noise.shape):
        one = np.exp(-2 * (np.pi * sigma * np.fft.fftfreq(n)) ** 2)
        spectrum = spectrum * one.reshape([-1 if i == axis else 1 for i in range(noise.ndim)])
    field = np.fft.ifft2(np.fft.fft2(noise) * spectrum).real
    return field / np.sqrt((spectrum**2).mean())


def _block_mean(field: np.ndarray, factor: int) -> np.ndarray:
    rows, columns = field.shape[0] // factor, field.shape[1] // factor
    return field.reshape(rows, factor, columns, factor).mean((1, 3))
