"""Reads journals: finds the file, its whole lines, and what they come to."""

from __future__ import annotations

import json
import math
import os
import re
import zlib
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
    """When a sweep began; 0 where its journal cannot say: a damaged one does not hide the others."""
    try:
        with _files(folder)[0].open("rb") as handle:
            first = parsed(handle.readline(1 << 24))
    except OSError:
        return 0.0
    time = first.get("time") if first else None
    return float(time) if isinstance(time, int | float) and math.isfinite(time) else 0.0


#: How a line ends that carries the CRC-32 of what is before it: `,"crc":"1a2b3c4d"}`.
_SEAL = re.compile(rb',"crc":"([0-9a-f]{8})"}\s*$')


def sealed(text: bytes) -> bytes:
    """A line as it is written: the JSON object `text` with its checksum as its last key, and a newline."""
    return b'%s,"crc":"%08x"}\n' % (text[:-1], zlib.crc32(text))


def is_damaged(text: bytes) -> bool:
    """Whether a line is not what was written; one without a checksum, of an earlier version, is believed."""
    seal = _SEAL.search(text)
    return seal is not None and zlib.crc32(text[: seal.start()] + b"}") != int(seal[1], 16)


def parsed(text: bytes) -> dict[str, Any] | None:
    """One line without its checksum; None where it is no JSON object."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict):
        return None
    line.pop("crc", None)
    return line


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
        if line is None or is_damaged(entry):
            why = "" if line is None else " (its checksum does not fit)"
            raise BadInput(f"line {number} is damaged{why}", where=path, value=entry[:60].decode(errors="replace"))
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
