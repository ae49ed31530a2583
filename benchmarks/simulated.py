"""One arm of a simulated comparison, one seed: what was spent until the target, and what became of the trials.

In come a family's CollapseBench curves, a stand-in for training (surrogate.py) and a seed; out comes a `Run`.
`Family` knows the bench's space, budget and target and how each arm is run: ours, ours without each of its parts, and
the stock tuners of stock_policies.py. `Bench` is the same by name, so that other processes can make it for themselves,
and `runs_of` spreads many runs over processes: a run is a function of its arguments alone, whichever process makes it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import optuna

from benchmarks.collapsebench.family import load
from benchmarks.collapsebench.judge import curves_of, once
from benchmarks.simulator import Event, Simulator, play
from benchmarks.stock_policies import OptunaPruned, RandomSearch, Stock, StockTune, Value
from benchmarks.surrogate import SURROGATES, Once, Surrogate, bench_space
from buttress.analysis.curves import CurveSet
from buttress.callbacks.base import Callback
from buttress.execution.setup import commit, resolve_rules, versions
from buttress.journal.events import Audited, Report
from buttress.rules import RuleSet
from buttress.search.optuna_study import SamplerResult, Study
from buttress.spec.spec import SweepSpec
from buttress.training import registry

SLOTS = 4
TRIALS = 60  # the budget is what so many full trials cost
TOP = 0.95  # quantile of the healthy values that is the target


@dataclass(frozen=True)
class Run:
    """One arm, one seed. `reached`: core-seconds of the sweep until the target, None if never. Of our arms also
    `healthy`: trials that are healthy in truth and have ended; `killed`: those of them that a rule stopped. `audited`:
    condemned trials that ran on to their end; `acquitted`:
    those of them that the sweep itself says ended healthy, `wronged`: those that are healthy in truth; `audit_s`: the
    core-seconds that they ran after their verdicts."""

    reached: float | None
    best_healthy: float | None
    trials: int
    dead: int
    winner_dead: bool | None  # None: nothing that it calls its winner
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
        self.dead[event.trial], self.healthy[event.trial] = truth.dead, truth.outcome == "healthy"
        value = report.metrics.get(self.objective)
        if value is None or truth.outcome != "healthy" or report.full_beta_epochs < 1:
            return
        if self.best is None or self.sign * value > self.sign * self.best:
            self.best = value
        if self.reached is None and self.sign * value >= self.sign * self.target:
            self.reached = event.clock * SLOTS

    def run(self, winner: str | None) -> Run:
        winner_dead = self.dead[winner] if winner else None
        return Run(self.reached, self.best, len(self.dead), sum(self.dead.values()), winner_dead)


class Condemned(Callback):
    """A callback that adds up what audited trials ran after their verdicts."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._now: dict[str, float] = {}

    def on_event(self, event: Any, trial: Any = None) -> None:
        if isinstance(event, Audited):
            self._since[event.trial] = event.seconds or 0.0
        elif isinstance(event, Report) and event.trial in self._since:
            self._now[event.trial] = event.seconds

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

    def tell(self, ask: int, result: SamplerResult) -> None:
        flat = {name: 1.0 if value > 0 else -1.0 for name, value in result.constraints.items()}
        super().tell(ask, replace(result, constraints=flat))


class PrunedStudy(Study):
    """Told PRUNED and nothing else, as a tuner without constraints would be."""

    def tell(self, ask: int, result: SamplerResult) -> None:
        super().tell(ask, replace(result, constraints={}))


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
}


LOSS = "(a) Tune: OptunaSearch + ASHA, validation loss"


class Family:
    """One family's bench: its space, budget and target, and how each arm is run."""

    def __init__(self, name: str, curves: CurveSet, rules: RuleSet | None) -> None:
        self.name, self.curves, self.rules = name, curves, rules
        self.objective, self.direction = str(curves.about["objective"]), str(curves.about["direction"])
        bench = load(name)
        self.space = as_today(bench_space(curves), bench.spec())
        self.trainable = registry.load(name)
        single = once(curves.curves)
        truths = [curve.truth for curve in single if curve.truth and curve.truth.outcome == "healthy"]
        values = [truth.value for truth in truths if truth.value is not None]
        self.target = float(np.quantile(values, TOP if self.direction == "max" else 1 - TOP))
        self.epochs = max(curve.budget_epochs for curve in single)
        self.seconds = TRIALS * median(curve.seconds[-1] for curve in single if curve.seconds) / SLOTS
        self.validation_loss = bench.validation_loss

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
        made_with = {"rules": rules or self.rules, "see": watch, "callbacks": (condemned,)}
        simulator = Simulator(made, surrogate, slots=SLOTS, **made_with)
        if study is not None:
            state = simulator.state
            state.study = state.proposals.study = study(made, state.directions, simulator.trainable.Config)
        simulator.run()
        done = {
            trial: outcome.best.metrics[self.objective]
            for trial, outcome in simulator.state.outcomes.items()
            if outcome.outcome == "completed" and outcome.best is not None
        }
        better = max if self.direction == "max" else min
        run = watch.run(better(done, key=lambda trial: done[trial]) if done else None)
        ends = {trial: outcome.outcome for trial, outcome in simulator.state.outcomes.items()}
        healthy = [trial for trial in ends if watch.healthy[trial]]
        audited = [trial for trial, outcome in simulator.state.outcomes.items() if outcome.audited]
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


def as_today(recorded: SweepSpec, profile: SweepSpec) -> SweepSpec:
    """The space that the curves were drawn from, under the rules and rungs that the bench profile names by now."""
    now = profile.to_dict()
    return SweepSpec.from_dict(recorded.to_dict() | {key: now[key] for key in ("rules", "scheduler")})


# --- many runs ------------------------------------------------------------------------------------------------------


class Bench(NamedTuple):
    """A family by its name, with its curves' folder, and the file with the rules if they are not those of its space."""

    name: str
    curves: Path
    rules: Path | None = None


@functools.lru_cache(maxsize=1)
def family_of(bench: Bench) -> Family:
    rules = RuleSet.load(bench.rules) if bench.rules else None
    return Family(bench.name, curves_of(bench.name, bench.curves), rules)


@functools.lru_cache(maxsize=2)
def stand_in(bench: Bench, kind: str) -> Surrogate:
    return SURROGATES[kind](family_of(bench).curves)


class Task(NamedTuple):
    """One run: `kind` of stand-in, whether its curves stand in `once` per sweep at most, arm, seed."""

    bench: Bench
    kind: str
    once: bool
    arm: str
    seed: int


def run_of(task: Task) -> Run:
    surrogate = stand_in(task.bench, task.kind)
    return family_of(task.bench).arms()[task.arm](Once(surrogate) if task.once else surrogate, task.seed)


class Kept:
    """Runs that lie in a file, one JSON line each, so that an interrupted comparison goes on where it was.

    A run counts for as long as curves, rules, space, versions and commit are the same; uncommitted changes go unseen.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._runs: dict[str, Run] = {}
        whole, _, torn = path.read_text().rpartition("\n") if path is not None and path.is_file() else ("", "", "")
        if torn and path is not None:  # of a command that was killed
            path.write_text(whole + "\n" if whole else "")
        for line in whole.splitlines():
            entry = json.loads(line)
            self._runs[entry["key"]] = Run(**entry["run"])

    def get(self, task: Task) -> Run | None:
        return self._runs.get(_key(task))

    def add(self, task: Task, run: Run) -> None:
        if self._path is not None and _key(task) not in self._runs:
            self._runs[_key(task)] = run
            with self._path.open("a") as handle:
                handle.write(json.dumps({"key": _key(task), "run": asdict(run)}) + "\n")


def _key(task: Task) -> str:
    return f"{_digest(task.bench)} {task.bench.name}, {task.kind}{', once' * task.once}, {task.arm}, seed {task.seed}"


@functools.cache
def _digest(bench: Bench) -> str:
    """Of what a run depends on besides its arguments."""
    family, digest = family_of(bench), hashlib.blake2b(digest_size=8)
    for path in sorted(bench.curves.glob(f"{bench.name}-*.parquet")):
        digest.update(path.read_bytes())
    rules = family.rules or resolve_rules(family.space)
    told = [family.space.to_dict(), rules.to_dict(), SLOTS, TRIALS, TOP, (commit() or "").rstrip("+"), versions()]
    digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    return digest.hexdigest()


@contextmanager
def processes(jobs: int) -> Iterator[Callable[[Task], Callable[[], Run]]]:
    """Somebody to give tasks to, who says for each how to wait for its run: `jobs` processes, or for 1 this one."""
    if jobs == 1:
        yield lambda task: lambda: run_of(task)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:

        def begin(task: Task) -> Callable[[], Run]:
            future: Future[Run] = pool.submit(run_of, task)
            return future.result

        try:
            yield begin
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def runs_of(tasks: Sequence[Task], begin: Callable[[Task], Callable[[], Run]], kept: Kept) -> Iterator[Run]:
    """The tasks' runs, in their order; all that are not kept are begun at once."""
    waits = [None if kept.get(task) else begin(task) for task in tasks]
    for task, wait in zip(tasks, waits, strict=True):
        run = kept.get(task) if wait is None else wait()
        assert run is not None
        kept.add(task, run)
        yield run
