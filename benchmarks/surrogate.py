"""What a configuration nobody ran would have done: the recorded curve of one that is like it.

For any parameters of the space that CollapseBench's curves were drawn from there is a stand-in, one of
the curves. `Nearest` takes the configuration at the smallest distance, in which a parameter weighs what it explains of
the objective alone; `Forest` the one that ends in the same leaves of a random forest that has learnt objective and
collapse. Both say how far to trust them: `trust` has, over curves left out, the rank correlation of a healthy trial's
objective with that of its stand-in, and how often a stand-in is dead or alive as the trial itself is. A conclusion from
one of them is to be repeated with the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from buttress.analysis.curves import Curve, CurveSet
from buttress.errors import BadInput
from buttress.spec.parameters import Parameter
from buttress.spec.spec import SweepSpec

TREES = 200
FOLDS = 10


@dataclass(frozen=True)
class Trust:
    """Of curves left out, against their stand-ins."""

    rank_correlation: float  # Spearman, of the objective, over pairs of healthy trials
    same_end: float  # share of trials that are dead, or alive, as their stand-in is
    pairs: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Surrogate(Protocol):
    """Stands in for training."""

    name: str

    def curve(self, params: Mapping[str, Any]) -> Curve: ...

    def ranked(self, params: Mapping[str, Any]) -> Iterator[Curve]:
        """All curves, `curve(params)` first."""

    @property
    def trust(self) -> Trust: ...


def bench_space(curves: CurveSet) -> SweepSpec:
    """The spec that the curves' parameters were drawn from."""
    if "spec" not in curves.about:
        raise BadInput("these curves do not say what space they were drawn from", accepted="a file of CollapseBench")
    return SweepSpec.from_dict(curves.about["spec"])


class _Encoded:
    """The bench's configurations as rows of numbers; ambiguous trials stay in: they happen."""

    def __init__(self, curves: CurveSet) -> None:
        self.space = bench_space(curves).search
        self.curves = [c for c in curves.curves if c.about.get("trial") == c.about.get("configuration") and c.truth]
        self.numbers = np.array([self.coordinates(curve.about["params"]) for curve in self.curves])
        sign = 1.0 if curves.about.get("direction") == "max" else -1.0
        values = [c.truth.value if c.truth and c.truth.value is not None else math.nan for c in self.curves]
        self.dead = np.array([bool(curve.truth and curve.truth.dead) for curve in self.curves])
        self.healthy = np.array([bool(curve.truth and curve.truth.outcome == "healthy") for curve in self.curves])
        self.value = sign * np.array(values)  # larger is better

    def coordinates(self, params: Mapping[str, Any]) -> list[float]:
        """One number per searched path: its place in the range from 0 to 1, its number among the choices (compared for
        equality, never subtracted), NaN where it is not active."""
        space = self.space.items()
        return [_coordinate(parameter, params[path]) if path in params else math.nan for path, parameter in space]

    @cached_property
    def choices(self) -> np.ndarray:
        return np.array([parameter.kind == "choice" for parameter in self.space.values()])

    @cached_property
    def ranks(self) -> np.ndarray:
        """Of the objective, from 0 (worst; trials without a value) to 1: [curves]."""
        return self._filled.argsort().argsort() / max(1, len(self._filled) - 1)

    @property
    def _filled(self) -> np.ndarray:
        return np.where(np.isfinite(self.value), self.value, np.nanmin(self.value))

    def relevance(self, rows: np.ndarray) -> np.ndarray:
        """Share of the variance of the objective's ranks that each parameter explains alone, over the curves `rows`:
        squared rank correlation of a number, correlation ratio of a choice. [parameters]"""
        found = []
        for column, choice in zip(np.nan_to_num(self.numbers[rows], nan=-1.0).T, self.choices, strict=True):
            ranks = self.ranks[rows]
            if choice:
                groups = [ranks[column == level] for level in np.unique(column)]
                between = sum(len(group) * (group.mean() - ranks.mean()) ** 2 for group in groups)
                found.append(between / max(((ranks - ranks.mean()) ** 2).sum(), 1e-12))
            else:
                found.append(np.nan_to_num(spearman(column, ranks)) ** 2)
        return np.asarray(found) + 1e-6

    def folds(self, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(seen, unseen) curves, every curve unseen once."""
        fold = np.random.default_rng(seed).permutation(len(self.curves)) % FOLDS
        for number in range(FOLDS):
            yield np.flatnonzero(fold != number), np.flatnonzero(fold == number)

    def distances(self, row: Sequence[float] | np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Weighted mean distance over the parameters (Gower 1971) of a row to all: [curves]."""
        here = np.asarray(row)
        apart = np.abs(self.numbers - here)
        apart = np.where(self.choices, (self.numbers != here).astype(float), apart)
        absent, gone = np.isnan(self.numbers), np.isnan(here)
        apart = np.where(absent | gone, (absent != gone).astype(float), apart)
        return np.asarray(np.average(apart, axis=1, weights=weights))

    def trust(self, stand_in: Sequence[int]) -> Trust:
        other = np.asarray(stand_in)
        both = self.healthy & self.healthy[other] & np.isfinite(self.value) & np.isfinite(self.value[other])
        correlation = spearman(self.value[both], self.value[other][both])
        return Trust(correlation, float((self.dead == self.dead[other]).mean()), int(both.sum()))


def _coordinate(parameter: Parameter, value: Any) -> float:
    return float(parameter.choices.index(value)) if parameter.choices is not None else parameter.position(float(value))


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation, ties at their mean rank; NaN for fewer than three pairs."""
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic) if len(one) > 2 else math.nan


class Nearest:
    """The configuration at the smallest distance, parameters weighted by what each explains of the objective alone."""

    name = "nearest"

    def __init__(self, curves: CurveSet) -> None:
        self._encoded = _Encoded(curves)
        self._weights = self._encoded.relevance(np.arange(len(self._encoded.curves)))

    def curve(self, params: Mapping[str, Any]) -> Curve:
        return next(self.ranked(params))

    def ranked(self, params: Mapping[str, Any]) -> Iterator[Curve]:
        distances = self._encoded.distances(self._encoded.coordinates(params), self._weights)
        return (self._encoded.curves[index] for index in distances.argsort(kind="stable"))

    @cached_property
    def trust(self) -> Trust:
        """Over ten folds: weights from the curves that are seen, stand-ins among them."""
        encoded = self._encoded
        stand_in = np.zeros(len(encoded.curves), dtype=int)
        for seen, unseen in encoded.folds():
            weights = encoded.relevance(seen)
            for index in unseen:
                stand_in[index] = seen[encoded.distances(encoded.numbers[index], weights)[seen].argmin()]
        return encoded.trust(stand_in.tolist())


class Forest:
    """The configuration that shares most leaves of a random forest with the asked one (Breiman's proximity)."""

    name = "forest"

    def __init__(self, curves: CurveSet, seed: int = 0) -> None:
        self._encoded, self._seed = _Encoded(curves), seed
        self._forest, self._leaves = self._fitted(np.arange(len(self._encoded.curves)))

    def _inputs(self, numbers: np.ndarray) -> np.ndarray:
        """Choices as one column per choice; what is not active lies outside the range."""
        columns = []
        for index, parameter in enumerate(self._encoded.space.values()):
            column = numbers[:, index]
            if parameter.choices is not None:
                columns += [column == place for place in range(len(parameter.choices))]
            else:
                columns.append(np.nan_to_num(column, nan=-1.0))
        return np.stack(columns, axis=1).astype(np.float64)

    def _fitted(self, rows: np.ndarray) -> tuple[Any, np.ndarray]:
        from sklearn.ensemble import RandomForestRegressor

        encoded = self._encoded
        targets = np.stack([encoded.ranks, encoded.dead.astype(float)], axis=1)
        forest = RandomForestRegressor(TREES, min_samples_leaf=2, max_features=0.5, random_state=self._seed, n_jobs=1)
        forest.fit(self._inputs(encoded.numbers[rows]), targets[rows])
        return forest, self._leaves_of(forest, encoded.numbers[rows])

    def _leaves_of(self, forest: Any, numbers: np.ndarray) -> np.ndarray:
        """The leaf of each row in each tree: [rows, trees]. `forest.apply` takes a hundred times longer for a row."""
        inputs = self._inputs(numbers).astype(np.float32)
        return np.stack([tree.tree_.apply(inputs) for tree in forest.estimators_], axis=1)

    def curve(self, params: Mapping[str, Any]) -> Curve:
        return next(self.ranked(params))

    def ranked(self, params: Mapping[str, Any]) -> Iterator[Curve]:
        row = np.array([self._encoded.coordinates(params)])
        (order,) = self._like(self._forest, self._leaves, row, np.arange(len(self._leaves)))
        return (self._encoded.curves[index] for index in order)

    def _like(self, forest: Any, leaves: np.ndarray, rows: np.ndarray, among: np.ndarray) -> list[np.ndarray]:
        """For each row the indices of the curves in `among`: who shares most leaves first, of equals the nearest."""
        found = []
        for row, own in zip(rows, self._leaves_of(forest, rows), strict=True):
            shared = (leaves == own).mean(axis=1)
            distance = self._encoded.distances(row)[among]
            found.append(among[np.lexsort((distance, -shared))])
        return found

    @cached_property
    def trust(self) -> Trust:
        """Over ten folds: a forest that has not seen the curve finds its stand-in among those that it has seen."""
        stand_in = np.zeros(len(self._encoded.curves), dtype=int)
        for seen, unseen in self._encoded.folds():
            forest, leaves = self._fitted(seen)
            stand_in[unseen] = [order[0] for order in self._like(forest, leaves, self._encoded.numbers[unseen], seen)]
        return self._encoded.trust(stand_in.tolist())


class Once:
    """Another stand-in of which every curve stands in for one configuration of a sweep at most; of one sweep alone.

    Else a second trial near a good one repeats its very curve, chance included, and a sampler that looks for the better
    neighbour can never find it. When all curves have stood in they may again.
    """

    def __init__(self, surrogate: Surrogate) -> None:
        self._surrogate, self.name = surrogate, surrogate.name
        self._given: dict[str, Curve] = {}
        self._used: set[int] = set()

    def curve(self, params: Mapping[str, Any]) -> Curve:
        asked = repr(sorted(params.items()))
        if asked not in self._given:
            ranked = list(self._surrogate.ranked(params))
            curve = next((curve for curve in ranked if id(curve) not in self._used), ranked[0])
            self._given[asked] = curve
            self._used.add(id(curve))
        return self._given[asked]

    def ranked(self, params: Mapping[str, Any]) -> Iterator[Curve]:
        return self._surrogate.ranked(params)

    @property
    def trust(self) -> Trust:
        return self._surrogate.trust


SURROGATES: dict[str, type[Nearest] | type[Forest]] = {"nearest": Nearest, "forest": Forest}
