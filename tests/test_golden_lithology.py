"""The lithology family against what the originals gave on the same inputs and weights (../shared/golden)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from collecting_sink import CollectingSink
from golden import Golden, agree, gradient_norms, key_list

from buttress.trainables.lithology import data as tables
from buttress.trainables.lithology.clustering import adjusted_rand
from buttress.trainables.lithology.config import Config, Data, Feature, Loss, Model
from buttress.trainables.lithology.data import Dataset, inverse, transform
from buttress.trainables.lithology.heldout import HeldOut
from buttress.trainables.lithology.loss import Batch, Objective, weights
from buttress.trainables.lithology.model import Vae
from buttress.trainables.lithology.original import from_original, to_original
from buttress.trainables.lithology.train import Lithology, LithologyTask, shown
from buttress.training.loop import StepState, run
from buttress.training.losses import reparameterize
from buttress.training.reporting import Reporter
from buttress.training.schedules import Plateau, PlateauState
from buttress.training.world import World

PAPER, PAPER_SEMI = Model(), Model(semi_supervised=True, classifier_on="sample")
MODELS = {"vae": PAPER, "semi_vae": PAPER_SEMI, "v2_14_2": Config.recipe("v2.14.2").model}


def network(model: Model, weights: dict[str, torch.Tensor], classes: int, head_dropout: float = 0.0) -> Vae:
    vae = Vae(model.model_copy(update={"head_dropout": head_dropout}), 6, classes).double()
    vae.load_state_dict(from_original(weights, model))
    return vae


def batch_of(file: Golden, keep: torch.Tensor | None = None) -> Batch:
    x, rows = file.inputs("x"), len(file.inputs("x"))
    label = file.inputs("labels") if "in/labels" in file.arrays else None
    masked = 0 if keep is None else int((keep == 0).sum())
    return Batch(x, file.inputs("noise"), keep, label, rows, masked, rows)


def terms(module: Objective, batch: Batch, beta: float, alpha: float) -> dict[str, torch.Tensor]:
    """Loss and terms as the original reduces them; `recon` is what remains of the loss without the others."""
    total, logs = module(batch, StepState(numbers={"beta": beta, "alpha": alpha}))
    mean = module.loss.reduction == "mean"
    found = {"loss": total, "kl": logs["kl"] / batch.noise.shape[1] if mean else logs["kl"] * batch.rows}
    if "ce" in logs:
        found["class"] = logs["ce"] if mean else logs["ce"] * batch.rows
    return found | {"recon": total - beta * found["kl"] - alpha * found.get("class", 0.0)}


def check_loss(file: Golden, under: str, module: Objective, batch: Batch, beta: float, alpha: float) -> None:
    found = terms(module, batch, beta, alpha)
    agree(found, {key: file.out(f"{under}/{key}") for key in found}, 1e-10)
    if f"out/{under}/grad_norms" in file.arrays:
        module.zero_grad()
        found["loss"].backward()
        model = MODELS[file.config["model"]]
        norms = gradient_norms(module.model, lambda gradients: to_original(gradients, model))
        agree(norms, dict(zip(file.config["grad_keys"], file.out(f"{under}/grad_norms"), strict=True)), 1e-10)


@pytest.mark.parametrize("name", ["vae", "semi_vae"])
def test_the_papers_models_and_losses_are_the_originals(name: str, shared: Path) -> None:
    file, model = Golden(shared, f"lithology_{name}"), MODELS[name]
    file.config["model"] = name
    classes, batch = file.config["n_classes"], batch_of(file)
    vae = network(model, file.weights(), classes)
    for mode in ("eval", "train"):
        for beta, alpha in ((1, 0.1), (0.05, 1)):
            vae = network(model, file.weights(), classes).train(mode == "train")
            module = Objective(vae, Loss(beta=beta, alpha=alpha), model.classifier_on)
            check_loss(file, f"{mode}/sum_beta{beta}_alpha{alpha}", module, batch, beta, alpha)
        # lithology_vae.npz holds the statistics from before its forward: its counter says 0
        if mode == "train" and file.out("train/after/encoder.2.num_batches_tracked"):
            after = to_original(vae.state_dict(), model)
            agree(after, {key: file.out(f"train/after/{key}") for key in _counted(file, "out/train/after/")}, 1e-10)
        vae = network(model, file.weights(), classes).train(mode == "train")
        mu, logvar = vae.encode(batch.x)
        z = reparameterize(mu, logvar, batch.noise)
        found = {"mu": mu, "logvar": logvar, "recon": vae.decode(z)}
        if vae.head is not None:
            found["logits"] = vae.head(z)
        agree(found, {key: file.out(f"{mode}/{key}") for key in found}, 1e-10)
        if mode == "eval":
            agree({"embedding": mu}, {"embedding": file.out("embedding")}, 1e-10)
    if model.semi_supervised:
        vae = network(model, file.weights(), classes, head_dropout=0.3).train()
        assert vae.head is not None and vae.head[2].p == 0.3
        vae.head[2].p = 1.0
        agree({"logits": vae.head(z)}, {"logits": file.out("train_dropout1/logits")}, 1e-10)


def _counted(file: Golden, prefix: str) -> list[str]:
    """Keys below a prefix, without the norms' counters, which ours does not count."""
    keys = [key.removeprefix(prefix) for key in file.arrays.files if key.startswith(prefix)]
    return [key for key in keys if not key.endswith("num_batches_tracked")]


def test_recipe_v2_14_2_is_the_originals(shared: Path) -> None:
    file = Golden(shared, "lithology_v2_14_2")
    file.config["model"] = "v2_14_2"
    made = file.config
    config = Config.recipe("v2.14.2")
    model, loss = config.model, config.loss
    assert (model.head_dropout, loss.alpha, config.train.lr) == (made["head_dropout"], made["alpha"], made["lr"])
    vae = network(model, file.weights(), made["n_classes"])
    assert sum(one.numel() for one in vae.parameters()) == made["parameters"]

    mask, kept = file.out("mask"), shown(file.inputs("uniform"), loss).double()
    lost = (file.inputs("uniform") < loss.mask_prob).all(1)
    assert torch.equal(kept[~lost], mask[~lost]) and kept[lost].sum(1).tolist() == mask[lost].sum(1).tolist() == [1, 1]

    batch = batch_of(file, mask)
    mu, logvar = vae.encode(batch.x * mask)
    assert vae.head is not None
    found = {"mu": mu, "logvar": logvar, "logits": vae.head(mu)}
    found["recon"] = vae.decode(reparameterize(mu, logvar, batch.noise))
    agree(found, {key: file.out(key) for key in found}, 1e-10)
    module = Objective(vae, loss, model.classifier_on)
    for epoch in made["epochs_looked_at"]:
        beta = loss.beta_schedule().value(epoch - 1 + loss.anneal_first)
        agree({"beta": beta}, {"beta": file.out(f"epoch{epoch}/beta")}, 1e-10)
        check_loss(file, f"epoch{epoch}", module, batch, beta, loss.alpha_at(epoch - 1))
    nothing = batch._replace(x=batch.x, keep=torch.ones_like(mask), masked=0)
    agree({"all": ((found["recon"] - batch.x) ** 2).mean()}, {"all": file.out("recon_all_entries")}, 1e-10)
    factor = weights(loss, nothing, beta=0.0, alpha=0.0, shares=1)
    only = factor.error * (found["recon"] - batch.x).square().sum()
    agree({"recon": only}, {"recon": file.out("recon_nothing_masked")}, 1e-10)


def test_evaluation_of_v2_14_2_is_the_originals(shared: Path) -> None:
    """Ours has no mask there either; the script's means are those of its batches of 16 and 8 rows."""
    file = Golden(shared, "lithology_v2_14_2")
    config = Config.recipe("v2.14.2", buttress={"dtype": "float64"})
    vae = network(config.model, file.weights(), file.config["n_classes"]).eval()
    x, noise, label = (file.inputs(name) for name in ("x", "noise", "labels"))
    mu, logvar = vae.encode(x)
    assert vae.head is not None
    found = {"mu": mu, "logits": vae.head(mu), "recon": vae.decode(reparameterize(mu, logvar, noise))}
    agree(found, {key: file.out(f"eval/{key}") for key in found}, 1e-10)
    batches = []
    for rows in (slice(0, 16), slice(16, 24)):
        held = HeldOut(dataset(x[rows], label[rows], file.config["n_classes"]), "val", config, World(), torch.float64)
        held.noise = noise[rows]
        with torch.no_grad():
            batches.append(held.measure(vae))
    mean = {key: (batches[0][key] + batches[1][key]) / 2 for key in ("val/recon", "val/kl")}
    accuracy = 100 * (16 * batches[0]["val/accuracy"] + 8 * batches[1]["val/accuracy"]) / 24
    ours = {"recon": mean["val/recon"] / 6, "kl": mean["val/kl"] / 10, "acc": accuracy}
    agree(ours, {key: file.out(f"eval_epoch/{key}") for key in ours}, 1e-10)


def dataset(x: torch.Tensor, label: torch.Tensor, classes: int) -> Dataset:
    """A data set whose training and validation rows are all of these."""
    rows, zeros = len(x), np.zeros(6)
    part = np.repeat([0, 1], rows)
    return Dataset(
        x=x.repeat(2, 1).double().numpy(), label=label.repeat(2).numpy(), hole=part, source=np.arange(2 * rows),
        part=part, mean=zeros, sd=zeros + 1, fill=zeros, seen=np.ones(classes, dtype=bool),
        features=("gra", "ms", "ngr", "r", "g", "b"), labels=tuple(map(str, range(classes))), holes=("a", "b"),
        dropped=np.array(0), filled=np.zeros(6, np.int64),
    )  # fmt: skip


class Given(LithologyTask):
    """The task with the golden file's weights, order of rows, noise and masks."""

    def __init__(self, file: Golden, config: Config, folder: Path) -> None:
        super().__init__(config, Lithology().schedule(config), World.single(folder))
        self.file = file
        self.model.load_state_dict(from_original(file.weights("in/init/"), config.model))

    def batches(self, epoch: int) -> Iterator[Batch]:
        size, file = self.config.train.batch_size, self.file
        noise, order = file.inputs("noise"), file.inputs("order")[epoch]
        for step, first in enumerate(range(0, len(order), size), start=epoch * self.steps_per_epoch):
            place = order[first : first + size]
            rows, keep = len(place), None
            if self.config.loss.mask_prob:
                keep = shown(file.inputs("uniform")[step][:rows], self.config.loss).double()
            masked = 0 if keep is None else int((keep == 0).sum())
            label = None if self.label is None else self.label[place]
            yield Batch(self.x[place], noise[step][:rows], keep, label, rows, masked, rows)


@pytest.mark.parametrize("name", ["standard", "standard_semi", "hybrid", "hybrid_semi"])
def test_a_whole_training_run_is_the_originals(
    name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and terms of every epoch, per row, and the weights after the last step."""
    file = Golden(shared, f"lithology_train_{name}")
    made = file.config
    given = dataset(file.inputs("x"), file.inputs("labels"), made["n_classes"] or 1)
    monkeypatch.setattr(tables, "load", lambda *_: given)
    config = Config.recipe(
        name,
        train={"epochs": made["epochs"], "batch_size": made["batch_size"]},
        model={"head_dropout": 0.0},
        loss={key: made[key] for key in ("beta", "alpha") if key in made},
        buttress={"dtype": "float64", "report_every": 0, "monitors": False},
    )
    task, kept, world = Given(file, config, tmp_path), CollectingSink("val/recon"), World.single(tmp_path)
    with Reporter(world, task.schedule, kept) as report:
        run(task, task.schedule, world, report, checkpoint_every=config.train.epochs)
    epochs = [one.metrics for one in kept.epochs]

    def each(metric: str) -> torch.Tensor:
        return torch.tensor([one[metric] for one in epochs], dtype=torch.float64)

    if "hybrid" in name:
        found = {"loss_per_epoch": each("train/loss"), "lr_per_epoch": each("train/lr")}
    else:
        parts = {"recon": each("train/recon"), "kl": each("train/kl")}
        if made["semi"]:
            parts["class"] = each("train/ce")
        total = parts["recon"] + config.loss.beta * parts["kl"] + config.loss.alpha * parts.get("class", 0.0)
        found = {f"history/{key}": value for key, value in (parts | {"loss": total}).items()}
    agree(found, {key: file.out(key) for key in found}, 1e-7)
    final = to_original(task.model.state_dict(), config.model)
    agree(final, {key: file.out(f"final/{key}") for key in _counted(file, "out/final/")}, 1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_every_key_and_shape_is_the_originals(name: str, shared: Path) -> None:
    listed = key_list(shared, f"lithology_{name}")
    vae = Vae(MODELS[name], 6, 139)
    assert sum(one.numel() for one in vae.parameters()) == listed["parameters"]
    theirs = to_original(vae.state_dict(), MODELS[name])
    assert {key: list(value.shape) for key, value in theirs.items()} == listed["keys"]
    back = from_original(theirs, MODELS[name])
    assert all(torch.equal(back[key], value) for key, value in vae.state_dict().items())
    assert back.keys() == vae.state_dict().keys()


def test_recipe_v2_14_2_holds_the_recorded_values(shared: Path) -> None:
    """All but the split: random rows, which leak (README)."""
    recorded = json.loads((shared / "golden" / "recipes.json").read_text())["lithology"]["v2.14.2"]
    config = Config.recipe("v2.14.2")
    model, loss = config.model, config.loss
    ours = {
        "hidden_dims": list(model.hidden_dims), "latent_dim": model.latent_dim, "head_dim": model.head_dim,
        "head_dropout": model.head_dropout, "batch_norm": model.batch_norm, "mask_prob": loss.mask_prob,
        "alpha": loss.alpha, "beta_start": loss.beta_start, "beta_end": loss.beta, "epochs": config.train.epochs,
        "first_epoch": loss.anneal_first, "batch_size": config.train.batch_size, "lr": config.train.lr,
        "ari_every": config.buttress.ari_every, "ari_components": config.buttress.ari_components,
        "classifier_reads": model.classifier_on,
        "parameters": sum(one.numel() for one in Vae(model, 6, recorded["n_classes"]).parameters()),
    }  # fmt: skip
    assert ours == {key: recorded[key] for key in ours} and loss.anneal_epochs == config.train.epochs
    assert recorded.keys() - ours.keys() == {
        "source", "n_classes", "test_size_of_row_split", "epochs_looked_at", "feature_given_back"
    }  # fmt: skip


def test_the_scaler_is_the_originals(shared: Path) -> None:
    file = Golden(shared, "lithology_scaler")
    x, other = file.inputs("x").numpy(), file.inputs("other").numpy()
    features = [
        Feature(column=str(i), name=f"f{i}", transform=kind) for i, kind in enumerate(file.config["transforms"])
    ]
    columns = Config().data.columns().features
    assert [one.transform for one in columns] == file.config["transforms"]

    def transformed(raw: np.ndarray) -> np.ndarray:
        return np.stack([transform(raw[:, i], one, Path("x")) for i, one in enumerate(features)], axis=1)

    values = np.concatenate([transformed(x), transformed(other), transformed(other)])
    hole = np.repeat([0, 1, 2], [len(x), len(other), len(other)])
    table = tables.Table(
        values, np.full(len(values), -1), hole, np.full(len(values), np.nan), tuple(one.name for one in features), (),
        ("a", "b", "c"), np.zeros(6, np.int64), np.zeros(6, np.int64),
    )  # fmt: skip
    found = tables.prepare(table, Data(train_holes=("a",), val_holes=("b",), test_holes=("c",)))
    ours = {"scaled": found.x[hole == 0], "mean": found.mean, "scale": found.sd, "other": found.x[hole == 1]}
    agree({key: torch.from_numpy(one) for key, one in ours.items()}, {key: file.out(key) for key in ours}, 1e-12)
    back = found.x[hole == 0] * found.sd + found.mean
    raw = np.stack([inverse(back[:, i], one.transform) for i, one in enumerate(features)], axis=1)
    agree({"back": torch.from_numpy(raw)}, {"back": file.out("back")}, 1e-9)


def test_schedules_of_beta_and_of_the_rate_are_the_originals(shared: Path) -> None:
    file = Golden(shared, "lithology_schedules")
    for recipe, name in (("hybrid", "hybrid"), ("v2.14.2", "v2_14_2")):
        loss = Config.recipe(recipe).loss
        _, _, _, first, epochs = file.config["cases"][name]
        beta = [loss.beta_schedule().value(epoch + loss.anneal_first) for epoch in range(epochs)]
        assert first == loss.anneal_first
        agree({name: torch.tensor(beta, dtype=torch.float64)}, {name: file.out(name)}, 1e-12)
    train = Config.recipe("hybrid").train
    for case in ("falling", "rising"):
        state, rates = PlateauState(Plateau("train/loss", train.plateau_factor, train.plateau_patience)), []
        for epoch, loss_value in enumerate(file.inputs(f"loss_{case}").tolist(), start=1):
            rates.append(train.lr * state.scale)
            state.update(loss_value, epoch)
        found = torch.tensor(rates, dtype=torch.float64)
        agree({case: found}, {case: file.out(f"plateau_{case}")}, 1e-12)


def test_the_cluster_score_is_the_originals(shared: Path) -> None:
    """One start of the mixture where the original has three."""
    file = Golden(shared, "lithology_ari")
    for components in file.config["components"]:
        found = adjusted_rand(file.inputs("mu").numpy(), file.inputs("labels").numpy(), components)
        assert abs(found - file.out(f"ari_{components}")) < 0.03
