"""Times the first epochs of typical trials of a sweep on this machine.

As many trials as the sweep will have slots (and this machine has cores for) train at once, each a different draw of the
space, because concurrent trials share caches and memory, and draws differ in size. They stop when their objective has
been reported twice: it may cost far more than an epoch (a mixture is fitted, samples are drawn), many trainables
compute it only now and then, and the first time includes imports.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from buttress.errors import BadInput
from buttress.spec.spec import SweepSpec
from buttress.training import registry
from buttress.training.trainable import Reported
from buttress.training.user_code import user_faults

#: Seconds for which a trial may be timed.
MAX_TIMING_S = 20.0
#: Reports with the objective that are waited for, unless time is up.
TIMED_OBJECTIVES = 2
#: Steps that are timed one by one, after the first (which fills caches).
TIMED_STEPS = 3
#: Seconds; steps shorter than this are disturbed by a report each.
SHORT_STEP_S = 0.05
#: What validation adds to an epoch, as a share of its steps' time, where none could be timed.
VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class Timing:
    """Seconds of one trial among the others that run at the same time.

    Attributes:
        step_s: One optimiser step.
        steps_per_epoch: Number of them.
        epoch_s: One epoch with reports and validation, without the objective where not every epoch has it.
        data_s: Until the first step: reading data, building the model.
        objective_s: What the objective adds to an epoch.
        objective_every: Full-beta epochs between two objectives.
        at_once: Trials that were timed together.
        checkpoints: Whether the trainer reported any; None where its first was not due yet.
    """

    step_s: float
    steps_per_epoch: int
    epoch_s: float
    data_s: float
    objective_s: float = 0.0
    objective_every: int = 1
    at_once: int = 1
    checkpoints: bool | None = None

    def trial(self, epochs: int, full_beta_epochs: int) -> float:
        """Seconds of a trial of `epochs` epochs, `full_beta_epochs` of them at full beta."""
        return epochs * self.epoch_s + full_beta_epochs // self.objective_every * self.objective_s


class _TimingSink:
    """A sink that collects reports and ends the training once it knows enough."""

    def __init__(self, objectives: Sequence[str], *, steps_only: bool) -> None:
        self.reports: list[Reported] = []
        self.stop = False
        self._objectives, self._steps_only, self._began = objectives, steps_only, time.monotonic()

    def send(self, reported: Reported) -> None:
        self.reports.append(reported)
        late = time.monotonic() - self._began > MAX_TIMING_S
        if self._steps_only:
            short = len(self.reports) > TIMED_STEPS and timing_of(self.reports, self._objectives).step_s < SHORT_STEP_S
            known = reported.epoch >= 1 or short
        else:
            known = sum(_has(each, self._objectives) for each in self.reports) >= TIMED_OBJECTIVES
        self.stop = self.stop or known or (late and len(self.reports) > TIMED_STEPS)


def measure(spec: SweepSpec, configs: Sequence[Any], slots: int) -> tuple[Timing, list[Reported]]:
    """Times draws of a spec with their real worker count.

    A report after every step times the steps. Where a step is so short that this would distort an epoch, whole epochs
    are timed, with the reports that the sweep will have.

    Args:
        spec: The sweep.
        configs: Configs that it may run, at least one.
        slots: Trials that it will run at once.

    Returns:
        The timing, and all reports of the trials of which an epoch has ended.

    Raises:
        BadInput: No epoch ended in time, and its length is not known. What the trainable raises is passed on.
    """
    objectives = [objective.metric for objective in spec.objectives]
    middle = configs[len(configs) // 2]
    reports = _timed_reports(spec, middle, steps_only=True)
    timing = timing_of(reports, objectives)
    if timing.step_s >= SHORT_STEP_S:
        ended = reports if any(each.epoch for each in reports) else []
        return replace(timing, checkpoints=_checkpoints([reports], middle)), ended
    cores = os.cpu_count() or 1
    at_once = max(1, min(slots, cores // spec.resources.workers))
    chosen = [configs[(2 * number + 1) * len(configs) // (2 * at_once)] for number in range(at_once)]
    timed = _train_at_once(spec, chosen)
    timings = [timing_of(reports, objectives) for reports in timed]

    def mean(name: str) -> float:
        return statistics.fmean(getattr(each, name) for each in timings)

    whole = Timing(
        step_s=mean("step_s") or timing.step_s,
        steps_per_epoch=round(mean("steps_per_epoch")),
        epoch_s=mean("epoch_s"),
        data_s=mean("data_s"),
        objective_s=mean("objective_s"),
        objective_every=max(each.objective_every for each in timings),
        at_once=at_once,
        checkpoints=_checkpoints([reports, *timed], middle),
    )
    return whole, [each for trial in timed if any(report.epoch for report in trial) for each in trial]


def _checkpoints(trials: Sequence[Sequence[Reported]], config: Any) -> bool | None:
    """Whether any report held a checkpoint, or failed to write one; None where none was due yet."""
    every = getattr(getattr(config, "buttress", None), "checkpoint_every", 1)
    reports = [each for trial in trials for each in trial]
    if any(each.checkpoint or each.note for each in reports):
        return True
    return False if any(each.epoch >= every for each in reports) else None


def _train_at_once(spec: SweepSpec, configs: Sequence[Any]) -> list[list[Reported]]:
    """Reports of configs that train at the same time, each in a process of its own unless it is alone."""
    if len(configs) == 1:
        return [_timed_reports(spec, configs[0])]
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(configs))
    with ProcessPoolExecutor(len(configs), context, initializer=_set_barrier, initargs=(barrier,)) as pool:
        running = [pool.submit(_timed_reports_of_process, spec, registry.ForProcess(each)) for each in configs]
        return [each.result() for each in running]


_barrier: Any = None


def _set_barrier(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _timed_reports_of_process(spec: SweepSpec, config: Any) -> list[Reported]:
    """In a process of its own: begins when the others are ready, too."""
    from buttress.training.local_run import train  # noqa: F401  (what takes long to import comes before the barrier)

    registry.load(spec.trainable, spec.module_folders)
    _barrier.wait(timeout=120)
    return _timed_reports(spec, config)


@user_faults()  # here, because a traceback does not leave a process
def _timed_reports(spec: SweepSpec, config: Any, *, steps_only: bool = False) -> list[Reported]:
    from buttress.training.local_run import train

    if steps_only and hasattr(config, "buttress"):
        config = config.model_copy(update={"buttress": config.buttress.model_copy(update={"report_every": 1})})
    sink = _TimingSink([objective.metric for objective in spec.objectives], steps_only=steps_only)
    with tempfile.TemporaryDirectory() as folder:
        trainable = registry.load(spec.trainable, spec.module_folders)
        with redirect_stdout(sys.stderr):  # what the trainer prints is no part of the plan
            train(config, trainable, Path(folder), sink=sink, workers=spec.resources.workers)
    return sink.reports


def timing_of(reports: Sequence[Reported], objectives: Sequence[str]) -> Timing:
    """The timing that the first reports of a training give.

    Raises:
        BadInput: No epoch has ended, and no report says how far it came.
    """
    step_s, data_s = _steps(reports)
    ends = _ends(reports)
    if not ends:
        return _unfinished_epoch(reports, step_s, data_s)
    lengths = [b.seconds - a for a, b in zip([data_s, *(end.seconds for end in ends)], ends, strict=False)]
    seen = [_has(end, objectives) for end in ends]
    plain = [length for length, has in zip(lengths, seen, strict=True) if not has]
    with_objective = [length for length, has in zip(lengths, seen, strict=True) if has]
    with_objective = with_objective[1:] or with_objective  # without the one that includes imports
    steps = round(ends[-1].step / ends[-1].epoch)
    epoch_s = statistics.fmean(plain or with_objective)
    first = next((end for end, has in zip(ends, seen, strict=True) if has), None)
    return Timing(
        step_s or epoch_s / steps,
        steps,
        epoch_s,
        data_s,
        objective_s=max(0.0, statistics.fmean(with_objective) - epoch_s) if plain and with_objective else 0.0,
        objective_every=max(1, first.full_beta_epochs) if first is not None and plain else 1,
    )


def _ends(reports: Sequence[Reported]) -> list[Reported]:
    """The reports that end an epoch: those inside the next one hold the same number of completed epochs."""
    done = [0, *(each.epoch for each in reports)]
    return [each for each, before in zip(reports, done, strict=False) if each.epoch > before]


def _has(reported: Reported, objectives: Sequence[str]) -> bool:
    return reported.epoch >= 1 and all(name in reported.metrics for name in objectives)


def _steps(reports: Sequence[Reported]) -> tuple[float, float]:
    """Seconds of a step, 0 if reports are too far apart to tell, and seconds until the first one."""
    inside = [reported for reported in reports if reported.epoch == 0]
    pairs = [(b.step - a.step, b.seconds - a.seconds) for a, b in pairwise(inside)]
    step_s = statistics.median(seconds / count for count, seconds in pairs) if pairs else 0.0
    if inside:
        return step_s, max(0.0, inside[0].seconds - inside[0].step * step_s)
    ends = [reported.seconds for reported in reports]  # the first epoch is taken to be as long as the second
    return step_s, max(0.0, 2 * ends[0] - ends[1]) if len(ends) > 1 else 0.0


def _unfinished_epoch(reports: Sequence[Reported], step_s: float, data_s: float) -> Timing:
    """The timing of an epoch that did not end, from how far it came."""
    last = reports[-1] if reports else None
    progress = last.metrics.get("train/progress") if last else None
    if last is None or not progress:
        raise BadInput(f"no epoch ended within {MAX_TIMING_S:g} s, so its length is not known", accepted="--no-timing")
    steps = round(last.step / progress)
    return Timing(step_s, steps, steps * step_s * (1 + VALIDATION_SHARE), data_s)
