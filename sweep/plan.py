"""What a sweep will do, before anything starts: trials, slots, rules, and how long it takes from two timed steps.

The estimate trains the typical config of the space for a moment with the trial's real worker count, takes the seconds
of a step from two steps after the first (which pays for caches), counts an epoch's validation once if the first epoch
ends within `TIMING_S`, and then plays the sweep's trials through the real rungs with random values: how long trials
live under successive halving is arithmetic, only how many collapse is not known beforehand (they make it shorter).
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import trainables
from search_spaces.errors import BadInput
from search_spaces.spec import SweepSpec
from sweep.cluster import free_resources
from sweep.opening import check, resolve_rules
from sweep.rungs import Rungs
from sweep.state import unsettled
from trainables.base import Reported

#: How long the timing may train, in seconds.
TIMING_S = 20.0
#: From the start of Ray to the first step of a trial, measured on two cores; paid once per sweep.
START_S = 15.0
#: Steps shorter than this are disturbed by a report each.
SHORT_STEP_S = 0.05
#: What validation adds to an epoch, as a share of its steps, where none could be timed.
VALIDATION = 0.2
#: Draws from which the typical config and the distribution of epochs are taken.
DRAWS = 200


@dataclass(frozen=True)
class Timing:
    """`step_s` from two timed steps; `epoch_s` includes validation and reports."""

    step_s: float
    steps_per_epoch: int
    epoch_s: float
    data_s: float  # until the first step: reading data, building the model


@dataclass(frozen=True)
class Plan:
    name: str
    trainable: str
    trials: int | None
    objectives: tuple[tuple[str, str], ...]
    searched: dict[str, str]
    refused: float  # share of draws that violate a requirement
    rules: dict[str, str]  # name -> action
    epochs: tuple[int, int]  # smallest and largest budget of a trial
    workers: int
    slots: int
    needs: dict[str, float]
    free: dict[str, float]
    timing: Timing | None
    seconds: float | None  # the whole sweep
    longest_seconds: float | None  # if no trial were stopped early

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def make(spec: SweepSpec, *, address: str | None = None, timing: bool = True) -> Plan:
    """The plan of a spec; raises BadInput for everything that would keep the sweep from running."""
    trainable = trainables.load(spec.trainable)
    check(spec, trainable)
    rules = resolve_rules(spec)
    configs, refused = typical(spec, trainable)
    schedules = [trainable.schedule(config) for config in configs]
    free = free_resources(address)
    from sweep.slots import concurrency  # after `free_resources`: it imports Ray

    slots = concurrency(spec.resources, [free])
    timed = measure(spec, trainable, configs[len(configs) // 2]) if timing else None
    trials = spec.budget.trials or spec.budget.healthy
    seconds = longest = None
    if timed is not None and trials is not None:
        run = epochs_of_sweep(spec, schedules, trials)
        full = [schedules[number % len(schedules)].epochs for number in range(trials)]
        waves = max(1, min(slots, trials))
        seconds = START_S + timed.data_s + sum(run) * timed.epoch_s / waves
        longest = START_S + timed.data_s + sum(full) * timed.epoch_s / waves
        if spec.budget.hours:
            seconds, longest = min(seconds, spec.budget.hours * 3600), min(longest, spec.budget.hours * 3600)
    return Plan(
        name=spec.name,
        trainable=spec.trainable,
        trials=spec.budget.trials,
        objectives=tuple((objective.metric, str(objective.direction)) for objective in spec.objectives),
        searched={path: described(parameter) for path, parameter in spec.search.items()},
        refused=refused,
        rules={name: rule.get("action", "kill") for name, rule in rules.to_dict()["rules"].items()},
        epochs=(min(each.epochs for each in schedules), max(each.epochs for each in schedules)),
        workers=spec.resources.workers,
        slots=slots,
        needs={
            "CPU": spec.resources.workers * spec.resources.cpus_per_worker,
            "GPU": spec.resources.workers * spec.resources.gpus_per_worker,
        },
        free=free,
        timing=timed,
        seconds=seconds,
        longest_seconds=longest,
    )


def typical(spec: SweepSpec, trainable: Any) -> tuple[list[Any], float]:
    """Configs of random draws that the sweep would run, and the share of draws that it would refuse."""
    rng = random.Random(spec.seed)
    configs, refused, reason = [], 0, ""
    for _ in range(DRAWS):
        params = spec.sample(rng, trainable.Config)
        try:
            config = spec.config(params, trainable.Config, seed=spec.seed_of(0), schedule=trainable.schedule)
            why = spec.violated(config) or unsettled(trainable.schedule(config))
        except BadInput as error:
            config, why = None, str(error)
        if config is None or why is not None:
            refused, reason = refused + 1, str(why)
        else:
            configs.append(config)
    if not configs:
        raise BadInput(f"none of {DRAWS} draws can run: {reason}", where=spec.where, key="search")
    return configs, refused / DRAWS


class _Clock:
    """A sink that notes when reports come and ends the training once it knows enough."""

    def __init__(self, steps: int) -> None:
        self.reports: list[Reported] = []
        self.stop = False
        self._steps, self._began = steps, time.monotonic()

    def send(self, reported: Reported) -> None:
        self.reports.append(reported)
        over = len(self.reports) > self._steps and time.monotonic() - self._began > TIMING_S
        self.stop = self.stop or reported.epoch >= 1 or over


def measure(spec: SweepSpec, trainable: Any, config: Any) -> Timing:
    """Trains the config for a moment with its real worker count and reads the clock.

    A report after every step times the steps. Where a step is so short that this would distort an epoch, the epoch is
    timed in a second run that reports as the sweep will.
    """
    steps = _watched(spec, trainable, config, report_every=1, steps=3)
    timing = read(steps)
    if timing.step_s < SHORT_STEP_S and timing.epoch_s < TIMING_S:
        own = read(_watched(spec, trainable, config, report_every=None, steps=3))
        timing = own if own.step_s else replace(own, step_s=timing.step_s)
    return timing


def _watched(spec: SweepSpec, trainable: Any, config: Any, *, report_every: int | None, steps: int) -> list[Reported]:
    from trainables.launch import train

    if report_every is not None and hasattr(config, "buttress"):
        buttress = config.buttress.model_copy(update={"report_every": report_every})
        config = config.model_copy(update={"buttress": buttress})
    clock = _Clock(steps)
    with tempfile.TemporaryDirectory() as folder:
        train(config, trainable, Path(folder), sink=clock, workers=spec.resources.workers)
    return clock.reports


def read(reports: Sequence[Reported]) -> Timing:
    """The timing that the first reports of a training give; the last of them ends the first epoch, if time allowed."""
    inside = [reported for reported in reports if reported.epoch == 0]
    pairs = [(b.step - a.step, b.seconds - a.seconds) for a, b in pairwise(inside)]
    step_s = statistics.median(seconds / count for count, seconds in pairs) if pairs else 0.0
    first = inside[0] if inside else None
    data_s = max(0.0, first.seconds - first.step * step_s) if first else 0.0
    ended = next((reported for reported in reports if reported.epoch >= 1), None)
    if ended is not None:
        return Timing(step_s or ended.seconds / ended.step, ended.step, ended.seconds - data_s, data_s)
    last = inside[-1] if inside else None
    progress = last.metrics.get("train/progress") if last else None
    if last is None or not progress:
        raise BadInput(f"no epoch ended within {TIMING_S:g} s, so its length is not known", accepted="--no-timing")
    steps = round(last.step / progress)
    return Timing(step_s, steps, steps * step_s * (1 + VALIDATION), data_s)


def epochs_of_sweep(spec: SweepSpec, schedules: list[Any], trials: int) -> list[int]:
    """Epochs that each trial would run if values were random and nothing collapsed: the real rungs decide."""
    rng = random.Random(spec.seed)
    asha = spec.scheduler.kind == "asha"
    rungs = Rungs(spec.scheduler.first, spec.scheduler.factor, "max") if asha else None
    run = []
    for number in range(trials):
        schedule, value = schedules[number % len(schedules)], rng.random()
        epochs = schedule.epochs
        if rungs is not None:
            for age in range(1, schedule.full_beta_epochs(schedule.epochs) + 1):
                decision = rungs.report(str(number), age, value)
                if decision and decision.stop:
                    epochs = ceil(schedule.full_at_epoch) + age
                    break
        run.append(epochs)
    return run


def described(parameter: Any) -> str:
    if parameter.kind == "choice":
        return "choice of " + ", ".join(str(choice) for choice in parameter.choices)
    text = f"{parameter.kind} {parameter.low:g} to {parameter.high:g}"
    return text + (f", when {parameter.when}" if parameter.when else "")


def show(plan: Plan) -> None:
    """Prints the plan for a person."""
    from rich.console import Console
    from rich.table import Table

    from analysis.wording import duration, percent

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("sweep", f"{plan.name}: {plan.trials or 'any number of'} trials of {plan.trainable}")
    table.add_row("objective", "; ".join(f"{metric} ({direction})" for metric, direction in plan.objectives))
    for number, (path, text) in enumerate(plan.searched.items()):
        table.add_row("search" if number == 0 else "", f"{path}: {text}")
    if plan.refused:
        table.add_row("", f"{percent(plan.refused)} of random draws violate a requirement and are drawn again")
    low, high = plan.epochs
    table.add_row("epochs", f"{low}" if low == high else f"{low} to {high}")
    table.add_row("rules", ", ".join(f"{name} ({action})" for name, action in plan.rules.items()))
    needs = ", ".join(f"{amount:g} {kind}" for kind, amount in plan.needs.items() if amount)
    free = ", ".join(f"{amount:g} {kind}" for kind, amount in plan.free.items() if amount)
    table.add_row("slots", f"{plan.slots} trials at once: each needs {needs} for {plan.workers} worker(s), of {free}")
    if plan.timing is not None:
        timing = plan.timing
        table.add_row(
            "timing",
            f"{timing.step_s * 1e3:.2f} ms a step, {timing.steps_per_epoch} steps an epoch, "
            f"{timing.epoch_s:.2f} s an epoch with validation",
        )
    if plan.seconds is not None and plan.longest_seconds is not None:
        table.add_row(
            "time",
            f"about {duration(plan.seconds)}; less for every trial that collapses, "
            f"{duration(plan.longest_seconds)} if none were stopped early",
        )
    Console(highlight=False).print(table)
