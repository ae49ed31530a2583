"""A lithology trial from data to metrics: honest numbers, the same on any number of ranks, dead codes found out."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from collecting_sink import CollectingSink
from sklearn.metrics import adjusted_rand_score, balanced_accuracy_score, r2_score
from sklearn.mixture import GaussianMixture

from buttress.errors import BadInput
from buttress.rules import RuleEngine, RuleSet
from buttress.spec import validation
from buttress.spec.spec import SweepSpec
from buttress.trainables.lithology.clustering import adjusted_rand
from buttress.trainables.lithology.config import Config
from buttress.trainables.lithology.train import Lithology, LithologyTask
from buttress.training.local_run import train as launch
from buttress.training.registry import load, rules_file
from buttress.training.world import World

pytestmark = pytest.mark.usefixtures("own_cache")

FEATURES = ["gra", "ms", "ngr", "r", "g", "b"]


def config_of(recipe: str = "standard", **groups: dict[str, Any]) -> Config:
    """A recipe on the tiny table (some 8 steps an epoch) for 3 epochs, unless told otherwise."""
    groups.setdefault("data", {}).setdefault("size", "tiny")
    groups.setdefault("train", {}).setdefault("epochs", 3)
    groups.setdefault("buttress", {}).setdefault("report_every", 4)
    return Config.recipe(recipe, **groups)


def train(config: Config, folder: Path, **more: Any) -> CollectingSink:
    sink = more.pop("sink", None) or CollectingSink("val/recon")
    launch(config, Lithology(), folder, sink=sink, **more)
    return sink


def task_of(config: Config, folder: Path, kept: CollectingSink | None = None) -> LithologyTask:
    """A task with the weights of a run's last checkpoint, in evaluation mode."""
    task = LithologyTask(config, Lithology().schedule(config), World.single(folder))
    if kept is not None:
        saved = torch.load(folder / str(kept.reports[-1].checkpoint), weights_only=True)
        task.objective.load_state_dict(saved["module.vae"])
    task.objective.eval()
    return task


# ---- what is reported


def test_metrics_are_what_scikit_learn_says_of_the_models_outputs(tmp_path: Path) -> None:
    data = {"fractions": (0.3, 0.4, 0.3)}
    config = config_of("standard_semi", data=data, train={"epochs": 8}, buttress={"ari_rows": 300})
    kept = train(config, tmp_path)
    task = task_of(config, tmp_path, kept)
    held, model, last = task.held_out, task.model, kept.last
    with torch.no_grad():
        mu, logvar = model.encode(held.x)
        decoded, label = model.decode(mu), held.label
        sampled = model.decode(mu + torch.exp(logvar / 2) * held.noise)
        guess = model.head(mu).argmax(1)
        kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1).mean().item()
    r2 = r2_score(held.x, decoded, multioutput="raw_values")
    assert [last[f"val/r2/{name}"] for name in FEATURES] == pytest.approx(r2.tolist(), rel=1e-4)
    assert last["val/r2_mean"] == pytest.approx(r2.mean(), rel=1e-4)
    assert last["val/recon"] == pytest.approx(((sampled - held.x) ** 2).sum(1).mean().item(), rel=1e-5)
    squared = ((decoded - held.x) ** 2).mean(0).tolist()
    assert kept.reports[-1].vectors["val/recon_mu"] == pytest.approx(squared, rel=1e-4)
    assert last["val/kl"] == pytest.approx(kl, rel=1e-4) == last["latent/kl_total"]
    assert last["val/elbo_1"] == pytest.approx(last["val/recon"] + last["val/kl"], rel=1e-12)
    known = label >= 0
    assert 0 < int((~known).sum()) < len(label)  # a validation label that training never saw
    assert last["val/accuracy"] == pytest.approx((guess == label)[known].float().mean().item(), rel=1e-6)
    unweighted = np.mean([(guess == label)[label == one].float().mean().item() for one in label[known].unique()])
    assert last["val/balanced_accuracy"] == pytest.approx(unweighted, rel=1e-5)
    seen_only = balanced_accuracy_score(label[known], guess[known])
    assert last["val/balanced_accuracy"] == pytest.approx(seen_only, rel=1e-5)
    assert last["ablation/delta"] > 0.3 and last["val/ari"] > 0.05


def test_every_declared_objective_is_reported_at_the_end(tmp_path: Path) -> None:
    last = train(config_of("standard_semi"), tmp_path).last
    of_other_tables = {name for name in Lithology.metrics if name.startswith("val/r2/") and name not in last}
    assert {"val/r2/rhob", "val/r2/avs_angle"} <= of_other_tables
    assert set(Lithology.metrics) - of_other_tables <= set(last)
    assert {"train/beta_canonical", "train/alpha_canonical", "train/ce", "ablation/relative"} <= set(last)


def test_mixture_is_scikit_learns_one() -> None:
    random = np.random.default_rng(0)
    centres = random.standard_normal((20, 4))
    label = random.integers(0, 20, 1500)
    live = centres[label] + 0.5 * random.standard_normal((1500, 4))
    mu = np.concatenate([live, 0.02 * random.standard_normal((1500, 6))], axis=1)  # four live dimensions, six dead
    theirs = GaussianMixture(12, covariance_type="full", random_state=42).fit_predict(mu)
    expected = adjusted_rand_score(label, theirs)
    assert expected > 0.2 and adjusted_rand(mu, label, 12) == pytest.approx(expected, abs=1e-9)
    assert adjusted_rand(np.zeros((50, 10)), label[:50], 12) == 0.0
    assert np.isnan(adjusted_rand(np.full((50, 10), np.nan), label[:50], 12))
    assert adjusted_rand(mu * 0.03, label, 12) > 0.1  # nearly blind to scale: it does not see a collapse
    assert not adjusted_rand(1e15 * mu, label, 12) > 1


def test_the_mixture_is_fitted_every_few_full_beta_epochs_and_at_the_end(tmp_path: Path) -> None:
    loss = {"anneal": "linear", "anneal_epochs": 2}
    kept = train(config_of(loss=loss, train={"epochs": 7}, buttress={"ari_every": 2, "ari_rows": 100}), tmp_path)
    assert [one.epoch for one in kept.epochs if "val/ari" in one.metrics] == [4, 6, 7]
    assert [one.full_beta_epochs for one in kept.epochs] == [0, 0, 1, 2, 3, 4, 5]
    assert [one.metrics["train/beta"] for one in kept.epochs[:3]] == pytest.approx([1e-10, 0.5, 1.0])


def test_beta_can_move_with_every_step(tmp_path: Path) -> None:
    loss = {"anneal": "linear", "anneal_epochs": 1.5, "anneal_by": "step"}
    kept = train(config_of(loss=loss), tmp_path)
    rise = 1.5 * kept.epochs[0].step
    moving = [one for one in kept.reports if one.step <= rise]
    expected = [(one.step - 1) / rise for one in moving]  # beta of the last step that was taken
    assert [one.metrics["train/beta"] for one in moving] == pytest.approx(expected, rel=1e-6) and len(moving) >= 3
    assert [one.full_beta_epochs for one in kept.epochs] == [0, 0, 1]
    assert kept.last["train/beta"] == 1.0


@pytest.mark.parametrize(("units", "reported"), [("original", (0.5, 0.3)), ("canonical", (0.5 / 0.6, 0.5))])
def test_beta_and_alpha_are_reported_in_canonical_units(units: str, reported: tuple, tmp_path: Path) -> None:
    loss = {"units": units, "anneal": "constant", "beta": 0.5, "alpha": 0.5}
    last = train(config_of("hybrid_semi", loss=loss, train={"epochs": 1}), tmp_path).last
    assert (last["train/beta"], last["train/beta_canonical"]) == pytest.approx(reported)
    assert last["train/alpha_canonical"] == pytest.approx(6 * last["train/alpha"])
    assert last["train/alpha_canonical"] == pytest.approx(3.0 if units == "original" else 0.5)


def test_without_monitors_nothing_is_watched(tmp_path: Path) -> None:
    kept = train(config_of(buttress={"monitors": False}), tmp_path)
    assert not [key for one in kept.reports for key in one.metrics if key.startswith(("latent", "ablation"))]


def test_health_inside_an_epoch_comes_from_training_batches(tmp_path: Path) -> None:
    kept = train(config_of(), tmp_path)
    steps = kept.epochs[0].step
    inside = [one for one in kept.reports if one.step % steps]
    assert [one.step for one in inside[:2]] == [4, 8] if steps > 8 else [4, steps + 4]
    assert all("latent/kl_total" in one.metrics and "val/recon" not in one.metrics for one in inside)


def test_a_checkpoint_evaluates_to_what_its_epoch_reported(tmp_path: Path) -> None:
    config = config_of("standard_semi")
    kept = train(config, tmp_path)
    checkpoint = tmp_path / str(kept.reports[-1].checkpoint)
    values, _ = Lithology().evaluate(config, checkpoint, World.single(tmp_path), "val")
    again = {key: value for key, value in kept.last.items() if key in values}
    assert {key: values[key] for key in again} == again and len(again) > 10
    test, _ = Lithology().evaluate(config, checkpoint, World.single(tmp_path), "test")
    assert test["val/recon"] != values["val/recon"]
    with pytest.raises(BadInput, match="another config"):
        Lithology().evaluate(config_of(), checkpoint, World.single(tmp_path), "val")


def test_the_scaler_and_the_labels_are_saved(tmp_path: Path) -> None:
    config = config_of()
    train(config, tmp_path)
    saved = json.loads((tmp_path / "scaler.json").read_text())
    assert [feature["name"] for feature in saved["features"]] == FEATURES
    assert [feature["transform"] for feature in saved["features"]] == ["none", *["slog"] * 2, *["log1p"] * 3]
    assert saved["features"][1]["mean"] == pytest.approx(2.5, abs=0.5) and len(saved["labels"]) == 24


# ---- batches


def test_an_epoch_shows_every_row_once_and_keeps_the_last_short_batch(tmp_path: Path) -> None:
    task = task_of(config_of("hybrid_semi"), tmp_path)
    first, again, second = (list(task.batches(epoch)) for epoch in (0, 0, 1))
    whole = len(task.x) // 256
    assert [len(batch.x) for batch in first] == [256] * whole + [len(task.x) % 256]
    assert task.steps_per_epoch == whole + 1
    rows = torch.cat([batch.x for batch in first])
    assert torch.equal(rows.sort(0).values, task.x.sort(0).values) and not torch.equal(rows, task.x)
    assert all(torch.equal(one.noise, other.noise) for one, other in zip(first, again, strict=True))
    assert not torch.equal(first[0].x, second[0].x) and not torch.equal(first[0].noise, second[0].noise)
    keep = torch.cat([batch.keep for batch in first])
    assert (keep == 0).float().mean() == pytest.approx(0.1, abs=0.01)
    assert [batch.masked for batch in first] == [int((batch.keep == 0).sum()) for batch in first]
    assert not torch.equal(keep, torch.cat([batch.keep for batch in second]))


def test_a_wholly_masked_row_gets_one_feature_back(tmp_path: Path) -> None:
    task = task_of(config_of("v2.14.2", loss={"mask_prob": 0.9}), tmp_path)
    keep = torch.cat([batch.keep for batch in task.batches(0)])
    shown = keep.sum(1)
    assert shown.min() == 1 and keep[shown == 1].mean(0).min() > 0.1  # any of the six


def test_a_remainder_too_small_for_batchnorm_is_left_out(tmp_path: Path) -> None:
    size = len(task_of(config_of(), tmp_path).x) - 1
    task = task_of(config_of(train={"batch_size": size}), tmp_path)
    assert [len(batch.x) for batch in task.batches(0)] == [size]


def test_configs_that_do_not_fit_the_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"loss.feature_weights: gives 2 weights for 6 features \(gra, ms"):
        task_of(config_of(loss={"feature_weights": (1, 2)}), tmp_path)
    with pytest.raises(BadInput, match="fewer than two rows"):
        task_of(config_of(train={"batch_size": 1}), tmp_path)


def test_a_head_needs_labels(tmp_path: Path) -> None:
    data = {"kind": "files", "layout": "custom", "groups": ["well"], "path": str(tmp_path / "table.csv")}
    data["features"] = [{"column": name, "name": name} for name in ("a", "b")]
    rows = np.random.default_rng(0).standard_normal((400, 2))
    lines = [f"w{i // 40},{a},{b}" for i, (a, b) in enumerate(rows)]
    (tmp_path / "table.csv").write_text("well,a,b\n" + "\n".join(lines))
    with pytest.raises(BadInput, match="needs labels, and no training row has one"):
        task_of(config_of(data=data, model={"semi_supervised": True}), tmp_path)
    last = train(config_of(data=data), tmp_path).last  # without a head it trains, on two features, with no ARI
    assert {"val/r2/a", "val/r2/b", "val/elbo_1"} <= set(last) and "val/ari" not in last
    assert last["train/beta_canonical"] == 1.0


# ---- determinism, resume, ranks


def test_a_stopped_run_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    config = config_of("hybrid_semi", train={"epochs": 4, "plateau_patience": 0}, model={"dropout": 0.1})
    whole = train(config, tmp_path / "whole")
    stopped = train(config, tmp_path / "stopped", sink=CollectingSink("val/recon", until=2))
    assert stopped.reports[-1].epoch < 4
    saved = tmp_path / "stopped" / "checkpoints/000002.pt"
    resumed = train(config, tmp_path / "stopped", resume=saved)
    assert resumed.epochs[0].epoch == 3 and resumed.last == whole.last


@pytest.mark.parametrize("recipe", ["hybrid_semi", "v2.13", "v2.14.2"])
def test_one_and_two_ranks_train_the_same_model(recipe: str, tmp_path: Path) -> None:
    config = config_of(
        recipe,
        model={"batch_norm": False, "head_dropout": 0.0},
        train={"epochs": 3, "clip": 1.0},
        buttress={"noise": "index", "dtype": "float64", "ari_every": 1, "ari_rows": 400},
    )
    one, two = (train(config, tmp_path / str(workers), workers=workers) for workers in (1, 2))
    assert one.reports[-1].step == two.reports[-1].step >= 20 and len(one.reports) == len(two.reports)
    for ours, theirs in zip(one.reports, two.reports, strict=True):
        assert set(ours.metrics) == set(theirs.metrics)
        for name, value in ours.metrics.items():
            assert theirs.metrics[name] == pytest.approx(value, rel=1e-9, abs=1e-12), (ours.step, name)
        for name, vector in ours.vectors.items():
            if not name.endswith("nonfinite"):  # one entry per rank
                assert theirs.vectors[name] == pytest.approx(vector, rel=1e-9, abs=1e-12), (ours.step, name)


def test_the_first_gradient_in_float32_is_that_of_one_rank(tmp_path: Path) -> None:
    """One step on the whole training split; Adam's first moment is then a tenth of the gradient."""
    config = config_of(
        "hybrid_semi",
        model={"batch_norm": False, "head_dropout": 0.0},
        train={"epochs": 1, "batch_size": 3000, "clip": None},
        buttress={"noise": "index"},
    )
    gradients = []
    for workers in (1, 2):
        kept = train(config, tmp_path / str(workers), workers=workers)
        saved = torch.load(tmp_path / str(workers) / str(kept.reports[-1].checkpoint), weights_only=True)
        moments = [state["exp_avg"].flatten() for state in saved["optimizer.vae"]["state"].values()]
        gradients.append(10 * torch.cat(moments).double())
    one, two = gradients
    assert kept.reports[-1].step == 1 and one.norm() > 0.1
    assert (one - two).norm() < 1e-5 * one.norm()


def test_two_ranks_with_batchnorm_report_one_network(tmp_path: Path) -> None:
    config = config_of("standard_semi", buttress={"workers": 2})
    kept = train(config, tmp_path)
    values, _ = Lithology().evaluate(config, tmp_path / str(kept.reports[-1].checkpoint), World.single(tmp_path), "val")
    assert kept.last["val/recon"] == pytest.approx(values["val/recon"], rel=1e-5)
    assert kept.last["val/accuracy"] == pytest.approx(values["val/accuracy"], abs=0.01)


# ---- schedulers and stopping


def test_early_stopping_never_counts_the_warm_up(tmp_path: Path) -> None:
    """The original's runs stopped inside their warm-up, because they watched a loss that rises with beta."""
    loss = {"anneal": "cyclical", "anneal_epochs": 6, "anneal_cycles": 2, "beta": 8.0}
    kept = train(config_of(loss=loss, train={"epochs": 40, "patience": 1, "batch_size": 64}), tmp_path)
    elbo = [one.metrics["val/elbo_1"] for one in kept.epochs]
    assert any(later >= earlier for earlier, later in pairwise(elbo[:6]))  # enough to stop it
    assert 6 <= kept.reports[-1].epoch < 40 and kept.reports[-1].closing
    assert kept.reports[-1].full_beta_epochs >= 2 and elbo[-1] >= elbo[-2]


def test_plateau_of_the_hybrid_recipe_watches_the_training_loss(tmp_path: Path) -> None:
    hybrid = task_of(config_of("hybrid"), tmp_path).passes[0]
    assert hybrid.plateau is not None and hybrid.clip == 1.0
    assert (hybrid.plateau.metric, hybrid.plateau.patience, hybrid.plateau.factor) == ("train/loss", 10, 0.5)
    assert hybrid.plateau.starts_at_epoch == 0
    sane = config_of("hybrid", train={"plateau_metric": "val/elbo_1"})
    plateau = task_of(sane, tmp_path).passes[0].plateau
    assert plateau is not None and (plateau.metric, plateau.starts_at_epoch) == ("val/elbo_1", 30)


# ---- collapse


def verdict(kept: CollectingSink, epochs: int) -> Any:
    path = rules_file("lithology")
    assert path is not None
    engine = RuleEngine(RuleSet.load(path), budget_epochs=epochs)
    for one in kept.reports:
        age = {"full_beta_epochs": one.full_beta_epochs, "full_beta_steps": one.full_beta_steps}
        found = engine.update(
            one.metrics, epoch=one.epoch, step=one.step, **age, nonfinite=one.nonfinite, closing=one.closing
        )
        if found.final:
            break
    return found


def small(beta: float, epochs: int = 4, lr: float = 1e-3, **groups: dict[str, Any]) -> Config:
    loss = {"beta": beta, "units": "canonical"} | groups.pop("loss", {})
    return Config.recipe(
        "standard",
        data={"size": "small"},
        loss=loss,
        train={"epochs": epochs, "lr": lr},
        buttress={"report_every": 50, "ari_every": 100, "ari_rows": 2000},
        **groups,
    )


@pytest.mark.parametrize("beta", [7.0, 8.0, 30.0])
def test_a_dead_code_is_killed_within_500_steps(beta: float, tmp_path: Path) -> None:
    found = verdict(train(small(beta), tmp_path), 4)
    assert (found.state, found.kind) == ("collapsed", "posterior_collapse")
    assert found.evidence[0].reports[-1][1] <= 500 and 0.3 < found.margin < 3


@pytest.mark.parametrize(
    ("beta", "active", "kl"), [(0.5, (3, 7), (2.4, 3.4)), (1.0, (3, 5), (1.4, 2.1)), (2.0, (1, 4), (0.6, 1.1))]
)
def test_a_few_active_units_are_healthy(beta: float, active: tuple, kl: tuple, tmp_path: Path) -> None:
    """4 of 10 at beta 0.5, 2 or 3 at beta 1, 1 at beta 2: what the real runs show."""
    kept = train(small(beta, epochs=6), tmp_path)
    found = verdict(kept, 6)
    assert (found.state, found.warnings) == ("healthy", ()) and found.margin < -1
    assert active[0] <= kept.last["latent/active_kl"] <= active[1]
    assert kl[0] < kept.last["latent/kl_total"] < kl[1]
    assert kept.last["val/ari"] > 0.15 and kept.last["ablation/relative"] > 0.5


def test_synthetic_data_behaves_as_the_real_one_at_beta_1(tmp_path: Path) -> None:
    """Real: training reconstruction 1.96, KL 1.53, loss 3.68, after 21 epochs of a larger table."""
    last = train(small(1.0, epochs=8), tmp_path).last
    assert last["train/recon"] == pytest.approx(1.96, abs=0.25)
    assert last["train/kl"] == pytest.approx(1.53, abs=0.25)
    assert last["train/recon"] + last["train/kl"] == pytest.approx(3.68, abs=0.25)


def test_an_annealed_start_is_safe_and_a_slow_one_is_not_killed(tmp_path: Path) -> None:
    annealed = small(2.0, loss={"anneal": "linear", "anneal_epochs": 2})
    assert verdict(train(annealed, tmp_path / "annealed"), 4).state == "healthy"
    # without BatchNorm the code starts dead and comes alive around step 200
    plain = small(1.0, lr=3e-4, model={"hidden_dims": (32, 16), "batch_norm": False})
    kept = train(plain, tmp_path / "plain")
    assert min(one.metrics["latent/kl_total"] for one in kept.reports) < 0.05 < kept.last["latent/kl_total"]
    assert verdict(kept, 4).state == "healthy"


def test_a_diverging_trial_is_killed_as_diverged(tmp_path: Path) -> None:
    kept = train(config_of(train={"lr": 1e6, "epochs": 8}), tmp_path)
    found = verdict(kept, 8)
    assert found.state == "diverged" and found.margin > 12


REAL = {  # recorded curves of the original project: what became of the run
    "vae_lithology_latent8": "collapsed",
    "vae_lithology_latent8_best": "collapsed",
    "vae_lithology_model_final": "collapsed",
    "vae_gra_v2_5_beta1.0_latent8": "healthy",
    "vae_gra_v2_5_beta0.05_latent8": "healthy",
    "vae_gra_v2_5_annealing_Fixed_beta0.5": "healthy",
    "vae_gra_v2_5_annealing_Anneal_0.01to0.5_25_epochs": "healthy",
    "vae_gra_v2_6_gmm_comparison": "healthy",
    "vae_gra_v2_8_latent8_contrastive": "healthy",
    "vae_gra_latent2": "healthy",
}


@pytest.mark.parametrize("name", REAL)
def test_real_curves_are_judged_as_what_they_were(name: str, shared: Path) -> None:
    import pandas as pd

    curve = pd.read_csv(shared / f"replay/lithology/histories/{name}.csv")
    path = rules_file("lithology")
    assert path is not None
    engine = RuleEngine(RuleSet.load(path), budget_epochs=100)
    for epoch, line in enumerate(curve.to_dict("records"), start=1):
        age = {"full_beta_epochs": epoch, "full_beta_steps": 100 * epoch}
        found = engine.update(line, epoch=epoch, step=100 * epoch, **age)
    assert found.state == REAL[name]
    if "contrastive" in name:  # KL 7.9 -> 0.8, reconstruction back up to 5.6 of 6: not dead, but worth a word
        assert "poor_reconstruction" in {warning.rule for warning in found.warnings}


# ---- the search space


@pytest.mark.parametrize("profile", [None, "full", "quick"])
def test_the_search_space_fits_the_family(profile: str | None, root: Path) -> None:
    spec = SweepSpec.load(root / "search_spaces/lithology.yaml", profile=profile)
    family = load("lithology")
    validation.check(spec, family)
    assert spec.objectives[0].metric == "val/ari" and spec.search["loss.beta"].high == 30


def test_the_elbo_at_beta_1_cannot_compare_trials_with_different_betas(root: Path) -> None:
    for metric in ("val/elbo_1", "val/kl", "train/loss"):
        spec = SweepSpec.load(root / "search_spaces/lithology.yaml", overrides=[f"objectives=[{metric}]"])
        with pytest.raises(BadInput, match=r"changes its scale with .*loss\.beta"):
            validation.check(spec, Lithology())
