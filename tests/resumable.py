"""A trainer whose reports are a pure function of its parameters, and which resumes: for tests that kill the driver."""

import os
import signal
import time
from pathlib import Path

import torch
from torch import nn

from buttress.training.checkpoints import load_checkpoint
from buttress.training.trainable import Buttress, Metric, Schedule, Section


class Config(Section):
    beta: float = 1.0
    epochs: int = 6
    pause: float = 0.05
    buttress: Buttress = Buttress()


class Deadly:
    """Kills the driver when a checkpoint that holds it is written, and gives Ray time to take this process down."""

    def __reduce__(self):
        driver = Path("kill-when-saving")
        if driver.exists():
            os.kill(int(driver.read_text()), signal.SIGKILL)
            driver.unlink()
            time.sleep(60)
        return (str, ())


class Resumable:
    name, Config, epochs_path = "resumable", Config, "epochs"
    metrics = {"val/score": Metric("max")}

    def schedule(self, config):
        return Schedule(epochs=config.epochs)

    def train(self, config, world, report, resume):
        wrapped = world.wrap(nn.Linear(1, 1, bias=False))
        model = world.unwrap(wrapped)
        done = 0
        with torch.no_grad():
            model.weight.fill_(config.beta)
            if resume is not None:
                saved = load_checkpoint(resume)
                done = saved["epoch"]
                model.load_state_dict(saved["model"])
        for epoch in range(done, config.epochs):
            for part in (1, 2):
                with torch.no_grad():
                    model.weight.mul_(0.95)
                time.sleep(config.pause)
                kl = 1.0 / config.beta
                values = {"epoch": epoch, "step": 100 * (2 * epoch + part), "latent/kl_total": kl}
                if part == 1:
                    report(values)
            score = float(model.weight.detach()) / (1 + config.beta**2)
            report(
                {**values, "epoch": epoch + 1, "val/score": score},
                checkpoint=lambda done=epoch + 1: {
                    "epoch": done,
                    "model": model.state_dict(),
                    **({"deadly": Deadly()} if done == 4 and Path("kill-when-saving").exists() else {}),
                },
            )
