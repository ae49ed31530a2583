"""Workers that hang are given up whatever was decided of their trial before; nobody waits long for the state's lock."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sweeps import spec, state

from buttress.callbacks.checkpoint_retention import CheckpointRetention, LocalTrialFiles
from buttress.execution.event_handler import AssignmentFactory, EventHandler
from buttress.execution.messages import (
    AssignmentLost,
    AssignmentStarted,
    LoseSlot,
    RequeueTrial,
    StopTrial,
    WorkerInfo,
)
from buttress.spec.sections import Budget
from buttress.sweep.limits import Limits

STALL = 0.005  # minutes: 0.3 s


class Slots:
    """The slots of a sweep whose workers are in other hands."""

    def __init__(self) -> None:
        self.killed: list[str] = []

    def kill(self, slot: str) -> None:
        self.killed.append(slot)

    def workers_of(self, slot: str) -> list[WorkerInfo]:
        return []


def handler(tmp_path: Path, **budget: Any) -> SimpleNamespace:
    sweep = state(
        spec(
            search={"loss.beta": {"loguniform": [0.1, 1.0]}, "loss.warmup_epochs": {"int": [0, 2]}},
            budget={"trials": 4, "stall_minutes": STALL, **budget},
        )
    )
    messages: list[str] = []
    slots, files = Slots(), LocalTrialFiles(tmp_path / "trials")
    assignments = AssignmentFactory(sweep, tmp_path, files, None, messages.append)
    retention = CheckpointRetention(files, "val/score", "max")
    events = EventHandler(sweep, slots, assignments, retention, on_message=messages.append, fail=pytest.fail)  # type: ignore[arg-type]
    trial = sweep.next_trial()
    assert trial is not None
    events.handle(AssignmentStarted(trial.id, 1, "slot-0", WorkerInfo(1, "here", "node")))
    return SimpleNamespace(sweep=sweep, events=events, slots=slots, messages=messages, trial=trial.id)


def commands_within(run: SimpleNamespace, seconds: float) -> list[Any]:
    commands: list[Any] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not run.slots.killed:
        commands += run.events.check_limits()
        time.sleep(0.02)
    return commands


@pytest.fixture(autouse=True)
def no_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can be asked what these workers do."""
    monkeypatch.setattr("buttress.execution.activity.ActivityProbe.find_active", lambda self, silent: [])


def stop_by_time_limit(run: SimpleNamespace) -> None:
    time.sleep(0.01)
    assert any(isinstance(command, StopTrial) for command in run.events.check_limits())
    assert run.sweep.outcomes[run.trial].kind in ("time limit", "no valid epoch")


def stop_by_pause(run: SimpleNamespace) -> None:
    assert run.events.pause(run.trial)


def stop_by_tune(run: SimpleNamespace) -> None:
    assert any(isinstance(command, StopTrial) for command in run.events.tune_actor_died(run.trial))


@pytest.mark.parametrize("stop", [stop_by_time_limit, stop_by_pause, stop_by_tune])
def test_workers_that_do_not_leave_when_told_to_are_killed(tmp_path: Path, stop: Any) -> None:
    run = handler(tmp_path, trial_minutes=1e-6)
    stop(run)
    outcome = run.sweep.outcomes.get(run.trial)
    commands = commands_within(run, 10.0)
    assert run.slots.killed == ["slot-0"]
    assert [command for command in commands if isinstance(command, LoseSlot)]
    assert "had not left" in run.messages[-1]
    assert run.events.handle(AssignmentLost(run.trial, 1, "slot-0", "given up")) == []
    assert run.sweep.outcomes.get(run.trial) == outcome  # what was decided stays
    assert run.events.check_limits() == [] and run.slots.killed == ["slot-0"]


def test_workers_that_report_after_they_were_told_to_stop_gain_no_time() -> None:
    limits = Limits(Budget(trials=1, stall_minutes=STALL))
    limits.began("0000")
    limits.stopping("0000")
    deadline = time.monotonic() + 10
    while not limits.exceeded() and time.monotonic() < deadline:
        limits.active("0000")
        limits.stopping("0000")
        time.sleep(0.02)
    assert limits.exceeded() == [("0000", "stop")]


def test_active_workers_are_not_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = handler(tmp_path)
    asked: list[str] = []

    def find_active(self: Any, silent: Any) -> list[str]:
        asked.extend(silent)
        return list(silent)

    monkeypatch.setattr("buttress.execution.activity.ActivityProbe.find_active", find_active)
    assert commands_within(run, 3 * 60 * STALL) == [] and run.slots.killed == [] and run.trial in asked
    monkeypatch.undo()
    monkeypatch.setattr("buttress.execution.activity.ActivityProbe.find_active", lambda self, silent: [])
    (lost,) = commands_within(run, 10.0)
    assert "no report, processor time, input or output for 0.005 minutes" in lost.reason


def test_a_trial_without_a_checkpoint_is_not_told_to_go_on_from_one(tmp_path: Path) -> None:
    run = handler(tmp_path)
    (again,) = run.events.handle(AssignmentLost(run.trial, 1, "slot-0"))
    assert isinstance(again, RequeueTrial) and again.assignment.resume is None
    assert "signal 9, perhaps because memory ran out" in run.messages[-1]
    assert "starts afresh, without a checkpoint" in run.messages[-1]


def test_what_a_process_wrote_as_it_died_is_told(tmp_path: Path) -> None:
    run = handler(tmp_path)
    own = tmp_path / "mine.py"
    (tmp_path / "trials" / run.trial).mkdir(parents=True, exist_ok=True)
    (tmp_path / "trials" / run.trial / "output-1.txt").write_text(
        "epoch 1\nFatal Python error: Segmentation fault\n\nThread 0x00007f (most recent call first):\n"
        f'  File "{threading.__file__}", line 5 in wait\n  File "{own}", line 12 in train\n'
    )
    run.events.handle(AssignmentLost(run.trial, 1, "slot-0"))
    assert f"died of Segmentation fault in {own} line 12 (train); see output-1.txt" in run.messages[-1]


# --- the state's lock ------------------------------------------------------------------------------------------------


def test_the_state_is_read_while_it_changes() -> None:
    sweep = state(spec(budget={"trials": 400}, require=[]))
    errors: list[str] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set() and not errors:
            try:
                assert sweep.has_paused is False and sweep.counts is not None and sweep.exhausted in (True, False)
            except RuntimeError as error:
                errors.append(str(error))

    reader = threading.Thread(target=read)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        reader.start()
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline and not errors and not sweep.exhausted:
            trials = [trial for _ in range(8) if (trial := sweep.next_trial()) is not None]
            for trial in trials:
                sweep.started(trial.id, "slot-0")
            for trial in trials:
                sweep.raised(trial.id, 1, "x")
    finally:
        over.set()
        reader.join()
        sys.setswitchinterval(interval)
    assert errors == [] and sweep.counts["failed"] > 8


def test_a_verdict_does_not_wait_for_redraws() -> None:
    """At most as long as one draw takes, whatever that is on this machine today, and not for a thousand of them."""
    sweep = state(spec(False, require=["config.loss.beta < 0.010001"], budget={"trials": 40}))
    done = threading.Event()
    seconds = 0.0

    def draw() -> None:
        nonlocal seconds
        began = time.perf_counter()
        with pytest.raises(Exception, match="draws in a row were refused"):
            sweep.next_trial()
        seconds = time.perf_counter() - began
        done.set()

    drawing = threading.Thread(target=draw)
    drawing.start()
    waits: list[float] = []
    while not done.is_set():
        began = time.perf_counter()
        sweep.finished("none", 1)
        waits.append(time.perf_counter() - began)
        time.sleep(0.002)
    drawing.join()
    assert len(waits) > 20 and max(waits) < 0.3 * seconds
    print(f"longest wait {max(waits) * 1e3:.1f} ms of {seconds * 1e3:.0f} ms of drawing")
