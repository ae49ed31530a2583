"""Says an error in a user's own code in one sentence, with file and line of his own frame.

Whatever a trainer of his raises while a sweep is checked, planned or timed, or while one config is trained, is no error
of ours.
"""

from __future__ import annotations

import inspect
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from buttress.errors import BadInput

_PACKAGE = Path(__file__).parents[1]
#: Folders of code that no user writes: ours (the families are linked into it), Python's and what pip has installed.
_LIBRARIES = tuple(
    dict.fromkeys(
        str(path) + "/"
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
        for path in (Path(sysconfig.get_path(name)), Path(sysconfig.get_path(name)).resolve())
    )
)
#: Top-level modules of trainers that are not ours, noted when they are imported: pip may have installed them.
OWN_MODULES: set[str] = set()
_OURS = tuple(str(path.resolve()) + "/" for path in (_PACKAGE, _PACKAGE / "trainables", _PACKAGE / "analysis"))


@contextmanager
def user_faults() -> Iterator[None]:
    """Turns an error that was raised in, or below, a user's own frame into `BadInput`; any other passes unchanged.

    Also a decorator. Frames above the `with` are not looked at: a script that calls `buttress.run` is not to blame.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if (fault := fault_of(error)) is None or (isinstance(error, BadInput) and error.where):
            raise
        raise fault from error


def fault_of(error: BaseException) -> BadInput | None:
    """The error in a sentence that names file and line of the innermost of the user's frames.

    Args:
        error: As it was caught.

    Returns:
        None where no frame is the user's, and for what only says that another rank has failed.
    """
    if isinstance(error, SyntaxError) and error.filename and not is_library(error.filename):
        return _said(error, error.filename, error.lineno or 1, "")
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        file, top = frame.f_code.co_filename, str(frame.f_globals.get("__name__")).partition(".")[0]
        if top in OWN_MODULES or not is_library(file):
            found = file, line, frame.f_code.co_name
    return _said(error, *found) if found else None


def fault_at(place: Any, problem: str, *, value: Any = ..., accepted: str | None = None) -> BadInput:
    """A fault of a class or function, whose definition is named."""
    try:
        where, line = inspect.getsourcefile(place), inspect.getsourcelines(place)[1]
    except (OSError, TypeError):
        where, line = None, 0
    key = f"line {line}" if where else None
    return BadInput(problem, where=_short(where) if where else None, key=key, value=value, accepted=accepted)


def _said(error: BaseException, file: str, line: int, function: str) -> BadInput:
    if isinstance(error, BadInput):
        return BadInput(
            f"{error.key}: {error.problem}" if error.key else error.problem,
            where=_short(file), key=f"line {line}", value=error.value, accepted=error.accepted,
        )  # fmt: skip
    text = str(error.msg if isinstance(error, SyntaxError) else error).strip()
    message = text.splitlines()[0].strip() if text else ""
    raised = f"{type(error).__name__}: {message}" if message else type(error).__name__
    inside = f"{function} raised " if function and not function.startswith("<") else ""
    return BadInput(inside + raised, where=_short(file), key=f"line {line}")


def is_library(file: str) -> bool:
    """Whether a source file belongs to Python, an installed package or Buttress."""
    if file.startswith("<"):
        return True
    path = Path(file)
    return file.startswith(_LIBRARIES) or str(path.resolve()).startswith((*_LIBRARIES, *_OURS))


def _short(file: str) -> str:
    """The file as seen from the working folder, if it is below it."""
    path = Path(file).absolute()
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


@contextmanager
def without_our_arguments() -> Iterator[None]:
    """Hides this process's command line: a trainer's own `argparse` would read it, and find ours or Ray's."""
    before = sys.argv
    sys.argv = before[:1]
    try:
        yield
    finally:
        sys.argv = before
