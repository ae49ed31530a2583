"""What a sweep is worth: ours against stock tuners, and ours without each of its parts, in the simulator.

    python benchmarks/versus_stock.py                          # every family with CollapseBench curves; tables
    python benchmarks/versus_stock.py lithology --json         # the same, and one JSON object as the last line
    python benchmarks/versus_stock.py --seeds 5 --surrogate forest

Every arm gets the same space, the same slots and the same budget of core-seconds, once per seed and stand-in. The
target is the value that 5 % of the healthy trials of CollapseBench reach; an arm has reached it when a trial that is
healthy in truth reports such a value at full beta, whatever the arm itself thinks of that trial (which favours arms
that look at something else). An arm that never reaches it counts its full budget. Nothing is charged for starting a
trial but the turnaround of a warm slot, to anybody: stock Ray Train costs 12 to 29 seconds a trial more
(benchmarks/slots.py). benchmarks/README.md says what the keys mean.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import optuna  # noqa: E402

import trainables  # noqa: E402
from analysis.curves import Curves  # noqa: E402
from analysis.intervals import Share  # noqa: E402
from benchmarks.collapsebench.family import load  # noqa: E402
from benchmarks.collapsebench.judge import HERE, curves_of, families, once  # noqa: E402
from benchmarks.stock_policies import OptunaPruned, RandomSearch, Stock, StockTune, Value  # noqa: E402
from collapse.rules import RuleSet  # noqa: E402
from search_spaces.errors import BadInput  # noqa: E402
from search_spaces.spec import SweepSpec  # noqa: E402
from sweep.simulator import Event, Simulator, play  # noqa: E402
from sweep.study import Study, Told  # noqa: E402
from sweep.surrogate import SURROGATES, Once, Surrogate, bench_space  # noqa: E402

SLOTS = 4
TRIALS = 60  # the budget is what so many full trials cost
TOP = 0.95  # quantile of the healthy values that is the target


@dataclass(frozen=True)
class Run:
    """One arm, one seed. `reached`: core-seconds of the sweep until the target, None if never. Of our arms also
    `healthy`: trials that are healthy in truth and have ended or been set aside; `killed`: those of them that a rule
    stopped, or set aside without their coming back. `audited`: condemned trials that ran on to their end; `acquitted`:
    those of them that the sweep itself says ended healthy, `wronged`: those that are healthy in truth; `audit_s`: the
    core-seconds that they ran after their verdicts."""

    reached: float | None
    best_healthy: float | None
    trials: int
    dead: int
    winner_dead: bool
    healthy: int = 0
    killed: int = 0
    audited: int = 0
    acquitted: int = 0
    wronged: int = 0
    audit_s: float = 0.0


class Watch:
    """What really happened in a sweep, whatever the sweep knew."""

    def __init__(self, objective: str, direction: str, target: float) -> None:
        self.objective, self.sign, self.target = objective, 1.0 if direction == "max" else -1.0, target
        self.reached: float | None = None
        self.best: float | None = None
        self.dead: dict[str, bool] = {}
        self.healthy: dict[str, bool] = {}

    def __call__(self, event: Event) -> None:
        truth, report = event.curve.truth, event.curve.reports[event.number]
        assert truth is not None
        self.dead[event.trial], self.healthy[event.trial] = truth.dead, truth.is_ == "healthy"
        value = report["metrics"].get(self.objective)
        if value is None or truth.is_ != "healthy" or report["full_beta_epochs"] < 1:
            return
        if self.best is None or self.sign * value > self.sign * self.best:
            self.best = value
        if self.reached is None and self.sign * value >= self.sign * self.target:
            self.reached = event.clock * SLOTS

    def run(self, winner: str | None) -> Run:
        return Run(self.reached, self.best, len(self.dead), sum(self.dead.values()), bool(winner and self.dead[winner]))


class Condemned:
    """A watcher that adds up what audited trials ran after their verdicts."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._now: dict[str, float] = {}

    def line(self, line: Mapping[str, Any], live: Any = None) -> None:
        if line["line"] == "audit":
            self._since[line["trial"]] = line["seconds"]
        elif line["line"] == "report" and line["trial"] in self._since:
            self._now[line["trial"]] = line["seconds"]

    def note(self, text: str) -> None:
        """A simulated sweep makes none."""

    @property
    def seconds(self) -> float:
        return sum(now - self._since[trial] for trial, now in self._now.items())


# --- our arms -------------------------------------------------------------------------------------------------------


class RandomStudy(Study):
    """Told everything, listens to nothing."""

    def _sampler(self, ask: int) -> optuna.samplers.BaseSampler:
        seed = int(np.random.SeedSequence([self.spec.seed, ask]).generate_state(1)[0])
        return optuna.samplers.RandomSampler(seed=seed)


class MixedStudy(Study):
    """Every third draw is random: a sampler that has settled in the wrong place finds out."""

    def _sampler(self, ask: int) -> optuna.samplers.BaseSampler:
        return RandomStudy._sampler(self, ask) if ask % 3 == 2 else super()._sampler(ask)  # type: ignore[arg-type]


class FlatStudy(Study):
    """Told that a trial collapsed, but not by how much."""

    def tell(self, ask: int, told: Told) -> None:
        flat = {name: 1.0 if value > 0 else -1.0 for name, value in told.constraints.items()}
        super().tell(ask, replace(told, constraints=flat))


class PrunedStudy(Study):
    """Told PRUNED and nothing else, as a tuner without constraints would be."""

    def tell(self, ask: int, told: Told) -> None:
        super().tell(ask, replace(told, constraints={}))


OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours without rules": {"rules": RuleSet(rules={})},
    "ours without rungs": {"spec": {"scheduler": {"kind": "fifo"}}},
    "ours without sampler": {"study": RandomStudy},
    "ours with every third draw random": {"study": MixedStudy},
    "ours with a 0-1 constraint": {"study": FlatStudy},
    "ours with PRUNED only": {"study": PrunedStudy},
    "ours with 10 % audited": {"spec": {"audit": {"share": 0.1}}},
    "ours with 25 % audited": {"spec": {"audit": {"share": 0.25}}},
    "ours with all audited": {"spec": {"audit": {"share": 1.0}}},
    "ours with probation": {"spec": {"probation": {"epochs": 3}}},
}


LOSS = "(a) Tune: OptunaSearch + ASHA, validation loss"


class Family:
    """One family's bench: its space, budget and target, and how each arm is run."""

    def __init__(self, name: str, curves: Curves, rules: RuleSet | None) -> None:
        self.name, self.curves, self.rules = name, curves, rules
        self.objective, self.direction = str(curves.about["objective"]), str(curves.about["direction"])
        self.space = bench_space(curves)
        self.trainable = trainables.load(name)
        single = once(curves.curves)
        values = [c.truth.value for c in single if c.truth and c.truth.is_ == "healthy" and c.truth.value is not None]
        self.target = float(np.quantile(values, TOP if self.direction == "max" else 1 - TOP))
        self.epochs = max(curve.budget_epochs for curve in single)
        self.seconds = TRIALS * median(curve.seconds[-1] for curve in single if curve.seconds) / SLOTS
        self.validation_loss = load(name).validation_loss

    @property
    def budget(self) -> float:
        """Core-seconds."""
        return self.seconds * SLOTS

    def arms(self) -> dict[str, Callable[[Surrogate, int], Run]]:
        """name -> (stand-in, seed) -> run."""
        own: Value = lambda metrics: metrics.get(self.objective)  # noqa: E731
        median_, hyperband = {"pruner": "median"}, {"pruner": "hyperband"}
        found: dict[str, Callable[[Surrogate, int], Run]] = {
            name: lambda surrogate, seed, how=how: self.ours(surrogate, seed, **how) for name, how in OURS.items()
        }
        if self.validation_loss is not None:
            found[LOSS] = self._stock(StockTune, self.validation_loss, "min")
        found["(b) Tune: OptunaSearch + ASHA, our objective"] = self._stock(StockTune, own, self.direction)
        found["(c) Optuna: TPE + median pruner"] = self._stock(OptunaPruned, own, self.direction, **median_)
        found["(c) Optuna: TPE + Hyperband"] = self._stock(OptunaPruned, own, self.direction, **hyperband)
        found["(d) random search"] = self._stock(RandomSearch, own, self.direction)
        return found

    def ours(
        self,
        surrogate: Surrogate,
        seed: int,
        spec: dict[str, Any] | None = None,
        rules: RuleSet | None = None,
        study: type[Study] | None = None,
    ) -> Run:
        alone = {"breaker": False}  # nobody is there to read what it says and go on
        tree = self.space.to_dict() | {"seed": seed, "budget": {"hours": self.seconds / 3600}} | alone | (spec or {})
        watch = Watch(self.objective, self.direction, self.target)
        made = SweepSpec.from_dict(tree)
        condemned = Condemned()
        simulator = Simulator(
            made, surrogate, slots=SLOTS, rules=rules or self.rules, see=watch, watchers=(condemned,)
        )
        if study is not None:
            simulator.state.study = study(made, simulator.state.directions, simulator.trainable.Config)
        simulator.run()
        done = {
            trial: line["best"]["metrics"][self.objective]
            for trial, line in simulator.state.outcomes.items()
            if line["outcome"] == "completed"
        }
        better = max if self.direction == "max" else min
        run = watch.run(better(done, key=lambda trial: done[trial]) if done else None)
        ends = {trial: line["outcome"] for trial, line in simulator.state.outcomes.items()}
        ends |= {trial: "collapsed" for trial, live in simulator.state.live.items() if live.suspended is not None}
        healthy = [trial for trial in ends if watch.healthy[trial]]
        audited = [trial for trial, line in simulator.state.outcomes.items() if line["audited"]]
        return replace(
            run,
            healthy=len(healthy),
            killed=sum(ends[trial] in ("collapsed", "diverged") for trial in healthy),
            audited=len(audited),
            acquitted=sum(ends[trial] == "completed" for trial in audited),
            wronged=sum(watch.healthy[trial] for trial in audited),
            audit_s=condemned.seconds,
        )

    def _stock(self, kind: type[Stock], value: Value, direction: str, **more: Any) -> Callable[[Surrogate, int], Run]:
        def run(surrogate: Surrogate, seed: int) -> Run:
            watch = Watch(self.objective, self.direction, self.target)
            policy = kind(self.space, self.trainable.Config, value, direction, self.epochs, seed=seed, **more)
            play(policy, surrogate, slots=SLOTS, seconds=self.seconds, see=watch)
            return watch.run(policy.best)

        return run


# --- figures --------------------------------------------------------------------------------------------------------


def summed(runs: Sequence[Run], budget: float) -> dict[str, Any]:
    costs = [budget if run.reached is None else run.reached for run in runs]
    bests = [run.best_healthy for run in runs if run.best_healthy is not None]
    return {
        "median_compute_s": median(costs),
        "quartiles_compute_s": [float(q) for q in np.quantile(costs, [0.25, 0.75])],
        "never": sum(run.reached is None for run in runs) / len(runs),
        "best_healthy": median(bests) if bests else None,
        "collapsed_share": sum(run.dead for run in runs) / max(1, sum(run.trials for run in runs)),
        "collapsed_winners": Share(sum(run.winner_dead for run in runs), len(runs)).to_dict(),
        "false_kills": Share(sum(run.killed for run in runs), sum(run.healthy for run in runs)).to_dict(),
        "audit": {
            "told": Share(sum(run.acquitted for run in runs), sum(run.audited for run in runs)).to_dict(),
            "true": Share(sum(run.wronged for run in runs), sum(run.audited for run in runs)).to_dict(),
            "compute_share": fmean(run.audit_s for run in runs) / budget,
        },
        "trials": fmean(run.trials for run in runs),
        "costs": costs,
    }


def ratio(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Median of theirs over median of ours, with the middle 95 % of 2,000 bootstrap samples of the seeds."""
    rng = np.random.default_rng(seed)
    one, other = np.array(ours), np.array(theirs)
    drawn = [
        float(np.median(rng.choice(other, len(other))) / np.median(rng.choice(one, len(one)))) for _ in range(2000)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"ratio": float(np.median(other) / np.median(one)), "interval": [float(low), float(high)]}


def compare(
    family: Family,
    surrogate: Surrogate,
    seeds: int,
    only: Sequence[str],
    tell: Callable[[str], None],
    once_each: bool = False,
) -> dict[str, Any]:
    """Every arm on one kind of stand-in; tells its line of the table as soon as it is known."""
    trust = surrogate.trust
    tell(f"\n{family.name}, stand-ins by `{surrogate.name}`: over curves left out, rank correlation")
    tell(f"{trust.rank_correlation:.2f} ({trust.pairs} healthy pairs), same end {trust.same_end:.0%}; target")
    tell(f"{family.target:.4g}, budget {family.budget:.0f} core-s in {SLOTS} slots, {seeds} seeds\n")
    titles = "never | best healthy | collapsed | collapsed winners | false kills | ours saves |"
    tell(f"| arm | compute to target (s) | {titles}")
    tell("| --- | --: | --: | --: | --: | --: | --: | --: |")
    arms: dict[str, dict[str, Any]] = {}
    for name, run in family.arms().items():
        if only and name != "ours" and not any(word in name for word in only):
            continue
        stand_in = Once if once_each else lambda surrogate: surrogate
        arms[name] = summed([run(stand_in(surrogate), seed) for seed in range(seeds)], family.budget)
        arm, against = arms[name], ratio(arms["ours"]["costs"], arms[name]["costs"])
        arm["ratio"] = against
        best = "-" if arm["best_healthy"] is None else f"{arm['best_healthy']:.3f}"
        low, high = against["interval"]
        kills = arm["false_kills"]
        wrong = f"{kills['count']} of {kills['of']}" if kills["of"] else "-"
        saves = f"{against['ratio']:.2f} ({low:.2f} to {high:.2f})"
        tell(
            f"| {name} | {arm['median_compute_s']:.0f} | {arm['never']:.0%} | {best} | {arm['collapsed_share']:.0%} "
            f"| {arm['collapsed_winners']['count']} of {seeds} | {wrong} | {saves} |"
        )
    stock = {name: arm for name, arm in arms.items() if name.startswith("(")}
    best_stock = min(stock, key=lambda name: float(stock[name]["median_compute_s"]), default=None)
    ours = arms["ours"]
    return {
        "trust": trust.to_dict(),
        "best_baseline": best_stock,
        "time_to_target_ratio": None if best_stock is None else stock[best_stock]["ratio"]["ratio"],
        "interval": None if best_stock is None else stock[best_stock]["ratio"]["interval"],
        "best_healthy": ours["best_healthy"],
        "collapsed_share": ours["collapsed_share"],
        "collapsed_winners": ours["collapsed_winners"]["count"],
        "arms": {name: {key: value for key, value in arm.items() if key != "costs"} for name, arm in arms.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: all that have curves")
    parser.add_argument("--curves", type=Path, default=HERE / "curves", help="the folder of CollapseBench files")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--surrogate", choices=sorted(SURROGATES), help="default: both, the more trusted first")
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="arms with this word, beside ours")
    parser.add_argument("--once", action="store_true", help="a recorded curve stands in once per sweep at most")
    parser.add_argument("--rules", type=Path, help="this rules file instead of the family's")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    began, found = time.monotonic(), {}
    try:
        rules = RuleSet.load(given.rules) if given.rules else None
        for name in given.families or families(given.curves):
            family = Family(name, curves_of(name, given.curves), rules)
            wanted = [given.surrogate] if given.surrogate else list(SURROGATES)
            made = [SURROGATES[which](family.curves) for which in wanted]
            made.sort(key=lambda surrogate: -surrogate.trust.rank_correlation)
            results = {each.name: compare(family, each, given.seeds, given.only, print, given.once) for each in made}
            first = results[made[0].name]
            found[name] = {
                **{key: value for key, value in first.items() if key not in ("arms", "trust")},
                "target": family.target,
                "budget_core_s": family.budget,
                "slots": SLOTS,
                "seeds": given.seeds,
                "surrogates": results,
            }
    except BadInput as error:
        sys.exit(f"error: {error}")
    print(f"\n{time.monotonic() - began:.0f} s")
    if given.json:
        print(json.dumps(found, allow_nan=False))


if __name__ == "__main__":
    main()
