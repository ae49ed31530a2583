"""Shares with the interval that belongs to them, so that no figure of a few trials is told as if it were exact."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

#: Two-sided 95 % of the normal distribution.
Z = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """`count` of `of`, and the Wilson score interval of the share (Wilson 1927, JASA 22).

    >>> Share(19, 20)
    Share(count=19, of=20)
    >>> tuple(round(end, 3) for end in Share(19, 20).interval)
    (0.764, 0.991)
    """

    count: int
    of: int

    @property
    def share(self) -> float | None:
        """None where there is nothing to count."""
        return self.count / self.of if self.of else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 %; from 0 to 1 where there is nothing to count."""
        if not self.of:
            return 0.0, 1.0
        share, weight = self.count / self.of, Z * Z / self.of
        middle = (share + weight / 2) / (1 + weight)
        half = Z * sqrt(share * (1 - share) / self.of + weight / (4 * self.of)) / (1 + weight)
        return (0.0 if self.count == 0 else middle - half), (1.0 if self.count == self.of else middle + half)

    def __str__(self) -> str:
        if not self.of:
            return "none to count"
        low, high = self.interval
        return f"{self.count} of {self.of} ({self.count / self.of:.1%}, {low:.1%} to {high:.1%})"

    def to_dict(self) -> dict[str, Any]:
        return {"count": self.count, "of": self.of, "share": self.share, "interval": list(self.interval)}
