"""Runs or resumes a sweep in a process that dies at a given moment: `killed_driver.py MOMENT FOLDER`.

The moments are those at which losing the driver could lose a trial: between any two things that belong together. Most
of them kill -9 this process. With `journal on a full disk` it is `buttress run` itself that has to end well; `during
export of the config` (`of the weights`) it is `buttress export` of a finished sweep that is killed.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def when(
    owner: Any, name: str, *, count: int = 1, after: bool = False, only: Callable[..., bool] | None = None
) -> None:
    """Patches `owner.name` so that its `count`-th call (of those that `only` accepts) kills the process."""
    original = getattr(owner, name)
    calls = 0

    def patched(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += only is None or only(*args, **kwargs)
        due = calls == count and (only is None or only(*args, **kwargs))
        if due and not after:
            die()
        result = original(*args, **kwargs)
        if due:
            die()
        return result

    setattr(owner, name, patched)


def fill_disk(count: int) -> None:
    """From the `count`-th report on, files of this process cannot grow beyond a little more than the journal."""
    from buttress.journal import JournalWriter

    original = JournalWriter.write
    reports = 0

    def patched(self: JournalWriter, event: Any) -> Any:
        nonlocal reports
        reports += event.line == "report"
        if reports == count:
            limit = self.path.stat().st_size + 100  # half a line
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return original(self, event)

    JournalWriter.write = patched  # type: ignore[method-assign]


def line(kind: str) -> Callable[..., bool]:
    return lambda writer, written: written.line == kind


def arm(moment: str) -> None:
    """Sets the process up to die at `moment`."""
    from buttress.callbacks import wandb as runs
    from buttress.execution import worker_pool
    from buttress.journal import JournalWriter
    from buttress.search.optuna_study import Study

    if moment == "before the first report":
        when(JournalWriter, "write", after=True, only=line("start"))
    elif moment == "in an epoch":
        when(JournalWriter, "write", count=12, after=True, only=line("report"))
    elif moment == "between verdict and outcome line":
        when(JournalWriter, "write", only=lambda _, event: event.line == "outcome" and event.outcome == "collapsed")
    elif moment == "between outcome line and tell":
        when(JournalWriter, "write", count=2, after=True, only=line("outcome"))
    elif moment == "in ask":
        when(Study, "ask", count=3, after=True)
    elif moment == "in W&B's finish":
        when(runs.WandbRuns, "_outcome", count=2)
    elif moment == "during slot build":
        when(worker_pool.WorkerPool, "start", after=True)
    elif moment == "in the last trial":
        when(JournalWriter, "write", count=5, after=True, only=lambda _, event: event.line == "trial")
    elif moment == "in a checkpoint write":
        Path("kill-when-saving").write_text(str(os.getpid()))  # the worker does it, see resumable.py
    elif moment == "journal on a full disk":
        fill_disk(15)
    elif moment.startswith("during export"):
        when(Path, "replace", count=1 if moment.endswith("config") else 2)  # a draft takes its place
    elif moment not in ("never", "export again"):
        raise SystemExit(f"no such moment: {moment}")


if __name__ == "__main__":
    moment, folder = sys.argv[1], Path(sys.argv[2])
    os.chdir(folder)
    from buttress.cli.main import main

    arm(moment)
    runs = [str(path.parent) for path in Path("runs").glob("*/journal.jsonl")]
    verb = ["resume", *runs] if runs else ["run", "resumable.yaml"]
    if "export" in moment:
        verb = ["export", *runs, "-o", "best.yaml", "--weights"]
    sys.argv = ["buttress", *verb, *([] if "export" in moment else ["--quiet"])]
    main()
