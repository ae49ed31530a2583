"""Asynchronous successive halving on full-beta age: trials are compared when they are equally old, or not at all.

The rule at one rung is that of Li et al. 2020 (ASHA) as Ray Tune runs it: stop a value worse than the (1 - 1/factor)
quantile of the values already in the rung. What differs: only values of the very same age are compared; a missing or
infinite value is the worst, not the best; a trial that collapses leaves every rung; phases have rungs of their own;
there is no `max_t`. Where the objective is not reported at every age, a rung stands at the next age at which it is:
with values at ages 2, 4, 6, ... the rungs 1, 3, 9 stand at 2, 4, 10. Plain Python, so that the real sweep and the
simulator share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal


@dataclass(frozen=True)
class Decision:
    """One comparison; `value` and `cutoff` in the objective's own direction, `cutoff` None for the first comer."""

    age: int
    phase: int
    value: float | None
    cutoff: float | None
    peers: int
    stop: bool


class Rungs:
    """The rungs of one sweep.

    >>> rungs = Rungs(first=1, factor=2, direction="min")
    >>> rungs.report("a", age=1, value=1.0).stop, rungs.report("b", age=1, value=2.0).stop
    (False, True)
    >>> rungs.forget("a")                                    # it collapsed: its low loss was worth nothing
    >>> rungs.report("c", age=1, value=1.5).stop             # so 1.5 is compared with 2.0 alone
    False
    """

    def __init__(self, first: int, factor: float, direction: Literal["min", "max"]) -> None:
        if first < 1:
            raise ValueError(f"the first rung's age must be at least 1 full-beta epoch, got {first}")
        if factor <= 1:
            raise ValueError(f"the reduction factor must be greater than 1, got {factor}")
        self.first, self.factor = first, factor
        self._sign = 1.0 if direction == "max" else -1.0
        self._rungs: dict[tuple[int, int], dict[str, float]] = {}  # (phase, age) -> trial -> value, larger is better
        self._reached: dict[tuple[int, str], int] = {}  # (phase, trial) -> the age of its newest value

    def is_rung(self, age: int, since: int | None = None) -> bool:
        """Whether one of first, first * factor, first * factor^2, ... (rounded down to whole epochs) is `age`, or lies
        after `since` and not after `age`."""
        rung, newest = float(self.first), 0
        while int(rung) <= age:
            newest, rung = int(rung), rung * self.factor
        return newest > (age - 1 if since is None else since)

    def skip(self, trial: str, age: int, phase: int = 0) -> int:
        """The trial has a value at `age` that is not to be compared; the age of the one before it, 0 if none."""
        since = self._reached.get((phase, trial), 0)
        self._reached[phase, trial] = max(since, age)
        return since

    def report(self, trial: str, age: int, value: float | None, phase: int = 0) -> Decision | None:
        """The decision for a value reported at `age`; None where there is no rung or the trial has passed it."""
        if not self.is_rung(age, since=self.skip(trial, age, phase)):
            return None
        rung = self._rungs.setdefault((phase, age), {})
        if trial in rung:
            return None
        score = self._sign * value if value is not None and isfinite(value) else -inf
        cutoff = _quantile(list(rung.values()), 1 - 1 / self.factor)
        stop = cutoff is not None and score < cutoff
        decision = Decision(
            age=age,
            phase=phase,
            value=None if score == -inf else value,
            cutoff=None if cutoff is None or cutoff == -inf else self._sign * cutoff,
            peers=len(rung),
            stop=stop,
        )
        rung[trial] = score
        return decision

    def forget(self, trial: str) -> None:
        """The trial collapsed or diverged: none of its values counts anywhere any more."""
        for rung in self._rungs.values():
            rung.pop(trial, None)

    def values(self, age: int, phase: int = 0) -> dict[str, float]:
        """trial -> value at one rung, in the objective's own direction (worst values as infinities)."""
        return {trial: self._sign * score for trial, score in self._rungs.get((phase, age), {}).items()}


def _quantile(values: list[float], q: float) -> float | None:
    """Linear-interpolated quantile as numpy's `percentile`, None when empty; infinities do not turn into NaN."""
    if not values:
        return None
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    share = place - low
    if share == 0 or low + 1 == len(ordered):
        return ordered[low]
    below, above = ordered[low], ordered[low + 1]
    if below == above or below == -inf:
        return below
    # numpy's formula, so that decisions agree to the last bit with Tune's
    return above - (above - below) * (1 - share) if share >= 0.5 else below + (above - below) * share
