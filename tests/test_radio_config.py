"""The radio config: the original's numbers by default, one sentence for what cannot be, schedules, search space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from buttress.errors import BadInput
from buttress.execution.plan import sample_configs
from buttress.execution.setup import resolve_rules
from buttress.search.proposals import build
from buttress.spec import validation
from buttress.spec.spec import SweepSpec
from buttress.trainables.radio.config import Config
from buttress.training.registry import load


def test_the_defaults_are_the_originals() -> None:
    config = Config()
    net, loss, trainer = config.model.ddconfig, config.model.lossconfig, config.trainer
    assert (config.model.embed_dim, net.z_channels, net.ch, net.ch_mult) == (3, 3, 128, (1, 2, 4))
    assert (net.num_res_blocks, net.dropout, net.downsampling) == (2, 0.0, 4)
    assert (loss.disc_start, loss.kl_weight, loss.disc_weight, loss.disc_factor) == (50_001, 1e-6, 0.5, 1.0)
    assert (loss.perceptual_weight, loss.logvar_init, loss.disc_num_layers, loss.disc_loss) == (1.0, 0.0, 3, "hinge")
    assert (trainer.lr, trainer.min_lr, trainer.train_num_steps, config.data.batch_size) == (5e-6, 5e-7, 150_000, 2)
    assert config.adversarial and config.schedule().epochs == 30  # a milestone of the original each


@pytest.mark.parametrize(
    ("start", "phases"),
    [(50_001, (11,)), (50_000, (11,)), (49_999, (10,)), (0, (1,)), (149_999, (30,)), (150_000, ()), (200_000, ())],
)
def test_phase_one_begins_with_the_first_epoch_that_has_a_discriminator_in_it(start: int, phases: Any) -> None:
    config = Config.of_groups({"model": {"lossconfig": {"disc_start": start}}})
    assert config.schedule().phases == phases
    assert config.adversarial == bool(phases)


def test_without_a_factor_there_is_no_discriminator() -> None:
    config = Config.of_groups({"model": {"lossconfig": {"disc_factor": 0.0}}})
    assert not config.adversarial and config.schedule().phases == ()


def test_age_counts_from_the_end_of_the_warm_up_and_from_the_start_without_one() -> None:
    config = Config.of_groups({"buttress": {"lr_warmup_steps": 7000}})
    schedule = config.schedule()
    assert (schedule.full_at_step, schedule.full_beta_epochs(1), schedule.full_beta_epochs(3)) == (7000, 0, 1)
    assert Config().schedule().full_beta_epochs(1) == 1


def test_epochs_set_the_steps_that_the_original_knows() -> None:
    config = Config.of_groups({"buttress": {"epochs": 4, "epoch_steps": 250}})
    assert config.trainer.train_num_steps == 1000 and config.schedule().epochs == 4
    assert Config.model_validate(config.model_dump(mode="json")) == config
    with pytest.raises(ValidationError, match=r"\(4 of 5000 steps\) and trainer\.train_num_steps \(7\) contradict"):
        Config.of_groups({"buttress": {"epochs": 4}, "trainer": {"train_num_steps": 7}})


def lossconfig(**given: Any) -> dict[str, Any]:
    return {"model": {"lossconfig": given}}


def ddconfig(**given: Any) -> dict[str, Any]:
    return {"model": {"ddconfig": given}}


@pytest.mark.parametrize(
    ("groups", "match"),
    [
        (ddconfig(ch=48), r"ch 48 times 1 is no multiple of 32"),
        (ddconfig(ch_mult="1-x"), r"1-2-4, not '1-x'"),
        (ddconfig(ch_mult=[]), r"ch_mult"),
        (ddconfig(double_z=False), r"double_z"),
        ({"data": {"size": "tiny"}, **ddconfig(ch_mult=[1] * 6)}, None),
        ({"data": {"size": "tiny", "shrink": 4}, "model": {"ddconfig": {"ch_mult": "1-1-1-1-2"}}},
         r"maps of 8 x 8 px cannot be halved evenly by model\.ddconfig\.ch_mult 1-1-1-1-2, a factor of 16"),
        ({"data": {"size": "tiny", "shrink": 2}}, r"16 x 16 px are too small for a PatchGAN of 3 layers: .* 24 px"),
        ({"data": {"size": "small", "shrink": 3}}, r"data\.shrink 3 does not divide the 64 px"),
        ({"data": {"kind": "files"}}, r"needs data\.root"),
        ({"data": {"simulation": "IRT2"}}, r"imitate DPM.*needs kind files"),
        ({"data": {"fractions": (0.9, 0.1, 0.0)}}, r"three shares above 0"),
        (lossconfig(kl_weight=-1.0), "kl_weight"),
        (lossconfig(pixelloss_weight=1.0), "Extra inputs"),  # stored and never used by the original
        ({"trainer": {"gradient_accumulate_every": 2}}, "Extra inputs"),  # the passes, there
        ({"trainer": {"min_lr": 2.0}}, "min_lr"),
        ({"buttress": {"perceptual": "vgg16"}}, r"two files, buttress\.vgg_weights and buttress\.lpips_weights"),
        ({"buttress": {"lr_warmup_steps": 149_000}}, r"lr_warmup_steps \(149000\) leaves no epoch of 5000 steps"),
    ],
)  # fmt: skip
def test_configs_that_cannot_be_are_refused_in_one_sentence(groups: dict[str, Any], match: str | None) -> None:
    if match is None:
        assert Config.of_groups(groups).model.ddconfig.downsampling == 32
        return
    with pytest.raises(ValidationError, match=match):
        Config.of_groups(groups)


# ---- the search space


@pytest.mark.parametrize("profile", [None, "full", "quick", "bench"])
def test_the_search_space_fits_the_family(profile: str | None, root: Path) -> None:
    spec, family = SweepSpec.load(root / "search_spaces/radio.yaml", profile=profile), load("radio")
    validation.check(spec, family)
    assert [one.metric for one in spec.objectives] == ["val/l1"]
    configs, refused = sample_configs(spec, family)
    assert refused < 0.05 and all(config.adversarial for config in configs)
    assert any(config.model.lossconfig.kl_weight > 1 for config in configs)  # the sweep can find out what collapses


def test_no_objective_moves_with_a_searched_weight(root: Path) -> None:
    family = load("radio")
    for metric in ("train/loss", "train/recon", "train/kl", "train/disc_loss"):
        spec = SweepSpec.load(root / "search_spaces/radio.yaml", overrides=[f"objectives=[{metric}]"])
        with pytest.raises(BadInput, match="changes its scale"):
            validation.check(spec, family)


def test_a_budget_in_epochs_sets_the_steps(root: Path) -> None:
    overrides = ["budget.full_beta_epochs=5", "fixed={buttress.epoch_steps: 20000}"]
    spec, family = SweepSpec.load(root / "search_spaces/radio.yaml", overrides=overrides), load("radio")
    config, why = build(spec, family, {"model.lossconfig.disc_start": 30_000}, 1)
    assert why is None and config.trainer.train_num_steps == 100_000 and config.schedule().epochs == 5


def test_the_quick_profile_speaks_earlier_and_changes_nothing_else_in_the_rules(root: Path) -> None:
    full, quick = (resolve_rules(SweepSpec.load(root / "search_spaces/radio.yaml", profile=profile)).rules
                   for profile in ("full", "quick"))  # fmt: skip
    assert (full["posterior_collapse"].grace.steps, quick["posterior_collapse"].grace.steps) == (500, 100)
    differ = [name for name in full if full[name] != quick[name]]
    assert differ == ["posterior_collapse"] and set(full) == set(quick)
