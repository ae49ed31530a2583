"""Known failures of the radio family in the quick profile of its search space, and what must live; judged by the rules
that a sweep of that profile has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from collecting_sink import CollectingSink

from buttress.execution.setup import resolve_rules
from buttress.rules import RuleEngine
from buttress.spec import trial_config
from buttress.spec.spec import SweepSpec
from buttress.trainables.radio.config import Config
from buttress.trainables.radio.train import Radio
from buttress.training.local_run import train as launch
from buttress.training.registry import rules_file
from buttress.training.trainable import Reported

pytestmark = [pytest.mark.control, pytest.mark.usefixtures("own_cache")]

KL, START = "model.lossconfig.kl_weight", "model.lossconfig.disc_start"
#: What the quick profile searches, in the middle of its ranges.
MIDDLE: dict[str, Any] = {
    KL: 1e-6,
    START: 160,
    "model.lossconfig.disc_weight": 0.5,
    "model.lossconfig.perceptual_weight": 0.1,
    "model.ddconfig.z_channels": 3,
    "model.embed_dim": 3,
    "trainer.lr": 5e-4,
    "buttress.disc_lr_factor": 0.2,
}


def run(folder: Path, steps: int | None = None, report_every: int | None = None, **params: Any) -> list[Reported]:
    """A quick trial to its end, with `params` (`__` for a dot) over MIDDLE."""
    root = Path(__file__).parents[1] / "search_spaces/radio.yaml"
    fixed = [f"config.trainer.train_num_steps={steps}"] if steps else []
    fixed += [f"config.buttress.report_every={report_every}"] if report_every else []
    spec = SweepSpec.load(root, profile="quick", overrides=fixed)
    config = trial_config.build(spec, {**MIDDLE, **params}, Config, seed=5)
    kept = CollectingSink("val/l1")
    launch(config, Radio(), folder, sink=kept)
    return kept.reports


def judged(reports: list[Reported], *, shipped: bool = False) -> Any:
    """The engine with the quick profile's rules, or with `rules.yaml` as it is, after the reports."""
    root = Path(__file__).parents[1] / "search_spaces/radio.yaml"
    rules = resolve_rules(SweepSpec.load(root, profile="quick"))
    if shipped:
        path = rules_file("radio")
        assert path is not None
        rules = type(rules).load(path)
    engine = RuleEngine(rules, budget_epochs=reports[-1].epoch)
    for one in reports:
        age = {"full_beta_epochs": one.full_beta_epochs, "full_beta_steps": one.full_beta_steps, "phase": one.phase}
        engine.update(one.metrics, epoch=one.epoch, step=one.step, **age, nonfinite=one.nonfinite, closing=one.closing)
    return engine


def test_kl_weight_10_kills_the_latent_map_and_is_killed(tmp_path: Path) -> None:
    reports = run(tmp_path, steps=200, **{KL: 10.0, START: 100})
    verdict = judged(reports).verdict
    assert verdict.state == "collapsed" and verdict.rule == "posterior_collapse" and 0.5 < verdict.margin < 4
    assert reports[-1].metrics["latent/kl_per_dim"] < 0.02


def test_the_shipped_rules_kill_it_too_after_their_longer_grace(tmp_path: Path) -> None:
    reports = run(tmp_path, steps=560, report_every=10, **{KL: 10.0, START: 560 * 2})
    verdict = judged(reports, shipped=True).verdict
    assert verdict.state == "collapsed" and verdict.rule == "posterior_collapse"


def test_a_healthy_quick_trial_lives_with_its_discriminator(tmp_path: Path) -> None:
    reports = run(tmp_path)
    for shipped in (False, True):
        engine = judged(reports, shipped=shipped)
        assert engine.verdict.state == "healthy" and engine.verdict.margin < -0.2
        assert not engine.warnings
    last = reports[-1].metrics
    assert last["latent/kl_per_dim"] > 0.5 and last["ablation/relative"] > 0.5
    assert 0.05 < last["train/disc_loss"] < 1.2 and reports[-1].phase == 1


def test_a_frozen_discriminator_is_warned_of(tmp_path: Path) -> None:
    engine = judged(run(tmp_path, steps=240, **{START: 100, "buttress.disc_lr_factor": 0.0}))
    assert [one.rule for one in engine.warnings] == ["discriminator not training"]
    assert engine.verdict.state == "healthy"
