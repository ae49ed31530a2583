"""A sweep as an Optuna study: read back by Optuna itself, and by optuna-dashboard."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import optuna
import pytest
from journals import SyntheticSweep, mixed_sweep
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from typer.testing import CliRunner

from buttress.cli.main import app
from buttress.errors import BadInput
from buttress.search.optuna_export import export_study


def exported(book: SyntheticSweep, folder: Path) -> optuna.Study:
    url = f"sqlite:///{folder}/study.db"
    return optuna.load_study(study_name=export_study(book.journal(), url), storage=url)


def test_a_study_has_every_trial_with_values_curves_and_what_became_of_it(tmp_path: Path) -> None:
    study = exported(mixed_sweep(), tmp_path)
    trials = {trial.user_attrs["trial"]: trial for trial in study.trials}
    assert [trial.state for trial in study.trials] == [
        TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED, TrialState.PRUNED,
        TrialState.PRUNED, TrialState.RUNNING,
    ]  # fmt: skip
    assert study.best_trial.user_attrs["trial"] == "0001" and study.best_value == 0.52
    assert study.metric_names == ["ari"] and study.direction.name == "MAXIMIZE"
    assert trials["0000"].intermediate_values[3] == 0.41 and len(trials["0000"].intermediate_values) == 10
    assert trials["0001"].params == {"loss.beta": 0.02, "train.lr": 0.001}
    dead = trials["0002"]
    assert dead.constraints["collapse"] == 1.9 and trials["0001"].constraints["collapse"] < 0
    assert (dead.user_attrs["outcome"], dead.user_attrs["kind"], dead.user_attrs["margin"]) == (
        "collapsed", "posterior_collapse", 1.9,
    )  # fmt: skip
    assert trials["0003"].user_attrs["outcome"] == "pruned" and trials["0005"].user_attrs["outcome"] == "failed"
    for trial in study.trials[:6]:
        assert trial.datetime_start is not None and trial.datetime_complete is not None
        assert trial.datetime_complete > trial.datetime_start


def test_several_objectives_and_values_outside_the_range(tmp_path: Path) -> None:
    book = SyntheticSweep(objectives={"ari": "max", "loss": "min"})
    book.completed("0000", {"loss.beta": 7.0, "train.lr": 0.5}, ari=[0.1], loss=[1.0])  # the range is 0 to 1
    book.completed("0001", {"loss.beta": 0.5}, ari=[0.5], loss=[2.0])
    study = exported(book, tmp_path)
    assert [trial.values for trial in study.best_trials] == [[0.1, 1.0], [0.5, 2.0]]
    assert study.trials[0].params["loss.beta"] == 7.0 and "train.lr" not in study.trials[1].params


def test_choices_that_compare_equal_are_three_to_optuna(tmp_path: Path) -> None:
    book = SyntheticSweep(search=["kind"])
    book.lines[0]["spec"]["search"] = {"kind": {"choice": [True, 1, 1.0]}}
    for number, kind in enumerate((1.0, True, 1)):
        book.completed(f"{number:04d}", {"kind": kind}, ari=[0.1 * number])
    study = exported(book, tmp_path)
    assert [trial.params["kind"] for trial in study.trials] == ["1.0", "true", "1"]
    (space,) = {trial.distributions["kind"] for trial in study.trials}
    assert isinstance(space, CategoricalDistribution) and space.choices == ("true", "1", "1.0")


def test_the_verb_writes_a_journal_file_and_refuses_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mixed_sweep().write(tmp_path / "runs")
    done = CliRunner().invoke(app, ["export", "toy", "--optuna", "study.log"])
    assert done.exit_code == 0 and "look at it: optuna-dashboard study.log" in done.stdout
    journal = mixed_sweep().journal()
    with pytest.raises(BadInput, match="holds a study of this name already"):
        export_study(journal, "study.log")
    with pytest.raises(BadInput, match="is not a storage of Optuna"):
        export_study(journal, "study.json")
    with pytest.raises(BadInput, match="cannot be opened"):
        export_study(journal, "sqlite:////nowhere/at/all.db")


def test_optuna_dashboard_opens_it(tmp_path: Path) -> None:
    exported(mixed_sweep(), tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command: list[Any] = [Path(sys.executable).with_name("optuna-dashboard"), f"sqlite:///{tmp_path}/study.db"]
    command += ["--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            (study,) = answer(f"http://127.0.0.1:{port}/api/studies")["study_summaries"]
            assert study["study_name"] == "toy-ab12cd"
            detail = answer(f"http://127.0.0.1:{port}/api/studies/{study['study_id']}?after=0")
            assert len(detail["trials"]) == 7 and detail["trials"][1]["values"] == [0.52]
        finally:
            server.kill()


def answer(url: str) -> Any:
    for _ in range(150):
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return json.load(response)
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} does not answer")
