"""Rungs compare trials at equal full-beta age, and decide as Tune's ASHA does where nothing collapses."""

from __future__ import annotations

import random
from math import inf, isclose, nan
from typing import Literal

import numpy as np
import pytest

from buttress.search.halving import Rungs, _quantile


def test_rung_ages_are_first_times_powers_of_factor() -> None:
    rungs = Rungs(first=4, factor=3, direction="max")
    assert [age for age in range(1, 120) if rungs.is_rung(age)] == [4, 12, 36, 108]


@pytest.mark.parametrize("direction", ["min", "max"])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_same_decisions_as_tunes_asha_when_every_epoch_is_reported(direction: str, factor: int) -> None:
    from ray.tune.schedulers.async_hyperband import _Bracket

    first, ages, trials = 2, 40, 60
    bracket = _Bracket(first, 10**6, factor, 0)
    rungs = Rungs(first, factor, direction)  # type: ignore[arg-type]
    sign = 1 if direction == "max" else -1
    rng = random.Random(7)

    class Trial:
        def __init__(self, number: int) -> None:
            self.trial_id = str(number)

    alive = {number: (Trial(number), 0, rng.random()) for number in range(trials)}
    decisions = stops = 0
    while alive:
        number = rng.choice(sorted(alive))
        trial, age, best = alive[number]
        age += 1
        best = (max if sign > 0 else min)(best, rng.random())
        theirs = bracket.on_result(trial, age, sign * best) == "STOP"
        ours = rungs.report(trial.trial_id, age, best)
        assert (ours is not None and ours.stop) == theirs, (age, best)
        decisions += ours is not None
        stops += theirs
        if theirs or age == ages:
            del alive[number]
        else:
            alive[number] = (trial, age, best)
    assert decisions > 60 and stops > 20  # the comparison was not an empty one


def test_a_later_value_never_enters_an_earlier_rung() -> None:
    rungs = Rungs(1, 2, "min")
    rungs.report("late", 2, 0.1)  # nothing was reported at age 1
    assert rungs.values(1) == {}
    assert rungs.values(2) == {"late": 0.1}


def test_rungs_stand_at_the_next_age_at_which_the_objective_is_reported() -> None:
    rungs = Rungs(1, 3, "max")  # 1, 3, 9, 27
    for trial in ("a", "b", "c"):
        decided = {age: rungs.report(trial, age, 0.5) for age in range(2, 31, 2)}
        assert [age for age, decision in decided.items() if decision is not None] == [2, 4, 10, 28]
        assert all(decision is None or decision.age == age for age, decision in decided.items())
    assert rungs.values(4) == dict.fromkeys("abc", 0.5) and rungs.values(3) == {}
    assert (worse := rungs.report("d", 6, 0.1)) is not None and not worse.stop  # nobody else was compared at 6
    rungs.skip("e", 2)
    assert rungs.report("e", 3, 0.1) is not None and rungs.report("e", 2, 0.1) is None  # 2 again, after a resume
    rungs.skip("e", 10)  # its value at 10 is not to be compared, nor is a later one in its place
    assert rungs.report("e", 12, 0.1) is None


def test_a_missing_value_is_the_worst() -> None:
    rungs = Rungs(1, 2, "min")
    rungs.report("a", 1, 5.0)
    decision = rungs.report("b", 1, nan)
    assert decision is not None and decision.stop and decision.value is None
    third = rungs.report("c", 1, 9.0)  # worse than the only finite value, but half of the rung is worse still
    assert third is not None and not third.stop


@pytest.mark.parametrize(("direction", "good"), [("max", inf), ("min", -inf)])
def test_infinity_in_the_good_direction_is_the_worst(direction: Literal["min", "max"], good: float) -> None:
    rungs = Rungs(1, 2, direction)
    rungs.report("a", 1, 5.0)
    decision = rungs.report("b", 1, good)
    assert decision is not None and decision.stop and decision.value is None
    assert rungs.values(1)["b"] == -good


def test_a_collapsed_trial_leaves_every_rung() -> None:
    rungs = Rungs(1, 2, "min")
    for number in range(6):
        rungs.report(f"collapsed{number}", 1, 1.0 + number / 10)
    rungs.report("healthy", 1, 0.5)
    for number in range(6):
        rungs.forget(f"collapsed{number}")
    decision = rungs.report("other", 1, 0.5)
    assert decision is not None and decision.peers == 1 and decision.cutoff == 0.5 and not decision.stop


def test_phases_have_rungs_of_their_own() -> None:
    rungs = Rungs(1, 2, "min")
    rungs.report("a", 2, 0.1, phase=0)
    decision = rungs.report("b", 2, 9.0, phase=1)
    assert decision is not None and decision.peers == 0 and not decision.stop


def test_a_trial_is_judged_once_per_rung() -> None:
    rungs = Rungs(1, 2, "max")
    assert rungs.report("a", 1, 0.1) is not None
    assert rungs.report("a", 1, 0.9) is None  # the same age again, after a resume
    assert rungs.values(1) == {"a": 0.1}


def test_quantile_is_numpys() -> None:
    rng = np.random.default_rng(3)
    for size in range(1, 40):
        values = rng.normal(size=size)
        for q in (0.5, 2 / 3, 0.75):
            expected = float(np.percentile(values, q * 100))
            assert isclose(_quantile(list(values), q) or 0.0, expected, rel_tol=1e-12, abs_tol=1e-15)
