"""Writes a sweep for other tools as it runs: CSV files, TensorBoard event files, an MLflow store.

The journal is the truth and these are views of it: the driver hands events over and returns, a thread of each logger
writes them, and nothing that happens there reaches the sweep.
"""

from __future__ import annotations

import csv
import logging
import math
import os
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from buttress.analysis.media import pictures
from buttress.analysis.table import flatten
from buttress.callbacks.base import Callback
from buttress.journal.events import Event, Outcome, Report, TrialCreated
from buttress.sweep.trial import ActiveTrial

log = logging.getLogger("buttress")

#: Events that wait for a logger; beyond it reports are dropped, never creations and outcomes.
MAX_WAITING = 10_000
#: Seconds that the end of a sweep waits for a logger.
CLOSE_TIMEOUT_S = 30.0
#: Pictures of one trial that a logger takes at most, and the largest file, in bytes.
MAX_PICTURES, MAX_PICTURE_BYTES = 50, 2_000_000


class Logger(Callback, ABC):
    """A callback whose work is done by a thread of its own; subclasses write one event after the other.

    Args:
        folder: The sweep's folder.
        sweep: Its id.
    """

    def __init__(self, folder: Path, sweep: str) -> None:
        self.folder, self.sweep = folder, sweep
        self.dropped = 0
        self._waiting: queue.Queue[Event | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name=type(self).__name__, daemon=True)
        self._thread.start()

    def on_event(self, event: Event, trial: ActiveTrial | None = None) -> None:
        """Hands an event to the thread."""
        if isinstance(event, Report) and self._waiting.qsize() >= MAX_WAITING:
            self.dropped += 1
        elif isinstance(event, TrialCreated | Report | Outcome):
            self._waiting.put(event)

    def close(self) -> None:
        """Waits until everything is written, at most `CLOSE_TIMEOUT_S`."""
        self._waiting.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive() or self.dropped:
            log.warning("%s is not complete: %d reports were dropped", type(self).__name__, self.dropped)

    @abstractmethod
    def write(self, event: TrialCreated | Report | Outcome) -> None:
        """Writes one event."""

    def finish(self) -> None:
        """Closes what is open."""

    def pictures(self, report: Report, seen: int) -> list[tuple[str, Path]]:
        """(key, file) of the pictures of a report, within the limits; `seen`: how many the trial has had."""
        folder = self.folder / "trials" / report.trial
        return pictures(folder, report.media, MAX_PICTURES - seen, MAX_PICTURE_BYTES)

    def _work(self) -> None:
        try:
            while (event := self._waiting.get()) is not None:
                assert isinstance(event, TrialCreated | Report | Outcome)
                self.write(event)
        except Exception:
            log.exception("%s failed and writes no more; the sweep goes on", type(self).__name__)
        finally:
            self.finish()


def numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    """The values that are finite numbers."""
    return {key: float(value) for key, value in values.items() if value is not None and math.isfinite(value)}


class CsvLogger(Logger):
    """`trials/NNNN/progress.csv`: a row a report, a column a metric; a metric that comes later gets a column then."""

    def __init__(self, folder: Path, sweep: str) -> None:
        self._columns: dict[str, list[str]] = {}
        super().__init__(folder, sweep)

    def write(self, event: TrialCreated | Report | Outcome) -> None:
        """Appends the row of a report."""
        if not isinstance(event, Report):
            return
        path = self.folder / "trials" / event.trial / "progress.csv"
        row: dict[str, Any] = {"attempt": event.attempt, "epoch": event.epoch, "step": event.step,
                               "full_beta_epochs": event.full_beta_epochs, "seconds": round(event.seconds, 3),
                               "state": event.state, "valid": event.valid, **event.metrics}  # fmt: skip
        columns = self._columns.get(event.trial)
        if columns is None and path.is_file():
            with path.open(newline="", encoding="utf-8") as handle:
                columns = next(csv.reader(handle), None)
        if columns is None or not set(row) <= set(columns):
            columns = [*(columns or []), *(key for key in row if key not in (columns or []))]
            self._rewrite(path, columns)
        self._columns[event.trial] = columns
        with path.open("a", newline="", encoding="utf-8") as handle:
            csv.DictWriter(handle, columns).writerow(row)

    def _rewrite(self, path: Path, columns: list[str]) -> None:
        """The file with these columns, what is in it kept."""
        rows: list[dict[str, Any]] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as handle:
                rows = list(csv.DictReader(handle))
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        with beside.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, columns)
            writer.writeheader()
            writer.writerows(rows)
        beside.replace(path)


class TensorBoardLogger(Logger):
    """`tensorboard/NNNN/`: scalars and pictures by step, parameters and best metrics as hparams at the end."""

    def __init__(self, folder: Path, sweep: str) -> None:
        self._writers: dict[str, Any] = {}
        self._params: dict[str, dict[str, Any]] = {}
        self._pictures: dict[str, int] = {}
        super().__init__(folder, sweep)

    def write(self, event: TrialCreated | Report | Outcome) -> None:
        """Adds what a report holds; an outcome closes the trial's file."""
        match event:
            case TrialCreated():
                self._params[event.trial] = event.params
            case Report():
                writer = self._writer(event.trial)
                for key, value in numbers(event.metrics).items():
                    writer.add_scalar(key, value, event.step, walltime=event.time)
                shown = self.pictures(event, self._pictures.get(event.trial, 0))
                self._pictures[event.trial] = self._pictures.get(event.trial, 0) + len(shown)
                for key, path in shown:
                    from matplotlib.image import imread

                    picture = imread(path)
                    form = "HW" if picture.ndim == 2 else "HWC"
                    writer.add_image(key, picture, event.step, walltime=event.time, dataformats=form)
            case Outcome():
                writer = self._writer(event.trial)
                params = {path: value if isinstance(value, int | float | str | bool) else str(value)
                          for path, value in self._params.get(event.trial, {}).items()}  # fmt: skip
                best = numbers(event.best.metrics) if event.best is not None else {}
                said = f"{event.outcome} {event.kind or ''}: {event.message or ''}"
                writer.add_text("outcome", said, event.step or 0)
                writer.add_hparams({**params, "outcome": event.outcome}, best or {"epochs": event.epochs}, name="best",
                                   global_step=event.step)  # fmt: skip
                writer.close()
                del self._writers[event.trial]

    def _writer(self, trial: str) -> Any:
        if trial not in self._writers:
            from tensorboardX import SummaryWriter

            self._writers[trial] = SummaryWriter(str(self.folder / "tensorboard" / trial))
        return self._writers[trial]

    def finish(self) -> None:
        """Flushes the files of trials that have not ended."""
        for writer in self._writers.values():
            writer.close()


class MlflowLogger(Logger):
    """An MLflow run a trial, in the experiment of the sweep's name: at MLFLOW_TRACKING_URI, else in `mlflow.db`."""

    def __init__(self, folder: Path, sweep: str) -> None:
        self._runs: dict[str, str] = {}
        self._client: Any = None
        self._experiment = ""
        super().__init__(folder, sweep)

    def write(self, event: TrialCreated | Report | Outcome) -> None:
        """Creates a run, adds to it, ends it."""
        from mlflow.entities import Metric, Param, RunTag

        run = self._run(event.trial)
        match event:
            case TrialCreated():
                params = [Param(path, str(value)[:500]) for path, value in flatten(event.config).items()]
                searched = [RunTag(f"searched.{path}", str(value)) for path, value in event.params.items()]
                self._client.log_batch(run, params=params[:100], tags=searched)
            case Report():
                at = int(event.time * 1000)
                values = [Metric(_named(key), value, at, event.step) for key, value in numbers(event.metrics).items()]
                self._client.log_batch(run, metrics=values)
                for key, path in self.pictures(event, 0):
                    self._client.log_artifact(run, str(path), f"pictures/{_named(key)}")
            case Outcome():
                found = {"outcome": event.outcome, "kind": event.kind, "rule": event.rule, "message": event.message}
                self._client.log_batch(run, tags=[RunTag(key, str(value)) for key, value in found.items() if value])
                status = {"failed": "FAILED", "completed": "FINISHED"}.get(event.outcome, "KILLED")
                self._client.set_terminated(run, status, int(event.time * 1000))

    def _run(self, trial: str) -> str:
        """The trial's run; one of an earlier driver is gone on with."""
        from mlflow.tracking import MlflowClient

        if self._client is None:
            logging.getLogger("mlflow").setLevel(logging.ERROR)
            uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.folder / 'mlflow.db'}"
            self._client = MlflowClient(tracking_uri=uri)
            there = self._client.get_experiment_by_name(self.sweep)
            place = None if "MLFLOW_TRACKING_URI" in os.environ else (self.folder / "mlflow").absolute().as_uri()
            self._experiment = there.experiment_id if there else self._client.create_experiment(self.sweep, place)
        if trial not in self._runs:
            name = f"{self.sweep}-{trial}"
            there = self._client.search_runs([self._experiment], f"attributes.run_name = '{name}'", max_results=1)
            made = there[0] if there else self._client.create_run(self._experiment, run_name=name)
            self._runs[trial] = made.info.run_id
        return self._runs[trial]


def _named(key: str) -> str:
    """A metric's name as MLflow takes it: what it does not accept becomes `_`."""
    return "".join(each if each.isalnum() or each in "_-./ :" else "_" for each in key)


LOGGERS: Mapping[str, type[Logger]] = {"csv": CsvLogger, "tensorboard": TensorBoardLogger, "mlflow": MlflowLogger}
