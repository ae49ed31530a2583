"""Warm slots: groups of DDP workers that outlive their trials.

The driver owns the slots. Each is one `TorchTrainer.fit()` in a thread of the driver, whose workers run `worker.work`
until the mailbox is closed. Starting a group costs ten seconds and more; a trial that takes a warm slot starts within
milliseconds. A group whose process died is restarted by Ray Train, and a fit that ended although the sweep goes on is
started again here. Nothing outlives `close`: waits end, fits return, threads are joined, the mailbox is killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# read by Ray Train when it is imported; each saves a helper process per slot, or seconds after a fault
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from buttress.errors import BadInput
from buttress.execution.worker import work
from buttress.spec.spec import Resources
from buttress.wording import plural

log = logging.getLogger("buttress.slots")

#: A slot's CPUs less this share is what its workers reserve: Tune's trial actors and the mailbox need a little too.
SPARE_CPU = 0.01
#: Starts of one slot in a row that end before its workers said hello, after which the sweep gives up.
MOST_FAILED_STARTS = 3
#: Seconds that the workers of a slot take to start where there is room for them, on a slow machine.
STARTS_WITHIN_S = 60.0


class SlotTrainer(TorchTrainer):
    """A TorchTrainer that can be killed from outside, without the helpers a slot does not need (240 MB each slot).

    The placement group cleaner is a detached actor that asks the State API whether its controller lives; without the
    dashboard it never hears an answer and stays for ever. Slots are closed by their driver, and a placement group whose
    owner died is removed by Ray itself. The datasets manager serves Ray Data, which no trainable here uses.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unwanted = ("PlacementGroupCleanerCallback", "DatasetsCallback")
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if type(callback).__name__ not in unwanted]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        """Ray Train's own, but for the controller's handle, which is kept for `kill`."""
        env = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", **get_env_vars_to_propagate()}
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here, "runtime_env": {"env_vars": env}}
        self.run_id = settings["train_run_context"].run_id
        self._controller = ray.remote(**options)(TrainController).remote(**settings)
        if self._unwanted:
            self.kill()
        ray.get(self._controller.run.remote())
        return ray.get(self._controller.get_result.remote())

    _controller: Any = None
    run_id = ""  # Ray Train's id of it
    _unwanted = False

    def kill(self) -> None:
        """Makes `fit` raise, whatever it is waiting for; Ray takes the workers and their placement group down."""
        self._unwanted = True
        if self._controller is not None:
            ray.kill(self._controller)


def _ask_for_nothing(trainers: Sequence[SlotTrainer]) -> None:
    """Takes back what killed controllers asked the autoscaler for: it would hold nodes for three minutes more."""
    with contextlib.suppress(Exception):  # nothing has been asked for yet, or Ray is going down
        coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
        asked: list[Any] = [
            coordinator.cancel_request.remote(requester_id=f"train-{trainer.run_id}") for trainer in trainers
        ]
        ray.wait(asked, num_returns=len(asked), timeout=5.0)


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
    trainer: SlotTrainer | None = None
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
            _ask_for_nothing([slot.trainer for slot in late if slot.trainer is not None])
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

    def _trainer(self, name: str) -> SlotTrainer:
        resources = self._resources
        each: dict[str, float] = {"CPU": max(resources.cpus_per_worker - SPARE_CPU, 0.01)}
        if resources.gpus_per_worker:
            each["GPU"] = resources.gpus_per_worker
        one = resources.workers == 1 or not resources.gpus_per_worker
        return SlotTrainer(
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
