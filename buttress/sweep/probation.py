"""Second chances: what condemned trials that were set aside are ranked by.

In come every trial's valid reports; out comes whether a trial that was set aside would pass a rung among what the
others had reached at its age. When it is asked, and what follows from the answer, is the state's business.
"""

from __future__ import annotations

from collections.abc import Iterable

from buttress.search.halving import goes_on
from buttress.spec.spec import SweepSpec
from buttress.sweep.evaluation import Line
from buttress.sweep.trial import LiveTrial


def waiting(trials: Iterable[LiveTrial]) -> list[LiveTrial]:
    """Those that were set aside, oldest first."""
    return sorted((live for live in trials if live.suspended is not None), key=lambda live: live.id)


class Probation:
    """The best valid values of one sweep's first objective at every age; nothing is kept where the spec has none."""

    def __init__(self, spec: SweepSpec, direction: str) -> None:
        self._on = spec.probation.epochs is not None
        self._metric, self._direction, self._factor = spec.objectives[0].metric, direction, spec.scheduler.factor
        self._reached: dict[tuple[int, int], dict[str, float]] = {}  # (phase, age) -> trial -> best valid value by then

    def reported(self, live: LiveTrial, report: Line) -> None:
        """`live` has taken in this report."""
        if self._on and report["valid"]:
            age = report["full_beta_epochs"]
            self._reached.setdefault((report["phase"], age), {})[live.id] = live.judged.by_age[age]

    def forget(self, trial: str) -> None:
        """The trial collapsed or diverged: nobody is compared with it."""
        for values in self._reached.values():
            values.pop(trial, None)

    def ranks(self, live: LiveTrial) -> bool:
        """Whether its newest value, valid or not, would pass a rung among what others had reached at that age."""
        newest = next((line for line in reversed(live.judged.reports) if self._value(line) is not None), None)
        if newest is None:
            return False
        peers = self._reached.get((newest["phase"], newest["full_beta_epochs"]), {})
        return goes_on(newest["metrics"][self._metric], peers.values(), self._factor, self._direction)

    def _value(self, report: Line) -> float | None:
        value: float | None = report["metrics"].get(self._metric)
        return value
