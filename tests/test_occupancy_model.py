"""Both networks have the original's size to the parameter, on any grid, and are built as the originals are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from occupancy import QUICK
from torch.nn import functional

from buttress.trainables.occupancy.config import Model
from buttress.trainables.occupancy.model import build, hamilton, moved
from buttress.trainables.occupancy.poses import product

SMALL = Model(channels=(4, 8, 16), latent_dim=16, pose_dim=16, pool=(2, 2, 2))


def count(model: Model, cells: tuple[int, int, int] = (200, 200, 121)) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(model, 4, 6, cells).parameters())


def test_parameter_counts_are_the_originals() -> None:
    assert count(Model(type="simple")) == 13_851_923
    assert count(Model()) == 77_300_704
    assert count(Model(use_transformer=True)) == 79_407_072
    assert count(Model(channels=(8, 16, 32), latent_dim=32)) == pytest.approx(1.25e6, rel=0.001)
    assert count(Model(), (200, 200, 16)) == 77_300_704  # whatever the grid
    assert count(Model(**QUICK), (32, 32, 16)) == 393_872


@pytest.mark.parametrize("kind", ["simple", "6dof", "transformer"])
@pytest.mark.parametrize("cells", [(8, 8, 4), (50, 50, 30), (13, 9, 7)])
def test_any_grid_comes_out_as_it_went_in(kind: str, cells: tuple[int, int, int]) -> None:
    chosen = {"type": "simple"} if kind == "simple" else {"use_transformer": kind == "transformer"}
    model = build(SMALL.model_copy(update=chosen), 3, 5, cells)
    poses = torch.randn(2, 3, 13)
    poses[..., 3:7] = functional.normalize(poses[..., 3:7], dim=-1)
    out = model((torch.rand(2, 3, *cells) < 0.1).float(), poses)
    assert out.logits.shape == (2, 5, *cells) and out.poses.shape == (2, 5, 13)
    torch.testing.assert_close(out.poses[..., 3:7].norm(dim=-1), torch.ones(2, 5))
    if kind != "simple":
        assert out.uncertainty.shape == (2, 6) and out.relocalization.shape == (2, 7)
        torch.testing.assert_close(out.place.norm(dim=1), torch.ones(2))


def test_a_temporal_transformer_tells_the_order_of_poses() -> None:
    torch.manual_seed(0)
    model = build(SMALL.model_copy(update={"use_transformer": True, "dropout": 0.0}), 4, 2, (8, 8, 4)).eval()
    history, poses = torch.zeros(1, 4, 8, 8, 4), torch.randn(1, 4, 13)
    swapped = poses[:, [1, 0, 2, 3]]
    assert (model(history, poses).logits - model(history, swapped).logits).abs().max() > 1e-5


def test_quaternions_multiply_as_in_numpy_and_the_identity_turns_nothing() -> None:
    a, b = torch.randn(2, 7, 4, dtype=torch.float64)
    np.testing.assert_allclose(hamilton(a, b), product(a.numpy(), b.numpy()), atol=1e-12)
    pose = torch.randn(3, 13)
    pose[:, 3:7] = functional.normalize(pose[:, 3:7], dim=1)
    still = torch.zeros(3, 13)
    still[:, 3] = 2.0  # of any length
    torch.testing.assert_close(moved(pose, still), pose)


def test_planned_poses_steer_the_grid_but_not_the_predicted_poses() -> None:
    torch.manual_seed(0)
    model = build(SMALL, 2, 3, (8, 8, 4)).eval()
    history, poses = (torch.rand(2, 2, 8, 8, 4) < 0.2).float(), torch.randn(2, 2, 13)
    plain, planned = model(history, poses), model(history, poses, torch.randn(2, 2, 13))
    assert (plain.logits - planned.logits).abs().max() > 1e-4
    assert torch.equal(plain.poses, planned.poses)
    own = model(history, poses, plain.poses)
    torch.testing.assert_close(own.logits, plain.logits)


def test_predictions_start_undecided_unless_told_otherwise() -> None:
    torch.manual_seed(0)
    history, poses = torch.zeros(2, 4, 32, 32, 16), torch.zeros(2, 4, 13)
    poses[..., 3] = 1.0
    for bias in (0.0, -4.6):
        torch.manual_seed(0)
        logits = build(Model(**QUICK), 4, 6, (32, 32, 16), bias)(history, poses).logits
        assert float(logits.detach().mean()) == pytest.approx(bias, abs=0.6)


def test_the_full_resolution_path_is_local_and_the_bottleneck_is_not() -> None:
    """One voxel of the history moves: through the skip path this is seen within three voxels, and nowhere else."""
    torch.manual_seed(0)
    cells, skip = (32, 32, 16), 4
    model = build(Model(**QUICK, skip=skip, dropout=0.0), 4, 6, cells).eval()
    poses = torch.zeros(1, 4, 13)
    poses[..., 3] = 1.0
    one, other = torch.zeros(2, 1, 4, *cells)
    one[..., 10, 10, 5], other[..., 11, 10, 5] = 1.0, 1.0

    def changed() -> torch.Tensor:
        with torch.no_grad():
            return (model(one, poses).logits - model(other, poses).logits).abs()[0].amax(0) > 1e-7

    assert changed().float().mean() > 0.5
    torch.nn.init.zeros_(model.to_latent.weight)
    places = changed().nonzero()
    assert len(places) > 50 and places.amin(0).tolist() == [7, 7, 2] and places.amax(0).tolist() == [14, 13, 8]


def test_a_transformer_needs_a_width_that_its_heads_divide() -> None:
    with pytest.raises(ValueError, match="no multiple of model"):
        Model(latent_dim=30, use_transformer=True)
    with pytest.raises(ValueError, match="the simple model has no transformer"):
        Model(type="simple", use_transformer=True)
