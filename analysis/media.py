"""Finds the pictures that a trainer has reported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

#: Suffix of a picture -> its media type.
PICTURE_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


def pictures(folder: Path, media: Mapping[str, str], most: int, max_bytes: int) -> list[tuple[str, Path]]:
    """(key, file) of the pictures among a report's media, within the limits.

    Args:
        folder: The trial's; nothing outside it is taken.
        media: Key -> name of the file in the folder.
        most: How many at most.
        max_bytes: The largest file.
    """
    found: list[tuple[str, Path]] = []
    own = folder.resolve()
    for key, name in media.items():
        path = (own / name).resolve()
        fits = path.is_relative_to(own) and path.suffix.lower() in PICTURE_TYPES and path.is_file()
        if fits and path.stat().st_size <= max_bytes and len(found) < most:
            found.append((key, path))
    return found
