"""What a trial costs beyond its training in a warm slot, against Ray Tune with a fresh Ray Train run per trial.

    python benchmarks/slots.py                    # about ten minutes on two cores; tables
    python benchmarks/slots.py --json             # the same, and one JSON object as the last line
    python benchmarks/slots.py --quick            # fewer trials, two minutes
    python benchmarks/slots.py --only kill churn  # some parts: trials, kill, churn

Every part is a process of its own with a Ray of its own; sweeps and stock runs take turns, so that both see the same
load of the machine. Times are read from clocks that the trainables keep (benchmarks/timed.py); medians unless said
otherwise. benchmarks/README.md says what the keys mean.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.processes import Memory, growth  # noqa: E402
from benchmarks.timed import Clock, Collapsing, flat_out  # noqa: E402
from buttress.spec.spec import SweepSpec  # noqa: E402

KINDS = ("empty", "lithology")
WORKERS = (1, 2)
STOCK_REPORTS = 5  # of a stock empty trial: each costs it two seconds
EARLY = 20  # the trial at which memory is read first

#: The lithology trial: the quick profile, cut to one epoch and a small clustering, because it is done 300 times.
LITHOLOGY: dict[str, dict[str, Any]] = {
    "data": {"kind": "synthetic", "size": "small"},
    "loss": {"units": "canonical", "reduction": "sample", "beta": 0.5},
    "train": {"batch_size": 512, "epochs": 1},
    "buttress": {"ari_every": 4, "ari_rows": 300, "report_every": 20},
}


# ----------------------------------------------------------------------------------------------------- what is run


def sweep_spec(kind: str, workers: int, trials: int, **changes: Any) -> SweepSpec:
    """A sweep of one of the timed trainables, with as many searched parameters as such a sweep has."""
    tree: dict[str, Any] = {
        "name": kind,
        "trainable": f"benchmarks.timed:{kind.capitalize()}",
        "seed": 1,
        "search": {"value": {"uniform": [0.1, 1.0]}},
        "objectives": ["val/score"],
        "scheduler": {"kind": "fifo"},
        "budget": {"trials": trials},
        "resources": {"workers": workers, "concurrency": 1},
        "breaker": False,  # every trial of a part collapses
    }
    if kind == "lithology":
        tree["rules"] = {"extends": "lithology"}
        tree["objectives"] = ["val/ari"]
        tree["data"] = LITHOLOGY["data"]
        fixed = {f"{group}.{key}": value for group in ("loss", "train", "buttress") for key, value in
                 LITHOLOGY[group].items()}  # fmt: skip
        tree["fixed"] = {key: value for key, value in fixed.items() if key != "loss.beta"}
        tree["search"] = {
            "loss.beta": {"loguniform": [0.05, 1.0]},
            "loss.mask_prob": {"choice": [0.0, 0.1, 0.3]},
            "model.hidden_dims": {"choice": ["64-32", "32-16"]},
            "model.latent_dim": {"int": [4, 12]},
            "train.lr": {"loguniform": [3.0e-4, 3.0e-3]},
        }
    return SweepSpec.from_dict({**tree, **changes})


def run_sweep(spec: SweepSpec, folder: Path, *callbacks: Any) -> tuple[Path, dict[str, int]]:
    """Runs the sweep on a Ray of its own; its folder, and how its trials ended."""
    from buttress.execution import launch

    finish = launch.start(spec, folder, callbacks=callbacks).run()
    return finish.folder, finish.counts


# ----------------------------------------------------------------------------------------------------- parts


def part_slot(kind: str, workers: int, trials: int) -> dict[str, Any]:
    """Turnaround, overhead, time inside `report` and memory of `trials` trials in one warm slot."""
    early = min(EARLY, trials // 4)
    memory = Memory(early, (early + trials) // 2, trials - 1)
    with tempfile.TemporaryDirectory() as folder:
        sweep, counts = run_sweep(sweep_spec(kind, workers, trials), Path(folder), memory)
        if counts.get("completed") != trials:
            raise RuntimeError(f"{counts} instead of {trials} completed trials")
        clocks = [Clock.read(trial) for trial in sorted((sweep / "trials").iterdir())]
        stages = stages_of(sweep / "journal.jsonl", clocks)
    special = {early, (early + trials) // 2}  # memory was read during them
    figures: dict[str, Any] = {}
    if kind == "empty":
        rushed = [number for number in range(trials) if flat_out(f"{number:04d}")]
        special |= set(rushed)
        reports = [1e3 * seconds for number in rushed for _, seconds in clocks[number][0].reports]
        figures["report_flat_out_ms"] = spread(reports)
    return {**costs(clocks, special), **figures, "stages_ms": stages, "memory": growth(*memory.read)}


def part_stock(kind: str, workers: int, trials: int) -> dict[str, Any]:
    """The same of a stock run."""
    from benchmarks import stock

    config = LITHOLOGY if kind == "lithology" else {"reports": STOCK_REPORTS}
    with tempfile.TemporaryDirectory() as folder:
        stock.run(f"benchmarks.timed:{kind.capitalize()}", [config] * trials, workers, Path(folder))
        clocks = [Clock.read(Path(folder) / str(number)) for number in range(trials)]
    return costs(clocks)


def part_kill(workers: int, kills: int) -> dict[str, Any]:
    """From the report that completes the evidence to the stop on all ranks, and on to the next trial's first step."""
    rules = {
        "posterior_collapse": {
            "signs": [{"metric": "latent/kl_total", "below": 0.1}],
            "grace": {"epochs": 0, "steps": 0},
            "patience": Collapsing.patience,
        }
    }
    changes = {"rules": rules, "fixed": {"reports": 100_000, "pause": 0.005}}
    with tempfile.TemporaryDirectory() as folder:
        sweep, counts = run_sweep(sweep_spec("collapsing", workers, kills + 1, **changes), Path(folder))
        if counts.get("collapsed") != kills + 1:
            raise RuntimeError(f"{counts} instead of {kills + 1} collapsed trials")
        clocks = [Clock.read(trial) for trial in sorted((sweep / "trials").iterdir())]
    last = Collapsing.healthy + Collapsing.patience - 1  # the report that completes the evidence
    stops, nexts, apart, extra = [], [], [], []
    for ended, following in pairwise(clocks):
        evidence = ended[0].reports[last][0]
        stopped = [clock.stopped or float("nan") for clock in ended.values()]
        stops.append(max(stopped) - evidence)
        nexts.append(min(clock.first for clock in following.values()) - evidence)
        apart.append(max(stopped) - min(stopped))
        extra.append(len(ended[0].reports) - 1 - last)
    return {
        "kills": len(stops),
        "stop_ms": spread(1e3 * value for value in stops),
        "next_step_ms": spread(1e3 * value for value in nexts),
        "ranks_apart_ms": spread(1e3 * value for value in apart),
        "reports_after_evidence": dict(sorted(Counter(extra).items())),
    }


def part_churn(trials: int) -> dict[str, Any]:
    """How many Tune actors are asked for and live while short trials run in two slots."""
    import ray

    from buttress.compat.ray import tune_actor_manager
    from buttress.execution import tune_adapter

    asked: list[float] = []
    manager = tune_actor_manager()
    add_actor = manager.add_actor

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(time.time())
        return add_actor(self, *args, **kwargs)

    manager.add_actor = counted
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
             namespace="buttress")  # fmt: skip
    try:
        with tempfile.TemporaryDirectory() as folder:
            notes = Path(folder) / "actors"
            notes.mkdir()

            class Noted(tune_adapter.SlotTrial):
                """Leaves a file named after its process, one byte longer for every trial."""

                def _submit(self, config: dict[str, Any]) -> None:
                    with (notes / str(os.getpid())).open("a") as file:
                        file.write("x")
                    super()._submit(config)

            tune_adapter.SlotTrial = Noted  # type: ignore[misc]
            spec = sweep_spec("instant", 1, trials, resources={"workers": 1, "concurrency": 2})
            began = time.monotonic()
            where, counts = run_sweep(spec, Path(folder))
            seconds = time.monotonic() - began
            entered = sorted(Clock.read(trial)[0].entered for trial in (where / "trials").iterdir())
            used = sorted((len(file.read_text()) for file in notes.iterdir()), reverse=True)
    finally:
        ray.shutdown()
    return {
        "trials": trials, "slots": 2, "actor_processes": len(used), "trials_per_actor": used,
        "actors_asked_for": len(asked), "trials_per_s": (trials - 1) / (entered[-1] - entered[0]), "seconds": seconds,
        "counts": counts,
    }  # fmt: skip


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "slot": part_slot,
    "stock": part_stock,
    "kill": part_kill,
    "churn": part_churn,
}


# ----------------------------------------------------------------------------------------------------- figures


def costs(clocks: list[dict[int, Clock]], skip: Collection[int] = ()) -> dict[str, Any]:
    """What trials that ran one after the other in the same place cost beyond their training.

    `clocks`: per trial, rank -> clock; those in `skip` count neither as a trial that ends nor as one that reports. The
    turnaround is from a trial's last report to the next one's first step (the slowest rank counts). The overhead of a
    trial is the time from its beginning to that of the next, less what it spent in `train` outside `report`.
    """
    pairs = [pair for number, pair in enumerate(pairwise(clocks)) if number not in skip]
    turnaround, overhead, idle, build = [], [], [], []
    for ended, following in pairs:
        one = ended[0]
        turnaround.append(max(c.first for c in following.values()) - max(c.last for c in ended.values()))
        overhead.append(following[0].entered - one.entered - (one.left - one.entered - one.reporting))
        idle.append(following[0].entered - one.left)
        build.append(max(c.first - c.entered for c in following.values()))
    kept = [clock for number, clock in enumerate(clocks) if number not in skip]
    reports = [1e3 * seconds for trial in kept for _, seconds in trial[0].reports]
    saved = [1e3 * trial[0].reports[number][1] for trial in kept for number in trial[0].with_checkpoint]
    return {
        "trials": len(clocks),
        "turnaround_s": median(turnaround),
        "turnaround": spread(turnaround),
        "overhead_s": median(overhead),
        "between_s": median(idle),
        "to_first_step_s": median(build),
        "reports": len(reports),
        "report_ms": spread(reports),
        **({"report_with_checkpoint_ms": spread(saved)} if saved else {}),
        "train_s": median(trial[0].left - trial[0].entered for trial in clocks),
    }


def stages_of(path: Path, clocks: list[dict[int, Clock]]) -> dict[str, float]:
    """Where the turnaround goes, by the journal: median ms of each stage."""
    from buttress import journal

    times: dict[tuple[str, str], float] = {}
    for line in journal.lines(path):
        if line["line"] in ("trial", "start", "outcome"):
            times[line["line"], line["trial"]] = line["time"]
    names = ("last report to outcome", "outcome to next draw", "draw to slot", "slot to train()", "train() to step")
    steps: list[tuple[float, ...]] = []
    for number, (ended, following) in enumerate(pairwise(clocks)):
        one, two = f"{number:04d}", f"{number + 1:04d}"
        moments = [max(c.last for c in ended.values()), times["outcome", one], times["trial", two],
                   times["start", two], max(c.entered for c in following.values()),
                   max(c.first for c in following.values())]  # fmt: skip
        steps.append(tuple(1e3 * (b - a) for a, b in pairwise(moments)))
    return {name: median(step[index] for step in steps) for index, name in enumerate(names)}


def spread(values: Iterable[float]) -> dict[str, float]:
    """median, p90, p99 and max of at least one value."""
    ordered = sorted(values)
    at = {"median": 0.5, "p90": 0.9, "p99": 0.99}
    found = {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in at.items()}
    return {**found, "max": ordered[-1]}


# ----------------------------------------------------------------------------------------------------- the whole


def alone(part: str, **arguments: Any) -> dict[str, Any]:
    """Runs one part in a process of its own; its figures, and the machine's load before and after."""
    before = os.getloadavg()[0]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    began = time.monotonic()
    command = [sys.executable, __file__, "--part", part, json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{part} {arguments} failed:\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    seconds = time.monotonic() - began
    print(f"  {part} {arguments}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return {**figures, "load": [round(before, 1), round(os.getloadavg()[0], 1)]}


def measure(only: Sequence[str], trials: int, quick: bool) -> dict[str, Any]:
    """All parts that are asked for, sweeps and stock runs in turn."""
    found: dict[str, Any] = {kind: {} for kind in KINDS} if "trials" in only else {}
    if "trials" in only:
        for kind in KINDS:
            for workers in WORKERS:
                slot = alone("slot", kind=kind, workers=workers, trials=trials)
                stock = alone("stock", kind=kind, workers=workers, trials=3 if kind == "empty" and not quick else 2)
                found[kind][str(workers)] = compared(slot, stock)
        for key in ("turnaround_s", "overhead_s", "stock_trial_s", "ratio", "report_ms"):  # of the real trial
            found[key] = {workers: figures[key] for workers, figures in found["lithology"].items()}
    if "kill" in only:
        found["kill"] = {str(workers): alone("kill", workers=workers, kills=10 if quick else 50) for workers in WORKERS}
    if "churn" in only:
        found["churn"] = alone("churn", trials=40 if quick else 100)
    return found


def compared(slot: dict[str, Any], stock: dict[str, Any]) -> dict[str, Any]:
    """One setting's figures: the slot's, and what the stock integration makes of the same trial."""
    return {
        **slot,
        "stock_trial_s": stock["overhead_s"],
        "ratio": stock["overhead_s"] / slot["overhead_s"],
        "stock_turnaround_s": stock["turnaround_s"],
        "ratio_turnaround": stock["turnaround_s"] / slot["turnaround_s"],
        "stock": stock,
    }


def table(found: dict[str, Any]) -> str:
    """The figures as text."""
    lines = []
    for kind in KINDS:
        for workers, one in found.get(kind, {}).items():
            report, memory, stock = one["report_ms"], one["memory"], one["stock"]
            lines += [
                f"{kind}, {workers} worker{'s' if workers != '1' else ''} ({one['trials']} trials)",
                f"  turnaround   {1e3 * one['turnaround_s']:8.1f} ms (p90 {1e3 * one['turnaround']['p90']:.1f}); "
                f"stock {stock['turnaround_s']:.1f} s: {one['ratio_turnaround']:.0f} times",
                f"  overhead     {1e3 * one['overhead_s']:8.1f} ms a trial; stock {one['stock_trial_s']:.1f} s: "
                f"{one['ratio']:.0f} times",
                "  stages       " + ", ".join(f"{name} {value:.1f}" for name, value in one["stages_ms"].items()),
                f"  report       {report['median']:8.3f} ms, p99 {report['p99']:.2f} ({one['reports']}); "
                f"stock {stock['report_ms']['median']:.0f} ms",
                f"  a slot       {memory['helpers_per_slot']} helpers of {memory['helpers_mb_per_slot']:.0f} MB, "
                f"workers of {memory['worker_mb']:.0f} MB, mailbox {memory['mailbox_mb']:.0f} MB",
                "  growth in MB (in the second half): " + ", ".join(
                    f"{name} {entry.get('growth_mb', 'new')} ({entry.get('growth_in_second_half_mb', '-')})"
                    for name, entries in memory["processes"].items() for entry in entries
                    if abs(entry.get("growth_mb", 9.0)) >= 1
                ),
            ]  # fmt: skip
    for workers, one in found.get("kill", {}).items():
        stop, after = one["stop_ms"], one["next_step_ms"]
        lines += [
            f"kill, {workers} worker{'s' if workers != '1' else ''} ({one['kills']} kills)",
            f"  evidence to stop on all ranks {stop['median']:.1f} ms, p90 {stop['p90']:.1f}, max {stop['max']:.1f}",
            f"  evidence to next first step   {after['median']:.1f} ms, p90 {after['p90']:.1f}, max {after['max']:.1f}",
        ]
    if churn := found.get("churn"):
        lines += [
            f"churn: {churn['trials']} trials of 20 instant epochs in 2 slots: {churn['actor_processes']} Tune actors "
            f"({churn['actors_asked_for']} asked for), {churn['trials_per_s']:.1f} trials/s"
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the figures as one object in the last line")
    parser.add_argument("--trials", type=int, help="trials per sweep (default 300)")
    parser.add_argument("--quick", action="store_true", help="40 trials per sweep, 10 kills, 2 stock trials")
    parser.add_argument("--only", nargs="+", choices=("trials", "kill", "churn"), default=("trials", "kill", "churn"))
    parser.add_argument("--part", nargs=2, metavar=("NAME", "ARGUMENTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        name, arguments = options.part
        figures = PARTS[name](**json.loads(arguments))
        print(json.dumps(figures))
        return
    began = time.monotonic()
    found = measure(options.only, options.trials or (40 if options.quick else 300), options.quick)
    found |= {
        "command": " ".join(["python benchmarks/slots.py", *sys.argv[1:]]),
        "machine": {"cpus": os.cpu_count(), "load_1_5_15": [round(load, 1) for load in os.getloadavg()]},
        "seconds": round(time.monotonic() - began),
    }
    print(table(found))
    if options.json:
        print(json.dumps(rounded(found)))


def rounded(value: Any) -> Any:
    """Five significant digits are enough."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
