"""What a sweep's driver costs at scale: many simulated slots, every report through the real mailbox, driver thread,
journal, rules, rungs and study.

    python -m benchmarks.scale [--json] [--slots 100] [--trials 1000]    # about 10 minutes
    python -m benchmarks.scale --slots 1000 --trials 1500                # what breaks first beyond that
    python -m benchmarks.scale --gather 0                                # if the driver came for every single report

The slots' workers are played by coroutines in one other process: they say hello, take work, post one health report
every `--every` seconds (80 a trial, an epoch every 4th) and leave when they are told to. What they report is a pure
function of the trial's parameters, with the lithology family's metric names. Tune is left out (its trial actors are a
process each); instead of it a loop asks for a trial whenever a slot is free.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import pickle
import random
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import psutil

from buttress.execution import driver
from buttress.execution.messages import Assignment, AttemptResult, Ending, NoAssignment, WorkerInfo
from buttress.spec.spec import SweepSpec
from buttress.training.trainable import Reported

EPOCHS, PER_EPOCH = 20, 4
PARAMETERS = 8
STAGES = (0.1, 0.5, 1.0)  # shares of the trials at which the driver is read


def spec(trials: int) -> SweepSpec:
    """Eight searched parameters, the lithology rules, ASHA."""
    search: dict[str, Any] = {"loss.beta": {"loguniform": [0.05, 30.0]}, "train.lr": {"loguniform": [3e-4, 3e-3]}}
    search |= {
        "model.latent_dim": {"int": [4, 12]},
        "loss.mask_prob": {"choice": [0.0, 0.1, 0.3]},
        "model.hidden_dims": {"choice": ["64-32", "32-16"]},
        "loss.alpha": {"loguniform": [0.01, 6.0]},
        "train.patience": {"int": [5, 50]},
        "train.plateau_factor": {"uniform": [0.1, 0.9]},
    }
    assert len(search) == PARAMETERS
    return SweepSpec.from_dict(
        {
            "name": "scale", "trainable": "lithology", "search": search, "objectives": ["val/ari"],
            "fixed": {"train.epochs": EPOCHS, "loss.units": "canonical", "loss.reduction": "sample",
                      "loss.anneal": "constant", "model.semi_supervised": True},
            "scheduler": {"kind": "asha", "first": 4, "factor": 2}, "budget": {"trials": trials},
            "rules": {"extends": "lithology", "posterior_collapse": {"grace": {"epochs": 0, "steps": 200}}},
            "resources": {"concurrency": 1}, "wandb": {"mode": "disabled"}, "seed": 1,
        }
    )  # fmt: skip


def reports(config: Mapping[str, Any]) -> list[bytes]:
    """All that a trial of this config reports, as it is sent."""
    beta, dims = config["loss"]["beta"], config["model"]["latent_dim"]
    rng = random.Random(f"{beta:.6f}")
    alive = beta < 6.0
    made = []
    for number in range(1, EPOCHS * PER_EPOCH + 1):
        epoch, ends = number // PER_EPOCH, number % PER_EPOCH == 0
        kl = (3.0 / (1 + beta) if alive else 0.02 / beta) * (1 + 0.1 * rng.random())
        per_dim = [kl / dims] * dims
        metrics = {
            "latent/kl_total": kl, "latent/active_kl": float(dims * alive), "latent/active_var_1e2": dims * alive,
            "train/loss": 2.0 - kl / 10, "train/beta": beta, "train/lr": 1e-3, "train/grad_norm": 0.3,
            "train/nonfinite": 0.0, "train/recon": 1.5, "latent/mu_var_max": kl, "latent/sigma_mean": 0.7,
            "ablation/relative": 0.5 * alive, "ablation/delta": 0.8 * alive, "train/beta_canonical": beta,
        }  # fmt: skip
        if ends:
            score = (0.6 - 0.05 * abs(math.log(beta / 0.4))) * (1 - 0.5**epoch) if alive else 0.1
            metrics |= {"val/ari": score, "val/recon": 1.4, "val/kl": kl, "val/elbo_1": 1.4 + kl, "val/r2_mean": 0.7}
        reported = Reported(
            epoch=epoch, step=100 * number, full_beta_epochs=epoch, full_beta_steps=100 * number, phase=0,
            metrics=metrics, vectors={"latent/kl": per_dim}, closing=number == EPOCHS * PER_EPOCH,
            seconds=float(number), mem_mb=400.0,
        )  # fmt: skip
        made.append(pickle.dumps(reported))
    return made


class Players:
    """An actor: the workers of all slots, one coroutine each."""

    async def play(self, mailbox: Any, slots: int, every: float) -> None:
        await asyncio.gather(*(self._slot(mailbox, f"slot-{number}", every) for number in range(slots)))

    async def _slot(self, mailbox: Any, slot: str, every: float) -> None:
        await asyncio.sleep(random.random() * every)
        await mailbox.register.remote(slot, "life", 0, 1, WorkerInfo(0, "played", ""))
        seen = 0
        while True:
            assignment = await mailbox.next_assignment.remote(slot, "life", seen)
            if assignment is None:
                continue
            if isinstance(assignment, NoAssignment):
                return
            seen += 1
            trial, attempt = assignment.trial, assignment.attempt
            stop = asyncio.ensure_future(self._stop(mailbox, trial, attempt))
            ending = Ending.FINISHED
            for reported in reports(assignment.config):
                await asyncio.wait([stop], timeout=every)
                if stop.done():
                    ending = Ending.STOPPED
                    break
                await mailbox.report.remote(trial, attempt, reported)
            stop.cancel()
            await mailbox.end_attempt.remote(slot, "life", trial, attempt, AttemptResult(ending))

    async def _stop(self, mailbox: Any, trial: str, attempt: int) -> None:
        while await mailbox.wait_for_signal.remote(trial, attempt) is None:
            pass


class PlayedPool:
    """In place of `WorkerPool`: slots without workers of their own."""

    slots, every = 100, 1.0

    def __init__(self, mailbox: Any, *_: Any) -> None:
        import ray

        self._mailbox = mailbox
        self._players = ray.remote(num_cpus=0, max_concurrency=10)(Players).remote()

    def start(self) -> None:
        self._players.play.remote(self._mailbox, self.slots, self.every)

    def count_usable(self) -> int:
        return self.slots

    def close(self, timeout_s: float = 10.0) -> list[str]:
        import ray

        ray.get(self._mailbox.close.remote())
        return []

    def mark_ready(self, *_: Any) -> None: ...

    def pop_long_waiting(self) -> list[str]:
        return []

    def slots_on(self, nodes: Any) -> list[str]:
        return []

    def count_waiting(self) -> int:
        return 0


class Scaled(driver.Driver):
    """A driver without Tune, that reads its own clock."""

    def _tune(self) -> None:
        import ray

        self.process, self.read, self.draws = psutil.Process(), [], []
        total = int(self.spec.budget.trials or 0)
        marks = [int(total * share) for share in STAGES]
        self._reading(0)
        drawn = 0
        while True:
            for trial in [trial for trial in self._with_tune if trial in self.state.outcomes]:
                self._release(trial, False)
            began = time.thread_time()
            found = self._next_trial()
            if isinstance(found, dict):
                self.draws.append(time.thread_time() - began)
                drawn += 1
                ray.get(self.mailbox.submit.remote(Assignment.from_json(found["assignment"])))
            elif found is None:
                time.sleep(0.05)
            elif not self.state.active:
                break
            else:
                time.sleep(0.1)
            while marks and len(self.state.outcomes) >= marks[0]:
                self._reading(marks.pop(0))

    def _reading(self, trials: int) -> None:
        times = self.process.cpu_times()
        threads = {thread.id: thread.user_time + thread.system_time for thread in self.process.threads()}
        mailbox, head = self._of("ray::Mailbox"), self._of("gcs_server")
        drain = next((thread.native_id for thread in threading.enumerate() if thread.name == "drain"), None)
        self.read.append(
            {
                "trials": trials, "reports": self.events.reports, "wall_s": time.monotonic(),
                "cpu_s": times.user + times.system,
                "drain_s": threads.get(drain or 0, 0.0), "rss_mb": self.process.memory_info().rss / 1e6,
                "journal_mb": (self.folder / "journal.jsonl").stat().st_size / 1e6, "asks": len(self.draws),
                "ask_s": sum(self.draws), "mailbox_s": mailbox[0], "mailbox_mb": mailbox[1], "gcs_mb": head[1],
            }
        )  # fmt: skip

    def _of(self, title: str) -> tuple[float, float]:
        """CPU seconds and RSS (MB) of the process below this one that is called so."""
        for process in self.process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if title in (process.cmdline() or [""])[0]:
                    times = process.cpu_times()
                    return times.user + times.system, process.memory_info().rss / 1e6
        return 0.0, 0.0


def measure(slots: int, trials: int, every: float) -> dict[str, Any]:
    PlayedPool.slots, PlayedPool.every = slots, every
    with tempfile.TemporaryDirectory() as folder, patch("buttress.execution.worker_pool.WorkerPool", PlayedPool):
        sweep = Scaled(spec(trials), Path(folder) / "scale-000000", sweep="scale-000000")
        finish = sweep.run()
        stages = [between(a, b) for a, b in zip(sweep.read, sweep.read[1:], strict=False)]
        asks = sweep.draws
    last = stages[-1]
    tenth = max(1, len(asks) // 10)
    return {
        "command": f"python -m benchmarks.scale --slots {slots} --trials {trials} --every {every:g} "
        f"--gather {driver.GATHER_S:g} --json",
        "slots": slots, "trials": trials, "report_every_s": every, "counts": finish.counts,
        "seconds": round(finish.seconds, 1), "stages": stages,
        "reports_per_s": last["reports_per_s"], "driver_share_of_a_core": last["driver_share_of_a_core"],
        "drain_ms_per_report": last["drain_ms_per_report"],
        "ask_ms_first_tenth": round(1e3 * median(asks[:tenth]), 2),
        "ask_ms_last_tenth": round(1e3 * median(asks[-tenth:]), 2),
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def between(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Figures of the driver from one reading to the next."""
    wall, count = b["wall_s"] - a["wall_s"], max(1, b["reports"] - a["reports"])
    return {
        "up_to_trial": b["trials"],
        "reports_per_s": round(count / wall, 1),
        "driver_share_of_a_core": round((b["cpu_s"] - a["cpu_s"]) / wall, 4),
        "drain_share_of_a_core": round((b["drain_s"] - a["drain_s"]) / wall, 4),
        "drain_ms_per_report": round(1e3 * (b["drain_s"] - a["drain_s"]) / count, 3),
        "ask_ms_per_trial": round(1e3 * (b["ask_s"] - a["ask_s"]) / max(1, b["asks"] - a["asks"]), 2),
        "mailbox_share_of_a_core": round((b["mailbox_s"] - a["mailbox_s"]) / wall, 4),
        "driver_mb": round(b["rss_mb"], 1),
        "mailbox_mb": round(b["mailbox_mb"], 1),
        "gcs_mb": round(b["gcs_mb"], 1),
        "journal_mb": round(b["journal_mb"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=100)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two reports of a slot")
    parser.add_argument("--gather", type=float, default=driver.GATHER_S, help="seconds a slot, see execution/driver.py")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    driver.GATHER_S = given.gather
    found = measure(given.slots, given.trials, given.every)
    for stage in found["stages"]:
        print("  ".join(f"{key} {value}" for key, value in stage.items()))
    print({key: value for key, value in found.items() if key != "stages"})
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
