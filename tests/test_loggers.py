"""What the loggers write is read back by the tools it is for."""

from __future__ import annotations

import csv
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from journal_lines import event_of
from journals import SyntheticSweep, mixed_sweep

from buttress.callbacks.loggers import LOGGERS, MAX_WAITING, CsvLogger, Logger
from buttress.journal.events import Report
from buttress.spec.spec import SweepSpec


def written(name: str, folder: Path, book: SyntheticSweep | None = None) -> Path:
    """A sweep's events through the logger of this name."""
    logger = LOGGERS[name](folder, "toy-ab12cd")
    for line in (book or mixed_sweep()).lines:
        logger.on_event(event_of(line))
    logger.close()
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_csv_has_a_row_a_report(tmp_path: Path) -> None:
    written("csv", tmp_path)
    found = rows(tmp_path / "trials" / "0000" / "progress.csv")
    assert [float(row["ari"]) for row in found] == [0.10, 0.30, 0.41, 0.40, 0.39, 0.38, 0.38, 0.38, 0.38, 0.38]
    assert [row["epoch"] for row in found] == [str(epoch) for epoch in range(1, 11)]
    assert rows(tmp_path / "trials" / "0002" / "progress.csv")[-1]["state"] == "suspect"


def test_a_metric_that_comes_later_gets_a_column_and_a_resumed_trial_goes_on(tmp_path: Path) -> None:
    book = SyntheticSweep()
    book.trial("0000")
    book.epoch("0000", 1, {"a": 1.0})
    book.epoch("0000", 2, {"a": 2.0, "b,\"c": 3.0})
    written("csv", tmp_path, book)
    again = SyntheticSweep()
    again.trial("0000")
    again.epoch("0000", 3, {"a": 4.0, "d": None})
    found = rows(written("csv", tmp_path, again) / "trials" / "0000" / "progress.csv")
    assert [(row["a"], row["b,\"c"]) for row in found] == [("1.0", ""), ("2.0", "3.0"), ("4.0", "")]
    assert [row["d"] for row in found] == ["", "", ""]


def test_tensorboard_reads_scalars_pictures_and_hparams(tmp_path: Path) -> None:
    from matplotlib.image import imsave
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    book = SyntheticSweep()
    book.trial("0000", {"loss.beta": 0.25, "kind": "a"})
    (tmp_path / "trials" / "0000").mkdir(parents=True)
    imsave(tmp_path / "trials" / "0000" / "map.png", np.zeros((4, 6, 3)))
    book.epoch("0000", 1, {"ari": 0.5, "broken": float("nan")}, media={"maps": "map.png", "gone": "none.png"})
    book.outcome("0000", "collapsed", epochs=1, kind="posterior_collapse", message="dead")
    written("tensorboard", tmp_path, book)
    read = EventAccumulator(str(tmp_path / "tensorboard" / "0000"))
    read.Reload()
    (scalar,) = read.Scalars("ari")
    assert (scalar.step, scalar.value) == (50, 0.5)
    (picture,) = read.Images("maps")
    assert (picture.width, picture.height) == (6, 4) and "broken" not in read.Tags()["scalars"]
    best = EventAccumulator(str(tmp_path / "tensorboard" / "0000" / "best"))
    best.Reload()
    held = best.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"loss.beta" in held and b"collapsed" in held


def test_mlflow_reads_runs_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    book = SyntheticSweep()
    book.completed("0000", {"loss.beta": 0.25}, ari=[0.5, 0.6])
    book.collapsed("0001", {"loss.beta": 9.0})
    written("mlflow", tmp_path, book)
    written("mlflow", tmp_path, SyntheticSweep())  # a later driver finds the experiment
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("toy-ab12cd")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    alive, dead = runs["toy-ab12cd-0000"], runs["toy-ab12cd-0001"]
    assert [each.value for each in client.get_metric_history(alive.info.run_id, "ari")] == [0.5, 0.6]
    assert alive.data.params["loss.beta"] == "0.25" and alive.info.status == "FINISHED"
    assert dead.data.tags["kind"] == "posterior_collapse" and dead.info.status == "KILLED"


def test_a_logger_never_holds_the_sweep_and_its_fault_is_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()

    class Broken(Logger):
        def write(self, event: Any) -> None:
            gate.wait()
            raise RuntimeError("disk full")

    logger = Broken(tmp_path, "toy")
    for line in mixed_sweep().lines:
        logger.on_event(event_of(line))  # returns, although the first event is still being written
    gate.set()
    logger.close()
    assert "Broken failed and writes no more" in caplog.text


def test_reports_beyond_the_limit_are_dropped_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(CsvLogger):
        def write(self, event: Any) -> None:
            time.sleep(0.02)

    monkeypatch.setattr("buttress.callbacks.loggers.MAX_WAITING", 2)
    assert MAX_WAITING > 1000
    logger = Slow(tmp_path, "toy")
    reports = [event for line in mixed_sweep().lines if isinstance(event := event_of(line), Report)]
    for report in reports:
        logger.on_event(report)
    logger.close()
    assert logger.dropped >= len(reports) - 4 and f"{logger.dropped} reports were dropped" in caplog.text


def test_a_spec_names_its_loggers(tmp_path: Path) -> None:
    base = {"trainable": "lithology", "objectives": ["val/ari"], "budget": {"trials": 1}}
    assert SweepSpec.from_dict({**base, "callbacks": ["csv", "tensorboard"]}).callbacks == ("csv", "tensorboard")
    with pytest.raises(ValueError, match="callbacks"):
        SweepSpec.from_dict({**base, "callbacks": ["excel"]})
