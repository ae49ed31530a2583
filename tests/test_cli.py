"""The command line: bad input gets one clear sentence and exit code 2; help is fast; JSON is the last line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from journals import mixed_sweep

from buttress.cli.main import app, main

SPEC: dict[str, Any] = {
    "trainable": "lithology",
    "data": {"kind": "synthetic", "size": "small"},
    "fixed": {"train.epochs": 6},
    "search": {"loss.beta": {"loguniform": [0.05, 30]}, "train.lr": {"loguniform": [3e-4, 3e-3]}},
    "objectives": [{"metric": "val/ari"}],
    "budget": {"trials": 4},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def call(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Runs `buttress ARGUMENTS` in this process: exit code, standard output, standard error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["buttress", *arguments])
        try:
            main()
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
    told = capfd.readouterr()
    return code, told.out, told.err


def spec_file(folder: Path, **changes: Any) -> str:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump({**SPEC, **changes}))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"budjet": {"trials": 3}}, "budjet"),
        ({"budget": {"trials": "many"}}, "budget.trials"),
        ({"trainable": "lithologie"}, "trainable"),
        ({"trainable": "no_such_module:Trainer"}, "no_such_module"),
        ({"fixed": {"train.epoks": 3}}, "train.epoks"),
        ({"search": {"loss.beta": {"loguniform": [0, 1]}}}, "loss.beta"),
        ({"objectives": [{"metric": "val/elbo_1"}]}, "val/elbo_1"),
        ({"objectives": [{"metric": "val/nothing"}]}, "val/nothing"),
        ({"require": ["config.loss.beta > 100"]}, "config.loss.beta > 100"),
        ({"require": ["config.loss.beta >"]}, "require"),
        ({"resources": {"workers": 4096}}, "resources.workers"),
        ({"rules": {"posterior_collapse": {"patiense": 3}}}, "patiense"),
        ({"data": {"kind": "files", "path": "nowhere.csv"}}, "nowhere.csv"),
    ],
)
def test_a_bad_spec_gets_one_sentence_before_anything_starts(
    here: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], sentence: str
) -> None:
    code, out, err = call(capfd, "plan", spec_file(here, **changes))
    assert code == 2, (out, err)
    assert sentence in err and err.startswith("buttress: ") and len(err.strip().splitlines()) == 1
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "arguments", "place"),
    [
        ({"trainable": "lithologie"}, (), "spec.yaml: trainable: "),
        ({"resources": {"workers": 4096}}, (), "spec.yaml: resources.workers: "),
        ({"rules": {"posterior_collapse": {"patiense": 3}}}, (), "spec.yaml: rules.posterior_collapse.patiense: "),
        ({}, ("--set", "rules.posterior_collapse.patiense=3"), "--set: rules.posterior_collapse.patiense: "),
        ({}, ("--set", "resources.workers=4096"), "--set: resources.workers: "),
    ],
)
def test_what_only_the_sweep_can_know_is_wrong_is_said_to_stand_where_it_was_given(
    here: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], arguments: tuple[str, ...], place: str
) -> None:
    code, _, err = call(capfd, "plan", spec_file(here, **changes), "--no-timing", *arguments)
    assert code == 2 and place in err


@pytest.mark.parametrize(
    "changes",
    [
        {"trainable": "no_such_module:Trainer"},
        {"rules": {"posterior_collapse": {"patiense": 3}}},
        {"resources": {"workers": 4096}},
        {"resources": {"concurrency": 4096}},
        {"warm_start": ["nothing-to-tell"]},
    ],
)
def test_a_refused_sweep_leaves_no_folder(
    here: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    mixed_sweep().write(here / "earlier")
    (here / "nothing-to-tell").symlink_to(next((here / "earlier").iterdir()))
    code, out, err = call(capfd, "run", spec_file(here, **changes), "--quiet")
    assert code == 2 and len(err.strip().splitlines()) == 1, (out, err)
    assert not (here / "runs").exists()


@pytest.mark.ray
def test_a_sweep_that_does_not_fit_its_cluster_leaves_no_folder(
    here: Path, capfd: pytest.CaptureFixture[str], ray_cluster: Any
) -> None:
    code, out, err = call(capfd, "run", spec_file(here, resources={"workers": 4096}), "--quiet")
    assert code == 2 and "does not fit the cluster" in err, (out, err)
    assert not list((here / "runs").iterdir())


def table_with(here: Path, damage: str) -> str:
    """A lithology table with something wrong, as a spec file."""
    columns = ["Borehole_ID", "Depth_Bin", "Bulk density (GRA)", "Principal", "Magnetic susceptibility (instr. units)",
               "NGR total counts (cps)", "R", "G", "B"]  # fmt: skip
    rows = [["346-U1422-A", f"{0.2 * n:.1f}", "1.7", "clay", "11", "25", "57", "55", "48"] for n in range(9)]
    if damage == "missing column":
        columns[2] = "Density"
    elif damage == "cell":
        rows[5][6] = "red"
    text = "" if damage == "empty" else "\n".join(",".join(row) for row in [columns, *rows]) + "\n"
    (here / "table.csv").write_text(text)
    return spec_file(here, data={"kind": "files", "path": "table.csv"})


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [("missing column", "Bulk density (GRA)"), ("cell", "'red'"), ("empty", "empty"), ("one borehole", "borehole")],
)
def test_bad_data_gets_one_sentence(
    here: Path, capfd: pytest.CaptureFixture[str], damage: str, sentence: str
) -> None:
    code, out, err = call(capfd, "plan", table_with(here, damage))
    assert code == 2, (out, err)
    assert sentence in err and "table.csv" in err and len(err.strip().splitlines()) == 1


def test_bad_data_ends_a_sweep_that_has_begun_with_the_same_sentence(
    here: Path, capfd: pytest.CaptureFixture[str], ray_cluster: Any
) -> None:
    code, _, err = call(capfd, "run", table_with(here, "cell"), "--quiet")
    assert code == 2 and "'red'" in err.splitlines()[-1] and "table.csv" in err.splitlines()[-1]


def test_an_unwritable_output_is_refused(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "file").write_text("")
    code, _, err = call(capfd, "run", spec_file(here), "--out", str(here / "file" / "runs"))
    assert code == 2 and "--out" in err


def test_no_journal_and_a_newer_one_are_told(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(capfd, "table", "nothing")[0] == 2
    sweep = mixed_sweep("newer-ab12cd").write(here / "runs")
    text = sweep.read_text().replace('"schema":1', '"schema":99', 1)
    sweep.write_text(text)
    for verb in (["table"], ["status"], ["why"], ["export"], ["resume"]):
        code, _, err = call(capfd, *verb, "newer", *(["1"] if verb == ["why"] else []))
        assert code == 2 and "newer" in err and "99" in err, (verb, err)


def test_table_json_is_the_last_line_and_has_no_nan(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mixed_sweep("mixed-ab12cd").write(here / "runs")
    code, out, _ = call(capfd, "table", "mixed", "--json")
    rows = json.loads(out.splitlines()[-1])
    assert code == 0 and {"trial", "outcome", "kind", "margin", "epochs_saved", "seed"} <= set(rows[0])


def test_an_internal_error_is_short_and_its_traceback_in_a_file(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug at s3://me:hidden@bucket")

    monkeypatch.setattr("buttress.journal.find", broken)
    monkeypatch.setattr("tempfile.tempdir", str(here))
    (here / f"buttress-error-{os.getpid()}.txt").symlink_to(here / "precious")  # as somebody else could lay it there
    code, _, err = call(capfd, "table", "anything")
    assert code == 3 and "RuntimeError: a bug at s3://***@bucket" in err and len(err.strip().splitlines()) == 1
    path = Path(err.split("traceback in ")[1].strip(" )\n"))
    text = path.read_text()
    assert "raise RuntimeError" in text and "hidden" not in text and "hidden" not in err
    assert path.stat().st_mode & 0o777 == 0o600 and not (here / "precious").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(here / "nowhere"))
        code, _, err = call(capfd, "table", "anything")
    assert code == 3 and "raise RuntimeError" in err and "(traceback above)" in err and "hidden" not in err


def test_help_teaches_every_verb_and_is_fast() -> None:
    command = [sys.executable, "-m", "buttress", "--help"]
    times = []
    for _ in range(3):
        began = time.perf_counter()
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        times.append(time.perf_counter() - began)
    for verb in ("plan", "run", "resume", "status", "why", "table", "export", "train", "data", "init", "cluster"):
        assert verb in out
    assert min(times) < 0.7 or os.getloadavg()[0] > 2 * (os.cpu_count() or 1), times


def test_every_verb_has_help(capfd: pytest.CaptureFixture[str]) -> None:
    for command in app.registered_commands:
        assert command.callback is not None and command.callback.__doc__


