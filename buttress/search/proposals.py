"""Proposes configurations: drawn by the study, built, checked, and none that has been run already.

Whole numbers, steps and choices repeat a trial when they are equal; numbers from a range when they are closer than
`TOLERANCE` of it, on the parameter's own scale: what differs by less differs by less than a seed does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from buttress.errors import BadInput
from buttress.search.optuna_study import Study
from buttress.spec import trial_config
from buttress.spec.parameters import Parameter, choice_key
from buttress.spec.spec import SweepSpec

#: Numbers from a range are the same when they are closer than this share of it.
TOLERANCE = 1e-4
#: Draws in a row that repeat a trial, after which the sampler is taken to have nothing new: draws are random from there
#: on, or what is left of a small space.
MAX_REPEATS = 10
#: Draws in a row that were refused, after which the sampler is taken to have settled where nothing can run (it learns
#: nothing from a refusal): draws are random until one is not refused. Of a space of which 95 % is refused, one draw in
#: 170 comes to this by chance.
MAX_SAMPLER_REFUSALS = 100
#: Draws in a row that were refused, after which the sweep gives up.
MAX_REFUSALS = 1000
#: A space with more configurations counts as endless.
MAX_COUNTED = 10_000

Params = Mapping[str, Any]
Key = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Proposal:
    """A draw. `config` is None where the family's own `Config` refuses it; `refusal` says why it becomes no trial."""

    ask: int
    params: dict[str, Any]
    config: Any
    refusal: str | None = None
    repeats: str | None = None


class Proposals:
    """The draws of one sweep, and the configurations that its trials have."""

    def __init__(self, spec: SweepSpec, trainable: Any, study: Study) -> None:
        self._spec, self._trainable, self.study = spec, trainable, study
        self.explored = ExploredSpace(spec, trainable.Config)
        self.exhausted = False  # every configuration of the space has been run
        self._unexplored: Params | None = None

    def prepare(self) -> None:
        """Finds what the next draw of a small space will be, where the sampler repeats itself.

        Takes seconds in a space of thousands of configurations and tells the study nothing.
        """
        explored = self.explored
        self._unexplored = None
        if explored.repeats >= MAX_REPEATS and explored.finite:
            self._unexplored = explored.unexplored(
                lambda params: build(self._spec, self._trainable, params, 0)[1] is None, self.study.asked
            )
            self.exhausted = self._unexplored is None

    def complete(self, given: Params, seed: int) -> dict[str, Any]:
        """A configuration that somebody asked for, the values that he left out drawn at random.

        Args:
            given: Values of searched parameters, by path.
            seed: Of what is drawn.

        Returns:
            Every active parameter's value.

        Raises:
            BadInput: A parameter that is not searched, a value outside its range, or no draw with these values is
                accepted.
        """
        for path, value in given.items():
            parameter = self._spec.search.get(path)
            if parameter is None:
                accepted = ", ".join(self._spec.search)
                raise BadInput("is not searched by this sweep", key=path, value=value, accepted=accepted)
            if not parameter.contains(value):
                raise BadInput("is outside of its range", key=path, value=value, accepted=parameter.described())
        rng, refusal = random.Random(seed), None
        for _ in range(MAX_REFUSALS):
            params = trial_config.sample(self._spec, rng, self._trainable.Config, given)
            if missing := [path for path in given if path not in params]:
                why = f"does nothing here: {self._spec.search[missing[0]].when} does not hold"
                raise BadInput(why, key=missing[0], value=given[missing[0]])
            if (refusal := build(self._spec, self._trainable, params, 0)[1]) is None:
                return params
        raise BadInput(f"no configuration with these values is accepted: {refusal}")

    def chosen(self, params: Params, seed: int) -> Proposal:
        """A configuration that `complete` found, as a draw."""
        ask, taken = self.study.enqueue(params)
        config, refusal = build(self._spec, self._trainable, taken, seed)
        return Proposal(ask, taken, config, refusal)

    def next(self, seed: int) -> Proposal | None:
        """The next draw, after `prepare`; None once every configuration of the space has been run.

        Args:
            seed: The seed that its trial would have.
        """
        if (drawn := self._draw()) is None:
            return None
        ask, params = drawn
        config, refusal = build(self._spec, self._trainable, params, seed)
        repeats = self.explored.trial_with(params) if refusal is None else None
        if repeats is not None:
            refusal = f"repeats trial {repeats}"
        return Proposal(ask, params, config, refusal, repeats)

    def _draw(self) -> tuple[int, dict[str, Any]] | None:
        explored = self.explored
        if explored.repeats < MAX_REPEATS:
            return self.study.ask(at_random=explored.refusals >= MAX_SAMPLER_REFUSALS)
        if not explored.finite:
            return self.study.ask(at_random=True)
        return self.study.enqueue(self._unexplored) if self._unexplored is not None else None


# --- building configs -----------------------------------------------------------------------------------------------


def build(spec: SweepSpec, trainable: Any, params: Params, seed: int) -> tuple[Any, str | None]:
    """The config of a draw, and why the draw is refused (None: it is not).

    The config is None where the family's own `Config` refuses it.
    """
    try:
        config = trial_config.build(
            spec,
            params,
            trainable.Config,
            seed=seed,
            schedule=trainable.schedule,
            epochs_path=getattr(trainable, "epochs_path", "train.epochs"),
        )
    except BadInput as error:
        return None, str(error)
    return config, trial_config.violated_requirement(spec, config) or never_settles(trainable.schedule(config))


def never_settles(schedule: Any) -> str | None:
    """Why no epoch of this schedule could ever be valid, or None: beta must settle before the last epoch begins."""
    if schedule.full_beta_epochs(schedule.epochs) >= 1:
        return None
    return f"beta settles {trial_config.settles(schedule)}, in a budget of {schedule.epochs} epochs"


# --- what has been run ----------------------------------------------------------------------------------------------


class ExploredSpace:
    """The trials of a sweep by their parameters."""

    def __init__(self, spec: SweepSpec, Config: type[BaseModel]) -> None:
        self._spec, self._config = spec, Config
        self._search = spec.search
        self._count = _size(spec)
        self._trials: dict[Key, list[tuple[str, list[float]]]] = {}
        self._impossible: set[Key] = set()
        self.params: dict[str, dict[str, Any]] = {}  # trial -> what it was drawn with
        self.repeats = 0  # draws that repeated a trial, since the last new one
        self.refusals = 0  # refused draws since the last trial

    @property
    def finite(self) -> bool:
        """Whether the space has at most `MAX_COUNTED` configurations."""
        return self._count is not None

    def add(self, trial: str, params: Params) -> None:
        """A trial has been created."""
        key, place = self._point(params)
        self._trials.setdefault(key, []).append((trial, place))
        self.params[trial] = dict(params)
        self.repeats = self.refusals = 0

    def add_refusal(self, repeats: str | None) -> None:
        """A draw was refused; `repeats` names the trial that it would have run again."""
        self.refusals += 1
        self.repeats += repeats is not None

    def trial_with(self, params: Params) -> str | None:
        """The first trial that had the same parameters; None where there is none, or where repeats are allowed."""
        if self._spec.sampler.repeats:
            return None
        key, place = self._point(params)
        for trial, other in self._trials.get(key, ()):
            if all(abs(one - two) < TOLERANCE for one, two in zip(place, other, strict=True)):
                return trial
        return None

    def unexplored(self, possible: Callable[[Params], bool], seed: int) -> Params | None:
        """A configuration that no trial has run, at random among those for which `possible` holds; None: there is none.

        Raises:
            ValueError: the space is not `finite`.
        """
        if not self.finite:
            raise ValueError("an endless space is never used up")
        every = list(_every(self._spec, self._config))
        random.Random(seed).shuffle(every)
        for params in every:
            key, _ = self._point(params)
            if key in self._trials or key in self._impossible:
                continue
            if possible(params):
                return params
            self._impossible.add(key)
        return None

    def _point(self, params: Params) -> tuple[Key, list[float]]:
        """What has to be equal, and the positions in [0, 1] that have to be near."""
        exact: list[tuple[str, Any]] = []
        positions: list[float] = []
        for path in sorted(params):
            parameter, value = self._search[path], params[path]
            if parameter.choices is not None:
                exact.append((path, choice_key(value)))
            elif parameter.whole:
                exact.append((path, int(value)))
            elif parameter.step is not None:
                assert parameter.low is not None
                exact.append((path, round((value - parameter.low) / parameter.step)))
            else:
                exact.append((path, None))
                positions.append(parameter.position(float(value)))
        return tuple(exact), positions


def _values(parameter: Parameter) -> list[Any] | None:
    """Every value there is; None of a continuous range."""
    if parameter.choices is not None:
        return list(parameter.choices)
    assert parameter.low is not None and parameter.high is not None
    if parameter.whole:
        count = int(parameter.high) - int(parameter.low)
        step = int(parameter.step or 1)
        return list(range(int(parameter.low), int(parameter.high) + 1, step)) if count < MAX_COUNTED * step else None
    if parameter.step is None:
        return None
    steps = round((parameter.high - parameter.low) / parameter.step)
    if steps >= MAX_COUNTED:
        return None
    return [parameter.on_grid(parameter.low + parameter.step * index) for index in range(steps + 1)]


def _size(spec: SweepSpec) -> int | None:
    """At most so many configurations, whatever `when` leaves out; None: endless, or too many to count."""
    size = 1
    for parameter in spec.search.values():
        values = _values(parameter)
        if values is None or (size := size * len(values)) > MAX_COUNTED:
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
