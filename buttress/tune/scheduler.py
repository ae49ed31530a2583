"""A Tune scheduler that compares trials at equal full-beta age, for plain Tune runs."""

from __future__ import annotations

import math
from typing import Any, Literal

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from buttress.search.halving import Rungs
from buttress.tune.results import flat_numbers, full_beta_epochs


class FullBetaHalving(FIFOScheduler):
    """Asynchronous successive halving on full-beta age, forgetting trials that collapse.

    A result enters a rung when its `full_beta_epochs` is exactly the rung's age (or is the first after it that has the
    metric); results without the metric are let through. Values that are not finite are the worst. A result whose
    `outcome` is collapsed or diverged takes the trial out of every rung. A result that has a `decision` (`stop` or
    `continue`, as in a Buttress sweep) is taken at its word.

    Args:
        metric: Name of the metric in the results; of a nested one its keys with `/` between them.
        direction: Whether the metric is minimised or maximised.
        first: Full-beta age of the first rung, epochs, at least 1.
        factor: Of every `factor` trials at a rung one goes on; each rung's age is `factor` times the one before. > 1.
        full_at: Number of epochs after which beta is final (0 where none is annealed); `full_beta_epochs` is then
            computed from `epoch` (or `training_iteration`) where the results have none.

    Raises:
        BadInput: From the first result with the metric, where it has no `full_beta_epochs` and `full_at` is not given.

    Example:
        >>> tune.TuneConfig(scheduler=FullBetaHalving("val/ari", "max", full_at=0))             # doctest: +SKIP
    """

    def __init__(
        self,
        metric: str,
        direction: Literal["min", "max"],
        first: int = 4,
        factor: float = 3.0,
        full_at: int | None = None,
    ) -> None:
        super().__init__()
        self.rungs = Rungs(first, factor, direction)
        self._metric_name, self._direction, self._full_at = metric, direction, full_at
        self._best: dict[str, float] = {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "decision" in result:
            return TrialScheduler.STOP if result["decision"] == "stop" else TrialScheduler.CONTINUE
        numbers = flat_numbers(result)
        value = numbers.get(self._metric_name)
        if value is None:
            return TrialScheduler.CONTINUE
        age = full_beta_epochs(numbers, self._full_at, "FullBetaHalving")
        if age < 1:
            return TrialScheduler.CONTINUE
        best = self._best.get(trial.trial_id)
        better = max if self._direction == "max" else min
        if math.isfinite(value):
            best = self._best[trial.trial_id] = value if best is None else better(best, value)
        decision = self.rungs.report(trial.trial_id, age, best, int(numbers.get("phase", 0)))
        return TrialScheduler.STOP if decision and decision.stop else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if result.get("outcome") in ("collapsed", "diverged"):
            self.rungs.forget(trial.trial_id)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """A trial removed by hand leaves the rungs; nothing else is kept of it."""
        self.rungs.forget(trial.trial_id)
