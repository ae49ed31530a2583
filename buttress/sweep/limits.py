"""Finds trials that have used up their time, and workers that hang."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from buttress.spec.sections import Budget


@dataclass
class _Attempt:
    """Workers that are in a trial."""

    active: float  # when they were last known to do something
    stopping: bool = False  # they were told to stop: what they do does not count any more


class Limits:
    """`trial_minutes` count from a trial's first beginning, `stall_minutes` from when its workers last did something.

    Workers that were told to stop have `stall_minutes` for leaving, whatever they do: the next trial waits for them.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._attempts: dict[str, _Attempt] = {}  # trial -> the workers that are in it
        self._since: dict[str, float] = {}  # trial that may still run out of time -> when its first attempt began

    def began(self, trial: str) -> None:
        now = time.monotonic()
        self._attempts[trial] = _Attempt(now)
        self._since.setdefault(trial, now)

    def active(self, trial: str) -> None:
        """The workers of a trial have reported, computed, read or written; without workers it means nothing."""
        attempt = self._attempts.get(trial)
        if attempt is not None and not attempt.stopping:
            attempt.active = time.monotonic()

    def stopping(self, trial: str) -> None:
        """Its workers were told to stop; if it begins again it has all its time again."""
        self._since.pop(trial, None)
        attempt = self._attempts.get(trial)
        if attempt is not None and not attempt.stopping:
            self._attempts[trial] = _Attempt(time.monotonic(), stopping=True)

    def left(self, trial: str) -> None:
        """No worker is in the trial any more."""
        self._attempts.pop(trial, None)

    @property
    def running(self) -> frozenset[str]:
        """Trials that have workers."""
        return frozenset(self._attempts)

    def silent(self, share: float = 1.0) -> list[str]:
        """Trials whose workers have done nothing for this share of `stall_minutes`, those that are to stop left out."""
        return [name for name, attempt in self._attempts.items() if not attempt.stopping and self._over(attempt, share)]

    def exceeded(self) -> list[tuple[str, Literal["time", "stall", "stop"]]]:
        """Trials with workers over a limit, and which; the same ones again for as long as it is so.

        Returns:
            Trials with `time` (over `trial_minutes`), `stall` (their workers do nothing) or `stop` (their workers were
            told to stop and have not left).
        """
        minutes, now = self._budget.trial_minutes, time.monotonic()
        found: list[tuple[str, Literal["time", "stall", "stop"]]] = []
        for trial, attempt in self._attempts.items():
            if minutes and not attempt.stopping and now - self._since[trial] > minutes * 60:
                found.append((trial, "time"))
            elif self._over(attempt):
                found.append((trial, "stop" if attempt.stopping else "stall"))
        return found

    def _over(self, attempt: _Attempt, share: float = 1.0) -> bool:
        return time.monotonic() - attempt.active > self._budget.stall_minutes * 60 * share
