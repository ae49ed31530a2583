"""Probation: a condemned trial is set aside, its slot goes on; it comes back if it ranks, or is condemned for good."""

from __future__ import annotations

import asyncio
import io
import json
import pickle
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from optuna.trial import TrialState
from rich.console import Console
from sweeps import RULES, Toy, World, drive, spec, state
from test_audit import Recovering
from test_state import essence, report

from buttress.analysis.audits import audit_summary
from buttress.analysis.explanation import explain, stop_reason
from buttress.analysis.selection import best_trial
from buttress.callbacks.progress import Heading, Progress
from buttress.errors import BadInput
from buttress.execution.mailbox import Mailbox
from buttress.execution.messages import Assignment, AttemptResult, Ending, WorkerInfo
from buttress.execution.setup import header
from buttress.journal import JournalWriter, lines, read
from buttress.journal.records import Journal, fold
from buttress.search.halving import goes_on
from buttress.spec.spec import SweepSpec
from buttress.sweep.state import Line, LiveTrial, SweepState


def lenient(epochs: int = 3, **changes: Any) -> SweepSpec:
    return spec(probation={"epochs": epochs}, **changes)


def journal_of(made: SweepSpec, lines: list[Line]) -> Journal:
    return fold([header(made, Toy(), RULES, "toy-000000"), *lines])


def of(lines: list[Line], kind: str) -> list[Line]:
    return [line for line in lines if line["line"] == kind]


class Promising(Recovering):
    """Those that wake score high from their first epoch on: they rank while their code is still dead."""

    def reports(self, config: dict[str, Any], from_epoch: int = 0) -> Any:
        for one in super().reports(config, from_epoch):
            wakes = 2 < config["loss"]["beta"] < 20 and "val/score" in one.metrics
            yield replace(one, metrics={**one.metrics, "val/score": 2.0 + one.epoch}) if wakes else one


@pytest.mark.parametrize("epochs", [0, 1.5, "some"])
def test_a_number_of_epochs_that_is_none_is_refused_by_its_key(epochs: Any) -> None:
    with pytest.raises(BadInput, match=r"probation\.epochs"):
        lenient(epochs)


@pytest.mark.parametrize(
    ("value", "peers", "direction", "expected"),
    [
        (0.5, [0.1, 0.2, 0.3], "max", True),
        (0.2, [0.1, 0.2, 0.3], "max", False),  # the best third goes on: 0.2333
        (0.2, [0.1, 0.2, 0.3, 0.4], "min", True),
        (0.9, [0.1, 0.2], "max", False),  # too few to compare with
    ],
)
def test_what_would_pass_a_rung_ranks(value: float, peers: list[float], direction: str, expected: bool) -> None:
    assert goes_on(value, peers, 3, direction) is expected


# --- set aside ------------------------------------------------------------------------------------------------------


def condemned(sweep: SweepState) -> LiveTrial:
    """The sweep's first trial, condemned in its second epoch."""
    live = sweep.next_trial()
    assert live is not None
    sweep.started(live.id, "slot-0")
    sweep.reported(live.id, 1, replace(report(epoch=1, kl=0.1, score=0.5), checkpoint="checkpoints/000001.pt"))
    line = sweep.reported(live.id, 1, report(epoch=2, kl=0.1))
    assert line is not None and line["line"] == "suspended"
    return live


def test_a_condemned_trial_is_set_aside_with_its_verdict_and_the_sampler_hears_of_it_at_once() -> None:
    lines: list[Line] = []
    sweep = state(lenient(), lines)
    live = condemned(sweep)
    assert not sweep.outcomes and (live.suspended or {})["until"] == 2 + 3
    (line,) = of(lines, "suspended")
    assert (line["rule"], line["epochs"]) == ("posterior_collapse", 2) and line["margin"] > 0 and line["evidence"]
    told = sweep.study.trials()[live.ask]
    assert told.state == TrialState.PRUNED and told.constraints["collapse"] == line["margin"]
    # whatever its workers still do is void, and they take nothing else of it
    count = len(lines)
    assert sweep.reported(live.id, 1, report(epoch=3, kl=9.0, score=9.0)) is None
    assert sweep.finished(live.id, 1) is None and sweep.raised(live.id, 1, "late") is None
    assert len(lines) == count and live.judged.best is None


def test_the_slot_goes_on_with_another_trial() -> None:
    sweep = state(lenient())
    live, other = condemned(sweep), sweep.next_trial()
    assert other is not None and other.id != live.id


def test_the_reader_calls_it_suspended_and_says_why() -> None:
    lines: list[Line] = []
    made = lenient()
    live = condemned(state(made, lines))
    record = fold([header(made, Toy(), RULES, "toy-000000"), *lines], alive=True).trials[live.id]
    assert record.state == "suspended" and record.probation is not None and record.probation.epochs == 2
    journal = journal_of(made, lines)
    assert stop_reason(journal, record).startswith("Set aside at epoch 2 of 8: total KL was 0.1")
    assert "it waits for its turn" in str(explain(journal, live.id))


def test_who_watches_is_told() -> None:
    lines: list[Line] = []
    condemned(state(lenient(), lines))
    told = io.StringIO()
    progress = Progress(Heading("toy", "val/score", "max"), Console(file=told, width=200))
    progress.start()
    for line in lines:
        progress.on_event(line, SimpleNamespace(params={}, epochs=8))
    shown = Console(file=io.StringIO(), width=120, record=True)
    shown.print(progress.render())
    progress.stop()
    assert "0000 set aside at epoch 2 of 8: posterior_collapse, margin +0.70, total KL was 0.1" in told.getvalue()
    assert "0 running" in told.getvalue() and "0000 suspended at epoch 2 of 8" in shown.export_text()


# --- back, or condemned for good ------------------------------------------------------------------------------------


def test_what_does_not_rank_is_condemned_for_good_when_there_are_no_more_draws() -> None:
    plain, lines = state(spec()), []
    drive(plain)
    sweep = state(made := lenient(), lines)
    drive(sweep)
    aside = {line["trial"]: line for line in of(lines, "suspended")}
    assert len(aside) >= 3 and not sweep.live
    for trial, line in aside.items():
        outcome = sweep.outcomes[trial]
        assert (outcome["outcome"], outcome["rule"], outcome["margin"]) == ("collapsed", line["rule"], line["margin"])
    # the sampler knew of each as soon as it did without probation: the same draws, the same ends
    assert {key: line["outcome"] for key, line in sweep.outcomes.items()} == {
        key: line["outcome"] for key, line in plain.outcomes.items()
    }
    assert [t.params for t in sweep.study.trials()] == [t.params for t in plain.study.trials()]
    record = journal_of(made, lines).trials[next(iter(aside))]
    assert "it did not rank" in str(explain(journal_of(made, lines), record.id))


def test_what_ranks_comes_back_from_its_checkpoint_recovers_and_can_win() -> None:
    lines: list[Line] = []
    sweep = state(made := lenient(scheduler={"kind": "fifo", "factor": 2}, budget={"trials": 24}), lines)
    drive(sweep, Promising(health=0))
    aside = {line["trial"]: line for line in of(lines, "suspended")}
    back = [line for line in of(lines, "start") if line["attempt"] == 2]
    assert {line["trial"] for line in back} <= aside.keys() and back
    for start in back:
        assert start["resumed_from"] is None or start["checkpoint"]
        epochs = [r["epoch"] for r in of(lines, "report") if (r["trial"], r["attempt"]) == (start["trial"], 2)]
        assert epochs[0] <= aside[start["trial"]]["epochs"] + 1  # all of it, from its last checkpoint on
    saved = [line["trial"] for line in back if sweep.outcomes[line["trial"]]["outcome"] == "completed"]
    assert saved
    for trial in saved:
        entries = [t for t in sweep.study.trials() if sweep.asks.get(t.number) == trial]
        assert [t.state for t in entries] == [TrialState.PRUNED, TrialState.COMPLETE]
        assert entries[0].params == entries[1].params
    journal = journal_of(made, lines)
    winner = best_trial(journal)
    assert winner is not None and winner.id in saved
    assert "came back as attempt 2" in str(explain(journal, saved[0]))
    ends = [line["trial"] for line in of(lines, "outcome")]
    assert len(ends) == len(set(ends)) == 24


class Stubborn(Promising):
    """They rank, but their code never wakes."""

    def reports(self, config: dict[str, Any], from_epoch: int = 0) -> Any:
        for one in super().reports(config, from_epoch):
            dead = 2 < config["loss"]["beta"] < 20 and one.full_beta_epochs
            yield replace(one, metrics={**one.metrics, "latent/kl_total": 0.1}) if dead else one


def test_what_comes_back_and_is_still_dead_is_condemned_for_good_after_its_epochs() -> None:
    lines: list[Line] = []
    sweep = state(lenient(3, scheduler={"kind": "fifo", "factor": 2}, budget={"trials": 24}), lines)
    drive(sweep, Stubborn(health=0))
    back = {line["trial"] for line in of(lines, "start") if line["attempt"] == 2}
    aside = {line["trial"]: line for line in of(lines, "suspended")}
    assert back
    for trial in back:
        outcome = sweep.outcomes[trial]
        assert (outcome["outcome"], outcome["epochs"]) == ("collapsed", aside[trial]["until"])
        assert len([t for t in sweep.study.trials() if sweep.asks.get(t.number) == trial]) == 1
    assert len(of(lines, "suspended")) == len(aside)  # nobody gets a third chance


def test_no_epoch_on_probation_that_looks_collapsed_is_anybodys_best() -> None:
    lines: list[Line] = []
    sweep = state(made := lenient(scheduler={"kind": "fifo", "factor": 2}, budget={"trials": 24}), lines)
    drive(sweep, Promising(health=0))
    dead = [line for line in of(lines, "report") if line["metrics"]["latent/kl_total"] < 0.5]
    assert dead and not any(line["valid"] for line in dead)
    for record in journal_of(made, lines).trials.values():
        if record.outcome and record.outcome.best:
            assert (record.outcome.best.metrics["latent/kl_total"] or 0) > 0.5


def test_a_trial_that_is_still_leaving_its_slot_is_not_back_yet() -> None:
    sweep = state(lenient(scheduler={"kind": "fifo", "factor": 2}, budget={"trials": 1}))
    live = condemned(sweep)
    assert sweep.next_trial(leaving={live.id}) is None and not sweep.outcomes
    assert sweep.next_trial() is None and sweep.outcomes[live.id]["outcome"] == "collapsed"


def test_enough_healthy_trials_end_the_sweep_without_second_chances() -> None:
    lines: list[Line] = []
    sweep = state(
        lenient(scheduler={"kind": "fifo", "factor": 2}, budget={"trials": 50, "healthy": 2}), lines
    )
    drive(sweep, Promising(health=0))
    assert sweep.counts["completed"] == 2 and not sweep.live


# --- resumed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "share", "every"),
    [(Promising(health=0), 0.6, 2), (World(), 0.0, 9), (Promising(health=0), 0.0, 5), (Stubborn(health=0), 0.0, 5)],
)
def test_every_prefix_of_its_journal_resumes_to_the_same_sweep(world: World, share: float, every: int) -> None:
    made = lenient(scheduler={"kind": "asha", "first": 2, "factor": 2}, audit={"share": share}, budget={"trials": 14})
    whole: list[Line] = []
    drive(state(made, whole), world)
    expected = essence(whole)
    kinds = {line["line"] for line in whole}
    assert "suspended" in kinds and ("audit" in kinds) == (share > 0)
    for cut in range(0, len(whole), every):
        lines = [json.loads(json.dumps(line)) for line in whole[:cut]]
        again = state(made, lines)
        again.replay([dict(line) for line in whole[:cut]])
        drive(again, world)
        assert essence(lines) == expected, f"cut after line {cut}: {whole[cut - 1]['line']}"
        ends = [line["trial"] for line in of(lines, "outcome")]
        assert len(ends) == len(set(ends))


def test_a_simulated_sweep_sets_aside_and_brings_back(tmp_path: Path) -> None:
    from test_simulator import simulated

    made, seen = simulated(tmp_path, probation={"epochs": 2}, budget={"trials": 30})
    journal = fold(line for line in map(json.loads, (tmp_path / "journal.jsonl").read_text().splitlines()))
    aside = [record for record in journal.trials.values() if record.probation]
    assert aside and all(record.outcome for record in aside) and not made.state.live
    clocks = [event.clock for event in seen]
    assert clocks == sorted(clocks)
    for record in aside:
        steps = [report.step for report in record.reports]
        assert steps == sorted(set(steps))


# --- the driver, without Ray ----------------------------------------------------------------------------------------


class Handle:
    """A mailbox as its actor's handle, every call at once."""

    def __init__(self) -> None:
        self.mailbox = Mailbox()

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.mailbox, name)
        return SimpleNamespace(remote=lambda *given: asyncio.run(call(*given)))


class Played:
    """A driver with one slot whose workers hear of a stop `late` reports too late, and Tune in its order."""

    def __init__(
        self, made: SweepSpec, folder: Path, world: World, late: int, earlier: list[Line] | None = None
    ) -> None:
        from buttress.execution.driver import Driver

        self.world, self.late, self.folder = world, late, folder
        self.driver = made_by = Driver(made, folder, sweep="toy-000000", rules=RULES, earlier=earlier)
        made_by.mailbox, made_by._mailbox_name, made_by._began = Handle(), "mailbox", 0.0
        self.mailbox: Mailbox = made_by.mailbox.mailbox
        self.held: dict[str, int] = {}
        self.worker: Iterator[Any] = iter(())

    def run(self, most: int = 10**9) -> None:
        """Until the sweep's end, or until the worker has made `most` reports."""
        driver = self.driver
        with JournalWriter(self.folder / "journal.jsonl", fsync=()) as driver._writer:
            driver._open()
            driver._began = time.monotonic()
            driver._open_journal()
            driver._attach(SimpleNamespace(count_usable=lambda: 1, mark_ready=lambda *_: None))  # type: ignore[arg-type]
            asyncio.run(self.mailbox.register("slot-0", "life", 0, 1, WorkerInfo(1, "here", "n")))
            taken, made = 0, 0
            while self.tune():
                if next(self.worker, None) is None and self.mailbox._slots["slot-0"].assigned > taken:
                    taken += 1
                    self.worker = self.work(self.mailbox._slots["slot-0"].assignment)
                made += 1
                self.pump()
                if made >= most:
                    return

    def tune(self) -> bool:
        drawn = self.driver._next_trial()
        if isinstance(drawn, dict):
            asyncio.run(self.mailbox.submit(Assignment.from_json(drawn["assignment"])))
            self.held[drawn["trial"]] = 0
        for trial, seen in list(self.held.items()):
            held = self.mailbox._trials.get(trial)
            for result in held.results[seen:] if held else []:
                self.held[trial] += 1
                if result.get("done") or result.get("decision") == "stop" or "kind" in result:  # a verdict
                    del self.held[trial]
                    self.driver._release(trial, False)
                    break
        return drawn is None or isinstance(drawn, dict) or bool(self.held)

    def work(self, got: Any) -> Iterator[bool]:
        trial, attempt, late = got.trial, got.attempt, self.late
        done = int(Path(got.resume).stem) if got.resume else 0
        for reported in self.world.reports(got.config, from_epoch=done):
            if reported.checkpoint:
                path = Path(got.folder) / reported.checkpoint
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            asyncio.run(self.mailbox.report(trial, attempt, pickle.dumps(reported)))
            yield True
            late -= self.mailbox._trials[trial].stop_reason is not None
            if late < 0:
                asyncio.run(self.mailbox.end_attempt("slot-0", "life", trial, attempt, AttemptResult(Ending.STOPPED)))
                return
        asyncio.run(self.mailbox.end_attempt("slot-0", "life", trial, attempt, AttemptResult(Ending.FINISHED)))

    def pump(self) -> None:
        commands, self.driver._commands = self.driver._commands, []
        for event in asyncio.run(self.mailbox.exchange(commands, 0.0)):
            self.driver._commands += self.driver.events.handle(event)


def with_everything(**changes: Any) -> SweepSpec:
    return lenient(
        trainable="test_simulator:Recorded", rules={}, audit={"share": 0.4}, budget={"trials": 16}, seed=8,
        scheduler={"kind": "asha", "first": 2, "factor": 2}, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("late", [0, 1, 5])
def test_the_driver_gives_the_sweep_that_the_state_alone_gives_however_late_its_workers_hear(
    tmp_path: Path, late: int
) -> None:
    expected: list[Line] = []
    drive(state(with_everything(), expected), Promising(health=0))
    Played(with_everything(), tmp_path, Promising(health=0), late).run()
    found = list(lines(tmp_path / "journal.jsonl"))
    assert essence(found) == essence(expected)
    kinds = {line["line"] for line in found}
    assert {"audit", "suspended"} <= kinds and any(line["attempt"] == 2 for line in of(found, "start"))
    journal = read(tmp_path)
    kept = {
        trial for trial in journal.trials if list((tmp_path / "trials" / trial / "checkpoints").glob("*"))
    }
    assert len(kept) == 3 and all(journal.trials[trial].state == "completed" for trial in kept)


def test_a_driver_that_dies_anywhere_is_gone_on_with(tmp_path: Path) -> None:
    expected: list[Line] = []
    drive(state(with_everything(), expected), Promising(health=0))
    reports = len(of(expected, "report"))
    for most in range(8, reports + 10, 9):
        folder = tmp_path / str(most)
        Played(with_everything(), folder, Promising(health=0), 2).run(most)
        earlier = list(lines(folder / "journal.jsonl"))[1:]
        Played(with_everything(), folder, Promising(health=0), 1, earlier).run()
        assert essence(list(lines(folder / "journal.jsonl"))) == essence(expected), f"died after {most} turns"


# --- a real sweep ---------------------------------------------------------------------------------------------------

WAKING: dict[str, Any] = {
    "name": "waking",
    "trainable": "waking:Waking",
    "search": {"beta": {"loguniform": [0.1, 10.0]}, "wakes": {"choice": [True, False]}},
    "objectives": ["val/score"],
    "scheduler": {"kind": "fifo", "factor": 2},
    "resources": {"concurrency": 1},
    "budget": {"trials": 14},
    "audit": {"share": 0.4},
    "probation": {"epochs": 3},
    "rules": {"posterior_collapse": {"grace": {"epochs": 1, "steps": 100}, "patience": 2}},
    "seed": 5,
}


@pytest.fixture(scope="module")
def swept(ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Journal:
    from buttress.execution import driver

    folder = tmp_path_factory.mktemp("waking")
    shutil.copy(Path(__file__).parent / "waking.py", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        finish = driver.start(SweepSpec.from_dict(WAKING), folder / "runs").run()
    return read(finish.folder)


def test_a_real_sweep_audits_sets_aside_and_brings_back(swept: Journal) -> None:
    made = SweepSpec.from_dict(WAKING)
    assert swept.ended is not None and swept.ended.reason == "budget spent"
    assert len(swept.trials) == 14 and all(trial.finished for trial in swept.trials.values())
    dead = [trial for trial in swept.trials.values() if trial.config["beta"] > 1]
    audited, aside = [t for t in dead if t.audit], [t for t in dead if t.probation]
    assert audited and aside and len(audited) + len(aside) == len(dead)
    assert {t.id for t in audited} == {t.id for t in dead if made.audits(int(t.id))}
    for trial in audited:
        assert trial.outcome is not None and trial.outcome.audited and trial.outcome.epochs == 6
        assert trial.state == ("completed" if trial.config["wakes"] else "collapsed") and len(trial.attempts) == 1
    found = audit_summary(swept)
    assert found is not None and found.false_kills.of == len(audited)
    assert found.false_kills.count == sum(trial.config["wakes"] for trial in audited)
    back = [trial for trial in aside if len(trial.attempts) == 2]
    assert back and any(trial.state == "completed" for trial in back)
    for trial in aside:
        assert trial.state == ("completed" if trial in back and trial.config["wakes"] else "collapsed")
        assert not trial.losses and [report.epoch for report in trial.reports if "val/score" in report.metrics] == list(
            range(1, 1 + max((report.epoch for report in trial.reports), default=0))
        )


def test_meanwhile_its_slot_ran_others_and_what_was_condemned_for_good_leaves_no_file(swept: Journal) -> None:
    raw = list(lines(swept.folder / "journal.jsonl"))
    at = next(number for number, line in enumerate(raw) if line["line"] == "suspended")
    after = next(line for line in raw[at:] if line["line"] == "start")
    assert after["slot"] == "slot-0"
    for trial in swept.trials.values():
        kept = list((swept.folder / "trials" / trial.id / "checkpoints").glob("*"))
        assert trial.state == "completed" or not kept, trial.id


@pytest.mark.long
def test_it_is_the_sweep_that_the_journal_gives_again_from_any_of_its_decisions(
    swept: Journal, ray_cluster: Any, tmp_path: Path
) -> None:
    """The driver dies just after it set a trial aside; the checkpoint is there, the verdict is not taken twice."""
    from buttress.execution import driver

    raw = list(lines(swept.folder / "journal.jsonl"))
    back = next(t.id for t in swept.trials.values() if t.probation and len(t.attempts) == 2)
    cut = next(n for n, line in enumerate(raw) if line["line"] == "suspended" and line["trial"] == back)
    folder = tmp_path / "runs" / swept.folder.name
    shutil.copy(Path(__file__).parent / "waking.py", tmp_path)
    with JournalWriter(folder / "journal.jsonl") as writer:
        for line in raw[: cut + 1]:
            writer.write(line)
    point = next(line for line in reversed(raw[:cut]) if line["trial"] == back and line.get("checkpoint"))
    checkpoint = folder / "trials" / back / point["checkpoint"]
    checkpoint.parent.mkdir(parents=True)
    weight = torch.full((1, 1), swept.trials[back].config["beta"]) * 0.95 ** point["epoch"]
    torch.save({"epoch": point["epoch"], "model": {"weight": weight}}, checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        driver.resume(folder).run()
    again = read(folder)
    assert {t.id: (t.state, t.params) for t in again.trials.values()} == {
        t.id: (t.state, t.params) for t in swept.trials.values()
    }
    assert again.trials[back].attempts[-1].checkpoint == point["checkpoint"]
