"""The one meeting point of a sweep: a Ray actor between the driver, the warm slots and Tune's trial actors.

Three parties talk to it and never to each other. The workers of a slot take work, post reports and hear `stop`; a Tune
trial actor hands in its trial and waits for results; the driver drains everything that happened, decides, and answers.
The mailbox decides nothing itself but which free slot takes the next trial. It keeps no history: what the driver has
drained is gone. This module imports neither torch nor Tune, so that its process stays small.

All waiting is long-polling: a call returns as soon as there is something to say, or after `POLL_S` with nothing, so
that no call is ever pending for ever. "Closed" also means "stop": every wait ends and every trial is told to stop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

POLL_S = 20.0  # longest time a call waits before it returns empty-handed and is made again


class _Trial:
    """One trial between its submission and its last result."""

    def __init__(self, work: dict[str, Any]) -> None:
        self.work = work  # trial, attempt, trainable, config, folder, resume: what a worker needs
        self.slot: str | None = None
        self.stop: str | None = None  # why the workers are to stop, once they are
        self.draining = False  # its node is about to go: the workers leave a checkpoint and stop by themselves
        self.ended = True  # no worker is in it
        self.dropped = False  # Tune has fetched its last result
        self.results: list[dict[str, Any]] = []  # for Tune, in order


class _Slot:
    """One group of workers. `life` changes when Train restarts the group."""

    def __init__(self) -> None:
        self.life: str | None = None
        self.ranks: dict[int, dict[str, Any]] = {}
        self.size = 0
        self.given = 0  # how many times work was handed out in this life; every rank takes it before there is more
        self.work: dict[str, Any] = {}  # the last of it
        self.trial: str | None = None
        self.draining = False  # takes no more work in this life

    @property
    def ready(self) -> bool:
        whole = self.life is not None and len(self.ranks) == self.size
        return whole and self.trial is None and not self.draining


class Mailbox:
    """The state and the calls; made an actor by `start`. Every call that may wait is a coroutine."""

    def __init__(self) -> None:
        self._trials: dict[str, _Trial] = {}
        #: Trials that have left and their last attempt: a Tune actor that comes too late does not bring them back.
        self._past: dict[str, int] = {}
        self._slots: dict[str, _Slot] = {}
        self._queue: deque[str] = deque()  # submitted trials without a slot
        self._events: list[dict[str, Any]] = []  # for the driver
        self._closed = False
        self._waiting: dict[str, set[asyncio.Event]] = {}  # topic -> who waits for news of it

    # --- Tune's trial actors -------------------------------------------------------------------------------------

    async def submit(self, work: dict[str, Any]) -> None:
        """A trial wants a slot. Submitting a trial that is already here, or over, changes nothing.

        Its Tune actor died, or Tune started a second one and placed the trial on the first after all. A trial that was
        set aside comes back with a later attempt.
        """
        trial = work["trial"]
        here = self._trials.get(trial)
        last = here.work["attempt"] if here is not None else self._past.get(trial, 0)
        if work["attempt"] <= last or (here is not None and not here.ended):
            return
        self._trials[trial] = _Trial(work)
        self._queue.append(trial)
        self._assign()

    async def next_result(self, trial: str, seen: int) -> dict[str, Any] | None:
        """The trial's result number `seen` (0 is the first), as soon as the driver released it; None: ask again."""

        def find() -> dict[str, Any] | None:
            entry = self._trials.get(trial)
            if entry and len(entry.results) > seen:
                return entry.results[seen]
            return {"done": True, "outcome": "interrupted"} if self._closed or entry is None else None

        return await self._wait(f"results of {trial}", find)

    # --- the workers of a slot -----------------------------------------------------------------------------------

    async def hello(self, slot: str, life: str, rank: int, size: int, info: dict[str, Any]) -> None:
        """A worker of `slot` has started. A new `life` voids what the former one was doing."""
        entry = self._slots.setdefault(slot, _Slot())
        if entry.life != life:
            if entry.trial is not None:
                self._lose(slot, "the workers of the slot were restarted")
            entry.life, entry.ranks, entry.size, entry.given = life, {}, size, 0
            entry.draining = False
        entry.ranks[rank] = info
        if len(entry.ranks) == size:
            self._event("slot", slot=slot, life=life, ranks=dict(entry.ranks))
        self._assign()

    async def take(self, slot: str, life: str, seen: int) -> dict[str, Any] | None:
        """Work number `seen` of this life, the same for every rank; `{"closed": True}` at the end; None: ask again."""

        def find() -> dict[str, Any] | None:
            entry = self._slots.get(slot)
            if self._closed or entry is None or entry.life != life:
                return {"closed": True}
            return entry.work if entry.given > seen else None

        return await self._wait(f"work of {slot}", find)

    async def post(self, trial: str, attempt: int, reported: dict[str, Any]) -> None:
        """One merged report of rank 0."""
        self._event("report", trial=trial, attempt=attempt, reported=reported)

    async def stopped(self, trial: str, attempt: int, draining: bool = False) -> str | None:
        """Returns why the trial is to stop as soon as it is; `ended` when the attempt is over; None: ask again.

        `draining` (asked unless the caller says that it knows already): the node goes, and the trial has time to leave
        a checkpoint.
        """

        def find() -> str | None:
            entry = self._trials.get(trial)
            if entry is None or entry.work["attempt"] != attempt or entry.ended:
                return "ended"
            if self._closed or entry.stop:
                return "closed" if self._closed else entry.stop
            return "draining" if entry.draining and not draining else None

        return await self._wait(f"stop of {trial}", find)

    async def end(self, slot: str, life: str, trial: str, attempt: int, how: str, detail: dict[str, Any]) -> None:
        """The workers have left the trial (`finished`, `stopped` or `raised`); the slot is free again."""
        entry = self._slots.get(slot)
        if entry is None or entry.life != life or entry.trial != trial:
            return
        entry.trial = None
        held = self._trials[trial]
        held.ended, held.slot = True, None
        if held.dropped:
            self._forget(trial)
        self._event("end", trial=trial, attempt=attempt, slot=slot, how=how, detail=detail, drained=entry.draining)
        self._wake(f"stop of {trial}")
        self._assign()

    # --- the driver ----------------------------------------------------------------------------------------------

    async def exchange(self, answers: list[tuple[Any, ...]], wait_s: float = POLL_S) -> list[dict[str, Any]]:
        """The driver's answers to what it was told, then everything that has happened since, oldest first.

        An answer is the name of one of the calls below and its arguments. They travel in one message because Ray does
        not keep the order of calls to an asyncio actor. Waits up to `wait_s` for the first event.
        """
        for name, *arguments in answers:
            await getattr(self, name)(*arguments)
        await self._wait("events", lambda: True if self._events or self._closed else None, wait_s)
        events, self._events = self._events, []
        return events

    async def release(self, trial: str, result: dict[str, Any]) -> None:
        """Hands a result to the trial's Tune actor."""
        if entry := self._trials.get(trial):
            entry.results.append(result)
            self._wake(f"results of {trial}")

    async def stop(self, trial: str, why: str) -> None:
        """The workers of the trial stop at their next report."""
        if entry := self._trials.get(trial):
            entry.stop = entry.stop or why
            if trial in self._queue:
                self._queue.remove(trial)
            self._wake(f"stop of {trial}")

    async def again(self, work: dict[str, Any]) -> None:
        """The trial goes on as a new attempt, ahead of all that wait."""
        if entry := self._trials.get(work["trial"]):
            entry.work, entry.ended, entry.slot, entry.draining = work, False, None, False
            self._queue.appendleft(work["trial"])
            self._assign()

    async def drop(self, trial: str, attempt: int | None = None) -> None:
        """Tune is done with the trial (or with this attempt of it); it is forgotten once the workers are, too."""
        entry = self._trials.get(trial)
        if entry is not None and (attempt is None or entry.work["attempt"] <= attempt):
            entry.dropped = True
            if entry.ended:
                self._forget(trial)

    async def lose(self, slot: str, reason: str) -> None:
        """The driver says that the slot's workers are gone or hang: its trial is lost for this attempt."""
        if (entry := self._slots.get(slot)) is not None:
            if entry.trial is not None:
                self._lose(slot, reason)
            entry.life, entry.ranks, entry.given = None, {}, 0
            self._wake(f"work of {slot}")

    async def drain(self, slot: str) -> None:
        """The node of the slot is about to go. The slot takes no more work; its trial is told, an idle one is free."""
        if (entry := self._slots.get(slot)) is not None and entry.life is not None and not entry.draining:
            entry.draining = True
            if entry.trial is None:
                self._event("idle", slot=slot)
            else:
                self._trials[entry.trial].draining = True
                self._wake(f"stop of {entry.trial}")

    async def close(self) -> None:
        self._closed = True
        for topic in list(self._waiting):
            self._wake(topic)

    async def status(self) -> dict[str, Any]:
        return {
            "slots": {name: {"life": s.life, "trial": s.trial, "ranks": s.ranks} for name, s in self._slots.items()},
            "queue": list(self._queue),
            "trials": len(self._trials),
            "closed": self._closed,
        }

    # --- inside --------------------------------------------------------------------------------------------------

    def _forget(self, trial: str) -> None:
        self._past[trial] = self._trials.pop(trial).work["attempt"]

    def _event(self, kind: str, **fields: Any) -> None:
        self._events.append({"event": kind, "time": time.time(), **fields})
        self._wake("events")

    def _lose(self, slot: str, reason: str) -> None:
        entry = self._slots[slot]
        trial, entry.trial = entry.trial, None
        held = self._trials.get(trial) if trial else None
        if trial and held and not held.ended:
            held.ended, held.slot = True, None
            self._event("lost", trial=trial, attempt=held.work["attempt"], slot=slot, reason=reason)
            self._wake(f"stop of {trial}")

    def _assign(self) -> None:
        for name, slot in self._slots.items():
            if self._queue and slot.ready:
                trial = self._queue.popleft()
                slot.trial, self._trials[trial].slot, self._trials[trial].ended = trial, name, False
                work = self._trials[trial].work
                slot.given, slot.work = slot.given + 1, {**work, "slot": name}
                info = {key: slot.ranks[0].get(key) for key in ("pid", "host", "node")}
                self._event("started", trial=trial, attempt=work["attempt"], slot=name, info=info)
                self._wake(f"work of {name}")

    def _wake(self, topic: str) -> None:
        for event in self._waiting.get(topic, ()):
            event.set()

    async def _wait(self, topic: str, find: Callable[[], T | None], wait_s: float = POLL_S) -> T | None:
        """`find()` as soon as it is not None, tried at every news of `topic`; None after `wait_s`."""
        if (found := find()) is not None:
            return found
        news = asyncio.Event()
        self._waiting.setdefault(topic, set()).add(news)
        deadline = asyncio.get_running_loop().time() + wait_s
        try:
            while (left := deadline - asyncio.get_running_loop().time()) > 0:
                try:
                    await asyncio.wait_for(news.wait(), left)
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
