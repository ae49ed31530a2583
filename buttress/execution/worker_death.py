"""Says why the processes of a slot died, as far as that can be known.

Ray notices that a connection broke and no more. What a process prints as it dies (Python's fault handler, Ray's) is in
the trial's output; that its memory monitor killed a worker is in Ray's own tables.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path

from buttress.compat.ray import killed_for_memory
from buttress.execution.messages import WorkerInfo

#: What Python's and Ray's fault handlers write first.
_FATAL = re.compile(r"Fatal Python error: (?P<python>.+)|\*\*\* (?P<ray>SIG\w+) received")
#: The frames below it, innermost first.
_FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>\S+)', re.MULTILINE)
#: Bytes of the end of a trial's output that are looked through.
TAIL_BYTES = 20_000

UNKNOWN = "a worker's process was killed (signal 9, perhaps because memory ran out) or ended itself"


def describe_death(folder: Path, workers: Iterable[WorkerInfo]) -> str:
    """Why the workers that were in a trial have died.

    Args:
        folder: The trial's folder, with the output of its ranks where the driver can see it.
        workers: The workers.

    Returns:
        A clause without a full stop.
    """
    for path in sorted(folder.glob("output*.txt")):
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            if (fault := _fault(file.read().decode("utf-8", "replace"))) is not None:
                return f"a worker's process died of {fault}; see {path.name} of the trial"
    if any(worker.actor is not None and killed_for_memory(worker.actor) for worker in workers):
        return "Ray killed a worker because its node ran out of memory"
    return UNKNOWN


def _fault(output: str) -> str | None:
    """The fault that a process wrote as it died, with the innermost frame that is no library's; None: it wrote none."""
    from buttress.training.user_code import is_library

    found = list(_FATAL.finditer(output))
    if not found:
        return None
    last = found[-1]
    name = (last["python"] or last["ray"]).strip()
    for frame in _FRAME.finditer(output, last.end()):
        if not is_library(frame["file"]):
            return f"{name} in {frame['file']} line {frame['line']} ({frame['function']})"
    return name
