"""Figures of the original's radio trainer that a deviation from it would change, without its golden data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from buttress.errors import BadInput
from buttress.trainables.radio.average import Average
from buttress.trainables.radio.config import Config, Model
from buttress.trainables.radio.model import Discriminator, RadioVae
from buttress.trainables.radio.optimizer import learning_rate, step_on_zero_gradients
from buttress.trainables.radio.original import LOSSES, Parts, from_original, lpips_names, to_original
from buttress.training.loop import fused_adam
from buttress.training.world import World

#: Step: average of the first, average of the second, decay.
AVERAGES = {
    1: (0.004333327, 0.002, 0),
    11: (0.04765845, 0.022, 0),
    101: (0.4313427, 0.202, 0),
    111: (0.4726154, 0.222, 0.79782),
    121: (0.4779849, 0.2246276, 0.8686227),
    131: (0.4856799, 0.2284147, 0.8986651),
    501: (0.9403478, 0.5131142, 0.9816105),
    1001: (1.100799, 1.01535, 0.9892803),
    3001: (1.892609, 3.410478, 0.995),
}
START = [-1.1125120378545688, 0.1954613340484643, 1.240682024953179, -1.567614539773742, -0.6372445167803943]
AT_SWITCH = [-1.11017623186, 0.1950509476973, 1.238077116051, -1.564323210498, -0.6359065721005]
GRADIENT = [-0.12651193415870518, 0.12619624122521128, 0.1510817073149912, -0.2769672847009246, 0.18027251126680874]
FIRST_UPDATE = [1.079443963e-05, -1.076331096e-05, -1.079879464e-05, 1.080990236e-05, -1.073505345e-05]


def test_the_decay_of_the_average_of_weights_rises_and_its_buffers_are_averaged() -> None:
    """Golden data: with the trainer's settings, of sin(s / 300) + s / 1000 and of s / 500, after training step s."""
    source = nn.BatchNorm1d(1, affine=False)
    source.num_batches_tracked = None
    average = Average(source, 0.995, 10, 100)
    found = {}
    for step in range(1, 3002):
        source.running_mean.fill_(math.sin(step / 300) + step / 1000)
        source.running_var.fill_(step / 500)
        average.update(step)
        found[step] = (float(average.module.running_mean), float(average.module.running_var), average.decay_at(step))
    for step, wanted in AVERAGES.items():
        assert found[step] == pytest.approx(wanted, rel=1e-5)


def test_the_discriminators_first_steps_are_those_of_an_optimiser_that_has_stepped_on_zero_gradients() -> None:
    """Golden data: the original's defaults, weights at the switch after 50,001 steps and after the first real one."""
    config = Config()
    rate, settings = learning_rate(config), config.buttress
    weights = nn.Parameter(torch.tensor(START, dtype=torch.float64))
    optimizer = fused_adam([weights], config.trainer.lr, weight_decay=settings.weight_decay, betas=settings.betas)
    step_on_zero_gradients(optimizer, rate, config.model.lossconfig.disc_start)
    at_switch = weights.detach().clone()
    assert at_switch.tolist() == pytest.approx(AT_SWITCH, rel=1e-10)
    optimizer.param_groups[0]["lr"] = config.trainer.lr * rate.factor(0, 50_001)
    weights.grad = torch.tensor(GRADIENT, dtype=torch.float64)
    optimizer.step()
    assert (weights.detach() - at_switch).tolist() == pytest.approx(FIRST_UPDATE, rel=1e-6)


def parts(model: Model) -> Parts:
    with torch.device("meta"):
        vae, critic = RadioVae(model), Discriminator(model.lossconfig.disc_num_layers, World())
        lpips = {name: torch.empty(1) for name in lpips_names()}
        return Parts(vae.state_dict(), critic.state_dict(), lpips, torch.zeros(()))


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ({}, 372),
        ({"lossconfig": {"disc_num_layers": 1}, "ddconfig": {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1}}, 256),
    ],
)
def test_weights_go_to_the_original_and_back(model: dict[str, Any], keys: int) -> None:
    config = Model(**model)
    ours = parts(config)
    theirs = to_original(ours, config)
    assert len(theirs) == keys and {key.partition(".")[0] for key in theirs} >= set(LOSSES)
    back = from_original(theirs, config)
    assert all(back[i].keys() == ours[i].keys() for i in range(3))
    alone = to_original(ours._replace(critic={}), config)
    assert alone.keys() == {key for key in theirs if key.partition(".")[0] not in LOSSES}
    assert from_original(alone, config).vae.keys() == ours.vae.keys() and not from_original(alone, config).critic


def test_the_discriminators_norms_have_the_statistics_of_a_new_network() -> None:
    config = Model(lossconfig={"disc_num_layers": 1}, ddconfig={"ch": 32, "ch_mult": (1,), "num_res_blocks": 1})
    lpips = {name: torch.zeros(1) for name in lpips_names()}
    critic = Discriminator(1, World())
    theirs = to_original(Parts(RadioVae(config).state_dict(), critic.state_dict(), lpips, torch.zeros(())), config)
    fresh = nn.BatchNorm2d(128).state_dict()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        held = theirs[f"loss.discriminator.main.3.{name}"]
        assert torch.equal(held, fresh[name]) and held.dtype == fresh[name].dtype
    assert torch.equal(theirs["loss_pinn.discriminator.main.3.weight"], critic.body[3].weight)


def test_weights_of_another_size_are_refused_by_their_keys() -> None:
    config = Model()
    theirs = to_original(parts(config), config)
    with pytest.raises(BadInput, match=r"has no weight encoder\.down\.0\.block\.1\."):
        from_original(theirs, Model(ddconfig={"num_res_blocks": 1}))
    with pytest.raises(BadInput, match=r"has no weight loss\.discriminator\.main\.11\.bias"):
        from_original(theirs, Model(lossconfig={"disc_num_layers": 4}))
