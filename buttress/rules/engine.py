"""The rule engine: takes the reports of one trial in order and gives its verdict after each.

The verdict is a pure function of the reports, so an engine that is fed the recorded reports of a trial again stands
where the first one stood.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median
from typing import NamedTuple

from buttress.rules.conditions import (
    MAX_MARGIN,
    Condition,
    InputKey,
    Reading,
    Report,
    Row,
    TransformedMetric,
)
from buttress.rules.schema import DIVERGED, Observation, Rule, RuleSet
from buttress.rules.verdict import Evidence, RuleWarning, Verdict, evidence_sentence, format_message

MIN_MARGIN = 1e-3  # decades: the least margin of a collapsed trial, and the least distance of a healthy one


class RuleEngine:
    """Applies a rule set to the reports of one trial.

    Once the trial is collapsed or diverged, further reports change nothing, unless `revocable` is set: then the
    verdict says how the trial looks by now, `collapsed` for as long as a rule holds and has held for its patience.

    Margins are in decades beyond the threshold of the rule's graded metric: log10(threshold / value) for `below`,
    log10(value / threshold) for `above`, values under 1e-12 taken as 1e-12, between -12 and 12. A collapsed trial has
    the median over the reports that its verdict rests on, at least 0.001 (hysteresis can leave the graded metric short
    of its threshold). A diverged trial has 12 plus the share of the budget that was left, so it is beyond any collapsed
    one. Any other trial has the largest margin of the kill rules, each the median of its last `patience` graded values;
    a healthy one at most -0.001, whatever the graded metric alone would say.

    Args:
        rules: The rules; those that are off are left out.
        budget_epochs: Epochs the trial may run, for the margin of a diverged trial (without: that margin is 12).

    Example:
        >>> from buttress.rules import RuleEngine, RuleSet
        >>> rule = {"action": "kill", "signs": [{"metric": "kl", "below": 0.3}]}
        >>> engine = RuleEngine(RuleSet.from_dict({"rules": {"collapse": rule}}), budget_epochs=10)
        >>> engine.update({"kl": 0.003}, epoch=2, step=200, full_beta_epochs=1, full_beta_steps=100).state
        'collapsed'
        >>> round(engine.margin, 6)
        2.0
    """

    def __init__(self, rules: RuleSet, budget_epochs: int | None = None) -> None:
        self._budget = budget_epochs
        self._columns = {key: (key, *columns) for key, columns in rules.aliases.items()}
        inputs: dict[InputKey, TransformedMetric] = {}
        self._rules = [RuleState(name, rule, inputs) for name, rule in rules.rules.items() if rule.action != "off"]
        self._kill_rules = [rule for rule in self._rules if rule.kills]
        self._inputs = list(inputs.values())
        needed = {name for rule in self._rules for condition in rule.conditions for name in condition.metrics}
        self._needed = [(name, self._columns.get(name, (name,))) for name in sorted(needed)]
        self._reported: set[str] = set()  # needed metrics that some report has held
        self._epoch = 0
        self._warnings: dict[str, RuleWarning] = {}
        self._verdict = Verdict()
        self._report: Report | None = None
        self._revocable = False

    @property
    def revocable(self) -> bool:
        """Whether a verdict of collapse is taken back when its rule no longer holds."""
        return self._revocable

    @revocable.setter
    def revocable(self, revocable: bool) -> None:
        self._revocable = revocable
        for rule in self._kill_rules:
            rule.revocable = revocable

    @property
    def verdict(self) -> Verdict:
        """The verdict after the last report."""
        return self._verdict

    @property
    def margin(self) -> float:
        """The margin of the verdict, in decades; NaN as long as no graded metric has been reported."""
        return self._verdict.margin

    @property
    def warnings(self) -> tuple[RuleWarning, ...]:
        """Every warning raised so far, in order."""
        return tuple(self._warnings.values())

    @property
    def suspects(self) -> tuple[str, ...]:
        """Names of the kill rules that hold, but not yet for their patience."""
        return tuple(rule.name for rule in self._kill_rules if rule.count and not rule.triggered)

    @property
    def holding(self) -> tuple[str, ...]:
        """Names of the kill rules that hold on the last report, also within their grace and before their `min_step`."""
        return tuple(rule.name for rule in self._kill_rules if rule.holds)

    def verdict_ignoring_patience(self) -> Verdict | None:
        """The verdict of collapse on a suspect trial as if its patience were over.

        Returns:
            None for a trial that is not suspect, or suspect only of having diverged.
        """
        rule = next((rule for rule in self._kill_rules if rule.count and not rule.diverged), None)
        if self._verdict.state != "suspect" or rule is None or self._report is None:
            return None
        return self._collapsed(rule, self._report)

    def update(
        self,
        metrics: Mapping[str, float | None],
        *,
        epoch: int,
        step: int,
        full_beta_epochs: int,
        full_beta_steps: int,
        phase: int = 0,
        nonfinite: Iterable[str] = (),
        closing: bool = False,
    ) -> Verdict:
        """Takes one report.

        Args:
            metrics: Reported values, by our key or a column that the rules name as its alias; more than the rules need
                is allowed. None, NaN and infinity all mean "not finite"; a metric that was not reported is left out.
            epoch: Completed epochs.
            step: Completed optimiser steps.
            full_beta_epochs: Epochs completed since beta reached its final value.
            full_beta_steps: Steps completed since then.
            phase: Number of the training phase, from 0.
            nonfinite: Names of further metrics that were not finite on some rank.
            closing: Whether this is the trial's last report. Then a kill rule that was suspect and holds now needs no
                more patience; one that does not hold is cleared; one that abstains leaves the trial suspect. For other
                rules it is one more report.

        Returns:
            The verdict including this report.
        """
        age, bad = (full_beta_epochs, full_beta_steps), frozenset(nonfinite)
        ends_epoch = closing or epoch > self._epoch
        return self._take(Report(metrics, epoch, step, *age, phase, bad, ends_epoch=ends_epoch), closing)

    def _take(self, report: Report, closing: bool) -> Verdict:
        if self._verdict.final and not self._revocable:
            return self._verdict
        self._epoch, self._report = report.epoch, report
        row: Row = {}
        for name, columns in self._needed:
            value = report.read(columns)
            if value is not None:
                row[name] = value
        self._reported.update(row)
        for each in self._inputs:
            each.update(row, report)
        for rule in self._rules:
            rule.update(row, report, self._reported, closing)
            if rule.triggered and not rule.kills and rule.name not in self._warnings:
                why = self._why(rule, report)
                self._warnings[rule.name] = RuleWarning(rule.name, rule.kind, report.epoch, report.step, *why)
        self._verdict = self._judge(report)
        return self._verdict

    def _judge(self, report: Report) -> Verdict:
        triggered = [rule for rule in self._kill_rules if rule.triggered]
        rule = next((rule for rule in triggered if rule.diverged), triggered[0] if triggered else None)
        if rule is not None and rule.diverged:
            margin = MAX_MARGIN + self._budget_left(report.epoch)
            return Verdict("diverged", rule.name, rule.kind, margin, *self._why(rule, report), self.warnings)
        if rule is not None:
            return self._collapsed(rule, report)
        nearest = max((median(rule.margins) for rule in self._kill_rules if rule.margins), default=math.nan)
        suspect = next((rule for rule in self._kill_rules if rule.count), None)
        if suspect is not None:
            return Verdict("suspect", suspect.name, suspect.kind, nearest, *self._why(suspect, report), self.warnings)
        healthy = nearest if math.isnan(nearest) else min(nearest, -MIN_MARGIN)
        return Verdict(margin=healthy, warnings=self.warnings)

    def _collapsed(self, rule: RuleState, report: Report) -> Verdict:
        why = self._why(rule, report)
        return Verdict("collapsed", rule.name, rule.kind, rule.collapse_margin(), *why, self.warnings)

    def _budget_left(self, epoch: int) -> float:
        return min(max(1 - epoch / self._budget, 0.0), 1.0) if self._budget else 0.0

    def _why(self, rule: RuleState, report: Report) -> tuple[tuple[Evidence, ...], str]:
        """A rule's evidence, and its message; without one that can be filled in, the sentence of the evidence."""
        evidence = rule.evidence()

        def number(name: str) -> float | None:
            if name in ("epoch", "step"):
                return report.epoch if name == "epoch" else report.step
            return report.read(self._columns.get(name, (name,)))

        message = format_message(rule.message, number) if rule.message else None
        return evidence, message or evidence_sentence(evidence)


class StreakEntry(NamedTuple):
    """One of the reports in a row on which a rule held: its (epoch, step), each condition's reading, the margin."""

    report: tuple[int, int]
    readings: list[Reading | None]
    margin: float | None


class RuleState:
    """One rule over one trial.

    Attributes:
        conditions: Of the signs and the grade, the graded one first, as evidence shows them.
        holds: Whether the rule's signs hold on the last report.
        count: Reports in a row on which it held and was allowed to speak.
        triggered: Whether it has held for its patience; for good, unless `revocable`.
        margins: The last graded values, at most `patience` of them, in decades.
    """

    def __init__(self, name: str, rule: Rule, inputs: dict[InputKey, TransformedMetric]) -> None:
        self.name, self.kind, self.message = name, rule.kind or name, rule.message
        self.kills, self.diverged = rule.action == "kill", rule.kind == DIVERGED
        self._rule = rule
        self._signs = [Condition(sign, rule, inputs) for sign in rule.signs]
        self._grade = self._grade_condition(inputs)
        graded = [self._grade] if self._grade else []
        self.conditions = [*graded, *(sign for sign in self._signs if sign is not self._grade)]
        self.count = 0
        self.holds = False
        self.triggered = False
        self.revocable = False
        self.margins: deque[float] = deque(maxlen=rule.patience)
        self._streak: deque[StreakEntry] = deque(maxlen=rule.patience)

    def _grade_condition(self, inputs: dict[InputKey, TransformedMetric]) -> Condition | None:
        grade = None if self.diverged else self._rule.graded
        if grade is None:
            return None
        same = next((condition for condition in self._signs if _same(condition.sign, grade)), None)
        return same or Condition(grade, self._rule, inputs)

    def update(self, row: Row, report: Report, reported: set[str], closing: bool) -> None:
        """Takes one report whose inputs are up to date.

        Args:
            row: Its metrics.
            report: The report itself.
            reported: Every metric that the trial has reported so far.
            closing: Whether it closes the trial, which waives the patience of a kill rule that is suspect.
        """
        rule = self._rule
        if rule.reports == "epoch_ends" and not report.ends_epoch:
            return
        if rule.phase is not None and report.phase != rule.phase:
            self._clear(holds=False)
            return
        for condition in self.conditions:
            condition.evaluate(row)
        margin = self._grade.margin() if self._grade else None
        if margin is not None:
            self.margins.append(margin)
        holds = self._vote(reported)
        if holds is None:
            return
        if not holds or not self._may_speak(report):
            self._clear(holds)
            return
        waived = closing and self.kills and self.count > 0
        self.holds, self.count = True, self.count + 1
        for sign in self._signs:
            sign.held = sign.held if sign.holds is None else sign.holds
        readings = [condition.reading() for condition in self.conditions]
        self._streak.append(StreakEntry((report.epoch, report.step), readings, margin))
        self.triggered = self._stays_triggered() or self.count >= rule.patience or waived

    def _clear(self, holds: bool) -> None:
        self.holds, self.count = holds, 0
        self.triggered = self._stays_triggered()
        self._streak.clear()
        for sign in self._signs:
            sign.held = False

    def _stays_triggered(self) -> bool:
        return self.triggered and not self.revocable

    def _vote(self, reported: set[str]) -> bool | None:
        """Whether the rule holds on this report; None if it abstains."""
        votes = self._rule.votes
        if votes is not None:
            judged = [sign.holds for sign in self._signs if sign.holds is not None]
            return sum(judged) >= votes if len(judged) >= votes else None
        asked = [sign.holds for sign in self._signs if sign.holds is not None or sign.ever_reported(reported)]
        return None if not asked or None in asked else all(asked)

    def _may_speak(self, report: Report) -> bool:
        grace = self._rule.grace
        if report.step < self._rule.min_step:
            return False
        if grace.before_full_beta:
            return report.epoch >= grace.epochs and report.step >= grace.steps
        full = report.full_beta_epochs > 0 or report.full_beta_steps > 0
        return full and report.full_beta_epochs >= grace.epochs and report.full_beta_steps >= grace.steps

    def collapse_margin(self) -> float:
        """The margin of a trial that this rule stops: the median over the reports it held on, at least `MIN_MARGIN`."""
        known = [each.margin for each in self._streak if each.margin is not None] or self.margins
        return max(median(known), MIN_MARGIN) if known else MIN_MARGIN

    def evidence(self) -> tuple[Evidence, ...]:
        """What the rule holds on: its graded observation, and every sign that held in the last report."""
        shown = []
        for place, condition in enumerate(self.conditions):
            read = [(each.report, reading) for each in self._streak if (reading := each.readings[place]) is not None]
            if read and (condition is self._grade or condition.held):
                shown.append(condition.evidence([report for report, _ in read], [reading for _, reading in read]))
        return tuple(shown)


def _same(one: Observation, other: Observation) -> bool:
    """Whether two observations compare the same thing in the same way."""
    return all(getattr(one, key) == getattr(other, key) for key in ("metric", "transform", "window", "below", "above"))
