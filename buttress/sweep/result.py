"""What a sweep's driver returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: `SweepResult.reason` of a sweep that its circuit breaker stopped.
CIRCUIT_BREAKER = "circuit breaker"


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended; an interrupted one, or one with unfinished trials, can be resumed.

    Attributes:
        sweep: The sweep's name.
        folder: Its folder on this machine.
        where: What a person calls it by: the folder, or the URL of a sweep on remote storage.
        counts: Outcome -> number of trials; `unfinished` are those without an outcome.
        seconds: Since the driver began.
        reason: Why the sweep ended, as in the journal's `end` event.
        interrupted: By Ctrl-C or SIGTERM.
    """

    sweep: str
    folder: Path
    where: str
    counts: dict[str, int]
    seconds: float
    reason: str
    interrupted: bool = False
