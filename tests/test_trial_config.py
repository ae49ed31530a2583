"""Parameters are drawn in order, and configs are built of them."""
# ruff: noqa: E501, F811  (tables of sentences, one fault per line; `load` is a fixture)

from __future__ import annotations

import json
import random
from math import log

import pytest
from spec_family import EXAMPLE, SMALL, Config, Constant, Family, Linear, check, load, put, schedule, sentence  # noqa: F401

from buttress.errors import BadInput
from buttress.spec import trial_config, validation
from buttress.spec.spec import SweepSpec
from buttress.training.trainable import Schedule

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


COUPLED = """\
trainable: rainfall
search:
  loss.gamma: {uniform: [3, 4], when: config.loss.kind == 'focal'}
  recipe: {choice: [{loss.kind: focal, train.epochs: 20}, {train.epochs: 50, loss.beta: {kind: constant, value: 3}}, {}]}
objectives: [prior/crps]
budget: {trials: 4}
"""


def test_one_draw_of_a_coupled_choice_sets_all_its_paths_and_the_rest_keep_their_defaults(load):
    spec, rng, seen = load(COUPLED), random.Random(3), set()
    assert spec.ordered == ["recipe", "loss.gamma"]
    assert spec.searched["recipe"] == ("loss.kind", "train.epochs", "loss.beta")
    check(spec)
    for _ in range(60):
        params = trial_config.sample(spec, rng, Config)
        built = trial_config.build(spec, params, Config)
        seen.add((built.loss.kind, built.train.epochs, built.loss.beta.kind, built.loss.gamma >= 3))
    assert seen == {("focal", 20, "linear", True), ("mse", 50, "constant", False), ("mse", 200, "linear", False)}
    assert SweepSpec.from_dict(json.loads(json.dumps(spec.to_dict()))).searched == spec.searched


def test_a_list_or_a_mapping_is_a_choice_and_a_mapping_replaces_its_group(load):
    spec = load(put(
        "search: {loss.beta: {choice: [{kind: constant, value: 3}, {kind: linear, end: 0.25}]}, data.scale: {choice: [{gra: 2}]}}"
    ))  # fmt: skip
    check(spec)
    built = [trial_config.build(spec, {"loss.beta": each}, Config) for each in spec.search["loss.beta"].choices]
    assert [each.loss.beta for each in built] == [Constant(value=3), Linear(end=0.25)]
    assert trial_config.build(spec, {"data.scale": {"gra": 2}}, Config).data.scale == {"gra": 2.0}


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
