"""The public stopper and scheduler do in a plain Tune run what a sweep does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from buttress import BadInput, CollapseStopper, FullBetaHalving

RULES = {"rules": {"gone": {"action": "kill", "signs": [{"metric": "latent/kl", "below": 0.1}], "patience": 2}}}


def result(iteration: int, kl: Any = 5.0, **more: Any) -> dict[str, Any]:
    """As Tune hands it to a stopper."""
    return {"training_iteration": iteration, "latent/kl": kl, **more}


def test_a_plain_tune_run_stops_what_collapses_or_lags_however_it_is_reported(ray_cluster: Any, tmp_path: Path) -> None:
    from ray import tune

    forms: dict[str, Callable[[float], dict[str, Any]]] = {
        "float": lambda kl: {"latent/kl": kl},
        "numpy": lambda kl: {"latent/kl": np.float32(kl)},
        "array": lambda kl: {"latent/kl": np.array([kl])},
        "nested": lambda kl: {"latent": {"kl": np.array(kl)}},
    }

    def run(config: dict[str, Any]) -> None:
        """Six epochs; the KL is small in the warm-up of two, and of a trial that collapses in its last two, too."""
        for epoch in range(1, 7):
            small = epoch <= 2 or (config["collapses"] and epoch >= 5)
            report = forms[config["form"]](1e-3 if small else 5.0)
            tune.report({**report, "epoch": np.int64(epoch), "val": {"score": np.float32(config["score"])}})

    trials = [{"form": form, "collapses": True, "score": 5} for form in forms]
    trials += [{"form": "nested", "collapses": False, "score": score} for score in (4, 1, np.inf)]
    results = tune.Tuner(
        tune.with_resources(run, {"cpu": 0.1}),
        param_space=tune.grid_search(trials),
        tune_config=tune.TuneConfig(
            scheduler=FullBetaHalving("val/score", "max", first=3, factor=1.25, full_at=2),
            max_concurrent_trials=1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(stop=CollapseStopper(RULES, full_at=2), storage_path=str(tmp_path), verbose=0),
    ).fit()
    assert not results.errors
    ends = [(each.metrics["epoch"], each.metrics.get("outcome")) for each in results if each.metrics]
    assert ends == [(6, "collapsed")] * 4 + [(6, None), (5, None), (5, None)]


def test_a_stopper_without_an_age_does_not_take_the_warm_up_for_it() -> None:
    with pytest.raises(BadInput, match=r"the rule gone needs the age at full beta.*`full_at=`"):
        CollapseStopper(RULES)("a", result(1))
    early = {"rules": {"gone": {**RULES["rules"]["gone"], "grace": {"before_full_beta": True}}}}
    stopper = CollapseStopper(early)  # looks at no age
    assert [stopper("a", result(epoch, 0.0)) for epoch in (1, 2)] == [False, True]


@pytest.mark.parametrize("reported", [True, False], ids=["full_beta_epochs", "full_at"])
def test_a_stopper_counts_steps_from_the_moment_that_beta_is_final(reported: bool) -> None:
    waits = {"rules": {"gone": {**RULES["rules"]["gone"], "grace": {"steps": 200}, "patience": 1}}}
    stopper = CollapseStopper(waits, full_at=None if reported else 3)
    for epoch in range(1, 9):
        age = {"full_beta_epochs": max(0, epoch - 3)} if reported else {}
        if stopper("a", result(epoch, np.float64(0), epoch=epoch, step=100 * epoch, **age)):
            break
    assert epoch == 5  # 200 steps after the third


def test_a_result_that_tune_hands_over_twice_counts_once() -> None:
    stopper = CollapseStopper(RULES, full_at=0)
    assert not stopper("a", result(1))
    assert not stopper("a", result(2, 0.0))
    assert not stopper("a", result(2, 0.0, done=True))  # the end of a function
    assert not stopper("a", result(1, 0.0))  # it was restarted
    assert stopper("a", result(3, 0.0))


def test_a_stopper_names_the_kill_rules_that_cannot_judge() -> None:
    stopper = CollapseStopper(RULES, full_at=0)
    assert not stopper("a", {"training_iteration": 1, "latent/KL": 0.0})
    with pytest.warns(UserWarning, match="the rule gone stops no trial: no result has latent/kl$"):
        stopper("a", {"training_iteration": 2, "latent/KL": 0.0, "done": True})


def test_a_scheduler_needs_an_age_and_reads_any_number() -> None:
    def end(scheduler: FullBetaHalving, name: str, **metrics: Any) -> str:
        return str(scheduler.on_trial_result(None, SimpleNamespace(trial_id=name), metrics))

    with pytest.raises(BadInput, match="FullBetaHalving needs the age at full beta"):
        end(FullBetaHalving("loss", "min"), "a", loss=1.0, training_iteration=1)
    scheduler = FullBetaHalving("val/loss", "min", first=1, factor=2)
    assert end(scheduler, "a", val={"loss": np.array(1.0)}, full_beta_epochs=np.int64(1)) == "CONTINUE"
    assert end(scheduler, "b", val={"loss": np.float32(2.0)}, full_beta_epochs=np.float32(1)) == "STOP"
    assert end(scheduler, "c", val={"loss": -np.inf}, full_beta_epochs=1) == "STOP"
    assert end(scheduler, "d", other=1.0) == "CONTINUE"
