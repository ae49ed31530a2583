"""Selects the best epoch of a trial, and the best trials of a sweep.

Only a trial whose outcome is `completed` can be best or on the Pareto front, and only a valid epoch represents it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from buttress.journal import Best, Journal, Objective, Report, TrialRecord


def valid_epochs(reports: Iterable[Report], objective: Objective) -> list[Report]:
    """The reports that are marked valid and hold a finite value of the objective (health reports hold none)."""
    return [report for report in reports if report.valid and _finite(report.metrics.get(objective.metric)) is not None]


def best_report(reports: Iterable[Report], objective: Objective) -> Report | None:
    """The report of the valid epoch with the best value, the earliest of equals; None where no epoch was valid."""
    best: Report | None = None
    for report in valid_epochs(reports, objective):
        if best is None or objective.better(_value(report.metrics, objective), _value(best.metrics, objective)):
            best = report
    return best


def best_epoch(record: TrialRecord, objectives: Sequence[Objective]) -> Best | None:
    """A trial's best valid epoch by the first objective, as its outcome line says, else computed from its reports.

    Trials of every state have one once an epoch was valid; which trials may be chosen is decided by `healthy_trials`.

    Args:
        record: The trial.
        objectives: Those of the sweep; the first one counts.

    Returns:
        None where no epoch was valid.
    """
    if record.outcome is not None and record.outcome.best is not None:
        return record.outcome.best
    report = best_report(record.reports, objectives[0])
    return Best.of(report) if report else None


def objective_value(record: TrialRecord, objectives: Sequence[Objective], which: int = 0) -> float | None:
    """The value of objective number `which` at the trial's best valid epoch; None where there is none."""
    found = best_epoch(record, objectives)
    return None if found is None else _finite(found.metrics.get(objectives[which].metric))


def healthy_trials(journal: Journal) -> list[TrialRecord]:
    """The completed trials with a valid value of the first objective, best first, equal ones by id."""
    first = journal.objectives[0]
    sign = 1.0 if first.direction == "min" else -1.0
    ranked = []
    for record in journal.trials.values():
        value = objective_value(record, journal.objectives) if record.state == "completed" else None
        if value is not None:
            ranked.append((sign * value, record.id, record))
    return [record for _, _, record in sorted(ranked, key=lambda entry: entry[:2])]


def best_trial(journal: Journal) -> TrialRecord | None:
    """The best trial by the first objective; None when no trial is healthy."""
    ranked = healthy_trials(journal)
    return ranked[0] if ranked else None


def tied_trials(journal: Journal, record: TrialRecord) -> list[TrialRecord]:
    """The other healthy trials whose values of all objectives are those of `record`, by id."""

    def values(each: TrialRecord) -> list[float | None]:
        return [objective_value(each, journal.objectives, which) for which in range(len(journal.objectives))]

    return [each for each in healthy_trials(journal) if each.id != record.id and values(each) == values(record)]


def pareto_front(journal: Journal) -> list[TrialRecord]:
    """The healthy trials that no other healthy trial beats in every objective, best by the first one first.

    A trial without a value of every objective is not on the front. With one objective: the best trial, and those with
    the same value.
    """
    points = []
    for record in healthy_trials(journal):
        values = [objective_value(record, journal.objectives, which) for which in range(len(journal.objectives))]
        if all(value is not None for value in values):
            signs = [1.0 if objective.direction == "min" else -1.0 for objective in journal.objectives]
            points.append((record, tuple(sign * (value or 0.0) for sign, value in zip(signs, values, strict=True))))
    return [record for record, point in points if not any(_dominates(other, point) for _, other in points)]


def best_json(journal: Journal) -> dict[str, Any] | None:
    """`{"trial", "objective": {name: value}}` of the best trial, as `run --json` prints it; None without one."""
    record = best_trial(journal)
    if record is None:
        return None
    values = {
        objective.metric: objective_value(record, journal.objectives, which)
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
