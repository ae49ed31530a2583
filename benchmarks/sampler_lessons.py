"""What the sampler is best told of a collapsed trial: the toy's comparison again, on recorded curves with real margins.

    python benchmarks/sampler_lessons.py                       # every family with CollapseBench curves; tables
    python benchmarks/sampler_lessons.py lithology --json      # the same, and one JSON object as the last line

Sweeps are simulated as in versus_stock.py (same slots, budget and target), on the bench's space and on two parts of
it, in which nearly everything dies: the end of the clearest range that `search/separation.py` finds on the bench's own
trials, cut so that of the configurations in it at most nine in ten are dead (`deadly`), or only a few live
(`deadliest`; the target there is any healthy value). Arms differ in what Optuna is told of a trial that collapsed or
diverged: its margin as a constraint, whether it collapsed (1 or nothing), PRUNED alone, FAIL, or COMPLETE with the
worst value that any trial has had; further, the margin with random draws for as long as nothing lives (half of the
draws, as a sweep does, or all). The circuit breaker is off; how often it would stop such sweeps is counted apart.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import optuna  # noqa: E402
from optuna.trial import TrialState  # noqa: E402

from benchmarks.collapsebench.judge import curves_of, once  # noqa: E402
from benchmarks.command import arguments, told  # noqa: E402
from benchmarks.simulated import SLOTS, Family, FlatStudy, PrunedStudy, Run  # noqa: E402
from benchmarks.simulator import Simulator  # noqa: E402
from benchmarks.surrogate import SURROGATES, Surrogate  # noqa: E402
from benchmarks.versus_stock import summed  # noqa: E402
from buttress.analysis.curves import Curve, CurveSet  # noqa: E402
from buttress.analysis.intervals import Share  # noqa: E402
from buttress.errors import BadInput  # noqa: E402
from buttress.search.optuna_study import STARTUP_TRIALS, SamplerResult, Study  # noqa: E402
from buttress.search.separation import Fate, Region, regions  # noqa: E402
from buttress.spec.sections import Breaker  # noqa: E402
from buttress.spec.spec import SweepSpec  # noqa: E402

TRIALS = 100  # at most, as in the toy


class Part(NamedTuple):
    """`dead`: at most this share of its configurations; `living`: at least so many; `top`: the quantile of their values
    that is the target (they are few)."""

    dead: float
    living: int
    top: float


PARTS = {"deadly": Part(0.9, 6, 0.8), "deadliest": Part(0.97, 2, 0.0)}


class FailStudy(Study):
    """Told that the trial failed, which the sampler does not learn from."""

    def tell(self, ask: int, result: SamplerResult) -> None:
        super().tell(ask, SamplerResult(TrialState.FAIL, note=result.note) if _dead(result) else result)


class UntilOneLives(Study):
    """As a sweep is told, and random until a trial lives, instead of every second draw."""

    def _sampler(self, ask: int) -> optuna.samplers.BaseSampler:
        return self._at_random(ask) if ask >= STARTUP_TRIALS and self.stranded else super()._sampler(ask)


class WorstStudy(Study):
    """Told that the trial completed, with the worst value there has been (0 before any)."""

    def tell(self, ask: int, result: SamplerResult) -> None:
        if _dead(result):
            values = [trial.value for trial in self.trials() if trial.state == TrialState.COMPLETE]
            known = [value for value in values if value is not None]
            worst = (min if self.study.direction.name == "MAXIMIZE" else max)(known, default=0.0)
            result = SamplerResult(TrialState.COMPLETE, (worst,), note=result.note)
        super().tell(ask, replace(result, constraints={}))


def _dead(result: SamplerResult) -> bool:
    return result.constraints.get("collapse", 0.0) > 0


def alone(study: type[Study]) -> type[Study]:
    """Without the random draws that a sweep makes as long as no trial lives."""
    return type(f"{study.__name__}Alone", (study,), {"stranded": False})


ARMS: dict[str, type[Study]] = {
    "margin as a constraint": alone(Study),
    "0-1 constraint": alone(FlatStudy),
    "PRUNED": alone(PrunedStudy),
    "FAIL": alone(FailStudy),
    "COMPLETE, worst value": alone(WorstStudy),
    "margin, random until one lives": UntilOneLives,
    "margin, half random until one lives (as a sweep does)": Study,
}


def deadly(family: Family, part: Part = PARTS["deadly"]) -> tuple[SweepSpec, Region, list[Curve]]:
    """The part of the bench's space in which nearly everything dies, the range that it is cut by, and its trials."""
    trials = [curve for curve in once(family.curves.curves) if curve.truth and curve.truth.outcome != "ambiguous"]
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
        if len(living) >= part.living and 1 - len(living) / len(inside) <= part.dead:
            break
    edge = sign * threshold
    (kind, (low, high)), *_ = [entry for entry in tree["search"][path].items() if isinstance(entry[1], list)]
    tree["search"][path] = {**tree["search"][path], kind: [edge, high] if side == "above" else [low, edge]}
    return SweepSpec.from_dict(tree), replace(numbers[0], value=edge), inside


def _is_dead(curve: Curve) -> bool:
    return bool(curve.truth and curve.truth.dead)


def spaces(name: str, curves: CurveSet) -> dict[str, tuple[Family, dict[str, Any]]]:
    """The bench's space and its deadly parts, each with what is told of it."""
    whole = Family(name, curves, None)
    trials = [curve for curve in once(curves.curves) if curve.truth and curve.truth.outcome != "ambiguous"]
    found = {"whole": (whole, {"dead": sum(map(_is_dead, trials)) / len(trials), "target": whole.target})}
    for called, part in PARTS.items():
        family = Family(name, curves, None)
        family.space, region, inside = deadly(family, part)
        living = [curve.truth.value for curve in inside if curve.truth and not curve.truth.dead and curve.truth.value]
        family.target = float(np.quantile(living, part.top if family.direction == "max" else 1 - part.top))
        dead = sum(map(_is_dead, inside)) / len(inside)
        found[called] = family, {"dead": dead, "target": family.target, "range": region.range}
    return found


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
        best = "-" if arm["best_healthy"] is None else f"{arm['best_healthy']:.3f}"
        low, high = np.quantile(arm["shares"], [0.25, 0.75])
        tell(
            f"| {name} | {arm['collapsed_share']:.0%} ({low:.0%} to {high:.0%}) | {arm['no_healthy']:.0%} "
            f"| {arm['median_compute_s']:.0f} | {arm['never']:.0%} | {best} |"
        )
    found = {name: {key: value for key, value in arm.items() if key != "costs"} for name, arm in arms.items()}
    if not only or any(word in "breaker" for word in only):
        found["breaker"] = breaker(family, surrogate, seeds)
        named = ", ".join(f"{path} in {count}" for path, count in found["breaker"]["named"].items()) or "nothing"
        tell(f"\nthe circuit breaker stops {found['breaker']['tripped']['count']} of {seeds} sweeps, naming {named}")
    return found


def breaker(family: Family, surrogate: Surrogate, seeds: int) -> dict[str, Any]:
    """In how many sweeps the breaker (at its default) trips, and which parameters it names."""
    tripped, named = 0, Counter[str]()
    for seed in range(seeds):
        tree = family.space.to_dict() | {"seed": seed, "budget": {"trials": Breaker().first + SLOTS}}
        simulator = Simulator(SweepSpec.from_dict(tree), surrogate, slots=SLOTS)
        simulator.run()
        if (event := simulator.state.tripped) is not None:
            tripped += 1
            named.update({region["path"] for region in event.regions})
    return {"tripped": Share(tripped, seeds).to_dict(), "named": dict(named)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--surrogate", choices=sorted(SURROGATES), help="default: both")
    parser.add_argument("--space", action="append", choices=("whole", *PARTS), help="default: all")
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="arms with this word")
    given = parser.parse_args()

    def study(name: str) -> dict[str, Any]:
        curves = curves_of(name, given.curves)
        wanted = [given.surrogate] if given.surrogate else list(SURROGATES)
        made = [SURROGATES[which](curves) for which in wanted]
        found: dict[str, Any] = {"seeds": given.seeds, "slots": SLOTS, "trials": TRIALS, "spaces": {}}
        for space, (family, about) in spaces(name, curves).items():
            if given.space and space not in given.space:
                continue
            found["spaces"][space] = {**about, "surrogates": {}}
            for surrogate in made:
                cut = f" ({about['range']})" if "range" in about else ""
                print(f"\n{name}, {space} space{cut}: {about['dead']:.0%} of its configurations are dead;")
                print(f"stand-ins by `{surrogate.name}`; target {about['target']:.4g}; {given.seeds} seeds\n")
                arms = compare(family, surrogate, given.seeds, given.only, lambda text: print(text, flush=True))
                found["spaces"][space]["surrogates"][surrogate.name] = arms
        return found

    told(given, study)


if __name__ == "__main__":
    main()
