"""The schema of rules files: read, validated, overridden and written back.

The field descriptions here and the docstrings of `transforms.py` are the reference of the rules grammar.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from buttress.errors import BadInput, from_pydantic
from buttress.rules.transforms import DIFFERENCES, TRANSFORMS, Transform
from buttress.rules.verdict import PLACEHOLDER
from buttress.spec.yaml_io import read_yaml

DIVERGED = "diverged"
_THRESHOLDS = "a number, {per_dim: number} or {relative_to: metric, factor: number}"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _number(given: Any) -> Any:
    """Refuses true and false, which pydantic takes for 1 and 0."""
    if isinstance(given, bool):
        raise BadInput("has to be a number", value=given)
    return given


Number = Annotated[float, BeforeValidator(_number)]
NonNegativeInt = Annotated[int, Field(strict=True, ge=0)]
PositiveInt = Annotated[int, Field(strict=True, ge=1)]
Factor = Annotated[Number, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]


class PerDim(_Section):
    """A threshold per latent dimension."""

    per_dim: Number = Field(
        description="Times the reported number of latent dimensions: the metric `<prefix>/dims` beside the sign's "
        "metric, else `latent/dims`.",
    )


class Relative(_Section):
    """A threshold relative to another metric of the same report."""

    relative_to: Name = Field(description="The other metric.")
    factor: Annotated[Number, Field(gt=0)] = Field(1.0, description="The threshold is this times the other metric.")


def _threshold(given: Any) -> Any:
    if isinstance(given, Mapping):
        model: type[PerDim | Relative] = PerDim if "per_dim" in given else Relative
        if not {"per_dim", "relative_to"} & set(given):
            raise BadInput("is not a valid threshold", value=dict(given), accepted=_THRESHOLDS)
        try:
            return model.model_validate(given)
        except ValidationError as error:
            raise from_pydantic(error, model) from None
    if isinstance(given, PerDim | Relative):
        return given
    try:
        return float(_number(given))
    except (TypeError, ValueError):
        raise BadInput("is not a valid threshold", value=given, accepted=_THRESHOLDS) from None


Threshold = Annotated[float | PerDim | Relative, BeforeValidator(_threshold)]


class Observation(_Section):
    """One metric, transformed and compared with one threshold.

    An observation abstains when its metric, or the one that its threshold needs, is missing from the report or is not
    finite: NaN is no evidence for or against a value, it is what the transform `nonfinite` is for. While its window is
    not full it does not hold.
    """

    metric: Name = Field(description="The metric's key in the reports, such as `latent/kl_total`.")
    transform: Literal[
        "value",
        "best_ratio",
        "best_difference",
        "window_max_over_min",
        "window_max_minus_min",
        "median_ratio",
        "median_difference",
        "slope",
        "absent",
        "lost",
        "nonfinite",
    ] = Field(
        "value",
        description="What is compared. Windows, best values and medians look at every report of the trial that holds a "
        "finite value, also those of the warm-up; `absent` and `lost` count within the rule's phase. A ratio abstains "
        "where a value is below 0: a metric that may be (a log-likelihood, an estimate of mutual information) takes a "
        "difference.",
    )
    window: PositiveInt | None = Field(
        None,
        description="Number of reports: 2 or more for `window_...`, `median_...` and `slope`, which need it; reports "
        "in a row for `absent` and `lost` (default 1).",
    )
    below: Threshold | None = Field(
        None,
        description="Holds when the value is below this: a number, `{per_dim: x}` or "
        "`{relative_to: metric, factor: f}`. Exactly one of `below` and `above` is given, neither for `absent`, "
        "`lost` and `nonfinite`.",
    )
    above: Threshold | None = Field(None, description="Holds when the value is above this; see `below`.")

    @model_validator(mode="after")
    def _complete(self) -> Observation:
        transform = TRANSFORMS[self.transform]
        if self.window is not None and not transform.takes_window:
            raise BadInput(f"the transform `{self.transform}` takes no window", key="window", value=self.window)
        if transform.needs_window and (self.window is None or self.window < 2):
            value = ... if self.window is None else self.window
            problem = f"the transform `{self.transform}` needs a window of reports"
            raise BadInput(problem, key="window", value=value, accepted="2 or more")
        given = [name for name in ("below", "above") if getattr(self, name) is not None]
        if given and not transform.takes_threshold:
            raise BadInput(f"the transform `{self.transform}` takes no threshold", key=given[0], value=self.threshold)
        if transform.takes_threshold and len(given) != 1:
            problem = "both below and above are given" if given else "the threshold is missing"
            raise BadInput(problem, accepted="exactly one of below and above")
        self._refuse_what_never_holds(transform)
        return self

    def _refuse_what_never_holds(self, transform: type[Transform]) -> None:
        limit, least, below = self.threshold, transform.least, self.below is not None
        if not isinstance(limit, float) or (limit > least if below else limit >= 0 or not transform.difference):
            return
        accepted = f"a threshold above {least:g}" if below else "a threshold of 0 or more"
        if transform.difference:
            accepted += f"; where {self.metric} may be below 0, `transform: {transform.difference}`"
        problem = f"a `{self.transform}` is never below {least:g}"
        raise BadInput(problem, key=self.comparison, value=limit, accepted=accepted)

    @property
    def comparison(self) -> Literal["below", "above"] | None:
        """The side of the threshold on which the observation holds; None without a threshold."""
        return "below" if self.below is not None else "above" if self.above is not None else None

    @property
    def threshold(self) -> float | PerDim | Relative | None:
        """`below` or `above`, whichever is given."""
        return self.below if self.below is not None else self.above

    @property
    def ungraded(self) -> str | None:
        """Why no margin can be computed from this observation; None if one can."""
        if self.transform == "slope" or not TRANSFORMS[self.transform].takes_threshold:
            return f"the transform `{self.transform}` has no margin in decades"
        if self.metric.rpartition("/")[2].startswith("active"):
            return "counts of units vote but never set the margin"
        threshold = self.threshold.per_dim if isinstance(self.threshold, PerDim) else self.threshold
        if isinstance(threshold, float) and threshold <= 0:
            if self.transform in DIFFERENCES and threshold < 0 and self.comparison == "below":
                return None
            return "the margin is a logarithm, so its threshold has to be greater than 0"
        return None


class Sign(Observation):
    """An observation that votes on whether its rule holds."""

    hysteresis: Factor | None = Field(None, description="As the rule's `hysteresis`, for this sign alone.")


class Grade(Observation):
    """The observation that a rule's margin is computed from.

    Not a `slope`, `absent`, `lost` or `nonfinite`, nor a count of units (a last key part `active...`: counts vote, but
    they saturate); its threshold is greater than 0, or with `below` on a difference less than 0.
    """

    @model_validator(mode="after")
    def _graded(self) -> Grade:
        if self.ungraded:
            value = self.threshold if isinstance(self.threshold, float) else self.metric
            raise BadInput(self.ungraded, value=value)
        return self


class Grace(_Section):
    """When a rule may first speak: once both `epochs` and `steps` have been completed."""

    epochs: NonNegativeInt = Field(0, description="Completed epochs at full beta.")
    steps: NonNegativeInt = Field(0, description="Completed optimiser steps at full beta.")
    before_full_beta: bool = Field(
        False, description="Counts from the start of the trial instead of from the moment that beta is final."
    )


class Rule(_Section):
    """One way for a trial to end, or to be warned about.

    A report on which a rule abstains neither extends nor resets its patience. A rule that may not speak yet or now
    (`grace`, `phase`, `min_step`) starts from nothing when it may.
    """

    action: Literal["kill", "warn", "off"] = Field(
        description="`kill` stops the trial, `warn` raises a warning, `off` does nothing."
    )
    kind: Name | None = Field(
        None,
        description="What an end by this rule is called; by default the rule's name. `diverged` makes it a divergence "
        "instead of a collapse, which needs no grade.",
    )
    signs: tuple[Sign, ...] = Field(
        description="What the rule looks at. All signs have to hold; one whose metric the trial has never reported "
        "is left out, and when any other one abstains, so does the rule."
    )
    votes: PositiveInt | None = Field(
        None,
        description="So many signs have to hold, among those that do not abstain, instead of all; when fewer than that "
        "are left, the rule abstains.",
    )
    grade: Grade | None = Field(
        None,
        description="What the margin is computed from; by default the first sign that a margin can be computed from.",
    )
    grace: Grace = Field(Grace(), description="When the rule may first speak.")
    patience: PositiveInt = Field(1, description="Reports in a row on which the rule has to hold.")
    hysteresis: Factor = Field(
        1.0,
        description="Once the rule is suspect, a sign clears at its threshold times this (`above`: divided by this): "
        "at 1.2, `below: 0.3` clears at 0.36.",
    )
    phase: NonNegativeInt | None = Field(None, description="Judges only reports of this training phase, from 0.")
    min_step: NonNegativeInt = Field(0, description="Judges only from this optimiser step on.")
    reports: Literal["all", "epoch_ends"] = Field(
        "all",
        description="`epoch_ends` looks only at reports that complete an epoch, whose values come from validation, and "
        "at the closing one.",
    )
    message: Name | None = Field(
        None,
        description="A sentence for people with `{metric}` or `{metric:.3f}` in it, and `{epoch}`, `{step}`; where one "
        "of the numbers is unknown, the evidence is shown instead.",
    )

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
    """The rules of a sweep, as a YAML file or a mapping holds them.

        aliases: {latent/kl_total: [val_kl, kl]}
        rules:
          posterior_collapse:
            action: kill
            signs:
              - {metric: latent/kl_total, below: 0.3}
              - {metric: latent/active_kl, below: 1, hysteresis: 1}
            grace: {epochs: 1, steps: 200}
            patience: 2
            hysteresis: 1.2

    `RuleEngine` applies them to the reports of a trial.
    """

    aliases: dict[str, tuple[Name, ...]] = Field(
        {},
        description="Our key -> columns of curves from elsewhere that hold the same (one, or a list of which the first "
        "present counts).",
    )
    rules: dict[str, Rule] = Field(description="Name -> rule.")

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
                raise BadInput("is not a valid name for a rule", key=name, value=name)
        return {
            name: {**rule, "kind": rule.get("kind") or name} if isinstance(rule, Mapping) else rule
            for name, rule in given.items()
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RuleSet:
        """Reads a rules file.

        Args:
            path: A YAML file.

        Raises:
            BadInput: The file cannot be read or is not a rule set; names file, key, value and what is accepted.
        """
        return cls.from_dict(read_yaml(path, accepted="aliases and rules"), where=path)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], *, where: str | os.PathLike[str] | None = None) -> RuleSet:
        """Validates a mapping.

        Args:
            tree: `rules`, and optionally `aliases`.
            where: The file it comes from, for error messages.

        Raises:
            BadInput: It is not a rule set; names the key, the value and what is accepted.
        """
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise from_pydantic(error, cls, where=where) from None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values, defaults and overrides resolved; `from_dict` gives an equal rule set."""
        return self.model_dump(mode="json", exclude_none=True)

    def override(self, changes: Mapping[str, Any], *, where: str | os.PathLike[str] | None = None) -> RuleSet:
        """These rules, changed by the `rules:` section of a spec.

        An existing rule takes over the given keys (`grace` key by key, lists and everything else as a whole; null gives
        a key its default back); a new rule has to be complete. `aliases` are added to the existing ones; `extends` is
        for the caller.

        Args:
            changes: Name of a rule -> its changed keys.
            where: The file they come from, for error messages.

        Raises:
            BadInput: A rule that does not exist, or a change that leaves it invalid.
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
            existing = tree["rules"].get(name)
            if existing is None and "signs" not in change:
                close = difflib.get_close_matches(name, tree["rules"], 1)
                raise BadInput(
                    f"no such rule{f'; did you mean {close[0]}?' if close else ''}",
                    where=where,
                    key=f"rules.{name}",
                    accepted=f"{', '.join(tree['rules'])}, or a new rule with action and signs",
                )
            tree["rules"][name] = _merged(existing or {}, change)
        return RuleSet.from_dict(tree, where=where)

    @property
    def metrics(self) -> frozenset[str]:
        """Every metric that a rule which is not off looks at."""
        active = [rule for rule in self.rules.values() if rule.action != "off"]
        observed = [each for rule in active for each in (*rule.signs, *((rule.grade,) if rule.grade else ()))]
        others = [each.threshold.relative_to for each in observed if isinstance(each.threshold, Relative)]
        return frozenset([each.metric for each in observed] + others)


def _merged(existing: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(existing)
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        elif key == "grace" and isinstance(value, Mapping):
            merged = {**existing.get(key, {}), **value}
            result[key] = {name: given for name, given in merged.items() if given is not None}
        else:
            result[key] = value
    return result
