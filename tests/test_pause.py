"""A paused trial leaves its slot, and comes back from its checkpoint without a bit changed."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from journal_lines import Line, events_of
from sweeps import World, drive, spec, state
from test_state import essence

from buttress.callbacks.base import Callback
from buttress.execution.mailbox import Mailbox
from buttress.execution.messages import (
    Assignment,
    AttemptResult,
    DropTrial,
    Ending,
    ReleaseResult,
    StopTrial,
    WorkerInfo,
)
from buttress.journal import Event, Report, read
from buttress.journal.records import Journal
from buttress.spec.spec import SweepSpec
from buttress.sweep.state import SweepState
from buttress.sweep.trial import TRANSITIONS, ActiveTrial, InvalidTransition, TrialState

# --- states ---------------------------------------------------------------------------------------------------------


#: A spec none of whose trials collapses.
HEALTHY = spec(search={"loss.beta": {"loguniform": [0.1, 1.0]}, "loss.warmup_epochs": {"int": [0, 2]}})


def begun(lines: list[Line] | None = None) -> tuple[SweepState, ActiveTrial]:
    sweep = state(HEALTHY, lines)
    trial = sweep.next_trial()
    assert trial is not None
    sweep.started(trial.id, "slot-0")
    for reported in World().reports(trial.config):
        sweep.reported(trial.id, 1, reported)
        if reported.epoch == 1:
            break
    return sweep, trial


def test_every_transition_that_is_not_in_the_table_is_refused() -> None:
    _, trial = begun()
    for source in TrialState:
        for target in TrialState:
            trial.state = source
            if target in TRANSITIONS[source]:
                trial.move_to(target)
                assert trial.state is target
            else:
                with pytest.raises(InvalidTransition, match=f"from {source.value} to {target.value}"):
                    trial.move_to(target)


def test_a_paused_trial_waits_and_what_its_workers_still_report_is_void() -> None:
    sweep, trial = begun()
    count = len(trial.evaluation.reports)
    assert sweep.pause(trial.id) and trial.state is TrialState.PAUSED and sweep.has_paused
    late = next(World().reports(trial.config, from_epoch=1))
    assert sweep.reported(trial.id, 1, late) is None and len(trial.evaluation.reports) == count
    assert sweep.finished(trial.id, 1) is None and sweep.out_of_time(trial.id, 1.0) is None
    other = sweep.next_trial()
    assert other is not None and other.id != trial.id
    assert not sweep.pause(trial.id) and not sweep.pause(other.id) and not sweep.continue_trial(other.id)
    assert sweep.continue_trial(trial.id)
    assert sweep.next_trial(leaving={trial.id}) is not trial  # its workers have not left it yet
    assert sweep.next_trial() is trial


def test_it_goes_on_from_its_last_checkpoint_and_ends_as_if_it_had_never_paused() -> None:
    lines: list[Line] = []
    sweep, trial = begun(lines)
    sweep.pause(trial.id, "to make room")
    sweep.continue_trial(trial.id)
    drive(sweep)
    start = [line for line in lines if line["line"] == "start" and line["trial"] == trial.id][1]
    assert (start["attempt"], start["checkpoint"]) == (2, "checkpoints/000001.pt")
    without, same = begun()
    for reported in World().reports(same.config, from_epoch=1):
        if without.reported(same.id, 1, reported) is not None:
            break
    else:
        without.finished(same.id, 1)
    one, two = sweep.outcomes[trial.id], without.outcomes[same.id]
    assert (one.outcome, one.kind, one.margin, one.epochs) == (two.outcome, two.kind, two.margin, two.epochs)


def test_every_prefix_of_its_journal_resumes_to_the_same_sweep() -> None:
    whole: list[Line] = []
    sweep, trial = begun(whole)
    sweep.pause(trial.id)
    sweep.continue_trial(trial.id)
    drive(sweep)
    first = next(index for index, line in enumerate(whole) if line["line"] == "paused")
    for cut in range(first, first + 4):
        lines = [dict(line) for line in whole[:cut]]
        again = state(HEALTHY, lines)
        again.replay(events_of(whole[:cut]))
        assert not again.has_paused and trial.id in again.queue  # who resumes a sweep wants it to end
        drive(again)
        assert {entry[1:] for entry in essence(lines) if entry[0] == "outcome"} == {
            entry[1:] for entry in essence(whole) if entry[0] == "outcome"
        }, cut


# --- the mailbox ----------------------------------------------------------------------------------------------------


def test_the_mailbox_lets_a_trial_come_back_with_a_later_attempt_and_no_other() -> None:
    def assignment(trial: str, attempt: int = 1) -> Assignment:
        return Assignment(trial, attempt, "toy", {}, 1, "folder")

    async def play() -> None:
        mailbox = Mailbox()
        await mailbox.register("slot-0", "first", 0, 1, WorkerInfo(1, "host", "node"))
        await mailbox.submit(assignment("0000"))
        await mailbox.send(StopTrial("0000", "paused"))
        await mailbox.send(ReleaseResult("0000", {"outcome": "paused", "done": True}))
        await mailbox.end_attempt("slot-0", "first", "0000", 1, AttemptResult(Ending.STOPPED))
        await mailbox.send(DropTrial("0000", 1))
        await mailbox.submit(assignment("0000"))  # a Tune actor of the first attempt, late
        given = await mailbox.exchange([], 0.0)
        assert [type(event).__name__ for event in given].count("AssignmentStarted") == 1
        await mailbox.submit(assignment("0000", 2))
        (started,) = await mailbox.exchange([], 0.0)
        assert (type(started).__name__, started.attempt) == ("AssignmentStarted", 2)
        await mailbox.send(DropTrial("0000", 1))  # of the first attempt, late
        await mailbox.send(ReleaseResult("0000", {"score": 1.0}))
        assert await mailbox.next_result("0000", 0) == {"score": 1.0}

    asyncio.run(play())


# --- a real sweep ---------------------------------------------------------------------------------------------------

SPEC: dict[str, Any] = {
    "name": "pause",
    "trainable": "pausable:Pausable",
    "search": {"lr": {"loguniform": [0.01, 0.1]}},
    "objectives": ["val/loss"],
    "scheduler": {"kind": "fifo"},
    "resources": {"concurrency": 1},
    "budget": {"trials": 3},
    "rules": {"posterior_collapse": {"action": "off"}},
    "seed": 5,
}


class PauseFirst(Callback):
    """Pauses trial 0000 at its second epoch, and continues it when another one reports."""

    driver: Any

    def __init__(self) -> None:
        self.done: list[str] = []

    def on_event(self, event: Event, trial: ActiveTrial | None = None) -> None:
        if not isinstance(event, Report):
            return
        if event.trial == "0000" and event.epoch == 2 and "paused" not in self.done:
            self.driver.pause_trial("0000", "a test")
            self.done.append("paused")
        elif event.trial != "0000" and self.done == ["paused"]:
            self.driver.continue_trial("0000")
            self.done.append("continued")


def swept(folder: Path, callback: PauseFirst | None = None) -> Journal:
    from buttress.execution import launch

    shutil.copy(Path(__file__).parent / "pausable.py", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        sweep = launch.start(SweepSpec.from_dict(SPEC), folder / "runs", callbacks=(callback,) if callback else ())
        if callback is not None:
            callback.driver = sweep
        return read(sweep.run().folder)


@pytest.mark.long
def test_a_trial_that_was_paused_ends_with_the_same_bits(ray_cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "paused").mkdir()
    (tmp_path / "plain").mkdir()
    callback = PauseFirst()
    paused, plain = swept(tmp_path / "paused", callback), swept(tmp_path / "plain")
    assert callback.done == ["paused", "continued"]
    first = paused.trials["0000"]
    assert [len(trial.attempts) for trial in paused.trials.values()] == [2, 1, 1] and not first.losses
    assert paused.trials["0001"].attempts[0].time < first.attempts[1].time  # meanwhile its slot ran another one
    for one, two in zip(paused.trials.values(), plain.trials.values(), strict=True):
        assert one.params == two.params and one.state == two.state == "completed"
        assert one.outcome is not None and two.outcome is not None
        assert (one.outcome.last, one.outcome.epochs) == (two.outcome.last, two.outcome.epochs)
        assert [report.metrics for report in one.reports] == [report.metrics for report in two.reports]
