"""The toy VAE with steps that take a while: for tests that take its node away in mid-epoch. Needs toy.py beside it."""

from __future__ import annotations

import time
from typing import Any

import toy


class SlowTask(toy.ToyTask):
    def observe(self, logs: Any, state: Any) -> None:
        super().observe(logs, state)
        time.sleep(0.15)


toy.ToyTask = SlowTask  # type: ignore[misc]


class SlowToy(toy.Toy):
    name = "slow_toy"
