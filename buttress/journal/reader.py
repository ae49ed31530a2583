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


#: How a line ends that carries its seal.
_SEAL = b',"crc":"1a2b3c4d"}'


def sealed(text: bytes, before: int) -> tuple[bytes, int]:
    """A line as it is written, and its seal.

    Args:
        text: The JSON object.
        before: The seal of the line before, 0 for the first: a line that is missing shows at the next one.

    Returns:
        The object with its seal (the CRC-32 of it and all sealed lines before it) as its last key, and a newline.
    """
    seal = zlib.crc32(text, before)
    return b'%s,"crc":"%08x"}\n' % (text[:-1], seal), seal


def seal_of(text: bytes, before: int) -> int | None:
    """The seal of a line that was read, 0 for one of an earlier version, without a seal; None: it is not what was
    written, or not where it was written."""
    found = _written_seal(text)
    if found is None:
        return 0 if before == 0 else None
    return found if zlib.crc32(b"}", zlib.crc32(text[: -len(_SEAL)], before)) == found else None


def _written_seal(text: bytes) -> int | None:
    """The seal at the end of a line without its newline; None where it has none."""
    if text[-len(_SEAL) : -10] != _SEAL[:-10] or not text.endswith(b'"}'):
        return None
    try:
        return int(text[-10:-2], 16)
    except ValueError:
        return None


def last_seal(text: bytes) -> int:
    """The seal of the last of these whole lines; 0 where it has none."""
    return _written_seal(text[text.rfind(b"\n", 0, -1) + 1 : -1]) or 0


def parsed(text: bytes) -> dict[str, Any] | None:
    """One line without its seal; None where it is no JSON object."""
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
    before = 0
    for number, entry in enumerate(whole, 1):
        line, seal = parsed(entry), seal_of(entry, before)
        if line is None or seal is None:
            why = "" if line is None else ", or lines before it are missing: its checksum does not fit"
            raise BadInput(f"line {number} is damaged{why}", where=path, value=entry[:60].decode(errors="replace"))
        before = seal
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
