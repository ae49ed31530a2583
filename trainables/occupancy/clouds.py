"""Reads point clouds, float64 [n, 3] in metres: txt (x y z in a row), npy, bin (float32), pcd (ascii or binary).

A file that is unreadable, truncated or empty, or holds points that are not finite, is a `BadInput` that names it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from buttress.errors import BadInput

SUFFIXES = (".txt", ".pcd", ".bin", ".npy")
_KINDS = {"F": "f", "I": "i", "U": "u"}


def read(path: Path, bin_columns: int | None = None) -> np.ndarray:
    """The cloud in a file, [n, 3] with n >= 1; further columns (intensity, time) are left out."""
    try:
        points = _READERS[path.suffix.lower()](path, bin_columns)
    except OSError as error:
        raise BadInput(f"the point cloud cannot be read ({error.strerror})", where=path) from None
    except (ValueError, KeyError, IndexError, EOFError) as error:
        if isinstance(error, BadInput):
            raise
        said = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise BadInput(f"not a whole point cloud ({said})", where=path, accepted=_FORMS[path.suffix.lower()]) from None
    if not len(points):
        raise BadInput("the point cloud is empty", where=path, accepted="at least one point")
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        raise BadInput(
            f"the point cloud has {int((~finite).sum()):,} of {len(points):,} points that are not finite "
            f"(the first is point {int(finite.argmin())})",
            where=path, accepted="finite coordinates in metres",
        )  # fmt: skip
    return points


def _txt(path: Path, _: Any) -> np.ndarray:
    text = path.read_text()
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        return np.zeros((0, 3))
    columns = len(first.replace(",", " ").split())
    numbers = np.array(text.replace(",", " ").split(), dtype=np.float64)
    return _rows(numbers, columns)


def _npy(path: Path, _: Any) -> np.ndarray:
    array = np.load(path, allow_pickle=False)
    if array.ndim != 2 or array.shape[1] < 3:
        raise ValueError(f"an array of shape {array.shape}")
    return np.asarray(array[:, :3], dtype=np.float64)


def _bin(path: Path, columns: int | None) -> np.ndarray:
    raw = path.read_bytes()
    if len(raw) % 4:
        raise ValueError(f"{len(raw)} bytes are no whole number of float32")
    numbers = np.frombuffer(raw, dtype="<f4").astype(np.float64)
    if columns is None:
        columns = next((c for c in (4, 5, 3) if numbers.size % c == 0), 4)
    return _rows(numbers, columns)


def _rows(numbers: np.ndarray, columns: int) -> np.ndarray:
    if columns < 3 or numbers.size % columns:
        raise ValueError(f"{numbers.size} numbers in rows of {columns}")
    return numbers.reshape(-1, columns)[:, :3]


def _pcd(path: Path, _: Any) -> np.ndarray:
    raw = path.read_bytes()
    header: dict[str, list[str]] = {}
    at = 0
    while "DATA" not in header:
        end = raw.index(b"\n", at)
        words = raw[at:end].decode("ascii", "replace").split()
        at = end + 1
        if words and not words[0].startswith("#"):
            header[words[0].upper()] = words[1:]
    fields, count = header["FIELDS"], int(header["POINTS"][0])
    counts = [int(c) for c in header.get("COUNT", ["1"] * len(fields))]
    names = [name if c == 1 else f"{name}_{i}" for i, (name, c) in enumerate(zip(fields, counts, strict=True))]
    kind = header["DATA"][0]
    if kind == "ascii":
        numbers = np.array(raw[at:].split(), dtype=np.float64)
        if numbers.size != count * sum(counts):
            raise ValueError(f"{numbers.size} numbers for {count} points")
        table = numbers.reshape(count, sum(counts))
        starts = np.concatenate([[0], np.cumsum(counts)])
        return table[:, [starts[names.index(axis)] for axis in "xyz"]]
    if kind != "binary":
        raise ValueError(f"DATA {kind}")
    parts = zip(names, header["TYPE"], header["SIZE"], counts, strict=True)
    record = np.dtype([(name, f"<{_KINDS[t]}{size}", (c,) if c > 1 else ()) for name, t, size, c in parts])
    points = np.frombuffer(raw, dtype=record, count=count, offset=at)
    return np.stack([points[axis].astype(np.float64) for axis in "xyz"], axis=1)


_READERS = {".txt": _txt, ".npy": _npy, ".bin": _bin, ".pcd": _pcd}
_FORMS = {
    ".txt": "x y z in every line",
    ".npy": "an array [points, 3 or more]",
    ".bin": "float32 rows of 4, 5 or 3 numbers (data.bin_columns)",
    ".pcd": "a PCD file with x, y, z and DATA ascii or binary",
}
