"""Transforms and thresholds of signs, against values worked out by hand."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
from rule_streams import Row, one_rule, play, report, states

from buttress.errors import BadInput
from buttress.rules import RuleEngine

# --- transforms ----------------------------------------------------------------------------------------------------

SERIES = (4.0, 2.0, 8.0, 1.0, 3.0, 6.0)
SEEN: dict[str, tuple[dict[str, Any], dict[int, float]]] = {  # -> what is compared at which report, worked out by hand
    "value": ({}, {1: 4.0, 3: 8.0, 6: 6.0}),
    "best_ratio": ({}, {1: 1.0, 2: 1.0, 3: 4.0, 4: 1.0, 6: 6.0}),
    "window_max_over_min": ({"window": 3}, {3: 4.0, 4: 8.0, 5: 8.0, 6: 6.0}),
    "median_ratio": ({"window": 3}, {4: 1 / 4, 5: 3 / 2, 6: 2.0}),
    "best_difference": ({}, {1: 0.0, 2: 0.0, 3: 6.0, 4: 0.0, 6: 5.0}),
    "window_max_minus_min": ({"window": 3}, {3: 6.0, 4: 7.0, 5: 7.0, 6: 5.0}),
    "median_difference": ({"window": 3}, {4: -3.0, 5: 1.0, 6: 3.0}),
    "slope": ({"window": 3}, {3: 2.0, 4: -0.5, 5: -2.5, 6: 2.5}),
}
ANYTHING = {name: 0.0 if name in ("best_ratio", "window_max_over_min", "median_ratio") else -1e9 for name in SEEN}


@pytest.mark.parametrize("transform", SEEN)
def test_a_transform_sees_what_hand_arithmetic_sees(transform: str) -> None:
    options, expected = SEEN[transform]
    sign = {"metric": "kl", "transform": transform, "above": ANYTHING[transform], **options}
    rules = one_rule(sign, action="warn", patience=1)
    for index, value in expected.items():
        engine = RuleEngine(rules.override({"low": {"min_step": 100 * index}}))
        for place, each in enumerate(SERIES, 1):
            report(engine, {"kl": each}, place)
        (warning,) = engine.warnings
        assert warning.step == 100 * index
        assert warning.evidence[0].values == pytest.approx((value,), rel=1e-12)


@pytest.mark.parametrize(
    ("transform", "first"),
    [
        ("window_max_over_min", 3),
        ("window_max_minus_min", 3),
        ("median_ratio", 4),
        ("median_difference", 4),
        ("slope", 3),
    ],
)
def test_a_window_that_is_not_full_holds_nothing(transform: str, first: int) -> None:
    sign = {"metric": "kl", "transform": transform, "window": 3, "above": ANYTHING[transform]}
    found = play(one_rule(sign, action="warn"), [{"kl": value} for value in SERIES])
    assert [bool(verdict.warnings) for verdict in found] == [index >= first for index in range(1, 7)]


def test_the_best_is_the_highest_for_a_fall() -> None:
    rules = one_rule({"metric": "kl", "transform": "best_ratio", "below": 0.5})
    assert states(rules, [4.0, 8.0, 5.0, 3.9]) == "hhhc"


def test_ratios_of_negative_values_are_no_evidence() -> None:
    for transform, window in (("best_ratio", None), ("median_ratio", 2), ("window_max_over_min", 2)):
        for side in ("below", "above"):
            sign = {"metric": "kl", "transform": transform, side: 1.5} | ({"window": window} if window else {})
            assert states(one_rule(sign), [-1.0, -2.0, -5.0, -1.0]) == "hhhh"


def test_differences_judge_values_below_zero() -> None:
    fall = one_rule({"metric": "mi", "transform": "best_difference", "below": -3})
    assert states(fall, [-1.0, 1.0, -1.9, -2.1], metric="mi") == "hhhc"
    *_, verdict = play(fall, [{"mi": 1.0}, {"mi": -29.0}])
    assert (verdict.state, verdict.margin) == ("collapsed", pytest.approx(1.0))  # ten times as far as is allowed
    assert verdict.message.startswith("mi minus its best was -30 at epoch 2")
    assert play(fall, [{"mi": 1.0}, {"mi": 0.7}])[-1].margin == pytest.approx(-1.0)
    rise = one_rule({"metric": "nll", "transform": "best_difference", "above": 5})
    assert states(rise, [-10.0, -12.0, -7.5, -6.5], metric="nll") == "hhhc"
    stuck = one_rule({"metric": "ll", "transform": "window_max_minus_min", "window": 3, "below": 0.1})
    assert states(stuck, [-5.0, -4.0, -4.05, -4.01], metric="ll") == "hhhc"
    jump = one_rule({"metric": "ll", "transform": "median_difference", "window": 2, "below": -2})
    assert states(jump, [-5.0, -6.0, -7.0, -9.0], metric="ll") == "hhhc"


@pytest.mark.parametrize(
    ("transform", "side", "limit", "said"),
    [
        ("best_ratio", "below", -0.5, "is never below 0 .*above 0; where mi may be .*`transform: best_difference`"),
        ("best_ratio", "above", -0.5, "is never below 0 .*a threshold of 0 or more; where mi may be below 0"),
        ("window_max_over_min", "below", 1.0, "is never below 1 .*above 1; .*`transform: window_max_minus_min`"),
        ("median_ratio", "below", 0.0, "is never below 0 .*`transform: median_difference`"),
        ("window_max_minus_min", "below", -1.0, "is never below 0 .*a threshold above 0$"),
    ],
)
def test_a_threshold_that_cannot_be_passed_is_refused(transform: str, side: str, limit: float, said: str) -> None:
    window = {} if transform.startswith("best") else {"window": 2}
    with pytest.raises(BadInput, match=said):
        one_rule({"metric": "mi", "transform": transform, side: limit, **window}, action="warn")


def test_absent_holds_after_its_window_and_is_forgotten_by_one_value() -> None:
    rules = one_rule({"metric": "d", "transform": "absent", "window": 3}, action="warn")
    seen = [None, None, 1.0, None, None, None]
    rows = [{"d": value} if value is not None else {} for value in seen]
    assert [bool(verdict.warnings) for verdict in play(rules, rows)] == [False] * 5 + [True]


def test_absent_counts_within_the_phase_only() -> None:
    rules = one_rule({"metric": "d", "transform": "absent", "window": 2}, action="warn", phase=1)
    engine = RuleEngine(rules)
    raised = [bool(report(engine, {}, index, phase=int(index > 5)).warnings) for index in range(1, 9)]
    assert raised == [False] * 6 + [True] * 2


def test_lost_is_silent_until_the_metric_has_been_reported_once() -> None:
    rules = one_rule({"metric": "d", "transform": "lost", "window": 2}, action="warn")
    seen = [None, None, None, 1.0, None, None]
    rows = [{"d": value} if value is not None else {} for value in seen]
    found = play(rules, rows)
    assert [bool(verdict.warnings) for verdict in found] == [False] * 5 + [True]
    assert found[-1].warnings[0].message == "d was lost at epoch 6 (step 600)"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_nonfinite_is_one_thing_however_it_is_written(bad: float | None) -> None:
    rules = one_rule({"metric": "loss", "transform": "nonfinite"}, kind="diverged", patience=2)
    rows: list[Row] = [{"loss": 1.0}, {"loss": bad}, {"loss": bad}]
    assert [verdict.state for verdict in play(rules, rows)] == ["healthy", "suspect", "diverged"]
    engine = RuleEngine(rules)
    for index in (1, 2):
        verdict = report(engine, {"loss": 1.0}, index, nonfinite=("loss",))
    assert verdict.state == "diverged"
    assert verdict.evidence[0].sentence() == "loss was not finite at epochs 1, 2 (steps 100, 200)"


# --- thresholds ----------------------------------------------------------------------------------------------------


def test_a_threshold_per_dimension_is_multiplied_by_the_reported_dimensions() -> None:
    rules = one_rule({"metric": "latent/kl_total", "below": {"per_dim": 0.03}})
    rows = [{"latent/kl_total": 1.0, "latent/dims": dims} for dims in (10.0, 33.0, 34.0)]
    assert [verdict.state for verdict in play(rules, rows)] == ["healthy", "healthy", "collapsed"]
    assert play(rules, rows)[-1].margin == pytest.approx(math.log10(34 * 0.03), rel=1e-9)


def test_dimensions_are_those_beside_the_metric() -> None:
    rules = one_rule({"metric": "map/kl_total", "below": {"per_dim": 0.03}})
    row = {"map/kl_total": 1.0, "map/dims": 100.0, "latent/dims": 1.0}
    assert play(rules, [row])[-1].state == "collapsed"
    assert play(rules, [{"map/kl_total": 1.0}])[-1].state == "healthy"  # no dims: no threshold, so it abstains


def test_a_relative_threshold_follows_the_other_metric() -> None:
    rules = one_rule({"metric": "a", "above": {"relative_to": "b", "factor": 3}}, patience=2)
    rows: list[Row] = [{"a": 4, "b": 1}, {"a": 4}, {"a": 4, "b": 2}, {"a": 7, "b": 2}, {"a": 4, "b": 1}]
    found = play(rules, rows)
    assert "".join(verdict.state[0] for verdict in found) == "sshsc"
    assert found[-1].margin == pytest.approx(statistics.median([math.log10(7 / 6), math.log10(4 / 3)]))
    assert found[-1].evidence[0].sentence() == (
        "a was 7, 4 at epochs 4, 5 (steps 400, 500): above 3 (3 times b) in 2 reports in a row"
    )
