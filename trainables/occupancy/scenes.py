"""Reads the scene layout: one folder per scene with a point cloud per frame and 4x4 poses.

    root/[interval5_CAM_LIDAR/]interval5_<scene>/interval5_LIDAR/*.{txt,pcd,bin,npy} + sampleinfos_interpolated.json
    root/<scene>/{velodyne,lidar,points}/* + poses.txt or poses_lidar.txt [+ calib.txt, times.txt]

Poses are a JSON list of {OriginalImageName, T4x4} (ego to world), a text file of rows with 12 or 16 numbers (a 3x4 or
4x4 matrix; KITTI's are of the left camera), or TUM's `t x y z qx qy qz qw`. Each scene becomes a `Sequence`, whose
clouds are read on demand. Velocities are finite differences.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from buttress.errors import BadInput
from buttress.trainables.occupancy import clouds
from buttress.trainables.occupancy.config import Data
from buttress.trainables.occupancy.poses import camera_to_lidar, from_matrices, is_rotation, matrix
from buttress.trainables.occupancy.sequences import Sequence, chosen

SAMPLE_INFOS = "sampleinfos_interpolated.json"
POSE_FILES = (SAMPLE_INFOS, "poses_lidar.txt", "poses.txt")
CLOUD_FOLDERS = ("velodyne", "lidar", "points")
FRAME_SECONDS = 0.1
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_STAMP = re.compile(r"image(\d+(?:\.\d+)?)_lidar")


def find(root: Path, data: Data) -> list[Path]:
    """The scene folders at or under `root` (two levels), by name."""
    levels = [root, *sorted(root.glob("*/")), *sorted(root.glob("*/*/"))] if root.is_dir() else []
    found = [folder for folder in levels if _clouds_of(folder) is not None]
    if not found:
        raise BadInput(
            "holds no scene", where=root, key="data.path",
            accepted=f"folders with intervalN_LIDAR/ or {'/, '.join(CLOUD_FOLDERS)}/ and {', '.join(POSE_FILES)}",
        )  # fmt: skip
    return chosen(found, data)


def _clouds_of(folder: Path) -> Path | None:
    """The folder of clouds inside a scene's folder."""
    inside = [folder / name for name in CLOUD_FOLDERS]
    inside += sorted(folder.glob("interval*_LIDAR"))
    return next((one for one in inside if one.is_dir()), None)


def files(folder: Path) -> list[Path]:
    """Everything that `read` depends on."""
    beside = [folder / name for name in (*POSE_FILES, "calib.txt", "times.txt")]
    return [*_frames(folder), *(path for path in beside if path.is_file())]


def _frames(folder: Path) -> list[Path]:
    inside = _clouds_of(folder)
    return sorted(path for path in inside.iterdir() if path.suffix.lower() in clouds.SUFFIXES) if inside else []


def read(folder: Path, data: Data) -> Sequence:
    """One scene; raises `BadInput` for poses that cannot be used or do not match the clouds."""
    frames = _frames(folder)
    if not frames:
        raise BadInput("the scene has no point cloud", where=folder, accepted=", ".join(clouds.SUFFIXES))
    path = next((folder / name for name in POSE_FILES if (folder / name).is_file()), None)
    if path is None:
        raise BadInput("the scene has no poses", where=folder, accepted=" or ".join(POSE_FILES))
    transforms, stamps = _sample_infos(path) if path.suffix == ".json" else (_text(path, folder, data), None)
    place, dropped = _matched(frames, transforms, stamps, path, data)
    kept = np.flatnonzero(place >= 0)
    return Sequence(
        name=folder.name,
        aerial=True,
        frames=kept,
        length=len(frames),
        poses=from_matrices(transforms[place[kept]]),
        seconds=_seconds(folder, len(frames), data)[kept],
        sources=tuple(frames[i] for i in kept),
        dropped=dropped,
        read_cloud=lambda source: clouds.read(source, data.bin_columns),
    )


def _matched(
    frames: list[Path], transforms: np.ndarray, stamps: list[str] | None, path: Path, data: Data
) -> tuple[np.ndarray, list[str]]:
    """Which pose is each cloud's (-1: none): by the image's time stamp in the cloud's name, else by place."""
    names = [_STAMP.search(frame.name) for frame in frames]
    if stamps is not None and any(names):
        by_stamp = {stamp: i for i, stamp in enumerate(stamps)}
        place = np.array([by_stamp.get(name[1], -1) if name else -1 for name in names])
        missing = [frames[i] for i in np.flatnonzero(place < 0)]
        what = "has no pose: no OriginalImageName holds its time stamp"
    else:
        if len(frames) != len(transforms) and (data.bad_frames == "refuse" or len(transforms) > len(frames)):
            raise BadInput(
                f"{len(transforms)} poses do not match the {len(frames)} point clouds of the scene", where=path,
                accepted="a pose per cloud" + ("" if len(transforms) > len(frames) else ", or data.bad_frames: drop"),
            )  # fmt: skip
        place = np.where(np.arange(len(frames)) < len(transforms), np.arange(len(frames)), -1)
        missing, what = frames[len(transforms) :], "has no pose"
    bad = [i for i in place[place >= 0] if not _usable(transforms[i])]
    if bad and data.bad_frames == "refuse":
        raise BadInput(
            f"pose {bad[0]} is no rigid motion (numbers that are not finite, or no rotation)", where=path,
            accepted="a rotation and a translation per row, or data.bad_frames: drop",
        )  # fmt: skip
    if missing and data.bad_frames == "refuse":
        raise BadInput(f"{missing[0].name} {what}", where=path, accepted="a pose per cloud, or data.bad_frames: drop")
    place = np.where(np.isin(place, bad), -1, place)
    dropped = [f"{one}: {what}" for one in missing] + [f"{path}: pose {i} is no rigid motion" for i in bad]
    return place, dropped


def _usable(transform: np.ndarray) -> bool:
    return bool(np.isfinite(transform).all()) and is_rotation(transform[:3, :3])


def _sample_infos(path: Path) -> tuple[np.ndarray, list[str]]:
    """The transforms [n, 3, 4] and each one's image time stamp."""
    try:
        entries = json.loads(path.read_text())
        transforms = np.array([entry["T4x4"] for entry in entries], dtype=np.float64).reshape(-1, 4, 4)
        names = [str(entry["OriginalImageName"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"the poses cannot be read ({type(error).__name__}: {str(error)[:60]})", where=path,
            accepted="a list of {OriginalImageName: ..., T4x4: 4 rows of 4 numbers}",
        ) from None  # fmt: skip
    stamps = [found[0] if (found := _NUMBER.search(name)) else name for name in names]
    return transforms[:, :3], stamps


def _text(path: Path, folder: Path, data: Data) -> np.ndarray:
    """Rows of 12 or 16 numbers, or TUM's 8, as transforms [n, 3, 4] of the LiDAR."""
    try:
        rows = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (OSError, ValueError) as error:
        problem = f"the poses cannot be read ({str(error)[:80]})"
        raise BadInput(problem, where=path, accepted="rows of 12 numbers") from None
    if rows.shape[1] == 8:
        return _tum(rows)
    if rows.shape[1] not in (12, 16):
        accepted = "12 (3x4), 16 (4x4) or 8 (TUM: t xyz quaternion)"
        raise BadInput(f"has rows of {rows.shape[1]} numbers", where=path, accepted=accepted)
    transforms = rows.reshape(len(rows), -1, 4)[:, :3]
    calibration = folder / "calib.txt"
    camera = data.poses == "camera" or (data.poses == "auto" and path.name == "poses.txt" and calibration.is_file())
    return camera_to_lidar(transforms, _calibration(calibration)) if camera else transforms


def _tum(rows: np.ndarray) -> np.ndarray:
    q = rows[:, [7, 4, 5, 6]]
    transforms = np.zeros((len(rows), 3, 4))
    transforms[:, :, :3] = matrix(q / np.maximum(np.linalg.norm(q, axis=1, keepdims=True), 1e-12))
    transforms[:, :, 3] = rows[:, 1:4]
    return transforms


def _calibration(path: Path) -> np.ndarray:
    try:
        lines = path.read_text().splitlines()
        row = next(line for line in lines if line.startswith(("Tr:", "Tr_velo_to_cam:")))
        return np.array(row.partition(":")[2].split(), dtype=np.float64).reshape(3, 4)
    except (OSError, StopIteration, ValueError):
        raise BadInput(
            "camera poses need the LiDAR's place", where=path, key="data.poses",
            accepted="a calib.txt with a line `Tr:` of 12 numbers, or data.poses: lidar",
        ) from None  # fmt: skip


def _seconds(folder: Path, count: int, data: Data) -> np.ndarray:
    """The frames' times [n]: times.txt, else 0.1 s times the interval."""
    path = folder / "times.txt"
    if not path.is_file():
        return np.arange(count) * FRAME_SECONDS * data.interval
    try:
        times = np.loadtxt(path, dtype=np.float64, ndmin=1)
    except ValueError:
        times = np.zeros(0)
    if len(times) < count or not (np.diff(times[:count]) > 0).all():
        problem = f"has no rising time for each of the {count} point clouds"
        raise BadInput(problem, where=path, accepted="seconds, one a line")
    return np.asarray(times[:count])



