"""What people ask of a running sweep from outside: trials added, stopped, paused; refused where it makes no sense."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import test_pause
from journal_lines import Line, events_of
from sweeps import Toy, World, drive, spec, state
from test_cli import call

import buttress
from buttress.errors import BadInput
from buttress.execution import launch
from buttress.execution.inbox import Inbox
from buttress.journal import read
from buttress.journal.requests import Request, Requests
from buttress.spec import trial_config
from buttress.spec.spec import SweepSpec
from buttress.storage import Storage
from buttress.sweep.state import SweepState

# --- the state --------------------------------------------------------------------------------------------------------

SEARCH = {"loss.beta": {"loguniform": [0.1, 1.0]}, "loss.warmup_epochs": {"int": [0, 2]}}
HEALTHY = spec(search=SEARCH)


def begun(lines: list[Line] | None = None, reports: int = 2) -> SweepState:
    sweep = state(HEALTHY, lines)
    trial = sweep.next_trial()
    assert trial is not None
    sweep.started(trial.id, "slot-0")
    for reported in World().reports(trial.config):
        sweep.reported(trial.id, 1, reported)
        if reported.epoch == reports:
            break
    return sweep


def test_an_added_configuration_is_run_next_and_told_to_the_sampler() -> None:
    lines: list[Line] = []
    sweep = state(HEALTHY, lines)
    sweep.add(Request(verb="add", values={"loss.beta": 0.25}, id="aaaaaaaa"))
    trial = sweep.next_trial()
    assert trial is not None and trial.params["loss.beta"] == 0.25 and "loss.warmup_epochs" in trial.params
    assert trial.config["loss"]["beta"] == 0.25 and sweep.wanted == []
    assert sweep.study.trials()[trial.ask].params == trial.params
    created = next(line for line in lines if line["line"] == "trial")
    assert created["command"] == "aaaaaaaa"
    other = sweep.next_trial()
    assert other is not None and other.params["loss.beta"] != 0.25


def test_a_sweep_begins_with_what_its_spec_names() -> None:
    whole: list[Line] = []
    first = ["default", {"loss.warmup_epochs": 2}]
    sweep = state(spec(search=SEARCH, first=first), whole)
    sweep.add_first()
    one, two, three = sweep.next_trial(), sweep.next_trial(), sweep.next_trial()
    assert one is not None and two is not None and three is not None
    assert one.params == {"loss.beta": 1.0, "loss.warmup_epochs": 0}  # the defaults of the toy's config
    assert two.params["loss.warmup_epochs"] == 2
    created = [line for line in whole if line["line"] == "trial"]
    assert [line.get("command") for line in created] == ["first-0", "first-1", None]
    with pytest.raises(BadInput, match=r"first\.0\.loss\.beta: is outside of its range \(got 7\)"):
        state(spec(search=SEARCH, first=[{"loss.beta": 7}])).add_first()


def test_the_defaults_of_coupled_values_are_the_choice_that_has_them() -> None:
    pairs = [{"loss.warmup_epochs": 2, "train.epochs": 8}, {"loss.warmup_epochs": 0, "train.epochs": 8}]
    for choices, has in ((pairs, {"pair": pairs[1]}), (pairs[:1], {})):
        search = {"loss.beta": SEARCH["loss.beta"], "pair": {"choice": choices}}
        made = spec(search=search, require=[], first=["default"])
        assert trial_config.default_params(made, Toy.Config) == {"loss.beta": 1.0, **has}
        sweep = state(made)
        sweep.add_first()
        assert (trial := sweep.next_trial()) is not None and trial.params["pair"] in choices


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"loss.gamma": 1.0}, "not searched"),
        ({"loss.beta": 7.0}, "numbers from 0.1 to 1"),
        ({"loss.beta": "much"}, "outside of its range"),
        ({"loss.warmup_epochs": 1.5}, "whole numbers from 0 to 2"),
        ({"loss.warmup_epochs": True}, "outside of its range"),
    ],
)
def test_a_configuration_outside_of_the_space_is_refused(values: dict[str, Any], problem: str) -> None:
    lines: list[Line] = []
    sweep = state(HEALTHY, lines)
    with pytest.raises(BadInput, match=problem):
        sweep.add(Request(verb="add", values=values))
    assert lines == [] and sweep.wanted == []


@pytest.mark.parametrize(("ending", "told"), [("stopped", "PRUNED"), ("completed", "COMPLETE"), ("failed", "PRUNED")])
def test_a_stopped_trial_has_the_outcome_that_was_asked_for(ending: str, told: str) -> None:
    sweep = begun(reports=4)
    outcome = sweep.stop("0000", ending, "ada on lovelace")
    assert outcome is not None and (outcome.outcome, outcome.kind) == (ending, "by hand")
    assert outcome.message == "stopped by ada on lovelace" and outcome.best is not None
    assert sweep.study.trials()[0].state.name == told
    assert sweep.stop("0000", "failed", "") == outcome  # what was decided stays


def test_a_trial_that_waits_can_be_stopped() -> None:
    sweep = begun()
    sweep.pause("0000")
    sweep.continue_trial("0000")
    sweep.stop("0000", "stopped", "")
    assert sweep.queue == [] and (trial := sweep.next_trial()) is not None and trial.id == "0001"


def test_every_prefix_of_its_journal_resumes_to_the_same_sweep() -> None:
    whole: list[Line] = []
    sweep = begun(whole)
    sweep.add(Request(verb="add", values={"loss.beta": 0.25}, id="aaaaaaaa"))
    for trial in sweep.hold(Request(verb="pause")):
        sweep.pause(trial)
    assert sweep.next_trial() is None
    for trial in sweep.release(Request(verb="go")):
        sweep.continue_trial(trial)
    sweep.stop("0000", "stopped", "")
    drive(sweep)
    first = next(index for index, line in enumerate(whole) if line["line"] == "command")
    added = [line for line in whole if line["line"] == "trial" and line["params"]["loss.beta"] == 0.25]
    assert len(added) == 1
    for cut in range(first + 1, len(whole), 7):
        lines = [dict(line) for line in whole[:cut]]
        again = state(HEALTHY, lines)
        again.replay(events_of(whole[:cut]))
        assert not again.held  # who resumes a sweep wants it to go on
        drive(again)
        assert len([line for line in lines if line["line"] == "trial" and line["params"]["loss.beta"] == 0.25]) == 1
        assert again.exhausted and not again.active


# --- the files --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "storage"])
def requests(request: Any, tmp_path: Path) -> Requests:
    return Requests(tmp_path if request.param == "folder" else Storage(f"file://{tmp_path}"))


def test_requests_are_answered_once_and_leave_nothing(requests: Requests, tmp_path: Path) -> None:
    taken: list[Request] = []

    def handle(request: Request, answer: Callable[[str, bool], None]) -> None:
        taken.append(request)
        answer(f"did {request.verb}", request.verb == "go")

    early = [
        Request(verb="stop", trial="0007", ending="failed"),
        Request(verb="add", values={"a": 1}),
        Request(verb="stop"),
    ]
    for each in early:
        requests.ask(each)
    (tmp_path / "commands" / "0123456789ab.json").write_text("[" * 5000)
    (tmp_path / "commands" / "0123456789ac.json").write_text('{"verb": "rm", "trial": "../x"}')
    (tmp_path / "commands" / "notes.txt").write_text("mine")
    inbox = Inbox(requests, handle, 0.02)
    inbox.start()
    assert [requests.wait(each.id, 20.0) for each in early] == [
        {"message": "did stop", "refused": False},
        {"message": "did add", "refused": False},
        {"message": "it came before this driver, when nobody ran the sweep", "refused": True},
    ]
    for id in ("0123456789ab", "0123456789ac"):
        answer = requests.wait(id, 20.0)
        assert answer is not None and answer["refused"] and "not a request" in answer["message"]
    late = [Request(verb="stop"), Request(verb="go")]
    for each in late:
        requests.ask(each)
    assert [requests.wait(each.id, 20.0) for each in late] == [
        {"message": "did stop", "refused": False},
        {"message": "did go", "refused": True},
    ]
    inbox.close()
    assert [each.verb for each in taken] == ["stop", "add", "stop", "go"]  # oldest first
    assert [path.name for path in (tmp_path / "commands").iterdir()] == ["notes.txt"]


def test_without_a_driver_a_request_for_a_trial_waits(
    recorded_sweeps: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(recorded_sweeps / "killed", tmp_path / "killed")
    code, out, _ = call(capfd, "stop", str(tmp_path / "killed"), "0")
    assert code == 0 and "nobody runs the sweep now" in out and "buttress resume" in out
    (left,) = (tmp_path / "killed" / "commands").glob("*.json")
    assert json.loads(left.read_text())["verb"] == "stop"
    for verb in ("stop", "pause", "go"):  # the next driver must not be stopped by it
        code, _, err = call(capfd, verb, str(tmp_path / "killed"))
        assert code == 2 and "nobody runs this sweep now" in err
    assert [*(tmp_path / "killed" / "commands").iterdir()] == [left]
    assert call(capfd, "stop", str(tmp_path / "killed"), "0", "--complete", "--fail")[0] == 2
    assert call(capfd, "pause", str(tmp_path / "killed"), "77")[0] == 2


# --- a real sweep -----------------------------------------------------------------------------------------------------

SPEC = {**test_pause.SPEC, "name": "steered", "fixed": {"epochs": 30}, "budget": {"trials": 4}}


def until(sweep: Any, holds: Callable[[Any], bool]) -> None:
    deadline = time.monotonic() + 90
    while not holds(sweep.journal):
        assert time.monotonic() < deadline, sweep.journal.counts()
        time.sleep(0.05)


def running(journal: Any) -> str | None:
    return next((each.id for each in journal.trials.values() if each.state == "running" and each.reports), None)


@pytest.mark.long
def test_a_running_sweep_is_steered_from_outside_and_goes_on(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(Path(__file__).parent / "pausable.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    started = launch.start(SweepSpec.from_dict(SPEC), tmp_path / "runs")
    ended: list[Any] = []
    thread = threading.Thread(target=lambda: ended.append(started.run()))
    thread.start()
    while not (started.folder / "journal.jsonl").is_file():
        time.sleep(0.05)
    sweep, took = buttress.load(str(started.folder)), []

    def ask(does: Callable[[], str]) -> str:
        began = time.monotonic()
        message = does()
        took.append(time.monotonic() - began)
        return message

    until(sweep, lambda journal: running(journal) == "0000")
    assert ask(lambda: sweep.pause(0)) == "trial 0000 is paused"
    with pytest.raises(BadInput, match="is paused, not running"):
        sweep.pause(0)
    until(sweep, lambda journal: running(journal) == "0001")
    assert ask(lambda: sweep.go(0)) == "trial 0000 waits for a slot"
    assert ask(lambda: sweep.stop(1)) == "trial 0001 is stopped"
    with pytest.raises(BadInput, match=r"has ended already \(stopped\)"):
        sweep.stop(1)
    assert "was added" in ask(lambda: sweep.add({"lr": 0.07}))
    with pytest.raises(BadInput, match=r"numbers from 0\.01 to 0\.1"):
        sweep.add({"lr": 7})
    until(sweep, lambda journal: running(journal) is not None)
    assert "the sweep is paused" in ask(sweep.pause)
    until(sweep, lambda journal: running(journal) is None)
    count = len(sweep.journal.trials)
    time.sleep(1.0)
    assert len(sweep.journal.trials) == count and running(sweep.journal) is None
    assert ask(sweep.go) == "the sweep goes on"
    until(sweep, lambda journal: running(journal) is not None)
    assert "buttress resume" in ask(sweep.stop)
    thread.join(60)
    (result,) = ended
    assert result.interrupted and sweep.journal.ended is not None
    print(f"answers took {median(took):.2f} s, at most {max(took):.2f} s")

    resumed = launch.resume(str(started.folder))
    resumed.run()
    journal = read(started.folder)
    assert journal.counts() == {"completed": 3, "stopped": 1}
    assert [each.params["lr"] for each in journal.trials.values()].count(0.07) == 1
    assert journal.trials["0000"].state == "completed" and len(journal.trials["0000"].attempts) >= 2
    assert resumed.state.outcomes["0001"].outcome == "stopped" and resumed.state.active == {}
