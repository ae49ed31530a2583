"""The circuit breaker: whether too many of a sweep's first trials have collapsed, and in which ranges they lie.

In go the spec, the parameters of every trial by its name, the trials that have no outcome yet, and the outcomes of the
others; out comes the `breaker` line, or None. When it is asked, and that it stops the sweep, is the state's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from buttress import journal
from buttress.search.separation import Fate, regions
from buttress.spec.spec import SweepSpec
from buttress.sweep.evaluation import Line
from buttress.sweep.trial import LiveTrial


def overload(
    spec: SweepSpec,
    params: Mapping[str, Mapping[str, Any]],
    live: Mapping[str, LiveTrial],
    outcomes: Mapping[str, Line],
) -> Line | None:
    """The line that stops the sweep, with the regions that separate the dead; None while there are too few of them."""
    breaker = spec.breaker
    if breaker is None:
        return None
    ends = [_dead(live.get(trial), outcomes.get(trial)) for trial in params if int(trial) < breaker.first]
    dead = sum(end is True for end in ends)
    if dead < breaker.limit:
        return None
    fates = [_fate(given, live.get(trial), outcomes.get(trial)) for trial, given in params.items()]
    found = regions([fate for fate in fates if fate is not None], spec.to_dict()["search"])
    return journal.breaker(
        first=breaker.first,
        ended=sum(end is not None for end in ends),
        collapsed=dead,
        regions=[region.to_dict() for region in found],
    )


def _dead(live: LiveTrial | None, outcome: Line | None) -> bool | None:
    """Whether the trial has collapsed or diverged; None while nobody knows."""
    if live is not None:
        return True if live.suspended is not None else None
    return outcome["outcome"] in ("collapsed", "diverged") if outcome is not None else None


def _fate(params: Mapping[str, Any], live: LiveTrial | None, outcome: Line | None) -> Fate | None:
    """How the trial has ended; one that runs and has had a valid epoch lives so far. None: that says nothing."""
    if live is not None:
        if live.suspended is not None:
            return Fate(params, True, live.suspended["margin"])
        lives = live.judged.best is not None and not live.judged.runs_on
        return Fate(params, False, live.judged.margin) if lives else None
    if outcome is None or outcome["outcome"] == "failed":
        return None
    margin = outcome["margin"] if outcome["outcome"] != "diverged" else None
    return Fate(params, outcome["outcome"] in ("collapsed", "diverged"), margin)
