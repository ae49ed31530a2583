"""Transforms of a metric's stream of values: what the signs of a rule compare with their thresholds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import ClassVar, Literal

SMALLEST = 1e-12  # stands for zero in ratios and logarithms


class Transform(ABC):
    """A function of the values that one metric has had so far.

    The docstrings of its subclasses are the reference of the key `transform` of a rules file.

    Args:
        window: Number of reports looked at, where the transform takes one.
        comparison: The side of the threshold on which the sign holds (None without a threshold).
    """

    takes_window: ClassVar[bool] = False
    needs_window: ClassVar[bool] = False
    takes_threshold: ClassVar[bool] = True
    least: ClassVar[float] = -math.inf  # of what it can give
    difference: ClassVar[str | None] = None  # of a ratio: the transform that does the same for values below 0

    def __init__(self, window: int | None = None, comparison: Literal["below", "above"] | None = None) -> None:
        self.window = window or 1
        self._comparison = comparison

    @abstractmethod
    def update(self, value: float | None, *, in_phase: bool = True) -> float | None:
        """Takes the metric's value in the next report.

        Args:
            value: The value; NaN when it was reported but is not finite, None when it was not reported.
            in_phase: Whether the report belongs to the phase of the rule.

        Returns:
            The transformed value; None while the window is not full; NaN where the transform says nothing about this
            report, so that the sign abstains.
        """


class FiniteTransform(Transform):
    """A transform of finite values; it abstains on reports without one."""

    def update(self, value: float | None, *, in_phase: bool = True) -> float | None:
        return math.nan if value is None or math.isnan(value) else self._transformed(value)

    @abstractmethod
    def _transformed(self, value: float) -> float | None: ...


class Value(FiniteTransform):
    """The metric itself (the default)."""

    def _transformed(self, value: float) -> float:
        return value


class BestRatio(FiniteTransform):
    """The value over the best one so far; the best is the lowest with `above`, the highest with `below`."""

    least = 0.0
    difference: ClassVar[str | None] = "best_difference"
    _best: float | None = None

    def _transformed(self, value: float) -> float:
        better = min if self._comparison == "above" else max
        self._best = value if self._best is None else better(self._best, value)
        return self._compared(value, self._best)

    def _compared(self, value: float, best: float) -> float:
        return _ratio(value, best)


class BestDifference(BestRatio):
    """The value minus the best one so far (see `best_ratio`): at most 0 with `below`, at least 0 with `above`."""

    least = -math.inf
    difference = None

    def _compared(self, value: float, best: float) -> float:
        return value - best


class WindowedTransform(FiniteTransform):
    """A function of the last finite values, in order, including the newest; None while there are too few of them."""

    takes_window = needs_window = True
    extra_values: ClassVar[int] = 0  # values looked at beyond the window

    def __init__(self, window: int | None = None, comparison: Literal["below", "above"] | None = None) -> None:
        super().__init__(window, comparison)
        self._values: deque[float] = deque(maxlen=self.window + self.extra_values)

    def _transformed(self, value: float) -> float | None:
        self._values.append(value)
        return self._of(tuple(self._values)) if len(self._values) == self._values.maxlen else None

    @abstractmethod
    def _of(self, values: Sequence[float]) -> float: ...


class WindowMaxOverMin(WindowedTransform):
    """The largest over the smallest of the last `window` values."""

    least = 1.0
    difference = "window_max_minus_min"

    def _of(self, values: Sequence[float]) -> float:
        return _ratio(max(values), min(values))


class WindowMaxMinusMin(WindowedTransform):
    """The largest minus the smallest of the last `window` values."""

    least = 0.0

    def _of(self, values: Sequence[float]) -> float:
        return max(values) - min(values)


class MedianRatio(WindowedTransform):
    """The value over the median of the `window` values before it."""

    least = 0.0
    difference = "median_difference"
    extra_values = 1

    def _of(self, values: Sequence[float]) -> float:
        return _ratio(values[-1], median(values[:-1]))


class MedianDifference(WindowedTransform):
    """The value minus the median of the `window` values before it."""

    extra_values = 1

    def _of(self, values: Sequence[float]) -> float:
        return values[-1] - median(values[:-1])


class Slope(WindowedTransform):
    """The least-squares slope of the last `window` values, in units of the metric per report."""

    def _of(self, values: Sequence[float]) -> float:
        count = len(values)
        middle = (count - 1) / 2
        return sum((index - middle) * value for index, value in enumerate(values)) * 12 / (count * (count * count - 1))


class Absent(Transform):
    """Holds when the metric is missing from `window` reports in a row (default 1) of the rule's phase; no threshold."""

    takes_window = True
    takes_threshold = False
    _missing = 0

    def update(self, value: float | None, *, in_phase: bool = True) -> float | None:
        self._missing = self._missing + 1 if value is None and in_phase else 0
        return float(self._missing)


class Lost(Absent):
    """As `absent`, for a metric that has been reported before; abstains until then."""

    _reported = False

    def update(self, value: float | None, *, in_phase: bool = True) -> float | None:
        self._reported = self._reported or value is not None
        missing = super().update(value, in_phase=in_phase)
        return missing if self._reported else math.nan


class Nonfinite(Transform):
    """Holds when the metric is reported but not finite; no threshold."""

    takes_threshold = False

    def update(self, value: float | None, *, in_phase: bool = True) -> float | None:
        return math.nan if value is None else float(math.isnan(value))


#: Name in a rules file -> transform.
TRANSFORMS: dict[str, type[Transform]] = {
    "value": Value,
    "best_ratio": BestRatio,
    "best_difference": BestDifference,
    "window_max_over_min": WindowMaxOverMin,
    "window_max_minus_min": WindowMaxMinusMin,
    "median_ratio": MedianRatio,
    "median_difference": MedianDifference,
    "slope": Slope,
    "absent": Absent,
    "lost": Lost,
    "nonfinite": Nonfinite,
}
#: Transforms of which both sides of 0 mean something: a margin is computed from a threshold below 0, too.
DIFFERENCES = frozenset(transform.difference for transform in TRANSFORMS.values() if transform.difference)
#: Transforms whose signs have no threshold: they hold or they do not.
WITHOUT_THRESHOLD = frozenset(name for name, transform in TRANSFORMS.items() if not transform.takes_threshold)


def _ratio(value: float, reference: float) -> float:
    """value / reference of two values that may not be negative; NaN if one of them is."""
    return value / max(reference, SMALLEST) if value >= 0 and reference >= 0 else math.nan
