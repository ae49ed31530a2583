"""Finds running trials that have used up their time, or have been silent for too long."""

from __future__ import annotations

import time
from typing import Literal

from buttress.spec.sections import Budget


class Limits:
    """`trial_minutes` count from a trial's first beginning, `stall_minutes` from when it was last heard of."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._heard: dict[str, float] = {}  # running trial -> when it was last heard of
        self._since: dict[str, float] = {}  # trial -> when its first attempt began

    def began(self, trial: str) -> None:
        now = time.monotonic()
        self._heard[trial] = now
        self._since.setdefault(trial, now)

    def heard(self, trial: str) -> None:
        """A running trial has reported; of another one it means nothing."""
        if trial in self._heard:
            self._heard[trial] = time.monotonic()

    def ended(self, trial: str) -> None:
        """Its attempt is over; nothing more is expected of it."""
        self._heard.pop(trial, None)

    def restart(self, trial: str) -> None:
        """If it begins again, it has all its time again."""
        self._since.pop(trial, None)

    def exceeded(self) -> list[tuple[str, Literal["time", "silence"]]]:
        """Running trials over a limit, and which; the same ones again for as long as they run and are silent."""
        budget, now = self._budget, time.monotonic()
        found: list[tuple[str, Literal["time", "silence"]]] = []
        for trial, heard in self._heard.items():
            if budget.trial_minutes and now - self._since[trial] > budget.trial_minutes * 60:
                found.append((trial, "time"))
            elif budget.stall_minutes and now - heard > budget.stall_minutes * 60:
                found.append((trial, "silence"))
        return found
