"""The lithology family as a trainable: data on the device, the loop's task, its metrics and its monitors.

Every rank holds the whole table (six numbers a row) on its device; an epoch is one permutation, gathered once into a
contiguous copy and sliced. Order and masks are drawn for the whole global batch by every rank, so that they do not
depend on how many ranks there are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import ceil, inf
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from buttress.errors import BadInput
from buttress.monitors import AblationMonitor, LatentMonitor
from buttress.trainables.lithology import data as tables
from buttress.trainables.lithology.config import LAYOUTS, Loss
from buttress.trainables.lithology.config import Config as LithologyConfig
from buttress.trainables.lithology.forecast import forecast
from buttress.trainables.lithology.heldout import HeldOut
from buttress.trainables.lithology.loss import Batch, Objective
from buttress.trainables.lithology.model import Vae
from buttress.training.adam import SmallAdam
from buttress.training.checkpoints import model_weights, restore
from buttress.training.forecast import Cache, Forecast
from buttress.training.loop import EarlyStopping, Pass, StepState, Task, run
from buttress.training.schedules import Plateau
from buttress.training.trainable import Metric, Report, Schedule
from buttress.training.world import World

_WEIGHTS = ("loss.beta", "loss.alpha", "loss.reduction", "loss.units", "loss.mask_prob", "loss.mask_weight",
            "loss.masked_only", "loss.feature_weights")  # fmt: skip
_BETA = ("loss.beta",)
_NOISE_BLOCK = 64  # batches


def _metrics() -> dict[str, Metric]:
    scaled = "squared error of standardised features, summed over them"
    known = {
        "val/ari": Metric("max", original_name="ari", description="adjusted Rand index of Gaussian mixture and labels"),
        "val/elbo_1": Metric("min", "nat", _BETA, description="val/recon + val/kl: the loss at canonical beta 1"),
        "val/recon": Metric("min", "", original_name="val_recon", description=f"{scaled}, decoded from a sample"),
        "val/kl": Metric("min", "nat", _BETA, original_name="val_kl", description="to N(0, 1), summed over dimensions"),
        "val/r2_mean": Metric("max", description="mean over features of R2, scaled units, decoded from mu"),
        "val/accuracy": Metric("max", description="of the head, on rows whose label occurs in training"),
        "val/balanced_accuracy": Metric("max", description="of the head: mean recall over the same labels"),
        "val/ce": Metric("min", "nat", description="the head's cross-entropy, on rows whose label occurs in training"),
        "train/loss": Metric("min", "", _WEIGHTS, original_name="train_loss", description="as weighted and reduced"),
    }
    for name in dict.fromkeys(feature.name for layout in LAYOUTS.values() for feature in layout.features):
        known[f"val/r2/{name}"] = Metric("max", description="R2 in scaled units, decoded from mu")
    return known


class Lithology:
    """VAE of core-depth bins, unsupervised or with a classifier head (`trainable: lithology`)."""

    name: ClassVar[str] = "lithology"
    Config: ClassVar[type[LithologyConfig]] = LithologyConfig
    metrics: ClassVar[dict[str, Metric]] = _metrics()
    conditional: ClassVar[bool] = False
    epochs_path: ClassVar[str] = "train.epochs"

    def schedule(self, config: LithologyConfig) -> Schedule:
        full_at = config.loss.full_at()
        if config.loss.anneal_by == "epoch" and full_at < inf:
            full_at = ceil(full_at)
        return Schedule(epochs=config.train.epochs, full_at_epoch=full_at)

    def train(self, config: LithologyConfig, world: World, report: Report, resume: Path | None) -> None:
        schedule = self.schedule(config)
        task = LithologyTask(config, schedule, world)
        if world.rank == 0:
            world.folder.mkdir(parents=True, exist_ok=True)
            (world.folder / "scaler.json").write_text(json.dumps(task.scaler, indent=1))
        run(
            task,
            schedule,
            world,
            report,
            resume,
            report_every=config.buttress.report_every,
            checkpoint_every=config.buttress.checkpoint_every,
            early=EarlyStopping("val/elbo_1", config.train.patience) if config.train.patience else None,
        )

    def evaluate(
        self, config: LithologyConfig, checkpoint: Path, world: World, split: str = "val"
    ) -> tuple[dict[str, float], dict[str, Path]]:
        """The objectives of a checkpoint on `split` (val or test); the same as training reported for val."""
        task = LithologyTask(config, self.schedule(config), world, split=split)
        restore(task.objective, checkpoint, "vae", world.device)
        with torch.no_grad():
            values = task.held_out.measure(task.model) | task.held_out.ari(task.model)
        return {name: value for name, value in values.items() if isinstance(value, float)}, {}

    def weights(self, checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The VAE's own state dict (encoder, decoder, head) in a checkpoint of the loop: what `model.pt` holds."""
        return model_weights(checkpoint, "vae")

    def forecast(self, config: LithologyConfig, cache: Cache) -> Forecast:
        return forecast(config, cache)

    def check_data(self, path: Path, config: LithologyConfig) -> list[tuple[str, str]]:
        return tables.check(path, config)


def shown(drawn: torch.Tensor, loss: Loss) -> torch.Tensor:
    """drawn[rows, features], uniform in 0 to 1 -> bool of the same shape: which entries are not masked."""
    kept = drawn >= loss.mask_prob
    if loss.masked_only:  # a row of which nothing is left gets one feature back (v2.14.2)
        empty = ~kept.any(dim=1)
        kept[empty, drawn[empty].argmax(dim=1)] = True
    return kept


class LithologyTask(Task):
    """What the loop needs to train one config on this rank."""

    def __init__(self, config: LithologyConfig, schedule: Schedule, world: World, split: str = "val") -> None:
        self.config, self.schedule, self.world = config, schedule, world
        dataset = tables.load(config.data, world.cache)
        self.features, self.dx, self.dz = dataset.features, len(dataset.features), config.model.latent_dim
        self.scaler = tables.scaler(config.data, dataset)
        self._check(dataset)
        self.dtype = getattr(torch, config.buttress.dtype)

        training = dataset.rows("train")
        self.x = self._tensor(dataset.x[training], self.dtype)
        self.label = self._tensor(dataset.label[training], torch.int64) if config.model.semi_supervised else None
        self.steps_per_epoch = len(self._batch_bounds())

        self.model = Vae(config.model, self.dx, len(dataset.labels)).to(self.dtype)
        self.objective = Objective(self.model, config.loss, config.model.classifier_on).to(self.dtype)
        self.passes = [
            Pass(
                "vae",
                world.wrap(self.objective),
                SmallAdam(self.objective.parameters(), config.train.lr),
                plateau=self._plateau(),
                clip=config.train.clip,
                summed=config.loss.reduction == "sum",
            )
        ]
        self.window = LatentMonitor(self.dz, every=4, ranked=1024) if config.buttress.monitors else None
        self.beta = config.loss.beta_schedule()
        self._numbers_at, self._numbers = -1.0, dict[str, float]()
        self.held_out = HeldOut(dataset, split, config, world, self.dtype)

    def _check(self, dataset: tables.Dataset) -> None:
        loss = self.config.loss
        if loss.feature_weights is not None and len(loss.feature_weights) != self.dx:
            raise BadInput(
                f"gives {len(loss.feature_weights)} weights for {self.dx} features ({', '.join(self.features)})",
                key="loss.feature_weights", value=list(loss.feature_weights), accepted=f"{self.dx} numbers",
            )  # fmt: skip
        if self.config.model.semi_supervised and not dataset.seen.any():
            raise BadInput(
                "needs labels, and no training row has one", key="model.semi_supervised", value=True,
                accepted="a data.label column, or false",
            )  # fmt: skip
        least = 2 * self.world.size
        if len(dataset.rows("train")) < least or self.config.train.batch_size < least:
            raise BadInput(
                f"leaves a rank with fewer than two rows ({len(dataset.rows('train'))} training rows)",
                key="train.batch_size", value=self.config.train.batch_size, accepted=f"{least} or more",
            )  # fmt: skip

    def _tensor(self, array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.world.device, dtype)

    def _plateau(self) -> Plateau | None:
        train = self.config.train
        if train.scheduler == "none":
            return None
        # the original watches the training loss from the start, while beta rises
        start = 0 if train.plateau_metric == "train/loss" else ceil(self.schedule.full_at_epoch)
        return Plateau(train.plateau_metric, train.plateau_factor, train.plateau_patience, starts_at_epoch=start)

    # ---- training

    def scheduled(self, progress: float, step: int) -> dict[str, float]:
        """beta and alpha in the units of the loss's reduction, and canonical."""
        loss = self.config.loss
        at = min(progress if loss.anneal_by == "step" else int(progress), self.schedule.full_at_epoch)
        if at != self._numbers_at:
            self._numbers_at = at
            beta, alpha = self.beta.value(at + loss.anneal_first), loss.alpha_at(at)
            beta_scale, alpha_scale = loss.beta_scale(self.dx, self.dz), loss.alpha_scale(self.dx)
            if loss.units == "canonical":
                beta, alpha = beta / beta_scale, alpha / alpha_scale
            self._numbers = {"beta": beta, "alpha": alpha}
            self._numbers |= {"beta_canonical": beta * beta_scale, "alpha_canonical": alpha * alpha_scale}
        return self._numbers

    def _batch_bounds(self) -> list[tuple[int, int]]:
        """First and last row (of the epoch's order) of each global batch; the last short one is kept.

        Only a remainder that would leave a rank with fewer than two rows is left out: BatchNorm cannot take it.
        """
        rows, size = len(self.x), self.config.train.batch_size
        bounds = [(first, min(first + size, rows)) for first in range(0, rows, size)]
        return bounds if bounds[-1][1] - bounds[-1][0] >= 2 * self.world.size else bounds[:-1]

    def batches(self, epoch: int) -> Iterator[Batch]:
        world, config = self.world, self.config
        order = torch.randperm(len(self.x), generator=self._generator(epoch, "order"))
        bounds = self._batch_bounds()
        own_rows = [(first, world.share(last - first)) for first, last in bounds]
        shares = [(first + rows.start, first + rows.stop) for first, rows in own_rows]
        own = order if world.size == 1 else torch.cat([order[first:last] for first, last in shares])
        place = own.to(world.device)
        x = self.x.index_select(0, place)
        label = None if self.label is None else self.label.index_select(0, place)
        labelled = self._counts(bounds, None if self.label is None else (self.label.cpu()[order] >= 0))
        keep, hidden = None, None
        if config.loss.mask_prob > 0:
            kept = self._shown(epoch)
            hidden = self.dx - kept.sum(1, dtype=torch.int64)
            mine = kept if world.size == 1 else torch.cat([kept[first:last] for first, last in shares])
            keep = mine.to(world.device, self.dtype)
        masked = self._counts(bounds, hidden)

        normal = self._generator(epoch, "noise", world.rank, world.device)
        lengths = [last - first for first, last in shares]
        at = 0
        for block in range(0, len(bounds), _NOISE_BLOCK):
            sizes = lengths[block : block + _NOISE_BLOCK]
            rows = sum(sizes)
            if config.buttress.noise == "index":
                noise = world.noise(place[at : at + rows], self.dz, stream=epoch, dtype=self.dtype)
            else:
                noise = torch.randn(rows, self.dz, generator=normal, dtype=self.dtype, device=world.device)
            parts = zip(
                x[at : at + rows].split(sizes),
                noise.split(sizes),
                [None] * len(sizes) if keep is None else keep[at : at + rows].split(sizes),
                [None] * len(sizes) if label is None else label[at : at + rows].split(sizes),
                strict=True,
            )
            for i, (one_x, one_noise, one_keep, one_label) in enumerate(parts, start=block):
                first, last = bounds[i]
                yield Batch(one_x, one_noise, one_keep, one_label, last - first, masked[i], labelled[i])
            at += rows

    def _generator(
        self, epoch: int, purpose: str, rank: int = 0, device: torch.device | str = "cpu"
    ) -> torch.Generator:
        """A fresh generator for (seed, epoch, purpose, rank): an epoch's draws do not depend on the ones before it."""
        entropy = [self.world.seed, epoch, ("order", "mask", "noise").index(purpose), rank]
        state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1
        return torch.Generator(device).manual_seed(state)

    def _shown(self, epoch: int) -> torch.Tensor:
        """Which entries of the epoch's rows, in its order, are not masked: bool [rows, features], on the CPU."""
        drawn = torch.rand(len(self.x), self.dx, generator=self._generator(epoch, "mask"))
        return shown(drawn, self.config.loss)

    @staticmethod
    def _counts(bounds: list[tuple[int, int]], per_row: torch.Tensor | None) -> list[int]:
        """Sum of `per_row` [rows] over each global batch."""
        if per_row is None:
            return [0] * len(bounds)
        running = np.concatenate([[0], np.cumsum(per_row.numpy(), dtype=np.int64)])
        return [int(running[last] - running[first]) for first, last in bounds]

    def samples(self, batch: Batch) -> float:
        return batch.rows

    def observe(self, logs: Mapping[str, torch.Tensor], state: StepState) -> None:
        if self.window is not None:
            self.window.update(logs["mu"], logs["logvar"])

    def health(self) -> dict[str, Any]:
        return {} if self.window is None else {"latent": self.window.summary()}

    # ---- validation

    def evaluate(self, state: StepState, *, full: bool, objectives: bool) -> dict[str, Any]:
        watched = self.config.buttress.monitors
        latent, ablation = (LatentMonitor(self.dz), AblationMonitor()) if watched else (None, None)
        values: dict[str, Any] = dict(self.held_out.measure(self.model, latent, ablation))
        if not objectives:
            values.clear()
        elif self._clusters_at(state.epoch):
            values |= self.held_out.ari(self.model)
        return values | {"latent": latent, "ablation": ablation} if watched else values

    def _clusters_at(self, epoch: int) -> bool:
        """The mixture costs as much as an epoch: fitted every few full-beta epochs, and at the end."""
        age = self.schedule.full_beta_epochs(epoch)
        return epoch >= self.schedule.epochs or (age > 0 and age % self.config.buttress.ari_every == 0)
