"""Grids, clouds and poses are read as they are, aligned by the rule, split by scene or time; a fault is a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from occupancy import GRID, SMALL_GRID

from buttress.errors import BadInput
from buttress.trainables.occupancy import clouds, synthetic
from buttress.trainables.occupancy import data as windows
from buttress.trainables.occupancy.config import Config, Data
from buttress.trainables.occupancy.poses import (
    camera_to_lidar,
    from_json,
    from_matrices,
    matrix,
    quaternion,
    velocities,
)
from buttress.trainables.occupancy.voxels import Alignment, Grid, pack, to_world, unpack

FEW = {"history_frames": 2, "future_frames": 2}


def uncached(key: Any, build: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    json.dumps(key)  # a key is anything JSON can write
    return dict(build())


def load(root: Path, layout: str, **more: Any) -> windows.Dataset:
    given = {**SMALL_GRID, "fractions": (0.6, 0.2, 0.2), **more}
    return windows.load(Data(kind="files", path=str(root), layout=layout, **given), uncached)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny set in both layouts."""
    root = tmp_path_factory.mktemp("occupancy")
    return {
        layout: synthetic.write(root / layout, Data(size="tiny", layout=layout, **SMALL_GRID))
        for layout in ("sessions", "scenes")
    }


def rotation(yaw: float, pitch: float = 0.2, roll: float = -0.3) -> np.ndarray:
    def turn(axis: int, angle: float) -> np.ndarray:
        r = np.eye(3)
        a, b = [i for i in range(3) if i != axis]
        r[a, a] = r[b, b] = np.cos(angle)
        r[a, b], r[b, a] = -np.sin(angle), np.sin(angle)
        return r

    return turn(2, yaw) @ turn(1, pitch) @ turn(0, roll)


# ---- the voxeliser


def test_original_grids_have_the_original_number_of_cells() -> None:
    assert Data().grid == (200, 200, 121)  # 152 m / 1.25 m = 121.6
    uav = {"point_cloud_range": (-40, -40, -10, 40, 40, 50), "voxel_size": (0.4, 0.4, 0.5)}
    nuscenes = {"point_cloud_range": (-40, -40, -1, 40, 40, 5.4), "voxel_size": (0.4, 0.4, 0.4)}
    assert Data(**uav).grid == (200, 200, 120) and Data(**nuscenes).grid == (200, 200, 16)


def test_a_cell_is_occupied_when_a_point_is_in_it() -> None:
    grid = windows.grid_of(Data())
    points = np.array(
        [
            [-40.0, -40.0, -2.0],  # min is inside
            [40.0, 0.0, 0.0],  # max is not
            [39.99, 39.99, 149.9],  # the last 0.75 m of z belong to the last of the 121 cells
            [0.1, -0.1, 0.6],
            [0.2, -0.3, 0.4],  # one cell below
            [0.3, -0.2, 0.3],  # and again
            [0.0, 0.0, -2.01],
        ]
    )
    assert np.argwhere(grid.voxelise(points)).tolist() == [[0, 0, 0], [100, 99, 1], [100, 99, 2], [199, 199, 120]]
    assert not grid.voxelise(np.zeros((0, 3))).any()


def test_voxels_agree_with_a_loop_over_points() -> None:
    random = np.random.default_rng(0)
    grid = Grid((-3.0, -2.0, 0.0), (3.0, 2.0, 1.7), (0.5, 0.4, 0.25), (12, 10, 6))
    points = random.uniform(-4, 4, (2000, 3))
    expected = np.zeros(grid.cells, dtype=bool)
    for point in points:
        if all(low <= c < high for c, low, high in zip(point, grid.low, grid.high, strict=True)):
            place = [(c - low) / size for c, low, size in zip(point, grid.low, grid.size, strict=True)]
            expected[tuple(int(min(p, n - 1)) for p, n in zip(place, grid.cells, strict=True))] = True
    assert expected.sum() > 50
    np.testing.assert_array_equal(grid.voxelise(points), expected)
    np.testing.assert_array_equal(unpack(pack(expected)[None], grid.cells)[0], expected)


# ---- the alignment rule


def posed(position: Any, turn: np.ndarray) -> np.ndarray:
    transform = np.eye(4)
    transform[:3, :3], transform[:3, 3] = turn, position
    return from_matrices(transform[None])[0]


@pytest.fixture
def grid() -> Grid:
    return windows.grid_of(Data(**GRID))


def test_world_clouds_come_back_to_the_sensor_with_the_transposed_rotation(grid: Grid) -> None:
    """The original applied R instead of R^T; with the identity, its test could not tell."""
    local = np.random.default_rng(1).uniform(-1.5, 1.5, (200, 3))
    pose = posed([100.0, -50.0, 7.0], rotation(0.9))
    alignment = Alignment(grid, ego_frame=True)
    aligned, origin = alignment.align(to_world(local, pose), pose)
    np.testing.assert_allclose(aligned, local, atol=1e-9)
    assert origin is None and alignment.origin is None and alignment.fallbacks == 0
    wrong = (to_world(local, pose) - pose[:3]) @ rotation(0.9).T
    assert np.abs(wrong - local).max() > 0.5


def test_without_ego_frame_clouds_are_left_alone_whatever_else_is_set(grid: Grid) -> None:
    points = np.full((5, 3), 1e4)
    aligned, origin = Alignment(grid, ego_frame=False, ratio=1.0).align(points, posed([1, 2, 3], rotation(1)))
    assert aligned is points and origin is None


def test_the_first_cloud_out_of_range_sets_the_origin_for_the_rest_of_the_window(grid: Grid) -> None:
    """Sensor-local clouds taken for world ones: the pose moves them away, the centre of the cloud brings them back."""
    random = np.random.default_rng(2)
    pose = posed([500.0, 0.0, 0.0], np.eye(3))
    first, second = random.uniform(-1, 1, (50, 3)), random.uniform(-1, 1, (50, 3)) + 3
    alignment = Alignment(grid, ego_frame=True)
    aligned, origin = alignment.align(first, pose)
    np.testing.assert_allclose(origin, first.mean(0))
    np.testing.assert_allclose(aligned, first - first.mean(0))
    aligned, again = alignment.align(second, pose)
    np.testing.assert_allclose(aligned, second - first.mean(0))  # one frame for the whole window
    assert again is alignment.origin and (alignment.fallbacks, alignment.centred) == (2, 2)


def test_the_ratio_decides_and_without_fallback_the_raw_cloud_comes_back(grid: Grid) -> None:
    pose = posed([0, 0, 0], np.eye(3))
    cloud = np.concatenate([np.zeros((2, 3)), np.full((98, 3), 99.0)])  # 2 % in range
    assert Alignment(grid, True, ratio=0.02).align(cloud, pose)[1] is None
    assert Alignment(grid, True, ratio=0.03).align(cloud, pose)[1] is not None
    alignment = Alignment(grid, True, fallback=False, ratio=0.03)
    aligned, origin = alignment.align(cloud, pose)
    assert aligned is cloud and origin is None and (alignment.fallbacks, alignment.centred) == (1, 0)


def test_windows_of_world_clouds_are_those_of_the_sensors_clouds(tmp_path: Path) -> None:
    made = next(iter(synthetic.scenes(synthetic.Size(1, 8), windows.grid_of(Data(**GRID)), 3)))
    synthetic.write_scene(tmp_path / "local" / "a", made)
    synthetic.write_scene(tmp_path / "world" / "a", made, world=True)
    more = {**FEW, "split": "time", "fractions": (1.0, 0.0, 0.0), **GRID}
    local = load(tmp_path / "local", "scenes", **more)
    world = load(tmp_path / "world", "scenes", ego_frame=True, **more)
    cells = Data(**GRID).grid
    at = np.arange(len(local.slots))
    ours, theirs = local.grids(at, cells), world.grids(at, cells)
    assert (ours != theirs).mean() < 1e-4 < ours.mean()  # six decimals in the files
    np.testing.assert_allclose(world.poses, local.poses, atol=1e-9)
    assert world.count("centred_windows") == world.count("clouds_out_of_range") == 0
    # taken for the sensor's own coordinates, world clouds are out of range: the empty grids of the original
    lost = load(tmp_path / "world", "scenes", **more)
    assert lost.occupied.sum() == 0 and lost.count("empty_clouds_in_range") == len(lost.bits)
    # and the sensor's clouds taken for world ones fall back: once per window, positions moved with the clouds
    fallen = load(tmp_path / "local", "scenes", ego_frame=True, normalize_pose_to_first_frame=False, **more)
    assert fallen.count("centred_windows") == len(fallen.slots) and fallen.occupied.min() > 0
    assert fallen.count("clouds_out_of_range") == 0
    # without a fallback nothing is centred: the clouds stay where they are, as in the original
    left = {"ego_frame": True, "fallback_to_lidar_center": False, "bad_frames": "drop"}
    raw = load(tmp_path / "local", "scenes", **left, **more)
    assert raw.count("centred_windows") == 0 and raw.count("clouds_out_of_range") == raw.slots.size
    found = dict(windows.check(tmp_path / "local", Config(data={"layout": "scenes", **left, **more})))
    assert found["fallbacks"].startswith("0 windows centred") and f"{raw.slots.size:,} clouds" in found["fallbacks"]
    plain = load(tmp_path / "local", "scenes", normalize_pose_to_first_frame=False, **more)
    moved = plain.poses[0, :, :3] - fallen.poses[0, :, :3]
    np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=1e-9)
    np.testing.assert_allclose(moved[0], made.clouds[0].mean(0), atol=1e-5)


# ---- poses


def test_quaternions_are_scipys_up_to_their_sign() -> None:
    from scipy.spatial.transform import Rotation

    turns = Rotation.random(50, random_state=0)
    ours = quaternion(turns.as_matrix())
    theirs = turns.as_quat(scalar_first=True)
    np.testing.assert_allclose(ours * np.sign((ours * theirs).sum(1, keepdims=True)), theirs, atol=1e-12)
    np.testing.assert_allclose(matrix(ours), turns.as_matrix(), atol=1e-12)


def test_velocities_are_finite_differences_and_clipped() -> None:
    from scipy.spatial.transform import Rotation

    turns = Rotation.from_rotvec([[0, 0, 0], [0.1, 0, 0], [0.1, 0, 0], [0, 0, 0.2]])
    poses = np.zeros((4, 13))
    poses[:, 3:7] = turns.as_quat(scalar_first=True)
    poses[:, 0] = [0, 1, 3, 300]
    moved = velocities(poses, np.array([0.5, 0.5, 0.5]), 20.0, 6.28)
    assert moved[:, 7].tolist() == [0, 2, 4, 20]  # 594 m/s clipped; the first frame keeps zeros
    expected = (turns[1:] * turns[:-1].inv()).as_rotvec() / 0.5  # in world axes
    np.testing.assert_allclose(moved[1:, 10:], expected, atol=1e-12)
    np.testing.assert_array_equal(moved[0, 7:], 0)


def test_a_ready_pose_wins_and_its_quaternion_is_normalised() -> None:
    given = {"position": {"x": 9, "y": 9, "z": 9}, "pose_13d": [1, 2, 3, 2, 0, 0, 0, *range(6)]}
    assert from_json(given).tolist() == [1, 2, 3, 1, 0, 0, 0, 0, 1, 2, 3, 4, 5]


def test_kittis_camera_poses_become_the_lidars() -> None:
    tr, camera = np.eye(4), np.eye(4)
    tr[:3, :3] = [[0, -1, 0], [0, 0, -1], [1, 0, 0]]  # the camera looks along the LiDAR's x
    camera[2, 3] = 5.0  # five metres ahead for the camera
    moved = camera_to_lidar(camera[None, :3], tr[:3])
    np.testing.assert_allclose(moved[0, :, 3], [5, 0, 0], atol=1e-12)


# ---- windows


def test_both_layouts_hold_the_same_grids_and_poses(written: dict[str, Path]) -> None:
    ours, theirs = (load(written[layout], layout) for layout in ("sessions", "scenes"))
    cells = Data(**SMALL_GRID).grid
    assert ours.names == theirs.names and len(ours.slots) == len(theirs.slots) == 25
    at = np.arange(25)
    assert (ours.grids(at, cells) != theirs.grids(at, cells)).mean() < 1e-5
    np.testing.assert_allclose(ours.poses[..., :3], theirs.poses[..., :3], atol=1e-6)
    np.testing.assert_allclose(matrix(ours.poses[..., 3:7]), matrix(theirs.poses[..., 3:7]), atol=1e-6)
    np.testing.assert_allclose(ours.poses[:, 1:, 7:], theirs.poses[:, 1:, 7:], atol=1e-6)
    assert (theirs.poses[:, 0, 7:] == 0).all() and (ours.poses[:, 0, :3] == 0).all()


def test_a_scene_stands_in_one_split_only(written: dict[str, Path]) -> None:
    for seed in range(4):
        dataset = load(written["sessions"], "sessions", split_seed=seed)
        held = [set(dataset.scene[dataset.windows(split)]) for split in windows.SPLITS]
        assert [len(one) for one in held] == [3, 1, 1] and len(set.union(*held)) == 5


def test_blocks_of_time_share_no_frame(written: dict[str, Path]) -> None:
    dataset = load(written["sessions"], "sessions", split="time", fractions=(0.5, 0.5, 0.0), **FEW)
    reach = 4
    frames = [
        {(s, t + k) for s, t in zip(dataset.scene[at], dataset.start[at], strict=True) for k in range(reach)}
        for at in (dataset.windows("train"), dataset.windows("val"))
    ]
    assert frames[0] and frames[1] and not frames[0] & frames[1]
    assert dataset.count("boundary_windows") == 3 * 5


def test_windows_that_stand_still_are_left_out(written: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(written["sessions"], tmp_path / "set")
    standing = tmp_path / "set" / "drone_000" / "poses"
    first = (standing / "000000.json").read_text()
    for path in standing.iterdir():
        path.write_text(first)
    dataset = load(tmp_path / "set", "sessions")
    assert dataset.count("static_windows") == 5 and 0 not in dataset.scene
    assert load(tmp_path / "set", "sessions", static_filter=False).count("static_windows") == 0


def test_all_zero_futures_are_known(written: dict[str, Path]) -> None:
    dataset = load(written["sessions"], "sessions")
    empty = dataset.empty_future(4)
    assert empty.sum() == 5 and set(dataset.scene[empty]) == {4}
    grids = dataset.grids(np.arange(len(empty)), Data(**SMALL_GRID).grid)
    np.testing.assert_array_equal(grids[:, 4:].reshape(len(empty), -1).sum(1) == 0, empty)


def test_frames_are_skipped_as_told(written: dict[str, Path]) -> None:
    one, two = (load(written["scenes"], "scenes", frame_skip=skip, **FEW) for skip in (1, 2))
    assert len(one.slots) == 5 * 11 and len(two.slots) == 5 * 4  # starts 0, 2, 4, 6 of 14 frames
    # 0.1 s x interval 5 x frame_skip, whatever lies between the two frames
    step = np.linalg.norm(np.diff(two.poses[0, :, :3], axis=0), axis=1)
    np.testing.assert_allclose(np.linalg.norm(two.poses[0, 1:, 7:10], axis=1), step / 1.0, rtol=1e-9)


# ---- the generator


def test_the_synthetic_set_is_what_is_asked_of_it() -> None:
    cells = windows.grid_of(Data(**GRID))
    made = list(synthetic.scenes(synthetic.Size(6, 20), cells, 0))
    overlap = np.zeros((2, 6))
    for scene in made:
        grids = np.stack([cells.voxelise(cloud) for cloud in scene.clouds])
        rate = grids.reshape(len(grids), -1).mean(1)
        assert all(abs(rate[i : i + 10].mean() / 0.0083 - 1) < 0.25 for i in range(11))
        assert grids.mean((0, 1, 2)).max() < 0.2  # no full ground layer
        step = np.linalg.norm(np.diff(scene.poses[:, :3], axis=0), axis=1)
        assert step.min() >= 0.2 * 0.4 - 1e-9 and step.max() <= 0.4 + 1e-9
        for ahead in range(1, 7):
            pair = grids[:-ahead], grids[ahead:]
            overlap[:, ahead - 1] += (pair[0] & pair[1]).sum(), (pair[0] | pair[1]).sum()
    copied = overlap[0] / overlap[1]
    assert 0.2 < copied[0] < 0.7 and (np.diff(copied) < 0).all()  # falls with every step
    again = next(iter(synthetic.scenes(synthetic.Size(6, 20), cells, 0)))
    np.testing.assert_array_equal(again.clouds[3], made[0].clouds[3])


def test_the_full_size_holds_forty_thousand_voxels_of_each_frame() -> None:
    cells = windows.grid_of(Data())
    scene = next(iter(synthetic.scenes(synthetic.Size(1, 3), cells, 0)))
    counts = [int(cells.voxelise(cloud).sum()) for cloud in scene.clouds]
    assert counts == pytest.approx([40_000] * 3, rel=0.1)


def test_the_sparse_size_is_nearly_empty() -> None:
    cells = windows.grid_of(Data(point_cloud_range=(-12.8, -12.8, -3.2, 12.8, 12.8, 9.6), voxel_size=(0.4, 0.4, 0.4)))
    size = synthetic.SIZES["sparse"]
    scene = next(iter(synthetic.scenes(synthetic.Size(1, 6, size.rate), cells, 1)))
    rates = [cells.voxelise(cloud).mean() for cloud in scene.clouds]
    assert cells.cells == (64, 64, 32) and np.mean(rates) == pytest.approx(0.0002, rel=0.35)


# ---- faults, in one sentence with the file in it


def broken(written: dict[str, Path], tmp_path: Path, layout: str, name: str) -> tuple[Path, Path]:
    root = tmp_path / "set"
    shutil.copytree(written[layout], root)
    return root, root / "drone_001" / name


def refused(root: Path, layout: str, *parts: str, **more: Any) -> None:
    with pytest.raises(BadInput) as told:
        load(root, layout, **more)
    sentence = str(told.value)
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence


def test_a_session_without_a_pose(written: dict[str, Path], tmp_path: Path) -> None:
    root, path = broken(written, tmp_path, "sessions", "poses/000003.json")
    path.unlink()
    refused(root, "sessions", "drone_001/poses/000003.json", "the frame has no pose", "data.bad_frames: drop")
    dataset = load(root, "sessions", bad_frames="drop")
    assert len(dataset.dropped) == 1 and (dataset.scene == 1).sum() == 1  # of 5 windows that start at 0 to 4
    assert len(dataset.slots) == 21


def test_a_truncated_npz(written: dict[str, Path], tmp_path: Path) -> None:
    root, path = broken(written, tmp_path, "sessions", "occupancy/000004_occupancy.npz")
    path.write_bytes(path.read_bytes()[:-40])
    refused(root, "sessions", "drone_001/occupancy/000004_occupancy.npz", "not a whole npz file")
    assert len(load(root, "sessions", bad_frames="drop").dropped) == 1


def test_a_grid_of_another_shape(written: dict[str, Path], tmp_path: Path) -> None:
    root, path = broken(written, tmp_path, "sessions", "occupancy/000000_occupancy.npz")
    np.savez(path, occupancy=np.zeros((16, 16, 9), np.uint8))
    refused(root, "sessions", "000000_occupancy.npz", "the grid is 16 x 16 x 9", "make 16 x 16 x 8")
    np.savez(path, grid=np.zeros((16, 16, 8), np.uint8))
    refused(root, "sessions", "has no array `occupancy`", "accepted: grid")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "the pose is not JSON"),
        ('{"position": {"x": 1, "y": 2, "z": 3}}', "it has no orientation with w, x, y, z"),
        ('{"pose_13d": [1, 2]}', "pose_13d has 2 numbers"),
        ('{"pose_13d": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]}', "its quaternion is zero"),
        ('{"pose_13d": [NaN, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]}', "not finite"),
    ],
)
def test_a_pose_that_cannot_be_used(content: str, told: str, written: dict[str, Path], tmp_path: Path) -> None:
    root, path = broken(written, tmp_path, "sessions", "poses/000002.json")
    path.write_text(content)
    refused(root, "sessions", "drone_001/poses/000002.json", told)


def test_poses_that_match_no_frame(written: dict[str, Path], tmp_path: Path) -> None:
    root, path = broken(written, tmp_path, "sessions", "poses/000099.json")
    shutil.copy(path.with_name("000001.json"), path)
    refused(root, "sessions", "poses/000099.json", "1 of the poses match no frame")


def test_a_session_with_one_frame(written: dict[str, Path], tmp_path: Path) -> None:
    root, folder = broken(written, tmp_path, "sessions", "occupancy")
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
        (folder.parent / "poses" / f"{path.name[:6]}.json").unlink()
    refused(root, "sessions", "drone_001", "the session has 1 frame, a window takes 10")
    assert load(root, "sessions", bad_frames="drop").count("short_scenes") == 1


def scene_cloud(root: Path, place: int = 0) -> Path:
    return sorted((root / "drone_001" / "interval5_LIDAR").iterdir())[place]


def test_an_empty_cloud_and_one_with_nan(written: dict[str, Path], tmp_path: Path) -> None:
    root, _ = broken(written, tmp_path, "scenes", "")
    path = scene_cloud(root)
    whole = path.read_text()
    path.write_text("")
    refused(root, "scenes", path.name, "the point cloud is empty")
    path.write_text(whole + "1.0 nan 2.0\n")
    refused(root, "scenes", path.name, "points that are not finite", "the first is point")
    path.write_text(whole + "1.0 2.0\n")
    refused(root, "scenes", path.name, "not a whole point cloud")
    assert len(load(root, "scenes", bad_frames="drop").dropped) == 1


def test_scene_poses_that_are_missing_or_do_not_match(written: dict[str, Path], tmp_path: Path) -> None:
    root, path = broken(written, tmp_path, "scenes", "sampleinfos_interpolated.json")
    infos = json.loads(path.read_text())
    path.write_text(json.dumps(infos[:-1]))
    refused(root, "scenes", "has no pose: no OriginalImageName holds its time stamp")
    assert len(load(root, "scenes", bad_frames="drop").dropped) == 1
    infos[2]["T4x4"][0][0] = 7.0
    path.write_text(json.dumps(infos))
    refused(root, "scenes", "pose 2 is no rigid motion")
    path.write_text(json.dumps([{"T4x4": 1}]))
    refused(root, "scenes", "sampleinfos_interpolated.json", "the poses cannot be read")
    path.unlink()
    refused(root, "scenes", "drone_001", "the scene has no poses")
    np.savetxt(path.with_name("poses.txt"), np.tile(np.eye(4)[:3].reshape(1, 12), (9, 1)))
    refused(root, "scenes", "poses.txt", "9 poses do not match the 14 point clouds")


def test_a_scene_with_one_frame(written: dict[str, Path], tmp_path: Path) -> None:
    root, folder = broken(written, tmp_path, "scenes", "interval5_LIDAR")
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    refused(root, "scenes", "drone_001", "the scene has 1 frame, a window takes 10")


def test_folders_without_data(tmp_path: Path) -> None:
    refused(tmp_path, "sessions", "holds no session", "images, lidar, poses, occupancy")
    refused(tmp_path, "scenes", "holds no scene")
    refused(tmp_path / "nowhere", "scenes", "is no folder")


def test_a_split_that_no_window_fits(written: dict[str, Path]) -> None:
    refused(written["sessions"], "sessions", "the train split has no window", "data.split", split="time")
    refused(written["sessions"], "sessions", "no session or scene has this in its name", scenes=("truck",))
    assert load(written["sessions"], "sessions", scenes=("DRONE",)).names == tuple(f"drone_00{i}" for i in range(5))


# ---- cloud files


def test_every_format_gives_the_same_points(tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform(-9, 9, (40, 3)).astype(np.float32)
    intensity = np.ones((40, 1), np.float32)
    np.savetxt(tmp_path / "a.txt", np.hstack([points, intensity]), fmt="%.7f")
    np.hstack([points, intensity]).tofile(tmp_path / "b.bin")
    np.save(tmp_path / "c.npy", points)
    head = "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z intensity ring\nSIZE 4 4 4 4 2\nTYPE F F F F U\nCOUNT 1 1 1 1 1\n"
    head += "WIDTH 40\nHEIGHT 1\nPOINTS 40\n"
    record = np.zeros(40, [("xyz", "<f4", 3), ("i", "<f4"), ("ring", "<u2")])
    record["xyz"] = points
    (tmp_path / "d.pcd").write_bytes(head.encode() + b"DATA binary\n" + record.tobytes())
    rows = "\n".join(f"{x} {y} {z} 1 0" for x, y, z in points)
    (tmp_path / "e.pcd").write_text(head + "DATA ascii\n" + rows)
    for name in ("a.txt", "b.bin", "c.npy", "d.pcd", "e.pcd"):
        np.testing.assert_allclose(clouds.read(tmp_path / name), points, atol=1e-6)
    (tmp_path / "f.pcd").write_bytes(head.encode() + b"DATA binary\n" + record.tobytes()[:-3])
    (tmp_path / "g.bin").write_bytes(b"\0" * 7)
    (tmp_path / "h.pcd").write_bytes(head.encode() + b"DATA binary_compressed\n")
    for name in ("f.pcd", "g.bin", "h.pcd"):
        with pytest.raises(BadInput, match=f"{name}: not a whole point cloud"):
            clouds.read(tmp_path / name)


# ---- real LiDAR


LIDAR = {
    "kitti_00": ({"point_cloud_range": (-40, -40, -4, 40, 40, 4), "voxel_size": (0.4, 0.4, 0.4)}, 0.0115, 6),
    "balm_2hz": ({"point_cloud_range": (-16, -16, -4, 16, 16, 4), "voxel_size": (0.25, 0.25, 0.25)}, 0.0094, 16),
    "opencalib_10hz": ({"point_cloud_range": (-40, -40, -4, 40, 40, 4), "voxel_size": (0.4, 0.4, 0.4)}, 0.0098, 5),
}


@pytest.mark.parametrize("name", LIDAR)
def test_real_sequences_are_read(name: str, shared: Path) -> None:
    where, rate, frames = LIDAR[name]
    more = {"split": "time", "fractions": (1.0, 0.0, 0.0), "history_frames": 2, "future_frames": 2, **where}
    dataset = load(shared / "data/lidar" / name, "scenes", **more)
    assert len(dataset.bits) == frames and dataset.names == (name,)
    share = dataset.occupied.mean() / np.prod(Data(**where).grid)
    assert share == pytest.approx(rate, rel=0.3)  # published in the first frame's coordinates, here in each one's own
    speed = np.linalg.norm(dataset.poses[:, 1:, 7:10], axis=-1)
    moves = {"kitti_00": (6, 10), "balm_2hz": (0.3, 2.0), "opencalib_10hz": (0, 0.1)}[name]
    assert moves[0] <= speed.mean() <= moves[1]


def test_kitti_moves_forward_in_the_lidars_frame(shared: Path) -> None:
    """0.86 m a step along the LiDAR's x; read as LiDAR poses, the camera's would move it along z."""
    more = {"split": "time", "fractions": (1.0, 0.0, 0.0), **FEW, **LIDAR["kitti_00"][0]}
    ours = load(shared / "data/lidar/kitti_00", "scenes", **more)
    step = np.diff(ours.poses[:, :, :3], axis=1).reshape(-1, 3).mean(0)
    assert step[0] == pytest.approx(0.86, abs=0.02) and np.abs(step[1:]).max() < 0.05
    wrong = load(shared / "data/lidar/kitti_00", "scenes", poses="lidar", **more)
    assert np.diff(wrong.poses[:, :, 2], axis=1).mean() > 0.8


@pytest.mark.parametrize("name", ["kitti_00", "balm_2hz"])
def test_real_clouds_meet_in_the_world_with_their_poses(name: str, shared: Path) -> None:
    """Consecutive clouds overlap once both stand in the first one's frame: 0.44 (KITTI), 0.47 (BALM)."""
    from buttress.trainables.occupancy import scenes

    data = Data(kind="files", path="x", layout="scenes", **LIDAR[name][0])
    sequence = scenes.read(shared / "data/lidar" / name, data)
    grid = windows.grid_of(data)
    assert sequence.read_cloud is not None
    first = sequence.poses[0]
    overlap = {True: [], False: []}
    for posed_ in (True, False):
        grids = []
        for source, pose in zip(sequence.sources, sequence.poses, strict=True):
            points = sequence.read_cloud(source)
            if posed_:
                points = (to_world(points, pose) - first[:3]) @ matrix(first[3:7])
            grids.append(grid.voxelise(points))
        overlap[posed_] = [(a & b).sum() / (a | b).sum() for a, b in pairwise(grids)]
    expected = {"kitti_00": 0.44, "balm_2hz": 0.47}[name]
    assert np.mean(overlap[True]) == pytest.approx(expected, abs=0.02) and np.mean(overlap[False]) < 0.35


# ---- data check


def test_data_check_tells_what_is_in_it(written: dict[str, Path]) -> None:
    config = Config(data=Data(fractions=(0.6, 0.2, 0.2), **SMALL_GRID))
    for layout in ("sessions", "scenes"):
        found = dict(windows.check(written[layout], config))
        assert found["layout"] == layout and found["all-zero futures"].startswith("5 windows")
        assert found["windows"] == "25 of 4 + 6 frames" and found["empty grids"].startswith("14.29% of 70")
        low, mean, high = (float(part.strip(" %")) for part in found["occupancy rate"].split(" (")[0].split("/"))
        assert low == 0 < mean < high < 2 and found["fallbacks"].startswith("0 windows")
        assert found["split train"].startswith("15 windows of 3")
