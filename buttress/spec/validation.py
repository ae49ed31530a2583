"""Checks a spec against its trainable: paths exist, values are accepted, objectives are fair, some draw can be a trial.

Whether a value is accepted is asked of the trainable's own `Config`, by building configs: one per end of a range and
per choice, the rest drawn at random with a fixed seed. So the errors that the `Config` words are the ones shown.
"""

from __future__ import annotations

import difflib
import random
import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel

from buttress.errors import BadInput
from buttress.spec import expressions, trial_config
from buttress.spec.config_paths import find, leaves, unknown_path
from buttress.spec.spec import SweepSpec

MAX_DRAWS = 1000  # a sweep, too, ends after as many draws in a row that violate `require`
MAX_ATTEMPTS = 40  # other draws in which a value may be accepted before its refusal is believed

#: A path with a part named beta, kl or weight; not weight decay and the like, nor Adam's beta1.
_WEIGHT = re.compile(r"(^|[._])(beta|kl|weights?)($|[._](?!(decay|norm|init)\b))", re.I)


class MetricLike(Protocol):
    """What is read of a metric (`buttress.training.trainable.Metric`)."""

    @property
    def direction(self) -> Any: ...
    @property
    def weighted_by(self) -> tuple[str, ...]: ...
    @property
    def sees_target(self) -> bool: ...


class TrainableLike(Protocol):
    """What is read of a trainable (`buttress.training.trainable.Trainable`).

    Also read where it is there: `conditional` (default False) and `epochs_path` (default `train.epochs`).
    """

    Config: ClassVar[Any]
    metrics: ClassVar[dict[str, Any]]

    def schedule(self, config: Any) -> trial_config.ScheduleLike: ...


def check(spec: SweepSpec, trainable: TrainableLike) -> SweepSpec:
    """Every check of a spec that needs the trainable but no data and no cluster.

    Args:
        spec: a loaded spec.
        trainable: the trainable that it names.

    Returns:
        The spec with the direction of every objective filled in.

    Raises:
        BadInput: for the first thing that does not fit, with the file and the spec's key.
    """
    Config, metrics = trainable.Config, trainable.metrics
    epochs_path = getattr(trainable, "epochs_path", trial_config.EPOCHS_PATH)
    _check_paths(spec, Config, epochs_path)
    _check_objectives(spec, metrics, getattr(trainable, "conditional", False))
    _check_values(spec, Config)
    _check_draws(spec, trainable, epochs_path)
    directed = [each.model_copy(update={"direction": metrics[each.metric].direction}) for each in spec.objectives]
    return spec.model_copy(update={"objectives": tuple(directed)})


def _check_paths(spec: SweepSpec, Config: type[BaseModel], epochs_path: str) -> None:
    if find(Config, "buttress") is None:
        raise spec.error(
            f"{Config.__name__} of this trainable has no group buttress", key="trainable", value=spec.trainable,
            accepted="a Config with a field `buttress: Buttress = Buttress()` (buttress/training/trainable.py)",
        )
    for name, paths in spec.searched.items():
        for path in paths:
            _check_searched(spec, Config, name, path)
    for path in spec.fixed:
        if find(Config, path) is None:
            raise _unknown_parameter(spec, Config, path, f"fixed.{path}")
    for name in spec.data:
        if find(Config, f"data.{name}") is None:
            raise _unknown_parameter(spec, Config, f"data.{name}", f"data.{name}")
    counted = spec.budget.full_beta_epochs is not None
    for key, text in _expression_texts(spec):
        for path in expressions.parse(text).reads:
            found = find(Config, path)
            if found is None:
                error = unknown_path(Config, path)
                raise spec.error(f"reads config.{path}: {error.problem}", key=key, value=text, accepted=error.accepted)
            if not found.value:
                raise spec.error(f"reads config.{path}, which is a group", key=key, value=text)
            if counted and path == epochs_path and key.startswith("search."):
                raise spec.error(
                    f"reads config.{path}, which budget.full_beta_epochs sets after the draw", key=key, value=text
                )
    for section, given in (("fixed", [*spec.fixed]), ("search", _searched_paths(spec))):
        if counted and epochs_path in given:
            key = trial_config.spec_key(spec, epochs_path) if section == "search" else f"fixed.{epochs_path}"
            raise spec.error("is set by budget.full_beta_epochs", key=key, accepted="one of the two")
    if counted and find(Config, epochs_path) is None:
        raise spec.error(f"needs {epochs_path}, which this Config does not have", key="budget.full_beta_epochs")


def _check_searched(spec: SweepSpec, Config: type[BaseModel], name: str, path: str) -> None:
    """The config path `path`, which the searched parameter `name` sets, exists and may hold its values."""
    key, coupled = f"search.{name}", path != name
    found = find(Config, path)
    if found is None and coupled:
        error = unknown_path(Config, path)
        accepted = error.accepted
        if find(Config, name) is not None:
            accepted = f"config paths, such as {{{name}: {{{path}: ...}}}}: {name} has no dot"
        raise spec.error(f"sets {path}: {error.problem}", key=key, accepted=accepted)
    if found is None:
        raise _unknown_parameter(spec, Config, path, key)
    parameter = spec.search[name]
    if found.value or (parameter.of_mappings and not coupled):
        return
    values = [choice[path] for choice in parameter.choices or () if path in choice] if coupled else [None]
    if any(not isinstance(value, dict) for value in values):
        inside = [leaf for leaf in leaves(Config) if leaf.startswith(f"{path}.")]
        problem = f"sets {path}, which is a group, not a parameter" if coupled else "is a group, not a parameter"
        raise spec.error(problem, key=key, accepted=", ".join(inside) or None)


def _expression_texts(spec: SweepSpec) -> list[tuple[str, str]]:
    whens = [(f"search.{path}.when", parameter.when) for path, parameter in spec.search.items() if parameter.when]
    return [*whens, *((f"require.{index}", text) for index, text in enumerate(spec.require))]


def _unknown_parameter(spec: SweepSpec, Config: type[BaseModel], path: str, key: str) -> BadInput:
    error = unknown_path(Config, path)
    return spec.error(error.problem, key=key, accepted=error.accepted)


def _check_objectives(spec: SweepSpec, metrics: Mapping[str, MetricLike], conditional: bool) -> None:
    def weights(name: str) -> list[str]:
        return [path for path in _searched_paths(spec) for by in metrics[name].weighted_by if _overlap(path, by)]

    fair = [n for n, m in metrics.items() if not weights(n) and not (conditional and m.sees_target)]
    for index, objective in enumerate(spec.objectives):
        key, name = f"objectives.{index}.metric", objective.metric
        if name not in metrics:
            close = difflib.get_close_matches(name, metrics, 1)
            problem = f"no such metric; did you mean {close[0]}?" if close else "no such metric"
            raise spec.error(problem, key=key, value=name, accepted=", ".join(metrics))
        metric = metrics[name]
        if conditional and metric.sees_target:
            raise spec.error(
                "is computed from a posterior that sees the target, so an autoencoder would win",
                key=key, value=name, accepted=", ".join(fair) or "no metric of this trainable",
            )
        if weights(name) and not objective.allow_weighted:
            raise spec.error(
                f"changes its scale with {' and '.join(weights(name))}, which is searched, so it cannot compare trials",
                key=key, value=name, accepted=", ".join([*fair, "or allow_weighted: true beside it"]),
            )
        if objective.direction not in (None, metric.direction):
            raise spec.error(
                f"{name} is better the {'smaller' if metric.direction == 'min' else 'larger'} it is",
                key=f"objectives.{index}.direction", value=objective.direction, accepted=metric.direction,
            )


def uncovered_weights(spec: SweepSpec, metrics: Mapping[str, MetricLike]) -> list[str]:
    """Searched paths that are named as the weight of a loss and that no metric says its scale depends on.

    Args:
        spec: The sweep.
        metrics: Of its trainable.
    """
    covered = [by for metric in metrics.values() for by in metric.weighted_by]
    named = [path for path in _searched_paths(spec) if _WEIGHT.search(path)]
    return [path for path in named if not any(_overlap(path, by) for by in covered)]


def _searched_paths(spec: SweepSpec) -> list[str]:
    return [path for paths in spec.searched.values() for path in paths]


def _overlap(path: str, other: str) -> bool:
    return path == other or path.startswith(f"{other}.") or other.startswith(f"{path}.")


def _check_values(spec: SweepSpec, Config: type[BaseModel]) -> None:
    """Every fixed value, both ends of every range and every choice are taken by the `Config` in some draw."""
    _check_accepted(spec, Config, None, None)
    for path, parameter in spec.search.items():
        for value in parameter.probes():
            _check_accepted(spec, Config, path, value)


def _check_accepted(spec: SweepSpec, Config: type[BaseModel], pinned: str | None, value: Any) -> None:
    """Raises the refusal of `value` at `pinned` (None: of what is fixed) that no other draw of the rest could lift."""
    rng, refused, tries = random.Random(0), None, 0
    for _ in range(MAX_DRAWS):
        params = _draw_with(spec, Config, rng, pinned, value)
        if params is None:
            continue
        tries += 1
        try:
            trial_config.build(spec, params, Config)
            return
        except BadInput as error:
            if not _is_about_another(spec, error, pinned):
                refused = refused or error
        if tries == MAX_ATTEMPTS:
            break
    if not tries:
        raise spec.error(
            f"never holds in {MAX_DRAWS:,} random draws, so the parameter is never searched",
            key=f"search.{pinned}.when", value=spec.search[pinned or ""].when,
        )
    if refused is not None:
        raise refused if pinned is None else _refusal_of_value(spec, refused, pinned, value)


def _draw_with(
    spec: SweepSpec, Config: type[BaseModel], rng: random.Random, pinned: str | None, value: Any
) -> dict[str, Any] | None:
    params: dict[str, Any] = {}
    for path, parameter in trial_config.active_parameters(spec, params, Config):
        params[path] = value if path == pinned else parameter.draw(rng)
    return params if pinned is None or pinned in params else None


def _is_about_another(spec: SweepSpec, error: BadInput, pinned: str | None) -> bool:
    """Whether a refusal is about another searched parameter, whose own turn will come."""
    key = error.key or ""
    return any(_is_at_or_below(key, f"search.{path}") for path in spec.search if path != pinned)


def _is_at_or_below(key: str, spec_key: str) -> bool:
    """Whether `key` (perhaps of a profile) names `spec_key` or something below it."""
    return key.endswith(spec_key) or f"{spec_key}." in key


def _refusal_of_value(spec: SweepSpec, refused: BadInput, path: str, value: Any) -> BadInput:
    if _is_at_or_below(refused.key or "", f"search.{path}"):
        problem = f"the trainer's config refuses a value of this range: {refused.problem}"
        accepted = refused.accepted
        if spec.search[path].choices is not None:
            problem = f"the trainer's config refuses this choice: {refused.problem}"
        elif isinstance(value, float) and "whole number" in refused.problem:
            accepted = "an int or logint range"
        return spec.error(problem, key=f"search.{path}", value=value, accepted=accepted)
    problem = f"the trainer's config refuses every draw with this value: {refused.key}: {refused.problem}"
    return spec.error(problem, key=f"search.{path}", value=value, accepted=refused.accepted)


def _check_draws(spec: SweepSpec, trainable: TrainableLike, epochs_path: str) -> None:
    """Some draw can be a trial: the config accepts it, every `require` holds, and beta is final within its budget."""
    rng, counts, errors = random.Random(0), Counter[str](), {}
    for _ in range(MAX_DRAWS):
        error = _refusal_of_draw(spec, trainable, trial_config.sample(spec, rng, trainable.Config), epochs_path)
        if error is None:
            return
        counts[error.key or ""] += 1
        errors[error.key or ""] = error
    key, count = counts.most_common(1)[0]
    worst = errors[key]
    if count < MAX_DRAWS:
        worst.problem += f" (so fail {count:,} of {MAX_DRAWS:,} draws, and the others elsewhere)"
    raise worst


def _refusal_of_draw(
    spec: SweepSpec, trainable: TrainableLike, params: dict[str, Any], epochs_path: str
) -> BadInput | None:
    schedule = partial(trial_config.schedule_of, trainable)
    try:
        config = trial_config.build(spec, params, trainable.Config, schedule=schedule, epochs_path=epochs_path)
    except BadInput as error:
        return error
    if (text := trial_config.violated_requirement(spec, config)) is not None:
        return spec.error(
            f"no draw in {MAX_DRAWS:,} satisfies it",
            key=f"require.{spec.require.index(text)}", value=text,
            accepted="an expression that part of the search space satisfies",
        )
    plan = schedule(config)
    if plan.full_beta_epochs(plan.epochs) >= 1:
        return None
    final = trial_config.settles(plan)
    return spec.error(
        f"no draw in {MAX_DRAWS:,} has an epoch at its final beta (of {plan.epochs} epochs in the last, final {final})",
        key=trial_config.spec_key(spec, epochs_path),
        accepted="more epochs or a shorter warm-up",
    )
