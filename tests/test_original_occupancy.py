"""Figures of the original's occupancy trainer that a deviation from it would change.

Where they are not the golden data's own, they were computed by these networks and terms when `test_golden_occupancy.py`
held them to the golden data, on inputs and weights that follow the golden data's rule (golden.py): no file is needed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from golden import agree, by_rule, rule_weights
from torch import nn

from buttress.errors import BadInput
from buttress.trainables.occupancy.config import Config, Loss, Model
from buttress.trainables.occupancy.loss import Batch, pose_terms, uncertainty_term
from buttress.trainables.occupancy.model import Predicted, build
from buttress.trainables.occupancy.original import from_original, to_original
from buttress.trainables.occupancy.poses import quaternion, velocities
from buttress.trainables.occupancy.train import learning_rate
from buttress.training.world import World

CELLS = (6, 5, 4)
#: 64 channels where the original's count of groups differs from stage to stage.
SMALL: dict[str, Any] = {"channels": (64, 8, 8), "latent_dim": 8, "pose_dim": 8, "pool": (2, 2, 1)}
KINDS: dict[str, dict[str, Any]] = {
    "simple": {"type": "simple"},
    "6dof": {},
    "transformer": {"use_transformer": True},
}


def drawn(key: str, *shape: int) -> torch.Tensor:
    """Inputs in -1 to 1 by the rule; the quaternions of poses have length 1."""
    values = torch.from_numpy(by_rule(key, shape, 0.0, 1.0, 17))
    if shape[-1] == 13:
        values[..., 3:7] = nn.functional.normalize(values[..., 3:7], dim=-1)
    return values


def network(kind: str) -> nn.Module:
    built = build(Model(**SMALL, **KINDS[kind]), 3, 2, CELLS).double()
    rule_weights(built, 17)
    return built


def figures(kind: str, dropped: bool) -> dict[str, list[float]]:
    """Three weighted sums of poses and of logits; `dropped`: in train mode with every dropout that is on at 1."""
    built = network(kind).train(dropped)
    for one in built.modules():
        if isinstance(one, nn.Dropout):
            one.p = math.ceil(one.p)
        if isinstance(one, nn.LSTM | nn.MultiheadAttention):
            one.dropout = math.ceil(one.dropout)
    with torch.no_grad():
        out = built((drawn("history", 2, 3, *CELLS) > 0.6).double(), drawn("poses", 2, 3, 13))
    sums = {}
    for name, values in (("poses", out.poses), ("logits", out.logits)):
        weights = drawn(f"weights of {name}", 3, values.numel())
        sums[name] = (weights @ values.flatten()).tolist()
    return sums


NETWORKS: dict[tuple[str, bool], dict[str, list[float]]] = {
    ("simple", False): {
        "poses": [0.2097445862, 0.9435329762, 0.07679118501],
        "logits": [-2.827969087, 2.069873627, 2.503968115],
    },
    ("simple", True): {
        "poses": [0.2425368347, 0.9399975434, 0.09183972148],
        "logits": [-2.830712992, 2.085747942, 2.448371557],
    },
    ("6dof", False): {
        "poses": [2.931204031, 2.555457175, 0.7226191405],
        "logits": [-0.7584855315, 0.9749971002, 9.879977505],
    },
    ("6dof", True): {
        "poses": [2.933850748, 2.58056589, 0.7380779911],
        "logits": [-0.7374214195, 0.974406601, 9.902476362],
    },
    ("transformer", False): {
        "poses": [-2.122983528, 4.323580512, 1.475306472],
        "logits": [-1.164305918, 1.438763154, 9.936469501],
    },
    ("transformer", True): {
        "poses": [1.493692882, 2.538927759, 0.5681180147],
        "logits": [-0.8400449674, 1.97202091, 9.838013973],
    },
}


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_networks_give_the_originals_numbers(kind: str, dropped: bool) -> None:
    found, golden = (
        {key: torch.tensor(value, dtype=torch.float64) for key, value in one.items()}
        for one in (figures(kind, dropped), NETWORKS[kind, dropped])
    )
    agree(found, golden, 1e-8)


def terms(case: str) -> float:
    """A term of the 6dof loss of four windows of two steps."""
    poses, future = drawn("predicted", 4, 2, 13), drawn("future", 4, 2, 13)
    if case == "alike":
        poses = poses[:1, :1] + 0.003 * drawn("small", 4, 2, 13)
    if case == "scaled":
        poses[..., 3:7] *= 0.7
        future[..., 3:7] *= 1.3
    out = Predicted(torch.zeros(1), poses, uncertainty=torch.full((4, 6), -20.0, dtype=torch.float64))
    batch = Batch(torch.zeros(1), torch.zeros(1), poses, future, 0, 4)
    if case == "sure":
        return float(uncertainty_term(out, batch, Loss(), World()))
    return float(pose_terms(out, batch, Loss(pose_variance_weight=1e4), World()))


TERMS = {"plain": 1.20283689744, "alike": 2.60141486791, "scaled": 1.20283689744, "sure": 372262.84914}


@pytest.mark.parametrize("case", ["plain", "alike", "scaled", "sure"])
def test_terms_of_the_6dof_loss_are_the_originals(case: str) -> None:
    """`alike`: biased deviation of 8 poses; `scaled`: normalised quaternions; `sure`: 1e-8 added to 0.001 squared."""
    assert terms(case) == pytest.approx(TERMS[case], rel=1e-9)


def test_the_cosine_counts_from_the_end_of_the_warm_up_over_all_epochs() -> None:
    """Golden data: 1e-4 over 50 epochs of which five warm up, one step an epoch; and so the floor is never reached."""
    schedule = learning_rate(Config(train={"warmup_steps": 5}).train, 1)
    rates = [1e-4 * schedule.factor(epoch, epoch) for epoch in range(50)]
    assert rates[49] == pytest.approx(4.476063948531556e-06, rel=1e-12)
    assert rates[:2] == pytest.approx([1e-6, 2.08e-5], rel=1e-12) and rates[5] == max(rates) == 1e-4


def test_angular_velocities_are_in_world_axes() -> None:
    """A quarter turn about x, then a tenth about the world's y: about y in world axes, about -z in the body's."""
    quarter, tenth = math.pi / 4, 0.05
    before = [math.cos(quarter), math.sin(quarter), 0, 0]
    after = [math.cos(tenth) * before[0], math.cos(tenth) * before[1], math.sin(tenth) * before[0],
             -math.sin(tenth) * before[1]]  # fmt: skip
    poses = np.zeros((2, 13))
    poses[:, 3:7] = before, after
    np.testing.assert_allclose(velocities(poses, np.array([0.5]), 20, 6.28)[1, 10:], [0, 0.2, 0], atol=1e-12)
    poses[1, 3:7] *= -1  # the original takes the long way round, and clips it
    np.testing.assert_allclose(velocities(poses, np.array([0.5]), 20, 6.28)[1, 10:], [0, -6.28, 0], atol=1e-12)


@pytest.mark.parametrize(("yaw", "sign"), [(-91, -1), (-89, 1), (91, 1), (179, 1), (181, -1)])
def test_quaternions_of_matrices_have_the_originals_sign(yaw: int, sign: int) -> None:
    angle = math.radians(yaw)
    c, s = math.cos(angle), math.sin(angle)
    q = quaternion(np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]]))
    np.testing.assert_allclose(q, np.array([abs(q[0]), 0, 0, q[3]]) * [sign, 1, 1, 1], atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_go_to_the_original_and_back(kind: str) -> None:
    model = Model(**KINDS[kind])
    with torch.device("meta"):
        weights = build(model, 4, 6, (20, 20, 20)).state_dict()
    theirs = to_original(weights, model)
    assert len(theirs) == {"simple": 50, "6dof": 74, "transformer": 4 * 12 + 1 + 66}[kind]
    assert from_original(theirs, model).keys() == weights.keys()


@pytest.mark.parametrize("given", [{"skip": 4}, {"channels": (8, 16, 32)}, {"latent_dim": 64}, {"pool": (4, 4, 2)}])
def test_what_the_original_cannot_hold_is_refused_by_name(given: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=rf"model\.{next(iter(given))}: "):
        to_original({}, Model(**given))


def test_a_weight_that_the_original_does_not_have_is_refused() -> None:
    with pytest.raises(BadInput, match=r"no weight head\.weight"):
        from_original({"head.weight": torch.zeros(1)}, Model())
