"""The family's optimiser is torch's Adam to the last bit, through missing gradients and checkpoints."""

from __future__ import annotations

import io

import torch
from torch.optim import Adam

from buttress.trainables.lithology.config import Model
from buttress.trainables.lithology.model import Vae
from buttress.training.adam import SmallAdam


def pair() -> tuple[list[Vae], list[Adam]]:
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(Vae(Model(semi_supervised=True), 6, 5))
    return models, [Adam(models[0].parameters(), lr=1e-3, fused=True), SmallAdam(models[1].parameters(), lr=1e-3)]


def descend(models: list[Vae], optimizers: list[Adam], steps: int, head: bool = True, seed: int = 1) -> None:
    for model, optimizer in zip(models, optimizers, strict=True):
        torch.manual_seed(seed)
        for _ in range(steps):
            optimizer.zero_grad()
            mu, logvar = model.encode(torch.randn(32, 6))
            loss = (model.decode(mu) ** 2).sum() + logvar.exp().sum()
            if head:
                loss = loss + model.head(mu).sum()
            loss.backward()
            optimizer.step()


def assert_same(models: list[Vae]) -> None:
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_small_adam_is_torchs_adam() -> None:
    models, optimizers = pair()
    descend(models, optimizers, 5)
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = 3e-4  # what a plateau does
    descend(models, optimizers, 5, seed=2)
    assert_same(models)


def test_parameters_without_a_gradient_are_left_alone_and_counted_apart() -> None:
    models, optimizers = pair()
    descend(models, optimizers, 3)
    descend(models, optimizers, 2, head=False, seed=2)
    descend(models, optimizers, 3, seed=3)
    assert_same(models)
    steps = {float(state["step"]) for state in optimizers[1].state.values()}
    assert steps == {6.0, 8.0}


def test_groups_of_parameters_have_their_own_settings() -> None:
    models, optimizers = pair()
    for place, (model, kind) in enumerate(zip(models, (Adam, SmallAdam), strict=True)):
        others = [*model.decoders.parameters(), *model.head.parameters()]
        groups = [{"params": [*model.encoder.parameters()]}, {"params": others, "lr": 1e-2}]
        optimizers[place] = kind(groups, lr=1e-3, **({"fused": True} if kind is Adam else {}))
    descend(models, optimizers, 2, head=False)  # the second group is not complete
    descend(models, optimizers, 4, seed=2)
    assert_same(models)


def test_its_checkpoint_is_torchs_both_ways() -> None:
    models, optimizers = pair()
    descend(models, optimizers, 4)
    saved = []
    for optimizer in optimizers:
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        saved.append(torch.load(file, weights_only=True))
    optimizers[0].load_state_dict(saved[1])
    optimizers[1].load_state_dict(saved[0])
    descend(models, optimizers, 4, seed=2)
    assert_same(models)
    assert {float(state["step"]) for state in optimizers[0].state.values()} == {8.0}
