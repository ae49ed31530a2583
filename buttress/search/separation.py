"""Finds the ranges of the searched parameters that separate the trials that collapsed from those that live.

Every region of the form "above", "below" or "is" is tried by Fisher's exact test (one-sided: more dead inside); where
almost nobody lives to be compared with, by the ranks of the margins instead: a range in which trials collapse further
beyond the rules. The search picks the best of hundreds of regions, so its p-value is that of the best one: the share of
random orders of the trials in which any region of any parameter does as well (Westfall and Young 1993, single step).
After a region is found the search goes on among the trials outside it, so that a second cause is not hidden by the
first, nor one cause named twice by parameters that were drawn together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import isfinite
from typing import Any, Literal

import numpy as np

from buttress.spec.parameters import choice_key
from buttress.wording import number

#: Regions that are named.
MAX_REGIONS = 3
#: Trials below which nothing can be said.
MIN_TRIALS = 8
#: Dead, and living, trials that there must be for their ends to be compared.
MIN_TRIALS_EACH = 3
#: Trials that a region holds at least.
MIN_TRIALS_INSIDE = 3
#: Largest p-value of a region; draws of a sampler that learns are not independent, which costs some of it.
MAX_P_VALUE = 0.02
#: Random orders of the trials that the p-value is computed from.
PERMUTATIONS = 1000
#: Thresholds that are tried per parameter.
MAX_THRESHOLDS = 32
ABSENT = object()


@dataclass(frozen=True)
class Fate:
    """How a trial ended. `margin`: decades beyond a rule (negative: a living trial's distance), None if unknown."""

    params: Mapping[str, Any]
    dead: bool
    margin: float | None = None


@dataclass(frozen=True)
class Region:
    """`dead` of the `trials` inside it collapsed, `dead_elsewhere` of `trials_elsewhere`, leaving out those that lie in
    a region that was found before it.

    `side` is `above` or `below` (of `value`, which itself lies on neither side of any trial) or `is`. `by` says what
    told it apart: `ends`, or `margins` with the median margin inside and elsewhere.
    """

    path: str
    side: Literal["above", "below", "is"]
    value: Any
    dead: int
    trials: int
    dead_elsewhere: int
    trials_elsewhere: int
    p: float
    by: Literal["ends", "margins"] = "ends"
    margins: tuple[float, float] | None = None

    def holds(self, params: Mapping[str, Any]) -> bool:
        value = params.get(self.path, ABSENT)
        if value is ABSENT:
            return False
        if self.side == "is":
            return choice_key(value) == choice_key(self.value)
        return bool(value > self.value) if self.side == "above" else bool(value < self.value)

    @property
    def range(self) -> str:
        """`loss.beta above 6.2`."""
        return f"{self.path} {self.side} {number(self.value, 4)}"

    def __str__(self) -> str:
        inside = f"{self.dead} of {self.trials} collapsed there"
        elsewhere = f"{self.dead_elsewhere} of {self.trials_elsewhere} elsewhere"
        if self.by == "ends" or self.margins is None:
            return f"{self.range} ({inside}, {elsewhere})"
        here, there = self.margins
        return f"{self.range} ({inside} by {here:+.1f} decades in the median, {elsewhere} by {there:+.1f})"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Region:
        margins = given.get("margins")
        return cls(**{**given, "margins": tuple(margins) if margins else None})


def regions(fates: Sequence[Fate], search: Mapping[str, Any], *, max_regions: int = MAX_REGIONS) -> list[Region]:
    """The regions that separate dead from living trials, the clearest first.

    Args:
        fates: How trials ended.
        search: Paths of the searched parameters, and the parameters as a spec writes them (`{"choice": [...]}`;
            anything else is numbers).
        max_regions: Largest number of regions.

    Returns:
        At most `max_regions` regions; none where the trials say nothing.
    """
    found: list[Region] = []
    rest = list(fates)
    while len(found) < max_regions and (region := _clearest(rest, search)) is not None:
        found.append(region)
        rest = [fate for fate in rest if not region.holds(fate.params)]
    return found


def _clearest(fates: Sequence[Fate], search: Mapping[str, Any]) -> Region | None:
    dead = sum(fate.dead for fate in fates)
    if dead < MIN_TRIALS_EACH:
        return None
    by: Literal["ends", "margins"] = "ends" if len(fates) - dead >= MIN_TRIALS_EACH else "margins"
    if by == "margins":
        fates = [fate for fate in fates if fate.margin is not None and isfinite(fate.margin)]
    if len(fates) < MIN_TRIALS:
        return None
    tried = [entry for path, parameter in search.items() for entry in _tried(path, parameter, fates)]
    if not tried:
        return None
    inside = _inside(tried, fates)
    enough = (inside.sum(axis=1) >= MIN_TRIALS_INSIDE) & (inside.sum(axis=1) < len(fates))
    tried = [entry for entry, held in zip(tried, enough, strict=True) if held]
    inside = inside[enough]
    if not tried:
        return None
    ends = np.array([fate.dead for fate in fates])
    margins = np.array([fate.margin if fate.margin is not None else np.nan for fate in fates])
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(len(fates)), (PERMUTATIONS, 1)), axis=1)
    given = np.vstack([np.arange(len(fates)), orders])  # [1 + orders, trials]: the trials as they are come first
    strength = _of_ends(inside, ends[given]) if by == "ends" else _of_ranks(inside, _ranked(margins)[given])
    best = strength.max(axis=0)
    p = float((best >= best[0] - 1e-9).mean())  # the trials' own order counts as one
    if p > MAX_P_VALUE:
        return None
    path, side, value = tried[int(strength[:, 0].argmax())]
    mask = inside[int(strength[:, 0].argmax())]
    medians = (float(np.median(margins[mask])), float(np.median(margins[~mask]))) if by == "margins" else None
    return Region(
        path, side, value, int(ends[mask].sum()), int(mask.sum()), int(ends[~mask].sum()), int((~mask).sum()), p, by,
        medians,
    )  # fmt: skip


# --- regions to try ---------------------------------------------------------------------------------------------------

Tried = tuple[str, Literal["above", "below", "is"], Any]


def _tried(path: str, parameter: Any, fates: Sequence[Fate]) -> list[Tried]:
    given = [fate.params[path] for fate in fates if path in fate.params]
    if "choice" in parameter or any(isinstance(value, str | bool) or value is None for value in given):
        distinct = {choice_key(value): value for value in given}.values()
        return [(path, "is", value) for value in distinct] if len(distinct) > 1 else []
    values = sorted(set(given))
    gaps = list(pairwise(values))
    if len(gaps) > MAX_THRESHOLDS:
        places = np.unique(np.linspace(0, len(gaps) - 1, MAX_THRESHOLDS).round().astype(int))
        gaps = [gaps[place] for place in places]
    thresholds = [between(low, high) for low, high in gaps]
    sides: tuple[Literal["above", "below"], ...] = ("above", "below")
    return [(path, side, value) for value in thresholds for side in sides]


def between(low: float, high: float) -> float:
    """The number of fewest digits between two values, near their middle (of positive ones the geometric middle)."""
    middle = float(np.sqrt(low * high)) if low > 0 else (low + high) / 2
    for digits in range(1, 17):
        rounded = float(f"{middle:.{digits}g}")
        if low < rounded < high:
            return rounded
    return middle


def _inside(tried: Sequence[Tried], fates: Sequence[Fate]) -> np.ndarray:
    """Which trials lie in which region: [regions, trials]."""
    given = {path: [fate.params.get(path, ABSENT) for fate in fates] for path in {path for path, _, _ in tried}}
    keys = {
        path: [None if value is ABSENT else choice_key(value) for value in given[path]]
        for path in {path for path, side, _ in tried if side == "is"}
    }
    numbers: dict[str, np.ndarray] = {}  # NaN, in no region, where the parameter is not in play
    for path in {path for path, side, _ in tried if side != "is"}:
        numbers[path] = np.array([np.nan if value is ABSENT else value for value in given[path]], dtype=float)
    rows = [
        np.array([key == choice_key(value) for key in keys[path]])
        if side == "is"
        else numbers[path] > value if side == "above" else numbers[path] < value
        for path, side, value in tried
    ]  # fmt: skip
    return np.stack(rows)


# --- how strong -------------------------------------------------------------------------------------------------------


def _of_ends(inside: np.ndarray, dead: np.ndarray) -> np.ndarray:
    """-log of Fisher's one-sided p per region [regions, trials] and order of the ends [orders, trials]."""
    counts = inside.astype(float) @ dead.T.astype(float)
    trials, total = dead.shape[1], int(dead[0].sum())
    sizes = inside.sum(axis=1)
    tails = {int(size): tail(trials, total, int(size)) for size in np.unique(sizes)}
    return np.stack([-tails[int(size)][row.astype(int)] for size, row in zip(sizes, counts, strict=True)])


def tail(trials: int, dead: int, size: int) -> np.ndarray:
    """log P(at least k of `size` drawn trials are among the `dead` ones) for k = 0 ... size (hypergeometric)."""
    log = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])

    def choose(n: int, k: np.ndarray) -> np.ndarray:
        possible = (k >= 0) & (k <= n)
        k = np.where(possible, k, 0)
        return np.where(possible, log[n] - log[k] - log[n - k], -np.inf)

    k = np.arange(size + 1)
    mass = choose(dead, k) + choose(trials - dead, size - k) - choose(trials, np.array([size]))
    return np.minimum(np.logaddexp.accumulate(mass[::-1])[::-1], 0.0)


def _of_ranks(inside: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Standardised sum of the ranks inside (Wilcoxon's statistic), per region and order."""
    trials, sizes = ranks.shape[1], inside.sum(axis=1, keepdims=True)
    sums = inside.astype(float) @ ranks.T
    spread = np.sqrt(sizes * (trials - sizes) / (trials - 1)) * max(float(ranks[0].std()), 1e-12)
    return (sums - sizes * ranks[0].mean()) / spread


def _ranked(values: np.ndarray) -> np.ndarray:
    """Ranks, ties at their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    upto = np.cumsum(counts)
    return (upto - (counts - 1) / 2)[inverse]
