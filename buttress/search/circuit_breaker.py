"""Decides whether too many of a sweep's first trials have collapsed, and names the ranges in which they lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from buttress.journal.events import CircuitBroken, Outcome
from buttress.search.separation import Fate, regions
from buttress.spec.spec import SweepSpec


def check_circuit(
    spec: SweepSpec,
    params: Mapping[str, Mapping[str, Any]],
    outcomes: Mapping[str, Outcome],
    alive: Mapping[str, float | None],
) -> CircuitBroken | None:
    """The event that stops the sweep; None while too few of its first trials have collapsed.

    Args:
        spec: The sweep's spec; `spec.breaker` is the limit.
        params: The parameters of every trial, by its name.
        outcomes: Trials that have ended.
        alive: Unfinished trials that have had a valid epoch, and their margins (decades, negative).
    """
    breaker = spec.breaker
    if breaker is None:
        return None
    first = [outcomes[trial] for trial in params if int(trial) < breaker.first and trial in outcomes]
    collapsed = sum(outcome.dead for outcome in first)
    if collapsed < breaker.limit:
        return None
    fates = [_fate(given, outcomes.get(trial)) for trial, given in params.items()]
    fates += [Fate(params[trial], False, margin) for trial, margin in alive.items()]
    found = regions([fate for fate in fates if fate is not None], spec.to_dict()["search"])
    return CircuitBroken(
        first=breaker.first,
        ended=len(first),
        collapsed=collapsed,
        regions=tuple(region.to_dict() for region in found),
    )


def _fate(params: Mapping[str, Any], outcome: Outcome | None) -> Fate | None:
    """How the trial has ended; None where it has not, or where that says nothing."""
    if outcome is None or outcome.outcome == "failed":
        return None
    return Fate(params, outcome.dead, outcome.margin if outcome.outcome != "diverged" else None)
