"""Appends events to a journal: whole lines, in order, on the disk where that matters."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from pathlib import Path

from buttress.errors import BadInput
from buttress.journal.events import Event, Header
from buttress.journal.lock import take
from buttress.journal.reader import HEAD, last_seal, parsed, sealed, whole_length
from buttress.journal.records import header_of, not_a_journal


class JournalUnwritable(OSError):
    """A line could not be written (disk full, quota, storage gone). The journal holds every line before it, whole.

    Unless it was `deleted`: then it is nowhere.
    """

    deleted = False


class JournalWriter:
    """Appends lines to one journal; the only writer, from any thread.

    Opening takes the lock beside the file (a second driver is refused with `BadInput` naming the first) and cuts off a
    torn last line (`cut` says how many bytes; they are kept in `journal.jsonl.cut-<offset>`). `fresh` is True while the
    journal holds no header. A line that cannot be written whole is taken back and raises `JournalUnwritable`; the
    writer can be used again once there is room.

        >>> with JournalWriter("runs/demo-ab12cd/journal.jsonl") as journal:        # doctest: +SKIP
        ...     journal.write(Header(sweep="demo-ab12cd", ...))
    """

    def __init__(self, path: str | os.PathLike[str], *, fsync: bool = True, wait_s: float = 1.0) -> None:
        """`fsync` False leaves durable events to the operating system (tests); `wait_s`: for another driver's lock."""
        self.path = Path(path)
        self._fsync = fsync
        self._mutex = threading.Lock()
        self._file = self._lock = -1
        self.cut = self._seal = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = take(self.path, wait_s)
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

    def write(self, event: Event) -> None:
        """Appends an event.

        Raises:
            JournalUnwritable: it could not be written; the journal holds every line before it, whole.
        """
        line = json.dumps(event.to_line(), allow_nan=False, separators=(",", ":")).encode()
        with self._mutex:
            if self._file < 0:
                raise JournalUnwritable(errno.EBADF, "the journal is closed", str(self.path))
            if self.fresh != isinstance(event, Header):
                raise ValueError(f"a journal starts with its header and has one only; this line is {event.line!r}")
            text, seal = sealed(line, self._seal)
            try:
                state = os.fstat(self._file)
                if not state.st_nlink:
                    what = "the journal was deleted while it was written"
                    gone = JournalUnwritable(errno.ENOENT, what, str(self.path))
                    gone.deleted = True
                    raise gone
                if state.st_size != self._end:  # what an earlier failure left behind
                    os.ftruncate(self._file, self._end)
                written = 0
                while written < len(text):
                    written += os.write(self._file, text[written:])
                if event.durable and self._fsync:
                    os.fsync(self._file)
            except JournalUnwritable:
                raise
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._end)
                problem = f"the journal cannot be written: {error.strerror or error}"
                raise JournalUnwritable(error.errno or errno.EIO, problem, str(self.path)) from error
            self._end += len(text)
            self._seal, self.fresh = seal, False

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

    def _cut_torn(self) -> int:
        """The file's length once what was torn is cut off; raises BadInput where it is no journal we can go on with."""
        text = self.path.read_bytes()
        end = whole_length(text)
        if end:
            header_of(parsed(text[: text.index(b"\n")]), self.path)
        elif text and not text.startswith(HEAD[: len(text)]):
            raise not_a_journal(self.path)
        self.cut = len(text) - end
        if self.cut:
            self.path.with_name(f"{self.path.name}.cut-{end}").write_bytes(text[end:])  # kept: it may be worth a look
            os.ftruncate(self._file, end)
            os.fsync(self._file)
        self._seal = last_seal(text[:end])
        return end

    def restore(self, text: bytes) -> None:
        """Puts another text in the journal's place, at once: of a sweep on remote storage, what is there.

        Raises:
            JournalUnwritable: It could not be written; the journal is what it was.
        """
        beside = self.path.with_suffix(".part")
        with self._mutex:
            try:
                beside.write_bytes(text)
                beside.replace(self.path)
                os.close(self._file)
                self._file = os.open(self.path, os.O_RDWR | os.O_APPEND)
                os.fsync(self._file)
            except OSError as error:
                problem = f"the journal cannot be written: {error.strerror or error}"
                raise JournalUnwritable(error.errno or errno.EIO, problem, str(self.path)) from error
            self._end, self._seal, self.fresh = len(text), last_seal(text), not text
