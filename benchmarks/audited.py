"""Whether a sweep's audit tells the truth, and whom probation would bring back: on the curves of CollapseBench.

    python -m benchmarks.audited                      # every family with curves, under its rules as they come
    python -m benchmarks.audited lithology --json     # the same, and one JSON object as the last line

Every condemned curve is run on to its end, as an audit does. An audited trial "ended healthy" for the sweep when no
rule holds any more at its end and some epoch of it was valid; what it was in truth is CollapseBench's own definition,
which knows no rule (benchmarks/collapsebench/README.md).

Second chances: of the curves that the rules condemn, also in hastier versions, how many would rank among what the
healthy ones had reached at their age, which is what brings a trial back from probation; and how many of the best 5 % of
the healthy ones are among them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from typing import Any

from benchmarks.collapsebench.judge import HERE, curves_of, families, once
from buttress.analysis.curves import Curve
from buttress.analysis.intervals import Share
from buttress.analysis.replay import WINNER_SHARE, replay
from buttress.errors import BadInput
from buttress.execution.setup import family_rules
from buttress.rules import RuleSet
from buttress.search.halving import goes_on
from buttress.sweep.evaluation import Judged

FACTOR = 3  # of the rungs, as in a spec that says nothing


def end_of(curve: Curve, rules: RuleSet, objective: str, direction: str) -> tuple[str, float] | None:
    """How the trial ends for a sweep that audits it, and the share of its compute that came after the verdict; None for
    a trial that no rule condemns for a collapse before its last report."""
    judged = Judged(rules, [objective], direction, curve.budget_epochs)
    since: int | None = None
    for index, report in enumerate(curve.reports):
        verdict = judged.take_in(dict(report))
        if verdict.state == "diverged" or (since is None and report["closing"]):
            return None
        if since is None and verdict.final:
            since = index
            judged.run_on()
    if since is None or judged.verdict is None:
        return None
    ended = judged.verdict.state if judged.verdict.final else "completed" if judged.best is not None else "failed"
    return ended, 1.0 - curve.spent(since)


def hasty(rules: RuleSet, patience: int, *, grace: bool = True) -> RuleSet:
    """Kill rules (but those for divergence) with this patience, and without grace and first step."""
    change: dict[str, Any] = {"patience": patience}
    if not grace:
        change |= {"grace": {"epochs": 0, "steps": 0}, "min_step": 0}
    kills = [name for name, rule in rules.rules.items() if rule.action == "kill" and rule.kind != "diverged"]
    return rules.override(dict.fromkeys(kills, change))


def ranks(curve: Curve, killed: int, peers: dict[int, list[float]], objective: str, direction: str) -> bool | None:
    """Whether a trial that is set aside at report `killed` would come back; None: it has reported no value yet."""
    seen = [line for line in curve.reports[: killed + 1] if line["metrics"].get(objective) is not None]
    if not seen:
        return None
    return goes_on(seen[-1]["metrics"][objective], peers.get(seen[-1]["full_beta_epochs"], []), FACTOR, direction)


def second_chances(family: str) -> dict[str, dict[str, int]]:
    curves = curves_of(family, HERE / "curves")
    objective, direction = str(curves.about["objective"]), str(curves.about["direction"])
    single = [curve for curve in once(curves.curves) if curve.truth is not None]
    healthy = [curve for curve in single if curve.truth and curve.truth.is_ == "healthy"]
    sign = 1.0 if direction == "max" else -1.0
    values = sorted(sign * curve.truth.value for curve in healthy if curve.truth and curve.truth.value is not None)
    winner = values[-math.ceil(WINNER_SHARE * len(values))]
    peers: dict[int, list[float]] = {}
    for curve in healthy:
        judged = Judged(RuleSet(rules={}), [objective], direction, curve.budget_epochs)
        for report in curve.reports:
            judged.take_in(dict(report))
        for age, value in judged.by_age.items():
            peers.setdefault(age, []).append(value)
    rules = family_rules(family)
    versions = {
        "as they come": rules,
        "patience 1": hasty(rules, 1),
        "patience 1, no grace": hasty(rules, 1, grace=False),
    }
    found = {}
    for name, version in versions.items():
        counts: Counter[str] = Counter()
        for curve in single:
            killed = replay(curve, version).killed
            assert curve.truth is not None
            if killed is None or curve.truth.is_ == "ambiguous":
                continue
            kind = "dead" if curve.truth.dead else "healthy"
            back = ranks(curve, killed, peers, objective, direction)
            counts[f"{kind}, condemned"] += 1
            counts[f"{kind}, back"] += back is True
            counts[f"{kind}, no value yet"] += back is None
            best = kind == "healthy" and curve.truth.value is not None and sign * curve.truth.value >= winner
            counts["winners, condemned"] += best
        found[name] = dict(counts)
    return found


def audited(family: str) -> dict[str, Any]:
    curves = curves_of(family, HERE / "curves")
    rules, objective = family_rules(family), str(curves.about["objective"])
    counts: Counter[tuple[str, str]] = Counter()
    cost = 0.0
    for curve in curves.curves:
        if (found := end_of(curve, rules, objective, str(curves.about["direction"]))) is not None:
            assert curve.truth is not None
            counts["healthy" if found[0] == "completed" else "not healthy", curve.truth.is_] += 1
            cost += found[1]
    condemned = sum(counts.values())
    known = {ends: n for ends, n in counts.items() if ends[1] != "ambiguous"}
    right = sum(n for (told, truth), n in known.items() if (told == "healthy") == (truth == "healthy"))
    clear = sum(known.values())
    return {
        "condemned": condemned,
        "ended": {f"{told} for the sweep, {truth} in truth": n for (told, truth), n in sorted(counts.items())},
        "told_rightly": Share(right, clear).to_dict(),
        "false_kills_told": Share(sum(n for (told, _), n in counts.items() if told == "healthy"), condemned).to_dict(),
        "false_kills_true": Share(sum(n for (_, truth), n in counts.items() if truth == "healthy"), clear).to_dict(),
        "cost_of_one": cost / condemned if condemned else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: all that have curves")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        wanted = given.families or families(HERE / "curves")
        found = {family: {**audited(family), "second_chances": second_chances(family)} for family in wanted}
    except BadInput as error:
        sys.exit(f"error: {error}")
    for family, entry in found.items():
        print(f"{family}: {entry['condemned']} condemned curves, run on to their end")
        for what, count in entry["ended"].items():
            print(f"  {count:4d}  {what}")
        for what in ("told_rightly", "false_kills_told", "false_kills_true"):
            print(f"  {what.replace('_', ' ')}: {Share(entry[what]['count'], entry[what]['of'])}")
        if entry["cost_of_one"] is not None:
            print(f"  an audited trial costs {entry['cost_of_one']:.0%} of a whole one more")
        for version, counts in entry["second_chances"].items():
            print(f"  rules {version}: " + "; ".join(f"{what}: {count}" for what, count in counts.items()))
    if given.json:
        print(json.dumps(found, allow_nan=False))


if __name__ == "__main__":
    main()
