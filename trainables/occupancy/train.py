"""The occupancy family as a trainable: batches of windows, the loop's task, its metrics and its monitor.

Every rank draws the order of the whole global batch from (seed, epoch) alone and unpacks its share. Windows whose whole
future is empty are known from the data and left out before anything is drawn, so that every rank leaves out the same
ones (a rank that skipped a batch by itself would leave the others waiting).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.optim import AdamW

from buttress.errors import BadInput
from buttress.trainables.occupancy import data as windows
from buttress.trainables.occupancy.config import Config as OccupancyConfig
from buttress.trainables.occupancy.config import Train
from buttress.trainables.occupancy.forecast import forecast
from buttress.trainables.occupancy.heldout import HeldOut
from buttress.trainables.occupancy.loss import Batch, Objective
from buttress.trainables.occupancy.mirrors import mirrored
from buttress.trainables.occupancy.model import build
from buttress.trainables.occupancy.monitor import OccupancyMonitor
from buttress.training.checkpoints import model_weights, restore
from buttress.training.forecast import Cache, Forecast
from buttress.training.loop import Pass, StepState, Task, run
from buttress.training.schedules import CosineLR, LearningRate, WarmUp
from buttress.training.trainable import Metric, Report, Schedule
from buttress.training.world import World

WARMUP_START = 0.01  # share of the learning rate


def _metrics() -> dict[str, Metric]:
    known = {
        "val/average_precision": Metric("max", description="over all validation voxels: no threshold, no weight"),
        "val/best_iou": Metric("max", description="at `best_threshold`, over all voxels and future steps"),
        "val/iou": Metric("max", original_name="epoch/val_iou", description="at `buttress.occ_threshold`"),
        "val/iou_gain": Metric("max", description="val/best_iou less the IoU of copying the last history frame"),
        "val/pos_error_m": Metric("min", "m", original_name="epoch/val_pos_error_m"),
        "val/orient_error_deg": Metric("min", "degree", original_name="epoch/val_orient_error_deg"),
        "best_threshold": Metric(
            "max",
            exported_as="buttress.occ_threshold",
            description="probability with the largest IoU; no score: `export` puts it into the config",
        ),
    }
    for name in ("precision", "recall", "f1"):
        original = f"epoch/val_{name}"
        known[f"val/{name}"] = Metric("max", original_name=original, description="at `buttress.occ_threshold`")
        known[f"val/best_{name}"] = Metric("max", description="at `best_threshold`")
    return known


class Occupancy:
    """3D occupancy world models: history grids and poses to future grids and poses (`trainable: occupancy`)."""

    name: ClassVar[str] = "occupancy"
    Config: ClassVar[type[OccupancyConfig]] = OccupancyConfig
    metrics: ClassVar[dict[str, Metric]] = _metrics()
    original_names: ClassVar[dict[str, str]] = {  # not of rates: shares here, per cent there
        "train/loss": "epoch/train_loss", "train/lr": "epoch/lr",
        "train/grad_norm": "debug/grad_norm", "occ/mean": "debug/pred_mean", "occ/min": "debug/pred_min",
        "occ/max": "debug/pred_max", "train/focal": "loss_components/focal", "train/dice": "loss_components/dice",
        "train/lovasz": "loss_components/lovasz", "train/recall": "loss_components/recall",
        "train/mean": "loss_components/mean_match", "train/pose": "loss/pose", "train/uncertainty": "loss/uncertainty",
        "train/relocalization": "loss/reloc", "train/place": "loss/place",
    }  # fmt: skip
    conditional: ClassVar[bool] = False
    epochs_path: ClassVar[str] = "train.epochs"

    def schedule(self, config: OccupancyConfig) -> Schedule:
        """The learning rate is what has to settle here: full from the step after the warm-up on."""
        train = config.train
        return Schedule(train.epochs, full_at_step=train.warmup_steps, steps_per_epoch=train.steps_per_epoch)

    def train(self, config: OccupancyConfig, world: World, report: Report, resume: Path | None) -> None:
        run(
            self.task(config, world),
            self.schedule(config),
            world,
            report,
            resume,
            report_every=config.buttress.report_every,
            checkpoint_every=config.buttress.checkpoint_every,
            max_steps=config.train.max_steps,
            accumulate=config.train.grad_accum,
            amp=config.train.amp,
        )

    def task(self, config: OccupancyConfig, world: World) -> OccupancyTask:
        return OccupancyTask(config, world)

    def evaluate(
        self, config: OccupancyConfig, checkpoint: Path, world: World, split: str = "val"
    ) -> tuple[dict[str, float], dict[str, Path]]:
        """The metrics of a checkpoint on `split` (val or test); the same as training reported for val."""
        task = OccupancyTask(config, world, split=split)
        restore(task.objective, checkpoint, "occupancy", world.device)
        with torch.no_grad():
            values = task.held_out.measure(task.model)
        return {name: value for name, value in values.items() if isinstance(value, float)}, {}

    def weights(self, checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The network's own state dict in a checkpoint of the loop: what `model.pt` holds."""
        return model_weights(checkpoint, "occupancy")

    def forecast(self, config: OccupancyConfig, cache: Cache) -> Forecast:
        return forecast(config, cache)

    def check_data(self, path: Path, config: OccupancyConfig) -> list[tuple[str, str]]:
        return windows.check(path, config)


def learning_rate(train: Train, steps_per_epoch: int) -> LearningRate:
    """Linear from 0.01 of the learning rate over the warm-up, then a cosine or the full rate.

    The cosine begins where the warm-up ends and would take as many steps as the whole run, as in the original: the run
    is over before it reaches `min_lr`.
    """
    then: LearningRate | None = None
    if train.schedule == "cosine":
        steps = min(train.epochs * steps_per_epoch, train.max_steps or train.epochs * steps_per_epoch)
        then = CosineLR(steps, min(1.0, train.min_lr / train.lr), unit="steps")
    return WarmUp(train.warmup_steps, WARMUP_START, unit="steps", then=then, restart=True)


class OccupancyTask(Task):
    """What the loop needs to train one config on this rank."""

    def __init__(self, config: OccupancyConfig, world: World, split: str = "val") -> None:
        self.config, self.world = config, world
        self.data = windows.load(config.data, world.cache)
        self.dtype = getattr(torch, config.buttress.dtype)
        training = self.data.windows("train")
        empty = self.data.empty_future(config.data.history_frames)[training]
        self.windows, self.skipped = training[~empty], int(empty.sum())
        self._check(len(training))
        self.steps_per_epoch = config.train.steps_per_epoch or max(1, self._per_pass // config.train.grad_accum)

        data, train = config.data, config.train
        self.model = build(config.model, data.history_frames, data.future_frames, data.grid, config.buttress.init_bias)
        self.objective = Objective(
            self.model.to(self.dtype), config.loss, config.model.type == "simple", config.buttress.occ_threshold, world
        )
        self.passes = [
            Pass(
                "occupancy",
                world.wrap(self.objective),
                AdamW(self.objective.parameters(), lr=train.lr, weight_decay=train.weight_decay, fused=True),
                lr=learning_rate(train, self.steps_per_epoch),
                clip=train.clip,
            )
        ]
        self.monitor = OccupancyMonitor() if config.buttress.monitors else None
        self.held_out = HeldOut(self.data, split, config, world, self.dtype)

    @property
    def _per_pass(self) -> int:
        """Whole batches in one pass over the training windows."""
        return len(self.windows) // self.config.train.batch_size

    def _check(self, count: int) -> None:
        size = self.config.train.batch_size
        if not len(self.windows):
            raise BadInput(
                f"every one of the {count} training windows has an all-zero future: nothing can be learnt",
                key="data", accepted="clouds in the range of the grid (see data.ego_frame, `buttress data check`)",
            )  # fmt: skip
        if size < self.world.size or self._per_pass < 1:
            raise BadInput(
                f"does not fit {self.world.size} rank{'s' * (self.world.size > 1)} and {len(self.windows)} windows",
                key="train.batch_size", value=size, accepted=f"{self.world.size} to {len(self.windows)}",
            )  # fmt: skip

    # ---- training

    def batches(self, epoch: int) -> Iterator[Batch]:
        """`steps_per_epoch` groups: as many passes over the windows as it takes, each in an order of its own."""
        count, size = self.steps_per_epoch * self.config.train.grad_accum, self.config.train.batch_size
        passes = -(-count // self._per_pass)
        made = 0
        for turn in range(passes):
            random = np.random.default_rng([self.world.seed, epoch, turn])
            order = random.permutation(self.windows)
            flips = torch.from_numpy(random.random((len(order), 2)) < 0.5) if self.config.data.mirror else None
            for first in range(0, self._per_pass * size, size):
                if made == count:
                    return
                made += 1
                at = slice(first, first + size)
                yield self._batch(order[at], None if flips is None else flips[at])

    def _batch(self, chosen: np.ndarray, flips: torch.Tensor | None) -> Batch:
        world, data = self.world, self.config.data
        first, last = (len(chosen) * (world.rank + i) // world.size for i in range(2))
        own = chosen[first:last]
        grids = torch.from_numpy(self.data.grids(own, data.grid)).to(world.device)
        poses = torch.from_numpy(np.asarray(self.data.poses[own])).to(world.device, self.dtype)
        if flips is not None:
            grids, poses = mirrored(grids, poses, flips[first:last])
        history, future = grids.split([data.history_frames, data.future_frames], dim=1)
        known, wanted = poses.split([data.history_frames, data.future_frames], dim=1)
        return Batch(history.to(self.dtype), future.bool(), known, wanted, first, len(chosen))

    def observe(self, logs: Mapping[str, torch.Tensor], state: StepState) -> None:
        if self.monitor is not None:
            self.monitor.update(logs["occ"])

    def health(self) -> dict[str, Any]:
        watched = {} if self.monitor is None else {"occ": self.monitor.summary()}
        return watched | {"train/skipped_windows": float(self.skipped)}

    # ---- validation

    def evaluate(self, state: StepState, *, full: bool, objectives: bool) -> dict[str, Any]:
        monitor = OccupancyMonitor() if self.config.buttress.monitors else None
        values: dict[str, Any] = self.held_out.measure(self.model, monitor)
        if not objectives:
            values.clear()
        values["train/skipped_windows"] = float(self.skipped)
        return values if monitor is None else values | {"occ": monitor}
