"""No configuration is run twice: near draws are one, a small space is run through once, a stuck sampler is left."""

from __future__ import annotations

import math
from typing import Any

import pytest
from journal_lines import Line, events_of
from sweeps import ToyConfig, drive, spec, state

from buttress.search.optuna_study import Study
from buttress.search.proposals import MAX_REPEATS, MAX_SAMPLER_REFUSALS, TOLERANCE, ExploredSpace
from buttress.spec.spec import SweepSpec

SMALL: dict[str, Any] = {
    "search": {
        "loss.warmup_epochs": {"int": [0, 2]},
        "loss.beta": {"choice": [0.1, 0.2, 0.4]},
        "train.lr": {"uniform": [0.1, 0.2], "step": 0.05, "when": "config.loss.warmup_epochs > 0"},
    },
    "require": ["config.loss.beta < 0.3 or config.loss.warmup_epochs != 1"],
    "budget": {"trials": 60},
}
#: warm-up 0: 3 betas; warm-up 1: 2 betas x 3 rates; warm-up 2: 3 x 3.
CONFIGURATIONS = 3 + 6 + 9


def draws(**search: Any) -> ExploredSpace:
    tree = {"trainable": "toy", "objectives": ["val/score"], "budget": {"trials": 9}, "search": search}
    return ExploredSpace(SweepSpec.from_dict(tree), ToyConfig)


def test_numbers_closer_than_a_ten_thousandth_of_their_range_are_one() -> None:
    seen = draws(**{"loss.beta": {"loguniform": [0.01, 100.0]}, "train.lr": {"uniform": [0.0, 2.0]}})
    seen.add("0000", {"loss.beta": 1.0, "train.lr": 0.5})
    decades = 4 * math.log(10)
    near, far = math.exp(0.9 * TOLERANCE * decades), math.exp(1.1 * TOLERANCE * decades)
    assert seen.trial_with({"loss.beta": near, "train.lr": 0.5 + 1.8 * TOLERANCE}) == "0000"
    assert seen.trial_with({"loss.beta": far, "train.lr": 0.5}) is None
    assert seen.trial_with({"loss.beta": 1.0, "train.lr": 0.5 + 2.2 * TOLERANCE}) is None


def test_whole_numbers_steps_and_choices_have_to_be_equal() -> None:
    search: dict[str, Any] = {
        "n": {"int": [0, 100_000]}, "s": {"uniform": [0, 0.3], "step": 0.1}, "c": {"choice": [1, True, "1", None]},
    }  # fmt: skip
    seen = draws(**search)
    seen.add("0000", {"n": 7, "s": 0.1 + 0.2, "c": 1})
    assert seen.trial_with({"n": 7, "s": 0.3, "c": 1}) == "0000"
    for other in ({"n": 8}, {"s": 0.2}, {"c": True}, {"c": "1"}, {"c": None}):
        assert seen.trial_with({"n": 7, "s": 0.3, "c": 1, **other}) is None, other
    assert seen.trial_with({"n": 7, "s": 0.3}) is None  # the choice is not in play


def test_a_small_space_is_run_through_once_and_then_is_spent() -> None:
    lines: list[Line] = []
    sweep = state(spec(**SMALL), lines)
    drive(sweep)
    run = [tuple(sorted(line["params"].items())) for line in lines if line["line"] == "trial"]
    assert len(run) == len(set(run)) == CONFIGURATIONS and sweep.proposals.exhausted
    assert sweep.next_trial() is None
    refused = [line for line in lines if line["line"] == "refused" and line["repeats"]]
    assert refused and all(line["reason"] == f"repeats trial {line['repeats']}" for line in refused)


@pytest.mark.long
def test_a_sweep_of_a_small_space_resumes_from_any_prefix_to_the_same_end() -> None:
    whole: list[Line] = []
    drive(state(spec(**SMALL), whole))
    expected = [(line["trial"], line["params"]) for line in whole if line["line"] == "trial"]
    for cut in range(0, len(whole), 7):
        lines = [dict(line) for line in whole[:cut]]
        again = state(spec(**SMALL), lines)
        again.replay(events_of(whole[:cut]))
        drive(again)
        assert [(line["trial"], line["params"]) for line in lines if line["line"] == "trial"] == expected, cut


def test_repeats_can_be_asked_for() -> None:
    sweep = state(spec(**{**SMALL, "sampler": {"repeats": True}, "budget": {"trials": 25}}))
    drive(sweep)
    assert len(sweep.outcomes) == 25 and not sweep.proposals.exhausted


def test_a_sampler_that_is_stuck_is_passed_by_at_random() -> None:
    class Stuck(Study):
        def ask(self, at_random: bool = False) -> tuple[int, dict[str, Any]]:
            return super().ask(True) if at_random else self.enqueue({"loss.beta": 0.5, "loss.warmup_epochs": 1})

    lines: list[Line] = []
    sweep = state(spec(budget={"trials": 5}), lines)
    sweep.study = sweep.proposals.study = Stuck(sweep.spec, sweep.directions, ToyConfig)
    drive(sweep)
    betas = [line["params"]["loss.beta"] for line in lines if line["line"] == "trial"]
    assert len(set(betas)) == 5 and betas[0] == 0.5
    assert sum(line["line"] == "refused" and line["repeats"] == "0000" for line in lines) == 4 * MAX_REPEATS


@pytest.mark.parametrize(
    "search, finite",
    [
        ({"n": {"int": [1, 10_000]}}, True),
        ({"n": {"int": [1, 10_001]}}, False),
        ({"n": {"logint": [1, 50]}, "c": {"choice": ["a", "b"]}}, True),
        ({"n": {"int": [1, 2]}, "x": {"uniform": [0, 1]}}, False),
        ({"n": {"int": [1, 200]}, "m": {"int": [1, 200]}}, False),
        ({}, True),
    ],
)
def test_small_spaces_are_counted_and_others_are_endless(search: dict[str, Any], finite: bool) -> None:
    seen = draws(**search)
    assert seen.finite == finite
    if not finite:
        with pytest.raises(ValueError, match="endless"):
            seen.unexplored(lambda params: True, 0)


def test_a_sampler_that_settles_where_everything_is_refused_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    ask, asked = Study.ask, list[bool]()

    def settled(study: Study, at_random: bool = False) -> tuple[int, dict[str, Any]]:
        asked.append(at_random)
        return ask(study, at_random) if at_random else study.enqueue({"loss.beta": 9.0, "train.lr": 0.01})

    monkeypatch.setattr(Study, "ask", settled)
    search = {"loss.beta": {"uniform": [1.0, 10.0]}, "train.lr": {"loguniform": [0.001, 0.1]}}
    lines: list[Line] = []
    sweep = state(spec(search=search, require=["config.loss.beta < 4"], budget={"trials": 2}), lines)
    assert sweep.next_trial() is not None
    assert asked[:MAX_SAMPLER_REFUSALS] == [False] * MAX_SAMPLER_REFUSALS and all(asked[MAX_SAMPLER_REFUSALS:])
    again = state(spec(search=search, require=["config.loss.beta < 4"], budget={"trials": 2}))
    again.replay(events_of(lines[:-1]))  # up to the last refusal
    assert again.proposals.explored.refusals == len(asked) - 1
    before = len(asked)
    sweep.next_trial()
    assert asked[before] is False  # it is given another chance
