"""A plain local sweep: no secret is in what it writes, no other machine reaches it, no other user reads its token."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from buttress.journal import lines

pytestmark = [pytest.mark.ray, pytest.mark.long]

HERE = Path(__file__).parent
SPEC = {
    "name": "canary",
    "trainable": "resumable:Resumable",
    "search": {"beta": {"loguniform": [0.05, 5.0]}},
    "fixed": {"epochs": 2},
    "objectives": ["val/score"],
    "resources": {"concurrency": 1},
    "budget": {"trials": 2},
}
#: Environment variables that hold secrets, each with a value that is found nowhere else.
CANARIES = {
    name: f"canary-{number}-5e1f0c0ffee"
    for number, name in enumerate((
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "WANDB_API_KEY",
        "GOOGLE_API_KEY", "HF_TOKEN", "AZURE_STORAGE_KEY", "OPENAI_API_KEY",
    ))
}  # fmt: skip


class LocalSweep(NamedTuple):
    """What a sweep on this machine did."""

    folder: Path  # holds everything that it wrote: sweep, home, cache, Ray's session
    listeners: set[str]  # "ADDRESS NAME" of each of its sockets that listened
    output: str


@pytest.fixture(scope="module")
def local() -> Iterator[LocalSweep]:
    """A sweep of two short trials, as a user starts it who has no token yet and may read his own files only."""
    folder = Path(tempfile.mkdtemp(prefix="bt-"))  # short: sockets of at most 107 characters lie below it
    try:
        shutil.copy(HERE / "resumable.py", folder)
        (folder / "canary.yaml").write_text(json.dumps(SPEC))
        for name in ("home", "tmp"):
            (folder / name).mkdir()
        places = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "RAY_TMPDIR": str(folder)}
        path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, **places, **CANARIES, "PYTHONPATH": path, "BUTTRESS_CACHE": str(folder / "cache")}
        command = [sys.executable, "-m", "buttress", "run", "canary.yaml"]
        listeners: set[str] = set()
        with (folder / "output.txt").open("w") as output:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, umask=0o022
            )
            while process.poll() is None:
                listeners |= listening(process.pid, str(folder))
                time.sleep(0.5)
        told = (folder / "output.txt").read_text()
        assert process.returncode == 0, told
        yield LocalSweep(folder, listeners, told)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def listening(driver: int, session: str) -> set[str]:
    """Where the driver, its children and the processes that name its session listen."""
    found = set()
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            ours = process.pid == driver or driver in {parent.pid for parent in process.parents()}
            if ours or session in " ".join(words):
                for socket in process.net_connections("inet"):
                    if socket.status == psutil.CONN_LISTEN:
                        found.add(f"{socket.laddr.ip} {process.name()}")
        except psutil.Error:
            continue
    return found


def test_no_secret_of_the_environment_is_in_anything_that_a_sweep_writes(local: LocalSweep) -> None:
    token = (local.folder / "home" / ".ray" / "auth_token").read_text()
    secrets = {**CANARIES, "Ray's token": token}
    found, files = [], 0
    for path in local.folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.name != "auth_token":
            files += 1
            content = path.read_bytes()
            found += [f"{name} in {path}" for name, secret in secrets.items() if secret.encode() in content]
    written = {path.relative_to(local.folder).parts[0] for path in local.folder.rglob("*") if path.is_file()}
    assert files > 30 and {"runs", "output.txt"} < written and list(local.folder.rglob("gcs_server.out"))
    assert found == []


def test_a_local_sweep_listens_on_loopback_only(local: LocalSweep) -> None:
    assert len(local.listeners) > 3
    assert {"gcs_server", "raylet"} <= {each.split()[1] for each in local.listeners}
    assert [each for each in local.listeners if not each.startswith(("127.", "::1 ", "::ffff:127."))] == []


def test_the_token_that_a_local_sweep_makes_is_its_owners(local: LocalSweep) -> None:
    token = local.folder / "home" / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700


def test_it_ran_as_any_other(local: LocalSweep) -> None:
    (journal,) = local.folder.glob("runs/*/journal.jsonl")
    assert [line["outcome"] for line in lines(journal) if line["line"] == "outcome"] == ["completed"] * 2
    sweep = journal.parent.relative_to(local.folder)
    assert f"3 W&B runs offline: wandb sync {sweep}/wandb/offline-run-*" in local.output
