"""Which epochs of a trial are valid, which of them is its best, and which trial of a sweep is best.

In goes a `Journal`; out come reports, trials and the Pareto front. The one rule that everything obeys: only a trial
whose outcome is `completed` can be best or on the front, and only a valid epoch speaks for it. The driver uses
`best_epoch` for what it tells the sampler, so that sampler, table and export cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from buttress.journal import Best, Journal, Objective, Report, TrialRecord


def valid_epochs(reports: Iterable[Report], objective: Objective) -> list[Report]:
    """The reports that end a valid epoch: marked valid, and with a finite value of the objective (health reports and
    a closing check of monitors only have none)."""
    return [report for report in reports if report.valid and _finite(report.metrics.get(objective.metric)) is not None]


def best_epoch(reports: Iterable[Report], objective: Objective) -> Report | None:
    """The valid epoch with the best value; of equal ones the earliest. None where no epoch was valid."""
    best: Report | None = None
    for report in valid_epochs(reports, objective):
        if best is None or objective.better(_value(report.metrics, objective), _value(best.metrics, objective)):
            best = report
    return best


def best_of(record: TrialRecord, objectives: Sequence[Objective]) -> Best | None:
    """A trial's best valid epoch by the first objective: what its outcome line says, else what its reports come to.

    It exists for trials of every state that had a valid epoch; whether the trial may be *chosen* is for `healthy`.
    """
    if record.outcome is not None and record.outcome.best is not None:
        return record.outcome.best
    report = best_epoch(record.reports, objectives[0])
    return Best.of(report) if report else None


def value_of(record: TrialRecord, objectives: Sequence[Objective], which: int = 0) -> float | None:
    """The value of an objective at the trial's best valid epoch; None where there is none."""
    found = best_of(record, objectives)
    return None if found is None else _finite(found.metrics.get(objectives[which].metric))


def healthy(journal: Journal) -> list[TrialRecord]:
    """The completed trials with a valid best value, best first; equal values in the order of their ids."""
    first = journal.objectives[0]
    sign = 1.0 if first.direction == "min" else -1.0
    ranked = []
    for record in journal.trials.values():
        value = value_of(record, journal.objectives) if record.state == "completed" else None
        if value is not None:
            ranked.append((sign * value, record.id, record))
    return [record for _, _, record in sorted(ranked, key=lambda entry: entry[:2])]


def best(journal: Journal) -> TrialRecord | None:
    """The best trial of the sweep by its first objective; None when no trial is healthy."""
    ranked = healthy(journal)
    return ranked[0] if ranked else None


def pareto(journal: Journal) -> list[TrialRecord]:
    """The healthy trials that no other healthy trial beats in every objective, best by the first one first.

    A trial that lacks a value of some objective is not on the front. With one objective: the best trial, and those
    that tie with it.
    """
    points = []
    for record in healthy(journal):
        values = [value_of(record, journal.objectives, which) for which in range(len(journal.objectives))]
        if all(value is not None for value in values):
            signs = [1.0 if objective.direction == "min" else -1.0 for objective in journal.objectives]
            points.append((record, tuple(sign * (value or 0.0) for sign, value in zip(signs, values, strict=True))))
    return [record for record, point in points if not any(_dominates(other, point) for _, other in points)]


def best_json(journal: Journal) -> dict[str, Any] | None:
    """`{"trial", "objective": {name: value}}` of the best trial, as `run --json` prints it; None without one."""
    record = best(journal)
    if record is None:
        return None
    values = {
        objective.metric: value_of(record, journal.objectives, which)
        for which, objective in enumerate(journal.objectives)
    }
    return {"trial": record.id, "objective": values}


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _value(metrics: dict[str, float | None], objective: Objective) -> float:
    value = metrics[objective.metric]
    assert value is not None
    return value
