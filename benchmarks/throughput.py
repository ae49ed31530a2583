"""What the loop costs: an epoch of the lithology VAE against a plain `DataLoader(TensorDataset)` loop of that model.

    python -m benchmarks.throughput [--json] [--pairs 9] [--size small]       # epochs, paired and interleaved
    python -m benchmarks.throughput --slot [--pairs 3]                        # two DDP workers: slot against torchrun
    python -m benchmarks.throughput --adam [--pairs 15] --size small          # SmallAdam against torch's fused Adam
    python -m benchmarks.throughput --hundred                                 # 100 epochs of the full table, once

Both sides of a pair train the same network on the same rows, batch 256, Adam, one thread, one after the other in one
process, in turns. An epoch is the time from its first batch to the call of its evaluation. Figures are medians of the
ratios pair by pair, so that a machine whose speed drifts moves both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

from buttress.trainables.lithology import train as family
from buttress.trainables.lithology.config import Config
from buttress.trainables.lithology.model import Vae
from buttress.training.adam import SmallAdam
from buttress.training.local_run import train
from buttress.training.losses import gaussian_kl
from buttress.training.optimization import fused_adam
from buttress.training.reporting import Reporter
from buttress.training.trainable import Reported
from buttress.training.world import World, prepare


def config(size: str, *, epochs: int, monitors: bool = True, report_every: int = 100, workers: int = 1) -> Any:
    """B's 64-32-10 VAE with BatchNorm, beta 1, as the original trains it; no mixture is fitted."""
    return Config.model_validate(
        {
            "data": {"kind": "synthetic", "size": size},
            "train": {"epochs": epochs, "batch_size": 256},
            "buttress": {
                "trainable": "lithology", "objective": "val/elbo_1", "monitors": monitors, "report_every": report_every,
                "ari_every": 1000, "ari_rows": 500, "workers": workers, "checkpoint_every": 1000,
            },
        }
    )  # fmt: skip


class Sink:
    """Keeps the reports' times."""

    stop = False

    def __init__(self) -> None:
        self.reports: list[Reported] = []

    def send(self, reported: Reported) -> None:
        self.reports.append(reported)


def epochs_of_ours(settings: Any) -> list[float]:
    """Seconds of each training epoch in our loop, reports and monitors as `settings` say."""
    begun: list[float] = []
    ended: list[float] = []
    batches, evaluate = family.LithologyTask.batches, family.LithologyTask.evaluate

    def timed_batches(task: Any, epoch: int) -> Iterator[Any]:
        begun.append(time.perf_counter())
        return batches(task, epoch)

    def timed_evaluate(task: Any, *args: Any, **kwargs: Any) -> Any:
        ended.append(time.perf_counter())
        return evaluate(task, *args, **kwargs)

    trainable = family.Lithology()
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(family.LithologyTask, "batches", timed_batches),
        patch.object(family.LithologyTask, "evaluate", timed_evaluate),
    ):
        world = World.single(Path(folder))
        with Reporter(world, trainable.schedule(settings), Sink()) as report:
            trainable.train(settings, world, report, None)
    return [end - begin for begin, end in zip(begun, ended, strict=False)]


class Plain:
    """The loop that everybody writes: DataLoader over a TensorDataset, Adam, the original's loss."""

    def __init__(self, settings: Any) -> None:
        prepare(42, 1)
        with tempfile.TemporaryDirectory() as folder:
            task = family.LithologyTask(settings, family.Lithology().schedule(settings), World.single(Path(folder)))
        self.model = Vae(settings.model, task.dx)
        self.loader = DataLoader(TensorDataset(task.x), batch_size=256, shuffle=True)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.train.lr)
        self.rows = len(task.x)

    def epoch(self) -> float:
        began = time.perf_counter()
        self.model.train()
        total = 0.0
        for (x,) in self.loader:
            code = self.model.encode(x)
            z = code.mu + torch.randn_like(code.mu) * torch.exp(code.logvar / 2)
            loss = (self.model.decode(z) - x).square().sum() + gaussian_kl(code.mu, code.logvar).sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        return time.perf_counter() - began


def interleaved(size: str, pairs: int) -> dict[str, Any]:
    """Median ratio plain / ours over `pairs` turns of (plain, ours with monitors and reports, ours without)."""
    plain = Plain(config(size, epochs=1))
    plain.epoch()
    seconds: dict[str, list[float]] = {"plain": [], "watched": [], "bare": []}
    for _ in range(pairs):
        seconds["plain"].append(plain.epoch())
        seconds["watched"] += epochs_of_ours(config(size, epochs=1))
        seconds["bare"] += epochs_of_ours(config(size, epochs=1, monitors=False, report_every=0))
    steps = -(-plain.rows // 256)
    found: dict[str, Any] = {"rows": plain.rows, "steps": steps, "pairs": pairs}
    for name, each in seconds.items():
        found[f"{name}_epoch_s"] = round(statistics.median(each), 4)
        found[f"{name}_step_ms"] = round(statistics.median(each) / steps * 1e3, 3)
    for name in ("watched", "bare"):
        ratios = [a / b for a, b in zip(seconds["plain"], seconds[name], strict=True)]
        found[f"ratio_{name}"] = round(statistics.median(ratios), 3)
        found[f"ratio_{name}_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return found


def small_adam_against_torch(size: str, pairs: int, epochs: int = 3) -> dict[str, Any]:
    """Median ratio of processor time per epoch, torch's fused Adam / SmallAdam, in pairs of alternating order."""
    kinds = {"small": SmallAdam, "torch": fused_adam}
    found: dict[str, Any] = {"pairs": pairs, "epochs": epochs}
    for name, options in (("watched", {}), ("bare", {"monitors": False, "report_every": 0})):
        seconds: dict[str, list[float]] = {"small": [], "torch": []}
        for turn in range(pairs + 1):  # the first one warms up
            for kind in ("small", "torch") if turn % 2 else ("torch", "small"):
                with (
                    patch.object(family, "SmallAdam", kinds[kind]),
                    patch.object(time, "perf_counter", time.process_time),
                ):
                    seconds[kind].append(statistics.median(epochs_of_ours(config(size, epochs=epochs, **options))))
        ratios = [torch_s / small_s for torch_s, small_s in zip(seconds["torch"], seconds["small"], strict=True)][1:]
        quartiles = statistics.quantiles(ratios, n=4)
        found[f"adam_ratio_{name}"] = round(statistics.median(ratios), 3)
        found[f"adam_ratio_{name}_quartiles"] = [round(quartiles[0], 3), round(quartiles[2], 3)]
    return found


def slot_against_torchrun(pairs: int, epochs: int = 6) -> dict[str, Any]:
    """Epochs of two DDP workers in a warm slot and under torchrun, in turns; ratio = torchrun's median / the slot's."""
    slot, bare = [], []
    for _ in range(pairs):
        slot += between(slot_reports(epochs))
        bare += between(torchrun_reports(epochs))
    ratio = statistics.median(bare) / statistics.median(slot)
    return {
        "slot_epoch_s": round(statistics.median(slot), 4),
        "torchrun_epoch_s": round(statistics.median(bare), 4),
        "slot_speed": round(ratio, 3),
        "epochs": len(slot),
    }


def between(reports: list[tuple[int, float]]) -> list[float]:
    """Seconds from each epoch's report to the next one's; the first epoch, which warms up, is left out."""
    ends = [seconds for _, seconds in sorted({epoch: seconds for epoch, seconds in reports if epoch >= 1}.items())]
    return [b - a for a, b in pairwise(ends)]


def slot_reports(epochs: int) -> list[tuple[int, float]]:
    from buttress.execution import launch
    from buttress.journal import read
    from buttress.spec.spec import SweepSpec

    settings = config("full", epochs=epochs, workers=2).model_dump(mode="json")
    with tempfile.TemporaryDirectory() as folder:
        spec = SweepSpec.from_dict(
            {
                "name": "throughput",
                "trainable": "lithology",
                "data": settings["data"],
                "fixed": {"train.epochs": epochs, "buttress.ari_every": 1000, "buttress.ari_rows": 500},
                "search": {"train.lr": {"uniform": [0.0009, 0.0011]}},
                "objectives": [{"metric": "val/r2_mean"}],
                "scheduler": {"kind": "fifo"},
                "resources": {"workers": 2},
                "budget": {"trials": 1},
                "wandb": {"mode": "disabled"},
            }
        )
        finish = launch.start(spec, Path(folder)).run()
        (trial,) = read(finish.folder, alive=False).trials.values()
    return [(report.epoch, report.seconds) for report in trial.reports]


def torchrun_reports(epochs: int) -> list[tuple[int, float]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(config("full", epochs=epochs, workers=2).model_dump(mode="json")))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += ["-m", "buttress.training", str(path), "--out", str(Path(folder) / "out")]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        history = json.loads((Path(folder) / "out" / "history.json").read_text())
    return [(report["epoch"], report["seconds"]) for report in history["reports"]]


def hundred() -> dict[str, Any]:
    """The original's run: 100 epochs over the full table, with everything a sweep's trial does."""
    settings = config("full", epochs=100)
    sink, began = Sink(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train(settings, family.Lithology(), Path(folder), sink=sink)
    last = sink.reports[-1]
    seconds = round(time.perf_counter() - began, 1)
    return {"seconds": seconds, "steps": last.step, "val/recon": last.metrics["val/recon"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--size", default="full", choices=["full", "small"])
    parser.add_argument("--slot", action="store_true")
    parser.add_argument("--adam", action="store_true")
    parser.add_argument("--hundred", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.slot:
        found = slot_against_torchrun(given.pairs)
    elif given.adam:
        found = small_adam_against_torch(given.size, given.pairs)
    elif given.hundred:
        found = hundred()
    else:
        found = interleaved(given.size, given.pairs)
    for key, value in found.items():
        print(f"{key:22} {value}")
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
