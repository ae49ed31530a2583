"""The parts of Optuna beyond its documented interface that Buttress uses, and `suggest`, which stays within it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial, TrialState, create_trial


def suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    """A value for the parameter `name` from a distribution, by the public `suggest_...` method of its kind.

    Raises:
        TypeError: a distribution of another class than the float, int and categorical one.
    """
    match distribution:
        case FloatDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_float(name, low, high, log=log, step=step)
        case IntDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_int(name, low, high, log=log, step=step)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
    raise TypeError(f"no suggest method for a {type(distribution).__name__}")


def running_trial(study: optuna.Study, number: int) -> Trial:
    """The running trial `number` of a study as a `Trial`, which reports and constraints can be given to.

    `study.ask` returns one only for trials that it drew in this process; for those put in by `add_running_trial` the
    public interface has none.
    """
    return Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def sampler_notes(study: optuna.Study, number: int) -> dict[str, Any]:
    """What the sampler noted about trial `number` when it drew it: its system attributes, JSON-able.

    With `constant_liar`, TPE keeps there that a running trial is counted.
    """
    return dict(study.get_trials(deepcopy=False)[number].system_attrs)


def add_running_trial(
    study: optuna.Study,
    params: Mapping[str, Any],
    distributions: Mapping[str, BaseDistribution],
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Puts a trial into a study as if the study had drawn it just now, with what its sampler had noted then."""
    study.add_trial(
        create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions=dict(distributions),
            system_attrs=dict(notes or {}),
        )
    )
