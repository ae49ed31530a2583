"""A trainer of your own for Buttress: a small VAE of made-up data. Replace data and model, keep the rest.

    buttress run my_vae.yaml
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from buttress import Buttress, LatentMonitor, Metric, Report, Schedule, Section, World, load_checkpoint

FEATURES, NOISE = 8, 0.1  # of the data: numbers a sample, standard deviation of what no code can explain


class VAEConfig(Section):
    """What may be fixed or searched. Unknown keys are refused, so that a typing error does not cost a sweep."""

    beta: float = 1.0
    lr: float = 3e-3
    latent: int = 4
    epochs: int = 20
    batch_size: int = 64
    buttress: Buttress = Buttress()


class VAE(nn.Module):
    def __init__(self, latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, 32), nn.ReLU(), nn.Linear(32, FEATURES))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [batch, FEATURES] -> negative log-likelihood, KL [batch], in nats; mu, logvar [batch, latent]."""
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        z = mu + torch.randn_like(mu) * (0.5 * logvar).exp()
        nll = 0.5 * ((self.decoder(z) - x) / NOISE).square().sum(1)
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1)
        return nll, kl, mu, logvar


class MyVAE:
    name = "my_vae"
    Config = VAEConfig
    epochs_path = "epochs"
    # What a sweep may optimise. It must not change when a searched weight changes: the loss does (beta is in it), and
    # beta = 0 would win. The ELBO at beta = 1 does not; a collapsed code and an autoencoder are both bad at it.
    metrics = {
        "val/elbo": Metric("min", unit="nats", description="negative ELBO at beta = 1"),
        "train/loss": Metric("min", weighted_by=("beta",)),  # refused as objective where beta is searched
    }

    def schedule(self, config: VAEConfig) -> Schedule:
        return Schedule(epochs=config.epochs)

    def train(self, config: VAEConfig, world: World, report: Report, resume: Path | None) -> None:
        train, val = (x.to(world.device) for x in data())
        model = VAE(config.latent).to(world.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
        first, step = 0, 0
        if resume is not None:  # after an interruption: the newest checkpoint of this trial
            state = load_checkpoint(resume, world.device)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            first, step = state["epoch"], state["step"]
        wrapped = world.wrap(model)  # DDP, when a trial has several workers
        monitor = LatentMonitor(dims=config.latent)  # what the collapse rules look at

        def checkpoint() -> dict[str, Any]:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            return {**state, "epoch": epoch, "step": step}

        for epoch in range(first + 1, config.epochs + 1):
            shuffled = torch.randperm(len(train), generator=torch.Generator().manual_seed(world.seed + epoch))
            for batch in shuffled.split(config.batch_size):
                nll, kl, mu, logvar = wrapped(train[batch[world.rank :: world.size]])
                loss = (nll + config.beta * kl).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                monitor.update(mu.detach(), logvar.detach())
                step += 1
            with torch.no_grad():
                nll, kl, *_ = model(val)
            values = {"train/loss": loss.detach(), "val/elbo": (nll + kl).mean(), "latent": monitor.summary()}
            report({"epoch": epoch, "step": step, **values}, checkpoint=checkpoint)


def data() -> tuple[Tensor, Tensor]:
    """Made-up samples of two hidden causes, for training [2048, FEATURES] and validation [512, FEATURES]."""
    random = torch.Generator().manual_seed(0)
    causes = torch.randn(2560, 2, generator=random)
    x = causes @ torch.randn(2, FEATURES, generator=random) + NOISE * torch.randn(2560, FEATURES, generator=random)
    return x[:2048], x[2048:]
