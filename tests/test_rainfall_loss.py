"""The rainfall losses against plain loops in float64, and their gradient on two ranks against that on one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from buttress.trainables.rainfall.config import Loss, Model
from buttress.trainables.rainfall.loss import Batch, Objective, floored_kl, gradient, mass, reconstruction
from buttress.trainables.rainfall.model import Grids, RainVae
from buttress.trainables.rainfall.rain import Rain, moved
from buttress.training.optimization import StepState
from buttress.training.world import World
from tests.ranks import Ranks, pair  # noqa: F401

H, W = 6, 5
ALONE = World()
VARIANTS = ("batch", "ratio_buggy", "per_sample", "intensity")


def rain_of(seed: int = 0) -> Rain:
    random = np.random.default_rng(seed)
    land = (random.random((H, W)) < 0.6).astype(float)
    mean, std = np.where(land, 0.7, 0.0), np.where(land, random.uniform(0.6, 1.1, (H, W)), 1e-8)
    return Rain.of(mean, std, land, (1.5, 8.0, 20.0), torch.device("cpu"), torch.float64)


def fields(days: int = 5, seed: int = 1, extremes: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """y_hat and y in z; half of the days have no extreme pixel."""
    random, rain = np.random.default_rng(seed), rain_of()
    y = random.normal(0.0, 0.4, (days, 1, H, W))
    if extremes:
        y[::2] += np.where(random.random((len(y[::2]), 1, H, W)) < 0.2, 2.5, 0.0)
    y = torch.from_numpy(y.clip(-1, 4)) * rain.land
    return torch.from_numpy(random.normal(0, 0.7, (days, 1, H, W))), y


def expected(loss: Loss, y_hat: np.ndarray, y: np.ndarray) -> float:
    """Straight from the definitions, pixel by pixel."""
    rain = rain_of()
    mean, std, land = rain.mean.numpy(), rain.std.numpy(), rain.land.numpy()
    errors, extreme, per_day, weights, weighted = [], [], [], 0.0, 0.0
    for day in range(len(y)):
        own = []
        for row in range(H):
            for column in range(W):
                if loss.over == "land" and not land[row, column]:
                    continue
                e = abs(y_hat[day, 0, row, column] - y[day, 0, row, column])
                errors.append(e)
                if y[day, 0, row, column] >= 1.5:
                    extreme.append(e)
                    own.append(e)
                mm = np.expm1(y[day, 0, row, column] * std[row, column] + mean[row, column])
                mm_hat = np.expm1(y_hat[day, 0, row, column] * std[row, column] + mean[row, column])
                w = min(max(mm / loss.scale, loss.w_min), loss.w_max) * (loss.tail_boost if mm >= 20.0 else 1.0)
                weights, weighted = weights + w, weighted + w * abs(mm_hat - mm)
        if own:
            per_day.append(np.mean(own))
    base = loss.lambda_base * np.mean(errors)
    if loss.reconstruction == "batch":
        return base + loss.lambda_ext * (np.mean(extreme) if extreme else 0.0)
    if loss.reconstruction == "per_sample":
        return base + loss.lambda_ext * (np.mean(per_day) if per_day else 0.0)
    if loss.reconstruction == "ratio_buggy":
        share = len(per_day) / len(y)
        return base + loss.lambda_ext * (np.mean(per_day) * share if per_day else 0.0)
    return weighted / weights


def of(loss: Loss, y_hat: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    rain = rain_of()
    mask = rain.land if loss.over == "land" else torch.ones_like(rain.land)
    return reconstruction(loss, rain, y_hat, y, len(y), mask, World()).rec


@pytest.mark.parametrize("extremes", [True, False])
@pytest.mark.parametrize("over", ["land", "all"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_its_definition(variant: str, over: str, extremes: bool) -> None:
    loss = Loss(reconstruction=variant, over=over, lambda_base=0.7, lambda_ext=3.0, scale=9.0, w_max=4.0)
    y_hat, y = fields(extremes=extremes)
    assert of(loss, y_hat, y).item() == pytest.approx(expected(loss, y_hat.numpy(), y.numpy()), rel=1e-12)


def test_the_buggy_ratio_makes_rare_extremes_count_for_less() -> None:
    """One day of ten has extremes: the fix weighs them ten times as much."""
    y_hat, y = fields(days=10)
    y[1:] = y[1:].clamp_max(1.0)
    parts = {}
    for variant in ("ratio_buggy", "per_sample"):
        loss = Loss(reconstruction=variant)
        parts[variant] = reconstruction(loss, rain_of(), y_hat, y, 10, rain_of().land, World()).ext.item()
    assert parts["per_sample"] == pytest.approx(10 * parts["ratio_buggy"], rel=1e-12) and parts["ratio_buggy"] > 0


def test_weights_of_the_newest_intensity_loss() -> None:
    """0.1 at 1 mm, 1 at 11.7, 3.7 just under P99 and 18.6 above it, 50 from 117 mm up (fact sheet)."""
    mm = torch.tensor([1.0, 11.7, 43.5, 43.7, 117.0, 300.0], dtype=torch.float64)
    z = torch.log1p(mm).view(1, 1, 1, 6)
    ones = np.ones((1, 6))
    rain = Rain.of(0 * ones, ones, ones, (9.0, 20.0, 43.6), torch.device("cpu"), torch.float64)
    found = []
    for pixel in range(6):
        y_hat = z.clone().requires_grad_()
        off = torch.zeros_like(z)
        off[..., pixel] = 1e-3
        loss = Loss(reconstruction="intensity")
        value = reconstruction(loss, rain, y_hat + off, z, 1, rain.land, World()).rec
        found.append(value.item() / ((mm[pixel] + 1) * 1e-3).item())
    weights = np.array(found) / found[1]
    assert weights == pytest.approx([0.1, 1.0, 3.72, 18.7, 50.0, 50.0], rel=0.01)


def test_no_prediction_overflows() -> None:
    y_hat, y = fields()
    for height in (30.0, 1e4):
        wild = torch.full_like(y_hat, height).requires_grad_()
        rain = rain_of()
        value = of(Loss(reconstruction="intensity"), wild, y) + mass(wild, y, rain.land, rain, len(y), 1)
        value.backward()
        assert value.isfinite() and wild.grad.isfinite().all() and (wild.grad * rain.land).abs().sum() > 0
    rain = rain_of()
    z = torch.linspace(-2, 6, 50, dtype=torch.float64).view(-1, 1, 1).expand(-1, H, W)
    torch.testing.assert_close(rain.mm(z), torch.expm1(z * rain.std + rain.mean))  # untouched below 2,000 mm


def test_mass_and_gradient_are_means_per_pixel() -> None:
    y_hat, y = fields()
    rain = rain_of()
    land = rain.land.numpy() > 0
    difference = (rain.mm(y_hat) - rain.mm(y)).numpy()[:, 0][:, land]
    assert mass(y_hat, y, rain.land, rain, 5, 1).item() == pytest.approx(np.abs(difference.mean(1)).mean(), rel=1e-12)
    in_z = (y_hat - y).numpy()[:, 0][:, land]
    assert mass(y_hat, y, rain.land, None, 5, 1).item() == pytest.approx(np.abs(in_z.mean(1)).mean(), rel=1e-12)
    e = (y_hat - y).numpy()[:, 0]
    both = [land[:, 1:] & land[:, :-1], land[1:] & land[:-1]]
    steps = [np.abs(e[:, :, 1:] - e[:, :, :-1])[:, both[0]], np.abs(e[:, 1:] - e[:, :-1])[:, both[1]]]
    assert gradient(y_hat, y, rain.land, 5, 1).item() == pytest.approx(sum(s.mean() for s in steps), rel=1e-12)


@pytest.mark.parametrize("per", ["element", "dimension", "total"])
def test_free_bits_hold_the_kl_up(per: str) -> None:
    kl = torch.tensor([[0.1, 2.0, 0.0], [0.3, 1.0, 0.9]], dtype=torch.float64)
    floor = {"element": (0.5 + 2 + 0.5 + 0.5 + 1 + 0.9) / 2, "dimension": 0.5 + 1.5 + 0.5, "total": 2.15}[per]
    loss = Loss(free_bits=0.5, free_bits_per=per)
    assert floored_kl(kl, loss, 2, World()).item() == pytest.approx(floor, rel=1e-12)
    assert floored_kl(kl / 100, loss, 2, World()).item() == pytest.approx(0.5 if per == "total" else 1.5)
    assert floored_kl(kl, Loss(), 2, World()).item() == pytest.approx(2.15)


def test_the_raw_kl_is_reported_whatever_floor_it_has() -> None:
    objective, batch = built("per_sample", {"free_bits": 5.0})
    _, logs = objective(batch, StepState(numbers={"beta": 1.0}))
    mu, logvar = logs["mu"], logs["logvar"]
    raw = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1).mean()
    assert logs["kl"].item() == pytest.approx(raw.item(), rel=1e-9) and raw < 5


# ---- ranks


GRIDS = Grids(2, (3, 2), (H, W), 2)
SIZES = {"d_x": 3, "d_y": 4, "d_z": 3, "base_filters": 2, "fc": 8, "head": 6, "pool": 2, "dropout": 0.0}


def built(
    variant: str, more: dict[str, Any] | None = None, world: World = ALONE, flip: tuple[int, ...] = ()
) -> tuple[Objective, Batch]:
    """A small objective in float64 and this rank's share of 7 days, of which only the last rank has extremes."""
    torch.manual_seed(3)
    rain = rain_of()
    model = RainVae(Model(**SIZES, norm="none"), GRIDS)
    loss = Loss(reconstruction=variant, **{"lambda_gradient": 0.3, "warmup_epochs": 0, **(more or {})})
    statics = torch.stack([rain.land, torch.rand(H, W, dtype=torch.float64)])[None]
    objective = Objective(model, loss, rain, statics, world).double()
    generator = torch.Generator().manual_seed(4)
    days = 7
    x = torch.randn(days, 2, 3, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(days, 3, generator=generator, dtype=torch.float64)
    y = fields(days)[1]
    y[:4] = y[:4].clamp_max(1.2)
    assert (y[4:] >= 1.5).any() and not (y[:4] >= 1.5).any()
    own = slice(0, 3) if world.size == 2 and world.rank == 0 else slice(3, 7) if world.size == 2 else slice(0, 7)
    return objective, Batch(x[own], y[own], noise[own], days, flip)


def gradients(world: World, variant: str, more: dict[str, Any], flip: tuple[int, ...]) -> list[Any]:
    objective, batch = built(variant, more, world, flip)
    module = world.wrap(objective)
    loss, logs = module(batch, StepState(numbers={"beta": 0.3}, shares=world.size))
    loss.backward()
    scalars = {name: world.mean(value) for name, value in logs.items() if value.dim() == 0}
    return [world.mean(loss.detach()), scalars, [parameter.grad.tolist() for parameter in objective.parameters()]]


@pytest.mark.parametrize(
    ("variant", "more", "flip"),
    [
        *((variant, {}, ()) for variant in VARIANTS),
        ("batch", {"over": "all", "mass_in": "z"}, (-1,)),
        ("intensity", {"free_bits": 0.02}, (-1, -2)),
        ("per_sample", {"free_bits": 0.1, "free_bits_per": "total"}, ()),
        ("per_sample", {"free_bits": 0.05, "free_bits_per": "element"}, ()),
    ],
)
def test_two_ranks_have_the_gradient_of_one(
    variant: str, more: dict[str, Any], flip: tuple[int, ...], pair: Ranks  # noqa: F811
) -> None:
    """Shares of 3 and 4 days, and no extreme pixel on rank 0."""
    loss, logs, grads = gradients(World(), variant, more, flip)
    for rank_loss, rank_logs, rank_grads in pair.run(gradients, variant, more, flip):
        assert rank_loss == pytest.approx(loss, rel=1e-10)
        assert rank_logs == pytest.approx(logs, rel=1e-10)
        for ours, theirs in zip(grads, rank_grads, strict=True):
            np.testing.assert_allclose(theirs, ours, rtol=1e-9, atol=1e-13)
    assert any(np.abs(grad).max() > 0 for grad in grads)


def test_flipped_days_are_scored_with_flipped_maps() -> None:
    objective, batch = built("intensity")
    flipped = Batch(batch.x.flip(-1), batch.y.flip(-1), batch.noise, batch.rows, (-1,))
    rain = objective.rain.moved((-1,))
    torch.testing.assert_close(rain.mm(flipped.y), objective.rain.mm(batch.y).flip(-1))
    value, _ = objective(flipped, StepState(numbers={"beta": 0.0}))
    wrong, _ = objective(flipped._replace(flip=()), StepState(numbers={"beta": 0.0}))
    assert abs(value - wrong) > 1e-3


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turned_days_are_scored_with_turned_maps(turns: int) -> None:
    """Flipped, then turned: all that stands on the grid goes the same way, on a grid that is not square as well."""
    rain, (y_hat, y) = rain_of(), fields()
    there = rain.moved((-2,), turns)
    assert there.land.shape == ((W, H) if turns % 2 else (H, W))
    for variant in VARIANTS:
        loss = Loss(reconstruction=variant)
        found = reconstruction(loss, there, *(moved(one, (-2,), turns) for one in (y_hat, y)), 5, there.land, World())
        whole = reconstruction(loss, rain, y_hat, y, 5, rain.land, World())
        assert found.rec.item() == pytest.approx(whole.rec.item(), rel=1e-12)
    torch.testing.assert_close(there.mm(moved(y, (-2,), turns)), moved(rain.mm(y), (-2,), turns))
