"""A searched parameter of a spec: its syntax, its validation and its random draws."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any, Literal, Protocol

from pydantic import Field, field_validator, model_serializer, model_validator

from buttress.errors import BadInput
from buttress.spec import expressions
from buttress.spec.sections import Section

#: The kinds of a parameter, each with the description of its key.
KINDS = {
    "uniform": "`[low, high]`, both included: a float, uniform.",
    "loguniform": "`[low, high]`, both included, low above 0: a float, uniform on the log scale.",
    "int": "`[low, high]`, whole numbers, both included: an integer, uniform.",
    "logint": "`[low, high]`, whole numbers, both included, low above 0: an integer, uniform on the log scale.",
    "choice": "A list of values without repeats: one of them, each equally likely. A list or a mapping is a value, "
    "too; mappings of config paths, under a name without a dot, are values of several paths that are drawn together.",
}
#: Whole numbers lie between minus this and this, and a range has at most so many steps: beyond, Optuna's TPE (4.x)
#: loses a value's share of the range in its floats, and computes NaN.
MAX_INTEGER = 2**40
#: A float range has a width that is a float, too.
MAX_FLOAT = 1e300
#: Choices that are shown, and tried on the trainable's config: of more, so many evenly spread ones.
MAX_PROBES = 200


class Random(Protocol):
    """A generator of floats in [0, 1): `random.Random` and numpy's `Generator` both fit."""

    def random(self) -> float: ...


class Parameter(Section):
    """One searched parameter, written with its kind as a key.

    `{loguniform: [1, 20]}`, `{int: [0, 60], step: 5}`, `{choice: [a, b], when: ...}`: one key of `KINDS`, and beside it
    `step` and `when`. `low`, `high` and `choices` are read from the value of that key.
    """

    kind: Literal["uniform", "loguniform", "int", "logint", "choice"] = Field(
        description="Which of the five kinds of range this is."
    )
    low: int | float | None = Field(None, description="Lower end of the range, included; None for a choice.")
    high: int | float | None = Field(None, description="Upper end of the range, included; None for a choice.")
    step: int | float | None = Field(
        None,
        description="Distance between the values drawn from a `uniform` or `int` range, starting at its lower end; it "
        "divides the range. Default: every value of the range.",
    )
    choices: tuple[Any, ...] | None = Field(None, description="The values of a choice; None for a range.")
    when: str | None = Field(
        None,
        description="Expression over the config, such as `config.loss.kind == 'focal'`. Where it does not hold, the "
        "parameter is not drawn and keeps the trainable's default. Default: always drawn.",
    )

    @model_validator(mode="before")
    @classmethod
    def _parse_kind(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "kind" in given:
            return given
        kinds = [name for name in given if name in KINDS]
        extra = [name for name in given if name not in (*KINDS, "step", "when")]
        accepted = f"one of {', '.join(KINDS)}, with step and when beside it"
        if extra:
            raise BadInput("unknown key", key=str(extra[0]), accepted=accepted)
        if len(kinds) != 1:
            raise BadInput(f"gives {' and '.join(kinds) or 'no range and no choice'}", value=given, accepted=accepted)
        kind, value, step = kinds[0], given[kinds[0]], given.get("step")
        fields = _parse_choice(value, step) if kind == "choice" else _parse_range(kind, value, step)
        return {**fields, "when": given.get("when")}

    @field_validator("when")
    @classmethod
    def _parse_when(cls, text: str | None) -> str | None:
        return expressions.parse(text).text if text is not None else None

    @model_serializer
    def _serialize(self) -> dict[str, Any]:
        result: dict[str, Any] = {self.kind: list(self.choices) if self.choices is not None else [self.low, self.high]}
        extras = {"step": self.step, "when": self.when}
        return result | {name: value for name, value in extras.items() if value is not None}

    @property
    def log(self) -> bool:
        """Whether the range is drawn on the log scale."""
        return self.kind in ("loguniform", "logint")

    @property
    def whole(self) -> bool:
        """Whether the range holds integers."""
        return self.kind in ("int", "logint")

    @property
    def of_mappings(self) -> bool:
        """Whether this is a choice of mappings."""
        return self.choices is not None and all(isinstance(choice, dict) for choice in self.choices)

    def draw(self, rng: Random) -> Any:
        """One value, uniform over the range (over its logarithm for the log kinds)."""
        share = rng.random()
        if self.choices is not None:
            return self.choices[int(share * len(self.choices))]
        assert self.low is not None and self.high is not None
        if self.step is not None:
            return self.on_grid(self.low + self.step * int(share * (round((self.high - self.low) / self.step) + 1)))
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        if self.log:
            span = math.log(high / low) if math.isfinite(high / low) else math.log(high) - math.log(low)
            value = math.exp(math.log(low) + share * span)
        else:
            value = low + share * (high - low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value

    def on_grid(self, value: float) -> float:
        """The value of a range with a step next to `value`, in their digits: 0.3, not 0.30000000000000004.

        A range without one gives `value` back.
        """
        if self.step is None or self.low is None or self.high is None:
            return value
        count = round((value - self.low) / self.step)
        if self.whole:
            return int(self.low) + int(self.step) * count
        return min(float(Decimal(repr(self.low)) + count * Decimal(repr(self.step))), float(self.high))

    def contains(self, value: Any) -> bool:
        """Whether a trial may have this value."""
        if self.choices is not None:
            return choice_key(value) in {choice_key(choice) for choice in self.choices}
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        assert self.low is not None and self.high is not None
        whole = not self.whole or float(value).is_integer()
        return whole and self.low <= value <= self.high and abs(self.on_grid(value) - value) <= 1e-9 * abs(value)

    def described(self) -> str:
        """The range in words."""
        if self.choices is not None:
            return ", ".join(choice_key(choice) for choice in self.choices)
        step = f" in steps of {self.step:g}" if self.step is not None else ""
        return f"{'whole numbers' if self.whole else 'numbers'} from {self.low:g} to {self.high:g}{step}"

    def position(self, value: float) -> float:
        """Where a value lies in the range: 0 at `low`, 1 at `high`, on the log scale for the log kinds."""
        assert self.low is not None and self.high is not None
        low, high = float(self.low), float(self.high)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)

    def probes(self) -> list[Any]:
        """The values that a config has to accept to accept the range: its choices, or both ends and one between."""
        if self.choices is not None:
            apart = max(1, (len(self.choices) - 1) / (MAX_PROBES - 1))
            return [self.choices[round(apart * n)] for n in range(min(MAX_PROBES, len(self.choices)))]
        assert self.low is not None and self.high is not None
        if self.whole:
            return [int(self.low), int(self.high)]
        between = self.low + (self.step or 0.6180339887 * (self.high - self.low))
        return [float(self.low), float(self.high), self.on_grid(between)]


def choice_key(value: Any) -> str:
    """A choice as a text that no other has: types count (true, 1, 1.0, "1" are four), a mapping's order does not."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _parse_choice(given: Any, step: Any) -> dict[str, Any]:
    if not isinstance(given, list | tuple) or not given:
        raise BadInput("has to be a list of at least one value", key="choice", value=given)
    seen: set[str] = set()
    for index, choice in enumerate(given):
        if (known := choice_key(choice)) in seen:
            raise BadInput("is given twice", key=f"choice.{index}", value=choice)
        seen.add(known)
    if step is not None:
        raise BadInput("has no meaning for a choice", key="step", value=step)
    return {"kind": "choice", "choices": tuple(given)}


def _parse_range(kind: str, given: Any, step: Any) -> dict[str, Any]:
    accepted = "[low, high] with low < high"
    if not isinstance(given, list | tuple) or len(given) != 2 or not all(_is_number(bound) for bound in given):
        raise BadInput("has to be two numbers", key=kind, value=given, accepted=accepted)
    low, high = given
    limit = MAX_INTEGER if kind in ("int", "logint") else MAX_FLOAT
    for bound in given:
        if abs(bound) > limit:
            accepted = "-2^40 to 2^40" if limit == MAX_INTEGER else f"-{limit:g} to {limit:g}"
            raise BadInput("lies beyond what a sampler computes with", key=kind, value=given, accepted=accepted)
    if not low < high:
        raise BadInput("its low end is not below its high end", key=kind, value=given, accepted=accepted)
    if kind.startswith("log") and low <= 0:
        raise BadInput("a log scale needs a low end above 0", key=kind, value=given)
    if kind in ("int", "logint"):
        for bound in given:
            if not float(bound).is_integer():
                raise BadInput("needs whole numbers", key=kind, value=given, accepted=accepted)
        low, high = int(low), int(high)
    else:
        low, high = float(low), float(high)
    fields = {"kind": kind, "low": low, "high": high}
    if step is None:
        return fields
    if kind.startswith("log"):
        raise BadInput("a log scale has no step", key="step", value=step)
    if not _is_number(step) or not 0 < step <= MAX_FLOAT or (kind == "int" and not float(step).is_integer()):
        raise BadInput(f"has to be a positive {'whole ' if kind == 'int' else ''}number", key="step", value=step)
    steps = (high - low) / step
    if steps > MAX_INTEGER:
        raise BadInput("is too small: the range would have more than 2^40 values", key="step", value=step)
    if abs(steps - round(steps)) > 1e-9 * max(1.0, steps) or round(steps) < 1:
        below, above = low + math.floor(steps) * step, low + math.ceil(steps) * step
        reached = " or ".join(f"{kind}: [{low:g}, {end:g}]" for end in (below, above) if end > low)
        problem = f"{high:g} is not a whole number of steps above {low:g}"
        raise BadInput(problem, key="step", value=step, accepted=reached)
    return {**fields, "step": int(step) if kind == "int" else step}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
