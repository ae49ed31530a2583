"""The training loop that every family shares: epochs or steps, one optimiser or several in turn, on one rank or many.

A family gives a `Task`: its passes (module, optimiser, schedule), its batches and its evaluation. `run` trains it,
reports its health inside an epoch and its objectives at the epoch's end, saves checkpoints from which the run goes on
bit for bit, stops early on a metric that no searched weight can move, and closes with a full check.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import ceil, inf, isnan
from pathlib import Path
from typing import Any, Literal

import torch

from buttress.errors import BadInput
from buttress.monitors.summaries import merge_rows, pack_row
from buttress.training.checkpoints import load_checkpoint
from buttress.training.optimization import Borrowed, Descent, Meters, Pass, StepState, fused_adam, give_gradients_to
from buttress.training.randomness import generators, part_ranks, restore_generators, steady
from buttress.training.trainable import Direction, Report, Schedule, TrialStopped
from buttress.training.world import World

__all__ = ["Borrowed", "EarlyStopping", "Ended", "Pass", "StepState", "Task", "fused_adam", "run"]


class Task(ABC):
    """What a family gives the loop. `passes`, `steps_per_epoch`, `batches` and `evaluate` are its own; the rest is
    optional. All of it runs on every rank, at the same points: it may use collectives (`world.sum`)."""

    passes: Sequence[Pass]
    steps_per_epoch: int  # optimiser steps, the same on every rank; a step-driven family cuts its run into "epochs"

    def scheduled(self, progress: float, step: int) -> dict[str, float]:
        """The scheduled numbers of the step that begins after `progress` epochs and `step` steps (cheap: every step).

        They reach the modules as `state.numbers` and the reports as `train/<name>` (last value).
        """
        return {}

    @abstractmethod
    def batches(self, epoch: int) -> Iterator[Any]:
        """This rank's batches of epoch `epoch` (from 0): a function of (seed, epoch) alone, so that a resumed run sees
        the same. Enough for `steps_per_epoch` groups of `accumulate` batches; the last group may be short."""

    def observe(self, logs: Mapping[str, torch.Tensor], state: StepState) -> None:  # noqa: B027 - optional
        """After each forward and backward: feed the monitors. No `.item()`; references to tensors may be kept."""

    def stepped(self, state: StepState) -> None:  # noqa: B027 - optional
        """After each step, all its passes done and counted in `state.step`: keep an average of the weights, say. What
        it keeps belongs into `state_dict`."""

    def health(self) -> dict[str, Any]:
        """Values of the window since the last call (training-batch monitors), for a report inside an epoch; starts a
        new window. Also called, its result unused, when an epoch ends. The loop itself adds `train/progress` (epochs,
        with the share of the running one), `train/loss`, `train/nonfinite`, `train/grad_norm`, `train/lr`,
        `train/<scheduled>` and `train/<0-dim log>`."""
        return {}

    @abstractmethod
    def evaluate(self, state: StepState, *, full: bool, objectives: bool) -> dict[str, Any]:
        """Validation at an epoch's end, under `no_grad`, modules in eval mode, random draws the same at every call and
        without effect on training. `full`: the monitors see the whole validation set (the closing check) instead of
        the fixed subset. `objectives=False`: leave the objectives out (the closing check of a run stopped early)."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types beyond modules and optimisers that the rest of the run depends on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...  # noqa: B027 - optional


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when `metric` (of `evaluate`, free of searched and scheduled weights) has not improved by more than
    `min_delta` for `patience` epochs. Epochs before full beta are neither counted nor remembered as best."""

    metric: str
    patience: int
    direction: Direction = "min"
    min_delta: float = 0.0


@dataclass(frozen=True)
class Ended:
    """How `run` ended by itself; `best` is the early-stopping metric's."""

    reason: Literal["budget", "early"]
    epoch: int
    step: int
    best: float | None = None
    best_epoch: int | None = None


def run(
    task: Task,
    schedule: Schedule,
    world: World,
    report: Report,
    resume: Path | None = None,
    *,
    report_every: int = 100,
    checkpoint_every: int = 1,
    max_steps: int | None = None,
    accumulate: int = 1,
    early: EarlyStopping | None = None,
    amp: bool = False,
) -> Ended:
    """Train `task` for `schedule.epochs` epochs, or `max_steps` optimiser steps if that is sooner (a last epoch that is
    cut short counts as one).

    Every `report_every` steps of an epoch a health report; at the epoch's end a report with `evaluate`'s values, and
    every `checkpoint_every` epochs (and at the last) a checkpoint with it. The last epoch's evaluation is a full one,
    and its report has `closing: 1.0`; a run that stopped early adds a closing report of monitors only.
    `resume` is a checkpoint of the same config: the run goes on as if it had never stopped.
    """
    steps = task.steps_per_epoch
    last_step = min(schedule.epochs * steps, max_steps or schedule.epochs * steps)
    state = StepState(shares=world.size * accumulate)
    if amp:
        state.autocast = partial(torch.autocast, world.device.type, dtype=torch.bfloat16)
    meters = Meters(world.device)
    descents = [Descent(one, meters, task.observe, main=one is task.passes[0]) for one in task.passes]
    stopper = Stopper(early)
    saved = Saved(task, world, state, meters, descents, stopper)
    if resume is None:
        part_ranks(world.seed, world.rank)
    else:
        saved.load(resume)
    closed = False

    def tell(values: Mapping[str, Any], *, save: bool = False) -> None:
        now = moment(state, schedule, steps)
        report({**now, **values}, checkpoint=saved.state if save else None)
        if getattr(report, "draining", False) and not closed:  # the node goes: leave a checkpoint, and go on elsewhere
            if not save:
                report({**now, "draining": 1.0}, checkpoint=saved.state)
            raise TrialStopped

    while state.step < last_step and not stopper.stopped:
        for one in task.passes:
            one.module.train()
        first = state.step - state.epoch * steps  # 0, but after resuming from inside an epoch
        length = min(steps, last_step - state.epoch * steps)
        batches = islice(task.batches(state.epoch), first * accumulate, None)

        for done in range(first + 1, length + 1):
            group = list(islice(batches, accumulate))
            if not group:
                raise RuntimeError(f"batches({state.epoch}) ended after {done - 1} steps, steps_per_epoch is {steps}")
            state.numbers = task.scheduled(state.progress, state.step)
            for descent in descents:
                if state.step >= descent.starts_at_step:
                    if len(descents) > 1:
                        give_gradients_to(descent, descents)
                    descent.step(group, state)
            state.step += 1
            state.progress = state.step / steps
            task.stepped(state)
            if report_every and done % report_every == 0 and done < length:
                inside = {"train/progress": state.progress, **settings(state, descents)}
                tell({"train": meters.window(), **inside, **task.health()})

        state.epoch += 1
        closed = state.step >= last_step
        task.health()  # its window ends here; what it saw of training is not mixed with validation
        values: dict[str, Any] = {"train": meters.epoch(), **settings(state, descents)}
        values.update(evaluated(task, state, world, full=closed, objectives=True))
        for descent in descents:
            if descent.plateau is not None:
                descent.plateau.update(agreed(descent.plateau.plateau.metric, values, world), state.epoch)
        if early is not None:
            stopper.update(agreed(early.metric, values, world), moment(state, schedule, steps))
        if closed:
            values["closing"] = 1.0
        tell(values, save=closed or stopper.stopped or state.epoch % checkpoint_every == 0)

    if not closed:  # stopped early, or resumed when there was nothing left to train
        tell({**evaluated(task, state, world, full=True, objectives=False), "closing": 1.0})
    reason: Literal["budget", "early"] = "early" if stopper.stopped and not closed else "budget"
    return Ended(reason, state.epoch, state.step, stopper.best, stopper.best_epoch)


def moment(state: StepState, schedule: Schedule, steps_per_epoch: int) -> dict[str, int]:
    """Where the run is; full beta counts from when both `full_at_epoch` and `full_at_step` have been completed."""
    full_step = inf
    if schedule.full_at_epoch < inf:
        full_step = max(schedule.full_at_step, ceil(schedule.full_at_epoch * steps_per_epoch - 1e-6))
    full_epoch = ceil(full_step / steps_per_epoch) if full_step < inf else inf
    return {
        "epoch": state.epoch,
        "step": state.step,
        "full_beta_epochs": int(max(0, state.epoch - full_epoch)),
        "full_beta_steps": int(max(0, state.step - full_step)),
        "phase": schedule.phase(state.epoch),
    }


def settings(state: StepState, descents: Sequence[Descent]) -> dict[str, float]:
    """Learning rates and scheduled numbers of the last step."""
    numbers = {f"train/{name}": value for name, value in state.numbers.items()}
    return numbers | {f"train/{descent.prefix}lr": descent.rate for descent in descents}


def evaluated(task: Task, state: StepState, world: World, *, full: bool, objectives: bool) -> dict[str, Any]:
    """`task.evaluate` as it is promised to be called."""
    average_batchnorm(task, world)
    for one in task.passes:
        one.module.eval()
    with torch.no_grad(), steady(world.seed * 1_000_003 + world.rank, world.device):
        return dict(task.evaluate(state, full=full, objectives=objectives))


def average_batchnorm(task: Task, world: World) -> None:
    """Running statistics become the mean over the ranks', so that all ranks evaluate, and save, the same network."""
    if world.size == 1:
        return
    layers = [layer for one in task.passes for layer in one.module.modules()]
    buffers = [getattr(layer, name, None) for layer in layers for name in ("running_mean", "running_var")]
    found = [buffer for buffer in buffers if buffer is not None]
    if found:
        flat = world.sum(torch.cat([buffer.reshape(-1) for buffer in found])) / world.size
        for buffer, mean in zip(found, flat.split([buffer.numel() for buffer in found]), strict=True):
            buffer.copy_(mean.view_as(buffer))


def agreed(name: str, values: Mapping[str, Any], world: World) -> float:
    """The value that all ranks together give the metric `name`: merged as the report will merge it."""
    key = name if name in values else next((key for key in values if name.startswith(key + "/")), None)
    if key is None:
        raise BadInput("no such value to decide by", key=name, accepted=", ".join(sorted(values)))
    row, layout = pack_row({key: values[key]})
    rows = torch.zeros(world.size, row.numel(), dtype=torch.float64, device=world.device)
    rows[world.rank] = row
    metrics, _, _ = merge_rows(layout, world.sum(rows).cpu())
    if name not in metrics:
        raise BadInput("no such value to decide by", key=name, accepted=", ".join(sorted(metrics)))
    return metrics[name]


class Stopper:
    """What has become of an `EarlyStopping`."""

    def __init__(self, early: EarlyStopping | None) -> None:
        self.early = early
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.waited, self.stopped = 0, False

    def update(self, value: float, now: Mapping[str, int]) -> None:
        """After each epoch; NaN is no improvement."""
        if self.early is None or now["full_beta_epochs"] < 1:
            return
        sign = 1.0 if self.early.direction == "min" else -1.0
        if not isnan(value) and (self.best is None or sign * value < sign * self.best - self.early.min_delta):
            self.best, self.best_epoch, self.waited = value, now["epoch"], 0
        else:
            self.waited += 1
        self.stopped = self.waited >= self.early.patience

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "early"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)


class Saved:
    """The whole state of a run as a checkpoint, and back."""

    def __init__(
        self,
        task: Task,
        world: World,
        state: StepState,
        meters: Meters,
        descents: Sequence[Descent],
        stopper: Stopper,
    ) -> None:
        self.task, self.world, self.now = task, world, state
        self.parts: dict[str, Any] = {"meters": meters, "early": stopper, "task": task}
        for descent in descents:
            self.parts[f"module.{descent.name}"] = world.unwrap(descent.module)
            self.parts[f"optimizer.{descent.name}"] = descent.optimizer
            if descent.plateau is not None:
                self.parts[f"plateau.{descent.name}"] = descent.plateau

    def state(self) -> dict[str, Any]:
        """Collective: holds the generators of every rank."""
        if self.now.step % self.task.steps_per_epoch:  # inside an epoch; at its end the evaluation has done it
            average_batchnorm(self.task, self.world)
        own = generators(self.world.device).to(self.world.device)
        every = torch.zeros(self.world.size, own.numel(), dtype=torch.uint8, device=self.world.device)
        every[self.world.rank] = own
        return {
            "epoch": self.now.epoch,
            "step": self.now.step,
            "generators": self.world.sum(every),
            **{name: part.state_dict() for name, part in self.parts.items()},
        }

    def load(self, path: Path) -> None:
        """Raises `BadInput` for a file that is no whole checkpoint of this config."""
        held = load_checkpoint(path, self.world.device)
        if missing := {"epoch", "step", "generators", *self.parts} - held.keys():
            raise BadInput(f"the checkpoint lacks {', '.join(sorted(missing))}", where=path)
        try:
            for name, part in self.parts.items():
                part.load_state_dict(held[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise BadInput(f"the checkpoint is of another config ({str(error).splitlines()[0]})", where=path) from error
        self.now.epoch, self.now.step = held["epoch"], held["step"]
        self.now.progress = self.now.step / self.task.steps_per_epoch
        if self.now.step:
            self.now.numbers = self.task.scheduled((self.now.step - 1) / self.task.steps_per_epoch, self.now.step - 1)
        if len(held["generators"]) == self.world.size:
            restore_generators(held["generators"][self.world.rank], self.world.device)
        else:  # another number of ranks: new streams, none of them one that was used before
            part_ranks(self.world.seed + self.now.step, self.world.rank + 1)
