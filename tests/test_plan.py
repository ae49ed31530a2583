"""What `plan` estimates: seconds from the first reports of a training, and epochs from the real rungs."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sweeps import Toy, World, spec, state

import buttress
from buttress.callbacks.checkpoint_retention import CheckpointRetention, LocalTrialFiles
from buttress.errors import BadInput
from buttress.execution import step_timing as timing
from buttress.execution.event_handler import EventHandler
from buttress.execution.messages import AssignmentEnded, AttemptResult, Ending, ReportReceived
from buttress.execution.plan import (
    describe_parameter,
    epochs_of_sweep,
    find_warnings,
    sample_configs,
    with_measured_steps,
)
from buttress.spec.parameters import Parameter
from buttress.spec.spec import SweepSpec
from buttress.spec.validation import uncovered_weights
from buttress.trainables.occupancy.train import Occupancy
from buttress.training import registry
from buttress.training.trainable import Buttress, Metric, Reported, Schedule, Section

ROOT = Path(__file__).parents[1]


def reported(epoch: int, step: int, seconds: float, **metrics: float) -> Reported:
    full = max(0, epoch - 1)  # beta is full from the second epoch
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return Reported(epoch, step, full, full * 100, 0, named, seconds=seconds)


def test_epochs_with_the_objective_are_told_from_those_without() -> None:
    reports = [reported(0, 50, 3.5), reported(0, 75, 3.75)]  # 10 ms a step, begun after 3 s
    reports += [reported(epoch, 100 * epoch, 3 + 1.2 * epoch) for epoch in range(1, 5)]
    reports.append(reported(5, 500, 3 + 1.2 * 5 + 8.0, val__score=0.5))  # with an import of 6 s
    reports += [reported(epoch, 100 * epoch, 3 + 1.2 * epoch + 8.0) for epoch in range(6, 9)]
    reports.append(reported(9, 900, 3 + 1.2 * 9 + 8.0 + 2.0, val__score=0.6))
    found = timing.timing_of(reports, ["val/score"])
    assert found.step_s == pytest.approx(0.01)
    assert found.data_s == pytest.approx(3.0)
    assert found.steps_per_epoch == 100
    assert found.epoch_s == pytest.approx(1.2)
    assert found.objective_s == pytest.approx(2.0)
    assert found.objective_every == 4  # first seen at four full-beta epochs
    # 20 epochs, 19 of them at full beta: the objective is computed four times
    assert found.trial(20, 19) == pytest.approx(20 * 1.2 + 4 * 2.0)


def test_an_objective_in_every_epoch_is_part_of_the_epoch() -> None:
    reports = [reported(epoch, 100 * epoch, 2.0 * epoch, val__score=0.5) for epoch in (1, 2)]
    found = timing.timing_of(reports, ["val/score"])
    assert (found.epoch_s, found.objective_s, found.objective_every) == (pytest.approx(2.0), 0.0, 1)
    assert found.trial(10, 9) == pytest.approx(20.0)


def test_reports_inside_later_epochs_end_none() -> None:
    """Every 50 of 100 steps; epochs of 1.2 s, the third with the objective."""
    reports = [reported(0, 25, 3.3), reported(0, 50, 3.6)]
    for epoch in range(1, 4):
        reports.append(reported(epoch, 100 * epoch, 3 + 1.2 * epoch, **({"val__score": 0.5} if epoch == 3 else {})))
        reports.append(reported(epoch, 100 * epoch + 50, 3 + 1.2 * epoch + 0.6))
    found = timing.timing_of(reports, ["val/score"])
    assert found.steps_per_epoch == 100
    assert (found.data_s, found.epoch_s, found.objective_every) == (pytest.approx(3.0), pytest.approx(1.2), 2)


def test_reading_the_data_is_no_part_of_an_epoch_that_has_no_reports_inside() -> None:
    found = timing.timing_of([reported(epoch, 100 * epoch, 7.0 + 0.5 * epoch) for epoch in (1, 2, 3)], ["val/score"])
    assert (found.data_s, found.epoch_s) == (pytest.approx(7.0), pytest.approx(0.5))


def test_the_length_of_an_epoch_that_did_not_end_comes_from_its_progress() -> None:
    reports = [reported(0, step, 5 + 4.0 * step, train__progress=step / 40) for step in (1, 2, 3, 4)]
    found = timing.timing_of(reports, ["val/score"])
    assert found.steps_per_epoch == 40
    assert found.epoch_s == pytest.approx(40 * 4.0 * (1 + timing.VALIDATION_SHARE))
    with pytest.raises(BadInput, match="no epoch ended"):
        timing.timing_of([reported(0, 1, 5.0)], ["val/score"])


def test_a_range_is_told_with_its_step_and_its_condition() -> None:
    parameter = Parameter.model_validate({"choice": [0.0, True, None, "a"], "when": "config.x > 1"})
    assert describe_parameter(parameter) == "choice of 0, true, null, a, when config.x > 1"
    parameter = Parameter.model_validate({"int": [0, 60], "step": 5})
    assert describe_parameter(parameter) == "int 0 to 60 in steps of 5"


def test_rungs_shorten_the_sweep_as_halving_does() -> None:
    schedules = [Schedule(epochs=16, full_at_epoch=0)] * 64
    halved = epochs_of_sweep(spec(scheduler={"kind": "asha", "first": 2, "factor": 2}), schedules)
    whole = epochs_of_sweep(spec(scheduler={"kind": "fifo"}), schedules)
    assert whole == [16] * 64
    # synchronous halving would run a trial 2 + 1 + 1 + 1 = 5 epochs; asynchronous lets more of the early ones pass
    assert 5 * 64 <= sum(halved) < 9 * 64
    assert set(halved) == {2, 4, 8, 16}


class FlatConfig(Section):
    beta: float = 1.0
    epochs: int = 5
    buttress: Buttress = Buttress()


def test_a_family_whose_epochs_stand_elsewhere_is_planned_as_it_would_be_swept() -> None:
    """`budget.full_beta_epochs` sets the family's own `epochs_path`."""

    class Flat(Toy):
        Config, epochs_path = FlatConfig, "epochs"

        def schedule(self, config: Any) -> Schedule:
            return Schedule(epochs=config.epochs, full_at_epoch=2)

    flat = SweepSpec.from_dict(
        {"name": "flat", "trainable": "toy", "search": {"beta": {"uniform": [0.1, 1.0]}}, "objectives": ["val/score"],
         "scheduler": {"kind": "fifo"}, "budget": {"trials": 3, "full_beta_epochs": 6}}
    )  # fmt: skip
    configs, refused = sample_configs(flat, Flat())
    assert refused == 0 and {config.epochs for config in configs} == {8}


def test_trials_are_timed_together_until_their_objective_is_known() -> None:
    small = SweepSpec.load(
        ROOT / "search_spaces" / "lithology.yaml", profile="quick",
        overrides=["config.data.size=tiny", "config.loss.anneal=constant"],
    )  # fmt: skip
    configs, _ = sample_configs(small, registry.load(small.trainable))
    found, _ = timing.measure(small, configs, slots=2)
    assert found.at_once == min(2, timing.os.cpu_count() or 1)
    assert found.objective_every == configs[0].buttress.ari_every
    assert found.step_s > 0 and found.objective_s >= 0  # of a table this small the mixture costs next to nothing
    assert found.epoch_s > found.step_s * found.steps_per_epoch / 2


def test_the_warm_up_of_occupancy_counts_in_epochs_as_its_sweep_will() -> None:
    """25 warm-up steps of 240 an epoch take one of them; without `train.steps_per_epoch` the data alone knows."""
    given = ["budget.full_beta_epochs=3", "fixed.train.warmup_steps=25"]
    loaded = SweepSpec.load(ROOT / "search_spaces" / "occupancy.yaml", profile="quick", overrides=given)
    fixed = {path: value for path, value in loaded.fixed.items() if path != "train.epochs"}
    quick = loaded.model_copy(update={"fixed": fixed})
    configs, _ = sample_configs(quick, Occupancy())
    assert {config.train.epochs for config in configs} == {4}
    late = quick.model_copy(update={"fixed": {**fixed, "train.warmup_steps": 10**9}, "budget": spec().budget})
    with pytest.raises(BadInput, match="beta settles after 1,000,000,000 steps"):
        sample_configs(late, Occupancy())


def test_a_warm_up_in_steps_is_judged_by_the_measured_epoch() -> None:
    late = Schedule(epochs=5, full_at_step=25)
    assert late.in_steps_only and with_measured_steps(spec(), late, 10).settles_after() == (3, 25)
    with pytest.raises(BadInput, match=r"beta settles after 25 steps \(5 an epoch\), in a budget of 5 epochs"):
        with_measured_steps(spec(), late, 5)
    assert epochs_of_sweep(spec(), [Schedule(epochs=9, full_at_step=25, steps_per_epoch=10)]) == [9]


@pytest.mark.parametrize(
    ("path", "named"),
    [("beta", True), ("loss.beta.end", True), ("loss.kl_weight", True), ("w_kl", True), ("loss.Weights.recon", True),
     ("optim.weight_decay", False), ("optim.beta1", False), ("alphabeta", False), ("init.weight_init", False)],
)  # fmt: skip
def test_a_searched_weight_that_no_metric_names_is_warned_of(path: str, named: bool) -> None:
    searching = spec(False, search={path: {"uniform": [0.1, 1.0]}}, require=[])
    assert uncovered_weights(searching, {"val/score": Metric("min")}) == [path] * named
    for covered in (path, path.rpartition(".")[0] or path):
        assert uncovered_weights(searching, {"loss": Metric("min", weighted_by=(covered,))}) == []


@pytest.mark.parametrize("family", sorted(registry.FAMILIES))
def test_no_family_is_warned_of(family: str) -> None:
    """Tests hold that their metrics say which weights they depend on."""
    found = SweepSpec.load(ROOT / "search_spaces" / f"{family}.yaml")
    assert find_warnings(found, registry.load(family), None) == []


WITHOUT_CHECKPOINTS = """
from buttress import Buttress, Metric, Schedule, Section

class Config(Section):
    beta: float = 1.0
    epochs: int = 4
    buttress: Buttress = Buttress()

class Forgetful:
    name, Config, epochs_path, metrics = "forgetful", Config, "epochs", {"val/score": Metric("max")}

    def schedule(self, config):
        return Schedule(config.epochs)

    def train(self, config, world, report, resume):
        for epoch in range(1, config.epochs + 1):
            report({"epoch": epoch, "step": epoch, "val/score": 0.5})
"""


def test_the_plan_warns_of_a_trainer_without_checkpoints_of_its_weight_and_of_rules_that_see_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "forgetful.py").write_text(WITHOUT_CHECKPOINTS)
    forgetful = {
        "trainable": "forgetful:Forgetful", "search": {"beta": {"uniform": [0, 1]}}, "objectives": ["val/score"],
        "budget": {"trials": 2}, "resources": {"concurrency": 1},
    }  # fmt: skip
    weight, checkpoints, *blind = buttress.plan(forgetful).warnings
    assert weight.startswith("beta is searched, and no metric says that its scale depends on it")
    assert checkpoints.startswith("the trainer reports no checkpoints: an interrupted trial begins anew")
    assert [each.partition(" stops no trial: ")[0] for each in blind] == ["posterior_collapse", "diverged", "zero_loss"]
    assert blind[0].endswith("latent/kl_total and latent/active_kl were never reported")
    late = buttress.plan(forgetful, set={"fixed": {"buttress.checkpoint_every": 50}})
    assert late.warnings == (weight, *blind)  # its first is not due within the moment that is timed


def test_a_sweep_warns_once_of_a_trainer_without_checkpoints(tmp_path: Path) -> None:
    """When its first trial has ended, and not where a trainer reports some."""
    for reports_any in (False, True):
        said: list[str] = []
        sweep = state()
        files = CheckpointRetention(LocalTrialFiles(tmp_path), "val/score", "max")
        nobody: Any = None  # no slot is asked for anything
        events = EventHandler(sweep, nobody, nobody, files, on_message=said.append, fail=pytest.fail)
        for _ in range(3):
            trial = sweep.next_trial()
            assert trial is not None
            sweep.started(trial.id, "slot-0")
            for each in World().reports({**trial.config, "loss": {"beta": 0.5, "warmup_epochs": 0}}):
                shown = each if reports_any else replace(each, checkpoint=None)
                events.handle(ReportReceived(trial.id, 1, pickle.dumps(shown)))
            events.handle(AssignmentEnded(trial.id, 1, "slot-0", AttemptResult(Ending.FINISHED)))
        assert len(said) == (0 if reports_any else 1)
        assert reports_any or "has reported no checkpoint: an interrupted trial begins anew" in said[0]
