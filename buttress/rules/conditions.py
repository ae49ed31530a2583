"""Evaluates the signs of a rule: one metric, transformed, compared with one threshold, report by report."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from buttress.rules.schema import Observation, PerDim, Relative, Rule
from buttress.rules.transforms import DIFFERENCES, SMALLEST, TRANSFORMS
from buttress.rules.verdict import Evidence

MAX_MARGIN = 12.0  # decades: the largest margin of a collapsed trial; diverged ones are beyond

Row = dict[str, float]  # metrics of one report that some rule needs; NaN = reported, but not finite


class Report(NamedTuple):
    """One report of a trial; `ends_epoch`: an epoch was completed by it, or it closes the trial."""

    metrics: Mapping[str, float | None]
    epoch: int
    step: int
    full_beta_epochs: int
    full_beta_steps: int
    phase: int
    nonfinite: Collection[str]
    ends_epoch: bool

    def read(self, columns: tuple[str, ...]) -> float | None:
        """The value under the first of the columns that is present; NaN if it is not finite, None if none is."""
        for name in columns:
            if name in self.nonfinite:
                return math.nan
            if name in self.metrics:
                value = self.metrics[name]
                return float(value) if value is not None and math.isfinite(value) else math.nan
        return None


class InputKey(NamedTuple):
    """Identifies a transformed metric; signs with equal keys share one `TransformedMetric`."""

    metric: str
    transform: str
    window: int | None
    best_for: Literal["below", "above"] | None  # the comparison, where it decides which value is best
    phase: int | None  # the only phase in which reports count
    epoch_ends: bool  # whether only reports that end an epoch count


class TransformedMetric:
    """One metric through one transform; `value` is NaN where it cannot be judged, None while the window is not full."""

    def __init__(self, key: InputKey) -> None:
        self._key = key
        self.metric = key.metric
        self._transform = TRANSFORMS[key.transform](key.window, key.best_for)
        self.window = self._transform.window
        self.value: float | None = math.nan

    def update(self, row: Row, report: Report) -> None:
        if report.ends_epoch or not self._key.epoch_ends:
            in_phase = self._key.phase is None or report.phase == self._key.phase
            self.value = self._transform.update(row.get(self.metric), in_phase=in_phase)


class Limit(NamedTuple):
    """A threshold: a factor times the first of some metrics that is reported; a constant where there are none."""

    factor: float
    metrics: tuple[str, ...] = ()
    words: str | None = None

    @classmethod
    def of(cls, sign: Observation) -> Limit:
        """The limit of a sign."""
        threshold = sign.threshold
        if isinstance(threshold, PerDim):
            beside = f"{sign.metric.rpartition('/')[0]}/dims"
            metrics = tuple(dict.fromkeys((beside, "latent/dims")))
            return cls(threshold.per_dim, metrics, f"{threshold.per_dim:g} per dimension")
        if isinstance(threshold, Relative):
            words = f"{threshold.factor:g} times {threshold.relative_to}"
            return cls(threshold.factor, (threshold.relative_to,), words)
        return cls(threshold or 0.0)

    def value(self, row: Row) -> float | None:
        """The threshold for one report; None where the metric that it needs is not reported or not finite."""
        if not self.metrics:
            return self.factor
        other = next((row[name] for name in self.metrics if name in row), math.nan)
        return None if math.isnan(other) else self.factor * other


class Reading(NamedTuple):
    """The value and the threshold of one sign at one report; no value where the metric was not finite."""

    value: float | None
    threshold: float | None


class Condition:
    """One sign (or grade) of a rule over one trial.

    Args:
        sign: What is compared with which threshold.
        rule: The rule it belongs to: its phase, its reports, its hysteresis.
        inputs: The transformed metrics of all conditions of the trial; one that is missing is added.

    Attributes:
        holds: Whether the sign holds on the last report; None if it abstains.
        threshold: The number that the value was compared with.
        held: Whether the sign held when last judged while the rule was suspect (then hysteresis applies).
    """

    def __init__(self, sign: Observation, rule: Rule, inputs: dict[InputKey, TransformedMetric]) -> None:
        key = InputKey(
            sign.metric,
            sign.transform,
            sign.window,
            best_for=sign.comparison if sign.transform in ("best_ratio", "best_difference") else None,
            phase=rule.phase if sign.transform in ("absent", "lost") else None,
            epoch_ends=rule.reports == "epoch_ends",
        )
        self.sign, self._input = sign, inputs.setdefault(key, TransformedMetric(key))
        self._below = sign.comparison == "below"
        self._hysteresis: float = getattr(sign, "hysteresis", None) or rule.hysteresis
        self._limit = Limit.of(sign)
        self.holds: bool | None = None
        self.threshold: float | None = None
        self.held = False

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics whose values decide whether the sign holds."""
        return (self.sign.metric, *self._limit.metrics)

    def ever_reported(self, reported: Collection[str]) -> bool:
        """Whether the trial has reported what this sign needs, in any of its reports."""
        others = self._limit.metrics
        return self.sign.metric in reported and (not others or any(name in reported for name in others))

    def evaluate(self, row: Row) -> None:
        """Sets `holds` and `threshold` for the report whose metrics are `row`."""
        self.holds = self._holds(row)

    def _holds(self, row: Row) -> bool | None:
        value = self._input.value
        if value is not None and math.isnan(value):
            return None
        if self.sign.comparison is None:
            return value is not None and value >= self._input.window
        self.threshold = self._limit.value(row)
        if self.threshold is None:
            return None
        if value is None:
            return False
        limit = self._clears_at(self.threshold) if self.held else self.threshold
        return value < limit if self._below else value > limit

    def _clears_at(self, threshold: float) -> float:
        """The threshold that hysteresis puts in place of `threshold` once the rule is suspect."""
        wider = self._below == (threshold > 0)
        return threshold * self._hysteresis if wider else threshold / self._hysteresis

    def margin(self) -> float | None:
        """Decades beyond the threshold on the last report; None where they are not known."""
        value, limit = self._input.value, self.threshold
        if self.holds is None or value is None or limit is None:
            return None
        below = self._below
        if below and limit < 0 and self.sign.transform in DIFFERENCES:  # a fall of so much is a rise of its negative
            value, limit, below = -value, -limit, False
        if limit <= 0:
            return None
        decades = math.log10(max(value, SMALLEST)) - math.log10(limit)
        return max(-MAX_MARGIN, min(MAX_MARGIN, -decades if below else decades))

    def reading(self) -> Reading | None:
        """What evidence keeps of the last report; None where the sign abstained or its window was not full."""
        if self.holds is None or self._input.value is None:
            return None
        return Reading(None if self.sign.transform == "nonfinite" else self._input.value, self.threshold)

    def evidence(self, reports: Sequence[tuple[int, int]], readings: Sequence[Reading]) -> Evidence:
        """The sign's part in a verdict.

        Args:
            reports: (epoch, step) of each report that counts.
            readings: What the sign read in each of them.
        """
        threshold = readings[-1].threshold
        return Evidence(
            metric=self.sign.metric,
            transform=self.sign.transform,
            values=() if self.sign.transform in ("absent", "lost") else tuple(each.value for each in readings),
            threshold=threshold,
            comparison=self.sign.comparison,
            reports=tuple(reports),
            window=self.sign.window,
            against=self._limit.words,
            clears_at=self._clears_at(threshold) if threshold is not None and self._hysteresis > 1 else None,
        )
