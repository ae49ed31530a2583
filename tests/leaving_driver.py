"""The command `buttress ARGUMENTS`, with an error in mid-sweep: `leaving_driver.py ERROR ARGUMENTS...`.

ERROR: `none`, `in ask`, `in the drain thread`, `in Tune's loop`, `in a slot's start`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def at_call(owner: Any, name: str, count: int) -> None:
    """Patches `owner.name` so that its `count`-th call raises."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def patched(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            raise RuntimeError("an error on purpose")
        return original(*args, **kwargs)

    setattr(owner, name, patched)


def arm(error: str) -> None:
    from buttress.execution.ray_session import prepare_environment

    prepare_environment()  # before Ray is imported
    from buttress.execution import tune_adapter, worker_pool
    from buttress.search import optuna_study as study
    from buttress.sweep import state

    match error:
        case "in ask":
            at_call(study.Study, "ask", 4)
        case "in the drain thread":
            at_call(state.SweepState, "reported", 10)
        case "in Tune's loop":
            at_call(tune_adapter.SweepStopper, "__call__", 3)
        case "in a slot's start":
            at_call(worker_pool.WorkerPool, "start", 1)
        case _:
            raise SystemExit(f"no such error: {error}")


if __name__ == "__main__":
    from buttress.cli.main import main

    error, *sys.argv[1:] = sys.argv[1:]
    if error != "none":
        arm(error)
    main()
