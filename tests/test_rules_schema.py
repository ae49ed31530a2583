"""Rules files: read, overridden, written back, and the errors for invalid ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from rule_streams import DEFAULT, KL, A, Row, one_rule, play

from buttress.errors import BadInput, members
from buttress.rules import RuleSet
from buttress.rules.schema import Sign
from buttress.rules.transforms import TRANSFORMS

# --- files, overrides, aliases -------------------------------------------------------------------------------------


def test_a_rule_set_survives_the_journal() -> None:
    rules = RuleSet.load(DEFAULT).override({"posterior_collapse": {"patience": 7}, "weak_code": {"action": "off"}})
    tree = json.loads(json.dumps(rules.to_dict()))
    assert RuleSet.from_dict(tree) == rules and RuleSet.from_dict(tree).to_dict() == rules.to_dict()
    assert tree["rules"]["posterior_collapse"]["kind"] == "posterior_collapse"


def test_an_override_changes_what_it_names() -> None:
    base = one_rule(KL, patience=2, grace={"epochs": 3, "steps": 50})
    rules = base.override({"extends": "lithology", "low": {"patience": 4, "grace": {"steps": 10}, "action": "warn"}})
    low = rules.rules["low"]
    assert (low.patience, low.grace.epochs, low.grace.steps, low.action, low.kind) == (4, 3, 10, "warn", "low")
    assert base.rules["low"].patience == 2
    assert base.override({"low": {"patience": None}}).rules["low"].patience == 1


def test_an_override_of_the_signs_moves_the_margin_with_them() -> None:
    rules = one_rule(KL).override({"low": {"signs": [{"metric": "kl", "below": 3.0}]}})
    assert play(rules, [{"kl": 0.3}])[-1].margin == pytest.approx(1.0)


def test_an_override_may_bring_a_whole_new_rule_and_aliases() -> None:
    rules = one_rule(KL).override({"new": {"action": "warn", "signs": [A]}, "aliases": {"kl": "val_kl"}})
    assert list(rules.rules) == ["low", "new"]
    assert play(rules, [{"val_kl": 0.1}])[-1].state == "collapsed"


def test_aliases_read_foreign_columns_our_own_first_and_then_in_order() -> None:
    rules = RuleSet.from_dict(one_rule(KL).to_dict() | {"aliases": {"kl": ["val_kl", "kl_loss"]}})
    rows: list[tuple[Row, float]] = [
        ({"kl_loss": 0.03}, 0.03),
        ({"kl_loss": 0.003, "val_kl": 0.03}, 0.03),
        ({"kl": 3.0, "val_kl": 0.03}, 3.0),
    ]
    for row, kl in rows:
        assert play(rules, [row]) == play(rules, [{"kl": kl}])
    assert play(rules, [{"val_kl": 0.1}])[-1].state == "collapsed"


def test_a_rules_file_reads_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("rules: {low: {action: off, signs: [{metric: kl, below: 3e-4}], hysteresis: 2}}")
    low = RuleSet.load(path).rules["low"]
    assert (low.action, low.signs[0].below, low.hysteresis) == ("off", 3e-4, 2.0)


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"patiense": 2}, "patiense: unknown key; did you mean patience?"),
    ({"action": "murder"}, "action: is not one of the choices (got 'murder'); accepted: 'kill', 'warn' or 'off'"),
    ({"action": None}, "action: is not one of the choices (got null)"),
    ({"signs": []}, "signs: a rule without signs; accepted: a list of {metric"),
    ({"signs": [{"metric": "kl", "transform": "mean", "below": 1}]}, "signs.0.transform: is not one of the choices"),
    ({"signs": [{"metric": "kl"}]}, "signs.0: the threshold is missing; accepted: exactly one of below and above"),
    ({"signs": [KL | {"above": 1}]}, "signs.0: both below and above are given; accepted: exactly one"),
    ({"signs": [{"below": 1}]}, "signs.0.metric: is missing"),
    ({"signs": [KL | {"below": "much"}]}, "signs.0.below: is not a valid threshold (got 'much'); accepted: a number"),
    ({"signs": [KL | {"below": True}]}, "signs.0.below: is not a valid threshold (got true); accepted: a number"),
    ({"signs": [KL | {"below": math.inf}]}, "signs.0.below"),
    ({"signs": [KL | {"below": {"per_dimension": 1}}]}, "signs.0.below: is not a valid threshold"),
    ({"signs": [KL | {"below": {"per_dim": 1, "factor": 2}}]}, "signs.0.below.factor: unknown key"),
    ({"signs": [KL | {"below": {"relative_to": "b", "factor": -1}}]}, "signs.0.below.factor: has to be greater than 0"),
    ({"signs": [KL | {"window": 3}]}, "signs.0.window: the transform `value` takes no window (got 3)"),
    ({"signs": [KL | {"transform": "slope"}]}, "signs.0.window: the transform `slope` needs a window of reports"),
    ({"signs": [KL | {"transform": "slope", "window": 1}]}, "signs.0.window: the transform `slope` needs a window of"),
    ({"signs": [KL | {"transform": "absent"}]}, "signs.0.below: the transform `absent` takes no threshold (got 0.3)"),
    ({"votes": 2}, "votes: more votes than signs (got 2); accepted: 1 to 1"),
    ({"votes": 0}, "votes: has to be at least 1 (got 0)"),
    ({"patience": -1}, "patience: has to be at least 1 (got -1)"),
    ({"patience": 2.5}, "patience: has to be a whole number (got 2.5)"),
    ({"hysteresis": 0.8}, "hysteresis: has to be at least 1"),
    ({"grace": {"epoch": 3}}, "grace.epoch: unknown key; did you mean epochs?"),
    ({"grace": {"steps": -3}}, "grace.steps: has to be at least 0 (got -3)"),
    ({"grade": {"metric": "kl", "below": 0}}, "grade: the margin is a logarithm, so its threshold has to be greater"),
    ({"grade": {"metric": "latent/active_kl", "below": 1}}, "grade: counts of units vote but never set the margin"),
    ({"signs": [{"metric": "d", "transform": "absent"}]}, "grade: a rule that kills needs a graded metric (the transf"),
    ({"signs": [{"metric": "kl", "below": -1}]}, "grade: a rule that kills needs a graded metric (the margin is a log"),
    ({"signs": [{"metric": "latent/active_kl", "below": 1}]}, "grade: a rule that kills needs a graded metric (counts"),
    ({"message": "{kl:.3q}"}, "message: "),
    ({"reports": "sometimes"}, "reports: is not one of the choices (got 'sometimes')"),
]


@pytest.mark.parametrize(("keys", "sentence"), FAULTS)
def test_a_fault_is_told_with_file_key_value_and_what_is_accepted(keys: dict[str, Any], sentence: str) -> None:
    tree = {"rules": {"low": {"action": "kill", "signs": [KL], **keys}}}
    with pytest.raises(BadInput) as caught:
        RuleSet.from_dict(tree, where="my_rules.yaml")
    assert str(caught.value).startswith(f"my_rules.yaml: rules.low.{sentence}")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the file is empty; accepted: aliases and rules"),
        ("- 1", "the file does not hold a mapping (got [1]); accepted: aliases and rules"),
        ("rules: [", "line 1"),
        ("rules:\n  a: {}\n  a: {}", "line 3, column 3: `a` is given twice"),
        ("aliases: {}", "rules: is missing"),
        ("rules: {}\nrule: {}", "rule: unknown key; did you mean rules?"),
        ("rules: {low: 3}", "rules.low: has to be a mapping"),
        ("rules: {extends: {}}", "rules.extends: is not a valid name for a rule"),
        ("rules: {}\naliases: {kl: 3}", "aliases.kl: has to be a list"),
    ],
)
def test_a_faulty_file_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        RuleSet.load(path)
    assert str(caught.value).startswith(f"{path}: ") and sentence in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.yaml: no such file"):
        RuleSet.load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lwo": {"patience": 3}}, "spec.yaml: rules.lwo: no such rule; did you mean low?; accepted: low, or a"),
        ({"low": 3}, "spec.yaml: rules.low: has to be a mapping (key: value) (got 3)"),
        ({"low": {"votes": 3}}, "spec.yaml: rules.low.votes: more votes than signs (got 3); accepted: 1 to 1"),
        ({"low": {"grace": 3}}, "spec.yaml: rules.low.grace: has to be a mapping"),
    ],
)
def test_a_faulty_override_is_told(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        one_rule(KL).override(changes, where="spec.yaml")
    assert sentence in str(caught.value)


# --- the reference -------------------------------------------------------------------------------------------------


def models(model: type[BaseModel] = RuleSet) -> set[type[BaseModel]]:
    """A model and all models that its fields hold."""
    inner = members([field.annotation for field in model.model_fields.values()])
    inner += members([argument for each in inner for argument in get_args(each)])
    found = {each for each in inner if isinstance(each, type) and issubclass(each, BaseModel)}
    return {model}.union(*(models(each) for each in found))


def test_every_key_and_transform_of_the_grammar_is_described() -> None:
    assert {model.__name__ for model in models()} == {"RuleSet", "Rule", "Sign", "Grade", "Grace", "PerDim", "Relative"}
    for model in models():
        assert model.__doc__
        assert not [name for name, field in model.model_fields.items() if not field.description], model
    names = get_args(Sign.model_fields["transform"].annotation)
    assert names == tuple(TRANSFORMS)
    assert all(transform.__doc__ for transform in TRANSFORMS.values())
