"""The state is a function of the journal: collapsed trials never win, and any prefix resumes to the same end."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from journal_lines import Line, events_of
from optuna.trial import TrialState
from sweeps import RULES, Toy, World, drive, spec, state

from buttress.analysis.explanation import explain, stop_reason
from buttress.analysis.selection import best_trial
from buttress.errors import BadInput
from buttress.execution.setup import header
from buttress.journal.records import fold
from buttress.search.proposals import never_settles
from buttress.training.trainable import Reported, Schedule


def essence(lines: list[Line]) -> list[tuple[Any, ...]]:
    """What two runs of a sweep have to agree on: parameters and outcomes, in order, without times and attempts."""
    kept: list[tuple[Any, ...]] = []
    for line in lines:
        if line["line"] == "trial":
            kept.append(("trial", line["trial"], line["ask"], tuple(line["params"].items()), line["seed"]))
        elif line["line"] == "outcome":
            best_epoch = (line["best"] or {}).get("epoch")
            told = (line["outcome"], line["kind"], line["margin"], best_epoch, line["epochs"])
            kept.append(("outcome", line["trial"], *told))
    return kept


@pytest.fixture(scope="module")
def whole() -> list[Line]:
    """The journal of an uninterrupted sweep."""
    lines: list[Line] = []
    drive(state(lines=lines))
    return lines


def test_the_toy_sweep_has_every_kind_of_end(whole: list[Line]) -> None:
    counts = Counter(line["outcome"] for line in whole if line["line"] == "outcome")
    assert sum(counts.values()) == 16
    assert min(counts[kind] for kind in ("completed", "collapsed", "diverged", "pruned")) >= 1, counts


def test_a_pruned_trial_says_with_how_many_it_was_compared(whole: list[Line]) -> None:
    peers = {line["trial"]: line["peers"] for line in whole if line["line"] == "rung" and line["decision"] == "stop"}
    pruned = {line["trial"]: line["message"] for line in whole if line.get("outcome") == "pruned"}
    assert pruned.keys() == peers.keys()
    for trial, message in pruned.items():
        assert message.endswith(" of 1 trial" if peers[trial] == 1 else f" of {peers[trial]} trials")
    assert 1 in peers.values()


def test_a_collapsed_trial_is_never_best_exported_or_complete() -> None:
    lines: list[Line] = []
    made = spec()
    sweep = state(made, lines)
    drive(sweep)
    collapsed = {trial for trial, line in sweep.outcomes.items() if line.outcome in ("collapsed", "diverged")}
    complete = {sweep.asks[t.number] for t in sweep.study.trials() if t.state == TrialState.COMPLETE}
    assert collapsed and complete and not collapsed & complete
    journal = fold([header(made, Toy(), RULES, "toy-000000"), *lines])
    winner = best_trial(journal)
    assert winner is not None and winner.id not in collapsed
    assert all(sweep.outcomes[trial].margin > 0 for trial in collapsed)
    margins = [line.margin for line in sweep.outcomes.values() if line.outcome == "collapsed"]
    assert len(margins) >= 3 and len(set(margins)) == len(margins)
    assert all(sweep.outcomes[trial].kind and sweep.outcomes[trial].evidence for trial in collapsed)


def test_every_prefix_of_a_journal_resumes_to_the_same_sweep(whole: list[Line]) -> None:
    expected = essence(whole)
    for cut in range(len(whole)):
        lines = [dict(line) for line in whole[:cut]]
        again = state(lines=lines)
        again.replay(events_of(whole[:cut]))
        drive(again)
        assert essence(lines) == expected, f"cut after line {cut}: {whole[cut - 1]['line']}"


def test_a_verdict_without_its_outcome_line_gets_it_on_resume(whole: list[Line]) -> None:
    cut = next(n for n, line in enumerate(whole) if line["line"] == "outcome" and line["outcome"] == "collapsed")
    lines: list[Line] = []
    state(lines=lines).replay(events_of(whole[:cut]))
    assert [line["line"] for line in lines] == ["outcome"]
    assert essence(lines) == essence(whole[cut : cut + 1])


def test_reports_after_the_verdict_change_nothing() -> None:
    sweep = state()
    live = next(trial for trial in iter(sweep.next_trial, None) if trial.config["loss"]["beta"] > 5)
    sweep.started(live.id, "slot-0")
    told = [sweep.reported(live.id, live.attempt, reported) for reported in World().reports(live.config)]
    verdict = next(outcome for outcome in told if outcome is not None)
    assert told.count(verdict) == 1 and told[-1] is None
    assert sweep.outcomes[live.id] == verdict and verdict.epochs < 3
    assert sweep.finished(live.id, live.attempt) == verdict


def test_a_lost_trial_goes_on_and_is_given_up_after_three_losses() -> None:
    lines: list[Line] = []
    sweep = state(lines=lines)
    live = next(trial for trial in iter(sweep.next_trial, None) if 0.1 < trial.config["loss"]["beta"] < 1)
    for loss in range(3):
        sweep.started(live.id, "slot-0")
        for reported in World().reports(live.config, from_epoch=loss):
            if reported.epoch > loss + 1:
                break
            assert sweep.reported(live.id, live.attempt, reported) is None
        outcome = sweep.lost(live.id, live.attempt, "the node is gone")
        assert (outcome is None) == (loss < 2)
    assert outcome is not None and (outcome.outcome, outcome.kind) == ("failed", "infrastructure")
    assert [line["resumed_from"] for line in lines if line["line"] == "start"] == [None, 2, 5]
    assert sweep.study.trials()[live.ask].state == TrialState.FAIL


def test_what_a_lost_attempt_still_reports_is_void_and_a_move_counts_as_no_loss() -> None:
    lines: list[Line] = []
    sweep = state(lines=lines)
    live = next(trial for trial in iter(sweep.next_trial, None) if 0.1 < trial.config["loss"]["beta"] < 1)
    sweep.started(live.id, "slot-0")
    reports = list(World().reports(live.config))
    for reported in reports[:4]:
        sweep.reported(live.id, 1, reported)
    told = len(lines)
    assert sweep.lost(live.id, 1, "its node was drained", moved=True) is None and live.losses == 0
    assert len(lines) == told + 1
    for reported in reports[4:]:  # the workers live on for a while
        assert sweep.reported(live.id, 1, reported) is None
    assert sweep.finished(live.id, 1) is None and len(lines) == told + 1
    sweep.started(live.id, "slot-1")
    assert sweep.reported(live.id, 1, reports[4]) is None and len(lines) == told + 2  # still the old attempt's
    sweep.reported(live.id, 2, reports[4])
    assert len(lines) == told + 3 and sweep.lost(live.id, 2, "gone") is None and live.losses == 1


def test_a_trial_without_a_valid_epoch_failed() -> None:
    sweep = state(spec(scheduler={"kind": "fifo"}))
    live = sweep.next_trial()
    assert live is not None
    sweep.started(live.id, "slot-0")
    sweep.reported(live.id, 1, report(epoch=1, kl=0.1, score=9.0))  # suspect: the patience is not used up
    outcome = sweep.finished(live.id, 1)
    assert outcome is not None and (outcome.outcome, outcome.kind) == ("failed", "no valid epoch")


def test_a_suspect_or_non_finite_or_warm_up_epoch_is_never_best() -> None:
    sweep = state(spec(scheduler={"kind": "fifo"}))
    live = sweep.next_trial()
    assert live is not None
    sweep.started(live.id, "slot-0")
    sweep.reported(live.id, 1, report(epoch=1, kl=5.0, score=0.9, full=0))  # inside the warm-up
    sweep.reported(live.id, 1, report(epoch=2, kl=0.1, score=0.8))  # suspect
    sweep.reported(live.id, 1, report(epoch=3, kl=5.0, score=math.nan))
    sweep.reported(live.id, 1, report(epoch=4, kl=5.0, score=0.7, nonfinite=("train/loss",)))
    sweep.reported(live.id, 1, report(epoch=5, kl=5.0, score=0.2))
    sweep.reported(live.id, 1, report(epoch=6, kl=5.0, score=0.1))
    outcome = sweep.finished(live.id, 1)
    assert outcome is not None and outcome.best is not None and outcome.best.epoch == 5


def test_a_trial_that_ends_suspect_gets_a_closing_check() -> None:
    for kl, expected in ((0.1, "collapsed"), (4.0, "completed")):
        sweep = state(spec(scheduler={"kind": "fifo"}))
        live = sweep.next_trial()
        assert live is not None
        sweep.started(live.id, "slot-0")
        sweep.reported(live.id, 1, report(epoch=1, kl=5.0, score=0.5))
        sweep.reported(live.id, 1, report(epoch=2, kl=0.2, score=0.6))
        sweep.reported(live.id, 1, report(epoch=2, kl=kl, closing=True))
        outcome = sweep.finished(live.id, 1)
        assert outcome is not None and outcome.outcome == expected


def test_an_impossible_requirement_is_an_error_that_names_it() -> None:
    sweep = state(spec(require=["config.loss.beta > 1000"], checked=False))
    with pytest.raises(BadInput, match=r"config\.loss\.beta > 1000"):
        sweep.next_trial()


def test_a_schedule_that_never_settles_is_refused() -> None:
    assert never_settles(Schedule(epochs=10, full_at_epoch=4)) is None
    assert never_settles(Schedule(epochs=10, full_at_epoch=10)) is not None
    assert "never" in str(never_settles(Schedule(epochs=10, full_at_epoch=math.inf)))
    assert never_settles(Schedule(epochs=10, full_at_step=90, steps_per_epoch=10)) is None
    assert "after 91 steps" in str(never_settles(Schedule(epochs=10, full_at_step=91, steps_per_epoch=10)))


def test_enough_healthy_trials_end_the_sweep() -> None:
    sweep = state(spec(budget={"trials": 50, "healthy": 2}))
    drive(sweep)
    assert sweep.counts["completed"] == 2 and len(sweep.outcomes) < 50


def report(
    *,
    epoch: int,
    kl: float,
    score: float | None = None,
    full: int | None = None,
    nonfinite: tuple[str, ...] = (),
    closing: bool = False,
) -> Reported:
    full = epoch if full is None else full
    return Reported(
        epoch=epoch,
        step=10 * epoch,
        full_beta_epochs=full,
        full_beta_steps=10 * full,
        phase=0,
        metrics={"latent/kl_total": kl, **({} if score is None else {"val/score": score})},
        nonfinite=nonfinite,
        closing=closing,
    )


def second_objective(values: list[float | None], scores: list[float]) -> list[Line]:
    """Lines of a sweep of two objectives: a healthy trial, then one with these values of the second (None: without)."""
    lines: list[Line] = []
    made = spec(checked=False, objectives=[{"metric": "val/score"}, {"metric": "val/fid", "direction": "min"}])
    sweep = state(made, lines)
    for fids, score in (([1.0] * 4, [0.5] * 4), (values, scores)):
        trial = sweep.next_trial()
        assert trial is not None
        sweep.started(trial.id, "slot-0")
        for epoch, fid in enumerate(fids, 1):
            metrics = {"latent/kl_total": 5.0, "val/score": score[epoch - 1]}
            metrics |= {} if fid is None else {"val/fid": fid}
            bad = ("val/fid",) if fid is not None and math.isnan(fid) else ()
            reported = Reported(epoch, 10 * epoch, epoch, 10 * epoch, 0, metrics, nonfinite=bad)
            if sweep.reported(trial.id, trial.attempt, reported) is not None:
                break
        else:
            sweep.finished(trial.id, trial.attempt)
    return lines


def test_a_trial_pruned_for_its_second_objective_names_it() -> None:
    lines = second_objective([math.nan] * 4, [0.9] * 4)
    (outcome,) = [line for line in lines if line.get("outcome") == "pruned"]
    why = "no epoch was valid (val/fid was NaN or infinite in every report); the cut-off of 1 trial was 0.5"
    assert outcome["message"] == f"at full-beta age 2, {why}"
    made = spec(checked=False, objectives=[{"metric": "val/score"}, {"metric": "val/fid", "direction": "min"}])
    journal = fold([header(made, Toy(), RULES, "toy-000000"), *lines])
    assert stop_reason(journal, journal.trials["0001"]) == f"At full-beta age 2, {why}"
    assert explain(journal, "1").to_dict()["sections"]["why"][0] == f"At full-beta age 2, {why}"


def test_a_second_objective_that_comes_less_often_prunes_nobody_before_it_came() -> None:
    lines = second_objective([None, None, 2.0, 2.0], [0.9] * 4)
    rungs = [(line["age"], line["decision"]) for line in lines if line["line"] == "rung" and line["trial"] == "0001"]
    assert rungs == [(3, "continue"), (4, "continue")]
    assert [line["outcome"] for line in lines if line["line"] == "outcome"] == ["completed", "completed"]


def test_a_trial_that_was_pruned_while_it_was_suspect_has_no_margin_of_a_collapsed_one() -> None:
    lines: list[Line] = []
    sweep = state(lines=lines)
    for score, kl in ((0.5, 5.0), (0.1, 1e-6)):
        trial = sweep.next_trial()
        assert trial is not None
        sweep.started(trial.id, "slot-0")
        for epoch in range(1, 9):
            metrics = {"latent/kl_total": kl if epoch == 2 else 5.0, "val/score": score}
            reported = Reported(epoch, 10 * epoch, epoch, 10 * epoch, 0, metrics)
            if sweep.reported(trial.id, trial.attempt, reported) is not None:
                break
    (outcome,) = [line for line in lines if line.get("outcome") == "pruned"]
    assert outcome["epochs"] == 2 and outcome["margin"] == -0.001
