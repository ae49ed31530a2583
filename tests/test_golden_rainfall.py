"""The rainfall family against what the original gave on the same inputs and weights (../shared/golden)."""

from __future__ import annotations

import json
import math
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import Golden, agree, gradient_norms, key_list
from torch import nn

from buttress.trainables.rainfall.config import RECIPES, Config, Loss, Train
from buttress.trainables.rainfall.heldout import Sums, scores
from buttress.trainables.rainfall.loss import floored_kl, gradient, mass, reconstruction
from buttress.trainables.rainfall.model import Grids, Pool, RainVae
from buttress.trainables.rainfall.original import ARCHITECTURES, architecture, from_original, model_of, to_original
from buttress.trainables.rainfall.rain import Rain
from buttress.trainables.rainfall.sampler import Sampler
from buttress.trainables.rainfall.train import learning_rate
from buttress.training.losses import gaussian_kl, reparameterize
from buttress.training.schedules import Plateau, PlateauState
from buttress.training.world import World

SIZES = ("d_x", "d_y", "d_z", "base_filters")


class Network:
    """The network that a file was made with, float64, with the file's weights, and its inputs."""

    def __init__(self, file: Golden, letter: str) -> None:
        made = file.config
        self.file, self.model = file, model_of(letter, **{name: made[name] for name in SIZES})
        grids = Grids(made["in_channels_X"], tuple(made["predictor_grid"]), (made["H"], made["W"]), 2)
        self.built = RainVae(self.model, grids).double()
        exact_pooling(self.built)
        self.load()
        self.x, self.y, self.statics = (file.inputs(name) for name in ("x", "y", "statics"))
        self.step = slice(None, None, made["subsample"])

    def load(self) -> None:
        """The file's weights and norms' statistics; the norms' counts of batches are not in it."""
        keys = self.built.load_state_dict(from_original(self.file.weights(), self.model), strict=False)
        assert not keys.unexpected_keys and all(key.endswith("num_batches_tracked") for key in keys.missing_keys)

    def __call__(self) -> dict[str, torch.Tensor]:
        condition = self.built.condition(self.x)
        code = self.built.posterior(condition, self.y, self.statics)
        y_hat = self.built.decode(reparameterize(code.mu, code.logvar, self.file.inputs("noise")), condition)
        return {"mu": code.mu, "logvar": code.logvar, "h_x": condition.code, "whole": y_hat,
                "y_hat": y_hat[..., self.step, self.step]}  # fmt: skip

    def golden(self, prefix: str, *names: str) -> dict[str, torch.Tensor]:
        return {name: self.file.out(prefix + name) for name in names}


def exact_pooling(network: nn.Module) -> None:
    """Pooling matrices that were made in float32 and widened, computed anew in float64."""
    for one in network.modules():
        if isinstance(one, Pool):
            one.rows, one.columns = ((m > 0).double() / (m > 0).sum(1, keepdim=True) for m in (one.rows, one.columns))


def set_dropout(network: nn.Module, p: float) -> nn.Module:
    """Every dropout that is on at `p`, in train mode."""
    for one in network.modules():
        if isinstance(one, nn.Dropout):
            one.p = p * math.ceil(one.p)
    return network.train()


@pytest.mark.parametrize("letter", ARCHITECTURES)
def test_networks_are_the_originals(letter: str, shared: Path) -> None:
    file = Golden(shared, f"rainfall_model_{letter}")
    net = Network(file, letter)
    with torch.no_grad():
        net.built.eval()
        out = net()
        agree(out, net.golden("", "mu", "logvar", "h_x", "y_hat"), 1e-9)
        whole = out["whole"]
        spread = torch.stack([whole.mean(), whole.std(), (whole == 0).double().mean()])
        agree({"y_hat_mean_std_zeros": spread}, net.golden("", "y_hat_mean_std_zeros"), 1e-9)
        condition = net.built.condition(net.x)
        prior = net.built.decode(file.inputs("prior"), condition)[..., net.step, net.step]
        agree({"y_hat": prior}, net.golden("prior/", "y_hat"), 1e-9)
        set_dropout(net.built, 1.0)
        agree(net(), net.golden("train_dropout1/", "mu", "y_hat"), 1e-9)
        # the file's statistics `after` a forward are those after this one
        after = {key.removeprefix("out/train/after/") for key in file.arrays.files if "/after/" in key}
        agree(to_original(net.built.state_dict(), net.model), net.golden("train/after/", *after), 1e-9)
    net.load()
    set_dropout(net.built, 0.0)
    out = net()
    agree(out, net.golden("train/", "mu", "y_hat"), 1e-9)
    probe = out["whole"].abs().mean() + 0.01 * gaussian_kl(out["mu"], out["logvar"]).sum(1).mean()
    probe.backward()
    agree({"probe_loss": probe}, net.golden("train/", "probe_loss"), 1e-9)
    golden = dict(zip(file.config["grad_keys"], file.out("train/grad_norms").tolist(), strict=True))
    ours = gradient_norms(net.built, lambda one: to_original(one, net.model))
    # a bias before a norm has none but rounding's
    agree(ours, {key: value for key, value in golden.items() if value > 1e-12}, 1e-9)


@pytest.mark.parametrize("letter", ARCHITECTURES)
def test_every_key_and_shape_is_the_originals(letter: str, shared: Path) -> None:
    listed = key_list(shared, f"rainfall_{letter}")
    model = model_of(letter, **{name: listed["config"][name] for name in SIZES})
    with torch.device("meta"):
        built = RainVae(model)
    assert sum(one.numel() for one in built.parameters()) == listed["parameters"]
    theirs = to_original(built.state_dict(), model)
    assert {key: list(value.shape) for key, value in theirs.items()} == listed["keys"]
    assert [key for key, value in theirs.items() if value.dtype == torch.int64] == listed["integer_keys"]
    back = from_original(theirs, model)
    assert {key: value.shape for key, value in back.items()} == {k: v.shape for k, v in built.state_dict().items()}


# ---- recipes

#: Our path -> the original's; what only another loss or schedule reads is not compared.
PATHS = {
    "model.d_x": "model.d_x",
    "model.d_y": "model.d_y",
    "model.d_z": "model.d_z",
    "model.base_filters": "model.base_filters",
    "loss.lambda_base": "loss.lambda_base",
    "loss.lambda_ext": "loss.lambda_ext",
    "loss.scale": "loss.scale",
    "loss.w_min": "loss.w_min",
    "loss.w_max": "loss.w_max",
    "loss.tail_boost": "loss.tail_boost",
    "loss.lambda_gradient": "loss.lambda_gradient",
    "loss.beta_kl": "loss.beta_kl",
    "loss.warmup_epochs": "loss.warmup_epochs",
    "loss.free_bits": "loss.min_kl_weight",
    "train.epochs": "train.epochs",
    "train.batch_size": "train.batch_size",
    "train.lr": "train.lr",
    "train.weight_decay": "train.weight_decay",
    "train.clip": "train.grad_clip",
    "train.amp": "train.amp",
    "train.lr_warmup_epochs": "train.lr_warmup_epochs",
    "train.early_stopping_patience": "train.early_stopping_patience",
    "train.early_stopping_min_delta": "train.early_stopping_min_delta",
    "train.min_heavy_fraction": "train.min_heavy_fraction",
    "train.scheduler": "scheduler.type",
    "train.eta_min": "scheduler.eta_min",
    "train.plateau_factor": "scheduler.factor",
    "train.plateau_patience": "scheduler.patience",
    "sampling.temperature": "sampling.temperature",
    "sampling.pixel_threshold": "sampling.pixel_threshold",
}
#: What the original takes for a key that the file lacks.
ABSENT = {"loss.lambda_gradient": 0, "loss.free_bits": 0, "train.lr_warmup_epochs": 0, "train.min_heavy_fraction": 0,
          "train.early_stopping_min_delta": 0, "sampling.pixel_threshold": 0}  # fmt: skip
#: Read by one scheduler; the files hold them for others as well.
READ_BY = {"train.eta_min": "cosine", "train.plateau_factor": "plateau", "train.plateau_patience": "plateau"}
WATCHED = {"MAE_all": "posterior/mae_all", "MAE_tail": "posterior/mae_tail", None: "val/l_rec"}
LETTERS = {"s7": "B", "s9": "B", "s11": "C", "s12": "D", "s17": "E", "s21": "E", "s22": "F", "s25": "F", "s26": "G"}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_the_originals_files(name: str, shared: Path) -> None:
    recipes = json.loads((shared / "golden" / "recipes.json").read_text())["rainfall"]
    assert recipes.keys() == RECIPES.keys()
    values, config = recipes[name]["values"], Config.recipe(name)
    for ours, theirs in PATHS.items():
        group, _, key = theirs.partition(".")
        read = READ_BY.get(ours, config.train.scheduler) == config.train.scheduler
        if not read or (key not in values[group] and ours not in ABSENT):
            continue
        assert attrgetter(ours)(config) == values[group].get(key, ABSENT.get(ours)), ours
    assert config.train.early_stopping_metric == WATCHED[values["train"].get("early_stopping_metric")]
    assert (config.loss.reconstruction == "intensity") == (values["loss"].get("type") == "simplified")
    assert architecture(config.model) == LETTERS.get(name, "A")


# ---- losses and metrics

RECONSTRUCTION = {"R1": "batch", "R2": "ratio_buggy", "R3": "per_sample", "R5": "intensity"}


def rain_of(file: Golden, extreme_z: float, tail_mm: float, extreme_mm: float) -> Rain:
    return Rain(*(file.inputs(name) for name in ("mean", "std", "land")), extreme_z, tail_mm, extreme_mm)


def loss_of(file: Golden, name: str) -> Loss:
    """A case's loss as our config; the sea counts, and mass is in z."""
    if name.startswith(("R5_defaults", "minimal")):  # the classes' own defaults
        given: dict[str, Any] = {"scale": 36.6, "w_min": 0.1, "w_max": 2.0, "tail_boost": 1.5, "lambda_mass": 0.01,
                                 "lambda_gradient": 0.1, "beta_kl": 0.01, "warmup_epochs": 15}  # fmt: skip
    else:
        given = dict(file.config["intensity" if name.startswith("R5") else "extreme"])
    if name == "R5_no_gradient":
        given["lambda_gradient"] = 0.0
    if name == "minimal":
        given |= {"lambda_mass": 0.0, "lambda_gradient": 0.0}
    if name.startswith("free_bits"):
        given |= {"free_bits": float(name.rpartition("_")[2]), "free_bits_per": "total"}
    variant = RECONSTRUCTION.get(name[:2], "intensity" if name == "minimal" else "batch")
    return Loss(**given, reconstruction=variant, over="all", mass_in="z")


def test_losses_and_beta_are_the_originals(shared: Path) -> None:
    """Every variant and epoch, with the gradient that reaches field and code; free bits as a value differ by the floor,
    because ours is max(KL, floor) and the original's max(KL - floor, 0)."""
    file = Golden(shared, "rainfall_losses")
    cases = {tuple(key.split("/")[1:3]) for key in file.arrays.files if key.count("/") == 3}
    assert len(cases) == 24
    y, world, land = file.inputs("y"), World(), file.inputs("land")
    for name, epoch in sorted(cases):
        loss, prefix = loss_of(file, name), f"{name}/{epoch}/"
        extreme = 1e9 if name.endswith("no_extremes") else file.config["p95_z"]
        rain = rain_of(file, extreme, 20.0, file.config["p99_mm"])
        y_hat, mu, logvar = (file.inputs(one).clone().requires_grad_() for one in ("y_hat", "mu", "logvar"))
        everywhere = torch.ones_like(land)
        parts = reconstruction(loss, rain, y_hat, y, len(y), everywhere, world)
        kl, beta = gaussian_kl(mu, logvar), loss.beta_schedule().value(int(epoch.removeprefix("epoch")))
        total = parts.rec + beta * (floored_kl(kl, loss, len(y), world) - loss.free_bits)
        found = {"L_rec": parts.rec, "L_kl": kl.sum() / len(y), "beta": torch.tensor(beta, dtype=torch.float64)}
        found["L_mass"] = mass(y_hat, y, land, None, len(y), 1) * land.sum()  # a sum over land there
        total = total + loss.lambda_mass * found["L_mass"]
        if loss.reconstruction == "intensity":
            found["L_grad"] = gradient(y_hat, y, everywhere, len(y), 1)
            total = total + loss.lambda_gradient * found["L_grad"]
        else:
            found |= {"L_base": parts.base, "L_ext": parts.ext}
            if name == "R2":
                found["L_ext"] = parts.ext * 6 / 3  # without the share of days that have extremes
        total.backward()
        found |= {"loss": total} | {f"grad_{key}_norm": value.grad.norm() if value.grad is not None else torch.zeros(())
                                    for key, value in (("y_hat", y_hat), ("mu", mu), ("logvar", logvar))}  # fmt: skip
        golden = {key: file.out(prefix + key) for key in found if f"out/{prefix}{key}" in file.arrays.files}
        assert len(golden) >= 7, golden
        agree(found, golden, 1e-9)
    plain, rain = loss_of(file, "R5").model_copy(update={"tail_boost": 1.0}), rain_of(file, 9.0, 20.0, 43.6)
    parts = reconstruction(plain, rain, file.inputs("y_hat"), y, len(y), torch.ones_like(land), world)
    agree({"L_rec": parts.rec}, {"L_rec": file.out("R5_without_boost")}, 1e-9)


def test_metrics_are_the_originals_in_mm(shared: Path) -> None:
    """Sums over three batches, a short one among them; a tail that nothing reaches is missing, not 0."""
    file = Golden(shared, "rainfall_metrics")
    rain = rain_of(file, 9, 20, 43.6)
    agree({"mm": rain.fallen(file.inputs("y_hat")[:1])}, {"mm": file.out("denormalised")}, 1e-6)
    for case, tail in (("mm", file.config["p95_mm"]), ("no_tail", 1e9)):
        rain = rain_of(file, file.config["p95_z"], tail, 1e9)
        sums = Sums(rain, 2)
        for first, last in file.config["batches"]:
            truth, seen = (rain.fallen(file.inputs(one)[first:last]).flatten(1)[:, rain.land.flatten() > 0]
                           for one in ("y", "y_hat"))  # fmt: skip
            sums.add(truth, seen, torch.stack([seen, seen], 1), torch.zeros(()))
        found = scores(sums.packed(torch.device("cpu")), 2)
        total = float(rain.fallen(file.inputs("y")).sum())
        ours = {"MAE_all": found["posterior/mae_all"], "RMSE_all": found["posterior/rmse_all"],
                "mass_bias": found["posterior/mass_bias"] * total}  # fmt: skip
        if case == "mm":
            ours |= {"MAE_tail": found["posterior/mae_tail"], "combined_metric": found["posterior/combined"]}
        else:
            assert "posterior/mae_tail" not in found and file.out("no_tail/MAE_tail") == 0
        agree(ours, {key: file.out(f"{case}/{key}") for key in ours}, 1e-6)


# ---- batches and schedules


def test_stratified_batches_are_the_originals(shared: Path) -> None:
    file = Golden(shared, "rainfall_sampler")
    for name, (count, heavy_count, batch, share) in file.config["cases"].items():
        days = np.arange(count)
        heavy = np.random.default_rng(0).choice(days, heavy_count, replace=False)
        per_batch = Train(batch_size=batch, min_heavy_fraction=share if heavy_count else 0.0).heavy_per_batch
        sampler = Sampler(days, np.sort(heavy), batch, per_batch)
        batches = sampler.epoch(1, 0)
        held = [int(np.isin(one, heavy).sum()) for one in batches]
        uses = np.unique(np.concatenate([*batches, heavy]), return_counts=True)[1][heavy] - 1
        others = np.concatenate([one[~np.isin(one, heavy)] for one in batches])
        found = {
            "len": sampler.batches_per_epoch,
            "batches": len(batches),
            "sizes_sorted": sorted(len(one) for one in batches),
            "heavy_in_batches_sorted": sorted(held),
            "heavy_per_batch": per_batch,
            "other_per_batch": batch - per_batch,
            "heavy_uses_min_max": [uses.min(), uses.max()] if heavy_count else [0, 0],
            "others_seen_once": sorted(others) == sorted(set(days) - set(heavy)),
        }
        for key, value in found.items():
            assert np.array_equal(value, file.arrays[f"out/{name}/{key}"]), (name, key)


SCHEDULES = ["s4_T100", "s9", "s25", "ten", "short", "step", "step_warmup", "plateau", "plateau_warmup"]


@pytest.mark.parametrize("case", SCHEDULES)
def test_learning_rates_are_the_originals(case: str, shared: Path) -> None:
    """Not `s4`, whose cosine ends after 80 of 100 epochs and climbs again: ours always ends with the run (README)."""
    file = Golden(shared, "rainfall_schedules")
    given = file.config["cases"][case]
    names = {"type": "scheduler", "factor": "plateau_factor", "patience": "plateau_patience"}
    chosen = {names.get(key, key): value for key, value in given["scheduler"].items() if key != "T_max"}
    train = Train(**given["train"], **chosen)
    schedule = learning_rate(train)
    if train.scheduler == "plateau":
        watched = file.inputs(f"val_loss_{case}").tolist()
        plateau = PlateauState(Plateau("loss", train.plateau_factor, train.plateau_patience))
    rates = []
    for epoch in range(train.epochs):
        scale = plateau.scale if train.scheduler == "plateau" else 1.0
        rates.append(train.lr * scale * (schedule.factor(epoch, 0) if schedule is not None else 1.0))
        if train.scheduler == "plateau":
            plateau.update(watched[epoch], epoch + 1)
    agree({"lr": torch.tensor(rates, dtype=torch.float64)}, {"lr": file.out(f"{case}/lr")}, 1e-12)
    for name, (beta, warmup, epochs) in file.config["beta_cases"].items():
        ours = Loss(beta_kl=beta, warmup_epochs=warmup).beta_schedule()
        found = torch.tensor([ours.value(epoch) for epoch in range(epochs)], dtype=torch.float64)
        agree({"beta": found}, {"beta": file.out(f"{name}/beta")}, 1e-12)
