"""The worker pool of a sweep: warm slots, each a group of DDP workers that outlives its trials.

The driver owns the slots. Each is one `fit()` of a Ray Train trainer in a thread of the driver, whose workers run
`worker.run_worker` until the mailbox is closed. Starting a group takes ten seconds and more; a trial that takes a warm
slot starts within milliseconds. Ray Train restarts a group whose process died; a fit that ended although the sweep goes
on is started again here. Nothing outlives `WorkerPool.close`.
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

from buttress.compat.ray_train import ControllableTrainer, SlotTorchConfig
from buttress.errors import BadInput
from buttress.execution.messages import LoseSlot, WorkerInfo
from buttress.execution.worker import run_worker
from buttress.spec.sections import Resources
from buttress.wording import plural

log = logging.getLogger("buttress.slots")

#: A worker reserves its CPUs less this share: Tune's trial actors and the mailbox need a little, too.
CPU_MARGIN = 0.01
#: Starts of one slot in a row that end before its workers are ready, after which the sweep fails.
MAX_FAILED_STARTS = 3
#: Seconds within which the workers of a slot are ready where the cluster has free resources for them.
START_TIMEOUT_S = 60.0


def count_fitting_slots(resources: Resources, nodes: Iterable[Mapping[str, float]]) -> int:
    """How many slots fit on a cluster. A worker lies on one node, the workers of a slot on several if need be.

    Args:
        resources: What a slot needs.
        nodes: Free resources of each node, `CPU` and `GPU`.

    Returns:
        Number of slots, possibly 0.
    """
    needs = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    workers = sum(
        min(int((node.get(kind, 0.0) + 1e-6) // need) for kind, need in needs.items() if need > 0) for node in nodes
    )
    return workers // resources.workers


def resolve_concurrency(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many slots a sweep begins with: as many as fit, at most `resources.concurrency`.

    Args:
        resources: What a slot needs, and how many are wanted; with `autoscale` as many as that, whatever fits now.
        nodes: Free resources of each node, `CPU` and `GPU`.

    Returns:
        Number of slots, at least 1.

    Raises:
        BadInput: Not even one fits, or fewer than wanted; says what is needed and what there is.
    """
    if resources.autoscale:
        return int(resources.concurrency)
    fits = count_fitting_slots(resources, nodes)
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
            f"no more than {plural(fits, 'trial')} of this size at once fit the cluster",
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
    workers: Mapping[int, WorkerInfo] | None = None  # rank -> worker; None until those of the present fit are ready
    trainer: ControllableTrainer | None = None
    waits_since: float = 0.0  # when its workers were last asked for
    wait_reported: bool = False  # `pop_long_waiting` has named it


class WorkerPool:
    """The slots of one sweep. All methods may be called from any thread.

    Args:
        mailbox: Handle of the sweep's mailbox.
        count: Slots to begin with.
        resources: What each slot needs.
        folder: Where Ray Train writes; nothing of it is read again.
        fail: Called with the error when a slot cannot be started at all.
    """

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
        self._lock = threading.Lock()  # for all that is in `_slots`; never held while Ray is waited for
        self._slots: dict[str, _Slot] = {}
        self._create(count)

    def __len__(self) -> int:
        with self._lock:
            return len(self._slots)

    def start(self) -> None:
        """Starts the workers of all slots that have none yet; returns at once."""
        with self._lock:
            created = [slot for slot in self._slots.values() if not slot.thread.ident]
            for slot in created:
                slot.waits_since = time.monotonic()
        for slot in created:
            slot.thread.start()

    def add(self, count: int) -> None:
        """Adds and starts slots."""
        self._create(count)
        self.start()

    def _create(self, count: int) -> None:
        with self._lock:
            for number in range(len(self._slots), len(self._slots) + count):
                name = f"slot-{number}"
                thread = threading.Thread(target=self._run_slot, args=(name,), name=name, daemon=True)
                self._slots[name] = _Slot(name, thread)

    def mark_ready(self, slot: str, workers: Mapping[int, WorkerInfo]) -> None:
        """All workers of the slot are up; `workers` maps ranks to them."""
        with self._lock:
            entry = self._slots[slot]
            entry.workers, entry.failed_starts, entry.wait_reported = workers, 0, False

    def mark_lost(self, slot: str) -> None:
        """The workers of the slot are gone or about to go; new ones are asked for."""
        with self._lock:
            self._mark_lost(self._slots[slot])

    @staticmethod
    def _mark_lost(slot: _Slot) -> None:
        slot.workers, slot.waits_since = None, time.monotonic()

    def slots_on(self, nodes: Collection[str]) -> list[str]:
        """Slots with a worker on one of these nodes (ids)."""
        with self._lock:
            return [
                slot.name for slot in self._slots.values()
                if any(worker.node in nodes for worker in (slot.workers or {}).values())
            ]  # fmt: skip

    def workers_of(self, slot: str) -> list[WorkerInfo]:
        """The workers of a slot; none until they are ready."""
        with self._lock:
            return list((self._slots[slot].workers or {}).values())

    def count_usable(self) -> int:
        """Slots that have workers or will have them within `START_TIMEOUT_S`, as far as one can tell; at least 1."""
        now = time.monotonic()
        with self._lock:
            usable = (s.workers is not None or now - s.waits_since < START_TIMEOUT_S for s in self._slots.values())
            return max(1, sum(usable))

    def count_waiting(self) -> int:
        """Slots without workers: they take resources that become free."""
        with self._lock:
            return sum(slot.workers is None for slot in self._slots.values())

    def pop_long_waiting(self) -> list[str]:
        """Slots that have waited for resources longer than `START_TIMEOUT_S`; each wait is named once."""
        now = time.monotonic()
        with self._lock:
            found = [
                slot for slot in self._slots.values()
                if slot.workers is None and not slot.wait_reported and now - slot.waits_since > START_TIMEOUT_S
            ]  # fmt: skip
            for slot in found:
                slot.wait_reported = True
        return [slot.name for slot in found]

    def kill(self, slot: str) -> None:
        """Kills the workers of a slot that hangs, or whose node is about to go; Ray Train starts new ones."""
        with self._lock:
            entry = self._slots[slot]
            workers = list((entry.workers or {}).values())
            self._mark_lost(entry)
        for worker in workers:
            ray.kill(worker.actor, no_restart=True)

    def close(self, timeout_s: float = 10.0) -> list[str]:
        """Ends every slot: the workers leave their loops by themselves, those that do not in time are killed.

        Workers that are not up yet are not waited for, and a Ctrl-C ends all waiting.

        Args:
            timeout_s: Seconds for leaving, and as many again for being killed.

        Returns:
            The slots whose threads still run: Ray must not be shut down under them, it would end the process.
        """
        self._closing.set()
        deadline = time.monotonic() + timeout_s
        with self._lock:
            slots = list(self._slots.values())
        try:
            ray.get(self._mailbox.close.remote(), timeout=timeout_s)
            for slot in slots:
                if slot.thread.is_alive() and slot.workers is not None:
                    slot.thread.join(max(0.0, deadline - time.monotonic()))
        except KeyboardInterrupt:
            log.warning("not waiting for the workers any longer")
        except Exception as error:
            log.warning("the mailbox could not be closed: %s", error)
        late = [slot for slot in slots if slot.thread.is_alive()]
        with self._lock:
            trainers = [slot.trainer for slot in late if slot.trainer is not None]
        for trainer in trainers:
            trainer.kill()
        for slot in late:
            slot.thread.join(timeout_s)
        if trainers:
            ControllableTrainer.cancel_requests(trainers)
        return [slot.name for slot in late if slot.thread.is_alive()]

    def _run_slot(self, name: str) -> None:
        """The thread of one slot: a fit, and another one should it end before the sweep does."""
        slot = self._slots[name]
        while not self._closing.is_set():
            error: BaseException | None = None
            try:
                trainer = self._trainer(name)
                with self._lock:
                    if self._closing.is_set():
                        return
                    self._mark_lost(slot)
                    slot.trainer = trainer
                trainer.fit()
            except Exception as raised:
                error = raised
            if self._closing.is_set():
                return
            log.warning("the workers of %s ended before the sweep did: %s", name, error or "no error")
            with self._lock:
                slot.failed_starts += slot.workers is None
                failed_starts = slot.failed_starts
            if failed_starts >= MAX_FAILED_STARTS:
                self._fail(error or RuntimeError(f"{name} ended {failed_starts} times before its workers were ready"))
                return
            try:
                lost = LoseSlot(name, f"the workers of {name} ended: {error or 'no error'}")
                ray.get(self._mailbox.send.remote(lost))
            except Exception:
                return

    def _trainer(self, name: str) -> ControllableTrainer:
        resources = self._resources
        each: dict[str, float] = {"CPU": max(resources.cpus_per_worker - CPU_MARGIN, 0.01)}
        if resources.gpus_per_worker:
            each["GPU"] = resources.gpus_per_worker
        one = resources.workers == 1 or not resources.gpus_per_worker
        return ControllableTrainer(
            run_worker,
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
            torch_config=SlotTorchConfig(backend="gloo" if one else "cpu:gloo,cuda:nccl"),
            run_config=RunConfig(
                name=name,
                storage_path=str(self._folder.absolute() / "slots"),
                failure_config=FailureConfig(max_failures=-1),
            ),
        )
