"""The radio family against what the original gave on the same inputs and weights (../shared/golden)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden import Golden, agree
from torch import nn

from buttress.trainables.radio.average import Average
from buttress.trainables.radio.config import Config
from buttress.trainables.radio.optimizer import learning_rate, step_on_zero_gradients
from buttress.training.loop import fused_adam


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
