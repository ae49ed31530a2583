"""Keeps the report of a running sweep up to date, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from buttress.callbacks.base import Callback
from buttress.journal.events import Event, Outcome
from buttress.sweep.trial import ActiveTrial

#: Seconds between two beginnings.
INTERVAL_S = 60.0


class ReportPage(Callback):
    """Writes `report.html` into the sweep's folder as trials end, at most once a minute.

    The drawing takes seconds of a core: a process of low priority does it, and never two at once.

    Args:
        folder: The sweep's folder.
        interval_s: Seconds between two beginnings.
    """

    def __init__(self, folder: Path, interval_s: float = INTERVAL_S) -> None:
        self._folder, self._interval_s = folder, interval_s
        self._begun = -interval_s
        self._process: subprocess.Popen[bytes] | None = None

    def on_event(self, event: Event, trial: ActiveTrial | None = None) -> None:
        """A trial has ended: begins to write the page, unless it was begun a moment ago."""
        if isinstance(event, Outcome) and not self._busy() and time.monotonic() - self._begun >= self._interval_s:
            self._begun = time.monotonic()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "buttress", "report", str(self._folder)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env=os.environ | {"MPLBACKEND": "Agg"}, preexec_fn=_low_priority, start_new_session=True,
            )  # fmt: skip

    def close(self) -> None:
        """Ends a process that is still writing; the file that is there stays whole."""
        if self._busy() and self._process is not None:
            self._process.kill()
            self._process.wait()

    def _busy(self) -> bool:
        return self._process is not None and self._process.poll() is None


def _low_priority() -> None:
    os.nice(10)
