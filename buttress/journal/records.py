"""What a journal comes to: its header, and per trial the events that count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from buttress.errors import BadInput
from buttress.journal.events import (
    OUTCOMES,
    SCHEMA,
    AttemptStarted,
    Audited,
    CircuitBroken,
    Commanded,
    Condemned,
    Continued,
    Ended,
    Event,
    Header,
    Objective,
    Outcome,
    Paused,
    Refused,
    Report,
    Resumed,
    RungDecision,
    SetAside,
    TrialCreated,
    TrialEvent,
    WarmStarted,
    WorkersLost,
    read_event,
)

FILE = "journal.jsonl"
#: What a trial can be: its outcome, or without one `running` (on a slot now), `paused`, or `waiting` (unfinished and on
#: no slot: queued, lost, or its driver is gone).
STATES = (*OUTCOMES, "running", "waiting", "paused")


@dataclass(frozen=True)
class TrialRecord:
    """All that counts of one trial.

    `reports` are those of the newest attempt, preceded by the earlier ones that its checkpoint covers. `state` is one
    of `STATES`.
    """

    id: str
    ask: int
    time: float
    params: dict[str, Any]
    config: dict[str, Any]
    seed: int | None
    budget_epochs: int | None
    state: str
    attempts: tuple[AttemptStarted, ...] = ()
    losses: tuple[WorkersLost, ...] = ()
    reports: tuple[Report, ...] = ()
    rungs: tuple[RungDecision, ...] = ()
    outcome: Outcome | None = None
    audit: Condemned | None = None  # it was condemned, and ran on to its real end
    added_by: str | None = None  # who asked for this configuration; None: the sampler drew it

    @property
    def finished(self) -> bool:
        """Whether the trial has its outcome."""
        return self.outcome is not None

    @property
    def warnings(self) -> tuple[str, ...]:
        """The names of the warning rules that have held."""
        if self.outcome is not None:
            return self.outcome.warnings
        return self.reports[-1].warnings if self.reports else ()


@dataclass(frozen=True)
class Journal:
    """A journal, folded into what counts."""

    path: Path | None
    header: Header
    trials: dict[str, TrialRecord]
    refused: tuple[Refused, ...] = ()
    resumes: tuple[float, ...] = ()
    ended: Ended | None = None
    torn: int = 0  # bytes of a torn last line, left out
    problems: tuple[str, ...] = field(default=(), repr=False)
    breaker: CircuitBroken | None = None
    warm: WarmStarted | None = None

    @property
    def folder(self) -> Path:
        """The sweep's folder."""
        return self.path.parent if self.path is not None else Path()

    def trial_folder(self, id: str) -> Path:
        """Where a trial's checkpoints and media lie; paths in its reports are relative to it."""
        return self.folder / "trials" / id

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The sweep's objectives; the first one feeds the rungs and names the best trial."""
        return self.header.objectives

    def counts(self) -> dict[str, int]:
        """How many trials are in which state; states without a trial are left out."""
        found = [record.state for record in self.trials.values()]
        return {state: found.count(state) for state in STATES if state in found}

    def trial(self, name: str) -> TrialRecord:
        """The trial called `name`.

        Args:
            name: `7`, `0007` or `<sweep id>-0007`.

        Raises:
            BadInput: there is no such trial; names the ids there are.
        """
        wanted = str(name).removeprefix(f"{self.header.sweep}-")
        for candidate in (wanted, wanted.zfill(4)) if wanted else ():
            if candidate in self.trials:
                return self.trials[candidate]
        ids = sorted(self.trials)
        accepted = "no trial was started yet" if not ids else ids[0] if len(ids) == 1 else f"{ids[0]} to {ids[-1]}"
        where = self.header.sweep
        raise BadInput("no such trial in this sweep", where=where, key="trial", value=name, accepted=accepted)


def fold(
    entries: Iterable[Mapping[str, Any] | Event], *, path: Path | None = None, alive: bool = False
) -> Journal:
    """Folds lines or events into a `Journal`.

    Args:
        entries: A journal's lines (dictionaries) or events, from its header on; a prefix of a journal is one, too.
        path: The journal's file, for messages and for the folders of trials.
        alive: Whether a driver is at work: unfinished trials on a slot are `running` then.

    Raises:
        BadInput: the first line is no header, or a line is damaged; names the line.
    """
    folding = _Fold(path)
    for number, entry in enumerate(entries, 1):
        event = entry if isinstance(entry, Event) else numbered_event(entry, number, path)
        folding.take(event)
    return folding.journal(alive)


def numbered_event(line: Mapping[str, Any], number: int, path: Path | None) -> Event | None:
    """The event of a journal's line `number` (the first is 1, its header); None for an unknown kind.

    Raises:
        BadInput: the line is damaged, or the first one is no header of a schema that this version reads.
    """
    if number == 1:
        return header_of(line, path)
    try:
        return read_event(line)
    except BadInput as error:
        problem = f"line {number} {error.problem}"
        raise BadInput(problem, where=path, key=error.key, value=error.value) from None


def header_of(line: Mapping[str, Any] | None, path: Path | None) -> Header:
    """The header that a journal's first line holds.

    Raises:
        BadInput: it is none, or one of a newer version.
    """
    if line is None or line.get("line") != "header" or not isinstance(line.get("schema"), int):
        raise not_a_journal(path)
    if line["schema"] > SCHEMA:
        raise BadInput(
            "this journal was written by a newer Buttress", where=path, key="schema", value=line["schema"],
            accepted=f"schema {SCHEMA}{' or older' if SCHEMA > 1 else ''}; install the newer version to read it",
        )  # fmt: skip
    objectives = line.get("objectives")
    if isinstance(objectives, list) and all(isinstance(each, dict) for each in objectives):
        line = {**line, "objectives": [(each.get("metric"), each.get("direction")) for each in objectives]}
    try:
        header = read_event(line)
    except BadInput as error:
        raise BadInput(f"line 1 {error.problem}", where=path, key=error.key, value=error.value) from None
    assert isinstance(header, Header)
    return header


def not_a_journal(path: Path | None) -> BadInput:
    """The error for a file that is something else."""
    return BadInput("this is not a Buttress journal", where=path, accepted=f"the {FILE} of a sweep")


class _Trial:
    """One trial while its events are being read."""

    def __init__(self, created: TrialCreated) -> None:
        self.created = created
        self.attempts: list[AttemptStarted] = []
        self.losses: list[WorkersLost] = []
        self.reports: list[Report] = []
        self.rungs: dict[tuple[int, int], RungDecision] = {}  # an age passed again after a loss replaces the first one
        self.outcome: Outcome | None = None
        self.audit: Audited | None = None
        self.added_by: str | None = None
        self.paused = self.on_slot = False

    def take(self, event: Event) -> str | None:
        """Takes an event in; returns what is wrong with it."""
        match event:
            case Report():
                newest = self.attempts[-1].attempt if self.attempts else None
                if newest is None or event.attempt == newest:  # else a straggler of an attempt that was given up
                    self.reports.append(event)
            case AttemptStarted():
                return self._start(event)
            case WorkersLost():
                self.on_slot = False
                self.losses.append(event)
            case RungDecision():
                self.rungs.pop((event.phase, event.age), None)
                self.rungs[event.phase, event.age] = event
            case Audited():
                self.audit = event
            case SetAside():
                self.on_slot = False
            case Paused():
                self.paused, self.on_slot = True, False
            case Continued():
                self.paused = False
            case Outcome():
                self.outcome, self.on_slot = event, False
        return None

    def _start(self, event: AttemptStarted) -> str | None:
        """A new attempt: earlier reports are kept up to the one whose checkpoint it goes on from."""
        self.attempts.append(event)
        self.on_slot, self.paused = True, False
        if event.resumed_from is None:
            self.reports.clear()
            return None
        fits = [
            index for index, report in enumerate(self.reports)
            if report.seq == event.resumed_from and event.resumed_attempt in (None, report.attempt)
        ]  # fmt: skip
        named = [index for index in fits if event.checkpoint and self.reports[index].checkpoint == event.checkpoint]
        fits = named or fits
        del self.reports[fits[-1] + 1 if fits else 0 :]
        if not fits:
            return f"attempt {event.attempt} goes on from report {event.resumed_from}, which the journal does not hold"
        return None

    def record(self, alive: bool) -> TrialRecord:
        state = "paused" if self.paused else "running" if alive and self.on_slot else "waiting"
        created = self.created
        return TrialRecord(
            id=created.trial, ask=created.ask, time=created.time, params=created.params, config=created.config,
            seed=created.seed, budget_epochs=created.budget_epochs,
            state=self.outcome.outcome if self.outcome else state,
            attempts=tuple(self.attempts), losses=tuple(self.losses), reports=tuple(self.reports),
            rungs=tuple(self.rungs.values()), outcome=self.outcome, audit=self.audit, added_by=self.added_by,
        )  # fmt: skip


class _Fold:
    """Reads events one after the other; `journal` is what they come to."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.header: Header | None = None
        self.trials: dict[str, _Trial] = {}
        self.refused: list[Refused] = []
        self.resumes: list[float] = []
        self.ended: Ended | None = None
        self.problems: list[str] = []
        self.breaker: CircuitBroken | None = None
        self.warm: WarmStarted | None = None
        self.commands: dict[str, Commanded] = {}

    def take(self, event: Event | None) -> None:
        if self.header is None and not isinstance(event, Header):
            raise not_a_journal(self.path)
        match event:
            case Header():
                self.header = self.header or event
            case Commanded():
                self.commands[event.id] = event
            case TrialCreated():
                trial = self.trials.setdefault(event.trial, _Trial(event))
                if asked := self.commands.get(event.command or ""):
                    trial.added_by = asked.by or "hand"
            case Refused():
                self.refused.append(event)
            case CircuitBroken():
                self.breaker = event
            case WarmStarted():
                self.warm = event
            case Resumed():
                self._off_slots()
                self.resumes.append(event.time)
                self.ended = None
            case Ended():
                self._off_slots()
                self.ended = event
            case TrialEvent():
                self._take_of_trial(event)

    def _off_slots(self) -> None:
        for trial in self.trials.values():
            trial.on_slot = False

    def _take_of_trial(self, event: TrialEvent) -> None:
        trial = self.trials.get(event.trial)
        if trial is None:
            self.problems.append(f"a {event.line} line of trial {event.trial}, which the journal does not hold")
        elif trial.outcome is None and (problem := trial.take(event)):
            self.problems.append(f"trial {event.trial}: {problem}")

    def journal(self, alive: bool) -> Journal:
        if self.header is None:
            raise not_a_journal(self.path)
        return Journal(
            self.path, self.header, {id: each.record(alive) for id, each in self.trials.items()}, tuple(self.refused),
            tuple(self.resumes), self.ended, problems=tuple(self.problems), breaker=self.breaker, warm=self.warm,
        )  # fmt: skip
