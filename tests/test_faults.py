"""Faults in mid-sweep: each trial gets the right outcome, the slot works again, and no other trial is disturbed.

`pytest tests/test_faults.py -rP` prints for each fault what became of the trial, what the sampler was told and how long
it took until the slot worked again (the table of docs/faults.md).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from optuna.trial import TrialState

from buttress.callbacks.base import Callback
from buttress.execution import driver, launch
from buttress.journal import read
from buttress.journal.records import Journal, TrialRecord
from buttress.spec.spec import SweepSpec

HEALTHY = ("0000", "0002", "0004")  # between the faults, in every sweep of this module


def sweep(
    folder: Path, faults: dict[str, str], *, workers: int = 1, trials: int = 6, **changes: Any
) -> tuple[Journal, driver.Driver]:
    """Runs a sweep of `faulty` in `folder`; `faults` maps trials to what happens to them."""
    shutil.copy(Path(__file__).parent / "faulty.py", folder)
    (folder / "faults.json").write_text(json.dumps(faults))
    budget = {"trials": trials, **changes.pop("budget", {})}
    spec = SweepSpec.from_dict(
        {
            "name": "faulty",
            "trainable": "faulty:Faulty",
            "fixed": changes.pop("fixed", {}),
            "search": {"value": {"uniform": [0.1, 1.0]}},
            "objectives": ["val/score"],
            "scheduler": {"kind": "fifo"},
            "resources": {"workers": workers, "concurrency": changes.pop("concurrency", 1)},
            "budget": budget,
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        running = launch.start(spec, folder / "runs", **changes)
        finish = running.run()
    return read(finish.folder), running


def gap_after(journal: Journal, trial: str) -> float:
    """Seconds from the trial's outcome to the first report of the next trial in its slot."""
    ended = journal.trials[trial].outcome
    assert ended is not None
    later = [record.reports[0].time for record in journal.trials.values() if record.reports]
    return min(time_ for time_ in later if time_ > ended.time) - ended.time


def loss_to_report(record: TrialRecord) -> float:
    """Seconds from when the slot lost the trial to its first report after it."""
    lost = record.losses[-1].time
    return min(report.time for report in record.reports if report.time > lost) - lost


def say(fault: str, journal: Journal, running: driver.Driver, trial: str, again: float | None = None) -> None:
    """For `-rP`: one row of the table."""
    record = journal.trials[trial]
    assert record.outcome is not None
    state, constraints = told(running, journal, trial)
    slot = "never out of work" if again is None else f"works again after {again:.2f} s"
    outcome = f"{record.outcome.outcome} ({record.outcome.kind})" if record.outcome.kind else record.outcome.outcome
    print(f"{fault}, {journal.header.spec['resources']['workers']} worker(s): {outcome}, attempts "
          f"{len(record.attempts)}; told {state.name} {constraints or ''}; the slot {slot}")  # fmt: skip


def assert_undisturbed(journal: Journal, trials: tuple[str, ...] = HEALTHY) -> None:
    for name in trials:
        record = journal.trials[name]
        assert record.state == "completed", (name, record.state, record.outcome)
        assert len(record.attempts) == 1 and [report.epoch for report in record.reports] == [1, 2, 3, 4]


def told(running: driver.Driver, journal: Journal, trial: str) -> tuple[TrialState, dict[str, float]]:
    entry = running.state.study.trials()[journal.trials[trial].ask]
    return entry.state, dict(entry.constraints)


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.long)], ids=["1 worker", "2 workers"])
def exceptions(request: Any, ray_cluster: Any, tmp_path_factory: Any) -> tuple[Journal, driver.Driver]:
    faults = {
        "0001": "raise",
        "0003": "raise on one rank",
        "0005": "out of memory",
        "0007": "exit",
        "0008": "interrupt",
    }
    return sweep(tmp_path_factory.mktemp("exceptions"), faults, workers=request.param, trials=10)


@pytest.mark.parametrize(
    ("trial", "kind", "text"),
    [
        ("0001", "exception", "a fault on purpose"),
        ("0003", "exception", "a fault on purpose"),
        ("0005", "out of memory", "can't allocate memory"),
        ("0007", "exception", "fail raised SystemExit: 3"),
        ("0008", "exception", "fail raised KeyboardInterrupt"),
    ],
)
def test_an_exception_is_the_trials_outcome_and_the_slot_stays_warm(
    exceptions: tuple[Journal, driver.Driver], trial: str, kind: str, text: str
) -> None:
    journal, running = exceptions
    outcome = journal.trials[trial].outcome
    assert outcome is not None and (outcome.outcome, outcome.kind) == ("failed", kind)
    assert text in (outcome.error or "") and text in (outcome.message or "")
    assert told(running, journal, trial) == (TrialState.PRUNED, {"failed": 1.0})
    assert len({start.pid for record in journal.trials.values() for start in record.attempts}) == 1
    gap = gap_after(journal, trial)
    assert gap < 5
    say(f"{kind} ({'one rank' if trial == '0003' else 'every rank'})", journal, running, trial, gap)
    assert_undisturbed(journal, (*HEALTHY, "0006", "0009"))


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.long)], ids=["1 worker", "2 workers"])
def deaths(request: Any, ray_cluster: Any, tmp_path_factory: Any) -> tuple[Journal, driver.Driver]:
    faults = {"0001": "kill", "0003": "hang", "0005": "segfault"}
    folder = tmp_path_factory.mktemp("deaths")
    long_enough = {"pause": 0.3}  # an epoch's report and checkpoint have left before the next one ends
    return sweep(folder, faults, workers=request.param, trials=6, fixed=long_enough, budget={"stall_minutes": 0.2})


def resumed(record: TrialRecord) -> bool:
    return record.attempts[-1].resumed_from is not None and [r.epoch for r in record.reports] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("trial", "reason"),
    [
        ("0001", "killed (signal 9, perhaps because memory ran out)"),
        ("0003", "no report, processor time, input or output for 0.2 minutes"),
        ("0005", "died of Segmentation fault in "),
    ],
)
def test_a_dead_or_silent_worker_costs_one_checkpoint_interval(
    deaths: tuple[Journal, driver.Driver], trial: str, reason: str
) -> None:
    journal, running = deaths
    record = journal.trials[trial]
    assert record.state == "completed" and len(record.attempts) == 2 and resumed(record)
    assert len(record.losses) == 1 and reason in record.losses[0].reason
    assert told(running, journal, trial)[0] == TrialState.COMPLETE
    assert record.attempts[1].time - record.losses[0].time < 30
    assert_undisturbed(journal)
    fault = {"0001": "kill -9 of a worker", "0003": "a rank that hangs", "0005": "a segmentation fault"}[trial]
    say(fault, journal, running, trial, loss_to_report(record))


@pytest.mark.long
def test_a_trial_that_kills_its_worker_again_and_again_is_given_up(ray_cluster: Any, tmp_path: Path) -> None:
    journal, running = sweep(tmp_path, {"0001": "kill always"}, trials=3)
    record = journal.trials["0001"]
    assert record.outcome is not None and (record.state, record.outcome.kind) == ("failed", "infrastructure")
    assert len(record.losses) == 3 and told(running, journal, "0001") == (TrialState.FAIL, {})
    assert_undisturbed(journal, ("0000", "0002"))
    say("kill -9 of its worker by the trial, always", journal, running, "0001", gap_after(journal, "0001"))


def test_a_nan_on_one_rank_makes_its_epochs_invalid(ray_cluster: Any, tmp_path: Path) -> None:
    journal, running = sweep(tmp_path, {"0001": "nan on one rank"}, workers=2, trials=3)
    record = journal.trials["0001"]
    assert [report.valid for report in record.reports[:2]] == [True, True]
    assert not any(report.valid for report in record.reports[2:]) and "train/loss" in record.reports[2].nonfinite
    assert record.outcome is not None and (record.outcome.best is None or record.outcome.best.epoch <= 2)
    assert_undisturbed(journal, ("0000", "0002"))
    say("NaN on one rank", journal, running, "0001", gap_after(journal, "0001"))


def test_a_full_disk_under_a_checkpoint_does_not_end_the_trial(ray_cluster: Any, tmp_path: Path) -> None:
    journal, running = sweep(tmp_path, {"0001": "disk full"}, trials=3)
    reports = journal.trials["0001"].reports
    assert journal.trials["0001"].state == "completed"
    assert [bool(report.checkpoint) for report in reports] == [True, True, False, False]
    assert_undisturbed(journal, ("0000", "0002"))
    say("disk full under a checkpoint", journal, running, "0001")


@pytest.mark.long
def test_a_trial_over_its_time_limit_is_stopped_with_what_it_reached(ray_cluster: Any, tmp_path: Path) -> None:
    journal, running = sweep(tmp_path, {"0001": "slow"}, trials=3, budget={"trial_minutes": 0.15})
    outcome = journal.trials["0001"].outcome
    assert outcome is not None and (outcome.outcome, outcome.kind) == ("pruned", "time limit")
    assert outcome.best is not None and told(running, journal, "0001")[0] == TrialState.PRUNED
    assert_undisturbed(journal, ("0000", "0002"))
    say("over its time limit", journal, running, "0001", gap_after(journal, "0001"))


@pytest.mark.long
def test_an_epoch_longer_than_the_stall_limit_is_no_stall(ray_cluster: Any, tmp_path: Path) -> None:
    journal, _ = sweep(tmp_path, {"0001": "spin in C"}, trials=3, budget={"stall_minutes": 0.2})
    assert_undisturbed(journal, ("0000", "0001", "0002"))


@pytest.mark.long
def test_workers_that_hang_after_they_were_stopped_are_killed(ray_cluster: Any, tmp_path: Path) -> None:
    limits = {"trial_minutes": 0.1, "stall_minutes": 0.2}
    journal, running = sweep(tmp_path, {"0001": "hang"}, trials=3, budget=limits)
    outcome = journal.trials["0001"].outcome
    assert outcome is not None and (outcome.outcome, outcome.kind) == ("pruned", "time limit")
    assert outcome.best is not None and not journal.trials["0001"].losses
    assert_undisturbed(journal, ("0000", "0002"))
    gap = gap_after(journal, "0001")
    assert gap > 12
    say("stopped, and hangs", journal, running, "0001", gap)


class Broken(Callback):
    """A callback that raises at every line."""

    calls = 0

    def on_event(self, event: Any, trial: Any = None) -> None:
        self.calls += 1
        raise RuntimeError("W&B is down")

    def on_message(self, text: str) -> None:
        self.calls += 1
        raise RuntimeError("W&B is down")


def test_a_callback_that_raises_disturbs_nothing(ray_cluster: Any, tmp_path: Path) -> None:
    broken = Broken()
    journal, running = sweep(tmp_path, {}, trials=3, callbacks=(broken,))
    assert broken.calls == 1
    assert_undisturbed(journal, ("0000", "0001", "0002"))
    say("W&B that raises", journal, running, "0001")


@pytest.mark.long
def test_the_death_of_a_tune_actor_costs_the_trial_nothing(ray_cluster: Any, tmp_path: Path) -> None:
    killer = When(lambda: kill_processes("ray::ResourceTrainable"))
    journal, running = sweep(tmp_path, {}, trials=3, fixed={"pause": 0.5}, callbacks=(killer,))
    assert killer.done
    assert_undisturbed(journal, ("0000", "0001", "0002"))
    say("kill -9 of the slot's Tune actor", journal, running, "0001", gap_after(journal, "0001"))


class When(Callback):
    """A callback that does something once, at the second report of trial 0001."""

    def __init__(self, action: Callable[[], int]) -> None:
        self.action, self.done = action, 0

    def on_event(self, event: Any, trial: Any = None) -> None:
        if not self.done and event.line == "report" and event.trial == "0001" and event.epoch == 2:
            self.done = self.action()


def kill_processes(title: str) -> int:
    """kill -9 of this test session's Ray processes with that title; how many there were."""
    mine = psutil.Process(os.getpid()).children(recursive=True)
    found = [process for process in mine if title in " ".join(process.cmdline())]
    for process in found:
        process.send_signal(signal.SIGKILL)
    return len(found)


@pytest.mark.long
def test_trials_side_by_side_are_not_disturbed(ray_cluster: Any, tmp_path: Path) -> None:
    faults = {"0001": "kill", "0003": "raise"}
    journal, _ = sweep(tmp_path, faults, trials=6, concurrency=2, fixed={"pause": 0.3})
    assert journal.trials["0001"].state == "completed" and resumed(journal.trials["0001"])
    assert journal.trials["0003"].state == "failed"
    assert_undisturbed(journal, ("0000", "0002", "0004", "0005"))
