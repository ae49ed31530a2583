"""The radio networks at the original's size take real steps: both passes, finite, all of it trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from collecting_sink import CollectingSink

from buttress.trainables.radio import synthetic
from buttress.trainables.radio.config import Config
from buttress.trainables.radio.synthetic import Size
from buttress.trainables.radio.train import Radio, RadioTask
from buttress.training.local_run import train as launch
from buttress.training.world import World

pytestmark = pytest.mark.long


def test_the_vae_and_its_discriminator_take_real_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """55,307,453 and 2,763,585 parameters on maps of 256 x 256 pixels, the discriminator from the second step on."""
    monkeypatch.setenv("BUTTRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(synthetic.SIZES, "few", Size(4, 2, pixels=256))
    root = synthetic.write(tmp_path / "few", "few", 1)
    config = Config.of_groups(
        {
            "data": {"kind": "files", "root": str(root), "batch_size": 1},
            "model": {"lossconfig": {"disc_start": 1}},
            "trainer": {"train_num_steps": 3},
            "buttress": {"epoch_steps": 3, "report_every": 1, "eval_images": 2, "eval_batch": 1, "ema": False},
        }
    )
    torch.manual_seed(0)
    task = RadioTask(config, World.single(tmp_path))
    assert sum(one.numel() for one in task.model.parameters()) == 55_307_453
    assert sum(one.numel() for one in task.passes[1].module.parameters()) == 2_763_585
    assert task.dataset.size == (256, 256)
    del task
    kept = CollectingSink("val/l1")
    launch(config, Radio(), tmp_path / "run", sink=kept)
    assert kept.reports[-1].step == 3 and not any(one.nonfinite for one in kept.reports)
    assert kept.last["latent/dims"] == 3 * 64 * 64 and 0 < kept.last["val/l1"] < 2
    assert np.isfinite(kept.last["train/disc_loss"]) and kept.last["train/disc_loss"] > 0
    held = torch.load(next((tmp_path / "run/checkpoints").glob("*.pt")), weights_only=True)
    for name, least in (("vae", 100), ("discriminator", 10)):  # tensors; all of them have had a gradient
        moments = [one["exp_avg"] for one in held[f"optimizer.{name}"]["state"].values()]
        assert len(moments) > least and all(torch.isfinite(one).all() and one.abs().sum() > 0 for one in moments)
