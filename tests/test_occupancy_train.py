"""An occupancy trial from data to metrics: the same on any number of ranks, exactly resumed, empty futures left out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from collecting_sink import CollectingSink
from occupancy import SMALL_GRID, config_of, train
from scipy.spatial.transform import Rotation

from buttress.errors import BadInput
from buttress.spec import validation
from buttress.spec.spec import SweepSpec
from buttress.trainables.occupancy import data as windows
from buttress.trainables.occupancy import synthetic
from buttress.trainables.occupancy.config import Config, Data
from buttress.trainables.occupancy.mirrors import mirrored
from buttress.trainables.occupancy.poses import from_matrices, matrix, velocities
from buttress.trainables.occupancy.train import Occupancy, OccupancyTask
from buttress.training.optimization import StepState
from buttress.training.registry import load
from buttress.training.world import World

pytestmark = pytest.mark.usefixtures("own_cache")

# ---- what is reported


def test_every_declared_metric_is_reported_at_the_end_and_health_inside(tmp_path: Path) -> None:
    kept = train(config_of(buttress={"report_every": 1}), tmp_path)
    last = kept.last
    terms = {"train/recall"}  # of losses that are switched off here
    assert set(Occupancy.metrics) | set(Occupancy.original_names) - terms <= set(last) and kept.reports[-1].closing
    assert {"occ/fill", "occ/sep", "occ/mean", "occ/max", "train/lovasz", "train/place"} <= set(last)
    inside = [one for one in kept.reports if "val/iou" not in one.metrics]
    assert inside and all({"occ/fill", "occ/sep", "train/loss"} <= set(one.metrics) for one in inside)
    assert all(math.isfinite(value) for name, value in last.items() if not name.startswith("occ/"))
    copied = kept.reports[-1].vectors["val/copy_last_iou_by_step"]
    assert copied[0] > last["val/copy_last_iou"] > copied[5]


def test_no_metric_is_a_loss_and_none_moves_with_a_weight() -> None:
    """The original's validation loss improved while its IoU fell to a tenth: no loss can be named as objective."""
    assert not [name for name in Occupancy.metrics if "loss" in name or Occupancy.metrics[name].weighted_by]
    assert next(iter(Occupancy.metrics)) == "val/average_precision"


def test_a_checkpoint_evaluates_to_what_its_epoch_reported(tmp_path: Path) -> None:
    config = config_of()
    kept = train(config, tmp_path)
    checkpoint = tmp_path / str(kept.reports[-1].checkpoint)
    values, _ = Occupancy().evaluate(config, checkpoint, World.single(tmp_path), "val")
    assert values == {key: kept.last[key] for key in values} and len(values) > 15
    test, _ = Occupancy().evaluate(config, checkpoint, World.single(tmp_path), "test")
    assert test["val/copy_last_iou"] != values["val/copy_last_iou"]
    with pytest.raises(BadInput, match="another config"):
        Occupancy().evaluate(config_of(model={"latent_dim": 8}), checkpoint, World.single(tmp_path), "val")
    model = Occupancy().weights(torch.load(checkpoint, weights_only=True))
    OccupancyTask(config, World.single(tmp_path)).model.load_state_dict(model)


def test_without_monitors_nothing_is_watched(tmp_path: Path) -> None:
    kept = train(config_of(buttress={"monitors": False}), tmp_path)
    assert not [key for one in kept.reports for key in one.metrics if key.startswith("occ/")]


# ---- the learning rate, by steps


def test_the_warm_up_is_counted_in_steps_and_ages_begin_at_its_end(tmp_path: Path) -> None:
    config = config_of(train={"epochs": 4, "warmup_steps": 5, "steps_per_epoch": 4, "lr": 1e-3, "min_lr": 1e-5})
    kept = train(config, tmp_path)
    rates = {one.step: one.metrics["train/lr"] for one in kept.reports}

    def cosine(step: int) -> float:
        return 1e-5 + (1e-3 - 1e-5) * (0.5 + 0.5 * math.cos(math.pi * (step - 6) / 16))  # of all steps, as the original

    for step in range(1, 6):  # the rate of the step that was taken last
        assert rates[step] == pytest.approx(1e-3 * (0.01 + 0.99 * (step - 1) / 5))
    assert rates[6] == pytest.approx(1e-3)
    assert [rates[step] for step in (11, 16)] == pytest.approx([cosine(11), cosine(16)])
    assert {one.step: one.full_beta_steps for one in kept.reports}[16] == 11
    assert [one.full_beta_epochs for one in kept.epochs] == [0, 0, 1, 2]  # the second began inside the warm-up


def test_max_steps_ends_a_run_whatever_the_epochs_say(tmp_path: Path) -> None:
    kept = train(config_of(train={"epochs": 50, "steps_per_epoch": 10, "max_steps": 3}), tmp_path)
    assert kept.reports[-1].step == 3 and kept.reports[-1].closing and "val/average_precision" in kept.last


# ---- windows and batches


def task_of(config: Config, folder: Path) -> OccupancyTask:
    return OccupancyTask(config, World.single(folder))


def test_a_pass_shows_every_window_at_most_once(tmp_path: Path) -> None:
    task = task_of(config_of(train={"batch_size": 3, "steps_per_epoch": 7}), tmp_path)
    seen: list[np.ndarray] = []
    task._batch = lambda chosen, _: seen.append(chosen)  # type: ignore[method-assign,return-value,func-returns-value]
    first, again = list(task.batches(0)), list(task.batches(0))
    assert len(first) == len(again) == 7 and len(task.windows) == 10
    rows, repeat = seen[:7], seen[7:]
    assert all((one == other).all() for one, other in zip(rows, repeat, strict=True))
    for one_pass in (np.concatenate(rows[:3]), np.concatenate(rows[3:6])):  # three batches of three, one window left
        assert len(set(one_pass.tolist())) == 9 and set(one_pass.tolist()) <= set(task.windows.tolist())
    list(task.batches(1))
    assert any((one != other).any() for one, other in zip(rows, seen[14:], strict=True))


def test_all_zero_futures_are_left_out_and_counted(tmp_path: Path) -> None:
    """Known from the data, so that every rank leaves out the same windows, and says so in every report."""
    task = task_of(config_of(), tmp_path)
    assert task.skipped == 5 and len(task.windows) == 10
    for batch in task.batches(0):
        assert batch.future.flatten(1).any(1).all()
    for workers in (1, 2):
        kept = train(config_of(), tmp_path / str(workers), workers=workers)
        assert {one.metrics["train/skipped_windows"] for one in kept.reports} == {5.0}
        assert kept.reports[-1].step == 2 * (10 // 4)


def test_a_validation_split_without_an_occupied_voxel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no future frame of the val split has an occupied voxel"):
        task_of(config_of(data={"split_seed": 1}), tmp_path)


def test_a_mirrored_world_gives_mirrored_windows() -> None:
    """Mirroring points and trajectory, then reading, is reading, then mirroring: also rotations and velocities."""
    grid = windows.grid_of(Data(**SMALL_GRID))
    scene = next(iter(synthetic.scenes(synthetic.Size(1, 6), grid, 1)))
    tilt = Rotation.from_euler("xyz", [0.3, -0.2, 0.5]).as_matrix()
    for axis in (0, 1):
        m = np.eye(3)
        m[axis, axis] = -1
        turns = [matrix(pose[3:7]) @ tilt for pose in scene.poses]
        read = []
        for mirror in (np.eye(3), m):
            both = zip(turns, scene.poses, strict=True)
            transforms = np.stack([np.c_[mirror @ r @ mirror, mirror @ p[:3]] for r, p in both])
            poses = velocities(from_matrices(transforms), np.full(5, 0.5), 99, 99)
            grids = np.stack([grid.voxelise(cloud @ mirror) for cloud in scene.clouds])
            read.append((torch.from_numpy(grids)[None], torch.from_numpy(poses)[None]))
        flips = torch.tensor([[axis == 0, axis == 1]])
        grids, poses = mirrored(*read[0], flips)
        assert torch.equal(grids, read[1][0]) and grids.any()
        same = poses[0, :, 3:7] * poses[0, :, 3:4].sign()  # q and -q are one rotation
        expected = read[1][1][0, :, 3:7] * read[1][1][0, :, 3:4].sign()
        torch.testing.assert_close(same, expected, atol=1e-9, rtol=0)
        torch.testing.assert_close(poses[..., [*range(3), *range(7, 13)]], read[1][1][..., [*range(3), *range(7, 13)]])


def test_mirroring_needs_a_symmetric_range() -> None:
    with pytest.raises(ValueError, match="symmetric in x and y"):
        Data(mirror=True, point_cloud_range=(-10, -40, -2, 40, 40, 150))


def test_training_windows_that_are_all_empty_are_refused(tmp_path: Path) -> None:
    """World clouds read as the sensor's: the original's empty grids."""
    poses = from_matrices(np.tile(np.eye(4), (12, 1, 1)))
    poses[:, :3] = [500.0, 0.0, 0.0]
    cloud = np.random.default_rng(0).uniform(-1, 1, (50, 3))
    for name in "abc":
        synthetic.write_scene(tmp_path / name, synthetic.Scene(name, poses, (cloud,) * 12), world=True)
    data = {"kind": "files", "layout": "scenes", "path": str(tmp_path), "fractions": (0.4, 0.3, 0.3)}
    with pytest.raises(BadInput, match="training windows has an all-zero future"):
        task_of(config_of(data=data), tmp_path)
    assert len(task_of(config_of(data=data | {"ego_frame": True}, train={"batch_size": 2}), tmp_path).windows) == 3


def test_batches_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"train.batch_size: does not fit 1 rank and 10 windows \(got 16\)"):
        task_of(config_of(train={"batch_size": 16}), tmp_path)


# ---- determinism, resume, ranks


def test_a_stopped_run_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    config = config_of(train={"epochs": 4}, model={"dropout": 0.1})
    whole = train(config, tmp_path / "whole")
    train(config, tmp_path / "stopped", sink=CollectingSink("val/iou", until=2))
    saved = tmp_path / "stopped" / "checkpoints/000002.pt"
    resumed = train(config, tmp_path / "stopped", resume=saved)
    assert resumed.epochs[0].epoch == 3 and resumed.last == whole.last


VARIANTS: dict[str, dict[str, Any]] = {
    "head": {"loss": {"bce_weight": 0.3, "temporal_decay": 0.1}},
    "transformer": {
        "data": {"mirror": True},
        "model": {"use_transformer": True, "transformer_heads": 2, "transformer_layers": 1, "skip": 2},
    },
    "simple": {"model": {"type": "simple", "pool": (2, 2, 2)}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_and_two_ranks_train_the_same_model(variant: str, tmp_path: Path) -> None:
    """20 steps in float64, with a batch that two ranks share unequally; losses, metrics, monitors, all of them."""
    groups = {key: dict(value) for key, value in VARIANTS[variant].items()}
    groups.setdefault("train", {}).update({"epochs": 2, "batch_size": 3, "steps_per_epoch": 10})
    groups["buttress"] = {"dtype": "float64", "report_every": 2}
    config = config_of("head", **groups)
    one, two = (train(config, tmp_path / str(workers), workers=workers) for workers in (1, 2))
    assert one.reports[-1].step == two.reports[-1].step == 20 and len(one.reports) == len(two.reports)
    for ours, theirs in zip(one.reports, two.reports, strict=True):
        assert set(ours.metrics) == set(theirs.metrics)
        for name, value in ours.metrics.items():
            assert theirs.metrics[name] == pytest.approx(value, rel=1e-9, abs=1e-12), (ours.step, name)
        for name, vector in ours.vectors.items():
            if not name.endswith("nonfinite"):  # one entry per rank
                assert theirs.vectors[name] == pytest.approx(vector, rel=1e-9, abs=1e-12), (ours.step, name)


def test_accumulated_batches_take_one_step(tmp_path: Path) -> None:
    config = config_of(train={"batch_size": 2, "grad_accum": 2, "epochs": 1})
    kept = train(config, tmp_path)
    assert kept.reports[-1].step == 2  # five batches: two groups of two


def test_bf16_networks_have_finite_float32_losses(tmp_path: Path) -> None:
    kept = train(config_of(train={"amp": True}), tmp_path)
    assert kept.last["train/nonfinite"] == 0 and math.isfinite(kept.last["train/loss"])


# ---- the search space


@pytest.mark.parametrize("profile", [None, "full", "quick"])
def test_the_search_space_fits_the_family(profile: str | None, root: Path) -> None:
    spec = SweepSpec.load(root / "search_spaces/occupancy.yaml", profile=profile)
    family = load("occupancy")
    validation.check(spec, family)
    assert spec.objectives[0].metric == "val/average_precision"
    weights = {"dice_weight", "mean_weight", "recall_weight", "lovasz_weight", "pos_weight"}
    searched = {"focal_alpha", "focal_gamma"} | weights
    assert {f"loss.{name}" for name in searched} | {"train.lr"} <= set(spec.search)
    for path in spec.search:
        group, name = path.split(".")
        assert name in type(getattr(Config(), group)).model_fields
    if profile == "full":
        config = Config(data=Data(**spec.data))
        assert (config.data.grid, config.train.batch_size) == ((200, 200, 121), 3)
        assert (config.data.history_frames, config.data.future_frames) == (4, 6)


@pytest.mark.parametrize("loss", ["val/loss", "train/loss"])
def test_a_loss_cannot_be_the_objective(loss: str, root: Path) -> None:
    spec = SweepSpec.load(root / "search_spaces/occupancy.yaml", overrides=[f"objectives=[{{metric: {loss}}}]"])
    with pytest.raises(BadInput, match="no such metric"):
        validation.check(spec, Occupancy())


# ---- full size, as the machine allows


@pytest.mark.long
def test_the_full_size_takes_real_steps_and_reaches_every_parameter(tmp_path: Path) -> None:
    """200 x 200 x 121 voxels, batch 3, 4 -> 6 frames; 7 GiB and three minutes on two cores."""
    config = Config(train={"warmup_steps": 0})  # type: ignore[arg-type]
    task = OccupancyTask(config, World.single(tmp_path, threads=2))
    assert sum(p.numel() for p in task.model.parameters()) == 77_300_704
    untouched = {name for name, _ in task.model.named_parameters()}
    batches = task.batches(0)
    for _ in range(3):
        loss, _ = task.objective(next(batches), StepState())
        loss.backward()
        assert loss.isfinite()
        reached = {name: p.grad.abs().max() > 0 for name, p in task.model.named_parameters() if p.grad is not None}
        untouched -= {name for name, moved in reached.items() if moved}
        task.passes[0].optimizer.step()
        task.passes[0].optimizer.zero_grad()
    assert not untouched


def test_small_grid_is_the_tests_own() -> None:
    assert Data(**SMALL_GRID).grid == (16, 16, 8)
