"""`kill -9` of the driver at any moment, then resume: every trial once, nothing finished run again, the same ends."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from journal_lines import event_of

from buttress.analysis.selection import best_trial
from buttress.callbacks.base import Callback
from buttress.errors import BadInput
from buttress.execution import launch
from buttress.journal import JournalWriter, lines, read
from buttress.journal.records import Journal

pytestmark = pytest.mark.ray

HERE = Path(__file__).parent
SPEC: dict[str, Any] = {
    "name": "resumable",
    "trainable": "resumable:Resumable",
    "search": {"beta": {"loguniform": [0.05, 50.0]}},
    "objectives": ["val/score"],
    "scheduler": {"kind": "asha", "first": 2, "factor": 2},
    "resources": {"concurrency": 1},
    "budget": {"trials": 5},
    "rules": {"posterior_collapse": {"grace": {"epochs": 1, "steps": 100}, "patience": 2}},
    "seed": 2,
}
MOMENTS = [
    "before the first report",
    "between verdict and outcome line",
    "in an epoch",
    "in a checkpoint write",
    "between outcome line and tell",
    "in ask",
    "in W&B's finish",
    "during slot build",
    "in the last trial",
]


def prepare(folder: Path) -> Path:
    shutil.copy(HERE / "resumable.py", folder)
    (folder / "resumable.yaml").write_text(json.dumps(SPEC))
    return folder


def run(folder: Path, moment: str) -> subprocess.CompletedProcess[str]:
    """A driver of its own on a Ray of its own."""
    environment = {**os.environ, "BUTTRESS_CACHE": str(folder / "cache")}
    command = [sys.executable, str(HERE / "killed_driver.py"), moment, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode in (0, -9, 130), done.stderr[-2000:]
    return done


def essence(journal: Journal) -> dict[str, Any]:
    return {
        trial.id: (
            trial.params,
            trial.state,
            trial.outcome and (trial.outcome.kind, trial.outcome.margin, trial.outcome.epochs),
            [report.metrics for report in trial.reports],
        )
        for trial in journal.trials.values()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Journal:
    """The sweep that nobody disturbed."""
    folder = prepare(tmp_path_factory.mktemp("whole"))
    assert run(folder, "never").returncode == 0
    journal = read(next(folder.glob("runs/*")))
    assert {"completed", "collapsed", "pruned"} <= set(journal.counts())
    return journal


def assert_resumed(journal: Journal, whole: Journal, finished: set[str]) -> None:
    """Every trial once, the same as undisturbed, and none of those that had `finished` was run again."""
    assert essence(journal) == essence(whole)
    raw = list(lines(journal.folder / "journal.jsonl"))
    ends = [line["trial"] for line in raw if line["line"] == "outcome"]
    assert len(ends) == len(set(ends)) == SPEC["budget"]["trials"]
    resumed = next(number for number, line in enumerate(raw) if line["line"] == "resume")
    again = {line["trial"] for line in raw[resumed:] if line["line"] == "start"}
    assert not again & finished
    assert not list(journal.folder.glob("trials/*/checkpoints/*.part"))


@pytest.mark.parametrize(
    "moment",
    [moment if number == 1 else pytest.param(moment, marks=pytest.mark.long) for number, moment in enumerate(MOMENTS)],
)
def test_a_killed_driver_loses_nothing(whole: Journal, tmp_path: Path, moment: str) -> None:
    folder = prepare(tmp_path)
    assert run(folder, moment).returncode == -9, "the moment never came"
    sweep = next(folder.glob("runs/*"))
    before = {trial.id for trial in read(sweep).trials.values() if trial.outcome}
    assert run(folder, "never").returncode == 0
    assert_resumed(read(sweep), whole, before)


@pytest.mark.long
def test_a_journal_on_a_full_disk_ends_the_sweep_with_a_sentence(whole: Journal, tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    done = run(folder, "journal on a full disk")
    sweep = next(folder.glob("runs/*"))
    told = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert "the journal cannot be written: File too large" in told and f"buttress resume runs/{sweep.name}" in told
    raw = (sweep / "journal.jsonl").read_bytes()
    assert raw.endswith(b"\n")  # the line that did not fit was taken back
    journal = read(sweep)
    assert sum(len(trial.reports) for trial in journal.trials.values()) == 14 and journal.ended is None
    before = {trial.id for trial in journal.trials.values() if trial.outcome}
    assert before
    assert run(folder, "never").returncode == 0
    assert (sweep / "journal.jsonl").read_bytes().startswith(raw)
    assert_resumed(read(sweep), whole, before)


@pytest.mark.parametrize("part", ["config", "weights"])
def test_an_export_that_is_killed_leaves_no_half_file(whole: Journal, tmp_path: Path, part: str) -> None:
    folder = prepare(tmp_path)
    shutil.copytree(whole.folder, folder / "runs" / whole.folder.name, symlinks=True)
    journal = folder / "runs" / whole.folder.name / "journal.jsonl"
    before = journal.read_bytes()
    assert run(folder, f"during export of the {part}").returncode == -9, "the moment never came"
    assert (folder / "best.yaml").exists() == (part == "weights") and not (folder / "best.pt").exists()
    assert run(folder, "export again").returncode == 0
    winner = best_trial(whole)
    assert winner is not None
    assert yaml.safe_load((folder / "best.yaml").read_text())["beta"] == winner.params["beta"]
    assert torch.load(folder / "best.pt", weights_only=True)["weight"].shape == (1, 1)
    assert journal.read_bytes() == before


class Messages(Callback):
    """A callback that keeps what people are told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def on_message(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture(params=["missing", "damaged"])
def suspended(request: Any, whole: Journal, tmp_path: Path) -> tuple[Path, str]:
    """A sweep whose driver died in its first trial after the third epoch, and what has become of the checkpoint."""
    folder = prepare(tmp_path) / "runs" / whole.folder.name
    raw = list(lines(whole.folder / "journal.jsonl"))
    last = next(n for n, line in enumerate(raw) if line["line"] == "report" and line["epoch"] == 3)
    with JournalWriter(folder / "journal.jsonl") as journal:
        for line in raw[: last + 1]:
            journal.write(event_of(line))
    checkpoint = folder / "trials" / raw[last]["trial"] / raw[last]["checkpoint"]
    checkpoint.parent.mkdir(parents=True)
    torch.save({"epoch": 3, "model": {"weight": torch.ones(1, 1)}}, checkpoint)
    content = checkpoint.read_bytes()
    if request.param == "missing":
        checkpoint.unlink()
    else:
        checkpoint.write_bytes(content[: len(content) // 2])
    return folder, f"checkpoint checkpoints/{checkpoint.name} is {request.param}, so the trial starts afresh"


def test_a_lost_checkpoint_restarts_its_trial_and_says_so(
    whole: Journal, suspended: tuple[Path, str], ray_cluster: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder, sentence = suspended
    messages = Messages()
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING, "buttress"):
        patch.chdir(folder.parents[1])
        launch.resume(folder, callbacks=(messages,)).run()
    assert messages.texts[0].startswith("connecting to Ray") and messages.texts[1:] == [f"trial 0000: {sentence}"]
    assert [record.getMessage() for record in caplog.records if record.name == "buttress.messages"] == messages.texts
    journal = read(folder)
    assert_resumed(journal, whole, set())
    trial = journal.trials["0000"]
    assert trial.attempts[-1].attempt > 1 and trial.attempts[-1].resumed_from is None
    assert {report.attempt for report in trial.reports} == {trial.attempts[-1].attempt}
    assert not trial.losses  # it does not count as lost to the infrastructure


def test_a_second_driver_is_refused_with_the_owner_named(tmp_path: Path, whole: Journal) -> None:
    copy = tmp_path / "sweep"
    shutil.copytree(whole.folder, copy, symlinks=True)
    with (
        JournalWriter(copy / "journal.jsonl"),
        pytest.raises(BadInput, match=f"pid {os.getpid()}"),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.chdir(whole.folder.parents[1])
        launch.resume(copy).run()
