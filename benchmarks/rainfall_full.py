"""Real optimiser steps of the full-size rainfall network: memory, seconds per step, gradients, one report to the rules.

    python -m benchmarks.rainfall_full                                      # 152.9 M parameters, 16 days of 156 x 132
    python -m benchmarks.rainfall_full --decoder transposed --inject all --batch 2 --steps 2

The full profile's fixed values and the original's sizes; only days, batch and scored days are fewer. Trains one epoch
cut to `--steps` steps, evaluates, and gives the report to the family's rules. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from buttress.rules import RuleEngine, RuleSet
from buttress.spec.spec import SweepSpec
from buttress.trainables.rainfall.config import Config
from buttress.trainables.rainfall.train import Rainfall, RainfallTask
from buttress.training.loop import run
from buttress.training.registry import rules_file
from buttress.training.reporting import Reporter
from buttress.training.trainable import Reported, TrialStopped
from buttress.training.world import World

ROOT = Path(__file__).parents[1]


class First:
    """Keeps the reports and stops the trial after its first epoch."""

    def __init__(self) -> None:
        self.reports: list[Reported] = []
        self.stop = False

    def send(self, reported: Reported) -> None:
        self.reports.append(reported)
        self.stop = reported.epoch >= 1


def full_config(model: dict[str, Any], batch: int, seed: int = 42) -> Config:
    """The full profile with the original's sizes, on a few days."""
    spec = SweepSpec.load(ROOT / "search_spaces" / "rainfall.yaml", profile="full")
    groups: dict[str, dict[str, Any]] = {"data": {"size": "sample"}, "model": model}
    for path, value in spec.fixed.items():
        group, _, name = path.partition(".")
        groups.setdefault(group, {})[name] = value
    groups["train"]["batch_size"] = batch
    groups["buttress"] = {"eval_days": 2, "eval_batch": 2, "report_every": 1, "seed": seed}
    return Config.model_validate(groups)


def measure(config: Config, steps: int, threads: int = 1) -> dict[str, Any]:
    """Train `steps` steps of one epoch and evaluate; what happened as plain numbers."""
    family, sink, times = Rainfall(), First(), [0.0]
    alive: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        world = World.single(Path(folder), seed=config.buttress.seed, threads=threads)
        schedule = family.schedule(config)
        task = RainfallTask(config, schedule, world)
        for name, parameter in task.model.named_parameters():

            def note(tensor: torch.Tensor, name: str = name) -> None:
                if tensor.grad is not None and bool((tensor.grad != 0).any()):
                    alive.add(name)

            parameter.register_post_accumulate_grad_hook(note)
        whole = task.batches

        def timed(epoch: int) -> Any:
            for batch in whole(epoch):
                times.append(time.monotonic())
                yield batch

        task.batches = timed  # type: ignore[method-assign]
        task.steps_per_epoch = min(steps, task.steps_per_epoch)
        try:
            with Reporter(world, schedule, sink) as report:
                run(task, schedule, world, report, report_every=1, checkpoint_every=10_000)
        except TrialStopped:
            pass
        parameters = dict(task.model.named_parameters())
    path = rules_file("rainfall")
    assert path is not None
    engine = RuleEngine(RuleSet.load(path), budget_epochs=config.train.epochs)
    last = next(one for one in sink.reports if one.epoch == 1)  # the epoch's own; what comes after it does not count
    for one in sink.reports[: sink.reports.index(last) + 1]:
        verdict = engine.update(one.metrics, epoch=one.epoch, step=one.step, full_beta_epochs=one.full_beta_epochs,
                               full_beta_steps=one.full_beta_steps, nonfinite=one.nonfinite)  # fmt: skip
    spans = [later - earlier for earlier, later in pairwise(times[1 : steps + 1])]
    return {
        "parameters": sum(parameter.numel() for parameter in parameters.values()),
        "tensors": len(parameters),
        "without_gradient": sorted(set(parameters) - alive),
        "steps": last.step,
        "batch": config.train.batch_size,
        "seconds_per_step": min(spans) if spans else None,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "loss": last.metrics["train/loss"],
        "nonfinite": list(last.nonfinite),
        "verdict": verdict.state,
        "prior/crps": last.metrics["prior/crps"],
        "latent/kl_total": last.metrics["latent/kl_total"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decoder", default="bilinear", choices=("bilinear", "resized", "transposed"))
    parser.add_argument("--inject", default="none", choices=("none", "first", "all"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    config = full_config({"decoder": given.decoder, "inject": given.inject}, given.batch)
    print(json.dumps(measure(config, given.steps, given.threads)))


if __name__ == "__main__":
    main()
