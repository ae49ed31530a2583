"""One trial of a sweep as long as it has no outcome: its draw, its attempts, its reports and what was decided of it.

`SweepState` makes one from a `trial` line and changes it as further lines are applied. It knows nothing of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from buttress.sweep.evaluation import Judged, Line


@dataclass
class LiveTrial:
    """A trial that has no outcome yet."""

    id: str
    ask: int
    params: dict[str, Any]
    config: dict[str, Any]
    seed: int
    judged: Judged
    attempt: int = 0
    slot: str | None = None
    losses: int = 0
    lost: bool = False  # its workers are gone, or as good as: what a zombie still reports is void
    audited: bool = False  # condemned, and runs on to its real end
    suspended: Line | None = None  # condemned or suspect, and set aside, waiting for a second chance or the end
    rested: bool = False  # since it was set aside another trial has begun
    told: bool = False  # that it collapsed; what is told of it later is told beside that
    started: float | None = None
    seconds: float = 0.0  # of earlier attempts, up to where the present one took over

    def runs(self, attempt: int) -> bool:
        return attempt == self.attempt and not self.lost and self.suspended is None

    @property
    def epochs(self) -> int:
        """Its budget."""
        return self.judged.epochs

    @property
    def resume_point(self) -> Line | None:
        """The last report that counts and has a checkpoint."""
        return next((line for line in reversed(self.judged.reports) if line.get("checkpoint")), None)

    def begin(self, start: Line) -> None:
        """An attempt begins from the report that the line `start` names; one that was set aside has its second chance.

        The reports after that one are void: watch and best are made anew from those that count.
        """
        self.attempt, self.slot, self.started, self.lost = start["attempt"], start["slot"], start["time"], False
        if self.suspended is not None:
            self.judged.run_on(self.suspended["until"])
            self.suspended = None
        upto = -1 if start["resumed_from"] is None else start["resumed_from"]
        kept = [report for report in self.judged.reports if report["seq"] <= upto]
        self.seconds += kept[-1]["seconds"] if kept else 0.0
        self.judged.restart(kept)

    def forget_checkpoint(self, checkpoint: str) -> None:
        """One that turned out missing or unreadable is not resumed from again."""
        for line in self.judged.reports:
            if line.get("checkpoint") == checkpoint:
                line["checkpoint"] = None
