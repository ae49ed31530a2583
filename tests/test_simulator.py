"""Simulated sweeps: the real state under a simulated clock, stand-ins that say how far to trust them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from journal_lines import events_of, recorded
from sweeps import RULES, Toy, ToyConfig, World, state
from sweeps import spec as toy_spec

from benchmarks.simulator import TURNAROUND_S, Drawn, Event, Simulator, play
from benchmarks.surrogate import SURROGATES, Forest, Nearest, Once
from buttress import journal
from buttress.analysis.curves import Curve, CurveSet, Truth
from buttress.spec import trial_config
from buttress.spec.spec import SweepSpec
from buttress.training.trainable import Reported


class Recorded(Toy):
    """The toy family; nobody trains it here."""

    def train(self, *_: Any) -> None:
        raise AssertionError("a simulated sweep trains nothing")


def spec(**changes: Any) -> SweepSpec:
    return toy_spec(**{"trainable": "test_simulator:Recorded", "rules": {}, **changes})


def bench(count: int = 120, noise: float = 0.0, seed: int = 5) -> CurveSet:
    """Toy trials as CollapseBench would hold them: dead where the rules' KL ends below 0.5 (beta above 2)."""
    made, rng, curves = spec(), random.Random(seed), []
    while len(curves) < count:
        params = trial_config.sample(made, rng, ToyConfig)
        config = trial_config.build(made, params, ToyConfig, seed=1)
        if trial_config.violated_requirement(made, config):
            continue
        reports = list(World().reports(config.model_dump(mode="json")))
        lines = tuple(
            recorded(
                epoch=r.epoch, step=r.step, full_beta_epochs=r.full_beta_epochs,
                full_beta_steps=r.full_beta_steps, phase=0, metrics=dict(r.metrics),
            )
            for r in reports
        )  # fmt: skip
        value = max(r.metrics.get("val/score", 0.0) for r in reports) + noise * rng.random()
        dead = config.loss.beta > 2
        about = {"trial": len(curves), "configuration": len(curves), "params": params}
        truth = Truth("collapsed" if dead else "healthy", 0 if dead else None, value)
        seconds = tuple(r.seconds for r in reports)
        curves.append(Curve(str(len(curves)), lines, tuple(r.step for r in reports), 8, truth, seconds, about))
    about = {"family": "toy", "objective": "val/score", "direction": "max", "spec": made.to_dict()}
    return CurveSet(tuple(curves), about)


# --- stand-ins ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SURROGATES)
def test_a_recorded_configuration_stands_in_for_itself(name: str) -> None:
    curves = bench()
    surrogate = SURROGATES[name](curves)
    found = [surrogate.curve(curve.about["params"]) for curve in curves.curves]
    same = [one is other for one, other in zip(found, curves.curves, strict=True)]
    assert all(same) if name == "nearest" else sum(same) > 0.9 * len(same)


@pytest.mark.parametrize("name", SURROGATES)
def test_trust_is_high_where_the_space_is_smooth_and_gone_where_values_are_noise(name: str) -> None:
    smooth, noisy = SURROGATES[name](bench()).trust, SURROGATES[name](bench(noise=1000.0)).trust
    assert smooth.rank_correlation > 0.8 and smooth.same_end > 0.9
    assert abs(noisy.rank_correlation) < 0.4
    assert 0 < smooth.pairs <= 120


def test_what_is_not_active_is_far_from_what_is() -> None:
    tree = spec().to_dict()
    tree["search"]["train.lr"] = {"uniform": [0, 1], "when": "config.loss.beta > 1"}
    curves = bench(40)
    given = [dict(curve.about["params"]) for curve in curves.curves]
    for index, params in enumerate(given):
        if index % 2:
            params["train.lr"] = 0.5
    changed = [
        Curve(c.name, c.reports, c.at, 8, c.truth, c.seconds, {**c.about, "params": params})
        for c, params in zip(curves.curves, given, strict=True)
    ]
    nearest = Nearest(CurveSet(tuple(changed), {**curves.about, "spec": tree}))
    assert nearest.curve(given[0] | {"loss.beta": given[0]["loss.beta"]}) is changed[0]
    assert "train.lr" in nearest.curve(given[0] | {"train.lr": 0.4}).about["params"] or nearest._weights[2] < 1e-3


# --- the clock ------------------------------------------------------------------------------------------------------


class Fixed:
    """A policy that draws given parameters and stops trials at given reports."""

    def __init__(self, params: list[dict[str, Any]], stop_at: int | None = None) -> None:
        self.params, self.stop_at = list(params), stop_at
        self.log: list[tuple[str, str]] = []
        self.reports: dict[str, int] = {}

    def draw(self) -> Drawn | None:
        number = len(self.reports)
        if number >= len(self.params):
            return None
        self.reports[str(number)] = 0
        return Drawn(str(number), self.params[number])

    def begun(self, trial: str, slot: str) -> None:
        self.log.append((trial, slot))

    def reported(self, trial: str, reported: Reported) -> bool:
        self.reports[trial] += 1
        return self.stop_at is not None and self.reports[trial] >= self.stop_at

    def finished(self, trial: str) -> None:
        self.log.append((trial, "finished"))


def test_one_slot_takes_the_sum_of_its_trials_and_two_overlap() -> None:
    curves = bench(4)
    params = [curve.about["params"] for curve in curves.curves]
    alone = [curve.seconds[-1] for curve in curves.curves if curve.seconds]
    one, two = (play(Fixed(params), Nearest(curves), slots=slots) for slots in (1, 2))
    assert one.seconds == pytest.approx(sum(alone) + 3 * TURNAROUND_S)
    assert max(alone) < two.seconds < one.seconds and not two.unfinished


def test_a_stopped_trial_costs_what_it_ran_and_time_ends_the_sweep() -> None:
    curves = bench(3)
    params = [curve.about["params"] for curve in curves.curves]
    policy, seen = Fixed(params, stop_at=2), []
    played = play(policy, Nearest(curves), slots=1, see=seen.append)
    assert played.seconds == pytest.approx(sum(c.seconds[1] for c in curves.curves if c.seconds) + 2 * TURNAROUND_S)
    assert set(policy.reports.values()) == {2} and not any(how == "finished" for _, how in policy.log)
    assert [event.stopped for event in seen] == [False, True] * 3
    assert [event.clock for event in seen] == sorted(event.clock for event in seen)
    short = play(Fixed(params), Nearest(curves), slots=2, seconds=0.5)
    assert short.seconds == 0.5 and len(short.unfinished) == 2


# --- sweeps ---------------------------------------------------------------------------------------------------------


def simulated(folder: Path | None = None, **changes: Any) -> tuple[Simulator, list[Event]]:
    seen: list[Event] = []
    made = Simulator(
        spec(**changes), Nearest(bench()), folder, slots=2, sweep="toy-abc123", rules=RULES, see=seen.append
    )
    made.run()
    return made, seen


def test_a_simulated_sweep_is_the_same_every_time() -> None:
    one, two = simulated()[0].state, simulated()[0].state
    for trial, outcome in one.outcomes.items():
        other = two.outcomes[trial]
        assert replace(outcome, time=0.0) == replace(other, time=0.0)
    assert len(one.outcomes) == 16


def test_its_journal_is_a_sweeps_journal(tmp_path: Path) -> None:
    made, _ = simulated(tmp_path)
    read = journal.read(tmp_path)
    assert read.counts() == dict(made.state.counts) and read.ended is not None
    lines = list(journal.lines(tmp_path / journal.FILE))[1:]
    again = state(spec(), rules=RULES)
    again.replay(events_of(line for line in lines if line["line"] != "end"))
    assert again.outcomes.keys() == made.state.outcomes.keys()
    told = [[t.state for t in one.study.trials()] for one in (again, made.state)]
    assert told[0] == told[1]


def test_rules_and_rungs_decide_as_in_a_real_sweep() -> None:
    made, seen = simulated(budget={"trials": 40})
    counts = made.state.counts
    assert counts["collapsed"] > 3 and counts["pruned"] > 3 and counts["completed"] > 3
    dead = {event.trial for event in seen if event.curve.truth and event.curve.truth.dead}
    assert not dead & {trial for trial, line in made.state.outcomes.items() if line.outcome == "completed"}
    assert made.state.rungs is not None
    collapsed = {trial for trial, line in made.state.outcomes.items() if line.outcome == "collapsed"}
    assert not collapsed & set(made.state.rungs.values(2))


def test_simulated_hours_end_a_sweep() -> None:
    made = Simulator(spec(budget={"trials": 500, "hours": 10 / 3600}), Forest(bench()), slots=2, rules=RULES)
    finish = made.run()
    assert finish.seconds == 10 and finish.reason == "time budget spent" and finish.counts["unfinished"] == 2
    assert 5 < sum(finish.counts.values()) < 500


def test_simulating_imports_no_ray() -> None:
    code = "import sys, benchmarks.simulator; print(json.dumps('ray' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", "import json; " + code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False


def test_spearman_is_numpys() -> None:
    from benchmarks.surrogate import spearman

    rng = np.random.default_rng(1)
    one = rng.normal(size=50)
    other = one + rng.normal(size=50)
    ranks = [values.argsort().argsort() for values in (one, other)]
    assert spearman(one, other) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-12)




@pytest.mark.parametrize("name", SURROGATES)
def test_a_curve_stands_in_once_per_sweep_and_always_for_the_same_parameters(name: str) -> None:
    curves = bench(30)
    surrogate = SURROGATES[name](curves)
    rng, made = random.Random(2), spec()
    asked = [trial_config.sample(made, rng, ToyConfig) for _ in range(30)]
    once = Once(surrogate)
    given = [once.curve(params) for params in asked]
    assert given[0] is surrogate.curve(asked[0]) and len({id(curve) for curve in given}) == 30
    assert [once.curve(params) for params in reversed(asked)] == given[::-1]
    assert once.curve(trial_config.sample(made, rng, ToyConfig)) in curves.curves  # all have stood in: they may again
    assert next(surrogate.ranked(asked[3])) is surrogate.curve(asked[3])
    assert Once(surrogate).curve(asked[7]) is surrogate.curve(asked[7])  # of another sweep
