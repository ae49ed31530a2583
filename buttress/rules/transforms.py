"""What a sign compares: a metric as it is, or what its recent reports say of it.

Each transform is a function of the last finite values of one metric, oldest first, the newest included. It returns None
while its window is not full yet and NaN where the question makes no sense (a ratio of values below zero).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

SMALLEST = 1e-12  # stands for zero in ratios and logarithms


def ratio(value: float, reference: float) -> float:
    """value / reference of two values that may not be negative; NaN if one is."""
    return value / max(reference, SMALLEST) if value >= 0 and reference >= 0 else math.nan


def median(values: Sequence[float]) -> float:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def window_max_over_min(values: Sequence[float], window: int) -> float | None:
    """Largest over smallest of the last `window` values."""
    return ratio(max(values), min(values)) if len(values) == window else None


def median_ratio(values: Sequence[float], window: int) -> float | None:
    """The newest value over the median of the `window` values before it."""
    return ratio(values[-1], median(values[:-1])) if len(values) == window + 1 else None


def slope(values: Sequence[float], window: int) -> float | None:
    """Least-squares slope of the last `window` values, in units of the metric per report."""
    if len(values) < window:
        return None
    middle = (window - 1) / 2
    return sum((index - middle) * value for index, value in enumerate(values)) * 12 / (window * (window * window - 1))


#: Transforms over a window: the function, and how many values it looks at.
WINDOWED: dict[str, tuple[Callable[[Sequence[float], int], float | None], Callable[[int], int]]] = {
    "window_max_over_min": (window_max_over_min, lambda window: window),
    "median_ratio": (median_ratio, lambda window: window + 1),
    "slope": (slope, lambda window: window),
}
