"""CollapseBench: its sequence, its definitions of what a trial became, its files, and that it goes on after a stop."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.collapsebench import judge, make, pack
from benchmarks.collapsebench.family import Family, load
from benchmarks.collapsebench.truth import truth_of
from buttress.analysis.curves import read_curves
from buttress.errors import BadInput
from buttress.spec.spec import SweepSpec
from buttress.training import registry

FAMILY = Family(
    "toy",
    min_steps=30,
    looks_dead=lambda metrics: None if metrics.get("kl") is None else metrics["kl"] < 1,  # type: ignore[operator]
    blind=lambda measured, last: measured["gain"] < 0.05,  # type: ignore[operator]
)


def record(kls: list[float | None], *, gain: float = 0.0, full_from: int = 1, **more: Any) -> dict[str, Any]:
    """A trial with a report every 10 steps; beta is full from report `full_from` (counted from 1) on."""
    reports = [
        {
            "epoch": i, "step": 10 * i, "full_beta_epochs": max(0, i + 1 - full_from), "phase": 0, "closing": False,
            "full_beta_steps": max(0, 10 * (i + 1 - full_from)), "cpu_s": float(i),
            "nonfinite": [] if kl is not None else ["train/loss"],
            "metrics": {"kl": kl, "score": 0.1 * i, "train/loss": 1.0},
        }
        for i, kl in enumerate(kls, 1)
    ]  # fmt: skip
    return {"trial": 0, "configuration": 0, "error": None, "measured": {"gain": gain}, "reports": reports, **more}


def truth(entry: dict[str, Any]) -> dict[str, Any]:
    return truth_of(entry, FAMILY, "score", "max")


# --- ground truth ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kls", "gain", "expected"),
    [([5, 5, 5, 5], 0.5, "healthy"), ([5, 5, 0, 0], 0.0, "collapsed"), ([5, 5, 0, 0], 0.5, "ambiguous"),
     ([5, 5, 5, 5], 0.0, "ambiguous"), ([5, 5, 5, None], 0.5, "diverged")],
)  # fmt: skip
def test_state_and_outcome_both_decide(kls: list[float | None], gain: float, expected: str) -> None:
    assert truth(record(kls, gain=gain))["truth"] == expected


def test_a_trainer_that_raised_diverged() -> None:
    assert truth(record([5, 5], error="RuntimeError: out of range"))["truth"] == "diverged"


@pytest.mark.parametrize(
    ("kls", "full_from", "onset"),
    [
        ([5, 5, 5, 0, 0, 0], 1, 3),  # index of the first dead report
        ([0, 0, 0, 0, 0, 0], 1, 2),  # dead all along: not before 30 steps
        ([0, 0, 0, 0, 0, 0], 5, 4),  # ... and not before beta is full
        ([0, 0, 5, 0, 5, 0], 1, 5),  # alive once more at report 5
    ],
)
def test_onset_is_where_a_dead_trial_is_dead_for_good(kls: list[float | None], full_from: int, onset: int) -> None:
    assert truth(record(kls, full_from=full_from))["onset"] == onset


def test_recoverers_and_late_bloomers_are_marked() -> None:
    found = [truth(record(kls, gain=0.5)) for kls in ([5, 5, 5, 0, 0, 5], [0, 0, 0, 0, 5, 5], [0, 0, 5, 5, 5, 5])]
    marks = [(each["recoverer"], each["late_bloomer"]) for each in found]
    assert marks == [(True, False), (False, True), (False, False)]


def test_the_value_is_that_of_the_best_epoch_at_full_beta() -> None:
    entry = record([5, 5, 5, 5], gain=0.5, full_from=3)
    entry["reports"][0]["metrics"]["score"] = 9.0  # inside the warm-up
    entry["reports"][2]["metrics"]["score"] = 0.7
    assert (truth(entry)["value"], truth(entry)["last_value"]) == (0.7, pytest.approx(0.4))


# --- the sequence ---------------------------------------------------------------------------------------------------


def test_the_sequence_is_the_same_every_time_and_fills_the_space() -> None:
    spec, lithology = load("lithology").spec(), registry.load("lithology")
    sets = make.configurations(spec, lithology, 64)
    assert sets[:16] == make.configurations(spec, lithology, 16)
    betas = sorted(params["loss.beta"] for params in sets)
    low, high = 0.05, 30.0
    for part in range(8):  # a Sobol sequence has its share in every eighth of the logarithmic range
        ends = [low * (high / low) ** (edge / 8) for edge in (part, part + 1)]
        assert 6 <= sum(ends[0] <= beta < ends[1] for beta in betas) <= 10
    assert {params["model.batch_norm"] for params in sets} == {True, False}
    assert any("loss.anneal_epochs" not in params for params in sets)


def test_further_seeds_are_spread_over_the_configurations() -> None:
    spec, lithology = load("lithology").spec(), registry.load("lithology")
    trials = list(make.planned(spec, lithology, 30, 3, 2))
    assert [trial.configuration for trial in trials[30:]] == [0, 0, 10, 10, 20, 20]
    assert len({trial.seed for trial in trials}) == len(trials) == 36
    assert trials[32].params == trials[10].params


def test_a_family_is_found_by_its_file() -> None:
    with pytest.raises(BadInput, match="lithology"):
        load("geology")


# --- running and packing --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Family, list[float]]:
    """Two tiny lithology trials, run by two commands: the second finds what the first has done."""
    folder = tmp_path_factory.mktemp("bench")

    class Tiny(Family):
        def spec(self) -> SweepSpec:
            tree = load("lithology").spec().to_dict()
            tree["data"]["size"] = "tiny"
            tree["fixed"] |= {"train.epochs": 2, "buttress.ari_rows": 200, "buttress.report_every": 5}
            tree["search"]["loss.anneal_epochs"]["int"] = [1, 2]
            tree["require"] = ["config.loss.anneal == 'constant'"]
            return SweepSpec.from_dict(tree)

    real = load("lithology")
    family = Tiny("lithology", 10, real.looks_dead, real.blind, real.measure)
    given = argparse.Namespace(configurations=2, repeated=0, seeds=0)
    make.run_missing(family, folder, given)
    times = [path.stat().st_mtime_ns for path in sorted(folder.glob("*.json"))]
    (folder / "0001.json").unlink()
    make.run_missing(family, folder, given)
    assert (folder / "0000.json").stat().st_mtime_ns == times[0]
    return folder, family, times


def test_every_report_comes_back_from_the_file(made: tuple[Path, Family, list[float]], tmp_path: Path) -> None:
    folder, family, _ = made
    (path,) = pack.pack(family, folder, tmp_path)
    found = read_curves(path)
    records = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    assert found.about["objective"] == "val/ari" and len(found.curves) == len(records) == 2
    for curve, entry in zip(found.curves, records, strict=True):
        assert len(curve.reports) == len(entry["reports"]) >= 4
        for ours, theirs in zip(curve.reports, entry["reports"], strict=True):
            for key in ("epoch", "step", "full_beta_epochs", "full_beta_steps", "closing"):
                assert getattr(ours, key) == theirs[key]
            assert list(ours.nonfinite) == sorted(theirs["nonfinite"]) and set(ours.metrics) == set(theirs["metrics"])
            for name, value in theirs["metrics"].items():
                assert ours.metrics[name] == (None if value is None else pytest.approx(value, rel=1e-6))
        assert curve.reports[-1].closing and curve.truth is not None
        assert curve.seconds is not None and list(curve.seconds) == sorted(curve.seconds)
        assert entry["measured"]["error_posterior"] > 0 and entry["measured"]["standard_error"] > 0


def test_the_same_trial_runs_the_same_twice(made: tuple[Path, Family, list[float]]) -> None:
    folder, family, _ = made
    lithology = registry.load("lithology")
    trial = next(make.planned(family.spec(), lithology, 1, 0, 0))
    again = make.run(family, family.spec(), lithology, trial)
    first = json.loads((folder / "0000.json").read_text())
    losses = [[report["metrics"]["train/loss"] for report in entry["reports"]] for entry in (again, first)]
    assert losses[0] == losses[1]
    assert again["measured"] == first["measured"]


def test_two_commands_on_one_folder_are_one_too_many(tmp_path: Path) -> None:
    with make.alone(tmp_path), pytest.raises(BadInput, match="another command"), make.alone(tmp_path):
        pass


# --- the curves that come with the project --------------------------------------------------------------------------

CURVES = Path(judge.__file__).parent / "curves"


@pytest.mark.parametrize("family", judge.families(CURVES))
def test_published_curves_are_small_and_complete(family: str) -> None:
    paths = sorted(CURVES.glob(f"{family}-*.parquet"))
    assert all(path.stat().st_size < 2**20 for path in paths)
    told = pack.overview(paths)
    assert told["configurations"] >= 300 and told["trials"] >= told["configurations"] + 100
    dead = told["truth"].get("collapsed", 0) + told["truth"].get("diverged", 0)
    assert 0.2 <= dead / told["configurations"] <= 0.6
    assert told["truth"].get("ambiguous", 0) <= 0.05 * told["configurations"]
    assert told["median_cpu_s"] <= 20


@pytest.mark.parametrize("family", judge.families(CURVES))
def test_the_written_definitions_give_the_published_truth_again(family: str) -> None:
    """From the reports as they lie in the files, rounded to float32, and what was measured of each model."""
    bench, definitions = judge.curves_of(family, CURVES), load(family)
    objective, direction = bench.about["objective"], bench.about["direction"]
    assert bench.about["min_steps"] == definitions.min_steps
    names = ("truth", "state", "blind", "onset", "late_bloomer", "recoverer", "looked_dead")
    for curve in bench.curves:
        assert curve.reports[-1].closing or curve.about["error"]  # nobody was stopped
        entry = {**curve.about, "reports": [vars(report) for report in curve.reports]}
        found = truth_of(entry, definitions, objective, direction)
        assert {name: found[name] for name in names} == {name: curve.about[name] for name in names}, curve.name
        for name in ("value", "last_value"):
            assert found[name] == (None if curve.about[name] is None else pytest.approx(curve.about[name], rel=1e-6))


@pytest.mark.parametrize("family", judge.families(CURVES))
def test_published_trials_are_those_of_the_sequence(family: str) -> None:
    """The space has not moved since: the same 300 points, and five further seeds of 20 of them."""
    bench = judge.curves_of(family, CURVES)
    sequence = make.planned(
        load(family).spec(), registry.load(family), make.CONFIGURATIONS, make.REPEATED, make.SEEDS
    )
    plan = list(sequence)
    assert [curve.about["trial"] for curve in bench.curves] == [trial.trial for trial in plan]
    for curve, trial in zip(bench.curves, plan, strict=True):
        assert (curve.about["params"], curve.about["seed"]) == (trial.params, trial.seed), curve.name
