"""A trainable of the tests whose latent code is dead at first; with `wakes` it comes alive after the third epoch."""

import time

import torch
from torch import nn

from buttress.training.checkpoints import load_checkpoint
from buttress.training.trainable import Buttress, Metric, Schedule, Section


class Config(Section):
    beta: float = 1.0
    wakes: bool = False
    epochs: int = 6
    pause: float = 0.02
    buttress: Buttress = Buttress()


class Waking:
    name, Config, epochs_path = "waking", Config, "epochs"
    metrics = {"val/score": Metric("max")}

    def schedule(self, config):
        return Schedule(epochs=config.epochs)

    def train(self, config, world, report, resume):
        model = nn.Linear(1, 1, bias=False)
        done = 0
        with torch.no_grad():
            model.weight.fill_(config.beta)
        if resume is not None:
            saved = load_checkpoint(resume)
            done = saved["epoch"]
            model.load_state_dict(saved["model"])
        for epoch in range(done, config.epochs):
            with torch.no_grad():
                model.weight.mul_(0.95)
            dead = config.beta > 1 and not (config.wakes and epoch >= 3)
            values = {"latent/kl_total": 1e-3 / config.beta if dead else 3.0}
            for part in (1, 2):
                time.sleep(config.pause)
                if part == 1:
                    report({"epoch": epoch, "step": 100 * (2 * epoch + part), **values})
            report(
                {"epoch": epoch + 1, "step": 200 * (epoch + 1), **values, "val/score": float(model.weight.detach())},
                checkpoint=lambda done=epoch + 1: {"epoch": done, "model": model.state_dict()},
            )
