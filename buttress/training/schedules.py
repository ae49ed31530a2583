"""Schedules of beta and of the learning rate: frozen objects, each a pure function of epoch and step.

Only `Plateau` has a state (`PlateauState`), which the loop keeps in its checkpoints.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, cos, inf, pi
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from buttress.training.trainable import Direction, Section

Unit = Literal["epochs", "steps"]


class Constant(Section):
    """beta = end, from the start."""

    kind: Literal["constant"] = "constant"
    end: float = Field(1.0, ge=0)

    def value(self, progress: float) -> float:
        """Beta at `progress` completed epochs (or steps, as the schedule's lengths are given in)."""
        return self.end

    @property
    def full_at(self) -> float:
        """Progress from which `value` is final for good; `inf` for a schedule that never settles."""
        return 0.0


class _Ramp(Section):
    start: float = Field(0.0, ge=0)
    end: float = Field(1.0, ge=0)
    length: float = Field(10, ge=0)

    def value(self, progress: float) -> float:
        """Beta at `progress` completed epochs (or steps, as `length` is given in).

        A whole number of epochs for a schedule that moves once per epoch, a fraction for one that moves every step.
        """
        if progress >= self.length:
            return self.end
        return self.start + (self.end - self.start) * self._ramp(progress / self.length)

    @abstractmethod
    def _ramp(self, share: float) -> float:
        """The fraction of the rise (0 to 1) after this fraction of the length."""

    @property
    def full_at(self) -> float:
        """Progress from which `value` is final for good."""
        return 0.0 if self.start == self.end else self.length


class Linear(_Ramp):
    """beta = start + (end - start) * progress / length, then end."""

    kind: Literal["linear"] = "linear"

    def _ramp(self, share: float) -> float:
        return share


class Cosine(_Ramp):
    """Half a cosine from start to end over `length`, then end."""

    kind: Literal["cosine"] = "cosine"

    def _ramp(self, share: float) -> float:
        return 0.5 - 0.5 * cos(pi * share)


class Cyclical(Section):
    """`cycles` times: a linear rise over part of the `period`, then a plateau at `end`; after the last cycle `end`.

    Fu et al. 2019 (arXiv:1903.10145), counted as davdma/floodmaps does: beta moves once per epoch (or step), and is
    `end` from epoch ceil((period - 1) * ratio) of a cycle on, so that a cycle of one epoch has no rise. The plateau of
    the last cycle runs into the final value, so `full_at` is where it begins; the plateaus of earlier cycles do not
    count. `cycles: null` never ends and never settles.
    """

    kind: Literal["cyclical"] = "cyclical"
    start: float = Field(0.0, ge=0)
    end: float = Field(1.0, ge=0)
    period: float = Field(10, gt=0)
    ratio: float = Field(0.5, ge=0, le=1)
    cycles: int | None = Field(4, ge=1)
    continuous: bool = Field(False, description="beta also moves inside an epoch: the rise lasts ratio * period")

    def value(self, progress: float) -> float:
        """Beta at `progress` completed epochs (or steps, as `period` is given in)."""
        if self.cycles is not None and progress >= self.cycles * self.period:
            return self.end
        risen, rise = progress % self.period, self._rise
        return self.end if risen >= rise else self.start + (self.end - self.start) * risen / rise

    @property
    def full_at(self) -> float:
        """Progress from which `value` is final for good; `inf` for a schedule that never settles."""
        if self.start == self.end or self._rise <= 0:
            return 0.0
        return inf if self.cycles is None else (self.cycles - 1) * self.period + self._rise

    @property
    def _rise(self) -> float:
        return self.ratio * self.period if self.continuous else ceil((self.period - 1) * self.ratio)


#: For a family's config: `beta: BetaSchedule = Linear(end=0.5, length=30)`; in YAML `beta: {kind: linear, end: 0.5}`.
BetaSchedule = Annotated[Constant | Linear | Cosine | Cyclical, Field(discriminator="kind")]


class LearningRate(Protocol):
    """A schedule of a factor on a parameter group's own learning rate."""

    def factor(self, epoch: int, step: int) -> float:
        """The factor for the step after `epoch` completed epochs and `step` completed steps."""
        ...


@dataclass(frozen=True)
class CosineLR:
    """Half a cosine from 1 to `final` over `total` epochs or steps, then `final`.

    Set `total` from the run's own length. Unlike torch's CosineAnnealingLR it does not rise again beyond it.
    """

    total: int
    final: float = 0.0
    unit: Unit = "epochs"

    def factor(self, epoch: int, step: int) -> float:
        share = min((epoch if self.unit == "epochs" else step) / self.total, 1.0)
        return self.final + (1.0 - self.final) * (0.5 + 0.5 * cos(pi * share))


@dataclass(frozen=True)
class PolynomialLR:
    """max((1 - s / total) ** power, final), and `final` beyond `total`."""

    total: int
    power: float = 1.0
    final: float = 0.0
    unit: Unit = "steps"

    def factor(self, epoch: int, step: int) -> float:
        left = max(0.0, 1.0 - (epoch if self.unit == "epochs" else step) / self.total)
        return max(left**self.power, self.final)


@dataclass(frozen=True)
class StepLR:
    """gamma ** (s // every)."""

    every: int
    gamma: float = 0.1
    unit: Unit = "epochs"

    def factor(self, epoch: int, step: int) -> float:
        return float(self.gamma ** ((epoch if self.unit == "epochs" else step) // self.every))


@dataclass(frozen=True)
class WarmUp:
    """Linear from `start` to 1 over `length` epochs or steps, then `then` (or 1).

    The first epoch (step) has `start`, the one after `length` of them has 1. `restart`: `then` counts from the end of
    the warm-up instead of from 0.
    """

    length: int
    start: float = 0.0
    unit: Unit = "epochs"
    then: LearningRate | None = None
    restart: bool = False

    def factor(self, epoch: int, step: int) -> float:
        done = epoch if self.unit == "epochs" else step
        if done < self.length:
            return self.start + (1.0 - self.start) * done / self.length
        if self.then is None:
            return 1.0
        if not self.restart:
            return self.then.factor(epoch, step)
        if self.unit == "steps":
            return self.then.factor(epoch, step - self.length)
        return self.then.factor(epoch - self.length, step)


@dataclass(frozen=True)
class Plateau:
    """Lowers the learning rate when a metric stops improving, as torch's ReduceLROnPlateau without cooldown.

    Attributes:
        metric: A name of `Task.evaluate`'s values, or `train/loss` (the epoch's mean).
        factor: Multiplies the learning rate after more than `patience` epochs without an improvement.
        patience: Epochs.
        threshold: Smallest improvement that counts, relative to the best value.
        minimum: Of the product of all factors.
        direction: `min` or `max`.
        starts_at_epoch: Completed epochs before which nothing counts.
    """

    metric: str
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    minimum: float = 0.0
    direction: Direction = "min"
    starts_at_epoch: int = 0


class PlateauState:
    """The state of a `Plateau`: the factor reached, the best value, the epochs since."""

    def __init__(self, plateau: Plateau) -> None:
        self.plateau = plateau
        self.scale, self.best, self.waited = 1.0, inf, 0

    def update(self, value: float, epoch: int) -> None:
        """Called after each epoch with the metric's value over all ranks; NaN is not an improvement."""
        one = self.plateau
        if epoch <= one.starts_at_epoch:
            return
        loss = value if one.direction == "min" else -value
        margin = one.threshold * abs(self.best) if self.best != inf else 0.0
        if loss < self.best - margin:
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > one.patience:
            self.scale, self.waited = max(self.scale * one.factor, one.minimum), 0

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scale, self.best, self.waited = state["scale"], state["best"], state["waited"]


def latest_full_at(
    schedules: Sequence[Constant | Linear | Cosine | Cyclical], unit: Unit, steps_per_epoch: int
) -> tuple[float, int]:
    """When the last of several schedules has reached its final value for good.

    Args:
        schedules: Schedules whose lengths are given in `unit`.
        unit: `epochs` or `steps`.
        steps_per_epoch: Optimizer steps.

    Returns:
        `full_at_epoch` and `full_at_step` of a `Schedule`; (inf, 0) if one never settles.
    """
    last = max((one.full_at for one in schedules), default=0.0)
    if last == inf:
        return inf, 0
    if unit == "steps":
        return last / steps_per_epoch, ceil(last)
    return last, ceil(last * steps_per_epoch)
