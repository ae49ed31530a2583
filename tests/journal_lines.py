"""Journal lines for the tests, as dictionaries: one function per kind, the event's fields as keywords."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from buttress.journal.events import (
    AttemptStarted,
    CircuitBroken,
    Ended,
    Event,
    Header,
    Objective,
    Outcome,
    Refused,
    Report,
    Resumed,
    RungDecision,
    TrialCreated,
    WarmStarted,
    WorkersLost,
    plain,
    read_event,
)
from buttress.journal.records import header_of

Line = dict[str, Any]


def header(*, metrics: Mapping[str, Any], objectives: Iterable[Any], **fields: Any) -> Line:
    table = {name: asdict(metric) if is_dataclass(metric) else metric for name, metric in metrics.items()}  # type: ignore[arg-type]
    found = tuple(Objective(each["metric"], each["direction"]) for each in objectives)
    return Header(metrics=table, objectives=found, **fields).to_line()


def resume(**fields: Any) -> Line:
    return Resumed(**fields).to_line()


def refused(**fields: Any) -> Line:
    return Refused(**fields).to_line()


def warm(**fields: Any) -> Line:
    return WarmStarted(**fields).to_line()


def breaker(**fields: Any) -> Line:
    return CircuitBroken(**fields).to_line()


def trial(id: str, **fields: Any) -> Line:
    return TrialCreated(trial=id, **fields).to_line()


def start(id: str, attempt: int, **fields: Any) -> Line:
    return AttemptStarted(trial=id, attempt=attempt, **fields).to_line()


def report(id: str, attempt: int, seq: int, reported: Any, **judged: Any) -> Line:
    return Report.of(id, attempt, seq, reported, **judged).to_line()


def lost(id: str, attempt: int, **fields: Any) -> Line:
    return WorkersLost(trial=id, attempt=attempt, **fields).to_line()


def rung(id: str, attempt: int | None = None, **fields: Any) -> Line:
    return RungDecision(trial=id, attempt=attempt, **fields).to_line()


def outcome(id: str, attempt: int | None, outcome: str, **fields: Any) -> Line:
    return Outcome(trial=id, attempt=attempt, outcome=outcome, **fields).to_line()


def end(**fields: Any) -> Line:
    return Ended(**fields).to_line()


def event_of(line: Mapping[str, Any] | Event) -> Event:
    """The event that a line holds."""
    if isinstance(line, Event):
        return line
    event = header_of(line, None) if line["line"] == "header" else read_event(line)
    assert event is not None
    return event


def events_of(lines: Iterable[Mapping[str, Any] | Event]) -> list[Event]:
    return [event_of(line) for line in lines]


def plainly(event: Event) -> Line:
    """The event's line, as JSON would have it."""
    line: Line = plain(event.to_line())
    return line


def recorded(**fields: Any) -> Report:
    """A report of a recorded curve."""
    return Report(trial="0000", attempt=1, seq=0, **fields)
