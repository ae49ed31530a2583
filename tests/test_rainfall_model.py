"""The rainfall networks: the original's sizes to the parameter, shapes on any grid, nothing that gets no gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from buttress.trainables.rainfall.config import Config, Model
from buttress.trainables.rainfall.model import Grids, Pool, RainVae, stages

S64 = {"d_x": 64, "d_y": 256, "d_z": 64, "base_filters": 64}


def millions(**model: Any) -> float:
    with torch.device("meta"):  # counted, not allocated
        net = RainVae(Model(**model))
    return sum(parameter.numel() for parameter in net.parameters()) / 1e6


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (S64, 100.5),  # the first run
        ({}, 152.9),  # the seed document: 96/384/96, 96 filters, 19x16
        (S64 | {"decoder": "resized"}, 110.0),
        (S64 | {"decoder": "transposed", "d_z": 128}, 111.3),
        (S64 | {"decoder": "resized", "base_filters": 96, "d_z": 128, "inject": "all"}, 167.4),
        (S64 | {"decoder": "resized", "base_filters": 96, "d_z": 128, "inject": "first"}, 167.3),
        ({"decoder": "transposed"}, 169.8),
        ({"decoder": "transposed", "inject": "first"}, 170.2),
        ({"decoder": "transposed", "inject": "all"}, 170.4),
    ],
)
def test_full_size_networks_have_the_originals_parameter_counts(model: dict[str, Any], count: float) -> None:
    assert round(millions(**model), 1) == count


def test_the_defaults_are_the_seeds_network() -> None:
    with torch.device("meta"):
        net = RainVae(Config().model)
    assert sum(parameter.numel() for parameter in net.parameters()) == 152_895_553
    assert not Config().model.output_relu


def test_the_decoders_grow_as_the_originals_did() -> None:
    assert stages((156, 132), "bilinear") == [(19, 16), (38, 32), (76, 64), (152, 128)]
    for decoder in ("resized", "transposed"):
        assert stages((156, 132), decoder) == [(20, 17), (39, 33), (78, 66), (156, 132)]


SMALL = {"d_x": 6, "d_y": 8, "d_z": 4, "base_filters": 2, "fc": 12, "head": 10, "pool": 3, "dropout": 0.0}


@pytest.mark.parametrize("decoder", ["bilinear", "resized", "transposed"])
@pytest.mark.parametrize("inject", ["none", "first", "all"])
@pytest.mark.parametrize("grids", [Grids(6, (13, 11), (52, 44), 2), Grids(1, (2, 4), (14, 28), 3)])
def test_fields_have_the_targets_shape_and_every_parameter_a_gradient(decoder: str, inject: str, grids: Grids) -> None:
    torch.manual_seed(0)
    net = RainVae(Model(**SMALL, decoder=decoder, inject=inject), grids)
    x, y = torch.randn(5, grids.channels, *grids.low), torch.randn(5, 1, *grids.high)
    condition = net.condition(x)
    code = net.posterior(condition, y, torch.rand(1, grids.statics, *grids.high))
    assert code.mu.shape == code.logvar.shape == (5, 4)
    field = net.decode(code.mu + torch.exp(code.logvar / 2) * torch.randn(5, 4), condition)
    assert field.shape == y.shape
    (field - y).abs().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())  # DDP would wait for the others
    alive = [name for name, parameter in net.named_parameters() if parameter.grad.abs().sum() > 0]
    assert len(alive) > 0.8 * len(list(net.parameters()))


def test_linear_output_reaches_dry_values_and_the_named_relu_does_not() -> None:
    torch.manual_seed(0)
    for relu in (False, True):
        net = RainVae(Model(**SMALL, output_relu=relu), Grids(6, (13, 11), (52, 44), 2))
        nn.init.constant_(net.decoder.out.bias, -0.7)
        low = net.decode(torch.zeros(2, 4), net.condition(torch.zeros(2, 6, 13, 11))).min()
        assert (low == 0) if relu else (low < -0.5)


@pytest.mark.parametrize("size", [(20, 17), (4, 9), (8, 8), (3, 2)])
def test_pooling_is_torchs_adaptive_average(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    ours = Pool(size, 8).double()(x)
    torch.testing.assert_close(ours, nn.functional.adaptive_avg_pool2d(x, 8), rtol=1e-6, atol=1e-7)


def test_injection_lets_the_decoder_see_where_it_rains() -> None:
    """Without it all the decoder knows of the predictor passes through d_x numbers."""
    torch.manual_seed(0)
    grids = Grids(1, (13, 11), (52, 44), 2)
    changes = {}
    for inject in ("none", "all"):
        net = RainVae(Model(**SMALL, decoder="resized", inject=inject, norm="none"), grids)
        x = torch.zeros(1, 1, 13, 11)
        moved = x.clone()
        moved[0, 0, 2, 2] = 5.0
        with torch.no_grad():
            fixed = net.condition(x)
            other = net.condition(moved)._replace(code=fixed.code)
            z = torch.zeros(1, 4)
            changes[inject] = (net.decode(z, other) - net.decode(z, fixed)).abs()[0, 0]
    assert changes["none"].max() == 0
    near, far = changes["all"][:20, :20].mean(), changes["all"][32:, 28:].mean()
    assert near > 0 and near > 5 * far


def test_dropout_inside_the_decoder_drops_whole_channels_and_in_training_alone() -> None:
    torch.manual_seed(0)
    grids = Grids(1, (13, 11), (52, 44), 2)
    plain, dropping = (RainVae(Model(**SMALL, stage_dropout=p), grids) for p in (0.0, 0.9))
    dropping.load_state_dict(plain.state_dict())
    seen: list[torch.Tensor] = []
    dropping.decoder.drop_channels.register_forward_hook(lambda *args: seen.append(args[-1]))
    condition = plain.eval().condition(torch.randn(3, 1, 13, 11))
    z = torch.randn(3, 4)
    assert torch.equal(dropping.eval().decode(z, condition), plain.decode(z, condition))
    seen.clear()
    dropping.train().decode(z, condition)
    zeros = [(one == 0).flatten(2).all(2).float().mean() for one in seen]
    assert len(zeros) == 3 and min(zeros) > 0.4
