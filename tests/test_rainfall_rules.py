"""The rainfall rules on figures of the original's runs and of healthy ones: who dies, of what, and how soon."""

from __future__ import annotations

from typing import Any

import pytest

from buttress.rules import RuleEngine, RuleSet
from buttress.training.registry import rules_file

#: A healthy epoch of the quick model (beta 0.1): measured.
HEALTHY = {
    "latent/kl_total": 1.38, "latent/active_kl": 8.0, "latent/dims": 16.0, "ablation/relative": 0.335,
    "prior/diversity": 0.024, "prior/sd_ratio": 0.72, "prior/max_ratio": 0.78, "prior/correlation": 0.72,
    "prior/wet_fraction": 0.56, "prior/dry_ratio": 0.75, "truth/wet_fraction": 0.48, "prior/mae_all": 4.7,
    "posterior/mae_all": 3.6, "posterior/mae_tail": 18.0, "train/l_rec": 0.74, "train/loss": 0.9,
    "train/nonfinite": 0.0,
}  # fmt: skip


def judged(*epochs: dict[str, float], full_from: int = 4) -> Any:
    """The last verdict over the epochs, 40 steps each; beta is full after `full_from` of them."""
    path = rules_file("rainfall")
    assert path is not None
    engine = RuleEngine(RuleSet.load(path), budget_epochs=30)
    for epoch, figures in enumerate(epochs, start=1):
        age = max(0, epoch - full_from)
        verdict = engine.update(HEALTHY | figures, epoch=epoch, step=40 * epoch, full_beta_epochs=age,
                               full_beta_steps=40 * age)  # fmt: skip
        if verdict.final:
            return verdict, epoch, {warning.rule for warning in engine.warnings}
    return verdict, None, {warning.rule for warning in engine.warnings}


def steady(epochs: int = 12, **figures: float) -> list[dict[str, float]]:
    return [{key.replace("__", "/"): value for key, value in figures.items()}] * epochs


@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"latent__kl_total": 0.35, "ablation__relative": 0.1},  # little, but the decoder reads it (beta 0.3)
        {"prior__diversity": 0.008, "ablation__relative": 0.12},  # draws alike, but z = mu beats z = 0
        {"prior__dry_ratio": 0.02, "prior__wet_fraction": 0.99},  # R5: wet nearly everywhere, in the right places
        {"prior__correlation": 0.03},  # a predictor that tells nothing of the place
        {"prior__wet_fraction": 0.97, "truth__wet_fraction": 0.96, "prior__correlation": 0.05},  # it does rain
    ],
)
def test_healthy_trials_live(figures: dict[str, float]) -> None:
    verdict, killed, _ = judged(*steady(**figures))
    assert (verdict.state, killed) == ("healthy", None)


@pytest.mark.parametrize(
    ("kind", "figures"),
    [
        # KL 1.46 in 64 dimensions
        ("posterior_collapse", {"latent__kl_total": 1.46, "latent__dims": 64.0, "latent__active_kl": 2.0,
                                "ablation__relative": 0.01, "prior__diversity": 0.004}),
        # KL 12.5 and 23 at a diversity of 0.0001
        ("ignored_code", {"latent__kl_total": 12.48, "ablation__relative": 0.001, "prior__diversity": 1e-4}),
        ("ignored_code", {"latent__kl_total": 23.0, "ablation__relative": -0.004, "prior__diversity": 0.002}),
        # 19.14 mm everywhere where it is 19.84 on average; correlation -0.146
        ("mean_collapse", {"prior__sd_ratio": 0.03, "prior__max_ratio": 0.10, "prior__correlation": -0.146,
                           "prior__wet_fraction": 0.90}),
        # 0.6 to 1.5 mm everywhere
        ("drizzle", {"prior__wet_fraction": 1.0, "prior__dry_ratio": 0.0, "prior__correlation": 0.02}),
    ],
)  # fmt: skip
def test_the_originals_dead_runs_die_of_what_they_died_of(kind: str, figures: dict[str, float]) -> None:
    verdict, killed, _ = judged(*steady(**figures))
    assert (verdict.state, verdict.kind) == ("collapsed", kind) and verdict.margin > 0
    assert killed is not None and 4 + 2 <= killed <= 4 + 5  # past full beta, soon
    assert "{" not in verdict.message and verdict.message


@pytest.mark.parametrize(
    "known",
    [
        {"val_L_kl": 12.5, "train_L_rec": 2.0, "val_MAE_all": 0.8, "val_MAE_tail": 0.5},  # the original's log
        {"val_L_kl": 12.5, "latent/dims": 64.0},
        {key: HEALTHY[key] for key in HEALTHY if "latent" not in key and "ablation" not in key}  # without monitors
        | {"prior/diversity": 0.012},
    ],
)
def test_what_was_never_reported_is_no_evidence_against_a_healthy_trial(known: dict[str, float]) -> None:
    path = rules_file("rainfall")
    assert path is not None
    engine = RuleEngine(RuleSet.load(path), budget_epochs=30)
    for epoch in range(1, 21):
        age = max(0, epoch - 4)
        verdict = engine.update(known, epoch=epoch, step=40 * epoch, full_beta_epochs=age, full_beta_steps=40 * age)
    assert verdict.state == "healthy", verdict.message


def test_nobody_dies_inside_the_warm_up() -> None:
    dead = steady(latent__kl_total=0.01, latent__active_kl=0.0, ablation__relative=0.0, prior__diversity=0.0)
    assert judged(*dead, full_from=12)[0].state == "healthy"


def test_a_slow_starter_lives_and_a_trembling_dead_code_does_not() -> None:
    """The measured KL of a net without BatchNorm at full beta from the first epoch, and of one that stays dead."""
    slow = (0.081, 0.027, 0.059, 0.126, 0.043, 0.204, 1.183, 1.363, 3.745, 2.99, 3.669, 3.551)
    gain = (0.0, 0.0, 0.002, -0.003, 0.003, 0.010, 0.029, 0.060, 0.026, 0.114, 0.075, 0.128)
    dead = (0.15, 0.015, 0.017, 0.007, 0.004, 0.003, 0.004, 0.006, 0.006, 0.006, 0.006, 0.006)

    def reports(nats: tuple[float, ...], gains: tuple[float, ...]) -> list[dict[str, float]]:
        return [
            {"latent/kl_total": kl, "latent/active_kl": float(kl > 1) * 9, "ablation/relative": gained,
             "prior/diversity": 0.006} for kl, gained in zip(nats, gains, strict=True)
        ]  # fmt: skip

    assert judged(*reports(slow, gain), full_from=1)[0].state == "healthy"
    verdict, killed, _ = judged(*reports(dead, (0.0,) * 12), full_from=1)
    assert verdict.kind == "posterior_collapse" and killed is not None and killed <= 7


def test_a_slow_learner_is_flat_without_being_a_mean_collapse() -> None:
    """Measured: a net without injection at a learning rate of 4e-4; its fields end at a correlation of 0.23."""
    sd = (0.048, 0.084, 0.130, 0.062, 0.147, 0.191, 0.244, 0.191, 0.195)
    peak = (0.057, 0.081, 0.115, 0.068, 0.134, 0.176, 0.223, 0.170, 0.167)
    corr = (0.006, 0.025, 0.029, 0.025, 0.065, 0.088, 0.122, 0.148, 0.180)
    keys = ("prior/sd_ratio", "prior/max_ratio", "prior/correlation")
    rows = [dict(zip(keys, values, strict=True)) for values in zip(sd, peak, corr, strict=True)]
    assert judged(*rows, full_from=1)[0].state == "healthy"


def test_warnings_tell_of_volatility_neglect_and_drizzle() -> None:
    rising = [{"train/l_rec": value} for value in (6.0, 2.4, 2.13, 2.3, 2.9, 3.8, 4.9, 6.0, 6.55, 6.5)]
    assert "loss_volatility" in judged(*rising)[2]
    falling = [{"train/l_rec": 6.5 * 0.8**epoch} for epoch in range(12)]
    assert judged(*falling)[2] == set()
    neglect = [
        {"posterior/mae_all": 2.6 - 0.18 * epoch, "posterior/mae_tail": 12.0 + 1.5 * epoch} for epoch in range(10)
    ]
    assert "tail_neglect" in judged(*neglect)[2]
    both = [{"posterior/mae_all": 3.0 + 0.2 * epoch, "posterior/mae_tail": 12.0 + 1.5 * epoch} for epoch in range(10)]
    assert "tail_neglect" not in judged(*both)[2]  # everything gets worse: another story
    assert "drizzling" in judged(*steady(prior__dry_ratio=0.1))[2]
    assert "prior_gap" in judged(*steady(prior__mae_all=9.9))[2]


def test_a_diverged_trial_dies_at_once() -> None:
    verdict, killed, _ = judged(*steady(train__nonfinite=1.0), full_from=8)
    assert verdict.state == "diverged" and killed == 2


@pytest.mark.parametrize(
    ("kls", "killed"),
    [
        ((0.004, 0.0039, 0.0038, 0.0038), 4),  # flat on two reports in a row, once there is a slope to see
        ((0.004, 0.006, 0.010, 0.02), None),  # a slow starter's grows
        ((0.03, 0.03, 0.03, 0.03), None),  # little: for the ends of epochs to judge
    ],
    ids=["flat", "growing", "little"],
)
def test_a_code_of_nothing_does_not_wait_for_the_ends_of_epochs(kls: tuple[float, ...], killed: int | None) -> None:
    """Reports inside the first epoch at full beta, which hold neither ablation nor prior draws."""
    path = rules_file("rainfall")
    assert path is not None
    engine = RuleEngine(RuleSet.load(path), budget_epochs=30)
    at = None
    for number, kl in enumerate(kls, 1):
        inside = {"latent/kl_total": kl, "latent/active_kl": 0.0, "latent/dims": 16.0, "train/loss": 0.9}
        age = {"full_beta_epochs": 0, "full_beta_steps": 20 * number}
        verdict = engine.update(inside, epoch=0, step=100 + 20 * number, **age)
        at = number if verdict.final and at is None else at
    assert at == killed and (killed is None or verdict.rule == "flat_code")
