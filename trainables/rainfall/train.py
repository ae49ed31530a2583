"""The rainfall family as a trainable: days on the device, the loop's task, its metrics and its monitors.

Every rank has the whole data set (memory-mapped on the CPU, 1.2 GB on a GPU at full size) and takes its share of each
global batch, which every rank draws alike; the noise of a day depends on its place in the epoch, not on its rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from buttress.errors import BadInput
from buttress.monitors import AblationMonitor, LatentMonitor
from buttress.trainables.rainfall import data as files
from buttress.trainables.rainfall.config import Config as RainfallConfig
from buttress.trainables.rainfall.config import Train
from buttress.trainables.rainfall.heldout import HeldOut
from buttress.trainables.rainfall.loss import Batch, Objective
from buttress.trainables.rainfall.model import Grids, RainVae
from buttress.trainables.rainfall.rain import Rain, moved
from buttress.trainables.rainfall.sampler import Sampler
from buttress.training.checkpoints import model_weights, restore
from buttress.training.loop import EarlyStopping, Pass, StepState, Task, fused_adam, run
from buttress.training.randomness import keyed_normal
from buttress.training.schedules import CosineLR, LearningRate, Plateau, StepLR
from buttress.training.trainable import Metric, Report, Schedule
from buttress.training.world import World

_KL = ("loss.beta_kl", "loss.free_bits", "loss.free_bits_per")
_MM, _SHARE = "mm/day", ""
_CODE, _AUGMENT = 0, 1  # streams of the training noise


def _metrics() -> dict[str, Metric]:
    def seen(direction: Any, unit: str, original: str, text: str) -> Metric:
        what = f"{text}; decoded from a posterior that has seen the target"
        return Metric(direction, unit, sees_target=True, original_name=original, description=what)

    return {
        "prior/crps": Metric("min", _MM, description="CRPS of K prior draws, fair estimate, all land pixels"),
        "prior/mae_tail": Metric("min", _MM, description="error of the median of K prior draws where rain >= P95"),
        "prior/mae_all": Metric("min", _MM, description="error of the median of K prior draws, all land pixels"),
        "prior/correlation": Metric("max", _SHARE, description="over pixels, prior draw and truth, rainy days"),
        "posterior/mae_all": seen("min", _MM, "MAE_all", "absolute error over land"),
        "posterior/rmse_all": seen("min", _MM, "RMSE_all", "root of the mean squared error over land"),
        "posterior/mae_tail": seen("min", _MM, "MAE_tail", "absolute error where rain >= P95"),
        "posterior/rmse_tail": seen("min", _MM, "RMSE_tail", "root of the mean squared error where rain >= P95"),
        "posterior/combined": seen("min", _MM, "combined_metric", "0.4 MAE_all + 0.6 MAE_tail"),
        "posterior/correlation": seen("max", _SHARE, "", "over pixels, rainy days"),
        "val/l_rec": Metric("min", "", ("loss",), sees_target=True, original_name="L_rec",
                            description="the training loss's reconstruction term, one draw from the posterior"),
        "val/kl": Metric("min", "nat", _KL, original_name="L_kl", description="raw KL to N(0, I), summed over d_z"),
        "train/loss": Metric("min", "", ("loss",), original_name="train_loss", description="as weighted"),
        "train/l_rec": Metric("min", "", ("loss",), original_name="train_L_rec", description="reconstruction term"),
        "train/kl": Metric("min", "nat", _KL, original_name="train_L_kl", description="raw KL of the training days"),
    }  # fmt: skip


class Rainfall:
    """Conditional VAE of daily rain fields (`trainable: rainfall`)."""

    name: ClassVar[str] = "rainfall"
    Config: ClassVar[type[RainfallConfig]] = RainfallConfig
    metrics: ClassVar[dict[str, Metric]] = _metrics()
    original_names: ClassVar[dict[str, str]] = {  # columns of the original's train_log.csv
        "train/l_mass": "train_L_mass", "train/l_gradient": "train_L_grad", "train/beta": "beta", "train/lr": "lr",
        "val/l_rec": "val_L_rec", "val/kl": "val_L_kl", "posterior/mae_all": "val_MAE_all",
        "posterior/mae_tail": "val_MAE_tail", "posterior/rmse_all": "val_RMSE_all",
        "posterior/mass_bias": "val_mass_bias", "posterior/combined": "val_combined_metric",
    }  # fmt: skip
    conditional: ClassVar[bool] = True
    epochs_path: ClassVar[str] = "train.epochs"

    def schedule(self, config: RainfallConfig) -> Schedule:
        return Schedule(epochs=config.train.epochs, full_at_epoch=config.loss.beta_schedule().full_at)

    def train(self, config: RainfallConfig, world: World, report: Report, resume: Path | None) -> None:
        schedule = self.schedule(config)
        task = RainfallTask(config, schedule, world)
        early = None
        if config.train.early_stopping_patience:
            early = EarlyStopping(
                config.train.early_stopping_metric,
                config.train.early_stopping_patience,
                min_delta=config.train.early_stopping_min_delta,
            )
        run(
            task,
            schedule,
            world,
            report,
            resume,
            report_every=config.buttress.report_every,
            checkpoint_every=config.buttress.checkpoint_every,
            early=early,
            amp=config.train.amp and world.device.type == "cuda",
        )

    def evaluate(
        self, config: RainfallConfig, checkpoint: Path, world: World, split: str = "val"
    ) -> tuple[dict[str, float], dict[str, Path]]:
        """The scores of a checkpoint on `split` (val or test), and a picture of some of its fields.

        For val the scores are what training reported at that epoch; on the test split nothing was ever selected.
        """
        from buttress.trainables.rainfall.picture import draw

        task = RainfallTask(config, self.schedule(config), world, split=split)
        restore(task.objective, checkpoint, "vae", world.device)
        with torch.no_grad():
            values = task.held_out.measure(task.model)
            if world.rank:
                return values, {}
            return values, {"fields": draw(task.held_out, task.model, split, world.folder / f"fields_{split}.png")}

    def weights(self, checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The model's own state dict in a checkpoint of the loop: what `model.pt` holds."""
        return model_weights(checkpoint, "vae")

    def check_data(self, path: Path, config: RainfallConfig) -> list[tuple[str, str]]:
        return files.check(path, config)


@dataclass(frozen=True)
class FirstEpochs:
    """(e + 1) / length in epoch e < length, then on from the last of these as `then` goes on from there.

    The original writes its warm-up over a scheduler of torch's that is stepped all along in its chained form: what
    follows is neither `then` itself nor a schedule that starts anew, but the warm-up's last value (1) times the ratio
    of `then` now to `then` in the warm-up's last epoch, both counted from the cosine's floor.
    """

    length: int
    then: CosineLR | StepLR | None

    def factor(self, epoch: int, step: int) -> float:
        if epoch < self.length:
            return (epoch + 1) / self.length
        if self.then is None:
            return 1.0
        floor = self.then.final if isinstance(self.then, CosineLR) else 0.0
        now, last = (self.then.factor(one, step) - floor for one in (epoch, self.length - 1))
        return floor + (1.0 - floor) * now / last if last else floor


def learning_rate(train: Train) -> LearningRate | None:
    """The schedule of `train.scheduler`, after the warm-up; a plateau comes on top of it."""
    then: CosineLR | StepLR | None = None
    if train.scheduler == "cosine":
        then = CosineLR(train.epochs, final=min(1.0, train.eta_min / train.lr))
    elif train.scheduler == "step":
        then = StepLR(train.step_size, train.gamma)
    return FirstEpochs(train.lr_warmup_epochs, then) if train.lr_warmup_epochs else then


class RainfallTask(Task):
    """What the loop needs to train one config."""

    def __init__(self, config: RainfallConfig, schedule: Schedule, world: World, *, split: str = "val") -> None:
        self.config, self.world, self.schedule = config, world, schedule
        self.dtype = torch.float64 if config.buttress.dtype == "float64" else torch.float32
        dataset = files.load(config.data, world.cache)
        self.sampler = self._sampler(dataset)
        self.rain = Rain.of(
            dataset.mean, dataset.std, dataset.land, _three(dataset.thresholds), world.device, self.dtype
        )
        self.x, self.y = self._resident(dataset.x), self._resident(dataset.y)
        self.model = RainVae(config.model, grids_of(dataset))
        statics = torch.from_numpy(np.ascontiguousarray(dataset.statics))[None]
        self.objective = Objective(self.model, config.loss, self.rain, statics, world).to(self.dtype)
        self.steps_per_epoch = len(self._batches(0))
        self.passes = [
            Pass(
                "vae",
                world.wrap(self.objective),
                fused_adam(self.objective.parameters(), config.train.lr, weight_decay=config.train.weight_decay),
                lr=learning_rate(config.train),
                plateau=self._plateau(),
                clip=config.train.clip,
            )
        ]
        self.beta = config.loss.beta_schedule()
        self.window = LatentMonitor(config.model.d_z, ranked=1024) if config.buttress.monitors else None
        self.held_out = HeldOut(dataset, split, config, world, self.rain, self.dtype)
        self._check_stopping()

    def _check_stopping(self) -> None:
        train, metric = self.config.train, self.config.train.early_stopping_metric
        watched = train.early_stopping_patience is not None or train.scheduler == "plateau"
        tail = ("prior/mae_tail", "posterior/mae_tail", "posterior/combined")
        if watched and metric in tail and not self.held_out.has_tail:
            raise BadInput(
                "is never reported: no scored validation pixel reaches p95_mmday",
                key="train.early_stopping_metric",
                value=metric,
                accepted="prior/crps, posterior/mae_all, or more buttress.eval_days",
            )

    def _sampler(self, dataset: files.Dataset) -> Sampler:
        train, days = self.config.train, dataset.rows("train")
        heavy = days[dataset.heavy[days]]
        if train.heavy_per_batch and not len(heavy):
            raise BadInput(
                "wants heavy days in every batch, and no training day is heavy", key="train.min_heavy_fraction",
                value=train.min_heavy_fraction, accepted="0",
            )  # fmt: skip
        if train.heavy_per_batch and len(heavy) == len(days):
            raise BadInput("leaves no other days: all training days are heavy", key="train.min_heavy_fraction",
                           value=train.min_heavy_fraction, accepted="0")  # fmt: skip
        if train.augment_mixup and len(heavy) < 2:
            raise BadInput(f"has no two heavy training days to mix ({len(heavy)})", key="train.augment_mixup",
                           value=train.augment_mixup, accepted="0")  # fmt: skip
        grids = [array.shape[-2:] for array in (dataset.x, dataset.y)]
        if train.augment_rotate and any(rows != columns for rows, columns in grids):
            sizes = " and ".join(f"{rows} x {columns}" for rows, columns in grids)
            raise BadInput(f"turns by 90 degrees, and the grids are not square ({sizes})", key="train.augment_rotate",
                           value=True, accepted="false, or square grids of predictor and target")  # fmt: skip
        if train.batch_size < self.world.size:
            raise BadInput("is less than a day per rank", key="train.batch_size", value=train.batch_size,
                           accepted=f"{self.world.size} or more")  # fmt: skip
        return Sampler(days, heavy, train.batch_size, train.heavy_per_batch)

    def _resident(self, array: np.ndarray) -> torch.Tensor:
        """On a GPU the whole array lies there; on the CPU it stays the memory map that all processes share."""
        return torch.from_numpy(array).to(self.world.device)

    def _plateau(self) -> Plateau | None:
        train = self.config.train
        if train.scheduler != "plateau":
            return None
        start = int(self.schedule.full_at_epoch)  # the original watched the total loss, which rises with beta
        return Plateau(train.early_stopping_metric, train.plateau_factor, train.plateau_patience, starts_at_epoch=start)

    # ---- training

    def scheduled(self, progress: float, step: int) -> dict[str, float]:
        """beta of epoch e (from 0): beta_kl * e / warmup_epochs, then beta_kl."""
        return {"beta": self.beta.value(int(progress))}

    def _batches(self, epoch: int) -> list[np.ndarray]:
        """The global batches of an epoch; a remainder with fewer days than ranks is left out."""
        batches = self.sampler.epoch(self.world.seed, epoch)
        return [batch for batch in batches if len(batch) >= self.world.size]

    def batches(self, epoch: int) -> Iterator[Batch]:
        world, train, first = self.world, self.config.train, 0
        flips, turned = (np.random.default_rng([world.seed, epoch, stream]) for stream in (2, 3))
        mixed = np.random.default_rng([world.seed, epoch, 4])
        for batch in self._batches(epoch):
            own = world.share(len(batch))
            at = torch.from_numpy(batch[own]).to(world.device)
            place = torch.arange(first, first + len(batch))[own]
            x = self.x.index_select(0, at).to(self.dtype)
            y = self.y.index_select(0, at).to(self.dtype)
            if train.augment_mixup:
                x, y = self._mixed(batch, own, x, y, mixed)
            noise = self._noise(place, self.config.model.d_z, epoch, _CODE)
            if train.augment_noise:
                x = x + train.augment_noise * self._noise(place, x[0].numel(), epoch, _AUGMENT).view_as(x)
            flip: tuple[int, ...] = ()
            if train.augment_flip:
                flip = tuple(axis for axis in (-1, -2) if flips.random() < 0.5)
            turns = int(turned.integers(4)) if train.augment_rotate else 0
            yield Batch(moved(x, flip, turns), moved(y, flip, turns), noise, len(batch), flip, turns)
            first += len(batch)

    def _mixed(
        self, batch: np.ndarray, own: slice, x: torch.Tensor, y: torch.Tensor, random: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's x and y of a global batch, whose heavy days are mixed with heavy days of the whole training set.

        In the network's own units (Zhang et al. 2018, mixup, with both samples of one class). Drawn for the global
        batch: the same on any number of ranks.
        """
        heavy, alpha = self.sampler.heavy, self.config.train.augment_mixup
        partner, share = random.choice(heavy, len(batch)), random.beta(alpha, alpha, len(batch))
        share = np.where(np.isin(batch, heavy), share, 1.0)[own]
        at = torch.from_numpy(partner[own]).to(self.world.device)
        weight = torch.from_numpy(share).to(self.world.device, self.dtype).view(-1, 1, 1, 1)
        other = [whole.index_select(0, at).to(self.dtype) for whole in (self.x, self.y)]
        return weight * x + (1 - weight) * other[0], weight * y + (1 - weight) * other[1]

    def _noise(self, place: torch.Tensor, width: int, epoch: int, stream: int) -> torch.Tensor:
        """By place in the epoch: the same on any number of ranks, and another for each time a heavy day is drawn."""
        drawn = keyed_normal(self.world.seed, place, width, 2 * epoch + stream, self.dtype)
        return drawn.to(self.world.device)

    def observe(self, logs: Mapping[str, torch.Tensor], state: StepState) -> None:
        if self.window is not None:
            self.window.update(logs["mu"], logs["logvar"])

    def health(self) -> dict[str, Any]:
        return {} if self.window is None else {"latent": self.window.summary()}

    # ---- validation

    def evaluate(self, state: StepState, *, full: bool, objectives: bool) -> dict[str, Any]:
        watched = self.config.buttress.monitors
        latent = LatentMonitor(self.config.model.d_z) if watched else None
        ablation = AblationMonitor() if watched else None
        values: dict[str, Any] = dict(
            self.held_out.measure(self.model, latent, ablation, full=full, objectives=objectives)
        )
        return values | {"latent": latent, "ablation": ablation} if watched else values


def grids_of(dataset: files.Dataset) -> Grids:
    channels, *low = dataset.x.shape[1:]
    return Grids(channels, (low[0], low[1]), (dataset.y.shape[2], dataset.y.shape[3]), len(dataset.statics))


def _three(thresholds: np.ndarray) -> tuple[float, float, float]:
    extreme_z, tail_mm, extreme_mm = (float(one) for one in thresholds)
    return extreme_z, tail_mm, extreme_mm
