"""The journal: the one append-only record of a sweep, its schema, its writer and its reader.

A journal is a file of JSON lines, `journal.jsonl`, beside which the sweep's other files lie. One writer (the driver)
appends; everybody else reads. In goes one dictionary per event, made by the builders below (`header`, `trial`,
`report`, ...), so that no other module spells a key. Out comes a `Journal`: the header and one `TrialRecord` per trial
with the reports that count. Standard library only: this module is imported by the driver, by every table, and by tests.

Three rules make the file trustworthy whatever happens to its writer:
  - a line counts when its newline is there; what follows the last newline is torn, and cut off before the next append;
  - header, trial, outcome and end lines are on the disk (fsync) before `write` returns;
  - a trial's first outcome line is its last word: whatever comes after it about that trial is ignored by the reader.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from analysis.records import (
    FILE,
    FINAL,
    SCHEMA,
    STATES,
    Best,
    Condemned,
    End,
    Header,
    Journal,
    Loss,
    Objective,
    Outcome,
    Refused,
    Report,
    Rung,
    Start,
    TrialRecord,
    fold,
    header_of,
    no_journal,
)
from search_spaces.errors import BadInput

__all__ = [
    "DURABLE", "FILE", "FINAL", "SCHEMA", "STATES", "Best", "Condemned", "End", "Found", "Header", "Journal",
    "JournalUnwritable", "JournalWriter", "Line", "Loss", "Objective", "Outcome", "Owner", "Refused", "Report", "Rung",
    "Start", "TrialRecord", "audit", "condemned", "end", "find", "fold", "header", "lines", "lock_file", "lost",
    "outcome", "owner", "plain", "read", "refused", "report", "resume", "rung", "start", "suspended", "trial",
]

#: In a folder whose journal came from remote storage: the URL of the sweep there.
ORIGIN = "origin.url"
#: Kinds of line that are on the disk before `write` returns.
DURABLE = frozenset({"header", "resume", "warm", "trial", "outcome", "breaker", "end"})


class JournalUnwritable(OSError):
    """A line could not be written (disk full, quota, storage gone). The journal holds every line before it, whole."""


# ----------------------------------------------------------------------------------------------------- lines, by kind


class ReportedLike(Protocol):
    """What `report` reads of `trainables.base.Reported`."""

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


Line = dict[str, Any]


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
    """The first line. `metrics` maps names to `trainables.base.Metric` or to its fields as a dictionary."""
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
    """What earlier sweeps taught this one before its first draw (`sweep.warm_start`): their trials that were told to
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


# ------------------------------------------------------------------------------------------------------------- writer


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


class Owner(NamedTuple):
    host: str
    pid: int
    time: float

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        return f"host {self.host}, pid {self.pid}, since {since}"


def lock_file(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def owner(path: str | os.PathLike[str]) -> Owner | None:
    """Who is writing this journal now; None when nobody is.

    Reads the lock, not the file's contents alone: a driver that was killed leaves its name but not its lock. Of a
    journal that came from remote storage it reads the lease there.
    """
    if (Path(path).parent / ORIGIN).exists():
        from analysis import storage

        store = storage.origin(Path(path).parent)
        with contextlib.suppress(OSError):
            found: Owner | None = storage.leased(store) if store is not None else None
            return found
    lock = lock_file(Path(path))
    try:
        with lock.open("rb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return _named(handle.read()) or Owner("unknown", 0, lock.stat().st_mtime)
    except OSError:
        pass
    return None


def _named(text: bytes) -> Owner | None:
    try:
        entry = json.loads(text)
        return Owner(str(entry["host"]), int(entry["pid"]), float(entry["time"]))
    except (ValueError, KeyError, TypeError):
        return None


class JournalWriter:
    """Appends lines to one journal; the only writer, from any thread.

    Opening takes the lock beside the file (a second driver is refused with `BadInput` naming the first) and cuts off a
    torn last line (`cut` says how many bytes). `fresh` is True while the journal holds no header. A line that cannot
    be written whole is taken back and raises `JournalUnwritable`; the writer can be used again once there is room.

        >>> with JournalWriter("runs/demo-ab12cd/journal.jsonl") as journal:        # doctest: +SKIP
        ...     journal.write(header(sweep="demo-ab12cd", ...))
    """

    def __init__(
        self, path: str | os.PathLike[str], *, fsync: Iterable[str] = DURABLE, wait_s: float = 1.0
    ) -> None:
        self.path = Path(path)
        self._fsync = frozenset(fsync)
        self._mutex = threading.Lock()
        self._file = self._lock = -1
        self.cut = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_lock(wait_s)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._end = self._cut_torn()
        except BadInput:
            self.close()
            raise
        except OSError as error:
            self.close()
            problem = f"the journal cannot be written ({error.strerror or error})"
            raise BadInput(problem, where=self.path, accepted="a folder that can be written to") from error
        self.fresh = self._end == 0

    def write(self, line: Line) -> None:
        """Appends `line`, made by one of the functions above. Raises JournalUnwritable when it could not."""
        kind = line["line"]
        text = json.dumps(line, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        with self._mutex:
            if self._file < 0:
                raise JournalUnwritable(errno.EBADF, "the journal is closed", str(self.path))
            if self.fresh != (kind == "header"):
                raise ValueError(f"a journal starts with its header and has one only; this line is {kind!r}")
            try:
                if os.fstat(self._file).st_size != self._end:  # what an earlier failure left behind
                    os.ftruncate(self._file, self._end)
                written = 0
                while written < len(text):
                    written += os.write(self._file, text[written:])
                if kind in self._fsync:
                    os.fsync(self._file)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._end)
                problem = f"the journal cannot be written: {error.strerror or error}"
                raise JournalUnwritable(error.errno or errno.EIO, problem, str(self.path)) from error
            self._end += len(text)
            self.fresh = False

    def close(self) -> None:
        """Gives the lock back; lines written before are safe either way."""
        with self._mutex:
            for handle in (self._file, self._lock):
                if handle >= 0:
                    if handle == self._lock:
                        with contextlib.suppress(OSError):
                            os.ftruncate(handle, 0)
                    os.close(handle)
            self._file = self._lock = -1

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_lock(self, wait_s: float) -> int:
        handle = os.open(lock_file(self.path), os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # `owner` holds a shared lock for an instant when somebody looks: ask again before refusing.
                if time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                name = _named(os.pread(handle, 4096, 0))
                os.close(handle)
                raise BadInput(
                    f"this sweep is being run by another driver ({name or 'which left no name'})",
                    where=self.path,
                    accepted="a sweep that nobody runs; stop that driver first, or look on with `buttress status`",
                ) from None
        entry = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(entry).encode(), 0)
        return handle

    def _cut_torn(self) -> int:
        """The file's length once what was torn is cut off; raises BadInput where it is no journal we can go on with."""
        text = self.path.read_bytes()
        end = _whole(text)
        if end:
            header_of(_parsed(text[: text.index(b"\n")]), self.path)
        elif text and not text.startswith(_HEAD[: len(text)]):
            raise no_journal(self.path)
        self.cut = len(text) - end
        if self.cut:
            os.ftruncate(self._file, end)
            os.fsync(self._file)
        return end


_HEAD = b'{"line":"header"'


# ------------------------------------------------------------------------------------------------------------- reader


class Found(NamedTuple):
    path: Path
    note: str | None  # what was chosen, where several sweeps fit


def find(where: str | os.PathLike[str], runs: str | os.PathLike[str] = "runs") -> Found:
    """The journal of a sweep: of a folder, of a URL (brought here first), or of a name looked up under `runs`.

    A name is a sweep id (`lithology-ab12cd`), the name of a spec (`lithology`: its newest sweep), or the beginning of
    either. Raises BadInput when there is none.
    """
    text = os.fspath(where)
    if "://" in text:
        from analysis.storage import mirror

        return Found(mirror(text), None)
    for folder in (Path(text), Path(runs) / text):
        if folder.is_file():
            return Found(folder, None)
        if text and _files(folder):
            return Found(_files(folder)[0], None)
    candidates = [folder for folder in _sweeps(Path(runs)) if text and folder.name.startswith(text)]
    called = [folder for folder in candidates if re.fullmatch(r"-[0-9a-z]{6}", folder.name[len(text) :])]
    candidates = sorted(called or candidates, key=lambda folder: (_started(folder), folder.name))
    if candidates:
        newest = candidates[-1]
        note = None
        if len(candidates) > 1:
            note = f"{len(candidates)} sweeps are called {text}; this is the newest, {newest.name}"
        return Found(_files(newest)[0], note)
    if Path(text).is_dir():
        problem = f"there is no {FILE} in this folder"
        there = _sweeps(Path(text))
    else:
        problem = "no such sweep"
        there = _sweeps(Path(runs))
    names = sorted(there, key=_started, reverse=True)[:5]
    known = f" (there are {', '.join(folder.name for folder in names)})" if names else ""
    raise BadInput(problem, key="SWEEP", value=text, accepted=_ACCEPTED + known)


_ACCEPTED = f"a folder that holds {FILE}, the URL of one, or the name of a sweep under runs/"


def _files(folder: Path) -> list[Path]:
    return [folder / FILE] if (folder / FILE).is_file() else []


def _sweeps(runs: Path) -> list[Path]:
    return [folder for folder in runs.iterdir() if _files(folder)] if runs.is_dir() else []


def _started(folder: Path) -> float:
    with _files(folder)[0].open("rb") as handle:
        first = _parsed(handle.readline())
    return float(first.get("time") or 0.0) if first else 0.0


def _parsed(text: bytes) -> Line | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def lines(path: str | os.PathLike[str]) -> Iterator[Line]:
    """Every whole line of a journal, in order, as written (also those that no longer count); the header is checked."""
    return _lines(Path(path), _text(Path(path)))


def _lines(path: Path, text: bytes) -> Iterator[Line]:
    whole = text[: _whole(text)].split(b"\n")[:-1]
    if not whole:
        if not text or text.startswith(_HEAD[: len(text)]):
            problem = "this journal is empty: the sweep ended before its first line was written"
            raise BadInput(problem, where=path, accepted="the journal of a sweep that has begun; start it again")
        raise no_journal(path)
    header_of(_parsed(whole[0]), path)
    for number, entry in enumerate(whole, 1):
        line = _parsed(entry)
        if line is None:
            raise BadInput(f"line {number} is damaged", where=path, value=entry[:60].decode(errors="replace"))
        yield line


def _whole(text: bytes) -> int:
    """How many bytes are whole lines: up to the last newline, and back over a tail the disk lost in a power cut."""
    end = text.rfind(b"\n") + 1
    while end:
        begin = text.rfind(b"\n", 0, end - 1) + 1
        if begin == 0 or _parsed(text[begin:end]) is not None:
            break
        end = begin
    return end


def _text(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"the journal cannot be read ({error.strerror})", where=path, accepted=_ACCEPTED) from error


def read(path: str | os.PathLike[str], *, alive: bool | None = None) -> Journal:
    """The journal at `path` (the file or its folder), folded into what counts.

    `alive` says whether a driver is at work (unfinished trials are then `running`); None looks at the lock. Raises
    BadInput for a missing, empty, damaged or foreign file and for a schema newer than `SCHEMA`.
    """
    path = Path(path)
    if path.is_dir():
        path = find(path).path
    if alive is None:
        alive = owner(path) is not None
    text = _text(path)
    journal = fold(_lines(path, text), path=path, alive=alive)
    return replace(journal, torn=len(text) - _whole(text))
