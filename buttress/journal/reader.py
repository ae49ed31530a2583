"""Reads journals: finds the file, its whole lines, and what they come to."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from buttress.errors import BadInput
from buttress.journal.events import Event
from buttress.journal.lock import owner
from buttress.journal.records import FILE, Journal, fold, header_of, not_a_journal, numbered_event

#: How a journal begins.
HEAD = b'{"line":"header"'


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
        from buttress.journal.mirror import mirror

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
        first = parsed(handle.readline())
    return float(first.get("time") or 0.0) if first else 0.0


def parsed(text: bytes) -> dict[str, Any] | None:
    """One line, None where it is none."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def lines(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Every whole line of a journal, in order, as written (also those that no longer count); the header is checked."""
    return _lines(Path(path), _text(Path(path)))


def events(path: str | os.PathLike[str]) -> Iterator[Event]:
    """Every event of a journal, in order (also those that no longer count); unknown kinds are left out.

    Raises:
        BadInput: as `read`.
    """
    for number, line in enumerate(lines(path), 1):
        if (event := numbered_event(line, number, Path(path))) is not None:
            yield event


def _lines(path: Path, text: bytes) -> Iterator[dict[str, Any]]:
    whole = text[: whole_length(text)].split(b"\n")[:-1]
    if not whole:
        if not text or text.startswith(HEAD[: len(text)]):
            problem = "this journal is empty: the sweep ended before its first line was written"
            raise BadInput(problem, where=path, accepted="the journal of a sweep that has begun; start it again")
        raise not_a_journal(path)
    header_of(parsed(whole[0]), path)
    for number, entry in enumerate(whole, 1):
        line = parsed(entry)
        if line is None:
            raise BadInput(f"line {number} is damaged", where=path, value=entry[:60].decode(errors="replace"))
        yield line


def whole_length(text: bytes) -> int:
    """How many bytes are whole lines: up to the last newline, and back over a tail the disk lost in a power cut."""
    end = text.rfind(b"\n") + 1
    while end:
        begin = text.rfind(b"\n", 0, end - 1) + 1
        if begin == 0 or parsed(text[begin:end]) is not None:
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
    return replace(journal, torn=len(text) - whole_length(text))
