"""A trainer that fails on command: `faults.json` in the sweep's working folder says which trial fails how.

Every fault but the ones ending in `always` happens in the trial's first attempt only. Run from a folder of its own, so
that the workers of a slot find it there as the module `faulty`.
"""

import ctypes
import json
import os
import resource
import sys
import time
from pathlib import Path

import torch
from torch import nn

from buttress.training.checkpoints import load_checkpoint
from buttress.training.trainable import Buttress, Metric, Schedule, Section


class Config(Section):
    epochs: int = 4
    value: float = 0.5
    pause: float = 0.0
    buttress: Buttress = Buttress()

class Faulty:
    name, Config, epochs_path = "faulty", Config, "epochs"
    metrics = {"val/score": Metric("max")}

    def schedule(self, config):
        return Schedule(epochs=config.epochs)

    def train(self, config, world, report, resume):
        fault = json.loads(Path("faults.json").read_text()).get(world.folder.name, "")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        attempts = world.folder / f"attempts-{world.rank}"
        attempts.write_text((attempts.read_text() if attempts.exists() else "") + "x")
        first = len(attempts.read_text()) == 1
        model = world.wrap(nn.Linear(4, 1).to(world.device))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        done = 0
        if resume is not None:
            saved = load_checkpoint(resume)
            done = saved["epoch"]
            world.unwrap(model).load_state_dict(saved["model"])
        for epoch in range(done, config.epochs):
            for step in range(5):
                if epoch == 2 and step == 2 and (first or fault.endswith("always")):
                    self.fail(fault.removesuffix(" always"), world)
                loss = model(torch.randn(8, 4, device=world.device)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            time.sleep(config.pause)
            spoilt = fault == "nan on one rank" and epoch >= 2 and world.rank == world.size - 1
            report(
                {
                    "epoch": epoch + 1,
                    "step": 5 * (epoch + 1),
                    "val/score": config.value * (1 - 0.5 ** (epoch + 1)),
                    "train/loss": float("nan") if spoilt else loss.detach(),
                },
                checkpoint=lambda done=epoch + 1: {
                    "epoch": done,
                    "model": world.unwrap(model).state_dict(),
                    "ballast": torch.zeros(1 << 16),
                },
            )

    def fail(self, fault, world):
        last = world.rank == world.size - 1
        if fault == "raise" or (fault == "raise on one rank" and last):
            raise ValueError(f"a fault on purpose on rank {world.rank}")
        if fault == "hang" and last:
            time.sleep(600)
        if fault == "kill" and last:
            os.kill(os.getpid(), 9)
        if fault == "out of memory":
            torch.empty(1 << 50)
        if fault == "disk full":
            time.sleep(1)  # the checkpoints so far are on the disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, resource.RLIM_INFINITY))
        if fault == "slow":
            time.sleep(20)
        if fault == "exit":
            sys.exit(3)
        if fault == "interrupt":
            raise KeyboardInterrupt
        if fault == "segfault" and last:
            ctypes.string_at(0)
        if fault == "spin in C":
            began = time.monotonic()
            while time.monotonic() - began < 25:
                sum(range(10**8))
