"""`--fail-skipped`, with which `.ci/run` finds tests that are skipped although they could run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SKIPPED = """
import pytest

def test_runs(): pass
def test_without_a_tool(): pytest.skip("not installed: sshd")
@pytest.mark.skipif(True, reason="no CUDA device")
def test_on_a_gpu(): pass
@pytest.mark.xfail
def test_of_a_known_fault(): assert False
"""


def run_pytest(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "fail_skipped", "-p", "no:cacheprovider", *options, str(folder)]
    tests = {"PYTHONPATH": str(Path(__file__).parent), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=folder, env=tests, capture_output=True, text=True, check=False)


def test_a_skip_that_this_machine_does_not_need_fails(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(SKIPPED)
    strict = run_pytest(tmp_path, "--fail-skipped")
    assert strict.returncode == 1 and "1 failed, 1 passed, 1 skipped, 1 xfailed" in strict.stdout, strict.stdout
    assert "could run here, but: Skipped: not installed: sshd" in strict.stdout
    assert run_pytest(tmp_path).returncode == 0


def test_a_module_that_is_skipped_as_a_whole_fails(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text("import pytest\npytest.importorskip('no_such_library')\n")
    strict = run_pytest(tmp_path, "--fail-skipped")
    assert strict.returncode != 0 and "no_such_library" in strict.stdout, strict.stdout
    assert run_pytest(tmp_path).returncode in (0, 5)
