"""A Tune scheduler that compares trials at equal full-beta age, for plain Tune runs."""

from __future__ import annotations

from typing import Any, Literal

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from buttress.search.halving import Rungs


class FullBetaHalving(FIFOScheduler):
    """Asynchronous successive halving on full-beta age, forgetting trials that collapse.

    A result enters a rung when its `full_beta_epochs` is exactly the rung's age; results without the metric or the age
    are let through. A result whose `outcome` is collapsed or diverged takes the trial out of every rung. A result that
    has a `decision` (`stop` or `continue`, as in a Buttress sweep) is taken at its word.

    Args:
        metric: Name of the metric in the results.
        direction: Whether the metric is minimised or maximised.
        first: Full-beta age of the first rung, epochs, at least 1.
        factor: Of every `factor` trials at a rung one goes on; each rung's age is `factor` times the one before. > 1.

    Example:
        >>> tune.TuneConfig(scheduler=FullBetaHalving("val/ari", "max", first=4, factor=3))   # doctest: +SKIP
    """

    def __init__(
        self, metric: str, direction: Literal["min", "max"], first: int = 4, factor: float = 3.0
    ) -> None:
        super().__init__()
        self.rungs = Rungs(first, factor, direction)
        self._metric_name, self._direction = metric, direction
        self._best: dict[str, float] = {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "decision" in result:
            return TrialScheduler.STOP if result["decision"] == "stop" else TrialScheduler.CONTINUE
        age, value = result.get("full_beta_epochs"), result.get(self._metric_name)
        if age is None or value is None or age < 1:
            return TrialScheduler.CONTINUE
        best = self._best.get(trial.trial_id)
        better = max if self._direction == "max" else min
        if value == value:  # not NaN
            best = self._best[trial.trial_id] = value if best is None else better(best, value)
        decision = self.rungs.report(trial.trial_id, int(age), best, int(result.get("phase", 0)))
        return TrialScheduler.STOP if decision and decision.stop else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if result.get("outcome") in ("collapsed", "diverged"):
            self.rungs.forget(trial.trial_id)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """A trial removed by hand leaves the rungs; nothing else is kept of it."""
        self.rungs.forget(trial.trial_id)
