"""A rainfall trial from days to metrics: schedules, the same numbers on any number of ranks, exact resume."""

from __future__ import annotations

from dataclasses import replace
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from collecting_sink import CollectingSink
from pydantic import ValidationError

from buttress.errors import BadInput
from buttress.spec import validation
from buttress.spec.spec import SweepSpec
from buttress.trainables.rainfall import data as files
from buttress.trainables.rainfall.config import RECIPES, Config
from buttress.trainables.rainfall.loss import reconstruction
from buttress.trainables.rainfall.synthetic import SIZES, Size
from buttress.trainables.rainfall.train import Rainfall, RainfallTask
from buttress.training.local_run import train as launch
from buttress.training.losses import reparameterize
from buttress.training.optimization import StepState
from buttress.training.randomness import keyed_normal
from buttress.training.registry import load
from buttress.training.reporting import Reporter
from buttress.training.world import World
from tests.ranks import Ranks, pair  # noqa: F401

pytestmark = pytest.mark.usefixtures("own_cache")


def config_of(**groups: dict[str, Any]) -> Config:
    """48 days of 20 x 16, a small net, 3 epochs of 6 steps; changed by `groups`."""
    small: dict[str, dict[str, Any]] = {
        "data": {"size": "tiny"},
        "model": {"d_x": 8, "d_y": 8, "d_z": 4, "base_filters": 2, "fc": 16, "head": 12, "pool": 2},
        "loss": {"warmup_epochs": 1, "beta_kl": 0.05},
        "train": {"epochs": 3, "batch_size": 8, "lr": 1e-3, "early_stopping_patience": None},
        "buttress": {"report_every": 3, "eval_batch": 4},
    }
    return Config.of_groups(small, groups)


def train(config: Config, folder: Path, **more: Any) -> CollectingSink:
    sink = more.pop("sink", None) or CollectingSink("prior/crps")
    launch(config, Rainfall(), folder, sink=sink, **more)
    return sink


def task_of(config: Config, folder: Path) -> RainfallTask:
    return RainfallTask(config, Rainfall().schedule(config), World.single(folder))


# ---- what is reported


def test_every_declared_metric_is_reported_and_every_mode(tmp_path: Path) -> None:
    kept = train(config_of(), tmp_path)
    terms = {"train/l_mass", "train/l_gradient"}  # of losses that are switched off here
    assert set(Rainfall.metrics) | set(Rainfall.original_names) - terms <= set(kept.last)
    assert {"prior/diversity", "prior/max", "prior/mass_bias", "prior/wet_fraction", "prior/extreme_ratio",
            "posterior/mass_bias", "truth/wet_fraction", "ablation/relative",
            "latent/kl_total"} <= set(kept.last)  # fmt: skip
    assert kept.last["val/kl"] == pytest.approx(kept.last["latent/kl_total"], rel=1e-5)
    assert all(np.isfinite(value) for one in kept.reports for value in one.metrics.values())
    assert not any(one.nonfinite for one in kept.reports)


def test_no_objective_sees_the_target_or_moves_with_a_weight(root: Path) -> None:
    spec = SweepSpec.load(root / "search_spaces/rainfall.yaml")
    assert [one.metric for one in spec.objectives] == ["prior/crps", "prior/mae_tail"]
    for metric in ("posterior/mae_tail", "posterior/combined", "val/kl", "val/l_rec", "train/loss"):
        spec = SweepSpec.load(root / "search_spaces/rainfall.yaml", overrides=[f"objectives=[{metric}]"])
        with pytest.raises(BadInput, match=r"sees the target|changes its scale"):
            validation.check(spec, Rainfall())


@pytest.mark.parametrize("profile", [None, "full", "quick"])
def test_the_search_space_fits_the_family(profile: str | None, root: Path) -> None:
    spec, family = SweepSpec.load(root / "search_spaces/rainfall.yaml", profile=profile), load("rainfall")
    validation.check(spec, family)
    assert {"loss.lambda_ext", "loss.beta_kl", "loss.warmup_epochs", "loss.lambda_mass", "loss.scale", "loss.w_max",
            "loss.tail_boost", "train.lr", "train.min_heavy_fraction", "model.d_z"} <= set(spec.search)  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_the_originals_runs_are_configs(name: str) -> None:
    assert Config.recipe(name).train.epochs in (80, 100, 150, 250, 300)
    assert Config.recipe(name, train={"epochs": 99, "lr_warmup_epochs": 0}).train.epochs == 99


def test_scores_do_not_depend_on_the_trials_seed(tmp_path: Path) -> None:
    """The same weights are scored alike in every trial: the evaluation's noise is its own."""
    values = []
    for seed in (1, 2):
        config = config_of(buttress={"seed": seed})
        task = RainfallTask(config, Rainfall().schedule(config), World.single(tmp_path, seed=seed))
        generator = torch.Generator().manual_seed(0)
        for parameter in task.model.parameters():
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        task.objective.eval()
        with torch.no_grad():
            values.append(task.held_out.measure(task.model))
    assert values[0] == values[1]


@pytest.mark.parametrize("variant", ["batch", "ratio_buggy", "per_sample", "intensity"])
def test_the_validation_loss_is_that_of_all_scored_days_at_once(variant: str, tmp_path: Path) -> None:
    config = config_of(loss={"reconstruction": variant}, buttress={"dtype": "float64", "eval_batch": 3})
    task = task_of(config, tmp_path)
    model, held = task.model.eval(), task.held_out
    rows = held.rows[True]
    y = torch.from_numpy(np.ascontiguousarray(held.data.y[rows])).double()
    with torch.no_grad():
        condition = model.condition(torch.from_numpy(np.ascontiguousarray(held.data.x[rows])).double())
        code = model.posterior(condition, y, held.statics)
        noise = keyed_normal(config.buttress.eval_seed, torch.from_numpy(held.data.day[rows]), 4, 0, torch.float64)
        field = model.decode(reparameterize(code.mu, code.logvar, noise), condition)
        whole = reconstruction(config.loss, task.rain, field, y, len(rows), task.rain.land, World())
        assert held.measure(model)["val/l_rec"] == pytest.approx(whole.rec.item(), rel=1e-12)


def test_a_checkpoint_evaluates_to_what_its_epoch_reported(tmp_path: Path) -> None:
    config = config_of()
    kept = train(config, tmp_path)
    checkpoint = tmp_path / str(kept.reports[-1].checkpoint)
    values, media = Rainfall().evaluate(config, checkpoint, World.single(tmp_path), "val")
    assert len(values) > 20 and all(kept.last[name] == value for name, value in values.items())
    assert media["fields"].read_bytes()[:4] == b"\x89PNG"
    test, _ = Rainfall().evaluate(config, checkpoint, World.single(tmp_path), "test")
    assert test["prior/crps"] != values["prior/crps"]
    with pytest.raises(BadInput, match="another config"):
        Rainfall().evaluate(config_of(model={"d_z": 3}), checkpoint, World.single(tmp_path))


def test_only_some_days_are_scored_and_the_closing_check_watches_all(tmp_path: Path) -> None:
    config = config_of(buttress={"eval_days": 5}, train={"epochs": 2})
    task = task_of(config, tmp_path)
    assert len(task.held_out.rows[True]) == 5 and len(task.held_out.rows[False]) == 11
    assert task.held_out.rows[True][0] == 48 and task.held_out.rows[True][-1] == 63  # evenly spaced
    from buttress.monitors import LatentMonitor

    for full, days in ((False, 5), (True, 16)):
        latent = LatentMonitor(4)
        task.held_out.measure(task.model, latent, full=full, objectives=False)
        assert sum(len(mu) for mu, *_ in latent._held) == days


# ---- schedules


def test_beta_is_the_originals_and_full_where_it_says(tmp_path: Path) -> None:
    config = config_of(loss={"beta_kl": 0.1, "warmup_epochs": 30}, train={"epochs": 40})
    task = task_of(config, tmp_path)
    assert [task.scheduled(float(e), 0)["beta"] for e in (0, 5, 30, 39)] == pytest.approx([0, 0.1 * 5 / 30, 0.1, 0.1])
    assert task.scheduled(5.9, 0)["beta"] == task.scheduled(5.0, 0)["beta"]  # moves by the epoch
    schedule = Rainfall().schedule(config)
    assert (schedule.full_beta_epochs(30), schedule.full_beta_epochs(31)) == (0, 1)


@pytest.mark.parametrize("epochs", [80, 100])
def test_the_cosine_ends_with_the_run(epochs: int, tmp_path: Path) -> None:
    """The original kept T_max 80 for 100 epochs: its learning rate climbed again."""
    rate = task_of(config_of(train={"epochs": epochs, "lr": 1e-3, "eta_min": 1e-5}), tmp_path).passes[0].lr
    factors = [rate.factor(epoch, 0) for epoch in range(epochs)]
    expected = [1e-2 + (1 - 1e-2) * (1 + cos(pi * epoch / epochs)) / 2 for epoch in range(epochs)]
    assert factors == pytest.approx(expected) and factors == sorted(factors, reverse=True)


@pytest.mark.parametrize(
    ("groups", "match"),
    [
        ({"loss": {"warmup_epochs": 3}}, "leaves none of train.epochs"),
        ({"loss": {"w_min": 2.0, "w_max": 1.0}}, "w_min"),
        (
            {"loss": {"lambda_base": 0.0, "lambda_ext": 0.0}, "train": {"early_stopping_metric": "val/l_rec"}},
            "val/l_rec weighs nothing",
        ),
        ({"train": {"lr_warmup_epochs": 2}}, "ends after loss.warmup_epochs"),
        ({"train": {"batch_size": 1, "min_heavy_fraction": 0.5}}, "leaves no room"),
        ({"loss": {"p95_threshold": 3.8}}, "Extra inputs"),  # a dead key of the original
        ({"loss": {"lambda_grad": 1.0}}, "Extra inputs"),
        ({"train": {"T_max": 80}}, "Extra inputs"),
        ({"data": {"kind": "files"}}, "needs data.root"),
    ],
)
def test_configs_that_cannot_mean_what_they_say_are_refused(groups: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        config_of(**groups)


def test_a_sweep_whose_warm_up_is_longer_than_its_runs_is_refused(root: Path) -> None:
    overrides = ["search.loss.warmup_epochs={int: [16, 20]}"]
    spec = SweepSpec.load(root / "search_spaces/rainfall.yaml", profile="quick", overrides=overrides)
    family = load("rainfall")
    with pytest.raises(BadInput, match=r"loss.warmup_epochs \(1[6-9]\) leaves none of train.epochs \(16\)"):
        validation.check(spec, family)


def test_early_stopping_never_counts_the_warm_up(tmp_path: Path) -> None:
    config = config_of(
        loss={"warmup_epochs": 4},
        train={"epochs": 12, "early_stopping_patience": 1, "early_stopping_min_delta": 100.0},
    )
    kept = train(config, tmp_path)
    assert kept.reports[-1].epoch == 6 and kept.reports[-1].closing  # best at epoch 5, none 100 mm better at 6


def test_early_stopping_may_watch_the_reconstruction_loss(tmp_path: Path) -> None:
    config = config_of(train={"epochs": 6, "early_stopping_patience": 1, "early_stopping_metric": "val/l_rec",
                              "early_stopping_min_delta": 100.0})  # fmt: skip
    kept = train(config, tmp_path)
    assert kept.reports[-1].epoch == 3 and kept.reports[-1].closing


def test_early_stopping_on_a_tail_that_nobody_reaches_is_refused(tmp_path: Path) -> None:
    config = config_of(train={"early_stopping_patience": 3, "early_stopping_metric": "prior/mae_tail"})
    task = task_of(config, tmp_path)
    task.held_out.has_tail = False
    with pytest.raises(BadInput, match="no scored validation pixel reaches p95_mmday"):
        task._check_stopping()


# ---- batches


def test_heavy_days_fill_their_share_of_every_batch(tmp_path: Path) -> None:
    task = task_of(config_of(train={"min_heavy_fraction": 0.25}), tmp_path)
    heavy = set(task.sampler.heavy.tolist())
    assert heavy and all(sum(int(day) in heavy for day in batch) == 2 for batch in task._batches(0))
    first, again = list(task.batches(1)), list(task.batches(1))
    assert all(torch.equal(a.y, b.y) and torch.equal(a.noise, b.noise) for a, b in zip(first, again, strict=True))
    noise = torch.cat([batch.noise for batch in first])
    assert len(noise.unique(dim=0)) == len(noise)  # a heavy day drawn twice gets new noise
    assert not torch.equal(first[0].noise, next(iter(task.batches(2))).noise)


def test_augmentation_is_off_by_default_and_moves_all_maps_together(tmp_path: Path) -> None:
    plain = list(task_of(config_of(), tmp_path).batches(0))
    task = task_of(config_of(train={"augment_flip": True, "augment_noise": 0.1}), tmp_path)
    moved = list(task.batches(0))
    assert {batch.flip for batch in plain} == {()} and len({batch.flip for batch in moved}) > 1
    for one, other in zip(plain, moved, strict=True):
        assert torch.equal(torch.flip(other.y, other.flip), one.y)
        difference = torch.flip(other.x, other.flip) - one.x
        assert difference.std() == pytest.approx(0.1, rel=0.15)


def test_turned_batches_are_the_plain_ones_turned_and_only_square_grids_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match=r"grids are not square \(5 x 4 and 20 x 16\)"):
        task_of(config_of(train={"augment_rotate": True}), tmp_path)
    square = Size((48, 16, 12), low=(4, 4), factor=4, cell_km=24.0, heavy_pixels=2)
    monkeypatch.setitem(SIZES, "tiny", square)
    monkeypatch.setenv("BUTTRESS_CACHE", str(tmp_path))
    plain = list(task_of(config_of(), tmp_path).batches(0))
    task = task_of(config_of(train={"augment_rotate": True}), tmp_path)
    turned = list(task.batches(0)) + list(task.batches(1))
    assert {batch.turns for batch in plain} == {0} and {batch.turns for batch in turned} == {0, 1, 2, 3}
    for one, other in zip(plain, turned[: len(plain)], strict=True):
        for a, b in ((one.x, other.x), (one.y, other.y)):
            assert torch.equal(torch.rot90(b, -other.turns, (-2, -1)), a)
    total, _ = task.objective(turned[0], StepState(numbers={"beta": 0.1}))
    assert total.isfinite()


def test_mixup_changes_heavy_days_alone_and_stays_between_two_of_them(tmp_path: Path) -> None:
    data = {"size": "tiny", "seed": 10}  # five heavy days
    plain = task_of(config_of(data=data, train={"min_heavy_fraction": 0.5}), tmp_path)
    task = task_of(config_of(data=data, train={"min_heavy_fraction": 0.5, "augment_mixup": 0.4}), tmp_path)
    heavy, rows, shares = task.sampler.heavy, plain._batches(0), []
    whole = torch.cat([plain.x[heavy].flatten(1), plain.y[heavy].flatten(1)], 1).double()
    for days, one, other in zip(rows, plain.batches(0), task.batches(0), strict=True):
        for i, day in enumerate(days):
            before, after = (torch.cat([b.x[i].flatten(), b.y[i].flatten()]).double() for b in (one, other))
            if day not in heavy:
                assert torch.equal(before, after)
                continue
            apart = whole - before  # after = before + (1 - l) (partner - before), x and y with one l
            share = (apart @ (after - before)) / (apart * apart).sum(1).clamp_min(1e-12)
            left = (before + share[:, None] * apart - after).abs().max(1).values
            assert left.min() < 1e-5
            shares.append(float(share[left.argmin()]))
    assert min(shares) > -1e-5 and max(shares) < 1 + 1e-5 and 0.3 < np.mean(shares) < 0.7 and np.std(shares) > 0.2
    assert all(torch.equal(a.y, b.y) for a, b in zip(task.batches(0), task.batches(0), strict=True))


def test_mixup_needs_two_heavy_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = files.load(config_of().data, World.single(tmp_path).cache)
    monkeypatch.setattr(files, "load", lambda *_: replace(dataset, heavy=np.zeros_like(dataset.heavy)))
    with pytest.raises(BadInput, match="no two heavy training days"):
        task_of(config_of(train={"augment_mixup": 0.2}), tmp_path)


# ---- determinism, resume, ranks


def test_a_stopped_run_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    config = config_of(
        train={"epochs": 4, "min_heavy_fraction": 0.2, "augment_flip": True, "scheduler": "plateau",
               "early_stopping_patience": 3},
        model={"dropout": 0.1, "stage_dropout": 0.1},
    )  # fmt: skip
    whole = train(config, tmp_path / "whole")
    train(config, tmp_path / "stopped", sink=CollectingSink("prior/crps", until=2))
    resumed = train(config, tmp_path / "stopped", resume=tmp_path / "stopped" / "checkpoints/000002.pt")
    assert resumed.epochs[0].epoch == 3 and resumed.last == whole.last


def reports(world: World, config: Config) -> list[tuple[int, dict[str, float], dict[str, list[float]]]]:
    """Step, metrics and vectors of every report of a run on the ranks of `world`; rank 1 has none."""
    kept = CollectingSink("prior/crps")
    with Reporter(world, Rainfall().schedule(config), kept) as report:
        Rainfall().train(config, world, report, None)
    return [(one.step, one.metrics, one.vectors) for one in kept.reports]


@pytest.mark.parametrize("variant", ["batch", "ratio_buggy", "per_sample", "intensity"])
def test_one_and_two_ranks_train_the_same_model(variant: str, tmp_path: Path, pair: Ranks) -> None:  # noqa: F811
    """24 steps in float64, heavy days (mixed), flips, noise and free bits included."""
    config = config_of(
        data={"size": "tiny", "seed": 10},
        model={"norm": "none", "dropout": 0.0, "decoder": "resized", "inject": "first"},
        loss={"reconstruction": variant, "lambda_gradient": 0.1, "free_bits": 0.01},
        train={"epochs": 4, "batch_size": 7, "min_heavy_fraction": 0.2, "augment_flip": True, "augment_noise": 0.05,
               "augment_mixup": 0.4},
        buttress={"dtype": "float64"},
    )
    one, (two, _) = reports(World.single(tmp_path), config), pair.run(reports, config)
    assert len(one) == len(two) and one[-1][0] == two[-1][0] >= 20
    for (step, metrics, vectors), (other, their_metrics, their_vectors) in zip(one, two, strict=True):
        assert step == other and set(metrics) == set(their_metrics)
        for name, value in metrics.items():
            assert their_metrics[name] == pytest.approx(value, rel=1e-9, abs=1e-12), (step, name)
        for name, vector in vectors.items():
            if not name.endswith("nonfinite"):  # one entry per rank
                assert their_vectors[name] == pytest.approx(vector, rel=1e-9, abs=1e-12), (step, name)


def test_two_ranks_with_batchnorm_report_one_network(tmp_path: Path, pair: Ranks) -> None:  # noqa: F811
    config = config_of()
    (two, _) = pair.run(reports, config)
    (checkpoint,) = sorted(pair.folder.glob("checkpoints/000003.pt"))
    values, _ = Rainfall().evaluate(config, checkpoint, World.single(tmp_path), "val")
    assert two[-1][1]["prior/crps"] == pytest.approx(values["prior/crps"], rel=1e-5)
    assert two[-1][1]["posterior/mae_all"] == pytest.approx(values["posterior/mae_all"], rel=1e-5)


def test_a_diverging_trial_is_told_as_not_finite(tmp_path: Path) -> None:
    kept = train(config_of(train={"lr": 1e18, "clip": None, "epochs": 2}, model={"norm": "none"}), tmp_path)
    assert kept.reports[-1].metrics["train/nonfinite"] > 0.5 and kept.reports[-1].nonfinite
