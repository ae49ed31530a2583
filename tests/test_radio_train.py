"""A radio trial from maps to metrics: two passes, the same numbers on any number of ranks, exact resume, faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from collecting_sink import CollectingSink
from PIL import Image

from buttress.errors import BadInput
from buttress.rules import RuleEngine, RuleSet
from buttress.trainables.radio.config import Config
from buttress.trainables.radio.heldout import MapMonitor
from buttress.trainables.radio.loss import Batch
from buttress.trainables.radio.train import Radio, RadioTask
from buttress.training.checkpoints import load_checkpoint
from buttress.training.local_run import train as launch
from buttress.training.optimization import StepState
from buttress.training.registry import rules_file
from buttress.training.reporting import Reporter
from buttress.training.trainable import Reported
from buttress.training.world import World
from tests.ranks import Ranks, pair  # noqa: F401

pytestmark = pytest.mark.usefixtures("own_cache")


def config_of(loss: dict[str, Any] | None = None, **groups: dict[str, Any]) -> Config:
    """96 maps of 16 px, the smallest networks, 4 epochs of 3 steps, a discriminator from the sixth step on."""
    small: dict[str, dict[str, Any]] = {
        "data": {"size": "tiny", "shrink": 2, "batch_size": 3, "transmitters": 2},
        "model": {
            "ddconfig": {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1},
            "lossconfig": {"disc_start": 5, "disc_num_layers": 1, "perceptual_weight": 0.1, **(loss or {})},
        },
        "trainer": {"lr": 1e-3, "train_num_steps": 12},
        "buttress": {"epoch_steps": 3, "report_every": 2, "eval_images": 6, "eval_batch": 4},
    }
    return Config.of_groups(small, groups)


def train(config: Config, folder: Path, **more: Any) -> CollectingSink:
    sink = more.pop("sink", None) or CollectingSink("val/l1")
    launch(config, more.pop("family", None) or Radio(), folder, sink=sink, **more)
    return sink


def judged(reports: list[Reported]) -> Any:
    path = rules_file("radio")
    assert path is not None
    engine = RuleEngine(RuleSet.load(path), budget_epochs=reports[-1].epoch)
    for one in reports:
        engine.update(one.metrics, epoch=one.epoch, step=one.step, full_beta_epochs=one.full_beta_epochs,
                     full_beta_steps=one.full_beta_steps, phase=one.phase, nonfinite=one.nonfinite)  # fmt: skip
    return engine


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> tuple[Config, CollectingSink, Path]:
    folder = tmp_path_factory.mktemp("plain")
    return config_of(), train(config_of(), folder), folder


# ---- what is reported


def test_every_metric_that_is_declared_or_ruled_by_is_reported(plain: tuple[Config, CollectingSink, Path]) -> None:
    _, kept, _ = plain
    path = rules_file("radio")
    assert path is not None
    rules = RuleSet.load(path)
    ruled = {sign.metric for rule in rules.rules.values() for sign in rule.signs} | set(rules.aliases)
    assert ruled | set(Radio.metrics) | set(Radio.original_names) <= set(kept.last)
    assert {"train/logits_real", "train/logits_fake", "train/g_loss", "train/d_weight", "train/d_weight_raw",
            "train/discriminator/loss", "train/discriminator/lr", "ablation/relative"} <= set(kept.last)  # fmt: skip
    inside = next(one for one in kept.reports if "val/l1" not in one.metrics and one.metrics["train/disc_factor"])
    assert ruled <= set(inside.metrics)  # health reports hold what rules look at, too
    assert all(np.isfinite(value) for one in kept.reports for value in one.metrics.values())


def test_before_its_start_the_discriminator_is_absent_and_its_factor_zero(
    plain: tuple[Config, CollectingSink, Path],
) -> None:
    _, kept, _ = plain
    rows = [(one.step, one.phase, one.metrics["train/disc_factor"], "train/disc_loss" in one.metrics)
            for one in kept.reports]  # fmt: skip
    assert rows == [
        (2, 0, 0.0, False), (3, 0, 0.0, False), (5, 0, 0.0, False), (6, 1, 1.0, True),
        (8, 1, 1.0, True), (9, 1, 1.0, True), (11, 1, 1.0, True), (12, 1, 1.0, True),
    ]  # fmt: skip
    assert all(("train/g_loss" in one.metrics) == ("train/disc_loss" in one.metrics) for one in kept.reports)


def test_a_checkpoint_evaluates_to_what_its_epoch_reported(
    plain: tuple[Config, CollectingSink, Path], tmp_path: Path
) -> None:
    config, kept, folder = plain
    checkpoint = folder / str(kept.reports[-1].checkpoint)
    values, media = Radio().evaluate(config, checkpoint, World.single(tmp_path), "val")
    assert set(values) == {"val/l1", "val/l2", "val/psnr"}
    assert all(kept.last[name] == value for name, value in values.items())
    assert media["maps"].read_bytes()[:4] == b"\x89PNG"
    test, _ = Radio().evaluate(config, checkpoint, World.single(tmp_path), "test")
    assert test["val/l1"] != values["val/l1"]
    weights = Radio().weights(load_checkpoint(checkpoint))
    RadioTask(config, World.single(tmp_path)).model.load_state_dict(weights)
    other = Config.model_validate(config.model_dump() | {"model": config.model.model_dump() | {"embed_dim": 2}})
    with pytest.raises(BadInput, match="another config"):
        Radio().evaluate(other, checkpoint, World.single(tmp_path))


def test_scores_are_means_over_images_in_the_images_own_scale(tmp_path: Path) -> None:
    task = RadioTask(config_of(buttress={"eval_images": None}), World.single(tmp_path))
    task.model.decode = lambda z: torch.full((len(z), 1, 16, 16), -0.5)  # type: ignore[method-assign]
    with torch.no_grad():
        values = task.held_out.measure(task.model)
    x = task.dataset.grey[task.dataset.rows("val")] / 127.5 - 1
    assert values["val/l1"] == pytest.approx(np.abs(x + 0.5).mean(), rel=1e-6)
    square = ((x + 0.5) ** 2).mean((1, 2))
    assert values["val/l2"] == pytest.approx(square.mean(), rel=1e-6)
    assert values["val/psnr"] == pytest.approx((10 * np.log10(4 / square)).mean(), rel=1e-6)


def test_the_monitors_vectors_have_an_entry_per_channel() -> None:
    monitor = MapMonitor(2, 4)
    mu = torch.zeros(3, 2, 2, 2)
    mu[:, 1] = 1.0
    monitor.update(mu, torch.zeros_like(mu))
    merged = monitor.merge(monitor.pack()[None])
    assert merged["vector.kl"] == [0.0, 0.5] and merged["kl_total"] == 2.0 and merged["dims"] == 8.0
    assert merged["kl_per_dim"] == 0.25


# ---- schedules, batches


def test_the_learning_rate_is_the_originals(tmp_path: Path) -> None:
    """Logged steps of the reference run; the floor is one of the factor."""
    groups: dict[str, dict[str, Any]] = {"trainer": {"lr": 5e-6, "train_num_steps": 150_000},
                                         "buttress": {"epoch_steps": 5000}}  # fmt: skip
    rate = RadioTask(config_of(**groups), World.single(tmp_path)).passes[0].lr
    assert rate is not None
    found = {step: 5e-6 * rate.factor(0, step) for step in (0, 35_000, 50_000, 75_000, 100_000, 149_900, 150_000)}
    wanted = (5e-6, 3.885e-6, 3.402e-6, 2.588e-6, 1.761e-6, 4.8e-9, 2.5e-12)
    assert list(found.values()) == pytest.approx(list(wanted), rel=2e-3)
    groups["buttress"]["lr_warmup_steps"] = 99
    rate = RadioTask(config_of(**groups), World.single(tmp_path)).passes[0].lr
    assert rate is not None and [rate.factor(0, s) for s in (0, 49, 98)] == pytest.approx([0.01, 0.5, 0.99], rel=0.03)


def test_both_optimisers_are_clipped_and_the_discriminators_rate_is_its_own(tmp_path: Path) -> None:
    task = RadioTask(config_of(buttress={"disc_lr_factor": 0.25, "learn_logvar": True}), World.single(tmp_path))
    generator, critic = task.passes
    assert generator.clip == critic.clip == 1.0 and critic.starts_at_step == 5
    assert [group["lr"] for group in generator.optimizer.param_groups] == [1e-3, 1e-3]
    assert critic.optimizer.param_groups[0]["lr"] == 2.5e-4
    assert generator.optimizer.param_groups[1]["params"] == [task.autoencoding.logvar]
    assert sum(p.numel() for p in critic.module.parameters()) == sum(
        p.numel() for group in critic.optimizer.param_groups for p in group["params"]
    )


def test_the_stream_of_images_is_round_after_round_of_the_training_maps(tmp_path: Path) -> None:
    task = RadioTask(config_of(), World.single(tmp_path))
    rounds = len(task.training)
    drawn = [batch for epoch in range(8) for batch in task.batches(epoch)]
    images = torch.cat([batch.x for batch in drawn]).flatten(1)
    assert rounds == 32 and len(images) == 72
    assert len(images[:32].unique(dim=0)) == len(images[32:64].unique(dim=0)) == 32
    assert not torch.equal(images[:32], images[32:64])
    again = list(task.batches(3))
    assert all(torch.equal(a.x, b.x) and torch.equal(a.noise, b.noise) for a, b in zip(drawn[9:12], again, strict=True))
    noise = torch.cat([batch.noise for batch in drawn]).flatten(1)
    assert len(noise.unique(dim=0)) == 72 and float(noise.std()) == pytest.approx(1.0, abs=0.05)


def test_the_discriminators_optimiser_has_stepped_on_zero_gradients_when_its_pass_begins(tmp_path: Path) -> None:
    task = RadioTask(config_of(buttress={"disc_lr_factor": 2.0}), World.single(tmp_path))
    critic, state = task.passes[1], StepState()
    before = [parameter.detach().clone() for parameter in critic.module.parameters()]
    for state.step in range(1, 7):
        task.stepped(state)
    decay = 0.01 * 2e-3 * np.array([(1 - step / 12) ** 0.95 for step in range(5)])
    for one, first in zip(critic.module.parameters(), before, strict=True):
        torch.testing.assert_close(one.detach(), first * np.prod(1 - decay))
        held = critic.optimizer.state[one]
        assert held["step"] == 5 and not held["exp_avg"].any() and not held["exp_avg_sq"].any() and one.grad is None
    assert critic.optimizer.param_groups[0]["lr"] == 2e-3 and not task.passes[0].optimizer.state


# ---- resume, average, ranks


def test_a_stopped_run_goes_on_to_the_same_numbers_across_the_switch(tmp_path: Path) -> None:
    config = config_of(
        buttress={"ema": True, "ema_every": 2, "ema_warmup": 3, "ema_decay": 0.5, "learn_logvar": True},
        model={"ddconfig": {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "dropout": 0.1},
               "lossconfig": {"disc_start": 5, "disc_num_layers": 1, "perceptual_weight": 0.1}},
    )  # fmt: skip
    whole = train(config, tmp_path / "whole")
    for until in (1, 2):  # before the discriminator's start, and after it
        folder = tmp_path / f"stopped{until}"
        train(config, folder, sink=CollectingSink("val/l1", until=until))
        resumed = train(config, folder, resume=folder / f"checkpoints/{until:06d}.pt")
        assert resumed.epochs[0].epoch == until + 1 and resumed.last == whole.last


def test_the_average_is_what_is_evaluated_and_exported(tmp_path: Path) -> None:
    config = config_of(buttress={"ema": True, "ema_every": 2, "ema_warmup": 3, "ema_decay": 0.75})
    task = RadioTask(config, World.single(tmp_path))
    assert task.average is not None and task.judged is task.average.module
    found = []
    for step in range(1, 14):
        with torch.no_grad():
            task.model.last.fill_(float(step))
        task.average.update(step)
        found.append(float(task.average.module.last.mean()))
    assert found[:6] == [1, 1, 3, 3, 5, 5]  # a copy, and once more after the warm-up
    wanted = 5.0
    for step, decay in ((7, 1 - 4 ** (-2 / 3)), (9, 1 - 6 ** (-2 / 3)), (11, 0.75), (13, 0.75)):
        wanted = decay * wanted + (1 - decay) * step
        assert found[step - 1] == pytest.approx(wanted)
    kept = train(config, tmp_path)
    checkpoint = tmp_path / str(kept.reports[-1].checkpoint)
    values, _ = Radio().evaluate(config, checkpoint, World.single(tmp_path))
    assert values["val/l1"] == kept.last["val/l1"]
    held = load_checkpoint(checkpoint)
    exported, trained = Radio().weights(held), held["module.vae"]
    assert all(torch.equal(exported[name], held["task"]["average"][name]) for name in exported)
    assert any(not torch.equal(exported[name], trained[f"model.{name}"]) for name in exported)


def reports(world: World, config: Config) -> list[tuple[int, dict[str, float]]]:
    kept = CollectingSink("val/l1")
    with Reporter(world, Radio().schedule(config), kept) as report:
        Radio().train(config, world, report, None)
    return [(one.step, one.metrics) for one in kept.reports]


def test_one_and_two_ranks_train_the_same_networks(tmp_path: Path, pair: Ranks) -> None:  # noqa: F811
    """Twelve steps in float64 with both passes, shares of one and two images, clipping and a learnt log-variance."""
    config = config_of(
        {"kl_weight": 0.01, "disc_num_layers": 2},
        data={"size": "tiny", "shrink": 2, "batch_size": 3, "transmitters": 2},
        buttress={"dtype": "float64", "learn_logvar": True, "ema": True, "ema_warmup": 4, "ema_every": 1},
    )
    one, (two, _) = reports(World.single(tmp_path), config), pair.run(reports, config)
    assert [step for step, _ in one] == [step for step, _ in two] and one[-1][0] == 12
    for (step, metrics), (_, theirs) in zip(one, two, strict=True):
        assert set(metrics) == set(theirs)
        for name, value in metrics.items():
            assert theirs[name] == pytest.approx(value, rel=1e-7, abs=1e-10), (step, name)
    assert one[-1][1]["train/d_weight_raw"] > 0


# ---- faults


def test_a_discriminator_that_nobody_trains_is_noticed(tmp_path: Path) -> None:
    """Its learning rate is 0, as in the reference run: its pass is left out, and the warning comes."""
    config = config_of(
        trainer={"train_num_steps": 48},
        buttress={"disc_lr_factor": 0.0, "report_every": 1, "epoch_steps": 24, "eval_images": 2},
    )
    kept = train(config, tmp_path)
    assert not any("train/disc_loss" in one.metrics for one in kept.reports)
    assert kept.last["train/disc_factor"] == 1.0 and "train/g_loss" in kept.last
    engine = judged(kept.reports)
    assert [one.rule for one in engine.warnings] == ["discriminator not training"] and engine.verdict.state == "healthy"


class Poisoned(RadioTask):
    def batches(self, epoch: int) -> Any:
        for at, batch in enumerate(super().batches(epoch)):
            yield batch if epoch == 0 and at < 2 else Batch(batch.x * float("nan"), batch.noise, batch.rows)


def test_a_nan_in_the_images_is_told_as_divergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buttress.trainables.radio.train.RadioTask", Poisoned)
    kept = train(config_of(buttress={"epoch_steps": 3, "report_every": 1, "eval_images": 2}), tmp_path)
    assert kept.reports[2].metrics["train/nonfinite"] > 0
    verdict = judged(kept.reports).verdict
    assert verdict.state == "diverged" and verdict.final


def test_constant_images_give_finite_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "maps/gain/DPM"
    folder.mkdir(parents=True)
    for number in range(4):
        Image.new("L", (16, 16), 0).save(folder / f"{number}_0.png")
    config = config_of(data={"kind": "files", "root": str(tmp_path / "maps"), "batch_size": 2, "shrink": 1})
    kept = train(config, tmp_path)
    assert not any(one.nonfinite for one in kept.reports) and kept.last["val/psnr"] < 127


def test_a_batch_of_fewer_images_than_ranks_and_maps_of_no_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"data\.batch_size: is less than an image per rank"):
        RadioTask(config_of(data={"batch_size": 1, "size": "tiny", "shrink": 2}), World(folder=tmp_path, size=2))
    folder = tmp_path / "maps/gain/DPM"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.new("L", (15, 16), 9).save(folder / f"{number}_0.png")
    with pytest.raises(BadInput, match=r"maps of 16 x 15 px cannot be halved evenly"):
        own = {"kind": "files", "root": str(tmp_path / "maps"), "shrink": 1}
        RadioTask(config_of(data=own), World(folder=tmp_path))
