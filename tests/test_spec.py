"""Specs: loading, profiles and overrides, errors and their words, drawing parameters and building configs."""

# ruff: noqa: E501  (tables of sentences, one fault per line)

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import BaseModel, Field, ValidationError, model_validator

from buttress.errors import BadInput, from_pydantic, members
from buttress.spec import trial_config, validation
from buttress.spec.config_paths import layered
from buttress.spec.overrides import override_config
from buttress.spec.parameters import KINDS
from buttress.spec.spec import SweepSpec
from buttress.spec.yaml_io import parse_yaml
from buttress.training.trainable import Buttress, Metric, Schedule, Section

# "The spec, by example" of the design, as written there
EXAMPLE = """\
trainable: rainfall                      # or my_package.module:MyTrainable
data: {kind: synthetic}                  # or {kind: files, root: /data/prism}
fixed: {train.epochs: 100, train.batch_size: 64}
search:
  loss.lambda_ext:    {loguniform: [1, 20]}
  loss.beta_kl:       {loguniform: [3.0e-4, 1.0e-1]}
  loss.warmup_epochs: {int: [5, 60]}
  loss.free_bits:     {uniform: [0.0, 0.5], when: "config.loss.use_free_bits"}
  loss.use_free_bits: {choice: [false, true]}
require: ["config.loss.warmup_epochs < config.train.epochs - config.train.early_stopping_patience"]
objectives: [{metric: prior/mae_tail, direction: min}, {metric: prior/crps, direction: min}]
rules: {extends: rainfall, posterior_collapse: {patience: 3}}
scheduler: {kind: asha, first: 4, factor: 3}     # ages in full-beta epochs
budget: {trials: 100, healthy: 40, hours: 12, trial_minutes: 90, stall_minutes: 10}
resources: {workers: 2, cpus_per_worker: 4, gpus_per_worker: 1, concurrency: auto}
wandb: {project: rainfall, mode: offline}
profiles:
  quick: {data: {kind: synthetic, size: small}, fixed: {train.epochs: 25}, budget: {trials: 24}, resources: {workers: 1, cpus_per_worker: 1, gpus_per_worker: 0}}
"""

SMALL = """\
trainable: rainfall
search:
  loss.lambda_ext: {loguniform: [1, 20]}
objectives: [{metric: prior/crps}]
budget: {trials: 4}
"""


class Data(Section):
    kind: Literal["synthetic", "files"] = "synthetic"
    size: Literal["full", "small"] = "full"
    root: str | None = None
    scale: dict[str, float] = {"gra": 1.0, "ms": 2.0}

    @model_validator(mode="after")
    def _complete(self) -> Data:
        if self.kind == "files" and not self.root:
            raise ValueError("data of kind files needs data.root")
        return self


class Linear(Section):
    kind: Literal["linear"] = "linear"
    start: float = 0.0
    end: float = Field(1.0, ge=0)
    length: int = 10


class Constant(Section):
    kind: Literal["constant"] = "constant"
    value: float = 1.0


class Loss(Section):
    lambda_ext: float = Field(5.0, gt=0)
    beta_kl: float = Field(1e-3, ge=0, lt=1)
    warmup_epochs: int = 10
    free_bits: float = 0.0
    use_free_bits: bool = False
    clip: float | None = None
    kind: Literal["mse", "focal"] = "mse"
    gamma: float = 2.0
    beta: Annotated[Linear | Constant, Field(discriminator="kind")] = Linear(end=0.5, length=30)


class Train(Section):
    epochs: int = Field(200, ge=1)
    batch_size: int = 64
    early_stopping_patience: int = 10
    low: float = 0.1
    high: float = 0.9

    @model_validator(mode="after")
    def _ordered(self) -> Train:
        if self.low >= self.high:
            raise ValueError(f"train.low ({self.low:g}) has to lie below train.high ({self.high:g})")
        return self


class Config(Section):
    data: Data = Data()
    loss: Loss = Loss()
    train: Train = Train()
    optimizer: Linear | None = None
    buttress: Buttress = Buttress()


METRICS = {
    "prior/mae_tail": Metric("min", unit="mm"),
    "prior/crps": Metric("min"),
    "val/skill": Metric("max"),
    "val/loss": Metric("min", weighted_by=("loss.lambda_ext", "loss.beta")),
    "posterior/mae": Metric("min", sees_target=True),
}


@pytest.fixture
def load(tmp_path):
    def load(text: str, profile: str | None = None, *overrides: str, file: str = "rain.yaml") -> SweepSpec:
        path = tmp_path / file
        path.write_text(text)
        return SweepSpec.load(path, profile=profile, overrides=overrides)

    return load


def schedule(config: Config) -> Schedule:
    return Schedule(epochs=config.train.epochs, full_at_epoch=config.loss.warmup_epochs)


@dataclass
class Family:
    """As much of a trainable as a spec is checked against."""

    Config: type[BaseModel] = Config
    metrics: Mapping[str, Any] = field(default_factory=lambda: METRICS)
    conditional: bool = True
    schedule: Callable[[Any], Schedule] = schedule


def check(spec: SweepSpec, **options: Any) -> SweepSpec:
    return validation.check(spec, Family(**options))


def sentence(error: pytest.ExceptionInfo[BadInput]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# ---- loading


def test_the_example_of_the_design_loads_as_written_and_fits_its_family(load):
    spec = load(EXAMPLE)
    assert (spec.name, spec.trainable, spec.profile, spec.seed, spec.trial_seed) == ("rain", "rainfall", None, 0, None)
    assert spec.data == {"kind": "synthetic"}
    assert spec.fixed == {"train.epochs": 100, "train.batch_size": 64}
    beta = spec.search["loss.beta_kl"]
    assert (beta.kind, beta.low, beta.high, beta.step, beta.choices, beta.when) == (
        "loguniform", 3e-4, 0.1, None, None, None,
    )  # fmt: skip
    warmup = spec.search["loss.warmup_epochs"]
    assert (warmup.kind, warmup.low, warmup.high) == ("int", 5, 60)
    assert isinstance(warmup.low, int) and isinstance(spec.search["loss.lambda_ext"].low, float)
    assert spec.search["loss.use_free_bits"].choices == (False, True)
    assert spec.search["loss.free_bits"].when == "config.loss.use_free_bits"
    assert [(one.metric, one.direction, one.allow_weighted) for one in spec.objectives] == [
        ("prior/mae_tail", "min", False),
        ("prior/crps", "min", False),
    ]
    assert spec.rules == {"extends": "rainfall", "posterior_collapse": {"patience": 3}}
    assert (spec.scheduler.kind, spec.scheduler.first, spec.scheduler.factor) == ("asha", 4, 3)
    assert (spec.budget.trials, spec.budget.healthy, spec.budget.hours) == (100, 40, 12)
    assert (spec.budget.trial_minutes, spec.budget.stall_minutes, spec.budget.full_beta_epochs) == (90, 10, None)
    assert (spec.resources.workers, spec.resources.cpus_per_worker, spec.resources.gpus_per_worker) == (2, 4, 1)
    assert (spec.resources.concurrency, spec.wandb.project, spec.wandb.mode) == ("auto", "rainfall", "offline")
    check(spec)


def test_a_profile_merges_over_the_base(load):
    spec = load(EXAMPLE, "quick")
    assert spec.profile == "quick"
    assert spec.data == {"kind": "synthetic", "size": "small"}
    assert spec.fixed == {"train.epochs": 25, "train.batch_size": 64}
    assert (spec.budget.trials, spec.budget.healthy) == (24, 40)
    assert (spec.resources.workers, spec.resources.gpus_per_worker) == (1, 0)
    check(spec)


def test_a_profile_replaces_lists_and_whole_parameters_and_removes_by_null(load):
    layer = """\
profiles:
  other:
    search:
      loss.lambda_ext: {uniform: [2, 3], step: 0.5}
      loss.beta_kl: null
      loss.free_bits: {uniform: [0, 1]}
    objectives: [val/skill]
    require: null
    budget: {hours: null}
  empty:
"""
    spec = load(EXAMPLE.partition("profiles:")[0] + layer, "other")
    assert spec.to_dict()["search"]["loss.lambda_ext"] == {"uniform": [2.0, 3.0], "step": 0.5}
    assert "loss.beta_kl" not in spec.search
    assert spec.search["loss.free_bits"].when is None  # the whole parameter was replaced, its `when` too
    assert [one.metric for one in spec.objectives] == ["val/skill"]
    assert spec.require == () and spec.budget.hours is None and spec.budget.trials == 100
    base = load(EXAMPLE.partition("profiles:")[0] + layer, "empty")
    assert base.search == load(EXAMPLE).search


def test_an_unknown_profile_names_those_there_are(load):
    with pytest.raises(BadInput) as error:
        load(EXAMPLE, "quik")
    assert "rain.yaml: profiles: unknown profile (got 'quik'); accepted: quick" in sentence(error)
    with pytest.raises(BadInput) as error:
        load(SMALL, "quick")
    assert "the spec has no profiles" in sentence(error)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ["the file is empty"]),
        ("# only a comment\n", ["the file is empty"]),
        ("- a\n- b\n", ["does not hold a mapping", "got ['a', 'b']", "accepted: a mapping"]),
        ("trainable: a: b\n", ["line 1, column 13", "mapping values are not allowed here"]),
        ("search:\n\tx: 1\n", ["line 2, column 1"]),
        ("budget: {trials: 1\n", ["line 2, column 1", "expected ',' or '}'"]),
        ("a: 1\n---\nb: 2\n", ["line 2", "another document"]),
        ("a: 1\nb: 2\na: 3\n", ["line 3, column 1: `a` is given twice (first in line 1)"]),
        ("search:\n  loss.x: {int: [1, 2]}\n  loss.x: {int: [1, 3]}\n", ["line 3, column 3: `loss.x` is given twice"]),
        ("a: !!python/object/apply:os.system [ls]\n", ["line 1, column 4", "could not determine a constructor"]),
        ("a: \x01\n", ["line 1", "a character that YAML does not allow"]),
        ("a: .inf\n", ["a: has to be a finite number (got inf)"]),
        ("true: 1\n", ["a key has to be a text (got true)"]),
        ("a: {b: !!binary aGk=}\n", ["a.b: is not a plain value"]),
        ("a: &a [*a]\n", ["nested too deeply"]),
        ("a: " + "[" * 600, ["nested too deeply"]),
    ],
)
def test_invalid_yaml_is_refused_with_file_line_and_column(load, text, says):
    with pytest.raises(BadInput) as error:
        load(text)
    message = sentence(error)
    assert "rain.yaml: " in message
    for piece in says:
        assert piece in message


def test_a_spec_is_named_after_its_file_unless_it_says_otherwise(load, tmp_path):
    assert load(SMALL, file="my sweep (2).yaml").name == "my-sweep-2-"
    assert load(SMALL + "name: other\n").name == "other"
    assert SweepSpec.load(tmp_path / "rain.yaml", name="third").name == "third"


def put(addition: str) -> str:
    """SMALL with the sections of `addition` in place of its own."""
    tree = parse_yaml(SMALL) | parse_yaml(addition)
    return json.dumps({key: value for key, value in tree.items() if value != "gone"})


@pytest.mark.parametrize(
    ("addition", "says"),
    [
        ("budjet: {trials: 3}", ["rain.yaml: budjet: unknown key; did you mean budget?"]),
        ("whatever: 3", ["whatever: unknown key; accepted: name, trainable, data, fixed, search"]),
        ("budget: {trails: 3}", ["budget.trails: unknown key; did you mean trials?"]),
        ("trainable: gone", ["trainable: is missing"]),
        ("trainable: ''", ["trainable: has to have at least 1 characters"]),
        ("trainable: 3", ["trainable: has to be a text (got 3)"]),
        ("objectives: gone", ["objectives: is missing"]),
        ("objectives: []", ["objectives: has to have at least 1 entries"]),
        ("objectives: [{metrik: a}]", ["objectives.0.metrik: unknown key; did you mean metric?"]),
        ("objectives: [{metric: a, direction: up}]", ["objectives.0.direction", "got 'up'", "'min' or 'max'"]),
        ("objectives: [a, b, a]", ["objectives.2.metric: is given as an objective twice (got 'a')"]),
        ("budget: gone", ["budget: is missing"]),
        ("budget: {trial_minutes: 3}", ["budget: does not say when", "at least one of trials, healthy, hours"]),
        ("budget: {trials: many}", ["budget.trials: has to be a whole number (got 'many')"]),
        ("budget: {trials: true}", ["budget.trials: has to be a whole number (got true)"]),
        ("budget: {trials: 2.5}", ["budget.trials: has to be a whole number (got 2.5)"]),
        ("budget: {trials: 0}", ["budget.trials: has to be at least 1 (got 0)"]),
        ("budget: {hours: -1}", ["budget.hours: has to be greater than 0 (got -1)"]),
        ("budget: {hours: '3'}", ["budget.hours: has to be a number (got '3')"]),
        ("budget: 8", ["budget: has to be a mapping (key: value) (got 8)"]),
        ("scheduler: {first: 0}", ["scheduler.first: has to be at least 1 (got 0)"]),
        ("scheduler: {factor: 1}", ["scheduler.factor: has to be at least 2 (got 1)"]),
        ("scheduler: {kind: median}", ["scheduler.kind: is not one of the choices (got 'median')", "'asha' or 'fifo'"]),
        ("resources: {workers: 0}", ["resources.workers: has to be at least 1 (got 0)"]),
        ("resources: {cpus_per_worker: 0}", ["resources.cpus_per_worker: has to be greater than 0"]),
        ("resources: {gpus_per_worker: -1}", ["resources.gpus_per_worker: has to be at least 0"]),
        (
            "resources: {gpus_per_worker: 0.5, workers: 2}",
            ["resources.gpus_per_worker: 2 workers cannot share a GPU: NCCL", "duplicate GPU", "(got 0.5)", "workers: 1"],
        ),
        ("resources: {gpus_per_worker: 1.5}", ["resources.gpus_per_worker: more than one GPU comes in whole numbers"]),
        ("resources: {concurrency: all}", ["resources.concurrency: has to be auto or a whole number", "got 'all'"]),
        ("resources: {concurrency: 0}", ["resources.concurrency", "(got 0)"]),
        ("wandb: {mode: on}", ["wandb.mode", "got 'on'", "'offline', 'online' or 'disabled'"]),
        ("wandb: {api_key: abc123}", ["wandb.api_key: secrets come from the environment", "WANDB_API_KEY"]),
        ("data: {s3: {secret: abc123}}", ["data.s3.secret: secrets come from the environment"]),
        ("fixed: {data.api_key: abc123}", ["fixed.data.api_key: secrets come from the environment"]),
        ("profiles: {a: {wandb: {api-key: abc123}}}", ["profiles.a.wandb.api-key: secrets come"]),
        ("profiles: [a]", ["profiles: has to be a mapping"]),
        ("profiles: {a: 3}", ["profiles.a: has to be a mapping"]),
        ("profiles: {a: {profiles: {}}}", ["profiles.a.profiles: cannot be set by a profile"]),
        ("profile: quick", ["profile: a file cannot choose its profile", "--profile NAME"]),
        ("name: 'a/b'", ["name: is not a valid folder name", "got 'a/b'"]),
        ("seed: -1", ["seed: has to be at least 0 (got -1)"]),
        ("trial_seed: x", ["trial_seed: has to be a whole number (got 'x')"]),
        ("rules: [a]", ["rules: has to be a mapping"]),
        ("require: 'config.a <'", ["require.0: not an expression at its end", "got 'config.a <'"]),
        ("require: ['config.a > 1', 'b > 1']", ["require.1: `b` at column 1 is not a name", "config.<path>"]),
        ("require: [3]", ["require.0: has to be a text (got 3)"]),
        ("fixed: {loss.lambda_ext: 3}", ["search.loss.lambda_ext: is searched, and loss.lambda_ext under fixed"]),
        ("fixed: {loss: {lambda_ext: 3}}", ["search.loss.lambda_ext: is searched, and loss.lambda_ext under fixed"]),
        ("fixed: {loss: 3}", ["search.loss.lambda_ext: is searched, and loss under fixed"]),
        ("{data: {kind: a}, fixed: {data.kind: b}}", ["fixed.data.kind: is given under fixed, and data.kind under data"]),
        ("{data: {kind: a}, search: {data.kind: {choice: [b]}}}", ["search.data.kind: is searched, and data.kind under"]),
        ("search: {a.b: {int: [1, 2]}, a.b.c: {int: [1, 2]}}", ["search.a.b: is searched, and so is a.b.c"]),
        ("fixed: {train: 3, train.epochs: 4}", ["fixed.train: is given under fixed, and so is train.epochs"]),
        ("fixed: {buttress.seed: 3}", ["fixed.buttress.seed: is set by the spec itself", "seed or trial_seed"]),
        ("search: {buttress.workers: {int: [1, 2]}}", ["search.buttress.workers", "resources.workers"]),
        ("fixed: {loss..a: 3}", ["fixed.loss..a: is not a config path"]),
    ],
)
def test_an_invalid_spec_is_refused_with_the_key_in_one_sentence(load, addition, says):
    with pytest.raises(BadInput) as error:
        load(put(addition))
    message = sentence(error)
    assert "rain.yaml: " in message
    for piece in says:
        assert piece in message
    assert "abc123" not in message  # a secret is not repeated


@pytest.mark.parametrize(
    ("parameter", "says"),
    [
        ("{}", ["gives no range and no choice", "one of uniform, loguniform, int, logint, choice"]),
        ("3", ["has to be a mapping"]),
        ("{uniform: [0, 1], int: [1, 2]}", ["gives uniform and int"]),
        ("{unifrom: [0, 1]}", ["p.unifrom: unknown key", "one of uniform"]),
        ("{uniform: [1, 1]}", ["p.uniform: its low end is not below its high end (got [1, 1])", "low < high"]),
        ("{int: [3, 2]}", ["p.int: its low end is not below"]),
        ("{uniform: [1]}", ["p.uniform: has to be two numbers (got [1])"]),
        ("{uniform: 3}", ["p.uniform: has to be two numbers (got 3)"]),
        ("{uniform: [a, b]}", ["p.uniform: has to be two numbers (got ['a', 'b'])"]),
        ("{uniform: [false, true]}", ["p.uniform: has to be two numbers"]),
        ("{loguniform: [0, 1]}", ["p.loguniform: a log scale needs a low end above 0 (got [0, 1])"]),
        ("{logint: [0, 8]}", ["p.logint: a log scale needs a low end above 0"]),
        ("{int: [1, 2.5]}", ["p.int: needs whole numbers (got [1, 2.5])"]),
        ("{int: [1, 10], step: 4}", ["p.step: 10 is not a whole number of steps above 1", "[1, 9] or int: [1, 13]"]),
        ("{int: [1, 10], step: 1.5}", ["p.step: has to be a positive whole number (got 1.5)"]),
        ("{uniform: [0, 1], step: 0}", ["p.step: has to be a positive number (got 0)"]),
        ("{uniform: [0, 1], step: 3}", ["p.step: 1 is not a whole number of steps above 0"]),
        ("{loguniform: [1, 8], step: 1}", ["p.step: a log scale has no step"]),
        ("{choice: []}", ["p.choice: has to be a list of at least one value (got [])"]),
        ("{choice: a}", ["p.choice: has to be a list of at least one value (got 'a')"]),
        ("{choice: [a, [1]]}", ["p.choice.1: is not a plain value (got [1])"]),
        ("{choice: [a, b, a]}", ["p.choice.2: is given twice (got 'a')"]),
        ("{choice: [a], step: 1}", ["p.step: has no meaning for a choice"]),
        ("{choice: [a], when: 'config.'}", ["p.when: not an expression", "got 'config.'"]),
        ("{choice: [a], when: 3}", ["p.when: has to be a text (got 3)"]),
        ("{choice: [a], when: config.p}", ["its `when` depends on itself (p -> p)"]),
    ],
)
def test_an_invalid_parameter_is_refused_with_the_key_in_one_sentence(load, parameter, says):
    with pytest.raises(BadInput) as error:
        load(put(f"search: {{p: {parameter}}}"))
    message = sentence(error)
    assert "rain.yaml: search.p" in message
    for piece in says:
        assert piece in message


def test_an_error_names_the_profile_or_the_option_that_gave_the_value(load):
    text = put("profiles: {quick: {budget: {trials: some}, search: {loss.beta_kl: {int: [3, 2]}}}}")
    with pytest.raises(BadInput) as error:
        load(text, "quick")
    assert "rain.yaml: profiles.quick.search.loss.beta_kl.int: its low end" in sentence(error)
    with pytest.raises(BadInput) as error:
        load(text, "quick", "search.loss.beta_kl={int: [2, 3]}")
    assert "rain.yaml: profiles.quick.budget.trials: has to be a whole number (got 'some')" in sentence(error)
    with pytest.raises(BadInput) as error:
        load(SMALL, None, "budget.trials=some")
    assert sentence(error) == "--set: budget.trials: has to be a whole number (got 'some')"
    assert load(text, "quick", "budget.trials=3", "search.loss.beta_kl=null").budget.trials == 3


# ---- overrides


@pytest.mark.parametrize(
    ("override", "value", "read"),
    [
        ("budget.trials=8", 8, lambda spec: spec.budget.trials),
        ("budget.hours=1e-1", 0.1, lambda spec: spec.budget.hours),
        ("budget.healthy=null", None, lambda spec: spec.budget.healthy),
        ("name=mine", "mine", lambda spec: spec.name),
        ("wandb.tags=[a, b]", ("a", "b"), lambda spec: spec.wandb.tags),
        ("fixed.train.epochs=5", 5, lambda spec: spec.fixed["train.epochs"]),
        ("fixed.train.epochs=null", False, lambda spec: "train.epochs" in spec.fixed),
        ("fixed.loss.lambda_ext=3", (3, False), lambda s: (s.fixed["loss.lambda_ext"], "loss.lambda_ext" in s.search)),
        ("config.train.epochs=5", 5, lambda spec: spec.fixed["train.epochs"]),
        ("config.loss.clip=null", None, lambda spec: spec.fixed["loss.clip"]),
        ("config.loss.lambda_ext=3", (3, False), lambda s: (s.fixed["loss.lambda_ext"], "loss.lambda_ext" in s.search)),
        ("config.loss={beta_kl: 0.5}", ["loss"], lambda spec: [path for path in spec.fixed if "loss" in path]),
        ("config.data.kind=files", {"kind": "files"}, lambda spec: spec.data),
        ("config.data.scale.gra=3", {"kind": "synthetic", "scale.gra": 3}, lambda spec: spec.data),
        ("data.size=small", {"kind": "synthetic", "size": "small"}, lambda spec: spec.data),
        ("search.loss.lambda_ext={uniform: [1, 2]}", "uniform", lambda spec: spec.search["loss.lambda_ext"].kind),
        ("search.loss.lambda_ext.uniform=[1, 2]", "uniform", lambda spec: spec.search["loss.lambda_ext"].kind),
        ("search.loss.free_bits.when=null", None, lambda spec: spec.search["loss.free_bits"].when),
        ("search.loss.beta_kl=null", False, lambda spec: "loss.beta_kl" in spec.search),
        ("search.train.epochs={int: [5, 9]}", False, lambda spec: "train.epochs" in spec.fixed),
        ("rules.posterior_collapse.action=off", {"patience": 3, "action": "off"}, lambda s: s.rules["posterior_collapse"]),
        ("objectives.1.metric=val/skill", "val/skill", lambda spec: spec.objectives[1].metric),
        ("objectives=val/skill", ["val/skill"], lambda spec: [one.metric for one in spec.objectives]),
        ("require=", (), lambda spec: spec.require),
        ("breaker=off", None, lambda spec: spec.breaker),
        ("breaker=on", 20, lambda spec: spec.breaker.first),
        ("breaker.first=9", 9, lambda spec: spec.breaker.first),
    ],
)
def test_an_override_addresses_the_spec_and_config_fixes_a_training_parameter(load, override, value, read):
    if override.startswith("config.loss="):
        with pytest.raises(KeyError):
            load(EXAMPLE, None, override).search["loss.beta_kl"]
    assert read(load(EXAMPLE, None, override)) == value


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("budget.trials", "--set: is not of the form key.path=value (got 'budget.trials'); accepted: budget.trials=8"),
        ("=8", "is not of the form"),
        ("budget..trials=8", "is not of the form"),
        ("budget.trials=[8", "--set: budget.trials: line 1, column 3"),
        ("budjet.trials=8", "--set: budjet: unknown key; did you mean budget?"),
        ("budget.trials.x=8", "--set: budget.trials: holds a value, so nothing can be set below it (got 100)"),
        ("objectives.2.metric=a", "--set: objectives.2: is not an entry of the list; accepted: 0 to 1"),
        ("profiles.quick.seed=1", "--profile NAME"),
        ("config=3", "names no parameter"),
        ("wandb.api_key=abc123", "--set: wandb.api_key: secrets come from the environment"),
        ("config.buttress.seed=1", "--set: fixed.buttress.seed: is set by the spec itself; accepted: seed"),
    ],
)
def test_an_invalid_override_is_refused(load, override, says):
    with pytest.raises(BadInput) as error:
        load(EXAMPLE, None, override)
    assert says in sentence(error)
    assert "abc123" not in sentence(error)


def test_overrides_of_a_config_file_mean_what_they_mean_in_a_spec():
    config = {"train": {"epochs": 5}, "loss": {"lambda_ext": 2.0}}
    overrides = ["config.train.batch_size=8", "loss.beta.end=0.25", "loss.clip=null", "loss.lambda_ext=1e-3"]
    override_config(config, overrides)
    built = Config.model_validate(layered(Config, config))
    assert (built.train.epochs, built.train.batch_size) == (5, 8)
    assert (built.loss.lambda_ext, built.loss.clip) == (1e-3, None)
    assert built.loss.beta == Linear(end=0.25, length=30)  # the rest of the family's default
    assert Config.model_validate(layered(Config, {"loss": {"beta": {"kind": "linear"}}})).loss.beta == Linear()


# ---- round trip


@pytest.mark.parametrize("profile", [None, "quick"])
def test_to_dict_is_json_and_from_dict_gives_the_same_spec(load, profile):
    spec = load(EXAMPLE, profile, "config.loss.clip=null", "search.train.batch_size={int: [8, 64], step: 8}")
    written = json.loads(json.dumps(spec.to_dict(), allow_nan=False))
    assert written == spec.to_dict()
    back = SweepSpec.from_dict(written, where="journal")
    assert back == spec and back.to_dict() == written and back.ordered == spec.ordered
    assert back.profile == profile and back.fixed["loss.clip"] is None
    assert back != load(SMALL)


def test_errors_of_from_dict_name_its_source(load):
    written = load(SMALL).to_dict() | {"seed": "x"}
    with pytest.raises(BadInput, match=r"journal\.jsonl: seed: has to be a whole number"):
        SweepSpec.from_dict(written, where="journal.jsonl")


# ---- order, drawing


CONDITIONAL = """\
trainable: rainfall
search:
  loss.gamma: {uniform: [1, 3], when: config.loss.kind == 'focal' and config.loss.free_bits > 0.25}
  loss.free_bits: {uniform: [0, 0.5], when: config.loss.use_free_bits}
  loss.lambda_ext: {loguniform: [1, 20]}
  loss.use_free_bits: {choice: [false, true]}
  loss.kind: {choice: [mse, focal]}
objectives: [prior/crps]
budget: {trials: 4}
"""


def test_a_parameter_comes_after_what_its_when_reads_even_through_another_conditional(load):
    assert load(CONDITIONAL).ordered == [
        "loss.kind", "loss.use_free_bits", "loss.free_bits", "loss.gamma", "loss.lambda_ext",
    ]  # fmt: skip


def test_a_cycle_of_whens_is_an_error_that_shows_it(load):
    search = "{a: {int: [1, 2], when: config.b > 1}, b: {int: [1, 2], when: config.c > 1}, c: {int: [1, 2], when: config.a > 1}}"
    with pytest.raises(BadInput) as error:
        load(put(f"search: {search}"))
    assert "depends on itself (a -> b -> c -> a)" in sentence(error)


def test_a_draw_honours_every_when_and_an_inactive_parameter_keeps_its_default(load):
    spec, rng = load(CONDITIONAL), random.Random(3)
    draws = [trial_config.sample(spec, rng, Config) for _ in range(400)]
    for params in draws:
        assert ("loss.free_bits" in params) == params["loss.use_free_bits"]
        wanted = params["loss.kind"] == "focal" and params.get("loss.free_bits", 0.0) > 0.25
        assert ("loss.gamma" in params) == wanted
        assert 1 <= params["loss.lambda_ext"] <= 20
        assert trial_config.build(spec, params, Config).loss.gamma == params.get("loss.gamma", 2.0)
    assert {tuple(sorted(params)) for params in draws} == {
        ("loss.kind", "loss.lambda_ext", "loss.use_free_bits"),
        ("loss.free_bits", "loss.kind", "loss.lambda_ext", "loss.use_free_bits"),
        ("loss.free_bits", "loss.gamma", "loss.kind", "loss.lambda_ext", "loss.use_free_bits"),
    }


def test_is_active_judges_drafts_and_flat_parameters(load):
    spec = load(CONDITIONAL)
    assert trial_config.is_active(spec, "loss.lambda_ext", {})
    assert trial_config.is_active(spec, "loss.free_bits", {"loss.use_free_bits": True})
    assert not trial_config.is_active(spec, "loss.free_bits", trial_config.draft(spec, {}, Config))
    with pytest.raises(BadInput, match=r"search\.loss\.free_bits\.when: `config\.loss\.use_free_bits` .* not in the config"):
        trial_config.is_active(spec, "loss.free_bits", {})


def test_a_when_may_read_what_is_fixed_or_a_default(load):
    search = "{loss.gamma: {uniform: [1, 3], when: config.train.epochs > 50 and config.loss.beta.end == 0.5}}"
    spec = load(put(f"{{search: {search}, fixed: {{train.epochs: 60}}}}"))
    assert list(trial_config.sample(spec, random.Random(0), Config)) == ["loss.gamma"]
    check(spec)


def test_the_same_seed_draws_the_same(load):
    spec = load(CONDITIONAL)
    first, second = ([trial_config.sample(spec, rng, Config) for _ in range(20)] for rng in (random.Random(7), random.Random(7)))
    assert first == second
    assert first != [trial_config.sample(spec, random.Random(8), Config) for _ in range(20)]


def test_draws_cover_their_range_evenly_on_their_own_scale(load):
    search = """{a: {int: [1, 3]}, b: {uniform: [0, 1], step: 0.25}, c: {choice: [x, null]}, d: {logint: [1, 100]},
                 e: {loguniform: [0.01, 100]}, f: {int: [0, 10], step: 5}, g: {uniform: [-1, 1]}}"""
    spec, rng = load(put(f"search: {search}")), random.Random(0)
    draws = [trial_config.sample(spec, rng) for _ in range(2000)]
    column = {path: [params[path] for params in draws] for path in spec.search}
    share = {path: {value: values.count(value) / 2000 for value in values} for path, values in column.items()}
    assert share["a"] == pytest.approx({1: 1 / 3, 2: 1 / 3, 3: 1 / 3}, abs=0.04)
    assert share["b"] == pytest.approx({0.0: 0.2, 0.25: 0.2, 0.5: 0.2, 0.75: 0.2, 1.0: 0.2}, abs=0.04)
    assert share["c"] == pytest.approx({"x": 0.5, None: 0.5}, abs=0.04)
    assert share["f"] == pytest.approx({0: 1 / 3, 5: 1 / 3, 10: 1 / 3}, abs=0.04)
    assert {min(column["d"]), max(column["d"])} == {1, 100}
    assert sum(value < 10 for value in column["d"]) / 2000 == pytest.approx(log(9.5 / 0.5) / log(100.5 / 0.5), abs=0.04)
    assert sum(value < 1 for value in column["e"]) / 2000 == pytest.approx(0.5, abs=0.04)
    assert all(isinstance(value, int) for path in "adf" for value in column[path])
    assert -1 <= min(column["g"]) < -0.99 and 0.99 < max(column["g"]) <= 1


def test_seeds_are_stable_distinct_and_31_bits_wide(load):
    spec = load(SMALL)
    assert [spec.seed_of(number) for number in range(3)] == [1735201683, 1131208407, 1141988988]
    seeds = [spec.seed_of(number) for number in range(2000)]
    assert len(set(seeds)) == 2000 and all(0 <= seed < 2**31 for seed in seeds)
    assert load(SMALL, None, "seed=1").seed_of(0) != spec.seed_of(0)
    assert {load(SMALL, None, "trial_seed=5").seed_of(number) for number in range(9)} == {5}


# ---- configs


def test_a_config_holds_data_fixed_params_and_what_the_spec_decides(load):
    spec = load(EXAMPLE, "quick")
    config = trial_config.build(spec, {"loss.lambda_ext": 3.0, "loss.warmup_epochs": 7}, Config, seed=11)
    assert (config.data.kind, config.data.size) == ("synthetic", "small")
    assert (config.train.epochs, config.train.batch_size, config.train.early_stopping_patience) == (25, 64, 10)
    assert (config.loss.lambda_ext, config.loss.warmup_epochs, config.loss.beta_kl) == (3.0, 7, 1e-3)
    own = config.buttress
    assert (own.trainable, own.objective, own.seed, own.workers) == ("rainfall", "prior/mae_tail", 11, 1)


def test_a_path_changes_one_part_of_a_default_group_and_a_mapping_replaces_it(load):
    def beta(*overrides):
        return trial_config.build(load(SMALL, None, *overrides), {}, Config).loss.beta

    assert beta() == Linear(end=0.5, length=30)
    assert beta("config.loss.beta.end=0.25") == Linear(end=0.25, length=30)
    assert beta("config.loss.beta={kind: linear, end: 0.25}") == Linear(end=0.25, length=10)
    assert beta("config.loss.beta.kind=constant") == Constant(value=1.0)
    assert beta("config.loss.beta.kind=constant", "config.loss.beta.value=2") == Constant(value=2.0)
    spec = load(put("{fixed: {loss.beta: {kind: linear, length: 3}}, search: {loss.beta.end: {uniform: [0, 1]}}}"))
    assert trial_config.build(spec, {"loss.beta.end": 0.7}, Config).loss.beta == Linear(end=0.7, length=3)
    assert trial_config.build(load(SMALL, None, "config.optimizer.length=4"), {}, Config).optimizer == Linear(length=4)
    assert trial_config.build(load(SMALL, None, "config.data.scale.ms=4"), {}, Config).data.scale == {"gra": 1.0, "ms": 4.0}
    assert trial_config.build(load(SMALL, None, "config.data.scale={ms: 4}"), {}, Config).data.scale == {"ms": 4.0}


def test_a_value_that_the_config_refuses_is_an_error_with_the_key_that_gave_it(load):
    with pytest.raises(BadInput) as error:
        trial_config.build(load(SMALL, None, "config.train.epochs=lots"), {}, Config)
    assert sentence(error) == "--set: fixed.train.epochs: has to be a whole number (got 'lots')"
    with pytest.raises(BadInput) as error:
        trial_config.build(load(SMALL), {"loss.lambda_ext": -1.0}, Config)
    assert "rain.yaml: search.loss.lambda_ext: has to be greater than 0 (got -1.0)" in sentence(error)
    with pytest.raises(BadInput) as error:
        trial_config.build(load(put("data: {kind: files}")), {}, Config)
    assert "rain.yaml: data: data of kind files needs data.root" in sentence(error)


def test_full_beta_epochs_gives_every_trial_the_same_age_whatever_its_warm_up(load):
    spec = load(put("budget: {trials: 4, full_beta_epochs: 12}"))
    for warmup in (0, 10, 31):
        config = trial_config.build(spec, {"loss.warmup_epochs": warmup}, Config, schedule=schedule)
        assert config.train.epochs == warmup + 12
        assert schedule(config).full_beta_epochs(config.train.epochs) == 12


def test_full_beta_epochs_follows_a_schedule_that_depends_on_the_epochs(load):
    def third(config):  # beta is final after 30 % of the epochs, rounded as it comes
        return Schedule(epochs=config.train.epochs, full_at_epoch=0.3 * config.train.epochs)

    def late(config):  # settles within long budgets only
        full = 300.5 if config.train.epochs > 300 else float("inf")
        return Schedule(epochs=config.train.epochs, full_at_epoch=full)

    def never(config):
        return Schedule(epochs=config.train.epochs, full_at_epoch=float("inf"))

    spec = load(put("budget: {trials: 4, full_beta_epochs: 10}"))
    config = trial_config.build(spec, {}, Config, schedule=third)
    assert third(config).full_beta_epochs(config.train.epochs) == 10
    assert trial_config.build(spec, {}, Config, schedule=late).train.epochs == 311
    with pytest.raises(BadInput) as error:
        trial_config.build(spec, {}, Config, schedule=never)
    assert "budget.full_beta_epochs: beta never has its final value for good" in sentence(error)


def test_full_beta_epochs_counts_a_warm_up_that_is_given_in_steps(load):
    def in_steps(config, steps=10):
        return Schedule(epochs=config.train.epochs, full_at_step=25, steps_per_epoch=steps)

    spec = load(put("budget: {trials: 4, full_beta_epochs: 3}"))
    config = trial_config.build(spec, {}, Config, schedule=in_steps)
    assert (config.train.epochs, in_steps(config).full_beta_epochs(6)) == (6, 3)
    with pytest.raises(BadInput) as error:
        trial_config.build(spec, {}, Config, schedule=lambda config: in_steps(config, None))
    assert "budget.full_beta_epochs: the schedule is given in steps (25)" in sentence(error)


def test_a_warm_up_of_more_steps_than_the_budget_has_is_refused(load):
    def late(config):
        return Schedule(epochs=config.train.epochs, full_at_step=10**9, steps_per_epoch=240)

    with pytest.raises(BadInput) as error:
        validation.check(load(SMALL), Family(schedule=late))
    assert "no draw in 1,000 has an epoch at its final beta" in sentence(error)
    assert "final after 1,000,000,000 steps (240 an epoch)" in sentence(error)


def test_violated_requirement_is_the_first_requirement_that_does_not_hold(load):
    spec = load(put("require: ['config.loss.lambda_ext > 1', 'config.loss.lambda_ext < config.train.epochs']"))
    assert trial_config.violated_requirement(spec, trial_config.build(spec, {"loss.lambda_ext": 5}, Config)) is None
    assert trial_config.violated_requirement(spec, trial_config.build(spec, {"loss.lambda_ext": 0.5}, Config)) == "config.loss.lambda_ext > 1"
    assert trial_config.violated_requirement(spec, trial_config.build(spec, {"loss.lambda_ext": 500}, Config)) == spec.require[1]
    with pytest.raises(BadInput, match=r"rain\.yaml: require\.0: `config\.loss\.lambda_ext` at column 1 is not in the config"):
        trial_config.violated_requirement(spec, {})


# ---- the spec checked against a trainable


@pytest.mark.parametrize(
    ("addition", "says"),
    [
        ("fixed: {train.epoch: 3}", ["fixed.train.epoch: no such parameter; did you mean train.epochs?"]),
        ("search: {lambda_ext: {int: [1, 2]}}", ["search.lambda_ext: no such parameter; did you mean loss.lambda_ext?"]),
        ("search: {train.lambda_exd: {int: [1, 2]}}", ["did you mean loss.lambda_ext?"]),
        ("search: {train.zzz: {int: [1, 2]}}", ["search.train.zzz: no such parameter; accepted: train.epochs, train.batch"]),
        ("search: {loss.clip.x: {int: [1, 2]}}", ["search.loss.clip.x: no such parameter"]),
        ("search: {train: {int: [1, 2]}}", ["search.train: is a group, not a parameter; accepted: train.epochs"]),
        ("data: {knd: files}", ["data.knd: no such parameter; did you mean data.kind?"]),
        ("data: {kind: fils}", ["data.kind: is not one of the choices (got 'fils')", "'synthetic' or 'files'"]),
        ("fixed: {train.epochs: 0}", ["fixed.train.epochs: has to be at least 1 (got 0)"]),
        ("fixed: {loss.beta: {kind: cubic}}", ["fixed.loss.beta: kind is not one of the choices (got 'cubic')", "'linear'"]),
        ("fixed: {loss.beta: {end: 3}}", ["fixed.loss.beta: does not say its kind"]),
        ("fixed: {loss.beta: {kind: linear, strat: 3}}", ["fixed.loss.beta.strat: unknown key; did you mean start?"]),
        ("fixed: {train.low: 0.95}", ["config.train: train.low (0.95) has to lie below train.high (0.9)"]),
        ("search: {loss.beta_kl: {uniform: [0, 1]}}", ["search.loss.beta_kl", "refuses", "less than 1 (got 1.0)"]),
        ("search: {loss.beta_kl: {uniform: [-1, 0.5]}}", ["search.loss.beta_kl", "has to be at least 0 (got -1.0)"]),
        ("search: {train.epochs: {uniform: [1, 9]}}", ["search.train.epochs", "whole number", "an int or logint range"]),
        ("search: {loss.kind: {choice: [mse, huber]}}", ["search.loss.kind", "this choice", "got 'huber'", "'mse' or 'focal'"]),
        ("search: {train.low: {uniform: [0.1, 0.95]}}", ["search.train.low", "every draw with this value", "(got 0.95)"]),
        ("objectives: [prior/crp]", ["objectives.0.metric: no such metric; did you mean prior/crps? (got 'prior/crp')"]),
        ("objectives: [zzz]", ["no such metric (got 'zzz'); accepted: prior/mae_tail, prior/crps, val/skill, val/loss"]),
        (
            "objectives: [prior/crps, val/loss]",
            ["objectives.1.metric: changes its scale with loss.lambda_ext, which is searched", "got 'val/loss'",
             "accepted: prior/mae_tail, prior/crps, val/skill, or allow_weighted: true"],
        ),
        (
            "{objectives: [val/loss], search: {loss.beta.end: {uniform: [0, 1]}}}",
            ["changes its scale with loss.beta.end, which is searched"],
        ),
        ("objectives: [posterior/mae]", ["sees the target, so an autoencoder would win", "accepted: prior/mae_tail"]),
        ("objectives: [{metric: posterior/mae, allow_weighted: true}]", ["sees the target"]),
        ("objectives: [{metric: val/skill, direction: min}]", ["objectives.0.direction: val/skill is better the larger"]),
        ("require: config.train.epoch > 3", ["require.0: reads config.train.epoch: no such parameter; did you mean train.epochs"]),
        ("require: config.train == 3", ["require.0: reads config.train, which is a group"]),
        (
            "search: {loss.gamma: {uniform: [1, 2], when: config.loss.knd == 'focal'}}",
            ["search.loss.gamma.when: reads config.loss.knd: no such parameter; did you mean loss.kind?"],
        ),
        (
            "search: {loss.gamma: {uniform: [1, 2], when: config.loss.kind == 'focl'}}",
            ["search.loss.gamma.when: never holds in 1,000 random draws", "got \"config.loss.kind == 'focl'\""],
        ),
        ("require: ['config.train.epochs > 1', 'config.loss.lambda_ext > 30']",
         ["require.1: no draw in 1,000 satisfies it (got 'config.loss.lambda_ext > 30')"]),
        ("require: ['config.loss.lambda_ext > 10', 'config.loss.lambda_ext < 10']", ["no draw in 1,000 satisfies it", "elsewhere"]),
        ("require: config.loss.clip > 3", ["require.0: `config.loss.clip` at column 1 is null"]),
        ("{budget: {full_beta_epochs: 3, trials: 1}, fixed: {train.epochs: 9}}",
         ["fixed.train.epochs: is set by budget.full_beta_epochs"]),
        ("{budget: {full_beta_epochs: 3, trials: 1}, search: {loss.gamma: {uniform: [1, 2], when: config.train.epochs > 9}}}",
         ["search.loss.gamma.when: reads config.train.epochs, which budget.full_beta_epochs sets"]),
    ],
)  # fmt: skip
def test_a_spec_that_does_not_fit_its_trainable_is_refused_with_the_key_in_one_sentence(load, addition, says):
    spec = load(put(addition))
    with pytest.raises(BadInput) as error:
        check(spec)
    message = sentence(error)
    assert "rain.yaml: " in message
    for piece in says:
        assert piece in message


@pytest.mark.parametrize(
    "addition",
    [
        "objectives: [{metric: val/loss, allow_weighted: true}]",
        "{objectives: [val/loss], search: {loss.gamma: {uniform: [1, 2]}}}",
        "search: {train.low: {uniform: [0, 0.8]}, train.high: {uniform: [0.1, 1]}}",  # some pairs are refused, no value is
        "search: {loss.clip: {choice: [null, 1.0]}}",
        "search: {loss.beta.kind: {choice: [linear, constant]}, loss.beta.value: "
        "{uniform: [1, 2], when: config.loss.beta.kind == 'constant'}}",
        "search: {optimizer.length: {int: [1, 5]}}",
        "fixed: {data.scale.ms: 3}",
        "search: {train.epochs: {uniform: [10, 20], step: 5}}",
        "{search: {train.low: {uniform: [0, 0.95]}, train.high: {uniform: [0.1, 1]}}, "
        "require: config.train.low < config.train.high}",
    ],
)
def test_a_spec_that_fits_its_trainable_passes(load, addition):
    check(load(put(addition)))


def test_an_unconditional_model_may_be_judged_by_its_posterior(load):
    check(load(put("objectives: [posterior/mae]")), conditional=False)


def test_a_checked_spec_has_the_directions_filled_in(load):
    spec = load(put("objectives: [val/skill, prior/crps]"))
    assert [one.direction for one in spec.objectives] == [None, None]
    checked = check(spec)
    assert [one.direction for one in checked.objectives] == ["max", "min"]
    assert [one.direction for one in spec.objectives] == [None, None]
    assert SweepSpec.from_dict(checked.to_dict()) == checked


def test_a_config_without_the_buttress_group_is_refused(load):
    class Bare(BaseModel):
        loss: Loss = Loss()

    with pytest.raises(BadInput, match=r"has no group buttress .*accepted: a Config with a field `buttress"):
        check(load(SMALL), Config=Bare)


def test_a_warm_up_that_always_outlives_the_budget_is_refused(load):
    spec = load(put("{fixed: {train.epochs: 20}, search: {loss.warmup_epochs: {int: [20, 30]}}}"))
    with pytest.raises(BadInput) as error:
        check(spec)
    assert "fixed.train.epochs: no draw in 1,000 has an epoch at its final beta" in sentence(error)
    assert "(of 20 epochs in the last, final after 2" in sentence(error)
    check(load(put("{fixed: {train.epochs: 21}, search: {loss.warmup_epochs: {int: [20, 30]}}}")))


def test_a_metric_of_any_shape_with_the_right_names_will_do(load):
    @dataclass
    class Mine:
        direction: str = "max"
        weighted_by: tuple[str, ...] = ()
        sees_target: bool = False

    spec = load(put("objectives: [score]"))
    assert check(spec, metrics={"score": Mine()}).objectives[0].direction == "max"


# ---- pydantic's errors in our words


class Either(Section):
    size: Literal["auto"] | int = "auto"
    part: Linear | Train | None = None
    parts: list[Annotated[Linear | Constant, Field(discriminator="kind")]] = []
    by_name: dict[str, Linear] = {}
    pair: tuple[float, float] = (0.0, 1.0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"size": "all"}, "f.yaml: at.size: is not one of the choices or has to be a whole number (got 'all'); accepted: 'auto'"),
        ({"part": {"epochs": 0}}, "at.part.epochs: "),
        ({"part": 3}, "at.part: has to be a mapping (key: value) (got 3)"),
        ({"parts": [{"kind": "linear"}, {"kind": "linear", "end": "x"}]}, "at.parts.1.end: has to be a number (got 'x')"),
        ({"parts": {"kind": "linear"}}, "at.parts: has to be a list"),
        ({"by_name": {"a": {"strat": 1}}}, "at.by_name.a.strat: unknown key; did you mean start?"),
        ({"by_name": {"a": {"zzz": 1}}}, "unknown key; accepted: kind, start, end, length"),
        ({"pair": [1, "a"]}, "at.pair.1: has to be a number (got 'a')"),
        ({"siez": 3, "pair": 1}, "at.siez: unknown key; did you mean size? (the first of 2 faults)"),
    ],
)
def test_pydantic_errors_come_out_as_one_sentence_with_the_users_key_path(given, says):
    with pytest.raises(ValidationError) as error:
        Either.model_validate(given)
    message = str(from_pydantic(error.value, Either, where="f.yaml", under="at"))
    assert says in message and message.startswith("f.yaml: at.")


# ---- reference documentation


def test_every_key_of_a_spec_has_a_description():
    def undescribed(model: type[BaseModel], path: str) -> list[str]:
        missing = []
        for name, info in model.model_fields.items():
            key = f"{path}.{name}" if path else name
            if len(info.description or "") < 10 or not info.description.endswith("."):
                missing.append(key)
            for kind in members([info.annotation]):
                for inner in (kind, *get_args(kind)):
                    if isinstance(inner, type) and issubclass(inner, BaseModel):
                        missing += undescribed(inner, key)
        return missing

    assert undescribed(SweepSpec, "") == []
    assert all(len(text) > 10 for text in KINDS.values())


# ---- imports


def test_importing_the_spec_is_light():
    code = "import sys, buttress.spec.spec; print([m for m in ('numpy', 'torch', 'ray', 'optuna', 'pandas') if m in sys.modules])"
    root = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stdout.strip() == "[]"
