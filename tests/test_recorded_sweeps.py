"""Sweeps that were recorded by the last version before the package `buttress` are read, resumed and trained.

tests/data/recorded_sweeps.tar.gz holds them; the README.md in it says what each is and how it was made.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from buttress.analysis.selection import best_json
from buttress.analysis.table import rows
from buttress.execution.setup import load
from buttress.journal import Event, Header, Outcome, events, read
from buttress.journal.events import Condemned
from buttress.journal.mirror import mirror
from buttress.rules import RuleSet
from buttress.spec.spec import SweepSpec
from buttress.storage import Storage
from buttress.sweep.state import SweepState

SWEEPS = ("finished", "attempts", "killed", "audited", "probation", "probation_open", "remote")


@pytest.fixture
def recorded(recorded_sweeps: Path, tmp_path: Path) -> Path:
    shutil.copytree(recorded_sweeps, tmp_path / "recorded")
    return tmp_path / "recorded"


def journal_of(folder: Path) -> Path:
    """The journal's file; of a sweep on remote storage it is brought here first."""
    path = folder / "journal.jsonl"
    return path if path.exists() else mirror(Storage(f"file://{folder}").url)


def known(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.parametrize("name", SWEEPS)
def test_it_is_read_as_it_was(name: str, recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUTTRESS_CACHE", str(recorded / "cache"))
    folder = recorded / name
    expected = known(folder, "expected")
    journal = read(journal_of(folder), alive=False)
    assert journal.problems == () and journal.torn == expected["torn_bytes"]
    counts = dict(expected["counts"])
    if "suspended" in counts:  # what these are called now
        counts["waiting"] = counts.pop("suspended")
    assert journal.counts() == counts and best_json(journal) == expected["best"]
    assert (journal.ended.reason if journal.ended else None) == expected["ended"]
    for trial, was in expected["trials"].items():
        record = journal.trials[trial]
        assert (len(record.attempts), len(record.losses), len(record.reports)) == (
            was["attempts"], was["losses"], was["reports"],
        )  # fmt: skip
        assert [start.resumed_from for start in record.attempts] == was["resumed_from"]
    table = {row["trial"]: row for row in rows(journal)}
    for was in known(folder, "table"):
        now = table[was["trial"]] | ({"outcome": "suspended"} if was["outcome"] == "suspended" else {})
        if now["outcome"] == "failed":  # what a failed trial did not run is not counted as saved any more
            assert now["epochs_saved"] == 0
            was = was | {"epochs_saved": 0}
        assert {key: now[key] for key in was} == was


@pytest.mark.parametrize("name", SWEEPS)
def test_its_state_is_rebuilt_and_goes_on(name: str, recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUTTRESS_CACHE", str(recorded / "cache"))
    header, *rest = events(journal_of(recorded / name))
    assert isinstance(header, Header)
    spec, trainable = load(SweepSpec.from_dict(header.spec))
    written: list[Event] = []
    state = SweepState(spec, trainable, RuleSet.from_dict(header.rules), written.append)
    state.replay(rest)
    ended = {event.trial: event for event in rest if isinstance(event, Outcome)}
    assert {trial: outcome.to_line() for trial, outcome in state.outcomes.items() if trial in ended} == {
        trial: outcome.to_line() for trial, outcome in ended.items()
    }
    set_aside = {event.trial for event in rest if isinstance(event, Condemned) and event.line == "suspended"}
    concluded = [event for event in written if isinstance(event, Outcome)]
    assert [event for event in written if event not in concluded] == []
    if name == "probation_open":  # 0000 waited for a second chance that there is no more, 0001 was to be set aside
        assert set_aside == {"0000"} and {outcome.trial for outcome in concluded} == {"0000", "0001"}
        assert all(outcome.outcome == "collapsed" and (outcome.margin or 0) > 0 for outcome in concluded)
        assert state.queue == ["0002"]
    else:
        assert concluded == []
        assert state.queue == sorted(set(known(recorded / name, "expected")["trials"]) - ended.keys())
    told = {entry.number: entry.state.name for entry in state.study.trials()}
    completed = {trial for trial, outcome in state.outcomes.items() if outcome.outcome == "completed"}
    assert {state.asks[ask] for ask, as_what in told.items() if as_what == "COMPLETE"} == completed


@pytest.mark.long
@pytest.mark.parametrize("name", ["killed", "probation_open"])
def test_one_whose_driver_was_killed_is_resumed_to_its_end(name: str, recorded: Path, ray_cluster: Any) -> None:
    from buttress.execution import launch

    folder = recorded / name
    result = launch.resume(folder).run()
    assert result.reason == "budget spent"
    journal, expected = read(folder), known(folder, "resumed")
    assert len(journal.trials) == len(expected["trials"])
    for trial, was in expected["trials"].items():
        record = journal.trials[trial]
        assert record.params == was["params"]
        if name == "killed":  # no rung and no second chance: the same whenever it was killed
            assert record.outcome is not None
            assert (record.state, record.outcome.margin) == (was["state"], was["margin"])
    if name == "killed":
        assert best_json(journal) == expected["best"]


def test_its_exported_config_trains_to_the_same_bits(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from buttress.execution.local_training import train_config

    monkeypatch.chdir(tmp_path)
    result = train_config(recorded / "finished" / "best.yaml", tmp_path / "again")
    was = known(recorded / "finished", "best")
    over_rows = {"train/loss", "train/recon", "train/kl", "train/ce"}  # their means were over steps then

    def same(metrics: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in metrics.items() if name not in over_rows}

    assert result["epoch"] == was["epoch"] and result["metrics"].keys() == was["metrics"].keys()
    assert same(result["metrics"]) == same(was["metrics"])
