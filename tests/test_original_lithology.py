"""Figures of the originals' lithology trainers that a deviation from them would change, without their golden data.

They were computed by these networks and losses when `test_golden_lithology.py` held them to the golden data, on inputs
and weights that follow the golden data's rule (golden.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from collecting_sink import CollectingSink
from golden import by_rule, rule_weights

from buttress.errors import BadInput
from buttress.trainables.lithology import data as tables
from buttress.trainables.lithology.config import Config, Model
from buttress.trainables.lithology.data import Dataset
from buttress.trainables.lithology.loss import Batch, Objective
from buttress.trainables.lithology.model import Vae
from buttress.trainables.lithology.original import from_original, to_original
from buttress.trainables.lithology.train import Lithology, LithologyTask, shown
from buttress.training.loop import StepState, run
from buttress.training.reporting import Reporter
from buttress.training.world import World

CLASSES = 9


def drawn(key: str, *shape: int) -> torch.Tensor:
    """-1 to 1, by the rule."""
    return torch.from_numpy(by_rule(key, shape, 0.0, 1.0, 23))


def losses(recipe: str, masked: bool = True) -> list[float]:
    """The loss of epochs 1, 50 and 100 of a recipe on 16 rows of which one is wholly masked; head dropout 0."""
    config = Config.recipe(recipe)
    vae = Vae(config.model.model_copy(update={"head_dropout": 0.0}), 6, CLASSES).double()
    rule_weights(vae, 23)
    uniform = (drawn("uniform", 16, 6) + 1) / 2
    uniform[4] *= 0.1
    keep = None
    if config.loss.mask_prob:
        keep = shown(uniform, config.loss).double() if masked else torch.ones(16, 6, dtype=torch.float64)
    hidden = 0 if keep is None else int((keep == 0).sum())
    label = torch.arange(16) % CLASSES if config.model.semi_supervised else None
    batch = Batch(2 * drawn("x", 16, 6), drawn("noise", 16, 10), keep, label, 16, hidden, 16)
    module, found = Objective(vae, config.loss, config.model.classifier_on), []
    for epoch in (0, 49, 99):
        beta = config.loss.beta_schedule().value(epoch + config.loss.anneal_first)
        state = StepState(numbers={"beta": beta, "alpha": config.loss.alpha_at(epoch)})
        found.append(module(batch, state)[0].item())
    return found


LOSSES = {
    "v2.14.2": [1.4330173554, 1.46995723095, 1.50765098151],
    "v2.14": [1.71286675879, 1.80513176225, 1.80513176225],
    "hybrid_semi": [3.79175467202, 4.03520667174, 4.03520667174],
    "standard_semi": [307.333926563, 307.333926563, 307.333926563],
    "standard": [303.485275692, 303.485275692, 303.485275692],
    "unmasked": [1.71192527916, 1.75805778089, 1.80513176225],
}


@pytest.mark.parametrize("recipe", ["v2.14.2", "v2.14", "hybrid_semi", "standard_semi", "standard"])
def test_losses_of_recipes_are_the_originals(recipe: str) -> None:
    assert losses(recipe) == pytest.approx(LOSSES[recipe], rel=1e-9)


def test_where_nothing_is_masked_all_entries_are_reconstructed() -> None:
    assert losses("v2.14.2", masked=False) == pytest.approx(LOSSES["unmasked"], rel=1e-9)


def test_recipe_v2_14_2_is_semi_supervised_and_masked() -> None:
    config = Config.recipe("v2.14.2")
    assert sum(one.numel() for one in Vae(config.model, 6, 139).parameters()) == 6_949
    assert (config.loss.mask_prob, config.loss.masked_only, config.loss.alpha) == (0.3, True, 0.1)
    assert (config.model.head_dim, config.model.head_dropout, config.model.classifier_on) == (32, 0.2, "mu")


@pytest.mark.parametrize("reduction", ["mean", "sample", "sum"])
def test_the_loss_that_the_plateau_watches_is_a_mean_over_rows(
    reduction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """21 rows in batches of 16 and 5: the short one counts 5 / 21, a sum over its rows as it is."""
    rows = 21
    given = Dataset(
        x=drawn("rows", 2 * rows, 6).numpy(), label=np.full(2 * rows, -1), hole=np.repeat([0, 1], rows),
        source=np.arange(2 * rows), part=np.repeat([0, 1], rows), mean=np.zeros(6), sd=np.ones(6), fill=np.zeros(6),
        seen=np.ones(1, dtype=bool), features=("gra", "ms", "ngr", "r", "g", "b"), labels=("a",), holes=("a", "b"),
        dropped=np.array(0), filled=np.zeros(6, np.int64),
    )  # fmt: skip
    monkeypatch.setattr(tables, "load", lambda *_: given)
    config = Config.recipe("hybrid", loss={"reduction": reduction}, train={"epochs": 1, "batch_size": 16},
                           buttress={"dtype": "float64"})  # fmt: skip
    world, kept, seen, losses = World.single(tmp_path), CollectingSink("val/recon"), list[float](), list[float]()

    class Recorded(LithologyTask):
        def observe(self, logs: Any, state: StepState) -> None:
            seen.append(float(logs["recon"]))

    task = Recorded(config, Lithology().schedule(config), world)
    task.objective.register_forward_hook(lambda *args: losses.append(args[-1][0].item()))
    with Reporter(world, task.schedule, kept) as report:
        run(task, task.schedule, world, report)
    assert kept.last["train/recon"] == pytest.approx((16 * seen[0] + 5 * seen[1]) / 21, rel=1e-12)
    assert kept.last["train/recon"] != pytest.approx(sum(seen) / 2, rel=1e-3)
    weights = (0.5, 0.5) if reduction == "sum" else (16 / 21, 5 / 21)
    assert kept.last["train/loss"] == pytest.approx(weights[0] * losses[0] + weights[1] * losses[1], rel=1e-12)


@pytest.mark.parametrize("model", [{}, {"semi_supervised": True}, Config.recipe("v2.14.2").model.model_dump(),
                                   {"dropout": 0.1, "hidden_dims": (8,)}])  # fmt: skip
def test_weights_go_to_the_original_and_back(model: dict[str, Any]) -> None:
    config = Model(**model)
    weights = Vae(config, 6, 139).state_dict()
    theirs = to_original(weights, config)
    assert len(theirs) == len(weights) + 2 and theirs["fc_mu.weight"].shape == theirs["fc_logvar.weight"].shape
    back = from_original(theirs, config)
    assert back.keys() == weights.keys() and all(torch.equal(back[key], weights[key]) for key in weights)


def test_what_the_original_cannot_hold_is_refused_by_name() -> None:
    with pytest.raises(BadInput, match=r"model\.separate_decoders: the original's class has one decoder"):
        to_original({}, Model(separate_decoders=True))
    with pytest.raises(BadInput, match=r"model\.head_dim: .*another size.*accepted: 64"):
        to_original({}, Model(semi_supervised=True, head_dim=32))
    weights = to_original(Vae(Model(), 6).state_dict(), Model())
    with pytest.raises(BadInput, match=r"has no weight classifier\.0\.weight"):
        from_original({**weights, "classifier.0.weight": torch.zeros(1)}, Model())
    del weights["fc_out.bias"]
    with pytest.raises(BadInput, match=r"needs a weight fc_out\.bias"):
        from_original(weights, Model())
