"""What the occupancy tests share: the quick profile's config, tiny data, a sink that keeps every report, a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from collecting_sink import CollectingSink

from buttress.rules import RuleEngine, RuleSet
from buttress.trainables.occupancy.config import Config
from buttress.trainables.occupancy.train import Occupancy
from buttress.training.local_run import train as launch
from buttress.training.registry import rules_file
from buttress.training.trainable import Reported

#: The quick profile's grid and network.
GRID: dict[str, Any] = {"point_cloud_range": (-6.4, -6.4, -1.6, 6.4, 6.4, 4.8), "voxel_size": (0.4, 0.4, 0.4)}
QUICK: dict[str, Any] = {"channels": (8, 16, 32), "latent_dim": 64, "pool": (4, 4, 2), "pose_dim": 32}
#: An eighth of the voxels and a network to go with them, for tests of anything but collapse.
SMALL_GRID: dict[str, Any] = {"point_cloud_range": (-6.4, -6.4, -1.6, 6.4, 6.4, 4.8), "voxel_size": (0.8, 0.8, 0.8)}
SMALL: dict[str, Any] = {"channels": (4, 8, 16), "latent_dim": 16, "pool": (2, 2, 1), "pose_dim": 16, "dropout": 0.0}


class Judge(CollectingSink):
    """Judges every report as a sweep does, and ends the trial at the verdict."""

    def __init__(self, epochs: int) -> None:
        super().__init__("val/iou")
        path = rules_file("occupancy/threshold")
        assert path is not None
        self.engine = RuleEngine(RuleSet.load(path), budget_epochs=epochs)

    def send(self, reported: Reported) -> None:
        super().send(reported)
        found = judged(self.engine, reported)
        self.stop = found.final


def judged(engine: Any, one: Reported) -> Any:
    age = {"full_beta_epochs": one.full_beta_epochs, "full_beta_steps": one.full_beta_steps}
    return engine.update(
        one.metrics, epoch=one.epoch, step=one.step, **age, nonfinite=one.nonfinite, closing=one.closing
    )


def config_of(recipe: str = "head", **groups: dict[str, Any]) -> Config:
    """A recipe on the tiny synthetic set and the small grid, for two epochs, unless told otherwise."""
    given: dict[str, dict[str, Any]] = {
        # with this seed the scene that drives out of range is in training: 15 windows, of which 5 have empty futures
        "data": {"size": "tiny", "fractions": (0.6, 0.2, 0.2), "split_seed": 7, **SMALL_GRID},
        "model": dict(SMALL),
        "train": {"epochs": 2, "batch_size": 4, "lr": 1e-3, "warmup_steps": 2},
        "buttress": {"report_every": 1},
    }
    for name, values in groups.items():
        given.setdefault(name, {}).update(values)
    return Config.recipe(recipe, **given)


def train(config: Config, folder: Path, **more: Any) -> Any:
    sink = more.pop("sink", None) or CollectingSink("val/iou")
    launch(config, Occupancy(), folder, sink=sink, **more)
    return sink
