"""A sequence of frames with poses, and how to read each frame's grid or cloud; both layouts are read into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from buttress.errors import BadInput
from buttress.trainables.occupancy.config import Data


@dataclass(frozen=True)
class Sequence:
    """Frames of one session or scene, in order. One of `read_grid`, `read_cloud` reads what a source holds."""

    name: str
    aerial: bool
    frames: np.ndarray  # int64 [n], places of the kept frames in the recording; a gap is a dropped frame
    length: int  # frames of the recording
    poses: np.ndarray  # float64 [n, 13], absolute
    sources: tuple[Path, ...]
    seconds: np.ndarray | None = None  # [n]; where it is given, velocities are still to be derived from positions
    dropped: list[str] = field(default_factory=list)  # why each frame that is not here was left out
    read_grid: Callable[[Path], np.ndarray] | None = None
    read_cloud: Callable[[Path], np.ndarray] | None = None


def chosen(folders: list[Path], data: Data) -> list[Path]:
    """Of the folders those that `data.scenes` names by a part, in any case of letters."""
    if data.scenes is None:
        return folders
    found = [one for one in folders if any(part.lower() in one.name.lower() for part in data.scenes)]
    unknown = [part for part in data.scenes if not any(part.lower() in one.name.lower() for one in folders)]
    if unknown:
        raise BadInput(
            "no session or scene has this in its name", key="data.scenes", value=unknown[0],
            accepted="parts of " + ", ".join(one.name for one in folders[:8]) + (", ..." if len(folders) > 8 else ""),
        )  # fmt: skip
    return found
