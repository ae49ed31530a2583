"""The radio family against what the original gave on the same inputs and weights (../shared/golden)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import Golden, agree, by_rule, gradient_norms, key_list
from torch import nn

from buttress.trainables.radio.average import Average
from buttress.trainables.radio.config import Config, DDConfig, LossConfig, Model
from buttress.trainables.radio.loss import Autoencoding, Batch, Judging, critic_loss
from buttress.trainables.radio.model import Code, Discriminator, RadioVae
from buttress.trainables.radio.optimizer import learning_rate, step_on_zero_gradients
from buttress.trainables.radio.original import (
    Parts,
    critic_names,
    from_original,
    lpips_names,
    to_original,
    vae_names,
)
from buttress.trainables.radio.perceptual import Lpips
from buttress.training.loop import fused_adam
from buttress.training.losses import gaussian_kl, reparameterize
from buttress.training.optimization import StepState
from buttress.training.world import World

CRITIC = "loss.discriminator."


def model_of(file: Golden, **loss: Any) -> Model:
    """The config that a file was made with."""
    made = file.config
    sizes = {name: made[name] for name in ("z_channels", "ch", "ch_mult", "num_res_blocks", "dropout")}
    return Model(embed_dim=made["embed_dim"], ddconfig=DDConfig(**sizes), lossconfig=LossConfig(**loss))


def formula(text: str) -> dict[str, torch.Tensor]:
    """The weights of a rule that stands in a file's config."""
    rule = json.loads(text)
    return {
        key: torch.from_numpy(by_rule(key, one["shape"], one["centre"], one["spread"], rule["seed"]))
        for key, one in rule["tensors"].items()
    }


def vae_of(weights: dict[str, torch.Tensor], model: Model) -> RadioVae:
    built = RadioVae(model).double()
    built.load_state_dict({ours: weights[theirs] for ours, theirs in vae_names(model).items()})
    return built


def critic_of(weights: dict[str, torch.Tensor], layers: int) -> Discriminator:
    built = Discriminator(layers, World()).double()
    names = critic_names(Model(lossconfig=LossConfig(disc_num_layers=layers)))
    built.load_state_dict({ours: weights[theirs] for ours, theirs in names.items() if ours in built.state_dict()})
    return built


@cache
def lpips_of(shared: Path) -> Lpips:
    """LPIPS in float64 with the golden weights, those of both files; from its own two files it is read in float32."""
    weights = Golden(shared, "radio_lpips").weights()
    built = Lpips.__new__(Lpips)
    nn.Module.__init__(built)
    for ours, theirs in lpips_names().items():
        built.register_buffer(ours, weights[theirs], persistent=False)
    return built


def check_norms(file: Golden, entry: str, keys: list[str], norms: dict[str, float], within: float) -> None:
    """The gradients' norms that ours has, as one entry."""
    golden = dict(zip(keys, file.out(entry), strict=True))
    shared_keys = [key for key in keys if key in norms]
    assert shared_keys
    ours, theirs = (torch.tensor([float(one[key]) for key in shared_keys]).double() for one in (norms, golden))
    agree({entry: ours}, {entry: theirs}, within)


def test_the_autoencoder_is_the_originals(shared: Path) -> None:
    file = Golden(shared, "radio_vae")
    model, x, noise = model_of(file), file.inputs("x"), file.inputs("noise")
    vae = vae_of(file.weights(), model)
    assert sum(one.numel() for one in vae.parameters()) == file.config["parameters_without_loss"]
    y, code = vae(x, noise)
    kl = gaussian_kl(code.mu, code.logvar).flatten(1).sum(1)
    found = {"mean": code.mu, "raw_logvar": code.raw_logvar, "kl_per_image": kl, "y": y, "y_mode": vae.decode(code.mu)}
    probe = (y - x).abs().sum() / len(x) + 1e-6 * kl.mean()
    agree(found | {"probe_loss": probe}, {key: file.out(key) for key in [*found, "probe_loss"]}, 1e-8)
    probe.backward()
    names = vae_names(model)
    norms = gradient_norms(vae, lambda gradients: {names[key]: value for key, value in gradients.items()})
    assert norms.keys() == set(file.config["grad_keys"])
    check_norms(file, "grad_norms", file.config["grad_keys"], norms, 1e-8)

    code = Code(*file.inputs("moments").chunk(2, dim=1))
    sample = reparameterize(code.mu, code.logvar, file.inputs("moments_noise"))
    kl = gaussian_kl(code.mu, code.logvar).flatten(1).sum(1)
    clamped = {"logvar": code.logvar, "kl": kl, "std": (code.logvar / 2).exp(), "sample": sample}
    agree(clamped, {key: file.out(f"clamp/{key}") for key in clamped}, 1e-8)


@pytest.mark.parametrize("layers", [3, 1])
def test_the_discriminator_is_the_originals(layers: int, shared: Path) -> None:
    """In train mode, in which the original leaves it; ours has no other."""
    file = Golden(shared, "radio_discriminator")
    critic = critic_of(file.weights() if layers == 3 else formula(file.config["formula_1_layer"]), layers)
    x = file.inputs("x").requires_grad_()
    logits = critic(x)
    (logits * file.inputs(f"cotangent{layers}")).sum().backward()
    found = {"logits": logits, "grad_x": x.grad}
    agree(found, {key: file.out(f"layers{layers}/{key}") for key in found}, 1e-9)  # type: ignore[arg-type]
    names = critic_names(Model(lossconfig=LossConfig(disc_num_layers=layers)))
    norms = gradient_norms(critic, lambda gradients: {names[key]: value for key, value in gradients.items()})
    keys = file.config[f"grad_keys_{layers}"]
    counted = sum(one.numel() for one in critic.parameters())
    assert norms.keys() == set(keys) and counted == file.config["parameters"][str(layers)]
    check_norms(file, f"layers{layers}/grad_norms", keys, norms, 1e-9)


def test_the_discriminators_losses_are_the_originals(shared: Path) -> None:
    file = Golden(shared, "radio_discriminator")
    for kind in ("hinge", "vanilla"):
        real, fake = critic_loss(file.inputs("logits_real"), file.inputs("logits_fake"), kind)  # type: ignore[arg-type]
        agree({kind: 0.5 * (real.mean() + fake.mean())}, {kind: file.out(kind)}, 1e-9)


def test_lpips_is_the_originals(shared: Path) -> None:
    """1e-6: unit vectors are x / sqrt(|x|^2 + 1e-10) here, whose gradient stays finite where all features are 0."""
    file = Golden(shared, "radio_lpips")
    lpips, x, y = lpips_of(shared), file.inputs("x"), file.inputs("y").requires_grad_()
    distance = lpips(x, y)
    distance.sum().backward()
    agree({"distance": distance}, {"distance": file.out("distance")}, 1e-6)
    agree({"grad_y": y.grad}, {"grad_y": file.out("grad_y")}, 1e-5)  # type: ignore[dict-item]
    assert float(lpips(x, x).abs().max()) == 0.0 == float(file.out("same").abs().max())


@pytest.mark.parametrize("case", ["hinge", "vanilla", "off", "factor"])
def test_both_passes_of_a_step_are_the_originals(case: str, shared: Path) -> None:
    """Every logged number and gradient norm that ours has: d_weight and g_loss come with disc_factor; disc_loss is
    logged without it; the discriminator's pass has its own noise in the original."""
    file = Golden(shared, "radio_losses")
    given = {key: value for key, value in file.config["lossconfigs"][case].items() if key != "disc_in_channels"}
    model = model_of(file, **{"disc_weight": 1.0} | given)  # the default of its class, not of its YAML
    loss, x = model.lossconfig, file.inputs("x")
    weights = formula(file.config[f"formula_{loss.disc_num_layers}"])
    vae = vae_of(weights, model)
    critic = critic_of({key.removeprefix(CRITIC): one for key, one in weights.items()}, loss.disc_num_layers)
    lpips = lpips_of(shared) if loss.perceptual_weight else None
    within = 1e-5 if lpips else 1e-7
    autoencoding = Autoencoding(vae, loss, World(), lpips, critic, learn_logvar=True).double()
    judging = Judging(critic, vae, loss, World())
    names, of_critic = vae_names(model), critic_names(model)
    steps = file.config["steps"][case]
    for step in steps[1:3] or steps:  # of hinge's four, the first two are alike, and the last two
        factor = loss.disc_factor if step >= loss.disc_start else 0.0
        state = StepState(step=step, numbers={"disc_factor": factor})
        under = f"{case}/step{step}"
        for module in (vae, critic, autoencoding):
            module.zero_grad()
        total, logs = autoencoding(Batch(x, file.inputs("noise"), len(x)), state)
        found = {"loss": total, "total_loss": total, "logvar": logs["logvar"], "kl_loss": logs["kl"],
                 "nll_loss": logs["nll"], "rec_loss": logs["recon"]}  # fmt: skip
        found |= {key: logs[key] for key in ("d_weight", "g_loss") if key in logs}
        assert ("g_loss" in logs) == (factor > 0) and float(file.out(f"{under}/autoencoder/disc_factor")) == factor
        agree(found, {key: file.out(f"{under}/autoencoder/{key}") for key in found}, within)
        total.backward()
        norms = gradient_norms(vae, lambda gradients: {names[key]: value for key, value in gradients.items()})
        assert autoencoding.logvar.grad is not None
        norms["loss.logvar"] = float(autoencoding.logvar.grad.abs()) * x[0].numel()  # ours is one of a pixel
        check_norms(file, f"{under}/autoencoder/grad_norms", file.config["grad_keys"], norms, within)
        critic.zero_grad()
        total, logs = judging(Batch(x, file.inputs("noise2"), len(x)), state)
        found = {"loss": total, "logits_real": logs["logits_real"], "logits_fake": logs["logits_fake"]}
        found["disc_loss"] = factor * logs["disc_loss"]
        agree(found, {key: file.out(f"{under}/discriminator/{key}") for key in found}, 1e-7)
        total.backward()
        norms = gradient_norms(
            critic, lambda gradients: {CRITIC + of_critic[key]: one for key, one in gradients.items()}
        )
        check_norms(file, f"{under}/discriminator/grad_norms", file.config["grad_keys"], norms, 1e-7)


def test_every_key_and_shape_is_the_originals(shared: Path) -> None:
    """What a checkpoint holds as `model`, with its three loss modules."""
    listed, model = key_list(shared, "radio_autoencoderkl"), Model()
    with torch.device("meta"):
        vae, critic = RadioVae(model).state_dict(), Discriminator(3, World()).state_dict()
        of_loss = {key: torch.empty(shape) for key, shape in listed["keys"].items() if key.startswith("loss.")}
        lpips = {ours: of_loss[f"loss.perceptual_loss.{theirs}"] for ours, theirs in lpips_names().items()}
        theirs = to_original(Parts(vae, critic, lpips, torch.zeros(())), model)
    assert {key: list(value.shape) for key, value in theirs.items()} == listed["keys"]
    assert [key for key, value in theirs.items() if not value.is_floating_point()] == listed["integer_keys"]
    back = from_original(theirs, model)
    for ours, held in zip((vae, critic, lpips), back, strict=False):
        assert {key: value.shape for key, value in held.items()} == {key: value.shape for key, value in ours.items()}


class Moving(nn.Module):
    """A parameter and a buffer that move as the golden file says: sin(s / 300) + s / 1000 and s / 500."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.zeros(()))
        self.register_buffer("b", torch.zeros(()))

    @torch.no_grad()
    def go(self, step: int) -> None:
        self.p.copy_((torch.tensor(step / 300)).sin() + step / 1000)
        self.b.fill_(step / 500)


@pytest.mark.parametrize("case", ["trainer", "every_step"])
def test_the_average_of_weights_is_the_originals(case: str, shared: Path) -> None:
    file = Golden(shared, "radio_ema")
    given = {"update_every": 10, "update_after_step": 100} | file.config["cases"][case]
    source = Moving()
    average = Average(source, given["beta"], given["update_every"], given["update_after_step"])
    found, decays = [], []
    for step in range(1, file.config["steps"] + 1):
        source.go(step)
        average.update(step)
        if step in file.config["looked_at"]:
            found.append([float(average.module.p), float(average.module.b)])
            decays.append(average.decay_at(step))
    double = torch.float64
    agree({"average": torch.tensor(found, dtype=double)}, {"average": file.out(f"{case}/average")}, 1e-5)
    agree({"decay": torch.tensor(decays, dtype=double)}, {"decay": file.out(f"{case}/decay")}, 1e-5)


@pytest.mark.parametrize("case", ["default", "short"])
def test_the_discriminators_optimiser_is_the_originals(case: str, shared: Path) -> None:
    file = Golden(shared, "radio_discriminator_optimizer")
    idle, total, lr = file.config["cases"][case]
    config = Config.model_validate({"trainer": {"train_num_steps": total, "lr": lr},
                                    "buttress": {"epoch_steps": 100}})  # fmt: skip
    rate, settings = learning_rate(config), config.buttress
    weights = nn.Parameter(file.inputs("start"))
    optimizer = fused_adam([weights], lr, weight_decay=settings.weight_decay, betas=settings.betas)
    step_on_zero_gradients(optimizer, rate, idle)
    agree({"at_switch": weights}, {"at_switch": file.out(f"{case}/at_switch")}, 1e-9)
    after = []
    for step, gradient in enumerate(file.inputs("gradients"), start=idle):
        optimizer.param_groups[0]["lr"] = lr * rate.factor(0, step)
        weights.grad = gradient
        optimizer.step()
        after.append(weights.detach().clone())
    state = optimizer.state[weights]
    found = {"after": torch.stack(after), "step_count": state["step"], "exp_avg_sq": state["exp_avg_sq"]}
    agree(found, {key: file.out(f"{case}/{key}") for key in found}, 1e-9)
    if case == "default":
        factors = torch.tensor([rate.factor(0, step) for step in file.config["lr_steps"]], dtype=torch.float64)
        agree({"lr_factor": factors}, {"lr_factor": file.out("lr_factor")}, 1e-9)
