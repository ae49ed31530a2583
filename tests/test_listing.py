"""`ls` lists what is there, damaged sweeps included; `diff` says what differs and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from journals import SyntheticSweep, mixed_sweep
from typer.testing import CliRunner

from buttress.analysis.listing import compare_sweeps, compare_trials, list_sweeps
from buttress.cli.main import app
from buttress.errors import BadInput


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    mixed_sweep().write(tmp_path / "runs")
    later = SyntheticSweep("later-abc123")
    later.completed("0000", ari=[0.7])
    later.end("interrupted")
    for line in later.lines:
        line["time"] += 1000
    later.write(tmp_path / "runs")
    (tmp_path / "runs" / "other").mkdir()
    return tmp_path / "runs"


def test_sweeps_are_listed_newest_first_with_state_and_best(runs: Path) -> None:
    later, mixed = list_sweeps()
    assert (later.name, later.state, later.trials, later.best) == (
        "later-abc123", "interrupted", {"completed": 1}, 0.7,
    )  # fmt: skip
    assert (mixed.name, mixed.state, mixed.best, mixed.objective) == ("toy-ab12cd", "killed", 0.52, "ari")
    assert list_sweeps(f"file://{runs}/none") == []


def test_a_damaged_sweep_is_listed_as_such(runs: Path) -> None:
    (runs / "other" / "journal.jsonl").write_text("no journal\n")
    assert [each.name for each in list_sweeps()] == ["later-abc123", "toy-ab12cd", "other"]
    assert list_sweeps()[-1].state.startswith("damaged: ")
    done = CliRunner().invoke(app, ["ls"])
    assert done.exit_code == 0 and "damaged: " in done.stdout and "interrupted" in done.stdout


def test_a_folder_that_is_not_there_is_bad_input() -> None:
    with pytest.raises(BadInput, match="there is no such folder"):
        list_sweeps("nowhere")


def test_two_trials_differ_in_what_differs() -> None:
    journal = mixed_sweep().journal()
    found = {each.where: (each.one, each.other) for each in compare_trials((journal, "0"), (journal, "0001"))}
    assert found["config.loss.beta"] == (0.001, 0.02) and found["metric.ari"] == (0.41, 0.52)
    assert "config.train.epochs" not in found and "outcome" not in found
    assert compare_trials((journal, "0"), (journal, "0")) == []


def test_true_and_1_are_a_difference() -> None:
    book = SyntheticSweep(search=("a",))
    book.completed("0000", {"a": True}, ari=[0.1])
    book.completed("0001", {"a": 1}, ari=[0.1])
    journal = book.journal()
    assert ("config.a", True, 1) in [tuple(each) for each in compare_trials((journal, "0"), (journal, "1"))]


def test_two_sweeps_differ_in_spec_counts_and_best(runs: Path) -> None:
    one, other = mixed_sweep(), mixed_sweep()
    other.lines[0]["spec"]["search"]["loss.beta"] = {"uniform": [0, 2]}
    other.completed("0007", {"loss.beta": 0.3, "train.lr": 0.1}, ari=[0.9])
    found = {each.where: (each.one, each.other) for each in compare_sweeps(one.journal(), other.journal())}
    assert found["spec.search.loss.beta.uniform"] == ([0, 1], [0, 2])
    assert found["trials.completed"] == (2, 3) and found["best.ari"] == (0.52, 0.9)


def test_diff_takes_sweeps_and_trials(runs: Path) -> None:
    done = CliRunner().invoke(app, ["diff", "toy:1", ":2", "--json"])
    assert done.exit_code == 0
    found = {each["where"]: each for each in json.loads(done.stdout.splitlines()[-1])}
    assert (found["outcome"]["one"], found["outcome"]["other"]) == ("completed", "collapsed")
    assert "toy:1" in CliRunner().invoke(app, ["diff", "toy:1", "toy:2"]).stdout
    assert CliRunner().invoke(app, ["diff", "toy", "toy"]).stdout.strip() == "no difference"
    assert isinstance(CliRunner().invoke(app, ["diff", "toy", "later:0"]).exception, BadInput)
