"""`probation: {when: suspect}`: a trial is set aside as soon as a kill rule holds, whatever the rule's patience."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from sweeps import RULES, Line, World, drive, spec, state
from test_audit import audited
from test_probation import Played, Promising, Stubborn, journal_of, of, with_everything
from test_state import essence, report

from buttress.analysis.explanation import explain
from buttress.analysis.selection import best_trial
from buttress.errors import BadInput
from buttress.journal import lines
from buttress.spec.spec import SweepSpec
from buttress.sweep.state import SweepState

SUSPECT = {"epochs": 3, "when": "suspect"}


def lenient(**changes: Any) -> SweepSpec:
    return spec(probation=SUSPECT, **changes)


def begun(made: SweepSpec, lines: list[Line] | None = None) -> tuple[SweepState, str]:
    """A sweep whose first trial has had one healthy epoch."""
    sweep = state(made, lines)
    live = sweep.next_trial()
    assert live is not None
    sweep.started(live.id, "slot-0")
    first = replace(report(epoch=1, kl=4.0, score=0.5), checkpoint="checkpoints/000001.pt")
    assert sweep.reported(live.id, 1, first) is None
    return sweep, live.id


def test_another_word_is_refused_by_its_key() -> None:
    with pytest.raises(BadInput, match=r"probation\.when"):
        spec(probation={"epochs": 3, "when": "soon"})


def test_the_first_report_on_which_a_rule_holds_sets_the_trial_aside() -> None:
    written: list[Line] = []
    sweep, trial = begun(lenient(), written)
    line = sweep.reported(trial, 1, report(epoch=2, kl=0.1, score=0.4))
    assert line is not None and line["line"] == "suspended"
    assert (line["rule"], line["kind"], line["epochs"], line["until"]) == ("posterior_collapse",) * 2 + (2, 5)
    assert line["margin"] == pytest.approx(0.699, abs=1e-3)  # decades from 0.1 up to 0.5
    assert line["evidence"][0]["values"] == [0.1]
    told = sweep.study.trials()[sweep.live[trial].ask]
    assert told.state == TrialState.PRUNED and told.constraints["collapse"] == line["margin"]
    other = sweep.next_trial()
    assert other is not None and other.id != trial  # its slot goes on


def test_with_when_condemned_the_same_report_is_waited_out() -> None:
    sweep, trial = begun(spec(probation={"epochs": 3}))
    assert sweep.reported(trial, 1, report(epoch=2, kl=0.1, score=0.4)) is None


@pytest.mark.parametrize(
    ("made", "last"),
    [
        (lenient(), report(epoch=8, kl=0.1, score=0.4)),  # its budget is spent: the closing check decides
        (lenient(), report(epoch=2, kl=0.1, score=0.4, closing=True)),
        (audited(probation=SUSPECT), report(epoch=2, kl=0.1, score=0.4)),  # to be audited once it is condemned
    ],
)
def test_what_is_at_its_end_or_drawn_for_the_audit_waits_for_its_verdict(made: SweepSpec, last: Any) -> None:
    sweep, trial = begun(made)
    line = sweep.reported(trial, 1, last)
    assert line is None or line["line"] != "suspended"
    assert sweep.live[trial].suspended is None


def test_a_suspicion_of_having_diverged_sets_nothing_aside() -> None:
    patient = RULES.override({"diverged": {"patience": 2}})
    sweep = SweepState(lenient(), state().trainable, patient, lambda line: None)
    live = sweep.next_trial()
    assert live is not None
    sweep.started(live.id, "slot-0")
    bad = report(epoch=1, kl=4.0, score=0.5)
    assert sweep.reported(live.id, 1, replace(bad, metrics={**bad.metrics, "train/nonfinite": 1.0})) is None
    assert live.judged.verdict is not None and live.judged.verdict.state == "suspect"


def test_a_margin_is_never_told_as_healthy() -> None:
    sweep = state(lenient())
    live = sweep.next_trial()
    assert live is not None
    sweep.started(live.id, "slot-0")
    line = sweep.reported(live.id, 1, report(epoch=2, kl=0.4999, score=0.4))
    assert line is not None and line["margin"] == pytest.approx(1e-3)


def test_what_does_not_rank_is_condemned_for_good_on_its_suspicion() -> None:
    plain, written = state(spec()), []
    drive(plain)
    sweep = state(made := lenient(), written)
    drive(sweep)
    aside = {line["trial"]: line for line in of(written, "suspended")}
    assert len(aside) >= 3 and not sweep.live
    for trial, line in aside.items():
        outcome = sweep.outcomes[trial]
        assert (outcome["outcome"], outcome["rule"], outcome["kind"]) == ("collapsed", line["rule"], line["kind"])
        assert (outcome["margin"], outcome["epochs"]) == (line["margin"], line["epochs"])
    first = min(aside)
    assert aside[first]["step"] < plain.outcomes[first]["step"]  # the same trial in both: one report of patience less
    told = str(explain(journal_of(made, written), first))
    assert "it did not rank" in told and "posterior_collapse" in told


def test_what_ranks_comes_back_recovers_and_can_win_and_nobody_gets_a_third_chance() -> None:
    written: list[Line] = []
    sweep = state(made := lenient(scheduler={"kind": "fifo", "factor": 2}, budget={"trials": 24}), written)
    drive(sweep, Promising(health=0))
    aside = {line["trial"]: line for line in of(written, "suspended")}
    back = {line["trial"] for line in of(written, "start") if line["attempt"] == 2}
    saved = [trial for trial in back if sweep.outcomes[trial]["outcome"] == "completed"]
    assert back <= aside.keys() and saved and len(of(written, "suspended")) == len(aside)
    winner = best_trial(journal_of(made, written))
    assert winner is not None and winner.id in saved
    ends = [line["trial"] for line in of(written, "outcome")]
    assert len(ends) == len(set(ends)) == 24


def test_what_comes_back_and_is_still_dead_is_condemned_after_its_epochs() -> None:
    written: list[Line] = []
    sweep = state(lenient(scheduler={"kind": "fifo", "factor": 2}, budget={"trials": 24}), written)
    drive(sweep, Stubborn(health=0))
    back = {line["trial"] for line in of(written, "start") if line["attempt"] == 2}
    aside = {line["trial"]: line for line in of(written, "suspended")}
    assert back
    for trial in back:
        outcome = sweep.outcomes[trial]
        assert (outcome["outcome"], outcome["epochs"]) == ("collapsed", aside[trial]["until"])


@pytest.mark.parametrize(
    ("world", "share", "every"), [(Promising(health=0), 0.4, 3), (World(), 0.0, 9), (Stubborn(health=0), 0.0, 7)]
)
def test_every_prefix_of_its_journal_resumes_to_the_same_sweep(world: World, share: float, every: int) -> None:
    made = lenient(scheduler={"kind": "asha", "first": 2, "factor": 2}, audit={"share": share}, budget={"trials": 14})
    whole: list[Line] = []
    drive(state(made, whole), world)
    assert of(whole, "suspended")
    for cut in range(0, len(whole), every):
        written = [json.loads(json.dumps(line)) for line in whole[:cut]]
        again = state(made, written)
        again.replay([dict(line) for line in whole[:cut]])
        drive(again, world)
        assert essence(written) == essence(whole), f"cut after line {cut}: {whole[cut - 1]['line']}"


def test_the_driver_gives_the_sweep_that_the_state_alone_gives(tmp_path: Path) -> None:
    expected: list[Line] = []
    made = with_everything().model_copy(update={"probation": lenient().probation})
    drive(state(made, expected), Promising(health=0))
    Played(made, tmp_path, Promising(health=0), 1).run()
    assert essence(list(lines(tmp_path / "journal.jsonl"))) == essence(expected)
    assert of(expected, "suspended") and any(line["attempt"] == 2 for line in of(expected, "start"))


def test_a_simulated_sweep_sets_suspects_aside(tmp_path: Path) -> None:
    from test_simulator import simulated

    made, _ = simulated(tmp_path, probation=SUSPECT, budget={"trials": 30})
    found = list(map(json.loads, (tmp_path / "journal.jsonl").read_text().splitlines()))
    assert of(found, "suspended") and not made.state.live
