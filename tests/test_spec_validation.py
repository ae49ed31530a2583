"""A spec is held against its trainable before anything runs."""
# ruff: noqa: E501, F811  (tables of sentences, one fault per line; `load` is a fixture)

from __future__ import annotations

from dataclasses import dataclass

import pytest
from pydantic import BaseModel
from spec_family import SMALL, Config, Loss, check, load, put, sentence  # noqa: F401

from buttress.errors import BadInput
from buttress.spec.spec import SweepSpec

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
        ("search: {r: {choice: [{train.epochs: 5}, {train.epoks: 5}]}}", ["search.r: sets train.epoks: no such parameter; did you mean train.epochs?"]),
        ("search: {r: {choice: [{loss: 5}]}}", ["search.r: sets loss, which is a group, not a parameter"]),
        ("search: {loss: {choice: [{gamma: 5}]}}", ["search.loss: sets gamma: no such parameter", "such as {loss: {gamma: ...}}"]),
        ("search: {r: {choice: [{train.epochs: 5}, {train.epochs: 0}]}}", ["search.r: the trainer's config refuses this choice", "at least 1", "got {'train.epochs': 0}"]),
        ("search: {r: {choice: [{train.epochs: 5}, 3]}}", ["search.r: no such parameter"]),
        ("{search: {r: {choice: [{loss.lambda_ext: 2}]}}, objectives: [val/loss]}", ["changes its scale with loss.lambda_ext, which is searched"]),
        ("{budget: {full_beta_epochs: 3, trials: 1}, search: {r: {choice: [{train.epochs: 9}]}}}", ["search.r: is set by budget.full_beta_epochs"]),
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
        "search: {loss.beta: {choice: [{kind: constant}, {kind: linear, end: 2}]}, data.scale: {choice: [{gra: 1}, {}]}}",
        "search: {r: {choice: [{loss.beta: {kind: constant}, train.epochs: 5}, {}]}}",
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
