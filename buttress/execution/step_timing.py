"""How long a sweep's epochs take on this machine: the first epochs of typical trials, timed with a clock.

In come a spec's configs; out comes a `Timing`. As many trials as the sweep will have slots (and this machine has cores
for) train at once, each a different draw of the space, because two trials share caches and memory and draws differ in
size. They stop when their objective has been reported twice: it may be far dearer than an epoch (a mixture is fitted,
samples are drawn), many trainables only compute it now and then, and the first time pays for what it imports.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from buttress.errors import BadInput
from buttress.spec.spec import SweepSpec
from buttress.training import registry
from buttress.training.trainable import Reported

#: How long a trial may be timed, in seconds.
TIMING_S = 20.0
#: Objectives that are waited for, unless time is up.
OBJECTIVES = 2
#: Steps that are timed one by one, after the first (which pays for caches).
STEPS = 3
#: Steps shorter than this are disturbed by a report each.
SHORT_STEP_S = 0.05
#: What validation adds to an epoch, as a share of its steps, where none could be timed.
VALIDATION = 0.2


@dataclass(frozen=True)
class Timing:
    """Seconds of one trial among the others that run at the same time."""

    step_s: float
    steps_per_epoch: int
    epoch_s: float  # with reports and validation, without the objective where that is not in every epoch
    data_s: float  # until the first step: reading data, building the model
    objective_s: float = 0.0  # what the objective adds to an epoch
    objective_every: int = 1  # full-beta epochs between two objectives
    at_once: int = 1  # trials that were timed together

    def trial(self, epochs: int, full_beta_epochs: int) -> float:
        """Seconds of a trial of so many epochs, so many of them at full beta."""
        return epochs * self.epoch_s + full_beta_epochs // self.objective_every * self.objective_s


class _Clock:
    """A sink that collects reports and ends the training once it knows enough."""

    def __init__(self, objectives: Sequence[str], *, steps_only: bool) -> None:
        self.reports: list[Reported] = []
        self.stop = False
        self._objectives, self._steps_only, self._began = objectives, steps_only, time.monotonic()

    def send(self, reported: Reported) -> None:
        self.reports.append(reported)
        late = time.monotonic() - self._began > TIMING_S
        if self._steps_only:
            short = len(self.reports) > STEPS and read(self.reports, self._objectives).step_s < SHORT_STEP_S
            known = reported.epoch >= 1 or short
        else:
            known = sum(_has(each, self._objectives) for each in self.reports) >= OBJECTIVES
        self.stop = self.stop or known or (late and len(self.reports) > STEPS)


def measure(spec: SweepSpec, configs: Sequence[Any], slots: int) -> Timing:
    """Times draws of a spec with their real worker count, up to `slots` at once; `configs` are what the sweep may run.

    A report after every step times the steps. Where a step is so short that this would distort an epoch, whole epochs
    are timed, with the reports that the sweep will have. Raises what the trainable raises, and BadInput where no epoch
    ends in time and its length cannot be told.
    """
    objectives = [objective.metric for objective in spec.objectives]
    middle = configs[len(configs) // 2]
    timing = read(_watched(spec, middle, steps_only=True), objectives)
    if timing.step_s >= SHORT_STEP_S:
        return timing
    cores = os.cpu_count() or 1
    at_once = max(1, min(slots, cores // spec.resources.workers))
    chosen = [configs[(2 * number + 1) * len(configs) // (2 * at_once)] for number in range(at_once)]
    timings = [read(reports, objectives) for reports in _together(spec, chosen)]

    def mean(name: str) -> float:
        return statistics.fmean(getattr(each, name) for each in timings)

    return Timing(
        step_s=mean("step_s") or timing.step_s,
        steps_per_epoch=round(mean("steps_per_epoch")),
        epoch_s=mean("epoch_s"),
        data_s=mean("data_s"),
        objective_s=mean("objective_s"),
        objective_every=max(each.objective_every for each in timings),
        at_once=at_once,
    )


def _together(spec: SweepSpec, configs: Sequence[Any]) -> list[list[Reported]]:
    """Reports of configs that train at the same time, each in a process of its own unless it is alone."""
    if len(configs) == 1:
        return [_watched(spec, configs[0])]
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(len(configs))
    with ProcessPoolExecutor(len(configs), context, initializer=_meet, initargs=(start,)) as pool:
        running = [pool.submit(_watched_at_once, spec, config) for config in configs]
        return [each.result() for each in running]


_start: Any = None


def _meet(start: Any) -> None:
    global _start
    _start = start


def _watched_at_once(spec: SweepSpec, config: Any) -> list[Reported]:
    """In a process of its own: begins when the others are ready too."""
    from buttress.training.local_run import train  # noqa: F401  (what takes long to import comes before the meeting)

    registry.load(spec.trainable)
    _start.wait(timeout=120)
    return _watched(spec, config)


def _watched(spec: SweepSpec, config: Any, *, steps_only: bool = False) -> list[Reported]:
    from buttress.training.local_run import train

    if steps_only and hasattr(config, "buttress"):
        config = config.model_copy(update={"buttress": config.buttress.model_copy(update={"report_every": 1})})
    clock = _Clock([objective.metric for objective in spec.objectives], steps_only=steps_only)
    with tempfile.TemporaryDirectory() as folder:
        train(config, registry.load(spec.trainable), Path(folder), sink=clock, workers=spec.resources.workers)
    return clock.reports


def read(reports: Sequence[Reported], objectives: Sequence[str]) -> Timing:
    """The timing that the first reports of a training give."""
    step_s, data_s = _steps(reports)
    ends = _ends(reports)
    if not ends:
        return _unended(reports, step_s, data_s)
    lengths = [b.seconds - a for a, b in zip([data_s, *(end.seconds for end in ends)], ends, strict=False)]
    seen = [_has(end, objectives) for end in ends]
    plain = [length for length, has in zip(lengths, seen, strict=True) if not has]
    dear = [length for length, has in zip(lengths, seen, strict=True) if has]
    dear = dear[1:] or dear  # without the one that paid for imports
    steps = round(ends[-1].step / ends[-1].epoch)
    epoch_s = statistics.fmean(plain or dear)
    first = next((end for end, has in zip(ends, seen, strict=True) if has), None)
    return Timing(
        step_s or epoch_s / steps,
        steps,
        epoch_s,
        data_s,
        objective_s=max(0.0, statistics.fmean(dear) - epoch_s) if plain and dear else 0.0,
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


def _unended(reports: Sequence[Reported], step_s: float, data_s: float) -> Timing:
    """Of an epoch that did not end: how far it came tells how long it is."""
    last = reports[-1] if reports else None
    progress = last.metrics.get("train/progress") if last else None
    if last is None or not progress:
        raise BadInput(f"no epoch ended within {TIMING_S:g} s, so its length is not known", accepted="--no-timing")
    steps = round(last.step / progress)
    return Timing(step_s, steps, steps * step_s * (1 + VALIDATION), data_s)
