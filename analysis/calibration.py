"""Searches thresholds, graces and patience for rules on curves whose end is known.

Only numbers change: of each rule that kills, the scale of its thresholds, the steps of grace, the first step at which
it may speak, and its patience. Divergence has no numbers to tune, and a rule that kills none of the curves, neither as
it is nor with less patience, stays as it is, because the curves say nothing about it.

The numbers are moved one at a time, each to the best of its candidates, until nothing improves. A proposal is allowed
when it kills at most the given share of the healthy curves and none of the winners, also with every threshold
`SAFETY_FACTOR` further out and every patience one report shorter, so that it does not only just hold on these curves.
Among allowed proposals the best one, in this order, catches most dead trials; catches them soon enough after their
onset; kills fewest healthy ones; has no rule that alone catches fewer than it did; and has the longest patience and the
latest start, because a kill that comes sooner than it has to costs healthy trials on the next curves.
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
from buttress.analysis.export import check_replaceable, signed
from buttress.analysis.replay import Score, replay, score
from buttress.errors import BadInput
from buttress.rules.schema import DIVERGED, Observation, PerDim, Relative, Rule, RuleSet

SAFETY_FACTOR = 1.1
DELAY_RESOLUTION = 0.005  # of the budget: smaller differences of the mean delay do not count
SCALES = (0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.25, 1.6, 2.2)  # of a rule's own thresholds
PATIENCES = (1, 2, 3, 4, 5, 6, 8, 10)
DELAYS = (0, 1, 2, 3, 4, 6, 8, 10, 14, 20)  # of grace and first step, in median intervals between reports
INITIAL_DELAYS = (2, 4, 6, 10, 16)  # of the first step, to start the search from
MAX_ROUNDS = 3
MAX_DOWNSCALINGS = 6  # of thresholds in search of numbers that keep the limit
#: Fewer curves of either kind say nothing about a share of a few per cent.
MIN_CURVES = 10


class RuleNumbers(NamedTuple):
    """The tuned numbers of one rule; `scale` is a factor on its thresholds."""

    scale: float
    grace_steps: int
    min_step: int
    patience: int


@dataclass(frozen=True)
class Calibration:
    """Proposed rules with their score on the curves they were tuned on.

    Attributes:
        rules: The proposed rules.
        score: Their score.
        before: The score of the rules that the search began with.
        changed: Rule -> number -> (before, after).
        replays: Replays of all curves that the search took.
    """

    rules: RuleSet
    score: Score
    before: Score
    changed: dict[str, dict[str, tuple[Any, Any]]]
    replays: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values, without the rules themselves."""
        changed = {name: {key: list(pair) for key, pair in pairs.items()} for name, pairs in self.changed.items()}
        return {"before": self.before.to_dict(), "after": self.score.to_dict(), "changed": changed}


def calibrate(
    rules: RuleSet,
    curves: Sequence[Curve],
    *,
    false_kill: float = 0.02,
    delay: float = 0.05,
    direction: str = "max",
    on_round: Callable[[str], None] = lambda text: None,
) -> Calibration:
    """Searches the best numbers for rules under a limit on false kills.

    Args:
        rules: The rules to begin with.
        curves: Recorded trials; those without a ground truth are left out.
        false_kill: Largest share of the healthy curves that may be killed, 0 to 1.
        delay: Mean delay of a kill after the onset that is soon enough, as a share of the budget, 0 to 1.
        direction: `min` or `max`, of the objective by which winners are known.
        on_round: Called with a sentence after every round.

    Raises:
        BadInput: There are too few dead or healthy curves, the rules see nothing in them, or no numbers keep the limit.
    """
    known = [curve for curve in curves if curve.truth is not None and curve.truth.outcome != "ambiguous"]
    dead = sum(curve.truth.dead for curve in known if curve.truth)
    if min(dead, len(known) - dead) < MIN_CURVES:
        raise BadInput(
            f"the curves hold {dead} dead and {len(known) - dead} healthy trials with a known end",
            accepted=f"at least {MIN_CURVES} of each, such as a CollapseBench file or a table with a column `truth`",
        )
    search = _Search(rules, known, false_kill, delay, direction)
    own = {name: numbers for name, numbers in search.own.items() if search.is_informed(name)}
    if not own:
        raise BadInput(
            "these rules kill none of the curves, neither as they are nor with less patience: there is nothing to tune",
            accepted="rules that look at what the curves hold (`buttress replay` says which do not)",
        )
    names = list(own)
    best = search.start(own)
    for number in range(MAX_ROUNDS):
        before = dict(best)
        for name in names:
            for field in RuleNumbers._fields:
                values = search.candidates(name, best[name], field)
                tried = [{**best, name: best[name]._replace(**{field: value})} for value in values]
                best = max([best, *tried], key=search.fitness)
        on_round(f"round {number + 1}: {search.scored(best).caught}, {search.scored(best).false_kill} healthy killed")
        if best == before:
            break
    made = _rules_with(rules, best)
    return Calibration(made, search.scored(best), search.score_of(rules), _changes(rules, made), search.replays)


class _Search:
    """Scores proposals on the curves; rules that were scored before are not replayed again."""

    def __init__(
        self, rules: RuleSet, curves: Sequence[Curve], false_kill: float, delay: float, direction: str
    ) -> None:
        killing = {name: rule for name, rule in rules.rules.items() if rule.action == "kill"}
        self.rules = rules.model_copy(update={"rules": killing})
        self.curves, self.limit, self.delay, self.direction = curves, false_kill, delay, direction
        gaps = [b.step - a.step for curve in curves for a, b in pairwise(curve.reports) if b.step > a.step]
        if not gaps:
            raise BadInput("no curve has two reports at different steps", accepted="several rows a curve")
        self.interval = round(statistics.median(gaps))
        self.replays = 0
        tuned = {name: rule for name, rule in killing.items() if rule.kind != DIVERGED}
        self.own = {name: _numbers_of(rule) for name, rule in tuned.items()}
        self.eager = RuleNumbers(1.0, 2 * self.interval, 6 * self.interval, 3)
        self._scores: dict[str, Score] = {}
        self._fitness: dict[tuple[tuple[str, RuleNumbers], ...], tuple[Any, ...]] = {}

    def candidates(self, name: str, now: RuleNumbers, field: str) -> Iterator[Any]:
        """Values to try for one number; a patience of 1 only for a rule that begins with it."""
        if field == "scale":
            yield from (scale * now.scale for scale in SCALES)
        elif field == "patience":
            yield from (count for count in PATIENCES if count >= min(2, self.own[name].patience))
        else:
            yield from (self.interval * count for count in DELAYS)

    def start(self, own: dict[str, RuleNumbers]) -> dict[str, RuleNumbers]:
        """The best of some proposals to start from: the rules' own numbers at all scales, and little patience at all
        scales and first steps; where none of them is allowed, also a cautious one."""
        tried = [{name: numbers._replace(scale=scale) for name, numbers in own.items()} for scale in SCALES]
        for scale, late in product(SCALES, INITIAL_DELAYS):
            tried.append(dict.fromkeys(own, self.eager._replace(scale=scale, min_step=late * self.interval)))
        if not any(self.allowed(each) for each in tried):
            tried.append(self.cautious(own))
        return max(tried, key=self.fitness)

    def cautious(self, proposal: dict[str, RuleNumbers]) -> dict[str, RuleNumbers]:
        """A proposal so late and patient, with thresholds so low, that it keeps the limit."""
        late = self.interval * DELAYS[-1]
        for power in range(1, MAX_DOWNSCALINGS + 1):
            scale = SCALES[0] ** power
            proposal = {
                name: RuleNumbers(scale, max(late, numbers.grace_steps), numbers.min_step, PATIENCES[-1])
                for name, numbers in proposal.items()
            }
            if self.allowed(proposal):
                return proposal
        raise BadInput(
            "no numbers of these rules keep the limit: what they look at does not separate healthy from dead trials",
            key="--false-kill", value=self.limit, accepted="a higher limit, or rules with other signs",
        )  # fmt: skip

    def score_of(self, rules: RuleSet) -> Score:
        """The score of a rule set."""
        key = rules.model_dump_json()
        if key not in self._scores:
            self.replays += 1
            found = score(self.curves, [replay(curve, rules) for curve in self.curves], self.direction)
            assert found is not None
            self._scores[key] = found
        return self._scores[key]

    def scored(self, proposal: dict[str, RuleNumbers]) -> Score:
        return self.score_of(_rules_with(self.rules, proposal))

    def alone(self, name: str, numbers: RuleNumbers) -> Score:
        """The score of one rule without the others."""
        rule = _with(self.rules.rules[name], numbers, 1.0)
        return self.score_of(self.rules.model_copy(update={"rules": {name: rule}}))

    def is_informed(self, name: str) -> bool:
        """Whether the curves say anything about this rule: it kills at least one of them."""
        both = (self.alone(name, numbers) for numbers in (self.own[name], self.eager))
        return any(found.caught.count or found.false_kill.count for found in both)

    def allowed(self, proposal: dict[str, RuleNumbers]) -> bool:
        """Whether a proposal keeps the limit, also when it kills a little sooner than it says."""
        eager = _rules_with(self.rules, proposal, SAFETY_FACTOR)
        return self._within(self.scored(proposal)) and self._within(self.score_of(eager))

    def _within(self, found: Score) -> bool:
        return found.false_kill.count <= self.limit * found.false_kill.of and found.winners.count == 0

    def fitness(self, proposal: dict[str, RuleNumbers]) -> tuple[Any, ...]:
        """The sort key of a proposal, larger is better; any allowed one is better than all others."""
        key = tuple(sorted(proposal.items()))
        if key not in self._fitness:
            found = self.scored(proposal)
            caution = sum(self._caution(numbers) for numbers in proposal.values())
            allowed = self.allowed(proposal)
            late = round(max(0.0, found.mean_delay - self.delay) / DELAY_RESOLUTION)
            fewer = sum(
                max(0, self.alone(name, self.own[name]).caught.count - self.alone(name, numbers).caught.count)
                for name, numbers in proposal.items()
            )
            order = (found.caught.count, -late, -found.false_kill.count, -fewer, caution)
            self._fitness[key] = (allowed, *(order if allowed else (-found.false_kill.count, *order)))
        return self._fitness[key]

    def _caution(self, numbers: RuleNumbers) -> float:
        return numbers.patience + (numbers.grace_steps + numbers.min_step) / self.interval


def _rules_with(rules: RuleSet, proposal: dict[str, RuleNumbers], slack: float = 1.0) -> RuleSet:
    changed = {name: _with(rules.rules[name], numbers, slack) for name, numbers in proposal.items()}
    return rules.model_copy(update={"rules": {**rules.rules, **changed}})


def _numbers_of(rule: Rule) -> RuleNumbers:
    return RuleNumbers(1.0, rule.grace.steps, rule.min_step, rule.patience)


def _with(rule: Rule, numbers: RuleNumbers, slack: float) -> Rule:
    """The rule with other numbers; a `slack` over 1 makes it kill sooner, by its thresholds and one report less."""
    patience = max(1, numbers.patience - (slack > 1))
    signs = tuple(_scaled(sign, numbers.scale, slack) for sign in rule.signs)
    grade = None if rule.grade is None else _scaled(rule.grade, numbers.scale, slack)
    grace = rule.grace.model_copy(update={"steps": numbers.grace_steps})
    update = {"signs": signs, "grade": grade, "grace": grace, "min_step": numbers.min_step, "patience": patience}
    return rule.model_copy(update=update)


def _scaled(sign: Any, scale: float, slack: float) -> Any:
    """The sign with its threshold scaled, `above` the other way; not for counts, slopes and ratios over time."""
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
        old, new = _all_numbers(rule), _all_numbers(after.rules[name])
        if different := {key: (old[key], new[key]) for key in old if old[key] != new[key]}:
            found[name] = different
    return found


def _all_numbers(rule: Rule) -> dict[str, Any]:
    numbers: dict[str, Any] = {"grace.steps": rule.grace.steps, "min_step": rule.min_step, "patience": rule.patience}
    for sign in rule.signs:
        threshold = sign.threshold
        plain = threshold.model_dump() if isinstance(threshold, PerDim | Relative) else threshold
        if plain is not None:
            numbers[f"{sign.metric} ({sign.transform}) {sign.comparison}"] = plain
    return numbers


def write_rules(found: Calibration, path: Path, *, command: str, force: bool = False) -> str:
    """Writes the proposed rules as a rules file.

    Args:
        found: The calibration.
        path: The file.
        command: The command line that makes it again, for its head.
        force: Write over a file that is not, or no longer, as an earlier calibration wrote it.

    Returns:
        The comments at its head: the command, the scores and the changed numbers.

    Raises:
        BadInput: The file cannot be written, or written over.
    """
    check_replaceable(path, force)
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
    rest = "".join(f"# {line}\n" for line in head[1:]) + "\n" + tree
    try:
        path.write_text(signed(f"# {head[0]}\n", rest), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot be written ({error.strerror})", where=path, key="--output") from None
    return "\n".join(head)
