"""Whether a sweep's audit tells the truth, on the curves of CollapseBench.

    python -m benchmarks.audited                      # every family with curves, under its rules as they come
    python -m benchmarks.audited lithology --json     # the same, and one JSON object as the last line

Every condemned curve is run on to its end, as an audit does. An audited trial "ended healthy" for the sweep when no
rule holds any more at its end and some epoch of it was valid; what it was in truth is CollapseBench's own definition,
which knows no rule (benchmarks/collapsebench/README.md).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from typing import Any

from benchmarks.collapsebench.judge import HERE, curves_of, families
from buttress.analysis.curves import Curve
from buttress.analysis.intervals import Share
from buttress.errors import BadInput
from buttress.execution.setup import family_rules
from buttress.rules import RuleSet
from buttress.sweep.evaluation import TrialEvaluator


def end_of(curve: Curve, rules: RuleSet, objective: str, direction: str) -> tuple[str, float] | None:
    """How the trial ends for a sweep that audits it, and the share of its compute that came after the verdict; None for
    a trial that no rule condemns for a collapse before its last report."""
    evaluation = TrialEvaluator(rules, [objective], direction, curve.budget_epochs)
    since: int | None = None
    for index, report in enumerate(curve.reports):
        evaluation.add(report)
        verdict = evaluation.engine.verdict
        if verdict.state == "diverged" or (since is None and report.closing):
            return None
        if since is None and verdict.final:
            since = index
            evaluation.keep_alive()
    if since is None or evaluation.verdict is None:
        return None
    alive = "completed" if evaluation.best is not None else "failed"
    ended = evaluation.verdict.state if evaluation.verdict.final else alive
    return ended, 1.0 - curve.fraction_run(since)


def audited(family: str) -> dict[str, Any]:
    curves = curves_of(family, HERE / "curves")
    rules, objective = family_rules(family), str(curves.about["objective"])
    counts: Counter[tuple[str, str]] = Counter()
    cost = 0.0
    for curve in curves.curves:
        if (found := end_of(curve, rules, objective, str(curves.about["direction"]))) is not None:
            assert curve.truth is not None
            counts["healthy" if found[0] == "completed" else "not healthy", curve.truth.outcome] += 1
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
        found = {family: audited(family) for family in wanted}
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
    if given.json:
        print(json.dumps(found, allow_nan=False))


if __name__ == "__main__":
    main()
