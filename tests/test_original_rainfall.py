"""Figures of the original's rainfall trainer that a deviation from it would change.

Where they are not the golden data's own, they were computed by these networks when `test_golden_rainfall.py` held them
to the golden data, on inputs and weights that follow the golden data's rule (golden.py): no file is needed.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from golden import agree, by_rule, rule_weights
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from buttress.errors import BadInput
from buttress.trainables.rainfall.config import Config, Model, Train
from buttress.trainables.rainfall.model import Grids, RainVae
from buttress.trainables.rainfall.original import ARCHITECTURES, architecture, from_original, model_of, to_original
from buttress.trainables.rainfall.train import learning_rate

#: Every stage of the decoders has to be resized or cut: 2x2, 3x3, 6x5, 12x10, or 1x1 to 8x8 and then 12x10.
GRIDS = Grids(3, (5, 4), (12, 10), 2)
SMALL: dict[str, Any] = {"d_x": 4, "d_y": 5, "d_z": 3, "base_filters": 6, "fc": 16, "head": 12, "pool": 2}


def drawn(key: str, *shape: int) -> torch.Tensor:
    """Inputs in -1 to 1 by the rule."""
    return torch.from_numpy(by_rule(key, shape, 0.0, 1.0, 17))


def figures(letter: str, dropped: bool) -> list[float]:
    """Three weighted sums of two decoded fields; `dropped`: in train mode with every dropout that is on at 1."""
    built = RainVae(model_of(letter, **SMALL), GRIDS).double().train(dropped)
    rule_weights(built, 17)
    for one in built.modules():
        if isinstance(one, nn.Dropout):
            one.p = math.ceil(one.p)
    with torch.no_grad():
        condition = built.condition(drawn("x", 2, GRIDS.channels, *GRIDS.low))
        code = built.posterior(condition, drawn("y", 2, 1, *GRIDS.high), drawn("statics", 1, 2, *GRIDS.high))
        field = built.decode(code.mu + torch.exp(code.logvar / 2) * drawn("noise", 2, 3), condition)
    weights = drawn("weights of the field", 3, field.numel())
    return (weights @ field.flatten()).tolist()


NETWORKS: dict[tuple[str, bool], list[float]] = {
    ("A", False): [0.000324652511, 1.424186486, 0.08772435358],
    ("A", True): [-1.461171631, 3.071135869, 0.5554816918],
    ("B", False): [-0.2731954712, 1.19538112, 0.09535049756],
    ("B", True): [1.74772436, 4.301324205, 0.3621448318],
    ("C", False): [-0.1227749528, 0.5986920872, -0.3436781751],
    ("C", True): [-0.6255179323, -1.965174135, 0.3663523921],
    ("D", False): [-0.1227749528, 0.5986920872, -0.3436781751],
    ("D", True): [-0.1986358052, -2.291899466, 0.3062236797],
    ("E", False): [-0.2373284592, 1.190183511, 0.07448501599],
    ("E", True): [5.09323074, 2.894214199, 0.5503580333],
    ("F", False): [-0.5905546696, 1.035321599, -0.1129691867],
    ("F", True): [0.2523484658, -0.01868481977, -0.2636495048],
    ("G", False): [-0.1892596684, 1.265737645, 0.1085208045],
    ("G", True): [-0.9904789274, 7.355631563, -5.31936613],
}


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("letter", ARCHITECTURES)
def test_networks_give_the_originals_fields(letter: str, dropped: bool) -> None:
    found, golden = figures(letter, dropped), NETWORKS[letter, dropped]
    agree({str(i): one for i, one in enumerate(found)}, {str(i): one for i, one in enumerate(golden)}, 1e-8)

#: Epoch -> learning rate (rainfall_schedules.npz, `short`).
GOLDEN_RATES = {
    0: 5.9999999999999995e-05,
    4: 0.0003,
    5: 0.00029257477994743084,
    15: 0.00015725445364039284,
    29: 1.855978246215345e-06,
}


def chained(train: Train) -> list[float]:
    """The learning rate of every epoch as the original sets it: torch's scheduler, stepped in a warm-up that overwrites
    its values."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=train.lr)
    if train.scheduler == "cosine":
        scheduler: Any = CosineAnnealingLR(optimizer, train.epochs, eta_min=train.eta_min)
    else:
        scheduler = StepLR(optimizer, train.step_size, train.gamma)
    rates = []
    for epoch in range(train.epochs):
        if epoch < train.lr_warmup_epochs:
            optimizer.param_groups[0]["lr"] = train.lr * (epoch + 1) / train.lr_warmup_epochs
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    "given",
    [
        {"scheduler": "cosine", "lr_warmup_epochs": 5},
        {"scheduler": "cosine", "lr_warmup_epochs": 29},
        {"scheduler": "cosine", "eta_min": 3e-4, "lr_warmup_epochs": 5},
        {"scheduler": "cosine"},
        {"scheduler": "step", "step_size": 10, "lr_warmup_epochs": 5},
        {"scheduler": "step", "step_size": 4, "lr_warmup_epochs": 10},
    ],
)
def test_what_follows_the_warm_up_is_the_schedulers_chained_form(given: dict[str, Any]) -> None:
    train = Train(lr=3e-4, epochs=30, **{"eta_min": 1e-6, "gamma": 0.5, **given})
    schedule = learning_rate(train)
    assert schedule is not None
    assert [train.lr * schedule.factor(epoch, 0) for epoch in range(30)] == pytest.approx(chained(train), rel=1e-11)


def test_the_learning_rate_after_a_warm_up_is_the_golden_datas() -> None:
    """30 epochs from 3e-4 to 1e-6, of which five warm up: 4 % above a cosine that has counted along."""
    schedule = learning_rate(Train(lr=3e-4, epochs=30, lr_warmup_epochs=5, eta_min=1e-6))
    assert schedule is not None
    rates = [3e-4 * schedule.factor(epoch, 0) for epoch in range(30)]
    assert [rates[epoch] for epoch in GOLDEN_RATES] == pytest.approx(list(GOLDEN_RATES.values()), rel=1e-12)


def test_the_newest_recipe_is_the_originals_file() -> None:
    """recipes.json, s25 (d1af71b) and what s26 (6e51c4d) changed."""
    newest, last = Config.recipe("s25"), Config.recipe("s26")
    train = newest.train
    assert (train.min_heavy_fraction, train.early_stopping_min_delta, train.early_stopping_patience) == (0.2, 0.001, 80)
    assert (train.lr, train.weight_decay, train.eta_min, train.lr_warmup_epochs) == (3e-4, 5e-4, 1e-6, 5)
    model = newest.model
    assert (model.d_x, model.d_y, model.d_z, model.base_filters, architecture(model)) == (64, 256, 128, 96, "F")
    assert (last.model.inject, last.train.early_stopping_patience, last.loss) == ("first", 100, newest.loss)


@pytest.mark.parametrize(("letter", "keys"), zip("ABCDEFG", (90, 90, 90, 90, 90, 85, 85), strict=True))
def test_weights_go_to_the_original_and_back(letter: str, keys: int) -> None:
    model = model_of(letter, d_x=64, d_y=256, d_z=64, base_filters=8)
    assert architecture(model) == letter
    with torch.device("meta"):
        weights = RainVae(model).state_dict()
    theirs = to_original(weights, model)
    assert len(theirs) == keys and from_original(theirs, model).keys() == weights.keys()


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"fc": 128}, "fc"),
        ({"head": 64}, "head"),
        ({"pool": 4}, "pool"),
        ({"norm": "none"}, "norm"),
        ({"dropout": 0.0}, "dropout"),
        ({"stage_dropout": 0.2}, "stage_dropout"),
        ({"decoder": "transposed", "inject": "first"}, "inject"),
        ({"decoder": "bilinear", "inject": "all"}, "inject"),
        ({"decoder": "resized", "inject": "all", "output_relu": True}, "output_relu"),
        ({}, "output_relu"),  # the seed document's network is A without its last ReLU
        ({"decoder": "resized", "decoder_dropout": 0.5}, "decoder_dropout"),
    ],
)
def test_what_the_original_never_had_is_refused_by_name(given: dict[str, Any], key: str) -> None:
    with pytest.raises(BadInput, match=rf"model\.{key}: "):
        to_original({}, Model(**given))


def test_a_weight_that_the_original_does_not_have_is_refused() -> None:
    with pytest.raises(BadInput, match=r"no weight decoder\.x_proj2\.weight"):
        from_original({"decoder.x_proj2.weight": torch.zeros(1)}, model_of("F"))
