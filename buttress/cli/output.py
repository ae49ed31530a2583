"""Prints what a verb has found, and ends the process with its exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from buttress.errors import printable

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Standard output as wide as the terminal, or as $COLUMNS (default 120) where it is none."""
    from buttress.console import PlainConsole

    return PlainConsole(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", 120)))


def say(text: str, *, error: bool = False) -> None:
    """A line on standard output, or on standard error."""
    print(printable(text), file=sys.stderr if error else sys.stdout, flush=error)


def print_json(value: Any) -> None:
    """`value` as one line."""
    sys.stdout.flush()
    print(json.dumps(value, allow_nan=False), flush=True)


def leave(sentence: str, code: int) -> NoReturn:
    """Prints a sentence to standard error and exits with `code`."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    say(f"buttress: {sentence}", error=True)
    sys.exit(code)


def prepare_streams() -> None:
    """Makes the environment and the standard streams ones that everything can write to.

    A closed stream becomes the null device (else the next file that is opened takes its number, and what is printed
    goes there), characters that it cannot write become `?`, and widths that are not numbers above 0 are left out.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):
        if not re.fullmatch("[1-9][0-9]{0,3}", os.environ.get(name, "1")):
            del os.environ[name]


def close_output() -> None:
    """Writes what waits for it, and exits where nobody reads on (141, as other programs do) or where that fails (2)."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more
        if error.errno == errno.EPIPE:
            sys.exit(141)
        leave(f"the output cannot be written ({error.strerror})", 2)
