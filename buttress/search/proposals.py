"""Which configurations a sweep has run, so that none is run twice.

In come the parameters of every trial; out comes the trial that a new draw repeats (`twin`), and, of a space that has no
more than so many configurations, one that was not run yet (`left`). Whole numbers, steps and choices repeat a trial
when they are equal; numbers from a range when they are closer than `NEAR` of it, on the parameter's own scale: what
differs by less differs by less than a seed does. A sampler that repeats itself `REDRAWS` times in a row has run dry:
from there on the sweep draws at random, or takes what is left of a small space. One that has had `REFUSALS` draws in a
row refused for whatever reason has settled where nothing can be run (it learns nothing from a refusal): the draws are
random until one is not refused.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from buttress.spec import trial_config
from buttress.spec.parameters import Parameter
from buttress.spec.spec import SweepSpec

NEAR = 1e-4  # of the range
REDRAWS = 10
REFUSALS = 100  # of a space of which 95 % is refused, one draw in 170 comes to this by chance
MOST_COUNTED = 10_000  # a larger space counts as endless

Params = Mapping[str, Any]
Key = tuple[tuple[str, Any], ...]


class Draws:
    """The trials of one sweep by their parameters."""

    def __init__(self, spec: SweepSpec, Config: type[BaseModel]) -> None:
        self._spec, self._config = spec, Config
        self._search = spec.search
        self._count = _size(spec)
        self._run: dict[Key, list[tuple[str, list[float]]]] = {}
        self._impossible: set[Key] = set()
        self.params: dict[str, dict[str, Any]] = {}  # trial -> what it was drawn with
        self.repeats = 0  # draws since the last trial that repeated one
        self.refusals = 0  # draws since the last trial

    @property
    def run_dry(self) -> bool:
        return self.repeats >= REDRAWS

    @property
    def stuck(self) -> bool:
        return self.refusals >= REFUSALS

    def add(self, trial: str, params: Params) -> None:
        key, place = self._point(params)
        self._run.setdefault(key, []).append((trial, place))
        self.params[trial] = dict(params)
        self.repeats = self.refusals = 0

    def refused(self, repeats: str | None) -> None:
        """A draw was refused; `repeats` names the trial that it would have run again."""
        self.refusals += 1
        self.repeats += repeats is not None

    def twin(self, params: Params) -> str | None:
        """The first trial that had the same parameters; None where there is none, or where repeats are wanted."""
        if self._spec.sampler.repeats:
            return None
        key, place = self._point(params)
        for trial, other in self._run.get(key, ()):
            if all(abs(one - two) < NEAR for one, two in zip(place, other, strict=True)):
                return trial
        return None

    def left(self, possible: Callable[[Params], bool], seed: int) -> Params | None:
        """A configuration that no trial has run and that is `possible`; None where there is none left.

        Raises ValueError for a space that is not `finite`.
        """
        if not self.finite:
            raise ValueError("an endless space is never used up")
        every = list(_every(self._spec, self._config))
        random.Random(seed).shuffle(every)
        for params in every:
            key, _ = self._point(params)
            if key in self._run or key in self._impossible:
                continue
            if possible(params):
                return params
            self._impossible.add(key)
        return None

    @property
    def finite(self) -> bool:
        return self._count is not None

    def _point(self, params: Params) -> tuple[Key, list[float]]:
        """What has to be equal, and the places in [0, 1] that have to be near."""
        exact: list[tuple[str, Any]] = []
        places: list[float] = []
        for path in sorted(params):
            parameter, value = self._search[path], params[path]
            if parameter.choices is not None:
                exact.append((path, (type(value).__name__, value)))
            elif parameter.whole:
                exact.append((path, int(value)))
            elif parameter.step is not None:
                assert parameter.low is not None
                exact.append((path, round((value - parameter.low) / parameter.step)))
            else:
                exact.append((path, None))
                places.append(parameter.position(float(value)))
        return tuple(exact), places


def _values(parameter: Parameter) -> list[Any] | None:
    """Every value there is; None of a continuous range."""
    if parameter.choices is not None:
        return list(parameter.choices)
    assert parameter.low is not None and parameter.high is not None
    if parameter.whole:
        count = int(parameter.high) - int(parameter.low)
        step = int(parameter.step or 1)
        return list(range(int(parameter.low), int(parameter.high) + 1, step)) if count < MOST_COUNTED * step else None
    if parameter.step is None:
        return None
    steps = round((parameter.high - parameter.low) / parameter.step)
    return [min(parameter.low + parameter.step * index, parameter.high) for index in range(steps + 1)]


def _size(spec: SweepSpec) -> int | None:
    """At most so many configurations, whatever `when` leaves out; None: endless, or too many to count."""
    size = 1
    for parameter in spec.search.values():
        values = _values(parameter)
        if values is None or (size := size * len(values)) > MOST_COUNTED:
            return None
    return size


def _every(spec: SweepSpec, Config: type[BaseModel]) -> Iterator[dict[str, Any]]:
    """Every configuration of a finite space, `when` honoured."""

    def grow(params: dict[str, Any], paths: list[str]) -> Iterator[dict[str, Any]]:
        if not paths:
            yield params
            return
        path, *rest = paths
        parameter = spec.search[path]
        draft = trial_config.draft(spec, params, Config)
        if not trial_config.is_active(spec, path, draft):
            yield from grow(params, rest)
            return
        for value in _values(parameter) or ():
            yield from grow({**params, path: value}, rest)

    return grow({}, spec.ordered)
