"""What rules would have done to recorded curves: `buttress replay`.

In come `Curve`s and a `RuleSet`; out comes one `Replayed` per curve (when it is killed, of what, which warnings) and,
over all of them, a `Score`. Where the curves have a ground truth the score says how many dead trials were caught and
how long after their onset, how many healthy ones were killed, and whether the winner was among them, each share with
its Wilson interval. A curve is judged by the class that judges a running trial (buttress/sweep/evaluation.py).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from buttress.analysis.curves import Curve, Curves
from buttress.analysis.intervals import Share
from buttress.errors import BadInput
from buttress.rules.schema import Rule, RuleSet
from buttress.sweep.evaluation import Judged

#: The winners: this share of the healthy trials, by objective.
TOP = 0.05
#: A kill does not depend on what is optimised, and foreign curves need not hold it.
NO_OBJECTIVE = ""


@dataclass(frozen=True)
class Replayed:
    """One curve under the rules. `killed`: index of the report that condemned it, None for a curve that lived;
    `killed_at`, `warned_at`: the source's step or epoch; `spent`: share of the curve run; `delay`: of a dead trial that
    was killed, share of the curve run after its onset (0 for a kill before it)."""

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
        """JSON-able: `warnings` are the kinds of the rules that warned, each once, in order."""
        entry = asdict(self)
        return entry | {"warnings": list(self.warnings), "warned_at": list(self.warned_at)}


def replay(curve: Curve, rules: RuleSet) -> Replayed:
    """The curve's reports, one after the other, until the rules condemn it."""
    judged = Judged(rules, [NO_OBJECTIVE], "min", curve.budget_epochs)
    killed: int | None = None
    warned: dict[str, float] = {}
    for index, report in enumerate(curve.reports):
        verdict = judged.take_in(dict(report))
        for warning in verdict.warnings:
            warned.setdefault(warning.kind, curve.at[index])
        if verdict.final:
            killed = index
            break
    verdict = judged.engine.verdict
    spent = 1.0 if killed is None else curve.spent(killed)
    final = killed is not None
    truth = curve.truth
    delay = max(0.0, spent - _onset(curve)) if truth is not None and truth.dead and final else None
    return Replayed(
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
        truth=truth.is_ if truth else None,
        delay=delay,
    )


def _onset(curve: Curve) -> float:
    """Share of the curve that lies behind a dead trial's onset; 0 where it is not known."""
    return 0.0 if curve.truth is None or curve.truth.onset is None else curve.spent(curve.truth.onset)


def _delay(curve: Curve, found: Replayed) -> float:
    return 1.0 - _onset(curve) if found.delay is None else found.delay


@dataclass(frozen=True)
class Score:
    """Rules against curves whose end is known. Ambiguous trials are counted and left out of every share.

    `mean_delay`: over all dead trials, a missed one counting all that was left of its budget after the onset;
    `compute_saved`: share of the compute (core-seconds where known, else steps) that the kills save; `winners`: killed
    ones among the best 5 % of the healthy trials; `winner_killed`: whether the best trial of all is.
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
        return self.caught.of - self.caught.count

    def to_dict(self) -> dict[str, Any]:
        shares = {
            name: getattr(self, name).to_dict()
            for name in ("caught", "false_kill", "winners", "recoverers_killed", "late_bloomers_killed")
        }
        shares["winners_killed"] = shares.pop("winners")
        rest = ("missed", "ambiguous", "median_delay", "mean_delay", "median_spent", "compute_saved", "winner_killed")
        return shares | {name: getattr(self, name) for name in rest}


def score(curves: Sequence[Curve], replayed: Sequence[Replayed], direction: str = "max") -> Score | None:
    """What the replays come to; None where no curve has a ground truth. `direction` is the objective's."""
    known = [(curve, found) for curve, found in zip(curves, replayed, strict=True) if curve.truth is not None]
    if not known:
        return None
    dead = [(curve, found) for curve, found in known if curve.truth and curve.truth.dead]
    healthy = [(curve, found) for curve, found in known if curve.truth and curve.truth.is_ == "healthy"]
    ranked = ranked_healthy([curve for curve, _ in healthy], direction)
    wrong = [curve for curve, found in healthy if found.killed is not None]
    killed = set(map(id, wrong))  # not their names, which may recur
    best = winners(ranked)
    caught = [found for _, found in dead if found.killed is not None]
    return Score(
        caught=Share(len(caught), len(dead)),
        false_kill=Share(len(wrong), len(healthy)),
        winners=Share(sum(id(curve) in killed for curve in best), len(best)),
        ambiguous=sum(curve.truth.is_ == "ambiguous" for curve, _ in known if curve.truth),
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
    healthy = [entry for entry in valued if entry[2].truth and entry[2].truth.is_ == "healthy"]
    return [curve for _, _, curve in sorted(healthy, key=lambda entry: entry[:2])]


def winners(ranked: Sequence[Curve]) -> Sequence[Curve]:
    """The best 5 % of ranked healthy curves, one at least."""
    return ranked[: max(1, round(TOP * len(ranked)))] if ranked else []


def _among(healthy: Sequence[tuple[Curve, Replayed]], mark: str) -> Share:
    marked = [found for curve, found in healthy if getattr(curve.truth, mark)]
    return Share(sum(found.killed is not None for found in marked), len(marked))


def _saved(known: Sequence[tuple[Curve, Replayed]]) -> float:
    def cost(curve: Curve) -> float:
        return curve.seconds[-1] if curve.seconds else float(curve.reports[-1]["step"])

    def run(curve: Curve, found: Replayed) -> float:
        if found.killed is None:
            return cost(curve)
        return curve.seconds[found.killed] if curve.seconds else found.spent * cost(curve)

    whole = sum(cost(curve) for curve, _ in known)
    return 1 - sum(run(curve, found) for curve, found in known) / whole if whole else 0.0


def result(found: Curves, rules: RuleSet, *, family: str) -> dict[str, Any]:
    """What `buttress replay --json` prints: `{"family", "curves": [...], "summary": {...}, "notes": [...]}`.

    `summary` always has `curves`, `killed`, `warned`; with ground truth also the figures of `Score`. Raises BadInput
    where no rule looks at anything that the curves hold.
    """
    notes = [*found.notes, *unheard(found.curves, rules)]
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


def unheard(curves: Sequence[Curve], rules: RuleSet) -> list[str]:
    """Notes on the rules that can say nothing of these curves; raises BadInput where that are all of them."""
    held = {name for curve in curves for report in curve.reports for name in (*report["metrics"], *report["nonfinite"])}
    speaking = {name: rule for name, rule in rules.rules.items() if rule.action != "off"}
    blind = [name for name, rule in speaking.items() if not _sees(rule, rules.aliases, held)]
    if blind and len(blind) == len(speaking):
        signs = [sign.metric for rule in speaking.values() for sign in rule.signs]
        looked_at = dict.fromkeys(name for metric in signs for name in (metric, *rules.aliases.get(metric, ())))
        problem = "the curves hold nothing that a rule looks at"
        raise BadInput(problem, value=sorted(held), accepted=f"{', '.join(looked_at)}, or aliases in the rules file")
    notes = [f"the curves do not hold what these rules look at: {', '.join(blind)}"] if blind else []
    timeless = not any(report["epoch"] for curve in curves for report in curve.reports)
    if waiting := [name for name, rule in speaking.items() if timeless and rule.grace.epochs and name not in blind]:
        names = ", ".join(waiting)
        notes.append(f"the curves tell no epochs, and a grace in epochs keeps silent: {names}; see --steps-per-epoch")
    return notes


def _sees(rule: Rule, aliases: Mapping[str, Sequence[str]], held: Collection[str]) -> bool:
    """Whether enough of a rule's signs have their metric in some curve (`absent` needs none) for it to hold at all."""
    seen = [
        sign for sign in rule.signs
        if sign.transform == "absent" or any(name in held for name in (sign.metric, *aliases.get(sign.metric, ())))
    ]  # fmt: skip
    return len(seen) >= (rule.votes or 1)


def sentences(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The summary for a person, as (what, figure)."""
    told = [("curves", f"{summary['curves']}, of which {summary['killed']} killed and {summary['warned']} warned of")]
    if "caught" not in summary:
        return told
    for name, title in (
        ("caught", "dead, and caught"),
        ("false_kill", "healthy, but killed"),
        ("winners_killed", "winners killed"),
        ("recoverers_killed", "recoverers killed"),
        ("late_bloomers_killed", "late bloomers killed"),
    ):
        told.append((title, str(Share(summary[name]["count"], summary[name]["of"]))))
    for name, title in (("median_delay", "median delay"), ("median_spent", "median spent of a caught trial")):
        told.append((title, "-" if summary[name] is None else f"{summary[name]:.1%} of the budget"))
    told.append(("compute saved", f"{summary['compute_saved']:.1%}"))
    if summary["ambiguous"]:
        told.append(("ambiguous, left out", str(summary["ambiguous"])))
    return told
