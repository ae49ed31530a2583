"""What rungs on epochs cost: how often successive halving stops the trial that would have been the best.

    python benchmarks/fair_rungs.py                       # every family with CollapseBench curves; tables
    python benchmarks/fair_rungs.py lithology --json      # the same, and one JSON object as the last line

Random draws of the bench's space are run in warm slots under successive halving, their curves being recorded ones:
those of drawn configurations (`recorded`), and those that the two stand-ins give for draws of their own. Arms differ
in what a rung counts: full-beta age (as in a sweep), or epochs since the start. A rung on epochs takes
the first value that is reported at its epoch or later, as Tune's ASHA does: a trial whose warm-up lasted longer is
younger then. Rungs on epochs that begin at the same number do not cost the same; so they are also set at the number
at which the cost is nearest. Dead trials are killed by the family's rules in all arms, and leave the rungs. The best
trial of a sweep is the healthy one with the best value at full beta after its whole budget.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks.collapsebench.family import load  # noqa: E402
from benchmarks.collapsebench.judge import curves_of, once  # noqa: E402
from benchmarks.command import arguments, told  # noqa: E402
from benchmarks.simulated import as_today  # noqa: E402
from benchmarks.simulator import Drawn, play, report_of  # noqa: E402
from benchmarks.surrogate import SURROGATES, bench_space  # noqa: E402
from buttress.analysis.curves import Curve, CurveSet  # noqa: E402
from buttress.analysis.intervals import Share  # noqa: E402
from buttress.execution.setup import resolve_rules  # noqa: E402
from buttress.journal.events import Report  # noqa: E402
from buttress.rules import RuleSet  # noqa: E402
from buttress.search.halving import Decision, Rungs  # noqa: E402
from buttress.spec import trial_config  # noqa: E402
from buttress.spec.spec import SweepSpec  # noqa: E402
from buttress.sweep.evaluation import TrialEvaluator  # noqa: E402
from buttress.training import registry  # noqa: E402
from buttress.training.trainable import Reported  # noqa: E402

SLOTS = 4
TRIALS = 60
SWEEPS = 200
PILOT = 20  # sweeps from which rungs on epochs of equal cost are chosen


@dataclass(frozen=True)
class Seen:
    """What is known of a trial once it has made a report: its age by either count, its best value by then."""

    dead: bool
    has_value: bool  # the report ends an epoch with the objective
    epoch: int
    age: int
    phase: int
    valid: float | None  # best value of a valid epoch
    anything: float | None  # best value of any epoch


class Judge:
    """Each recorded curve under the rules, once."""

    def __init__(self, rules: RuleSet, objective: str, direction: str) -> None:
        self._rules, self._objective, self._direction = rules, objective, direction
        self._known: dict[int, list[Seen]] = {}

    def __call__(self, curve: Curve) -> list[Seen]:
        if id(curve) not in self._known:
            self._known[id(curve)] = list(self._judged(curve))
        return self._known[id(curve)]

    def _judged(self, curve: Curve) -> Iterator[Seen]:
        evaluation = TrialEvaluator(self._rules, [self._objective], self._direction, curve.budget_epochs)
        better = max if self._direction == "max" else min
        anything: float | None = None
        for index in range(len(curve.reports)):
            report = evaluation.add(Report.of("0000", 1, index, report_of(curve, index)))
            value = report.metrics.get(self._objective)
            if value is not None:
                anything = value if anything is None else better(anything, value)
            yield Seen(
                report.state in ("collapsed", "diverged"), value is not None, report.epoch,
                report.full_beta_epochs, report.phase, evaluation.value, anything,
            )  # fmt: skip


@dataclass
class Halving:
    """A policy: given draws, one after the other, under rungs that count what `count` says."""

    draws: Sequence[Mapping[str, Any]]
    curve: Callable[[Mapping[str, Any]], Curve]
    judge: Judge
    rungs: Rungs | None
    by_epoch: bool
    begun_: dict[str, tuple[list[Seen], int]] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)  # trial -> by what

    def draw(self) -> Drawn | None:
        number = len(self.begun_)
        if number == len(self.draws):
            return None
        self.begun_[f"{number:04d}"] = self.judge(self.curve(self.draws[number])), -1
        return Drawn(f"{number:04d}", self.draws[number])

    def begun(self, trial: str, slot: str) -> None: ...

    def finished(self, trial: str) -> None: ...

    def reported(self, trial: str, reported: Reported) -> bool:
        seen, number = self.begun_[trial]
        self.begun_[trial] = seen, number + 1
        now = seen[number + 1]
        if now.dead:
            self.stopped[trial] = "rules"
            if self.rungs is not None:
                self.rungs.forget(trial)
            return True
        if self.rungs is None or not now.has_value:
            return False
        decision = self._compared(trial, now)
        if decision is None or not decision.stop or now.epoch >= seen[-1].epoch:
            return False
        self.stopped[trial] = "rung"
        return True

    def _compared(self, trial: str, now: Seen) -> Decision | None:
        assert self.rungs is not None
        if not self.by_epoch:
            return self.rungs.report(trial, now.age, now.valid, now.phase) if now.valid is not None else None
        passed = [epoch for epoch in range(now.epoch, 0, -1) if self.rungs.is_rung(epoch)]
        decisions = (self.rungs.report(trial, epoch, now.anything, now.phase) for epoch in passed)
        return next((decision for decision in decisions if decision is not None), None)


@dataclass(frozen=True)
class Sweep:
    best_stopped: bool
    best_is_late: bool  # its warm-up is longer than the median of the healthy trials'
    regret: float  # how much better the best trial was than the best that ran to its end, in the objective's unit
    cost: float  # core-seconds
    stopped: dict[str, tuple[int, int]]  # by a rung, of the trials with a short and with a long warm-up


def one(policy: Halving, curves: Sequence[Curve], sign: float, surrogate: Any) -> Sweep:
    """Runs a policy; `curves` are those of its draws, in order."""
    cost = 0.0

    def see(event: Any) -> None:
        nonlocal cost
        assert event.curve.seconds is not None
        cost += event.curve.seconds[event.number] - (event.curve.seconds[event.number - 1] if event.number else 0.0)

    play(policy, surrogate, slots=SLOTS, see=see)
    values = {f"{n:04d}": sign * c.truth.value for n, c in enumerate(curves) if _healthy(c) and c.truth is not None}
    top = max(values.values())
    ran = [value for trial, value in values.items() if trial not in policy.stopped]
    stopped = not ran or max(ran) < top
    regret = top - (max(ran) if ran else min(values.values()))
    warm = {f"{n:04d}": warm_up(c) for n, c in enumerate(curves) if _healthy(c)}
    middle = median(warm.values())
    groups = {"short": [t for t in warm if warm[t] <= middle], "long": [t for t in warm if warm[t] > middle]}
    rung = {trial for trial, why in policy.stopped.items() if why == "rung"}
    late = any(warm[trial] > middle for trial, value in values.items() if value == top)
    stops = {name: (len(rung & {*group}), len(group)) for name, group in groups.items()}
    return Sweep(stopped, late, regret, cost, stops)


def warm_up(curve: Curve) -> int:
    """Epochs until full beta."""
    return int(curve.reports[-1].epoch - curve.reports[-1].full_beta_epochs)


def _healthy(curve: Curve) -> bool:
    return curve.truth is not None and curve.truth.outcome == "healthy" and curve.truth.value is not None


class Recorded:
    """Draws without replacement of the configurations that were run: their own curves stand for them."""

    name = "recorded"

    def __init__(self, curves: CurveSet) -> None:
        self._curves = once(curves.curves)
        self._own = {id(curve.about["params"]): curve for curve in self._curves}

    def draws(self, rng: random.Random) -> list[Mapping[str, Any]]:
        return [curve.about["params"] for curve in rng.sample(self._curves, min(TRIALS, len(self._curves)))]

    def curve(self, params: Mapping[str, Any]) -> Curve:
        return self._own[id(params)]


class StandIns:
    """Draws of the whole space, with the curves that a stand-in gives them."""

    def __init__(self, name: str, curves: CurveSet, space: SweepSpec, Config: type[Any]) -> None:
        self.name, self._space, self._config = name, space, Config
        self._surrogate = SURROGATES[name](curves)
        self._known: dict[int, Curve] = {}

    def draws(self, rng: random.Random) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        while len(found) < TRIALS:
            params = trial_config.sample(self._space, rng, self._config)
            config = trial_config.build(self._space, params, self._config)
            if trial_config.violated_requirement(self._space, config) is None:
                found.append(params)
        self._known = {id(params): self._surrogate.curve(params) for params in found}
        return found

    def curve(self, params: Mapping[str, Any]) -> Curve:
        return self._known[id(params)]


def summed(sweeps: Sequence[Sweep], full: float) -> dict[str, Any]:
    late = [sweep for sweep in sweeps if sweep.best_is_late]
    return {
        "best_stopped": Share(sum(sweep.best_stopped for sweep in sweeps), len(sweeps)).to_dict(),
        "late_best_stopped": Share(sum(sweep.best_stopped for sweep in late), len(late)).to_dict(),
        "regret": {"mean": fmean(s.regret for s in sweeps), "p90": float(np.quantile([s.regret for s in sweeps], 0.9))},
        "cost": fmean(sweep.cost for sweep in sweeps) / full,
        "healthy_stopped": {
            name: sum(s.stopped[name][0] for s in sweeps) / max(1, sum(s.stopped[name][1] for s in sweeps))
            for name in ("short", "long")
        },
    }


class Arm(NamedTuple):
    """What rungs count (`none`: there are no rungs), and at what number they begin."""

    count: Literal["none", "age", "epochs"]
    first: int


def _run(
    source: Any, judge: Judge, arms: Sequence[Arm], factor: float, direction: str, seeds: Iterable[int]
) -> dict[Arm, list[Sweep]]:
    """Each arm's sweeps, on the same draws; draws of which none is healthy have no best trial and are left out."""
    sign: Literal[1, -1] = 1 if direction == "max" else -1
    ran: dict[Arm, list[Sweep]] = {arm: [] for arm in arms}
    for seed in seeds:
        draws = source.draws(random.Random(seed))
        drawn = [source.curve(params) for params in draws]
        if not any(map(_healthy, drawn)):
            continue
        for arm in arms:
            rungs = Rungs(arm.first, factor, "max" if sign > 0 else "min") if arm.count != "none" else None
            policy = Halving(draws, source.curve, judge, rungs, arm.count == "epochs")
            ran[arm].append(one(policy, drawn, sign, source))
    return ran


def study(family: str, curves: CurveSet, sweeps: int, tell: Callable[[str], None]) -> dict[str, Any]:
    space, direction = as_today(bench_space(curves), load(family).spec()), str(curves.about["direction"])
    Config = registry.load(family).Config
    judge = Judge(resolve_rules(space), str(curves.about["objective"]), direction)
    budget = max(curve.budget_epochs for curve in curves.curves)
    first, factor = space.scheduler.first, space.scheduler.factor
    found: dict[str, Any] = {"trials": TRIALS, "sweeps": sweeps, "first": first, "factor": factor}
    sources: list[Any] = [Recorded(curves), *(StandIns(name, curves, space, Config) for name in SURROGATES)]
    for source in sources:
        ours, same = Arm("age", first), Arm("epochs", first)
        others = [Arm("epochs", begin) for begin in range(1, budget // 2 + 1)]
        pilot = _run(source, judge, [ours, *others], factor, direction, range(min(PILOT, sweeps)))
        cost = {arm: fmean(sweep.cost for sweep in each) for arm, each in pilot.items()}
        matched = min(others, key=lambda arm: abs(cost[arm] - cost[ours]))
        arms = list(dict.fromkeys([Arm("none", 0), ours, same, matched]))
        ran = _run(source, judge, arms, factor, direction, range(sweeps))
        full = fmean(sweep.cost for sweep in ran[arms[0]])
        rows = {arm: summed(each, full) for arm, each in ran.items()}
        found[source.name] = {
            "age": rows[ours], "epochs": rows[same],
            "epochs_at_equal_cost": {"first": matched.first, **rows[matched]},
        }  # fmt: skip
        tell(f"\n{family}, curves: {source.name}; {sweeps} sweeps of {TRIALS} random trials, factor {factor}\n")
        tell("| rungs on | best trial stopped | where its warm-up is long | regret, mean (90 %) | compute "
             "| healthy stopped: short, long warm-up |")
        tell("| --- | --: | --: | --: | --: | --: |")
        for arm in arms[1:]:
            tell(_row(f"{arm.count}, first {arm.first}", rows[arm]))
    found["warm_up"] = _warm_up(curves)
    return found


def _row(name: str, row: Mapping[str, Any]) -> str:
    (low, high), (below, above) = (row[key]["interval"] for key in ("best_stopped", "late_best_stopped"))
    late, regret = row["late_best_stopped"], row["regret"]
    return (
        f"| {name} | {row['best_stopped']['share']:.0%} ({low:.0%} to {high:.0%}) "
        f"| {late['count']} of {late['of']} ({below:.0%} to {above:.0%}) | {regret['mean']:.3f} ({regret['p90']:.3f}) "
        f"| {row['cost']:.0%} | {row['healthy_stopped']['short']:.0%}, {row['healthy_stopped']['long']:.0%} |"
    )


def _warm_up(curves: CurveSet) -> dict[str, float]:
    """Epochs until full beta, over the bench: what age and epochs differ by."""
    warm = [warm_up(curve) for curve in once(curves.curves)]
    budget = max(curve.budget_epochs for curve in curves.curves)
    return {"median": float(median(warm)), "max": float(max(warm)), "budget": float(budget)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sweeps", type=int, default=SWEEPS)
    given = parser.parse_args()
    told(given, lambda name: study(name, curves_of(name, given.curves), given.sweeps, print))


if __name__ == "__main__":
    main()
