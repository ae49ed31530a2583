"""The lines of a journal, one frozen dataclass per kind.

An event is created where something happens, applied to the state of the sweep, and written; reading a journal gives the
same objects back (`read_event`). Numbers that are not finite are None as soon as an event exists, so that a sweep that
ran and one that is rebuilt from its journal see the same values.
"""

from __future__ import annotations

import functools
import math
import os
import socket
import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, Self

from pydantic import TypeAdapter, ValidationError

from buttress.errors import BadInput
from buttress.journal.fields import Entries, Flag, InsidePath, Int, Mapped, Metrics, Number, Text, TrialId, plain

if TYPE_CHECKING:
    from buttress.rules import Verdict

#: Version of the schema that is written; every version up to it is read.
SCHEMA = 1
#: Outcomes of a trial.
OUTCOMES = ("completed", "collapsed", "diverged", "pruned", "stopped", "failed")


class ReportLike(Protocol):
    """What a `Report` is made from (`training.trainable.Reported`)."""

    @property
    def epoch(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def full_beta_epochs(self) -> int: ...
    @property
    def full_beta_steps(self) -> int: ...
    @property
    def phase(self) -> int: ...
    @property
    def metrics(self) -> Mapping[str, float | None]: ...
    @property
    def vectors(self) -> Mapping[str, Sequence[float | None]]: ...
    @property
    def nonfinite(self) -> Sequence[str]: ...
    @property
    def closing(self) -> bool: ...
    @property
    def checkpoint(self) -> str | None: ...
    @property
    def media(self) -> Mapping[str, str]: ...
    @property
    def seconds(self) -> float: ...
    @property
    def mem_mb(self) -> float | None: ...
    @property
    def note(self) -> str: ...


class Objective(NamedTuple):
    """One objective: a metric's name and `min` or `max`."""

    metric: Text
    direction: Literal["min", "max"]

    def better(self, one: float, other: float) -> bool:
        """Whether `one` is a better value than `other`."""
        return one < other if self.direction == "min" else one > other


# --- the kinds ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of a journal. `time`: seconds since 1970. `durable` kinds are on the disk before `write` returns."""

    line: ClassVar[str]
    durable: ClassVar[bool] = False

    time: Number = field(default_factory=clock.time)

    def to_line(self) -> dict[str, Any]:
        """The event as it is written: JSON-able, `line` and `time` first."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        first = {"line": self.line, "time": values.pop("time")}
        first |= {name: values.pop(name, None) for name in ("trial", "attempt", "seq")}
        made: dict[str, Any] = plain(first | values)
        return made


@dataclass(frozen=True, kw_only=True)
class TrialEvent(Event):
    """An event of one trial; `attempt` counts from 1."""

    trial: TrialId
    attempt: Int | None = None


@dataclass(frozen=True, kw_only=True)
class Header(Event):
    """The first line: what the sweep is, resolved."""

    line: ClassVar[str] = "header"
    durable: ClassVar[bool] = True

    sweep: Text
    name: Text
    spec: Mapped
    metrics: dict[str, Mapped]
    objectives: tuple[Objective, ...]
    rules: Mapped
    versions: dict[str, Text]
    trainable: Text
    module_folders: tuple[Text, ...] = ()
    seed: Int | None
    commit: Text | None = None
    data: Mapped = field(default_factory=dict)
    spec_file: Text | None = None
    spec_sha256: Text | None = None
    schema: Int = SCHEMA

    def to_line(self) -> dict[str, Any]:
        """See `Event.to_line`; objectives are mappings."""
        return super().to_line() | {"objectives": [each._asdict() for each in self.objectives]}


@dataclass(frozen=True, kw_only=True)
class Resumed(Event):
    """A driver goes on with the sweep. `budget`: its budget's values that have changed since it began."""

    line: ClassVar[str] = "resume"
    durable: ClassVar[bool] = True

    budget: Mapped = field(default_factory=dict)
    versions: dict[str, Text] = field(default_factory=dict)
    host: Text | None = field(default_factory=socket.gethostname)
    pid: Int | None = field(default_factory=os.getpid)


@dataclass(frozen=True, kw_only=True)
class Commanded(Event):
    """Somebody asked something of the running sweep, and it was done. What follows from it stands in further lines.

    `of`: the trial, None for the whole sweep; `values`: of a trial that was added, every searched value.
    """

    line: ClassVar[str] = "command"
    durable: ClassVar[bool] = True

    id: Text
    verb: Text
    of: TrialId | None = None
    values: Mapped = field(default_factory=dict)
    by: Text = ""


@dataclass(frozen=True, kw_only=True)
class Refused(Event):
    """A draw that became no trial. `repeats`: the trial that it would have run again."""

    line: ClassVar[str] = "refused"

    ask: Int
    params: Mapped
    reason: Text
    repeats: Text | None = None


@dataclass(frozen=True, kw_only=True)
class WarmStarted(Event):
    """What earlier sweeps taught this one before its first draw (search/warm_start.py).

    `told`: their trials that the sampler was told (`sweep, trial, params, outcome, kind, margin, best, by_age`);
    `left_out`: how many were not, and why.
    """

    line: ClassVar[str] = "warm"
    durable: ClassVar[bool] = True

    told: tuple[Mapped, ...]
    left_out: tuple[Mapped, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CircuitBroken(Event):
    """The circuit breaker stopped the sweep: `collapsed` of the `ended` ones among the `first` trials.

    `regions` (search/separation.py) separate the collapsed trials from the others.
    """

    line: ClassVar[str] = "breaker"
    durable: ClassVar[bool] = True

    first: Int
    ended: Int
    collapsed: Int
    regions: tuple[Mapped, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrialCreated(TrialEvent):
    """A draw has become a trial. `sampler`: what the sampler noted about the running draw; `command`: the id of the
    `command` line that asked for it."""

    line: ClassVar[str] = "trial"
    durable: ClassVar[bool] = True

    ask: Int
    params: Mapped
    config: Mapped
    seed: Int | None = None
    budget_epochs: Int | None = None
    sampler: Mapped = field(default_factory=dict)
    command: Text | None = None


@dataclass(frozen=True, kw_only=True)
class AttemptStarted(TrialEvent):
    """The workers of a slot have begun an attempt.

    `resumed_from` and `resumed_attempt` are `seq` and `attempt` of the report whose checkpoint it goes on from.
    """

    line: ClassVar[str] = "start"

    attempt: Int
    slot: Any = None
    host: Text | None = None
    pid: Int | None = None
    resumed_from: Int | None = None
    resumed_attempt: Int | None = None
    checkpoint: InsidePath | None = None


@dataclass(frozen=True, kw_only=True)
class Report(TrialEvent):
    """One report of a trial, as the rules judged it.

    A value that was not finite is None and stands in `nonfinite`. `valid`: the report ends a valid epoch. `closing`:
    the full check at the end of training. `seconds` count from the beginning of the attempt's training.
    """

    line: ClassVar[str] = "report"

    attempt: Int
    seq: Int
    epoch: Int
    step: Int
    full_beta_epochs: Int
    full_beta_steps: Int
    phase: Int
    metrics: Metrics
    vectors: dict[str, list[Number | None]] = field(default_factory=dict)
    nonfinite: tuple[Text, ...] = ()
    closing: Flag = False
    checkpoint: InsidePath | None = None
    media: dict[str, Text] = field(default_factory=dict)
    seconds: Number = 0.0
    mem_mb: Number | None = None
    note: Text = ""
    state: Text = "healthy"
    suspects: tuple[Text, ...] = ()
    valid: Flag = False
    warnings: tuple[Text, ...] = ()

    @classmethod
    def of(cls, trial: str, attempt: int, seq: int, reported: ReportLike, **judged: Any) -> Report:
        """The report number `seq` of an attempt, from what its workers reported."""
        lost = [key for key, value in reported.metrics.items() if value is None or not math.isfinite(value)]
        return cls(
            trial=trial, attempt=attempt, seq=seq, epoch=reported.epoch, step=reported.step,
            full_beta_epochs=reported.full_beta_epochs, full_beta_steps=reported.full_beta_steps,
            phase=reported.phase, metrics=plain(reported.metrics), vectors=plain(reported.vectors),
            nonfinite=(*reported.nonfinite, *(key for key in lost if key not in reported.nonfinite)),
            closing=reported.closing, checkpoint=reported.checkpoint, media=plain(reported.media),
            seconds=reported.seconds, mem_mb=reported.mem_mb, note=reported.note, **judged,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WorkersLost(TrialEvent):
    """The infrastructure took the trial's workers.

    `moved`: given up in good order (a node that is drained); it does not count against the trial.
    """

    line: ClassVar[str] = "lost"

    reason: Text
    moved: Flag = False


@dataclass(frozen=True, kw_only=True)
class RungDecision(TrialEvent):
    """A comparison at equal age. `peers`: values in the rung; `cutoff` None: too few of them to stop anybody."""

    line: ClassVar[str] = "rung"

    age: Int
    phase: Int
    value: Number | None
    cutoff: Number | None
    peers: Int
    decision: Literal["continue", "stop"]


@dataclass(frozen=True, kw_only=True)
class Condemned(TrialEvent):
    """A verdict that did not end its trial: what it rests on, and how far the trial was."""

    rule: Text | None = None
    kind: Text | None = None
    margin: Number | None = None
    evidence: Entries = ()
    message: Text | None = None
    epochs: Int = 0
    step: Int | None = None
    epochs_budget: Int | None = None
    seconds: Number | None = None

    @classmethod
    def by(cls, verdict: Verdict, **progress: Any) -> Self:
        """The event of a verdict; `progress`: `trial, attempt, epochs, step, epochs_budget, seconds`."""
        told = plain(verdict.to_dict())
        kept = {key: told[key] for key in ("rule", "kind", "margin", "message")}
        return cls(**kept, evidence=tuple(told["evidence"]), **progress)


@dataclass(frozen=True, kw_only=True)
class Audited(Condemned):
    """The trial was condemned and runs on to its real end, to measure how right the rules are."""

    line: ClassVar[str] = "audit"


@dataclass(frozen=True, kw_only=True)
class SetAside(Condemned):
    """Written by earlier versions: a condemned trial left its slot, and may have come back until epoch `until`."""

    line: ClassVar[str] = "suspended"

    until: Int | None = None


@dataclass(frozen=True, kw_only=True)
class Paused(TrialEvent):
    """The trial leaves its slot with its last checkpoint, to come back later in any slot."""

    line: ClassVar[str] = "paused"
    durable: ClassVar[bool] = True

    reason: Text = ""


@dataclass(frozen=True, kw_only=True)
class Continued(TrialEvent):
    """A paused trial waits for a slot again."""

    line: ClassVar[str] = "continued"
    durable: ClassVar[bool] = True


@dataclass(frozen=True)
class Best:
    """The best valid epoch of a trial."""

    epoch: Int
    step: Int
    metrics: Metrics
    seq: Int | None = None
    attempt: Int | None = None
    checkpoint: InsidePath | None = None

    @classmethod
    def of(cls, report: Report) -> Best:
        return cls(report.epoch, report.step, dict(report.metrics), report.seq, report.attempt, report.checkpoint)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Outcome(TrialEvent):
    """The end of a trial. `epochs` of `epochs_budget` were run, in `seconds` of training over all attempts.

    `audited`: it was condemned on the way, and this is its real end.
    """

    line: ClassVar[str] = "outcome"
    durable: ClassVar[bool] = True

    outcome: Text
    kind: Text | None = None
    margin: Number | None = None
    rule: Text | None = None
    evidence: Entries = ()
    message: Text | None = None
    warnings: tuple[Text, ...] = ()
    best: Best | None = None
    last: Metrics = field(default_factory=dict)
    epochs: Int = 0
    epochs_budget: Int | None = None
    step: Int | None = None
    seconds: Number | None = None
    error: Text | None = None
    audited: Flag = False

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"an outcome is one of {', '.join(OUTCOMES)}, not {self.outcome!r}")

    @property
    def dead(self) -> bool:
        """Whether the trial collapsed or diverged."""
        return self.outcome in ("collapsed", "diverged")


@dataclass(frozen=True, kw_only=True)
class Ended(Event):
    """A driver has ended; `counts` maps outcomes to numbers of trials."""

    line: ClassVar[str] = "end"
    durable: ClassVar[bool] = True

    reason: Text
    counts: dict[str, Int] = field(default_factory=dict)
    seconds: Number | None = None


#: Every kind of event by the name of its line.
KINDS: dict[str, type[Event]] = {
    kind.line: kind
    for kind in (
        Header, Resumed, Commanded, Refused, WarmStarted, CircuitBroken, TrialCreated, AttemptStarted, Report,
        WorkersLost, RungDecision, Audited, SetAside, Paused, Continued, Outcome, Ended,
    )
}  # fmt: skip


# --- reading --------------------------------------------------------------------------------------------------------


@functools.cache
def _adapter(name: str) -> TypeAdapter[Event]:
    return TypeAdapter(KINDS[name])


def read_event(line: Mapping[str, Any]) -> Event | None:
    """The event that a journal's line holds; None for a kind that this version does not know.

    Raises:
        BadInput: the line lacks a key, or a value has the wrong type; names the kind and the key.
    """
    name = str(line.get("line"))
    if name not in KINDS:
        return None
    optional = _optional(name)
    given = {key: value for key, value in line.items() if value is not None or key not in optional}
    try:
        return _adapter(name).validate_python(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
            raise BadInput(f"({name}) lacks {key}") from None
        raise BadInput(f"({name}) cannot be read ({first['msg']})", key=key, value=first["input"]) from None


@functools.cache
def _optional(name: str) -> frozenset[str]:
    """Fields with a default, which a null stands for."""
    return frozenset(
        item.name for item in fields(KINDS[name])
        if item.default is not MISSING or item.default_factory is not MISSING
    )  # fmt: skip
