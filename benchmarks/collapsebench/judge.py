"""How right the rules are: tuned on one half of the configurations, judged on the other.

    python benchmarks/collapsebench/judge.py                      # every family that has curves; tables
    python benchmarks/collapsebench/judge.py lithology --json     # the same, and one JSON object as the last line

The halves are drawn at random once and for all (not by even and odd: neighbours in a Sobol sequence lie in opposite
halves of the space by design). Rules begin as they were before anyone had tuned them on these curves
(`rules/<family>.yaml`, else those that the bench profile names), are calibrated on the first half and judged on the
second; then the halves change places, so that every configuration has been judged by rules that had not seen it
(`crossed`). The further seeds (20 x 5) have no part in tuning: what the rules do to them is told beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.collapsebench.family import load  # noqa: E402
from buttress.analysis.calibration import calibrate  # noqa: E402
from buttress.analysis.curves import Curve, CurveSet, read_curves  # noqa: E402
from buttress.analysis.replay import CurveReplay, Score, replay, score, summary_lines  # noqa: E402
from buttress.errors import BadInput  # noqa: E402
from buttress.execution.setup import family_rules, resolve_rules  # noqa: E402
from buttress.rules import RuleSet  # noqa: E402
from buttress.training.registry import rules_variants  # noqa: E402

HERE = Path(__file__).parent
FALSE_KILL = 0.02
DELAY = 0.08  # a mean delay that is soon enough; the goal is a median of at most 10 % on the half that was not tuned on
HALVES_SEED = 0


def families(folder: Path) -> list[str]:
    return sorted({path.stem.rpartition("-")[0] for path in folder.glob("*-*.parquet")})


def curves_of(family: str, folder: Path) -> CurveSet:
    """All parts of a family's curves."""
    paths = sorted(folder.glob(f"{family}-*.parquet"))
    if not paths:
        raise BadInput("no curves of this family", where=folder, value=family, accepted=", ".join(families(folder)))
    parts = [read_curves(path) for path in paths]
    return CurveSet(tuple(curve for part in parts for curve in part.curves), parts[0].about)


def once(curves: Sequence[Curve]) -> list[Curve]:
    """Those with a configuration's first seed."""
    return [curve for curve in curves if curve.about["trial"] == curve.about["configuration"]]


def untuned(family: str) -> RuleSet:
    path = HERE / "rules" / f"{family}.yaml"
    return RuleSet.load(path) if path.is_file() else resolve_rules(load(family).spec())


def judged(curves: Sequence[Curve], rules: RuleSet, direction: str) -> Score:
    found = score(curves, [replay(curve, rules) for curve in curves], direction)
    assert found is not None
    return found


def figures(found: Score) -> dict[str, Any]:
    """The keys of benchmarks/README.md; shares are fractions."""
    return {
        "caught": found.caught.share,
        "false_kill": found.false_kill.share,
        "winners_killed": found.winners.count,
        "median_delay": found.median_delay,
        "median_spent": found.median_spent,
        "compute_saved": found.compute_saved,
        "counts": {
            "dead": found.caught.of,
            "caught": found.caught.count,
            "missed": found.missed,
            "healthy": found.false_kill.of,
            "false_kills": found.false_kill.count,
            "winners": found.winners.of,
            "ambiguous": found.ambiguous,
            "recoverers": found.recoverers_killed.of,
            "recoverers_killed": found.recoverers_killed.count,
            "late_bloomers": found.late_bloomers_killed.of,
            "late_bloomers_killed": found.late_bloomers_killed.count,
        },
        "intervals": {"caught": list(found.caught.interval), "false_kill": list(found.false_kill.interval)},
    }


def spread(curves: Sequence[Curve], rules: RuleSet, direction: str) -> dict[str, Any]:
    """The configurations that were run with several seeds: in how many the seeds ended or were judged differently."""
    groups: dict[int, list[Curve]] = {}
    for curve in curves:
        if curve.about["trial"] != curve.about["configuration"]:
            groups.setdefault(curve.about["configuration"], []).append(curve)
    several = [curve for group in groups.values() for curve in group]
    if not several:
        return {"configurations": 0}
    ends = [{curve.truth.outcome for curve in group if curve.truth} for group in groups.values()]
    verdicts = [{replay(curve, rules).killed is not None for curve in group} for group in groups.values()]
    return {
        "configurations": len(groups),
        "ended_differently": sum(len(each) > 1 for each in ends),
        "judged_differently": sum(len(each) > 1 for each in verdicts),
        **figures(judged(several, rules, direction)),
    }


def judge(family: str, folder: Path, tell: Callable[[str], None], rules: RuleSet | None = None) -> dict[str, Any]:
    """`rules`: to begin with, instead of those that `untuned` finds."""
    bench = curves_of(family, folder)
    direction = str(bench.about["direction"])
    first, second = halves(once(bench.curves))
    start = rules or untuned(family)
    results: dict[str, Any] = {}
    crossed: list[tuple[Curve, CurveReplay]] = []
    for name, tuning, judging in (("halves", first, second), ("swapped", second, first)):
        tuned = calibrate(start, tuning, false_kill=FALSE_KILL, delay=DELAY, direction=direction)
        crossed += [(curve, replay(curve, tuned.rules)) for curve in judging]
        results[name] = figures(judged(judging, tuned.rules, direction))
        results[name]["tuned_on"] = figures(tuned.score)
        results[name]["changed"] = tuned.to_dict()["changed"]
        if name == "halves":
            results["further_seeds"] = spread(bench.curves, tuned.rules, direction)
        title = "tuned on one half, judged on the other" if name == "halves" else "the halves exchanged"
        _tell(tell, f"{family}, {title}", judged(judging, tuned.rules, direction), len(judging))
    both = score([curve for curve, _ in crossed], [found for _, found in crossed], direction)
    assert both is not None
    results["crossed"] = figures(both)
    _tell(tell, f"{family}, every configuration by the rules that had not seen it", both, len(crossed))
    whole = once(bench.curves)
    results["untuned"] = figures(judged(whole, start, direction))
    results["shipped"] = figures(judged(whole, resolve_rules(load(family).spec()), direction))
    variants = {name: judged(whole, family_rules(name), direction) for name in rules_variants(family)}
    results["variants"] = {name: figures(found) for name, found in variants.items()}
    truths = [curve.truth.outcome for curve in whole if curve.truth]
    results["truth"] = {name: truths.count(name) for name in sorted(set(truths))}
    seconds = sorted(curve.about["cpu_s"] for curve in bench.curves)
    results["core_seconds"] = {"median": seconds[len(seconds) // 2], "hours": sum(seconds) / 3600}
    return results.pop("halves") | results


def halves(curves: Sequence[Curve]) -> tuple[list[Curve], list[Curve]]:
    """The curves in two halves, the same ones every time."""
    order = sorted(curves, key=lambda curve: int(curve.about["configuration"]))
    random.Random(HALVES_SEED).shuffle(order)
    return order[: len(order) // 2], order[len(order) // 2 :]


def _tell(tell: Callable[[str], None], title: str, found: Score, curves: int) -> None:
    tell(f"\n{title}")
    killed = found.caught.count + found.false_kill.count
    for what, figure in summary_lines({"curves": curves, "killed": killed, "warned": 0} | found.to_dict())[1:]:
        tell(f"  {what:32s}{figure}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: all that have curves")
    parser.add_argument("--curves", type=Path, default=HERE / "curves", help="the folder of the files")
    parser.add_argument("--rules", type=Path, help="begin with this rules file (of one family)")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        rules = RuleSet.load(given.rules) if given.rules else None
        found = {name: judge(name, given.curves, print, rules) for name in given.families or families(given.curves)}
    except BadInput as error:
        sys.exit(f"error: {error}")
    if given.json:
        print(json.dumps(found, allow_nan=False))


if __name__ == "__main__":
    main()
