"""A Tune stopper for trials that collapse, for plain Tune runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.tune import Stopper

from buttress.rules import RuleEngine, RuleSet
from buttress.tune.results import epochs_and_steps, flat_numbers, full_beta_epochs
from buttress.wording import listing

#: Results of a trial after which a kill rule that has seen none of its metrics is named.
RESULTS_BEFORE_WARNING = 10


@dataclass
class _Trial:
    engine: RuleEngine
    results: int = 0  # the newest `training_iteration`
    epoch: int = 0
    full_step: int = 0  # steps when beta became final
    reported: set[str] = field(default_factory=set)


class CollapseStopper(Stopper):
    """A `tune.Stopper` that runs a rule set over each trial's results.

    Results need `epoch` and `step` (`training_iteration` stands in for either) and whatever the rules watch; with rules
    that wait for full beta also `full_beta_epochs` (and `full_beta_steps`), unless `full_at` is given. Numbers may be
    Python's, NumPy's or tensors of one element, and nested: `{"latent": {"kl_total": x}}` is `latent/kl_total`. The
    verdict is written into the result as `outcome`, `collapse_kind`, `collapse_margin` and `collapse_why`, so that it
    is in Tune's tables and files. A result that has an `outcome` already is taken at its word. A kill rule none of
    whose metrics has come by a trial's tenth result, or its end, is named in a warning.

    Args:
        rules: A rule set, its content as a mapping, or the path of a rules file; None stops nothing by itself.
        budget_epochs: Epochs of a trial, for rules whose grace is a share of them.
        full_at: Number of epochs after which beta is final (0 where none is annealed); `full_beta_epochs` and
            `full_beta_steps` are then computed where the results have none.

    Raises:
        BadInput: From the first result, where a rule waits for full beta, the result has no `full_beta_epochs` and
            `full_at` is not given.

    Example:
        >>> tune.RunConfig(stop=CollapseStopper("rules.yaml", full_at=0))                       # doctest: +SKIP
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
        active = {} if self._rules is None else self._rules.rules
        self._waiting = [
            name for name, rule in active.items() if rule.action != "off" and not rule.grace.before_full_beta
        ]
        self._budget, self._full_at = budget_epochs, full_at
        self._trials: dict[str, _Trial] = {}
        self._warned = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if "outcome" in result:
            return result["outcome"] in ("collapsed", "diverged")
        if self._rules is None:
            return False
        trial = self._trials.get(trial_id)
        if trial is None:
            trial = self._trials[trial_id] = _Trial(RuleEngine(self._rules, budget_epochs=self._budget))
        numbers = flat_numbers(result)
        count = int(numbers.get("training_iteration", trial.results + 1))
        new = count > trial.results  # Tune hands the last result of a function over twice, and may restart a trial
        if new:
            trial.results = count
            trial.reported.update(numbers)
            self._update(trial, numbers)
        self._warn(trial, at_end=bool(result.get("done")))
        verdict = trial.engine.verdict
        if not new or not verdict.final:
            return False
        result["outcome"], result["collapse_kind"] = verdict.state, verdict.kind
        result["collapse_margin"] = verdict.margin
        result["collapse_why"] = "; ".join(evidence.sentence() for evidence in verdict.evidence)
        return True

    def stop_all(self) -> bool:
        return False

    def _update(self, trial: _Trial, numbers: Mapping[str, int | float]) -> None:
        """Has the rules judge a result."""
        epoch, step = epochs_and_steps(numbers)
        age = full_beta_epochs(numbers, self._full_at, f"the rule {self._waiting[0]}") if self._waiting else 0
        if age == 0 and epoch > trial.epoch:
            trial.full_step = step
        trial.epoch = epoch
        full = age > 0 or (self._full_at is not None and epoch >= self._full_at)
        trial.engine.update(
            numbers,
            epoch=epoch,
            step=step,
            full_beta_epochs=age,
            full_beta_steps=int(numbers.get("full_beta_steps", step - trial.full_step if full else 0)),
            phase=int(numbers.get("phase", 0)),
        )

    def _warn(self, trial: _Trial, at_end: bool) -> None:
        """Says once which kill rules cannot judge what the trials report."""
        if self._warned or self._rules is None or (trial.results < RESULTS_BEFORE_WARNING and not at_end):
            return
        from buttress.rules.coverage import unwatched_rules

        self._warned = True
        for name, missing in unwatched_rules(self._rules, trial.reported).items():
            if self._rules.rules[name].action == "kill":
                warnings.warn(f"the rule {name} stops no trial: no result has {listing(missing)}", stacklevel=2)
