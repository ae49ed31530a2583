"""Shares of a count with their confidence intervals."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

#: 97.5 % quantile of the standard normal distribution: two-sided 95 %.
Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """A share with its Wilson score interval (Wilson 1927, JASA 22).

    Attributes:
        count: Number of those counted.
        of: Number of all.

    Example:
        >>> Share(19, 20)
        Share(count=19, of=20)
        >>> tuple(round(end, 3) for end in Share(19, 20).interval)
        (0.764, 0.991)
    """

    count: int
    of: int

    @property
    def share(self) -> float | None:
        """The share, 0 to 1; None where there is nothing to count."""
        return self.count / self.of if self.of else None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval; (0, 1) where there is nothing to count."""
        if not self.of:
            return 0.0, 1.0
        share, weight = self.count / self.of, Z_95**2 / self.of
        middle = (share + weight / 2) / (1 + weight)
        half = Z_95 * sqrt(share * (1 - share) / self.of + weight / (4 * self.of)) / (1 + weight)
        return (0.0 if self.count == 0 else middle - half), (1.0 if self.count == self.of else middle + half)

    def __str__(self) -> str:
        if not self.of:
            return "none to count"
        low, high = self.interval
        return f"{self.count} of {self.of} ({self.count / self.of:.1%}, {low:.1%} to {high:.1%})"

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {"count": self.count, "of": self.of, "share": self.share, "interval": list(self.interval)}
