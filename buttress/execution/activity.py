"""Tells workers that compute, read or write from workers that hang, by what their node says of their processes.

Asked from outside: a trainer that spins in C lets no thread of its own process speak. A worker that computes on a GPU,
waits for a busy one or loads data passes at least one of the thresholds; one that waits for a peer, a lock or a file
server that does not answer passes none. Ray's own threads in an idle worker take 2 to 4 % of a CPU and read and write
less than 1 kB/s.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from buttress.execution.messages import WorkerInfo

#: Share of one CPU, by a worker's process and its children.
MIN_CPU = 0.1
#: Bytes a second that a worker's process and its children read and write.
MIN_IO = 10_000.0
#: Times a second that the trainer's thread waited for something and got it: chunks from a socket count nowhere else.
MIN_WAITS = 2.0


@dataclass(frozen=True)
class Activity:
    """What the processes of one worker have done since they began.

    Attributes:
        cpu_s: Processor time, seconds.
        io_bytes: Bytes read and written by system calls on files and pipes.
        waits: Voluntary context switches of the trainer's thread.
        dead: The process is gone.
    """

    cpu_s: float = 0.0
    io_bytes: float = 0.0
    waits: int = 0
    dead: bool = False


def read_activity(workers: Sequence[tuple[int, int]]) -> list[Activity]:
    """The activity of workers on this node, each given by process id and native thread id of its trainer."""
    import psutil

    found = []
    for pid, thread in workers:
        cpu_s = io_bytes = 0.0
        dead = True
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(pid)
            dead = root.status() == psutil.STATUS_ZOMBIE
            for process in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    cpu_s += times.user + times.system
                    if hasattr(process, "io_counters"):  # not on macOS
                        counters = process.io_counters()
                        io_bytes += getattr(counters, "read_chars", 0) + getattr(counters, "write_chars", 0)
        found.append(Activity(cpu_s, io_bytes, _waits(pid, thread), dead))
    return found


def _waits(pid: int, thread: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path(f"/proc/{pid}/task/{thread}/status").read_text()
        return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return 0


def was_active(before: Iterable[Activity], after: Iterable[Activity], seconds: float) -> bool:
    """Whether any of the workers did something between two readings that lie `seconds` apart."""
    return any(
        now.cpu_s - then.cpu_s >= MIN_CPU * seconds
        or now.io_bytes - then.io_bytes >= MIN_IO * seconds
        or now.waits - then.waits >= MIN_WAITS * seconds
        for then, now in zip(before, after, strict=True)
    )


class _Watched:
    """The readings of one trial's workers, one after the other."""

    def __init__(self, workers: Collection[WorkerInfo]) -> None:
        self.nodes: dict[str, list[tuple[int, int]]] = {}
        for worker in workers:
            self.nodes.setdefault(worker.node, []).append((worker.pid, worker.thread))
        self.pending: list[Any] = []  # Ray's references, of the reading under way
        self.asked = 0.0
        self.last: tuple[float, list[Activity]] | None = None


class ActivityProbe:
    """Asks the nodes of silent trials what their workers do. Never waits.

    Args:
        interval_s: Seconds between two readings of a trial.
        node: The driver's node (id), where processes are read directly; None: it is looked up.
    """

    def __init__(self, interval_s: float, node: str | None = None) -> None:
        self._interval_s, self._node = interval_s, node
        self._watched: dict[str, _Watched] = {}

    def find_active(self, silent: Mapping[str, Collection[WorkerInfo]]) -> list[str]:
        """Which of these silent trials are active after all, as far as is known by now.

        Args:
            silent: Trial -> its workers, as long as it is silent; a trial that is left out is forgotten.
        """
        self._watched = {trial: watched for trial, watched in self._watched.items() if trial in silent}
        now, active = time.monotonic(), []
        for trial, workers in silent.items():
            watched = self._watched.setdefault(trial, _Watched(workers))
            if not watched.pending:
                if now - watched.asked >= self._interval_s:
                    watched.asked, watched.pending = now, self._ask(watched.nodes)
            elif (activities := _answer(watched)) is not None:
                last, watched.last, watched.pending = watched.last, (watched.asked, activities), []
                if last is not None and was_active(last[1], activities, watched.asked - last[0]):
                    active.append(trial)
        return active

    def found_dead(self, trial: str) -> bool:
        """Whether a worker of a silent trial was gone when its node was last asked."""
        watched = self._watched.get(trial)
        return watched is not None and watched.last is not None and any(each.dead for each in watched.last[1])

    def _ask(self, nodes: dict[str, list[tuple[int, int]]]) -> list[Any]:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._node = self._node or ray.get_runtime_context().get_node_id()
        references: list[Any] = []
        for node, workers in nodes.items():
            if node == self._node:
                references.append(ray.put(read_activity(workers)))
            else:
                on_node = NodeAffinitySchedulingStrategy(node, soft=False)
                task = ray.remote(num_cpus=0, max_retries=0)(read_activity)
                references.append(task.options(scheduling_strategy=on_node).remote(workers))
        return references


def _answer(watched: _Watched) -> list[Activity] | None:
    """The readings that were asked for, in the order of the nodes; None while they are not all there.

    Of a node that does not answer nothing is known, which is no activity.
    """
    import ray

    if len(ray.wait(watched.pending, num_returns=len(watched.pending), timeout=0)[0]) < len(watched.pending):
        return None
    found: list[Activity] = []
    for reference, workers in zip(watched.pending, watched.nodes.values(), strict=True):
        try:
            found += ray.get(reference)
        except ray.exceptions.RayError:
            found += [Activity()] * len(workers)
    return found
