"""The rule engine: grace, patience, hysteresis, votes, margins and the closing check, against hand-worked values."""

from __future__ import annotations

import math

import pytest
from rule_streams import KL, A, B, C, Row, one_rule, play, report, states

from buttress.rules import RuleEngine, RuleSet

# --- grace, patience, hysteresis -----------------------------------------------------------------------------------


def test_grace_is_epochs_and_steps_at_full_beta() -> None:
    rules = one_rule(KL, grace={"epochs": 2, "steps": 300})
    engine = RuleEngine(rules)

    def at(full_epochs: int, full_steps: int) -> str:
        age = {"epoch": 50, "step": 9000, "full_beta_epochs": full_epochs, "full_beta_steps": full_steps}
        return engine.update({"kl": 0.01}, **age).state

    assert [at(0, 0), at(1, 500), at(2, 299)] == ["healthy"] * 3
    assert at(2, 300) == "collapsed"


def test_without_grace_a_rule_still_waits_for_full_beta() -> None:
    engine = RuleEngine(one_rule(KL))
    assert report(engine, {"kl": 0.01}, 1, full_beta_epochs=0, full_beta_steps=0).state == "healthy"
    assert report(engine, {"kl": 0.01}, 1, full_beta_epochs=0, full_beta_steps=1).state == "collapsed"


def test_grace_before_full_beta_counts_from_the_start() -> None:
    rules = one_rule(KL, grace={"before_full_beta": True, "epochs": 1, "steps": 200})
    engine = RuleEngine(rules)
    warm_up = {"full_beta_epochs": 0, "full_beta_steps": 0}
    assert report(engine, {"kl": 0.01}, 1, **warm_up).state == "healthy"
    assert report(engine, {"kl": 0.01}, 2, epoch=0, **warm_up).state == "healthy"
    assert report(engine, {"kl": 0.01}, 2, **warm_up).state == "collapsed"


def test_min_step_silences_a_rule_until_then() -> None:
    assert states(one_rule(KL, min_step=300), [0.1, 0.1, 0.1]) == "hhc"


def test_a_recoverer_within_grace_lives_and_is_known_to_look_collapsed() -> None:
    rules = one_rule(KL, grace={"epochs": 7}, patience=3)
    engine = RuleEngine(rules)
    for index in range(1, 7):
        verdict = report(engine, {"kl": 0.01}, index)
        assert (verdict.state, engine.suspects, engine.holding) == ("healthy", (), ("low",))
    for index in range(7, 12):
        verdict = report(engine, {"kl": 3.0}, index)
        assert (verdict.state, engine.holding) == ("healthy", ())
    assert verdict.margin == pytest.approx(-1.0)


def test_patience_is_reports_in_a_row() -> None:
    rules = one_rule(KL, patience=3)
    assert states(rules, [0.1, 0.1, 0.5, 0.1, 0.1, 0.1]) == "sshssc"


def test_an_abstaining_report_neither_extends_nor_resets_patience() -> None:
    rules = one_rule(KL, patience=3)
    assert states(rules, [0.1, None, 0.1, None, None, 0.1]) == "sssssc"
    assert states(rules, [0.1, 0.1, math.nan, math.nan, math.nan]) == "sssss"
    assert states(rules, [0.1, 0.1, math.nan, 0.5, 0.1]) == "ssshs"


def test_hysteresis_holds_on_to_a_trial_that_flaps_around_the_threshold() -> None:
    flapping = [0.29, 0.31, 0.29, 0.31, 0.29]
    assert states(one_rule(KL, patience=3), flapping) == "shshs"
    assert states(one_rule(KL, patience=3, hysteresis=1.2), flapping) == "ssccc"
    assert states(one_rule(KL, patience=3, hysteresis=1.2), [0.29, 0.31, 0.37, 0.31, 0.29]) == "sshhs"
    assert states(one_rule({"metric": "kl", "above": 0.3}, patience=3, hysteresis=1.2), [0.31, 0.26, 0.24]) == "ssh"
    assert states(one_rule(KL, patience=3, hysteresis=1.2), [0.31, 0.31, 0.31]) == "hhh"  # nothing to hold on to


def test_hysteresis_widens_negative_thresholds_too() -> None:
    rules = one_rule({"metric": "kl", "below": -1.0}, grade=KL, patience=3, hysteresis=2)
    assert states(rules, [-1.1, -0.6, -0.4]) == "ssh"


def test_a_sign_that_abstains_keeps_its_hysteresis() -> None:
    rules = one_rule({"metric": "a", "below": 1}, {"metric": "b", "below": 1}, votes=1, patience=9, hysteresis=1.5)
    rows: list[Row] = [{"a": 0.9, "b": 0.9}, {"b": 0.9}, {"a": 1.2, "b": 5.0}, {"a": 1.6, "b": 5.0}]
    assert [verdict.state[0] for verdict in play(rules, rows)] == ["s", "s", "s", "h"]


def test_a_sign_may_have_a_hysteresis_of_its_own() -> None:
    active = {"metric": "active", "below": 1}
    rows: list[Row] = [{"kl": 0.1, "active": 0.0}, {"kl": 0.1, "active": 1.0}]
    assert play(one_rule(KL, active, patience=3, hysteresis=1.2), rows)[-1].state == "suspect"
    strict = one_rule(KL, active | {"hysteresis": 1}, patience=3, hysteresis=1.2)
    assert play(strict, rows)[-1].state == "healthy"


def test_a_rule_speaks_in_its_phase_only() -> None:
    engine = RuleEngine(one_rule(KL, phase=1, patience=2))
    found = [report(engine, {"kl": 0.1}, index, phase=phase).state for index, phase in enumerate((0, 0, 1, 2, 1, 1), 1)]
    assert found == ["healthy", "healthy", "suspect", "healthy", "suspect", "collapsed"]


def test_a_rule_for_epoch_ends_is_not_moved_by_reports_inside_an_epoch() -> None:
    rules = one_rule(KL, reports="epoch_ends", patience=2)
    engine = RuleEngine(rules)
    stream = [(1, 0.1), (1, 5.0), (1, 5.0), (2, 0.1)]  # inside an epoch the training batches look healthy
    found = [report(engine, {"kl": kl}, index, epoch=epoch).state for index, (epoch, kl) in enumerate(stream, 1)]
    assert found == ["suspect", "suspect", "suspect", "collapsed"]
    assert states(one_rule(KL, patience=2), [kl for _, kl in stream]) == "shhs"
    falling = {"metric": "kl", "transform": "slope", "window": 2, "below": 0.0}
    rules = one_rule(falling, reports="epoch_ends", action="warn")  # sees 3, 2; inside the epoch there was a 1
    engine = RuleEngine(rules)
    for index, (epoch, kl) in enumerate(((1, 3.0), (1, 1.0), (2, 2.0)), 1):
        verdict = report(engine, {"kl": kl}, index, epoch=epoch)
    assert verdict.warnings[0].evidence[0].values == (-1.0,)


# --- votes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("votes", "row", "state"),
    [
        (None, {"a": 0.0, "b": 0.0, "c": 0.0}, "collapsed"),
        (None, {"a": 0.0, "b": 0.0, "c": 2.0}, "healthy"),
        (None, {"a": 0.0, "b": 0.0}, "collapsed"),  # c has never been reported: left out
        (None, {"a": 0.0, "b": 0.0, "c": math.nan}, "healthy"),  # c is reported, but says nothing
        (None, {}, "healthy"),
        (2, {"a": 0.0, "b": 0.0, "c": 2.0}, "collapsed"),
        (2, {"a": 0.0, "b": 2.0, "c": 2.0}, "healthy"),
        (2, {"a": 0.0, "c": 0.0}, "collapsed"),
        (2, {"a": 0.0}, "healthy"),  # fewer signs than votes are left
        (1, {"c": 0.0}, "collapsed"),
    ],
)
def test_votes(votes: int | None, row: Row, state: str) -> None:
    keys = {} if votes is None else {"votes": votes}
    assert play(one_rule(A, B, C, **keys), [row])[-1].state == state


def test_a_rule_waits_for_signs_that_the_trial_does_report() -> None:
    """A health report without the sign that an epoch's report brings is no reason to judge without it."""
    rows: list[Row] = [{"a": 0.0, "b": 2.0}, {"a": 0.0}, {"a": 0.0}, {"a": 0.0, "b": 0.0}]
    assert [verdict.state[0] for verdict in play(one_rule(A, B), rows)] == ["h", "h", "h", "c"]


def test_too_few_votes_left_is_an_abstention() -> None:
    rules = one_rule(A, B, votes=2, patience=2)
    rows: list[Row] = [{"a": 0.0, "b": 0.0}, {"a": 5.0}, {"a": 0.0, "b": 0.0}]
    assert [verdict.state[0] for verdict in play(rules, rows)] == ["s", "s", "c"]


# --- margins -------------------------------------------------------------------------------------------------------


def test_the_margin_is_decades_beyond_the_threshold_over_the_patience_window() -> None:
    rules = one_rule(KL, patience=3)
    (*_, verdict) = play(rules, [{"kl": value} for value in (5.0, 0.2, 0.003, 0.03)])
    assert verdict.margin == pytest.approx(1.0)  # median of log10(.3/.2), 2 and 1
    above = one_rule({"metric": "fill", "above": 40})
    assert play(above, [{"fill": 400.0}])[-1].margin == pytest.approx(1.0)
    assert play(rules, [{"kl": 0.0}] * 3)[-1].margin == pytest.approx(math.log10(0.3 / 1e-12))
    assert play(one_rule({"metric": "kl", "below": 1e5}), [{"kl": 0.0}])[-1].margin == 12.0


def test_margins_of_different_trials_differ() -> None:
    rules = one_rule(KL, patience=2)
    margins = [play(rules, [{"kl": kl}, {"kl": kl}])[-1].margin for kl in (0.29, 0.1, 0.01, 1e-3, 1e-6)]
    assert len(set(margins)) == 5 and margins == sorted(margins) and margins[0] > 0


def test_counts_vote_but_never_set_the_margin() -> None:
    active = {"metric": "latent/active_kl", "below": 1}
    rules = one_rule(active, KL)
    verdict = play(rules, [{"latent/active_kl": 0.0, "kl": 0.03}])[-1]
    assert verdict.margin == pytest.approx(1.0)
    assert [evidence.metric for evidence in verdict.evidence] == ["kl", "latent/active_kl"]


def test_a_grade_of_its_own_sets_the_margin() -> None:
    falling = {"metric": "s", "transform": "slope", "window": 2, "below": 0.0}
    rules = one_rule(falling, grade={"metric": "kl", "below": 1.0})
    verdict = play(rules, [{"s": 1.0, "kl": 0.1}, {"s": 0.0, "kl": 0.01}])[-1]
    assert (verdict.state, verdict.margin) == ("collapsed", pytest.approx(2.0))


def test_a_healthy_margin_is_that_of_the_nearest_kill_rule_and_negative() -> None:
    rules = RuleSet.from_dict(
        {
            "rules": {
                "empty": {"action": "kill", "signs": [{"metric": "fill", "below": 0.05}], "patience": 3},
                "full": {"action": "kill", "signs": [{"metric": "fill", "above": 40}], "patience": 3},
                "hint": {"action": "warn", "signs": [{"metric": "fill", "above": 4.1}]},
            }
        }
    )
    engine = RuleEngine(rules)
    assert math.isnan(engine.margin) and engine.verdict.to_dict()["margin"] is None
    for index, fill in enumerate((20.0, 4.0, 4.0, 0.4), 1):
        report(engine, {"fill": fill}, index)
    assert engine.margin == pytest.approx(-1.0)  # median of the last three, from `full`


def test_a_healthy_margin_stays_negative_where_only_the_graded_metric_is_low() -> None:
    verdict = play(one_rule(KL, {"metric": "active", "below": 1}), [{"kl": 1e-6, "active": 3.0}])[-1]
    assert verdict.state == "healthy" and -0.01 < verdict.margin < 0


def test_a_condemned_margin_is_positive_even_when_hysteresis_did_it() -> None:
    verdict = play(one_rule(KL, patience=3, hysteresis=1.2), [{"kl": kl} for kl in (0.299, 0.35, 0.35)])[-1]
    assert verdict.state == "collapsed" and 0 < verdict.margin < 0.01
    assert verdict.message.endswith("below 0.3 in 1 of 3 reports, and never back past 0.36")


def test_a_diverged_trial_has_twelve_and_the_share_of_the_budget_that_was_left() -> None:
    rules = one_rule({"metric": "train/nonfinite", "above": 0.5}, kind="diverged", patience=2)
    found = play(rules, [{"train/nonfinite": 1.0}] * 3, budget=8)
    assert (found[-1].state, found[-1].kind, found[-1].margin) == ("diverged", "diverged", 12.75)
    assert play(rules, [{"train/nonfinite": 1.0}] * 3)[-1].margin == 12.0
    assert play(one_rule(KL), [{"kl": 0.0}], budget=8)[-1].margin < 12.0


def test_steps_that_are_not_finite_bring_a_healthy_trial_no_nearer_to_collapse() -> None:
    diverged = {"action": "kill", "signs": [{"metric": "train/nonfinite", "above": 0.5}]}
    rules = one_rule(KL).override({"diverged": diverged})
    assert play(rules, [{"kl": 30.0, "train/nonfinite": 0.4}])[-1].margin == pytest.approx(-2.0)


def test_divergence_goes_before_collapse() -> None:
    rules = RuleSet.from_dict(
        {
            "rules": {
                "low": {"action": "kill", "signs": [KL]},
                "diverged": {"action": "kill", "signs": [{"metric": "loss", "transform": "nonfinite"}]},
            }
        }
    )
    assert play(rules, [{"kl": 0.1, "loss": None}])[-1].state == "diverged"


# --- closing check -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "closing", "state"),
    [
        ([3.0, 0.03], {"kl": 0.003}, "collapsed"),  # suspect, and holds: patience is waived
        ([3.0, 0.03], {"kl": 3.0}, "healthy"),  # suspect, and does not hold: cleared
        ([3.0, 0.03], {}, "suspect"),  # the closing report cannot say
        ([0.03, 3.0], {"kl": 0.003}, "suspect"),  # was not suspect: patience is not waived
    ],
)
def test_the_closing_check_waives_patience_for_suspects(before: list[float], closing: Row, state: str) -> None:
    engine = RuleEngine(one_rule(KL, patience=5))
    for index, kl in enumerate(before, 1):
        report(engine, {"kl": kl}, index)
    verdict = report(engine, closing, len(before), closing=True)
    assert verdict.state == state
    if state == "collapsed":
        assert verdict.margin == pytest.approx(1.5)
        assert verdict.evidence[0].values == (0.03, 0.003)


def test_the_closing_check_counts_the_last_streak_only() -> None:
    engine = RuleEngine(one_rule(KL, patience=5))
    for index, kl in enumerate((0.03, 0.03, 3.0, 0.003), 1):
        report(engine, {"kl": kl}, index)
    verdict = report(engine, {"kl": 0.0003}, 4, closing=True)
    assert verdict.evidence[0].values == (0.003, 0.0003) and verdict.margin == pytest.approx(2.5)


def test_nothing_changes_after_the_verdict() -> None:
    engine = RuleEngine(one_rule(KL))
    verdict = report(engine, {"kl": 0.01}, 1)
    assert report(engine, {"kl": 9.0}, 2) is verdict
    assert report(engine, {"kl": 9.0}, 3, closing=True) is verdict
    assert engine.margin == verdict.margin and engine.suspects == ()
