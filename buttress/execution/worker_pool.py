"""Warm slots: groups of DDP workers that outlive their trials.

The driver owns the slots. Each is one `TorchTrainer.fit()` in a thread of the driver, whose workers run `worker.work`
until the mailbox is closed. Starting a group costs ten seconds and more; a trial that takes a warm slot starts within
milliseconds. A group whose process died is restarted by Ray Train, and a fit that ended although the sweep goes on is
started again here. Nothing outlives `close`: waits end, fits return, threads are joined, the mailbox is killed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig

from buttress.compat.ray_train import ControllableTrainer
from buttress.errors import BadInput
from buttress.execution.worker import work
from buttress.spec.sections import Resources
from buttress.wording import plural

log = logging.getLogger("buttress.slots")

#: A slot's CPUs less this share is what its workers reserve: Tune's trial actors and the mailbox need a little too.
SPARE_CPU = 0.01
#: Starts of one slot in a row that end before its workers said hello, after which the sweep gives up.
MOST_FAILED_STARTS = 3
#: Seconds that the workers of a slot take to start where there is room for them, on a slow machine.
STARTS_WITHIN_S = 60.0


def fitting(resources: Resources, nodes: Iterable[Mapping[str, float]]) -> int:
    """How many slots fit on nodes with this much free: a worker on one node, a slot's workers on several if need be."""
    needs = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    workers = sum(
        min(int((node.get(kind, 0.0) + 1e-6) // need) for kind, need in needs.items() if need > 0) for node in nodes
    )
    return workers // resources.workers


def concurrency(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many slots there will be on nodes with this much free: what fits, at most `resources.concurrency`.

    Raises BadInput where not even one fits, naming what is needed and what there is; not so with `autoscale`.
    """
    if resources.autoscale:
        return int(resources.concurrency)
    fits = fitting(resources, nodes)
    if fits < 1:
        needs = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
        free = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in needs}
        most = {kind: max((node.get(kind, 0.0) for node in nodes), default=0.0) for kind in needs}
        lacking = {
            kind: f"it needs {plural(resources.workers * need, kind)} and there are {free[kind]:g}"
            for kind, need in needs.items()
            if resources.workers * need > free[kind]
        } or {
            kind: f"each worker needs {plural(need, kind)} and no node has more than {most[kind]:g}"
            for kind, need in needs.items()
            if need > most[kind]
        }
        why = ", ".join(lacking.values()) or "its parts lie on too many nodes"
        blamed = "workers" if resources.workers > 1 or not lacking else f"{next(iter(lacking)).lower()}s_per_worker"
        raise BadInput(
            f"a trial of {plural(resources.workers, 'worker')} does not fit the cluster: {why}",
            key=f"resources.{blamed}",
            value=getattr(resources, blamed),
            accepted="fewer workers, fewer cpus_per_worker or gpus_per_worker, a larger cluster, or autoscale: true "
            "where nodes will join",
        )
    if resources.concurrency == "auto":
        return fits
    if int(resources.concurrency) > fits:
        raise BadInput(
            f"only {fits} trials of this size fit the cluster at once",
            key="resources.concurrency",
            value=resources.concurrency,
            accepted=f"1 to {fits}, auto, or autoscale: true where nodes will join",
        )
    return int(resources.concurrency)


@dataclass
class _Slot:
    name: str
    thread: threading.Thread
    failed_starts: int = 0
    ranks: dict[int, dict[str, Any]] | None = None  # None until the workers of the present fit are up
    trainer: ControllableTrainer | None = None
    waits_since: float = 0.0  # when its workers were last asked for
    told: bool = False  # that it waits for room


class SlotPool:
    """The slots of one sweep. `fail` is called with an error when a slot cannot be started at all."""

    def __init__(
        self,
        mailbox: Any,
        count: int,
        resources: Resources,
        folder: Path,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._mailbox, self._resources, self._folder, self._fail = mailbox, resources, folder, fail
        self._closing = threading.Event()
        self._slots: dict[str, _Slot] = {}
        self._make(count)

    def __len__(self) -> int:
        return len(self._slots)

    def start(self) -> None:
        for slot in self._slots.values():
            if not slot.thread.ident:
                slot.waits_since = time.monotonic()
                slot.thread.start()

    def add(self, count: int) -> None:
        """More slots: nodes have joined."""
        self._make(count)
        self.start()

    def _make(self, count: int) -> None:
        for number in range(len(self._slots), len(self._slots) + count):
            name = f"slot-{number}"
            thread = threading.Thread(target=self._keep, args=(name,), name=name, daemon=True)
            self._slots[name] = _Slot(name, thread)

    def said_hello(self, slot: str, ranks: dict[int, dict[str, Any]]) -> None:
        """All workers of the slot are up; `ranks` holds each rank's pid, host, node and actor handle."""
        entry = self._slots[slot]
        entry.ranks, entry.failed_starts, entry.told = ranks, 0, False

    def on(self, nodes: Collection[str]) -> list[str]:
        """Slots with a worker on one of these nodes."""
        ranks = {slot.name: list((slot.ranks or {}).values()) for slot in self._slots.values()}
        return [name for name, held in ranks.items() if any(rank["node"] in nodes for rank in held)]

    def gone(self, slot: str) -> None:
        """The workers of the slot are lost or on their way out; new ones are asked for."""
        self._slots[slot].ranks, self._slots[slot].waits_since = None, time.monotonic()

    def working(self) -> int:
        """Slots that have workers or will have them within seconds, as far as one can tell; at least one."""
        now = time.monotonic()
        slots = self._slots.values()
        return max(1, sum(slot.ranks is not None or now - slot.waits_since < STARTS_WITHIN_S for slot in slots))

    def waiting(self) -> int:
        """Slots without workers: they will take room that becomes free."""
        return sum(slot.ranks is None for slot in self._slots.values())

    def patience_over(self) -> list[str]:
        """Slots that have waited for room longer than a start takes, each told once."""
        now = time.monotonic()
        found = [
            slot for slot in self._slots.values()
            if slot.ranks is None and not slot.told and now - slot.waits_since > STARTS_WITHIN_S
        ]  # fmt: skip
        for slot in found:
            slot.told = True
        return [slot.name for slot in found]

    def kill(self, slot: str) -> None:
        """Kills the workers of a slot that hangs, or whose node goes; Ray Train starts new ones."""
        ranks = self._slots[slot].ranks or {}
        self.gone(slot)
        for rank in ranks.values():
            ray.kill(rank["actor"], no_restart=True)

    def close(self, deadline_s: float = 10.0) -> list[str]:
        """Ends every slot: the workers leave their loops by themselves, those that do not in time are killed.

        A slot whose workers are not up yet is not waited for, and a Ctrl-C ends all waiting. Returns the slots that
        are there nevertheless: Ray must not be shut down under their threads, it would end the process.
        """
        self._closing.set()
        end = time.monotonic() + deadline_s
        try:
            ray.get(self._mailbox.close.remote(), timeout=deadline_s)
            for slot in self._slots.values():
                if slot.thread.is_alive() and slot.ranks is not None:
                    slot.thread.join(max(0.0, end - time.monotonic()))
        except KeyboardInterrupt:
            log.warning("not waiting for the workers any longer")
        except Exception as error:
            log.warning("the mailbox could not be closed: %s", error)
        late = [slot for slot in self._slots.values() if slot.thread.is_alive()]
        for slot in late:
            if slot.trainer is not None:
                slot.trainer.kill()
        for slot in late:
            slot.thread.join(deadline_s)
        if late:
            ControllableTrainer.cancel_requests([slot.trainer for slot in late if slot.trainer is not None])
        return [slot.name for slot in late if slot.thread.is_alive()]

    def _keep(self, name: str) -> None:
        """One slot's thread: a fit, and another one should it end before the sweep does."""
        slot = self._slots[name]
        while not self._closing.is_set():
            error: BaseException | None = None
            self.gone(name)
            try:
                slot.trainer = self._trainer(name)
                slot.trainer.fit()
            except Exception as raised:
                error = raised
            if self._closing.is_set():
                return
            log.warning("the workers of %s ended before the sweep did: %s", name, error or "no error")
            if slot.ranks is None:
                slot.failed_starts += 1
            if slot.failed_starts >= MOST_FAILED_STARTS:
                self._fail(error or RuntimeError(f"{name} ended {slot.failed_starts} times before its workers were up"))
                return
            try:
                ray.get(self._mailbox.lose.remote(name, f"the workers of {name} ended: {error or 'no error'}"))
            except Exception:
                return

    def _trainer(self, name: str) -> ControllableTrainer:
        resources = self._resources
        each: dict[str, float] = {"CPU": max(resources.cpus_per_worker - SPARE_CPU, 0.01)}
        if resources.gpus_per_worker:
            each["GPU"] = resources.gpus_per_worker
        one = resources.workers == 1 or not resources.gpus_per_worker
        return ControllableTrainer(
            work,
            train_loop_config={
                "slot": name,
                "mailbox": self._mailbox,
                "gpus": resources.gpus_per_worker,
                "folder": str(Path.cwd()),
            },
            scaling_config=ScalingConfig(
                num_workers=resources.workers,
                use_gpu=bool(resources.gpus_per_worker),
                resources_per_worker=each,
                placement_strategy="PACK",
            ),
            torch_config=TorchConfig(backend="gloo" if one else "cpu:gloo,cuda:nccl"),
            run_config=RunConfig(
                name=name,
                storage_path=str(self._folder.absolute() / "slots"),
                failure_config=FailureConfig(max_failures=-1),
            ),
        )
