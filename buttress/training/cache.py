"""Arrays built once per node and memory-mapped by every process.

An entry is a folder `<name>-<hash of the key>` with one `.npy` per array and a `manifest.json` of sizes and checksums.
It is built in a temporary folder and renamed under a file lock, so that a process that dies while building leaves
nothing that looks finished; an entry that does not match its manifest is built again.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from buttress.cache_folder import cache_folder
from buttress.errors import BadInput

MEBIBYTE = 2**20


def cached(key: Any, build: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of `build()`, memory-mapped copy on write from the cache; see `World.cache`."""
    text = key if isinstance(key, str) else json.dumps(key, sort_keys=True, default=str)
    name = re.sub(r"[^A-Za-z0-9]+", "-", text)[:40].strip("-") + "-" + hashlib.sha256(text.encode()).hexdigest()[:16]
    root = cache_folder()
    arrays = _open(root / name)
    if arrays is not None:
        return arrays
    lock = FileLock(root / f"{name}.lock")
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise BadInput("the cache folder is not writable", where="$BUTTRESS_CACHE", value=str(root)) from error
    try:
        arrays = _open(root / name)  # another process may have built it in the meantime
        if arrays is None:
            _store(root / name, build())
            arrays = _open(root / name)
    finally:
        lock.release()
    if arrays is None:
        raise OSError(f"{root / name}: the cache entry cannot be read back after it was written")
    return arrays


def synthetic_folder(family: str, name: str, write: Callable[[Path], Path]) -> Path:
    """The cache folder of a family's synthetic data.

    Args:
        family: Name of the family.
        name: Of the data set; contains its size and seed.
        write: Called with the folder to make, when it is not there; returns it.

    Returns:
        The folder.
    """
    folder = cache_folder() / family / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    return write(folder)


def _store(entry: Path, arrays: Mapping[str, np.ndarray]) -> None:
    building = entry.with_name(entry.name + ".building")
    shutil.rmtree(building, ignore_errors=True)  # left by a process that died; we hold the lock
    building.mkdir()
    manifest = {}
    for name, array in arrays.items():
        path = building / f"{name}.npy"
        np.save(path, np.ascontiguousarray(array), allow_pickle=False)
        manifest[name] = _fingerprint(path)
    (building / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(entry, ignore_errors=True)
    building.rename(entry)


def _open(entry: Path) -> dict[str, np.ndarray] | None:
    """The entry's arrays, or None where it is missing, partial or damaged."""
    try:
        manifest = json.loads((entry / "manifest.json").read_text())
        if any(_fingerprint(entry / f"{name}.npy") != list(mark) for name, mark in manifest.items()):
            return None
        return {name: np.load(entry / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in manifest}
    except (OSError, ValueError, AttributeError):
        return None


def _fingerprint(path: Path) -> list[int]:
    """Size, and a checksum of the first and last MiB: enough for a torn write, cheap for gigabytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        check = zlib.crc32(file.read(MEBIBYTE))
        file.seek(max(0, size - MEBIBYTE))
        return [size, zlib.crc32(file.read(MEBIBYTE), check)]
