"""Writes synthetic drives through worlds of boxes in the real layouts, so that the real loaders read them.

A scene is a world of 6 to 12 static boxes and 2 to 4 moving ones that stand on the ground, sampled densely and always
alike on their surfaces, and an ego that drives an arc through it; what its sensor sees is a cloud in its own
coordinates. `written(folder, data)` writes sessions (npz grids, pose json, clouds) or scenes (txt clouds, list of 4x4
poses). The grid is the config's. There is no full ground layer: one of 121 layers would be all of the 0.83 % that a
frame holds, and a network that has learnt it has solved the set (that set is `data.target: plane`, a control).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from buttress.trainables.occupancy.config import Data
from buttress.trainables.occupancy.poses import ANGULAR, LINEAR, POSITION, ROTATION, matrix, velocities
from buttress.trainables.occupancy.voxels import Grid, to_ego, to_world

VERSION = 3
FRAME_SECONDS = 0.5
GROUND = (0.05, 0.45)  # height of the terrain that boxes stand on, as a share of the grid: it differs by scene


@dataclass(frozen=True)
class Size:
    """How much to write, and the share of voxels that are occupied."""

    scenes: int
    frames: int
    rate: float = 0.0083
    leaving: int = 0  # scenes whose boxes are out of range from the middle on: all-zero futures


SIZES = {
    "full": Size(10, 30),
    "small": Size(96, 20, leaving=1),
    "sparse": Size(16, 20, rate=0.0002),
    "tiny": Size(5, 14, leaving=1),
}


@dataclass(frozen=True)
class Scene:
    """What a sensor saw: poses [frames, 13] in the world, clouds in the sensor's coordinates."""

    name: str
    poses: np.ndarray
    clouds: tuple[np.ndarray, ...]


def written(folder: Path, data: Data) -> Path:
    """The folder with the scenes that `data` asks for, under `folder`; written where it is not there yet."""
    about = [VERSION, data.layout, data.size, data.target, data.seed, data.point_cloud_range, data.voxel_size]
    mark = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:10]
    path = folder / f"synthetic-{data.layout}-{data.size}-{data.target}-{data.seed}-{mark}"
    if path.is_dir():
        return path
    building = folder / f".{path.name}.{os.getpid()}"
    shutil.rmtree(building, ignore_errors=True)
    write(building, data)
    try:
        building.rename(path)
    except OSError:  # another process was faster
        shutil.rmtree(building, ignore_errors=True)
    return path


def write(root: Path, data: Data) -> Path:
    """Writes the scenes of `data` in its layout under `root`; the same bytes for the same settings."""
    grid = Grid.of(data.point_cloud_range, data.voxel_size, data.grid)
    for scene in scenes(SIZES[data.size], grid, data.seed, data.target):
        if data.layout == "sessions":
            write_session(root / scene.name, scene, grid)
        else:
            write_scene(root / scene.name, scene)
    return root


def scenes(size: Size, grid: Grid, seed: int, target: str = "boxes") -> Iterator[Scene]:
    """The scenes of a set, one after the other; each a function of (seed, its number, size, grid)."""
    for number in range(size.scenes):
        random = np.random.default_rng([seed, number, *grid.cells])
        agent = "drone" if number % 7 < 5 else "rover"  # 50 to 20, as in the original's corpus
        leaves = number >= size.scenes - size.leaving
        yield _scene(f"{agent}_{number:03d}", random, grid, size, target, leaves)


def _scene(name: str, random: np.random.Generator, grid: Grid, size: Size, target: str, leaves: bool) -> Scene:
    poses = drive(random, grid, size.frames)
    if target == "plane":
        layer = _layer(grid)
        return Scene(name, poses, (layer,) * size.frames)
    cell = np.array(grid.size)
    static, moving, speeds = _boxes(random, grid, poses, size.rate)
    clouds = []
    for frame, pose in enumerate(poses):
        shifted = [box + (frame - size.frames / 2) * speed for box, speed in zip(moving, speeds, strict=True)]
        cloud = to_ego(np.concatenate([*static, *shifted]), pose)
        if leaves and frame >= size.frames // 3:
            cloud = cloud + np.array([0.0, 0.0, 4.0 * (grid.high[2] - grid.low[2])])  # far above the sensor's range
        clouds.append(cloud + 1e-3 * cell)  # off the borders of cells, on which a rounding would decide
    return Scene(name, poses, tuple(clouds))


def drive(random: np.random.Generator, grid: Grid, frames: int) -> np.ndarray:
    """Poses [frames, 13] on an arc: 0.2 to 1 voxel and up to 1.5 degrees a frame, somewhere in the world."""
    step = random.uniform(0.2, 1.0) * grid.size[0]
    turn = random.uniform(-0.025, 0.025)
    yaw = random.uniform(-np.pi, np.pi) + turn * np.arange(frames)
    poses = np.zeros((frames, 13))
    moves = step * np.stack([np.cos(yaw), np.sin(yaw), np.zeros(frames)], axis=1)
    begin = np.append(random.uniform(-500, 500, 2), 0.0)
    poses[:, POSITION] = begin + np.concatenate([np.zeros((1, 3)), np.cumsum(moves[:-1], axis=0)])
    poses[:, ROTATION] = np.stack([np.cos(yaw / 2), 0 * yaw, 0 * yaw, np.sin(yaw / 2)], axis=1)
    return velocities(poses, np.full(frames - 1, FRAME_SECONDS), 1e9, 1e9)


def _boxes(
    random: np.random.Generator, grid: Grid, poses: np.ndarray, rate: float
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Surface points of static and of moving boxes in the world, and the moving ones' steps.

    The boxes' common scale is found by bisection, so that the mean frame has the wanted share of occupied voxels.
    """
    middle = poses[len(poses) // 2]
    kinds = [False] * int(random.integers(6, 13)) + [True] * int(random.integers(2, 5))
    low, high, cell = np.array(grid.low), np.array(grid.high), np.array(grid.size)
    half = (high - low) / 2
    places = [low + half + random.uniform(-0.75, 0.75, 3) * half for _ in kinds]
    ground = low[2] + random.uniform(*GROUND) * grid.cells[2] * cell[2]
    shapes = [random.uniform(0.5, 1.5, 3) for _ in kinds]
    steps = [np.append(random.uniform(-1, 1, 2), 0.0) for _ in kinds]
    speeds = [random.uniform(0, 0.8) * cell[0] * step / np.linalg.norm(step) for step in steps]
    seen = poses[:: max(1, len(poses) // 6)]

    def built(scale: float) -> list[np.ndarray]:
        local = []
        for place, shape in zip(places, shapes, strict=True):
            size = scale * shape * cell
            local.append(_surface(np.array([*place[:2], ground + size[2] / 2]), size, cell))
        return [to_world(box, middle) for box in local]

    def share(scale: float) -> float:
        cloud = np.concatenate(built(scale))
        return float(np.mean([grid.voxelise(to_ego(cloud, pose)).mean() for pose in seen]))

    smallest, largest = 0.3, float(min(grid.cells))
    for _ in range(14):
        scale = np.sqrt(smallest * largest)
        smallest, largest = (scale, largest) if share(scale) < rate else (smallest, scale)
    boxes = built(np.sqrt(smallest * largest))
    static = [box for box, moves in zip(boxes, kinds, strict=True) if not moves]
    moving = [box for box, moves in zip(boxes, kinds, strict=True) if moves]
    return static, moving, [speed for speed, moves in zip(speeds, kinds, strict=True) if moves]


def _surface(centre: np.ndarray, size: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Points on the six faces of a box, less than half a voxel apart, always the same ones."""
    counts = np.maximum(2, np.ceil(size / (0.45 * cell)).astype(int) + 1)
    axes = [np.linspace(-s / 2, s / 2, count) for s, count in zip(size, counts, strict=True)]
    faces = []
    for axis in range(3):
        for side in (axes[axis][0], axes[axis][-1]):
            parts = [axes[i] if i != axis else np.array([side]) for i in range(3)]
            faces.append(np.stack(np.meshgrid(*parts, indexing="ij"), axis=-1).reshape(-1, 3))
    return np.asarray(centre + np.concatenate(faces))


def _layer(grid: Grid) -> np.ndarray:
    """The centres of all cells of layer 1: the original generator's filled ground, in every frame the same."""
    x, y = (np.arange(n) for n in grid.cells[:2])
    cells = np.stack(np.meshgrid(x, y, [min(1, grid.cells[2] - 1)], indexing="ij"), axis=-1).reshape(-1, 3)
    return np.asarray(np.array(grid.low) + (cells + 0.5) * np.array(grid.size))


# ---- the layouts


def write_session(folder: Path, scene: Scene, grid: Grid) -> None:
    """occupancy/NNNNNN_occupancy.npz, poses/NNNNNN.json and lidar/NNNNNN_LIDAR.npy; images/ stays empty."""
    for name in ("images", "lidar", "poses", "occupancy"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (pose, cloud) in enumerate(zip(scene.poses, scene.clouds, strict=True)):
        occupancy = grid.voxelise(cloud).astype(np.uint8)
        np.savez_compressed(folder / "occupancy" / f"{number:06d}_occupancy.npz", occupancy=occupancy)
        distance = np.linalg.norm(cloud, axis=1, keepdims=True)
        points = np.hstack([cloud, np.clip(1 - distance / 100, 0.1, 1)]).astype(np.float32)
        np.save(folder / "lidar" / f"{number:06d}_LIDAR.npy", points[:10_000])
        content = {
            "position": dict(zip("xyz", pose[POSITION].tolist(), strict=True)),
            "orientation": dict(zip("wxyz", pose[ROTATION].tolist(), strict=True)),
            "velocity": {
                "linear": dict(zip("xyz", pose[LINEAR].tolist(), strict=True)),
                "angular": dict(zip("xyz", pose[ANGULAR].tolist(), strict=True)),
            },
        }
        (folder / "poses" / f"{number:06d}.json").write_text(json.dumps(content))


def write_scene(folder: Path, scene: Scene, *, world: bool = False) -> None:
    """interval5_LIDAR/image<t>_lidar<t>.txt and sampleinfos_interpolated.json; `world`: clouds in world coordinates."""
    inside = folder / "interval5_LIDAR"
    inside.mkdir(parents=True, exist_ok=True)
    infos = []
    for number, (pose, cloud) in enumerate(zip(scene.poses, scene.clouds, strict=True)):
        stamp = f"{1_658_000_000 + FRAME_SECONDS * number:.6f}"
        points = to_world(cloud, pose) if world else cloud
        with (inside / f"image{stamp}_lidar{stamp}.txt").open("w") as file:
            np.savetxt(file, points, fmt="%.6f")
        transform = np.eye(4)
        transform[:3, :3], transform[:3, 3] = matrix(pose[ROTATION]), pose[POSITION]
        infos.append({"OriginalImageName": f"{stamp}.jpg", "T4x4": transform.tolist()})
    (folder / "sampleinfos_interpolated.json").write_text(json.dumps(infos))
