"""Recorded curves under rules: every way a curve comes in, what the score counts, and real curves of other people."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import journal_lines
import pytest
from journals import mixed_sweep

from buttress.analysis.curves import Curve, Truth, read_curves
from buttress.analysis.intervals import Share
from buttress.analysis.replay import CurveReplay, replay, replay_result, score
from buttress.errors import BadInput
from buttress.execution.setup import rules_of
from buttress.rules import RuleSet

Row = dict[str, Any]

DEAD_BELOW_HALF = RuleSet.from_dict(
    {
        "aliases": {"latent/kl_total": "kl"},
        "rules": {
            "posterior_collapse": {
                "action": "kill",
                "signs": [{"metric": "latent/kl_total", "below": 0.5}],
                "patience": 2,
            }
        },
    }
)


def table(path: Path, rows: Sequence[Row]) -> Path:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


# --- curves ---------------------------------------------------------------------------------------------------------


def test_an_empty_cell_is_absent_and_nan_is_not_finite(tmp_path: Path) -> None:
    path = table(tmp_path / "run.csv", [{"step": 10, "kl": 1.0, "ce": ""}, {"step": 20, "kl": "nan", "ce": "-inf"}])
    (curve,) = read_curves(path).curves
    assert [report.metrics for report in curve.reports] == [{"kl": 1.0}, {"kl": None, "ce": None}]
    assert [report.nonfinite for report in curve.reports] == [(), ("kl", "ce")]


def test_epochs_from_zero_count_as_completed_and_bring_steps(tmp_path: Path) -> None:
    path = table(tmp_path / "run.csv", [{"epoch": epoch, "kl": 1.0} for epoch in range(3)])
    (curve,) = read_curves(path, steps_per_epoch=7).curves
    moments = [(r.epoch, r.step, r.full_beta_epochs) for r in curve.reports]
    assert moments == [(1, 7, 1), (2, 14, 2), (3, 21, 3)]
    assert curve.at == (0, 1, 2)


@pytest.mark.parametrize(
    ("betas", "ages"),
    [
        ([1.0, 1.0, 1.0, 1.0], [1, 2, 3, 4]),
        ([0.1, 0.5, 1.0, 1.0], [0, 0, 1, 2]),
        ([0.1, 1.0, 0.1, 1.0], [0, 0, 0, 0]),  # a plateau inside a cycle does not count, and one row is no plateau
        ([0.1, 0.2, 0.3, 0.4], [0, 0, 0, 0]),
    ],
)
def test_beta_is_full_from_where_it_never_moves_again(tmp_path: Path, betas: list[float], ages: list[int]) -> None:
    rows = [{"epoch": epoch, "beta": beta, "kl": 1.0} for epoch, beta in enumerate(betas)]
    (curve,) = read_curves(table(tmp_path / "run.csv", rows)).curves
    assert [report.full_beta_epochs for report in curve.reports] == ages


def test_parquet_and_csv_of_the_same_curves_are_judged_the_same(tmp_path: Path) -> None:
    import pandas as pd

    rows = [
        {"trial": trial, "step": 100 * step, "kl": kl, "truth": truth}
        for trial, truth, kls in (("a", "healthy", [3, 2, 1, 2]), ("b", "collapsed", [3, 0.1, 0.1, 0.1]))
        for step, kl in enumerate(kls, 1)
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "curves.parquet")
    files = tmp_path / "curves.parquet", table(tmp_path / "curves.csv", rows)
    found = [replay_result(read_curves(file), DEAD_BELOW_HALF, family="x") for file in files]
    assert found[0] == found[1]
    assert [curve["killed_at"] for curve in found[0]["curves"]] == [None, 300]
    assert found[0]["curves"][1]["spent"] == pytest.approx(0.75)


def test_a_sweep_is_replayed_from_its_journal(tmp_path: Path) -> None:
    book = mixed_sweep()
    folder = book.write(tmp_path)
    found = read_curves(folder)
    records = {record.id: record for record in book.journal().trials.values() if record.reports}
    assert found.about["objective"] == "ari" and {curve.name for curve in found.curves} == set(records)
    for curve in found.curves:
        assert curve.at == tuple(report.step for report in records[curve.name].reports)
        assert [r.metrics for r in curve.reports] == [r.metrics for r in records[curve.name].reports]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"loss": 1.0}], "no column says when"),
        ([{"step": "x", "loss": 1.0}], "does not say when"),
        ([{"step": 1, "truth": "dead"}], "not a valid ground truth"),
        ([{"step": -1, "loss": 1.0}], "does not say when"),
        ([{"step": 200, "loss": 1.0}, {"step": 100, "loss": 1.0}], "go back from step 200 to 100"),
        ([{"step": 1, "phase": "vae", "loss": 1.0}], "phase: is not a number"),
        ([{"step": 1, "closing": "no", "loss": 1.0}], "closing: is not a number"),
        ([{"step": 1, "full_beta_epochs": "x", "full_beta_steps": 1}], "full_beta_epochs: is not a number"),
    ],
)
def test_a_table_that_is_no_curve_is_refused_by_name(tmp_path: Path, rows: list[Row], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence) as refused:
        read_curves(table(tmp_path / "run.csv", rows))
    assert "run.csv" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the table has no rows"),
        ("step,kl\n", "the table has no rows"),
        ("step,kl,kl\n1,2,3\n", "kl: is a column twice"),
        ("step,kl\n1,2,5\n", "line 2 has more cells"),  # a decimal comma
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "run.csv").write_text(text)
    with pytest.raises(BadInput, match=sentence):
        read_curves(tmp_path / "run.csv")


def test_what_holds_no_curves_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("step,kl\n1,2\n")
    for source in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(BadInput, match="neither") as refused:
            read_curves(source)
        assert str(refused.value).startswith(str(source))


def test_cells_without_a_number_are_told_of(tmp_path: Path) -> None:
    rows = [{"step": step, "kl": kl, "by": "me"} for step, kl in ((1, 2.0), (2, "2;5"), (3, "?"))]
    found = read_curves(table(tmp_path / "run.csv", rows))
    assert found.notes == ("column kl: 2 cells without a number left out, such as '2;5'",)
    assert [report.metrics for report in found.curves[0].reports] == [{"kl": 2.0}, {}, {}]


def test_curves_of_several_files_that_are_called_alike_are_told_apart(tmp_path: Path) -> None:
    """Both files hold a healthy trial 1; the rules kill the second file's."""
    for name, kl in (("one", 3.0), ("two", 0.1)):
        table(tmp_path / f"{name}.csv", [{"trial": 1, "step": s, "kl": kl, "truth": "healthy"} for s in (1, 2, 3)])
    found = read_curves(tmp_path)
    assert [curve.name for curve in found.curves] == ["one/1", "two/1"]
    again = [Curve("1", curve.reports, curve.at, 1, Truth("healthy", value=1.0)) for curve in found.curves]
    scored = score([*again, *again], [replay(curve, DEAD_BELOW_HALF) for curve in [*again, *again]])
    assert scored is not None and scored.false_kill == Share(2, 4)


def test_curves_without_epochs_count_them_when_told_how_long_they_are(tmp_path: Path) -> None:
    """A grace in epochs never ends where none is counted, and the replay says so."""
    path = table(tmp_path / "run.csv", [{"step": step, "kl": 0.1} for step in range(100, 600, 100)])
    waiting = DEAD_BELOW_HALF.override({"posterior_collapse": {"grace": {"epochs": 2}}})
    silent = replay_result(read_curves(path), waiting, family="x")
    assert silent["summary"]["killed"] == 0
    assert silent["notes"] == [
        "the curves have no epochs, so these rules wait for their grace: posterior_collapse; see --steps-per-epoch"
    ]
    told = replay_result(read_curves(path, steps_per_epoch=100), waiting, family="x")
    assert told["curves"][0]["killed_at"] == 300 and told["notes"] == []


def test_rules_that_the_curves_say_nothing_to_are_named(tmp_path: Path) -> None:
    path = table(tmp_path / "run.csv", [{"step": step, "kl": 0.1, "loss": 1.0} for step in (1, 2, 3)])
    other = {"action": "warn", "signs": [{"metric": "ablation/relative", "below": 0.1}]}
    two = {"action": "warn", "signs": [{"metric": "loss", "below": 0.1}, {"metric": "x", "below": 0.1}], "votes": 2}
    gone = {"action": "warn", "signs": [{"metric": "y", "transform": "absent"}]}
    rules = DEAD_BELOW_HALF.override({"other": other, "two": two, "gone": gone})
    found = replay_result(read_curves(path), rules, family="x")
    assert found["notes"] == ["the curves do not hold what these rules look at: other, two"]
    one = {"action": "warn", "signs": [{"metric": "a", "below": 1}]}
    blind = RuleSet.from_dict({"aliases": {"a": ["b"]}, "rules": {"one": one}})
    with pytest.raises(BadInput, match=r"nothing that a rule looks at .*kl.*accepted: a, b, or aliases"):
        replay_result(read_curves(path), blind, family="x")


# --- scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    # Wilson's interval as statsmodels' proportion_confint(method="wilson") gives it
    [(0, 10, 0.0, 0.27753), (5, 10, 0.23659, 0.76341), (10, 10, 0.72247, 1.0), (95, 100, 0.88825, 0.97846)],
)
def test_wilson_intervals(count: int, of: int, low: float, high: float) -> None:
    assert Share(count, of).interval == pytest.approx((low, high), abs=1e-5)


def made(name: str, kls: Sequence[float], truth: str, onset: int | None = None, value: float | None = None) -> Curve:
    reports = [
        journal_lines.recorded(
            epoch=1, step=100 * i, full_beta_epochs=1, full_beta_steps=100 * i, phase=0,
            metrics={"latent/kl_total": kl},
        )
        for i, kl in enumerate(kls, 1)
    ]  # fmt: skip
    at = tuple(report.step for report in reports)
    return Curve(name, tuple(reports), at, 1, Truth(truth, onset, value))


def test_the_score_counts_what_hand_counting_counts() -> None:
    curves = [
        made("caught", [1, 0.1, 0.1, 0.1, 0.1], "collapsed", onset=1),  # killed at report 2: 60 % spent, 20 % late
        made("early", [0.1, 0.1, 0.1, 0.1, 0.1], "collapsed", onset=3),  # killed at report 1, before its onset
        made("missed", [1, 1, 1, 1, 1], "collapsed", onset=4),
        made("winner", [0.1, 0.1, 5, 5, 5], "healthy", value=0.9),
        made("fine", [5, 5, 5, 5, 5], "healthy", value=0.5),
        made("between", [0.1, 0.1, 0.1, 0.1, 0.1], "ambiguous"),
    ]
    found = [replay(curve, DEAD_BELOW_HALF) for curve in curves]
    scored = score(curves, found, "max")
    assert scored is not None
    assert (scored.caught, scored.false_kill, scored.winners) == (Share(2, 3), Share(1, 2), Share(1, 1))
    assert (scored.missed, scored.ambiguous, scored.winner_killed) == (1, 1, True)
    assert scored.median_delay == pytest.approx(0.1) and scored.median_spent == pytest.approx(0.5)
    assert scored.compute_saved == pytest.approx((0.4 + 0.6 + 0.6 + 0.6) / 6)  # of all six, the ambiguous one too


# --- real curves ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(shared: Path) -> Path:
    return shared / "replay"


@pytest.fixture(scope="module")
def radio_rows(recorded: Path) -> list[Row]:
    with (recorded / "radio" / "vae_full_replay.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def radio(path: Path, rows: Sequence[Row]) -> CurveReplay:
    (curve,) = read_curves(table(path, rows)).curves
    return replay(curve, rules_of("radio"))


def test_the_radio_run_is_never_killed_and_warned_of_its_discriminator_alone(recorded: Path) -> None:
    (curve,) = read_curves(recorded / "radio" / "vae_full_replay.csv").curves
    found = replay(curve, rules_of("radio"))
    assert found.killed_at is None and found.spent == 1.0
    assert found.warnings == ("discriminator not training",)
    assert found.warned_at[0] > 50_100


def test_the_radio_run_is_not_warned_of_before_its_discriminator_is_due(tmp_path: Path, radio_rows: list[Row]) -> None:
    found = radio(tmp_path / "phase1.csv", [row for row in radio_rows if int(row["step"]) <= 50_000])
    assert found.killed_at is None and found.warnings == ()


LOSSES = ("total_loss", "rec_loss", "nll_loss", "kl_loss", "kl_per_dim")
Inject = Callable[[list[Row], int], int]  # changes rows from one on, returns the row at which it is fully there


def not_finite(text: str, columns: Sequence[str] = LOSSES) -> Inject:
    def inject(rows: list[Row], start: int) -> int:
        for row in rows[start:]:
            row |= dict.fromkeys(columns, text)
        return start

    return inject


def zero_total(rows: list[Row], start: int) -> int:
    for row in rows[start:]:
        row |= {key: "" for key in row if key != "step"} | {"total_loss": "0.0"}
    return start


def collapse(worst: float, geometric: bool) -> Inject:
    def inject(rows: list[Row], start: int) -> int:
        kl, recon = float(rows[start]["kl_per_dim"]), float(rows[start]["rec_loss"])
        for index, row in enumerate(rows[start:]):
            share = min(1.0, index / 50)
            now = kl * (5e-4 / kl) ** share if geometric else kl + share * (5e-4 - kl)
            row |= {"kl_per_dim": now, "kl_loss": 12_288 * now, "rec_loss": recon + share * (worst - recon)}
        return start + 50

    return inject


def discriminator_wins(rows: list[Row], start: int) -> int:
    switch = next(index for index, row in enumerate(rows) if float(row["disc_factor"]) == 1)
    for index, row in enumerate(rows[switch:]):
        share = min(1.0, index / 20)
        row |= {"rec_loss": float(row["rec_loss"]) * (1 + 2 * share), "disc_loss": 1 - share * 0.999}
    return switch + 20


def huge_kl(rows: list[Row], start: int) -> int:
    for row in rows[start:]:
        row |= {"kl_per_dim": 120, "kl_loss": 120 * 12_288}
    return start


PATHOLOGIES: dict[str, Inject] = {
    "nan": not_finite("nan"),
    "inf": not_finite("inf"),
    "nan left out by the logger": not_finite(""),
    "nan in the total alone": not_finite("nan", ["total_loss"]),
    "total exactly zero": zero_total,
    "collapse, mild": collapse(0.5, geometric=False),
    "collapse, bad": collapse(0.9, geometric=True),
    "discriminator wins": discriminator_wins,
    "huge kl": huge_kl,
}


@pytest.mark.parametrize("start", [50, 700])
@pytest.mark.parametrize("name", PATHOLOGIES)
def test_a_pathology_of_the_radio_run_is_killed_within_thirty_rows(
    tmp_path: Path, radio_rows: list[Row], name: str, start: int
) -> None:
    rows = [dict(row) for row in radio_rows]
    full = PATHOLOGIES[name](rows, start)
    found = radio(tmp_path / "injected.csv", rows)
    assert found.killed is not None, found
    assert full - 50 <= found.killed <= full + 30


def test_real_lithology_histories(recorded: Path) -> None:
    curves = read_curves(recorded / "lithology" / "histories").curves
    assert len(curves) == 21
    found = {curve.name: replay(curve, rules_of("lithology")) for curve in curves}
    dead = {name for name, each in found.items() if each.killed_at is not None}
    assert dead == {name for name, each in found.items() if name.startswith("vae_lithology_") and each.reports >= 10}
    assert {found[name].kind for name in dead} == {"posterior_collapse"}
    assert found["vae_gra_v2_8_latent8_contrastive"].warnings


def test_collapsed_lithology_histories_die_of_their_validation_kl(recorded: Path, tmp_path: Path) -> None:
    with (recorded / "lithology" / "histories" / "vae_lithology_latent8.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    (curve,) = read_curves(table(tmp_path / "healthier.csv", [{**row, "val_kl_loss": 2.0} for row in rows])).curves
    assert replay(curve, rules_of("lithology")).killed_at is None


def test_the_command_prints_json_that_json_can_read(recorded: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from test_cli import call

    code, out, _ = call(
        capfd, "replay", str(recorded / "radio" / "vae_full_replay.csv"), "--family", "radio", "--json"
    )
    (curve,) = json.loads(out.splitlines()[-1])["curves"]
    assert code == 0 and curve["killed_at"] is None and curve["kind"] is None
    assert curve["warnings"] == ["discriminator not training"] and math.isclose(curve["spent"], 1.0)
