"""Calibration finds numbers that hold on its curves, keeps the stated limit, and changes nothing but numbers."""

from __future__ import annotations

import csv
import json
import random
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from journal_lines import recorded
from typer.testing import CliRunner

from buttress.analysis.calibration import calibrate, write_rules
from buttress.analysis.curves import Curve, Truth
from buttress.analysis.replay import replay, score
from buttress.cli.main import app
from buttress.errors import BadInput
from buttress.rules import RuleSet

REPORTS, GAP = 40, 50


def curve(name: str, kls: list[float], truth: str, onset: int | None = None, value: float | None = None) -> Curve:
    reports = [
        recorded(
            epoch=i // 5, step=GAP * i, full_beta_epochs=i // 5, full_beta_steps=GAP * i, phase=0,
            metrics={"latent/kl_total": kl},
        )
        for i, kl in enumerate(kls, 1)
    ]  # fmt: skip
    return Curve(name, tuple(reports), tuple(r.step for r in reports), 12, Truth(truth, onset, value))


def population(seed: int, late: int = 8) -> list[Curve]:
    """Healthy curves, every fifth of them dead-looking for its first `late` reports; dead ones from 0 to 20 on."""
    rng, curves = random.Random(seed), []
    for number in range(40):
        kls = [rng.uniform(1, 3) for _ in range(REPORTS)]
        if number % 5 == 0:
            kls[:late] = [rng.uniform(0.01, 0.1) for _ in range(late)]
        curves.append(curve(f"h{number}", kls, "healthy", value=rng.random()))
    for number in range(20):
        onset = rng.randrange(20)
        kls = [rng.uniform(1, 3) for _ in range(onset)] + [rng.uniform(0.05, 0.2) for _ in range(REPORTS - onset)]
        curves.append(curve(f"d{number}", kls, "collapsed", onset=onset))
    return curves


def rules(below: float, steps: int, patience: int) -> RuleSet:
    rule = {
        "action": "kill",
        "signs": [{"metric": "latent/kl_total", "below": below}],
        "grace": {"steps": steps},
        "patience": patience,
        "message": "the code carries {latent/kl_total:.3f} nats",
    }
    warning = {"action": "warn", "signs": [{"metric": "latent/kl_total", "below": 1.0}]}
    return RuleSet.from_dict({"rules": {"posterior_collapse": rule, "weak": warning}})


@pytest.mark.parametrize(
    "start", [rules(0.1, 2000, 8), rules(0.3, 0, 1)], ids=["too late and too low", "kills a fifth of the healthy"]
)
def test_numbers_are_found_from_either_side_and_hold_on_new_curves(start: RuleSet) -> None:
    found = calibrate(start, population(1))
    assert found.score.caught.share == 1.0 and found.score.false_kill.count == 0
    assert found.score.mean_delay < 0.25
    assert found.score.mean_delay < found.before.mean_delay or found.before.false_kill.count
    fresh = population(2)
    held = score(fresh, [replay(each, found.rules) for each in fresh])
    assert held is not None and held.caught.share == 1.0 and held.false_kill.count == 0


def test_only_numbers_of_rules_that_kill_change() -> None:
    start = rules(0.1, 2000, 8)
    made = calibrate(start, population(1)).rules
    assert made.rules["weak"] == start.rules["weak"]
    rule, before = made.rules["posterior_collapse"], start.rules["posterior_collapse"]
    assert rule != before and rule.message == before.message and rule.signs[0].metric == before.signs[0].metric


@pytest.mark.long
def test_the_false_kill_limit_is_kept_even_where_that_costs_catches() -> None:
    curves = population(1)
    # a tenth of the healthy trials looks as the dead ones do, to the end
    curves += [curve(f"x{i}", [0.06] * REPORTS, "healthy", value=0.0) for i in range(4)]
    strict, loose = (calibrate(rules(0.3, 0, 1), curves, false_kill=limit) for limit in (0.02, 0.2))
    assert strict.score.false_kill.count == 0 and strict.score.caught.share is not None
    assert strict.score.caught.share < 1.0 == loose.score.caught.share
    assert 0 < loose.score.false_kill.count <= 0.2 * 44


def test_rules_that_cannot_keep_the_limit_are_refused() -> None:
    curves = population(1) + [curve(f"x{i}", [0.0] * REPORTS, "healthy", value=0.0) for i in range(4)]
    with pytest.raises(BadInput, match="no numbers of these rules keep the limit"):
        calibrate(rules(0.3, 0, 1), curves)


def test_too_few_curves_are_refused() -> None:
    with pytest.raises(BadInput, match="hold 20 dead and 5 healthy"):
        calibrate(rules(0.1, 0, 1), [c for c in population(1) if c.name[0] == "d"] + population(1)[:5])


def test_curves_of_one_report_are_refused() -> None:
    ends = [replace(each, reports=each.reports[-1:], at=each.at[-1:]) for each in population(1)]
    with pytest.raises(BadInput, match="no curve has two reports"):
        calibrate(rules(0.3, 200, 3), ends)


def test_rules_that_look_at_nothing_the_curves_hold_are_refused() -> None:
    blind = RuleSet.from_dict({"rules": {"dead": {"action": "kill", "signs": [{"metric": "elsewhere", "below": 1}]}}})
    with pytest.raises(BadInput, match="these rules kill none of the curves"):
        calibrate(blind, population(1))


@pytest.mark.long
def test_the_file_is_a_rules_file(tmp_path: Path) -> None:
    found = calibrate(rules(0.1, 2000, 8), population(1))
    head = write_rules(found, tmp_path / "rules.yaml", command="buttress calibrate curves.csv --family=toy")
    assert RuleSet.load(tmp_path / "rules.yaml") == found.rules
    assert "20 of 20" in head and "grace.steps 2000 ->" in head


@pytest.mark.long
def test_the_command_in_the_files_first_line_makes_the_file_again(tmp_path: Path) -> None:
    start, table, made = tmp_path / "start.yaml", tmp_path / "my curves.csv", tmp_path / "rules.yaml"
    start.write_text(json.dumps(rules(0.1, 2000, 8).to_dict()))
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "step", "latent/kl_total", "truth"])
        for each in population(1):
            assert each.truth is not None
            for report in each.reports:
                writer.writerow([each.name, report.step, report.metrics["latent/kl_total"], each.truth.outcome])
    options = ["--family", "lithology", "--rules", str(start), "--steps-per-epoch", "250", "--false-kill", "0.1"]
    first = CliRunner().invoke(app, ["calibrate", str(table), *options, "-o", str(made)])
    assert first.exit_code == 0, first.output
    written = made.read_text()
    command = written.splitlines()[0].removeprefix("# Proposed by `").removesuffix("`.")
    program, *again = shlex.split(command)
    assert program == "buttress"
    made.unlink()
    second = CliRunner().invoke(app, [*again, "-o", str(made)])
    assert second.exit_code == 0 and made.read_text() == written
