"""The lithology family in a real sweep: the exported config gives its trial's figures again, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import TrialState

import buttress
from buttress.analysis.selection import best_trial
from buttress.execution import driver, launch
from buttress.journal import read
from buttress.journal.records import Journal
from buttress.spec.spec import SweepSpec
from buttress.trainables.lithology.config import Config as LithologyConfig
from buttress.trainables.lithology.model import Vae

CHANGES = [
    "budget.trials=4",
    "fixed.train.epochs=4",
    "fixed.buttress.ari_every=1",
    "fixed.buttress.ari_rows=1000",
    "search.loss.anneal_epochs={int: [1, 2], when: \"config.loss.anneal != 'constant'\"}",
    "scheduler.kind=fifo",
    "rules.posterior_collapse={grace: {steps: 300}}",
]


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.long)], ids=["1 worker", "2 workers"])
def swept(request: Any, root: Path, ray_cluster: Any, tmp_path_factory: Any) -> tuple[Journal, driver.Driver]:
    folder = tmp_path_factory.mktemp("lithology")
    overrides = [*CHANGES, f"resources.workers={request.param}"]
    spec = SweepSpec.load(root / "search_spaces" / "lithology.yaml", profile="quick", overrides=overrides)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        running = launch.start(spec, folder / "runs")
        finish = running.run()
    return read(finish.folder), running


def test_collapsed_trials_are_neither_best_nor_complete(swept: tuple[Journal, driver.Driver]) -> None:
    journal, running = swept
    collapsed = {trial.id for trial in journal.trials.values() if trial.state == "collapsed"}
    complete = {trial.number for trial in running.state.study.trials() if trial.state == TrialState.COMPLETE}
    assert len(collapsed) >= 2 and complete
    assert not {journal.trials[trial].ask for trial in collapsed} & complete
    winner = best_trial(journal)
    assert winner is not None and winner.id not in collapsed


def test_export_then_train_reproduces_the_best_epoch_bit_for_bit(
    swept: tuple[Journal, driver.Driver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, _ = swept
    monkeypatch.chdir(journal.folder.parents[1])
    config, weights = buttress.load(journal.folder).export(tmp_path / "best.yaml", weights=True)
    command = [sys.executable, "-m", "buttress", "train", str(config), "--out", str(tmp_path / "again"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    result = json.loads(done.stdout.splitlines()[-1])
    winner = best_trial(journal)
    assert winner is not None and winner.outcome is not None and winner.outcome.best is not None
    assert result["epoch"] == winner.outcome.best.epoch
    assert result["metrics"] == winner.outcome.best.metrics  # every one of them, to the last bit
    model, exported = torch.load(tmp_path / "again" / "model.pt"), torch.load(weights)
    chosen = LithologyConfig.model_validate(winner.config)
    classes = next((len(value) for key, value in model.items() if key.startswith("head") and key.endswith("bias")), 139)
    Vae(chosen.model, 6, classes).load_state_dict(model, strict=not chosen.model.semi_supervised)
    assert set(model) == set(exported) and all(torch.equal(model[key], exported[key]) for key in model)


def test_one_config_runs_as_a_module_and_under_torchrun(
    swept: tuple[Journal, driver.Driver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, _ = swept
    monkeypatch.chdir(journal.folder.parents[1])
    (config,) = buttress.load(journal.folder).export(tmp_path / "best.yaml")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, start in (("module", [sys.executable]), ("torchrun", torchrun)):
        out = str(tmp_path / name)
        changes = ["--set", "train.epochs=2", "--set", "loss.anneal=constant"]  # so that an epoch is valid
        command = [*start, "-m", "buttress.training", str(config), *changes, "--out", out]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        history = json.loads((tmp_path / name / "history.json").read_text())
        assert history["reports"][-1]["epoch"] == 2


def test_a_run_that_collapses_is_stopped_and_says_why(
    swept: tuple[Journal, driver.Driver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, _ = swept
    monkeypatch.chdir(journal.folder.parents[1])
    (config,) = buttress.load(journal.folder).export(tmp_path / "best.yaml")
    changes = ["loss.beta=25", "loss.anneal=constant", "train.epochs=8", "buttress.workers=1"]
    with pytest.raises(buttress.Collapsed, match="KL"):
        buttress.train(config, tmp_path / "collapsing", set=changes)
