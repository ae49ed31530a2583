"""The spec held against a family: `SweepSpec.check`. Paths exist, values are accepted, objectives are fair, and some
draw satisfies `require`.

Acceptance is asked of the family's own `Config`, by building configs: one per end of a range and per choice, the rest
drawn at random with a fixed seed (the drawing honours `when`), so that a sentence the family wrote is the one shown.
"""

from __future__ import annotations

import difflib
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel

from buttress.errors import BadInput
from buttress.spec import expressions as grammar
from buttress.spec.config_paths import find, leaves, unknown

if TYPE_CHECKING:
    from buttress.spec.spec import ScheduleLike, SweepSpec

DRAWS = 1000  # as many draws in a row that violate `require` end a sweep (DESIGN.md)
_TRIES = 40  # other draws in which a value may be accepted before its refusal is believed


class MetricLike(Protocol):
    """What is asked of a metric (`buttress.training.trainable.Metric`)."""

    @property
    def direction(self) -> Any: ...
    @property
    def weighted_by(self) -> tuple[str, ...]: ...
    @property
    def sees_target(self) -> bool: ...


def check(
    spec: SweepSpec,
    Config: type[BaseModel],
    metrics: Mapping[str, MetricLike],
    *,
    conditional: bool,
    epochs_path: str,
    schedule: Callable[[Any], ScheduleLike] | None,
) -> None:
    """See `SweepSpec.check`."""
    _paths(spec, Config, epochs_path)
    _objectives(spec, metrics, conditional)
    _values(spec, Config)
    _draws(spec, Config, epochs_path, schedule)


def _paths(spec: SweepSpec, Config: type[BaseModel], epochs_path: str) -> None:
    if find(Config, "buttress") is None:
        raise spec.wrong(
            f"{Config.__name__} of this trainable has no group buttress", key="trainable", value=spec.trainable,
            accepted="a Config with a field `buttress: Buttress = Buttress()` (buttress/training/trainable.py)",
        )
    for path in spec.search:
        found = find(Config, path)
        if found is None:
            raise _unknown(spec, Config, path, f"search.{path}")
        if not found.value:
            inside = [leaf for leaf in leaves(Config) if leaf.startswith(f"{path}.")]
            raise spec.wrong("is a group, not a parameter", key=f"search.{path}", accepted=", ".join(inside) or None)
    for path in spec.fixed:
        if find(Config, path) is None:
            raise _unknown(spec, Config, path, f"fixed.{path}")
    for name in spec.data:
        if find(Config, f"data.{name}") is None:
            raise _unknown(spec, Config, f"data.{name}", f"data.{name}")
    counted = spec.budget.full_beta_epochs is not None
    for key, text in _expressions(spec):
        for path in grammar.parse(text).reads:
            found = find(Config, path)
            if found is None:
                error = unknown(Config, path)
                raise spec.wrong(f"reads config.{path}: {error.problem}", key=key, value=text, accepted=error.accepted)
            if not found.value:
                raise spec.wrong(f"reads config.{path}, which is a group", key=key, value=text)
            if counted and path == epochs_path and key.startswith("search."):
                raise spec.wrong(
                    f"reads config.{path}, which budget.full_beta_epochs sets after the draw", key=key, value=text
                )
    for section, given in (("fixed", spec.fixed), ("search", spec.search)):
        if counted and epochs_path in given:
            raise spec.wrong(
                "is set by budget.full_beta_epochs", key=f"{section}.{epochs_path}", accepted="one of the two"
            )
    if counted and find(Config, epochs_path) is None:
        raise spec.wrong(f"needs {epochs_path}, which this Config does not have", key="budget.full_beta_epochs")


def _expressions(spec: SweepSpec) -> list[tuple[str, str]]:
    whens = [(f"search.{path}.when", parameter.when) for path, parameter in spec.search.items() if parameter.when]
    return [*whens, *((f"require.{index}", text) for index, text in enumerate(spec.require))]


def _unknown(spec: SweepSpec, Config: type[BaseModel], path: str, key: str) -> BadInput:
    error = unknown(Config, path)
    return spec.wrong(error.problem, key=key, accepted=error.accepted)


def _objectives(spec: SweepSpec, metrics: Mapping[str, MetricLike], conditional: bool) -> None:
    def weights(name: str) -> list[str]:
        return [path for path in spec.search for by in metrics[name].weighted_by if _meet(path, by)]

    fair = [n for n, m in metrics.items() if not weights(n) and not (conditional and m.sees_target)]
    for index, objective in enumerate(spec.objectives):
        key, name = f"objectives.{index}.metric", objective.metric
        if name not in metrics:
            close = difflib.get_close_matches(name, metrics, 1)
            problem = f"no such metric; did you mean {close[0]}?" if close else "no such metric"
            raise spec.wrong(problem, key=key, value=name, accepted=", ".join(metrics))
        metric = metrics[name]
        if conditional and metric.sees_target:
            raise spec.wrong(
                "is computed from a posterior that sees the target, so an autoencoder would win",
                key=key, value=name, accepted=", ".join(fair) or "no metric of this trainable",
            )
        if weights(name) and not objective.allow_weighted:
            raise spec.wrong(
                f"changes its scale with {' and '.join(weights(name))}, which is searched, so it cannot compare trials",
                key=key, value=name, accepted=", ".join([*fair, "or allow_weighted: true beside it"]),
            )
        if objective.direction not in (None, metric.direction):
            raise spec.wrong(
                f"{name} is better the {'smaller' if metric.direction == 'min' else 'larger'} it is",
                key=f"objectives.{index}.direction", value=objective.direction, accepted=metric.direction,
            )
        objective.direction = metric.direction


def _meet(path: str, other: str) -> bool:
    return path == other or path.startswith(f"{other}.") or other.startswith(f"{path}.")


def _values(spec: SweepSpec, Config: type[BaseModel]) -> None:
    """Every fixed value, both ends of every range and every choice are taken by the `Config` in some draw."""
    _accepted(spec, Config, None, None)
    for path, parameter in spec.search.items():
        for value in parameter.probes():
            _accepted(spec, Config, path, value)


def _accepted(spec: SweepSpec, Config: type[BaseModel], pinned: str | None, value: Any) -> None:
    """Raises the refusal of `value` at `pinned` (None: of what is fixed) that no other draw of the rest could lift."""
    rng, refused, tries = random.Random(0), None, 0
    for _ in range(DRAWS):
        params = _pinned(spec, Config, rng, pinned, value)
        if params is None:
            continue
        tries += 1
        try:
            spec.config(params, Config)
            return
        except BadInput as error:
            if not _elsewhere(spec, error, pinned):
                refused = refused or error
        if tries == _TRIES:
            break
    if not tries:
        raise spec.wrong(
            f"never holds in {DRAWS:,} random draws, so the parameter is never searched",
            key=f"search.{pinned}.when", value=spec.search[pinned or ""].when,
        )
    if refused is not None:
        raise refused if pinned is None else _of_value(spec, refused, pinned, value)


def _pinned(
    spec: SweepSpec, Config: type[BaseModel], rng: random.Random, pinned: str | None, value: Any
) -> dict[str, Any] | None:
    params: dict[str, Any] = {}
    for path, parameter in spec.parameters(params, Config):
        params[path] = value if path == pinned else parameter.draw(rng)
    return params if pinned is None or pinned in params else None


def _elsewhere(spec: SweepSpec, error: BadInput, pinned: str | None) -> bool:
    """Whether a refusal is about another searched parameter, whose own turn will come."""
    key = error.key or ""
    return any(_says(key, f"search.{path}") for path in spec.search if path != pinned)


def _says(key: str, about: str) -> bool:
    return key.endswith(about) or f"{about}." in key


def _of_value(spec: SweepSpec, refused: BadInput, path: str, value: Any) -> BadInput:
    if _says(refused.key or "", f"search.{path}"):
        problem = f"the trainer's config refuses a value of this range: {refused.problem}"
        accepted = refused.accepted
        if spec.search[path].choices is not None:
            problem = f"the trainer's config refuses this choice: {refused.problem}"
        elif isinstance(value, float) and "whole number" in refused.problem:
            accepted = "an int or logint range"
        return spec.wrong(problem, key=f"search.{path}", value=value, accepted=accepted)
    problem = f"the trainer's config refuses every draw with this value: {refused.key}: {refused.problem}"
    return spec.wrong(problem, key=f"search.{path}", value=value, accepted=refused.accepted)


def _draws(
    spec: SweepSpec, Config: type[BaseModel], epochs_path: str, schedule: Callable[[Any], ScheduleLike] | None
) -> None:
    """Some draw can become a trial: the config takes it, every `require` holds, and beta is final within its budget."""
    rng, counts, errors = random.Random(0), Counter[str](), {}
    for _ in range(DRAWS):
        params = spec.sample(rng, Config)
        try:
            config = spec.config(params, Config, schedule=schedule, epochs_path=epochs_path)
        except BadInput as refused:
            error: BadInput | None = refused
        else:
            error = _violation(spec, config) or _unsettled(spec, schedule, config, epochs_path)
        if error is None:
            return
        counts[error.key or ""] += 1
        errors[error.key or ""] = error
    key, count = counts.most_common(1)[0]
    told = errors[key]
    if count < DRAWS:
        told.problem += f" (so fail {count:,} of {DRAWS:,} draws, and the others elsewhere)"
    raise told


def _violation(spec: SweepSpec, config: Any) -> BadInput | None:
    text = spec.violated(config)
    if text is None:
        return None
    accepted = "an expression that part of the search space satisfies"
    key = f"require.{spec.require.index(text)}"
    return spec.wrong(f"no draw in {DRAWS:,} satisfies it", key=key, value=text, accepted=accepted)


def _unsettled(
    spec: SweepSpec, schedule: Callable[[Any], ScheduleLike] | None, config: Any, epochs_path: str
) -> BadInput | None:
    plan = schedule(config) if schedule is not None else None
    if plan is None or math.ceil(min(plan.full_at_epoch, plan.epochs)) < plan.epochs:
        return None
    final = "never" if math.isinf(plan.full_at_epoch) else f"after {plan.full_at_epoch:g}"
    return spec.wrong(
        f"no draw in {DRAWS:,} has an epoch at its final beta (of {plan.epochs} epochs in the last, final {final})",
        key=spec.key_of(epochs_path),
        accepted="more epochs or a shorter warm-up",
    )
