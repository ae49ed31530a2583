"""How a sweep ended, as whoever ran it is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: Why a sweep ended whose first trials collapsed.
TRIPPED = "circuit breaker"


@dataclass(frozen=True)
class Finish:
    """How a sweep ended. `interrupted` sweeps, and those with trials left, can be resumed.

    `folder` is here, `where` is what a person calls it by: the same, or the URL of a sweep on remote storage.
    """

    sweep: str
    folder: Path
    where: str
    counts: dict[str, int]
    seconds: float
    reason: str
    interrupted: bool = False
