"""A sweep whose home is remote storage: everything is there, nothing stays here, and any machine can go on with it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from object_store import ObjectStore

import buttress
from buttress.analysis.selection import best_trial
from buttress.errors import BadInput
from buttress.execution import launch
from buttress.journal import Journal, find, read
from buttress.journal.mirror import leased, segments
from buttress.journal.remote import Upload
from buttress.spec.spec import SweepSpec
from buttress.storage import Storage
from buttress.sweep.result import SweepResult

HERE = Path(__file__).parent
SPEC: dict[str, Any] = {
    "name": "resumable",
    "trainable": "resumable:Resumable",
    "search": {"beta": {"loguniform": [0.05, 50.0]}},
    "objectives": ["val/score"],
    "scheduler": {"kind": "asha", "first": 2, "factor": 2},
    "resources": {"concurrency": 1},
    "budget": {"trials": 5},
    "rules": {"posterior_collapse": {"grace": {"epochs": 1, "steps": 100}, "patience": 2}},
    "wandb": {"mode": "disabled"},
    "seed": 2,
}


def prepare(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    shutil.copy(HERE / "resumable.py", folder)
    (folder / "resumable.yaml").write_text(json.dumps({**SPEC, **changes}))
    return folder


def essence(journal: Journal) -> dict[str, Any]:
    return {
        trial.id: (trial.params, trial.state, trial.outcome and trial.outcome.kind, [r.metrics for r in trial.reports])
        for trial in journal.trials.values()
    }


HOUR = 3600.0


@pytest.mark.parametrize("behind", [-HOUR, 0.0, HOUR], ids=["holder's clock ahead", "clocks agree", "holder's behind"])
@pytest.mark.parametrize("alive", [True, False])
def test_a_lease_is_as_old_as_the_storage_says(tmp_path: Path, alive: bool, behind: float) -> None:
    """Whatever time it is where its holder runs, or here."""
    store = Storage(f"file://{tmp_path}/sweep")
    held = {"host": "elsewhere", "pid": 1, "time": time.time() - behind, "token": "another"}
    store.write("lease.json", json.dumps(held).encode())
    if not alive:
        os.utime(tmp_path / "sweep" / "lease.json", (time.time() - 61, time.time() - 61))
    journal = tmp_path / "journal.jsonl"
    journal.touch()
    if alive:
        with pytest.raises(BadInput, match="being run by another driver"):
            Upload(store, journal, note=print, fail=pytest.fail)
    else:
        Upload(store, journal, note=print, fail=pytest.fail).close()
    assert store.names() == (["lease.json"] if alive else [])


@pytest.fixture(scope="module")
def swept(ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SweepResult, Storage, Path]]:
    """A sweep on a folder that is only known by its URL."""
    folder = prepare(tmp_path_factory.mktemp("here"))
    url = f"file://{tmp_path_factory.mktemp('there')}/sweeps"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BUTTRESS_CACHE", str(folder / "cache"))
        finish = launch.start(SweepSpec.from_dict(SPEC), url).run()
        yield finish, Storage(finish.where), folder


def test_a_sweep_is_on_its_storage_and_only_the_best_checkpoints_with_it(
    swept: tuple[SweepResult, Storage, Path],
) -> None:
    finish, store, folder = swept
    assert finish.where.startswith("file://") and store.name == finish.sweep
    journal = read(find(finish.where).path)
    assert {"completed", "collapsed", "pruned"} <= set(journal.counts())
    assert segments(store) == (finish.folder / "journal.jsonl").read_bytes()
    assert journal.ended is not None and leased(store) is None
    for trial in journal.trials.values():
        kept = [trial.outcome.best.checkpoint] if trial.state == "completed" and trial.outcome else []
        deadline = time.monotonic() + 10  # they are deleted behind the sweep's back
        while store.names(f"trials/{trial.id}/checkpoints") != [Path(str(name)).name for name in kept]:
            assert time.monotonic() < deadline, (trial.id, store.names(f"trials/{trial.id}/checkpoints"), kept)
            time.sleep(0.1)
    assert not list(finish.folder.glob("trials/*/checkpoints/*.pt"))
    assert not (folder / "runs").exists()


def test_it_is_exported_with_its_weights_from_anywhere(
    swept: tuple[SweepResult, Storage, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, _, folder = swept
    monkeypatch.chdir(prepare(tmp_path / "elsewhere"))
    monkeypatch.setenv("BUTTRESS_CACHE", str(tmp_path / "other-cache"))
    monkeypatch.syspath_prepend(str(folder))
    written = buttress.load(finish.where).export(tmp_path / "best.yaml", weights=True)
    assert torch.load(written[1], weights_only=True)["weight"].shape == (1, 1)
    assert best_trial(read(find(finish.where).path)) is not None


# ---- S3, drivers of their own


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectStore]:
    made = ObjectStore()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in made.environment.items():
                patch.setenv(name, value)
            yield made
    finally:
        made.close()


def command(folder: Path, s3: ObjectStore, *verb: str) -> subprocess.Popen[str]:
    """A `buttress` of its own: its own cache, so its own spool, and a Ray of its own."""
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **s3.environment, "BUTTRESS_CACHE": str(folder / "cache"), "PYTHONPATH": path}
    arguments = [sys.executable, "-m", "buttress", *verb]
    return subprocess.Popen(
        arguments, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err[-3000:]
    return out, err


def sweep_in(bucket: Storage, process: subprocess.Popen[str], reports: int) -> Storage:
    """Waits until that many reports of the one sweep in the bucket's folder are on the storage."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1][-3000:]
        names = bucket.folders()
        if names and segments(bucket.folder(names[0])).count(b'"line":"report"') >= reports:
            return bucket.folder(names[0])
        time.sleep(0.2)
    raise AssertionError("the reports did not come")


@pytest.mark.long
@pytest.mark.ray
def test_a_killed_driver_is_followed_by_one_that_knows_the_url_only(s3: ObjectStore, tmp_path: Path) -> None:
    whole = prepare(tmp_path / "whole")
    ended(command(whole, s3, "run", "resumable.yaml", "--out", "s3://sweeps/whole", "-q"))
    undisturbed = read(find(f"s3://sweeps/whole/{Storage('s3://sweeps/whole').folders()[0]}").path)

    first = command(prepare(tmp_path / "one"), s3, "run", "resumable.yaml", "--out", "s3://sweeps/killed", "-q")
    store = sweep_in(Storage("s3://sweeps/killed"), first, 9)
    looked, _ = ended(command(tmp_path / "one", s3, "table", store.url, "--json"))
    assert any(row["outcome"] == "running" for row in json.loads(looked.splitlines()[-1]))
    first.send_signal(signal.SIGKILL)
    first.communicate()
    shutil.rmtree(tmp_path / "one")  # the machine is gone

    other = prepare(tmp_path / "two")
    _, refusal = ended(command(other, s3, "resume", store.url, "-q"), code=2)
    assert "run by another driver" in refusal and "--take-over" in refusal
    ended(command(other, s3, "resume", store.url, "--take-over", "-q"))
    journal = read(find(store.url).path)
    assert essence(journal) == essence(undisturbed) and leased(store) is None
    ended(command(other, s3, "export", store.url, "-o", "best.yaml", "--weights"))
    assert (other / "best.pt").exists()


@pytest.mark.long
@pytest.mark.ray
def test_half_a_minute_without_storage_loses_nothing_and_is_told_once(s3: ObjectStore, tmp_path: Path) -> None:
    folder = prepare(tmp_path / "here", budget={"trials": 8})
    running = command(folder, s3, "run", "resumable.yaml", "--out", "s3://sweeps/outage")
    store = sweep_in(Storage("s3://sweeps/outage"), running, 9)
    s3.proxy.close()
    threading.Timer(30.0, s3.proxy.open).start()
    out, err = ended(running)
    told = out + err
    assert told.count("is away") == 1 and told.count("the storage is back after") == 1, told[-3000:]
    journal = read(find(store.url).path)
    assert len(journal.trials) == 8 and not journal.counts().get("failed")
    for trial in journal.trials.values():
        assert trial.outcome is not None and len(trial.attempts) == 1
        assert [report.seq for report in trial.reports] == list(range(len(trial.reports)))
