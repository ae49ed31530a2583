"""Thresholds, graces and patience for rules, found on curves whose end is known: `buttress calibrate`.

In come rules to begin with and curves with a ground truth; out comes a rule set that differs in numbers alone: of
each rule that kills, the scale of its thresholds, the steps of grace and the first step at which it may speak, its
patience. (What a rule looks at is for a person to choose; divergence has no numbers to tune; a rule that kills none
of these curves, neither as it is nor sooner with less patience, is left as it is, since they say nothing about
it.) The numbers are moved one at a time, each to the best of its candidates, until nothing improves. A proposal is
allowed when it kills at most the stated share of the healthy curves and none of the winners, also with every
threshold `SLACK` further out and every patience one report shorter: what only just holds on these curves would not
hold on the next ones. Of the allowed ones the best catches most dead trials, then catches them soon enough after
their onset (what a mean delay has beyond `delay` of the budget counts), then kills fewest healthy ones, then has no
rule that alone catches fewer than it did (what another rule catches sooner here it may not catch on the next curves),
then leaves the most room (the longer patience, the later start): a kill that comes sooner than it has to is bought
with false kills on the next curves.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from buttress.analysis.curves import Curve
from buttress.analysis.replay import Score, replay, score
from buttress.errors import BadInput
from buttress.rules.schema import DIVERGED, Observation, PerDim, Relative, Rule, RuleSet

SLACK = 1.1
FINEST = 0.005  # of the budget: smaller differences of the mean delay do not count
SCALES = (0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.25, 1.6, 2.2)  # of a rule's own thresholds
PATIENCE = (1, 2, 3, 4, 5, 6, 8, 10)
REPORTS = (0, 1, 2, 3, 4, 6, 8, 10, 14, 20)  # of grace and before the first word, in typical intervals of reports
BEGINNINGS = (2, 4, 6, 10, 16)  # of a first word, to start the search from
ROUNDS = 3
FURTHEST = 6  # times that thresholds are scaled down in search of numbers that keep the limit
#: Fewer curves of either kind say nothing about a share of a few per cent.
LEAST = 10


class Knobs(NamedTuple):
    """What is tuned of one rule."""

    scale: float
    grace_steps: int
    min_step: int
    patience: int


@dataclass(frozen=True)
class Calibrated:
    """The proposed rules, what they do to the curves they were tuned on, and what the rules they came from do."""

    rules: RuleSet
    score: Score
    before: Score
    changed: dict[str, dict[str, tuple[Any, Any]]]  # rule -> number -> (before, after)
    replays: int

    def to_dict(self) -> dict[str, Any]:
        changed = {name: {key: list(pair) for key, pair in pairs.items()} for name, pairs in self.changed.items()}
        return {"before": self.before.to_dict(), "after": self.score.to_dict(), "changed": changed}


def calibrate(
    rules: RuleSet,
    curves: Sequence[Curve],
    *,
    false_kill: float = 0.02,
    delay: float = 0.05,
    direction: str = "max",
    tell: Callable[[str], None] = lambda text: None,
) -> Calibrated:
    """The best numbers for `rules` under a false-kill limit; raises BadInput where the curves cannot tell.

    `false_kill`: largest share of the healthy curves; `delay`: the mean delay, as a share of the budget, that is soon
    enough; `direction`: of the objective, by which winners are known.
    """
    known = [curve for curve in curves if curve.truth is not None and curve.truth.is_ != "ambiguous"]
    dead = sum(curve.truth.dead for curve in known if curve.truth)
    if min(dead, len(known) - dead) < LEAST:
        raise BadInput(
            f"the curves hold {dead} dead and {len(known) - dead} healthy trials with a known end",
            accepted=f"at least {LEAST} of each, such as a CollapseBench file or a table with a column `truth`",
        )
    bench = _Bench(rules, known, false_kill, delay, direction)
    own = {name: knobs for name, knobs in bench.own.items() if bench.tells_of(name)}
    if not own:
        raise BadInput(
            "these rules kill none of the curves, neither as they are nor sooner, so that there is nothing to tune",
            accepted="rules that look at what the curves hold (`buttress replay` says which do not)",
        )
    names = list(own)
    best = bench.start(own)
    for number in range(ROUNDS):
        before = dict(best)
        for name in names:
            for field in Knobs._fields:
                values = bench.candidates(name, best[name], field)
                tried = [{**best, name: best[name]._replace(**{field: value})} for value in values]
                best = max([best, *tried], key=bench.worth)
        tell(f"round {number + 1}: {bench.scored(best).caught}, {bench.scored(best).false_kill} healthy killed")
        if best == before:
            break
    made = _rules_with(rules, best)
    return Calibrated(made, bench.scored(best), bench.score_of(rules), _changes(rules, made), bench.replays)


class _Bench:
    """Proposals against the curves; every replay of the same rules is done once."""

    def __init__(
        self, rules: RuleSet, curves: Sequence[Curve], false_kill: float, delay: float, direction: str
    ) -> None:
        killing = {name: rule for name, rule in rules.rules.items() if rule.action == "kill"}  # warnings cost time only
        self.rules = rules.model_copy(update={"rules": killing})
        self.curves, self.limit, self.delay, self.direction = curves, false_kill, delay, direction
        gaps = [b.step - a.step for curve in curves for a, b in pairwise(curve.reports) if b.step > a.step]
        if not gaps:
            raise BadInput("no curve has two reports at different steps", accepted="several rows a curve")
        self.interval = round(statistics.median(gaps))
        self.replays = 0
        tuned = {name: rule for name, rule in killing.items() if rule.kind != DIVERGED}
        self.own = {name: _knobs(rule) for name, rule in tuned.items()}
        self.hasty = Knobs(1.0, 2 * self.interval, 6 * self.interval, 3)
        self._scores: dict[str, Score] = {}
        self._worth: dict[tuple[tuple[str, Knobs], ...], tuple[Any, ...]] = {}

    def candidates(self, name: str, now: Knobs, field: str) -> Iterator[Any]:
        """Values to try; no kill on a single report unless the rule came so: there is no haste to hold it against."""
        if field == "scale":
            yield from (scale * now.scale for scale in SCALES)
        elif field == "patience":
            yield from (count for count in PATIENCE if count >= min(2, self.own[name].patience))
        else:
            yield from (self.interval * count for count in REPORTS)

    def start(self, own: dict[str, Knobs]) -> dict[str, Knobs]:
        """The best allowed of a few: the rules' own numbers with all thresholds lower and higher, then the same
        thresholds with little patience from soon or later on; where none of them is allowed, great caution."""
        tried = [{name: knobs._replace(scale=scale) for name, knobs in own.items()} for scale in SCALES]
        for scale, late in product(SCALES, BEGINNINGS):
            tried.append(dict.fromkeys(own, self.hasty._replace(scale=scale, min_step=late * self.interval)))
        if not any(self.allowed(each) for each in tried):
            tried.append(self.cautious(own))
        return max(tried, key=self.worth)

    def cautious(self, proposal: dict[str, Knobs]) -> dict[str, Knobs]:
        """Numbers so late, patient and low that the limit is kept: where to come back from."""
        late = self.interval * REPORTS[-1]
        for power in range(1, FURTHEST + 1):
            scale = SCALES[0] ** power
            proposal = {
                name: Knobs(scale, max(late, knobs.grace_steps), knobs.min_step, PATIENCE[-1])
                for name, knobs in proposal.items()
            }
            if self.allowed(proposal):
                return proposal
        raise BadInput(
            "no numbers of these rules keep the limit: what they look at does not tell the healthy from the dead",
            key="--false-kill", value=self.limit, accepted="a higher limit, or rules with other signs",
        )  # fmt: skip

    def score_of(self, rules: RuleSet) -> Score:
        key = rules.model_dump_json()
        if key not in self._scores:
            self.replays += 1
            found = score(self.curves, [replay(curve, rules) for curve in self.curves], self.direction)
            assert found is not None
            self._scores[key] = found
        return self._scores[key]

    def scored(self, proposal: dict[str, Knobs]) -> Score:
        return self.score_of(_rules_with(self.rules, proposal))

    def alone(self, name: str, knobs: Knobs) -> Score:
        """What this rule does without the others."""
        rule = _with(self.rules.rules[name], knobs, 1.0)
        return self.score_of(self.rules.model_copy(update={"rules": {name: rule}}))

    def tells_of(self, name: str) -> bool:
        """Whether the curves say anything about this rule: it kills one of them."""
        both = (self.alone(name, knobs) for knobs in (self.own[name], self.hasty))
        return any(found.caught.count or found.false_kill.count for found in both)

    def allowed(self, proposal: dict[str, Knobs]) -> bool:
        eager = _rules_with(self.rules, proposal, SLACK)
        return self._within(self.scored(proposal)) and self._within(self.score_of(eager))

    def _within(self, found: Score) -> bool:
        return found.false_kill.count <= self.limit * found.false_kill.of and found.winners.count == 0

    def worth(self, proposal: dict[str, Knobs]) -> tuple[Any, ...]:
        """Larger is better; a proposal that is not allowed is worth less than any that is."""
        key = tuple(sorted(proposal.items()))
        if key not in self._worth:
            found = self.scored(proposal)
            room = sum(each.patience + (each.grace_steps + each.min_step) / self.interval for each in proposal.values())
            allowed = self.allowed(proposal)
            late = round(max(0.0, found.mean_delay - self.delay) / FINEST)
            fewer = sum(
                max(0, self.alone(name, self.own[name]).caught.count - self.alone(name, knobs).caught.count)
                for name, knobs in proposal.items()
            )
            worth = (found.caught.count, -late, -found.false_kill.count, -fewer, room)
            self._worth[key] = (allowed, *(worth if allowed else (-found.false_kill.count, *worth)))
        return self._worth[key]


def _rules_with(rules: RuleSet, proposal: dict[str, Knobs], slack: float = 1.0) -> RuleSet:
    changed = {name: _with(rules.rules[name], knobs, slack) for name, knobs in proposal.items()}
    return rules.model_copy(update={"rules": {**rules.rules, **changed}})


def _knobs(rule: Rule) -> Knobs:
    return Knobs(1.0, rule.grace.steps, rule.min_step, rule.patience)


def _with(rule: Rule, knobs: Knobs, slack: float) -> Rule:
    """The rule with other numbers. `slack` over 1 makes it kill sooner: thresholds further out, patience shorter."""
    patience = max(1, knobs.patience - (slack > 1))
    signs = tuple(_scaled(sign, knobs.scale, slack) for sign in rule.signs)
    grade = None if rule.grade is None else _scaled(rule.grade, knobs.scale, slack)
    grace = rule.grace.model_copy(update={"steps": knobs.grace_steps})
    update = {"signs": signs, "grade": grade, "grace": grace, "min_step": knobs.min_step, "patience": patience}
    return rule.model_copy(update=update)


def _scaled(sign: Any, scale: float, slack: float) -> Any:
    """Counts of units, slopes and ratios over time keep their thresholds, which have no scale; `above` moves the other
    way."""
    if not isinstance(sign, Observation) or sign.ungraded is not None or sign.transform != "value":
        return sign
    side = sign.comparison
    assert side is not None
    factor = scale * slack if side == "below" else 1 / (scale * slack)
    return sign.model_copy(update={side: _times(sign.threshold, factor)})


def _times(threshold: float | PerDim | Relative | None, factor: float) -> float | PerDim | Relative:
    if isinstance(threshold, PerDim):
        return threshold.model_copy(update={"per_dim": _round(threshold.per_dim * factor)})
    if isinstance(threshold, Relative):
        return threshold.model_copy(update={"factor": _round(threshold.factor * factor)})
    assert threshold is not None
    return _round(threshold * factor)


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _changes(before: RuleSet, after: RuleSet) -> dict[str, dict[str, tuple[Any, Any]]]:
    found: dict[str, dict[str, tuple[Any, Any]]] = {}
    for name, rule in before.rules.items():
        old, new = _numbers(rule), _numbers(after.rules[name])
        if different := {key: (old[key], new[key]) for key in old if old[key] != new[key]}:
            found[name] = different
    return found


def _numbers(rule: Rule) -> dict[str, Any]:
    numbers: dict[str, Any] = {"grace.steps": rule.grace.steps, "min_step": rule.min_step, "patience": rule.patience}
    for sign in rule.signs:
        threshold = sign.threshold
        plain = threshold.model_dump() if isinstance(threshold, PerDim | Relative) else threshold
        if plain is not None:
            numbers[f"{sign.metric} ({sign.transform}) {sign.comparison}"] = plain
    return numbers


def write(found: Calibrated, path: Path, *, command: str) -> str:
    """Writes the proposed rules as a rules file; returns its first lines, which tell what made it and how good it is.

    Raises BadInput where the file cannot be written.
    """
    head = [
        f"Proposed by `{command}`.",
        "On the curves they were tuned on (expect less on new ones), and of the rules they came from:",
        f"  dead and caught       {found.score.caught}; before {found.before.caught}",
        f"  healthy, but killed   {found.score.false_kill}; before {found.before.false_kill}",
        f"  mean delay            {found.score.mean_delay:.1%} of the budget; before {found.before.mean_delay:.1%}",
    ]
    for name, numbers in found.changed.items():
        head += [f"  {name}: {key} {old} -> {new}" for key, (old, new) in numbers.items()]
    tree = yaml.safe_dump(found.rules.to_dict(), sort_keys=False, allow_unicode=True, width=110)
    try:
        path.write_text("".join(f"# {line}\n" for line in head) + "\n" + tree, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot be written ({error.strerror})", where=path, key="--output") from None
    return "\n".join(head)
