"""Keeps a sweep on remote storage: uploads its journal, holds its lease, deletes its checkpoints.

The driver writes its journal to a local spool, and a thread brings what is new to the storage: durable events at once,
reports within `UPLOAD_S`. Before the next trial is drawn all decisions are there (`barrier`), so that a driver whose
machine is lost costs at most the last reports. While the storage is away the spool grows and nothing is lost.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from buttress.cache_folder import cache_folder
from buttress.errors import BadInput
from buttress.journal import FILE, ORIGIN
from buttress.journal.mirror import LEASE, LEASE_S, SEGMENT, SEGMENTS, LeaseLost, leased, segments
from buttress.storage import Storage, first_line, unreachable

log = logging.getLogger("buttress.remote")

#: Seconds within which reports are on the storage; decisions go at once.
UPLOAD_S = 5.0
#: Seconds between renewals of the lease.
RENEW_S = 10.0
#: Bytes after which a segment of the journal is closed: each upload sends the open one again.
SEGMENT_BYTES = 512 << 10
#: Seconds that the end of a sweep waits for a storage that is away.
SHUTDOWN_FLUSH_TIMEOUT_S = 120.0
#: How often a take-over is tried where the former driver renews its lease in the same instant.
MAX_TAKE_OVERS = 3


def spool(store: Storage) -> Path:
    """The local folder in which this machine keeps what belongs to the sweep in `store`."""
    folder = cache_folder() / "spool" / hashlib.sha256(store.url.encode()).hexdigest()[:12] / store.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ORIGIN).write_text(store.url)
    return folder


def fetch(store: Storage) -> Path:
    """Brings the journal of a sweep into its spool, to be gone on with; returns the spool.

    A spool that holds all of the storage's journal and more is left as it is: its driver died while the storage was
    away. Raises BadInput where the storage has no journal or cannot be read.
    """
    try:
        text = segments(store)
    except OSError as error:
        raise unreachable(store, error) from None
    folder = spool(store)
    path = folder / FILE
    here = path.read_bytes() if path.exists() else b""
    if not text:
        raise BadInput("there is no journal at this URL", key="SWEEP", value=store.url, accepted="a sweep's folder")
    if not here.startswith(text):
        draft = path.with_suffix(".part")
        draft.write_bytes(text)
        draft.replace(path)
    return folder


class Upload:
    """Keeps `store` up to date with the journal at `path`; `note` tells a person, `fail` ends the sweep."""

    def __init__(
        self,
        store: Storage,
        path: Path,
        *,
        note: Callable[[str], None],
        fail: Callable[[BaseException], None],
        take_over: bool = False,
    ) -> None:
        self.store, self._path, self._note, self._fail = store, path, note, fail
        self._token = secrets.token_hex(8)
        self._news = threading.Event()
        self._changed = threading.Condition()
        self._over = False
        self._away_since: float | None = None
        self._renewed = -RENEW_S
        self._take_lease(take_over)
        there = [name for name in store.names(SEGMENTS) if name.endswith(".jsonl")]
        self._segment = len(there) + 1
        self._first = self._sent = len(segments(store))  # offsets in the file: of the open segment, of what is there
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """A line that decides something has been written."""
        self._news.set()

    def barrier(self, over: Callable[[], bool]) -> None:
        """Returns when all that is in the journal now is on the storage, or when `over()`."""
        end = self._path.stat().st_size
        self._news.set()
        with self._changed:
            while self._sent < end and not self._over and not over():
                self._changed.wait(0.5)

    def close(self) -> bool:
        """The last lines, and the lease given back. False where the storage was away for `SHUTDOWN_FLUSH_TIMEOUT_S`."""
        deadline = time.monotonic() + SHUTDOWN_FLUSH_TIMEOUT_S
        with contextlib.suppress(KeyboardInterrupt):
            self.barrier(lambda: time.monotonic() > deadline)
        self._over = True
        self._news.set()
        self._thread.join(30.0)
        done = self._sent >= self._path.stat().st_size
        with contextlib.suppress(OSError):
            if done and (held := _lease(self.store)) and held.get("token") == self._token:
                self.store.delete(LEASE)
        if not done:
            self._note(f"not all of the journal is on {self.store}; `buttress resume` on this machine brings it there")
        return done

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._over:
            self._news.wait(1.0 if self._away_since is not None else UPLOAD_S)
            self._news.clear()
            try:
                if time.monotonic() - self._renewed >= RENEW_S:
                    self._renew()
                self._flush()
            except OSError as error:
                if self._away_since is None:
                    self._away_since = time.monotonic()
                    kept = f"the journal is kept in {self._path.parent}"
                    self._note(f"the storage {self.store} is away ({first_line(error)}); {kept}")
                time.sleep(0.5)
            except LeaseLost as error:
                self._over = True
                self._fail(error)
            else:
                if self._away_since is not None:
                    away, self._away_since = time.monotonic() - self._away_since, None
                    self._note(f"the storage is back after {away:.0f} s; nothing was lost")
            with self._changed:
                self._changed.notify_all()

    def _flush(self) -> None:
        """Sends the open segment, whole lines only."""
        with self._path.open("rb") as file:
            file.seek(self._first)
            content = file.read()
        content = content[: content.rfind(b"\n") + 1]
        if self._first + len(content) == self._sent:
            return
        self.store.write(SEGMENT.format(self._segment), content)
        self._sent = self._first + len(content)
        if len(content) >= SEGMENT_BYTES:
            self._segment, self._first = self._segment + 1, self._sent

    # --- the lease -----------------------------------------------------------------------------------------------

    def _take_lease(self, take_over: bool) -> None:
        """Raises BadInput naming the driver that holds it."""
        try:
            holder = leased(self.store, self.store.clock())  # clocks of two machines may be minutes apart
            if holder is not None and not take_over:
                raise BadInput(
                    f"this sweep is being run by another driver ({holder})", where=self.store.url,
                    accepted=f"a sweep whose driver has not been heard of for {LEASE_S:g} s; or `--take-over`",
                )  # fmt: skip
            former = (_lease(self.store) or {}).get("token") if take_over else None
            for _ in range(MAX_TAKE_OVERS if take_over else 1):
                self._write_lease()
                time.sleep(0.5)  # two drivers that saw the same free lease: the later writer has it
                if former is None or (_lease(self.store) or {}).get("token") != former:
                    break  # the former driver did not write its own once more between its look and our word
            self._check_lease()
        except LeaseLost as error:
            raise BadInput(str(error), where=self.store.url, accepted="one driver per sweep") from None
        except OSError as error:
            raise unreachable(self.store, error) from None

    def _renew(self) -> None:
        self._check_lease()
        self._write_lease()

    def _check_lease(self) -> None:
        held = _lease(self.store)
        if held is not None and held.get("token") != self._token:
            who = f"host {held.get('host')}, pid {held.get('pid')}"
            raise LeaseLost(f"another driver has taken this sweep over ({who})")

    def _write_lease(self) -> None:
        entry = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time(), "token": self._token}
        self.store.write(LEASE, json.dumps(entry).encode())
        self._renewed = time.monotonic()


def _lease(store: Storage) -> dict[str, Any] | None:
    try:
        held: dict[str, Any] = json.loads(store.read(LEASE))
        return held
    except (FileNotFoundError, ValueError):
        return None


# ------------------------------------------------------------------------------------------------ the trials' own files


class RemoteTrialFolders:
    """On the sweep's storage. Deleting happens on a thread of its own; a file that could not be deleted stays.

    What is there is known from what has been written: no question is asked that an absent storage could not answer.
    The worker that needs a checkpoint finds out whether it is really there.
    """

    def __init__(self, store: Storage) -> None:
        self._store = store
        self._deletions: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()
        threading.Thread(target=self._delete, name="deletions", daemon=True).start()

    def exists(self, trial: str, name: str) -> bool:
        return True

    def checkpoints(self, trial: str) -> list[str]:
        with contextlib.suppress(OSError):
            return [f"checkpoints/{name}" for name in self._store.names(f"trials/{trial}/checkpoints")]
        return []

    def delete(self, trial: str, name: str) -> None:
        self._deletions.put((trial, name))

    def _delete(self) -> None:
        while True:
            trial, name = self._deletions.get()
            try:
                self._store.delete(f"trials/{trial}/{name}")
            except OSError as error:
                log.info("%s of trial %s stays on the storage: %s", name, trial, error)
