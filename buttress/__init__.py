"""Distributed hyperparameter search for models that collapse.

    import buttress

    sweep = buttress.run("lithology", profile="quick", set={"budget.trials": 8})
    sweep.table()
    sweep.best.config

Every name below is imported when it is first used: `import buttress` itself brings nothing but the standard library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from buttress.analysis.export import NothingHealthy
    from buttress.analysis.results import Replay, Sweep
    from buttress.analysis.trials import Trial, Trials
    from buttress.api import calibrate, check_data, load, plan, replay, resume, run, train
    from buttress.callbacks.base import Callback
    from buttress.errors import BadInput
    from buttress.execution.local_training import Collapsed
    from buttress.execution.plan import Plan
    from buttress.monitors import AblationMonitor, LatentMonitor
    from buttress.rules import RuleSet
    from buttress.spec.spec import SweepSpec
    from buttress.training.checkpoints import load_checkpoint
    from buttress.training.trainable import Buttress, Metric, Report, Schedule, Section, Trainable, TrialStopped
    from buttress.training.world import World
    from buttress.tune.scheduler import FullBetaHalving
    from buttress.tune.stopper import CollapseStopper

__all__ = [
    "AblationMonitor",
    "BadInput",
    "Buttress",
    "Callback",
    "CollapseStopper",
    "Collapsed",
    "FullBetaHalving",
    "LatentMonitor",
    "Metric",
    "NothingHealthy",
    "Plan",
    "Replay",
    "Report",
    "RuleSet",
    "Schedule",
    "Section",
    "Sweep",
    "SweepSpec",
    "Trainable",
    "Trial",
    "TrialStopped",
    "Trials",
    "World",
    "calibrate",
    "check_data",
    "load",
    "load_checkpoint",
    "plan",
    "replay",
    "resume",
    "run",
    "train",
]  # fmt: skip

#: Where each name is defined.
_MODULES = {
    "buttress.api": ("calibrate", "check_data", "load", "plan", "replay", "resume", "run", "train"),
    "buttress.analysis.export": ("NothingHealthy",),
    "buttress.analysis.results": ("Replay", "Sweep"),
    "buttress.analysis.trials": ("Trial", "Trials"),
    "buttress.callbacks.base": ("Callback",),
    "buttress.errors": ("BadInput",),
    "buttress.execution.local_training": ("Collapsed",),
    "buttress.execution.plan": ("Plan",),
    "buttress.monitors": ("AblationMonitor", "LatentMonitor"),
    "buttress.rules": ("RuleSet",),
    "buttress.spec.spec": ("SweepSpec",),
    "buttress.training.checkpoints": ("load_checkpoint",),
    "buttress.training.trainable": (
        "Buttress", "Metric", "Report", "Schedule", "Section", "Trainable", "TrialStopped",
    ),
    "buttress.training.world": ("World",),
    "buttress.tune.scheduler": ("FullBetaHalving",),
    "buttress.tune.stopper": ("CollapseStopper",),
}  # fmt: skip
_WHERE = {name: module for module, names in _MODULES.items() for name in names}


if not TYPE_CHECKING:  # a type checker sees the imports above, and what is misspelt is an error to it

    def __getattr__(name: str) -> Any:
        if name not in _WHERE:
            raise AttributeError(f"module 'buttress' has no attribute {name!r}")
        value = getattr(import_module(_WHERE[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
