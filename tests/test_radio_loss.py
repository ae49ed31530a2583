"""The radio losses against closed forms in float64, the adaptive weight against gradients taken by hand."""

from __future__ import annotations

from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from buttress.errors import BadInput
from buttress.trainables.radio.config import Extra, LossConfig, Model
from buttress.trainables.radio.loss import Autoencoding, Batch, Judging, critic_loss
from buttress.trainables.radio.model import Code, Discriminator, RadioVae
from buttress.trainables.radio.perceptual import Lpips, RandomFeatures, build
from buttress.training.optimization import StepState
from buttress.training.world import World

SMALL: dict[str, Any] = {"ddconfig": {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1}}
SIDE = 12


class Told(nn.Module):
    """A "VAE" that answers with what it was given."""

    def __init__(self, y: torch.Tensor, mu: torch.Tensor, logvar: torch.Tensor) -> None:
        super().__init__()
        self.y, self.code = y, Code(mu, logvar)
        self.last = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, Code]:
        return self.last * self.y, self.code


def batch_of(images: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(images, 1, SIDE, SIDE, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(images, 3, SIDE // 2, SIDE // 2, generator=generator, dtype=torch.float64)
    return Batch(x, noise, images)


def now(factor: float) -> StepState:
    return StepState(step=9, numbers={"disc_factor": factor})


def networks(world: World | None = None, **loss: Any) -> tuple[Autoencoding, Judging]:
    torch.manual_seed(11)
    world, settings = world or World(), LossConfig(**{"perceptual_weight": 0.0, "disc_num_layers": 1, **loss})
    model = RadioVae(Model(**SMALL))
    critic = Discriminator(settings.disc_num_layers, world)
    autoencoding = Autoencoding(model, settings, world, None, critic).double()
    return autoencoding, Judging(critic.double(), model, settings, world).double()


# ---- closed forms


def test_reconstruction_nll_and_kl_are_the_formulas() -> None:
    batch = batch_of(2)
    y, mu = batch.x + 0.3, torch.full((2, 3, 6, 6), 0.5, dtype=torch.float64)
    logvar = torch.full_like(mu, log(0.25))
    loss = LossConfig(kl_weight=0.01, logvar_init=-1.0)
    total, logs = Autoencoding(Told(y, mu, logvar), loss, World(), None, None).double()(batch, now(0.0))  # type: ignore[arg-type]
    rec = 0.3 + 0.09
    nll = SIDE * SIDE * (rec / exp(-1.0) - 1.0)
    kl = 108 * 0.5 * (0.25 + 0.25 - 1 - log(0.25))
    assert float(logs["recon"]) == pytest.approx(rec, rel=1e-12)
    assert (float(logs["l1"]), float(logs["l2"])) == pytest.approx((0.3, 0.09), rel=1e-12)
    assert float(logs["nll"]) == pytest.approx(nll, rel=1e-6) and float(logs["kl"]) == pytest.approx(kl, rel=1e-12)
    assert total.item() == pytest.approx(nll + 0.01 * kl, rel=1e-6)
    assert "g_loss" not in logs and "d_weight" not in logs  # no discriminator yet


def test_at_full_size_the_sum_is_65536_times_the_mean() -> None:
    x = torch.zeros(1, 1, 256, 256)
    code = torch.zeros(1, 3, 64, 64)
    _, logs = Autoencoding(Told(x + 0.1, code, code), LossConfig(), World(), None, None)(  # type: ignore[arg-type]
        Batch(x, code, 1), now(0.0)
    )
    assert float(logs["nll"] / logs["recon"]) == pytest.approx(65_536, rel=1e-5)


def test_the_perceptual_distance_counts_in_every_pixel() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.tensor([0.2, 0.4], dtype=x.dtype)

    batch, code = batch_of(2), torch.zeros(2, 3, 6, 6, dtype=torch.float64)
    objective = Autoencoding(Told(batch.x, code, code), LossConfig(perceptual_weight=1.5), World(), Constant(), None)  # type: ignore[arg-type]
    total, logs = objective.double()(batch, now(0.0))
    assert float(logs["recon"]) == pytest.approx(1.5 * 0.3) and float(logs["perceptual"]) == pytest.approx(0.3)
    assert total.item() == pytest.approx(1.5 * 0.3 * SIDE * SIDE)


@pytest.mark.parametrize(("kind", "undecided"), [("hinge", 1.0), ("vanilla", log(2))])
def test_the_discriminators_loss(kind: Any, undecided: float) -> None:
    logits = torch.tensor([-3.0, -0.5, 0.0, 2.0], dtype=torch.float64)
    real, fake = critic_loss(logits, logits, kind)
    wanted = {"hinge": lambda v: (1 - v).clamp_min(0), "vanilla": lambda v: (1 + (-v).exp()).log()}[kind]
    torch.testing.assert_close(real, wanted(logits))
    torch.testing.assert_close(fake, wanted(-logits))
    assert float(real[2]) == float(fake[2]) == pytest.approx(undecided)


def test_judging_reports_its_loss_without_the_factor_that_it_descends_with() -> None:
    _, judging = networks()
    loss, logs = judging(batch_of(), now(0.25))
    with torch.no_grad():
        y, _ = judging.vae(batch_of().x, batch_of().noise)
        real, fake = judging.discriminator(batch_of().x), judging.discriminator(y)
    wanted = 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())
    torch.testing.assert_close(logs["disc_loss"], wanted.detach())
    torch.testing.assert_close(loss.detach(), 0.25 * wanted.detach())
    torch.testing.assert_close(logs["logits_real"], real.mean().detach())
    loss.backward()
    assert all(p.grad is None for p in judging.vae.module.parameters())
    assert all(p.grad is not None for p in judging.discriminator.parameters())


# ---- the adaptive weight


def by_hand(autoencoding: Autoencoding, batch: Batch) -> tuple[float, float, float]:
    """|grad nll|, |grad g| at the decoder's last weight and g, from two plain backward passes."""
    norms, model = [], autoencoding.model
    assert autoencoding.critic is not None
    for which in ("nll", "g"):
        model.zero_grad()
        y, _ = model(batch.x, batch.noise)
        g = -autoencoding.critic(y).mean()
        error = (batch.x - y).abs() + (batch.x - y) ** 2
        (error.sum() / len(batch.x) if which == "nll" else g).backward()
        assert model.decoder.out[-1].weight.grad is not None
        norms.append(float(model.decoder.out[-1].weight.grad.norm()))
    model.zero_grad()
    return norms[0], norms[1], float(g.detach())


def test_the_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer() -> None:
    autoencoding, _ = networks(disc_weight=0.7, kl_weight=0.0)
    total, logs = autoencoding(batch_of(), now(0.8))
    of_nll, of_g, g = by_hand(autoencoding, batch_of())
    raw = of_nll / (of_g + 1e-4)
    assert float(logs["d_weight_raw"]) == pytest.approx(raw, rel=1e-9) and raw < 1e4
    assert float(logs["d_weight"]) == pytest.approx(0.7 * raw, rel=1e-9)
    assert float(logs["g_loss"]) == pytest.approx(g, rel=1e-9)
    assert total.item() == pytest.approx(float(logs["nll"]) + 0.7 * raw * 0.8 * g, rel=1e-9)


def test_the_weight_is_clamped_and_the_ratio_is_not() -> None:
    autoencoding, _ = networks(logvar_init=-12.0)  # errors count e^12 times
    _, logs = autoencoding(batch_of(), now(1.0))
    assert float(logs["d_weight"]) == 5000.0 and float(logs["d_weight_raw"]) > 2e4


def test_the_weight_takes_part_in_no_gradient() -> None:
    autoencoding, _ = networks(kl_weight=0.0)
    total, logs = autoencoding(batch_of(), now(1.0))
    total.backward()
    found = autoencoding.model.last.grad
    assert found is not None
    found, weight = found.clone(), float(logs["d_weight"])
    autoencoding.zero_grad()
    y, _ = autoencoding.model(batch_of().x, batch_of().noise)
    assert autoencoding.critic is not None
    error = (batch_of().x - y).abs() + (batch_of().x - y) ** 2
    (error.sum() / 3 - weight * autoencoding.critic(y).mean()).backward()
    torch.testing.assert_close(found, autoencoding.model.last.grad)


# ---- the log-variance


def test_the_log_variance_is_fixed_unless_it_is_learnt() -> None:
    autoencoding, _ = networks()
    assert "logvar" not in dict(autoencoding.named_parameters()) and "logvar" in autoencoding.state_dict()
    model, loss = RadioVae(Model(**SMALL)), LossConfig(perceptual_weight=0.0, logvar_init=0.4)
    learnt = Autoencoding(model, loss, World(), None, None, learn_logvar=True).double()
    total, logs = learnt(batch_of(), now(0.0))
    total.backward()
    # d nll / d logvar = HW (1 - rec / e^logvar); the module divides it by HW
    wanted = 1 - float(logs["recon"]) / exp(float(learnt.logvar.detach()))
    assert learnt.logvar.grad is not None and float(learnt.logvar.grad) == pytest.approx(wanted, rel=1e-6)


# ---- perceptual distances


def test_random_features_are_a_distance_and_the_same_in_every_trial() -> None:
    torch.manual_seed(1)
    one = RandomFeatures()
    torch.manual_seed(2)
    other = RandomFeatures()
    x, y = torch.rand(2, 3, 1, 16, 16) * 2 - 1
    torch.testing.assert_close(one(x, y), other(x, y), rtol=0, atol=0)
    assert bool((one(x, x) == 0).all()) and bool((one(x, y) > 0.005).all()) and bool((one(x, y) < 2).all())
    torch.testing.assert_close(one(x, y), one(y, x))
    assert not one.state_dict() and not list(one.parameters())
    flat = torch.zeros(1, 1, 16, 16, requires_grad=True)
    one(flat, x[:1]).sum().backward()
    assert flat.grad is not None and bool(flat.grad.isfinite().all()) and float(flat.grad.norm()) < 10


def test_build_skips_what_has_no_weight() -> None:
    assert build(LossConfig(perceptual_weight=0.0), Extra()) is None
    assert build(LossConfig(), Extra(perceptual="none")) is None
    assert isinstance(build(LossConfig(), Extra()), RandomFeatures)


def vgg_files(folder: Path) -> tuple[Path, Path, list[tuple[int, int, int]]]:
    """Random weights in the two files' layouts, and VGG16's convolutions."""
    torch.manual_seed(3)
    convolutions, inputs, place = [], 3, 0
    for block, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            convolutions.append((place, inputs, block))
            inputs, place = block, place + 2
        place += 1
    state = {}
    for number, width, outputs in convolutions:
        state[f"features.{number}.weight"] = torch.randn(outputs, width, 3, 3) * (2 / (9 * width)) ** 0.5
        state[f"features.{number}.bias"] = torch.randn(outputs) * 0.1
    state["classifier.0.weight"] = torch.zeros(2, 2)
    linear = {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate((64, 128, 256, 512, 512))}
    torch.save(state, folder / "vgg16.pth")
    torch.save(linear, folder / "lpips.pth")
    return folder / "vgg16.pth", folder / "lpips.pth", convolutions


def test_lpips_is_the_papers_distance(tmp_path: Path) -> None:
    vgg, linear, convolutions = vgg_files(tmp_path)
    lpips = Lpips(vgg, linear)
    sizes = {name: buffer.numel() for name, buffer in lpips.named_buffers()}
    assert sum(n for name, n in sizes.items() if name.startswith(("weight", "bias"))) == 14_714_688
    assert sum(n for name, n in sizes.items() if name.startswith("linear")) == 1_472
    assert not lpips.state_dict() and not list(lpips.parameters())
    assert not any(isinstance(module, nn.Dropout) for module in lpips.modules())

    weights, channels = torch.load(vgg, weights_only=True), torch.load(linear, weights_only=True)
    x, y = torch.rand(2, 2, 1, 16, 16) * 2 - 1
    features, wanted, block = [], torch.zeros(2, dtype=torch.float64), 0
    for image in (x, y):
        shift, scale = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1)
                        for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))  # fmt: skip
        h, kept = (image.double().expand(-1, 3, -1, -1) - shift) / scale, []
        for at, (number, _, _) in enumerate(convolutions):
            if at and number - convolutions[at - 1][0] == 3:  # a pooling layer stands between
                kept.append(h)
                h = functional.max_pool2d(h, 2)
            state = (weights[f"features.{number}.{name}"].double() for name in ("weight", "bias"))
            h = functional.relu(functional.conv2d(h, *state, padding=1))
        features.append([*kept, h])
    for block, (one, other) in enumerate(zip(*features, strict=True)):
        of_one, of_other = (f / (f.norm(dim=1, keepdim=True) + 1e-10) for f in (one, other))
        weighted = (of_one - of_other).square() * channels[f"lin{block}.model.1.weight"].double()
        wanted += weighted.sum(1).mean((1, 2))
    torch.testing.assert_close(lpips(x, y).double(), wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(lpips(x, x), torch.zeros(2), rtol=0, atol=0)


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    _, linear, _ = vgg_files(tmp_path)
    with pytest.raises(BadInput, match=r"nowhere\.pth: there is no such checkpoint"):
        Lpips(tmp_path / "nowhere.pth", linear)
    with pytest.raises(BadInput, match=r"lpips\.pth.*features\.0\.weight.*is missing"):
        Lpips(linear, linear)
