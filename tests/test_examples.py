"""The examples run as they stand, from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from journals import mixed_sweep

ROOT = Path(__file__).parents[1]


def run(example: str, folder: Path, *arguments: str) -> str:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / example, *arguments], cwd=folder, capture_output=True, text=True,
        timeout=240, env={**os.environ, "PYTHONPATH": path}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_read_a_sweep(tmp_path: Path) -> None:
    mixed_sweep().write(tmp_path / "runs")
    out = run("read_a_sweep.py", tmp_path, "toy")
    assert "best: trial 0001, epoch 3" in out and "1 collapsed" in out and "posterior_collapse" in out


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize(("example", "last"), [("own_vae.py", "best: beta"), ("own_gan.py", "of 8 modes")])
def test_a_trainer_of_ones_own(example: str, last: str, tmp_path: Path) -> None:
    out = run(example, tmp_path)
    assert last in out.splitlines()[-1] and out.count("completed") >= 2, out
    assert "collapsed" in out
    assert "collapsed" in run("read_a_sweep.py", tmp_path, example.removesuffix(".py"))


def test_every_example_is_run() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {"own_vae.py", "own_gan.py", "read_a_sweep.py"}
