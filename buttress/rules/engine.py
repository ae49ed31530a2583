"""The rule engine for one trial: a stream of reports goes in, a verdict comes out after each.

The verdict is a pure function of the reports seen, so a watch rebuilt from the recorded reports of a trial stands where
the first one stood. A value that is not finite may come as None, as NaN or infinity, or be named in `nonfinite`: all
are the same. What signs, votes, abstaining, grace and patience mean is told in `buttress/rules/schema.py`.

**Margins** are in decades beyond the threshold of the rule's graded metric: log10(threshold / value) for `below`,
log10(value / threshold) for `above`, values under 1e-12 taken as 1e-12, between -12 and 12. A condemned trial has the
median over the reports that condemned it, at least 0.001 (hysteresis can leave the graded metric short of its
threshold). A diverged trial has 12 plus the share of the budget that was left, so it is beyond any collapsed one. A
trial that is alive has the largest margin of the kill rules, each the median of its last `patience` graded values; for
a healthy trial at most -0.001, whatever the graded metric alone would say.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from buttress.rules.signs import MOST, Observer, ObserverKey, Report, Row, Seen, SignWatch
from buttress.rules.transforms import median
from buttress.rules.verdict import Evidence, Verdict, Warned, filled, told

if TYPE_CHECKING:
    from buttress.rules.schema import Observation, Rule, RuleSet

SURE = 1e-3  # decades: the least margin of a condemned trial, and the least distance of a healthy one


class TrialWatch:
    """The rules' watch over one trial; made by `RuleSet.watch`.

    `update` takes one report, `close` the closing one; both return the verdict. Once a trial is condemned, further
    reports change nothing; a trial that runs on nevertheless is watched with `final` False: then the verdict is how it
    looks by now, `collapsed` for as long as a rule holds and has held for its patience.
    """

    def __init__(self, rules: RuleSet, budget_epochs: int | None = None) -> None:
        self._budget = budget_epochs
        self._columns = {key: (key, *columns) for key, columns in rules.aliases.items()}
        observers: dict[ObserverKey, Observer] = {}
        self._rules = [RuleWatch(name, rule, observers) for name, rule in rules.rules.items() if rule.action != "off"]
        self._kills = [rule for rule in self._rules if rule.kills]
        self._observers = list(observers.values())
        needed = {name for rule in self._rules for sign in rule.observed for name in sign.metrics}
        self._needed = [(name, self._columns.get(name, (name,))) for name in sorted(needed)]
        self._reported: set[str] = set()  # needed metrics that some report has held
        self._epoch = 0
        self._warnings: dict[str, Warned] = {}
        self._verdict = Verdict()
        self._report: Report | None = None
        self._final = True

    @property
    def final(self) -> bool:
        """Whether a condemned trial stays condemned."""
        return self._final

    @final.setter
    def final(self, final: bool) -> None:
        self._final = final
        for rule in self._kills:
            rule.final = final

    @property
    def verdict(self) -> Verdict:
        """Where the trial stands after the last report."""
        return self._verdict

    @property
    def warnings(self) -> tuple[Warned, ...]:
        """Every warning raised so far, in order."""
        return tuple(self._warnings.values())

    @property
    def suspects(self) -> tuple[str, ...]:
        """Kill rules that hold, but not yet for their patience."""
        return tuple(rule.name for rule in self._kills if rule.count and not rule.condemned)

    @property
    def holding(self) -> tuple[str, ...]:
        """Kill rules whose signs hold on the last report, also those that may not speak yet (grace, `min_step`)."""
        return tuple(rule.name for rule in self._kills if rule.holds)

    def impatient(self) -> Verdict | None:
        """The verdict of collapse on a suspect trial if its patience were over now; None for any other trial, and for
        one that is suspect of nothing but having diverged."""
        rule = next((rule for rule in self._kills if rule.count and not rule.diverged), None)
        if self._verdict.state != "suspect" or rule is None or self._report is None:
            return None
        return self._collapsed(rule, self._report)

    def margin(self) -> float:
        """Decades beyond the nearest threshold, see the module; NaN as long as no graded metric has been reported."""
        return self._verdict.margin

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
    ) -> Verdict:
        """Takes one report. `epoch` and `step` count what is completed, `full_beta_*` what is completed at final beta.

        `metrics` may hold more than the rules watch; a metric that was not reported is left out, not None.
        """
        age, bad = (full_beta_epochs, full_beta_steps), frozenset(nonfinite)
        return self._take(Report(metrics, epoch, step, *age, phase, bad, ends_epoch=epoch > self._epoch))

    def close(
        self,
        metrics: Mapping[str, float | None],
        *,
        epoch: int,
        step: int,
        full_beta_epochs: int,
        full_beta_steps: int,
        phase: int = 0,
        nonfinite: Iterable[str] = (),
    ) -> Verdict:
        """Takes the report that closes a trial: a kill rule that was suspect and holds now needs no more patience.

        One that does not hold is cleared; one that abstains leaves the trial suspect. Other rules see one more report.
        """
        age, bad = (full_beta_epochs, full_beta_steps), frozenset(nonfinite)
        return self._take(Report(metrics, epoch, step, *age, phase, bad, ends_epoch=True), closing=True)

    def _take(self, report: Report, closing: bool = False) -> Verdict:
        if self._verdict.final and self._final:
            return self._verdict
        self._epoch, self._report = report.epoch, report
        row: Row = {}
        for name, columns in self._needed:
            value = report.read(columns)
            if value is not None:
                row[name] = value
        self._reported.update(row)
        for observer in self._observers:
            observer.see(row, report)
        for rule in self._rules:
            rule.take(row, report, self._reported, closing)
            if rule.condemned and not rule.kills and rule.name not in self._warnings:
                why = self._why(rule, report)
                self._warnings[rule.name] = Warned(rule.name, rule.kind, report.epoch, report.step, *why)
        self._verdict = self._judge(report)
        return self._verdict

    def _judge(self, report: Report) -> Verdict:
        condemned = [rule for rule in self._kills if rule.condemned]
        rule = next((rule for rule in condemned if rule.diverged), condemned[0] if condemned else None)
        if rule is not None and rule.diverged:
            margin = MOST + self._budget_left(report.epoch)
            return Verdict("diverged", rule.name, rule.kind, margin, *self._why(rule, report), self.warnings)
        if rule is not None:
            return self._collapsed(rule, report)
        nearest = max((median(rule.margins) for rule in self._kills if rule.margins), default=math.nan)
        suspect = next((rule for rule in self._kills if rule.count), None)
        if suspect is not None:
            return Verdict("suspect", suspect.name, suspect.kind, nearest, *self._why(suspect, report), self.warnings)
        healthy = nearest if math.isnan(nearest) else min(nearest, -SURE)
        return Verdict(margin=healthy, warnings=self.warnings)

    def _collapsed(self, rule: RuleWatch, report: Report) -> Verdict:
        why = self._why(rule, report)
        return Verdict("collapsed", rule.name, rule.kind, rule.condemned_margin(), *why, self.warnings)

    def _budget_left(self, epoch: int) -> float:
        return min(max(1 - epoch / self._budget, 0.0), 1.0) if self._budget else 0.0

    def _why(self, rule: RuleWatch, report: Report) -> tuple[tuple[Evidence, ...], str]:
        """A rule's evidence, and the sentence for people: the rule's own if every number in it was reported."""
        evidence = rule.evidence()

        def number(name: str) -> float | None:
            if name in ("epoch", "step"):
                return report.epoch if name == "epoch" else report.step
            return report.read(self._columns.get(name, (name,)))

        return evidence, (filled(rule.message, number) if rule.message else None) or told(evidence)


class _Moment(NamedTuple):
    """One report of a streak: its (epoch, step), what each observation saw, and the margin."""

    report: tuple[int, int]
    seen: list[Seen | None]
    margin: float | None


class RuleWatch:
    """One rule over one trial: whether it holds, for how many reports in a row, and on what."""

    def __init__(self, name: str, rule: Rule, observers: dict[ObserverKey, Observer]) -> None:
        self.name, self.kind, self.message = name, rule.kind or name, rule.message
        self.kills, self.diverged = rule.action == "kill", rule.kind == "diverged"
        self._rule = rule
        self._signs = [SignWatch(sign, rule, observers) for sign in rule.signs]
        self._grade = self._graded(observers)
        #: Signs and grade, the graded one first, as evidence shows them.
        graded = [self._grade] if self._grade else []
        self.observed = [*graded, *(sign for sign in self._signs if sign is not self._grade)]
        self.count = 0  # reports in a row in which the rule held and was allowed to speak
        self.holds = False
        self.condemned = False
        self.final = True  # False: it is condemned for as long as it holds
        self.margins: deque[float] = deque(maxlen=rule.patience)
        self._streak: deque[_Moment] = deque(maxlen=rule.patience)

    def _graded(self, observers: dict[ObserverKey, Observer]) -> SignWatch | None:
        grade = None if self.diverged else self._rule.graded
        if grade is None:
            return None
        same = next((sign for sign in self._signs if _same(sign.sign, grade)), None)
        return same or SignWatch(grade, self._rule, observers)

    def take(self, row: Row, report: Report, reported: set[str], closing: bool) -> None:
        rule = self._rule
        if rule.reports == "epoch_ends" and not report.ends_epoch:
            return
        if rule.phase is not None and report.phase != rule.phase:
            self._clear(holds=False)
            return
        for sign in self.observed:
            sign.look(row)
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
            sign.held = sign.held if sign.looked is None else sign.looked
        self._streak.append(_Moment((report.epoch, report.step), [sign.seen() for sign in self.observed], margin))
        self.condemned = (self.final and self.condemned) or self.count >= rule.patience or waived

    def _clear(self, holds: bool) -> None:
        self.holds, self.count = holds, 0
        self.condemned = self.final and self.condemned
        self._streak.clear()
        for sign in self._signs:
            sign.held = False

    def _vote(self, reported: set[str]) -> bool | None:
        """Whether the rule holds on this report; None if it abstains."""
        votes = self._rule.votes
        if votes is not None:
            judged = [sign.looked for sign in self._signs if sign.looked is not None]
            return sum(judged) >= votes if len(judged) >= votes else None
        asked = [sign.looked for sign in self._signs if sign.looked is not None or sign.known(reported)]
        return None if not asked or None in asked else all(asked)

    def _may_speak(self, report: Report) -> bool:
        grace = self._rule.grace
        if report.step < self._rule.min_step:
            return False
        if grace.before_full_beta:
            return report.epoch >= grace.epochs and report.step >= grace.steps
        full = report.full_beta_epochs > 0 or report.full_beta_steps > 0
        return full and report.full_beta_epochs >= grace.epochs and report.full_beta_steps >= grace.steps

    def condemned_margin(self) -> float:
        known = [moment.margin for moment in self._streak if moment.margin is not None] or self.margins
        return max(median(known), SURE) if known else SURE

    def evidence(self) -> tuple[Evidence, ...]:
        """What the rule holds on: its graded observation, and every sign that held in the last report."""
        shown = []
        for place, sign in enumerate(self.observed):
            seen = [(moment.report, each) for moment in self._streak if (each := moment.seen[place]) is not None]
            if seen and (sign is self._grade or sign.held):
                shown.append(sign.evidence([report for report, _ in seen], [each for _, each in seen]))
        return tuple(shown)


def _same(one: Observation, other: Observation) -> bool:
    """Whether two observations look at the same thing the same way."""
    return all(getattr(one, key) == getattr(other, key) for key in ("metric", "transform", "window", "below", "above"))
