"""The occupancy family in a real sweep: what validation found is exported, and training gives the figures again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import buttress
from buttress.analysis.selection import best_trial
from buttress.execution import launch
from buttress.journal import read
from buttress.spec.spec import SweepSpec
from buttress.trainables.occupancy import synthetic
from buttress.trainables.occupancy.config import Config, Data
from buttress.trainables.occupancy.model import build

CHANGES = [
    "budget.trials=3",
    "data.size=tiny",
    "data.fractions=[0.6, 0.2, 0.2]",
    "data.split_seed=7",
    "data.voxel_size=[0.8, 0.8, 0.8]",
    "fixed.model.channels=[4, 8, 16]",
    "fixed.model.latent_dim=16",
    "fixed.train.epochs=2",
    "fixed.train.steps_per_epoch=30",
    "fixed.train.warmup_steps=5",
    "fixed.buttress.report_every=10",
    "scheduler.kind=fifo",
]


@pytest.mark.long
def test_export_then_train_reproduces_the_best_epoch_bit_for_bit(
    root: Path, ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = SweepSpec.load(root / "search_spaces" / "occupancy.yaml", profile="quick", overrides=CHANGES)
    journal = read(launch.start(spec, tmp_path / "runs").run().folder)
    winner = best_trial(journal)
    assert winner is not None and winner.outcome is not None and winner.outcome.best is not None
    found = winner.outcome.best.metrics
    config, weights = buttress.load(journal.folder).export(tmp_path / "best.yaml", weights=True)
    assert yaml.safe_load(config.read_text())["buttress"]["occ_threshold"] == found["best_threshold"]
    chosen = Config.model_validate(winner.config)
    assert chosen.buttress.occ_threshold == 0.3  # the trial's own, at which its rules looked
    build(chosen.model, 4, 6, chosen.data.grid).load_state_dict(torch.load(weights, weights_only=True))

    command = [sys.executable, "-m", "buttress", "train", str(config), "--out", str(tmp_path / "again"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    again = json.loads(done.stdout.splitlines()[-1])
    assert again["epoch"] == winner.outcome.best.epoch
    at_threshold = {"val/iou", "val/precision", "val/recall", "val/f1", "val/iou_by_step"}
    same = {name: value for name, value in found.items() if name not in at_threshold and not name.startswith("occ/")}
    assert len(same) > 20 and {name: again["metrics"][name] for name in same} == same  # to the last bit
    assert again["metrics"]["val/iou"] == pytest.approx(found["val/best_iou"], rel=1e-2)


def test_data_check(tmp_path: Path) -> None:
    grid = {"point_cloud_range": (-6.4, -6.4, -1.6, 6.4, 6.4, 4.8), "voxel_size": (0.8, 0.8, 0.8)}
    folder = synthetic.write(tmp_path / "set", Data(size="tiny", **grid))
    overrides = [f"data.{key}={list(value)}" for key, value in grid.items()] + ["data.fractions=[0.6,0.2,0.2]"]
    told = " ".join(f"{name} {text}" for name, text in buttress.check_data("occupancy", folder, set=overrides))
    assert "16 x 16 x 8 voxels" in told and "(min, mean, max)" in told and "fallbacks" in told
