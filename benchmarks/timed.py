"""Trainables that note their own clock, for benchmarks/slots.py: when `train` was entered, when the first optimiser
step was done, how long every `report` took, when `TrialStopped` came. Each rank writes one JSON file into the trial's
folder. The same classes run in a warm slot and in a stock Ray Train run, so both are timed by the same definitions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from buttress.trainables.lithology import train as lithology
from buttress.training.trainable import Buttress, Metric, Report, Schedule, Section, TrialStopped


@dataclass
class Clock:
    """One rank's times of one trial, in seconds of `time.time()`; `reports` holds (called at, seconds inside)."""

    entered: float
    first_step: float | None = None
    reports: list[tuple[float, float]] = field(default_factory=list)
    with_checkpoint: list[int] = field(default_factory=list)  # of `reports`, those that came with one
    stopped: float | None = None  # when TrialStopped came out of `report`
    left: float = 0.0

    @property
    def first(self) -> float:
        """The first optimiser step; of a trial that makes none, its first report."""
        return self.first_step if self.first_step is not None else self.reports[0][0]

    @property
    def last(self) -> float:
        """When the last report returned."""
        began, seconds = self.reports[-1]
        return began + seconds

    @property
    def reporting(self) -> float:
        """Seconds inside `report`."""
        return sum(seconds for _, seconds in self.reports)

    @classmethod
    def read(cls, folder: Path) -> dict[int, Clock]:
        """The clocks of a trial's ranks."""
        files = sorted(folder.glob("clock-*.json"))
        return {int(file.stem.removeprefix("clock-")): cls(**json.loads(file.read_text())) for file in files}


@contextmanager
def clocked(folder: Path, rank: int, report: Report) -> Iterator[tuple[Clock, Report]]:
    """A clock, and `report` with the clock around it; the clock's file is written at the end, however that comes."""
    clock = Clock(time.time())

    def timed(
        metrics: Mapping[str, Any],
        *,
        checkpoint: Callable[[], dict[str, Any]] | None = None,
        media: Mapping[str, Path] | None = None,
    ) -> None:
        if checkpoint is not None:
            clock.with_checkpoint.append(len(clock.reports))
        began, start = time.time(), time.perf_counter()
        try:
            report(metrics, checkpoint=checkpoint, media=media)
        except TrialStopped:
            clock.stopped = time.time()
            raise
        finally:
            clock.reports.append((began, time.perf_counter() - start))

    try:
        yield clock, timed
    finally:
        clock.left = time.time()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"clock-{rank}.json").write_text(json.dumps(asdict(clock)))


def flat_out(trial: str) -> bool:
    return trial.endswith("9")


class EmptyConfig(Section):
    reports: int = 20
    pause: float = 0.002  # seconds between two reports, in place of training
    value: float = 0.5
    buttress: Buttress = Buttress()


class Empty:
    """No model and no data: reports and nothing else, so that what its trials cost is what a slot costs. Every tenth
    trial makes its reports flat out, without a pause: each has to wait for the one before it."""

    name, Config, epochs_path = "empty", EmptyConfig, "reports"
    metrics = {"val/score": Metric("max")}

    def schedule(self, config: EmptyConfig) -> Schedule:
        return Schedule(epochs=config.reports)

    def train(self, config: EmptyConfig, world: Any, report: Report, resume: Path | None) -> None:
        with clocked(world.folder, world.rank, report) as (_, timed):
            for number in range(1, config.reports + 1):
                if number > 1 and not flat_out(world.folder.name):
                    time.sleep(config.pause)
                values = {"epoch": number, "step": number, "train/loss": 1.0 / number}
                if number == config.reports:  # only values of objectives are results for Tune
                    values["val/score"] = config.value
                timed(values)


class Instant(Empty):
    """`Empty` whose every report is an epoch with an objective: each becomes a result of Tune."""

    name = "instant"

    def train(self, config: EmptyConfig, world: Any, report: Report, resume: Path | None) -> None:
        with clocked(world.folder, world.rank, report) as (_, timed):
            for number in range(1, config.reports + 1):
                timed({"epoch": number, "step": number, "val/score": config.value * number})


class Collapsing:
    """A small model (DDP on several ranks) with a step and a report every few milliseconds; after a few healthy reports
    its KL is gone, and it goes on like that until it is stopped."""

    name, Config, epochs_path = "collapsing", EmptyConfig, "reports"
    metrics = {"val/score": Metric("max")}
    healthy = 5  # reports before the collapse
    patience = 2  # of the rule: this many reports complete the evidence

    def schedule(self, config: EmptyConfig) -> Schedule:
        return Schedule(epochs=config.reports)

    def train(self, config: EmptyConfig, world: Any, report: Report, resume: Path | None) -> None:
        import torch

        with clocked(world.folder, world.rank, report) as (clock, timed):
            model = world.wrap(torch.nn.Linear(16, 1))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            for number in range(1, config.reports + 1):
                loss = model(torch.randn(32, 16, device=world.device)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                clock.first_step = clock.first_step or time.time()
                time.sleep(config.pause)
                kl = 5.0 if number <= self.healthy else 0.01 * config.value
                timed({"epoch": number, "step": 1000 * number, "latent/kl_total": kl, "val/score": config.value})


class Lithology(lithology.Lithology):
    """The lithology family as it is: data, model, DDP, loop, monitors, checkpoints."""

    def train(self, config: Any, world: Any, report: Report, resume: Path | None) -> None:
        with clocked(world.folder, world.rank, report) as (clock, timed):

            class Task(lithology.LithologyTask):
                def scheduled(self, progress: float, step: int) -> dict[str, float]:
                    if step == 1:  # called as a step begins: step 0 is done
                        clock.first_step = time.time()
                    return super().scheduled(progress, step)

            with patch.object(lithology, "LithologyTask", Task):
                super().train(config, world, timed, resume)
