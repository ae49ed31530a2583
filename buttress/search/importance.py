"""Importance of the searched parameters, by Optuna's PED-ANOVA (Watanabe, Bansal and Hutter 2023, arXiv:2304.10255)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator

from buttress.search.optuna_study import distribution, encoded
from buttress.spec.parameters import Parameter

#: Trials below which nothing is said.
MIN_TRIALS = 8


def importances(
    params: Sequence[Mapping[str, Any]], values: Sequence[float], search: Mapping[str, Any], *, good: float
) -> dict[str, float]:
    """How much each parameter decides whether a trial is among the best.

    PED-ANOVA compares where the best trials lie with where all of them lie; parameters that only some trials have are
    compared among those.

    Args:
        params: Searched values of each trial, by path.
        values: What is judged, lower is better; one a trial, finite.
        search: The parameters as a spec writes them: `{"loss.beta": {"loguniform": [0.01, 1]}}`.
        good: The share of trials that count as the best, 0 to 1; ties with the last of them count, too.

    Returns:
        Path -> share of the importance, summing to 1, largest first; empty for fewer than 8 trials, or where the values
        do not tell trials apart.
    """
    if len(values) < MIN_TRIALS or len(set(values)) < 2:
        return {}
    parameters = {path: Parameter.model_validate(dict(parameter)) for path, parameter in search.items()}
    space = {path: distribution(parameter) for path, parameter in parameters.items()}
    study = optuna.create_study()
    for given, value in zip(params, values, strict=True):
        drawn = {path: encoded(parameters[path], at) for path, at in given.items() if path in space}
        known = {path: space[path] for path in drawn if holds(space[path], drawn[path])}
        study.add_trial(
            optuna.trial.create_trial(params={path: drawn[path] for path in known}, distributions=known, value=value)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = PedAnovaImportanceEvaluator(target_quantile=good).evaluate(study)
    total = sum(found.values())
    if total <= 0:
        return {}
    return {path: share / total for path, share in sorted(found.items(), key=lambda item: -item[1])}


def holds(space: BaseDistribution, value: Any) -> bool:
    """Whether a distribution has an (encoded) value: the ranges of a sweep may have been changed on the way."""
    if isinstance(space, CategoricalDistribution):
        return value in space.choices
    assert isinstance(space, FloatDistribution | IntDistribution)
    return isinstance(value, int | float) and space.low <= value <= space.high
