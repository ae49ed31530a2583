"""Slots follow the nodes: those on lost nodes are given up at once, those on drained ones in good order.

In comes what has changed in the cluster (nodes.py); the pool's slots are given up or added, people are told, and
out go the answers that the mailbox has to hear of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from buttress.execution.event_handler import Answer
from buttress.execution.nodes import Nodes, free
from buttress.spec.sections import Resources
from buttress.wording import plural

if TYPE_CHECKING:
    from buttress.execution.worker_pool import SlotPool


class Following:
    """The slots of one sweep on the nodes of its cluster."""

    def __init__(self, nodes: Nodes, pool: SlotPool, resources: Resources, note: Callable[[str], None]) -> None:
        self._nodes, self._pool, self._resources, self._note = nodes, pool, resources, note

    def look(self) -> list[Answer]:
        """Does what is to be done by now."""
        self._tell_who_waits()
        if not (change := self._nodes.look()):
            return []
        answers: list[Answer] = []
        for slot in self._pool.on(change.lost):
            self._pool.gone(slot)
            answers.append(("lose", slot, "its node was lost"))
        answers += [("drain", slot) for slot in self._pool.on(change.draining)]
        for names, what in ((change.joined, "joined"), (change.lost, "lost"), (change.draining, "being drained")):
            if names:
                self._note(f"{plural(len(names), 'node')} {what}")
        if change.joined and self._resources.concurrency == "auto":
            self._grow()
        return answers

    def _tell_who_waits(self) -> None:
        for slot in self._pool.patience_over():
            needs = self._resources
            each = " and ".join(
                f"{need:g} {kind}"
                for kind, need in (("CPU", needs.cpus_per_worker), ("GPU", needs.gpus_per_worker))
                if need
            )
            self._note(f"{slot} waits for {needs.workers} times {each}: the cluster has no room for it now")

    def _grow(self) -> None:
        from buttress.execution.worker_pool import fitting

        more = fitting(self._resources, free()) - self._pool.waiting()
        if more > 0:
            self._pool.add(more)
            self._note(f"room for {plural(more, 'more trial')} at once")
