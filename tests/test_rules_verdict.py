"""Warnings, messages and evidence: what a verdict says to people and to the journal."""

from __future__ import annotations

import doctest
import json

import pytest
from rule_streams import DEFAULT, KL, A, B, C, one_rule, play, report, states

from buttress.rules import Evidence, RuleEngine, RuleSet
from buttress.rules import engine as engine_module
from buttress.rules import verdict as verdict_module


def test_a_warning_says_when_it_was_raised_and_stands() -> None:
    rules = one_rule(KL, action="warn", kind="thin code", patience=2)
    engine = RuleEngine(rules)
    found = [report(engine, {"kl": kl}, index) for index, kl in enumerate((0.1, 0.1, 5.0), 1)]
    assert [[warning.rule for warning in verdict.warnings] for verdict in found] == [[], ["low"], ["low"]]
    assert {verdict.state for verdict in found} == {"healthy"} and engine.suspects == ()
    (warning,) = engine.warnings
    assert (warning.kind, warning.epoch, warning.step) == ("thin code", 2, 200)
    assert warning.message == "kl was 0.1, 0.1 at epochs 1, 2 (steps 100, 200): below 0.3 in 2 reports in a row"


def test_a_rule_that_is_off_says_nothing() -> None:
    rules = one_rule(KL).override({"low": {"action": "off"}})
    assert states(rules, [0.0, 0.0]) == "hh" and rules.metrics == frozenset()


def test_the_evidence_is_a_sentence_for_people() -> None:
    rules = one_rule({"metric": "latent/kl_total", "below": 0.3}, patience=2)
    engine = RuleEngine(rules)
    engine.update({"latent/kl_total": 0.012}, epoch=3, step=1200, full_beta_epochs=1, full_beta_steps=100)
    verdict = engine.update({"latent/kl_total": 0.009}, epoch=3, step=1300, full_beta_epochs=1, full_beta_steps=200)
    assert verdict.evidence[0].sentence() == verdict.message == (
        "total KL was 0.012, 0.009 nats at epoch 3 (steps 1200, 1300): below 0.3 nats in 2 reports in a row"
    )


@pytest.mark.parametrize(
    ("evidence", "sentence"),
    [
        (
            Evidence("mae", "best_ratio", (2.5,), 2.0, "above", ((4, 40),)),
            "mae was 2.5 times its best at epoch 4 (step 40): above 2",
        ),
        (
            Evidence("sep", "slope", (-0.1,), 0.0, "below", ((0, 40),), window=3),
            "the slope of sep over 3 reports was -0.1 per report at epoch 0 (step 40): below 0",
        ),
        (
            Evidence("rec", "median_ratio", (3.2,), 3.0, "above", ((1, 40),), window=20),
            "rec was 3.2 times the median of the 20 reports before at epoch 1 (step 40): above 3",
        ),
        (
            Evidence("rec", "window_max_over_min", (3.2,), 3.0, "above", ((1, 40),), window=15),
            "the largest rec of 15 reports was 3.2 times the smallest at epoch 1 (step 40): above 3",
        ),
        (
            Evidence("d", "absent", (), None, None, ((1, 40), (2, 80)), window=2),
            "d was absent at epochs 1, 2 (steps 40, 80)",
        ),
        (
            Evidence("kl", "value", (0.4, 0.5), 0.3, "below", ((1, 40), (2, 80))),
            "kl was 0.4, 0.5 at epochs 1, 2 (steps 40, 80): not below 0.3",
        ),
        (
            Evidence("kl", "value", (0.1,) * 9, 0.3, "below", tuple((1, step) for step in range(9))),
            "kl was 0.1, 0.1, ..., 0.1, 0.1 at epoch 1 (steps 0, 1, ..., 7, 8): below 0.3 in 9 reports in a row",
        ),
    ],
)
def test_sentences(evidence: Evidence, sentence: str) -> None:
    assert evidence.sentence() == sentence


def test_a_message_holds_the_numbers_and_gives_way_where_one_is_unknown() -> None:
    rules = one_rule(KL, message="only {kl:.3f} nats and {latent/active} units at epoch {epoch}")
    assert play(rules, [{"kl": 0.0123, "latent/active": 2.0}])[-1].message == "only 0.012 nats and 2 units at epoch 1"
    assert play(rules, [{"kl": 0.0123}])[-1].message.startswith("kl was 0.0123 at epoch 1")


def test_evidence_names_only_signs_that_held_and_the_graded_one() -> None:
    rules = one_rule(A, B, C, votes=2, grade={"metric": "kl", "below": 1})
    verdict = play(rules, [{"a": 0, "b": 5, "c": 0, "kl": 2}])[-1]
    assert [evidence.metric for evidence in verdict.evidence] == ["kl", "a", "c"]
    assert verdict.evidence[0].sentence() == "kl was 2 at epoch 1 (step 100): not below 1"


def test_a_verdict_is_plain_json() -> None:
    verdict = play(RuleSet.load(DEFAULT), [{"train/loss": None, "train/nonfinite": 1.0}] * 2, budget=4)[-1]
    tree = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert (tree["state"], tree["margin"], tree["warnings"][0]["rule"]) == ("diverged", 12.5, "nonfinite_steps")
    assert tuple(map(Evidence.from_dict, tree["evidence"])) == verdict.evidence


def test_the_examples_in_the_docstrings_run() -> None:
    for module in (engine_module, verdict_module):
        failed, tried = doctest.testmod(module)
        assert tried and not failed
