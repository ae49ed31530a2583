"""The occupancy family against what the original gave on the same inputs and weights (../shared/golden)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import Golden, agree, deviation, key_list
from torch import nn

from buttress.trainables.occupancy import loss as losses
from buttress.trainables.occupancy import voxels
from buttress.trainables.occupancy.config import Config, Loss, Model
from buttress.trainables.occupancy.heldout import _pose_errors, at_threshold
from buttress.trainables.occupancy.loss import Batch, Objective, occupancy_terms
from buttress.trainables.occupancy.lovasz import exact, lovasz
from buttress.trainables.occupancy.model import Predicted, build
from buttress.trainables.occupancy.original import from_original, to_original
from buttress.trainables.occupancy.poses import ANGULAR, LINEAR, POSITION, ROTATION, from_matrices, velocities
from buttress.trainables.occupancy.train import learning_rate
from buttress.trainables.occupancy.voxels import Alignment, Grid
from buttress.training.optimization import StepState
from buttress.training.world import World

NETWORKS = {"simple": Model(type="simple"), "6dof": Model(), "6dof_transformer": Model(use_transformer=True)}


@pytest.fixture(autouse=True)
def sorted_lovasz(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Lovász term by sorting, as the original has it."""
    monkeypatch.setattr(losses, "lovasz", lambda errors, occupied, *_: exact(errors, occupied))


def network(file: Golden, **changes: Any) -> tuple[nn.Module, Model]:
    """The network that a file was made with, float64, with the file's weights."""
    made = file.config
    simple = "latent" not in made and "encoder_channels" not in made
    chosen: dict[str, Any] = (
        {"type": "simple"}
        if simple
        else {
            "channels": made["encoder_channels"],
            "latent_dim": made["latent_dim"],
            "pose_dim": made["pose_hidden_dim"],
            "use_transformer": made["use_transformer"],
            "transformer_layers": made["num_transformer_layers"],
            "transformer_heads": made["num_heads"],
        }
    )
    model = Model(**{**chosen, **changes})
    result = build(model, made["history_frames"], made["future_frames"], tuple(made["grid_size"])).double()
    if model.latent_dim < 256:
        _original_widths(result, model.latent_dim)
    result.load_state_dict(from_original(file.weights(), model))
    return result, model


def _original_widths(network: nn.Module, latent: int) -> None:
    """Gives a narrow network the original's groups and head widths, which ours scales with it (README)."""
    for one in network.modules():
        if isinstance(one, nn.GroupNorm):
            one.num_groups = min(32, one.num_channels)
    heads: dict[str, tuple[int, ...]] = {"uncertainty": (64, 6), "relocalization": (128, 128, 7)}
    for name, widths in heads.items():
        layers: list[nn.Module] = []
        for before, after in zip((latent, *widths), widths, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        setattr(network, name, nn.Sequential(*layers[:-1]).double())


def batch_of(file: Golden) -> Batch:
    history, future = file.inputs("history").double(), file.inputs("future").bool()
    return Batch(history, future, file.inputs("history_poses"), file.inputs("future_poses"), 0, len(history))


def all_dropped(network: nn.Module) -> nn.Module:
    """The network in train mode with every dropout that is on at 1."""
    for one in network.modules():
        if isinstance(one, nn.Dropout):
            one.p = math.ceil(one.p)
        if isinstance(one, nn.LSTM | nn.MultiheadAttention):
            one.dropout = math.ceil(one.dropout)
    return network.train()


def check_network(file: Golden, within: float) -> None:
    built, _ = network(file)
    batch = batch_of(file)
    with torch.no_grad():
        out = built.eval()(batch.history, batch.history_poses)
        found = {"probability": torch.sigmoid(out.logits), "poses": out.poses}
        if out.place is not None:
            found |= {"uncertainty": out.uncertainty, "relocalization": out.relocalization, "place": out.place}
        agree(found, {name: file.out(name) for name in found}, within)
        dropped = all_dropped(built)(batch.history, batch.history_poses)
        found = {"poses": dropped.poses, "probability_mean": torch.sigmoid(dropped.logits).mean((2, 3, 4))}
        agree(found, {name: file.out(f"train_dropout1/{name}") for name in found}, within)


def check_gradients(file: Golden, terms: dict[str, float], within: float) -> None:
    """The training loss and the norm of every weight's gradient, with dropout 0."""
    built, model = network(file, dropout=0.0)
    objective = Objective(built.train(), Loss(), model.type == "simple", 0.3, World())
    total, logs = objective(batch_of(file), StepState())
    agree({"total": total}, {"total": file.out("loss/total")}, within)
    agree({name: terms[name] * logs[theirs] for name, theirs in _LOGGED.items() if name in terms},
          {name: file.out(f"loss/{name}") for name in _LOGGED if name in terms}, within)  # fmt: skip
    total.backward()
    golden = dict(zip(file.config["grad_keys"], file.out("grad_norms"), strict=True))
    ours = {key: parameter.grad.norm() for key, parameter in built.named_parameters() if parameter.grad is not None}
    # a bias before a norm of one channel a group has none but rounding's
    agree(ours, {key: value for key, value in from_original(golden, model).items() if value > 1e-12}, within)


_LOGGED = {"pose": "pose", "uncertainty": "uncertainty", "reloc": "relocalization", "place": "place"}


@pytest.mark.parametrize(("name", "within"), [("lstm", 1e-9), ("transformer", 1e-6)])
def test_the_world_model_is_the_originals(name: str, within: float, shared: Path) -> None:
    check_network(Golden(shared, f"occupancy_6dof_{name}"), within)


@pytest.mark.long
@pytest.mark.parametrize(("name", "within"), [("lstm", 1e-9), ("transformer", 1e-6)])
def test_the_world_models_gradients_and_planned_poses_are_the_originals(name: str, within: float, shared: Path) -> None:
    file = Golden(shared, f"occupancy_6dof_{name}")
    check_gradients(file, {"pose": 0.5, "uncertainty": 0.1, "reloc": 0.2, "place": 0.1}, within)
    built, _ = network(file)
    batch = batch_of(file)
    for length in ("short", "long"):
        with torch.no_grad():
            out = built.eval()(batch.history, batch.history_poses, file.inputs(f"planned_{length}"))
        found = {"poses": out.poses, "probability_mean": torch.sigmoid(out.logits).mean((2, 3, 4))}
        agree(found, {key: file.out(f"planned_{length}/{key}") for key in found}, within)


def test_the_simple_model_is_the_originals(shared: Path) -> None:
    file = Golden(shared, "occupancy_simple")
    check_network(file, 1e-9)
    check_gradients(file, {"pose": 1.0}, 1e-9)


@pytest.mark.long
@pytest.mark.parametrize(("name", "within"), [("default", 1e-9), ("default_transformer", 1e-6)])
def test_the_world_model_is_the_originals_at_its_full_width(name: str, within: float, shared: Path) -> None:
    check_network(Golden(shared, f"occupancy_6dof_{name}"), within)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_key_and_shape_is_the_originals(name: str, shared: Path) -> None:
    listed = key_list(shared, f"occupancy_{name}")
    with torch.device("meta"):
        built = build(NETWORKS[name], 4, 6, (200, 200, 121))
    assert sum(one.numel() for one in built.parameters()) == listed["parameters"]
    theirs = to_original(built.state_dict(), NETWORKS[name])
    assert {key: list(value.shape) for key, value in theirs.items()} == listed["keys"]
    back = from_original(theirs, NETWORKS[name])
    assert {key: value.shape for key, value in back.items()} == {k: v.shape for k, v in built.state_dict().items()}


# ---- losses


def _loss(case: dict[str, Any]) -> Loss:
    """A case's keyword arguments of the original's losses as our config."""
    others = ("dynamic_alpha", "min_pose_std", "triplet_margin")
    given = {key: value for key, value in case.items() if key not in others}
    if "reloc_weight" in given:
        given["relocalization_weight"] = given.pop("reloc_weight")
    if not case.get("dynamic_alpha", True):
        given.setdefault("focal_alpha", 0.99)
    return Loss(**given)


def test_the_occupancy_loss_is_the_originals(shared: Path) -> None:
    file = Golden(shared, "occupancy_losses")
    logits, target = file.inputs("logits"), file.inputs("target").bool()
    cases = {name: (_loss(case), logits, target) for name, case in file.config["cases"].items()}
    cases |= {
        "empty": (_loss({}), logits, torch.zeros_like(target)),
        "full": (_loss({}), logits, torch.ones_like(target)),
        "extreme": (_loss({}), file.inputs("extreme_logits"), file.inputs("extreme_target").bool()),
    }
    for name, (loss, x, truth) in cases.items():
        x = x.clone().requires_grad_()
        total, parts = occupancy_terms(x, truth, loss, World())
        names = {"mean_match" if key == "mean" else key: value for key, value in parts.items()}
        if "lovasz" in names:
            p = torch.sigmoid(x.detach())
            bucketed = lovasz(torch.where(truth, 1 - p, p).flatten(), truth.flatten(), loss.lovasz_buckets, World())
            assert abs(bucketed - file.out(f"{name}/lovasz")) < 1 / loss.lovasz_buckets
        if name == "extreme":
            agree(names, {"dice": file.out("extreme/dice"), "mean_match": file.out("extreme/mean_match")}, 1e-7)
            agree(names, {"recall": file.out("extreme/recall")}, 1e-2)
            assert deviation(names["focal"], file.out("extreme/focal")) < 0.4  # logits, not clamped probabilities
            continue
        agree(names | {"total": total}, {key: file.out(f"{name}/{key}") for key in [*names, "total"]}, 1e-9)
        if name in file.config["cases"]:
            total.backward()
            agree({"grad": x.grad.norm()}, {"grad": file.out(f"{name}/grad_wrt_logits_norm")}, 1e-9)


class Given(nn.Module):
    """Gives the outputs that it was made with."""

    def __init__(self, out: Predicted) -> None:
        super().__init__()
        self.out = out

    def forward(self, history: torch.Tensor, poses: torch.Tensor) -> Predicted:
        return self.out


def test_the_terms_of_the_6dof_loss_are_the_originals(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Golden(shared, "occupancy_6dof_losses")
    for name in [*file.config["cases"], "batch_2", "batch_1"]:
        case = file.config["cases"].get(name, {})
        size = {"batch_1": 1, "batch_2": 2}.get(name, file.config["batch"])
        given = {key: file.inputs(key)[:size] for key in ("logits", "poses", "uncertainty", "relocalization", "place")}
        future_poses = file.inputs("future_poses")[:size].clone()
        if name == "low_variance":
            given["poses"] = file.inputs("poses_low_variance")[:size]
        if name == "sigma_floor":
            given["uncertainty"] = torch.full_like(given["uncertainty"], -20)
        given = {key: value.clone() for key, value in given.items()}
        if name == "unnormalised":
            given["poses"][..., 3:7] *= 0.7
            future_poses[..., 3:7] *= 1.3
        for value in given.values():
            value.requires_grad_()
        monkeypatch.setattr(losses, "_SAME", case.get("min_pose_std", 0.01))
        monkeypatch.setattr(losses, "_MARGIN", case.get("triplet_margin", 0.2))
        loss = _loss(case)
        target, known = file.inputs("target")[:size].bool(), file.inputs("history_poses")[:size]
        batch = Batch(torch.zeros(1), target, known, future_poses, 0, size)
        total, logs = Objective(Given(Predicted(**given)), loss, False, 0.3, World())(batch, StepState())
        pose = 0.5 if loss.pose_weight is None else loss.pose_weight
        weights = {"pose": pose, "uncertainty": loss.uncertainty_weight, "reloc": loss.relocalization_weight}
        weights["place"] = loss.place_weight
        found = {key: weights[key] * logs[_LOGGED[key]] for key in weights}
        agree(found, {key: file.out(f"{name}/{key}") for key in found}, 1e-9)
        agree({"total": total}, {"total": file.out(f"{name}/total")}, 1e-9)
        total.backward()
        heads = {"poses": "poses", "unc": "uncertainty", "reloc": "relocalization", "place": "place"}
        gradients = {key: given[ours].grad for key, ours in heads.items()}
        agree(gradients, {key: file.out(f"{name}/grad_{key}") for key in heads}, 1e-9)
        agree({"logits": given["logits"].grad.norm()}, {"logits": file.out(f"{name}/grad_logits")}, 1e-9)


# ---- metrics, schedule, scenes


def test_validation_metrics_are_the_originals(shared: Path) -> None:
    """Pose errors: ours are means over all poses (README); batch by batch they are the original's."""
    file = Golden(shared, "occupancy_metrics")
    target = file.inputs("target").bool()
    for threshold in ("0.3", "0.5"):
        predicted = file.inputs("probability") > float(threshold)
        counts = torch.stack([one.sum((0, 2, 3, 4)).double() for one in (predicted & target, predicted, target)])
        found = at_threshold(counts)
        ours = {name: found[f"val/{name}"] for name in ("iou", "precision", "recall", "f1")}
        ours |= {f"iou_t{step}": value for step, value in enumerate(found["val/iou_by_step"])}
        agree(ours, {name: file.out(f"{threshold}/{name}") for name in ours}, 1e-7)
        batches = [
            _pose_errors(file.inputs("poses")[a:b], file.inputs("future_poses")[a:b]) for a, b in file.config["batches"]
        ]
        means = torch.stack([one[:2] / one[2] for one in batches]).mean(0)
        golden = torch.stack([file.out(f"{threshold}/{name}") for name in ("pos_error_m", "orient_error_deg")])
        agree({"metres": means[0]}, {"metres": golden[0]}, 1e-7)
        agree({"degrees": means[1]}, {"degrees": golden[1] * 3.14159 / math.pi}, 1e-7)  # the original's pi


def test_the_learning_rate_is_the_originals(shared: Path) -> None:
    """With one step an epoch; the warm-up takes at most half of the epochs there."""
    file = Golden(shared, "occupancy_schedule")
    for name, (rate, epochs, warmup) in file.config["cases"].items():
        used = int(file.out(f"{name}/warmup_epochs_used"))
        assert used == min(warmup, epochs // 2)
        schedule = learning_rate(Config(train={"lr": rate, "epochs": epochs, "warmup_steps": used}).train, 1)
        ours = torch.tensor([rate * schedule.factor(step, step) for step in range(epochs)], dtype=torch.float64)
        agree({"lr": ours}, {"lr": file.out(f"{name}/lr")}, 1e-12)
    recipe = json.loads((shared / "golden" / "recipes.json").read_text())["occupancy"]["schedule_default"]
    last = recipe["last_epoch_lr"]
    assert math.isclose(1e-4 * learning_rate(Config(train={"warmup_steps": 5}).train, 1).factor(49, 49), last)


@pytest.mark.parametrize("case", ["drive", "fast", "world.ego", "lost.fallback", "lost.raw", "drive.absolute"])
def test_windows_of_scenes_are_the_originals(case: str, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where clouds are taken to the ego's frame, with the original's rotation (ours is transposed: README)."""
    file = Golden(shared, "occupancy_scenes")
    made, options = file.config, file.config["cases"][case]
    drive = case.partition(".")[0]
    corners, size = made["point_cloud_range"], made["voxel_size"]
    poses = from_matrices(file.inputs(f"transforms_{drive}").numpy())
    agree({"alone": torch.from_numpy(poses)}, {"alone": file.out(f"{case}/poses_alone")}, 2e-5)
    seconds = np.full(len(poses) - 1, made["seconds_between_frames"])
    limits = made["max_linear_velocity"], made["max_angular_velocity"]
    # pairs: from the original's own poses, which are float32
    pairs = velocities(file.out(f"{case}/poses_alone").numpy(), seconds, *limits)[1:, 7:]
    agree({"pairs": torch.from_numpy(pairs)}, {"pairs": file.out(f"{case}/velocity_pairs")}, 1e-6)

    cells = tuple(round((b - a) / one) for a, b, one in zip(corners[:3], corners[3:], size, strict=True))
    grid = Grid.of(corners, size, cells)
    alignment = Alignment(grid, options.get("ego_frame", False), options.get("fallback_to_lidar_center", True), 0.01)
    straight = voxels.matrix
    monkeypatch.setattr(voxels, "matrix", lambda q: straight(q).T)
    moving = velocities(poses, seconds, *limits)
    for frame, cloud in enumerate(file.inputs(f"points_{drive}").numpy()):
        points, origin = alignment.align(cloud, poses[frame])
        if origin is not None:
            moving[frame, POSITION] -= origin
        occupied = grid.voxelise(points)
        assert (occupied == file.out(f"{case}/occupancy")[frame].numpy().astype(bool)).all(), frame
    assert alignment.fallbacks == int(file.out(f"{case}/fallbacks"))
    if options.get("normalize_pose_to_first_frame", True):
        moving[:, POSITION] -= moving[0, POSITION].copy()
    golden = file.out(f"{case}/poses").numpy()
    np.testing.assert_allclose(moving[:, POSITION], golden[:, POSITION], atol=2e-5 * np.abs(poses[:, POSITION]).max())
    np.testing.assert_allclose(moving[:, ROTATION], golden[:, ROTATION], atol=2e-5)
    for part in (LINEAR, ANGULAR):
        scale = np.abs(poses[:, POSITION]).max() * 1e-6 / seconds[0] if part == LINEAR else 0.0  # float32 positions
        np.testing.assert_allclose(moving[:, part], golden[:, part], atol=1e-4 + scale)
