"""The lithology models and losses are the originals': sizes, order of layers, every term, every reduction."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from buttress.trainables.lithology.config import RECIPES, Config, Loss, Model
from buttress.trainables.lithology.loss import Batch, Objective
from buttress.trainables.lithology.model import Mlp, Vae
from buttress.training.loop import StepState

PLAIN = {"hidden_dims": (32, 16), "batch_norm": False}


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ({}, 6_426),
        ({"semi_supervised": True}, 16_165),
        ({"hidden_dims": (32, 16)}, 2_202),
        ({"hidden_dims": (32, 16), "semi_supervised": True}, 11_941),
        ({"hidden_dims": (32, 16), "latent_dim": 8, "dropout": 0.1}, 2_102),
        ({"hidden_dims": (32, 16), "latent_dim": 2, "dropout": 0.1}, 1_802),
        (PLAIN, 2_010),
        (PLAIN | {"semi_supervised": True, "head_dim": 32, "head_dropout": 0.2}, 6_949),
        (PLAIN | {"separate_decoders": True}, 5_610),
        ({"hidden_dims": (256, 128, 64, 32), "batch_norm": False}, 91_034),
    ],
)
def test_every_layout_has_the_originals_number_of_parameters(model: dict, parameters: int) -> None:
    vae = Vae(Model(**model), features=6, classes=139)
    assert sum(parameter.numel() for parameter in vae.parameters()) == parameters


def test_head_and_separate_decoder_have_the_originals_sizes() -> None:
    head = Vae(Model(semi_supervised=True), 6, 139).head
    assert head is not None and sum(p.numel() for p in head.parameters()) == 9_739
    decoders = Vae(Model(separate_decoders=True, batch_norm=False), 6).decoders
    assert [sum(p.numel() for p in decoder.parameters()) for decoder in decoders] == [753] * 6


@pytest.mark.parametrize("training", [True, False])
def test_blocks_are_linear_relu_batchnorm(training: bool) -> None:
    torch.manual_seed(0)
    ours = Mlp([6, 64, 32], 20, batch_norm=True, dropout=0.0).train(training)
    layers: list[nn.Module] = []
    for linear, norm in zip(ours.hidden, ours.norms, strict=True):
        layers += [linear, nn.ReLU(), nn.BatchNorm1d(norm.num_features)]
    reference = nn.Sequential(*layers, ours.out).train(training)
    x = torch.randn(50, 6)
    assert torch.equal(ours(x), reference(x))
    if training:
        assert torch.equal(ours.norms[1].running_var, reference[5].running_var)


def test_each_separate_decoder_makes_one_feature() -> None:
    vae = Vae(Model(separate_decoders=True, batch_norm=False), 6)
    with torch.no_grad():
        before = vae.decode(torch.ones(3, 10))
        vae.decoders[2].out.bias += 1
        moved = vae.decode(torch.ones(3, 10)) - before
    assert moved[:, 2] == pytest.approx(1) and moved.abs().sum() == pytest.approx(3)


# ---- losses


def batch_of(rows: int = 40, masked: float = 0.0, labels: bool = False, seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    x, noise = torch.randn(rows, 6).double(), torch.randn(rows, 10).double()
    keep = (torch.rand(rows, 6) >= masked).double() if masked else None
    label = torch.randint(-1, 5, (rows,)) if labels else None
    hidden = 0 if keep is None else int((keep == 0).sum())
    return Batch(x, noise, keep, label, rows, hidden, 0 if label is None else int((label >= 0).sum()))


def objective(loss: Loss, classifier_on: str = "mu", **model: object) -> Objective:
    torch.manual_seed(1)
    vae = Vae(Model(batch_norm=False, head_dropout=0.0, **model), 6, 5)
    return Objective(vae, loss, classifier_on).double()


def terms(module: Objective, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Squared errors [b, 6], KL [b, 10] and logits [b, 5], written out as in the papers."""
    shown = batch.x if batch.keep is None else torch.where(batch.keep == 1, batch.x, 0.0)
    mu, logvar = module.model.encode(shown)
    z = mu + torch.exp(logvar / 2) * batch.noise
    kl = -0.5 * (1 + logvar - mu**2 - logvar.exp())
    head = module.model.head
    logits = head(mu if module.classifier_on == "mu" else z) if head is not None else torch.zeros(len(mu), 5)
    return (module.model.decode(z) - batch.x) ** 2, kl, logits


def value(module: Objective, batch: Batch, beta: float, alpha: float = 0.0, shares: int = 1) -> torch.Tensor:
    state = StepState(numbers={"beta": beta, "alpha": alpha}, shares=shares)
    return module(batch, state)[0]


def test_standard_recipe_sums_everything() -> None:
    batch, module = batch_of(labels=True), objective(Loss(), "sample", semi_supervised=True)
    error, kl, logits = terms(module, batch)
    ce = functional.cross_entropy(logits, batch.label, ignore_index=-1, reduction="sum")
    expected = error.sum() + 0.7 * kl.sum() + 0.1 * ce
    assert value(module, batch, 0.7, 0.1).item() == pytest.approx(expected.item(), rel=1e-12)


def test_v2_recipe_divides_the_sum_by_the_rows_and_weights_features() -> None:
    weights = (1, 2, 2, 1, 1, 1)
    batch, module = batch_of(), objective(Loss(reduction="sample", feature_weights=weights))
    error, kl, _ = terms(module, batch)
    expected = ((error * torch.tensor(weights)).sum() + 0.75 * kl.sum()) / 40
    assert value(module, batch, 0.75).item() == pytest.approx(expected.item(), rel=1e-12)


def test_hybrid_recipe_has_its_four_means() -> None:
    batch = batch_of(masked=0.1, labels=True)
    module = objective(Config.recipe("hybrid").loss, semi_supervised=True)
    error, kl, logits = terms(module, batch)
    ce = functional.cross_entropy(logits, batch.label, ignore_index=-1, reduction="mean")
    expected = error.mean() + 0.5 * error[batch.keep == 0].mean() + 0.5 * kl.mean() + 0.5 * ce
    assert batch.masked > 0
    assert value(module, batch, 0.5, 0.5).item() == pytest.approx(expected.item(), rel=1e-12)


def test_masked_only_variant_reconstructs_masked_entries_alone() -> None:
    batch = batch_of(masked=0.3)
    module = objective(Config.recipe("v2.14.2").loss)
    error, kl, _ = terms(module, batch)
    expected = error[batch.keep == 0].mean() + 0.75 * kl.mean()
    assert value(module, batch, 0.75).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("latent_dim", [10, 4])
def test_canonical_units_make_reductions_the_same_problem(latent_dim: int) -> None:
    """The mean-reduced loss times 6 is the summed one at beta * 6 / dz and alpha * 6 (section 4 of the facts)."""
    loss = Loss(reduction="mean")
    batch = batch_of(labels=True)._replace(labelled=40, label=torch.arange(40) % 5)
    batch = batch._replace(noise=batch.noise[:, :latent_dim])
    mean = objective(loss, semi_supervised=True, latent_dim=latent_dim)
    summed = objective(Loss(reduction="sample"), semi_supervised=True, latent_dim=latent_dim)
    canonical = 0.5 * loss.beta_scale(6, latent_dim), 0.2 * loss.alpha_scale(6)
    assert canonical == pytest.approx((0.5 * 6 / latent_dim, 1.2))
    (6 * value(mean, batch, 0.5, 0.2)).backward()
    value(summed, batch, *canonical).backward()
    for one, other in zip(mean.parameters(), summed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("recipe", ["standard_semi", "hybrid_semi", "v2.14.2", "v2.13"])
def test_mean_over_ranks_is_the_loss_of_the_global_batch(recipe: str) -> None:
    """Ranks hold different numbers of rows, of masked entries and of labels."""
    config = Config.recipe(recipe)
    whole = batch_of(masked=config.loss.mask_prob, labels=True)
    module = objective(config.loss, semi_supervised=config.model.semi_supervised)
    expected, mean = value(module, whole, 0.5, 0.1), torch.zeros(())
    for rows in (slice(0, 13), slice(13, 40)):
        keep = None if whole.keep is None else whole.keep[rows]
        part = whole._replace(x=whole.x[rows], noise=whole.noise[rows], keep=keep, label=whole.label[rows])
        mean = mean + value(module, part, 0.5, 0.1, shares=2) / 2
    assert mean.item() == pytest.approx(expected.item(), rel=1e-12)


# ---- config


def test_linear_schedules_follow_the_originals_formula() -> None:
    hybrid = Config.recipe("hybrid").loss
    assert [hybrid.beta_schedule().value(epoch) for epoch in (0, 15, 30, 99)] == pytest.approx(
        [1e-6, 1e-6 + (0.5 - 1e-6) / 2, 0.5, 0.5]
    )
    assert hybrid.full_at() == 30
    counted_from_one = Config.recipe("v2.14").loss
    assert counted_from_one.full_at() == 49  # its 50th epoch is number 50 of 50
    notebook = Config.recipe("notebook_semi").loss
    assert (notebook.alpha_at(0), notebook.alpha_at(25), notebook.alpha_at(70)) == pytest.approx((0, 0.005, 0.01))


def test_recipes_hold_the_originals_values() -> None:
    standard = Config.recipe("standard")
    assert standard == Config()
    assert (standard.train.epochs, standard.train.batch_size) == (100, 256)
    assert (standard.loss.beta, standard.loss.alpha) == (1, 0.1)
    hybrid = Config.recipe("hybrid_semi")
    assert (hybrid.loss.mask_prob, hybrid.loss.mask_weight, hybrid.loss.alpha) == (0.1, 0.5, 0.5)
    assert (hybrid.train.clip, hybrid.train.scheduler, hybrid.train.plateau_metric) == (1.0, "plateau", "train/loss")
    assert hybrid.loss.beta * hybrid.loss.beta_scale(6, 10) == pytest.approx(0.30)
    assert hybrid.loss.alpha * hybrid.loss.alpha_scale(6) == pytest.approx(3.0)
    for name in RECIPES:
        Config.recipe(name)


def test_layers_are_written_as_a_list_or_as_one_word() -> None:
    assert Model(hidden_dims="64-32") == Model(hidden_dims=[64, 32])
    with pytest.raises(ValidationError, match="64-x"):
        Model(hidden_dims="64-x")


@pytest.mark.parametrize(
    ("loss", "names"),
    [
        ({"mask_prob": 1.0}, "mask_prob"),
        ({"anneal": "linear", "beta_start": 2.0, "beta": 1.0}, "beta_start"),
        ({"beta": -1}, "beta"),
        ({"warmup": 3}, "warmup"),
    ],
)
def test_senseless_losses_are_refused(loss: dict, names: str) -> None:
    with pytest.raises(ValidationError, match=names):
        Loss(**loss)
