"""Locks journals: one writer each, by a lock beside the file; of a remote sweep, by the lease that lies there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from buttress.errors import BadInput

#: In a folder whose journal came from remote storage: the URL of the sweep there.
ORIGIN = "origin.url"


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
        from buttress.journal.mirror import leased, origin

        store = origin(Path(path).parent)
        with contextlib.suppress(OSError):
            found: Owner | None = leased(store) if store is not None else None
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


def take(path: Path, wait_s: float) -> int:
    """Takes the lock of the journal at `path` for this process and returns its handle, which releases it when closed.

    Raises BadInput, naming the other driver, where that still holds it after `wait_s` seconds.
    """
    handle = os.open(lock_file(path), os.O_RDWR | os.O_CREAT, 0o644)
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
                where=path,
                accepted="a sweep that nobody runs; stop that driver first, or look on with `buttress status`",
            ) from None
    entry = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(entry).encode(), 0)
    return handle
