"""The training loop that every family shares: epochs or steps, one optimizer or several in turn, one rank or many.

A family supplies a `Task`: its passes (module, optimizer, schedule), its batches and its evaluation. `run` trains it,
reports its health inside an epoch and its objectives at the epoch's end, saves checkpoints from which the run continues
bit for bit, stops early on a metric that no searched weight changes, and ends with an evaluation on the full validation
set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import isnan
from pathlib import Path
from typing import Any, Literal

import torch

from buttress.errors import BadInput
from buttress.monitors.summaries import merge_rows, pack_row
from buttress.training.checkpoints import load_checkpoint
from buttress.training.optimization import (
    Meters,
    ModuleReference,
    Pass,
    PassRunner,
    StepState,
    fused_adam,
    require_gradients_of,
)
from buttress.training.randomness import forked_rng, restore_rng_state, rng_state, seed_rank
from buttress.training.trainable import Direction, Report, Schedule, TrialStopped
from buttress.training.world import World

__all__ = ["EarlyStopping", "ModuleReference", "Pass", "StepState", "Task", "TrainingResult", "fused_adam", "run"]


class Task(ABC):
    """What a family supplies to the loop; methods run on every rank at the same points and may use collectives.

    Attributes:
        passes: One per optimizer, in the order in which they run on a batch.
        steps_per_epoch: Optimizer steps per epoch, the same on every rank; a family that counts steps divides its run
            into epochs of any length.
    """

    passes: Sequence[Pass]
    steps_per_epoch: int

    def scheduled(self, progress: float, step: int) -> dict[str, float]:
        """The scheduled values (beta, alpha, ...) of the next step; called at every step.

        Args:
            progress: Epochs completed, with the fraction of the running one.
            step: Optimizer steps completed.

        Returns:
            Name -> value; modules read them from `state.numbers`, reports hold the last ones as `train/<name>`.
        """
        return {}

    @abstractmethod
    def batches(self, epoch: int) -> Iterator[Any]:
        """This rank's batches of an epoch: a function of seed and epoch alone, so that a resumed run sees the same.

        Args:
            epoch: From 0.

        Returns:
            Enough batches for `steps_per_epoch` groups of `accumulate`; the last group may be short.
        """

    def samples(self, batch: Any) -> float:
        """What a batch weighs in the means of losses and logs over a window or an epoch.

        Returns:
            Its samples over all ranks, for means over samples; 1 (the default): over steps.
        """
        return 1

    def observe(self, logs: Mapping[str, torch.Tensor], state: StepState) -> None:  # noqa: B027 - optional
        """Called after each forward and backward, to update the monitors; must not wait for the device (`.item()`).

        Args:
            logs: What the pass's module returned beside its loss; references to the tensors may be kept.
            state: Of this step.
        """

    def stepped(self, state: StepState) -> None:  # noqa: B027 - optional
        """Called after all passes of a step, with the step counted in `state.step`: to average weights, for example.

        What it keeps belongs in `state_dict`.
        """

    def health(self) -> dict[str, Any]:
        """Values of the training batches since the last call, for a report inside an epoch; starts a new window.

        Also called at an epoch's end, where its result is not used. The loop itself adds `train/progress` (epochs, with
        the fraction of the running one), `train/loss`, `train/nonfinite`, `train/grad_norm`, `train/lr`,
        `train/<scheduled value>` and `train/<0-dim log>`.
        """
        return {}

    @abstractmethod
    def evaluate(self, state: StepState, *, full: bool, objectives: bool) -> dict[str, Any]:
        """Validates at an epoch's end, under `no_grad`, with modules in eval mode.

        Random draws are the same at every call and do not affect training.

        Args:
            state: Of the last step.
            full: The monitors see the whole validation set (the closing check) instead of the fixed subset.
            objectives: False leaves the objectives out (the closing check of a run that stopped early).

        Returns:
            Values as `Report` takes them: floats, vectors, summaries.
        """

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types, beyond modules and optimizers, that the rest of the run depends on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...  # noqa: B027 - optional


@dataclass(frozen=True)
class EarlyStopping:
    """Stops a run whose metric has stopped improving; epochs before full beta neither count nor become the best.

    Attributes:
        metric: One of `evaluate`'s values that no searched or scheduled weight changes.
        patience: Epochs without an improvement by more than `min_delta` after which the run stops.
        direction: `min` or `max`.
        min_delta: In the metric's unit.
    """

    metric: str
    patience: int
    direction: Direction = "min"
    min_delta: float = 0.0


@dataclass(frozen=True)
class TrainingResult:
    """How `run` ended by itself.

    Attributes:
        reason: `budget` (all epochs or steps are done) or `early` (early stopping).
        epoch: Epochs completed.
        step: Optimizer steps completed.
        best: The best value of the early-stopping metric, and `best_epoch`, where it was reached.
    """

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
) -> TrainingResult:
    """Trains a task to its end.

    Each epoch ends with a report of `evaluate`'s values. The last epoch's evaluation is a full one, and its report has
    `closing: 1.0`; a run that stopped early adds a closing report of monitors only.

    Args:
        task: What to train.
        schedule: Gives the number of epochs and when beta is final.
        world: This rank's world.
        report: The report function that `Trainable.train` was given.
        resume: A checkpoint of the same config; the run continues as if it had never stopped.
        report_every: Steps between health reports inside an epoch; 0: none.
        checkpoint_every: Epochs between checkpoints; the last epoch always has one.
        max_steps: Ends the run after this many steps if that is sooner; an epoch that is cut short counts as one.
        accumulate: Batches whose gradients are averaged into one step.
        early: Early stopping; None: none.
        amp: Runs `state.autocast()` in bfloat16.

    Returns:
        How the run ended by itself.

    Raises:
        TrialStopped: The report asked for the end.
        BadInput: `resume` is not a whole checkpoint of this config, or a metric to decide by is not reported.
        RuntimeError: The task's batches end before `steps_per_epoch`.
    """
    steps = task.steps_per_epoch
    last_step = min(schedule.epochs * steps, max_steps or schedule.epochs * steps)
    state = StepState(shares=world.size * accumulate)
    if amp:
        state.autocast = partial(torch.autocast, world.device.type, dtype=torch.bfloat16)
    meters = Meters(world.device)
    runners = [PassRunner(one, meters, task.observe, task.samples, main=one is task.passes[0]) for one in task.passes]
    stopper = EarlyStoppingState(early)
    saved = RunCheckpoint(task, world, state, meters, runners, stopper)
    if resume is None:
        seed_rank(world.seed, world.rank)
    else:
        saved.load(resume)
    closed = False

    def send(values: Mapping[str, Any], *, save: bool = False) -> None:
        now = progress_counters(state, schedule, steps)
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
            for runner in runners:
                if state.step >= runner.starts_at_step:
                    if len(runners) > 1:
                        require_gradients_of(runner, runners)
                    runner.step(group, state)
            state.step += 1
            state.progress = state.step / steps
            task.stepped(state)
            if report_every and done % report_every == 0 and done < length:
                inside = {"train/progress": state.progress, **current_values(state, runners)}
                send({"train": meters.window(), **inside, **task.health()})

        state.epoch += 1
        closed = state.step >= last_step
        task.health()  # its window ends here; what it saw of training is not mixed with validation
        values: dict[str, Any] = {"train": meters.epoch(), **current_values(state, runners)}
        values.update(evaluate_task(task, state, world, full=closed, objectives=True))
        for runner in runners:
            if runner.plateau is not None:
                runner.plateau.update(metric_over_ranks(runner.plateau.plateau.metric, values, world), state.epoch)
        if early is not None:
            stopper.update(metric_over_ranks(early.metric, values, world), progress_counters(state, schedule, steps))
        if closed:
            values["closing"] = 1.0
        send(values, save=closed or stopper.stopped or state.epoch % checkpoint_every == 0)

    if not closed:  # stopped early, or resumed when there was nothing left to train
        send({**evaluate_task(task, state, world, full=True, objectives=False), "closing": 1.0})
    reason: Literal["budget", "early"] = "early" if stopper.stopped and not closed else "budget"
    return TrainingResult(reason, state.epoch, state.step, stopper.best, stopper.best_epoch)


def progress_counters(state: StepState, schedule: Schedule, steps_per_epoch: int) -> dict[str, int]:
    """A report's counters; full beta counts from when `full_at_epoch` and `full_at_step` have both been completed."""
    full_epoch, full_step = schedule.settles_after(steps_per_epoch)
    return {
        "epoch": state.epoch,
        "step": state.step,
        "full_beta_epochs": int(max(0, state.epoch - full_epoch)),
        "full_beta_steps": int(max(0, state.step - full_step)),
        "phase": schedule.phase(state.epoch),
    }


def current_values(state: StepState, runners: Sequence[PassRunner]) -> dict[str, float]:
    """Learning rates and scheduled values of the last step."""
    numbers = {f"train/{name}": value for name, value in state.numbers.items()}
    return numbers | {f"train/{runner.prefix}lr": runner.rate for runner in runners}


def evaluate_task(task: Task, state: StepState, world: World, *, full: bool, objectives: bool) -> dict[str, Any]:
    """Calls `task.evaluate` in eval mode, without gradients, with random numbers of its own."""
    average_batchnorm(task, world)
    for one in task.passes:
        one.module.eval()
    with torch.no_grad(), forked_rng(world.seed * 1_000_003 + world.rank, world.device):
        return dict(task.evaluate(state, full=full, objectives=objectives))


def average_batchnorm(task: Task, world: World) -> None:
    """Averages BatchNorm's running statistics over ranks, so that all ranks evaluate and save the same network."""
    if world.size == 1:
        return
    layers = [layer for one in task.passes for layer in one.module.modules()]
    buffers = [getattr(layer, name, None) for layer in layers for name in ("running_mean", "running_var")]
    found = [buffer for buffer in buffers if buffer is not None]
    if found:
        flat = world.sum(torch.cat([buffer.reshape(-1) for buffer in found])) / world.size
        for buffer, mean in zip(found, flat.split([buffer.numel() for buffer in found]), strict=True):
            buffer.copy_(mean.view_as(buffer))


def metric_over_ranks(name: str, values: Mapping[str, Any], world: World) -> float:
    """The metric `name` over all ranks, merged as the report will merge it."""
    key = name if name in values else next((key for key in values if name.startswith(key + "/")), None)
    if key is None:
        raise BadInput("the task reports no such metric", key=name, accepted=", ".join(sorted(values)))
    row, layout = pack_row({key: values[key]})
    rows = torch.zeros(world.size, row.numel(), dtype=torch.float64, device=world.device)
    rows[world.rank] = row
    metrics, _, _ = merge_rows(layout, world.sum(rows).cpu())
    if name not in metrics:
        raise BadInput("the task reports no such metric", key=name, accepted=", ".join(sorted(metrics)))
    return metrics[name]


class EarlyStoppingState:
    """The state of an `EarlyStopping`: best value, and epochs since."""

    def __init__(self, early: EarlyStopping | None) -> None:
        self.early = early
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.waited, self.stopped = 0, False

    def update(self, value: float, now: Mapping[str, int]) -> None:
        """Called after each epoch; NaN is not an improvement."""
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


class RunCheckpoint:
    """Saves and restores the whole state of a run."""

    def __init__(
        self,
        task: Task,
        world: World,
        state: StepState,
        meters: Meters,
        runners: Sequence[PassRunner],
        stopper: EarlyStoppingState,
    ) -> None:
        self.task, self.world, self.now = task, world, state
        self.parts: dict[str, Any] = {"meters": meters, "early": stopper, "task": task}
        for runner in runners:
            self.parts[f"module.{runner.name}"] = world.unwrap(runner.module)
            self.parts[f"optimizer.{runner.name}"] = runner.optimizer
            if runner.plateau is not None:
                self.parts[f"plateau.{runner.name}"] = runner.plateau

    def state(self) -> dict[str, Any]:
        """The checkpoint's content. Collective: it holds the random number state of every rank."""
        if self.now.step % self.task.steps_per_epoch:  # inside an epoch; at its end the evaluation has done it
            average_batchnorm(self.task, self.world)
        own = rng_state(self.world.device).to(self.world.device)
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
            restore_rng_state(held["generators"][self.world.rank], self.world.device)
        else:  # another number of ranks: new streams, none of them one that was used before
            seed_rank(self.world.seed + self.now.step, self.world.rank + 1)
