"""A trial in a warm slot reports what it would in a fresh one, bit for bit, whatever the slot has been through."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from buttress.execution import launch
from buttress.journal import read
from buttress.journal.records import Journal, TrialRecord
from buttress.spec.spec import SweepSpec

HERE = Path(__file__).parent
#: Role of each odd one of the warm sweep's trials, and the outcome that it has to have; a probe follows each.
ROLES = {
    "raises": "failed",
    "is stopped by a rule": "collapsed",
    "diverges": "diverged",
    "has another size and seed": "completed",
    "spoils its process": "completed",
}
SPEC = {
    "name": "leaky",
    "trainable": "leaky:Leaky",
    "fixed": {
        "train.epochs": 3,
        "train.dropout": 0.3,
        "train.batchnorm": True,
        "train.cosine": True,
        "train.clip": 1.0,
        "buttress.report_every": 2,
    },
    "search": {"train.lr": {"choice": [0.01]}},  # every draw is the same
    "sampler": {"repeats": True},
    "trial_seed": 7,
    "objectives": ["val/sampled"],
    "scheduler": {"kind": "fifo"},
    "rules": {
        "posterior_collapse": {"action": "off"},
        "too_much_beta": {
            "action": "kill",
            "signs": [{"metric": "train/beta", "above": 10}],
            "grace": {"before_full_beta": True},
            "patience": 2,
        },
    },
}


def sweep(folder: Path, workers: int, roles: dict[str, str], trials: int) -> Journal:
    for name in ("leaky.py", "toy.py"):
        shutil.copy(HERE / name, folder)
    (folder / "roles.json").write_text(json.dumps(roles))
    changes = {"resources": {"workers": workers, "concurrency": 1}, "budget": {"trials": trials}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        finish = launch.start(SweepSpec.from_dict({**SPEC, **changes}), folder / "runs").run()
    return read(finish.folder)


def told(trial: TrialRecord) -> list[Any]:
    """All that a trial reported but times and memory."""
    return [
        (report.epoch, report.step, report.metrics, report.vectors, report.nonfinite, report.state, report.valid)
        for report in trial.reports
    ]


Sweeps = tuple[Journal, Journal]


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.long)], ids=["1 worker", "2 workers"])
def sweeps(request: Any, ray_cluster: Any, tmp_path_factory: Any) -> Sweeps:
    """A sweep of two probes, the first one cold; and one in which every probe follows a trial of another role."""
    cold = sweep(tmp_path_factory.mktemp("cold"), request.param, {}, 2)
    roles = {f"{2 * number:04d}": role for number, role in enumerate(ROLES)}
    return cold, sweep(tmp_path_factory.mktemp("warm"), request.param, roles, 2 * len(ROLES))


def test_the_probe_would_show_a_difference(sweeps: Sweeps) -> None:
    cold, warm = sweeps
    probe, other = cold.trials["0000"], warm.trials["0006"]
    assert probe.state == "completed" and len(probe.reports) == 6
    prints = [report.metrics["state/fingerprint"] for report in probe.reports if "state/fingerprint" in report.metrics]
    assert len(set(prints)) == 3
    for key in ("train/loss", "draws/torch", "draws/numpy", "draws/python"):
        assert probe.reports[0].metrics[key] != other.reports[0].metrics[key]


def test_a_trial_after_its_like_repeats_it_bit_for_bit(sweeps: Sweeps) -> None:
    cold, _ = sweeps
    assert told(cold.trials["0001"]) == told(cold.trials["0000"])


@pytest.mark.parametrize(("number", "role"), enumerate(ROLES), ids=list(ROLES))
def test_a_trial_in_a_slot_whose_last_one(sweeps: Sweeps, number: int, role: str) -> None:
    """... raised, was stopped, diverged, was another or left a mess repeats the cold trial bit for bit."""
    cold, warm = sweeps
    before, probe = warm.trials[f"{2 * number:04d}"], warm.trials[f"{2 * number + 1:04d}"]
    assert before.state == ROLES[role], before.outcome
    assert told(probe) == told(cold.trials["0000"])
    assert probe.attempts[0].pid == warm.trials["0000"].attempts[0].pid  # the slot was warm
