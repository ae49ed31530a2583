"""What a sweep of many short trials costs its driver, and whether it grows: processor time and memory per trial.

    python -m benchmarks.soak                     # 500 trials of no work, W&B offline; about two minutes on two cores
    python -m benchmarks.soak --trials 200 --wandb disabled --json
    python -m benchmarks.soak --profile soak.prof # where the driver's main thread and drain thread spend it

Processor time is that of the driver's own process, all threads; W&B's service is a process of its own and is named
apart. Memory is resident memory of the driver.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import logging
import tempfile
import time
from typing import Any

import psutil

from benchmarks.slots import sweep_spec
from buttress.callbacks.base import Callback
from buttress.journal.events import Event, Outcome

EVERY = 50


class Meter(Callback):
    """Reads the driver's processor time and memory at every fiftieth end of a trial."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.ended = 0
        self.rows: list[dict[str, float]] = []
        self.began = time.perf_counter()

    def on_event(self, event: Event, trial: Any = None) -> None:
        if isinstance(event, Outcome):
            self.ended += 1
            if self.ended % EVERY == 0:
                self.read()

    def read(self) -> None:
        """One row."""
        children = [child for child in self.process.children(recursive=True) if "wandb" in " ".join(child.cmdline())]
        self.rows.append(
            {
                "trials": self.ended,
                "cpu_s": time.process_time(),
                "rss_mb": self.process.memory_info().rss / 1e6,
                "wandb_rss_mb": sum(child.memory_info().rss for child in children) / 1e6,
                "seconds": time.perf_counter() - self.began,
            }
        )


def soak(trials: int, wandb: str, profile: str | None = None) -> dict[str, Any]:
    """Runs the sweep.

    Args:
        trials: How many.
        wandb: Mode of W&B.
        profile: File for what cProfile finds in the drain thread and the main thread; None: no profile.

    Returns:
        `rows` (see `Meter`), `cpu_ms_per_trial` after the first hundred trials, `rss_growth_mb` after them.
    """
    from buttress import api
    from buttress.execution import driver

    spec = sweep_spec("empty", 1, trials, wandb={"mode": wandb}, sampler={"repeats": True})
    meter = Meter()
    profiles = cProfile.Profile(), cProfile.Profile()
    if profile:
        drain = driver.Driver._drain
        driver.Driver._drain = lambda self: profiles[0].runcall(drain, self)  # type: ignore[method-assign]
        tune = driver.Driver._tune
        driver.Driver._tune = lambda self: profiles[1].runcall(tune, self)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        api.run(spec, out=folder, callbacks=[meter], quiet=True)
    if profile:
        for found, name in zip(profiles, ("drain", "main"), strict=True):
            found.dump_stats(f"{profile}.{name}")
    first = next(row for row in meter.rows if row["trials"] >= min(100, trials // 2))
    last = meter.rows[-1]
    each = (last["cpu_s"] - first["cpu_s"]) / (last["trials"] - first["trials"])
    return {
        "trials": trials,
        "wandb": wandb,
        "cpu_ms_per_trial": 1e3 * each,
        "rss_growth_mb": last["rss_mb"] - first["rss_mb"],
        "rows": meter.rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--wandb", default="offline", choices=("offline", "disabled"))
    parser.add_argument("--profile", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    found = soak(given.trials, given.wandb, given.profile)
    print("| trials | driver CPU s | driver MB | W&B service MB | seconds |\n| --: | --: | --: | --: | --: |")
    for row in found["rows"]:
        print(
            f"| {row['trials']} | {row['cpu_s']:.1f} | {row['rss_mb']:.0f} | {row['wandb_rss_mb']:.0f} | "
            f"{row['seconds']:.0f} |"
        )
    each, growth = found["cpu_ms_per_trial"], found["rss_growth_mb"]
    print(f"after the first 100 trials: {each:.1f} ms of CPU a trial, memory {growth:+.1f} MB")
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
