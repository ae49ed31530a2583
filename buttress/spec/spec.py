"""The spec of a sweep: what is trained, what may vary, what counts and what it may cost.

`SweepSpec.load` reads it, `validation.check` checks it against its trainable, and `trial_config` draws parameters and
builds configs from it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, field_serializer, field_validator, model_validator

from buttress.errors import BadInput, from_pydantic
from buttress.spec import expressions
from buttress.spec.overrides import Sources, resolve
from buttress.spec.parameters import Parameter
from buttress.spec.sections import (
    Audit,
    Breaker,
    Budget,
    Objective,
    Resources,
    Sampler,
    Scheduler,
    Section,
    Seed,
    Wandb,
)
from buttress.spec.yaml_io import plain, read_yaml

#: Config paths that the spec sets itself, and the keys that decide them.
_SET_BY_SPEC = {
    "buttress.trainable": "trainable",
    "buttress.objective": "objectives",
    "buttress.seed": "seed or trial_seed",
    "buttress.workers": "resources.workers",
}
#: Keys of earlier versions that journals hold.
_RETIRED = ("probation",)


class SweepSpec(Section):
    """One sweep, with profile and overrides applied, valid as far as the spec alone can tell.

    Equal to another one when `to_dict` is. An example:

        spec = SweepSpec.load("search_spaces/lithology.yaml", profile="quick", overrides=["budget.trials=8"])
        spec = validation.check(spec, trainable)
        params = trial_config.sample(spec, random.Random(0), trainable.Config)
        config = trial_config.build(spec, params, trainable.Config, seed=spec.seed_of(0))
    """

    name: str = Field(
        "sweep",
        description="Name of the sweep, the beginning of its id and its folder: letters, digits, `_`, `.` and `-`. "
        "Default: the file's name.",
    )
    trainable: str = Field(
        min_length=1, description="A trainable that comes with Buttress, or your own: `my_package.module:MyTrainable`."
    )
    data: dict[str, Any] = Field(
        default_factory=dict,
        description="Values of the config's group `data`, by path below it. Default: the config's own.",
    )
    fixed: dict[str, Any] = Field(
        default_factory=dict,
        description="Values of config paths that every trial has, such as `train.epochs: 100`. A path leaves the rest "
        "of its group at the config's defaults; a mapping as a value replaces the group.",
    )
    search: dict[str, Parameter] = Field(
        default_factory=dict, description="Searched parameters, by config path: `loss.beta: {loguniform: [0.01, 1]}`."
    )
    require: tuple[str, ...] = Field(
        (),
        description="Expressions over the config, such as `config.loss.warmup < config.train.epochs`. A draw for which "
        "one does not hold is drawn again and is no trial.",
    )
    objectives: tuple[Objective, ...] = Field(
        min_length=1,
        description="Metrics to optimize: names, or mappings with the keys below. The first one decides `best` and the "
        "early stopping; several are searched for their Pareto front.",
    )
    rules: dict[str, Any] = Field(
        default_factory=dict,
        description="Changes to the collapse rules: `extends` names a family or a rules file (default: the trainable's "
        "own), every other key a rule and the keys of it to change.",
    )
    scheduler: Scheduler = Field(Scheduler(), description="Early stopping of trials that do worse than others.")
    sampler: Sampler = Field(Sampler(), description="How configurations are drawn.")
    breaker: Breaker | None = Field(
        Breaker(), description="Stops the sweep when nearly all of its first trials collapse; `off`: never."
    )
    first: tuple[Literal["default"] | dict[str, Any], ...] = Field(
        (),
        description="Configurations to run before any is drawn: `default` (the trainable's own values), or mappings of "
        "searched paths to values, what they leave out drawn at random: `[default, {loss.beta: 0.3}]`.",
    )
    warm_start: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="Earlier sweeps (folder, URL or name) whose trials the sampler learns from."
    )
    budget: Budget = Field(description="When the sweep ends, and what one trial may take.")
    audit: Audit = Field(Audit(), description="Checks the rules on some of the trials that they would stop.")
    resources: Resources = Field(
        Resources(), description="What a trial holds while it runs, and how many run at a time."
    )
    wandb: Wandb = Field(Wandb(), description="Weights & Biases logging.")
    callbacks: tuple[Literal["csv", "tensorboard", "mlflow"], ...] = Field(
        (),
        description="Other tools that the sweep is written for as it runs: `csv` (`trials/NNNN/progress.csv`), "
        "`tensorboard` (`tensorboard/`), `mlflow` (`mlflow.db`, or MLFLOW_TRACKING_URI; needs mlflow-skinny).",
    )
    seed: Seed = Field(0, description="Seed of the sampler and of the trials' seeds.")
    trial_seed: Seed | None = Field(
        None, description="One seed for every trial. Default: each trial has its own, from `seed` and its number."
    )
    profile: str | None = Field(
        None, description="The profile that was applied; given by `--profile`, never in a file."
    )

    _sources: Sources = PrivateAttr(default_factory=Sources)
    _module_folders: tuple[str, ...] = PrivateAttr(default=())

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
        """Reads a spec from a YAML file.

        Args:
            path: the file.
            profile: one of the file's `profiles`, merged over the rest.
            overrides: `key.path=value` texts, values in YAML, applied last; `config.<path>=value` fixes a parameter.
            name: name of the sweep. Default: the file's `name`, or its stem.

        Raises:
            BadInput: names the file (or `--set`), the key path, the value and what is accepted.
        """
        raw = read_yaml(path)
        if "profile" in raw:
            raise BadInput("a file cannot choose its profile", where=path, key="profile", accepted="--profile NAME")
        tree, sources = resolve(raw, profile=profile, overrides=overrides, where=path)
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(path).stem).lstrip("-_.") or "sweep"
        spec = cls._from(tree | {"name": name or tree.get("name", stem), "profile": profile}, sources)
        spec._module_folders = (str(Path(path).absolute().parent),)
        return spec

    @classmethod
    def from_dict(
        cls,
        tree: Mapping[str, Any],
        profile: str | None = None,
        overrides: Sequence[str] = (),
        *,
        where: str | os.PathLike[str] | None = None,
        module_folders: Sequence[str] = (),
    ) -> SweepSpec:
        """Reads a spec from a mapping: what a file would hold, or what `to_dict` returned.

        Arguments and errors as in `load`; `where` is the file that errors name (a journal, say), `module_folders` see
        the property.
        """
        kept = {key: value for key, value in plain(dict(tree), where=where).items() if key not in _RETIRED}
        base, sources = resolve(kept, profile=profile, overrides=overrides, where=where)
        spec = cls._from(base | ({"profile": profile} if profile else {}), sources)
        spec._module_folders = tuple(module_folders)
        return spec

    @classmethod
    def _from(cls, tree: dict[str, Any], sources: Sources) -> SweepSpec:
        try:
            spec = cls.model_validate(tree)
        except ValidationError as error:
            raise sources.locate(from_pydantic(error, cls)) from None
        spec._sources = sources
        return spec

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with every default; `from_dict` gives an equal spec."""
        return self.model_dump(mode="json")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SweepSpec) and self.to_dict() == other.to_dict()

    def error(self, problem: str, *, key: str, value: Any = ..., accepted: str | None = None) -> BadInput:
        """An error about the spec's `key` that names where the key was given: file, profile or command line."""
        return self.locate(BadInput(problem, key=key, value=value, accepted=accepted))

    def locate(self, error: BadInput) -> BadInput:
        """The same error about a key of the spec, with where that key was given; unchanged if it names a place."""
        return self._sources.locate(error)

    @property
    def where(self) -> str | os.PathLike[str] | None:
        """The file this spec was read from."""
        return self._sources.file

    @property
    def module_folders(self) -> tuple[str, ...]:
        """Where a trainable of one's own is looked for after the working folder: that of the spec's file."""
        return self._module_folders

    # ---- validation without the trainable

    @field_validator("require", "warm_start", mode="before")
    @classmethod
    def _as_list(cls, given: Any) -> Any:
        return given if isinstance(given, list | tuple) else [given]

    @field_validator("name")
    @classmethod
    def _is_folder_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            accepted = "letters, digits, '_', '.' and '-', a letter or digit first"
            raise BadInput("is not a valid folder name", value=name, accepted=accepted)
        return name

    @field_validator("objectives", mode="before")
    @classmethod
    def _parse_names(cls, given: Any) -> Any:
        several = given if isinstance(given, list | tuple) else [given]
        return [{"metric": one} if isinstance(one, str) else one for one in several]

    @field_validator("breaker", mode="before")
    @classmethod
    def _parse_switch(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = {"off": False, "on": True}.get(given, given)
        if given is not None and not isinstance(given, bool | dict | Breaker):
            raise BadInput("is neither off nor a mapping", value=given, accepted="off, or first and collapsed")
        return (Breaker() if given else None) if isinstance(given, bool) else given

    @field_serializer("breaker")
    def _serialize_breaker(self, given: Breaker | None) -> dict[str, Any] | bool:
        return given.model_dump(mode="json") if given is not None else False  # null would mean the default

    @field_validator("require")
    @classmethod
    def _parse_require(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for index, text in enumerate(texts):
            try:
                expressions.parse(text)
            except BadInput as error:
                raise BadInput(error.problem, key=str(index), value=error.value, accepted=error.accepted) from None
        return texts

    @model_validator(mode="after")
    def _consistent(self) -> SweepSpec:
        names = [objective.metric for objective in self.objectives]
        for index, metric in enumerate(names):
            if metric in names[:index]:
                raise BadInput("is given as an objective twice", key=f"objectives.{index}.metric", value=metric)
        for section, key, path in self._given_paths():
            if not all(path.split(".")):
                raise BadInput("is not a config path", key=key, value=path, accepted="group.name")
            if section != "data" and path in _SET_BY_SPEC:
                raise BadInput("is set by the spec itself", key=key, accepted=_SET_BY_SPEC[path])
        self._refuse_duplicates()
        _ = self.ordered
        return self

    def _given_paths(self) -> list[tuple[str, str, str]]:
        """Section, key of the spec and config path of everything that is searched or fixed."""
        given = []
        for name, paths in self.searched.items():
            given += [("search", f"search.{name}", path) for path in paths]
        given += [("fixed", f"fixed.{path}", path) for path in _leaf_paths(self.fixed)]
        return given + [("data", f"data.{path}", f"data.{path}") for path in _leaf_paths(self.data)]

    def _refuse_duplicates(self) -> None:
        """No parameter is given in two sections, and nothing is given below a plain value."""
        given = self._given_paths()
        for index, (section, key, path) in enumerate(given):
            for other, key_below, below in given[index + 1 :]:
                if section == other and (key == key_below if section == "search" else path == below):
                    continue  # `loss.beta: {end: 1}` and `loss.beta.end: 2`: the deeper key has the last word
                if f"{below}.".startswith(f"{path}.") or path.startswith(f"{below}."):
                    verb = "is searched" if section == "search" else f"is given under {section}"
                    verb = verb if key.endswith(path) else f"sets {path}"
                    raise BadInput(
                        f"{verb}, and so is {below}" if section == other else f"{verb}, and {below} under {other}",
                        key=key,
                        accepted="one of the two (in a profile, null removes a key)",
                    )

    @cached_property
    def searched(self) -> dict[str, tuple[str, ...]]:
        """The config paths that each searched parameter sets: its own, or all that its choices name.

        A choice of mappings under a name without a dot is coupled: each mapping gives values of several config paths.
        """
        found = {}
        for name, parameter in self.search.items():
            coupled = "." not in name and parameter.of_mappings
            paths = (path for choice in parameter.choices or () for path in choice) if coupled else (name,)
            found[name] = tuple(dict.fromkeys(paths))
        return found

    def values_of(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Drawn parameters as values by config path: coupled ones taken apart."""
        values: dict[str, Any] = {}
        for name, value in params.items():
            coupled = isinstance(value, Mapping) and self.searched.get(name, (name,)) != (name,)
            values |= value if coupled else {name: value}
        return values

    @cached_property
    def ordered(self) -> list[str]:
        """The searched paths, each after those that its `when` reads, otherwise as in the file.

        Raises `BadInput` for a cycle.
        """
        order: list[str] = []
        pending: list[str] = []

        def place(path: str) -> None:
            if path in order:
                return
            if path in pending:
                cycle = [*pending[pending.index(path) :], path]
                problem = f"its `when` depends on itself ({' -> '.join(cycle)})"
                raise BadInput(problem, key=f"search.{path}", value=self.search[path].when)
            pending.append(path)
            for read in self._reads(path):
                for other, paths in self.searched.items():
                    if any(f"{one}.".startswith(f"{read}.") or read.startswith(f"{one}.") for one in paths):
                        place(other)
            pending.pop()
            order.append(path)

        for path in self.search:
            place(path)
        return order

    def _reads(self, path: str) -> tuple[str, ...]:
        when = self.search[path].when
        return expressions.parse(when).reads if when else ()

    def seed_of(self, trial_number: int) -> int:
        """The trial's seed, 0 to 2^31 - 1: `trial_seed` if given, else a hash of `seed` and the trial's number."""
        if self.trial_seed is not None:
            return self.trial_seed
        digest = hashlib.blake2b(f"{self.seed}/{trial_number}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") & 0x7FFFFFFF

    def audits(self, trial_number: int) -> bool:
        """Whether the trial, should it collapse, trains on: an independent draw with probability `audit.share`."""
        digest = hashlib.blake2b(f"audit/{self.seed}/{trial_number}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.audit.share * 2**64


def _leaf_paths(values: Mapping[str, Any]) -> Iterator[str]:
    """The paths of all leaves of `values`, whose keys may be dotted and whose values may be mappings."""
    for path, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from (f"{path}.{inner}" for inner in _leaf_paths(value))
        else:
            yield path
