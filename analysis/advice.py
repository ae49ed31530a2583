"""What a sweep's collapsed trials have in common, as a person reads it: below the table, in `why`, and when the circuit
breaker stops a sweep.

In goes a `Journal` (or the breaker's line); out come sentences. The ranges themselves are found in
`buttress.search.separation`; those that the circuit breaker named are told as it named them.
"""

from __future__ import annotations

from typing import Any

from buttress.analysis.selection import best_of
from buttress.journal.events import CircuitBroken
from buttress.journal.records import Journal, TrialRecord
from buttress.search.separation import Fate, Region, regions
from buttress.wording import listing


def fates(journal: Journal) -> list[Fate]:
    """How the trials have ended; one that has no outcome and has had a valid epoch lives so far, failed ones are left
    out. The margins of diverged trials are on a scale of their own."""
    found = []
    for record in journal.trials.values():
        done = record.outcome
        if done is None:
            if best_of(record, journal.objectives) is not None:
                found.append(Fate(record.params, False))
        elif done.outcome != "failed":
            dead = done.outcome in ("collapsed", "diverged")
            found.append(Fate(record.params, dead, done.margin if done.outcome != "diverged" else None))
    return found


def guilty(journal: Journal) -> list[Region]:
    """The ranges in which the sweep's trials collapse."""
    search: dict[str, Any] = journal.header.spec.get("search") or {}
    return regions(fates(journal), search)


def collapse_sentence(journal: Journal) -> str | None:
    """`collapse goes with loss.beta above 6.2 (14 of 15 collapsed there, 1 of 9 elsewhere)`; None: nothing to say."""
    found = guilty(journal)
    return f"collapse goes with {_listed(found)}" if found else None


def place_sentence(journal: Journal, record: TrialRecord) -> str | None:
    """In which of these ranges a collapsed trial lay; None where it lay in none, or lives."""
    if record.outcome is None or record.outcome.outcome not in ("collapsed", "diverged"):
        return None
    inside = [region for region in guilty(journal) if region.holds(record.params)]
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
