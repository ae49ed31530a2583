"""A sweep of a VAE of your own, from Python: a large beta collapses it, and the sweep says from which value on.

    python examples/own_vae.py

Workers import the trainer by its module's name, so it stands in a file (here: this one) and not in a notebook's cell.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import buttress
from buttress import Buttress, LatentMonitor, Metric, Report, Schedule, Section, World, load_checkpoint

NOISE = 0.3  # standard deviation of what no code can explain


class VAEConfig(Section):
    beta: float = 1.0
    lr: float = 3e-3
    epochs: int = 12
    buttress: Buttress = Buttress()


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [batch, 8] -> negative log-likelihood and KL in nats, each the mean of the batch; mu, logvar [batch, 4]."""
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        z = mu + torch.randn_like(mu) * (0.5 * logvar).exp()
        nll = 0.5 * ((self.decoder(z) - x) / NOISE).square().sum(1).mean()
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1).mean()
        return nll, kl, mu, logvar


class OwnVAE:
    name = "own_vae"
    Config = VAEConfig
    epochs_path = "epochs"
    # The loss has beta in it: a sweep over beta needs a measure that has not. This one is the loss at beta = 1.
    metrics = {
        "val/elbo": Metric("min", unit="nats", description="negative ELBO at beta = 1"),
        "train/loss": Metric("min", weighted_by=("beta",)),
    }

    def schedule(self, config: VAEConfig) -> Schedule:
        return Schedule(epochs=config.epochs)

    def train(self, config: VAEConfig, world: World, report: Report, resume: Path | None) -> None:
        random = torch.Generator().manual_seed(0)
        x = torch.randn(2560, 2, generator=random) @ torch.randn(2, 8, generator=random)  # two hidden causes
        x = (x + NOISE * torch.randn(2560, 8, generator=random)).to(world.device)
        train, val = x[:2048], x[2048:]
        model = VAE().to(world.device)
        wrapped = world.wrap(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
        monitor = LatentMonitor(dims=4)
        first = 0
        if resume is not None:
            state = load_checkpoint(resume, world.device)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            first = state["epoch"]

        def checkpoint() -> dict[str, Any]:
            return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}

        for epoch in range(first + 1, config.epochs + 1):
            for batch in train[world.rank :: world.size].split(64 // world.size):
                nll, kl, mu, logvar = wrapped(batch)
                loss = nll + config.beta * kl
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                monitor.update(mu.detach(), logvar.detach())
            with torch.no_grad():
                nll, kl, *_ = model(val)
            values = {"train/loss": loss.detach(), "val/elbo": nll + kl, "latent": monitor.summary()}
            report({"epoch": epoch, "step": 32 * epoch, **values}, checkpoint=checkpoint)


SPEC = {
    "trainable": "own_vae:OwnVAE",
    "search": {"beta": {"loguniform": [0.1, 1000]}, "lr": {"loguniform": [1e-3, 1e-2]}},
    "objectives": ["val/elbo"],
    "scheduler": {"kind": "asha", "first": 4, "factor": 3},
    "budget": {"trials": 10},
    "seed": 1,
}

if __name__ == "__main__":
    sweep = buttress.run(SPEC)
    print(sweep.table()[["trial", "outcome", "margin", "config.beta", "metric.val/elbo", "last.latent/kl_total"]])
    for trial in sweep.trials:
        if trial.outcome == "collapsed":
            print("\n", trial.explain(), sep="")
            break
    if sweep.best is not None:
        print(f"\nbest: beta {sweep.best.params['beta']:.3g}, ELBO -{sweep.best.metrics['val/elbo']:.3g} nats")
