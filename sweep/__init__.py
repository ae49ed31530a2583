"""How a sweep runs: the only room that imports Ray, Optuna and W&B. `CollapseStopper` and `FullBetaHalving` are public.

Importing this package imports none of them; names are resolved when they are asked for.
"""

from __future__ import annotations

from typing import Any

_PUBLIC = {"CollapseStopper": "sweep.stopper", "FullBetaHalving": "sweep.scheduler", "Study": "sweep.study"}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)
