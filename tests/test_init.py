"""`buttress init`: what it writes runs as it is, and nothing of the user's is lost."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_cli import call
from toy import Collected

import buttress


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_familys_search_space_is_written_and_the_next_commands_are_told(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capfd, "init", "lithology")
    assert code == 0 and "buttress run lithology.yaml --profile quick" in out
    assert [path.name for path in here.iterdir()] == ["lithology.yaml"]
    plan = buttress.plan("lithology.yaml", profile="quick", timing=False)
    assert plan.trials == 24 and plan.trainable == "lithology"


def test_a_file_that_exists_is_kept(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("my_vae.yaml").write_text("mine")
    code, _, err = call(capfd, "init", "own")
    assert code == 2 and "my_vae.yaml: this file exists" in err
    assert Path("my_vae.yaml").read_text() == "mine" and not Path("my_vae.py").exists()
    code, _, _ = call(capfd, "init", "own", "--force")
    assert code == 0 and yaml.safe_load(Path("my_vae.yaml").read_text())["trainable"] == "my_vae:MyVAE"


def test_an_unknown_family_gets_the_near_one(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capfd, "init", "rainfal")
    assert code == 2 and "did you mean rainfall?" in err and not list(here.iterdir())


def test_the_written_trainer_trains_resumes_and_collapses(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    call(capfd, "init", "own")
    config = {"epochs": 4, "buttress": {"trainable": "my_vae:MyVAE", "seed": 7}}
    whole = buttress.train(config, here / "whole")
    assert whole["epoch"] == 4 and whole["metrics"]["latent/active_kl"] >= 1
    halves = buttress.train({**config, "epochs": 2}, here / "halves")
    assert halves["metrics"]["val/elbo"] > whole["metrics"]["val/elbo"]

    from buttress.training import registry
    from buttress.training.checkpoints import load_checkpoint
    from buttress.training.local_run import train

    (newest,) = (here / "halves" / "checkpoints").glob("*2.pt")
    trainer: Any = registry.load("my_vae:MyVAE")
    sink = Collected()
    train(trainer.Config(epochs=3), trainer, here / "again", sink=sink, resume=newest)
    (report,) = sink.reports
    assert report.epoch == 3 and load_checkpoint(here / "again" / report.checkpoint)["step"] == 3 * 32
    with pytest.raises(buttress.Collapsed, match="KL"):
        buttress.train({**config, "beta": 1e4, "epochs": 20}, here / "collapsing")


def test_the_written_files_run_as_a_sweep(
    here: Path, capfd: pytest.CaptureFixture[str], ray_cluster: Any
) -> None:
    call(capfd, "init", "own")
    code, out, err = call(capfd, "run", "my_vae.yaml", "--set", "budget.trials=2", "--set", "fixed.epochs=2", "-q",
                          "--set", "scheduler.kind=fifo", "--set", "resources.concurrency=1")  # fmt: skip
    assert code == 0 and "2 completed" in out, (out, err)
    shutil.rmtree(here / "runs")
