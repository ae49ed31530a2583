"""The learning rate of the first stage, and what the discriminator's optimizer has done before its pass begins."""

from __future__ import annotations

from math import prod

import torch
from torch.optim import Optimizer

from buttress.trainables.radio.config import Config
from buttress.training.schedules import LearningRate, PolynomialLR, WarmUp

POWER = 0.95  # of the learning rate's polynomial


def learning_rate(config: Config) -> LearningRate:
    """max((1 - s / T)^0.95, min_lr), after a linear warm-up: min_lr bounds the factor, as in the original."""
    trainer, warmup = config.trainer, config.buttress.lr_warmup_steps
    then = PolynomialLR(trainer.train_num_steps, POWER, trainer.min_lr)
    return WarmUp(warmup, 1 / (warmup + 1), "steps", then) if warmup else then


@torch.no_grad()
def step_on_zero_gradients(optimizer: Optimizer, rate: LearningRate, steps: int) -> None:
    """Leaves optimizer and parameters as `steps` first steps on gradients of 0 would.

    Before `disc_start` the original multiplies the discriminator's loss by 0 and steps: the weights shrink by the
    decoupled decay, and the bias correction is used up, so that the first updates are 3.2 times a fresh AdamW's.

    Args:
        optimizer: Adam or AdamW that has not stepped; its groups hold the learning rate that `rate` is a factor of.
        rate: The schedule, in steps.
        steps: How many, from step 0.
    """
    factors = [rate.factor(0, step) for step in range(steps)]
    for group in optimizer.param_groups:
        full = group.setdefault("initial_lr", group["lr"])
        decay, now = group["weight_decay"], group["lr"]
        group["lr"] = 0.0
        shrunk = prod(1 - full * factor * decay for factor in factors)
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # creates the moments, which are 0
        group["lr"] = now
        for parameter in group["params"]:
            parameter.grad = None
            parameter.mul_(shrunk)
            optimizer.state[parameter]["step"].fill_(steps)
