"""One trial under its rules: which of its epochs are valid, which is the best, and whether it has collapsed.

In come the trial's reports, as journal lines, in order; each leaves with the verdict noted in it. A sweep, a single
`buttress train`, a replay of curves and the simulator judge alike because they share this class.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite
from typing import Any

from buttress.rules import RuleEngine, RuleSet, Verdict

Line = dict[str, Any]


class Judged:
    """The reports of one trial that count, and what follows from them.

    An epoch is valid when beta was final throughout, every value was finite on every rank, all objectives are there,
    and no kill rule is suspect or would be, were it not still in its grace: what looks collapsed is nobody's best.
    `best` is the valid epoch's report with the best first objective (the earliest of equals); `by_age` maps full-beta
    ages to the best valid value so far.
    """

    def __init__(self, rules: RuleSet, objectives: Sequence[str], direction: str, epochs: int) -> None:
        self._rules, self._objectives, self._maximise, self.epochs = rules, list(objectives), direction == "max", epochs
        self._reprieve: float | None = None
        self.restart([])

    def restart(self, kept: Sequence[Line]) -> None:
        """Begins anew from the reports that still count."""
        self.engine = RuleEngine(self._rules, budget_epochs=self.epochs)
        self.engine.revocable = self._reprieve is not None
        self.reports: list[Line] = []
        self.best: Line | None = None
        self.by_age: dict[int, float] = {}
        self.verdict: Verdict | None = None
        for report in kept:
            self.take_in(report)

    def run_on(self, until: float = inf) -> None:
        """The trial is not stopped for a collapse before it has completed `until` epochs (infinite: its real end).

        Meanwhile `verdict` is how it looks by now, and can change back; so it stays over a `restart`.
        """
        self._reprieve, self.engine.revocable = until, True

    @property
    def runs_on(self) -> bool:
        """Whether a verdict of collapse can still be taken back."""
        return self.engine.revocable

    @property
    def last(self) -> Line | None:
        return self.reports[-1] if self.reports else None

    @property
    def value(self) -> float | None:
        """The best valid value of the first objective so far."""
        return self.best["metrics"][self._objectives[0]] if self.best else None

    @property
    def margin(self) -> float | None:
        """Decades to the nearest rule (negative) or beyond it; None before the first report and without rules."""
        margin = self.engine.margin if self.reports else None
        return margin if margin is not None and isfinite(margin) else None

    def take_in(self, report: Line) -> Verdict:
        """Runs the rules on a report and writes into it `state`, `suspects`, `warnings` and `valid`."""
        judge = self.engine.close if report["closing"] else self.engine.update
        verdict: Verdict = judge(
            report["metrics"],
            epoch=report["epoch"],
            step=report["step"],
            full_beta_epochs=report["full_beta_epochs"],
            full_beta_steps=report["full_beta_steps"],
            phase=report["phase"],
            nonfinite=tuple(report["nonfinite"]),
        )
        if self._reprieve is not None and report["epoch"] >= self._reprieve:
            self.engine.revocable = False
        suspects = list(self.engine.suspects)
        values = [report["metrics"].get(name) for name in self._objectives]
        report["state"], report["suspects"] = verdict.state, suspects
        report["warnings"] = [warning.rule for warning in verdict.warnings]
        report["valid"] = (
            verdict.state == "healthy"
            and not suspects
            and not self.engine.holding
            and not report["nonfinite"]
            and report["full_beta_epochs"] >= 1
            and all(value is not None and isfinite(value) for value in values)
        )
        if report["valid"]:
            if self.value is None or self._better(values[0], self.value):
                self.best = report
            self.by_age[report["full_beta_epochs"]] = self.best["metrics"][self._objectives[0]]  # type: ignore[index]
        self.reports.append(report)
        self.verdict = verdict
        return verdict

    def _better(self, one: float, other: float) -> bool:
        return one > other if self._maximise else one < other
