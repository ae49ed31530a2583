"""What the sampler is best told of a collapsed trial: the toy's comparison again, on recorded curves with real margins.

    python benchmarks/sampler_lessons.py                       # every family with CollapseBench curves; tables
    python benchmarks/sampler_lessons.py lithology --json      # the same, and one JSON object as the last line

Sweeps are simulated as in versus_stock.py (same slots, budget and target), on the bench's space and on a part of it
in which nearly everything dies: the clearest range that `analysis.separation` finds on the bench's own trials,
widened until at most `DEADLY` of the configurations in it are dead. Arms differ in what Optuna is told of a trial
that collapsed or diverged: its margin as a constraint (as a sweep does), whether it collapsed (1 or nothing), PRUNED
alone, FAIL, or COMPLETE with the worst value that any trial has had. The circuit breaker is off.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from optuna.trial import TrialState  # noqa: E402

from analysis.curves import Curve, Curves  # noqa: E402
from analysis.separation import Fate, Region, regions  # noqa: E402
from benchmarks.collapsebench.judge import HERE, curves_of, families, once  # noqa: E402
from benchmarks.versus_stock import SLOTS, Family, FlatStudy, PrunedStudy, Run, ratio, summed  # noqa: E402
from search_spaces.errors import BadInput  # noqa: E402
from search_spaces.spec import SweepSpec  # noqa: E402
from sweep.study import Study, Told  # noqa: E402
from sweep.surrogate import SURROGATES, Surrogate  # noqa: E402

TRIALS = 100  # at most, as in the toy
DEADLY = 0.9
LIVING = 6  # configurations that the deadly part keeps at least, for a target to be taken from
TOP = 0.8  # quantile of their values that is the target there: they are few


class FailStudy(Study):
    """Told that the trial failed, which the sampler does not learn from."""

    def tell(self, ask: int, told: Told) -> None:
        super().tell(ask, Told(TrialState.FAIL, note=told.note) if _dead(told) else told)


class WorstStudy(Study):
    """Told that the trial completed, with the worst value there has been (0 before any)."""

    def tell(self, ask: int, told: Told) -> None:
        if _dead(told):
            values = [trial.value for trial in self.trials() if trial.state == TrialState.COMPLETE]
            known = [value for value in values if value is not None]
            worst = (min if self.study.direction.name == "MAXIMIZE" else max)(known, default=0.0)
            told = Told(TrialState.COMPLETE, (worst,), note=told.note)
        super().tell(ask, replace(told, constraints={}))


def _dead(told: Told) -> bool:
    return told.constraints.get("collapse", 0.0) > 0


ARMS: dict[str, type[Study]] = {
    "margin as a constraint": Study,
    "0-1 constraint": FlatStudy,
    "PRUNED": PrunedStudy,
    "FAIL": FailStudy,
    "COMPLETE, worst value": WorstStudy,
}


def deadly(family: Family) -> tuple[SweepSpec, Region, list[Curve]]:
    """The part of the bench's space in which nearly everything dies, the range that it is cut by, and its trials."""
    trials = [curve for curve in once(family.curves.curves) if curve.truth and curve.truth.is_ != "ambiguous"]
    tree = family.space.to_dict()
    fates = [Fate(curve.about["params"], bool(curve.truth and curve.truth.dead)) for curve in trials]
    numbers = [region for region in regions(fates, tree["search"]) if region.side != "is"]
    if not numbers:
        raise BadInput("no range of numbers separates dead from living trials", key=family.name)
    path, side = numbers[0].path, numbers[0].side
    sign = 1.0 if side == "above" else -1.0
    held = [(sign * curve.about["params"][path], curve) for curve in trials if path in curve.about["params"]]
    for threshold, _ in sorted(held, key=lambda entry: -entry[0]):
        inside = [curve for place, curve in held if place >= threshold]
        living = [curve for curve in inside if not _is_dead(curve)]
        if len(living) >= LIVING and 1 - len(living) / len(inside) <= DEADLY:
            break
    edge = sign * threshold
    (kind, (low, high)), *_ = [entry for entry in tree["search"][path].items() if isinstance(entry[1], list)]
    tree["search"][path] = {**tree["search"][path], kind: [edge, high] if side == "above" else [low, edge]}
    return SweepSpec.from_dict(tree), replace(numbers[0], value=edge), inside


def _is_dead(curve: Curve) -> bool:
    return bool(curve.truth and curve.truth.dead)


def spaces(name: str, curves: Curves) -> dict[str, tuple[Family, dict[str, Any]]]:
    """The bench's space and its deadly part, each with what is told of it."""
    whole, part = Family(name, curves, None), Family(name, curves, None)
    trials = [curve for curve in once(curves.curves) if curve.truth and curve.truth.is_ != "ambiguous"]
    part.space, region, inside = deadly(part)
    living = [curve.truth.value for curve in inside if curve.truth and not curve.truth.dead and curve.truth.value]
    part.target = float(np.quantile(living, TOP if part.direction == "max" else 1 - TOP))
    return {
        "whole": (whole, {"dead": sum(map(_is_dead, trials)) / len(trials), "target": whole.target}),
        "deadly": (
            part,
            {"dead": sum(map(_is_dead, inside)) / len(inside), "target": part.target, "range": region.range},
        ),
    }


def compare(
    family: Family, surrogate: Surrogate, seeds: int, only: Sequence[str], tell: Callable[[str], None]
) -> dict[str, Any]:
    tell("| told of a collapsed trial | collapsed | no healthy trial | compute to target (s) | never | best healthy |")
    tell("| --- | --: | --: | --: | --: | --: |")
    arms: dict[str, Any] = {}
    more = {"breaker": False, "budget": {"hours": family.seconds / 3600, "trials": TRIALS}}
    for name, study in ARMS.items():
        if only and not any(word in name for word in only):
            continue
        runs: list[Run] = [family.ours(surrogate, seed, spec=more, study=study) for seed in range(seeds)]
        arms[name] = arm = summed(runs, family.budget)
        arm["no_healthy"] = sum(run.best_healthy is None for run in runs) / seeds
        arm["shares"] = [run.dead / run.trials for run in runs]
        first = next(iter(arms.values()))
        arm["ratio"] = ratio(first["costs"], arm["costs"])
        best = "-" if arm["best_healthy"] is None else f"{arm['best_healthy']:.3f}"
        low, high = np.quantile(arm["shares"], [0.25, 0.75])
        tell(
            f"| {name} | {arm['collapsed_share']:.0%} ({low:.0%} to {high:.0%}) | {arm['no_healthy']:.0%} "
            f"| {arm['median_compute_s']:.0f} | {arm['never']:.0%} | {best} |"
        )
    return {name: {key: value for key, value in arm.items() if key != "costs"} for name, arm in arms.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: all that have curves")
    parser.add_argument("--curves", type=Path, default=HERE / "curves", help="the folder of CollapseBench files")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--surrogate", choices=sorted(SURROGATES), help="default: both")
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="arms with this word")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    began, found = time.monotonic(), {}
    try:
        for name in given.families or families(given.curves):
            curves = curves_of(name, given.curves)
            wanted = [given.surrogate] if given.surrogate else list(SURROGATES)
            made = [SURROGATES[which](curves) for which in wanted]
            found[name] = {"seeds": given.seeds, "slots": SLOTS, "trials": TRIALS, "spaces": {}}
            for space, (family, about) in spaces(name, curves).items():
                found[name]["spaces"][space] = {**about, "surrogates": {}}
                for surrogate in made:
                    cut = f" ({about['range']})" if "range" in about else ""
                    print(f"\n{name}, {space} space{cut}: {about['dead']:.0%} of its configurations are dead;")
                    print(f"stand-ins by `{surrogate.name}`; target {about['target']:.4g}; {given.seeds} seeds\n")
                    arms = compare(family, surrogate, given.seeds, given.only, lambda text: print(text, flush=True))
                    found[name]["spaces"][space]["surrogates"][surrogate.name] = arms
    except BadInput as error:
        sys.exit(f"error: {error}")
    print(f"\n{time.monotonic() - began:.0f} s")
    if given.json:
        print(json.dumps(found, allow_nan=False))


if __name__ == "__main__":
    main()
