"""Who looks on while a sweep runs: the live display and the W&B runs, both fed with the journal's lines."""

from __future__ import annotations

import logging
import sys

from rich.console import Console

from buttress.callbacks.base import messages_log as notes
from buttress.callbacks.progress import Heading, Progress
from buttress.callbacks.wandb import WandbRuns
from buttress.execution.driver import Driver
from buttress.sweep.result import SweepResult


def watched(driver: Driver, *, quiet: bool = False) -> SweepResult:
    """Runs a sweep under its callbacks; they are closed whatever happens."""
    spec = driver.spec
    runs = WandbRuns(
        driver.sweep,
        driver.folder,
        project=spec.wandb.project or spec.name,
        entity=spec.wandb.entity,
        group=spec.wandb.group,
        mode=spec.wandb.mode,
        tags=spec.wandb.tags,
        metrics=driver.trainable.metrics,
    )
    first = spec.objectives[0]
    heading = Heading(driver.sweep, first.metric, str(first.direction), spec.budget.trials)
    console = Console(file=sys.stderr, highlight=False, quiet=quiet)
    progress = Progress(heading, console)
    for line in driver.earlier:
        progress.on_event(line)
    driver.callbacks.add(runs, progress)
    console.print(f"sweep {driver.sweep}: journal, checkpoints and W&B files go to {driver.where}")
    level = notes.level
    try:
        if not quiet:
            notes.setLevel(logging.ERROR)  # the display shows them
        with progress:
            return driver.run()
    finally:
        notes.setLevel(level)
        runs.close()
