"""Every term against its definition in float64, every weight acts, Lovász without a sort is right to 1 / buckets, and
two ranks with unequal shares have the loss and the gradient of one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from occupancy import config_of
from ranks import Ranks, pair  # noqa: F401
from torch.nn import functional

from buttress.trainables.occupancy.config import RECIPES, Config, Loss
from buttress.trainables.occupancy.loss import (
    Batch,
    Objective,
    occupancy_terms,
    place_term,
    pose_terms,
    relocalization_term,
    simple_pose,
    uncertainty_term,
)
from buttress.trainables.occupancy.lovasz import exact, lovasz
from buttress.trainables.occupancy.model import Predicted, build
from buttress.training.optimization import StepState
from buttress.training.world import World

CELLS, STEPS = (5, 4, 3), 3
OFF = {f"{term}_weight": 0.0 for term in ("focal", "bce", "dice", "mean", "lovasz", "recall")}


def drawn(seed: int = 0, batch: int = 3, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    shape = (batch, STEPS, *CELLS)
    logits = scale * torch.randn(shape, generator=random, dtype=torch.float64)
    return logits, torch.rand(shape, generator=random) < 0.15


def term(name: str, logits: torch.Tensor, future: torch.Tensor, **more: Any) -> float:
    loss = Loss(**(OFF | {f"{name}_weight": 1.0} | more))
    value, parts = occupancy_terms(logits, future, loss, World())
    assert list(parts) == [name] and float(value) == float(parts[name])
    return float(value)


# ---- the terms, written down once more as the definitions have them


def test_focal_is_its_definition() -> None:
    logits, future = drawn()
    p, t = torch.sigmoid(logits), future.double()
    p_t, a_t = p * t + (1 - p) * (1 - t), 0.9 * t + 0.1 * (1 - t)
    for gamma in (0.0, 0.5, 2.0, 3.5):
        expected = (a_t * (1 - p_t) ** gamma * -p_t.log()).mean()
        assert term("focal", logits, future, focal_alpha=0.9, focal_gamma=gamma) == pytest.approx(float(expected), 1e-6)


@pytest.mark.parametrize(("share", "alpha"), [(0.2, 0.8), (0.7, 0.5), (0.0001, 0.999)])
def test_dynamic_alpha_is_the_empty_share_within_bounds(share: float, alpha: float) -> None:
    logits = torch.randn(1, 1, 20, 20, 25, dtype=torch.float64)
    future = torch.zeros(10_000, dtype=torch.bool)
    future[: int(share * 10_000)] = True
    future = future.view(1, 1, 20, 20, 25)
    fixed = term("focal", logits, future, focal_alpha=alpha)
    assert term("focal", logits, future, focal_alpha="dynamic") == pytest.approx(fixed, rel=1e-9)


def test_cross_entropy_is_torchs() -> None:
    logits, future = drawn()
    for weight in (0.1, 1.0, 10.0):
        expected = functional.binary_cross_entropy_with_logits(
            logits, future.double(), pos_weight=torch.tensor(weight, dtype=torch.float64)
        )
        assert term("bce", logits, future, pos_weight=weight) == pytest.approx(float(expected), rel=1e-12)


def test_dice_mean_and_recall_are_their_definitions() -> None:
    logits, future = drawn()
    p, t = torch.sigmoid(logits), future.double()
    dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    assert term("dice", logits, future) == pytest.approx(float(dice), rel=1e-12)
    assert term("mean", logits, future) == pytest.approx(float((p.mean() - t.mean()) ** 2), rel=1e-12)
    recall = -p[future].clamp_min(1e-6).log().mean()
    assert term("recall", logits, future) == pytest.approx(float(recall), rel=1e-12)
    sunk = torch.full_like(logits, -50.0)
    assert term("recall", sunk, future) == pytest.approx(-math.log(1e-6), rel=1e-9)
    assert term("recall", logits, torch.zeros_like(future)) == 0.0


def test_decay_weights_steps_with_mean_one() -> None:
    logits, future = drawn()
    each = [term("bce", logits[:, t : t + 1], future[:, t : t + 1]) for t in range(STEPS)]
    weights = [math.exp(-0.7 * t) for t in range(STEPS)]
    expected = sum(w * one for w, one in zip(weights, each, strict=True)) / sum(weights)
    assert term("bce", logits, future, temporal_decay=0.7) == pytest.approx(expected, rel=1e-12)


def test_best_blind_constants_are_the_known_ones() -> None:
    """At an occupied share of 0.83 % a constant prediction does best at: BCE .0083, positive weight 10 .077, focal .99
    .48, focal .99 + dice + 10 mean .029, all of the last version's weights .347 (above the threshold: all full)."""
    future = torch.zeros(1, 1, 100, 100, dtype=torch.bool).flatten()
    future[:83] = True
    future = future.view(1, 1, 1, 100, 100)
    grid = torch.cat([torch.logspace(-3, -1, 121), torch.linspace(0.1, 0.9, 321)]).double()

    def best(recipe: str) -> float:
        loss = Loss(**RECIPES[recipe])
        logits = torch.log(grid / (1 - grid))
        values = [float(occupancy_terms(x.expand(1, 1, 1, 100, 100), future, loss, World())[0]) for x in logits]
        return float(grid[values.index(min(values))])

    assert best("bce") == pytest.approx(0.0083, rel=0.05)
    assert best("wbce10_dice") == pytest.approx(0.077, rel=0.08)
    assert best("focal99_dice_mean") == pytest.approx(0.029, rel=0.08)
    assert best("february_8") == pytest.approx(0.067, rel=0.08)
    assert best("head") == pytest.approx(0.347, rel=0.03)


def test_confident_voxels_cost_finitely_in_bf16_and_half() -> None:
    """1 - 1e-7 rounds to 1 in reduced precision, and ln(1 - p) to -inf; from float32 logits nothing does."""
    logits = torch.tensor([-80.0, -20.0, 20.0, 80.0]).view(1, 1, 1, 2, 2)
    future = torch.tensor([True, False, True, False]).view(1, 1, 1, 2, 2)
    for dtype in (torch.bfloat16, torch.float16):
        x = logits.to(dtype).float().requires_grad_()
        value, _ = occupancy_terms(x, future, Loss(bce_weight=1.0), World())
        value.backward()
        assert value.isfinite() and x.grad is not None and x.grad.isfinite().all() and x.grad[0, 0, 0, 0, 0] < 0


# ---- Lovász


def test_exact_lovasz_is_jaccards_on_hard_predictions() -> None:
    occupied = torch.tensor([1, 1, 1, 0, 0, 0, 0], dtype=torch.bool)
    wrong = torch.tensor([1, 0, 0, 1, 1, 0, 0], dtype=torch.float64)
    assert float(exact(wrong, occupied)) == pytest.approx(1 - 2 / 5, rel=1e-7)
    assert float(lovasz(wrong, occupied, 1024, World())) == pytest.approx(1 - 2 / 5, rel=1e-7)


@pytest.mark.parametrize("share", [0.5, 0.0083, 0.0002])
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_bucketed_lovasz_is_within_one_bucket_of_the_exact_one(share: float, scale: float) -> None:
    """The bound is 1 / buckets; measured it is half of that at worst, and gradients agree but in the last case."""
    random = torch.Generator().manual_seed(1)
    logits = scale * torch.randn(40_000, generator=random, dtype=torch.float64) - 1
    occupied = torch.rand(40_000, generator=random) < share

    def both(function: Any) -> tuple[float, torch.Tensor]:
        x = logits.clone().requires_grad_()
        p = torch.sigmoid(x)
        value = function(torch.where(occupied, 1 - p, p))
        value.backward()
        assert x.grad is not None
        return float(value.detach()), x.grad

    truth, gradient = both(lambda errors: exact(errors, occupied))
    for buckets in (64, 1024):
        value, ours = both(lambda errors, buckets=buckets: lovasz(errors, occupied, buckets, World()))
        assert abs(value - truth) <= 1 / buckets
        if buckets == 1024:
            # 8 occupied voxels that share the last bucket with more empty ones: its order is lost, not its sum
            close, alike = (1e-4, 0.999) if share > 0.001 else (5e-4, 0.7)
            assert abs(value - truth) < close
            assert float(functional.cosine_similarity(ours, gradient, dim=0)) > alike


def test_without_two_errors_in_a_bucket_lovasz_is_exact() -> None:
    errors = (torch.randperm(200, generator=torch.Generator().manual_seed(2)) + 0.5).double() / 200
    occupied = torch.rand(200, generator=torch.Generator().manual_seed(3)) < 0.3
    assert float(lovasz(errors, occupied, 200, World())) == pytest.approx(float(exact(errors, occupied)), rel=1e-9)


# ---- each weight is the one that acts


def objective(config: Config, world: World | None = None) -> Objective:
    torch.manual_seed(0)
    data = config.data
    model = build(config.model, data.history_frames, data.future_frames, data.grid).double()
    return Objective(model, config.loss, config.model.type == "simple", 0.3, world or World())


def batch_of(config: Config, size: int = 4, first: int = 0, last: int | None = None) -> Batch:
    random = torch.Generator().manual_seed(5)
    data = config.data
    shape = (size, data.frames, *data.grid)
    grids = torch.rand(shape, generator=random) < 0.03
    poses = torch.randn(size, data.frames, 13, generator=random, dtype=torch.float64)
    poses[..., 3:7] = functional.normalize(poses[..., 3:7], dim=-1)
    own = slice(first, last)
    history, future = grids[own].split([data.history_frames, data.future_frames], dim=1)
    known, wanted = poses[own].split([data.history_frames, data.future_frames], dim=1)
    return Batch(history.double(), future, known, wanted, first, size)


def loss_of(config: Config) -> float:
    return float(objective(config)(batch_of(config), StepState())[0].detach())


WEIGHTS: dict[str, Any] = {
    "focal_weight": 0.5, "focal_alpha": 0.7, "focal_gamma": 1.0, "bce_weight": 2.0, "pos_weight": 3.0,
    "dice_weight": 0.3, "mean_weight": 100.0, "lovasz_weight": 0.2, "lovasz_buckets": 3, "recall_weight": 0.1,
    "temporal_decay": 0.4, "occ_weight": 0.5, "pose_weight": 0.05, "pose_variance_weight": 50.0,
    "uncertainty_weight": 0.9, "uncertainty_min": 0.3, "uncertainty_max": 3.0, "relocalization_weight": 0.9,
    "place_weight": 0.9,
}  # fmt: skip


@pytest.mark.parametrize("name", Loss.model_fields)
def test_every_key_of_the_loss_moves_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a config in which all terms are on; none is overridden by a constant, as several were in the original."""
    if name == "pose_variance_weight":  # acts where all predicted poses are the same
        monkeypatch.setattr("buttress.trainables.occupancy.loss._SAME", 10.0)
    groups: dict[str, Any] = {"loss": {"bce_weight": 1.0, "focal_alpha": 0.9}, "buttress": {"dtype": "float64"}}
    before = loss_of(config_of(**groups))
    groups["loss"][name] = WEIGHTS[name]
    after = loss_of(config_of(**groups))
    assert math.isfinite(after) and abs(after - before) > 1e-6 * abs(before)


@pytest.mark.parametrize("name", [f"{term}_weight" for term in ("focal", "bce", "dice", "mean", "lovasz", "recall")])
def test_every_weight_moves_the_simple_models_loss_too(name: str) -> None:
    groups: dict[str, Any] = {
        "model": {"type": "simple", "pool": (2, 2, 2)}, "loss": {"bce_weight": 1.0}, "buttress": {"dtype": "float64"},
    }  # fmt: skip
    before = loss_of(config_of(**groups))
    groups["loss"][name] = 7.0
    assert abs(loss_of(config_of(**groups)) - before) > 1e-6 * abs(before)
    groups["loss"] = {"bce_weight": 1.0, "pose_weight": 9.0}
    assert abs(loss_of(config_of(**groups)) - before) > 1e-6 * abs(before)


def test_a_loss_without_a_term_is_refused() -> None:
    with pytest.raises(ValueError, match="no term of the occupancy loss is left"):
        Loss(**OFF)


# ---- pose terms


def poses(seed: int, *shape: int) -> torch.Tensor:
    drawn = torch.randn(*shape, 13, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn[..., 3:7] = functional.normalize(drawn[..., 3:7], dim=-1)
    return drawn


def predicted(**heads: torch.Tensor) -> tuple[Predicted, Batch]:
    ours, theirs = poses(0, 4, STEPS), poses(1, 4, STEPS)
    return Predicted(torch.zeros(1), ours, **heads), Batch(torch.zeros(1), torch.zeros(1), poses(2, 4, 2), theirs, 0, 4)


def test_pose_terms_are_their_definitions() -> None:
    out, batch = predicted()
    ours, theirs = out.poses, batch.future_poses
    smooth = functional.smooth_l1_loss
    assert float(simple_pose(out, batch, World())) == pytest.approx(float(smooth(ours, theirs)), rel=1e-12)
    expected = smooth(ours[..., :3], theirs[..., :3]) + 0.5 * smooth(ours[..., 7:], theirs[..., 7:])
    expected = expected + (1 - (ours[..., 3:7] * theirs[..., 3:7]).sum(-1).abs()).mean()
    assert float(pose_terms(out, batch, Loss(), World())) == pytest.approx(float(expected), rel=1e-12)


def test_poses_that_are_all_the_same_are_penalised() -> None:
    out, batch = predicted()
    same = out._replace(poses=out.poses[:1, :1].expand_as(out.poses).clone().requires_grad_())
    loss = Loss(pose_variance_weight=3.0)
    without = pose_terms(same, batch, Loss(pose_variance_weight=0.0), World())
    with_it = pose_terms(same, batch, loss, World())
    assert float((with_it - without).detach()) == pytest.approx(3 * 2 * 0.01**2, rel=1e-3)


def test_uncertainty_is_a_gaussian_likelihood_with_s_at_one_for_raw_zero() -> None:
    out, batch = predicted(uncertainty=torch.zeros(4, 6, dtype=torch.float64))
    error = (out.poses[..., :3] - batch.future_poses[..., :3]).square().mean()
    loss = Loss(uncertainty_min=0.05)
    expected = 0.5 * float(error) / (1 + 1e-8)
    assert float(uncertainty_term(out, batch, loss, World())) == pytest.approx(expected, rel=1e-9)
    raw = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    s = 0.05 + 9.95 * torch.sigmoid(raw + math.log(0.95 / 9.0))
    likelihood = torch.distributions.Normal(batch.future_poses[..., :3], s[:, None, :3])
    expected = -likelihood.log_prob(out.poses[..., :3]).mean()
    expected = expected - 0.5 * math.log(2 * math.pi) + 0.1 * (s - 1).square().mean()
    value = uncertainty_term(out._replace(uncertainty=raw), batch, loss, World())
    assert float(value) == pytest.approx(float(expected), rel=1e-6)  # 1e-8 is added to s^2


def test_relocalization_is_towards_the_last_history_pose() -> None:
    guess = poses(9, 4)[:, :7]
    out, batch = predicted(relocalization=guess)
    known = batch.history_poses
    target = torch.cat([known[:, -1, :3] - known[:, 0, :3], known[:, -1, 3:7]], 1)
    expected = functional.smooth_l1_loss(guess, target)
    assert float(relocalization_term(out, batch, World())) == pytest.approx(float(expected), rel=1e-12)


def test_the_triplet_takes_the_nearest_two_of_the_batch_and_needs_three() -> None:
    place = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], dtype=torch.float64)
    out, batch = predicted(place=place)
    apart = torch.cdist(place, place)
    near = apart.sort(1).values
    expected = (near[:, 1] - near[:, 2] + 0.2).relu().mean()
    three = Batch(batch.history, batch.future, batch.history_poses, batch.future_poses, 0, 3)
    assert float(place_term(out, three, World())) == pytest.approx(float(expected), abs=1e-9)
    two = Batch(batch.history, batch.future, batch.history_poses, batch.future_poses, 0, 2)
    assert float(place_term(out._replace(place=place[:2]), two, World())) == pytest.approx(0.0, abs=1e-12)


# ---- ranks


def share(world: World, recipe: str, kind: str) -> Any:
    """Rank 0 holds one window of four, rank 1 three."""
    config = config_of(recipe, model={"type": kind, "pool": (2, 2, 2)}, loss={"bce_weight": 0.5, "temporal_decay": 0.2})
    module = world.wrap(objective(config, world))
    first, last = [(0, 1), (1, 4)][world.rank] if world.size == 2 else (0, 4)
    loss, logs = module(batch_of(config, 4, first, last), StepState())
    loss.backward()
    inner = world.unwrap(module)
    gradient = torch.cat([p.grad.flatten() for p in inner.parameters()])
    parts = {name: float(value) for name, value in logs.items() if not value.dim()}
    return float(loss.detach()), gradient.tolist(), parts


@pytest.mark.parametrize(("recipe", "kind"), [("head", "6dof"), ("focal99_dice_mean", "simple")])
def test_two_ranks_with_unequal_shares_have_the_loss_of_the_whole_batch(
    pair: Ranks,  # noqa: F811
    recipe: str,
    kind: str,
) -> None:
    """Dice, mean, recall, Lovász, the variance of poses and the triplet are no means over windows."""
    loss, gradient, logs = share(World(), recipe, kind)
    whole = torch.tensor(gradient, dtype=torch.float64)
    for rank_loss, rank_gradient, rank_logs in pair.run(share, recipe, kind):
        assert rank_loss == pytest.approx(loss, rel=1e-12)
        assert rank_logs == pytest.approx(logs, rel=1e-11)
        difference = torch.tensor(rank_gradient, dtype=torch.float64) - whole
        assert float(difference.norm() / whole.norm()) < 1e-12
