"""On Ray, from the command line: a sweep that collapses is stopped by its breaker, goes on, and warms another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from buttress.journal import find, lines, read

pytestmark = pytest.mark.ray

HERE = Path(__file__).parent
#: From a beta of 20 on every trial of this family collapses.
SPEC: dict[str, Any] = {
    "name": "deadly",
    "trainable": "resumable:Resumable",
    "search": {"beta": {"loguniform": [20.0, 50.0]}},
    "objectives": ["val/score"],
    "scheduler": {"kind": "asha", "first": 2, "factor": 2},
    "resources": {"concurrency": 2},
    "budget": {"trials": 30},
    "rules": {"posterior_collapse": {"grace": {"epochs": 1, "steps": 100}, "patience": 2}},
    "breaker": {"first": 5, "collapsed": 0.8},
    "seed": 2,
}


def buttress(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "BUTTRESS_CACHE": str(folder / "cache"), "PYTHONPATH": str(HERE), "COLUMNS": "160"}
    command = [sys.executable, "-m", "buttress", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.long
def test_the_breaker_stops_a_sweep_which_goes_on_when_resumed_and_warms_another(tmp_path: Path) -> None:
    (tmp_path / "deadly.yaml").write_text(json.dumps(SPEC))
    stopped = buttress(tmp_path, "run", "deadly.yaml")
    assert stopped.returncode == 4, stopped.stderr[-2000:]
    assert "buttress: the circuit breaker stopped the sweep: 4 of its first 5 trials" in stopped.stderr
    assert "go on as it is with: buttress resume runs/deadly-" in stopped.stderr
    path = find("deadly", tmp_path / "runs").path
    journal = read(path)
    assert journal.ended is not None and journal.ended.reason == "circuit breaker"
    assert 4 <= journal.counts()["collapsed"] < 10 and len(journal.trials) < 12
    assert "circuit breaker stopped" in buttress(tmp_path, "table", "deadly").stdout

    resumed = buttress(tmp_path, "resume", "deadly", "--trials", "12", "--quiet")
    assert resumed.returncode == 1, resumed.stderr[-2000:]  # no healthy trial, but it has run them all
    assert read(path).counts() == {"collapsed": 12}

    wide = {**SPEC, "name": "wide", "search": {"beta": {"loguniform": [0.05, 50.0]}}, "budget": {"trials": 3}}
    (tmp_path / "wide.yaml").write_text(json.dumps(wide))
    warmed = buttress(tmp_path, "run", "wide.yaml", "--warm-start", "deadly")
    assert warmed.returncode == 0, warmed.stderr[-2000:]
    assert "12 of 12 trials of earlier sweeps are told to the sampler, 12 of them collapsed" in warmed.stderr
    written = list(lines(find("wide", tmp_path / "runs").path))
    assert [line["line"] for line in written[:3]] == ["header", "warm", "trial"] and written[2]["ask"] == 12
    assert all(line["params"]["beta"] < 20 for line in written if line["line"] == "trial")

    missing = buttress(tmp_path, "run", "wide.yaml", "--warm-start", "nowhere")
    assert missing.returncode == 2 and "warm_start.0: this earlier sweep cannot be read" in missing.stderr
    assert len(list((tmp_path / "runs").glob("wide-*"))) == 1
