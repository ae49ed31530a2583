"""The contract between a trainer and everything that runs it.

A trainable is ordinary PyTorch: it gets its typed config, a `World` (rank, device, folder), a `report` to call, and
perhaps a checkpoint to go on from. The same object runs in a warm slot of a sweep, as `python -m buttress.training
CONFIG` and under `torchrun --nproc-per-node N -m buttress.training CONFIG`. This module is light
(pydantic, no torch): the driver of a sweep reads metrics, schedules and configs of a trainable without a GPU in sight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from buttress.training.world import World

Direction = Literal["min", "max"]


class TrialStopped(Exception):
    """Raised by `report` on every rank at the same report when the trial is to end; let it pass."""


class Section(BaseModel):
    """Base of every config model: unknown keys are errors and values are not coerced from other types' strings."""

    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def of_groups(cls, *layers: Mapping[str, Mapping[str, Any]]) -> Self:
        """A config of groups: its defaults, then what each layer says of a group's values, a later one over an earlier.

        >>> Config.of_groups({"train": {"lr": 0.1, "epochs": 3}}, {"train": {"lr": 0.2}}).train.lr   # doctest: +SKIP
        0.2
        """
        merged: dict[str, dict[str, Any]] = {}
        for layer in layers:
            for group, values in layer.items():
                merged.setdefault(group, {}).update(values)
        return cls.model_validate(merged)


class Buttress(Section):
    """The `buttress:` group of every config: what is ours and not the original trainer's."""

    trainable: str = Field("", description="which trainable this config is for; written by `export`")
    objective: str = Field("", description="the metric whose best valid epoch counts; written by `export`")
    seed: int = Field(42, ge=0, description="seeds every random number; part of the config because it changes bits")
    threads: int = Field(1, ge=1, description="torch threads per worker; part of the config: it changes bits")
    workers: int = Field(1, ge=1, description="DDP workers of the trial")
    report_every: int = Field(100, ge=0, description="optimiser steps between health reports inside an epoch; 0 = none")
    checkpoint_every: int = Field(1, ge=1, description="epochs between checkpoints")
    monitors: bool = Field(True, description="False leaves the collapse monitors out (for timing; no rule can speak)")


@dataclass(frozen=True)
class Metric:
    """What is known of a reported metric without training anything.

    `weighted_by` names the config paths that change the metric's scale: such a metric is refused as objective when one
    of them is searched. `sees_target` marks a metric computed from a posterior that has seen the target: refused as
    objective of a conditional model, because an autoencoder would win. `exported_as` is a config path that `export`
    sets to the metric's value at the best valid epoch: a threshold that is found by validation, not by searching.
    """

    direction: Direction
    unit: str = ""
    weighted_by: tuple[str, ...] = ()
    sees_target: bool = False
    original_name: str = ""
    exported_as: str = ""
    description: str = ""


@dataclass(frozen=True)
class Schedule:
    """When a config's schedules settle.

    `epochs` is the trial's budget. Beta (or, in a family without beta, the learning-rate warm-up) has its final value
    for good once `full_at_epoch` epochs and `full_at_step` optimiser steps have been completed; `inf` = never. `phases`
    are the completed epochs at which later phases begin (a discriminator's start): phase 1, 2, ...
    """

    epochs: int
    full_at_epoch: float = 0.0
    full_at_step: int = 0
    phases: tuple[int, ...] = ()

    def full_beta_epochs(self, completed: int) -> int:
        """Whole epochs, of `completed` ones, at the final beta from their first step to their last."""
        if self.full_at_epoch == float("inf"):
            return 0
        return max(0, completed - ceil(self.full_at_epoch))

    def phase(self, completed: int) -> int:
        return sum(completed >= start for start in self.phases)


class Report(Protocol):
    """What `train` calls to say how it is doing; collective: every rank calls it, with the same keys.

    A value is a float or 0-dim tensor that is the same on every rank (else the mean counts), a vector (a list of floats
    of the same length on every rank), or a `monitors.Summary`: one rank's share of a monitored quantity.
    `metrics` needs `epoch` (epochs completed, int) and `step` (optimiser steps completed); a report inside an epoch
    carries health values only, the one at an epoch's end carries the objectives too. `full_beta_epochs`,
    `full_beta_steps` and `phase` are filled in from the trainable's schedule where the trainer does not give them;
    `mem_mb` always is. Keys match `[a-z0-9_./]+`. A `Summary` under the key `latent` becomes `latent/<name>`.

    `checkpoint` is called on every rank and returns tensors and plain types (rank 0's is saved; loaded with
    `weights_only=True`). `media` maps names to files that rank 0 wrote. Raises `TrialStopped` on every rank at the
    same report once the trial is to end.
    """

    def __call__(
        self,
        metrics: Mapping[str, Any],
        *,
        checkpoint: Callable[[], dict[str, Any]] | None = None,
        media: Mapping[str, Path] | None = None,
    ) -> None: ...


C = TypeVar("C", bound=BaseModel, contravariant=True)


@runtime_checkable
class Trainable(Protocol, Generic[C]):
    """One family. Classes need no base class; these names are enough."""

    name: ClassVar[str]
    Config: ClassVar[type[BaseModel]]
    metrics: ClassVar[dict[str, Metric]]

    def schedule(self, config: C) -> Schedule: ...

    def train(self, config: C, world: World, report: Report, resume: Path | None) -> None: ...

    # Optional, with these defaults where absent:
    #   conditional: ClassVar[bool] = False      given more than a latent code: `sees_target` metrics are refused
    #   epochs_path: ClassVar[str] = "train.epochs"
    #   evaluate(config, checkpoint: Path, world, split: "val" | "test") -> (dict[str, float], dict[str, Path])
    #   forecast(config, cache) -> Forecast      what is known before training (buttress/training/forecast.py)
    #   check_data(path: Path, config: C) -> list[tuple[str, str]]     rows of `buttress data check`


@dataclass(frozen=True)
class Reported:
    """One merged report, as rank 0 hands it on: plain numbers only, ready for the journal and the rules."""

    epoch: int
    step: int
    full_beta_epochs: int
    full_beta_steps: int
    phase: int
    metrics: dict[str, float]
    vectors: dict[str, list[float]] = field(default_factory=dict)
    nonfinite: tuple[str, ...] = ()  # keys with a value that is not finite on some rank (their merged value is NaN)
    closing: bool = False  # full-validation check at the end of training: judged with patience waived
    checkpoint: str | None = None  # path relative to the trial's folder
    media: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # since `train` began
    mem_mb: float = 0.0
    note: str = ""  # what went wrong without ending the trial: "checkpoint not written: No space left on device"
