"""A sweep of a GAN of your own, with a rule of your own: a generator that draws few of the modes is stopped early.

    python examples/own_gan.py

The data are eight Gaussians on a circle. What collapse is stands in the spec, as a rule over what the trainer reports.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

import buttress
from buttress import Buttress, Metric, Report, Schedule, Section, World, load_checkpoint

MODES, SPREAD = 8, 0.05


class GANConfig(Section):
    lr_generator: float = 1e-3
    lr_discriminator: float = 1e-3
    width: int = 64
    epochs: int = 8
    steps: int = 150  # of an epoch
    buttress: Buttress = Buttress()


def net(inputs: int, outputs: int, width: int) -> nn.Module:
    hidden = [nn.Linear(inputs, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2)]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


def centres() -> Tensor:
    """[MODES, 2]"""
    angles = torch.arange(MODES) * (2 * torch.pi / MODES)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def sample(n: int) -> Tensor:
    """Real points [n, 2]."""
    return centres()[torch.randint(MODES, (n,))] + SPREAD * torch.randn(n, 2)


def modes_found(points: Tensor) -> float:
    """Modes that get at least a quarter of their share of the points [n, 2] within four standard deviations."""
    distance, nearest = torch.cdist(points, centres()).min(dim=1)
    counts = torch.bincount(nearest[distance < 4 * SPREAD], minlength=MODES)
    return float((counts >= len(points) / MODES / 4).sum())


def wasserstein(a: Tensor, b: Tensor) -> float:
    """Sliced Wasserstein-1 distance of two point sets [n, 2]: the mean over 32 directions."""
    angles = torch.arange(32) * (torch.pi / 32)
    directions = torch.stack([angles.cos(), angles.sin()])
    return float(((a @ directions).sort(dim=0).values - (b @ directions).sort(dim=0).values).abs().mean())


class OwnGAN:
    name = "own_gan"
    Config = GANConfig
    epochs_path = "epochs"
    # Neither network's loss says how good a GAN is: each depends on the other. A distance to real points does.
    metrics = {"val/wasserstein": Metric("min"), "val/modes": Metric("max", description="of 8")}

    def schedule(self, config: GANConfig) -> Schedule:
        return Schedule(epochs=config.epochs)

    def train(self, config: GANConfig, world: World, report: Report, resume: Path | None) -> None:
        models = [net(2, 2, config.width), net(2, 1, config.width)]
        generator, discriminator = (world.wrap(model) for model in models)
        for_g = torch.optim.Adam(generator.parameters(), lr=config.lr_generator, betas=(0.5, 0.9))
        for_d = torch.optim.Adam(discriminator.parameters(), lr=config.lr_discriminator, betas=(0.5, 0.9))
        parts, first = [*models, for_g, for_d], 0
        if resume is not None:
            state = load_checkpoint(resume, world.device)
            first = state["epoch"]
            for part, saved in zip(parts, state["parts"], strict=True):
                part.load_state_dict(saved)
        for epoch in range(first + 1, config.epochs + 1):
            for _ in range(config.steps):
                real, fake = sample(128).to(world.device), generator(torch.randn(128, 2, device=world.device))
                loss_d = softplus(-discriminator(real)).mean() + softplus(discriminator(fake.detach())).mean()
                for_d.zero_grad()
                loss_d.backward()
                for_d.step()
                loss_g = softplus(-discriminator(fake)).mean()
                for_g.zero_grad()
                loss_g.backward()
                for_g.step()
            with torch.no_grad():
                points = generator(torch.randn(1000, 2, device=world.device)).cpu()
            values: dict[str, Any] = {"train/loss_d": loss_d.detach(), "train/loss_g": loss_g.detach()}
            values |= {"val/wasserstein": wasserstein(points, sample(1000)), "val/modes": modes_found(points)}
            report(
                {"epoch": epoch, "step": epoch * config.steps, **values},
                checkpoint=lambda epoch=epoch: {"parts": [part.state_dict() for part in parts], "epoch": epoch},
            )


SPEC = {
    "trainable": "own_gan:OwnGAN",
    "search": {
        "lr_generator": {"loguniform": [1e-4, 1e-1]},
        "lr_discriminator": {"loguniform": [1e-4, 1e-1]},
    },
    "objectives": ["val/wasserstein"],
    "rules": {
        "mode_collapse": {
            "action": "kill",
            "signs": [{"metric": "val/modes", "below": 4}],
            "grace": {"epochs": 3},
            "patience": 2,
            "message": "the generator draws {val/modes:.0f} of 8 modes",
        }
    },
    "scheduler": {"kind": "asha", "first": 4, "factor": 2},
    "budget": {"trials": 10},
    "seed": 1,
}

if __name__ == "__main__":
    sweep = buttress.run(SPEC)
    print(sweep.table()[["trial", "outcome", "config.lr_generator", "config.lr_discriminator", "last.val/modes"]])
    best = sweep.best
    if best is not None:
        print(f"\nbest: trial {best.id} with {best.metrics['val/modes']:.0f} of {MODES} modes, {best.params}")
