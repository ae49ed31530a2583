"""The audit arm: a share of the condemned trials runs on to its real end; the sweep tells how often it was wrong."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from journal_lines import Line, event_of, events_of
from optuna.trial import TrialState
from rich.console import Console
from sweeps import RULES, Toy, World, drive, spec, state
from test_state import essence, report

from buttress.analysis.audits import audit_summary
from buttress.analysis.explanation import explain
from buttress.analysis.intervals import Share
from buttress.analysis.render import render_summary, render_sweep
from buttress.analysis.selection import best_trial
from buttress.analysis.table import filter_rows, rows
from buttress.callbacks.progress import Progress, ProgressHeader
from buttress.callbacks.wandb import WandbRuns
from buttress.errors import BadInput
from buttress.execution.setup import header
from buttress.journal.records import Journal, fold
from buttress.spec.spec import SweepSpec
from buttress.training.trainable import Reported


@dataclass
class Recovering(World):
    """As the toy's world, but with beta from 2 to 20 the code is dead for three epochs only, and good afterwards."""

    def reports(self, config: dict[str, Any], from_epoch: int = 0) -> Iterator[Reported]:
        wakes = 2 < config["loss"]["beta"] < 20
        for one in super().reports(config, from_epoch):
            late = wakes and one.epoch > 3
            metrics = {**one.metrics, "latent/kl_total": 4.0} if late else dict(one.metrics)
            if late and "val/score" in metrics:
                metrics["val/score"] = 2.0 + one.epoch
            yield replace(one, metrics=metrics)


def audited(share: float = 1.0, **changes: Any) -> SweepSpec:
    return spec(audit={"share": share}, **changes)


def journal_of(made: SweepSpec, lines: list[Line]) -> Journal:
    return fold([header(made, Toy(), RULES, "toy-000000"), *lines])


def played(made: SweepSpec, world: World | None = None) -> tuple[Any, list[Line], Journal]:
    lines: list[Line] = []
    sweep = state(made, lines)
    drive(sweep, world)
    return sweep, lines, journal_of(made, lines)


# --- who is audited -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [-0.1, 1.5, "half", True])
def test_a_share_that_is_none_is_refused_by_its_key(share: Any) -> None:
    with pytest.raises(BadInput, match=r"audit\.share"):
        audited(share)


def test_the_draw_is_a_trials_own_and_takes_its_share() -> None:
    def drawn(made: SweepSpec) -> set[int]:
        return {number for number in range(4000) if made.audits(number)}

    some = drawn(audited(0.3))
    assert 0.27 < len(some) / 4000 < 0.33
    assert drawn(audited(0.3)) == some < drawn(audited(0.6))
    assert 0.07 < len(some & drawn(audited(0.3, seed=4))) / 4000 < 0.11  # another seed, another draw
    assert not drawn(audited(0.0)) and len(drawn(audited(1.0))) == 4000


# --- what becomes of them -------------------------------------------------------------------------------------------


def test_an_audited_trial_runs_to_its_end_and_keeps_the_verdict_that_would_have_killed_it() -> None:
    killed, _, before = played(audited(0.0))
    sweep, lines, journal = played(audited())
    first = next(trial for trial, line in killed.outcomes.items() if line.outcome == "collapsed")
    was, record = before.trials[first].outcome, journal.trials[first]  # up to here both sweeps were the same
    assert was is not None and record.outcome is not None and record.audit is not None
    assert (record.audit.kind, record.audit.margin) == (was.kind, was.margin)
    assert (record.audit.epochs, record.audit.evidence) == (was.epochs, was.evidence)
    assert was.epochs < 3 and (record.outcome.epochs, record.outcome.audited) == (8, True)
    assert record.outcome.outcome == "collapsed" and (record.outcome.margin or 0) > 0
    collapsed = [line for line in sweep.outcomes.values() if line.outcome == "collapsed"]
    assert len(collapsed) >= 3 and all(line.epochs == 8 for line in collapsed)
    assert [line["trial"] for line in lines if line["line"] == "audit"] == [line.trial for line in collapsed]


def test_a_diverged_trial_is_not_audited() -> None:
    sweep, lines, _ = played(audited())
    diverged = {trial for trial, line in sweep.outcomes.items() if line.outcome == "diverged"}
    assert diverged and not diverged & {line["trial"] for line in lines if line["line"] == "audit"}
    assert all(sweep.outcomes[trial].epochs < 8 for trial in diverged)


def test_one_that_recovers_completes_is_told_so_and_can_win() -> None:
    made = audited(scheduler={"kind": "fifo"})
    sweep, _, journal = played(made, Recovering())
    saved = {trial for trial, record in journal.trials.items() if record.audit and record.state == "completed"}
    assert saved
    for trial in saved:
        outcome = sweep.outcomes[trial]
        assert outcome.audited and outcome.margin < 0
        assert outcome.best is not None and outcome.best.epoch == 8  # and none of those that looked collapsed
        first, last = (t for t in sweep.study.trials() if sweep.asks.get(t.number) == trial)
        assert first.number == journal.trials[trial].ask and first.params == last.params
        assert first.state == TrialState.PRUNED and first.constraints["collapse"] > 0  # told when it was condemned
        assert last.state == TrialState.COMPLETE and last.value == pytest.approx(10.0)  # and what became of it
    winner = best_trial(journal)
    assert winner is not None and winner.id in saved


def test_epochs_that_look_collapsed_are_valid_for_nobody() -> None:
    _, lines, _ = played(audited(scheduler={"kind": "fifo"}), Recovering())
    seen = [line for line in lines if line["line"] == "report" and line["metrics"]["latent/kl_total"] < 0.5]
    assert any(line["state"] == "collapsed" and line["epoch"] > 1 for line in seen)
    assert not any(line["valid"] for line in seen)


def test_rungs_neither_stop_an_audited_trial_nor_compare_others_with_it() -> None:
    sweep, lines, _ = played(audited(), Recovering())
    since = {line["trial"]: number for number, line in enumerate(lines) if line["line"] == "audit"}
    assert since and sweep.rungs is not None
    rungs = [(number, line["trial"]) for number, line in enumerate(lines) if line["line"] == "rung"]
    assert rungs and not [trial for number, trial in rungs if number > since.get(trial, len(lines))]
    assert not any(since.keys() & sweep.rungs.values(age).keys() for age in range(9))
    assert all(sweep.outcomes[trial].epochs == 8 for trial in since)


def test_one_that_diverges_later_ends_there() -> None:
    sweep = state(audited(scheduler={"kind": "fifo"}))
    live = sweep.next_trial()
    sweep.started(live.id, "slot-0")
    sweep.reported(live.id, 1, report(epoch=1, kl=0.1))
    assert sweep.reported(live.id, 1, report(epoch=2, kl=0.1)) is None and live.audited
    bad = replace(report(epoch=3, kl=0.1), metrics={"latent/kl_total": 0.1, "train/nonfinite": 1.0})
    outcome = sweep.reported(live.id, 1, bad)
    assert outcome is not None and (outcome.outcome, outcome.audited) == ("diverged", True)


def test_one_cut_off_by_its_time_limit_keeps_its_collapse_and_counts_for_nothing() -> None:
    lines: list[Line] = []
    made = audited(scheduler={"kind": "fifo"})
    sweep = state(made, lines)
    live = sweep.next_trial()
    sweep.started(live.id, "slot-0")
    sweep.reported(live.id, 1, report(epoch=1, kl=0.1))
    sweep.reported(live.id, 1, report(epoch=2, kl=0.1, score=9.0))
    outcome = sweep.out_of_time(live.id, 1.0)
    assert outcome is not None and (outcome.outcome, outcome.audited) == ("collapsed", False)
    found = audit_summary(journal_of(made, lines))
    assert found is not None and (found.false_kills, found.unfinished) == (Share(0, 0), 1)


# --- resumed --------------------------------------------------------------------------------------------------------


def test_every_prefix_of_an_audited_sweeps_journal_resumes_to_the_same_sweep() -> None:
    made = audited(0.6, budget={"trials": 10})
    for world, every in ((World(), 9), (Recovering(), 2)):
        lines: list[Line] = []
        drive(state(made, lines), world)
        whole, expected = list(lines), essence(lines)
        chosen = {line["trial"] for line in whole if line["line"] == "audit"}
        collapsed = {line["trial"] for line in whole if line["line"] == "outcome" and line["outcome"] == "collapsed"}
        assert chosen and collapsed - chosen
        for cut in range(0, len(whole), every):
            again = [dict(line) for line in whole[:cut]]
            sweep = state(made, again)
            sweep.replay(events_of(whole[:cut]))
            drive(sweep, world)
            assert essence(again) == expected, f"cut after line {cut}: {whole[cut - 1]['line']}"
            assert {line["trial"] for line in again if line["line"] == "audit"} == chosen
            assert len([line for line in again if line["line"] == "audit"]) == len(chosen)


def test_a_journal_from_before_the_audit_is_replayed_as_it_was() -> None:
    sweep, lines, _ = played(audited(0.0))
    later = state(audited(1.0), again := [dict(line) for line in lines])
    later.replay(events_of(lines))
    assert later.outcomes.keys() == sweep.outcomes.keys() and len(again) == len(lines)


# --- told -----------------------------------------------------------------------------------------------------------


def text(renderable: Any) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_the_sweep_reports_its_own_false_kill_rate_with_an_interval() -> None:
    made = audited(scheduler={"kind": "fifo"})
    _, _, journal = played(made, Recovering())
    ended = [record for record in journal.trials.values() if record.audit]
    wrong = [record.id for record in ended if record.state == "completed"]
    found = audit_summary(journal)
    assert found is not None and found.false_kills == Share(len(wrong), len(ended)) and found.unfinished == 0
    assert 0 < len(wrong) < len(ended)
    assert found.epochs == sum(8 - record.audit.epochs for record in ended if record.audit)
    low, high = Share(len(wrong), len(ended)).interval
    sentence = f"audit: {len(wrong)} of {len(ended)} condemned trials that ran on ended healthy: false kills"
    summary = render_summary(journal).plain
    assert sentence in summary and f"({100 * low:.0f} to {100 * high:.0f} %)" in summary
    assert found.to_dict()["false_kills"]["interval"] == [low, high]


def test_without_an_audit_nothing_is_said_and_with_nobody_drawn_that_is_said() -> None:
    assert audit_summary(played(audited(0.0))[2]) is None
    few, _, journal = played(audited(1e-6))
    collapsed = sum(line.outcome == "collapsed" for line in few.outcomes.values())
    assert f"none of {collapsed} condemned trials was drawn" in render_summary(journal).plain


def test_table_and_why_tell_the_audited_trials() -> None:
    _, _, journal = played(audited(scheduler={"kind": "fifo"}), Recovering())
    chosen = {row["trial"] for row in filter_rows(rows(journal), ["audited=true"])}
    assert chosen == {record.id for record in journal.trials.values() if record.audit}
    shown = text(render_sweep(journal))
    assert "collapsed: posterior †" in shown and "completed †" in shown and "†: condemned, and ran on" in shown
    wrong = next(record for record in journal.trials.values() if record.audit and record.state == "completed")
    told = str(explain(journal, wrong.id))
    assert "the rule posterior_collapse" in told and "total KL was" in told and "a false kill" in told
    right = next(record for record in journal.trials.values() if record.audit and record.state == "collapsed")
    assert "at its end it was not healthy" in str(explain(journal, right.id))


def test_a_simulated_sweep_audits_too(tmp_path: Path) -> None:
    from test_simulator import simulated

    made, seen = simulated(audit={"share": 1.0})
    outcomes = made.state.outcomes
    chosen = [line for line in outcomes.values() if line.audited]
    assert chosen and all(line.epochs == 8 and line.outcome == "collapsed" for line in chosen)
    stopped = {event.trial for event in seen if event.stopped}
    assert not stopped & {line.trial for line in chosen}


def test_who_watches_is_told(tmp_path: Path) -> None:
    from test_wandb import FakeWandb

    _, lines, _ = played(audited())
    told = io.StringIO()
    progress = Progress(ProgressHeader("toy", "val/score", "max"), Console(file=told, width=200))
    wandb = FakeWandb()
    runs = WandbRuns("toy-000000", tmp_path, client=wandb)
    progress.start()
    no_margin = SimpleNamespace(margin=None)
    for line in lines:
        ended = line["line"] == "outcome"
        live = None if ended else SimpleNamespace(params={}, config={}, epochs=8, evaluation=no_margin)
        progress.on_event(event_of(line), live)
        runs.on_event(event_of(line), live)
    progress.stop()
    runs.close()
    chosen = {line["trial"] for line in lines if line["line"] == "audit"}
    for trial in chosen:
        assert f"{trial} is condemned by posterior_collapse and runs on to its end" in told.getvalue()
    tagged = {run.given["name"] for run in wandb.runs if "audited" in run.tags}
    assert tagged == chosen and len(wandb.runs) > len(chosen)
