"""Specs are read, changed and written; every fault is one sentence with its place."""
# ruff: noqa: E501, F811  (tables of sentences, one fault per line; `load` is a fixture)

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal, get_args

import pytest
from pydantic import BaseModel, Field, ValidationError
from spec_family import EXAMPLE, SMALL, Config, Constant, Linear, Train, check, load, put, sentence  # noqa: F401

from buttress.api import search_spaces
from buttress.errors import BadInput, from_pydantic, members
from buttress.spec.config_paths import layered
from buttress.spec.overrides import override_config
from buttress.spec.parameters import KINDS, Parameter
from buttress.spec.spec import SweepSpec
from buttress.spec.yaml_io import read_yaml
from buttress.training.trainable import Section

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
        ("search: {r: {choice: [{loss.lambda_ext: 5}]}, loss.lambda_ext: {uniform: [1, 2]}}", ["search.r: sets loss.lambda_ext, and so is loss.lambda_ext"]),
        ("{search: {r: {choice: [{data.size: small}]}}, data: {size: full}}", ["search.r: sets data.size, and data.size under data"]),
        ("search: {r: {choice: [{buttress.seed: 1}]}}", ["search.r: is set by the spec itself; accepted: seed or trial_seed"]),
        ("search: {r: {choice: [{loss..beta: 1}]}}", ["search.r: is not a config path (got 'loss..beta')"]),
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
        ("{choice: [a, [1], {b: 2}, [1]]}", ["p.choice.3: is given twice (got [1])"]),
        ("{choice: [{a: 1, b: 2}, {b: 2, a: 1}]}", ["p.choice.1: is given twice"]),
        ("{uniform: [-1.0e308, 1.0e308]}", ["p.uniform: lies beyond", "got [-1e+308, 1e+308]", "-1e+300 to 1e+300"]),
        ("{loguniform: [1, 1.0e308]}", ["p.loguniform: lies beyond what a sampler computes with"]),
        (f"{{int: [0, {2**60}]}}", ["p.int: lies beyond", "-2^40 to 2^40"]),
        (f"{{logint: [1, {2**53}]}}", ["p.logint: lies beyond"]),
        ("{uniform: [0, 1], step: 1.0e-20}", ["p.step: is too small"]),
        ("{uniform: [0, 1], step: 1.0e+308}", ["p.step: has to be a positive number"]),
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


def test_whole_numbers_may_be_written_as_floats_and_seeds_have_64_bits(load):
    spec = load(put("trial_seed: 1.0e+3"), None, "budget.trials=1e3", "resources.concurrency=2e0", "seed=0x10")
    assert (spec.trial_seed, spec.budget.trials, spec.resources.concurrency, spec.seed) == (1000, 1000, 2, 16)
    for text in ("trial_seed=-1", f"trial_seed={2**63}", f"seed={2**80}", "trial_seed=1" + "0" * 400, "seed=1.5"):
        with pytest.raises(BadInput, match=r"--set: (trial_)?seed: ") as error:
            load(SMALL, None, text)
        sentence(error)


def test_a_hundred_thousand_choices_are_read_in_linear_time():
    choices = [index / 7 for index in range(100_000)]
    made = Parameter.model_validate({"choice": choices})  # comparing each with each took minutes
    assert len(made.choices) == 100_000 and made.probes()[0] == 0 and made.probes()[-1] == choices[-1]
    assert len(made.probes()) == 200


@pytest.mark.parametrize(
    ("written", "low", "count"),
    [({"uniform": [0, 0.9], "step": 0.1}, 0, 10), ({"uniform": [-0.3, 0.3], "step": 0.1}, -3, 7),
     ({"uniform": [0.1, 0.7], "step": 0.2}, None, 4), ({"int": [5, 60], "step": 5}, None, 12)],
)  # fmt: skip
def test_a_step_draws_numbers_as_a_person_writes_them(written, low, count):
    made, rng = Parameter.model_validate(written), random.Random(0)
    drawn = {made.draw(rng) for _ in range(500)}
    assert len(drawn) == count and all(len(repr(value)) <= 4 for value in drawn)
    if low is not None:
        assert sorted(drawn) == [(low + index) / 10 for index in range(count)]


def test_no_packaged_search_space_reads_from_outside_the_working_folder():
    for path in search_spaces().values():
        raw = read_yaml(path)
        for tree in (raw, *raw["profiles"].values()):
            given = [str(value) for value in (tree.get("data") or {}).values()]
            assert not [text for text in given if text.startswith(("..", "/", "~"))], path


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
        ("profile=quick", "--profile NAME"),
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
