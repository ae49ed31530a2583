"""The radio networks: the original's sizes to the parameter, shapes at any image size, a discriminator of one batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from buttress.trainables.radio.config import DDConfig, Model
from buttress.trainables.radio.model import Attention, BatchNorm, Code, Discriminator, Double, Halve, RadioVae
from buttress.training.world import World
from tests.ranks import Ranks, pair  # noqa: F401

SMALL: dict[str, Any] = {"ddconfig": {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1}}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def vae(channels: int = 1, embed_dim: int = 3, **ddconfig: Any) -> RadioVae:
    """Counted, not allocated."""
    with torch.device("meta"):
        return RadioVae(Model(embed_dim=embed_dim, ddconfig=DDConfig(**ddconfig)), channels)


def test_the_full_size_is_the_originals_to_the_parameter() -> None:
    full = vae()
    assert count(full.encoder) == 22_348_934 and count(full.decoder) == 32_958_465
    assert count(full.to_code) + count(full.from_code) == 54 and count(full) == 55_307_453


@pytest.mark.parametrize(
    ("wanted", "channels", "embed_dim", "ddconfig"),
    [
        (13_843_307, 1, 3, {"ch": 64, "z_channels": 2}),
        (13_844_448, 2, 2, {"ch": 64, "z_channels": 2}),
        (13_836_363, 1, 1, {"ch": 64, "z_channels": 1}),
        (2_697_437, 1, 3, {"ch": 32, "num_res_blocks": 1}),
        (655_453, 1, 3, {"ch": 32, "num_res_blocks": 1, "ch_mult": [1, 2]}),
    ],
)
def test_smaller_networks_have_their_known_counts(
    wanted: int, channels: int, embed_dim: int, ddconfig: dict[str, Any]
) -> None:
    assert count(vae(channels, embed_dim, **ddconfig)) == wanted


def test_the_discriminator_is_the_originals() -> None:
    with torch.device("meta"):
        critic, of_two = Discriminator(3, World()), Discriminator(3, World(), channels=2)
        patches = {side: critic(torch.empty(1, 1, side, side)).shape for side in (24, 96, 256, 320)}
    assert (count(critic), count(of_two)) == (2_763_585, 2_764_609)
    assert {side: shape[-1] for side, shape in patches.items()} == {24: 1, 96: 10, 256: 30, 320: 38}
    torch.manual_seed(0)
    convolutions = [layer for layer in Discriminator(2, World()).modules() if isinstance(layer, nn.Conv2d)]
    weights = torch.cat([layer.weight.detach().flatten() for layer in convolutions])
    assert weights.std() == pytest.approx(0.02, rel=0.02) and abs(float(weights.mean())) < 1e-3


@pytest.mark.parametrize(("side", "latent"), [(256, 64), (320, 80)])
def test_the_latent_map_is_a_quarter_of_a_side_at_full_size(side: int, latent: int) -> None:
    with torch.device("meta"):
        model, x = RadioVae(Model()), torch.empty(2, 1, side, side)
        code = model.encode(x)
        assert code.mu.shape == code.logvar.shape == (2, 3, latent, latent)
        assert model.decode(code.mu).shape == x.shape


def test_images_need_not_be_square_and_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    model, x = RadioVae(Model(**SMALL)), torch.rand(2, 1, 12, 16) * 2 - 1
    y, code = model(x, torch.randn(2, 3, 6, 8))
    assert y.shape == x.shape and code.mu.shape == (2, 3, 6, 8)
    (y.square().sum() + code.mu.sum() + code.raw_logvar.sum()).backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters() if p.dim() > 1)
    assert model.last.shape == (1, 32, 3, 3) and model.last.grad is not None


def test_the_clamp_is_in_the_sample_and_not_in_what_monitors_see() -> None:
    code = Code(torch.zeros(3), torch.tensor([-99.0, 0.5, 99.0]))
    assert code.logvar.tolist() == [-30.0, 0.5, 20.0] and code.raw_logvar.tolist() == [-99.0, 0.5, 99.0]


def test_attention_is_scaled_dot_product_attention_over_all_cells() -> None:
    torch.manual_seed(1)
    layer, x = Attention(32).double(), torch.randn(2, 32, 4, 6, dtype=torch.float64)
    h = layer.norm(x)
    query, key, value = (one(h).flatten(2).transpose(1, 2) for one in (layer.query, layer.key, layer.value))
    attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).view_as(x)
    torch.testing.assert_close(layer(x), x + layer.out(attended))


def test_halving_pads_on_the_right_and_below_and_doubling_repeats() -> None:
    halve, double = Halve(1), Double(1)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    for layer, centre in ((halve.conv, (0, 0)), (double.conv, (1, 1))):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        with torch.no_grad():
            layer.weight[0, 0][centre] = 1.0
    assert torch.equal(halve(x), x[:, :, ::2, ::2])  # padding on the left too would shift it by one
    assert torch.equal(double(x), functional.interpolate(x, scale_factor=2, mode="nearest"))


def normalised(world: World, x: torch.Tensor, share: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output, gradient of the input and of the weight on this rank's share of a batch."""
    torch.manual_seed(4)
    layer = BatchNorm(3, world).double()
    first = sum(share[: world.rank])
    own = x[first : first + share[world.rank]].clone().requires_grad_()
    y = layer(own)
    place = torch.arange(len(x), dtype=x.dtype)[first : first + share[world.rank], None, None, None]
    (y.pow(3) * (1 + place)).sum().backward()
    assert own.grad is not None and layer.weight.grad is not None
    return y.detach(), own.grad, layer.weight.grad


def test_batchnorm_is_torchs_on_one_rank_and_that_of_the_whole_batch_on_two(pair: Ranks) -> None:  # noqa: F811
    torch.manual_seed(2)
    x = torch.randn(5, 3, 2, 4, dtype=torch.float64) * 3 + 7
    y, gradient, of_weight = normalised(World(), x, [5])
    torch.manual_seed(4)
    ours = BatchNorm(3, World())
    reference = nn.BatchNorm2d(3).double().train()
    reference.weight.data.copy_(ours.weight.data)
    torch.testing.assert_close(y, reference(x).detach())
    parts = pair.run(normalised, x, [3, 2])
    torch.testing.assert_close(torch.cat([one[0] for one in parts]), y)
    torch.testing.assert_close(torch.cat([one[1] for one in parts]), gradient)
    torch.testing.assert_close(sum(one[2] for one in parts), of_weight)
