"""Stock tuners as policies of the simulator's clock (simulator.py): what they draw, stop and call their best.

`StockTune` is Ray Tune's own `OptunaSearch` and `AsyncHyperBandScheduler` at their defaults, called in the order in
which Tune's controller calls them; no Ray is started. `OptunaPruned` is a plain Optuna study with a pruner, at its
defaults. `RandomSearch` stops nobody. All of them are given the same space, and the metric that they optimise as a
function of a report.
"""

from __future__ import annotations

import logging
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import optuna

from benchmarks.simulator import Drawn
from buttress.compat.optuna import suggest
from buttress.search.optuna_study import decoded, distribution
from buttress.spec import trial_config
from buttress.spec.parameters import Parameter
from buttress.spec.spec import SweepSpec
from buttress.training.trainable import Reported

Value = Callable[[Mapping[str, float | None]], float | None]


class Stock(ABC):
    """What the three share: the space, the metric, and the trial that they would call their best."""

    def __init__(self, spec: SweepSpec, Config: type[Any], value: Value, direction: str, epochs: int) -> None:
        self.spec, self.Config, self.value, self.direction, self.epochs = spec, Config, value, direction, epochs
        self.last: dict[str, float] = {}  # trial -> newest value
        self._count = 0

    @property
    def best(self) -> str | None:
        """The trial with the best last value, also a stopped one: what `ResultGrid.get_best_result` returns."""
        finite = {trial: value for trial, value in self.last.items() if math.isfinite(value)}
        if not finite:
            return None
        return (max if self.direction == "max" else min)(finite, key=lambda trial: finite[trial])

    def draw(self) -> Drawn | None:
        while True:
            trial = f"{self._count:04d}"
            self._count += 1
            params = self.suggest(trial)
            if trial_config.violated_requirement(self.spec, trial_config.build(self.spec, params, self.Config)) is None:
                return Drawn(trial, params)
            self.refuse(trial)

    def begun(self, trial: str, slot: str) -> None: ...  # noqa: B027 - optional

    def reported(self, trial: str, reported: Reported) -> bool:
        value = self.value(reported.metrics)
        if value is None:
            return False
        self.last[trial] = value
        return self.take(trial, reported.epoch, value)

    def finished(self, trial: str) -> None:
        self.end(trial)

    # --- what a tuner is

    @abstractmethod
    def suggest(self, trial: str) -> dict[str, Any]:
        """The parameters of the next trial, which is to be called `trial`."""

    def refuse(self, trial: str) -> None: ...  # noqa: B027 - optional

    def take(self, trial: str, epoch: int, value: float) -> bool:
        """An epoch's value; True: the trial is to stop."""
        return False

    def end(self, trial: str) -> None: ...  # noqa: B027 - optional

    def parameters(self, suggest: Callable[[str, Parameter], Any]) -> dict[str, Any]:
        params: dict[str, Any] = {}
        for path, parameter in trial_config.active_parameters(self.spec, params, self.Config):
            params[path] = suggest(path, parameter)
        return params


class _TuneTrial:
    """What the scheduler reads of a Tune trial."""

    def __init__(self, trial: str) -> None:
        self.trial_id = trial


class StockTune(Stock):
    """`OptunaSearch(seed=...)` and `ASHAScheduler(max_t=epochs)`: grace 1, factor 4, one bracket."""

    def __init__(self, *given: Any, seed: int) -> None:
        super().__init__(*given)
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.optuna import OptunaSearch

        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        common = {"metric": "value", "mode": self.direction}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.search = OptunaSearch(space=self._define, seed=seed, **common)
        self.asha = ASHAScheduler(time_attr="training_iteration", max_t=self.epochs, **common)
        self._results: dict[str, dict[str, Any]] = {}

    def _define(self, trial: Any) -> dict[str, Any]:
        self._params = self.parameters(lambda path, parameter: _suggest(trial, path, parameter))
        return {}

    def suggest(self, trial: str) -> dict[str, Any]:
        with warnings.catch_warnings():  # a busy machine is slow to define a space
            warnings.simplefilter("ignore")
            self.search.suggest(trial)
        self.asha.on_trial_add(None, _TuneTrial(trial))
        return self._params

    def refuse(self, trial: str) -> None:
        self.search.on_trial_complete(trial, None, error=True)

    def take(self, trial: str, epoch: int, value: float) -> bool:
        result = self._results[trial] = {"training_iteration": epoch, "value": value}
        if self.asha.on_trial_result(None, _TuneTrial(trial), result) == "STOP":
            self.end(trial)
            return True
        self.search.on_trial_result(trial, result)
        return False

    def end(self, trial: str) -> None:
        result = self._results.get(trial, {})
        self.asha.on_trial_complete(None, _TuneTrial(trial), result)
        self.search.on_trial_complete(trial, result)


def _suggest(trial: Any, path: str, parameter: Parameter) -> Any:
    return decoded(parameter, suggest(trial, path, distribution(parameter)))


class OptunaPruned(Stock):
    """`create_study(sampler=TPESampler(seed), pruner=...)`, asked and told by hand as Optuna's documentation shows."""

    def __init__(self, *given: Any, seed: int, pruner: str) -> None:
        super().__init__(*given)
        made: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
            "median": optuna.pruners.MedianPruner,
            "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=self.epochs),
        }
        sampler = optuna.samplers.TPESampler(seed=seed)
        direction = "maximize" if self.direction == "max" else "minimize"
        name = f"seed {seed}"  # Hyperband puts trials into brackets by a hash of it
        self.study = optuna.create_study(study_name=name, direction=direction, sampler=sampler, pruner=made[pruner]())
        self._trials: dict[str, optuna.Trial] = {}

    def suggest(self, trial: str) -> dict[str, Any]:
        asked = self._trials[trial] = self.study.ask()
        return self.parameters(lambda path, parameter: _suggest(asked, path, parameter))

    def refuse(self, trial: str) -> None:
        self.study.tell(self._trials[trial], state=optuna.trial.TrialState.FAIL)

    def take(self, trial: str, epoch: int, value: float) -> bool:
        self._trials[trial].report(value, epoch)
        if not self._trials[trial].should_prune():
            return False
        self.study.tell(self._trials[trial], state=optuna.trial.TrialState.PRUNED)
        return True

    def end(self, trial: str) -> None:
        value = self.last.get(trial, math.nan)
        state = optuna.trial.TrialState.COMPLETE if math.isfinite(value) else optuna.trial.TrialState.FAIL
        self.study.tell(self._trials[trial], value if math.isfinite(value) else None, state=state)

    @property
    def best(self) -> str | None:
        """`study.best_trial`: the best of those that were not pruned."""
        complete = optuna.trial.TrialState.COMPLETE
        if not self.study.get_trials(deepcopy=False, states=(complete,)):
            return None
        number = self.study.best_trial.number
        return next(name for name, trial in self._trials.items() if trial.number == number)


class RandomSearch(Stock):
    """Plain random draws, every trial to its end."""

    def __init__(self, *given: Any, seed: int) -> None:
        super().__init__(*given)
        import random

        self._rng = random.Random(seed)

    def suggest(self, trial: str) -> dict[str, Any]:
        return trial_config.sample(self.spec, self._rng, self.Config)
