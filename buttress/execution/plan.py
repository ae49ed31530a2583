"""Says what a sweep will run and what it needs, before anything starts, and estimates how long it takes.

The estimate times typical configs of the space for a moment (`step_timing`), and then plays the sweep's trials through
the real rungs with random values: how long trials live under successive halving is arithmetic. How many collapse is not
known beforehand; each that does makes the sweep shorter.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any

from buttress.errors import BadInput
from buttress.execution.ray_session import free_resources
from buttress.execution.setup import load, located_in, resolve_rules
from buttress.execution.step_timing import Timing, measure
from buttress.rules.coverage import coverage_warnings
from buttress.search.halving import Rungs
from buttress.search.proposals import build, never_settles
from buttress.search.warm_start import collect, describe, resolve_sweeps
from buttress.spec import trial_config
from buttress.spec.spec import SweepSpec
from buttress.spec.validation import uncovered_weights
from buttress.training.cache import cached
from buttress.training.registry import FAMILIES
from buttress.training.trainable import NO_CHECKPOINTS

if TYPE_CHECKING:
    from rich.table import Table

#: Seconds from the start of Ray to the first step of a trial, measured on two cores; paid once per sweep.
SWEEP_START_S = 15.0
#: Random draws from which typical configs and the distribution of epochs are taken.
SAMPLED_DRAWS = 200
#: Seconds that a family's forecast may take for all of them.
MAX_FORECAST_S = 5.0


@dataclass(frozen=True)
class ForecastSummary:
    """What a family's forecast says of random draws.

    Attributes:
        share: Share that is expected to collapse, 0 to 1; None where the family gives no verdict.
        draws: Number of draws looked at.
        examples: What was said of some, at least of one that collapses and of one that does not.
    """

    share: float | None
    draws: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a sweep will run, what it needs, and how long it is expected to take.

    Attributes:
        name: The sweep's name.
        trainable: Name of the trainable.
        trials: Budget in trials; None where it is not in trials.
        objectives: Metric and direction of each.
        searched: Path of each searched parameter -> its range in words.
        refused: Share of random draws that violate a requirement, 0 to 1.
        forecast: What random draws are expected to end as; None where the family has no forecast.
        warm_start: What earlier sweeps would teach the sampler, in words.
        rules: Name of each rule -> its action.
        epochs: Smallest and largest budget of a trial.
        workers: Workers of a trial.
        slots: Trials at once.
        needs: Amounts of `CPU` and `GPU` that a trial needs.
        free: Amounts of `CPU` and `GPU` that are free.
        timing: Measured on this machine; None without timing.
        seconds: Estimate for the whole sweep.
        longest_seconds: The same if no trial were stopped early.
        warnings: What is allowed and yet probably meant otherwise, in sentences.
    """

    name: str
    trainable: str
    trials: int | None
    objectives: tuple[tuple[str, str], ...]
    searched: dict[str, str]
    refused: float
    forecast: ForecastSummary | None
    warm_start: str | None
    rules: dict[str, str]
    epochs: tuple[int, int]
    workers: int
    slots: int
    needs: dict[str, float]
    free: dict[str, float]
    timing: Timing | None
    seconds: float | None
    longest_seconds: float | None
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def __rich__(self) -> Table:
        return plan_table(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """As a notebook shows it."""
        return plan_table(self)._repr_mimebundle_(include or (), exclude or ())


def make_plan(spec: SweepSpec, *, address: str | None = None, timing: bool = True) -> Plan:
    """The plan of a sweep.

    Args:
        spec: The sweep.
        address: Of a running Ray cluster; None: the sweep would run on this machine.
        timing: Whether to time typical trials.

    Raises:
        BadInput: Whatever would keep the sweep from running.
    """
    spec, trainable = load(spec)
    rules = resolve_rules(spec)
    warm_start = describe(collect(resolve_sweeps(spec), trainable)) if spec.warm_start else None
    configs, refused = sample_configs(spec, trainable)
    schedules = [trainable.schedule(config) for config in configs]
    free = free_resources(address)
    from buttress.execution.worker_pool import resolve_concurrency  # after `free_resources`: it imports Ray

    with located_in(spec):
        slots = resolve_concurrency(spec.resources, [free])
    timed, reports = measure(spec, configs, slots) if timing else (None, [])
    if timed is not None:
        schedules = [with_measured_steps(spec, schedule, timed.steps_per_epoch) for schedule in schedules]
    trials = spec.budget.trials or spec.budget.healthy
    seconds = longest = None
    if timed is not None and trials is not None:
        own = [schedules[number % len(schedules)] for number in range(trials)]
        at_once = max(1, min(slots, trials))

        def duration_of(epochs: Iterable[int]) -> float:
            run = (timed.trial(n, each.full_beta_epochs(n)) for n, each in zip(epochs, own, strict=True))
            return SWEEP_START_S + timed.data_s + sum(run) / at_once

        seconds, longest = duration_of(epochs_of_sweep(spec, own)), duration_of(each.epochs for each in own)
        if spec.budget.hours:
            seconds, longest = min(seconds, spec.budget.hours * 3600), min(longest, spec.budget.hours * 3600)
    return Plan(
        name=spec.name,
        trainable=spec.trainable,
        trials=spec.budget.trials,
        objectives=tuple((objective.metric, str(objective.direction)) for objective in spec.objectives),
        searched={path: describe_parameter(parameter) for path, parameter in spec.search.items()},
        refused=refused,
        forecast=summarise_forecasts(trainable, configs),
        warm_start=warm_start,
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
        warnings=(*find_warnings(spec, trainable, timed), *coverage_warnings(rules, reports)),
    )


def with_measured_steps(spec: SweepSpec, schedule: Any, steps_per_epoch: int) -> Any:
    """A schedule that is given in steps only, with the measured length of an epoch.

    Raises:
        BadInput: Its beta is not final before the last epoch begins.
    """
    if not schedule.in_steps_only:
        return schedule
    known = replace(schedule, steps_per_epoch=steps_per_epoch)
    if (why := never_settles(known)) is not None:
        raise spec.error(why, key="trainable", value=spec.trainable, accepted="more epochs or a shorter warm-up")
    return known


def find_warnings(spec: SweepSpec, trainable: Any, timed: Timing | None) -> list[str]:
    """What is allowed and yet probably meant otherwise, in sentences."""
    said = []
    own = spec.trainable not in FAMILIES  # whose metrics nobody has looked through
    for path in uncovered_weights(spec, trainable.metrics) if own else ():
        said.append(
            f"{path} is searched, and no metric says that its scale depends on it: if {spec.objectives[0].metric} "
            f'does, it cannot compare trials (Metric(..., weighted_by=("{path}",)) says of a metric that it does)'
        )
    if timed is not None and timed.checkpoints is False:
        said.append(f"the trainer reports no checkpoints: {NO_CHECKPOINTS}")
    return said


def sample_configs(spec: SweepSpec, trainable: Any) -> tuple[list[Any], float]:
    """Configs of random draws that the sweep would run, and the share of draws that it would refuse."""
    rng = random.Random(spec.seed)
    configs, refused, reason = [], 0, ""
    for _ in range(SAMPLED_DRAWS):
        config, why = build(spec, trainable, trial_config.sample(spec, rng, trainable.Config), spec.seed_of(0))
        if config is None or why is not None:
            refused, reason = refused + 1, str(why)
        else:
            configs.append(config)
    if not configs:
        raise BadInput(f"none of {SAMPLED_DRAWS} draws can run: {reason}", where=spec.where, key="search")
    return configs, refused / SAMPLED_DRAWS


def summarise_forecasts(trainable: Any, configs: Sequence[Any]) -> ForecastSummary | None:
    """What the family's `forecast` says of configs, as many as `MAX_FORECAST_S` allows; None without one."""
    if not hasattr(trainable, "forecast"):
        return None
    forecasts, until = [], inf
    for config in configs:
        forecasts.append(trainable.forecast(config, cached))
        until = min(until, time.monotonic() + MAX_FORECAST_S)  # from the second on: the first may have to read the data
        if time.monotonic() > until:
            break
    known = [each.collapses for each in forecasts if each.collapses is not None]
    by_verdict = {each.collapses: each.why for each in forecasts}
    examples = by_verdict.values() if known else (forecasts[0].why, forecasts[-1].why)
    return ForecastSummary(sum(known) / len(known) if known else None, len(forecasts), tuple(examples))


def epochs_of_sweep(spec: SweepSpec, schedules: Sequence[Any]) -> list[int]:
    """Epochs that trials of these schedules would run, with random values in the real rungs and without collapses."""
    rng = random.Random(spec.seed)
    asha = spec.scheduler.kind == "asha"
    rungs = Rungs(spec.scheduler.first, spec.scheduler.factor, "max") if asha else None
    run = []
    for number, schedule in enumerate(schedules):
        epochs, value = schedule.epochs, rng.random()
        if rungs is not None:
            for age in range(1, schedule.full_beta_epochs(schedule.epochs) + 1):
                decision = rungs.report(str(number), age, value)
                if decision and decision.stop:
                    epochs = int(schedule.settles_after()[0]) + age
                    break
        run.append(epochs)
    return run


def describe_parameter(parameter: Any) -> str:
    """A searched parameter's range in words."""
    from buttress.wording import abbreviated

    if parameter.kind == "choice":
        text = f"choice of {abbreviated(parameter.choices)}"
    else:
        text = f"{parameter.kind} {parameter.low:g} to {parameter.high:g}"
    text += f" in steps of {parameter.step:g}" if parameter.step is not None else ""
    return text + (f", when {parameter.when}" if parameter.when else "")


def plan_table(plan: Plan) -> Table:
    """The plan as a table for people."""
    from rich.table import Table
    from rich.text import Text

    from buttress.wording import duration, percent, plural

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")

    def add(what: str, text: str) -> None:
        table.add_row(what, Text(text))  # a notebook's console reads markup in what is no Text

    count = plural(plan.trials, "trial") if plan.trials else "any number of trials"
    add("sweep", f"{plan.name}: {count} of {plan.trainable}")
    add("objective", "; ".join(f"{metric} ({direction})" for metric, direction in plan.objectives))
    for number, (path, text) in enumerate(plan.searched.items()):
        add("search" if number == 0 else "", f"{path}: {text}")
    if plan.refused:
        add("", f"{percent(plan.refused)} of random draws violate a requirement and are drawn again")
    if plan.forecast is not None:
        share = plan.forecast.share
        draws = f"{plan.forecast.draws} random draws"
        said = draws if share is None else f"{percent(share)} of {draws} are expected to collapse"
        add("forecast", said)
        for example in plan.forecast.examples:
            add("", f"such as: {example}")
    if plan.warm_start is not None:
        add("warm start", plan.warm_start)
    low, high = plan.epochs
    add("epochs", f"{low}" if low == high else f"{low} to {high}")
    add("rules", ", ".join(f"{name} ({action})" for name, action in plan.rules.items()))
    needs = ", ".join(f"{amount:g} {kind}" for kind, amount in plan.needs.items() if amount)
    free = ", ".join(f"{amount:g} {kind}" for kind, amount in plan.free.items() if amount)
    slots = plural(plan.slots, "trial")
    add("slots", f"{slots} at once: each needs {needs} for {plan.workers} worker(s), of {free}")
    if plan.timing is not None:
        timing = plan.timing
        add(
            "timing",
            f"{timing.step_s * 1e3:.2f} ms a step, {timing.steps_per_epoch} steps an epoch, "
            f"{timing.epoch_s:.2f} s an epoch with validation"
            + (f", {timing.objective_s:.2f} s more in every epoch with the objective" if timing.objective_s else "")
            + (f"; {timing.at_once} trials at once" if timing.at_once > 1 else ""),
        )
    if plan.seconds is not None and plan.longest_seconds is not None:
        add(
            "time",
            f"about {duration(plan.seconds)}; less for every trial that collapses, "
            f"{duration(plan.longest_seconds)} if none were stopped early",
        )
    for number, warning in enumerate(plan.warnings):
        add("warning" if number == 0 else "", warning)
    return table
