"""What a sweep will do, before anything starts: trials, slots, rules, and how long it takes from two timed steps.

The estimate trains typical configs of the space for a moment (step_timing.py), and then plays the sweep's trials
through the real rungs with random values: how long trials live under successive halving is arithmetic, only how many
collapse is not known beforehand (they make it shorter).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import ceil, inf
from typing import TYPE_CHECKING, Any

from buttress.errors import BadInput
from buttress.execution.ray_session import free_resources
from buttress.execution.setup import load, resolve_rules, said_of
from buttress.execution.step_timing import Timing, measure
from buttress.search.building import build
from buttress.search.halving import Rungs
from buttress.search.warm_start import gathered, resolved, sentence
from buttress.spec import trial_config
from buttress.spec.spec import SweepSpec
from buttress.training.cache import cached

if TYPE_CHECKING:
    from rich.table import Table

#: From the start of Ray to the first step of a trial, measured on two cores; paid once per sweep.
START_S = 15.0
#: Draws from which the typical config and the distribution of epochs are taken.
DRAWS = 200
#: How long a family's forecast may look at them, in seconds.
FORECAST_S = 5.0


@dataclass(frozen=True)
class Foreseen:
    """Of random draws: the share expected to collapse (None: the family gives no verdict), and what was said of some,
    at least of one that collapses and of one that does not."""

    share: float | None
    draws: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    name: str
    trainable: str
    trials: int | None
    objectives: tuple[tuple[str, str], ...]
    searched: dict[str, str]
    refused: float  # share of draws that violate a requirement
    forecast: Foreseen | None  # what draws are expected to end as; None where the family has no forecast
    warm_start: str | None  # what earlier sweeps would teach this one
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

    def __rich__(self) -> Table:
        return drawn(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """As a notebook shows it."""
        return drawn(self)._repr_mimebundle_(include or (), exclude or ())


def make(spec: SweepSpec, *, address: str | None = None, timing: bool = True) -> Plan:
    """The plan of a spec; raises BadInput for everything that would keep the sweep from running."""
    spec, trainable = load(spec)
    rules = resolve_rules(spec)
    taught = sentence(gathered(resolved(spec), trainable)) if spec.warm_start else None
    configs, refused = typical(spec, trainable)
    schedules = [trainable.schedule(config) for config in configs]
    free = free_resources(address)
    from buttress.execution.worker_pool import resolve_concurrency  # after `free_resources`: it imports Ray

    with said_of(spec):
        slots = resolve_concurrency(spec.resources, [free])
    timed = measure(spec, configs, slots) if timing else None
    trials = spec.budget.trials or spec.budget.healthy
    seconds = longest = None
    if timed is not None and trials is not None:
        own = [schedules[number % len(schedules)] for number in range(trials)]
        at_once = max(1, min(slots, trials))

        def took(epochs: Iterable[int]) -> float:
            run = (timed.trial(n, each.full_beta_epochs(n)) for n, each in zip(epochs, own, strict=True))
            return START_S + timed.data_s + sum(run) / at_once

        seconds, longest = took(epochs_of_sweep(spec, own)), took(each.epochs for each in own)
        if spec.budget.hours:
            seconds, longest = min(seconds, spec.budget.hours * 3600), min(longest, spec.budget.hours * 3600)
    return Plan(
        name=spec.name,
        trainable=spec.trainable,
        trials=spec.budget.trials,
        objectives=tuple((objective.metric, str(objective.direction)) for objective in spec.objectives),
        searched={path: described(parameter) for path, parameter in spec.search.items()},
        refused=refused,
        forecast=foreseen(trainable, configs),
        warm_start=taught,
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
        config, why = build(spec, trainable, trial_config.sample(spec, rng, trainable.Config), spec.seed_of(0))
        if config is None or why is not None:
            refused, reason = refused + 1, str(why)
        else:
            configs.append(config)
    if not configs:
        raise BadInput(f"none of {DRAWS} draws can run: {reason}", where=spec.where, key="search")
    return configs, refused / DRAWS


def foreseen(trainable: Any, configs: Sequence[Any]) -> Foreseen | None:
    """What the family's `forecast` says of configs, as many as `FORECAST_S` allows; None without one."""
    if not hasattr(trainable, "forecast"):
        return None
    forecasts, until = [], inf
    for config in configs:
        forecasts.append(trainable.forecast(config, cached))
        until = min(until, time.monotonic() + FORECAST_S)  # from the second on: the first may have to read the data
        if time.monotonic() > until:
            break
    known = [each.collapses for each in forecasts if each.collapses is not None]
    by_verdict = {each.collapses: each.why for each in forecasts}
    examples = by_verdict.values() if known else (forecasts[0].why, forecasts[-1].why)
    return Foreseen(sum(known) / len(known) if known else None, len(forecasts), tuple(examples))


def epochs_of_sweep(spec: SweepSpec, schedules: Sequence[Any]) -> list[int]:
    """Epochs that trials of these schedules would run if values were random and nothing collapsed: the real rungs
    decide."""
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
                    epochs = ceil(schedule.full_at_epoch) + age
                    break
        run.append(epochs)
    return run


def described(parameter: Any) -> str:
    from buttress.wording import number

    if parameter.kind == "choice":
        text = "choice of " + ", ".join("null" if choice is None else number(choice) for choice in parameter.choices)
    else:
        text = f"{parameter.kind} {parameter.low:g} to {parameter.high:g}"
    text += f" in steps of {parameter.step:g}" if parameter.step is not None else ""
    return text + (f", when {parameter.when}" if parameter.when else "")


def drawn(plan: Plan) -> Table:
    """The plan as a person reads it."""
    from rich.table import Table

    from buttress.wording import duration, percent

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("sweep", f"{plan.name}: {plan.trials or 'any number of'} trials of {plan.trainable}")
    table.add_row("objective", "; ".join(f"{metric} ({direction})" for metric, direction in plan.objectives))
    for number, (path, text) in enumerate(plan.searched.items()):
        table.add_row("search" if number == 0 else "", f"{path}: {text}")
    if plan.refused:
        table.add_row("", f"{percent(plan.refused)} of random draws violate a requirement and are drawn again")
    if plan.forecast is not None:
        share = plan.forecast.share
        draws = f"{plan.forecast.draws} random draws"
        said = draws if share is None else f"{percent(share)} of {draws} are expected to collapse"
        table.add_row("forecast", said)
        for example in plan.forecast.examples:
            table.add_row("", f"such as: {example}")
    if plan.warm_start is not None:
        table.add_row("warm start", plan.warm_start)
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
            f"{timing.epoch_s:.2f} s an epoch with validation"
            + (f", {timing.objective_s:.2f} s more in every epoch with the objective" if timing.objective_s else "")
            + (f"; {timing.at_once} trials at once" if timing.at_once > 1 else ""),
        )
    if plan.seconds is not None and plan.longest_seconds is not None:
        table.add_row(
            "time",
            f"about {duration(plan.seconds)}; less for every trial that collapses, "
            f"{duration(plan.longest_seconds)} if none were stopped early",
        )
    return table
