"""What one sign of a rule sees: a metric through a transform, held against a threshold, over the reports of a trial.

Observers are shared: signs that look at the same metric through the same transform read one value. A sign answers a
report with yes, no, or None when it abstains. What that means is told in `buttress/rules/schema.py`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from buttress.rules.transforms import SMALLEST, WINDOWED, ratio
from buttress.rules.verdict import Evidence

if TYPE_CHECKING:
    from buttress.rules.schema import Observation, Rule

MOST = 12.0  # decades: the largest margin of a collapsed trial; diverged ones are beyond

Row = dict[str, float]  # the watched metrics of one report; NaN = reported, but not finite


class Report(NamedTuple):
    """One report as it came."""

    metrics: Mapping[str, float | None]
    epoch: int
    step: int
    full_beta_epochs: int
    full_beta_steps: int
    phase: int
    nonfinite: Collection[str]
    ends_epoch: bool

    def read(self, columns: tuple[str, ...]) -> float | None:
        """The value under the first of the columns that is there; NaN when not finite, None when there is none."""
        for name in columns:
            if name in self.nonfinite:
                return math.nan
            if name in self.metrics:
                value = self.metrics[name]
                return float(value) if value is not None and math.isfinite(value) else math.nan
        return None


class ObserverKey(NamedTuple):
    """What makes two observations the same. `phase` and `epoch_ends`: the reports that are looked at."""

    metric: str
    transform: str
    window: int | None
    best: str | None
    phase: int | None
    epoch_ends: bool


class Observer:
    """One metric through one transform.

    After `see`: `here` says whether the metric can be judged, `value` is what is compared (None = window not full yet).
    """

    def __init__(self, key: ObserverKey) -> None:
        self._key = key
        self.metric, self.transform, self.window = key.metric, key.transform, key.window or 1
        self._better = min if key.best == "above" else max
        self._best: float | None = None
        self._missing = 0  # reports in a row
        self._known = key.transform == "absent"  # `lost` needs to have seen it
        compute, length = WINDOWED.get(key.transform, (None, None))
        self._compute = compute
        self._history: deque[float] = deque(maxlen=length(self.window) if length else 1)
        self.here = False
        self.value: float | None = None

    def see(self, row: Row, report: Report) -> None:
        if self._key.epoch_ends and not report.ends_epoch:
            return
        value = row.get(self.metric)
        if self.transform in ("absent", "lost"):
            inside = self._key.phase is None or report.phase == self._key.phase
            self._known = self._known or value is not None
            self._missing = self._missing + 1 if value is None and inside else 0
            self.here, self.value = self._known, float(self._missing)
        elif self.transform == "nonfinite":
            self.here, self.value = value is not None, float(value is not None and math.isnan(value))
        elif value is None or math.isnan(value):
            self.here, self.value = False, None
        else:
            self.value = self._transformed(value)
            self.here = self.value is None or not math.isnan(self.value)

    def _transformed(self, value: float) -> float | None:
        if self.transform == "value":
            return value
        if self.transform == "best_ratio":
            self._best = value if self._best is None else self._better(self._best, value)
            return ratio(value, self._best)
        assert self._compute is not None
        self._history.append(value)
        return self._compute(tuple(self._history), self.window)


class SignWatch:
    """One sign (or grade) of a rule: an observer, a threshold and, between two of them, hysteresis.

    After `look`: `looked` is its answer, `threshold` the number that the value was held against.
    """

    def __init__(self, sign: Observation, rule: Rule, observers: dict[ObserverKey, Observer]) -> None:
        key = ObserverKey(
            sign.metric,
            sign.transform,
            sign.window,
            best=sign.comparison if sign.transform == "best_ratio" else None,
            phase=rule.phase if sign.transform in ("absent", "lost") else None,
            epoch_ends=rule.reports == "epoch_ends",
        )
        self.sign, self.observer = sign, observers.setdefault(key, Observer(key))
        self._below = sign.comparison == "below"
        self._hysteresis: float = getattr(sign, "hysteresis", None) or rule.hysteresis
        self._factor, self._others, self._against = _parts(sign)
        self.looked: bool | None = None
        self.threshold: float | None = None
        self.held = False  # in the report before, while the rule is suspect

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.observer.metric, *self._others)

    def known(self, reported: Collection[str]) -> bool:
        """Whether the trial has ever reported what this sign needs."""
        return self.observer.metric in reported and (not self._others or any(name in reported for name in self._others))

    def look(self, row: Row) -> bool | None:
        """Whether the sign holds on this report; None if it abstains."""
        self.looked = self._look(row)
        return self.looked

    def _look(self, row: Row) -> bool | None:
        value = self.observer.value
        if not self.observer.here:
            return None
        if self.sign.comparison is None:  # absent, lost, nonfinite
            return value is not None and value >= self.observer.window
        self.threshold = self._limit(row)
        if self.threshold is None:
            return None
        if value is None:
            return False
        limit = self._clears_at(self.threshold) if self.held else self.threshold
        return value < limit if self._below else value > limit

    def _limit(self, row: Row) -> float | None:
        if not self._others:
            return self._factor
        other = next((row[name] for name in self._others if name in row), math.nan)
        return None if math.isnan(other) else self._factor * other

    def _clears_at(self, threshold: float) -> float:
        wider = self._below == (threshold > 0)
        return threshold * self._hysteresis if wider else threshold / self._hysteresis

    def margin(self) -> float | None:
        """Decades beyond the threshold on the report last looked at; None where they are not known."""
        value, limit = self.observer.value, self.threshold
        if self.looked is None or value is None or limit is None or limit <= 0:
            return None
        decades = math.log10(max(value, SMALLEST)) - math.log10(limit)
        return max(-MOST, min(MOST, -decades if self._below else decades))

    def seen(self) -> Seen | None:
        """What evidence keeps of the report last looked at; None where there is nothing to show."""
        if self.looked is None or self.observer.value is None:
            return None
        return Seen(None if self.sign.transform == "nonfinite" else self.observer.value, self.threshold)

    def evidence(self, reports: Sequence[tuple[int, int]], seen: Sequence[Seen]) -> Evidence:
        """What this sign saw in the reports ((epoch, step) pairs) of a streak."""
        threshold = seen[-1].threshold
        return Evidence(
            metric=self.sign.metric,
            transform=self.sign.transform,
            values=() if self.sign.transform in ("absent", "lost") else tuple(each.value for each in seen),
            threshold=threshold,
            comparison=self.sign.comparison,
            reports=tuple(reports),
            window=self.sign.window,
            against=self._against,
            clears_at=self._clears_at(threshold) if threshold is not None and self._hysteresis > 1 else None,
        )


class Seen(NamedTuple):
    """The value and the threshold of one sign at one report; no value where the metric was not finite."""

    value: float | None
    threshold: float | None


def _parts(sign: Observation) -> tuple[float, tuple[str, ...], str | None]:
    """A threshold as a factor, the metrics of which the first reported one is multiplied by it, and that in words."""
    threshold: Any = sign.threshold
    if hasattr(threshold, "per_dim"):
        beside = sign.metric.rpartition("/")[0]
        others = tuple(dict.fromkeys((f"{beside}/dims", "latent/dims")))
        return threshold.per_dim, others, f"{threshold.per_dim:g} per dimension"
    if hasattr(threshold, "relative_to"):
        return threshold.factor, (threshold.relative_to,), f"{threshold.factor:g} times {threshold.relative_to}"
    return (0.0 if threshold is None else float(threshold)), (), None
