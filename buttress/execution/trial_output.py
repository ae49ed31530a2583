"""Writes what a trainer prints to a file of its trial."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def output_name(rank: int) -> str:
    """The file's name in the trial's folder."""
    return f"output-{rank}.txt" if rank else "output.txt"


@contextlib.contextmanager
def captured_output(folder: Path, rank: int) -> Iterator[None]:
    """Appends standard output and standard error of this process, of C code and of child processes, too.

    A worker's own go to Ray's logs, which end with the sweep. Nothing printed, no file; and where none can be written
    the trial runs nevertheless.

    Args:
        folder: The trial's folder.
        rank: Of this worker; each has a file of its own.
    """
    path = folder / output_name(rank)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
    except OSError:
        yield
        return
    with file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        saved = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in saved:
                os.dup2(file.fileno(), number)
            yield
        finally:
            for number, copy in saved:
                os.dup2(copy, number)
                os.close(copy)
    with contextlib.suppress(OSError):
        if not path.stat().st_size:
            path.unlink()
