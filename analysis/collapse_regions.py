"""Describes the ranges of searched parameters in which a sweep's trials collapse.

The ranges are found by `buttress.search.separation`; those that the circuit breaker named are shown as it named them.
"""

from __future__ import annotations

from typing import Any

from buttress.analysis.selection import best_epoch
from buttress.journal.events import CircuitBroken
from buttress.journal.records import Journal, TrialRecord
from buttress.search.separation import Fate, Region, regions
from buttress.wording import listing


def trial_fates(journal: Journal) -> list[Fate]:
    """How each trial of a sweep ended, for the search for ranges.

    A trial without an outcome counts as alive once it has had a valid epoch; failed trials are left out. Diverged
    trials have no margin here, because theirs is on a scale of its own.
    """
    found = []
    for record in journal.trials.values():
        done = record.outcome
        if done is None:
            if best_epoch(record, journal.objectives) is not None:
                found.append(Fate(record.params, False))
        elif done.outcome != "failed":
            dead = done.outcome in ("collapsed", "diverged")
            found.append(Fate(record.params, dead, done.margin if done.outcome != "diverged" else None))
    return found


def collapse_regions(journal: Journal) -> list[Region]:
    """The ranges in which the sweep's trials collapse."""
    search: dict[str, Any] = journal.header.spec.get("search") or {}
    return regions(trial_fates(journal), search)


def collapse_sentence(journal: Journal) -> str | None:
    """`collapse goes with loss.beta above 6.2 (14 of 15 collapsed there, 1 of 9 elsewhere)`; None: nothing to say."""
    found = collapse_regions(journal)
    return f"collapse goes with {_listed(found)}" if found else None


def region_sentence(journal: Journal, record: TrialRecord) -> str | None:
    """In which of these ranges a collapsed trial lay; None where it lay in none, or did not collapse."""
    if record.outcome is None or record.outcome.outcome not in ("collapsed", "diverged"):
        return None
    inside = [region for region in collapse_regions(journal) if region.holds(record.params)]
    return f"it lay in {_listed(inside)}" if inside else None


def breaker_sentence(breaker: CircuitBroken) -> str:
    """Why the circuit breaker stopped the sweep, and what to do about it."""
    found = [Region.from_dict(region) for region in breaker.regions]
    ended = f" ({breaker.ended} of them have ended)" if breaker.ended < breaker.first else ""
    text = f"the circuit breaker stopped the sweep: {breaker.collapsed} of its first {breaker.first} trials{ended}"
    text += " collapsed"
    if not found:
        return f"{text}, and no searched range separates them from the others: look at what is fixed, and at the rules"
    paths = listing(list(dict.fromkeys(region.path for region in found)))
    return f"{text}, with {_listed(found)}; narrow {paths}"


def _listed(found: list[Region]) -> str:
    return listing([str(region) for region in found])
