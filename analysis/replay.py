"""Replays recorded curves under rules: which are killed, when and why; with a ground truth, how right that was.

A curve is judged by the class that judges a running trial (`buttress.sweep.evaluation`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from buttress.analysis.curves import Curve, CurveSet
from buttress.analysis.intervals import Share
from buttress.errors import BadInput
from buttress.rules.coverage import unwatched_rules
from buttress.rules.schema import RuleSet
from buttress.sweep.evaluation import TrialEvaluator

#: Share of the healthy trials that are winners, the best ones by the objective.
WINNER_SHARE = 0.05
#: A kill does not depend on the objective, and curves from elsewhere need not hold it.
NO_OBJECTIVE = ""


@dataclass(frozen=True)
class CurveReplay:
    """One curve under the rules.

    Attributes:
        curve: Its name.
        killed: Index of the report at which it was killed; None for a curve that was not.
        killed_at: The source's step (or epoch) of that report.
        kind: What the rule that killed it calls this end.
        rule: That rule.
        margin: Margin of the last verdict, in decades; None where it is unknown.
        message: Why it was killed, in a sentence.
        warnings: Kinds of the rules that warned, each once, in order.
        warned_at: The source's step (or epoch) of each warning.
        spent: Share of the curve that was run, 0 to 1.
        reports: Number of reports.
        truth: How the trial really ended, where that is known.
        delay: Share of the curve run after its onset, of a dead trial that was killed (0 for a kill before it).
    """

    curve: str
    killed: int | None
    killed_at: float | None
    kind: str | None
    rule: str | None
    margin: float | None
    message: str | None
    warnings: tuple[str, ...]
    warned_at: tuple[float, ...]
    spent: float
    reports: int
    truth: str | None = None
    delay: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        entry = asdict(self)
        return entry | {"warnings": list(self.warnings), "warned_at": list(self.warned_at)}


def replay(curve: Curve, rules: RuleSet) -> CurveReplay:
    """Judges the curve's reports in order, until the rules kill it."""
    evaluation = TrialEvaluator(rules, [NO_OBJECTIVE], "min", curve.budget_epochs)
    killed: int | None = None
    warned: dict[str, float] = {}
    for index, report in enumerate(curve.reports):
        evaluation.add(report)
        verdict = evaluation.engine.verdict
        for warning in verdict.warnings:
            warned.setdefault(warning.kind, curve.at[index])
        if verdict.final:
            killed = index
            break
    verdict = evaluation.engine.verdict
    spent = 1.0 if killed is None else curve.fraction_run(killed)
    final = killed is not None
    truth = curve.truth
    delay = max(0.0, spent - _onset(curve)) if truth is not None and truth.dead and final else None
    return CurveReplay(
        curve=curve.name,
        killed=killed,
        killed_at=None if killed is None else curve.at[killed],
        kind=verdict.kind if final else None,
        rule=verdict.rule if final else None,
        margin=verdict.margin if math.isfinite(verdict.margin) else None,
        message=verdict.message if final else None,
        warnings=tuple(warned),
        warned_at=tuple(warned.values()),
        spent=spent,
        reports=len(curve.reports),
        truth=truth.outcome if truth else None,
        delay=delay,
    )


def _onset(curve: Curve) -> float:
    """Share of the curve that lies behind a dead trial's onset; 0 where it is not known."""
    return 0.0 if curve.truth is None or curve.truth.onset is None else curve.fraction_run(curve.truth.onset)


def _delay(curve: Curve, found: CurveReplay) -> float:
    return 1.0 - _onset(curve) if found.delay is None else found.delay


@dataclass(frozen=True)
class Score:
    """Rules scored on curves whose end is known. All delays and durations are shares of the budget, 0 to 1.

    Attributes:
        caught: Killed ones of the dead trials.
        false_kill: Killed ones of the healthy trials.
        winners: Killed ones of the best 5 % of the healthy trials.
        ambiguous: Trials whose end is ambiguous; they are left out of everything else.
        median_delay: Of the dead trials that were caught, after their onset; None without one.
        mean_delay: Over all dead trials; a missed one counts all that was left after its onset.
        median_spent: Share of the budget that caught trials ran; None without one.
        compute_saved: Share of the compute (core-seconds where known, else steps) that the kills save.
        winner_killed: Whether the best trial of all was killed; None without healthy trials.
        recoverers_killed: Killed ones of the healthy trials that looked dead for a while.
        late_bloomers_killed: Killed ones of the healthy trials that became good late.
    """

    caught: Share
    false_kill: Share
    winners: Share
    ambiguous: int
    median_delay: float | None
    mean_delay: float
    median_spent: float | None
    compute_saved: float
    winner_killed: bool | None
    recoverers_killed: Share
    late_bloomers_killed: Share

    @property
    def missed(self) -> int:
        """Dead trials that were not killed."""
        return self.caught.of - self.caught.count

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        shares = {
            name: getattr(self, name).to_dict()
            for name in ("caught", "false_kill", "winners", "recoverers_killed", "late_bloomers_killed")
        }
        shares["winners_killed"] = shares.pop("winners")
        rest = ("missed", "ambiguous", "median_delay", "mean_delay", "median_spent", "compute_saved", "winner_killed")
        return shares | {name: getattr(self, name) for name in rest}


def score(curves: Sequence[Curve], replayed: Sequence[CurveReplay], direction: str = "max") -> Score | None:
    """Scores replays against the ground truth.

    Args:
        curves: The curves.
        replayed: Their replays, in the same order.
        direction: `min` or `max`, of the objective.

    Returns:
        None where no curve has a ground truth.
    """
    known = [(curve, found) for curve, found in zip(curves, replayed, strict=True) if curve.truth is not None]
    if not known:
        return None
    dead = [(curve, found) for curve, found in known if curve.truth and curve.truth.dead]
    healthy = [(curve, found) for curve, found in known if curve.truth and curve.truth.outcome == "healthy"]
    ranked = ranked_healthy([curve for curve, _ in healthy], direction)
    wrong = [curve for curve, found in healthy if found.killed is not None]
    killed = set(map(id, wrong))  # not their names, which may recur
    best = winners(ranked)
    caught = [found for _, found in dead if found.killed is not None]
    return Score(
        caught=Share(len(caught), len(dead)),
        false_kill=Share(len(wrong), len(healthy)),
        winners=Share(sum(id(curve) in killed for curve in best), len(best)),
        ambiguous=sum(curve.truth.outcome == "ambiguous" for curve, _ in known if curve.truth),
        median_delay=statistics.median(found.delay or 0.0 for found in caught) if caught else None,
        mean_delay=statistics.fmean(_delay(curve, found) for curve, found in dead) if dead else 0.0,
        median_spent=statistics.median(found.spent for found in caught) if caught else None,
        compute_saved=_saved(known),
        winner_killed=id(ranked[0]) in killed if ranked else None,
        recoverers_killed=_among(healthy, "recoverer"),
        late_bloomers_killed=_among(healthy, "late_bloomer"),
    )


def ranked_healthy(curves: Sequence[Curve], direction: str) -> list[Curve]:
    """The healthy curves with a value, best first."""
    sign = -1.0 if direction == "max" else 1.0
    valued = [(sign * c.truth.value, c.name, c) for c in curves if c.truth and c.truth.value is not None]
    healthy = [entry for entry in valued if entry[2].truth and entry[2].truth.outcome == "healthy"]
    return [curve for _, _, curve in sorted(healthy, key=lambda entry: entry[:2])]


def winners(ranked: Sequence[Curve]) -> Sequence[Curve]:
    """The best 5 % of ranked healthy curves, one at least."""
    return ranked[: max(1, round(WINNER_SHARE * len(ranked)))] if ranked else []


def _among(healthy: Sequence[tuple[Curve, CurveReplay]], mark: str) -> Share:
    marked = [found for curve, found in healthy if getattr(curve.truth, mark)]
    return Share(sum(found.killed is not None for found in marked), len(marked))


def _saved(known: Sequence[tuple[Curve, CurveReplay]]) -> float:
    def cost(curve: Curve) -> float:
        return curve.seconds[-1] if curve.seconds else float(curve.reports[-1].step)

    def run(curve: Curve, found: CurveReplay) -> float:
        if found.killed is None:
            return cost(curve)
        return curve.seconds[found.killed] if curve.seconds else found.spent * cost(curve)

    whole = sum(cost(curve) for curve, _ in known)
    return 1 - sum(run(curve, found) for curve, found in known) / whole if whole else 0.0


def replay_result(found: CurveSet, rules: RuleSet, *, family: str) -> dict[str, Any]:
    """Replays all curves of a source under rules.

    Args:
        found: The curves.
        rules: The rules.
        family: Name of the rules, for the result.

    Returns:
        What `buttress replay --json` prints: `{"family", "curves": [...], "summary": {...}, "notes": [...]}`. `summary`
        has `curves`, `killed` and `warned`, and with a ground truth the figures of `Score`.

    Raises:
        BadInput: No rule looks at anything that the curves hold.
    """
    notes = [*found.notes, *coverage_notes(found.curves, rules)]
    replayed = [replay(curve, rules) for curve in found.curves]
    scored = score(found.curves, replayed, str(found.about.get("direction", "max")))
    summary: dict[str, Any] = {
        "curves": len(replayed),
        "killed": sum(each.killed is not None for each in replayed),
        "warned": sum(bool(each.warnings) for each in replayed),
    }
    if scored is not None:
        summary |= scored.to_dict()
    curves = [each.to_dict() for each in replayed]
    return {"family": family, "curves": curves, "summary": summary, "notes": notes}


def coverage_notes(curves: Sequence[Curve], rules: RuleSet) -> list[str]:
    """Sentences on rules that cannot judge these curves.

    Raises:
        BadInput: None of the rules can.
    """
    held = {name for curve in curves for report in curve.reports for name in (*report.metrics, *report.nonfinite)}
    active = {name: rule for name, rule in rules.rules.items() if rule.action != "off"}
    blind = list(unwatched_rules(rules, held))
    if blind and len(blind) == len(active):
        signs = [sign.metric for rule in active.values() for sign in rule.signs]
        needed = dict.fromkeys(name for metric in signs for name in (metric, *rules.aliases.get(metric, ())))
        problem = "the curves hold nothing that a rule looks at"
        raise BadInput(problem, value=sorted(held), accepted=f"{', '.join(needed)}, or aliases in the rules file")
    notes = [f"the curves do not hold what these rules look at: {', '.join(blind)}"] if blind else []
    timeless = not any(report.epoch for curve in curves for report in curve.reports)
    if waiting := [name for name, rule in active.items() if timeless and rule.grace.epochs and name not in blind]:
        names = ", ".join(waiting)
        notes.append(f"the curves have no epochs, so these rules wait for their grace: {names}; see --steps-per-epoch")
    return notes


def summary_lines(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The summary of `replay_result` for people, as (title, figure)."""
    lines = [("curves", f"{summary['curves']}, of which {summary['killed']} killed, {summary['warned']} with warnings")]
    if "caught" not in summary:
        return lines
    for name, title in (
        ("caught", "dead, and caught"),
        ("false_kill", "healthy, but killed"),
        ("winners_killed", "winners killed"),
        ("recoverers_killed", "recoverers killed"),
        ("late_bloomers_killed", "late bloomers killed"),
    ):
        lines.append((title, str(Share(summary[name]["count"], summary[name]["of"]))))
    for name, title in (("median_delay", "median delay"), ("median_spent", "median spent of a caught trial")):
        lines.append((title, "-" if summary[name] is None else f"{summary[name]:.1%} of the budget"))
    lines.append(("compute saved", f"{summary['compute_saved']:.1%}"))
    if summary["ambiguous"]:
        lines.append(("ambiguous, left out", str(summary["ambiguous"])))
    return lines
