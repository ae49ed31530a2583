"""A small trainer of the tests that goes on from its checkpoints bit for bit: an optimizer with momentum, and noise."""

import time

import torch
from torch import nn

from buttress.training.checkpoints import load_checkpoint
from buttress.training.trainable import Buttress, Metric, Schedule, Section


class Config(Section):
    lr: float = 0.05
    epochs: int = 5
    buttress: Buttress = Buttress()


class Pausable:
    name, Config, epochs_path = "pausable", Config, "epochs"
    metrics = {"val/loss": Metric("min")}

    def schedule(self, config):
        return Schedule(epochs=config.epochs)

    def train(self, config, world, report, resume):
        model = nn.Linear(4, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
        done = 0
        if resume is not None:
            saved = load_checkpoint(resume)
            done = saved["epoch"]
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            torch.set_rng_state(saved["noise"])
        for epoch in range(done, config.epochs):
            for _ in range(10):
                x = torch.randn(16, 4)
                loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            time.sleep(0.1)
            report(
                {"epoch": epoch + 1, "step": 10 * (epoch + 1), "val/loss": loss.detach()},
                checkpoint=lambda done=epoch + 1: {
                    "epoch": done,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "noise": torch.get_rng_state(),
                },
            )
