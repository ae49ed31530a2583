"""CollapseBench's occupancy family: its written definition in numbers, and the task that tells its validation loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from collecting_sink import CollectingSink
from occupancy import config_of, train
from torch.nn import functional

from benchmarks.collapsebench.families import occupancy
from benchmarks.collapsebench.family import load
from buttress.trainables.occupancy.monitor import OccupancyMonitor, statistics
from buttress.trainables.occupancy.train import OccupancyTask
from buttress.training.checkpoints import load_checkpoint
from buttress.training.local_run import train as launch
from buttress.training.loop import StepState
from buttress.training.world import World


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUTTRESS_CACHE", str(tmp_path / "cache"))


def seen(on: float, off: float, spread: float = 0.0, *, rate: float = 0.01) -> dict[str, float | None]:
    """What the monitor reports of 20,000 voxels whose logits lie about those of two probabilities."""
    random = np.random.default_rng(3)
    future = torch.from_numpy(random.random(20_000) < rate)
    logit = torch.where(future, torch.tensor(on).logit(), torch.tensor(off).logit())
    logits = logit + spread * torch.from_numpy(random.standard_normal(20_000)).float()
    monitor = OccupancyMonitor()
    merged = {name: float(value) for name, value in monitor.merge(statistics(logits, future, 0.3)[None]).items()}  # type: ignore[arg-type]
    p = torch.sigmoid(logits.double())
    means = [float(p[future].mean()), float(p[~future].mean())]
    odds = [mean / (1 - mean) for mean in means]
    assert occupancy.odds_ratio(merged["mean"], merged["sep"], merged["rate"]) == pytest.approx(
        odds[0] / odds[1], rel=1e-4
    )
    return {f"occ/{name}": value for name, value in merged.items()}


@pytest.mark.parametrize(
    ("on", "off", "dead"),
    [
        (0.02, 0.02, True),  # nothing is predicted, alike everywhere
        (0.0012, 0.001, True),
        (0.002, 0.001, False),  # far below the threshold, and ranked
        (0.5, 0.5, True),
        (0.6, 0.48, False),  # over-filled: sep 1.25, and ranked
        (0.97, 0.969, True),  # everything is predicted
        (0.98, 0.96, False),  # sep 1.02, and the odds are 2 to 1
    ],
)
def test_dead_is_what_does_not_stand_out_wherever_the_mean_is(on: float, off: float, dead: bool) -> None:
    assert occupancy.looks_dead(seen(on, off)) is dead
    assert occupancy.looks_dead(seen(on, off, 0.1)) is dead


def test_a_prediction_that_is_the_same_to_the_last_digit_is_dead() -> None:
    sure = {"occ/mean": 1.0, "occ/sep": 1.0, "occ/rate": 0.01}
    assert occupancy.looks_dead(sure) and occupancy.looks_dead(sure | {"occ/mean": 0.99999, "occ/sep": 1.00001})
    assert occupancy.looks_dead({"occ/mean": 0.0, "occ/sep": 0.0, "occ/rate": 0.01})
    assert occupancy.looks_dead({"occ/mean": 0.5, "occ/sep": None, "occ/rate": None}) is None


def test_blind_is_a_precision_near_the_occupied_share() -> None:
    precision = {"val/average_precision": 0.0149, "occ/rate": 0.01}
    assert occupancy.blind({}, precision) and not occupancy.blind({}, precision | {"val/average_precision": 0.0151})


def test_the_watched_task_tells_its_loss_and_trains_the_same_network(tmp_path: Path) -> None:
    config = config_of("bce", model={"type": "simple"}, loss={"pose_weight": 0.0})
    plain, watched = train(config, tmp_path / "plain"), CollectingSink("val/iou")
    launch(config, load("occupancy").trainable(), tmp_path / "watched", sink=watched, workers=1)
    for one, other in zip(plain.reports, watched.reports, strict=True):
        metrics = dict(other.metrics)
        loss = occupancy.validation_loss(metrics)
        assert (loss is not None) == ("val/iou" in metrics) and metrics.pop(occupancy.LOSS, None) == loss
        assert metrics == pytest.approx(dict(one.metrics), nan_ok=True, abs=0)

    world = World.single(tmp_path / "again", seed=config.buttress.seed)
    task = OccupancyTask(config, world)
    checkpoint = tmp_path / "watched" / str(watched.reports[-1].checkpoint)
    task.objective.load_state_dict(load_checkpoint(checkpoint, world.device)["module.occupancy"])
    task.objective.eval()
    losses, state = [], StepState()
    with torch.no_grad(), state.autocast():
        for history, future, poses in task.held_out.batches():
            logits = task.model(history, poses[:, : config.data.history_frames]).logits.double()
            losses.append(float(functional.binary_cross_entropy_with_logits(logits, future.double())))
    world.close()
    assert watched.last[occupancy.LOSS] == pytest.approx(np.mean(losses), rel=1e-5)
