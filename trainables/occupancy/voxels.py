"""Aligns point clouds [n, 3] (metres) to the ego frame and voxelises them to bool grids [X, Y, Z].

Grids are packed to bits where they are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from buttress.trainables.occupancy.poses import POSITION, ROTATION, matrix


@dataclass(frozen=True)
class Grid:
    """Where the voxels are: corners and cell size in metres, cells along x, y, z."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    size: tuple[float, ...]
    cells: tuple[int, int, int]

    @classmethod
    def of(cls, corners: Sequence[float], size: Sequence[float], cells: tuple[int, int, int]) -> Grid:
        return cls(tuple(corners[:3]), tuple(corners[3:]), tuple(size), cells)

    @property
    def voxels(self) -> int:
        return int(np.prod(self.cells))

    def inside(self, points: np.ndarray) -> np.ndarray:
        """points[n, 3] -> bool [n]: min <= c < max on every axis."""
        return np.asarray(((points >= self.low) & (points < self.high)).all(axis=1))

    def voxelise(self, points: np.ndarray) -> np.ndarray:
        """points[n, 3] -> bool [X, Y, Z]: a cell with a point is occupied; no points, an empty grid.

        The index is clipped before it is truncated: what the cells do not cover of the range (0.75 m of z in the
        original's grid) counts to the last cell.
        """
        grid = np.zeros(self.cells, dtype=bool)
        kept = points[self.inside(points)]
        if len(kept):
            place = (kept - np.asarray(self.low)) / np.asarray(self.size)
            x, y, z = np.clip(place, 0, np.asarray(self.cells) - 1).astype(np.int64).T
            grid[x, y, z] = True
        return grid


@dataclass
class Alignment:
    """One window's way of putting its clouds into its grids; make a new one for every window.

    `align` is called frame by frame. As long as `origin` is None clouds go through R^T (p - t) (`ego_frame`), and the
    first cloud of which less than `ratio` comes to lie in range sets the origin for the rest of the window
    (`fallback`).

    Attributes:
        fallbacks: Clouds so far that R^T (p - t) did not bring into range.
        centred: Those of them that were centred instead; the others stay as they are.
    """

    grid: Grid
    ego_frame: bool = False
    fallback: bool = True
    ratio: float = 0.01
    origin: np.ndarray | None = None
    fallbacks: int = 0
    centred: int = 0

    def align(self, points: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """points[n, 3], pose[13] -> points in the frame of the grid, and what to subtract from the pose's position."""
        if not self.ego_frame:
            return points, None
        if self.origin is not None:
            return self._centre(points)
        local = to_ego(points, pose)
        if len(points) and self.grid.inside(local).mean() >= self.ratio:
            return local, None
        if self.fallback and len(points):
            self.origin = points.mean(axis=0)
            return self._centre(points)
        self.fallbacks += 1
        return points, None

    def _centre(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        assert self.origin is not None
        self.fallbacks += 1
        self.centred += 1
        return points - self.origin, self.origin


def to_ego(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """World points [n, 3] -> ego coordinates R^T (p - t), [n, 3]."""
    return np.asarray((points - pose[POSITION]) @ matrix(pose[ROTATION]))


def to_world(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Ego points [n, 3] -> world coordinates R p + t, [n, 3]."""
    return np.asarray(points @ matrix(pose[ROTATION]).T + pose[POSITION])


def pack(grid: np.ndarray) -> np.ndarray:
    """bool [X, Y, Z] -> uint8 [ceil(X Y Z / 8)]: an eighth of the bytes in the cache and on the way to the device."""
    return np.packbits(grid.reshape(-1))


def unpack(bits: np.ndarray, cells: Sequence[int]) -> np.ndarray:
    """uint8 [..., bytes] -> uint8 of 0 and 1 [..., X, Y, Z]."""
    flat = np.unpackbits(bits, axis=-1, count=int(np.prod(cells)))
    return flat.reshape(*bits.shape[:-1], *cells)
