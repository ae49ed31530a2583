"""A Tune stopper for trials that collapse, for plain Tune runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ray.tune import Stopper

from buttress.rules import RuleEngine, RuleSet


class CollapseStopper(Stopper):
    """A `tune.Stopper` that runs a rule set over each trial's results.

    Results need `epoch` and `step` (`training_iteration` stands in for either) and whatever the rules watch; with rules
    that wait for full beta also `full_beta_epochs` and `full_beta_steps`. The verdict is written into the result as
    `outcome`, `collapse_kind`, `collapse_margin` and `collapse_why`, so that it is in Tune's tables and files. A result
    that has an `outcome` already is taken at its word.

    Args:
        rules: A rule set, its content as a mapping, or the path of a rules file; None stops nothing by itself.
        budget_epochs: Epochs of a trial, for rules whose grace is a share of them.
        full_at: Number of epochs after which beta is final; `full_beta_epochs` and `full_beta_steps` are then computed
            where the results have none.

    Example:
        >>> tune.RunConfig(stop=CollapseStopper("rules.yaml"))                                  # doctest: +SKIP
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
