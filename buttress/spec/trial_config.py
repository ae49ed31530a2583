"""Draws a trial's parameters from a spec and builds its config.

`Config` is the trainable's pydantic config class throughout; `params` are drawn values by config path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from buttress.errors import BadInput, from_pydantic
from buttress.spec import expressions
from buttress.spec.config_paths import layered, nested
from buttress.spec.parameters import Parameter, Random
from buttress.spec.spec import SweepSpec

EPOCHS_PATH = "train.epochs"  # config path of the number of epochs, unless the trainable has its own `epochs_path`
MAX_EPOCH_UPDATES = 100  # of a schedule that itself depends on the number of epochs
_LONG_BUDGET = 10_000  # epochs tried for a schedule whose beta is never final within the config's own

C = TypeVar("C", bound=BaseModel)


class ScheduleLike(Protocol):
    """What is read of a trainable's `schedule(config)`."""

    @property
    def epochs(self) -> int: ...
    @property
    def full_at_epoch(self) -> float: ...
    @property
    def full_at_step(self) -> int: ...
    @property
    def steps_per_epoch(self) -> int | None: ...
    @property
    def in_steps_only(self) -> bool: ...
    def settles_after(self) -> tuple[float, float]: ...
    def full_beta_epochs(self, completed: int) -> int: ...


def schedule_of(trainable: Any, config: Any) -> ScheduleLike:
    """A trainable's schedule for a config; raises `BadInput` where it returns something else."""
    given: ScheduleLike = trainable.schedule(config)
    if not hasattr(given, "full_at_epoch"):
        problem = f"{type(trainable).__name__}.schedule returned no Schedule"
        raise BadInput(problem, key="trainable", value=given, accepted="Schedule(epochs=...)")
    return given


# ---- drawing parameters


def active_parameters(
    spec: SweepSpec, params: MutableMapping[str, Any], Config: type[BaseModel] | None = None
) -> Iterator[tuple[str, Parameter]]:
    """Yields the parameters that are active given what has been drawn so far (define by run).

        params = {}
        for path, parameter in active_parameters(spec, params, Config):
            params[path] = parameter.draw(rng)

    Args:
        spec: the search space.
        params: the caller adds each drawn value before the next parameter is asked for.
        Config: supplies the defaults of what is neither searched nor fixed, for a `when` that reads it.
    """
    for path in spec.ordered:
        if spec.search[path].when is None or is_active(spec, path, draft(spec, params, Config)):
            yield path, spec.search[path]


def sample(
    spec: SweepSpec, rng: Random, Config: type[BaseModel] | None = None, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A random draw that honours `when` (not `require`), but for the values `given`; the same for the same `rng`."""
    params: dict[str, Any] = {}
    for path, parameter in active_parameters(spec, params, Config):
        drawn = parameter.draw(rng)
        params[path] = given[path] if given is not None and path in given else drawn
    return params


def draft(spec: SweepSpec, params: Mapping[str, Any], Config: type[BaseModel] | None = None) -> dict[str, Any]:
    """The nested config that `params` lead to, not validated, over the defaults of `Config` if given."""
    given = nested(_given(spec, params))
    return layered(Config, given, fill=True) if Config is not None else given


def default_params(spec: SweepSpec, Config: type[BaseModel]) -> dict[str, Any]:
    """The values that the searched parameters have in the trainable's own config.

    Left out are inactive parameters, and coupled ones none of whose choices is what the config has.
    """
    defaults = draft(spec, {}, Config)

    def value(path: str) -> Any:
        found: Any = defaults
        for key in path.split("."):
            found = found[key] if isinstance(found, dict) else getattr(found, key)
        return found

    found = {}
    for name, paths in spec.searched.items():
        if not is_active(spec, name, defaults):
            continue
        if paths == (name,):
            found[name] = value(name)
        for choice in spec.search[name].choices or () if paths != (name,) else ():
            if all(value(path) == wanted for path, wanted in choice.items()):
                found[name] = choice
                break
    return found


def is_active(spec: SweepSpec, path: str, draft_config: Any) -> bool:
    """Whether the `when` of the searched `path` holds over `draft_config`; True without one."""
    when = spec.search[path].when
    return True if when is None else _holds(spec, when, draft_config, f"search.{path}.when")


# ---- building and judging a config


def build(
    spec: SweepSpec,
    params: Mapping[str, Any],
    Config: type[C],
    *,
    seed: int | None = None,
    schedule: Callable[[C], ScheduleLike] | None = None,
    epochs_path: str = EPOCHS_PATH,
) -> C:
    """The validated config of a trial: defaults of `Config`, then `data`, `fixed`, `params` and what the spec decides.

    Args:
        spec: a spec.
        params: drawn values by config path.
        Config: the trainable's config class.
        seed: the trial's seed; None leaves the default of `Config`.
        schedule: with `budget.full_beta_epochs: N`, sets `epochs_path` so that N whole epochs follow the one at which
            beta is final.
        epochs_path: config path of the number of epochs.

    Raises:
        BadInput: with the spec's key path, where `Config` refuses a value or a combination of values.
    """
    given = _given(spec, params) | {
        "buttress.trainable": spec.trainable,
        "buttress.objective": spec.objectives[0].metric,
        "buttress.workers": spec.resources.workers,
    }
    if seed is not None:
        given["buttress.seed"] = seed
    if spec.budget.full_beta_epochs is None or schedule is None:
        return _validated(spec, given, Config)
    return _with_full_beta_epochs(spec, given, Config, schedule, epochs_path, spec.budget.full_beta_epochs)


def settles(schedule: ScheduleLike) -> str:
    """When a schedule's beta is final, in words."""
    epoch, step = schedule.settles_after()
    if math.isinf(epoch):
        return "never"
    if schedule.steps_per_epoch and schedule.full_at_step > schedule.full_at_epoch * schedule.steps_per_epoch:
        return f"after {step:,} steps ({schedule.steps_per_epoch:,} an epoch)"
    return f"after {schedule.full_at_epoch:g} epochs"


def violated_requirement(spec: SweepSpec, config: Any) -> str | None:
    """The first `require` expression that does not hold for `config`; None if all hold."""
    for index, text in enumerate(spec.require):
        if not _holds(spec, text, config, f"require.{index}"):
            return text
    return None


def spec_key(spec: SweepSpec, path: str | None) -> str:
    """The spec's key that decides the config path `path`."""
    for name, paths in spec.searched.items():
        if path and any(f"{path}.".startswith(f"{one}.") for one in paths):
            return f"search.{path}" if paths == (name,) else f"search.{name}"
    if path and any(f"{path}.".startswith(f"{name}.") for name in spec.fixed):
        return f"fixed.{path}"
    if path and (path == "data" or path.startswith("data.")):
        return path
    return f"config.{path}" if path else "config"


def _given(spec: SweepSpec, params: Mapping[str, Any]) -> dict[str, Any]:
    data = {f"data.{name}": value for name, value in spec.data.items()}
    return data | spec.fixed | spec.values_of(params)


def _validated(spec: SweepSpec, given: Mapping[str, Any], Config: type[C]) -> C:
    try:
        return Config.model_validate(layered(Config, nested(given)))
    except ValidationError as refused:
        error = from_pydantic(refused, Config)
        key = spec_key(spec, error.key)
        raise spec.error(error.problem, key=key, value=error.value, accepted=error.accepted) from None


def _with_full_beta_epochs(
    spec: SweepSpec,
    given: dict[str, Any],
    Config: type[C],
    schedule: Callable[[C], ScheduleLike],
    epochs_path: str,
    count: int,
) -> C:
    """The config whose epochs end `count` after beta is final (the schedule may itself depend on the epochs)."""
    config = _validated(spec, given, Config)
    epochs: int | None = None
    for _ in range(MAX_EPOCH_UPDATES):
        plan = schedule(config)
        if plan.in_steps_only:
            raise spec.error(
                f"the schedule is given in steps ({plan.full_at_step:,}), and how many of them make an epoch is not "
                "known before the data has been read", key="budget.full_beta_epochs", value=count,
                accepted=f"{epochs_path} under fixed, or a schedule() with steps_per_epoch",
            )  # fmt: skip
        full_at = plan.settles_after()[0]
        if math.isinf(full_at) and epochs is not None:
            break
        needed = int(_LONG_BUDGET if math.isinf(full_at) else full_at) + count
        if needed == epochs:
            return config
        epochs = needed
        config = _validated(spec, given | {epochs_path: epochs}, Config)
    raise spec.error(
        "beta never has its final value for good under this schedule, so epochs at full beta cannot be counted",
        key="budget.full_beta_epochs", value=count, accepted=f"{epochs_path} under fixed",
    )


def _holds(spec: SweepSpec, text: str, config: Any, key: str) -> bool:
    try:
        return expressions.parse(text).holds(config)
    except BadInput as error:
        raise spec.error(error.problem, key=key, value=error.value, accepted=error.accepted) from None
