"""Reconciles the worker pool with cluster membership.

Machines are taken away with or without notice, an autoscaler brings new ones. `ClusterMembership` polls Ray for what
has changed; `PoolReconciler` gives up slots on lost nodes at once, drains those on draining nodes, adds slots where
nodes have joined, and returns the commands that the mailbox needs for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buttress.compat.ray import draining_nodes, free_resources_per_node
from buttress.execution.messages import Command, DrainSlot, LoseSlot
from buttress.spec.sections import Resources
from buttress.wording import listing, plural

if TYPE_CHECKING:
    from buttress.execution.worker_pool import WorkerPool

#: Seconds between two polls of the cluster.
POLL_INTERVAL_S = 2.0


@dataclass(frozen=True)
class MembershipChange:
    """Ids (hex) of the nodes that are new, gone, or newly draining (still alive)."""

    joined: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    draining: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.joined or self.lost or self.draining)


class ClusterMembership:
    """The nodes of the cluster as seen at the last poll."""

    def __init__(self) -> None:
        self._alive = alive_nodes()
        self._draining: frozenset[str] = frozenset()
        self._polled = time.monotonic()

    def poll(self) -> MembershipChange:
        """What has changed since the last poll; asks the cluster at most every `POLL_INTERVAL_S`."""
        if time.monotonic() - self._polled < POLL_INTERVAL_S:
            return MembershipChange()
        self._polled = time.monotonic()
        alive, draining = alive_nodes(), draining_nodes()
        change = MembershipChange(alive - self._alive, self._alive - alive, (draining & alive) - self._draining)
        self._alive, self._draining = alive, draining
        return change


def alive_nodes() -> frozenset[str]:
    """Ids (hex) of the nodes that are alive, draining ones included."""
    import ray

    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


def free_resources_of_staying_nodes() -> list[dict[str, float]]:
    """Free resources of each node that is not being drained."""
    draining = draining_nodes()
    return [free for node, free in free_resources_per_node().items() if node not in draining]


class PoolReconciler:
    """Keeps the slots of one sweep in line with the nodes of its cluster.

    Args:
        membership: As it was when the pool was sized.
        pool: The sweep's slots.
        resources: What each slot needs.
        on_message: Called with a sentence about each change.
    """

    def __init__(
        self,
        membership: ClusterMembership,
        pool: WorkerPool,
        resources: Resources,
        on_message: Callable[[str], None],
    ) -> None:
        self._membership, self._pool, self._resources = membership, pool, resources
        self._on_message = on_message

    def reconcile(self) -> list[Command]:
        """Applies what has changed since the last call to the pool; returns the commands for the mailbox."""
        self._report_long_waits()
        if not (change := self._membership.poll()):
            return []
        commands: list[Command] = []
        for slot in self._pool.slots_on(change.lost):
            self._pool.mark_lost(slot)
            commands.append(LoseSlot(slot, "its node was lost"))
        commands += [DrainSlot(slot) for slot in self._pool.slots_on(change.draining)]
        for nodes, what in ((change.joined, "joined"), (change.lost, "lost"), (change.draining, "being drained")):
            if nodes:
                self._on_message(f"{plural(len(nodes), 'node')} {what}")
        if change.joined and self._resources.concurrency == "auto":
            self._grow()
        return commands

    def _report_long_waits(self) -> None:
        for slot in self._pool.pop_long_waiting():
            self._on_message(describe_wait(slot, self._resources, free_resources_of_staying_nodes()))

    def _grow(self) -> None:
        from buttress.execution.worker_pool import count_fitting_slots

        fitting = count_fitting_slots(self._resources, free_resources_of_staying_nodes())
        more = fitting - self._pool.count_waiting()
        if more > 0:
            self._pool.add(more)
            self._on_message(f"room for {plural(more, 'more trial')} at once")


def describe_wait(slot: str, needs: Resources, free: Sequence[Mapping[str, float]]) -> str:
    """What a slot that is not up after a long time waits for.

    Args:
        slot: Its name.
        needs: What its workers need.
        free: Free resources of each node; what the slot holds already while its workers start is not among them.
    """
    from buttress.execution.worker_pool import count_fitting_slots

    if count_fitting_slots(needs, free):
        return f"{slot} is not up yet, though the cluster has room for it: its workers start slowly"
    wanted = {kind: n for kind, n in (("CPU", needs.cpus_per_worker), ("GPU", needs.gpus_per_worker)) if n}
    each = listing([f"{amount:g} {kind}" for kind, amount in wanted.items()])
    there = listing([f"{sum(node.get(kind, 0.0) for node in free):g} {kind}" for kind in wanted])
    return f"{slot} waits for {needs.workers} times {each}, or for its workers to start: {there} are free now"
