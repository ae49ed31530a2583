"""How many trials of a sweep a cluster could hold at once, from what its file says its nodes have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from buttress.cluster.check.findings import Finding
from buttress.errors import BadInput


@dataclass(frozen=True)
class Nodes:
    """One kind of worker node: what each offers (None: not told) and how many there are at most."""

    name: str
    cpus: float | None
    gpus: float | None
    most: int

    def workers(self, cpus: float, gpus: float) -> int:
        """How many workers of a trial fit one node."""
        fits = [(self.cpus or 0.0) // cpus if cpus else None, (self.gpus or 0.0) // gpus if gpus else None]
        return int(min((each for each in fits if each is not None), default=0))


def slots(kinds: Sequence[Nodes], most: int, resources: Any) -> int | None:
    """Trials of `resources` at once on at most `most` nodes, the roomiest first; None where a node does not say.

    A trial's workers may lie on several nodes.
    """
    if any(nodes.cpus is None for nodes in kinds):
        return None
    left, workers = most, 0
    room = {nodes.name: nodes.workers(resources.cpus_per_worker, resources.gpus_per_worker) for nodes in kinds}
    for nodes in sorted(kinds, key=lambda nodes: -room[nodes.name]):
        count = min(nodes.most, left)
        left, workers = left - count, workers + count * room[nodes.name]
    return workers // resources.workers


def fits(kinds: Sequence[Nodes], most: int, spec: Any) -> list[Finding]:
    """What of the spec's `resources` does not fit the cluster at its largest."""
    resources = spec.resources
    held = slots(kinds, most, resources)
    if held is None:
        return []
    each = f"{resources.cpus_per_worker:g} CPU and {resources.gpus_per_worker:g} GPU"
    if held < 1:
        largest = "; ".join(f"{nodes.name} {nodes.most} x {_offers(nodes)}" for nodes in kinds) or "no workers"
        problem = f"a trial of {resources.workers} workers with {each} each does not fit ({largest})"
        accepted = "more or larger worker nodes, or smaller trials"
        return [BadInput(problem, key="max_workers", value=most, accepted=f"{accepted} in {spec.where or 'the spec'}")]
    if resources.concurrency != "auto" and int(resources.concurrency) > held:
        problem = f"holds {held} trials of {resources.workers} workers with {each} each, and the sweep asks for more"
        accepted = f"resources.concurrency of 1 to {held}, or auto, in {spec.where or 'the spec'}"
        return [BadInput(problem, key="max_workers", value=int(resources.concurrency), accepted=accepted)]
    return []


def _offers(nodes: Nodes) -> str:
    return f"{nodes.cpus or 0:g} CPU and {nodes.gpus or 0:g} GPU"
