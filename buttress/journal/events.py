"""The lines of a journal, one builder per kind: in go an event's facts, out comes the dictionary that is written.

A line holds what a reader will see, so that living through an event and replaying it are the same: NaN and infinities
are None already, numpy scalars are numbers.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from buttress.journal.records import FINAL, SCHEMA, Best

#: Kinds of line that are on the disk before `write` returns.
DURABLE = frozenset({"header", "resume", "warm", "trial", "outcome", "breaker", "end"})

Line = dict[str, Any]


class ReportedLike(Protocol):
    """What `report` reads of `buttress.training.trainable.Reported`."""

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


def _line(line: str, trial: str | None = None, attempt: int | None = None, seq: int | None = None, **rest: Any) -> Line:
    """A line as a reader will see it (NaN is None already), so that living through it and replaying it are the same."""
    entry = {"line": line, "time": time.time(), "trial": trial, "attempt": attempt, "seq": seq, **rest}
    made: Line = plain(entry)
    return made


def header(
    *,
    sweep: str,
    name: str,
    spec: Mapping[str, Any],
    metrics: Mapping[str, Any],
    objectives: Sequence[Mapping[str, Any]],
    rules: Mapping[str, Any],
    versions: Mapping[str, str],
    trainable: str,
    seed: int | None,
    commit: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> Line:
    """The first line. `metrics` maps names to `buttress.training.trainable.Metric` or to its fields as a dictionary."""
    table = {key: value if isinstance(value, Mapping) else asdict(value) for key, value in metrics.items()}
    return _line(
        "header", schema=SCHEMA, sweep=sweep, name=name, spec=spec, metrics=table, objectives=list(objectives),
        rules=rules, versions=versions, commit=commit, data=data or {}, seed=seed, trainable=trainable,
    )


def resume(*, versions: Mapping[str, str]) -> Line:
    return _line("resume", host=socket.gethostname(), pid=os.getpid(), versions=versions)


def refused(*, ask: int, params: Mapping[str, Any], reason: str, repeats: str | None = None) -> Line:
    """`repeats`: the trial that the draw would have run again."""
    return _line("refused", ask=ask, params=params, reason=reason, repeats=repeats)


def warm(*, told: Sequence[Mapping[str, Any]], left_out: Sequence[Mapping[str, Any]]) -> Line:
    """What earlier sweeps taught this one before its first draw (warm_start.py): their trials that were told to
    the sampler (`sweep, trial, params, outcome, kind, margin, best, by_age`), and why how many others were not."""
    return _line("warm", told=list(told), left_out=list(left_out))


def breaker(*, first: int, ended: int, collapsed: int, regions: Sequence[Mapping[str, Any]]) -> Line:
    """The circuit breaker: `collapsed` of the `ended` ones among the `first` trials; `regions` separate them."""
    return _line("breaker", first=first, ended=ended, collapsed=collapsed, regions=list(regions))


def trial(
    id: str, *, ask: int, params: Mapping[str, Any], config: Mapping[str, Any], seed: int, budget_epochs: int | None
) -> Line:
    return _line("trial", id, ask=ask, params=params, config=config, seed=seed, budget_epochs=budget_epochs)


def start(
    id: str,
    attempt: int,
    *,
    slot: Any,
    host: str | None = None,
    pid: int | None = None,
    resumed_from: int | None = None,
    resumed_attempt: int | None = None,
    checkpoint: str | None = None,
) -> Line:
    """`resumed_from` and `resumed_attempt` are `seq` and `attempt` of the report whose checkpoint is resumed."""
    return _line(
        "start", id, attempt, slot=slot, host=host, pid=pid, resumed_from=resumed_from,
        resumed_attempt=resumed_attempt, checkpoint=checkpoint,
    )


def report(
    id: str,
    attempt: int,
    seq: int,
    reported: ReportedLike,
    *,
    state: str = "healthy",
    suspects: Sequence[str] = (),
    valid: bool = False,
    warnings: Sequence[str] = (),
) -> Line:
    """`valid`: this report ends a valid epoch (DESIGN, "Valid epoch"). Keys that are not finite join `nonfinite`."""
    lost = [key for key, value in reported.metrics.items() if value is None or not math.isfinite(value)]
    return _line(
        "report", id, attempt, seq, epoch=reported.epoch, step=reported.step,
        full_beta_epochs=reported.full_beta_epochs, full_beta_steps=reported.full_beta_steps, phase=reported.phase,
        metrics=reported.metrics, vectors=reported.vectors,
        nonfinite=[*reported.nonfinite, *(key for key in lost if key not in reported.nonfinite)],
        closing=reported.closing, checkpoint=reported.checkpoint, media=reported.media, seconds=reported.seconds,
        mem_mb=reported.mem_mb, note=reported.note, state=state, suspects=list(suspects), valid=valid,
        warnings=list(warnings),
    )


def lost(id: str, attempt: int, *, reason: str, moved: bool = False) -> Line:
    """`moved`: given up in good order (a node that is drained); it does not count against the trial."""
    return _line("lost", id, attempt, reason=reason, moved=moved)


def rung(
    id: str,
    attempt: int | None = None,
    *,
    age: int,
    phase: int,
    value: float | None,
    cutoff: float | None,
    peers: int,
    decision: str,
) -> Line:
    """`peers`: values in the rung when it was decided; `cutoff` None: too few of them to stop anybody."""
    return _line("rung", id, attempt, age=age, phase=phase, value=value, cutoff=cutoff, peers=peers, decision=decision)


def audit(id: str, attempt: int | None, **verdict: Any) -> Line:
    """The trial was condemned and runs on to its real end, to tell how right the rules are; `verdict`: `condemned`."""
    return _line("audit", id, attempt, **verdict)


def suspended(id: str, attempt: int | None, **verdict: Any) -> Line:
    """The trial was condemned and is set aside: it has left its slot and may come back; `verdict`: `condemned`."""
    return _line("suspended", id, attempt, **verdict)


def condemned(
    verdict: Mapping[str, Any], *, epochs: int, step: int, epochs_budget: int | None, seconds: float
) -> dict[str, Any]:
    """What the lines of a condemned trial that goes on hold: `Verdict.to_dict()`, and how far the trial was."""
    kept = {key: verdict[key] for key in ("rule", "kind", "margin", "evidence", "message")}
    return {**kept, "epochs": epochs, "step": step, "epochs_budget": epochs_budget, "seconds": seconds}


def outcome(
    id: str,
    attempt: int | None,
    outcome: str,
    *,
    kind: str | None = None,
    margin: float | None = None,
    rule: str | None = None,
    evidence: Sequence[Mapping[str, Any]] = (),
    message: str | None = None,
    warnings: Sequence[str] = (),
    best: Best | Mapping[str, Any] | None = None,
    last: Mapping[str, float | None] | None = None,
    epochs: int = 0,
    epochs_budget: int | None = None,
    step: int | None = None,
    seconds: float | None = None,
    error: str | None = None,
    audited: bool = False,
) -> Line:
    """The trial's last word; `outcome` is one of `FINAL`, `evidence` is `Verdict.to_dict()["evidence"]`.

    `audited`: it was condemned on the way, and this is its real end.
    """
    if outcome not in FINAL:
        raise ValueError(f"an outcome is one of {', '.join(FINAL)}, not {outcome!r}")
    return _line(
        "outcome", id, attempt, outcome=outcome, kind=kind, margin=margin, rule=rule, evidence=list(evidence),
        message=message, warnings=list(warnings), best=best.to_dict() if isinstance(best, Best) else best,
        last=last or {}, epochs=epochs, epochs_budget=epochs_budget, step=step, seconds=seconds, error=error,
        audited=audited,
    )


def end(*, reason: str, counts: Mapping[str, int], seconds: float) -> Line:
    return _line("end", reason=reason, counts=counts, seconds=seconds)


# --- what JSON can hold -------------------------------------------------------------------------------------------


#: Types whose values JSON holds as they are: most of a line's leaves, so they are looked for first.
_AS_THEY_ARE = frozenset({str, int, bool, type(None)})


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: NaN and infinities are None, tuples are lists, numpy scalars are numbers.

    Raises TypeError, with the keys that lead there, for what JSON has no word for.
    """
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind is float or isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        made = {}
        for key, item in value.items():
            try:
                made[str(key)] = plain(item)
            except TypeError as error:
                raise _unwritable(error, str(key)) from None
        return made
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (str, int)):  # of a class of its own
        return value
    if hasattr(value, "tolist"):  # a numpy scalar or array, a tensor
        return plain(value.tolist())
    raise TypeError(f"a journal line cannot hold {kind.__name__}")


def _unwritable(error: TypeError, key: str) -> TypeError:
    """The same error, one key further out."""
    what, _, path = str(error).partition(" at ")
    return TypeError(f"{what} at {key}.{path}" if path else f"{what} at {key}")
