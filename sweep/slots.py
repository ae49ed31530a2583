"""Warm slots: groups of DDP workers that outlive their trials.

The driver owns the slots. Each is one `TorchTrainer.fit()` in a thread of the driver, whose workers run `worker.work`
until the mailbox is closed. Starting a group costs ten seconds and more; a trial that takes a warm slot starts within
milliseconds. A group whose process died is restarted by Ray Train, and a fit that ended although the sweep goes on is
started again here. Nothing outlives `close`: waits end, fits return, threads are joined, the mailbox is killed.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
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

from search_spaces.errors import BadInput
from search_spaces.spec import Resources
from sweep.worker import work

log = logging.getLogger("buttress.slots")

#: A slot's CPUs less this share is what its workers reserve: Tune's trial actors and the mailbox need a little too.
SPARE_CPU = 0.01
#: Starts of one slot in a row that end before its workers said hello, after which the sweep gives up.
MOST_FAILED_STARTS = 3


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
        self._controller = ray.remote(**options)(TrainController).remote(**settings)
        if self._unwanted:
            self.kill()
        ray.get(self._controller.run.remote())
        return ray.get(self._controller.get_result.remote())

    _controller: Any = None
    _unwanted = False

    def kill(self) -> None:
        """Makes `fit` raise, whatever it is waiting for; Ray takes the workers and their placement group down."""
        self._unwanted = True
        if self._controller is not None:
            ray.kill(self._controller)


def concurrency(resources: Resources, free: dict[str, float]) -> int:
    """How many slots fit: floor(free / needed) over CPUs and GPUs, at most `resources.concurrency`.

    Raises BadInput where not even one fits, naming what is needed and what there is.
    """
    needs = {
        "CPU": resources.workers * resources.cpus_per_worker,
        "GPU": resources.workers * resources.gpus_per_worker,
    }
    fits = min(int((free.get(kind, 0.0) + 1e-6) // need) for kind, need in needs.items() if need > 0)
    if fits < 1:
        lacking = ", ".join(
            f"{need:g} {kind}s are needed and {free.get(kind, 0.0):g} are there"
            for kind, need in needs.items()
            if need > free.get(kind, 0.0)
        )
        raise BadInput(
            f"a trial of {resources.workers} workers does not fit the cluster: {lacking}",
            key="resources.workers",
            value=resources.workers,
            accepted="fewer workers, fewer cpus_per_worker or gpus_per_worker, or a larger cluster",
        )
    if resources.concurrency == "auto":
        return fits
    if int(resources.concurrency) > fits:
        raise BadInput(
            f"only {fits} trials of this size fit the cluster at once",
            key="resources.concurrency",
            value=resources.concurrency,
            accepted=f"1 to {fits}, or auto",
        )
    return int(resources.concurrency)


@dataclass
class _Slot:
    name: str
    thread: threading.Thread
    failed_starts: int = 0
    ranks: dict[int, dict[str, Any]] | None = None  # None until the workers of the present fit are up
    trainer: SlotTrainer | None = None


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
        for number in range(count):
            name = f"slot-{number}"
            thread = threading.Thread(target=self._keep, args=(name,), name=name, daemon=True)
            self._slots[name] = _Slot(name, thread)

    def __len__(self) -> int:
        return len(self._slots)

    def start(self) -> None:
        for slot in self._slots.values():
            slot.thread.start()

    def said_hello(self, slot: str, ranks: dict[int, dict[str, Any]]) -> None:
        """All workers of the slot are up; `ranks` holds each rank's pid, host and actor handle."""
        self._slots[slot].ranks, self._slots[slot].failed_starts = ranks, 0

    def kill(self, slot: str) -> None:
        """Kills the workers of a slot that hangs; Ray Train starts new ones."""
        for rank in (self._slots[slot].ranks or {}).values():
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
        return [slot.name for slot in late if slot.thread.is_alive()]

    def _keep(self, name: str) -> None:
        """One slot's thread: a fit, and another one should it end before the sweep does."""
        slot = self._slots[name]
        while not self._closing.is_set():
            error: BaseException | None = None
            slot.ranks = None
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
