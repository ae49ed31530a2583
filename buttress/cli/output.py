"""Prints what a verb has found, and ends the process with its exit code."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from buttress.errors import redacted

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Standard output as wide as the terminal, or as $COLUMNS (default 120) where it is none."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", 120))
    return Console(highlight=False, width=width)


def print_json(value: Any) -> None:
    """`value` as one line."""
    sys.stdout.flush()
    print(json.dumps(value, allow_nan=False), flush=True)


def leave(sentence: str, code: int) -> NoReturn:
    """Prints a sentence to standard error and exits with `code`."""
    sys.stdout.flush()
    print(f"buttress: {redacted(sentence)}", file=sys.stderr, flush=True)
    sys.exit(code)
