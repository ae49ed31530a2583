"""Formats numbers, durations, lists and series as text for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

BARS = "▁▂▃▄▅▆▇█"


def number(value: Any, digits: int = 3) -> str:
    """A value in few characters: `0.00214`, `1,200`, `3.1e+08`, `true`; `-` for None and what is not finite,
    `''` for an empty text.

    Args:
        value: a number, a boolean, a text, None, or a list or mapping of them.
        digits: significant digits of a float.
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(number(item, digits) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {number(item, digits)}" for key, item in value.items()) + "}"
    if not isinstance(value, (int, float)):
        return str(value) or "''"
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 10**digits):
        return f"{int(value):,}"
    if not math.isfinite(value):
        return "-"
    if 10**digits <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def duration(seconds: float | None) -> str:
    """`0.4 s`, `42 s`, `3 min 05 s`, `2 h 07 min`; `-` for None."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def clock(seconds: float | None) -> str:
    """A duration for a table's column: `0.4s`, `42s`, `3:05`, `2:07:09`; `-` for None."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def listing(words: Sequence[str], last: str = "and") -> str:
    """A list in words: `a`, `a and b`, `a, b and c`; `last` joins its last two."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def abbreviated(values: Sequence[Any], limit: int = 20) -> str:
    """The first of many values in words: `a, b, c, ... (300 in all)`; null for None."""
    words = ["null" if value is None else number(value) for value in values[:limit]]
    return ", ".join(words) + (f", ... ({len(values):,} in all)" if len(values) > limit else "")


def plural(count: float, noun: str) -> str:
    """A count and its noun: `1 trial`, `1,200 trials`, `0.5 GPUs`."""
    return f"{count if count % 1 else int(count):,} {noun}" + ("" if count == 1 else "s")


def times(factor: float) -> str:
    """A factor in words: `1.2 times`, `126 times`, `about 10^9 times`."""
    if factor >= 1e5:
        return f"about 10^{round(math.log10(factor))} times"
    return f"{number(factor, 2 if factor < 10 else 3)} times"


def percent(share: float) -> str:
    """A share (0 to 1) as `42 %`, with `under 1 %` and `over 99 %` at its ends."""
    if 0 < share < 0.01:
        return "under 1 %"
    return "over 99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"


def sparkline(values: Sequence[float | None], width: int = 40) -> str:
    """A series as a line of bars.

    Positive values that span more than a factor of 50 are drawn on a log scale; a missing value is a dot.

    Args:
        values: the series.
        width: number of bars at most; each shows the last value of its part of the series.
    """
    count = min(width, len(values))
    drawn = [values[(index + 1) * len(values) // count - 1] for index in range(count)]
    present = [value for value in drawn if value is not None and math.isfinite(value)]
    if not present:
        return "·" * count
    logarithmic = min(present) > 0 and max(present) > 50 * min(present)

    def height(value: float) -> float:
        return math.log(value) if logarithmic else value

    low, high = height(min(present)), height(max(present))
    span = (high - low) or 1.0
    return "".join(
        "·" if value is None or not math.isfinite(value)
        else BARS[min(len(BARS) - 1, int((height(value) - low) / span * len(BARS)))]
        for value in drawn
    )
