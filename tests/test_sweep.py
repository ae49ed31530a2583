"""Whole sweeps on real Ray: a trainer from outside the repository, slots that stay warm, nothing left behind."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import buttress
from buttress.analysis.selection import best_trial
from buttress.execution import launch
from buttress.journal import read
from buttress.journal.records import Journal
from buttress.spec.spec import SweepSpec


def readme_blocks(root: Path) -> dict[str, str]:
    """Code blocks of the README that name their file in the first line: `# my_vae.py`."""
    blocks = re.findall(r"```(?:python|yaml)\n(# (\S+)\n.*?)```", (root / "README.md").read_text(), re.S)
    return {name: text for text, name in blocks}


#: Credentials in the driver's environment, found nowhere else; `test_secrets.py` gives them to a process of its own.
CANARIES = {name: f"canary-{name.lower()}-5e1f0c0ffee" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}


@pytest.fixture(scope="module")
def own(root: Path, ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Journal:
    """The sweep of the README's own trainer, run in a folder outside the repository."""
    folder = tmp_path_factory.mktemp("own")
    for name, text in readme_blocks(root).items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in CANARIES.items():
            patch.setenv(name, value)
        finish = launch.start(SweepSpec.load(folder / "my_vae.yaml"), folder / "runs").run()
    return read(finish.folder)


def test_the_readmes_trainer_is_short_and_complete(root: Path) -> None:
    blocks = readme_blocks(root)
    assert set(blocks) >= {"my_vae.py", "my_vae.yaml"}
    body = blocks["my_vae.py"].split("class MyVAE")[1]
    assert len([line for line in body.splitlines() if line.strip()]) <= 36


def test_a_trainer_from_outside_the_repository_runs_in_a_sweep(own: Journal) -> None:
    assert own.ended is not None and own.ended.reason == "budget spent"
    assert len(own.trials) == own.header.spec["budget"]["trials"]
    assert all(trial.finished for trial in own.trials.values())


def test_it_is_exported_and_trained_to_a_model_under_its_own_rules(
    own: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own.folder.parents[1])
    assert buttress.plan("my_vae.yaml").warnings == ()
    best = buttress.load(own.folder).best
    assert best is not None
    _, weights = buttress.load(own.folder).export(tmp_path / "best.yaml", weights=True)
    done = buttress.train(tmp_path / "best.yaml", tmp_path / "trained")
    assert done["metrics"] == best.metrics and done["files"] == ["model.pt", "history.json"]
    model = torch.load(tmp_path / "trained" / "model.pt")
    assert all(torch.equal(model[name], value) for name, value in torch.load(weights).items())


def test_its_collapsed_trials_are_killed_early_and_never_best(own: Journal) -> None:
    collapsed = [trial for trial in own.trials.values() if trial.state == "collapsed"]
    assert len(collapsed) >= 2
    for trial in collapsed:
        outcome = trial.outcome
        assert outcome is not None and outcome.kind and outcome.margin is not None and outcome.margin > 0
        assert outcome.evidence and outcome.epochs < (outcome.epochs_budget or 0)
    assert len({trial.outcome.margin for trial in collapsed if trial.outcome}) == len(collapsed)
    winner = best_trial(own)
    assert winner is not None and winner.state == "completed"


def test_slots_stay_warm_from_trial_to_trial(own: Journal) -> None:
    workers = {(trial.attempts[0].slot, trial.attempts[0].pid) for trial in own.trials.values()}
    assert len(workers) == len({slot for slot, _ in workers}) <= 2  # one process per slot for all trials


def test_reports_of_a_trial_arrive_in_order(own: Journal) -> None:
    for trial in own.trials.values():
        steps = [report.step for report in trial.reports]
        assert steps == sorted(set(steps)) and [report.seq for report in trial.reports] == list(range(len(steps)))


def test_no_credentials_are_in_what_the_sweep_and_ray_have_written(own: Journal, ray_cluster: Any) -> None:
    session = Path(ray_cluster._private.worker._global_node.get_session_dir_path())
    files = [path for top in (own.folder.parents[1], session) for path in top.rglob("*") if path.is_file()]
    assert [path for path in files if path.name == "gcs_server.out"] and len(files) > 30
    assert [path for path in files if any(value.encode() in path.read_bytes() for value in CANARIES.values())] == []


def test_nothing_is_left_on_the_cluster(own: Journal, ray_cluster: Any) -> None:
    from ray.util import placement_group_table

    def left() -> list[str]:
        groups = [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"]
        taken = ray_cluster.cluster_resources()["CPU"] - ray_cluster.available_resources().get("CPU", 0.0)
        return [*groups, *([f"{taken} CPUs"] if taken > 1e-6 else [])]

    deadline = time.monotonic() + 10
    while left() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left() == []
    assert not (own.folder / ".ray").exists()
