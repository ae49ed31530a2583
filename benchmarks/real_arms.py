"""One arm of the comparison of real sweeps (benchmarks/real_sweeps.py): runs it, and reads from its lines what came.

`ours` is a sweep as `buttress run` would do it, with a time budget. `a` and `b` are stock Ray Tune
(benchmarks/real_stock.py). `slots` has the searcher and ASHA of `a` in our driver and its warm slots: the state of the
sweep writes the same journal, but a stock tuner draws the trials and stops them.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import real_stock
from benchmarks.collapsebench.family import ROOT, Family, load
from benchmarks.real_figures import Ran, Run, Seen, last_told
from benchmarks.real_stock import LINES, REPORTS, Value, value_of
from benchmarks.stock_policies import StockTune
from benchmarks.watched import name_of
from buttress.execution.driver import Driver
from buttress.execution.launch import start
from buttress.execution.ray_session import NAMESPACE, prepare_environment
from buttress.execution.setup import new_id
from buttress.journal.events import Outcome
from buttress.rules import RuleSet
from buttress.spec import trial_config
from buttress.spec.spec import SweepSpec
from buttress.sweep.outcomes import outcome
from buttress.sweep.state import SweepState
from buttress.sweep.trial import ActiveTrial
from buttress.training import registry
from buttress.training.trainable import Reported

ARMS = {
    "ours": "ours",
    "a": "(a) Tune: OptunaSearch + ASHA, validation loss",
    "b": "(b) the same, our objective",
    "slots": "(a') as (a), in our warm slots",
}
TOLD = {"ours": "objective", "a": "loss", "b": "objective", "slots": "loss"}
SLOTS = 2
PROFILE = "quick"
LOSS = "train/loss"  # a trial whose loss or objective is not finite has diverged, as in CollapseBench


def space(family: str) -> SweepSpec:
    return SweepSpec.load(ROOT / "search_spaces" / f"{family}.yaml", profile=PROFILE)


def spec_of(family: str, arm: str, seed: int, hours: float) -> SweepSpec:
    """The family's quick profile with this arm's seed, two slots and a budget of time; the trials of an arm that is
    told the validation loss report it."""
    tree = space(family).to_dict()
    budget = {key: value for key, value in tree["budget"].items() if key != "trials"} | {"hours": hours}
    changes: dict[str, Any] = {"seed": seed, "budget": budget}
    changes["resources"] = tree["resources"] | {"concurrency": SLOTS}
    if TOLD[arm] == "loss":
        changes["trainable"] = name_of(family)
    if arm == "slots":  # what stands in their place is the tuner's
        changes |= {"rules": {}, "scheduler": {"kind": "fifo"}, "breaker": False, "sampler": {"repeats": True}}
    return SweepSpec.from_dict(tree | changes)


# --- a stock tuner in our slots -------------------------------------------------------------------------------------


class StockState(SweepState):
    """A sweep's state whose trials a stock tuner draws and stops; study, rungs and rules are left without a say."""

    def __init__(self, *given: Any, tuner: StockTune) -> None:
        super().__init__(*given)
        self.tuner = tuner
        self.proposals._draw = self._tuners_draw  # type: ignore[method-assign]
        self._drawn = ""  # the tuner's name of the newest draw
        self._theirs: dict[str, str] = {}  # trial -> the tuner's name of it, until the tuner has let go of it
        self._epoch: dict[str, int] = {}

    def next_trial(self, leaving: Collection[str] = ()) -> ActiveTrial | None:
        with self._lock:
            live = super().next_trial(leaving)
            if live is not None:
                self._theirs[live.id] = self._drawn
            return live

    def _tuners_draw(self) -> tuple[int, dict[str, Any]]:
        drawn = self.tuner.draw()
        assert drawn is not None
        self._drawn = drawn.trial
        return self.study.enqueue(drawn.params)

    def reported(self, trial: str, attempt: int, reported: Reported) -> Outcome | None:
        with self._lock:
            decided = super().reported(trial, attempt, reported)
            live = self.active.get(trial)
            fresh = reported.epoch > self._epoch.get(trial, 0)
            if live is None or not live.accepts(attempt) or trial not in self._theirs or not fresh:
                return decided
            if self.tuner.value(reported.metrics) is not None:
                self._epoch[trial] = reported.epoch
            if self.tuner.reported(self._theirs[trial], reported):
                del self._theirs[trial]
                if reported.epoch < live.epochs:  # at its last epoch it ends by itself
                    self._record(outcome(live, "pruned", kind="asha", message="stopped by ASHA"))
            return self.outcomes.get(trial)

    def finished(self, trial: str, attempt: int) -> Outcome | None:
        with self._lock:
            ended = super().finished(trial, attempt)
            if trial in self.outcomes and trial in self._theirs:
                self.tuner.finished(self._theirs.pop(trial))
            return ended

    def raised(self, trial: str, attempt: int, error: str, kind: str = "exception") -> Outcome | None:
        with self._lock:
            ended = super().raised(trial, attempt, error, kind)
            if trial in self.outcomes and trial in self._theirs:
                self.tuner.refuse(self._theirs.pop(trial))
            return ended


class StockDriver(Driver):
    """A driver whose sweep a stock tuner decides."""

    tuner: StockTune

    def _state(self) -> SweepState:
        return StockState(self.spec, self.trainable, self.rules, self._write, self._line, tuner=self.tuner)


def stock_driver(spec: SweepSpec, out: Path, value: Value, direction: str) -> StockDriver:
    sweep = new_id(spec.name)
    driver = StockDriver(spec, out / sweep, sweep=sweep, rules=RuleSet(rules={}))
    config = trial_config.build(spec, {}, driver.trainable.Config)
    epochs = driver.trainable.schedule(config).epochs
    driver.tuner = StockTune(spec, driver.trainable.Config, value, direction, epochs, seed=spec.seed)
    return driver


# --- a run ----------------------------------------------------------------------------------------------------------


def run_arm(family: str, arm: str, seed: int, minutes: float, folder: Path) -> Run:
    """Runs one arm in `folder`, on a Ray of its own in this process; the clock begins as that Ray does."""
    import ray

    warm, limit, load_before = arm in ("ours", "slots"), minutes * 60, os.getloadavg()[0]
    more: dict[str, Any] = {}
    if warm:
        prepare_environment()
        more = {"include_dashboard": False, "namespace": NAMESPACE}
    began, clock = time.time(), time.monotonic()
    ray.init(address="local", num_cpus=SLOTS, log_to_driver=False, logging_level=logging.ERROR, **more)
    try:
        started = time.monotonic() - clock
        spec = spec_of(family, arm, seed, (limit - started) / 3600)
        own = direction_of(spec)
        told_direction = "min" if TOLD[arm] == "loss" else own
        notes: dict[str, Any] = {"told_direction": told_direction, "ray_started_s": round(started, 2)}
        if warm:
            value = value_of(load(family), TOLD[arm], spec.objectives[0].metric)
            sweep = start(spec, folder) if arm == "ours" else stock_driver(spec, folder, value, told_direction)
            notes["reason"] = sweep.run().reason
        else:
            given = (spec, family, TOLD[arm], told_direction, folder)
            notes["tunes_winner"] = real_stock.run(*given, until=clock + limit, concurrency=SLOTS)
    finally:
        ray.shutdown()
    notes["seconds"] = round(time.monotonic() - clock, 1)
    notes["load"] = [round(load_before, 1), round(os.getloadavg()[0], 1)]
    for checkpoints in folder.glob("*/trials"):
        shutil.rmtree(checkpoints)
    return read(folder, Run(family, arm, seed, limit, own, None, (), notes), spec, began)


def read(folder: Path, run: Run, spec: SweepSpec, began: float) -> Run:
    """`run` with what its lines hold: its trials, and the one that the arm calls its best."""
    lines = lines_in(folder)
    run = replace(run, trials=trials_of(lines, load(run.family), spec, run.arm, began))
    if run.arm == "ours":
        return replace(run, winner=best_completed(lines, began + run.limit, spec))
    return replace(run, winner=run.notes.get("tunes_winner") or last_told(run))


def direction_of(spec: SweepSpec) -> str:
    first = spec.objectives[0]
    return str(first.direction or registry.load(spec.trainable).metrics[first.metric].direction)


# --- what its lines say ---------------------------------------------------------------------------------------------


def lines_in(folder: Path) -> list[dict[str, Any]]:
    """All lines under a run's folder by time: the journal, and of a stock run the files of its workers."""
    paths = [*folder.glob(LINES), *folder.glob(f"*/{LINES}"), *folder.glob(f"{REPORTS}/*.jsonl")]
    texts = [text for path in paths for text in path.read_text().splitlines(keepends=True)]
    lines = [json.loads(text) for text in texts if text.endswith("\n")]
    return sorted(lines, key=lambda line: float(line["time"]))


def trials_of(
    lines: Iterable[dict[str, Any]], family: Family, spec: SweepSpec, arm: str, began: float
) -> tuple[Ran, ...]:
    """The trials that began, with every report; times in seconds since `began`."""
    objective = spec.objectives[0].metric
    value = value_of(family, TOLD[arm], objective)
    params: dict[str, dict[str, Any]] = {}
    busy: dict[str, list[list[float | None]]] = {}
    seen: dict[str, list[Seen]] = {}
    for line in lines:
        trial, t, kind = str(line.get("trial")), line["time"] - began, line["line"]
        if kind == "trial":
            params[trial], busy[trial], seen[trial] = line["params"], [], []
        elif kind == "start":
            busy[trial].append([t, None])
        elif kind in ("outcome", "paused", "lost") and busy.get(trial) and busy[trial][-1][1] is None:
            busy[trial][-1][1] = t
        elif kind == "report":
            seen[trial].append(seen_of(line, family, objective, value, t))
    return tuple(
        Ran(trial, params[trial], float(spans[0][0] or 0.0), tuple((float(a or 0.0), b) for a, b in spans),
            tuple(seen[trial]))
        for trial, spans in busy.items() if spans
    )  # fmt: skip


def seen_of(line: Mapping[str, Any], family: Family, objective: str, value: Value, t: float) -> Seen:
    metrics, bad = line["metrics"], {objective, LOSS} & set(line["nonfinite"])
    told = value(metrics)
    return Seen(
        t=round(t, 3), epoch=line["epoch"], age=line["full_beta_epochs"], value=metrics.get(objective),
        told=math.inf if bad and told is None else told, dead=True if bad else family.looks_dead(metrics),
        counts=line["full_beta_steps"] > 0 and line["step"] >= family.min_steps,
        closing=line["closing"],
    )  # fmt: skip


def best_completed(lines: Iterable[dict[str, Any]], until: float, spec: SweepSpec) -> str | None:
    """What our sweep calls its best at `until` (epoch seconds): of the completed trials, by their best valid epoch."""
    metric = spec.objectives[0].metric
    ended = [line for line in lines if line["line"] == "outcome" and line["time"] <= until]
    values = {line["trial"]: line["best"]["metrics"][metric] for line in ended if line["outcome"] == "completed"}
    return (max if direction_of(spec) == "max" else min)(values, key=lambda trial: values[trial], default=None)
