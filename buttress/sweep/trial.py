"""One trial of a sweep as long as it has no outcome: its draw, its attempts, its reports, and its state."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from buttress.journal.events import AttemptStarted, Audited, Condemned
from buttress.sweep.evaluation import TrialEvaluator


class TrialState(Enum):
    """Where a trial without an outcome is."""

    QUEUED = "queued"  # it waits for a slot
    RUNNING = "running"
    LOST = "lost"  # its workers are gone, or as good as; the next attempt is on its way
    PAUSED = "paused"  # it has left its slot, and comes back when it is told to
    ENDED = "ended"


#: The states that may follow on each.
TRANSITIONS: dict[TrialState, frozenset[TrialState]] = {
    TrialState.QUEUED: frozenset({TrialState.RUNNING, TrialState.PAUSED, TrialState.ENDED}),
    TrialState.RUNNING: frozenset({TrialState.LOST, TrialState.PAUSED, TrialState.QUEUED, TrialState.ENDED}),
    TrialState.LOST: frozenset({TrialState.RUNNING, TrialState.QUEUED, TrialState.ENDED}),
    TrialState.PAUSED: frozenset({TrialState.QUEUED, TrialState.RUNNING, TrialState.ENDED}),
    TrialState.ENDED: frozenset(),
}


class InvalidTransition(RuntimeError):
    """A trial cannot go from its state to the wanted one."""


class ResumePoint(NamedTuple):
    """A report that an attempt can go on from; `checkpoint` is relative to the trial's folder."""

    checkpoint: str
    seq: int
    attempt: int


@dataclass
class ActiveTrial:
    """A trial that has no outcome yet; `SweepState` changes it as events are applied.

    Attributes:
        ask: Index of its draw in the study.
        attempt: The newest attempt; 0 before the first.
        condemned: The verdict that it outlived (audited, or set aside by an earlier version). The sampler was told of
            the collapse then, and is told of another end beside that.
        seconds: Of training in earlier attempts, up to where the present one took over.
    """

    id: str
    ask: int
    params: dict[str, Any]
    config: dict[str, Any]
    seed: int
    evaluation: TrialEvaluator
    state: TrialState = TrialState.QUEUED
    attempt: int = 0
    slot: str | None = None
    losses: int = 0
    condemned: Condemned | None = None
    started: float | None = None
    seconds: float = 0.0

    def move_to(self, state: TrialState) -> None:
        """Changes the state.

        Raises:
            InvalidTransition: `TRANSITIONS` does not allow it.
        """
        if state not in TRANSITIONS[self.state]:
            raise InvalidTransition(f"trial {self.id} cannot go from {self.state.value} to {state.value}")
        self.state = state

    def accepts(self, attempt: int) -> bool:
        """Whether something that happened in this attempt counts: reports of workers that were given up do not."""
        return attempt == self.attempt and self.state in (TrialState.QUEUED, TrialState.RUNNING)

    @property
    def audited(self) -> bool:
        """Whether it was condemned and runs on to its real end."""
        return isinstance(self.condemned, Audited)

    @property
    def reported_to_sampler(self) -> bool:
        """Whether the sampler was told already that the trial collapsed."""
        return self.condemned is not None

    @property
    def epochs(self) -> int:
        """Its budget."""
        return self.evaluation.epochs

    @property
    def resume_point(self) -> ResumePoint | None:
        """The last report that counts and has a checkpoint."""
        reports = reversed(self.evaluation.reports)
        return next((ResumePoint(r.checkpoint, r.seq, r.attempt) for r in reports if r.checkpoint), None)

    def begin(self, start: AttemptStarted) -> None:
        """An attempt begins from the report that `start` names; the reports after that one are void."""
        if self.state is not TrialState.RUNNING:
            self.move_to(TrialState.RUNNING)
        self.attempt, self.slot, self.started = start.attempt, start.slot, start.time
        upto = -1 if start.resumed_from is None else start.resumed_from
        kept = [report for report in self.evaluation.reports if report.seq <= upto]
        self.seconds += kept[-1].seconds if kept else 0.0
        self.evaluation.restart(kept)
