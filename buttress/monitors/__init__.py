"""Collapse monitors and the summaries that merge a quantity over ranks; importing a name imports torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from buttress.monitors.ablation import AblationMonitor
    from buttress.monitors.latent import LatentMonitor
    from buttress.monitors.moments import kl_per_dim
    from buttress.monitors.summaries import Maximum, Mean, Merged, Minimum, NonFinite, Summary, Total

__all__ = [
    "AblationMonitor",
    "LatentMonitor",
    "Maximum",
    "Mean",
    "Merged",
    "Minimum",
    "NonFinite",
    "Summary",
    "Total",
    "kl_per_dim",
]

_MODULES = {"AblationMonitor": "ablation", "LatentMonitor": "latent", "kl_per_dim": "moments"}


if not TYPE_CHECKING:  # a type checker sees the imports above, and what is misspelt is an error to it

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'summaries')}"), name)


def __dir__() -> list[str]:
    return [*__all__]
