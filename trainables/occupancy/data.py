"""Reads windows of occupancy grids and poses from a folder of sessions or scenes, split by scene or time.

A `Dataset` holds grids as packed bits, memory-mapped from the cache that every process of a node shares
(`World.cache`); files are read once per data config, and what was left out is counted. Windows of one scene overlap, so
they are never split one by one: that would put near-copies of the training windows into validation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from buttress.cache_folder import cache_folder
from buttress.errors import BadInput
from buttress.trainables.occupancy import scenes, sessions, synthetic
from buttress.trainables.occupancy.config import Config, Data
from buttress.trainables.occupancy.poses import POSITION, velocities
from buttress.trainables.occupancy.sequences import Sequence
from buttress.trainables.occupancy.voxels import Alignment, Grid, pack, unpack

Cache = Callable[[Any, Callable[[], Mapping[str, np.ndarray]]], dict[str, np.ndarray]]

SPLITS = ("train", "val", "test")
_VERSION = 2  # of the cached arrays


@dataclass(frozen=True)
class Dataset:
    """Windows of history and future frames. W windows of T frames, G distinct grids."""

    bits: np.ndarray  # uint8 [G, bytes], packed grids
    occupied: np.ndarray  # int64 [G], occupied voxels
    slots: np.ndarray  # int64 [W, T], each frame's grid
    poses: np.ndarray  # float64 [W, T, 13]
    part: np.ndarray  # int64 [W], 0 train, 1 val, 2 test
    scene: np.ndarray  # int64 [W], index into `names`
    start: np.ndarray  # int64 [W], the first frame's place in its recording
    aerial: np.ndarray  # bool [scenes]
    names: tuple[str, ...]
    dropped: tuple[str, ...]  # why frames were left out
    counts: np.ndarray  # int64 [6], see COUNTS

    COUNTS = (
        "static_windows", "boundary_windows", "centred_windows", "clouds_out_of_range", "empty_clouds_in_range",
        "short_scenes",
    )  # fmt: skip

    def pack(self) -> dict[str, np.ndarray]:
        texts = {key: np.frombuffer(json.dumps(getattr(self, key)).encode(), np.uint8) for key in ("names", "dropped")}
        return {key: np.asarray(value) for key, value in vars(self).items()} | texts

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray]) -> Dataset:
        texts: dict[str, Any] = {key: tuple(json.loads(bytes(arrays[key]).decode())) for key in ("names", "dropped")}
        return cls(**{**arrays, **texts})

    def count(self, name: str) -> int:
        return int(self.counts[self.COUNTS.index(name)])

    def windows(self, split: str) -> np.ndarray:
        """The windows of a split, int64, by scene and time."""
        return np.flatnonzero(self.part == SPLITS.index(split))

    def empty_future(self, history: int) -> np.ndarray:
        """bool [W]: no occupied voxel in any future frame."""
        return np.asarray(self.occupied[self.slots[:, history:]].sum(axis=1) == 0)

    def grids(self, windows: np.ndarray, cells: Many[int]) -> np.ndarray:
        """uint8 of 0 and 1 [windows, T, X, Y, Z]."""
        return unpack(np.asarray(self.bits)[self.slots[windows]], cells)


def load(data: Data, cache: Cache) -> Dataset:
    """The windows that `data` describes; `cache` is `World.cache`. Raises `BadInput` for data that cannot be used."""
    root = _root(data)
    choices = data.model_dump(mode="json", exclude={"mirror"})
    key = {"occupancy": _VERSION, "files": _fingerprint(root, data), "data": choices}
    return Dataset.unpack(cache(key, lambda: read(root, data).pack()))


def grid_of(data: Data) -> Grid:
    return Grid.of(data.point_cloud_range, data.voxel_size, data.grid)


def fingerprint(data: Data) -> dict[str, Any]:
    """What tells this data from other: the files' names, sizes and times, or the generator's settings."""
    if data.kind == "synthetic":
        return {"synthetic": data.size, "target": data.target, "seed": data.seed, "version": synthetic.VERSION}
    return {"folder": str(_root(data).resolve()), "files": _fingerprint(_root(data), data)}


def _fingerprint(root: Path, data: Data) -> str:
    layout = sessions if data.layout == "sessions" else scenes
    listed = hashlib.sha256()
    for folder in layout.find(root, data):
        for path in layout.files(folder):
            stat = path.stat()
            listed.update(f"{path} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return listed.hexdigest()[:24]


def _root(data: Data) -> Path:
    """The folder to read; the synthetic one is written when it is not there."""
    if data.kind == "files":
        root = Path(str(data.path)).expanduser()
        if not root.is_dir():
            raise BadInput("is no folder", key="data.path", value=data.path, accepted="a folder of sessions or scenes")
        return root
    return synthetic.written(cache_folder() / "occupancy", data)


def read(root: Path, data: Data) -> Dataset:
    """All windows under `root`; every grid is made once, but where its alignment depends on the window."""
    grid = grid_of(data)
    if data.layout == "sessions":
        found = [sessions.read(folder, data, grid) for folder in sessions.find(root, data)]
    else:
        found = [scenes.read(folder, data) for folder in scenes.find(root, data)]
    builder = _Builder(data, grid)
    for scene, sequence in enumerate(found):
        builder.add(scene, sequence)
    return builder.dataset(found, root)


class _Builder:
    """Cuts sequences into windows and makes the grids that they need."""

    def __init__(self, data: Data, grid: Grid) -> None:
        self.data, self.grid = data, grid
        self.bits: list[np.ndarray] = []
        self.occupied: list[int] = []
        self.slots: list[list[int]] = []
        self.poses: list[np.ndarray] = []
        self.scene: list[int] = []
        self.start: list[int] = []
        self.dropped: list[str] = []
        self.span: list[tuple[int, int, int]] = []  # first and last place of a window, length of its recording
        self.counts = dict.fromkeys(Dataset.COUNTS, 0)

    def add(self, scene: int, sequence: Sequence) -> None:
        data = self.data
        self.dropped += sequence.dropped
        reach = (data.frames - 1) * data.frame_skip + 1
        if sequence.length < reach:
            if data.bad_frames == "refuse":
                raise BadInput(
                    f"the {data.layout[:-1]} has {sequence.length} frame{'s' * (sequence.length != 1)}, a window "
                    f"takes {reach}", where=sequence.sources[0].parent if sequence.sources else sequence.name,
                    accepted="longer ones, fewer data.history_frames or data.future_frames, or data.bad_frames: drop",
                )  # fmt: skip
            self.counts["short_scenes"] += 1
        kept = self._readable(sequence)
        place = {int(sequence.frames[i]): i for i in kept}
        shared: dict[int, int] = {}  # frame -> slot
        for start in range(0, sequence.length - reach + 1, data.frame_skip):
            members = [place.get(start + k * data.frame_skip) for k in range(data.frames)]
            if None in members:
                continue
            frames = [member for member in members if member is not None]
            poses = sequence.poses[frames].copy()
            if data.static_filter and data.layout == "sessions" and self._stands(poses):
                self.counts["static_windows"] += 1
                continue
            if sequence.seconds is not None:
                poses = velocities(
                    poses, np.diff(sequence.seconds[frames]), data.max_linear_velocity, data.max_angular_velocity
                )
            self.slots.append(self._slots(sequence, frames, poses, shared))
            if data.normalize_pose_to_first_frame:
                poses[:, POSITION] -= poses[0, POSITION].copy()
            self.poses.append(poses)
            self.scene.append(scene)
            self.start.append(start)
            self.span.append((start, start + reach - 1, sequence.length))

    def _readable(self, sequence: Sequence) -> list[int]:
        """The frames whose grid or cloud can be read; read now, so that bad ones are known before windows are cut."""
        self.contents: dict[int, np.ndarray] = {}
        reader = sequence.read_grid or sequence.read_cloud
        assert reader is not None
        for i, source in enumerate(sequence.sources):
            try:
                held = reader(source)
            except BadInput as error:
                if self.data.bad_frames == "refuse":
                    raise
                self.dropped.append(str(error))
                continue
            if sequence.read_cloud and not self.data.ego_frame:  # the same grid in every window; a cloud is large
                held = self.grid.voxelise(held)
            self.contents[i] = held if held.dtype != bool else pack(held)
        return list(self.contents)

    def _stands(self, poses: np.ndarray) -> bool:
        steps = np.linalg.norm(np.diff(poses[:, POSITION], axis=0), axis=1)
        return bool(len(steps) and steps.mean() < 0.5 * self.data.min_motion)

    def _slots(self, sequence: Sequence, frames: list[int], poses: np.ndarray, shared: dict[int, int]) -> list[int]:
        """The window's grids; subtracts from `poses` what was subtracted from its clouds."""
        alignment = Alignment(
            self.grid, self.data.ego_frame, self.data.fallback_to_lidar_center, self.data.min_in_range_ratio
        )
        slots = []
        for position, frame in enumerate(frames):
            if frame not in shared or (sequence.read_cloud and self.data.ego_frame):
                shared[frame] = self._store(sequence, frame, poses, position, alignment)
            slots.append(shared[frame])
        self.counts["centred_windows"] += alignment.centred > 0
        self.counts["clouds_out_of_range"] += alignment.fallbacks - alignment.centred
        return slots

    def _store(self, sequence: Sequence, frame: int, poses: np.ndarray, position: int, alignment: Alignment) -> int:
        content = self.contents[frame]
        if content.dtype == np.uint8:
            bits = content
        else:
            points, origin = alignment.align(content, sequence.poses[frame])
            if origin is not None:
                poses[position, POSITION] -= origin
            bits = pack(self.grid.voxelise(points))
        count = int(np.unpackbits(bits).sum())
        self.counts["empty_clouds_in_range"] += count == 0 and sequence.read_grid is None
        self.bits.append(bits)
        self.occupied.append(count)
        return len(self.bits) - 1

    def dataset(self, found: list[Sequence], root: Path) -> Dataset:
        if not self.slots:
            why = f"; {len(self.dropped)} frames were dropped, the first: {self.dropped[0]}" if self.dropped else ""
            raise BadInput(
                f"not one window of {self.data.frames} frames is left "
                f"({self.counts['static_windows']} stand still){why}",
                where=root,
            )
        part, kept = self._split(found)
        self.counts["boundary_windows"] = int((~kept).sum())
        return Dataset(
            bits=np.stack(self.bits),
            occupied=np.array(self.occupied),
            slots=np.array(self.slots)[kept],
            poses=np.stack(self.poses)[kept],
            part=part[kept],
            scene=np.array(self.scene)[kept],
            start=np.array(self.start)[kept],
            aerial=np.array([sequence.aerial for sequence in found]),
            names=tuple(sequence.name for sequence in found),
            dropped=tuple(self.dropped),
            counts=np.array([self.counts[name] for name in Dataset.COUNTS]),
        )

    def _split(self, found: list[Sequence]) -> tuple[np.ndarray, np.ndarray]:
        """Each window's part, and which windows belong to one part wholly."""
        data, scene = self.data, np.array(self.scene)
        kept = np.ones(len(scene), dtype=bool)
        if data.split == "scene":
            part = _parts_of_scenes(np.unique(scene), data)[scene]
        else:
            first, last, length = np.array(self.span).T
            edges = np.stack([np.round(length * np.sum(data.fractions[: i + 1])) for i in range(2)])
            part = (first >= edges).sum(axis=0)
            kept = part == (last >= edges).sum(axis=0)
        missing = [name for i, name in enumerate(SPLITS) if data.fractions[i] > 0 and not (kept & (part == i)).any()]
        if missing:
            raise BadInput(
                f"the {missing[0]} split has no window ({len(found)} {data.layout}, {len(scene)} windows of "
                f"{data.frames} frames)", key="data.split", value=data.split,
                accepted="scene (with a scene for each split), time (with blocks longer than a window), "
                "or other data.fractions",
            )  # fmt: skip
        return part, kept


def _parts_of_scenes(scenes_: np.ndarray, data: Data) -> np.ndarray:
    """Scene index -> part; at least one scene for each split with a share, drawn by `data.split_seed`."""
    order = np.random.default_rng(data.split_seed).permutation(scenes_)
    wanted = [i for i in (1, 2) if data.fractions[i] > 0]
    counts = {i: max(1, round(len(order) * data.fractions[i])) for i in wanted}
    part = np.zeros(int(scenes_.max()) + 1, dtype=np.int64)
    at = 0
    for i in wanted:
        part[order[at : at + counts[i]]] = i
        at += counts[i]
    return part


def check(path: Path, config: Config) -> list[tuple[str, str]]:
    """What `buttress data check occupancy PATH` prints, as (what, finding). Raises `BadInput` as training would."""
    data = config.data.model_copy(update={"kind": "files", "path": str(path)})
    if data.layout == "sessions" and not _holds(sessions, path, data) and _holds(scenes, path, data):
        data = data.model_copy(update={"layout": "scenes"})
    dataset = read(_root(data), data)
    grid, used = grid_of(data), np.unique(dataset.slots)
    rate = dataset.occupied[used] / grid.voxels
    first = dataset.occupied[dataset.slots[:, 0]]
    empty = dataset.empty_future(data.history_frames)
    names = ", ".join(dataset.names[:6]) + ", ..." * (len(dataset.names) > 6)
    fallbacks = f"{dataset.count('centred_windows'):,} windows centred on a cloud"
    if not data.ego_frame:
        fallbacks += " (data.ego_frame is off)"
    elif not data.fallback_to_lidar_center:
        fallbacks += f" (data.fallback_to_lidar_center is off), {dataset.count('clouds_out_of_range'):,} clouds of "
        fallbacks += f"{dataset.slots.size:,} out of range as they are"
    found = [
        ("layout", data.layout),
        ("grid", f"{' x '.join(map(str, grid.cells))} voxels of {' x '.join(f'{s:g}' for s in grid.size)} m"),
        (data.layout, f"{len(dataset.names)}: {names}"),
        ("windows", f"{len(dataset.slots):,} of {data.history_frames} + {data.future_frames} frames"),
        ("empty grids", f"{(rate == 0).mean():.2%} of {len(used):,}, {(first == 0).mean():.2%} of the first frames"),
        ("occupancy rate", f"{rate.min():.4%} / {rate.mean():.4%} / {rate.max():.4%} (min, mean, max)"),
        ("all-zero futures", f"{int(empty.sum()):,} windows, skipped in training"),
        ("fallbacks", fallbacks),
        ("copy-last IoU", _copy_last(dataset, data)),
    ]
    if data.layout == "sessions":
        found.append(("static windows", f"{dataset.count('static_windows'):,} left out"))
    first_dropped = f", the first: {dataset.dropped[0]}" if dataset.dropped else ""
    found.append(("dropped frames", f"{len(dataset.dropped):,}{first_dropped}"))
    for split in SPLITS:
        at = dataset.windows(split)
        held = np.unique(dataset.scene[at])
        found.append((f"split {split}", f"{at.size:,} windows of {held.size} {data.layout}"))
    if data.split == "time":
        found.append(("windows across blocks", f"{dataset.count('boundary_windows'):,} left out"))
    return found


def _holds(layout: Any, path: Path, data: Data) -> bool:
    try:
        return bool(layout.find(path, data.model_copy(update={"scenes": None})))
    except BadInput:
        return False


def _copy_last(dataset: Dataset, data: Data) -> str:
    """IoU of the last history frame with each future frame, over (at most 200 of) all windows."""
    windows = np.arange(len(dataset.slots))[:: max(1, len(dataset.slots) // 200)]
    bits, history = np.asarray(dataset.bits), data.history_frames
    both, either = np.zeros((2, data.future_frames))
    for window in windows:
        last = bits[dataset.slots[window, history - 1]]
        future = bits[dataset.slots[window, history:]]
        both += np.unpackbits(last & future, axis=1).sum(axis=1)
        either += np.unpackbits(last | future, axis=1).sum(axis=1)
    steps = both / np.maximum(either, 1)
    return f"{both.sum() / max(1.0, either.sum()):.4f}; {', '.join(f'{step:.3f}' for step in steps)} by future step"
