"""What the sampler is asked and told: an Optuna study that knows what collapse is.

In comes a search space and, one after another, the outcomes of trials; out go parameters. Every ask builds a fresh
TPE sampler seeded with (sweep seed, ask index), so the next parameters are a function of the study's content alone: a
study rebuilt from any prefix of the journal asks for the same parameters as the one that was never interrupted. The
study lives in memory (a database would cost seconds per hundred trials); the journal is what lasts.

Told to Optuna, per outcome (graded, because a toy with 3 % healthy space then ends with 33 % collapsed trials instead
of 58-99 %):

    completed            COMPLETE, the best valid value(s), constraint `collapse` = the negative margin
    collapsed, diverged  constraint `collapse` = the margin (> 0), PRUNED
    pruned               PRUNED, with one objective its values by full-beta age, `collapse` = the negative margin
    failed               constraint `failed` = 1, PRUNED;   lost three times to the infrastructure: FAIL

As long as no trial lives every second draw is random: on recorded curves with 96 % of the space dead the margins alone
led 17 of 20 sweeps to no healthy trial at all (docs/sampler.md).
"""

from __future__ import annotations

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
from buttress.spec.parameters import Parameter
from buttress.spec.spec import SweepSpec

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

#: Draws that violate `require`, in a row, before the sweep gives up.
MOST_REFUSALS = 1000
#: Trials before TPE begins; the first draws are random.
STARTUP = 10


@dataclass(frozen=True)
class Told:
    """What Optuna is told of one ended trial."""

    state: TrialState
    values: tuple[float, ...] | None = None
    constraints: Mapping[str, float] = field(default_factory=dict)
    intermediate: Mapping[int, float] = field(default_factory=dict)
    note: str | None = None  # user attribute `outcome`: the outcome's kind


def told(outcome: Mapping[str, Any], objectives: Sequence[str], by_age: Mapping[int, float] | None = None) -> Told:
    """What the study is told for a journal's outcome line (the table in this module's docstring).

    `objectives` are metric names; `by_age` maps full-beta ages to the first objective's best valid value so far.
    """
    kind = outcome["outcome"]
    margin = outcome.get("margin")
    note = f"{kind}:{outcome['kind']}" if outcome.get("kind") else kind
    if kind == "completed":
        values = tuple(float(outcome["best"]["metrics"][name]) for name in objectives)
        return Told(TrialState.COMPLETE, values, {"collapse": _negative(margin)}, note=note)
    if kind in ("collapsed", "diverged"):
        return Told(TrialState.PRUNED, constraints={"collapse": max(float(margin or 0.0), 1e-6)}, note=note)
    if kind == "pruned":
        ages = dict(by_age or {}) if len(objectives) == 1 else {}
        return Told(TrialState.PRUNED, constraints={"collapse": _negative(margin)}, intermediate=ages, note=note)
    if kind == "failed" and outcome.get("kind") == "infrastructure":
        return Told(TrialState.FAIL, note=note)
    return Told(TrialState.PRUNED, constraints={"failed": 1.0}, note=note)


def _negative(margin: float | None) -> float:
    """A healthy trial's margin as a constraint: feasible whatever the graded metric said."""
    return min(float(margin), -1e-6) if margin is not None else -1e-6


class WholeSpace(optuna.samplers.TPESampler):
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
    >>> study.tell(ask, told(outcome_line, ["val/ari"]))       # doctest: +SKIP
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
            params[path] = suggest(trial, path, self._space[path])
        return ask, params

    def give(self, params: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """As `ask`, with parameters that somebody else chose."""
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
        distributions = {path: distribution(self.spec.search[path]) for path in params}
        add_running_trial(self.study, params, distributions, notes)

    def refuse(self, ask: int, reason: str) -> None:
        """A draw that violates `require`: told FAIL, which the sampler does not learn from."""
        running_trial(self.study, ask).set_user_attr("outcome", f"refused: {reason}")
        self.study.tell(ask, state=TrialState.FAIL)

    def tell(self, ask: int, told: Told) -> None:
        """The end of a trial. Constraints are set once, before the state, as Optuna wants it."""
        trial = running_trial(self.study, ask)
        for name, value in told.constraints.items():
            trial.set_constraint(name, float(value))
        if told.note:
            trial.set_user_attr("outcome", told.note)
        for age, value in sorted(told.intermediate.items()):
            if np.isfinite(value):
                trial.report(float(value), int(age))
        self.study.tell(ask, values=list(told.values) if told.values is not None else None, state=told.state)

    def tell_more(self, params: Mapping[str, Any], told: Told) -> int:
        """A second word on parameters whose trial was told already, as an entry of its own; its index, like a draw's.

        Optuna does not take back what it was told: of a trial that comes back from probation and does not collapse both
        stands there.
        """
        ask = self.asked
        self.add(ask, params)
        self.tell(ask, told)
        return ask

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    @property
    def stranded(self) -> bool:
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
        if ask >= STARTUP and ask % 2 == 0 and self.stranded:  # real margins may point away from what lives
            return self._at_random(ask)
        options: dict[str, Any] = {"seed": self._seed(ask), "n_startup_trials": STARTUP}
        options["warn_independent_sampling"] = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self._conditional:
                return optuna.samplers.TPESampler(multivariate=True, group=True, **options)
            return WholeSpace(self._space, **options)


def distribution(parameter: Parameter) -> BaseDistribution:
    """The Optuna distribution of one search parameter."""
    if parameter.kind == "choice":
        return CategoricalDistribution(parameter.choices or ())
    assert parameter.low is not None and parameter.high is not None  # the spec's door sees to it
    if parameter.kind in ("int", "logint"):
        step = 1 if parameter.kind == "logint" else int(parameter.step or 1)
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.kind == "logint", step=step)
    return FloatDistribution(
        float(parameter.low), float(parameter.high), log=parameter.kind == "loguniform", step=parameter.step
    )
