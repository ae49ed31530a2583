"""The two studies count what they say: who is stopped on age and on epochs, and what each sampler is told."""

from __future__ import annotations

from typing import Any

import pytest
from journal_lines import recorded
from optuna.trial import TrialState
from sweeps import RULES, ToyConfig
from sweeps import spec as toy_spec
from test_simulator import bench, spec

from benchmarks.fair_rungs import Halving, Judge, one, warm_up
from benchmarks.sampler_lessons import FailStudy, WorstStudy, deadly
from buttress.analysis.curves import Curve, Truth
from buttress.search.halving import Rungs
from buttress.search.optuna_study import SamplerResult


def curve(name: str, warm: int, slope: float, *, epochs: int = 12, truth: str = "healthy", kl: float = 5.0) -> Curve:
    """A trial that learns by `slope` an epoch once beta is full, one core-second an epoch."""
    reports = tuple(
        recorded(
            epoch=epoch, step=epoch * 10, full_beta_epochs=max(0, epoch - warm),
            full_beta_steps=max(0, epoch - warm) * 10, phase=0,
            metrics={"val/score": slope * max(0, epoch - warm), "latent/kl_total": kl},
        )
        for epoch in range(1, epochs + 1)
    )  # fmt: skip
    seconds = tuple(float(report.epoch) for report in reports)
    value = slope * (epochs - warm)
    return Curve(name, reports, seconds, epochs, Truth(truth, None, value), seconds, {"params": {"name": name}})


#: The slow starter is the best by far, and the youngest at every epoch.
CURVES = [curve("plain", 0, 0.1), curve("fair", 0, 0.12), curve("late", 6, 0.3), curve("poor", 0, 0.05)]


class Own:
    name = "own"
    trust: Any = None

    def __init__(self, curves: list[Curve]) -> None:
        self._curves = {each.name: each for each in curves}

    def curve(self, params: Any) -> Curve:
        return self._curves[params["name"]]


def halved(curves: list[Curve], rungs: Rungs | None, by_epoch: bool) -> tuple[Halving, Any]:
    own = Own(curves)
    draws = [each.about["params"] for each in curves]
    policy = Halving(draws, own.curve, Judge(RULES, "val/score", "max"), rungs, by_epoch)
    return policy, one(policy, curves, 1.0, own)


def test_the_best_trial_is_stopped_on_epochs_and_not_on_age() -> None:
    by_age, aged = halved(CURVES, Rungs(4, 2, "max"), by_epoch=False)
    by_epoch, counted = halved(CURVES, Rungs(4, 2, "max"), by_epoch=True)
    assert "0002" not in by_age.stopped and not aged.best_stopped and aged.regret == 0
    assert by_epoch.stopped["0002"] == "rung" and counted.best_stopped and counted.best_is_late
    assert counted.regret == pytest.approx(0.3 * 6 - 0.12 * 12)
    assert counted.stopped["long"] == (1, 1) and warm_up(CURVES[2]) == 6


def test_without_rungs_everything_runs_and_costs_its_budget() -> None:
    policy, sweep = halved(CURVES, None, by_epoch=False)
    assert not policy.stopped and not sweep.best_stopped and sweep.cost == 12 * len(CURVES)


def test_dead_trials_are_killed_in_every_arm_and_leave_the_rungs() -> None:
    dead = curve("dead", 0, 9.0, truth="collapsed", kl=0.01)
    rungs = Rungs(1, 2, "max")
    policy, sweep = halved([dead, *CURVES], rungs, by_epoch=False)
    assert policy.stopped["0000"] == "rules" and not sweep.best_stopped
    assert all("0000" not in rungs.values(age) for age in (1, 2, 4, 8))


def test_a_value_late_for_its_rung_enters_it_all_the_same_on_epochs() -> None:
    sparse = [
        Curve(c.name, tuple(r for r in c.reports if r.epoch in (5, 9, 12)), (5.0, 9.0, 12.0), 12, c.truth,
              (5.0, 9.0, 12.0), c.about)
        for c in CURVES
    ]  # fmt: skip
    rungs = Rungs(4, 2, "max")
    halved(sparse, rungs, by_epoch=True)
    assert len(rungs.values(4)) == 4
    on_age = Rungs(4, 2, "max")
    halved(sparse, on_age, by_epoch=False)
    assert not on_age.values(4)


class Bench:
    """As much of `simulated.Family` as the deadly part reads."""

    name = "toy"

    def __init__(self) -> None:
        self.curves, self.space = bench(), spec()


def test_the_deadly_part_is_cut_by_the_range_that_kills() -> None:
    made, region, inside = deadly(Bench())  # type: ignore[arg-type]
    assert (region.path, region.side) == ("loss.beta", "above")
    low, high = made.search["loss.beta"].low, made.search["loss.beta"].high
    assert low == region.value and high == 100.0 and low is not None and low < 2
    dead = sum(bool(each.truth and each.truth.dead) for each in inside) / len(inside)
    assert 0.6 < dead <= 0.9 and all(each.about["params"]["loss.beta"] >= low for each in inside)


@pytest.mark.parametrize("study, state", [(FailStudy, TrialState.FAIL), (WorstStudy, TrialState.COMPLETE)])
def test_what_the_other_samplers_are_told(study: Any, state: TrialState) -> None:
    made = study(toy_spec(), ["max"], ToyConfig)
    for value in (0.3, 0.7):
        made.tell(made.ask()[0], SamplerResult(TrialState.COMPLETE, (value,), {"collapse": -1.0}))
    made.tell(made.ask()[0], SamplerResult(TrialState.PRUNED, constraints={"collapse": 2.0}))
    last = made.trials()[-1]
    assert last.state == state and not last.constraints
    assert last.value == (0.3 if study is WorstStudy else None)
