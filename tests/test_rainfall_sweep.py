"""The rainfall family in a real sweep, as `buttress run search_spaces/rainfall.yaml --profile quick` runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import buttress
from buttress.analysis.selection import best_trial
from buttress.execution import launch
from buttress.journal import read
from buttress.spec.spec import SweepSpec
from buttress.trainables.rainfall.config import Config

pytestmark = pytest.mark.long


def test_the_quick_sweep_finds_a_healthy_best_among_collapsed_trials(
    root: Path, ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = SweepSpec.load(root / "search_spaces" / "rainfall.yaml", profile="quick")
    finish = launch.start(spec, tmp_path / "runs").run()
    journal = read(finish.folder)
    states = [trial.state for trial in journal.trials.values()]
    assert len(states) >= 16 and finish.seconds < 600 and "failed" not in states
    collapsed = [trial for trial in journal.trials.values() if trial.state == "collapsed"]
    assert len(collapsed) >= 2 and all(trial.outcome is not None and trial.outcome.kind for trial in collapsed)
    winner = best_trial(journal)
    assert winner is not None and winner.state == "completed" and winner.outcome is not None
    assert winner.outcome.best is not None and winner.outcome.best.metrics["ablation/relative"] > 0.05
    (config,) = buttress.load(finish.folder).export(tmp_path / "best.yaml")
    exported = Config.model_validate(yaml.safe_load(config.read_text()))
    assert exported.loss.beta_kl < 5 and exported.train.epochs == 16
