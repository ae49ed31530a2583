"""Reads journals of sweeps on remote storage: their segments, their lease, and a copy on this machine.

Object stores have no append and no rename, so a journal is written there as segments, each replaced as a whole while it
grows. `mirror` brings it to this machine, where everything that reads journals reads it as a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from buttress.cache_folder import cache_folder
from buttress.errors import BadInput
from buttress.journal.lock import ORIGIN, Owner
from buttress.journal.records import FILE
from buttress.storage import Storage, unreachable

#: The folder of segments inside a sweep's, and the name of one.
SEGMENTS, SEGMENT = "journal", "journal/{:06d}.jsonl"
#: The object that says which driver writes a sweep, and the seconds after which one that is not renewed has expired.
LEASE, LEASE_S = "lease.json", 60.0


class LeaseLost(RuntimeError):
    """Another driver has taken the sweep over; this one must not write any more."""


def segments(store: Storage) -> bytes:
    """The journal of the sweep in `store`: its segments, one after the other; empty where there is none.

    Each segment ends with a whole line, so that a journal is whole at any moment of its upload.
    """
    names = [name for name in store.names(SEGMENTS) if name.endswith(".jsonl")]
    return b"".join(store.read(f"{SEGMENTS}/{name}") for name in names)


def mirror(url: str) -> Path:
    """Brings the journal of the sweep at `url` here and returns the file; also a sweep's name as the URL's last part
    (its newest one, as under `runs/`). Raises BadInput where there is none or the storage cannot be reached."""
    store = Storage(url)
    try:
        text = segments(store)
        if not text and (found := _newest(store)) is not None:
            store = found
            text = segments(store)
    except OSError as error:
        raise unreachable(store, error) from None
    if not text:
        raise BadInput(
            "there is no journal at this URL", key="SWEEP", value=url,
            accepted=f"the URL of a sweep's folder, the one that holds {SEGMENTS}/",
        )  # fmt: skip
    folder = cache_folder() / "mirrors" / hashlib.sha256(store.url.encode()).hexdigest()[:12] / store.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"the journal cannot be kept here ({error.strerror})", where=folder, key="$BUTTRESS_CACHE",
            accepted="a folder that can be written to",
        ) from None  # fmt: skip
    for name, content in ((ORIGIN, store.url.encode()), (FILE, text)):
        draft = folder / f"{name}.{os.getpid()}.part"
        draft.write_bytes(content)
        draft.replace(folder / name)
    return folder / FILE


def _newest(store: Storage) -> Storage | None:
    """The newest sweep `<name>-<6 characters>` beside `store`, whose URL ends in `<name>`."""
    parent, name = store.parent, store.name
    fits = [one for one in parent.folders() if one.rpartition("-")[0] == name]
    begun = {one: parent.folder(one).read(SEGMENT.format(1))[:200] for one in fits}
    return parent.folder(max(fits, key=lambda one: _time(begun[one]))) if fits else None


def _time(head: bytes) -> float:
    _, found, rest = head.partition(b'"time":')
    try:
        return float(rest.partition(b",")[0]) if found else 0.0
    except ValueError:
        return 0.0


def origin(folder: Path) -> Storage | None:
    """The storage that a mirrored or spooled journal's folder stands for; None for an ordinary folder."""
    try:
        return Storage((folder / ORIGIN).read_text())
    except FileNotFoundError:
        return None


def leased(store: Storage, now: float | None = None) -> Owner | None:
    """Who holds the sweep's lease; None where nobody does or it is over.

    Args:
        store: The sweep's folder.
        now: The storage's time (`Storage.clock`), which its age is taken by; None: this machine's and the holder's
            clocks are taken to agree, which is good enough for showing it.
    """
    try:
        held = json.loads(store.read(LEASE))
        owner = Owner(str(held["host"]), int(held["pid"]), float(held["time"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    written = store.modified(LEASE) if now is not None else None
    age = now - written if now is not None and written is not None else time.time() - owner.time
    return owner if age < LEASE_S else None
