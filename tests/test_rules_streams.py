"""Rules on whole streams of reports: of other families, random ones, recorded curves."""

from __future__ import annotations

import csv
import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from rule_streams import DEFAULT, KL, A, Row, one_rule, play, report, states

from buttress.errors import BadInput
from buttress.execution.setup import resolve_rules, rules_of
from buttress.rules import RuleEngine, RuleSet
from buttress.spec.spec import SweepSpec

# --- what other families will ask ----------------------------------------------------------------------------------

OCCUPANCY = RuleSet.from_dict(
    {
        "rules": {
            "empty": {
                "action": "kill",
                "signs": [
                    {"metric": "fill", "below": 0.05},
                    {"metric": "sep", "below": 1.5},
                    {"metric": "sep", "transform": "slope", "window": 3, "below": 0.02},
                ],
                "grade": {"metric": "sep", "below": 1.5},
                "grace": {"steps": 100},
                "patience": 3,
            },
            "full": {
                "action": "kill",
                "signs": [{"metric": "fill", "above": 40}],
                "grace": {"steps": 100},
                "patience": 3,
            },
            "uncalibrated": {
                "action": "warn",
                "signs": [{"metric": "fill", "below": 0.05}, {"metric": "sep", "above": 1.5}],
                "grace": {"steps": 100},
                "patience": 3,
            },
        }
    }
)


def occupancy(fill: Sequence[float], sep: Sequence[float]) -> tuple[str, str | None, list[str], int]:
    """State, rule, warnings and step of the last verdict; a report every 25 steps inside the first epoch."""
    engine = RuleEngine(OCCUPANCY, budget_epochs=10)
    for index, (full, apart) in enumerate(zip(fill, sep, strict=True), 1):
        age = {"epoch": 0, "step": 25 * index, "full_beta_epochs": 0, "full_beta_steps": 25 * index}
        verdict = engine.update({"fill": full, "sep": apart}, **age)
        if verdict.final:
            break
    return verdict.state, verdict.rule, [warning.rule for warning in verdict.warnings], 25 * index


def test_two_sided_kills_inside_the_first_epoch() -> None:
    stuck = [0.9, 1.0] + [1.2] * 10  # not rising from step 125 on
    assert occupancy([0.2] + [0.0] * 11, stuck) == ("collapsed", "empty", [], 175)
    assert occupancy([121.0] * 12, [1.0] * 12) == ("collapsed", "full", [], 150)


def test_an_empty_net_that_learns_to_tell_apart_is_left_alone() -> None:
    rising = [0.9 + 0.1 * index for index in range(12)]
    state, _, warnings, _ = occupancy([0.0] * 8 + [3.0] * 4, rising)
    assert (state, warnings) == ("healthy", [])
    assert occupancy([0.0] * 12, [2.5] * 12)[:3] == ("healthy", None, ["uncalibrated"])


def test_tail_neglect_is_worsening_against_improvement() -> None:
    signs = [
        {"metric": "tail", "transform": "best_ratio", "above": 2},
        {"metric": "all", "transform": "slope", "window": 3, "below": 0.0},
    ]
    rules = one_rule(*signs, action="warn")
    improving = [{"tail": tail, "all": 5.0 - index} for index, tail in enumerate((1.0, 0.5, 1.1, 1.3))]
    assert [bool(verdict.warnings) for verdict in play(rules, improving)] == [False, False, True, True]
    worsening = [{"tail": tail, "all": 5.0 + index} for index, tail in enumerate((1.0, 0.5, 1.1, 1.3))]
    assert not play(rules, worsening)[-1].warnings


def test_the_default_rules_kill_a_collapse_a_divergence_and_a_loss_of_exactly_zero() -> None:
    rules = RuleSet.load(DEFAULT)
    healthy = {"latent/kl_total": 3.0, "latent/active_kl": 4.0, "train/loss": 1.0, "train/nonfinite": 0.0}
    assert play(rules, [healthy] * 9)[-1].state == "healthy"
    dead = healthy | {"latent/kl_total": 0.01, "latent/active_kl": 0.0}
    assert [verdict.state[0] for verdict in play(rules, [dead] * 4)] == ["h", "s", "s", "c"]
    assert play(rules, [dead | {"latent/dims": 10.0}] * 4)[-1].message == (
        "the latent code carries 0.01 nats, 0 of 10 dimensions are in use"
    )
    assert play(rules, [{"latent/kl_total": 0.01}] * 4)[-1].message.startswith("total KL was 0.01, 0.01, 0.01 nats at")
    for row in (healthy | {"train/nonfinite": 1.0}, healthy | {"train/loss": 0.0}, {"train/loss": None}):
        assert [verdict.state[0] for verdict in play(rules, [row] * 2)] == ["s", "d"]


# --- random streams ------------------------------------------------------------------------------------------------

RANDOM_RULES = RuleSet.from_dict(
    {
        "rules": {
            "low": {"action": "kill", "signs": [KL, A], "patience": 3, "hysteresis": 1.5, "grace": {"epochs": 2}},
            "jump": {
                "action": "kill",
                "signs": [
                    {"metric": "b", "transform": "median_ratio", "window": 4, "above": 4},
                    {"metric": "b", "above": 0.1},
                ],
                "votes": 1,
                "grade": {"metric": "b", "above": 0.5},
                "patience": 6,
            },
            "diverged": {"action": "kill", "signs": [{"metric": "a", "transform": "nonfinite"}], "patience": 2},
            "restless": {
                "action": "warn",
                "signs": [{"metric": "kl", "transform": "window_max_over_min", "window": 3, "above": 20}],
            },
        }
    }
)


def random_stream(seed: int) -> list[Row]:
    """Up to 60 reports: values over five decades, some missing, some not finite."""
    draw = random.Random(seed)

    def value() -> float:
        return draw.choice((math.nan, math.inf)) if draw.random() < 0.06 else 10 ** draw.uniform(-3, 1.5)

    return [{name: value() for name in ("kl", "a", "b") if draw.random() < 0.85} for _ in range(draw.randrange(1, 60))]


@pytest.mark.parametrize("seed", range(40))
def test_random_streams(seed: int) -> None:
    rows = random_stream(seed)
    engine = RuleEngine(RANDOM_RULES, budget_epochs=60)
    found = []
    for index, row in enumerate(rows, 1):
        found.append(report(engine, row, index))
        assert (found[-1].state == "suspect") == (bool(engine.suspects) and not found[-1].final)
    margin = engine.margin
    # the verdict is a pure function of the stream, also of the one that a journal holds
    recorded = [
        {key: value if value is None or math.isfinite(value) else None for key, value in row.items()} for row in rows
    ]
    again = play(RuleSet.from_dict(RANDOM_RULES.to_dict()), recorded, budget=60)
    assert repr(again) == repr(found)
    # a trial is condemned once, with a positive margin; a healthy one has a negative margin
    final = [verdict.final for verdict in found]
    assert final == sorted(final)
    assert math.isnan(margin) or (margin > 0 if final[-1] else margin < 0 or found[-1].state == "suspect")
    # reports on which every rule abstains change nothing
    draw = random.Random(seed)
    padded = RuleEngine(RANDOM_RULES, budget_epochs=60)
    for index, row in enumerate(rows, 1):
        for _ in range(draw.randrange(3)):
            report(padded, {"unwatched": 1.0}, index - 1 if index > 1 else 0)
        assert report(padded, row, index).state == found[index - 1].state


def test_random_streams_reach_every_state() -> None:
    ends = [play(RANDOM_RULES, random_stream(seed))[-1] for seed in range(40)]
    assert {verdict.state for verdict in ends} == {"healthy", "suspect", "collapsed", "diverged"}
    assert any(verdict.warnings for verdict in ends)


def brute_force(values: Sequence[float], patience: int, hysteresis: float) -> int | None:
    """The report at which `kl below 0.3` condemns, written as a search over spans instead of a state machine."""
    for end in range(patience, len(values) + 1):
        span = values[end - patience : end]
        if all(value < 0.3 * hysteresis for value in span):
            earlier = reversed(values[: end - patience])
            before = list(itertools.takewhile(lambda value: value < 0.3 * hysteresis, earlier))
            low = [value < 0.3 for value in (*reversed(before), *span)]
            if any(low) and len(low) - low.index(True) >= patience:
                return end
    return None


@pytest.mark.parametrize("seed", range(40))
def test_patience_and_hysteresis_agree_with_a_search_over_spans(seed: int) -> None:
    draw = random.Random(1000 + seed)
    patience, hysteresis = draw.randrange(1, 6), draw.choice((1.0, 1.3, 2.0))
    values = [draw.uniform(0.05, 0.9) for _ in range(40)]
    found = states(one_rule(KL, patience=patience, hysteresis=hysteresis), values)
    killed_at = found.index("c") + 1 if "c" in found else None
    assert killed_at == brute_force(values, patience, hysteresis)


# --- real curves ---------------------------------------------------------------------------------------------------

FOREIGN = RuleSet.from_dict(
    {
        "aliases": {"latent/kl_total": ["val_kl_loss", "val_kl", "train_kl"]},
        "rules": {
            "posterior_collapse": {
                "action": "kill",
                "signs": [{"metric": "latent/kl_total", "below": 0.3}, {"metric": "latent/active_kl", "below": 1}],
                "grace": {"epochs": 1},
                "patience": 2,
                "hysteresis": 1.2,
            }
        },
    }
)


@pytest.fixture(scope="module")
def replay(shared: Path) -> Path:
    return shared / "replay"


def curve(path: Path) -> list[dict[str, float]]:
    """Rows of a CSV of numbers; an empty cell is a metric that was not reported."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return [{key: float(cell) for key, cell in row.items() if cell and key != "source"} for row in rows]


def test_healthy_lithology_histories_live_and_collapsed_ones_die(replay: Path) -> None:
    paths = sorted((replay / "lithology" / "histories").glob("*.csv"))
    assert len(paths) == 21
    killed = set()
    for path in paths:
        rows = curve(path)
        verdict = play(FOREIGN, rows, budget=len(rows))[-1]
        if verdict.state == "collapsed":
            killed.add(path.stem)
            assert 0.5 < verdict.margin < 2.0
            assert verdict.evidence[0].reports == ((1, 100), (2, 200))
        else:
            assert verdict.state == "healthy" and verdict.margin < 0
    long = {path.stem for path in paths if path.stem.startswith("vae_lithology_") and len(curve(path)) >= 10}
    assert len(long) == 3 and long <= killed
    assert killed - long == {"vae_lithology_latent2_best"}


def test_the_real_radio_run_lives_and_its_idle_discriminator_is_noticed(replay: Path) -> None:
    rules = RuleSet.from_dict(
        {
            "aliases": {"train/loss": "total_loss", "latent/kl_per_dim": "kl_per_dim"},
            "rules": {
                **RuleSet.load(DEFAULT).to_dict()["rules"],
                "thin": {
                    "action": "kill",
                    "signs": [{"metric": "latent/kl_per_dim", "below": 0.05}],
                    "min_step": 500,
                    "patience": 5,
                },
                "burst": {
                    "action": "kill",
                    "signs": [{"metric": "rec_loss", "transform": "median_ratio", "window": 20, "above": 3}],
                    "patience": 3,
                },
                "discriminator not training": {
                    "action": "warn",
                    "signs": [{"metric": "disc_loss", "transform": "absent", "window": 3}],
                    "phase": 1,
                    "patience": 2,
                },
            },
        }
    )
    engine = RuleEngine(rules, budget_epochs=1)
    for row in curve(replay / "radio" / "vae_full_replay.csv"):
        step, phase = int(row["step"]), int(row["phase"]) - 1
        verdict = engine.update(row, epoch=0, step=step, full_beta_epochs=0, full_beta_steps=step, phase=phase)
        assert verdict.state == "healthy", (step, verdict)
    (warning,) = verdict.warnings
    assert (warning.rule, warning.step) == ("discriminator not training", 50_400)  # 50,100 is the first row of phase 2
    assert warning.message == "disc_loss was absent at epoch 0 (steps 50300, 50400)"


@pytest.mark.parametrize("name", ["lithologyy", "occupancy/sparse", "nowhere.at.all:Model"])
def test_rules_that_there_are_not_are_refused_and_not_replaced_by_others(name: str) -> None:
    tree = {"trainable": "lithology", "search": {"loss.beta": {"uniform": [1, 2]}}, "objectives": ["val/ari"],
            "budget": {"trials": 1}, "rules": {"extends": name}}  # fmt: skip
    named = "lithology, occupancy, occupancy/threshold, radio, rainfall"
    with pytest.raises(BadInput, match=rf"rules\.extends: no such rules .*{named}"):
        resolve_rules(SweepSpec.from_dict(tree))
    if ":" not in name:
        with pytest.raises(BadInput, match=r"--family: no such rules"):
            rules_of(name)


def test_a_rules_file_is_looked_for_beside_the_spec_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("rules: {low: {action: kill, signs: [{metric: a, below: 1}], patience: 5}}\n")
    (tmp_path / "spec.yaml").write_text(
        "{trainable: lithology, search: {loss.beta: {uniform: [1, 2]}}, objectives: [val/ari], budget: {trials: 1}, "
        "rules: {extends: mine.yaml}}"
    )
    assert resolve_rules(SweepSpec.load(tmp_path / "spec.yaml")).rules["low"].patience == 5


def test_a_family_s_other_rules_are_named_beside_it() -> None:
    assert resolve_rules(SweepSpec.from_dict({
        "trainable": "occupancy", "search": {"train.lr": {"loguniform": [1e-4, 1e-3]}}, "budget": {"trials": 1},
        "objectives": ["val/average_precision"], "rules": {"extends": "occupancy/threshold", "full": {"patience": 7}},
    })).rules["full"].patience == 7  # fmt: skip
    assert "blind" in rules_of("occupancy").rules and "all_full" in rules_of("occupancy/threshold").rules
