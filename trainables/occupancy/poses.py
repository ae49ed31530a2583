"""Poses as 13 numbers: position (m), unit quaternion w x y z, linear velocity (m/s), angular velocity (rad/s).

Converts 4x4 matrices (ego to world), the sessions' JSON and KITTI's camera poses to float64 [13] or [n, 13].
The signs of quaternions made from matrices are pyquaternion's, as in the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

POSITION, ROTATION, LINEAR, ANGULAR = slice(0, 3), slice(3, 7), slice(7, 10), slice(10, 13)
WIDTH = 13


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """rotation[..., 3, 3] -> unit quaternion w x y z [..., 4].

    The eigenvector of the largest eigenvalue of Bar-Itzhack's matrix (2000): the nearest rotation for a matrix that is
    orthogonal only to a few digits. Its sign is pyquaternion's: of x where m22 < 0 and m00 > m11, else of y where
    m22 < 0, else of z where m00 < -m11, else of w is positive. It changes on a drive, as at a yaw of -90 degrees.
    """
    r = rotation
    k = np.empty((*r.shape[:-2], 4, 4))
    xx, yy, zz = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    k[..., 0, 0] = xx + yy + zz
    k[..., 1, 1], k[..., 2, 2], k[..., 3, 3] = xx - yy - zz, yy - xx - zz, zz - xx - yy
    k[..., 0, 1] = k[..., 1, 0] = r[..., 2, 1] - r[..., 1, 2]
    k[..., 0, 2] = k[..., 2, 0] = r[..., 0, 2] - r[..., 2, 0]
    k[..., 0, 3] = k[..., 3, 0] = r[..., 1, 0] - r[..., 0, 1]
    k[..., 1, 2] = k[..., 2, 1] = r[..., 0, 1] + r[..., 1, 0]
    k[..., 1, 3] = k[..., 3, 1] = r[..., 0, 2] + r[..., 2, 0]
    k[..., 2, 3] = k[..., 3, 2] = r[..., 1, 2] + r[..., 2, 1]
    q = np.linalg.eigh(k / 3)[1][..., :, -1]
    positive = np.where(zz < 0, np.where(xx > yy, 1, 2), np.where(xx < -yy, 3, 0))
    return np.where(np.take_along_axis(q, positive[..., None], -1) < 0, -q, q)


def matrix(q: np.ndarray) -> np.ndarray:
    """Unit quaternion w x y z [..., 4] -> rotation [..., 3, 3]."""
    w, x, y, z = np.moveaxis(q, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Hamilton product of w x y z [..., 4]: first b, then a."""
    aw, ax, ay, az = np.moveaxis(a, -1, 0)
    bw, bx, by, bz = np.moveaxis(b, -1, 0)
    parts = [
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    ]
    return np.stack(parts, -1)


def from_matrices(transforms: np.ndarray) -> np.ndarray:
    """4x4 or 3x4 ego-to-world [n, 3 or 4, 4] -> poses [n, 13] with velocities 0."""
    poses = np.zeros((len(transforms), WIDTH))
    poses[:, POSITION] = transforms[:, :3, 3]
    poses[:, ROTATION] = quaternion(transforms[:, :3, :3])
    return poses


def is_rotation(rotation: np.ndarray, tolerance: float = 0.02) -> bool:
    """Whether [3, 3] is a proper rotation up to what printing with few digits costs."""
    off = np.abs(rotation @ rotation.T - np.eye(3)).max()
    return bool(off < tolerance and np.linalg.det(rotation) > 0)


def from_json(content: Mapping[str, Any]) -> np.ndarray:
    """A session's pose file -> [13]: `pose_13d` (wins) or position, orientation x y z w, velocity linear and angular.

    Raises ValueError saying what is wrong with it; velocities may be absent (0).
    """
    given = content.get("pose_13d")
    if given is not None:
        pose = np.asarray(given, dtype=np.float64)
        if pose.shape != (WIDTH,):
            raise ValueError(f"pose_13d has {pose.size} numbers")
    else:
        position, orientation = _named(content, "position", "xyz"), _named(content, "orientation", "wxyz")
        velocity = content.get("velocity") or {}
        linear = _named(velocity, "linear", "xyz") if "linear" in velocity else np.zeros(3)
        angular = _named(velocity, "angular", "xyz") if "angular" in velocity else np.zeros(3)
        pose = np.concatenate([position, orientation, linear, angular])
    if not np.isfinite(pose).all():
        raise ValueError("it has numbers that are not finite")
    length = np.linalg.norm(pose[ROTATION])
    if length < 1e-6:
        raise ValueError("its quaternion is zero")
    pose[ROTATION] /= length
    return pose


def _named(content: Mapping[str, Any], key: str, axes: str) -> np.ndarray:
    part = content.get(key)
    if not isinstance(part, Mapping) or not set(axes) <= set(part):
        raise ValueError(f"it has no {key} with {', '.join(axes)}")
    return np.array([float(part[axis]) for axis in axes])


def velocities(poses: np.ndarray, seconds: np.ndarray, max_linear: float, max_angular: float) -> np.ndarray:
    """poses[n, 13], seconds[n - 1] between them -> the same with finite differences, clipped per axis.

    The first frame keeps zeros. The angular velocity is the rotation vector of q[i] q[i-1]^-1 (world axes) over time,
    of up to a whole turn: as in the original it is the longer way round where the quaternion's sign has changed.
    """
    poses = poses.copy()
    poses[:, 7:] = 0.0
    if len(poses) < 2:
        return poses
    before, after = poses[:-1, ROTATION], poses[1:, ROTATION]
    turn = product(after, before * np.array([1.0, -1.0, -1.0, -1.0]))
    sine = np.linalg.norm(turn[:, 1:], axis=1, keepdims=True)
    angle = 2 * np.arctan2(sine, turn[:, :1])
    vector = turn[:, 1:] * np.where(sine > 1e-12, angle / np.maximum(sine, 1e-12), 2.0)
    poses[1:, LINEAR] = (poses[1:, POSITION] - poses[:-1, POSITION]) / seconds[:, None]
    poses[1:, ANGULAR] = vector / seconds[:, None]
    return clipped(poses, max_linear, max_angular)


def clipped(poses: np.ndarray, max_linear: float, max_angular: float) -> np.ndarray:
    """The same with velocities inside +-max per axis: one outlier of 453 m/s would rule a loss."""
    poses = poses.copy()
    poses[..., LINEAR] = np.clip(poses[..., LINEAR], -max_linear, max_linear)
    poses[..., ANGULAR] = np.clip(poses[..., ANGULAR], -max_angular, max_angular)
    return poses


def camera_to_lidar(transforms: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """KITTI's left-camera poses P [n, 3, 4] -> the LiDAR's inv(Tr) P Tr [n, 3, 4], Tr [3, 4] from LiDAR to camera."""
    tr, camera = _square(calibration), np.stack([_square(one) for one in transforms])
    return (np.linalg.inv(tr) @ camera @ tr)[:, :3]


def _square(transform: np.ndarray) -> np.ndarray:
    return np.vstack([transform[:3], [0.0, 0.0, 0.0, 1.0]])
