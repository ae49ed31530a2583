"""The radio family as a trainable: maps in memory, the loop's task of two passes, its metrics and its monitors.

A step is one batch in two passes, as in the original: the autoencoder's, and from `disc_start` on the discriminator's
on the same batch. The run is a stream of images, round after round of the training set; the loop's epochs are pieces of
it of `buttress.epoch_steps` steps. Batches and noise are drawn by place in the stream: they do not depend on ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from buttress.errors import BadInput
from buttress.monitors import AblationMonitor
from buttress.trainables.radio import data as files
from buttress.trainables.radio import perceptual
from buttress.trainables.radio.average import Average
from buttress.trainables.radio.config import Config as RadioConfig
from buttress.trainables.radio.heldout import HeldOut, MapMonitor
from buttress.trainables.radio.loss import Autoencoding, Batch, Judging
from buttress.trainables.radio.model import Discriminator, RadioVae
from buttress.trainables.radio.optimizer import learning_rate, step_on_zero_gradients
from buttress.training.checkpoints import load_checkpoint, model_weights, restore
from buttress.training.loop import Pass, StepState, Task, fused_adam, run
from buttress.training.randomness import keyed_normal
from buttress.training.trainable import Metric, Report, Schedule
from buttress.training.world import World

_REC = ("model.lossconfig.perceptual_weight", "buttress.perceptual")
_NLL = (*_REC, "model.lossconfig.logvar_init", "buttress.learn_logvar")
_KL = ("model.lossconfig.kl_weight", "model.embed_dim", "model.ddconfig.ch_mult")
_GAN = tuple(f"model.lossconfig.disc_{name}" for name in ("start", "factor", "weight", "loss", "num_layers"))
_CRITIC = (*_GAN, "buttress.disc_lr_factor")


def _metrics() -> dict[str, Metric]:
    def logged(unit: str, weights: tuple[str, ...], text: str) -> Metric:
        return Metric("min", unit, weights, description=f"{text}; of training batches")

    image = "of the image decoded from the posterior's mean, on the scale -1 to 1, held-out maps"
    return {
        "val/l1": Metric("min", description=f"mean absolute error {image}"),
        "val/l2": Metric("min", description=f"mean squared error {image}"),
        "val/psnr": Metric("max", "dB", description="peak signal-to-noise ratio, mean over held-out maps"),
        "train/loss": logged("", ("model.lossconfig", *_REC, "buttress.learn_logvar"), "the autoencoder's whole loss"),
        "train/recon": logged("", _REC, "|x - y| + (x - y)^2 + perceptual term, mean over pixels"),
        "train/nll": logged("", _NLL, "reconstruction, summed over pixels"),
        "train/kl": logged("nat", _KL, "KL to N(0, 1), summed over the latent map"),
        "train/g_loss": logged("", _CRITIC, "minus the discriminator's mean logit of reconstructions"),
        "train/disc_loss": logged("", _CRITIC, "the discriminator's loss without disc_factor; 1 is undecided (hinge)"),
    }


class Radio:
    """VAE-GAN of radio maps, the first stage of a latent diffusion model (`trainable: radio`)."""

    name: ClassVar[str] = "radio"
    Config: ClassVar[type[RadioConfig]] = RadioConfig
    metrics: ClassVar[dict[str, Metric]] = _metrics()
    original_names: ClassVar[dict[str, str]] = {  # of the original's TensorBoard; its total_loss adds up both passes
        "train/lr": "Learning_Rate", "train/recon": "rec_loss", "train/kl": "kl_loss", "train/d_weight": "d_weight",
        "train/disc_factor": "disc_factor", "train/g_loss": "g_loss", "train/disc_loss": "disc_loss",
        "train/logits_real": "logits_real", "train/logits_fake": "logits_fake",
    }  # fmt: skip
    conditional: ClassVar[bool] = False
    epochs_path: ClassVar[str] = "buttress.epochs"

    def schedule(self, config: RadioConfig) -> Schedule:
        return config.schedule()

    def train(self, config: RadioConfig, world: World, report: Report, resume: Path | None) -> None:
        run(
            RadioTask(config, world),
            self.schedule(config),
            world,
            report,
            resume,
            report_every=config.buttress.report_every,
            checkpoint_every=config.buttress.checkpoint_every,
            max_steps=config.trainer.train_num_steps,
            amp=config.trainer.amp and world.device.type == "cuda",
        )

    def evaluate(
        self, config: RadioConfig, checkpoint: Path, world: World, split: str = "val"
    ) -> tuple[dict[str, float], dict[str, Path]]:
        """The scores of a checkpoint (of its average of weights, where it has one) on `split` (val or test), and a
        picture of some maps. For val they are what training reported at that epoch."""
        from buttress.trainables.radio.picture import draw

        task = RadioTask(config, world, split=split)
        restore(task.autoencoding, checkpoint, "vae", world.device)
        if task.average is not None:
            held = load_checkpoint(checkpoint, world.device)["task"]
            if "average" not in held:
                raise BadInput("the checkpoint is of another config: it holds no average", where=checkpoint)
            task.load_state_dict(held)
        with torch.no_grad():
            values = task.held_out.measure(task.judged)
            if world.rank:
                return values, {}
            return values, {"maps": draw(task.held_out, task.judged, split, world.folder / f"maps_{split}.png")}

    def weights(self, checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The VAE's own state dict in a checkpoint of the loop, averaged where the run kept an average: `model.pt`."""
        average: dict[str, torch.Tensor] = checkpoint["task"].get("average", {})
        return average or model_weights(checkpoint, "vae")

    def check_data(self, path: Path, config: RadioConfig) -> list[tuple[str, str]]:
        return files.check(path, config)


class RadioTask(Task):
    """What the loop needs to train one config."""

    def __init__(self, config: RadioConfig, world: World, *, split: str = "val") -> None:
        self.config, self.world = config, world
        settings, loss = config.buttress, config.model.lossconfig
        self.dtype = torch.float64 if settings.dtype == "float64" else torch.float32
        dataset = files.load(config.data, world.cache)
        if problem := config.model.refuses(*dataset.size):
            raise BadInput(problem, key="model")
        if config.data.batch_size < world.size:
            raise BadInput("is less than an image per rank", key="data.batch_size", value=config.data.batch_size,
                           accepted=f"{world.size} or more")  # fmt: skip
        self.dataset, self.training = dataset, dataset.rows("train")
        self.steps_per_epoch = settings.epoch_steps
        factor = config.model.ddconfig.downsampling
        self.shape = (config.model.embed_dim, *(side // factor for side in dataset.size))

        self.model = RadioVae(config.model)
        critic = Discriminator(loss.disc_num_layers, world) if config.adversarial else None
        if critic is not None:
            critic.to(world.device, self.dtype)
        self.autoencoding = Autoencoding(
            self.model, loss, world, perceptual.build(loss, settings), critic, learn_logvar=settings.learn_logvar
        ).to(self.dtype)
        self.passes = [
            Pass("vae", world.wrap(self.autoencoding), self._optimizer(), lr=learning_rate(config), clip=settings.clip)
        ]
        if critic is not None and settings.disc_lr_factor:
            self.passes.append(self._discriminating(critic))
        elif critic is not None:  # nobody trains it: its first weights stay what they are
            critic.requires_grad_(False)
        self.average: Average[RadioVae] | None = None
        if settings.ema:
            self.average = Average(self.model, settings.ema_decay, settings.ema_every, settings.ema_warmup)
        self.window = self._monitor() if settings.monitors else None
        self.held_out = HeldOut(dataset, split, config, world, self.dtype)

    def _optimizer(self) -> torch.optim.Optimizer:
        settings = self.config.buttress
        groups: list[dict[str, Any]] = [{"params": list(self.model.parameters())}]
        if settings.learn_logvar:
            own = {"params": [self.autoencoding.logvar], "lr": settings.logvar_lr, "weight_decay": 0.0}
            groups.append(own)
        return fused_adam(groups, self.config.trainer.lr, weight_decay=settings.weight_decay, betas=settings.betas)

    def _discriminating(self, critic: Discriminator) -> Pass:
        settings, loss = self.config.buttress, self.config.model.lossconfig
        judging = Judging(critic, self.model, loss, self.world)
        rate = self.config.trainer.lr * settings.disc_lr_factor
        return Pass(
            "discriminator",
            self.world.wrap(judging),
            fused_adam(judging.parameters(), rate, weight_decay=settings.weight_decay, betas=settings.betas),
            lr=learning_rate(self.config),
            clip=settings.clip,
            starts_at_step=loss.disc_start,
        )

    def _monitor(self) -> MapMonitor:
        return MapMonitor(self.shape[0], self.shape[1] * self.shape[2])

    @property
    def judged(self) -> RadioVae:
        """The network that is evaluated: the average, where one is kept."""
        return self.model if self.average is None else self.average.module

    # ---- training

    def scheduled(self, progress: float, step: int) -> dict[str, float]:
        loss = self.config.model.lossconfig
        return {"disc_factor": loss.disc_factor if step >= loss.disc_start else 0.0}

    def batches(self, epoch: int) -> Iterator[Batch]:
        size, world = self.config.data.batch_size, self.world
        own = world.share(size)
        width = int(np.prod(self.shape))
        order, of_round = np.empty(0, np.int64), -1
        for step in range(epoch * self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch):
            rows = np.empty(size, np.int64)
            for at, place in enumerate(range(step * size, (step + 1) * size)):
                round_, within = divmod(place, len(self.training))
                if round_ != of_round:
                    of_round = round_
                    order = np.random.default_rng([world.seed, round_]).permutation(self.training)
                rows[at] = order[within]
            places = torch.arange(step * size, (step + 1) * size)[own]
            noise = keyed_normal(world.seed, places, width, dtype=self.dtype).view(-1, *self.shape)
            yield Batch(self.held_out.images(rows[own]), noise.to(world.device), size)

    def observe(self, logs: Mapping[str, torch.Tensor], state: StepState) -> None:
        if self.window is not None and state.running == "vae":
            self.window.update(logs["mu"], logs["raw_logvar"])

    def stepped(self, state: StepState) -> None:
        for one in self.passes:
            if state.step == one.starts_at_step and one.lr is not None:
                step_on_zero_gradients(one.optimizer, one.lr, state.step)
        if self.average is not None:
            self.average.update(state.step)

    def health(self) -> dict[str, Any]:
        return {} if self.window is None else {"latent": self.window.summary()}

    # ---- validation

    def evaluate(self, state: StepState, *, full: bool, objectives: bool) -> dict[str, Any]:
        watched = self.config.buttress.monitors
        latent, ablation = (self._monitor(), AblationMonitor()) if watched else (None, None)
        values: dict[str, Any] = dict(
            self.held_out.measure(self.judged, latent, ablation, full=full, objectives=objectives)
        )
        return values | {"latent": latent, "ablation": ablation} if watched else values

    def state_dict(self) -> dict[str, Any]:
        return {} if self.average is None else {"average": self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.average is not None:
            self.average.load_state_dict(state["average"])
