"""Evaluates one trial under its rules: which of its epochs are valid, which is best, and whether it has collapsed.

A sweep, a single training, a replay of curves and the simulator share this class, and so judge alike.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from math import inf, isfinite

from buttress.journal.events import Report
from buttress.rules import RuleEngine, RuleSet, Verdict
from buttress.wording import listing, plural


class TrialEvaluator:
    """The reports of one trial that count, and what follows from them.

    An epoch is valid when beta was final throughout, every value was finite on every rank, all objectives are there,
    and no kill rule is suspect or would be, were it not still in its grace: what looks collapsed is nobody's best.

    Attributes:
        best: The report of the valid epoch with the best first objective (the earliest of equals), or None.
        by_age: Full-beta age (epochs) -> best valid value of the first objective by then.
        verdict: The verdict on the newest report, or None.
    """

    def __init__(self, rules: RuleSet, objectives: Sequence[str], direction: str, epochs: int) -> None:
        """
        Args:
            rules: The rules in force.
            objectives: Names of the objective metrics; the first one decides which epoch is best.
            direction: `min` or `max`, of the first objective.
            epochs: The trial's budget.
        """
        self._rules, self._objectives, self._maximise, self.epochs = rules, list(objectives), direction == "max", epochs
        self._kept_alive_until: float | None = None
        self.restart([])

    def restart(self, kept: Sequence[Report]) -> None:
        """Begins anew from the reports that still count."""
        self.engine = RuleEngine(self._rules, budget_epochs=self.epochs)
        self.engine.revocable = self._kept_alive_until is not None
        self.reports: list[Report] = []
        self.best: Report | None = None
        self.by_age: dict[int, float] = {}
        self.verdict: Verdict | None = None
        for report in kept:
            self.add(report)

    def keep_alive(self, until: float = inf) -> None:
        """A verdict of collapse does not stop the trial before it has completed `until` epochs (inf: its real end).

        Meanwhile `verdict` is how it looks by now, and can change back; so it stays over a `restart`.
        """
        self._kept_alive_until, self.engine.revocable = until, True

    @property
    def kept_alive(self) -> bool:
        """Whether a verdict of collapse can still be taken back."""
        return self.engine.revocable

    @property
    def last(self) -> Report | None:
        """The newest report."""
        return self.reports[-1] if self.reports else None

    @property
    def value(self) -> float | None:
        """The best valid value of the first objective so far."""
        return self.best.metrics[self._objectives[0]] if self.best else None

    @property
    def margin(self) -> float | None:
        """Decades to the nearest rule (negative) or beyond it; None before the first report and without rules."""
        margin = self.engine.margin if self.reports else None
        return margin if margin is not None and isfinite(margin) else None

    def add(self, report: Report) -> Report:
        """Runs the rules on a report.

        Returns:
            The report with `state`, `suspects`, `warnings` and `valid` filled in.
        """
        verdict = self.engine.update(
            report.metrics,
            epoch=report.epoch,
            step=report.step,
            full_beta_epochs=report.full_beta_epochs,
            full_beta_steps=report.full_beta_steps,
            phase=report.phase,
            nonfinite=report.nonfinite,
            closing=report.closing,
        )
        if self._kept_alive_until is not None and report.epoch >= self._kept_alive_until:
            self.engine.revocable = False
        suspects = tuple(self.engine.suspects)
        values = [report.metrics.get(name) for name in self._objectives]
        valid = (
            verdict.state == "healthy"
            and not suspects
            and not self.engine.holding
            and not report.nonfinite
            and report.full_beta_epochs >= 1
            and all(value is not None and isfinite(value) for value in values)
        )
        warnings = tuple(warning.rule for warning in verdict.warnings)
        report = replace(report, state=verdict.state, suspects=suspects, warnings=warnings, valid=valid)
        if valid:
            value = values[0]
            assert value is not None
            if self.value is None or self._better(value, self.value):
                self.best = report
            self.by_age[report.full_beta_epochs] = self.value if self.value is not None else value
        self.reports.append(report)
        self.verdict = verdict
        return report

    def why_none_is_valid(self) -> str:
        """Why no epoch was valid, in words: the first objective that never came as a number, else what kept it."""
        if not self.reports:
            return "nothing was reported"
        for name in self._objectives:
            values = [report.metrics[name] for report in self.reports if name in report.metrics]
            vectors = [report.vectors[name] for report in self.reports if name in report.vectors]
            if vectors and not values:
                return f"{name} was reported as a vector of {plural(len(vectors[0]), 'value')}, not as a number"
            if not values:
                keys = sorted({key for report in self.reports for key in report.metrics})
                close = difflib.get_close_matches(name, keys, 1)
                return f"{name} was never reported; reported were {listing(close or keys[:12]) or 'no metrics'}"
            if not any(value is not None and isfinite(value) for value in values):
                return f"{name} was NaN or infinite in every report"
        if not any(report.full_beta_epochs for report in self.reports):
            return "beta was not at its final value throughout any epoch"
        ends = [report for report in self.reports if report.full_beta_epochs and self._objectives[0] in report.metrics]
        if ends and all(report.nonfinite for report in ends):
            return f"{listing(sorted({key for report in ends for key in report.nonfinite})[:12])} was NaN or infinite"
        suspects = self.reports[-1].suspects or tuple(self.engine.holding)
        return f"still suspect of {', '.join(suspects)}" if suspects else "a kill rule held at every one"

    def forget_checkpoint(self, checkpoint: str) -> None:
        """A checkpoint turned out missing or unreadable: no report names it any more."""
        self.reports = [
            replace(report, checkpoint=None) if report.checkpoint == checkpoint else report for report in self.reports
        ]
        if self.best is not None and self.best.checkpoint == checkpoint:
            self.best = replace(self.best, checkpoint=None)

    def _better(self, one: float, other: float) -> bool:
        return one > other if self._maximise else one < other
