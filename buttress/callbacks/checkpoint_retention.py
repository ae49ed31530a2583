"""Deletes checkpoints that are no longer needed.

A running trial keeps its last and its best one, the best completed trials their best one; no others stay.
"""

from __future__ import annotations

import contextlib
import heapq
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from buttress.journal.events import Outcome, Report

#: The checkpoints that trials write (training/reporting.py), whole or half: what may be deleted, whoever names it.
OURS = re.compile(r"checkpoints/\d{6,}(-\d{9,})?\.(pt|part)")
#: Completed trials whose best checkpoint is kept.
MAX_KEPT_TRIALS = 3


class TrialFiles(Protocol):
    """The files of a sweep's trials; names are relative to the trial's folder."""

    def exists(self, trial: str, name: str) -> bool: ...

    def checkpoints(self, trial: str) -> list[str]:
        """As `checkpoints/000003.pt`."""

    def delete(self, trial: str, name: str) -> None:
        """A file that is not there, or that cannot be deleted, is no error."""


class LocalTrialFiles:
    """Files below a folder that every node sees (a machine's own disk, or NFS), one folder per trial."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def exists(self, trial: str, name: str) -> bool:
        return (self._folder / trial / name).is_file()

    def checkpoints(self, trial: str) -> list[str]:
        return [f"checkpoints/{path.name}" for path in (self._folder / trial / "checkpoints").glob("*")]

    def delete(self, trial: str, name: str) -> None:
        path = self._folder / trial / name  # not through a link that somebody put there
        if path.parent.resolve() == self._folder.resolve() / trial / "checkpoints":
            with contextlib.suppress(OSError):
                path.unlink()


class CheckpointRetention:
    """Deletes checkpoints of one sweep as they become useless.

    Args:
        files: The files of its trials.
        metric: The metric by which completed trials are compared.
        direction: `min` or `max`.
    """

    def __init__(self, files: TrialFiles, metric: str, direction: str) -> None:
        self._files, self._metric = files, metric
        self._sign = 1.0 if direction == "max" else -1.0
        self._finished: list[tuple[float, str]] = []  # (value, larger is better; trial) of completed trials with files

    def reported(self, trial: str, reports: Sequence[Report], best: Report | None) -> None:
        """A report of a running trial came in: only its newest checkpoint and its best epoch's stay."""
        written = [report.checkpoint for report in reports if report.checkpoint]
        keep = set(written[-1:])
        if best is not None and best.checkpoint:
            keep.add(best.checkpoint)
        for path in written[:-1]:
            if path not in keep:
                self._delete(trial, path)

    def ended(self, trial: str, outcome: Outcome) -> None:
        """A trial has its outcome and its workers have left it."""
        best = outcome.best
        value = best.metrics[self._metric] if best else None
        keep = best.checkpoint if best and outcome.outcome == "completed" and value is not None else None
        for path in self._files.checkpoints(trial):
            if path != keep:
                self._delete(trial, path)
        if keep is not None and value is not None:
            heapq.heappush(self._finished, (self._sign * value, trial))
            if len(self._finished) > MAX_KEPT_TRIALS:
                _, worst = heapq.heappop(self._finished)
                for path in self._files.checkpoints(worst):
                    self._delete(worst, path)

    def _delete(self, trial: str, name: str) -> None:
        if OURS.fullmatch(name):
            self._files.delete(trial, name)
