"""The contract between a trainer and everything that runs it.

A trainable is ordinary PyTorch: it gets its typed config, a `World` (rank, device, folder), a `report` to call, and
perhaps a checkpoint to go on from. The same class runs in a worker of a sweep, as `python -m buttress.training CONFIG`
and under `torchrun --nproc-per-node N -m buttress.training CONFIG`. This module imports no torch, so that the driver of
a sweep reads metrics, schedules and configs cheaply.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil, inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from buttress.errors import BadInput

if TYPE_CHECKING:
    from buttress.training.world import World

Direction = Literal["min", "max"]

#: What follows from a trainer that reports no checkpoints.
NO_CHECKPOINTS = (
    "an interrupted trial begins anew, and there are no weights to export (report(..., checkpoint=...) makes one)"
)
#: Keys of metrics: what the names in the logs of published trainers are made of.
METRIC_KEY = re.compile(r"[A-Za-z0-9_./+()@^*-]([A-Za-z0-9_./+()@^* -]*[A-Za-z0-9_./+()@^*-])?")
METRIC_KEY_WORDS = "letters, digits and _ . / - + ( ) @ ^ *, with spaces in between"


class TrialStopped(Exception):
    """Raised by `report` on every rank at the same report when the trial is to end; do not catch it."""


class Section(BaseModel):
    """Base of every config model: a frozen pydantic model in which unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def of_groups(cls, *layers: Mapping[str, Mapping[str, Any]]) -> Self:
        """Builds a config of groups from layers of values, a later layer over an earlier one and all over the defaults.

        Args:
            layers: Group name -> value name -> value.

        Returns:
            The validated config.

        Raises:
            pydantic.ValidationError: A value or key does not fit.

        >>> Config.of_groups({"train": {"lr": 0.1, "epochs": 3}}, {"train": {"lr": 0.2}}).train.lr   # doctest: +SKIP
        0.2
        """
        merged: dict[str, dict[str, Any]] = {}
        for layer in layers:
            for group, values in layer.items():
                merged.setdefault(group, {}).update(values)
        return cls.model_validate(merged)


class Buttress(Section):
    """The `buttress:` group of every config: what Buttress itself needs, beside the trainer's own settings."""

    trainable: str = Field("", description="which trainable this config is for; written by `export`")
    objective: str = Field("", description="the metric whose best valid epoch counts; written by `export`")
    seed: int = Field(
        42, ge=0, lt=2**63, description="seeds every random number; part of the config because it changes bits"
    )
    threads: int = Field(1, ge=1, description="torch threads per worker; part of the config: it changes bits")
    workers: int = Field(1, ge=1, description="DDP workers of the trial")
    report_every: int = Field(100, ge=0, description="optimizer steps between health reports inside an epoch; 0 = none")
    checkpoint_every: int = Field(1, ge=1, description="epochs between checkpoints")
    rules: dict[str, Any] = Field(
        {}, description="judges the run, as a rules file holds it; written by `export`; empty: the trainable's rules"
    )
    monitors: bool = Field(True, description="False leaves the collapse monitors out (for timing; rules see nothing)")


@dataclass(frozen=True)
class Metric:
    """Describes a reported metric that may be an objective.

    Attributes:
        direction: `min` or `max`, which is better.
        unit: Shown in tables and plots, such as `nat` or `mm/day`.
        weighted_by: Config paths that change the metric's scale. The metric is refused as objective when one of them is
            searched.
        sees_target: Computed from a posterior that has seen the target. Refused as objective of a conditional model,
            because an autoencoder would win.
        original_name: The metric's name in the original trainer's logs; W&B shows it under both.
        exported_as: A config path that `export` sets to the metric's value at the best valid epoch: a threshold that is
            found by validation, not by searching.
        description: One sentence for tables and documents.
    """

    direction: Direction
    unit: str = ""
    weighted_by: tuple[str, ...] = ()
    sees_target: bool = False
    original_name: str = ""
    exported_as: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        if self.direction not in ("min", "max"):
            problem = "the direction of a Metric is not one of the choices"
            raise BadInput(problem, value=self.direction, accepted="min, max")
        if isinstance(self.weighted_by, str):
            accepted = f'weighted_by=("{self.weighted_by}",)'
            raise BadInput("weighted_by of a Metric has to be a tuple", value=self.weighted_by, accepted=accepted)


@dataclass(frozen=True)
class Schedule:
    """Says when a config's schedules have reached their final values.

    Valid epochs, rungs and the graces of rules are counted from there.

    Attributes:
        epochs: The trial's budget.
        full_at_epoch: Completed epochs after which beta (or, without a beta, the learning-rate warm-up) has its final
            value for good; `inf`: never.
        full_at_step: The same in completed optimizer steps; both have to be reached.
        phases: Completed epochs at which phase 1, 2, ... begin (a discriminator's start, say), in ascending order.
        steps_per_epoch: Optimizer steps of an epoch, where the config says so; without it `full_at_step` counts in
            epochs only once the first has been trained.
    """

    epochs: int
    full_at_epoch: float = 0.0
    full_at_step: int = 0
    phases: tuple[int, ...] = ()
    steps_per_epoch: int | None = None

    def settles_after(self, steps_per_epoch: float | None = None) -> tuple[float, float]:
        """Completed whole epochs and completed steps after which beta is final for good; (inf, inf): never.

        Args:
            steps_per_epoch: Optimizer steps of an epoch, as measured (inf: not one epoch is over); by default the
                schedule's own. Where neither is known each unit is taken by itself.
        """
        if self.full_at_epoch == inf:
            return inf, inf
        steps = steps_per_epoch or self.steps_per_epoch
        if not steps:
            return ceil(self.full_at_epoch), self.full_at_step
        if steps == inf:  # the first epoch is not over yet
            return inf, inf if self.full_at_epoch else self.full_at_step
        step = max(self.full_at_step, ceil(self.full_at_epoch * steps - 1e-6))
        return ceil(step / steps - 1e-9), step

    @property
    def in_steps_only(self) -> bool:
        """Whether the epoch after which beta is final is not known before the first one has been trained."""
        return self.full_at_step > 0 and not self.full_at_epoch and not self.steps_per_epoch

    def full_beta_epochs(self, completed: int) -> int:
        """How many of the `completed` epochs ran at the final beta from their first step to their last."""
        return int(max(0, completed - self.settles_after()[0]))

    def phase(self, completed: int) -> int:
        """The phase that the epoch after `completed` ones belongs to, from 0."""
        return sum(completed >= start for start in self.phases)


class Report(Protocol):
    """The function that `train` calls to report; collective: every rank calls it, with the same keys.

    A report at an epoch's end carries the objectives; one inside an epoch carries health values only. After
    `TrialStopped` no rank may report again.

    Args:
        metrics: Key -> this rank's value. A key consists of letters, digits and
            `_ . / - + ( ) @ ^ *`, with spaces in between. A value is a float
            or 0-dim tensor (the same on every rank, else their mean counts), a vector (a list of floats, or a 1-D
            tensor, of the same length on every rank), or a `buttress.monitors.Summary` such as `Mean` or a monitor,
            which says how its shares merge. A monitor under the key `latent` becomes `latent/kl_total` and so on.
            `epoch` (epochs completed, int) and `step` (optimizer steps completed, int) are required.
            `full_beta_epochs`, `full_beta_steps` and `phase` are filled in from the trainable's schedule where they are
            not given, `mem_mb` (peak memory in MB) is measured. `closing: 1.0` marks a full check at the end of
            training, which rules judge without patience.
        checkpoint: Called at once on every rank; returns a dict of tensors and plain types. Rank 0's is copied and
            written in the background, and loaded with `weights_only=True`. After an interruption `train` gets the
            newest one as `resume`.
        media: Name -> file that rank 0 wrote below `world.folder`.

    Raises:
        TrialStopped: On every rank at the same report, once the trial is to end.
        ValueError: `epoch` or `step` is missing, or a key holds other characters.
        ReportError: An earlier report could not be exchanged or delivered: another rank has failed, or ranks have
            reported different keys.
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
    """What a trainer has to offer. A class needs no base class, and no arguments to be made; these names are enough.

    Attributes:
        name: The trainable's name, as tables and W&B show it.
        Config: A pydantic model, best a `Section`, with a group `buttress: Buttress`.
        metrics: The reported metrics that may be objectives.

    Optional members: `conditional: bool` (the model is given more than a latent code: metrics with `sees_target` are
    refused; default False), `epochs_path: str` (config path of the epochs; default `train.epochs`),
    `evaluate(config, checkpoint, world, split) -> (metrics, media)` on `val` or `test`, `weights(checkpoint)` (the
    state dict in a checkpoint's content, for `model.pt`), `forecast(config, cache) -> Forecast` (what is known before
    training), `check_data(path, config) -> list[tuple[str, str]]` (rows of `buttress data check`) and `original_names`
    (reported key -> its name in the original trainer's logs, besides those of `metrics`; W&B shows both).
    """

    name: ClassVar[str]
    Config: ClassVar[type[BaseModel]]
    metrics: ClassVar[dict[str, Metric]]

    def schedule(self, config: C) -> Schedule:
        """The config's budget, and when its beta is final; called without data and without a device."""
        ...

    def train(self, config: C, world: World, report: Report, resume: Path | None) -> None:
        """Trains to the end, or until `report` raises `TrialStopped`; called on every rank.

        Args:
            config: An instance of `Config`.
            world: This rank's place.
            report: See `Report`.
            resume: A checkpoint of the same config to go on from (`buttress.training.checkpoints.load_checkpoint`
                reads it); None begins anew.
        """
        ...


@dataclass(frozen=True)
class Reported:
    """One report merged over ranks, as rank 0's sink receives it: plain numbers only.

    Attributes:
        epoch: Epochs completed.
        step: Optimizer steps completed.
        full_beta_epochs: Completed epochs since beta has had its final value.
        full_beta_steps: The same in steps.
        phase: See `Schedule`.
        metrics: Key -> merged value; NaN where a rank's value was not finite.
        vectors: Key -> merged vector.
        nonfinite: Keys with a value that is not finite on some rank.
        closing: A check on the full validation set at the end of training; judged without patience.
        checkpoint: File of the checkpoint, relative to the trial's folder.
        media: Name -> file, relative to the trial's folder.
        seconds: Since `train` began.
        mem_mb: Peak memory of the largest rank, in MB.
        note: What went wrong without ending the trial, such as a checkpoint that could not be written.
    """

    epoch: int
    step: int
    full_beta_epochs: int
    full_beta_steps: int
    phase: int
    metrics: dict[str, float]
    vectors: dict[str, list[float]] = field(default_factory=dict)
    nonfinite: tuple[str, ...] = ()
    closing: bool = False
    checkpoint: str | None = None
    media: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    mem_mb: float = 0.0
    note: str = ""
