"""The mailbox of a sweep: a Ray actor that its driver, its warm slots and Tune's trial actors exchange messages by.

The three never call each other. The workers of a slot take assignments, send reports and wait for signals; a Tune trial
actor submits its trial and waits for results; the driver takes all events, decides, and sends commands. The mailbox
itself decides only which free slot takes the next trial, and keeps no history. It imports neither torch nor Tune, so
that its process stays small.

Every wait is a long poll: a call returns as soon as there is news, or after `POLL_TIMEOUT_S` without any. A closed
mailbox ends all waits and stops all trials.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from buttress.execution.messages import (
    Assignment,
    AssignmentEnded,
    AssignmentLost,
    AssignmentStarted,
    AttemptResult,
    Command,
    DrainSlot,
    DropTrial,
    LoseSlot,
    MailboxEvent,
    NoAssignment,
    ReleaseResult,
    ReportReceived,
    RequeueTrial,
    Signal,
    SlotIdle,
    SlotReady,
    StopTrial,
    WorkerInfo,
)

T = TypeVar("T")

#: Seconds after which a call that waits returns without news and is made again: none is pending for ever.
POLL_TIMEOUT_S = 20.0


class _Trial:
    """One trial between its submission and its last result."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.stop_reason: str | None = None  # once its workers are to stop
        self.draining = False  # its node is about to go: the workers leave a checkpoint and stop by themselves
        self.running = False  # workers are in it
        self.dropped = False  # Tune has fetched its last result
        self.results: list[dict[str, Any]] = []  # for Tune, in order


class _Slot:
    """One group of workers. `incarnation` changes when Ray Train restarts the group."""

    def __init__(self) -> None:
        self.incarnation: str | None = None
        self.workers: dict[int, WorkerInfo] = {}
        self.size = 0
        self.assigned = 0  # assignments of this incarnation; every rank takes each of them
        self.assignment: Assignment | None = None  # the last of them
        self.trial: str | None = None
        self.draining = False  # takes no more assignments in this incarnation

    @property
    def ready(self) -> bool:
        complete = self.incarnation is not None and len(self.workers) == self.size
        return complete and self.trial is None and not self.draining


class Mailbox:
    """State and calls of the mailbox; `start` makes it an actor. Every call that may wait is a coroutine."""

    def __init__(self) -> None:
        self._trials: dict[str, _Trial] = {}
        #: Trials that have left and their last attempt: a Tune actor that comes too late does not bring them back.
        self._past: dict[str, int] = {}
        self._slots: dict[str, _Slot] = {}
        self._queue: deque[str] = deque()  # submitted trials without a slot
        self._events: list[MailboxEvent] = []  # for the driver
        self._closed = False
        self._waiting: dict[str, set[asyncio.Event]] = {}  # topic -> who waits for news of it

    # --- Tune's trial actors -------------------------------------------------------------------------------------

    async def submit(self, assignment: Assignment) -> None:
        """A trial wants a slot. Submitting an attempt that is already here, or over, changes nothing.

        That happens when its Tune actor died, or when Tune started a second one and placed the trial on the first
        after all. A trial that was paused comes back with a later attempt.
        """
        trial = assignment.trial
        present = self._trials.get(trial)
        last = present.assignment.attempt if present is not None else self._past.get(trial, 0)
        if assignment.attempt <= last or (present is not None and present.running):
            return
        self._trials[trial] = _Trial(assignment)
        self._queue.append(trial)
        self._assign()

    async def next_result(self, trial: str, seen: int) -> dict[str, Any] | None:
        """The trial's result number `seen` (0 is the first) once the driver has released it; None: ask again."""

        def find() -> dict[str, Any] | None:
            entry = self._trials.get(trial)
            if entry and len(entry.results) > seen:
                return entry.results[seen]
            return {"done": True, "outcome": "interrupted"} if self._closed or entry is None else None

        return await self._wait(f"results of {trial}", find)

    # --- the workers of a slot -----------------------------------------------------------------------------------

    async def register(self, slot: str, incarnation: str, rank: int, size: int, worker: WorkerInfo) -> None:
        """A worker of `slot` has started. A new `incarnation` loses what the former one was doing."""
        entry = self._slots.setdefault(slot, _Slot())
        if entry.incarnation != incarnation:
            self._lose(slot)
            entry.incarnation, entry.workers, entry.size, entry.assigned = incarnation, {}, size, 0
            entry.draining = False
        entry.workers[rank] = worker
        if len(entry.workers) == size:
            self._add_event(SlotReady(slot, dict(entry.workers)))
        self._assign()

    async def next_assignment(self, slot: str, incarnation: str, seen: int) -> Assignment | NoAssignment | None:
        """Assignment number `seen` (0 is the first) of this incarnation, the same for every rank; None: ask again."""

        def find() -> Assignment | NoAssignment | None:
            entry = self._slots.get(slot)
            if self._closed or entry is None or entry.incarnation != incarnation:
                return NoAssignment.CLOSED
            return entry.assignment if entry.assigned > seen else None

        return await self._wait(f"assignments of {slot}", find)

    async def report(self, trial: str, attempt: int, report: bytes) -> None:
        """A merged report of rank 0, pickled."""
        self._add_event(ReportReceived(trial, attempt, report))

    async def wait_for_signal(self, trial: str, attempt: int, draining: bool = False) -> Signal | None:
        """The next signal for the workers of an attempt; None: ask again.

        Args:
            trial: The trial.
            attempt: The attempt; of an older one the answer is `ATTEMPT_OVER`.
            draining: The workers know of the drain; without it `DRAIN` would be the answer again.
        """

        def find() -> Signal | None:
            entry = self._trials.get(trial)
            if entry is None or entry.assignment.attempt != attempt or not entry.running:
                return Signal.ATTEMPT_OVER
            if self._closed or entry.stop_reason is not None:
                return Signal.STOP
            return Signal.DRAIN if entry.draining and not draining else None

        return await self._wait(f"signals of {trial}", find)

    async def end_attempt(self, slot: str, incarnation: str, trial: str, attempt: int, result: AttemptResult) -> None:
        """The workers have left the trial; the slot is free again."""
        entry = self._slots.get(slot)
        if entry is None or entry.incarnation != incarnation or entry.trial != trial:
            return
        entry.trial = None
        self._leave(trial)
        self._add_event(AssignmentEnded(trial, attempt, slot, result, drained=entry.draining))
        self._assign()

    # --- the driver ----------------------------------------------------------------------------------------------

    async def exchange(self, commands: Iterable[Command], wait_s: float = POLL_TIMEOUT_S) -> list[MailboxEvent]:
        """Executes commands in order and returns the events since the last call, oldest first.

        They travel in one message because Ray does not keep the order of calls to an asyncio actor.

        Args:
            commands: What the driver has decided.
            wait_s: Longest wait for the first event, seconds.
        """
        for command in commands:
            self.execute(command)
        await self._wait("events", lambda: True if self._events or self._closed else None, wait_s)
        events, self._events = self._events, []
        return events

    def execute(self, command: Command) -> None:
        """Executes one command; one for a trial or slot that is not here does nothing."""
        match command:
            case ReleaseResult(trial=trial) if entry := self._trials.get(trial):
                entry.results.append(dict(command.result))
                self._wake(f"results of {trial}")
            case StopTrial(trial=trial) if entry := self._trials.get(trial):
                entry.stop_reason = entry.stop_reason or command.reason
                if trial in self._queue:
                    self._queue.remove(trial)
                self._wake(f"signals of {trial}")
            case RequeueTrial(assignment=assignment) if entry := self._trials.get(assignment.trial):
                entry.assignment, entry.running, entry.draining = assignment, False, False
                self._queue.appendleft(assignment.trial)
                self._assign()
            case DropTrial(trial=trial, attempt=attempt) if entry := self._trials.get(trial):
                if attempt is None or entry.assignment.attempt <= attempt:
                    entry.dropped = True
                    self._forget_if_over(trial)
            case LoseSlot(slot=name) if slot := self._slots.get(name):
                self._lose(name, command.reason)
                slot.incarnation, slot.workers, slot.assigned = None, {}, 0
                self._wake(f"assignments of {name}")
            case DrainSlot(slot=name) if slot := self._slots.get(name):
                self._drain(name, slot)

    async def send(self, command: Command) -> None:
        """Executes one command that does not come with an exchange."""
        self.execute(command)

    async def close(self) -> None:
        """Ends all waits: workers leave their loops, Tune's actors are told that their trials were interrupted."""
        self._closed = True
        for topic in list(self._waiting):
            self._wake(topic)

    # --- internals -----------------------------------------------------------------------------------------------

    def _drain(self, name: str, slot: _Slot) -> None:
        if slot.incarnation is None or slot.draining:
            return
        slot.draining = True
        if slot.trial is None:
            self._add_event(SlotIdle(name))
        else:
            self._trials[slot.trial].draining = True
            self._wake(f"signals of {slot.trial}")

    def _leave(self, trial: str) -> None:
        """No worker is in the trial any more."""
        self._trials[trial].running = False
        self._wake(f"signals of {trial}")
        self._forget_if_over(trial)

    def _forget_if_over(self, trial: str) -> None:
        entry = self._trials[trial]
        if entry.dropped and not entry.running:
            self._past[trial] = self._trials.pop(trial).assignment.attempt

    def _add_event(self, event: MailboxEvent) -> None:
        self._events.append(event)
        self._wake("events")

    def _lose(self, name: str, reason: str = "") -> None:
        slot = self._slots[name]
        trial, slot.trial = slot.trial, None
        entry = self._trials.get(trial) if trial else None
        if trial and entry and entry.running:
            entry.running = False
            self._add_event(AssignmentLost(trial, entry.assignment.attempt, name, reason))
            self._wake(f"signals of {trial}")

    def _assign(self) -> None:
        for name, slot in self._slots.items():
            if self._queue and slot.ready:
                trial = self._queue.popleft()
                entry = self._trials[trial]
                slot.trial, entry.running = trial, True
                slot.assigned, slot.assignment = slot.assigned + 1, entry.assignment
                self._add_event(AssignmentStarted(trial, entry.assignment.attempt, name, slot.workers[0]))
                self._wake(f"assignments of {name}")

    def _wake(self, topic: str) -> None:
        for event in self._waiting.get(topic, ()):
            event.set()

    async def _wait(self, topic: str, find: Callable[[], T | None], wait_s: float = POLL_TIMEOUT_S) -> T | None:
        """`find()` as soon as it is not None, tried at every news of `topic`; None after `wait_s` seconds."""
        if (found := find()) is not None:
            return found
        news = asyncio.Event()
        self._waiting.setdefault(topic, set()).add(news)
        deadline = asyncio.get_running_loop().time() + wait_s
        try:
            while (remaining := deadline - asyncio.get_running_loop().time()) > 0:
                try:
                    await asyncio.wait_for(news.wait(), remaining)
                except TimeoutError:
                    break
                news.clear()
                if (found := find()) is not None:
                    return found
            return find()
        finally:
            self._waiting[topic].discard(news)
            if not self._waiting[topic]:
                del self._waiting[topic]


def start(name: str, namespace: str | None = None) -> Any:
    """Starts the mailbox actor under `name`, on the driver's node; it lives as long as the driver."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 10_000, "scheduling_strategy": here}
    options["enable_task_events"] = False  # else the head keeps 5 kB of every report's call, up to 100,000 calls
    return ray.remote(Mailbox).options(name=name, namespace=namespace, **options).remote()
