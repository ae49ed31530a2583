"""A trainer that leaves its process in every state it can: `roles.json` in the working folder says who does what.

A trial without a role is a probe: the toy VAE with dropout, batch norm and its own noise. Each report also holds what
the generators draw next and a fingerprint of the whole training state (weights, optimiser, generators of every rank),
so that two probes report the same only if they are the same in every bit.
"""

import dataclasses
import hashlib
import json
import os
import random
from pathlib import Path

import numpy as np
import torch
from toy import Config, Constant, Toy

from buttress.training.randomness import seed_rng


def fingerprint(state):
    """A number that a float holds exactly, from every bit of a checkpoint."""
    digest = hashlib.sha256()

    def add(value):
        if isinstance(value, torch.Tensor):
            digest.update(str((value.dtype, value.shape)).encode() + value.detach().cpu().numpy().tobytes())
        elif isinstance(value, dict):
            for key, item in value.items():
                digest.update(str(key).encode())
                add(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        else:
            digest.update(repr(value).encode())

    add(state)
    return float(int.from_bytes(digest.digest()[:6]))


class Fingerprinting:
    """The report, with more in it."""

    def __init__(self, report):
        self.report = report

    def __call__(self, metrics, *, checkpoint=None, media=None):
        more = {"draws/torch": torch.rand(()), "draws/numpy": np.random.rand(), "draws/python": random.random()}
        if checkpoint is not None:
            state = checkpoint()
            more["state/fingerprint"] = fingerprint(state)
            self.report({**metrics, **more}, checkpoint=lambda: state)
        else:
            self.report({**metrics, **more})


def spoil():
    """Everything that a trial may do to its process and that could reach the next one."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(False)
    torch.autograd.set_detect_anomaly(True)
    torch.backends.cudnn.enabled = False
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.allow_tf32 = True
    seed_rng(1)
    os.chdir("/")


class Leaky(Toy):
    name = "leaky"

    def train(self, config, world, report, resume):
        role = json.loads(Path("roles.json").read_text()).get(world.folder.name, "probe")
        train, changes = config.train, {}
        if role == "raises":
            changes = {"fail_at": 6, "fail_rank": world.size - 1}
        elif role == "diverges":
            changes = {"nan_at": 2, "fail_rank": world.size - 1}
        elif role == "is stopped by a rule":
            changes = {"train": train.model_copy(update={"beta": Constant(end=100.0), "epochs": 50})}
        elif role == "has another size and seed":
            changes = {"train": train.model_copy(update={"double": True, "batch_size": 8, "epochs": 2, "amp": True})}
            world = dataclasses.replace(world, seed=99)
            seed_rng(99)
        elif role == "spoils its process":
            spoil()
            torch.set_grad_enabled(True)
        try:
            super().train(config.model_copy(update=changes), world, Fingerprinting(report), resume)
        finally:
            if role == "spoils its process":
                spoil()


__all__ = ["Config", "Leaky"]
