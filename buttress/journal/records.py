"""What a journal holds, as frozen records, and how its lines fold into them.

In goes a stream of line dictionaries (`buttress.journal.lines`), out comes a `Journal`: the header and one
`TrialRecord` per trial with the reports that count. People import these names from `buttress.journal`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from buttress.errors import BadInput

#: Version of the schema that is written; every version up to it is read.
SCHEMA = 1
FILE = "journal.jsonl"
FINAL = ("completed", "collapsed", "diverged", "pruned", "failed")
STATES = (*FINAL, "running", "suspended")


@dataclass(frozen=True)
class Objective:
    metric: str
    direction: str  # "min" | "max"

    def better(self, one: float, other: float) -> bool:
        return one < other if self.direction == "min" else one > other


@dataclass(frozen=True)
class Header:
    sweep: str
    name: str
    time: float
    schema: int
    spec: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    objectives: tuple[Objective, ...]
    rules: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    data: dict[str, Any]
    seed: int | None
    trainable: str


@dataclass(frozen=True, slots=True)
class Report:
    """One report of a trial, as the rules judged it. A value that was not finite is None and stands in `nonfinite`."""

    attempt: int
    seq: int
    time: float
    epoch: int
    step: int
    full_beta_epochs: int
    full_beta_steps: int
    phase: int
    metrics: dict[str, float | None]
    vectors: dict[str, list[float | None]]
    nonfinite: tuple[str, ...]
    closing: bool
    checkpoint: str | None
    media: dict[str, str]
    seconds: float
    mem_mb: float | None
    state: str
    suspects: tuple[str, ...]
    valid: bool
    warnings: tuple[str, ...]
    note: str = ""  # what went wrong without ending the trial


@dataclass(frozen=True)
class Best:
    """The best valid epoch of a trial."""

    epoch: int
    step: int
    metrics: dict[str, float | None]
    seq: int | None = None
    attempt: int | None = None
    checkpoint: str | None = None

    @classmethod
    def of(cls, report: Report) -> Best:
        return cls(report.epoch, report.step, dict(report.metrics), report.seq, report.attempt, report.checkpoint)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    outcome: str
    time: float
    attempt: int | None
    kind: str | None
    margin: float | None
    rule: str | None
    evidence: tuple[dict[str, Any], ...]
    message: str | None
    warnings: tuple[str, ...]
    best: Best | None
    last: dict[str, float | None]
    epochs: int
    epochs_budget: int | None
    step: int | None
    seconds: float | None
    error: str | None
    audited: bool = False  # it was condemned on the way, and this is its real end


@dataclass(frozen=True)
class Condemned:
    """A verdict that did not end its trial: when it was reached, and on what."""

    time: float
    attempt: int | None
    rule: str | None
    kind: str | None
    margin: float | None
    evidence: tuple[dict[str, Any], ...]
    message: str | None
    epochs: int
    step: int | None
    epochs_budget: int | None
    seconds: float | None

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Condemned:
        values: dict[str, Any] = {item.name: line.get(item.name) for item in fields(cls)}
        values["epochs"], values["evidence"] = line.get("epochs") or 0, tuple(line.get("evidence") or ())
        return cls(**values)


@dataclass(frozen=True)
class Start:
    attempt: int
    time: float
    slot: Any
    host: str | None
    pid: int | None
    resumed_from: int | None
    checkpoint: str | None


class Loss(NamedTuple):
    attempt: int | None
    time: float
    reason: str


@dataclass(frozen=True)
class Rung:
    age: int
    phase: int
    value: float | None
    cutoff: float | None
    peers: int
    decision: str  # "continue" | "stop"
    time: float


class Refused(NamedTuple):
    ask: int
    params: dict[str, Any]
    reason: str


class Breaker(NamedTuple):
    """The circuit breaker stopped the sweep; `regions` as `buttress.search.separation.Region` in dictionaries."""

    first: int
    ended: int
    collapsed: int
    regions: tuple[dict[str, Any], ...]
    time: float


class Warm(NamedTuple):
    """What earlier sweeps taught this one: the trials that were told, and why how many others were left out."""

    told: tuple[dict[str, Any], ...]
    left_out: tuple[dict[str, Any], ...]


class End(NamedTuple):
    reason: str
    counts: dict[str, int]
    seconds: float | None
    time: float


@dataclass(frozen=True)
class TrialRecord:
    """All that counts of one trial.

    `reports` are those of the newest attempt, preceded by the earlier ones that its checkpoint covers. `state` is the
    outcome, or `running` (on a slot now) or `suspended` (unfinished and on no slot: waiting, lost, or its driver is
    gone).
    """

    id: str
    ask: int
    time: float
    params: dict[str, Any]
    config: dict[str, Any]
    seed: int | None
    budget_epochs: int | None
    state: str
    attempts: tuple[Start, ...] = ()
    losses: tuple[Loss, ...] = ()
    reports: tuple[Report, ...] = ()
    rungs: tuple[Rung, ...] = ()
    outcome: Outcome | None = None
    audit: Condemned | None = None  # it was condemned, and ran on to its real end
    probation: Condemned | None = None  # it was condemned, and set aside

    @property
    def finished(self) -> bool:
        return self.outcome is not None

    @property
    def warnings(self) -> tuple[str, ...]:
        if self.outcome is not None:
            return self.outcome.warnings
        return self.reports[-1].warnings if self.reports else ()


@dataclass(frozen=True)
class Journal:
    path: Path | None
    header: Header
    trials: dict[str, TrialRecord]
    refused: tuple[Refused, ...] = ()
    resumes: tuple[float, ...] = ()
    ended: End | None = None
    torn: int = 0  # bytes of a torn last line, left out
    problems: tuple[str, ...] = field(default=(), repr=False)
    breaker: Breaker | None = None
    warm: Warm | None = None

    @property
    def folder(self) -> Path:
        """The sweep's folder."""
        return self.path.parent if self.path is not None else Path()

    def trial_folder(self, id: str) -> Path:
        """Where a trial's checkpoints and media lie; paths in its reports are relative to it."""
        return self.folder / "trials" / id

    @property
    def objectives(self) -> tuple[Objective, ...]:
        return self.header.objectives

    def counts(self) -> dict[str, int]:
        """How many trials stand in which state; states without a trial are left out."""
        found = [record.state for record in self.trials.values()]
        return {state: found.count(state) for state in STATES if state in found}

    def trial(self, name: str) -> TrialRecord:
        """The trial called `name` (`7`, `0007` or `<sweep id>-0007`); raises BadInput naming the ids there are."""
        wanted = str(name).removeprefix(f"{self.header.sweep}-")
        for candidate in (wanted, wanted.zfill(4)):
            if candidate in self.trials:
                return self.trials[candidate]
        ids = sorted(self.trials)
        accepted = "no trial was started yet" if not ids else ids[0] if len(ids) == 1 else f"{ids[0]} to {ids[-1]}"
        where = self.header.sweep
        raise BadInput("no such trial in this sweep", where=where, key="trial", value=name, accepted=accepted)


# ------------------------------------------------------------------------------------------------- lines into records


def fold(entries: Iterable[Mapping[str, Any]], *, path: Path | None = None, alive: bool = False) -> Journal:
    """Lines into a `Journal`; `buttress.journal.read` without a file (tests, replays of a prefix)."""
    state = _Fold(path)
    for number, entry in enumerate(entries, 1):
        try:
            state.take(entry)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, BadInput):
                raise
            missing = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
            raise BadInput(f"line {number} ({entry.get('line')}) {missing}", where=path) from error
    return state.journal(alive)


def header_of(line: Mapping[str, Any] | None, path: Path | None) -> Header:
    if line is None or line.get("line") != "header" or not isinstance(line.get("schema"), int):
        raise no_journal(path)
    if line["schema"] > SCHEMA:
        raise BadInput(
            "this journal was written by a newer Buttress", where=path, key="schema", value=line["schema"],
            accepted=f"schema {SCHEMA}{' or older' if SCHEMA > 1 else ''}; install the newer version to read it",
        )
    try:
        values = {item.name: line[item.name] for item in fields(Header)}
    except KeyError as error:
        raise BadInput(f"line 1 (header) lacks {error}", where=path) from error
    values["objectives"] = tuple(Objective(entry["metric"], entry["direction"]) for entry in line["objectives"])
    return Header(**values)


def no_journal(path: Path | None) -> BadInput:
    return BadInput("this is not a Buttress journal", where=path, accepted=f"the {FILE} of a sweep")


class _Trial:
    """One trial while its lines are being read."""

    def __init__(self, line: Mapping[str, Any]) -> None:
        self.line = {**line, "params": line["params"], "config": line["config"], "ask": line["ask"]}
        self.attempts: list[Start] = []
        self.losses: list[Loss] = []
        self.reports: list[Report] = []
        self.rungs: dict[tuple[int, int], Rung] = {}  # an age passed again after a loss replaces the first passing
        self.outcome: Outcome | None = None
        self.audit: Condemned | None = None
        self.probation: Condemned | None = None
        self.on_slot = False

    def start(self, line: Mapping[str, Any]) -> str | None:
        """Takes a new attempt: earlier reports are kept up to the one whose checkpoint it goes on from."""
        begun = Start(
            line["attempt"], line["time"], line.get("slot"), line.get("host"), line.get("pid"),
            line.get("resumed_from"), line.get("checkpoint"),
        )
        self.attempts.append(begun)
        self.on_slot = True
        if begun.resumed_from is None:
            self.reports.clear()
            return None
        fits = [
            index for index, report in enumerate(self.reports)
            if report.seq == begun.resumed_from and line.get("resumed_attempt") in (None, report.attempt)
        ]
        named = [index for index in fits if begun.checkpoint and self.reports[index].checkpoint == begun.checkpoint]
        fits = named or fits
        del self.reports[fits[-1] + 1 if fits else 0 :]
        if not fits:
            return f"attempt {begun.attempt} goes on from report {begun.resumed_from}, which the journal does not hold"
        return None

    def report(self, line: Mapping[str, Any]) -> None:
        newest = self.attempts[-1].attempt if self.attempts else None
        if newest is not None and line["attempt"] != newest:
            return  # a straggler of an attempt that was given up
        self.reports.append(
            Report(
                line["attempt"], line["seq"], line["time"], line["epoch"], line["step"], line["full_beta_epochs"],
                line["full_beta_steps"], line["phase"], line["metrics"], line.get("vectors") or {},
                tuple(line.get("nonfinite") or ()), bool(line.get("closing")), line.get("checkpoint"),
                line.get("media") or {}, line.get("seconds") or 0.0, line.get("mem_mb"), line.get("state", "healthy"),
                tuple(line.get("suspects") or ()), bool(line.get("valid")), tuple(line.get("warnings") or ()),
                line.get("note") or "",
            )
        )

    def rung(self, line: Mapping[str, Any]) -> None:
        passed = Rung(
            line["age"], line["phase"], line["value"], line["cutoff"], line["peers"], line["decision"], line["time"]
        )
        self.rungs.pop((passed.phase, passed.age), None)
        self.rungs[passed.phase, passed.age] = passed

    def end(self, line: Mapping[str, Any]) -> None:
        best = line.get("best")
        self.on_slot = False
        self.outcome = Outcome(
            outcome=line["outcome"], time=line["time"], attempt=line.get("attempt"), kind=line.get("kind"),
            margin=line.get("margin"), rule=line.get("rule"), evidence=tuple(line.get("evidence") or ()),
            message=line.get("message"), warnings=tuple(line.get("warnings") or ()),
            best=Best(**{item.name: best.get(item.name) for item in fields(Best)}) if best else None,
            last=line.get("last") or {}, epochs=line.get("epochs") or 0, epochs_budget=line.get("epochs_budget"),
            step=line.get("step"), seconds=line.get("seconds"), error=line.get("error"),
            audited=bool(line.get("audited")),
        )

    def record(self, alive: bool) -> TrialRecord:
        line = self.line
        state = self.outcome.outcome if self.outcome else "running" if alive and self.on_slot else "suspended"
        return TrialRecord(
            id=line["trial"], ask=line["ask"], time=line["time"], params=line["params"], config=line["config"],
            seed=line.get("seed"), budget_epochs=line.get("budget_epochs"), state=state,
            attempts=tuple(self.attempts), losses=tuple(self.losses), reports=tuple(self.reports),
            rungs=tuple(self.rungs.values()), outcome=self.outcome, audit=self.audit, probation=self.probation,
        )


class _Fold:
    """Reads lines one after the other; `journal` is what they come to."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.header: Header | None = None
        self.trials: dict[str, _Trial] = {}
        self.refused: list[Refused] = []
        self.resumes: list[float] = []
        self.ended: End | None = None
        self.problems: list[str] = []
        self.breaker: Breaker | None = None
        self.warm: Warm | None = None

    def take(self, line: Mapping[str, Any]) -> None:
        kind = line.get("line")
        if self.header is None:
            self.header = header_of(line, self.path)
        elif kind == "trial":
            self.trials.setdefault(line["trial"], _Trial(line))
        elif kind == "refused":
            self.refused.append(Refused(line["ask"], line["params"], line["reason"]))
        elif kind == "breaker":
            regions = tuple(line.get("regions") or ())
            self.breaker = Breaker(line["first"], line["ended"], line["collapsed"], regions, line["time"])
        elif kind == "warm":
            self.warm = Warm(tuple(line["told"]), tuple(line["left_out"]))
        elif kind in ("resume", "end"):
            for each in self.trials.values():
                each.on_slot = False
            if kind == "resume":
                self.resumes.append(line["time"])
                self.ended = None
            else:
                self.ended = End(line["reason"], line["counts"], line.get("seconds"), line["time"])
        elif kind in ("start", "report", "lost", "rung", "audit", "suspended", "outcome"):
            self._of_trial(kind, self.trials.get(line["trial"]), line)

    def _of_trial(self, kind: str, trial: _Trial | None, line: Mapping[str, Any]) -> None:
        if trial is None:
            self.problems.append(f"a {kind} line of trial {line['trial']}, which the journal does not hold")
        elif trial.outcome is not None:
            return
        elif kind == "report":
            trial.report(line)
        elif kind == "start":
            problem = trial.start(line)
            if problem:
                self.problems.append(f"trial {line['trial']}: {problem}")
        elif kind == "lost":
            trial.on_slot = False
            trial.losses.append(Loss(line.get("attempt"), line["time"], line["reason"]))
        elif kind == "rung":
            trial.rung(line)
        elif kind == "audit":
            trial.audit = Condemned.of(line)
        elif kind == "suspended":
            trial.probation, trial.on_slot = Condemned.of(line), False
        else:
            trial.end(line)

    def journal(self, alive: bool) -> Journal:
        if self.header is None:
            raise no_journal(self.path)
        trials = {id: each.record(alive) for id, each in self.trials.items()}
        return Journal(
            self.path, self.header, trials, tuple(self.refused), tuple(self.resumes), self.ended,
            problems=tuple(self.problems), breaker=self.breaker, warm=self.warm,
        )
