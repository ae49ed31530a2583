"""The Optuna study of a sweep, which knows what collapse is.

Every ask builds a fresh TPE sampler seeded with (sweep seed, ask index), so the next parameters are a function of the
study's content alone: a study rebuilt from any prefix of the journal asks for the same parameters as the one that was
never interrupted. The study lives in memory (a database would cost seconds per hundred trials); the journal is what
lasts. What Optuna is told, per outcome (graded, because a toy with 3 % healthy space then ends with 33 % collapsed
trials instead of 58-99 %):

    completed            COMPLETE, the best valid value(s), constraint `collapse` = the negative margin
    collapsed, diverged  constraint `collapse` = the margin (> 0), PRUNED
    pruned               PRUNED, with one objective its values by full-beta age, `collapse` = the negative margin
    failed               constraint `failed` = 1, PRUNED;   lost three times to the infrastructure: FAIL

As long as no trial lives every second draw is random: on recorded curves with 96 % of the space dead the margins alone
led 17 of 20 sweeps to no healthy trial at all (docs/sampler.md).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel

from buttress.compat.optuna import add_running_trial, running_trial, sampler_notes, suggest
from buttress.errors import BadInput
from buttress.spec import trial_config
from buttress.spec.parameters import Parameter, choice_key
from buttress.spec.spec import SweepSpec

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

#: Trials before TPE begins; the first draws are random.
STARTUP_TRIALS = 10
#: The smallest distance of a constraint from 0, on either side.
MIN_CONSTRAINT = 1e-6


@dataclass(frozen=True)
class SamplerResult:
    """What Optuna is told of one ended trial. `note` becomes the user attribute `outcome`."""

    state: TrialState
    values: tuple[float, ...] | None = None
    constraints: Mapping[str, float] = field(default_factory=dict)
    intermediate: Mapping[int, float] = field(default_factory=dict)
    note: str | None = None


def sampler_result(
    outcome: str,
    *,
    kind: str | None = None,
    margin: float | None = None,
    values: Sequence[float] | None = None,
    by_age: Mapping[int, float] | None = None,
) -> SamplerResult:
    """What the study is told of an outcome (the table in this module's docstring).

    Args:
        outcome: `completed`, `collapsed`, `diverged`, `pruned`, `stopped` or `failed`.
        kind: The outcome's kind; `infrastructure` marks a trial that failed through no fault of its own.
        margin: Decades beyond the nearest rule; negative for a healthy trial, None where it is not known.
        values: The objectives' values at the best valid epoch, of a completed trial.
        by_age: Full-beta age (epochs) -> best valid value by then, of a pruned trial with one objective.
    """
    note = f"{outcome}:{kind}" if kind else outcome
    healthy = {"collapse": min(margin, -MIN_CONSTRAINT) if margin is not None else -MIN_CONSTRAINT}
    match outcome:
        case "completed":
            return SamplerResult(TrialState.COMPLETE, tuple(map(float, values or ())), healthy, note=note)
        case "collapsed" | "diverged":
            dead = {"collapse": max(margin or 0.0, MIN_CONSTRAINT)}
            return SamplerResult(TrialState.PRUNED, constraints=dead, note=note)
        case "pruned" | "stopped":
            ages = dict(by_age or {})
            return SamplerResult(TrialState.PRUNED, constraints=healthy, intermediate=ages, note=note)
        case "failed" if kind == "infrastructure":
            return SamplerResult(TrialState.FAIL, note=note)
    return SamplerResult(TrialState.PRUNED, constraints={"failed": 1.0}, note=note)


class FixedSpaceTPESampler(optuna.samplers.TPESampler):
    """Multivariate TPE over a space whose parameters are all in every draw.

    It draws what `group=True` and the plain one draw from such a space, but is told the space once, where they find it
    out anew from all trials at every draw: a quarter of a draw's time after a thousand trials.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], **options: Any) -> None:
        super().__init__(multivariate=True, **options)
        self._whole = {name: space[name] for name in sorted(space) if not space[name].single()}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._whole


class Study:
    """An Optuna study asked by index and told by outcome.

    >>> study = Study(spec, ["max"], Config)                   # doctest: +SKIP
    >>> ask, params = study.ask()                              # doctest: +SKIP
    >>> study.tell(ask, sampler_result("completed", values=[0.7]))   # doctest: +SKIP
    """

    def __init__(self, spec: SweepSpec, directions: Sequence[str], Config: type[BaseModel]) -> None:
        self.spec, self._config = spec, Config
        self._space = {path: distribution(parameter) for path, parameter in spec.search.items()}
        self._conditional = any(parameter.when for parameter in spec.search.values())
        self.study = optuna.create_study(
            directions=["maximize" if direction == "max" else "minimize" for direction in directions],
            sampler=self._sampler(0),
        )

    @property
    def asked(self) -> int:
        """How many parameter sets have been drawn so far, refused ones included."""
        return len(self.study.get_trials(deepcopy=False))

    def ask(self, at_random: bool = False) -> tuple[int, dict[str, Any]]:
        """The next ask index and the parameters drawn for it (path -> value), inactive parameters left out."""
        ask = self.asked
        self.study.sampler = self._at_random(ask) if at_random else self._sampler(ask)
        trial = self.study.ask()
        params: dict[str, Any] = {}
        for path, _ in trial_config.active_parameters(self.spec, params, self._config):
            params[path] = decoded(self.spec.search[path], suggest(trial, path, self._space[path]))
        return ask, params

    def enqueue(self, params: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """As `ask`, with parameters that were chosen elsewhere."""
        ask = self.asked
        self.add(ask, params)
        return ask, dict(params)

    def notes(self, ask: int) -> dict[str, Any]:
        """What the sampler noted about a running draw (TPE counts it as a liar while it runs); JSON-able."""
        return sampler_notes(self.study, ask)

    def add(self, ask: int, params: Mapping[str, Any], notes: Mapping[str, Any] | None = None) -> None:
        """Puts a draw back that an earlier process made (from the journal), as a running trial."""
        if ask != self.asked:
            raise BadInput(f"the journal's draws are out of order: ask {ask} where {self.asked} was expected")
        drawn = {path: encoded(self.spec.search[path], value) for path, value in params.items()}
        add_running_trial(self.study, drawn, {path: self._space[path] for path in params}, notes)

    def refuse(self, ask: int, reason: str) -> None:
        """A draw that violates `require`: told FAIL, which the sampler does not learn from."""
        running_trial(self.study, ask).set_user_attr("outcome", f"refused: {reason}")
        self.study.tell(ask, state=TrialState.FAIL)

    def tell(self, ask: int, result: SamplerResult) -> None:
        """The end of a trial. Constraints are set once, before the state, as Optuna wants it."""
        trial = running_trial(self.study, ask)
        for name, value in result.constraints.items():
            trial.set_constraint(name, float(value))
        if result.note:
            trial.set_user_attr("outcome", result.note)
        for age, value in sorted(result.intermediate.items()):
            if np.isfinite(value):
                trial.report(float(value), int(age))
        self.study.tell(ask, values=list(result.values) if result.values is not None else None, state=result.state)

    def tell_again(self, params: Mapping[str, Any], result: SamplerResult) -> int:
        """Another result for parameters whose trial was told already, as an entry of its own.

        Optuna does not take back what it was told: of an audited trial that does not collapse both entries stand there.

        Returns:
            The entry's index, like a draw's.
        """
        ask = self.asked
        self.add(ask, params)
        self.tell(ask, result)
        return ask

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    @property
    def nothing_alive(self) -> bool:
        """No trial has lived yet: all that the sampler could learn from is how dead the others are."""
        return not any(
            trial.state == TrialState.COMPLETE
            or trial.intermediate_values
            or trial.constraints.get("collapse", 1.0) <= 0
            for trial in self.trials()
        )

    def _at_random(self, ask: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.RandomSampler(seed=self._seed(ask, 1))

    def _seed(self, *key: int) -> int:
        return int(np.random.SeedSequence([self.spec.seed, *key]).generate_state(1)[0])

    def _sampler(self, ask: int) -> optuna.samplers.BaseSampler:
        if ask >= STARTUP_TRIALS and ask % 2 == 0 and self.nothing_alive:  # real margins may point away from what lives
            return self._at_random(ask)
        options: dict[str, Any] = {"seed": self._seed(ask), "n_startup_trials": STARTUP_TRIALS}
        options["warn_independent_sampling"] = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self._conditional:
                return optuna.samplers.TPESampler(multivariate=True, group=True, **options)
            return FixedSpaceTPESampler(self._space, **options)


def distribution(parameter: Parameter) -> BaseDistribution:
    """The Optuna distribution of one search parameter, over its `encoded` values."""
    if parameter.choices is not None:
        return CategoricalDistribution([choice_key(choice) for choice in parameter.choices])
    assert parameter.low is not None and parameter.high is not None  # the spec sees to it
    if parameter.kind in ("int", "logint"):
        step = 1 if parameter.kind == "logint" else int(parameter.step or 1)
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.kind == "logint", step=step)
    return FloatDistribution(
        float(parameter.low), float(parameter.high), log=parameter.kind == "loguniform", step=parameter.step
    )


def encoded(parameter: Parameter, value: Any) -> Any:
    """A drawn value as the study holds it.

    Choices are texts (`choice_key`), for Optuna takes true, 1 and 1.0 for one choice and no lists and mappings for any;
    the values of a range with a step are those that Optuna computes, to the bit, which are not always on the grid.
    """
    if parameter.choices is not None:
        return choice_key(value)
    if parameter.step is None or parameter.whole:
        return value
    assert parameter.low is not None and parameter.high is not None
    grid = np.round((value - parameter.low) / parameter.step) * parameter.step + parameter.low
    return float(np.clip(grid, parameter.low, parameter.high))


def decoded(parameter: Parameter, value: Any) -> Any:
    """The value that a trial is given for one of the study's; undoes `encoded`."""
    return json.loads(value) if parameter.choices is not None else parameter.on_grid(value)
