"""Reads the session layout: one folder per drive or flight with ready grids and a pose file per frame.

    root/<session>/{images,lidar,poses,occupancy}/        drone_... and rover_... name the agent
    occupancy/NNNNNN_occupancy.npz   key `occupancy`, uint8 [X, Y, Z]
    poses/NNNNNN.json                position, orientation, velocity; or pose_13d

Each session becomes a `Sequence`, whose grids are read on demand. Clouds and images are not read: training needs
neither.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path

import numpy as np

from buttress.errors import BadInput
from buttress.trainables.occupancy.config import Data
from buttress.trainables.occupancy.poses import clipped, from_json
from buttress.trainables.occupancy.sequences import Sequence, chosen
from buttress.trainables.occupancy.voxels import Grid

FOLDERS = ("images", "lidar", "poses", "occupancy")


def find(root: Path, data: Data) -> list[Path]:
    """The session folders under `root` (or `root` itself), by name; those called dummy are left out, as originally."""
    inside = [root, *(sorted(root.iterdir()) if root.is_dir() else [])]
    found = [folder for folder in inside if _is_session(folder) and "dummy" not in folder.name.lower()]
    if not found:
        raise BadInput(
            "holds no session", where=root, key="data.path", accepted=f"folders with {', '.join(FOLDERS)} inside"
        )
    return chosen(found, data)


def _is_session(folder: Path) -> bool:
    return all((folder / name).is_dir() for name in FOLDERS)


def files(folder: Path) -> list[Path]:
    """Everything that `read` depends on."""
    return sorted([*(folder / "occupancy").glob("*.npz"), *(folder / "poses").glob("*.json")])


def read(folder: Path, data: Data, grid: Grid) -> Sequence:
    """One session; raises `BadInput` for a frame that cannot be used, unless `data.bad_frames` says to drop it."""
    grids = sorted((folder / "occupancy").glob("*_occupancy.npz"))
    if not grids:
        raise BadInput("the session has no frame", where=folder / "occupancy", accepted="NNNNNN_occupancy.npz")
    kept, poses, dropped = [], [], []
    for place, path in enumerate(grids):
        try:
            poses.append(_pose(folder / "poses" / f"{path.name.removesuffix('_occupancy.npz')}.json"))
            kept.append(place)
        except BadInput as error:
            if data.bad_frames == "refuse":
                raise
            dropped.append(str(error))
    stems = {path.name.removesuffix("_occupancy.npz") for path in grids}
    surplus = sorted(path for path in (folder / "poses").glob("*.json") if path.stem not in stems)
    if surplus and data.bad_frames == "refuse":
        raise BadInput(
            f"{len(surplus)} of the poses match no frame of occupancy/", where=surplus[0],
            accepted="NNNNNN.json for each NNNNNN_occupancy.npz, or data.bad_frames: drop",
        )  # fmt: skip
    stacked = np.stack(poses) if poses else np.zeros((0, 13))
    return Sequence(
        name=folder.name,
        aerial=folder.name.startswith("drone_"),
        frames=np.array(kept, dtype=np.int64),
        length=len(grids),
        poses=clipped(stacked, data.max_linear_velocity, data.max_angular_velocity),
        sources=tuple(grids[place] for place in kept),
        dropped=dropped,
        read_grid=lambda path: read_grid(path, grid),
    )


def _pose(path: Path) -> np.ndarray:
    try:
        content = json.loads(path.read_text())
    except OSError:
        accepted = "a pose per frame, or data.bad_frames: drop"
        raise BadInput("the frame has no pose", where=path, accepted=accepted) from None
    except ValueError:
        raise BadInput("the pose is not JSON", where=path) from None
    try:
        if not isinstance(content, dict):
            raise ValueError("it is no mapping")
        return from_json(content)
    except (ValueError, TypeError) as error:
        raise BadInput(
            f"the pose cannot be used: {error}", where=path,
            accepted="pose_13d, or position {x, y, z} and orientation {x, y, z, w}",
        ) from None  # fmt: skip


def read_grid(path: Path, grid: Grid) -> np.ndarray:
    """The occupied cells of one npz, bool [X, Y, Z]; a cell counts as occupied when its value is above 0."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "occupancy" not in archive:
                raise BadInput("has no array `occupancy`", where=path, accepted=", ".join(archive.files) or None)
            array = archive["occupancy"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"not a whole npz file ({type(error).__name__})", where=path) from None
    if array.shape != grid.cells:
        raise BadInput(
            f"the grid is {_by(array.shape)}, data.point_cloud_range and data.voxel_size make {_by(grid.cells)}",
            where=path, key="occupancy", accepted=f"{_by(grid.cells)}, or another range or voxel size",
        )  # fmt: skip
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadInput("the grid has values that are not finite", where=path, key="occupancy")
    return np.asarray(array > 0)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
