"""Stops Tune trials that collapse. Public: people with a plain Tune run use it without the rest of Buttress."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ray.tune import Stopper

from buttress.rules import RuleEngine, RuleSet


class CollapseStopper(Stopper):
    """A `tune.Stopper` that runs a rule set over each trial's results.

    >>> tune.RunConfig(stop=CollapseStopper("rules.yaml"))                                  # doctest: +SKIP

    Results need `epoch` and `step` (`training_iteration` stands in for either) and whatever the rules watch; with rules
    that wait for full beta also `full_beta_epochs` and `full_beta_steps` (`full_at=N` computes them for a beta that is
    final after N epochs). The verdict is written into the result as `outcome`, `collapse_kind`, `collapse_margin` and
    `collapse_why`, so that it is in Tune's tables and files. In a Buttress sweep the verdict was reached when the
    report arrived and stands in the result already.
    """

    def __init__(
        self,
        rules: RuleSet | Mapping[str, Any] | str | os.PathLike[str] | None = None,
        *,
        budget_epochs: int | None = None,
        full_at: int | None = None,
    ) -> None:
        if rules is None or isinstance(rules, RuleSet):
            self._rules = rules
        elif isinstance(rules, Mapping):
            self._rules = RuleSet.from_dict(dict(rules))
        else:
            self._rules = RuleSet.load(rules)
        self._budget, self._full_at = budget_epochs, full_at
        self._engines: dict[str, RuleEngine] = {}
        self._full_step: dict[str, int] = {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if "outcome" in result:
            return result["outcome"] in ("collapsed", "diverged")
        if self._rules is None:
            return False
        engine = self._engines.get(trial_id)
        if engine is None:
            engine = self._engines[trial_id] = RuleEngine(self._rules, budget_epochs=self._budget)
        count = int(result.get("training_iteration", 0))
        epoch, step = int(result.get("epoch", count)), int(result.get("step", count))
        numbers = (int, float)
        age = self._age(trial_id, result, epoch, step)
        verdict = engine.update(
            {key: value for key, value in result.items() if isinstance(value, numbers) and not isinstance(value, bool)},
            epoch=epoch,
            step=step,
            full_beta_epochs=age[0],
            full_beta_steps=age[1],
            phase=int(result.get("phase", 0)),
        )
        if verdict.state not in ("collapsed", "diverged"):
            return False
        result["outcome"], result["collapse_kind"] = verdict.state, verdict.kind
        result["collapse_margin"] = verdict.margin
        result["collapse_why"] = "; ".join(evidence.sentence() for evidence in verdict.evidence)
        return True

    def stop_all(self) -> bool:
        return False

    def _age(self, trial_id: str, result: Mapping[str, Any], epoch: int, step: int) -> tuple[int, int]:
        """Epochs and steps at full beta."""
        if self._full_at is None or "full_beta_epochs" in result:
            age = int(result.get("full_beta_epochs", epoch))
            return age, int(result.get("full_beta_steps", step if age else 0))
        if epoch < self._full_at:
            return 0, 0
        since = self._full_step.setdefault(trial_id, step)
        return epoch - self._full_at, step - since


class SweepStopper(CollapseStopper):
    """The stopper of a sweep: verdicts stand in the results, and all trials stop when `failed()` says so."""

    def __init__(self, failed: Callable[[], bool]) -> None:
        super().__init__()
        self._failed = failed

    def stop_all(self) -> bool:
        return self._failed()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its stopper at the start, for a restore that no sweep uses."""
        return {}
