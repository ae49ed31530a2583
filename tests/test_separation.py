"""The ranges that separate dead from living trials are found, and none is named where there is nothing to find."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import log10
from typing import Any

import numpy as np
import pytest

from buttress.search.separation import MAX_P_VALUE, Fate, Region, between, regions, tail

SEARCH: dict[str, Any] = {
    "loss.beta": {"loguniform": [0.01, 100.0]},
    "train.lr": {"uniform": [0.0, 1.0]},
    "loss.warmup": {"int": [0, 9]},
    "model.norm": {"choice": [True, False]},
    "loss.kind": {"choice": ["a", "b", "c"]},
}


def drawn(rng: random.Random) -> dict[str, Any]:
    return {
        "loss.beta": 10 ** rng.uniform(-2, 2),
        "train.lr": rng.random(),
        "loss.warmup": rng.randint(0, 9),
        "model.norm": rng.random() < 0.5,
        **({"loss.kind": rng.choice("abc")} if rng.random() < 0.7 else {}),
    }


def world(count: int, dead: Callable[[dict[str, Any]], bool], seed: int = 1) -> list[Fate]:
    rng = random.Random(seed)
    return [Fate(params, dead(params)) for params in (drawn(rng) for _ in range(count))]


def test_the_tail_is_fishers() -> None:
    from scipy.stats import fisher_exact

    for trials, dead, size in ((20, 18, 6), (40, 11, 15), (9, 3, 8)):
        tails = tail(trials, dead, size)
        for k in range(size + 1):
            table = [[k, size - k], [dead - k, trials - dead - size + k]]
            if min(min(row) for row in table) < 0:
                continue
            assert np.exp(tails[k]) == pytest.approx(fisher_exact(table, "greater").pvalue, rel=1e-9)


def test_the_range_that_kills_is_named_with_its_counts() -> None:
    fates = world(40, lambda params: params["loss.beta"] > 2)
    (found,) = regions(fates, SEARCH)
    living = max(fate.params["loss.beta"] for fate in fates if not fate.dead)
    dead = min(fate.params["loss.beta"] for fate in fates if fate.dead)
    assert (found.path, found.side, found.by) == ("loss.beta", "above", "ends") and living < found.value < dead
    count = sum(fate.dead for fate in fates)
    assert (found.dead, found.trials, found.dead_elsewhere, found.trials_elsewhere) == (count, count, 0, 40 - count)
    assert str(found).startswith("loss.beta above ") and f"{count} of {count} collapsed there, 0 of" in str(found)
    assert all(found.holds(fate.params) == fate.dead for fate in fates)
    assert Region.from_dict(found.to_dict()) == found


def test_a_second_cause_is_not_hidden_by_the_first_and_both_ends_of_one_are_told() -> None:
    found = regions(world(80, lambda p: p["loss.beta"] > 5 or p["model.norm"] is False), SEARCH)
    assert {(region.path, region.side) for region in found} == {("model.norm", "is"), ("loss.beta", "above")}
    assert next(region for region in found if region.side == "is").value is False
    found = regions(world(80, lambda p: not 0.1 < p["loss.beta"] < 5), SEARCH)
    assert sorted((region.path, region.side) for region in found) == [("loss.beta", "above"), ("loss.beta", "below")]


def test_a_parameter_drawn_together_with_the_cause_is_not_named_beside_it() -> None:
    fates = world(60, lambda p: p["loss.beta"] > 2)
    fates = [Fate({**fate.params, "train.lr": log10(fate.params["loss.beta"]) / 4 + 0.5}, fate.dead) for fate in fates]
    found = regions(fates, SEARCH)
    assert len(found) == 1 and found[0].path in ("loss.beta", "train.lr")


def test_chance_alone_is_seldom_taken_for_a_cause() -> None:
    rng = random.Random(3)
    named = 0
    for seed in range(120):
        dead = [True] * rng.choice([5, 12, 21]) + [False] * 25
        fates = world(25, lambda _: dead.pop(0), seed)  # noqa: B023
        rng.shuffle(fates)
        named += bool(regions(fates, SEARCH))
    assert named <= 120 * MAX_P_VALUE * 2.2, named


@pytest.mark.parametrize("count", [0, 3, 7])
def test_a_handful_of_trials_says_nothing(count: int) -> None:
    assert regions(world(count, lambda p: p["loss.beta"] > 1), SEARCH) == []


def test_where_nobody_lives_the_margins_point_the_way() -> None:
    rng = random.Random(5)
    fates = []
    for _ in range(20):
        params = drawn(rng)
        fates.append(Fate(params, True, 0.5 + log10(params["loss.beta"] / 0.01) + 0.3 * rng.random()))
    (found, *_) = regions(fates, SEARCH)
    assert (found.path, found.side, found.by) == ("loss.beta", "above", "margins")
    assert found.margins is not None and found.margins[0] > found.margins[1] + 0.5
    assert found.dead == found.trials and "decades" in str(found)
    blind = [Fate(fate.params, True, rng.random()) for fate in fates]
    assert regions(blind, SEARCH) == []
    assert regions([Fate(fate.params, True) for fate in fates], SEARCH) == []


def test_what_is_not_in_play_lies_in_no_region() -> None:
    fates = world(80, lambda p: p.get("loss.kind") == "b")
    (found,) = regions(fates, SEARCH)
    assert (found.path, found.side, found.value) == ("loss.kind", "is", "b") and not found.holds({"loss.beta": 1.0})


@pytest.mark.parametrize("choices", [(True, 1, 1.0), ([1], [1.0], [True]), (False, 0, "0")])
def test_choices_that_compare_equal_are_regions_of_their_own(choices: tuple[Any, ...]) -> None:
    for deadly in choices:
        fates = [Fate({"kind": each}, repr(each) == repr(deadly), 0.5) for each in choices for _ in range(12)]
        (found,) = regions(fates, {"kind": {"choice": list(choices)}})
        assert (repr(found.value), found.dead, found.trials, found.dead_elsewhere) == (repr(deadly), 12, 12, 0)
        assert [found.holds({"kind": choice}) for choice in choices] == [choice is deadly for choice in choices]


@pytest.mark.parametrize("low, high", [(1.0, 2.0), (0.00121, 0.00123), (-3.0, 4.0), (5, 6), (0.0, 1e-9)])
def test_thresholds_have_few_digits_and_lie_between(low: float, high: float) -> None:
    value = between(low, high)
    assert low < value < high and len(f"{value:g}") <= 8
