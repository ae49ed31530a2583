"""A warm start tells the sampler what earlier sweeps found out, once; the journal keeps it, the old sweep may go."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
from journal_lines import Line, event_of, events_of
from optuna.trial import TrialState
from rich.console import Console
from sweeps import RULES, Toy, drive, spec, state

from buttress import journal
from buttress.analysis.figures.search import compute_parameters
from buttress.analysis.render import render_sweep
from buttress.errors import BadInput
from buttress.execution import plan
from buttress.execution.setup import header
from buttress.journal.events import read_event
from buttress.journal.records import fold
from buttress.search.optuna_export import export_study
from buttress.search.warm_start import _OUTSIDE, collect, describe, inside, resolve_sweeps
from buttress.spec.parameters import Parameter
from buttress.spec.spec import SweepSpec
from buttress.sweep.state import SweepState
from buttress.training import registry


def record(folder: Path, sweep: str = "toy-aaaaaa", made: SweepSpec | None = None) -> SweepState:
    """A sweep that was run earlier, in `folder`."""
    made, lines = made or spec(), list[Line]()
    ran = state(made, lines)
    drive(ran)
    with journal.JournalWriter(folder / sweep / journal.FILE, fsync=False) as writer:
        for line in [header(made, Toy(), RULES, sweep), *lines]:
            writer.write(event_of(line))
    return ran


def warmed(tmp_path: Path, lines: list[Line] | None = None, **changes: Any) -> SweepState:
    made = spec(**{"warm_start": [str(tmp_path / "toy-aaaaaa")], **changes})
    sweep = state(made, lines)
    sweep.warm_start(collect(made, Toy()))
    return sweep


def test_every_end_of_an_earlier_sweep_is_told_as_it_was_then(tmp_path: Path) -> None:
    old = record(tmp_path)
    new = warmed(tmp_path)
    before = [trial for trial in old.study.trials() if trial.number in old.asks]
    after = new.study.trials()
    assert len(after) == len(before) == 16 and new.warm == set(range(16)) and not new.outcomes
    for one, other in zip(before, after, strict=True):
        assert (one.state, one.values, one.params) == (other.state, other.values, other.params)
        assert one.constraints == other.constraints and one.intermediate_values == other.intermediate_values
    assert {TrialState.COMPLETE, TrialState.PRUNED} == {trial.state for trial in after}
    assert any(trial.intermediate_values for trial in after)


def test_the_sampler_begins_where_the_earlier_sweep_ended(tmp_path: Path) -> None:
    record(tmp_path, made=spec(budget={"trials": 30}))
    cold, warm = state(spec(seed=8)), warmed(tmp_path, seed=8)
    for sweep in (cold, warm):
        drive(sweep)
    dead = [sum(sweep.counts[kind] for kind in ("collapsed", "diverged")) for sweep in (cold, warm)]
    assert dead[1] < dead[0] and len(warm.outcomes) == 16
    assert set(warm.asks) & warm.warm == set()


def test_a_sweep_of_coupled_and_equal_choices_is_resumed_told_and_read(tmp_path: Path) -> None:
    search = {
        "recipe": {
            "choice": [{"loss.beta": 0.1, "train.lr": 1}, {"loss.beta": 0.1, "train.lr": 0.5}, {"loss.beta": 50}]
        },
        "loss.warmup_epochs": {"int": [0, 2]},
    }
    made = spec(search=search, require=[], sampler={"repeats": True})
    ran = record(tmp_path, made=made)
    book = journal.read(tmp_path / "toy-aaaaaa")
    for trial in book.trials.values():
        drawn = {"train.lr": 0.1, **trial.params["recipe"]}
        assert {"loss.beta": trial.config["loss"]["beta"], "train.lr": trial.config["train"]["lr"]} == drawn
    events = list(journal.events(tmp_path / "toy-aaaaaa" / journal.FILE))[1:]
    again = state(made)
    again.replay(events)
    assert again.study.ask() == ran.study.ask()
    warm = warmed(tmp_path, search=search, require=[])
    told = [trial.params for trial in ran.study.trials() if trial.number in ran.asks]
    assert [trial.params for trial in warm.study.trials()] == told
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(render_sweep(book))
    assert "{loss.beta: 50}" in console.export_text()
    assert {len(axis.categories or ()) for axis in compute_parameters(book).axes} == {0, 3}
    name = export_study(book, f"sqlite:///{tmp_path}/study.db")
    exported = optuna.load_study(study_name=name, storage=f"sqlite:///{tmp_path}/study.db")
    assert [json.loads(trial.params["recipe"]) for trial in exported.trials] == [
        trial.params["recipe"] for trial in book.trials.values()
    ]
    described = plan.describe_parameter(made.search["recipe"])
    assert described.startswith("choice of {loss.beta: 0.1, train.lr: 1}, {loss.beta: 0.1, train.lr: 0.5}, ")


def test_a_resumed_sweep_needs_the_earlier_one_no_more(tmp_path: Path) -> None:
    record(tmp_path)
    whole: list[Line] = []
    drive(warmed(tmp_path, whole))
    shutil.rmtree(tmp_path / "toy-aaaaaa")
    expected = [(line["trial"], line["ask"], line["params"]) for line in whole if line["line"] == "trial"]
    for cut in range(1, len(whole), 40):
        lines = [dict(line) for line in whole[:cut]]
        again = state(spec(warm_start=["gone"]), lines)
        again.replay(events_of(whole[:cut]))
        drive(again)
        assert [(li["trial"], li["ask"], li["params"]) for li in lines if li["line"] == "trial"] == expected, cut
    read = fold([header(spec(), Toy(), RULES, "toy-bbbbbb"), *whole])
    assert read.warm is not None and len(read.warm.told) == 16 and len(read.trials) == 16


def test_what_the_present_space_could_not_have_drawn_is_left_out_and_counted(tmp_path: Path) -> None:
    old = record(tmp_path)
    narrow = {"loss.beta": {"loguniform": [0.01, 1.0]}, "loss.warmup_epochs": {"int": [0, 2]}}
    lines: list[Line] = []
    warmed(tmp_path, lines, search=narrow)
    wide = sum(trial.params["loss.beta"] > 1 for trial in old.study.trials() if trial.number in old.asks)
    (line,) = lines
    assert line["left_out"] == [{"sweep": "toy-aaaaaa", "reason": "loss.beta outside the space", "count": wide}]
    assert len(line["told"]) == 16 - wide
    assert f"left out: {wide} (loss.beta outside the space)" in describe(read_event(line))


def test_what_was_searched_may_be_fixed_now_and_the_other_way_round(tmp_path: Path) -> None:
    old = record(tmp_path)
    lines: list[Line] = []
    search = {"loss.beta": {"loguniform": [0.01, 100.0]}, "train.lr": {"uniform": [0.05, 0.2]}}
    warmed(tmp_path, lines, search=search, fixed={"loss.warmup_epochs": 1})
    same = [t for t in old.study.trials() if t.number in old.asks and t.params["loss.warmup_epochs"] == 1]
    (line,) = lines
    assert [entry["params"]["loss.beta"] for entry in line["told"]] == [t.params["loss.beta"] for t in same]
    assert all(entry["params"]["train.lr"] == 0.1 for entry in line["told"])  # what it was fixed at then
    assert {entry["reason"] for entry in line["left_out"]} == {"another loss.warmup_epochs"}


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"fixed": {"train.epochs": 9}}, "another train.epochs"),
        ({"objectives": [{"metric": "val/loss", "allow_weighted": True}]}, "objective val/score"),
        ({"require": ["config.loss.beta < 0.0104"]}, "refused by the present spec"),
    ],
)
def test_a_warm_start_that_teaches_nothing_is_an_error_that_says_why(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    record(tmp_path)
    with pytest.raises(BadInput, match=f"warm_start: 0 of 16 trials .* left out: 16 .{reason}"):
        warmed(tmp_path, **changes)


def test_several_sweeps_are_told_once_each(tmp_path: Path) -> None:
    record(tmp_path)
    record(tmp_path, "toy-bbbbbb", spec(seed=4, budget={"trials": 6}))
    one, two = str(tmp_path / "toy-aaaaaa"), str(tmp_path / "toy-bbbbbb")
    lines: list[Line] = []
    warmed(tmp_path, lines, warm_start=[one, two, one])
    assert [entry["sweep"] for entry in lines[0]["told"]] == ["toy-aaaaaa"] * 16 + ["toy-bbbbbb"] * 6


def test_the_circuit_breaker_and_the_guard_look_at_this_sweep_alone(tmp_path: Path) -> None:
    record(tmp_path)
    sweep = warmed(tmp_path, breaker={"first": 5, "collapsed": 1.0})
    assert sweep.next_trial() is not None and sweep.tripped is None
    assert sweep.proposals.explored.trial_with(sweep.study.trials()[0].params) is None


def test_names_are_looked_up_before_the_new_sweep_has_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "runs")
    assert resolve_sweeps(spec(warm_start=["toy"])).warm_start == (str(tmp_path / "runs" / "toy-aaaaaa"),)
    with pytest.raises(BadInput, match=r"warm_start\.1: this earlier sweep cannot be read .*got 'nowhere'"):
        resolve_sweeps(spec(warm_start=["toy", "nowhere"]))


@pytest.mark.parametrize(
    "parameter, value, expected",
    [
        ({"int": [1, 5]}, 5, 5), ({"int": [1, 5]}, 6, None), ({"int": [1, 5]}, 2.5, None),
        ({"int": [1, 5]}, True, None),
        ({"uniform": [0, 1], "step": 0.25}, 0.75, 0.75), ({"uniform": [0, 1], "step": 0.25}, 0.7, None),
        ({"loguniform": [1, 9]}, 9, 9.0), ({"loguniform": [1, 9]}, "9", None), ({"choice": [1, "a", None]}, 1.0, 1),
        ({"choice": [1, "a"]}, True, None), ({"choice": [False, None]}, None, None), ({"choice": ["a"]}, "b", None),
    ],
)  # fmt: skip
def test_a_value_is_taken_as_the_parameter_would_draw_it(parameter: Any, value: Any, expected: Any) -> None:
    found = inside(Parameter.model_validate(parameter), value)
    if expected is None and value is not None:
        assert found is _OUTSIDE
    else:
        assert found == expected and type(found) is type(expected)


def test_the_plan_says_what_earlier_sweeps_would_teach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda *_, **__: Toy())
    record(tmp_path)
    lines: list[Line] = []
    warmed(tmp_path, lines)
    told = plan.make_plan(spec(warm_start=[str(tmp_path / "toy-aaaaaa")]), timing=False).warm_start
    assert told == describe(read_event(lines[0]))
    assert told.startswith("16 of 16 trials of earlier sweeps are told to the sampler, ")
    assert plan.make_plan(spec(), timing=False).warm_start is None
