"""Figures of the original's radio trainer that a deviation from it would change, without its golden data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from buttress.trainables.radio.average import Average
from buttress.trainables.radio.config import Config
from buttress.trainables.radio.optimizer import learning_rate, step_on_zero_gradients
from buttress.training.loop import fused_adam

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
