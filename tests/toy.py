"""Two small trainables of the tests: a VAE, and a generator with a discriminator in alternating passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from buttress.monitors import LatentMonitor, Mean
from buttress.training.loop import EarlyStopping, ModuleReference, Pass, StepState, Task, fused_adam, run
from buttress.training.losses import gaussian_kl, reparameterize
from buttress.training.schedules import BetaSchedule, Constant, CosineLR, LearningRate, Linear, Plateau
from buttress.training.trainable import Buttress, Metric, Report, Schedule, Section
from buttress.training.world import World

ROWS, FEATURES, LATENT = 64, 4, 2


class Train(Section):
    epochs: int = 3
    batch_size: int = 16  # of all ranks together
    lr: float = 1e-2
    beta: BetaSchedule = Linear(end=0.1, length=1)
    dropout: float = 0.0
    clip: float | None = None
    double: bool = False
    keyed_noise: bool = False
    batchnorm: bool = False
    amp: bool = False
    accumulate: int = 1
    cosine: bool = False
    plateau: bool = False
    patience: int | None = None
    max_steps: int | None = None


class Config(Section):
    train: Train = Train()
    buttress: Buttress = Buttress(report_every=2)
    fail_at: int | None = Field(None, description="raise at this step")
    fail_rank: int = 0
    nan_at: int | None = Field(None, description="the loss is NaN from this step on, on `fail_rank`")


def table(world: World, dtype: torch.dtype) -> torch.Tensor:
    data = torch.randn(ROWS, LATENT, generator=torch.Generator().manual_seed(1)) @ torch.randn(
        LATENT, FEATURES, generator=torch.Generator().manual_seed(2)
    )
    return data.to(world.device, dtype)


class Vae(nn.Module):
    def __init__(self, config: Config, world: World) -> None:
        super().__init__()
        norm = [nn.BatchNorm1d(8)] if config.train.batchnorm else []
        self.encoder = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), *norm, nn.Linear(8, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, 8), nn.Tanh(), nn.Dropout(config.train.dropout), nn.Linear(8, 4))
        self.config, self.world = config, world

    def forward(self, batch: dict[str, torch.Tensor], state: StepState) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        x = batch["x"]
        config = self.config
        noise = self.world.noise(batch["index"], LATENT, state.step, x.dtype) if config.train.keyed_noise else None
        with state.autocast():
            mu, logvar = self.encoder(x).chunk(2, dim=1)
            decoded = self.decoder(reparameterize(mu, logvar, noise))
        recon = (decoded.to(x.dtype) - x).pow(2).sum(1).mean()
        kl = gaussian_kl(mu, logvar).sum(1).mean()
        loss = recon + state.beta * kl
        if config.fail_at == state.step and self.world.rank == config.fail_rank:
            raise ArithmeticError("the toy fails")
        if config.nan_at is not None and state.step >= config.nan_at and self.world.rank == config.fail_rank:
            loss = loss * float("nan")
        return loss, {"recon": recon.detach(), "mu": mu.detach(), "logvar": logvar.detach()}


class ToyTask(Task):
    def __init__(self, config: Config, world: World) -> None:
        train = config.train
        self.config, self.world = config, world
        self.data = table(world, torch.float64 if train.double else torch.float32)
        self.model = Vae(config, world).to(self.data.dtype)
        lr: LearningRate | None = CosineLR(train.epochs) if train.cosine else None
        self.passes = [
            Pass(
                "vae",
                world.wrap(self.model),
                fused_adam(self.model.parameters(), train.lr),
                lr=lr,
                plateau=Plateau("train/loss", factor=0.5, patience=0, threshold=0.5) if train.plateau else None,
                clip=train.clip,
            )
        ]
        self.steps_per_epoch = ROWS // train.batch_size
        self.latent = LatentMonitor(LATENT)

    def scheduled(self, progress: float, step: int) -> dict[str, float]:
        return {"beta": self.config.train.beta.value(progress)}

    def batches(self, epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(100 * self.world.seed + epoch))
        for batch in order.split(self.config.train.batch_size // self.config.train.accumulate):
            mine = batch[self.world.rank :: self.world.size].to(self.world.device)
            yield {"x": self.data[mine], "index": mine}

    def observe(self, logs: Any, state: StepState) -> None:
        self.latent.update(logs["mu"], logs["logvar"])

    def health(self) -> dict[str, Any]:
        return {"latent": self.latent.summary()}

    def evaluate(self, state: StepState, *, full: bool, objectives: bool) -> dict[str, Any]:
        x = self.data[self.world.rank :: self.world.size]
        monitor = LatentMonitor(LATENT)
        mu, logvar = self.model.encoder(x).chunk(2, dim=1)
        monitor.update(mu, logvar)
        values: dict[str, Any] = {"latent": monitor, "val/full": float(full)}
        if objectives:
            index = torch.arange(ROWS, device=x.device)[self.world.rank :: self.world.size]
            noise = self.world.noise(index, LATENT, 1, x.dtype) if self.config.train.keyed_noise else None
            values["val/recon"] = Mean.of((self.model.decoder(mu) - x).pow(2).sum(1))
            values["val/sampled"] = Mean.of((self.model.decoder(reparameterize(mu, logvar, noise)) - x).pow(2).sum(1))
        return values


class Toy:
    name: ClassVar[str] = "toy"
    Config: ClassVar[type[Config]] = Config
    metrics: ClassVar[dict[str, Metric]] = {"val/recon": Metric("min"), "val/sampled": Metric("min")}

    def schedule(self, config: Config) -> Schedule:
        return Schedule(config.train.epochs, full_at_epoch=config.train.beta.full_at)

    def train(self, config: Config, world: World, report: Report, resume: Path | None) -> None:
        train, settings = config.train, config.buttress
        run(
            ToyTask(config, world),
            self.schedule(config),
            world,
            report,
            resume,
            report_every=settings.report_every,
            checkpoint_every=settings.checkpoint_every,
            early=EarlyStopping("val/recon", train.patience, min_delta=1e9) if train.patience else None,
            amp=train.amp,
            accumulate=train.accumulate,
            max_steps=train.max_steps,
        )


class Generator(nn.Module):
    """Reconstruction plus a critic's word; the weight of that word comes from two partial backward passes."""

    def __init__(self, net: nn.Module, critic: nn.Module) -> None:
        super().__init__()
        self.net, self.critic = net, ModuleReference(critic)

    def forward(self, batch: torch.Tensor, state: StepState) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        made = self.net(batch)
        recon, word = (made - batch).pow(2).mean(), -self.critic(made).mean()
        last = self.net[-1].weight  # type: ignore[index]
        (toward,), (against,) = (torch.autograd.grad(part, last, retain_graph=True) for part in (recon, word))
        weight = (toward.norm() / (against.norm() + 1e-4)).clamp(max=1e4).detach()
        return recon + state.numbers["adversarial"] * weight * word, {"recon": recon.detach()}


class Discriminator(nn.Module):
    def __init__(self, critic: nn.Module, net: nn.Module) -> None:
        super().__init__()
        self.critic, self.net = critic, ModuleReference(net)

    def forward(self, batch: torch.Tensor, state: StepState) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with torch.no_grad():
            made = self.net(batch)
        real, fake = self.critic(batch), self.critic(made)
        loss = (nn.functional.relu(1 - real) + nn.functional.relu(1 + fake)).mean() / 2
        return loss, {"logits_real": real.detach().mean()}


class GanTask(Task):
    """Steps, not epochs; the discriminator's pass begins at `starts`."""

    def __init__(self, world: World, starts: int = 4, double: bool = True, wrap: bool = True) -> None:
        self.world = world
        self.data = table(world, torch.float64 if double else torch.float32)
        net = nn.Sequential(nn.Linear(FEATURES, 3), nn.Tanh(), nn.Linear(3, FEATURES)).to(self.data.dtype)
        critic = nn.Sequential(nn.Linear(FEATURES, 6), nn.LeakyReLU(0.2), nn.Linear(6, 1)).to(self.data.dtype)
        self.net, self.critic, self.starts = net, critic, starts
        first, second = world.wrap(Generator(net, critic)), world.wrap(Discriminator(critic, net))
        self.passes = [
            Pass("generator", first, fused_adam(net.parameters(), 1e-2)),
            Pass("discriminator", second, fused_adam(critic.parameters(), 1e-3), starts_at_step=starts),
        ]
        self.steps_per_epoch = 4

    def scheduled(self, progress: float, step: int) -> dict[str, float]:
        return {"adversarial": 0.5 if step >= self.starts else 0.0}

    def batches(self, epoch: int) -> Iterator[torch.Tensor]:
        for start in range(0, ROWS, ROWS // self.steps_per_epoch):
            yield self.data[start : start + 16][self.world.rank :: self.world.size]

    def evaluate(self, state: StepState, *, full: bool, objectives: bool) -> dict[str, Any]:
        x = self.data[self.world.rank :: self.world.size]
        return {"val/recon": Mean.of((self.net(x) - x).pow(2).mean(1))} if objectives else {}


class Collected:
    """A sink that keeps what it is sent."""

    stop = False

    def __init__(self) -> None:
        self.reports: list[Any] = []

    def send(self, reported: Any) -> None:
        self.reports.append(reported)


__all__ = ["Collected", "Config", "Constant", "GanTask", "Toy", "ToyTask"]
