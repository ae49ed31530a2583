"""The spec of a sweep: what is trained, what may vary, what counts, what it may cost.

In comes a YAML file of `search_spaces/`, perhaps with a profile and `key.path=value` overrides; out goes a `SweepSpec`,
resolved and JSON-able, that orders and activates the searched parameters, builds a trial's config, and judges its
`require` expressions. `check` holds the spec against the family's config and metrics. Everything that is wrong is one
`BadInput` sentence with the file, the key path, the value and what would be accepted.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from buttress.errors import BadInput, from_pydantic
from buttress.spec import expressions as grammar
from buttress.spec.config_paths import layered, nested
from buttress.spec.overrides import Sources, resolve
from buttress.spec.parameters import Parameter, Random, Section
from buttress.spec.yaml_io import plain, read_yaml

if TYPE_CHECKING:
    from buttress.spec.validation import MetricLike

Count = Annotated[int, Field(strict=True, ge=1)]
Positive = Annotated[float, Field(strict=True, gt=0)]
_OWN = {  # config paths that the spec sets itself, and the key that decides them
    "buttress.trainable": "trainable",
    "buttress.objective": "objectives",
    "buttress.seed": "seed or trial_seed",
    "buttress.workers": "resources.workers",
}
_ROUNDS = 100  # at most so many steps to the number of epochs that leaves `budget.full_beta_epochs`

C = TypeVar("C", bound=BaseModel)


class ScheduleLike(Protocol):
    """What a trainable's `schedule(config)` gives, as far as the spec reads it."""

    @property
    def epochs(self) -> int: ...
    @property
    def full_at_epoch(self) -> float: ...


class Objective(BaseModel):
    """What counts. `direction` defaults to the metric's own; `SweepSpec.check` fills it in."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    metric: str = Field(min_length=1)
    direction: Literal["min", "max"] | None = None
    allow_weighted: bool = False


class Scheduler(Section):
    """`asha`: rungs at full-beta ages `first`, `first * factor`, ...; `fifo`: every trial runs to its end."""

    kind: Literal["asha", "fifo"] = "asha"
    first: Count = 4
    factor: Annotated[int, Field(strict=True, ge=2)] = 3


class Sampler(Section):
    """How trials are drawn. With `repeats` a configuration may be run again, under another seed."""

    repeats: Annotated[bool, Field(strict=True)] = False


class Breaker(Section):
    """The circuit breaker: the sweep stops once so large a share of its first trials has collapsed; `off`: never."""

    first: Annotated[int, Field(strict=True, ge=5)] = 20
    collapsed: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.9

    @property
    def limit(self) -> int:
        """So many collapsed trials among the first stop the sweep."""
        return math.ceil(self.first * self.collapsed - 1e-9)


class Budget(Section):
    """When the sweep ends (whichever of `trials`, `healthy`, `hours` comes first) and what one trial may take."""

    trials: Count | None = None
    healthy: Count | None = None
    hours: Positive | None = None
    trial_minutes: Positive | None = None
    stall_minutes: Positive = 10.0
    full_beta_epochs: Count | None = None

    @model_validator(mode="after")
    def _ends(self) -> Budget:
        if self.trials is None and self.healthy is None and self.hours is None:
            raise BadInput("does not say when the sweep ends", accepted="at least one of trials, healthy, hours")
        return self


class Audit(Section):
    """How the sweep checks its own rules: this share of the trials that collapse runs on to its real end."""

    share: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.0


class Probation(Section):
    """A second chance: a trial that collapses is set aside, and if it ranks comes back for so many further epochs.

    `when`: it is set aside once it is `condemned`, or as soon as a kill rule is `suspect` of it, patience or not.
    """

    epochs: Count | None = None
    when: Literal["condemned", "suspect"] = "condemned"


class Resources(Section):
    """What one trial holds while it runs, and how many run at a time (`auto`: as many as fit, and more as nodes join).

    With `autoscale` slots that do not fit wait for nodes to join: an autoscaler brings them because they wait.
    """

    workers: Count = 1
    cpus_per_worker: Positive = 1.0
    gpus_per_worker: Annotated[float, Field(strict=True, ge=0)] = 0.0
    concurrency: Literal["auto"] | Count = "auto"
    autoscale: bool = False

    @field_validator("concurrency", mode="before")
    @classmethod
    def _auto_or_count(cls, given: Any) -> Any:
        if given != "auto" and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
            raise BadInput("has to be auto or a whole number of at least 1", value=given)
        return given

    @model_validator(mode="after")
    def _count_to_scale_to(self) -> Resources:
        if self.autoscale and self.concurrency == "auto":
            raise BadInput(
                "says nothing about how many trials to bring nodes for", key="concurrency", value="auto",
                accepted="with autoscale: true, a number: that many slots ask the autoscaler for room",
            )
        return self

    @model_validator(mode="after")
    def _whole_gpus(self) -> Resources:
        shared = not float(self.gpus_per_worker).is_integer()
        if shared and self.workers > 1:
            raise BadInput(
                f"{self.workers} workers cannot share a GPU: NCCL refuses two ranks on one device (duplicate GPU)",
                key="gpus_per_worker", value=self.gpus_per_worker, accepted="a whole number, or workers: 1",
            )
        if shared and self.gpus_per_worker > 1:
            raise BadInput(
                "more than one GPU comes in whole numbers only",
                key="gpus_per_worker", value=self.gpus_per_worker, accepted="a share below 1, or a whole number",
            )
        return self


class Wandb(Section):
    """Where the driver logs to. The key comes from the environment (WANDB_API_KEY) and only `online` needs it."""

    project: str | None = None
    entity: str | None = None
    group: str | None = None
    mode: Literal["offline", "online", "disabled"] = "offline"
    tags: tuple[str, ...] = ()


class SweepSpec(Section):
    """One sweep, resolved: profile and overrides applied, every key checked as far as the spec alone can tell.

        spec = SweepSpec.load("search_spaces/lithology.yaml", profile="quick", overrides=["budget.trials=8"])
        spec.check(Config=Lithology.Config, metrics=Lithology.metrics)
        params = spec.sample(random.Random(0), Config)
        config = spec.config(params, Config, seed=spec.seed_of(0))
    """

    name: str = "sweep"
    trainable: str = Field(min_length=1)
    data: dict[str, Any] = Field(default_factory=dict)
    fixed: dict[str, Any] = Field(default_factory=dict)
    search: dict[str, Parameter] = Field(default_factory=dict)
    require: tuple[str, ...] = ()
    objectives: tuple[Objective, ...] = Field(min_length=1)
    rules: dict[str, Any] = Field(default_factory=dict)
    scheduler: Scheduler = Scheduler()
    sampler: Sampler = Sampler()
    breaker: Breaker | None = Breaker()
    warm_start: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    budget: Budget
    audit: Audit = Audit()
    probation: Probation = Probation()
    resources: Resources = Resources()
    wandb: Wandb = Wandb()
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    trial_seed: Annotated[int, Field(strict=True, ge=0)] | None = None
    profile: str | None = None

    _sources: Sources = PrivateAttr(default_factory=Sources)

    # ---- reading and writing

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        profile: str | None = None,
        overrides: Sequence[str] = (),
        *,
        name: str | None = None,
    ) -> SweepSpec:
        """The spec in the YAML file `path` under `profile` and `overrides`; `name` defaults to the file's stem."""
        raw = read_yaml(path)
        if "profile" in raw:
            raise BadInput("a file cannot choose its profile", where=path, key="profile", accepted="--profile NAME")
        tree, sources = resolve(raw, profile=profile, overrides=overrides, where=path)
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(path).stem).lstrip("-_.") or "sweep"
        return cls._from(tree | {"name": name or tree.get("name", stem), "profile": profile}, sources)

    @classmethod
    def from_dict(
        cls,
        tree: Mapping[str, Any],
        profile: str | None = None,
        overrides: Sequence[str] = (),
        *,
        where: str | os.PathLike[str] | None = None,
    ) -> SweepSpec:
        """The spec that a mapping stands for: what a file would hold, or what `to_dict` wrote.

        `where` is named in errors (a journal, say).
        """
        base, sources = resolve(plain(dict(tree), where=where), profile=profile, overrides=overrides, where=where)
        return cls._from(base | ({"profile": profile} if profile else {}), sources)

    @classmethod
    def _from(cls, tree: dict[str, Any], sources: Sources) -> SweepSpec:
        try:
            spec = cls.model_validate(tree)
        except ValidationError as error:
            raise sources.locate(from_pydantic(error, cls)) from None
        spec._sources = sources
        return spec

    def to_dict(self) -> dict[str, Any]:
        """JSON-able and resolved; `from_dict` gives an equal spec."""
        return self.model_dump(mode="json")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SweepSpec) and self.to_dict() == other.to_dict()

    def wrong(self, problem: str, *, key: str, value: Any = ..., accepted: str | None = None) -> BadInput:
        """An error about the spec's `key`, said to stand where that key was given (file, profile or command line)."""
        return self._sources.locate(BadInput(problem, key=key, value=value, accepted=accepted))

    @property
    def where(self) -> str | os.PathLike[str] | None:
        """The file this spec was read from."""
        return self._sources.file

    # ---- what the spec alone can tell

    @field_validator("require", "warm_start", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        return given if isinstance(given, list | tuple) else [given]

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            accepted = "letters, digits, '_', '.' and '-', a letter or digit first"
            raise BadInput("is no name for a folder", value=name, accepted=accepted)
        return name

    @field_validator("objectives", mode="before")
    @classmethod
    def _bare_names(cls, given: Any) -> Any:
        several = given if isinstance(given, list | tuple) else [given]
        return [{"metric": one} if isinstance(one, str) else one for one in several]

    @field_validator("breaker", mode="before")
    @classmethod
    def _on_or_off(cls, given: Any) -> Any:
        if given is not None and not isinstance(given, bool | dict | Breaker):
            raise BadInput("is neither off nor a mapping", value=given, accepted="off, or first and collapsed")
        return (Breaker() if given else None) if isinstance(given, bool) else given

    @field_serializer("breaker")
    def _off_is_false(self, given: Breaker | None) -> dict[str, Any] | bool:
        return given.model_dump(mode="json") if given is not None else False  # a null would fall back to the default

    @field_validator("require")
    @classmethod
    def _parse(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for index, text in enumerate(texts):
            try:
                grammar.parse(text)
            except BadInput as error:
                raise BadInput(error.problem, key=str(index), value=error.value, accepted=error.accepted) from None
        return texts

    @model_validator(mode="after")
    def _consistent(self) -> SweepSpec:
        names = [objective.metric for objective in self.objectives]
        for index, metric in enumerate(names):
            if metric in names[:index]:
                raise BadInput("is an objective twice", key=f"objectives.{index}.metric", value=metric)
        for section, paths in (("fixed", self.fixed), ("search", self.search)):
            for path in paths:
                if not all(path.split(".")):
                    raise BadInput("is not a config path", key=f"{section}.{path}", accepted="group.name")
                if path in _OWN:
                    raise BadInput("is set by the spec itself", key=f"{section}.{path}", accepted=_OWN[path])
        self._refuse_doubles()
        _ = self.ordered
        return self

    def _refuse_doubles(self) -> None:
        """No parameter is given in two sections, and nothing is given below a plain value."""
        data = {f"data.{name}": value for name, value in self.data.items()}
        given = [("search", path) for path in self.search]
        given += [("fixed", leaf) for leaf in _flat(self.fixed)] + [("data", leaf) for leaf in _flat(data)]
        for index, (section, path) in enumerate(given):
            for other, below in given[index + 1 :]:
                if path == below and section == other:
                    continue  # `loss.beta: {end: 1}` and `loss.beta.end: 2`: the deeper key has the last word
                if f"{below}.".startswith(f"{path}.") or path.startswith(f"{below}."):
                    verb = "is searched" if section == "search" else f"is given under {section}"
                    raise BadInput(
                        f"{verb}, and so is {below}" if section == other else f"{verb}, and {below} under {other}",
                        key=path if section == "data" else f"{section}.{path}",
                        accepted="one of the two (in a profile, null removes a key)",
                    )

    @cached_property
    def ordered(self) -> list[str]:
        """The searched paths, each after those its `when` reads; otherwise as in the file. A cycle is an error."""
        order: list[str] = []
        open_: list[str] = []

        def place(path: str) -> None:
            if path in order:
                return
            if path in open_:
                cycle = [*open_[open_.index(path) :], path]
                problem = f"its `when` depends on itself ({' -> '.join(cycle)})"
                raise BadInput(problem, key=f"search.{path}", value=self.search[path].when)
            open_.append(path)
            for read in self._reads(path):
                for other in self.search:
                    if other == read or other.startswith(f"{read}.") or read.startswith(f"{other}."):
                        place(other)
            open_.pop()
            order.append(path)

        for path in self.search:
            place(path)
        return order

    def _reads(self, path: str) -> tuple[str, ...]:
        when = self.search[path].when
        return grammar.parse(when).reads if when else ()

    def seed_of(self, trial_number: int) -> int:
        """The trial's seed: `trial_seed` if the spec fixes it, else a 31-bit hash of sweep seed and trial number."""
        if self.trial_seed is not None:
            return self.trial_seed
        digest = hashlib.blake2b(f"{self.seed}/{trial_number}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") & 0x7FFFFFFF

    def audits(self, trial_number: int) -> bool:
        """Whether the trial, should it collapse, runs on to its real end: a draw of its own, whatever else goes on."""
        digest = hashlib.blake2b(f"audit/{self.seed}/{trial_number}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.audit.share * 2**64

    # ---- drawing parameters

    def parameters(
        self, params: MutableMapping[str, Any], Config: type[BaseModel] | None = None
    ) -> Iterator[tuple[str, Parameter]]:
        """Define by run: yields the parameters that are active given what has been drawn so far.

            params = {}
            for path, parameter in spec.parameters(params, Config):
                params[path] = draw(path, parameter)

        `Config` supplies the defaults of what is neither searched nor fixed, for a `when` that reads it.
        """
        for path in self.ordered:
            if self.search[path].when is None or self.active(path, self.draft(params, Config)):
                yield path, self.search[path]

    def draft(self, params: Mapping[str, Any], Config: type[BaseModel] | None = None) -> dict[str, Any]:
        """The nested config that `params` lead to, not validated, over the defaults of `Config` where it is given."""
        given = nested(self._given(params))
        return layered(Config, given, fill=True) if Config is not None else given

    def active(self, path: str, draft_config: Any) -> bool:
        """Whether the `when` of the searched `path` holds (a parameter without one always is active)."""
        when = self.search[path].when
        return True if when is None else self._judge(when, draft_config, f"search.{path}.when")

    def sample(self, rng: Random, Config: type[BaseModel] | None = None) -> dict[str, Any]:
        """A plain random draw of the space that honours `when` (not `require`); the same for the same `rng` state."""
        params: dict[str, Any] = {}
        for path, parameter in self.parameters(params, Config):
            params[path] = parameter.draw(rng)
        return params

    # ---- building and judging a config

    def config(
        self,
        params: Mapping[str, Any],
        Config: type[C],
        *,
        seed: int | None = None,
        schedule: Callable[[C], ScheduleLike] | None = None,
        epochs_path: str = "train.epochs",
    ) -> C:
        """The trial's validated config: the family's defaults, then data, fixed, `params`, and what the spec decides.

        `seed` None leaves the family's default. With `budget.full_beta_epochs: N` and a `schedule`, `epochs_path` is
        set so that N whole epochs follow the one at which beta is final. Raises `BadInput` with the spec's key path
        where the `Config` refuses a value or a combination (a draw like that counts as refused, see `violated`).
        """
        given = self._given(params) | {
            "buttress.trainable": self.trainable,
            "buttress.objective": self.objectives[0].metric,
            "buttress.workers": self.resources.workers,
        }
        if seed is not None:
            given["buttress.seed"] = seed
        if self.budget.full_beta_epochs is None or schedule is None:
            return self._built(given, Config)
        return self._settled(given, Config, schedule, epochs_path, self.budget.full_beta_epochs)

    def violated(self, config: Any) -> str | None:
        """The first `require` expression that does not hold for `config`; None if all do."""
        for index, text in enumerate(self.require):
            if not self._judge(text, config, f"require.{index}"):
                return text
        return None

    def check(
        self,
        *,
        Config: type[BaseModel],
        metrics: Mapping[str, MetricLike],
        conditional: bool = False,
        epochs_path: str = "train.epochs",
        schedule: Callable[[Any], ScheduleLike] | None = None,
    ) -> None:
        """Holds the spec against a family: paths, values, objectives, `when`, `require` (and `schedule`, if given).

        Fills in the objectives' directions. Raises `BadInput` for the first thing that does not fit.
        """
        from buttress.spec.validation import check

        check(self, Config, metrics, conditional=conditional, epochs_path=epochs_path, schedule=schedule)

    def _given(self, params: Mapping[str, Any]) -> dict[str, Any]:
        data = {f"data.{name}": value for name, value in self.data.items()}
        return data | self.fixed | dict(params)

    def _built(self, given: Mapping[str, Any], Config: type[C]) -> C:
        try:
            return Config.model_validate(layered(Config, nested(given)))
        except ValidationError as error:
            told = from_pydantic(error, Config)
            key = self.key_of(told.key)
            raise self.wrong(told.problem, key=key, value=told.value, accepted=told.accepted) from None

    def _settled(
        self,
        given: dict[str, Any],
        Config: type[C],
        schedule: Callable[[C], ScheduleLike],
        epochs_path: str,
        beyond: int,
    ) -> C:
        """The config with the epochs until beta is final plus `beyond` (the schedule may itself depend on epochs)."""
        config = self._built(given, Config)
        epochs: int | None = None
        for _ in range(_ROUNDS):
            full_at = schedule(config).full_at_epoch
            if math.isinf(full_at) and epochs is not None:
                break
            wanted = 10_000 + beyond if math.isinf(full_at) else math.ceil(full_at) + beyond
            if wanted == epochs:
                return config
            epochs = wanted
            config = self._built(given | {epochs_path: epochs}, Config)
        raise self.wrong(
            "beta never has its final value for good under this schedule, so epochs at full beta cannot be counted",
            key="budget.full_beta_epochs", value=beyond, accepted=f"{epochs_path} under fixed",
        )

    def key_of(self, path: str | None) -> str:
        """The spec's key that decides the config path `path`."""
        for section, held in (("search", self.search), ("fixed", self.fixed)):
            if path and any(path == name or path.startswith(f"{name}.") for name in held):
                return f"{section}.{path}"
        if path and (path == "data" or path.startswith("data.")):
            return path
        return f"config.{path}" if path else "config"

    def _judge(self, text: str, config: Any, key: str) -> bool:
        try:
            return grammar.parse(text).holds(config)
        except BadInput as error:
            raise self.wrong(error.problem, key=key, value=error.value, accepted=error.accepted) from None


def _flat(values: Mapping[str, Any]) -> Iterator[str]:
    """The paths of all leaves of `values`, whose keys may be dotted and whose values may be mappings."""
    for path, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from (f"{path}.{inner}" for inner in _flat(value))
        else:
            yield path
