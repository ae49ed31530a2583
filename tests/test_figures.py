"""Figures: their numbers against the journal, every one of them drawn, and texts of users drawn as they are."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from journals import SyntheticSweep, mixed_sweep
from typer.testing import CliRunner

import buttress
from buttress.analysis import figures
from buttress.analysis.figures.adversarial import compute_adversarial, normalised
from buttress.analysis.figures.course import compute_health, compute_rungs, compute_timeline, thinned
from buttress.analysis.figures.search import (
    compute_collapse_map,
    compute_history,
    compute_importance,
    compute_parameters,
    compute_pareto,
)
from buttress.analysis.figures.trial import compute_kl, compute_trial
from buttress.cli.main import app
from buttress.errors import BadInput
from buttress.journal import Journal, read


@pytest.fixture
def mixed() -> Journal:
    return mixed_sweep().journal()


@pytest.fixture(scope="module")
def finished(recorded_sweeps: Path) -> Journal:
    return read(recorded_sweeps / "finished" / "journal.jsonl")


def texts(figure: Any) -> list[str]:
    from matplotlib.text import Text

    figure.canvas.draw()
    return [each.get_text() for each in figure.findobj(Text) if each.get_visible() and each.get_text()]


# --- history, parameters ----------------------------------------------------------------------------------------------


def test_history_counts_only_completed_trials_as_best(mixed: Journal) -> None:
    history = compute_history(mixed)
    assert (history.objective, history.direction) == ("ari", "max")
    by_trial = {point.trial: point for point in history.points}
    assert [point.trial for point in history.points] == ["0000", "0001", "0002", "0003", "0004", "0005"]
    assert [point.best for point in history.points] == [0.41, 0.52, 0.52, 0.52, 0.52, 0.52]
    assert by_trial["0002"].value == 0.9  # seen, and drawn, but never best
    assert by_trial["0000"].regret == pytest.approx(0.11) and by_trial["0005"].regret == 0
    assert [point.cost_s for point in history.points][:3] == [20.0, 8.0, 6.0]
    assert history.points[-1].spent_s == sum(point.cost_s for point in history.points)


def test_the_regret_of_a_minimum_is_positive() -> None:
    book = SyntheticSweep(objectives={"loss": "min"})
    for number, value in enumerate((3.0, 1.0, 2.0)):
        book.completed(f"{number:04d}", loss=[value])
    assert [point.regret for point in compute_history(book.journal()).points] == [2.0, 0.0, 0.0]


def test_parameters_keep_types_apart_and_leave_out_what_is_not_in_play() -> None:
    book = SyntheticSweep(search=("a", "b"))
    book.completed("0000", {"a": True}, ari=[0.1])
    book.completed("0001", {"a": 1, "b": 0.5}, ari=[0.2])
    axes = {axis.path: axis for axis in compute_parameters(book.journal()).axes}
    assert axes["a"].categories == (True, 1) and axes["a"].place(1) == 1.0 and axes["a"].place(True) == 0.0
    assert axes["b"].categories is None and axes["b"].place(None) is None


def test_axes_are_logarithmic_where_the_search_is(finished: Journal) -> None:
    search = finished.header.spec["search"]
    for axis in compute_parameters(finished).axes:
        assert axis.log == ("loguniform" in search[axis.path] or "logint" in search[axis.path]), axis.path
        if "choice" in search[axis.path]:
            assert axis.categories == tuple(search[axis.path]["choice"])


# --- importance, collapse ---------------------------------------------------------------------------------------------


def killing_sweep(trials: int = 24) -> SyntheticSweep:
    """`loss.beta` above 0.6 kills, and `train.lr` decides the objective."""
    book = SyntheticSweep()
    for number in range(trials):
        beta, lr = (number * 0.7548777) % 1, (number * 0.5698403) % 1  # evenly spread in the square
        if beta > 0.6:
            book.collapsed(f"{number:04d}", {"loss.beta": beta, "train.lr": lr})
        else:
            book.completed(f"{number:04d}", {"loss.beta": beta, "train.lr": lr}, ari=[lr])
    return book


def test_importance_tells_what_decides_the_objective_from_what_decides_survival() -> None:
    found = compute_importance(killing_sweep(80).journal())
    assert next(iter(found.objective)) == "train.lr" and found.objective["train.lr"] > 0.8
    assert next(iter(found.survival)) == "loss.beta" and found.survival["loss.beta"] > 0.8
    assert math.isclose(sum(found.objective.values()), 1) and math.isclose(sum(found.survival.values()), 1)
    assert (found.trials, found.fates) == (80 - found.dead, 80)


def test_importance_says_nothing_from_a_few_trials(mixed: Journal) -> None:
    found = compute_importance(mixed)
    assert not found.objective and not found.survival
    assert "Too few trials to tell: 3 with a value, 2 dead of 5." in texts(figures.figure(mixed, "importance"))


def test_the_collapse_map_shows_the_range_that_kills() -> None:
    found = compute_collapse_map(killing_sweep().journal())
    assert found.axes[0].path == "loss.beta"
    (region,) = found.regions
    dead = sum(point.state == "collapsed" for point in found.points)
    assert region.side == "above" and 0.55 < region.value < 0.65 and region.dead == region.trials == dead
    drawn = figures.figure(killing_sweep().journal(), "collapse")
    assert any(f"{dead} of {dead} collapsed there" in text for text in texts(drawn))


def test_a_value_outside_the_range_of_the_spec_is_no_error() -> None:
    book = killing_sweep()
    book.completed("0030", {"loss.beta": 7.0, "train.lr": 0.1}, ari=[0.1])
    assert next(iter(compute_importance(book.journal()).objective)) == "train.lr"


# --- course -----------------------------------------------------------------------------------------------------------


def test_health_shows_thresholds_and_kills(mixed: Journal) -> None:
    health = {each.metric: each for each in compute_health(mixed).metrics}
    curves = {curve.trial: curve for curve in health["latent/kl_total"].curves}
    assert curves["0002"].values == (3.0, 0.01, 0.002) and curves["0002"].ages == (1.0, 2.0, 3.0)
    assert curves["0002"].killed and not curves["0000"].killed


def test_health_of_a_real_sweep_has_the_rules_thresholds(finished: Journal) -> None:
    first = compute_health(finished).metrics[0]
    assert first.metric == "latent/kl_total" and (0.05, "below") in first.thresholds
    assert "posterior_collapse" in first.rules
    for curve in first.curves:
        record = finished.trials[curve.trial]
        assert len(curve.ages) == len(curve.values) and list(curve.ages) == sorted(curve.ages)
        assert curve.killed == (record.state in ("collapsed", "diverged"))


def test_rungs_hold_every_comparison(mixed: Journal, finished: Journal) -> None:
    (only,) = compute_rungs(mixed).comparisons
    assert (only.trial, only.age, only.value, only.cutoff, only.stopped) == ("0003", 4, 0.231, 0.254, True)
    real = compute_rungs(finished).comparisons
    assert len(real) == sum(len(record.rungs) for record in finished.trials.values())
    assert [each.time for each in real] == sorted(each.time for each in real)
    stopped = {each.trial for each in real if each.stopped}
    assert stopped == {record.id for record in finished.trials.values() if record.state == "pruned"}


def test_the_timeline_saves_by_each_trials_own_speed(mixed: Journal) -> None:
    timeline = compute_timeline(mixed)
    saved = {each.trial: each.saved_s for each in timeline.saved}
    assert saved == {"0002": 2.0 * 7, "0003": 2.0 * 6, "0004": 2.0 * 9}  # a failed trial saves nothing
    assert timeline.spent_s == 2.0 * (10 + 4 + 3 + 4 + 1)


def test_a_lost_attempt_has_a_bar_of_its_own(recorded_sweeps: Path) -> None:
    journal = read(recorded_sweeps / "attempts" / "journal.jsonl")
    timeline = compute_timeline(journal)
    assert len(timeline.bars) == sum(len(record.attempts) for record in journal.trials.values())
    lost = [bar for bar in timeline.bars if bar.state == "lost"]
    assert lost and len(lost) >= sum(len(record.attempts) - 1 for record in journal.trials.values())
    assert all(bar.end_s >= bar.begin_s >= 0 for bar in timeline.bars)


def test_long_curves_are_thinned_evenly_and_keep_their_ends() -> None:
    assert thinned(5, 10) == [0, 1, 2, 3, 4]
    kept = thinned(1000, 50)
    assert (kept[0], kept[-1], len(kept)) == (0, 999, 50)
    assert {after - before for before, after in pairwise(kept)} <= {20, 21}


# --- one trial --------------------------------------------------------------------------------------------------------


def test_a_trials_curves_are_its_reports(finished: Journal) -> None:
    record = next(each for each in finished.trials.values() if each.state == "completed")
    curves = compute_trial(finished, record.id)
    assert next(iter(curves.groups)) == finished.objectives[0].metric.partition("/")[0]
    series = {each.metric: each for group in curves.groups.values() for each in group}
    losses = [report.metrics["train/loss"] for report in record.reports if "train/loss" in report.metrics]
    assert list(series["train/loss"].values) == losses
    assert curves.ended == pytest.approx(record.reports[-1].epoch)
    annealed = record.config["loss"]["anneal"] != "constant"
    assert curves.full_beta is not None and (curves.full_beta > 0) == annealed


def test_the_losses_of_a_vae_gan_begin_with_its_discriminator() -> None:
    book = SyntheticSweep()
    book.trial("0000")
    for epoch in range(1, 11):
        judged = {"train/disc_loss": 1.0 / epoch} if epoch > 4 else {}
        book.epoch("0000", epoch, {"train/loss": 10.0 - epoch, "train/kl": 7.0, "train/recon": 0.5 / epoch, **judged})
    found = compute_adversarial(book.journal(), "0000")
    assert list(found.losses) == ["train/loss", "train/kl", "train/recon", "train/disc_loss"] and found.began == 5.0
    assert found.losses["train/disc_loss"].values == tuple(1.0 / epoch for epoch in range(5, 11))
    assert normalised(found.losses["train/loss"])[:2] == (1.0, pytest.approx(8 / 9))
    assert set(normalised(found.losses["train/kl"])) == {0.0}
    drawn = texts(figures.figure(book.journal(), "gan", "0"))
    assert {"total", "KL", "reconstruction", "discriminator", "on one scale", "each on its own axis"} <= set(drawn)


def test_the_kl_map_is_ordered_by_the_last_kl(finished: Journal) -> None:
    record = next(each for each in finished.trials.values() if each.state == "completed")
    found = compute_kl(finished, record.id)
    last = [row[-1] for row in found.values]
    assert last == sorted(last, reverse=True) and sorted(found.order) == list(range(len(found.order)))
    vectors = [report.vectors["latent/kl"] for report in record.reports if "latent/kl" in report.vectors]
    assert found.values[0] == tuple(vector[found.order[0]] for vector in vectors)


def test_a_pareto_front_needs_two_objectives(mixed: Journal) -> None:
    with pytest.raises(BadInput, match="two objectives"):
        compute_pareto(mixed)
    book = SyntheticSweep(objectives={"ari": "max", "loss": "min"})
    book.completed("0000", ari=[0.1], loss=[1.0])
    book.completed("0001", ari=[0.5], loss=[2.0])
    book.completed("0002", ari=[0.4], loss=[3.0])
    pareto = compute_pareto(book.journal())
    assert {point.trial: point.front for point in pareto.points} == {"0000": True, "0001": True, "0002": False}
    figures.figure(book.journal(), "pareto").canvas.draw()


# --- drawn ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in figures.FIGURES if name != "pareto"])
def test_every_figure_of_a_real_sweep_is_drawn(name: str, finished: Journal, tmp_path: Path) -> None:
    drawn = figures.figure(finished, name, "0")
    said = texts(drawn)
    assert not any("\\math" in text for text in said)
    path = figures.save(drawn, tmp_path / f"{name}.svg")
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize("name", [name for name in figures.FIGURES if name != "pareto"])
def test_every_figure_of_an_empty_sweep_says_why_it_is_empty(name: str) -> None:
    book = SyntheticSweep()
    if figures.FIGURES[name].of_trial:
        book.trial("0000")
    (said,) = texts(figures.figure(book.journal(), name, "0"))
    assert said.startswith(("No ", "Fewer than two", "Too few", "Trial 0000 has reported no"))


def test_the_texts_of_users_are_drawn_as_they_are(tmp_path: Path) -> None:
    book = SyntheticSweep(search=("cost_$x^2$", "<b>a</b>"), objectives={"$val$": "max"})
    for number in range(3):
        book.completed(f"{number:04d}", {"cost_$x^2$": 0.1 * number, "<b>a</b>": "$\\frac{a$"}, **{"$val$": [0.5]})
    path = figures.save(figures.figure(book.journal(), "slices"), tmp_path / "a.svg")
    svg = path.read_text()
    assert "cost_$x^2$" in svg and "&lt;b&gt;a&lt;/b&gt;" in svg and "<b>" not in svg


def test_the_same_journal_gives_the_same_file(mixed: Journal, tmp_path: Path) -> None:
    one, other = (figures.save(figures.figure(mixed, "history"), tmp_path / name) for name in ("a.svg", "b.svg"))
    assert one.read_bytes() == other.read_bytes()


def test_parallel_coordinates_to_brush_hold_every_trial_and_its_outcome(finished: Journal) -> None:
    from buttress.analysis.figures import interactive

    (drawn,) = interactive.parallel(compute_parameters(finished)).data
    axes = {axis["label"]: axis for axis in drawn["dimensions"]}
    trials = list(finished.trials.values())
    assert all(len(axis["values"]) == len(trials) for axis in axes.values())
    assert axes["loss.beta"]["values"][0] == pytest.approx(math.log10(trials[0].params["loss.beta"]))
    states = list(drawn["line"]["colorbar"]["ticktext"])
    assert [states[code] for code in drawn["line"]["color"]] == [record.state for record in trials]
    for axis in axes.values():
        assert not any(math.isnan(value) for value in axis["values"])


def test_pages_to_brush_need_nothing_beside_them_and_show_texts_as_they_are(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    book = SyntheticSweep(search=(evil, "b"))
    for number in range(3):
        book.completed(f"{number:04d}", {evil: 0.1 * number, "b": evil}, ari=[0.5])
    for name in figures.INTERACTIVE:
        text = figures.save_interactive(book.journal(), name, tmp_path / f"{name}.html").read_text()
        assert evil not in text.rpartition("Plotly.newPlot")[2] and 'src="http' not in text
    with pytest.raises(BadInput, match="this figure is no page"):
        figures.save_interactive(book.journal(), "history", tmp_path / "a.html")


# --- for people -------------------------------------------------------------------------------------------------------


def test_plot_writes_a_file_and_says_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mixed_sweep().write(tmp_path / "runs")
    done = CliRunner().invoke(app, ["plot", "toy", "timeline"])
    assert done.exit_code == 0 and done.stdout.startswith("wrote toy-ab12cd-timeline.png: what each slot did when")
    assert (tmp_path / "toy-ab12cd-timeline.png").read_bytes().startswith(b"\x89PNG")
    assert CliRunner().invoke(app, ["plot", "toy", "trial", "--trial", "2", "-o", "it.svg"]).exit_code == 0
    assert "Trial 0002, collapsed" in (tmp_path / "it.svg").read_text()


@pytest.mark.parametrize(
    ("name", "trial", "output", "said"),
    [
        ("histroy", None, "a.png", "no such figure"),
        ("trial", None, "a.png", "of one trial"),
        ("kl", "99", "a.png", "no such trial"),
        ("history", None, "a.gif", "not a format"),
        ("history", None, "file/a.png", "cannot be written"),
    ],
)
def test_bad_wishes_get_a_sentence(name: str, trial: str | None, output: str, said: str, tmp_path: Path) -> None:
    sweep = buttress.load(mixed_sweep().write(tmp_path).parent)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=said):
        figures.save(sweep.plot(name, trial=trial), tmp_path / output)
