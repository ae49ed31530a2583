"""Builds the findings of a cluster check: `BadInput` errors that name key, value and what is accepted."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from buttress.errors import BadInput
from buttress.wording import plural

_TYPES = {"string": "a text", "integer": "a whole number", "number": "a number", "object": "a mapping (key: value)",
          "array": "a list", "boolean": "true or false", "null": "nothing"}  # fmt: skip


def unknown_keys(names: Iterable[str], known: Collection[str], *path: str, closed: bool = False) -> Iterator[BadInput]:
    """Yields misspelt keys; with `closed`, where no other keys than the known ones are right, all unknown ones."""
    for name in sorted(set(names) - set(known)):
        if close := difflib.get_close_matches(name, known, 1, 0.6 if closed else 0.85):
            yield BadInput(f"unknown key; did you mean {close[0]}?", key=".".join([*path, name]))
        elif closed:
            yield BadInput("unknown key", key=".".join([*path, name]), accepted=", ".join(sorted(known)))


def schema_findings(tree: Any, schema: dict[str, Any]) -> Iterator[BadInput]:
    """Yields one finding per place where `tree` violates the JSON schema `schema`."""
    import jsonschema

    for error in jsonschema.Draft7Validator(schema).iter_errors(tree):
        path, value, known = [*map(str, error.absolute_path)], error.instance, error.schema.get("properties", {})
        match error.validator:
            case "additionalProperties":
                yield from unknown_keys(value, known, *path, closed=True)
            case "required":  # a key that is there under a misspelt name is reported as that
                there = {meant for name in value for meant in difflib.get_close_matches(name, known, 1)}
                for name in sorted(set(error.validator_value) - there):
                    yield BadInput("is missing", key=".".join([*path, name]))
            case "type":
                kinds = [error.validator_value] if isinstance(error.validator_value, str) else error.validator_value
                problem = "has to be " + " or ".join(_TYPES[kind] for kind in kinds)
                quoted = f'"{value}"' if kinds == ["string"] and isinstance(value, int | float) else None
                yield BadInput(problem, key=".".join(path) or None, value=value, accepted=quoted)
            case _:
                yield BadInput(error.message[:1].lower() + error.message[1:], key=".".join(path) or None)


@dataclass(frozen=True)
class WorkerNodes:
    """One kind of worker node: CPUs and GPUs of each (CPUs None: not known), and how many there are at most."""

    name: str
    cpus: float | None
    gpus: float
    count: int

    def __str__(self) -> str:
        offers = "all it has" if self.cpus is None else f"{self.cpus:g} CPU, {self.gpus:g} GPU"
        return f"{self.count} {self.name} ({offers})"


def concurrent_trials(nodes: Sequence[WorkerNodes], max_workers: int, resources: Any) -> int | None:
    """Returns how many trials of a sweep's `resources` fit at once on at most `max_workers` nodes, the largest first.

    A trial's workers may be on several nodes. None where a kind of node does not state its CPUs.
    """
    fitting, workers = [], 0
    for kind in nodes:
        if kind.cpus is None:
            return None
        needs = ((kind.cpus, resources.cpus_per_worker), (kind.gpus, resources.gpus_per_worker))
        fitting.append((int(min(have // need for have, need in needs if need)), kind.count))
    for number, count in sorted(fitting, reverse=True):
        workers, max_workers = workers + number * min(count, max_workers), max(0, max_workers - count)
    return workers // int(resources.workers)


def fit_findings(nodes: Sequence[WorkerNodes], max_workers: int, spec: Any) -> Iterator[BadInput]:
    """Yields what of the `resources` of a sweep (`SweepSpec`) does not fit the cluster at its largest."""
    needs, where, most = spec.resources, spec.where or "the spec", concurrent_trials(nodes, max_workers, spec.resources)
    trial = f"{needs.workers} workers with {needs.cpus_per_worker:g} CPU and {needs.gpus_per_worker:g} GPU each"
    if most == 0:
        problem, accepted = f"a trial of {trial} does not fit", f"larger worker nodes, or smaller trials in {where}"
        yield BadInput(problem, key="max_workers", value=", ".join(map(str, nodes)), accepted=accepted)
    elif most is not None and needs.concurrency != "auto" and int(needs.concurrency) > most:
        problem = f"holds {plural(most, 'trial')} of {trial}, and the sweep asks for more"
        accepted = f"resources.concurrency of 1 to {most}, or auto, in {where}"
        yield BadInput(problem, key="max_workers", value=int(needs.concurrency), accepted=accepted)
