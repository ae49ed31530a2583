"""The nodes of the cluster while a sweep runs on it: which are gone, which are about to go, and what there is room for.

Nodes come and go: machines are taken away with or without a notice, an autoscaler brings new ones. `Nodes.look` tells
what has changed since it was last asked; `free` says what there is, node by node: workers fit on nodes, not on sums.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from buttress.compat.ray import draining_nodes, free_resources_per_node

#: Seconds between two looks at the cluster.
EVERY_S = 2.0

Node = dict[str, float]


@dataclass(frozen=True)
class Change:
    """Node ids (hex)."""

    joined: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    draining: frozenset[str] = frozenset()  # told of a drain since the last look; still alive

    def __bool__(self) -> bool:
        return bool(self.joined or self.lost or self.draining)


class Nodes:
    """Remembers the nodes it has seen."""

    def __init__(self) -> None:
        self._alive = alive()
        self._draining: frozenset[str] = frozenset()
        self._looked = time.monotonic()

    def look(self) -> Change:
        """What has changed; asks the cluster at most every `EVERY_S`."""
        if time.monotonic() - self._looked < EVERY_S:
            return Change()
        self._looked = time.monotonic()
        now, leaving = alive(), draining_nodes()
        change = Change(now - self._alive, self._alive - now, (leaving & now) - self._draining)
        self._alive, self._draining = now, leaving
        return change


def alive() -> frozenset[str]:
    import ray

    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


def free() -> list[Node]:
    """What is free on each node that will stay."""
    leaving = draining_nodes()
    return [node for name, node in free_resources_per_node().items() if name not in leaving]
