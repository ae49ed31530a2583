"""The rules by which a trial dies, as data: what a rules file may say, read, checked, overridden and written back.

In goes a YAML file or a mapping, out comes a `RuleSet`; its `watch()` is the engine for one trial (rules/engine.py),
a pure function of the trial's reports. A rules file:

    aliases: {latent/kl_total: [val_kl, kl]}          # our key -> columns of foreign curves, the first present counts
    rules:
      posterior_collapse:
        action: kill                                  # kill | warn | off
        signs:                                        # observations that may hold
          - {metric: latent/kl_total, below: 0.3}
          - {metric: latent/active_kl, below: 1, hysteresis: 1}
        grace: {epochs: 1, steps: 200}                # both since full beta; `before_full_beta: true`: since the start
        patience: 2                                   # reports in a row
        hysteresis: 1.2                               # once suspect, `below 0.3` clears at 0.36

**Signs.** `transform` is one of

    value                the metric itself (the default)
    best_ratio           value / best so far; the best is the lowest with `above`, the highest with `below`
    window_max_over_min  largest / smallest of the last `window` values
    median_ratio         value / median of the `window` values before it
    slope                least-squares slope of the last `window` values, per report
    absent               holds when the metric is missing from `window` reports in a row (default 1); no threshold
    lost                 as `absent`, of a metric that has been reported before (it abstains until then)
    nonfinite            holds when the metric is reported but not finite; no threshold

and every other one has exactly one of `below` and `above`: a number, `{per_dim: x}` (x times the reported number of
latent dimensions: `<prefix>/dims` beside the metric, else `latent/dims`) or `{relative_to: metric, factor: f}` (f times
that metric's value in the same report). Windows, best values and medians look at every report of the trial that holds a
finite value, also those of the warm-up; `absent` and `lost` count within the rule's phase.

**Abstaining.** A sign abstains when its metric (or the one its threshold needs) is missing from the report or is not
finite: NaN is no evidence for or against a value, it is what `nonfinite` is for. A sign whose window is not full yet
does not hold. With `votes: n`, n signs must hold among those that do not abstain, and the rule abstains when fewer than
n are left. Without `votes`, all signs must hold; signs whose metric this trial has never reported are left out, and
when any other abstains so does the rule. A report on which a rule abstains neither extends nor resets its patience.

**Which reports.** `phase: n` judges in that phase only, `min_step: n` from that step on; `reports: epoch_ends` looks
only at reports by which an epoch was completed (and at the closing one), where the values come from validation. A rule
that may not speak (grace, phase, `min_step`) starts from nothing when it may.

**Margin.** `grade: {metric, transform, window, below | above}` is what the margin is computed from; by default the
first sign that can be graded: not a slope, a positive threshold, and no count of units (a last key part `active...`:
counts vote, but they saturate). A rule of kind `diverged` needs none. `message` is a sentence for people with
`{metric}` or `{metric:.3f}` in it, and `{epoch}`, `{step}`; where one of them is unknown the evidence speaks instead.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from buttress.errors import BadInput, from_pydantic
from buttress.rules.engine import TrialWatch
from buttress.rules.verdict import PLACEHOLDER, Evidence, Verdict, Warned
from buttress.spec.yaml_io import read_yaml

__all__ = ["Evidence", "Observation", "Rule", "RuleSet", "Sign", "TrialWatch", "Verdict", "Warned"]

DIVERGED = "diverged"
WINDOWLESS = ("value", "best_ratio", "nonfinite")
COUNTED = ("absent", "lost")
YES_OR_NO = (*COUNTED, "nonfinite")
_THRESHOLDS = "a number, {per_dim: number} or {relative_to: metric, factor: number}"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _number(given: Any) -> Any:
    """True and false are not numbers."""
    if isinstance(given, bool):
        raise BadInput("has to be a number", value=given)
    return given


Number = Annotated[float, BeforeValidator(_number)]
Count = Annotated[int, Field(strict=True, ge=0)]
Many = Annotated[int, Field(strict=True, ge=1)]
Name = Annotated[str, Field(min_length=1)]


class PerDim(_Section):
    """A threshold per latent dimension."""

    per_dim: Number


class Relative(_Section):
    """A threshold relative to another metric of the same report."""

    relative_to: Name
    factor: Annotated[Number, Field(gt=0)] = 1.0


def _threshold(given: Any) -> Any:
    if isinstance(given, Mapping):
        model: type[PerDim | Relative] = PerDim if "per_dim" in given else Relative
        if not {"per_dim", "relative_to"} & set(given):
            raise BadInput("is no threshold", value=dict(given), accepted=_THRESHOLDS)
        try:
            return model.model_validate(given)
        except ValidationError as error:
            raise from_pydantic(error, model) from None
    if isinstance(given, PerDim | Relative):
        return given
    try:
        return float(_number(given))
    except (TypeError, ValueError):
        raise BadInput("is no threshold", value=given, accepted=_THRESHOLDS) from None


Threshold = Annotated[float | PerDim | Relative, BeforeValidator(_threshold)]


class Observation(_Section):
    """One metric, transformed, held against one threshold."""

    metric: Name
    transform: Literal[
        "value", "best_ratio", "window_max_over_min", "median_ratio", "slope", "absent", "lost", "nonfinite"
    ] = "value"
    window: Many | None = None
    below: Threshold | None = None
    above: Threshold | None = None

    @model_validator(mode="after")
    def _complete(self) -> Observation:
        if self.transform in WINDOWLESS and self.window is not None:
            raise BadInput(f"the transform `{self.transform}` takes no window", key="window", value=self.window)
        if self.transform not in (*WINDOWLESS, *COUNTED) and (self.window is None or self.window < 2):
            value = ... if self.window is None else self.window
            problem = f"the transform `{self.transform}` needs a window of reports"
            raise BadInput(problem, key="window", value=value, accepted="2 or more")
        given = [name for name in ("below", "above") if getattr(self, name) is not None]
        if self.transform in YES_OR_NO and given:
            raise BadInput(f"the transform `{self.transform}` takes no threshold", key=given[0], value=self.threshold)
        if self.transform not in YES_OR_NO and len(given) != 1:
            problem = "both below and above are given" if given else "the threshold is missing"
            raise BadInput(problem, accepted="exactly one of below and above")
        return self

    @property
    def comparison(self) -> Literal["below", "above"] | None:
        return "below" if self.below is not None else "above" if self.above is not None else None

    @property
    def threshold(self) -> float | PerDim | Relative | None:
        return self.below if self.below is not None else self.above

    @property
    def ungraded(self) -> str | None:
        """Why no margin can be computed from this observation; None if one can."""
        if self.transform in (*YES_OR_NO, "slope"):
            return f"the transform `{self.transform}` has no decades"
        if self.metric.rpartition("/")[2].startswith("active"):
            return "counts of units vote but never set the margin"
        threshold = self.threshold.per_dim if isinstance(self.threshold, PerDim) else self.threshold
        if isinstance(threshold, float) and threshold <= 0:
            return "the margin is a logarithm, so its threshold has to be greater than 0"
        return None


class Sign(Observation):
    """An observation that votes. `hysteresis` defaults to the rule's."""

    hysteresis: Annotated[Number, Field(ge=1)] | None = None


class Grade(Observation):
    """The observation that the margin is computed from."""

    @model_validator(mode="after")
    def _graded(self) -> Grade:
        if self.ungraded:
            value = self.threshold if isinstance(self.threshold, float) else self.metric
            raise BadInput(self.ungraded, value=value)
        return self


class Grace(_Section):
    """When a rule may first speak: after `epochs` and `steps`, both, at full beta (or from the start of the trial)."""

    epochs: Count = 0
    steps: Count = 0
    before_full_beta: bool = False


class Rule(_Section):
    """One way to die, or to be warned of. The module's paragraphs say what each key means."""

    action: Literal["kill", "warn", "off"]
    kind: Name | None = None
    signs: tuple[Sign, ...]
    votes: Many | None = None
    grade: Grade | None = None
    grace: Grace = Grace()
    patience: Many = 1
    hysteresis: Annotated[Number, Field(ge=1)] = 1.0
    phase: Count | None = None
    min_step: Count = 0
    reports: Literal["all", "epoch_ends"] = "all"
    message: Name | None = None

    @field_validator("message")
    @classmethod
    def _formats(cls, given: str | None) -> str | None:
        for match in PLACEHOLDER.finditer(given or ""):
            try:
                format(1.0, match[2] or "")
            except ValueError as error:
                raise BadInput(f"{error}", value=match[0], accepted="a format such as {latent/kl_total:.3f}") from None
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Rule:
        if not self.signs:
            raise BadInput("a rule without signs", key="signs", accepted="a list of {metric: ..., below or above: ...}")
        if self.votes is not None and self.votes > len(self.signs):
            raise BadInput("more votes than signs", key="votes", value=self.votes, accepted=f"1 to {len(self.signs)}")
        if self.action == "kill" and self.kind != DIVERGED and self.graded is None:
            reasons = "; ".join(dict.fromkeys(sign.ungraded or "" for sign in self.signs))
            raise BadInput(
                f"a rule that kills needs a graded metric ({reasons})",
                key="grade",
                accepted="grade: {metric: ..., below: ...} (or above)",
            )
        return self

    @property
    def graded(self) -> Observation | None:
        """What the margin is computed from; None where nothing can be graded."""
        return self.grade or next((sign for sign in self.signs if sign.ungraded is None), None)


class RuleSet(_Section):
    """The rules of a sweep.

    >>> rule = {"action": "kill", "signs": [{"metric": "kl", "below": 0.3}]}
    >>> rules = RuleSet.from_dict({"rules": {"collapse": rule}})
    >>> watch = rules.watch(budget_epochs=10)
    >>> watch.update({"kl": 0.003}, epoch=2, step=200, full_beta_epochs=1, full_beta_steps=100).state
    'collapsed'
    >>> round(watch.margin(), 6)
    2.0
    """

    aliases: dict[str, tuple[Name, ...]] = {}
    rules: dict[str, Rule]

    @field_validator("aliases", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {key: (columns,) if isinstance(columns, str) else columns for key, columns in given.items()}

    @field_validator("rules", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """A rule is of the kind of its name, unless it says another."""
        if not isinstance(given, Mapping):
            return given
        for name in given:
            if name in ("aliases", "extends", "rules"):
                raise BadInput("is no name for a rule", key=name, value=name)
        return {
            name: {**rule, "kind": rule.get("kind") or name} if isinstance(rule, Mapping) else rule
            for name, rule in given.items()
        }

    # ---- reading and writing

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RuleSet:
        """The rule set in a YAML file; raises BadInput naming the file."""
        return cls.from_dict(read_yaml(path, accepted="aliases and rules"), where=path)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], *, where: str | os.PathLike[str] | None = None) -> RuleSet:
        """The rule set a mapping holds; `where` is named in errors."""
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise from_pydantic(error, cls, where=where) from None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, defaults and overrides resolved; `from_dict` gives an equal rule set."""
        return self.model_dump(mode="json", exclude_none=True)

    def override(self, changes: Mapping[str, Any], *, where: str | os.PathLike[str] | None = None) -> RuleSet:
        """These rules with the `rules:` section of a spec laid over them.

        A rule that is here takes the given keys (`grace` key by key, lists and everything else as a whole; null gives a
        key its default back); a rule that is not needs to be complete. `extends` is left to the caller, `aliases` add.
        """
        tree = self.to_dict()
        for name, change in changes.items():
            if name == "extends":
                continue
            if not isinstance(change, Mapping):
                raise BadInput("has to be a mapping (key: value)", where=where, key=f"rules.{name}", value=change)
            if name == "aliases":
                tree["aliases"] |= change
                continue
            held = tree["rules"].get(name)
            if held is None and "signs" not in change:
                close = difflib.get_close_matches(name, tree["rules"], 1)
                raise BadInput(
                    f"no such rule{f'; did you mean {close[0]}?' if close else ''}",
                    where=where,
                    key=f"rules.{name}",
                    accepted=f"{', '.join(tree['rules'])}, or a new rule with action and signs",
                )
            tree["rules"][name] = _laid_over(held or {}, change)
        return RuleSet.from_dict(tree, where=where)

    # ---- use

    def aliased(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of foreign curves with our keys added: each from the first of its columns that is there."""
        ours = dict(row)
        for key, columns in self.aliases.items():
            column = next((column for column in columns if column in row), None)
            if key not in row and column is not None:
                ours[key] = row[column]
        return ours

    def watch(self, *, budget_epochs: int | None = None) -> TrialWatch:
        """The engine for one trial. `budget_epochs`: what the margin of a diverged trial is measured against."""
        return TrialWatch(self, budget_epochs)

    @property
    def metrics(self) -> frozenset[str]:
        """Every metric that a rule which is not off looks at."""
        return frozenset(_watched(self))


def _watched(rules: RuleSet) -> Iterator[str]:
    for rule in rules.rules.values():
        for sign in (*rule.signs, *((rule.grade,) if rule.grade else ())):
            if rule.action != "off":
                yield sign.metric
                if isinstance(sign.threshold, Relative):
                    yield sign.threshold.relative_to


def _laid_over(held: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(held)
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        elif key == "grace" and isinstance(value, Mapping):
            result[key] = {name: given for name, given in {**held.get(key, {}), **value}.items() if given is not None}
        else:
            result[key] = value
    return result
