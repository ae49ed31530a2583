"""What CollapseBench has to know of a family: a space, when a report looks dead, and what a blind model would reach.

A family joins by one file, `families/<name>.py`, with a `FAMILY`; its words stand in the README beside this module,
written before any rule is looked at on its curves.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from buttress.errors import BadInput
from buttress.spec.spec import SweepSpec
from buttress.training import registry

FAMILIES = Path(__file__).parent / "families"
ROOT = Path(__file__).parents[2]

Metrics = Mapping[str, float | None]


@dataclass(frozen=True)
class Family:
    """`looks_dead` judges one report's metrics (None: it cannot tell).

    `measure` looks at the trained model once, after the full budget (config, checkpoint, folder -> numbers); `blind`
    says from these numbers and the closing report's metrics whether the model is no better than its blind reference.
    `validation_loss` is what a user of a stock tuner would watch: the training loss on validation data, with the
    trial's own weights; None for a report that does not hold it. `watched`: the trainable to run where the family's own
    does not report that loss.
    """

    name: str
    min_steps: int
    looks_dead: Callable[[Metrics], bool | None]
    blind: Callable[[Metrics, Metrics], bool]
    measure: Callable[[Any, Path, Path], dict[str, float]] | None = None
    validation_loss: Callable[[Metrics], float | None] | None = None
    profile: str = "bench"
    watched: Callable[[], Any] | None = None

    def spec(self) -> SweepSpec:
        return SweepSpec.load(ROOT / "search_spaces" / f"{self.name}.yaml", profile=self.profile)

    def trainable(self) -> Any:
        return registry.load(self.name) if self.watched is None else self.watched()


def load(name: str) -> Family:
    """The family called `name`; raises BadInput naming those that there are."""
    there = sorted(path.stem for path in FAMILIES.glob("[a-z]*.py"))
    if name not in there:
        raise BadInput("no such family in CollapseBench", key="family", value=name, accepted=", ".join(there))
    family: Family = importlib.import_module(f"benchmarks.collapsebench.families.{name}").FAMILY
    return family
