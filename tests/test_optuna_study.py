"""The sampler is told collapse as a graded constraint, and a study rebuilt from a prefix asks as the first one did."""

from __future__ import annotations

import json
import random
from math import log10
from typing import Any

import pytest
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from buttress.search.optuna_study import STARTUP_TRIALS, FixedSpaceTPESampler, SamplerResult, Study, sampler_result
from buttress.spec.spec import SweepSpec
from buttress.training.trainable import Buttress, Section


class Loss(Section):
    beta: float = 1.0
    use_free_bits: bool = False
    free_bits: float = 0.0


class Config(Section):
    loss: Loss = Loss()
    layers: int = 2
    buttress: Buttress = Buttress()


def spec(objectives: int = 1) -> SweepSpec:
    return SweepSpec.from_dict(
        {
            "name": "toy",
            "trainable": "toy",
            "seed": 11,
            "search": {
                "loss.beta": {"loguniform": [0.01, 10.0]},
                "loss.use_free_bits": {"choice": [False, True]},
                "loss.free_bits": {"uniform": [0.0, 0.5], "when": "config.loss.use_free_bits"},
                "layers": {"int": [1, 6]},
            },
            "objectives": [{"metric": f"m{number}", "direction": "min"} for number in range(objectives)],
            "budget": {"trials": 40},
        }
    )


def told(line: dict[str, Any], objectives: list[str], by_age: dict[int, float] | None = None) -> SamplerResult:
    """What the study is told of an outcome, as a sweep with these objectives would."""
    values = [line["best"]["metrics"][name] for name in objectives] if line.get("best") else None
    ages = by_age if len(objectives) == 1 else None
    return sampler_result(line["outcome"], kind=line["kind"], margin=line.get("margin"), values=values, by_age=ages)


def outcome_of(params: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A made-up world in which a large beta collapses, by a margin that grows with it."""
    if params["loss.beta"] > 0.05:
        return {"outcome": "collapsed", "kind": "posterior", "margin": log10(params["loss.beta"] / 0.05)}
    if rng.random() < 0.2:
        return {"outcome": "pruned", "kind": "rung 4", "margin": -0.5}
    if rng.random() < 0.1:
        return {"outcome": "failed", "kind": "exception", "margin": None}
    metrics = {"m0": params["loss.beta"], "m1": float(params["layers"])}
    return {"outcome": "completed", "kind": None, "margin": -1.0, "best": {"metrics": metrics}}


@pytest.mark.parametrize("concurrent", [1, 3])
def test_a_study_rebuilt_from_any_prefix_asks_the_same(concurrent: int) -> None:
    rng, study = random.Random(5), Study(spec(), ["min"], Config)
    history: list[tuple[str, Any]] = []
    running: list[tuple[int, dict[str, Any]]] = []
    for number in range(36):
        ask, params = study.ask()
        history.append(("ask", (ask, params, json.loads(json.dumps(study.notes(ask))))))
        if number % 9 == 4:
            study.refuse(ask, "a requirement")
            history.append(("refuse", ask))
            continue
        running.append((ask, params))
        if len(running) == concurrent:
            ask, params = running.pop(rng.randrange(concurrent))
            line = outcome_of(params, rng)
            study.tell(ask, told(line, ["m0"], {1: 0.5, 4: 0.4}))
            history.append(("tell", (ask, line)))
    asks = [index for index, (kind, _) in enumerate(history) if kind == "ask"]
    for cut in (asks[index] for index in (1, 11, 14, 20, 27, 35)):
        again = Study(spec(), ["min"], Config)
        for kind, what in history[:cut]:
            if kind == "ask":
                again.add(*what)
            elif kind == "refuse":
                again.refuse(what, "a requirement")
            else:
                again.tell(what[0], told(what[1], ["m0"], {1: 0.5, 4: 0.4}))
        assert again.ask() == history[cut][1][:2]


def test_collapse_is_a_graded_constraint_and_never_complete() -> None:
    study = Study(spec(), ["min"], Config)
    lines = [
        {"outcome": "collapsed", "kind": "posterior", "margin": 2.5},
        {"outcome": "diverged", "kind": "diverged", "margin": 12.7},
        {"outcome": "completed", "kind": None, "margin": -0.8, "best": {"metrics": {"m0": 3.0}}},
        {"outcome": "pruned", "kind": "rung 4", "margin": -0.3},
        {"outcome": "failed", "kind": "no valid epoch", "margin": 0.2},
        {"outcome": "failed", "kind": "infrastructure", "margin": None},
    ]
    for line in lines:
        ask, _ = study.ask()
        study.tell(ask, told(line, ["m0"], {1: 0.9, 4: 0.7}))
    trials = study.trials()
    states = [trial.state for trial in trials]
    pruned, complete = TrialState.PRUNED, TrialState.COMPLETE
    assert states == [pruned, pruned, complete, pruned, pruned, TrialState.FAIL]
    assert [trial.constraints.get("collapse") for trial in trials] == [2.5, 12.7, -0.8, -0.3, None, None]
    assert trials[4].constraints == {"failed": 1.0}
    assert trials[3].intermediate_values == {1: 0.9, 4: 0.7}
    assert study.study.best_trial.number == 2
    assert trials[0].user_attrs["outcome"] == "collapsed:posterior"


def test_a_healthy_trial_is_feasible_whatever_its_graded_metric_said() -> None:
    line = {"outcome": "completed", "kind": None, "margin": 0.4, "best": {"metrics": {"m0": 1.0}}}
    assert told(line, ["m0"]).constraints["collapse"] < 0


def test_with_several_objectives_pruned_trials_do_not_break_the_sampler() -> None:
    rng, study = random.Random(2), Study(spec(2), ["min", "min"], Config)
    for _ in range(30):
        ask, params = study.ask()
        study.tell(ask, told(outcome_of(params, rng), ["m0", "m1"], {1: 0.5}))
    states = {trial.state for trial in study.trials()}
    assert {TrialState.COMPLETE, TrialState.PRUNED} <= states
    assert all(not trial.intermediate_values for trial in study.trials())


def test_the_sampler_learns_to_avoid_the_collapsed_region() -> None:
    rng, study = random.Random(1), Study(spec(), ["min"], Config)
    drawn = []
    for _ in range(60):
        ask, params = study.ask()
        drawn.append(params["loss.beta"])
        study.tell(ask, told(outcome_of(params, rng), ["m0"], {1: params["loss.beta"]}))
    early, late = drawn[:10], drawn[-20:]
    assert sum(beta > 0.05 for beta in late) / 20 < sum(beta > 0.05 for beta in early) / 10


def test_inactive_parameters_are_not_drawn() -> None:
    study = Study(spec(), ["min"], Config)
    seen = [study.ask()[1] for _ in range(20)]
    assert all(("loss.free_bits" in params) == params["loss.use_free_bits"] for params in seen)
    assert {params["loss.use_free_bits"] for params in seen} == {False, True}


def test_as_long_as_nothing_lives_every_second_draw_is_random() -> None:
    """Margins that point to the wrong end of the range hold only half of the draws there."""
    study = Study(spec(), ["min"], Config)
    drawn = []
    for _ in range(60):
        ask, params = study.ask()
        drawn.append(params["loss.beta"])
        line = {"outcome": "collapsed", "kind": "posterior", "margin": 3 - log10(params["loss.beta"])}
        study.tell(ask, told(line, ["m0"]))
    guided, random_ = ([beta > 1 for beta in drawn[start::2]] for start in (11, 10))
    assert sum(guided) > 0.6 * len(guided) and sum(random_) < 0.55 * len(random_)
    assert study.nothing_alive
    ask, params = study.ask()
    study.tell(ask, told({"outcome": "pruned", "kind": "rung 4", "margin": -0.5}, ["m0"]))
    assert not study.nothing_alive


@pytest.mark.parametrize(
    "line, lives",
    [
        ({"outcome": "completed", "margin": 0.4, "best": {"metrics": {"m0": 1.0}}}, True),
        ({"outcome": "pruned", "margin": None}, True),
        ({"outcome": "collapsed", "margin": 1.0}, False),
        ({"outcome": "diverged", "margin": 12.5}, False),
        ({"outcome": "failed", "kind": "exception"}, False),
        ({"outcome": "failed", "kind": "infrastructure"}, False),
    ],
)
def test_what_counts_as_living(line: dict[str, Any], lives: bool) -> None:
    study = Study(spec(), ["min"], Config)
    study.tell(study.ask()[0], told({"kind": None, **line}, ["m0"]))
    assert study.nothing_alive != lives


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_space_told_once_is_drawn_from_as_one_that_is_found_out() -> None:
    """The same draws as Optuna's own decomposition of the space gives, seed by seed."""

    class Grouped(Study):
        def _sampler(self, ask: int) -> TPESampler:
            return TPESampler(
                seed=self._seed(ask), n_startup_trials=STARTUP_TRIALS, multivariate=True, group=True,
                warn_independent_sampling=False,
            )  # fmt: skip

    tree = spec().to_dict()
    tree["search"] = {path: each for path, each in tree["search"].items() if path != "loss.free_bits"}
    drawn = []
    for kind in (Study, Grouped):
        rng, study = random.Random(1), kind(SweepSpec.from_dict(tree), ["min"], Config)
        drawn.append([])
        for _ in range(40):
            ask, params = study.ask()
            drawn[-1].append(params)
            study.tell(ask, told(outcome_of(params, rng), ["m0"]))
        assert isinstance(study._sampler(41), FixedSpaceTPESampler) == (kind is Study)
    assert drawn[0] == drawn[1]
    assert not isinstance(Study(spec(), ["min"], Config)._sampler(41), FixedSpaceTPESampler)  # with a `when`


def choices_of(*choices: Any) -> SweepSpec:
    return SweepSpec.from_dict(
        {
            "trainable": "toy", "seed": 5, "search": {"loss.beta": {"choice": list(choices)}},
            "objectives": ["m0"], "budget": {"trials": 40},
        }
    )  # fmt: skip


@pytest.mark.parametrize("choices", [(True, 1, 1.0), (False, 0, "0"), ([1, 2], [1, 2.0], {"end": 1}, {"end": True})])
def test_the_sampler_learns_which_of_several_choices_that_compare_equal_is_best(choices: tuple[Any, ...]) -> None:
    for best in choices:
        study, drawn = Study(choices_of(*choices), ["min"], Config), []
        rebuilt = Study(choices_of(*choices), ["min"], Config)
        for _ in range(40):
            ask, params = study.ask()
            line = json.loads(json.dumps({"params": params, "notes": study.notes(ask)}))
            drawn.append(json.dumps(params["loss.beta"]))
            value = 0.0 if drawn[-1] == json.dumps(best) else 1.0
            rebuilt.add(ask, line["params"], line["notes"])
            for one in (study, rebuilt):
                one.tell(ask, sampler_result("completed", margin=-1.0, values=[value]))
        assert drawn[10:].count(json.dumps(best)) > 18  # false was drawn once in 30 where it was best
        assert {*drawn} <= {json.dumps(choice) for choice in choices}
        assert rebuilt.ask() == study.ask()


def test_a_range_with_a_step_draws_its_numbers_as_they_are_written_and_resumes_to_the_same_draws() -> None:
    made = SweepSpec.from_dict(
        {
            "trainable": "toy", "seed": 5, "search": {"loss.beta": {"uniform": [0, 0.9], "step": 0.1}},
            "objectives": ["m0"], "budget": {"trials": 40},
        }
    )  # fmt: skip
    study, rebuilt, drawn = Study(made, ["min"], Config), Study(made, ["min"], Config), set()
    for _ in range(60):
        ask, params = study.ask()
        drawn.add(params["loss.beta"])
        rebuilt.add(ask, json.loads(json.dumps(params)), study.notes(ask))
        for one in (study, rebuilt):
            one.tell(ask, sampler_result("completed", margin=-1.0, values=[abs(params["loss.beta"] - 0.4)]))
    assert drawn <= {index / 10 for index in range(10)} and len(drawn) > 5
    assert [trial.params for trial in study.trials()] == [trial.params for trial in rebuilt.trials()]  # to the bit
    assert rebuilt.ask() == study.ask()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_the_widest_ranges_that_are_accepted_give_finite_draws() -> None:
    search: dict[str, Any] = {
        "loss.beta": {"uniform": [-1e300, 1e300]}, "loss.free_bits": {"loguniform": [1e-300, 1e300]},
        "layers": {"logint": [1, 2**40]}, "loss.use_free_bits": {"int": [-(2**40), 2**40]},
    }  # fmt: skip
    made = SweepSpec.from_dict(
        {"trainable": "toy", "search": search, "objectives": ["m0"], "budget": {"trials": 9}}
    )
    study = Study(made, ["min"], Config)
    for _ in range(40):
        ask, params = study.ask()
        assert all(made.search[path].low <= value <= made.search[path].high for path, value in params.items())
        study.tell(ask, sampler_result("completed", margin=-1.0, values=[abs(params["loss.beta"] / 1e300 - 0.3)]))
