"""The memory of a sweep's processes, for benchmarks/slots.py: who they are, what they hold, by how much they grew.

PSS counts a page that n processes share as one nth in each, so that the figures of several processes may be added.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from buttress.callbacks.base import Callback

#: Names that Ray gives the processes of its actors -> what they are here.
ROLES = {
    "TrainController": "controller", "SynchronizationActor": "synchronisation", "ResourceTrainable": "trial actor",
    "RayTrainWorker": "worker", "Mailbox": "mailbox", "IDLE": "idle", "_AutoscalingCoordinatorActor": "coordinator",
    "DashboardAgent": "dashboard agent", "RuntimeEnvAgent": "runtime agent",
}  # fmt: skip
NO_HELPERS = ("driver", "worker", "mailbox", "idle", "coordinator", "dashboard agent", "runtime agent")


class Memory(Callback):
    """A callback that reads the memory of the driver and of every process below it, at some trials of a sweep."""

    def __init__(self, *trials: int) -> None:
        self.at = {f"{trial:04d}" for trial in trials}
        self.read: list[dict[str, list[dict[str, float]]]] = []

    def on_event(self, event: Any, trial: Any = None) -> None:
        if event.line == "report" and event.seq == 0 and event.trial in self.at:
            self.read.append(processes())


def processes() -> dict[str, list[dict[str, float]]]:
    """Role of a process -> pid, RSS, PSS (MB) and threads of each that has it; this process is the `driver`."""
    me = psutil.Process()
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for process in [me, *me.children(recursive=True)]:
        try:
            command, memory = process.cmdline(), process.memory_full_info()
            entry = {"pid": process.pid, "rss": memory.rss / 2**20, "pss": memory.pss / 2**20,
                     "uss": memory.uss / 2**20, "threads": process.num_threads()}  # fmt: skip
        except psutil.Error:
            continue
        found["driver" if process.pid == me.pid else role(command)].append(entry)
    return dict(found)


def role(command: Sequence[str]) -> str:
    """`worker`, `controller`, `trial actor`, ... from a command line; Ray's own processes by the name of their file."""
    if command and command[0].startswith("ray::"):
        name = command[0].removeprefix("ray::").split(".")[0].split("(")[0].split()[0]
        return ROLES.get(name, name)
    names = [Path(part).name for part in command[:3] if not part.startswith("-")]
    return names[1] if len(names) > 1 and names[0].startswith("python") else "".join(names[:1])


def growth(
    early: dict[str, list[dict[str, float]]],
    middle: dict[str, list[dict[str, float]]],
    late: dict[str, list[dict[str, float]]],
) -> dict[str, Any]:
    """Memory of every process at the last moment, its growth since the first and the middle one (by USS, what is the
    process's own: PSS moves with the number of strangers that share a library), and what a slot's helpers take."""
    first = {entry["pid"]: entry for entries in early.values() for entry in entries}
    second = {entry["pid"]: entry for entries in middle.values() for entry in entries}
    table: dict[str, list[dict[str, Any]]] = {}
    for name, entries in sorted(late.items()):
        table[name] = []
        for entry in entries:
            row: dict[str, Any] = {f"{part}_mb": round(entry[part], 1) for part in ("rss", "pss", "uss")}
            row["threads"] = int(entry["threads"])
            if entry["pid"] in first and entry["pid"] in second:
                one, two = first[entry["pid"]], second[entry["pid"]]
                row["rss_growth_mb"] = round(entry["rss"] - one["rss"], 1)
                row["growth_mb"] = round(entry["uss"] - one["uss"], 1)
                row["growth_in_second_half_mb"] = round(entry["uss"] - two["uss"], 1)
                row["threads_growth"] = int(entry["threads"] - one["threads"])
            table[name].append(row)
    actors = {name: entries for name, entries in late.items() if name in ROLES.values() or name[:1].isupper()}
    helpers = {name: entries for name, entries in actors.items() if name not in NO_HELPERS}
    return {
        "processes": table,
        "helpers_per_slot": sum(map(len, helpers.values())),
        "helpers_mb_per_slot": round(sum(entry["pss"] for each in helpers.values() for entry in each), 1),
        "helpers": {name: round(sum(entry["pss"] for entry in each), 1) for name, each in helpers.items()},
        "worker_mb": round(median(entry["pss"] for entry in late["worker"]), 1),
        "mailbox_mb": round(sum(entry["pss"] for entry in late.get("mailbox", [])), 1),
    }
